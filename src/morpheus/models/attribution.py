"""Attribution of an event's anomaly to its columns.

Five parts, each an input of `explain`:

- `ColumnAttribution`: how anomalous each column is, and which values the model expected.
- `find_counterfactuals`: the smallest change found that would make an event normal.
- `NormalEventIndex`: the most similar normal events before an event.
- `HistoryState`: which earlier events were anomalous.
- `EarlierActions`: what the latest of them did.

Sizes in shapes: D distinct rows, C columns, B rows in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from math import exp, log
from typing import Any

import msgspec
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
    expand_z,
)
from morpheus.models.daily_usage import DailyScores, RecentCounter
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
from morpheus.models.profile import Fingerprint, ScoringParts, Surprise
from morpheus.models.scoring import (
    CONDITIONAL_STD_FLOOR,
    RISK_DECIMALS,
    RISK_PER_NAT,
    FloatArray,
    MaskedPredictions,
    MaskedPredictor,
    mixture_probability,
)
from morpheus.models.training import iter_fixed_batches
from morpheus.text import display_value

MAX_EXPECTED_VALUES = 3
"""Maximum number of expected values per column."""
MAX_CHANGED_COLUMNS = 5
"""Maximum number of columns that a counterfactual changes."""
MAX_NORMAL_EVENTS = 500
"""Number of latest normal events that `NormalEventIndex` searches."""
MAX_NEAREST = 3
"""Maximum number of similar normal events per event."""
MAX_DIFFERENCES = 5
"""Maximum number of differing columns per similar event."""
MAX_EARLIER_ACTIONS = 2
"""Number of latest unusual actions that `EarlierActions` keeps."""
NATS_PER_BIT = log(2)

Float32Array = NDArray[np.float32]


class ColumnAttribution(msgspec.Struct, frozen=True, dict=True):
    """The anomaly of each column of some distinct rows, by one fingerprint.

    Attributes:
        encoder: Encoder of the columns.
        parts: What risks need of the fingerprint.
        rows: The distinct rows.
        predictions: What the network says about them.
    """

    encoder: Encoder
    parts: ScoringParts
    rows: EncodedRows
    predictions: MaskedPredictions

    @classmethod
    def from_fingerprint(
        cls,
        fingerprint: Fingerprint,
        rows: EncodedRows,
        predictions: MaskedPredictions | None = None,
    ) -> ColumnAttribution:
        """Score rows with a fingerprint.

        Args:
            fingerprint: The fingerprint.
            rows: The rows.
            predictions: What its network says about them; None to compute it.

        Raises:
            ValueError: The fingerprint has a reference network, which cannot attribute.
        """
        parts = fingerprint.scoring_parts
        predictions = predictions or MaskedPredictions.predict(parts.net, rows)
        return cls(fingerprint.encoder, parts, rows, predictions)

    @cached_property
    def surprise(self) -> Surprise:
        """How much less usual each value is for this user than for others, (D, C) each.

        How much more likely each value is among other users than for this user on the day after the
        history, ln of the ratio; and -ln of the probability of each value given the event's other
        values.
        """
        return self.parts.surprise(self.rows, self.predictions)

    @property
    def event_anomaly(self) -> NDArray[np.float64]:
        """Anomaly of all columns together, (D,)."""
        return np.asarray(self.column_anomaly.sum(1))

    def normal_columns(self, row: int) -> tuple[str, ...]:
        """Names of the columns of a row that have a value with a normal score."""
        normal = (self.column_anomaly[row] < MIN_REPORTED) & (self.rows.codes[row] != MISSING)
        return tuple(self.encoder.names[c] for c in np.flatnonzero(normal))

    @cached_property
    def column_anomaly(self) -> NDArray[np.float64]:
        """Risk that each column adds on the day after the history, (D, C)."""
        return self.parts.column_risks(self.rows, self.surprise)

    def iter_reasons(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[tuple[int, int], ColumnReason]]:
        """Explain some columns.

        The observed value, what it adds to the risk, and the context are left out: events with
        different new values, on different days, or with a different context, share a distinct row.

        Args:
            shown: Which columns of which rows to explain, (D, C).

        Yields: Row and column, and the reason without value and context.
        """
        for row, c, prediction, position in self._iter_predictions(shown):
            yield (row, c), self._build_reason(row, c, prediction, position)

    def iter_typical_values(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int, TypicalValue]]:
        """Find the most likely value of some columns.

        Args:
            shown: Which columns of which rows, (D, C).

        Yields: Row, column and value.
        """
        for row, c, prediction, position in self._iter_predictions(shown):
            yield row, c, prediction.typical_value(position)

    def _iter_predictions(
        self, shown: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int, ColumnPrediction, int]]:
        """Yield row, column, the column's prediction, and the row's position in the prediction."""
        rows = np.flatnonzero(shown.any(1))
        encoded = EncodedRows(self.rows.codes[rows], self.rows.numbers[rows], np.arange(len(rows)))
        for block, codes, numbers in iter_fixed_batches(encoded, pad=not self.parts.net.any_rows):
            batch, predictor = (
                rows[block],
                MaskedPredictor.from_codes(self.parts.net, codes, numbers),
            )
            for c in np.flatnonzero(shown[batch].any(0)).tolist():
                prediction = self._predict_column(predictor, c)
                for position in np.flatnonzero(shown[batch, c]).tolist():
                    yield int(batch[position]), c, prediction, position

    def _predict_column(self, predictor: MaskedPredictor, c: int) -> ColumnPrediction:
        net, usage = self.parts.net, self.parts.usage
        start, size, novelty = int(net.offsets[c]), net.config.code_counts[c], usage.novelty[c]
        probabilities = mixture_probability(
            np.arange(size),
            predictor.predict_probabilities(c),
            novelty,
            novelty * usage.others[start : start + size],
        )
        # All new values together get what the known ones leave.
        probabilities[:, UNKNOWN] = 0
        probabilities[:, UNKNOWN] = np.maximum(1 - probabilities.sum(1), 0)
        numbers = predictor.predict_numbers(c) if c in net.number_columns else None
        return ColumnPrediction(self.encoder.columns[c], probabilities, numbers)

    def _build_reason(
        self, row: int, c: int, prediction: ColumnPrediction, position: int
    ) -> ColumnReason:
        marginal, conditional = (float(part[row, c]) for part in self.surprise)
        code, probability = int(self.rows.codes[row, c]), exp(-min(conditional, 700.0))
        distance = None
        if prediction.numbers is not None and code == FIRST_CODE:
            number = self.rows.numbers[row, self.parts.net.number_columns.index(c)]
            distance = expand_z(float(number)) - expand_z(float(prediction.numbers[position]))
        return ColumnReason(
            column=self.encoder.columns[c].name,
            value=None,
            risk=0,
            dominant_contribution=0,
            anomalous_before=0,
            redundant_columns=(),
            new=code == UNKNOWN,
            anomaly=0,
            probability=round_significant(probability) if distance is None else None,
            bits=_to_bits(conditional),
            typical_bits=_to_bits(float(self.parts.usual.mean[c])),
            likelihood_ratio_bits=_to_bits(marginal),
            marginal_dominates=bool(self._marginal_dominates[row, c]),
            distance=None if distance is None else round(distance, 2),
            expected=prediction.expected_values(position, code),
        )

    @cached_property
    def _marginal_dominates(self) -> NDArray[np.bool_]:
        """Where the marginal surprise adds more than the conditional one, (D, C)."""
        marginal, conditional = self.surprise
        return marginal > self.parts.usual.excess_z(conditional, CONDITIONAL_STD_FLOOR)


class TypicalValue(msgspec.Struct, frozen=True):
    """The most likely known value of a column.

    Attributes:
        code: Its code.
        number: In a number column, the number in standard deviations.
        value: The value for display; None for a missing value.
    """

    code: int
    number: float
    value: str | float | None


class ColumnPrediction(msgspec.Struct, frozen=True, dict=True):
    """Predictions of one column of a batch of rows, from their other columns.

    Attributes:
        column: The column.
        probabilities: Probability of each code, (B, codes). The entry at UNKNOWN is the probability
            of all new values together, and a row adds up to one.
        numbers: The predicted number, in standard deviations, (B,); None in a category column.
    """

    column: Column
    probabilities: Float32Array
    numbers: Float32Array | None

    def expected_values(self, position: int, code: int) -> tuple[ExpectedValue, ...]:
        """Return the values that were more likely than the observed one, most likely first.

        For a number that is the predicted number. A new value is compared with the probability of
        all new values together; if that is the most likely outcome, it is the only entry.

        Args:
            position: Position of the row in the batch.
            code: The observed code.
        """
        if self.numbers is not None and code == FIRST_CODE:
            return (self._expected_value(position, code),)
        top_codes = self._top_codes[position].tolist()
        if code == top_codes[0] == UNKNOWN:
            return (self._expected_value(position, code),)
        observed = self.probabilities[position, code]
        better = [top for top in top_codes if self.probabilities[position, top] > observed]
        return tuple(self._expected_value(position, top) for top in better)

    def typical_value(self, position: int) -> TypicalValue:
        """Return the most likely known value of the row at a position."""
        probabilities = self.probabilities[position].round(RISK_DECIMALS)
        probabilities[UNKNOWN] = -1
        code = int(probabilities.argmax())
        number = 0.0 if self.numbers is None else float(self.numbers[position])
        return TypicalValue(code, number, self._expected_value(position, code).value)

    @cached_property
    def _top_codes(self) -> NDArray[np.intp]:
        """The most likely codes, (B, MAX_EXPECTED_VALUES)."""
        order = np.argsort(-self.probabilities.round(RISK_DECIMALS), axis=1, kind="stable")
        return order[:, :MAX_EXPECTED_VALUES]

    def _expected_value(self, position: int, code: int) -> ExpectedValue:
        probability = round_significant(float(self.probabilities[position, code]))
        if code in {MISSING, UNKNOWN}:
            return ExpectedValue(None, probability, new=code == UNKNOWN)
        if isinstance(self.column, Number):
            assert self.numbers is not None  # noqa: S101 - number columns have one
            return ExpectedValue(
                round_significant(self.column.inverse_scale(float(self.numbers[position]))),
                probability,
            )
        return ExpectedValue(display_value(self.column.vocabulary[code - FIRST_CODE]), probability)


def round_significant(value: float) -> float:
    """Round to four significant digits.

    They do not depend on how the matrix products were grouped.

    >>> round_significant(0.00123456)
    0.001235
    """
    return float(f"{value:.4g}")


def _to_bits(nats: float) -> float:
    return round(nats / NATS_PER_BIT, 2) + 0.0


class CounterfactualSearch(msgspec.Struct):
    """Distinct rows in which some values are replaced by more likely ones.

    Attributes:
        fingerprint: The user's fingerprint.
        original: The rows before any replacement.
        replacements: The new value by row and column, in the order of replacement.
    """

    fingerprint: Fingerprint
    original: EncodedRows
    replacements: dict[tuple[int, int], TypicalValue]

    def attribute_columns(self) -> ColumnAttribution:
        """Score the rows with their replacements."""
        codes, numbers = self.original.codes.copy(), self.original.numbers.copy()
        columns = self.fingerprint.encoder.columns
        number_columns = [c for c, column in enumerate(columns) if isinstance(column, Number)]
        for (row, c), value in self.replacements.items():
            codes[row, c] = value.code
            if c in number_columns:
                numbers[row, number_columns.index(c)] = value.number
        return ColumnAttribution.from_fingerprint(
            self.fingerprint, EncodedRows(codes, numbers, np.arange(len(codes)))
        )

    def changed_columns(self, row: int) -> list[int]:
        """Columns of a row that were replaced, in order."""
        return [c for changed_row, c in self.replacements if changed_row == row]


def find_counterfactuals(
    fingerprint: Fingerprint, rows: EncodedRows, limit: float
) -> Iterator[Counterfactual]:
    """Find a small change that makes the anomaly of each distinct row at most `limit`.

    The search is greedy. The most anomalous column gets its most likely value, then the next one,
    until the row is normal or `MAX_CHANGED_COLUMNS` columns are changed. Then each change that is
    not needed is undone. No part of the change found is enough by itself; another change can be as
    small.

    Args:
        fingerprint: The user's fingerprint.
        rows: Distinct rows.
        limit: The highest normal anomaly.

    Yields: One counterfactual for each row, in order.
    """
    search = CounterfactualSearch(fingerprint, rows, {})
    before = after = search.attribute_columns()
    for _ in range(MAX_CHANGED_COLUMNS):
        anomalous = np.flatnonzero(after.event_anomaly > limit)
        if not len(anomalous):
            break
        search.replacements |= _next_replacements(search, after, anomalous)
        after = search.attribute_columns()
    after = _drop_unneeded(search, after, limit)
    names = fingerprint.encoder.names
    for row, (was, now) in enumerate(zip(before.event_anomaly, after.event_anomaly, strict=True)):
        columns = (
            ReplacedValue(names[c], search.replacements[row, c].value)
            for c in search.changed_columns(row)
        )
        yield Counterfactual(
            tuple(columns), round_decimals(was), round_decimals(now), round_decimals(limit)
        )


def _next_replacements(
    search: CounterfactualSearch, attribution: ColumnAttribution, rows: NDArray[np.intp]
) -> dict[tuple[int, int], TypicalValue]:
    """Return the most likely value for the most anomalous unchanged column of each of some rows."""
    anomaly = attribution.column_anomaly.copy()
    for row, c in search.replacements:
        anomaly[row, c] = -1
    shown = np.zeros(anomaly.shape, dtype=np.bool_)
    shown[rows, anomaly[rows].argmax(1)] = True
    return {(row, c): value for row, c, value in attribution.iter_typical_values(shown)}


def _drop_unneeded(
    search: CounterfactualSearch, attribution: ColumnAttribution, limit: float
) -> ColumnAttribution:
    """Undo changes that are not needed, the first change first.

    A row that stays anomalous keeps all its changes.
    """
    order = {row: search.changed_columns(row) for row in range(len(search.original.codes))}
    for n in range(MAX_CHANGED_COLUMNS):
        tried = {
            (row, columns[n])
            for row, columns in order.items()
            if len(columns) > max(n, 1) and len(search.changed_columns(row)) > 1
        }
        if tried:
            kept = {key: value for key, value in search.replacements.items() if key not in tried}
            without = CounterfactualSearch(
                search.fingerprint, search.original, kept
            ).attribute_columns()
            undone = {key for key in tried if without.event_anomaly[key[0]] <= limit}
            search.replacements = {
                key: value for key, value in search.replacements.items() if key not in undone
            }
            attribution = search.attribute_columns() if undone else attribution
    return attribution


class NormalEventIndex(msgspec.Struct):
    """The latest normal events of one user.

    It holds at most `MAX_NORMAL_EVENTS` rows: for C columns, C + 8 bytes each, or 2 C + 8 where a
    column has more than 256 codes.

    Attributes:
        encoder_id: Identity of the encoder that made the codes (`Encoder.digest`); empty before the
            first event.
        codes: Codes of the events, in time order, (events, C); None before the first event.
        seconds: Their times, (events,); None before the first event.
    """

    encoder_id: str = ""
    codes: NDArray[np.integer[Any]] | None = None
    seconds: NDArray[np.float64] | None = None

    def update(
        self,
        fingerprint: Fingerprint,
        rows: EncodedRows,
        anomalous: NDArray[np.bool_],
        seconds: NDArray[np.float64],
    ) -> NearestNormal:
        """Add a batch of events, and prepare queries about them.

        Args:
            fingerprint: The user's fingerprint. Events that another encoder encoded are forgotten.
            rows: The events, encoded by it.
            anomalous: Which events are not normal, (rows,).
            seconds: Time of each event, in seconds since 1970, (rows,).

        Returns:
            The normal events up to each event of the batch.
        """
        normal = np.flatnonzero(~anomalous)
        codes, times = rows.codes[rows.inverse[normal]], seconds[normal]
        encoder_id, before = fingerprint.encoder.digest, 0
        if self.encoder_id == encoder_id and self.codes is not None and self.seconds is not None:
            before = len(self.codes)
            codes = np.concatenate([self.codes, codes])
            times = np.concatenate([self.seconds, times])
        self.encoder_id = encoder_id
        # Copies: a view would keep the whole batch in memory.
        self.codes = _narrow(codes[-MAX_NORMAL_EVENTS:])
        self.seconds = times[-MAX_NORMAL_EVENTS:].copy()
        counts_before = before + np.concatenate([[0], np.cumsum(~anomalous)])
        return NearestNormal(fingerprint, rows, codes, times, counts_before)


def _narrow(codes: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Return a copy of codes in the smallest type that holds them."""
    small = codes.max(initial=0) <= np.iinfo(np.uint8).max
    return codes.astype(np.uint8 if small else np.uint16)


