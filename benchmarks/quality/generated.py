"""Generated CloudTrail fleets: histories of three lengths, with or without session identifiers.

The events come from `gen_cloudtrail.py`, which is not part of this repository. Its users have
between 3 and 40 actions, few addresses and agents, a key per working session, and a daily and
weekly rhythm. Its incidents are new actions, a new address, failing calls and bursts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from quality.fleet import COLUMNS, USER
from quality.trial import EVENT, WHEN, Trial

HISTORIES = 300, 1000, 4000
"""Numbers of training events of a user."""
SESSION_COLUMNS = frozenset(
    {
        "requestParametersroleSessionName",
        "responseElementsassumedRoleUserassumedRoleId",
        "responseElementsassumedRoleUserarn",
        "userIdentityprincipalId",
        "userIdentityarn",
        "userIdentityaccessKeyId",
        "responseElementsrequestId",
        "responseElementsreservationId",
    }
)
"""Columns whose values belong to a session or a request, so that most of them are new."""
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to generate.

    Attributes:
        seed: Random seed.
        users: Number of users.
        history: Training events of a user.
        scored: Events of a user to score.
        scored_days: Days that the latter span. The history has as many events a day.
        anomalies: Share of the events to score that are of incidents. With 0 there is no incident.
        identifiers: Whether `SESSION_COLUMNS` are among the feature columns.
    """

    seed: int
    users: int = 15
    history: int = 1000
    scored: int = 600
    scored_days: int = 28
    anomalies: float = 0.02
    identifiers: bool = True

    @property
    def days(self) -> int:
        """Number of days of all events."""
        return round(self.scored_days * (self.history + self.scored) / self.scored)

    @property
    def name(self) -> str:
        """Name of the trial: training events of a user, and whether identifiers are left out."""
        kept = "" if self.identifiers else ", no ids"
        return f"generated {self.history:,}{kept}"


@cache
def load_generator(path: Path) -> ModuleType:
    """Import the generator.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(
            f"{path}: there is no generator. It is expected beside the folder of `--data`"
        )
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def trial(plan: Plan, path: Path) -> Trial:
    """Generate a trial with the generator in a file."""
    histories, scored = [], []
    incidents: dict[str, int] = {}
    kinds: dict[int, str] = {}
    users = load_generator(path).generate(
        plan.users, plan.history, plan.scored, plan.seed, plan.days, plan.anomalies
    )
    for _, before, after, labels in users:
        histories.append(frame(before))
        scored.append(frame(after))
        for names, kind in runs(after[EVENT], labels):
            incidents |= dict.fromkeys(names, len(kinds))
            kinds[len(kinds)] = kind
    columns = [name for name in COLUMNS if plan.identifiers or name not in SESSION_COLUMNS]
    history, later = in_order(histories), in_order(scored)
    present = tuple(name for name in columns if name in history.columns)
    return Trial(plan.name, USER, present, history, later, incidents, kinds)


def frame(columns: Columns) -> pl.DataFrame:
    """Return a user's events, with text or null in each column."""
    texts = {
        name: [None if value is None else str(value) for value in values]
        for name, values in columns.items()
    }
    return pl.DataFrame(texts, schema=dict.fromkeys(columns, pl.String))


def in_order(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the events of all users, by user, then time."""
    return pl.concat(frames).sort(USER, WHEN, maintain_order=True)


def runs(names: Any, labels: Any) -> Iterator[tuple[list[str], str]]:  # noqa: ANN401 - arrays of objects
    """Yield the events and the label of each run of equal labels; an empty label is benign.

    >>> list(runs("abcde", ["", "burst", "burst", "newip", ""]))
    [(['b', 'c'], 'burst'), (['d'], 'newip')]
    """
    for label, run in groupby(zip(names, labels, strict=True), key=lambda pair: pair[1]):
        if label:
            yield [str(name) for name, _ in run], str(label)
