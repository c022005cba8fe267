"""`to-report`: one page that shows what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows, RunMetrics
from morpheus.core.stage import Outputs, Requirements, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.view import RunCounts
from morpheus.sinks.to_file import validate_output_path
from morpheus.storage.atomic import atomic_write

if TYPE_CHECKING:
    from morpheus.report.view import ReportData


@dataclass(frozen=True)
class ToReport(Sink):
    """Write a report: one HTML file to look at, which asks the network for nothing.

    Takes rows and hands them on. The page shows the alerts, those of one user that are close in
    time together, with what `explain` says of them; everybody's events over time; each user's
    fingerprint. Alerts are the events that `filter` lets pass; the others are shown as numbers.
    Without `filter`, they are the highest events, as many as --alerts_per_day. What the page lacks
    because a stage is not in the chain, it says.

    Example: `explain filter --alerts_per_day=2 serialize to-report --filename=report.html`
    """

    name = "to-report"
    takes = (OutputRows,)
    gives = OutputRows
    needs = Requirements(dropped_stats=True)

    filename: str = option("", "Page to write; its folder is made if there is none.", required=True)
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )
    alerts_per_day: float = option(
        5.0, "Where there is no `filter`: incidents a day that are shown, at most.", min=0
    )
    aggregators: list[ReportAggregator] = field(default_factory=list, repr=False, compare=False)

    def validate(self) -> None:
        """Refuse a place that cannot be written to."""
        if not self.filename:
            raise UsageError("to-report: no file is named. Give `--filename report.html`.")
        validate_output_path(Path(self.filename), overwrite=self.overwrite, stage_name=self.name)

    def outputs(self) -> Outputs:
        """The file."""
        return Outputs(files=(Path(self.filename),))

    def open(self, context: StageContext) -> ReportAggregator:  # noqa: ARG002 - written by `commit`
        """Start with an empty page."""
        aggregator = ReportAggregator()
        self.aggregators[:] = [aggregator]
        return aggregator

    def process(self, batch: OutputRows, state: ReportAggregator) -> Iterator[OutputRows]:
        """Add the rows of a batch."""
        self._aggregate(state, batch)
        yield batch

    def commit(self, metrics: RunMetrics) -> None:
        """Write the page."""
        from morpheus.report.page import render_page  # noqa: PLC0415 - only where a page is written

        data = msgspec.json.encode(self.make_report_data(metrics))
        with atomic_write(Path(self.filename)) as file:
            file.write(render_page(data))

    def make_report_data(self, metrics: RunMetrics) -> ReportData:
        """All that the page says, as far as the run has come."""
        from morpheus.report.view import build_report_data  # noqa: PLC0415 - the same

        findings = self.aggregators[0] if self.aggregators else ReportAggregator()
        return build_report_data(
            findings,
            make_run_counts(findings, metrics),
            self.alerts_per_day,
            models_hint="train-ae (not --model=reference)",
            origin=(self.options.source, self.options.userid_column_name),
        )

    def _aggregate(self, aggregator: ReportAggregator, batch: OutputRows) -> None:
        aggregator.register_user(batch.user, batch.card, batch.unscored_reason)
        if batch.dropped_stats is not None:
            aggregator.filtered = True
            aggregator.add_histogram(
                batch.user, batch.dropped_stats.histogram, batch.dropped_stats.exceedances
            )
        if batch.frame.is_empty():
            return
        if TIME not in batch.frame.columns:
            raise UsageError(
                f"to-report: events come without their time, the column `{TIME}`. Let `serialize` "
                f"keep it: `--include={TIME}`."
            )
        aggregator.add(batch.user, batch.frame)


def make_run_counts(aggregator: ReportAggregator, metrics: RunMetrics) -> RunCounts:
    """What became of the events of a run, those that `filter` has left out among them."""
    reasons, scored = Counter[str](), 0
    for user, seen in aggregator.users.items():
        events = aggregator.count_events(user)
        if seen.unscored_reason is not None:
            reasons[seen.unscored_reason] += events
        elif aggregator.ranking is not None:
            scored += events
    return RunCounts(
        read=metrics.input.read,
        refused=metrics.input.refused,
        duplicates=metrics.input.duplicates,
        scored=scored,
        unscored=dict(reasons.most_common()),
        training=metrics.training.read,
        rungs=dict(Counter(card.rung for card in metrics.cards.values()).most_common()),
        forecast=_forecast_interval(metrics),
        refusals=metrics.input.refusals,
    )


def _forecast_interval(metrics: RunMetrics) -> tuple[float, float, float] | None:
    if metrics.budget_report is None:
        return None
    stated = metrics.budget_report.forecast
    return stated.alerts, stated.low, stated.high
