"""How far a run is, in a file that others can read while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import msgspec

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, Stage
from morpheus.report.view import RunCounts
from morpheus.storage.atomic import atomic_write

WRITE_INTERVAL = 1.0
"""Seconds between two writings, at least."""


class Status(msgspec.Struct, frozen=True):
    """How far a run is.

    Attributes:
        format: Says that it is this.
        version: Of the format.
        running: The run has not come to its end.
        source: Word of the source that reads the logs.
        user_column: Column that says whose event it is.
        filtered: A `filter` stands in the chain: what is written are alerts.
        alerts_per_day: Its budget, where it has one.
        account: What has become of the events so far.
        held: Events that each suppression has held back, by its title.
    """

    format: Literal["morpheus-status"]
    version: Literal[1]
    running: bool
    source: str
    user_column: str
    filtered: bool
    alerts_per_day: float | None
    account: RunCounts
    held: dict[str, int] = {}


@dataclass
class StatusFile:
    """Writes the status of a run, now and then.

    Attributes:
        path: The file; it is replaced as a whole.
        options: Those of the chain.
        filters: Its filters.
    """

    path: Path
    options: PipelineOptions
    filters: Sequence[Stage]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._due = self.clock()

    @classmethod
    def from_stages(cls, path: str, stages: Sequence[Stage]) -> Self:
        """Write the status of a chain, whose stages have their settings."""
        filters = [stage for stage in stages if stage.name == "filter"]
        return cls(Path(path), stages[0].options, filters)

    def write(self, metrics: RunMetrics, *, running: bool) -> None:
        """Write the status; while it runs, only if some time has passed."""
        if running and self.clock() < self._due:
            return
        budgets = [
            budget for one in self.filters if (budget := getattr(one, "alerts_per_day", None))
        ]
        status = Status(
            "morpheus-status",
            1,
            running=running,
            source=self.options.source,
            user_column=self.options.userid_column_name,
            filtered=bool(self.filters),
            alerts_per_day=budgets[-1] if budgets else None,
            account=_count_run(metrics),
            held=dict(metrics.suppressed.most_common()),
        )
        with atomic_write(self.path) as file:
            file.write(msgspec.json.encode(status))
        self._due = self.clock() + WRITE_INTERVAL


def _count_run(metrics: RunMetrics) -> RunCounts:
    reasons, stated = Counter[str](), None
    for user, reason in metrics.unscored_reasons.items():
        reasons[reason] += metrics.users[user]
    if metrics.budget_report is not None:
        forecast = metrics.budget_report.forecast
        stated = forecast.alerts, forecast.low, forecast.high
    return RunCounts(
        read=metrics.input.read,
        refused=metrics.input.refused,
        duplicates=metrics.input.duplicates,
        scored=metrics.scored + metrics.filtered,
        unscored=dict(reasons.most_common()),
        training=metrics.training.read,
        rungs=dict(Counter(card.rung for card in metrics.cards.values()).most_common()),
        forecast=stated,
        refusals=metrics.input.refusals,
    )
