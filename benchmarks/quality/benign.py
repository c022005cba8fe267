"""Benign logs for alert budgets: generated fleets of every kind, companies and commits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quality import changes, commits, fleet, generated
from quality.generated import HISTORIES, Plan
from quality.sets import find_generator
from quality.trial import Trial

FIRST_SEED = 1001
"""Seed of the first fleet. No other part uses these seeds."""
REPORTED = Plan(seed=11, users=20, history=1000, scored=1000, scored_days=30, anomalies=0.0)
"""A fleet on which new session identifiers once raised over 500 alerts on a budget of 24."""
WITH_NEWCOMERS = 6
"""Number of fleets in which a third of the users have a short history."""
Logs = tuple[str, Trial]
"""A group of logs, and one of them."""


def fleets(data: Path, number: int) -> Iterator[Logs]:
    """Yield the reported fleet, some of every kind, and some with newcomers.

    Kinds alternate: three lengths of the history, with and without identifiers, with and without
    drift. Twelve fleets have each of them once.
    """
    yield (
        "20 generated users",
        replace(generated.trial(REPORTED, find_generator(data)), name="generated 1,000, 20 users"),
    )
    for place in range(number):
        yield "generated fleets", _fleet(data, place, drift=place // 6 % 2 == 1)
    for place in range(min(WITH_NEWCOMERS, number)):
        seed = FIRST_SEED + place
        trial = _fleet(data, number + place, drift=False)
        yield "fleets with newcomers", changes.cut_histories(trial, seed, unknown=False)


def _fleet(data: Path, place: int, *, drift: bool) -> Trial:
    seed = FIRST_SEED + place
    plan = Plan(seed, history=HISTORIES[place % 3], identifiers=place // 3 % 2 == 0, anomalies=0.0)
    trial = generated.trial(plan, find_generator(data))
    return changes.add_drift(trial, seed) if drift else trial


def others(data: Path, seeds: int) -> Iterator[Logs]:
    """Yield the benign days of companies and commits."""
    for number in list(fleet.PRINTED)[:seeds]:
        yield "companies", fleet.trial(number)
    yield "commits", commits.trial(data / "commits" / "commits.jsonl.gz")
