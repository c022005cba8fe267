"""What a fingerprint says of single columns: how strange they are, and what would be likelier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import (
    FIRST_CODE,
    MISSING,
    UNKNOWN,
    Column,
    EncodedRows,
    Encoder,
    Number,
)
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.explanation import (
    MIN_REPORTED,
    ColumnReason,
    ContextContribution,
    Counterfactual,
    ExpectedValue,
    NearestNormalEvent,
    ReplacedValue,
    round_decimals,
)
from morpheus.models.profile import Fingerprint, deduplicate_columns
from morpheus.models.scoring import (
    ANOMALY_DECIMALS,
    CONDITIONAL_STD_FLOOR,
    MARGINAL_STD_FLOOR,
    MaskedPredictions,
    MaskedPredictor,
    SurpriseModel,
    mixture_probability,
)
from morpheus.models.temporal import (
    ContextualRisk,
    EventAnomaly,
    FloatArray,
    RecentCounter,
    TemporalContext,
)
from morpheus.models.training import iter_fixed_batches
from morpheus.text import display_value

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
        found = MaskedPredictions.predict(net, rows).compute_surprise(
            evidence.likelihoods, novelty, rows
        )
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
        return np.asarray(
            self.column_anomaly * chances.seen_by_others[self.rows.codes + chances.offsets]
        )

    def iter_reasons(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[tuple[int, int], ColumnReason]]:
        """Say what there is to say of some columns, (D, C), by row and column.

        The values seen are left out, for events with different new values are one distinct row;
        and so is what came before, in which these events differ.
        """
        for row, c, guess, place in self._iter_predictions(shown):
            yield (row, c), self._build_reason(row, c, guess, place)

    def iter_typical_values(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int, TypicalValue]]:
        """Say what is likeliest in some columns, (D, C), by row and column."""
        for row, c, guess, place in self._iter_predictions(shown):
            yield row, c, guess.typical_value(place)

    def _iter_predictions(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int, ColumnPrediction, int]]:
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
        chances = mixture_probability(
            np.arange(size), predictor.predict_probabilities(c), self.oov_rates[c], others
        )
        chances[:, UNKNOWN] = 0
        chances[:, UNKNOWN] = np.maximum(1 - chances.sum(1), 0)
        numbers = predictor.predict_numbers(c) if c in self.net.number_columns else None
        return ColumnPrediction(self.encoder.columns[c], chances, numbers)

    def _build_reason(
        self, row: int, c: int, prediction: ColumnPrediction, place: int
    ) -> ColumnReason:
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
        habit, company = (
            self.surprise_model.marginal_baseline,
            self.surprise_model.conditional_baseline,
        )
        said = (
            habit.excess_z(self.marginal_surprise, MARGINAL_STD_FLOOR),
            company.excess_z(self.conditional_surprise, CONDITIONAL_STD_FLOOR),
        )
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
            return ExpectedValue(
                round_significant(self.column.inverse_scale(float(self.numbers[place]))), chance
            )
        return ExpectedValue(display_value(self.column.vocabulary[code - FIRST_CODE]), chance)


def round_significant(value: float) -> float:
    """Round to four digits, which hide how products were grouped.

    >>> round_significant(0.00123456)
    0.001235
    """
    return float(f"{value:.4g}")


def _to_bits(nats: np.float32) -> float:
    return round(float(nats) / NATS_PER_BIT, 2) + 0.0


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
        return ColumnAttribution.from_fingerprint(
            self.fingerprint, EncodedRows(codes, numbers, np.arange(len(codes)))
        )

    def changed_columns(self, row: int) -> list[int]:
        """The columns of a row that are no longer as they were."""
        return [c for at, c in self.replacements if at == row]


def find_counterfactuals(
    fingerprint: Fingerprint, rows: EncodedRows, limit: float
) -> Iterator[Counterfactual]:
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
        columns = (
            ReplacedValue(names[c], remedy.replacements[row, c].value)
            for c in remedy.changed_columns(row)
        )
        yield Counterfactual(
            tuple(columns), round_decimals(was), round_decimals(now), round_decimals(limit)
        )


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


def _drop_unneeded(
    search: CounterfactualSearch, attribution: ColumnAttribution, limit: float
) -> ColumnAttribution:
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
            without = CounterfactualSearch(
                search.fingerprint, search.original, kept
            ).attribute_columns()
            back = {key for key in tried if without.event_anomaly[key[0]] <= limit}
            search.replacements = {
                key: one for key, one in search.replacements.items() if key not in back
            }
            attribution = search.attribute_columns() if back else attribution
    return attribution


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
        self.fingerprint, self.codes, self.seconds = (
            fingerprint,
            codes[-MAX_NORMAL_EVENTS:],
            times[-MAX_NORMAL_EVENTS:],
        )
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

    def query(
        self, event: int, column_anomaly: NDArray[np.float64]
    ) -> tuple[NearestNormalEvent, ...]:
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
            self._make_nearest(
                float(self.seconds[looked][place]), codes[place], agree[place], column_anomaly
            )
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
        return NearestNormalEvent(
            seconds, int(agree.sum()), len(codes), tuple(differs[:MAX_DIFFERENCES])
        )

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


@dataclass
class HistoryState:
    """What is remembered of a user's earlier events; fed in time order, in pieces of any size."""

    context: TemporalContext = field(default_factory=TemporalContext)
    recent_anomalies: RecentCounter = field(default_factory=RecentCounter)
    recent_by_column: defaultdict[int, RecentCounter] = field(
        default_factory=lambda: defaultdict(RecentCounter)
    )

    def update(
        self,
        anomaly: EventAnomaly,
        shared_anomaly: EventAnomaly,
        marked: NDArray[np.bool_],
        seconds: FloatArray,
        short_ema_baseline: float,
    ) -> PrecedingContext:
        """Look back from some events.

        Args:
            anomaly: How strange they are.
            shared_anomaly: The same, by way of values that others have too.
            marked: Which of them are strange enough to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).
            short_ema_baseline: As in `TemporalContext.compute_contributions`.
        """
        columns = marked[:, None] & (anomaly.columns >= MIN_REPORTED)
        each = [
            self.recent_by_column[c].count_before(column, seconds)
            for c, column in enumerate(columns.T)
        ]
        weighed = self.context.compute_contributions(
            anomaly, shared_anomaly, seconds, short_ema_baseline
        )
        return PrecedingContext(
            weighed, self.recent_anomalies.count_before(marked, seconds), np.stack(each, axis=-1)
        )


