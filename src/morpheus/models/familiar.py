"""Ordinary events of a user that came before, to put beside a strange one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_CODE, MISSING, UNKNOWN
from morpheus.features.encoder import EncodedRows
from morpheus.features.numbers import Number
from morpheus.models.explanation import ReplacedValue, NearestNormalEvent
from morpheus.models.fingerprint import Fingerprint
from morpheus.quoting import display_value

MAX_NORMAL_EVENTS = 500
"""Latest ordinary events that are looked through."""
MAX_NEAREST = 3
"""Events that are named, at most."""
MAX_DIFFERENCES = 5
"""Columns in which one of them differs that are named, at most."""


@dataclass
class NormalEventIndex:
    """The latest ordinary events of one user; fed in time order, in pieces of any size."""

    fingerprint: Fingerprint | None = None
    codes: NDArray[np.int32] | None = None
    seconds: NDArray[np.float64] | None = None

    def update(
        self,
        fingerprint: Fingerprint,
        rows: EncodedRows,
        anomalous: NDArray[np.bool_],
        seconds: NDArray[np.float64],
    ) -> NearestNormal:
        """Remember some events, and get ready to be asked about them.

        Args:
            fingerprint: The user's fingerprint; what another one encoded is forgotten.
            rows: The events, encoded by it.
            anomalous: Which are not ordinary, (rows,).
            seconds: When they happened, since 1970, (rows,).
        """
        ordinary = np.flatnonzero(~anomalous)
        codes, times = rows.codes[rows.inverse[ordinary]], seconds[ordinary]
        before = 0
        if self.fingerprint is fingerprint and self.codes is not None and self.seconds is not None:
            before = len(self.codes)
            codes = np.concatenate([self.codes, codes])
            times = np.concatenate([self.seconds, times])
        self.fingerprint, self.codes, self.seconds = fingerprint, codes[-MAX_NORMAL_EVENTS:], times[-MAX_NORMAL_EVENTS:]
        until = before + np.concatenate([[0], np.cumsum(~anomalous)])
        return NearestNormal(fingerprint, rows, codes, times, until)


@dataclass(frozen=True)
class NearestNormal:
    """Ordinary events, and some events that may be asked about.

    Attributes:
        fingerprint: The user's fingerprint.
        rows: The events that may be asked about.
        codes: The ordinary ones, in time order, (O, C).
        seconds: When they happened, (O,).
        counts_before: How many of them came before each event, (rows + 1,).
    """

    fingerprint: Fingerprint
    rows: EncodedRows
    codes: NDArray[np.int32]
    seconds: NDArray[np.float64]
    counts_before: NDArray[np.int64]

    def query(self, event: int, column_anomaly: NDArray[np.float64]) -> tuple[NearestNormalEvent, ...]:
        """The ordinary events before an event that are most like it, the likest first.

        Columns count the less the more often they bring new values; of equals, the latest is taken.

        Args:
            event: Its place.
            column_anomaly: How strange each of its columns is, (C,).
        """
        end = int(self.counts_before[event])
        looked = slice(max(end - MAX_NORMAL_EVENTS, 0), end)
        own, codes = self.rows.codes[self.rows.inverse[event]], self.codes[looked]
        agree = (codes == own) & (own != UNKNOWN)
        order = np.lexsort((np.arange(len(codes)), agree @ self._column_weights))[::-1]
        places = islice(_iter_unique(codes, order), MAX_NEAREST)
        return tuple(
            self._make_nearest(float(self.seconds[looked][place]), codes[place], agree[place], column_anomaly)
            for place in places
        )

    @property
    def _column_weights(self) -> NDArray[np.float32]:
        rates = self.fingerprint.oov_rates
        count = len(self.fingerprint.encoder.columns)
        return np.ones(count, np.float32) if rates is None else (1 - rates).round(4)

    def _make_nearest(
        self,
        seconds: float,
        codes: NDArray[np.int32],
        agree: NDArray[np.bool_],
        column_anomaly: NDArray[np.float64],
    ) -> NearestNormalEvent:
        order = np.argsort(-column_anomaly, kind="stable")
        differs = [self._replaced_value(c, int(codes[c])) for c in order[~agree[order]].tolist()]
        return NearestNormalEvent(seconds, int(agree.sum()), len(codes), tuple(differs[:MAX_DIFFERENCES]))

    def _replaced_value(self, c: int, code: int) -> ReplacedValue:
        column = self.fingerprint.encoder.columns[c]
        if code in {MISSING, UNKNOWN} or isinstance(column, Number):
            return ReplacedValue(column.name, None, new=code == UNKNOWN)
        return ReplacedValue(column.name, display_value(column.vocabulary[code - FIRST_CODE]))


def _iter_unique(codes: NDArray[np.int32], order: NDArray[np.intp]) -> Iterator[int]:
    """Each different row once, the first in an order."""
    seen: set[bytes] = set()
    for place in order.tolist():
        row = codes[place].tobytes()
        if row not in seen:
            seen.add(row)
            yield place
