"""The columns that have a meaning of their own, and the lists of feature columns.

A columns file holds one feature name a line. Names are those of the flat table: nested names joined
with the dots removed (`userIdentity.arn` is `userIdentityarn`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Self

from morpheus.errors import UsageError

ROW = ""
"""Running number of an event within its user, from 0: the unnamed first column of the output."""
INDEX = "_index_"
"""Position of an event in its file: the file's own index column if it has one."""
ACTOR_OPTION = "@actor"
"""Asks, in place of a column of the user, for the one that the log's rules find out."""
ACTOR = "actor"
"""Who acted, by those rules."""
TIME = "event_dt"
"""Time of an event, in UTC, as a datetime."""
POPULATION_USER = "_owner_"
"""Whose each event of a sample of everybody's is."""
SCORE = "ae_anomaly_score"
"""Mean reconstruction loss of an event over its columns."""
RISK = "risk"
"""How much an event and what came just before it speak against their user, over all columns."""
TS_ANOMALY = "ts_anomaly"
"""Whether an event lies in a time bin that breaks its user's rhythm."""


class ExplanationColumns(NamedTuple):
    """Names of the columns that `explain` adds."""

    reason: str = "reason"
    top_columns: str = "top_columns"
    explanation: str = "explanation"

    def with_prefix(self, prefix: str) -> Self:
        """The same names behind a prefix."""
        return type(self)(*(prefix + name for name in self))

    @classmethod
    def find_in(cls, columns: Iterable[str]) -> Self | None:
        """Find them among a frame's columns, whatever their prefix; None if they are not there.

        One of the three alone is the log's own: Duo's and Kubernetes' logs have a `reason`, too.

        >>> ExplanationColumns.find_in(["reason", "event_dt", "why_reason", "why_top_columns"])
        ExplanationColumns(reason='why_reason', top_columns='why_top_columns', explanation='why_explanation')
        >>> ExplanationColumns.find_in(["reason", "event_dt"]) is None
        True
        """
        found = Counter(
            column.removesuffix(name)
            for column in columns
            for name in cls()
            if column.endswith(name)
        )
        last = next((prefix for prefix in reversed(found) if found[prefix] > 1), None)
        return None if last is None else cls().with_prefix(last)


def read_lines(name: str, *, option: str) -> tuple[str, ...]:
    """Read a list, one entry a line; empty lines are left out.

    The working directory is looked in first, then the lists shipped with the package, with or
    without their leading `data/`.

    Raises:
        UsageError: There is no such file.

    >>> read_lines("data/columns_ae_azure.txt", option="--columns_file")[:2]
    ('appDisplayName', 'clientAppUsed')
    """
    shipped = resources.files("morpheus") / "data" / name.removeprefix("data/")
    for place in (Path(name), shipped):
        if place.is_file():
            lines = place.read_text(encoding="utf-8").splitlines()
            return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    raise UsageError(f"{option}: there is no file `{name}`. Give a text file with one name a line.")
