"""Reserved column names.

Column names are those of the flat table: the names of nested fields, joined without dots
(`userIdentity.arn` is `userIdentityarn`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Self

ROW = ""
"""Number of an event among those of its user, from 0: the unnamed first column of the output."""
INDEX = "_index_"
"""Position of an event in its file, or the value of the file's own index column."""
ACTOR_OPTION = "@actor"
"""Given in place of a user column, it selects `ACTOR`."""
ACTOR = "actor"
"""Column of the actor of each event, by the rules of the log format."""
TIME = "event_dt"
"""Time of an event, in UTC, as a datetime."""
POPULATION_USER = "_owner_"
"""User column of a sample of all users' events."""
SCORE = "ae_anomaly_score"
"""Mean reconstruction loss of an event over its columns."""
RISK = "risk"
"""How unusual an event and the events just before it are, over all columns."""
TS_ANOMALY = "ts_anomaly"
"""Whether an event is in a time bin with a time-series anomaly."""


class ExplanationColumns(NamedTuple):
    """Names of the columns that `explain` adds."""

    reason: str = "reason"
    top_columns: str = "top_columns"
    explanation: str = "explanation"

    def with_prefix(self, prefix: str) -> Self:
        """Return the same names with a prefix."""
        return type(self)(*(prefix + name for name in self))

    @classmethod
    def find_in(cls, columns: Iterable[str]) -> Self | None:
        """Find them among the columns of a frame, with any prefix; None if they are missing.

        Two of the three are needed. Logs of Duo and Kubernetes have a `reason` of their own.

        >>> columns = ["reason", "event_dt", "why_reason", "why_top_columns"]
        >>> ExplanationColumns.find_in(columns)[0]
        'why_reason'
        >>> ExplanationColumns.find_in(["reason", "event_dt"]) is None
        True
        """
        prefixes = Counter(
            column.removesuffix(name)
            for column in columns
            for name in cls()
            if column.endswith(name)
        )
        last = next((prefix for prefix in reversed(prefixes) if prefixes[prefix] > 1), None)
        return None if last is None else cls().with_prefix(last)
