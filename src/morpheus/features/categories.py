"""Category columns: text to codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

MISSING, UNKNOWN, FIRST_CODE = 0, 1, 2
"""Codes: an event has no value here; one that the history did not hold twice; the first word."""

MAX_VOCABULARY = 4096
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
    vocabulary: tuple[str, ...]
    missing: str | None = None

    @classmethod
    def fit(
        cls, name: str, values: pl.Series, *, min_count: int = 2, missing: str | None = None
    ) -> Category:
        """Learn the words of a column, most frequent first, equal ones by name.

        Args:
            name: The column's name.
            values: Its values in the history.
            min_count: How often a value must be seen to become a word.
            missing: The word that a missing value is read as. By default it is read as none, and
                its code is MISSING.
        """
        text = values if values.dtype == pl.String else values.cast(pl.String)
        counts = Counter((text if missing is None else text.fill_null(missing)).to_list())
        habits = [
            (-count, word) for word, count in counts.items() if word is not None and count >= min_count
        ]
        return cls(name, tuple(word for _, word in sorted(habits)[:MAX_VOCABULARY]), missing)

    @property
    def n_codes(self) -> int:
        """How many codes there are: the words, missing and unseen."""
        return len(self.vocabulary) + FIRST_CODE

    @property
    def missing_code(self) -> int:
        """The code of an event that has no value."""
        if self.missing is None:
            return MISSING
        return FIRST_CODE + self.vocabulary.index(self.missing) if self.missing in self.vocabulary else UNKNOWN

    def encode(self, values: NDArray[np.int32], value_codes: Mapping[str, int]) -> NDArray[np.int32]:
        """Give each value its code, (rows,).

        Args:
            values: Values as codes of a `DictionaryEncoder`, (rows,); -1 for a missing one.
            value_codes: All the values that this has, and the code of each there.
        """
        table = np.full(len(value_codes) + 1, UNKNOWN, dtype=np.int32)
        table[-1] = self.missing_code
        for code, word in enumerate(self.vocabulary, start=FIRST_CODE):
            if word in value_codes:
                table[value_codes[word]] = code
        return table[values]
