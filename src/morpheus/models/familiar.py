"""Ordinary events of a user that came before, to put beside a strange one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_WORD, MISSING, UNSEEN
from morpheus.features.encoder import EncodedRows
from morpheus.features.numbers import Number
from morpheus.models.explanation import Instead, Near
from morpheus.models.fingerprint import Fingerprint
from morpheus.quoting import legible

REMEMBERED = 500
"""Latest ordinary events that are looked through."""
NEAREST = 3
"""Events that are named, at most."""
DIFFERENT = 5
"""Columns in which one of them differs that are named, at most."""


@dataclass
class Familiar:
    """The latest ordinary events of one user; fed in time order, in pieces of any size."""

    known: Fingerprint | None = None
    codes: NDArray[np.int32] | None = None
    seconds: NDArray[np.float64] | None = None

    def met(
        self,
        known: Fingerprint,
        rows: EncodedRows,
        strange: NDArray[np.bool_],
        seconds: NDArray[np.float64],
    ) -> Neighbours:
        """Remember some events, and get ready to be asked about them.

        Args:
            known: The user's fingerprint; what another one encoded is forgotten.
            rows: The events, encoded by it.
            strange: Which are not ordinary, (rows,).
            seconds: When they happened, since 1970, (rows,).
        """
        ordinary = np.flatnonzero(~strange)
        codes, times = rows.codes[rows.row_of[ordinary]], seconds[ordinary]
        before = 0
        if self.known is known and self.codes is not None and self.seconds is not None:
            before = len(self.codes)
            codes = np.concatenate([self.codes, codes])
            times = np.concatenate([self.seconds, times])
        self.known, self.codes, self.seconds = known, codes[-REMEMBERED:], times[-REMEMBERED:]
        until = before + np.concatenate([[0], np.cumsum(~strange)])
        return Neighbours(known, rows, codes, times, until)


@dataclass(frozen=True)
class Neighbours:
    """Ordinary events, and some events that may be asked about.

    Attributes:
        known: The user's fingerprint.
        rows: The events that may be asked about.
        codes: The ordinary ones, in time order, (O, C).
        seconds: When they happened, (O,).
        until: How many of them came before each event, (rows + 1,).
    """

    known: Fingerprint
    rows: EncodedRows
    codes: NDArray[np.int32]
    seconds: NDArray[np.float64]
    until: NDArray[np.int64]

    def to(self, event: int, strangeness: NDArray[np.float64]) -> tuple[Near, ...]:
        """The ordinary events before an event that are most like it, the likest first.

        Columns count the less the more often they bring new values; of equals, the latest is taken.

        Args:
            event: Its place.
            strangeness: How strange each of its columns is, (C,).
        """
        end = int(self.until[event])
        looked = slice(max(end - REMEMBERED, 0), end)
        own, codes = self.rows.codes[self.rows.row_of[event]], self.codes[looked]
        agree = (codes == own) & (own != UNSEEN)
        order = np.lexsort((np.arange(len(codes)), agree @ self._weights))[::-1]
        places = islice(_distinct(codes, order), NEAREST)
        return tuple(
            self._near(float(self.seconds[looked][place]), codes[place], agree[place], strangeness)
            for place in places
        )

    @property
    def _weights(self) -> NDArray[np.float32]:
        rates = self.known.novelty
        count = len(self.known.encoder.columns)
        return np.ones(count, np.float32) if rates is None else (1 - rates).round(4)

    def _near(
        self,
        seconds: float,
        codes: NDArray[np.int32],
        agree: NDArray[np.bool_],
        strangeness: NDArray[np.float64],
    ) -> Near:
        order = np.argsort(-strangeness, kind="stable")
        differs = [self._instead(c, int(codes[c])) for c in order[~agree[order]].tolist()]
        return Near(seconds, int(agree.sum()), len(codes), tuple(differs[:DIFFERENT]))

    def _instead(self, c: int, code: int) -> Instead:
        column = self.known.encoder.columns[c]
        if code in {MISSING, UNSEEN} or isinstance(column, Number):
            return Instead(column.name, None, new=code == UNSEEN)
        return Instead(column.name, legible(column.words[code - FIRST_WORD]))


def _distinct(codes: NDArray[np.int32], order: NDArray[np.intp]) -> Iterator[int]:
    """Each different row once, the first in an order."""
    seen: set[bytes] = set()
    for place in order.tolist():
        row = codes[place].tobytes()
        if row not in seen:
            seen.add(row)
            yield place
