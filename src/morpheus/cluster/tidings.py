"""What is heard from the workers while tasks run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tidings:
    """What is heard from the workers while tasks run.

    Attributes:
        begun: How often each task was begun, by its number.
        lost: Workers that were lost.

    >>> tidings = Tidings()
    >>> for task in (7, 8, 7):
    ...     tidings.of_task((0.0, {"begun": task}))
    >>> tidings.retries
    1
    """

    begun: Counter[int] = field(default_factory=Counter)
    lost: int = 0

    @property
    def retries(self) -> int:
        """How often a task had to be begun again."""
        return self.begun.total() - len(self.begun)

    def of_task(self, event: tuple[float, Any]) -> None:
        """A worker has begun a task."""
        self.begun[event[1]["begun"]] += 1

    def of_workers(self, event: tuple[float, Any]) -> None:
        """A worker has come or gone."""
        self.lost += event[1].get("action") == "remove-worker"
