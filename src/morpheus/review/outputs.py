"""Files that runs wrote, user by user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from morpheus.errors import UsageError
from morpheus.report.look import Look, ranking_of
from morpheus.report.yardstick import FAR, Yardstick
from morpheus.sources import finished

USERS = (
    "actor",
    "userIdentitysessionContextsessionIssueruserName",
    "userIdentityarn",
    "userPrincipalName",
    "username",
    "userIdentityaccountId",
)
"""Columns that may say whose event it is, the first that there is."""
_OWNER = "_owner_"


@dataclass(frozen=True)
class Outputs:
    """Files that runs wrote.

    Attributes:
        files: The files, at least one.
        user: Column that says whose event it is.
        ranking: The best score that they hold.
    """

    files: Sequence[Path]
    user: str
    ranking: str | None

    @classmethod
    def of(cls, files: Sequence[Path], user: str) -> Self:
        """Look into the first of them; `user` may be empty, if the column is a usual one."""
        rows = next(finished.read_results(files[0]), None)
        if rows is None:
            raise UsageError(f"`{files[0]}` holds no rows. Give the output of an earlier run.")
        found = user or next((one for one in USERS if one in rows.columns), "")
        if not found or found not in rows.columns:
            there = ", ".join(f"`{one}`" for one in rows.columns[:12] if one)
            what = f"no column `{user}`" if user else "none of the usual columns of users"
            raise UsageError(
                f"--userid_column_name: `{files[0]}` has {what}. Name one of its own, such as "
                f"{there}."
            )
        return cls(files, found, ranking_of(rows.columns))

    def by_user(self) -> Iterator[tuple[str | None, pl.DataFrame]]:
        """Rows of one user at a time, in the files' order."""
        for rows in chain.from_iterable(map(finished.read_results, self.files)):
            column = pl.col(self.user) if self.user in rows.columns else pl.lit(None)
            owned = rows.with_columns(column.cast(pl.String).alias(_OWNER))
            for some in owned.partition_by(_OWNER, maintain_order=True):
                yield some[_OWNER][0], some.drop(_OWNER)

    def measured(self) -> Mapping[str | None, Yardstick]:
        """How high is high by the files alone: by the mean and the spread of each user's scores."""
        sums: dict[str | None, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        for owner, rows in self.by_user():
            scores = Look.of(rows).scores
            known = scores[~np.isnan(scores)]
            more = np.array([len(known), known.sum(), (known**2).sum()])
            sums[owner] = sums.get(owner, np.zeros(3)) + more
        return {owner: _yardstick(*each.tolist()) for owner, each in sums.items()}


def _yardstick(number: float, total: float, squares: float) -> Yardstick:
    mean = total / max(number, 1)
    spread = max(squares / max(number, 1) - mean**2, 0) ** 0.5
    return Yardstick(mean, mean + FAR * max(spread, 1e-6))
