"""The smallest change that would have made an event ordinary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows
from morpheus.features.numbers import Number
from morpheus.models.explanation import Counterfactual, ReplacedValue, round_decimals
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.witness import TypicalValue, ColumnAttribution

MAX_CHANGED_COLUMNS = 5
"""Columns that are changed, at most."""


@dataclass
class CounterfactualSearch:
    """Distinct rows, with some of their values replaced by likelier ones.

    Attributes:
        fingerprint: The fingerprint.
        original: The rows as they were.
        replacements: What was put into each column, by row and column.
    """

    fingerprint: Fingerprint
    original: EncodedRows
    replacements: dict[tuple[int, int], TypicalValue]

    def attribute_columns(self) -> ColumnAttribution:
        """What the fingerprint says of the rows as they are now."""
        codes, numbers = self.original.codes.copy(), self.original.numbers.copy()
        columns = self.fingerprint.encoder.columns
        places = [c for c, column in enumerate(columns) if isinstance(column, Number)]
        for (row, c), value in self.replacements.items():
            codes[row, c] = value.code
            if c in places:
                numbers[row, places.index(c)] = value.number
        return ColumnAttribution.from_fingerprint(self.fingerprint, EncodedRows(codes, numbers, np.arange(len(codes))))

    def changed_columns(self, row: int) -> list[int]:
        """The columns of a row that are no longer as they were."""
        return [c for at, c in self.replacements if at == row]


def find_counterfactuals(fingerprint: Fingerprint, rows: EncodedRows, limit: float) -> Iterator[Counterfactual]:
    """Find for each distinct row a change after which its surprise is within a limit.

    The strangest column becomes what is likeliest beside the others, then the next strangest, until
    the row is ordinary or `MAX_CHANGED_COLUMNS` columns are changed; then each change that was not needed is taken
    back. No change that is a part of the one found would do; another one may be as small.

    Args:
        fingerprint: The user's fingerprint.
        rows: Distinct rows.
        limit: The highest surprise that is ordinary.
    """
    remedy = CounterfactualSearch(fingerprint, rows, {})
    before = witness = remedy.attribute_columns()
    for _ in range(MAX_CHANGED_COLUMNS):
        strange = np.flatnonzero(witness.event_anomaly > limit)
        if not len(strange):
            break
        remedy.replacements |= _next_replacements(remedy, witness, strange)
        witness = remedy.attribute_columns()
    witness = _drop_unneeded(remedy, witness, limit)
    names = fingerprint.encoder.names
    for row, (was, now) in enumerate(zip(before.event_anomaly, witness.event_anomaly, strict=True)):
        columns = (ReplacedValue(names[c], remedy.replacements[row, c].value) for c in remedy.changed_columns(row))
        yield Counterfactual(tuple(columns), round_decimals(was), round_decimals(now), round_decimals(limit))


def _next_replacements(
    search: CounterfactualSearch, attribution: ColumnAttribution, rows: NDArray[np.intp]
) -> dict[tuple[int, int], TypicalValue]:
    """What to put into the strangest column of each of some rows that is as it was."""
    strangeness = attribution.column_anomaly.copy()
    for row, c in search.replacements:
        strangeness[row, c] = -1
    shown = np.zeros(strangeness.shape, dtype=np.bool_)
    shown[rows, strangeness[rows].argmax(1)] = True
    return {(row, c): value for row, c, value in attribution.iter_typical_values(shown)}


def _drop_unneeded(search: CounterfactualSearch, attribution: ColumnAttribution, limit: float) -> ColumnAttribution:
    """Take back what was not needed, the first change first; a row that is strange stays so."""
    order = {row: search.changed_columns(row) for row in range(len(search.original.codes))}
    for nth in range(MAX_CHANGED_COLUMNS):
        tried = {
            (row, columns[nth])
            for row, columns in order.items()
            if len(columns) > max(nth, 1) and len(search.changed_columns(row)) > 1
        }
        if tried:
            kept = {key: value for key, value in search.replacements.items() if key not in tried}
            without = CounterfactualSearch(search.fingerprint, search.original, kept).attribute_columns()
            back = {key for key in tried if without.event_anomaly[key[0]] <= limit}
            search.replacements = {key: one for key, one in search.replacements.items() if key not in back}
            attribution = search.attribute_columns() if back else attribution
    return attribution
