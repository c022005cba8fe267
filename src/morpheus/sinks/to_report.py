"""`to-report`: a report of the run as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows, RunMetrics
from morpheus.core.stage import Outputs, Requirements, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.view import AlertCounts, Origin, RunCounts
from morpheus.sinks.to_file import validate_output
from morpheus.sources.results import complete_log
from morpheus.storage.atomic import open_output
from morpheus.storage.object_store import parse_location

if TYPE_CHECKING:
    from morpheus.report.view import ReportData


HTML_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ToReport(Sink):
    """Write a report: one HTML file that loads nothing from the network.

    Takes rows and passes them on. The page shows incidents (alerts of one user that are close in
    time) with their explanations, all events over time, and the fingerprint of each user. Alerts
    are the events that `filter` keeps; the others are shown as counts. Without `filter`, the
    highest events are alerts, limited by --alerts_per_day. If a stage is missing, the page says
    what it cannot show.

    Example: `explain filter --alerts_per_day=2 serialize to-report --filename=report.html`
    """

    name = "to-report"
    takes = (OutputRows,)
    gives = OutputRows
    needs = Requirements(dropped_stats=True, card=True)

    filename: str = option(
        "",
        "HTML file to write, on this machine or in an object store. Missing folders are created.",
        required=True,
        location="any",
    )
    overwrite: bool = option(
        False, "Replace an existing file. It stays until the new one is complete.", flag=True
    )
    alerts_per_day: float = option(
        5.0, "Without `filter`: maximum number of incidents shown per day.", min=0
    )
    aggregators: list[ReportAggregator] = field(default_factory=list, repr=False, compare=False)

    def validate(self) -> None:
        """Reject a file that cannot be written."""
        if not self.filename:
            raise UsageError("to-report: no file given. Give `--filename report.html`.")
        validate_output(
            self.filename,
            overwrite=self.overwrite,
            stage_name=self.name,
            suffixes=HTML_SUFFIXES,
        )

    def outputs(self) -> Outputs:
        """The file."""
        return Outputs(files=(parse_location(self.filename),))

    def open(self, context: StageContext) -> ReportAggregator:  # noqa: ARG002 - written by `commit`
        """Start with an empty page."""
        aggregator = ReportAggregator(timezone=self.options.timezone)
        self.aggregators[:] = [aggregator]
        return aggregator

    def process(self, batch: OutputRows, state: ReportAggregator) -> Iterator[OutputRows]:
        """Add the rows of a batch."""
        self._aggregate(state, batch)
        yield batch

    def commit(self, metrics: RunMetrics) -> None:
        """Write the page."""
        from morpheus.report.page import render_page  # noqa: PLC0415 - only where a page is written
        from morpheus.report.view import build_log_view  # noqa: PLC0415 - as above

        data = msgspec.json.encode(self.make_report_data(metrics))
        log = msgspec.json.encode(build_log_view(self._get_origin()))
        with open_output(parse_location(self.filename)) as writer, writer.guard_io():
            writer.file.write(render_page(data, log))

    def make_report_data(self, metrics: RunMetrics) -> ReportData:
        """Return the data of the page, for the events seen so far."""
        from morpheus.report.view import build_report_data  # noqa: PLC0415 - only where a page is written

        findings = self._get_findings()
        return build_report_data(
            findings,
            make_run_counts(findings, metrics),
            self.alerts_per_day,
            models_hint="train-ae (not --model=reference)",
            origin=self._get_origin(),
        )

    def _get_findings(self) -> ReportAggregator:
        return self.aggregators[0] if self.aggregators else ReportAggregator()

    def _get_origin(self) -> Origin:
        options = self.options
        log = complete_log(options.log, options.source, self._get_findings().columns)
        return Origin(options.source, options.userid_column_name, log)

    def _aggregate(self, aggregator: ReportAggregator, batch: OutputRows) -> None:
        aggregator.register_user(batch.user, batch.card, batch.unscored_reason)
        if batch.dropped_stats is not None:
            aggregator.filtered = True
            aggregator.add_histogram(
                batch.user, batch.dropped_stats.histogram, batch.dropped_stats.exceedances
            )
        if not batch.table.height:
            aggregator.register_columns(batch.table.names)
            return
        if TIME not in batch.table:
            raise UsageError(
                f"to-report: events have no column `{TIME}`, because `serialize` excludes it. "
                f"Include it: `serialize --include={TIME}`."
            )
        aggregator.add(batch.user, batch.table.to_frame())


def make_run_counts(aggregator: ReportAggregator, metrics: RunMetrics) -> RunCounts:
    """Return the counts of the events of a run, filtered events included."""
    reasons, scored, report = Counter[str](), 0, metrics.budget_report
    for user, statistics in aggregator.users.items():
        events = aggregator.count_events(user)
        if statistics.unscored_reason is not None:
            reasons[statistics.unscored_reason] += events
        elif aggregator.ranking is not None:
            scored += events
    return RunCounts(
        read=metrics.input.read,
        refused=metrics.input.refused,
        duplicates=metrics.input.duplicates,
        scored=scored,
        unscored=dict(reasons.most_common()),
        training=metrics.training.read,
        rungs=dict(
            Counter(card.training_data_scope for card in metrics.cards.values()).most_common()
        ),
        forecast=None if report is None else report.interval,
        refusals=metrics.input.refusals,
        alerts=None if report is None else AlertCounts.from_report(report),
    )
