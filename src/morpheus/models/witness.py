"""What a fingerprint says of single columns: how strange they are, and what would be likelier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_CODE, MISSING, UNKNOWN
from morpheus.features.encoder import Column, EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.blocks import iter_fixed_batches
from morpheus.models.company import MaskedPredictor, MaskedPredictions, mixture_probability
from morpheus.models.evidence import CONDITIONAL_STD_FLOOR, ANOMALY_DECIMALS, MARGINAL_STD_FLOOR, SurpriseModel
from morpheus.models.explanation import MIN_REPORTED, ColumnReason, ExpectedValue
from morpheus.models.fingerprint import Fingerprint
from morpheus.quoting import display_value

MAX_EXPECTED_VALUES = 3
"""Likelier values that are named, at most."""
NATS_PER_BIT = log(2)
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class ColumnAttribution:
    """What a fingerprint says of the columns of some distinct rows.

    Attributes:
        encoder: How columns became codes.
        net: The network.
        oov_rates: Share of events that bring a new value, for each column, (C,).
        surprise_model: What is usual.
        rows: The distinct rows.
        marginal_surprise: Evidence of habit, in nats, (D, C).
        conditional_surprise: Evidence of company, in nats, (D, C).
    """

    encoder: Encoder
    net: Autoencoder
    oov_rates: Float32Array
    surprise_model: SurpriseModel
    rows: EncodedRows
    marginal_surprise: Float32Array
    conditional_surprise: Float32Array

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint, rows: EncodedRows) -> ColumnAttribution:
        """Ask a fingerprint.

        Raises:
            ValueError: It was learnt with the reference network.
        """
        net, novelty, evidence = fingerprint.net, fingerprint.oov_rates, fingerprint.surprise_model
        if evidence is None or novelty is None or not isinstance(net, Autoencoder):
            raise ValueError("the reference network says nothing of columns")
        found = MaskedPredictions.predict(net, rows).compute_surprise(evidence.likelihoods, novelty, rows)
        return cls(fingerprint.encoder, net, novelty, evidence, rows, *found)

    @property
    def event_anomaly(self) -> NDArray[np.float64]:
        """Strangeness of all columns together, (D,)."""
        return np.asarray(self.column_anomaly.sum(1))

    def normal_columns(self, row: int) -> tuple[str, ...]:
        """Columns of a row that have a value, which is nothing strange."""
        calm = (self.column_anomaly[row] < MIN_REPORTED) & (self.rows.codes[row] != MISSING)
        return tuple(self.encoder.names[c] for c in np.flatnonzero(calm))

    @cached_property
    def column_anomaly(self) -> NDArray[np.float64]:
        """How strange each column is, with six decimals, (D, C)."""
        return self.surprise_model.column_anomaly(self.marginal_surprise, self.conditional_surprise)

    @property
    def shared_anomaly(self) -> NDArray[np.float64]:
        """The same, by way of values that others have too, (D, C)."""
        chances = self.surprise_model.likelihoods
        return np.asarray(self.column_anomaly * chances.seen_by_others[self.rows.codes + chances.offsets])

    def iter_reasons(self, shown: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], ColumnReason]]:
        """Say what there is to say of some columns, (D, C), by row and column.

        The values seen are left out, for events with different new values are one distinct row;
        and so is what came before, in which these events differ.
        """
        for row, c, guess, place in self._iter_predictions(shown):
            yield (row, c), self._build_reason(row, c, guess, place)

    def iter_typical_values(self, shown: NDArray[np.bool_]) -> Iterator[tuple[int, int, TypicalValue]]:
        """Say what is likeliest in some columns, (D, C), by row and column."""
        for row, c, guess, place in self._iter_predictions(shown):
            yield row, c, guess.typical_value(place)

    def _iter_predictions(self, shown: NDArray[np.bool_]) -> Iterator[tuple[int, int, ColumnPrediction, int]]:
        """Of each place that is shown: row, column, the guess at it, and which of its rows."""
        rows = np.flatnonzero(shown.any(1))
        some = EncodedRows(self.rows.codes[rows], self.rows.numbers[rows], np.arange(len(rows)))
        for block, codes, numbers in iter_fixed_batches(some):
            here, company = rows[block], MaskedPredictor.from_codes(self.net, codes, numbers)
            for c in np.flatnonzero(shown[here].any(0)).tolist():
                guess = self._predict_column(company, c)
                for place in np.flatnonzero(shown[here, c]).tolist():
                    yield int(here[place]), c, guess, place

    def _predict_column(self, predictor: MaskedPredictor, c: int) -> ColumnPrediction:
        start, size = int(self.net.offsets[c]), self.net.config.code_counts[c]
        others = self.surprise_model.likelihoods.population_prior[start : start + size]
        chances = mixture_probability(np.arange(size), predictor.predict_probabilities(c), self.oov_rates[c], others)
        chances[:, UNKNOWN] = 0
        chances[:, UNKNOWN] = np.maximum(1 - chances.sum(1), 0)
        numbers = predictor.predict_numbers(c) if c in self.net.number_columns else None
        return ColumnPrediction(self.encoder.columns[c], chances, numbers)

    def _build_reason(self, row: int, c: int, prediction: ColumnPrediction, place: int) -> ColumnReason:
        code, chance = int(self.rows.codes[row, c]), exp(-self.conditional_surprise[row, c])
        distance = None
        if prediction.numbers is not None and code == FIRST_CODE:
            number = self.rows.numbers[row, self.net.number_columns.index(c)]
            distance = float(number - prediction.numbers[place])
        return ColumnReason(
            column=self.encoder.columns[c].name,
            value=None,
            risk=0,
            loudest=0,
            strange_before=0,
            twins=(),
            new=code == UNKNOWN,
            strangeness=float(self.column_anomaly[row, c]),
            probability=round_significant(chance) if distance is None else None,
            bits=_to_bits(self.conditional_surprise[row, c]),
            usual_bits=_to_bits(self.surprise_model.conditional_baseline.mean[c]),
            habit_bits=_to_bits(self.marginal_surprise[row, c]),
            habit=bool(self._marginal_dominates[row, c]),
            distance=None if distance is None else round(distance, 2),
            expected=prediction.expected_values(place, code),
        )

    @cached_property
    def _marginal_dominates(self) -> NDArray[np.bool_]:
        """Where habit speaks louder than company, (D, C)."""
        habit, company = self.surprise_model.marginal_baseline, self.surprise_model.conditional_baseline
        said = habit.excess_z(self.marginal_surprise, MARGINAL_STD_FLOOR), company.excess_z(self.conditional_surprise, CONDITIONAL_STD_FLOOR)
        return said[0] > said[1]


@dataclass(frozen=True)
class TypicalValue:
    """The likeliest of the known values of a column.

    Attributes:
        code: Its code.
        number: In a column of numbers, the number, in standard deviations.
        value: The same for people; None where that is no value.
    """

    code: int
    number: float
    value: str | float | None


@dataclass(frozen=True)
class ColumnPrediction:
    """One column of a block of rows, guessed from the others.

    Attributes:
        column: The column.
        probabilities: Probability of each code, (B, codes); at UNSEEN, of all new values together. They
            add up to one.
        numbers: The number guessed, in standard deviations, (B,); None in a column of categories.
    """

    column: Column
    probabilities: Float32Array
    numbers: Float32Array | None

    def expected_values(self, place: int, code: int) -> tuple[ExpectedValue, ...]:
        """Name what is likelier than a code.

        For a number that is the one expected. A new value is measured by the chance of all new
        ones together; where that is the highest, it is named.
        """
        if self.numbers is not None and code == FIRST_CODE:
            return (self._expected_value(place, code),)
        likeliest = self._top_codes[place].tolist()
        if code == likeliest[0] == UNKNOWN:
            return (self._expected_value(place, code),)
        chance = self.probabilities[place, code]
        better = [one for one in likeliest if self.probabilities[place, one] > chance]
        return tuple(self._expected_value(place, one) for one in better)

    def typical_value(self, place: int) -> TypicalValue:
        """The likeliest of the values that are known."""
        chances = self.probabilities[place].round(ANOMALY_DECIMALS)
        chances[UNKNOWN] = -1
        code = int(chances.argmax())
        number = 0.0 if self.numbers is None else float(self.numbers[place])
        return TypicalValue(code, number, self._expected_value(place, code).value)

    @cached_property
    def _top_codes(self) -> NDArray[np.intp]:
        """The likeliest codes, (B, LIKELIER)."""
        order = np.argsort(-self.probabilities.round(ANOMALY_DECIMALS), axis=1, kind="stable")
        return order[:, :MAX_EXPECTED_VALUES]

    def _expected_value(self, place: int, code: int) -> ExpectedValue:
        chance = round_significant(float(self.probabilities[place, code]))
        if code in {MISSING, UNKNOWN}:
            return ExpectedValue(None, chance, new=code == UNKNOWN)
        if isinstance(self.column, Number):
            assert self.numbers is not None  # noqa: S101 - number columns have one
            return ExpectedValue(round_significant(self.column.inverse_scale(float(self.numbers[place]))), chance)
        return ExpectedValue(display_value(self.column.vocabulary[code - FIRST_CODE]), chance)


def round_significant(value: float) -> float:
    """Round to four digits, which hide how products were grouped.

    >>> round_significant(0.00123456)
    0.001235
    """
    return float(f"{value:.4g}")


def _to_bits(nats: np.float32) -> float:
    return round(float(nats) / NATS_PER_BIT, 2) + 0.0
