"""The strip on top of a page: what became of everything, and what the page lacks."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from morpheus.columns import TS_ANOMALY, RISK
from morpheus.report.findings import Findings


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the events of a run, as far as whoever makes the page knows.

    Attributes:
        read: Events found.
        refused: Of these, those that could not be read.
        duplicates: Those delivered twice.
        scored: Events with a score.
        unscored: Events without one, by reason.
        training: Events that were learnt from.
        rungs: Users by whose history their fingerprint was learnt from.
        forecast: Alerts that were to be expected, and between which bounds.
        refusals: The first few reasons to refuse an event.
    """

    read: int = 0
    refused: int = 0
    duplicates: int = 0
    scored: int = 0
    unscored: dict[str, int] = {}
    training: int = 0
    rungs: dict[str, int] = {}
    forecast: tuple[float, float, float] | None = None
    refusals: list[str] = []


class Lack(msgspec.Struct, frozen=True):
    """Something that the page would show, had it been told.

    Attributes:
        what: What is not shown.
        add: What to type.
    """

    what: str
    add: str


def lacks(findings: Findings, cards: str) -> Iterator[Lack]:
    """Say what is missing.

    Args:
        findings: What there is.
        cards: How the cards of fingerprints come into the page.
    """
    there = findings.columns
    if findings.ranking != RISK:
        yield Lack(
            f"One ranking across users: levels go by {findings.ranking or 'no score'}",
            "add-scores --label ae_anomaly_score --label risk --label pvalue",
        )
    elif "pvalue" not in there:
        yield Lack("p-values", "add-scores --label risk --label pvalue")
    if "explanation" not in there:
        yield Lack(
            "Reasons, expected values, the smallest change, the nearest normal events",
            "explain (behind add-scores)",
        )
    if TS_ANOMALY not in there:
        yield Lack("Breaks in the rhythm", "timeseries --resolution=10m")
    if not any(seen.card and seen.card.portrait for seen in findings.users.values()):
        yield Lack("Fingerprints, and levels measured by held-out days", cards)
