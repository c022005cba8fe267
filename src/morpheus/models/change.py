"""The smallest change that would have made an event ordinary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows
from morpheus.features.numbers import Number
from morpheus.models.explanation import Change, Instead, decimals
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.witness import Ordinary, Witness

MOST = 5
"""Columns that are changed, at most."""


@dataclass
class Remedy:
    """Distinct rows, with some of their values replaced by likelier ones.

    Attributes:
        known: The fingerprint.
        original: The rows as they were.
        instead: What was put into each column, by row and column.
    """

    known: Fingerprint
    original: EncodedRows
    instead: dict[tuple[int, int], Ordinary]

    def witness(self) -> Witness:
        """What the fingerprint says of the rows as they are now."""
        codes, numbers = self.original.codes.copy(), self.original.numbers.copy()
        columns = self.known.encoder.columns
        places = [c for c, column in enumerate(columns) if isinstance(column, Number)]
        for (row, c), value in self.instead.items():
            codes[row, c] = value.code
            if c in places:
                numbers[row, places.index(c)] = value.number
        return Witness.of(self.known, EncodedRows(codes, numbers, np.arange(len(codes))))

    def changed(self, row: int) -> list[int]:
        """The columns of a row that are no longer as they were."""
        return [c for at, c in self.instead if at == row]


def changes(known: Fingerprint, rows: EncodedRows, limit: float) -> Iterator[Change]:
    """Find for each distinct row a change after which its surprise is within a limit.

    The strangest column becomes what is likeliest beside the others, then the next strangest, until
    the row is ordinary or `MOST` columns are changed; then each change that was not needed is taken
    back. No change that is a part of the one found would do; another one may be as small.

    Args:
        known: The user's fingerprint.
        rows: Distinct rows.
        limit: The highest surprise that is ordinary.
    """
    remedy = Remedy(known, rows, {})
    before = witness = remedy.witness()
    for _ in range(MOST):
        strange = np.flatnonzero(witness.surprise > limit)
        if not len(strange):
            break
        remedy.instead |= _next(remedy, witness, strange)
        witness = remedy.witness()
    witness = _needed(remedy, witness, limit)
    names = known.encoder.names
    for row, (was, now) in enumerate(zip(before.surprise, witness.surprise, strict=True)):
        columns = (Instead(names[c], remedy.instead[row, c].value) for c in remedy.changed(row))
        yield Change(tuple(columns), decimals(was), decimals(now), decimals(limit))


def _next(
    remedy: Remedy, witness: Witness, rows: NDArray[np.intp]
) -> dict[tuple[int, int], Ordinary]:
    """What to put into the strangest column of each of some rows that is as it was."""
    strangeness = witness.strangeness.copy()
    for row, c in remedy.instead:
        strangeness[row, c] = -1
    shown = np.zeros(strangeness.shape, dtype=np.bool_)
    shown[rows, strangeness[rows].argmax(1)] = True
    return {(row, c): value for row, c, value in witness.likeliest(shown)}


def _needed(remedy: Remedy, witness: Witness, limit: float) -> Witness:
    """Take back what was not needed, the first change first; a row that is strange stays so."""
    order = {row: remedy.changed(row) for row in range(len(remedy.original.codes))}
    for nth in range(MOST):
        tried = {
            (row, columns[nth])
            for row, columns in order.items()
            if len(columns) > max(nth, 1) and len(remedy.changed(row)) > 1
        }
        if tried:
            kept = {key: value for key, value in remedy.instead.items() if key not in tried}
            without = Remedy(remedy.known, remedy.original, kept).witness()
            back = {key for key in tried if without.surprise[key[0]] <= limit}
            remedy.instead = {key: one for key, one in remedy.instead.items() if key not in back}
            witness = remedy.witness() if back else witness
    return witness
