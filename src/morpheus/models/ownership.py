"""Who has which values of a column, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

MULTIPLE_OWNERS = -1
"""Stands for the owner of a value that more than one has."""


@dataclass(frozen=True)
class ValueUsage:
    """How often each owner of a sample has each value of a column.

    Sizes: O owners, V values, P pairs of an owner and a value that the owner has.

    Attributes:
        codes: Number of each value.
        owner: Owner of each pair, (P,).
        value: Its value, (P,).
        share: Share of the owner's events that have it, (P,).
        n_owners: O.

    >>> owned = ValueUsage.of(pl.Series(["a", "a", "b", "b"]), np.array([0, 0, 0, 1]))
    >>> owned.codes, owned.mean.round(2).tolist(), owned.only.tolist()
    ({'a': 0, 'b': 1}, [0.33, 0.67], [0, -1])
    """

    codes: Mapping[str | None, int]
    owner: NDArray[np.intp]
    value: NDArray[np.intp]
    share: NDArray[np.float64]
    n_owners: int

    @classmethod
    def from_values(cls, values: pl.Series, owners: NDArray[np.intp]) -> ValueUsage:
        """Count the values, (S,), of each owner, by number, (S,)."""
        text = values.cast(pl.String).to_list()
        codes = {word: code for code, word in enumerate(dict.fromkeys(text))}
        coded = np.fromiter(map(codes.__getitem__, text), np.intp, len(text))
        pairs, counts = np.unique(owners * len(codes) + coded, return_counts=True)
        owner, value = np.divmod(pairs, max(len(codes), 1))
        events = np.bincount(owners)
        return cls(codes, owner, value, counts / events[owner], len(events))

    @cached_property
    def mean_share(self) -> NDArray[np.float64]:
        """Share of each value with the mean owner, (V,)."""
        return np.asarray(np.bincount(self.value, self.share, len(self.codes)) / self.n_owners)

    def mean_share_of(self, value: str | None) -> float:
        """Share of a value with the mean owner; 0 if nobody has it."""
        code = self.codes.get(value)
        return 0.0 if code is None else float(self.mean_share[code])

    @cached_property
    def exclusive_owner(self) -> NDArray[np.intp]:
        """The owner who alone has each value, or `MULTIPLE_OWNERS`, (V,)."""
        found = np.zeros(len(self.codes), dtype=np.intp)
        found[self.value] = self.owner
        found[np.bincount(self.value, minlength=len(found)) > 1] = MULTIPLE_OWNERS
        return found

    @cached_property
    def shared_rate(self) -> float:
        """Share of events, with the mean owner, whose value somebody else has too."""
        shared = self.share * (self.exclusive_owner[self.value] == MULTIPLE_OWNERS)
        return float(np.bincount(self.owner, shared, self.n_owners).mean())

    def used_by_others(self, value: str | None, owner: int) -> bool:
        """Whether anybody but an owner has a value."""
        code = self.codes.get(value)
        return code is not None and self.exclusive_owner[code] != owner

    def similarity(self, own: pl.Series) -> NDArray[np.float64]:
        """Share of a user's values, (events,), that the mean event of each owner has, (O,)."""
        shares = np.zeros(len(self.codes))
        for word, count in Counter(own.cast(pl.String).to_list()).items():
            if word in self.codes:
                shares[self.codes[word]] = count / len(own)
        found = np.bincount(self.owner, self.share * shares[self.value], self.n_owners)
        return np.asarray(found, dtype=np.float64)
