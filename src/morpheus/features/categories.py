"""Category columns: text to codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @classmethod
    def fit(cls, name: str, values: pl.Series) -> Category:
        """Learn the words of a column, most frequent first, equal ones by name."""
        text = values.cast(pl.String).alias("word")
        counts = text.drop_nulls().value_counts(name="count").filter(pl.col("count") > 1)
        by_count = counts.sort(["count", "word"], descending=[True, False])
        return cls(name, tuple(by_count["word"].head(MOST_WORDS)))

    @property
    def codes(self) -> int:
        """How many codes there are: the words, missing and unseen."""
        return len(self.words) + FIRST_WORD

    @cached_property
    def _enum(self) -> pl.Enum:
        return pl.Enum(self.words)

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Give each value its code, (rows,)."""
        text = values.cast(pl.String)
        known = text.cast(self._enum, strict=False).to_physical().cast(pl.Int32)
        codes = (known + FIRST_WORD).fill_null(UNSEEN).to_numpy(writable=True)
        codes[text.is_null().to_numpy()] = MISSING
        return codes
