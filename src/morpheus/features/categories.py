"""Category columns: text to codes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

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
    >>> column.encode(pl.Series(["web", None, "kali"])).tolist()
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
        return MISSING if self.missing is None else self._codes[None]

    @cached_property
    def _codes(self) -> dict[str | None, int]:
        codes: dict[str | None, int] = {word: FIRST_WORD + i for i, word in enumerate(self.words)}
        missing = MISSING if self.missing is None else codes.get(self.missing, UNSEEN)
        return {None: missing, **codes}

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Give each value its code, (rows,)."""
        # A dictionary beats a join: the rows are few here, and polars' cost is in the call.
        text = values if values.dtype == pl.String else values.cast(pl.String)
        words = text.to_list()
        return np.fromiter(map(self._codes.get, words, repeat(UNSEEN)), np.int32, len(words))
