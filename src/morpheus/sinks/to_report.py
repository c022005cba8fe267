"""`to-report`: one page that shows what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from morpheus.atomic import whole_file
from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.records import Rows, Summary
from morpheus.report.account import Account
from morpheus.report.findings import Findings
from morpheus.sinks.place import check_place
from morpheus.stage import Stage, option

if TYPE_CHECKING:
    from morpheus.report.contents import Contents


@dataclass(frozen=True)
class ToReport(Stage):
    """Write a report: one HTML file to look at, which asks the network for nothing.

    Takes rows and hands them on. The page shows the alerts, those of one user that are close in
    time together, with what `explain` says of them; everybody's events over time; each user's
    fingerprint. Alerts are the events that `filter` lets pass; the others are shown as numbers.
    Without `filter`, they are the highest events, as many as --alerts_per_day. What the page lacks
    because a stage is not in the chain, it says.

    Example: `explain filter --alerts_per_day=2 serialize to-report --filename=report.html`
    """

    name = "to-report"
    takes = (Rows,)
    gives = Rows
    scope = "run"
    sink = True
    needs_fingerprint = False

    filename: str = option("", "Page to write; its folder is made if there is none.", required=True)
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )
    alerts_per_day: float = option(
        5.0, "Where there is no `filter`: incidents a day that are shown, at most.", low=0
    )
    gathered: list[Findings] = field(default_factory=list, repr=False, compare=False)

    def check(self) -> None:
        """Refuse a place that cannot be written to."""
        if not self.filename:
            raise UsageError("to-report: no file is named. Give `--filename report.html`.")
        check_place(Path(self.filename), overwrite=self.overwrite, stage=self.name)

    def pictured(self) -> bool:
        """It shows everybody's days, those without an alert too."""
        return True

    def writes(self) -> Path | None:
        """The file."""
        return Path(self.filename)

    def __call__(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Look at each batch, then hand it on."""
        findings = Findings()
        self.gathered[:] = [findings]
        for batch in batches:
            self._look(findings, batch)
            yield batch

    def finish(self, summary: Summary) -> None:
        """Write the page."""
        from morpheus.report.page import page  # noqa: PLC0415 - only where a page is written

        data = msgspec.json.encode(self.contents(summary))
        with whole_file(Path(self.filename)) as file:
            file.write(page(data))

    def contents(self, summary: Summary) -> Contents:
        """All that the page says, as far as the run has come."""
        from morpheus.report.contents import contents  # noqa: PLC0415 - the same

        findings = self.gathered[0] if self.gathered else Findings()
        return contents(
            findings,
            account_of(findings, summary),
            self.alerts_per_day,
            cards="train-ae (not --model=reference)",
            about=(self.settings.source, self.settings.userid_column_name),
        )

    def _look(self, findings: Findings, batch: Rows) -> None:
        findings.see(batch.user, batch.card, batch.unscored)
        if batch.picture is not None:
            findings.filtered = True
            findings.picture(batch.user, batch.picture.cells, batch.picture.tally)
        if batch.frame.is_empty():
            return
        if TIME not in batch.frame.columns:
            raise UsageError(
                f"to-report: events come without their time, the column `{TIME}`. Let `serialize` "
                f"keep it: `--include={TIME}`."
            )
        findings.add(batch.user, batch.frame)


def account_of(findings: Findings, summary: Summary) -> Account:
    """What became of the events of a run, those that `filter` has left out among them."""
    reasons, scored = Counter[str](), 0
    for user, seen in findings.users.items():
        events = findings.events_of(user)
        if seen.unscored is not None:
            reasons[seen.unscored] += events
        elif findings.ranking is not None:
            scored += events
    return Account(
        read=summary.input.read,
        refused=summary.input.refused,
        duplicates=summary.input.duplicates,
        scored=scored,
        unscored=dict(reasons.most_common()),
        training=summary.training.read,
        rungs=dict(Counter(card.rung for card in summary.cards.values()).most_common()),
        forecast=_forecast(summary),
        refusals=summary.input.refusals,
    )


def _forecast(summary: Summary) -> tuple[float, float, float] | None:
    if summary.spending is None:
        return None
    stated = summary.spending.forecast
    return stated.alerts, stated.low, stated.high
