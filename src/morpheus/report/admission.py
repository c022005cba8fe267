"""Which events are alerts, and how high each incident is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import polars as pl

from morpheus.report.candidates import FLAGGED, LEVEL, ordered
from morpheus.report.findings import PLAIN, Findings
from morpheus.report.incidents import Incident, brief, grouped
from morpheus.report.yardstick import Yardstick, severity

INCIDENTS = 2500
"""Incidents shown, at most."""
BY_FILTER = "Alerts are the events that filter let pass."


@dataclass(frozen=True)
class Admitted:
    """The incidents that a page shows.

    Attributes:
        incidents: The highest first.
        hidden: Alerts for which there was no room.
        rule: What made alerts of events, in a sentence.
        common: What `PLAIN` scores are measured by; None if nothing is known of them.
        reach: The risk of level 1, if held-out days say so.
    """

    incidents: list[Incident]
    hidden: int
    rule: str
    common: Yardstick | None
    reach: float | None

    def yardstick(self, own: Yardstick) -> Yardstick:
        """What a user's scores are measured by in the end."""
        return self.common if own is PLAIN and self.common is not None else own

    def measured(self) -> Admitted:
        """Call the lowest incident level 1, where nothing is known."""
        if self.common is not None or not self.incidents:
            return self
        common = Yardstick(0.0, max(min(one.level for one in self.incidents), 1e-9))
        return replace(
            self, common=common, incidents=[_measured(one, common) for one in self.incidents]
        )


def admitted(findings: Findings, alerts_per_day: float) -> Admitted:
    """Choose the incidents to show.

    What `filter` let pass is shown. Without it, what is at least as high as it gets on ordinary
    days is, as far as `alerts_per_day` incidents a day allow.
    """
    common = findings.common()
    own = any(findings.yardstick(user) is not PLAIN for user in findings.users)
    events = _events(findings, common)
    if (common or own) and not findings.filtered:
        events = events.filter(pl.col(LEVEL) >= 1)
    told = [Incident.of(group, findings.ranking or "") for group in grouped(events)]
    told.sort(key=lambda one: (-one.level, one.since, one.user or ""))
    rule, hidden = BY_FILTER, findings.candidates.left_out + findings.offbeat.left_out
    if not findings.filtered:
        days = _days(findings)
        most, hidden = max(round(alerts_per_day * days), 1), 0
        rule = _rule(findings, alerts_per_day, most, days, measured=bool(common or own))
        told = told[:most]
    hidden += sum(one.count for one in told[INCIDENTS:])
    reach = None if common is None else brief(common.reach)
    known = common or (PLAIN if own else None)
    return Admitted(told[:INCIDENTS], hidden, rule, known, reach).measured()


def _events(findings: Findings, common: Yardstick | None) -> pl.DataFrame:
    """The highest events; a break in the rhythm is worth a look, whatever the event itself is."""
    parts = [findings.candidates.events(), findings.offbeat.events()]
    every = pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")
    if not every.height:
        return every
    level = pl.col(LEVEL) / (1.0 if common is None else common.reach)
    least = pl.when(pl.col(FLAGGED)).then(1.0).otherwise(0.0)
    return ordered(every.with_columns(pl.max_horizontal(level, least).alias(LEVEL)))


def _rule(
    findings: Findings, alerts_per_day: float, most: int, days: int, *, measured: bool
) -> str:
    limit = " that are higher than it gets on ordinary days (level 1)" if measured else ""
    return (
        f"No filter in the chain: alerts are the {alerts_per_day:g} highest incidents a day, at "
        f"most {most:,} in {days:,} days,{limit} by {findings.ranking or 'no score'}."
    )


def _days(findings: Findings) -> int:
    period, step = findings.lanes.bucket_range, findings.lanes.bucket_seconds
    if period is None:
        return 1
    return -(-(period[1] * step) // 86400) - period[0] * step // 86400


def _measured(one: Incident, yardstick: Yardstick) -> Incident:
    """The same incident by another measure."""
    level = brief(one.level / yardstick.reach)
    events = [
        msgspec.structs.replace(event, level=brief(event.level / yardstick.reach))
        for event in one.events
    ]
    return msgspec.structs.replace(one, level=level, severity=severity(level), events=events)