@dataclass(frozen=True)
class ColumnContribution:
    """What a column adds to the risk of an event; as in `explanation.Fact`.

    Attributes:
        column: Its place.
        risk: Its part of the event's risk.
        dominant_contribution: Its part of the largest of own, hour and month.
        anomalous_before: Strange events before in which it was strange.
        redundant_columns: Columns that say the same.
    """

    column: int
    risk: float
    dominant_contribution: float
    anomalous_before: int
    redundant_columns: tuple[int, ...]


@dataclass(frozen=True)
class PrecedingContext:
    """What came before each of some events.

    Attributes:
        contextual_risk: The risk, and what each column, now and before, adds to it.
        anomaly_counts: Strange events in the hour and in the month before, (2, rows).
        column_counts: Those in which each column was strange, (2, rows, C).
    """

    contextual_risk: ContextualRisk
    anomaly_counts: NDArray[np.int64]
    column_counts: NDArray[np.int64]

    def summarise_event(self, event: int) -> ContextContribution:
        """The same of one event; what it is made of adds up in decimals."""
        risk = round_decimals(self.contextual_risk.risk[event])
        hour, month = (
            round_decimals(part.sum()) for part in self.contextual_risk.contributions[1:, event]
        )
        own, strange = round_decimals(risk - (hour + month)), self.anomaly_counts[:, event].tolist()
        return ContextContribution(risk, own, hour, month, *strange)

    def rank_columns(
        self, event: int, redundant_columns: Sequence[int], max_columns: int | None
    ) -> list[ColumnContribution]:
        """What the columns add to an event, the largest part first.

        Args:
            event: Its place.
            redundant_columns: For each column the first one that says the same.
            max_columns: So many columns, as far as they add anything and leaving out those that say the
                same as one before; None for all columns.
        """
        loudest = self.summarise_event(event).dominant_index
        parts = self.contextual_risk.contributions[:, event].round(ANOMALY_DECIMALS)
        order = np.argsort(-parts[loudest], kind="stable").tolist()
        leads = dict(
            deduplicate_columns([c for c in order if parts[loudest, c] > 0], redundant_columns)
        )
        risks = self.contextual_risk.contributions[:, event].sum(0)
        return [
            ColumnContribution(
                column=c,
                risk=round_decimals(risks[c]),
                dominant_contribution=float(parts[loudest, c]),
                anomalous_before=int(self.column_counts[loudest - 1, event, c]) if loudest else 0,
                redundant_columns=tuple(leads.get(c, ())),
            )
            for c in (order if max_columns is None else islice(leads, max_columns))
        ]
