"""Category columns: text to codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

MISSING, UNSEEN, FIRST_WORD = 0, 1, 2
"""Codes: an event has no value here; one that the history did not hold twice; the first word."""

MOST_WORDS = 4096
"""Words kept a column, the most frequent; the bound on a fingerprint's size."""


@dataclass(frozen=True)
class Category:
    """A column of words, each with a code.

    A value seen once in the history is not a habit yet: it stays unseen, so that columns of
    identifiers, where every value is new, cost nothing and surprise nobody.

    >>> column = Category.fit("agent", pl.Series(["cli", "cli", "web", None, "cli", "web", "x"]))
    >>> column.words
    ('cli', 'web')
    >>> column.encode(np.array([1, -1, 0]), {"kali": 0, "web": 1}).tolist()
    [3, 0, 1]
    """

    name: str
    words: tuple[str, ...]
    missing: str | None = None

    @classmethod
    def fit(
        cls, name: str, values: pl.Series, *, least: int = 2, missing: str | None = None
    ) -> Category:
        """Learn the words of a column, most frequent first, equal ones by name.

        Args:
            name: The column's name.
            values: Its values in the history.
            least: How often a value must be seen to become a word.
            missing: The word that a missing value is read as. By default it is read as none, and
                its code is MISSING.
        """
        text = values if values.dtype == pl.String else values.cast(pl.String)
        counts = Counter((text if missing is None else text.fill_null(missing)).to_list())
        habits = [
            (-count, word) for word, count in counts.items() if word is not None and count >= least
        ]
        return cls(name, tuple(word for _, word in sorted(habits)[:MOST_WORDS]), missing)

    @property
    def codes(self) -> int:
        """How many codes there are: the words, missing and unseen."""
        return len(self.words) + FIRST_WORD

    @property
    def absent(self) -> int:
        """The code of an event that has no value."""
        if self.missing is None:
            return MISSING
        return FIRST_WORD + self.words.index(self.missing) if self.missing in self.words else UNSEEN

    def encode(self, values: NDArray[np.int32], known: Mapping[str, int]) -> NDArray[np.int32]:
        """Give each value its code, (rows,).

        Args:
            values: Values as codes of a `Dictionary`, (rows,); -1 for a missing one.
            known: All the values that this has, and the code of each there.
        """
        table = np.full(len(known) + 1, UNSEEN, dtype=np.int32)
        table[-1] = self.absent
        for code, word in enumerate(self.words, start=FIRST_WORD):
            if word in known:
                table[known[word]] = code
        return table[values]
