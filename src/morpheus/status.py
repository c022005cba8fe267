"""Status file of a run, which `morpheus serve` and other programs read while it runs.

The runtime writes it with `StatusFile`. Readers decode it as `Status`.
"""

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
from morpheus.report.view import AlertCounts, RunCounts
from morpheus.storage.atomic import atomic_write

STATUS_FILE = "status.json"
"""Usual name of the file, in the folder of the outputs."""
WRITE_INTERVAL = 1.0
"""Minimum number of seconds between two writes."""


class Status(msgspec.Struct, frozen=True):
    """Progress of a run.

    Attributes:
        format: Name of the format.
        version: Version of the format.
        running: The run has not ended.
        source: Word of the source.
        user_column: The user column.
        filtered: The pipeline has a `filter`, so its output rows are alerts.
        alerts_per_day: The alert budget of the filter; None without one.
        account: Counts of events so far.
        held: Suppressed events by label of the suppression.
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


def read_status(path: Path) -> Status | None:
    """Read a status file. None if there is none, or if it is incomplete or of another format."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None


@dataclass
class StatusFile:
    """Writes the status of a run to a file.

    Attributes:
        path: The file. It is replaced atomically.
        options: Options of the pipeline.
        filters: Its `filter` stages.
        clock: Returns the time in seconds.
    """

    path: Path
    options: PipelineOptions
    filters: Sequence[Stage]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._due = self.clock()

    @classmethod
    def from_stages(cls, path: str, stages: Sequence[Stage]) -> Self:
        """Make the status file of a pipeline whose stages have their options."""
        filters = [stage for stage in stages if stage.name == "filter"]
        return cls(Path(path), stages[0].options, filters)

    def write(self, metrics: RunMetrics, *, running: bool) -> None:
        """Write the status. A running run writes at most every `WRITE_INTERVAL` seconds."""
        if running and self.clock() < self._due:
            return
        budgets = [
            budget
            for stage in self.filters
            if (budget := getattr(stage, "wanted", None)) is not None
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
    reasons, report = Counter[str](), metrics.budget_report
    for user, reason in metrics.unscored_reasons.items():
        reasons[reason] += metrics.unscored[user]
    return RunCounts(
        read=metrics.input.read,
        refused=metrics.input.refused,
        duplicates=metrics.input.duplicates,
        scored=metrics.scored + metrics.filtered - metrics.unscored_filtered.total(),
        unscored=dict(reasons.most_common()),
        training=metrics.training.read,
        rungs=dict(
            Counter(card.training_data_scope for card in metrics.cards.values()).most_common()
        ),
        forecast=None if report is None else report.interval,
        refusals=metrics.input.refusals,
        alerts=None if report is None else AlertCounts.from_report(report),
    )
