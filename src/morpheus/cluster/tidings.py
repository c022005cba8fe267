"""What is heard from the workers while tasks run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ClusterEvents:
    """What is heard from the workers while tasks run.

    Attributes:
        task_starts: How often each task was begun, by its number.
        lost_workers: Workers that were lost.

    >>> tidings = ClusterEvents()
    >>> for task in (7, 8, 7):
    ...     tidings.on_task_started((0.0, {"begun": task}))
    >>> tidings.retries
    1
    """

    task_starts: Counter[int] = field(default_factory=Counter)
    lost_workers: int = 0

    @property
    def retries(self) -> int:
        """How often a task had to be begun again."""
        return self.task_starts.total() - len(self.task_starts)

    def on_task_started(self, event: tuple[float, Any]) -> None:
        """A worker has begun a task."""
        self.task_starts[event[1]["begun"]] += 1

    def on_worker_event(self, event: tuple[float, Any]) -> None:
        """A worker has come or gone."""
        self.lost_workers += event[1].get("action") == "remove-worker"