class NearestNormal(msgspec.Struct, frozen=True):
    """Normal events, and a batch of events to compare with them.

    Attributes:
        fingerprint: The user's fingerprint.
        rows: The batch.
        codes: Codes of the normal events, in time order, (events, C).
        seconds: Their times, (events,).
        counts_before: Number of normal events before each event of the batch, (rows + 1,).
    """

    fingerprint: Fingerprint
    rows: EncodedRows
    codes: NDArray[np.integer[Any]]
    seconds: NDArray[np.float64]
    counts_before: NDArray[np.int64]

    def query(
        self, event: int, column_anomaly: NDArray[np.float64]
    ) -> tuple[NearestNormalEvent, ...]:
        """Return the most similar normal events before an event, most similar first.

        The weight of a column falls with its rate of new values. Of equally similar events the
        latest comes first.

        Args:
            event: Position of the event in the batch.
            column_anomaly: Anomaly of each of its columns, (C,).
        """
        end = int(self.counts_before[event])
        latest = slice(max(end - MAX_NORMAL_EVENTS, 0), end)
        own, codes = self.rows.codes[self.rows.inverse[event]], self.codes[latest]
        agree = (codes == own) & (own != UNKNOWN)  # Two new values are not the same value.
        # All weights are finite. The product sets the flag on some processors all the same.
        with np.errstate(invalid="ignore"):
            similarity = agree @ self._column_weights
        order = np.lexsort((np.arange(len(codes)), similarity))[::-1]
        return tuple(
            self._make_nearest(float(self.seconds[latest][i]), codes[i], agree[i], column_anomaly)
            for i in islice(_iter_unique(codes, order), MAX_NEAREST)
        )

    @property
    def _column_weights(self) -> NDArray[np.float32]:
        rates = self.fingerprint.oov_rates
        count = len(self.fingerprint.encoder.columns)
        return np.ones(count, np.float32) if rates is None else (1 - rates).round(4)

    def _make_nearest(
        self,
        seconds: float,
        codes: NDArray[np.integer[Any]],
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


def _iter_unique(codes: NDArray[np.integer[Any]], order: NDArray[np.intp]) -> Iterator[int]:
    """Yield the first position of each different row, in an order."""
    seen: set[bytes] = set()
    for position in order.tolist():
        row = codes[position].tobytes()
        if row not in seen:
            seen.add(row)
            yield position


class HistoryState(msgspec.Struct):
    """What `explain` remembers about the earlier anomalous events of one user.

    Its size is bounded by C + 1 counters for C columns; see `RecentCounter`.

    Attributes:
        recent_anomalies: Anomalous events.
        recent_by_column: Anomalous events in which a column was anomalous, by position of the
            column.
    """

    recent_anomalies: RecentCounter = msgspec.field(default_factory=RecentCounter)
    recent_by_column: dict[int, RecentCounter] = msgspec.field(default_factory=dict)

    def update(
        self, scores: DailyScores, marked: NDArray[np.bool_], seconds: FloatArray
    ) -> PrecedingContext:
        """Add a batch of events, and return the context of each.

        Args:
            scores: Scores of the events, divided among the columns.
            marked: Which events are anomalous enough to be counted, (rows,).
            seconds: Time of each event, since any fixed moment, (rows,).
        """
        own = scores.own[:, None] * scores.shares
        columns = marked[:, None] & (own >= MIN_REPORTED)
        nothing = np.zeros(len(seconds), dtype=np.int64)
        column_counts = [
            self.recent_by_column.setdefault(c, RecentCounter()).count_before(column, seconds)[1]
            if is_marked or c in self.recent_by_column
            else nothing
            for c, (column, is_marked) in enumerate(
                zip(columns.T, np.any(columns, axis=0).tolist(), strict=True)
            )
        ]
        # Typical values of the event itself take away from the earlier ones. What earlier days add
        # is not divided among columns.
        earlier = np.minimum(scores.risk - scores.own, RISK_PER_NAT * scores.memory)
        total = scores.memory_parts.sum(1, keepdims=True)
        shares = scores.memory_parts / np.where(total > 0, total, 1)
        counts = self.recent_anomalies.count_before(marked, seconds)
        contributions = np.stack([own, earlier[:, None] * shares])
        return PrecedingContext(scores, contributions, counts, np.stack(column_counts, axis=-1))


class EarlierAction(msgspec.Struct, frozen=True):
    """An action of an earlier event, and the number of its day."""

    text: str
    day: int


class EarlierActions(msgspec.Struct):
    """The latest different actions that add to the risk of later events of one user.

    Each list has at most `MAX_EARLIER_ACTIONS` entries, the latest first.

    Attributes:
        day: Number of the latest day.
        anomalous: Actions of anomalous events.
        others: Actions of other events with a risk of their own.
    """

    day: int = -(1 << 31)
    anomalous: list[EarlierAction] = msgspec.field(default_factory=list)
    others: list[EarlierAction] = msgspec.field(default_factory=list)

    def update(
        self,
        texts: Callable[[NDArray[np.intp]], Sequence[str]],
        days: NDArray[np.int64],
        own: FloatArray,
        anomalous: NDArray[np.bool_],
        wanted: Sequence[int],
    ) -> dict[int, tuple[tuple[str, ...], bool]]:
        """Add a batch of events, and return the earlier actions of some of them.

        Args:
            texts: Returns the actions of some events; empty text for an action without a name.
            days: Number of the day of each event, (rows,).
            own: Risk of each event itself, (rows,).
            anomalous: Which events are anomalous, (rows,).
            wanted: Positions of events, ascending.

        Returns:
            See `before`, by position.
        """
        if not len(days):
            return {}
        adding = np.flatnonzero(own > 0)
        days = np.maximum.accumulate(np.maximum(days, self.day))
        rows = zip(
            adding.tolist(),
            map(EarlierAction, texts(adding), days[adding].tolist()),
            anomalous[adding].tolist(),
            strict=True,
        )
        found, row = {}, next(rows, None)
        for event in (*wanted, len(days)):
            while row is not None and row[0] < event:
                _put_first(self.anomalous if row[2] else self.others, row[1])
                row = next(rows, None)
            if event < len(days):
                found[event] = self.before(int(days[event]))
        self.day = int(days[-1])
        return found

    def before(self, day: int) -> tuple[tuple[str, ...], bool]:
        """Return the latest actions, and whether they are of a day.

        Those of the day come before those of earlier days, and anomalous ones before the others.
        """
        kinds = self.anomalous, self.others
        today = [tuple(each.text for each in kind if each.day == day) for kind in kinds]
        ever = [tuple(each.text for each in kind) for kind in kinds]
        return next(filter(None, today), ()) or next(filter(None, ever), ()), any(today)


def _put_first(actions: list[EarlierAction], action: EarlierAction) -> None:
    """Put an action first, and keep `MAX_EARLIER_ACTIONS` different ones."""
    rest = [each for each in actions if each.text != action.text]
    actions[:] = [action, *rest[: MAX_EARLIER_ACTIONS - 1]]


class ColumnContribution(msgspec.Struct, frozen=True):
    """Contribution of a column to the risk of an event; see `explanation.ColumnReason`.

    Attributes:
        column: Position of the column.
        anomaly: Its part of the event's own risk.
        risk: Its part of the event's risk.
        dominant_contribution: Its part of the larger of own and earlier; of own if no column has a
            part of earlier.
        anomalous_before: Number of earlier anomalous events in which it was anomalous.
        new: Whether its value was never seen before this day.
        redundant_columns: Columns with the same information.
    """

    column: int
    anomaly: float
    risk: float
    dominant_contribution: float
    anomalous_before: int
    new: bool
    redundant_columns: tuple[int, ...]


class PrecedingContext(msgspec.Struct, frozen=True):
    """The context of each event of a batch.

    Attributes:
        scores: Scores of the events.
        contributions: Contribution of each column to the risk, (2, rows, C): of the event itself,
            and of earlier events.
        anomaly_counts: Anomalous events in the hour and in the day before, (2, rows).
        column_counts: Those of the day in which each column was anomalous, (rows, C).
    """

    scores: DailyScores
    contributions: FloatArray
    anomaly_counts: NDArray[np.int64]
    column_counts: NDArray[np.int64]

    def summarise_event(self, event: int) -> ContextContribution:
        """Return the context of one event; the rounded parts add up to the rounded risk."""
        risk, own = (round_decimals(part[event]) for part in (self.scores.risk, self.scores.own))
        counts = self.anomaly_counts[:, event].tolist()
        return ContextContribution(risk, own, round_decimals(risk - own), *counts)

    def rank_columns(
        self, event: int, leads: NDArray[np.intp], max_columns: int | None
    ) -> list[ColumnContribution]:
        """Return the contributions of the columns to an event, largest first.

        Args:
            event: Position of the event.
            leads: For each column the first column with the same information, (C,).
            max_columns: Maximum number of columns, of those that contribute; None for all columns.
        """
        dominant = self.summarise_event(event).dominant_index
        parts = self.contributions[:, event].round(RISK_DECIMALS)  # (2, C)
        dominant = dominant if parts[dominant].any() else 0
        order = np.argsort(-parts[dominant], kind="stable")
        chosen = order if max_columns is None else order[parts[dominant, order] > 0][:max_columns]
        risks = self.contributions[:, event].sum(0)
        return [
            ColumnContribution(
                column=c,
                anomaly=float(parts[0, c]),
                risk=round_decimals(risks[c]),
                dominant_contribution=float(parts[dominant, c]),
                anomalous_before=int(self.column_counts[event, c]) if dominant else 0,
                new=bool(self.scores.new[event, c]),
                redundant_columns=tuple(
                    other for other in np.flatnonzero(leads == c).tolist() if other != c
                ),
            )
            for c in chosen.tolist()
        ]
