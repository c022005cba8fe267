"""Daily usage: on which days a user has which values, and how unusual a value is on the next day.

Each day is scored by what was known at its start. A value that other users have more often than
this user raises the risk; a value that is typical of the user lowers it. What is counted of the
user's history is part of the fingerprint (`models.scoring.Usage`). Later days are counted in the
state of a stage (`UsageState`), so that a run that is cut into days gives what one run gives.

Sizes in shapes: B events of a batch, C columns, V codes of all columns, W codes and new values of a
batch, G days of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.features.encoder import UNKNOWN, EncodedRows
from morpheus.models.scoring import (
    CONDITIONAL_STD_FLOOR,
    EVIDENCE_DECIMALS,
    RISK_DECIMALS,
    RISK_PER_NAT,
    BaselineStats,
    FloatArray,
    IntArray,
    MaskedPredictions,
    PValues,
    Usage,
    combine_columns,
    compare_with_others,
    decay_shares,
    divide_evidence,
    estimate_novelty,
)

Number = TypeVar("Number", np.int64, np.float64)
ColumnValues = Callable[[int, NDArray[np.intp]], Sequence[str | None]]
"""Returns the values of a column, by its position, for some events."""

MEMORY_LIMIT = 8.0
"""What earlier events of the day, and what earlier days, add to the evidence at most, in nats."""
FULL_WEIGHT_PVALUE = 0.05
"""P-value of a day from which it is learned at full weight; below, in proportion, and at least at
1 / `WEIGHT_STEPS`."""
WEIGHT_STEPS = 16
"""Weights of days are multiples of 1 / `WEIGHT_STEPS`. Sums of these are exact, so they do not
depend on where the input is cut."""
MAX_OWN_DAYS = 4000
"""Maximum number of later days of which the state keeps the highest risk."""
MIN_CHANGING_NOVELTY = 0.5
"""Rate of new values from which those of a column are not remembered: each is new."""
MAX_NEW_VALUES = 4096
"""Maximum number of values new since the training that a state counts, the latest ones."""
MAX_CELLS, MAX_ROWS = 1 << 21, 1 << 14
"""Maximum number of days times values, and of events, that are computed at once."""
SHORT_SPAN, LONG_SPAN = 3600.0, 86_400.0
"""Spans over which `RecentCounter` counts, in seconds."""
MAX_COUNTED = 100_000
"""Largest number of marked events that `RecentCounter` counts and remembers."""


class UsageState(msgspec.Struct):
    """What is remembered of a user's days since the training.

    It holds at most `MAX_NEW_VALUES` values without a code, besides the codes, with 32 bytes each.

    Attributes:
        history: `Usage.identity` of the history on top of which days are counted.
        day: Number of the latest day.
        today_events: Number of events of that day so far.
        today_maximum: Highest risk of that day so far.
        today_first_maximum: The same by what was known at the end of the history.
        today_steps: Sum of what the day's events so far add to the carryover, in units of
            10 ** -EVIDENCE_DECIMALS nats.
        carryover: What earlier days add to the evidence of each event, in nats.
        keys: Codes, and negative hashes of values without a code, ascending, (K,).
        counts: Weighted number of events with each of them on days that are over, (K,).
        today: Number of events with each of them today, (K,).
        latest: Latest day with each of them, (K,).
        new_share: As in `Usage`, with the days that are over, (C,); None before the first is.
        new_days: As in `Usage`, with the days that are over.
        events: Weighted number of events of days that are over.
        maxima: Highest risk of each of the latest days that are over and were learned, (days,).
        weights: Weight of each of them, (days,).
        memory: What earlier events of the day add to the evidence of the next event, in nats.
        memory_parts: Part of each column in it, in nats, (C,); None if it is not needed.
    """

    history: int = 0
    day: int = -(1 << 31)
    today_events: int = 0
    today_maximum: float = 0.0
    today_first_maximum: float = 0.0
    today_steps: int = 0
    carryover: float = 0.0
    keys: IntArray = msgspec.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    counts: FloatArray = msgspec.field(default_factory=lambda: np.empty(0))
    today: IntArray = msgspec.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    latest: IntArray = msgspec.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    new_share: FloatArray | None = None
    new_days: float = 0.0
    events: float = 0.0
    maxima: FloatArray = msgspec.field(default_factory=lambda: np.empty(0))
    weights: FloatArray = msgspec.field(default_factory=lambda: np.empty(0))
    memory: float = 0.0
    memory_parts: FloatArray | None = None

    def start_history(self, identity: int) -> None:
        """Forget what was counted on top of another history: the user was trained again."""
        if self.history != identity:
            fresh = UsageState(history=identity, day=self.day)
            for name in self.__struct_fields__:
                setattr(self, name, getattr(fresh, name))

    def equals(self, other: UsageState) -> bool:
        """Return whether both remember the same, apart from `memory_parts`."""
        for name in COMMON_STATE:
            mine, given = getattr(self, name), getattr(other, name)
            if mine is given:
                continue
            if mine is None or given is None or not np.array_equal(mine, given):
                return False
        return True

    def follow(self, other: UsageState) -> None:
        """Remember what another state does, apart from `memory_parts`."""
        if self.history != other.history:
            self.memory_parts = None
        for name in COMMON_STATE:
            setattr(self, name, getattr(other, name))

    def forget_oldest(self) -> None:
        """Keep the `MAX_NEW_VALUES` values without a code that were seen last."""
        new = int(np.searchsorted(self.keys, 0))
        if new <= MAX_NEW_VALUES:
            return
        kept = np.sort(np.lexsort((self.keys[:new], -self.latest[:new]))[:MAX_NEW_VALUES])
        rows = np.concatenate([kept, np.arange(new, len(self.keys))])
        for name in ("keys", "counts", "today", "latest"):
            setattr(self, name, getattr(self, name)[rows])


COMMON_STATE = tuple(name for name in UsageState.__struct_fields__ if name != "memory_parts")
"""Fields that are equal in the states of stages that have seen the same events."""


class EventValues(msgspec.Struct, frozen=True):
    """Values of the events of a batch, and what the network predicts of them.

    Sizes: D distinct rows.

    Attributes:
        keys: Code of each value among all columns, or a negative key of `hash_new_value`, (B, C).
        codes: Code of each value of each distinct row among all columns, (D, C).
        probability: Probability of each value given the event's other values, 0 for a value without
            a code, (D, C).
        number_error: Error of each number in standard deviations, (D, C).
        inverse: Distinct row of each event, (B,).
        days: Number of the day of each event, (B,).
        ignored: Which events have no risk and add nothing to that of later ones, because they are
            suppressed, (B,); None if all count. Their values are learned all the same.
    """

    keys: IntArray
    codes: IntArray
    probability: FloatArray
    number_error: FloatArray
    inverse: NDArray[np.intp]
    days: IntArray
    ignored: NDArray[np.bool_] | None = None

    @classmethod
    def from_predictions(
        cls,
        usage: Usage,
        keys: IntArray,
        rows: EncodedRows,
        predictions: MaskedPredictions,
        days: IntArray,
    ) -> EventValues:
        """Join the parts of a batch.

        Args:
            usage: The user's history.
            keys: Key of each value, (B, C).
            rows: The events, encoded.
            predictions: The predictions of the network.
            days: Number of the day of each event, (B,).
        """
        known = np.where(rows.codes == UNKNOWN, 0, predictions.probability)
        return cls(
            keys=keys,
            codes=rows.codes + usage.offsets,
            probability=known.astype(np.float64),
            number_error=predictions.number_error.astype(np.float64),
            inverse=rows.inverse,
            days=days,
        )

    def take(self, rows: slice) -> EventValues:
        """Return consecutive events."""
        ignored = None if self.ignored is None else self.ignored[rows]
        return replace(
            self,
            keys=self.keys[rows],
            inverse=self.inverse[rows],
            days=self.days[rows],
            ignored=ignored,
        )

    def ignore(self, evidence: FloatArray) -> FloatArray:
        """Return the evidence of the events without that of the ignored ones, (B,)."""
        return evidence if self.ignored is None else np.where(self.ignored, 0.0, evidence)


def hash_new_value(column: int, value: str) -> int:
    """Return a negative key for a value without a code; it does not reveal the value.

    >>> hash_new_value(3, "kali") < 0, hash_new_value(3, "kali") == hash_new_value(4, "kali")
    (True, False)
    """
    digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return -(int.from_bytes(digest) << _COLUMN_BITS | column) - 1


_COLUMN_BITS = 14
"""Bits of the column in the key of a new value, next to 48 bits of the hash."""


def columns_of_new(keys: IntArray) -> NDArray[np.intp]:
    """Return the column of each key of `hash_new_value`."""
    return np.asarray((-keys - 1) & ((1 << _COLUMN_BITS) - 1), dtype=np.intp)


class DailyScores(msgspec.Struct, frozen=True):
    """Scores of the events of a batch.

    Attributes:
        risk: Risk of each event, (B,).
        own: Part of the event itself in it, (B,); the rest is due to earlier events of the day.
        pvalue: P-value of the risk, (B,).
        incident_score: Highest risk of the day so far, (B,).
        incident_pvalue: P-value of it, (B,).
        new: Whether a value was never seen before this day, (B, C).
        frequency: Share of the events of earlier days with the same value, (B, C); see
            `find_frequency`.
        marginal: How much more likely a value is for another user, in nats, (B, C).
        memory: What earlier events add, in nats, (B,).
        columns: Evidence of each column, in nats, (B, C).
        steps: What the event adds to the memory of later ones, or takes away, in nats, (B,).
        step_columns: Evidence of each column in it, (B, C).
        starts_day: Whether the event is the first of its day, (B,).
        shares: Share of each column in the event's own evidence, (B, C); without columns before
            `divide`.
        memory_parts: Part of each column in `memory`, (B, C); without columns before `divide`.
    """

    risk: FloatArray
    own: FloatArray
    pvalue: FloatArray
    incident_score: FloatArray
    incident_pvalue: FloatArray
    new: NDArray[np.bool_]
    frequency: FloatArray
    marginal: FloatArray
    memory: FloatArray
    columns: FloatArray
    steps: FloatArray
    step_columns: FloatArray
    starts_day: NDArray[np.bool_]
    shares: FloatArray = msgspec.field(default_factory=lambda: np.empty((0, 0)))
    memory_parts: FloatArray = msgspec.field(default_factory=lambda: np.empty((0, 0)))

    def take(self, rows: slice) -> DailyScores:
        """Return the scores of consecutive events, before `divide`."""
        names = (name for name in self.__struct_fields__ if name not in _DIVIDED)
        return DailyScores(*(getattr(self, name)[rows] for name in names))

    def divide(self, state: UsageState, leads: NDArray[np.intp]) -> DailyScores:
        """Divide the evidence and the memory of consecutive events among the columns.

        Args:
            state: Remembers the parts of the columns in the memory; updated.
            leads: For each column the first column with the same information, (C,).
        """
        parts, current = np.empty_like(self.columns), state.memory_parts
        current = np.zeros(len(leads)) if current is None else current
        shares = divide_evidence(self.step_columns, leads)
        for event, step in enumerate(self.steps):
            current = np.zeros(len(current)) if self.starts_day[event] else current
            parts[event] = current
            if step > 0:
                current = current + step * shares[event]
            total = current.sum()
            after = min(max(self.memory[event] + step, 0.0), MEMORY_LIMIT)
            current = current * (after / total) if total else current
        state.memory_parts = current
        return replace(self, shares=divide_evidence(self.columns, leads), memory_parts=parts)

    @classmethod
    def concat(cls, parts: Sequence[DailyScores]) -> DailyScores:
        """Join the scores of consecutive events."""
        if len(parts) == 1:
            return parts[0]
        names = [name for name in cls.__struct_fields__ if name not in _DIVIDED]
        names += _DIVIDED if parts[0].shares.size else ()
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )


_DIVIDED = {"shares", "memory_parts"}


class DailyScorer(msgspec.Struct, frozen=True, dict=True):
    """Scores events by what was known at the start of their day.

    Attributes:
        usage: The user's history.
        usual: Usual conditional surprise of each column.
        maxima: Highest risk of each calibration day, ascending, (days,).
        learns: Whether later days become usual.
    """

    usage: Usage
    usual: BaselineStats
    maxima: FloatArray
    learns: bool = True

    @property
    def identity(self) -> int:
        """Identity of the history; another one if nothing is learned on top of it.

        So a user who is frozen forgets what the state has learned.
        """
        return self.usage.identity if self.learns else ~self.usage.identity

    def score(
        self, values: EventValues, state: UsageState, *, attribute: bool = False
    ) -> DailyScores:
        """Score the events of a batch, and remember them.

        Args:
            values: At least one event, in time order. An earlier day counts as the latest so far.
            state: What is remembered; updated.
            attribute: Divide what earlier events add among the columns.
        """
        windows = self._iter_windows(values, state)
        scores = DailyScores.concat([window.summarise(evidence) for window, evidence in windows])
        return scores.divide(state, self.usage.leads) if attribute else scores

    def measure_risks(self, values: EventValues) -> FloatArray:
        """Return the risks of some events that follow the history, (B,)."""
        windows = self._iter_windows(values, UsageState())
        return np.concatenate([evidence.risks for _, evidence in windows])

    def _iter_windows(
        self, values: EventValues, state: UsageState
    ) -> Iterator[tuple[_Window, _Evidence]]:
        """Yield the windows of a batch with their evidence; each is remembered after that."""
        state.start_history(self.identity)
        days = np.maximum.accumulate(np.maximum(values.days, state.day))
        by_history = self._compare_with_history(values)
        for rows in self._split_days(days):
            window = _Window.open(self, values.take(rows), days[rows], state)
            window.weigh_days(by_history)
            evidence = window.find_evidence()
            yield window, evidence
            window.save(evidence)

    def _compare_with_history(self, values: EventValues) -> _ByHistory:
        """Return the evidence of distinct rows by the history alone."""
        usage, codes = self.usage, values.codes
        marginal, others = usage.marginal[codes], usage.others[codes]
        likely = (1 - usage.novelty) * values.probability + usage.novelty * others
        conditional = values.number_error**2 - np.log(likely)
        columns = marginal + self.usual.excess_z(conditional, CONDITIONAL_STD_FLOOR)
        known = np.where(usage.is_unknown(codes), 0, marginal)
        return _ByHistory(
            combine_columns(columns.round(EVIDENCE_DECIMALS), usage.leads),
            combine_columns(known.round(EVIDENCE_DECIMALS), usage.leads),
        )

    @cached_property
    def _known_days(self) -> PValues:
        return PValues.from_days(self.maxima, np.ones(len(self.maxima)))

    def end_day(self, state: UsageState) -> None:
        """Learn the latest day of a state, without the next one; as `score` does between two days.

        Args:
            state: A state with events of its latest day; updated.
        """
        usage, size = self.usage, state.today_events
        mean = state.today_steps / size / 10.0**EVIDENCE_DECIMALS
        carryover = min(max(state.carryover + mean, 0.0), MEMORY_LIMIT)
        pvalue = self._known_days.compute(np.array([state.today_first_maximum]))[0]
        steps = np.floor(WEIGHT_STEPS * min(pvalue / FULL_WEIGHT_PVALUE, 1))
        steps = np.floor(steps * (1 - carryover / MEMORY_LIMIT))
        weight = float(max(steps, 1) / WEIGHT_STEPS) if self.learns else 0.0
        new = int(np.searchsorted(state.keys, 0))
        codes = state.keys[new:]
        history = np.concatenate([np.zeros(new), usage.counts[codes]])
        columns = np.append(columns_of_new(state.keys[:new]), usage.column_of[codes])
        is_new = history + state.counts == 0
        is_new[new:] |= codes == (usage.offsets + UNKNOWN)[columns[new:]]
        shares = np.bincount(columns, is_new * state.today, len(usage.offsets)) / size
        start = usage.new_share, usage.new_days
        if state.new_share is not None:
            start = state.new_share, state.new_days
        sums, days = decay_shares(shares[None], np.array([weight]), start)
        state.new_share, state.new_days = sums[1], float(days[1])
        state.counts = state.counts + weight * state.today
        state.events += weight * size
        if weight:
            state.maxima = np.append(state.maxima, state.today_maximum)
            state.weights = np.append(state.weights, weight)
        state.carryover, state.today, state.today_events = carryover, np.zeros_like(state.today), 0

    def measure_conditional(self, values: EventValues) -> FloatArray:
        """Return the conditional surprise of each column of some events, in nats, (B, C)."""
        parts = []
        state = UsageState()
        for rows in self._split_days(values.days):
            window = _Window.open(self, values.take(rows), values.days[rows], state)
            window.weights[:-1] = 1
            evidence = window.find_evidence()
            parts.append(evidence.conditional)
            window.save(evidence)
        return np.concatenate(parts)

    def _split_days(self, days: IntArray) -> Iterator[slice]:
        """Cut a batch, so that the arrays of a window stay small. Results do not depend on it."""
        size = max(1, MAX_CELLS // (len(self.usage.counts) + 1) - 1)
        starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))[::size]
        cuts = np.union1d(starts, np.arange(0, len(days), MAX_ROWS))
        yield from (slice(*cut) for cut in pairwise([*cuts.tolist(), len(days)]))


class _ByHistory(msgspec.Struct, frozen=True):
    """Evidence of distinct rows by the history alone, in nats.

    Attributes:
        evidence: Evidence of the event itself, (D,).
        steps: What the event adds to the carryover, (D,).
    """

    evidence: FloatArray
    steps: FloatArray


class _KnownValues(msgspec.Struct, frozen=True):
    """Counts of each value at the start of each day of a window.

    Attributes:
        shares: Share of the earlier events that have the value, (G, W).
        events: Weighted number of earlier events, (G,).
        novelty: Rate of new values of each column, (G, C).
        counts: Weighted number of earlier events that have the value, on the last day, (W,).
        new_share: See `Usage`, on the last day, (C,).
        new_days: See `Usage`, on the last day.
    """

    shares: FloatArray
    events: FloatArray
    novelty: FloatArray
    counts: FloatArray
    new_share: FloatArray
    new_days: float


def find_frequency(share: FloatArray, events: FloatArray) -> FloatArray:
    """Return the share of events to show to people: at least one event for a known value.

    The events of an unusual day count in part, so that the share of their values can be less than
    that of one event.

    Args:
        share: Weighted share of the earlier events that have a value, (B, C).
        events: Weighted number of these events, (B, 1).

    >>> find_frequency(np.array([[0.5, 0.002, 0.0]]), np.array([[100.0]])).tolist()
    [[0.5, 0.01, 0.0]]
    """
    return np.where(share > 0, np.maximum(share, 1 / np.maximum(events, 1)), 0)


class _Evidence(msgspec.Struct, frozen=True):
    """Evidence of each event of a window, in nats.

    Attributes:
        known: What was known.
        marginal: How much more likely a value is for another user, (B, C).
        conditional: -ln of the probability of a value given the other values of the event, (B, C).
        own: Evidence of the event itself, (B,).
        columns: Evidence of each of its columns, (B, C).
        steps: What the event adds to the memory, or takes away, (B,).
        step_columns: Evidence of each column in it, (B, C).
        memory: Memory before each event, and after the last one, (B + 1,).
        risks: Risk of each event, (B,).
        maxima: Highest risk of each day so far, (G,).
    """

    known: _KnownValues
    marginal: FloatArray
    conditional: FloatArray
    own: FloatArray
    columns: FloatArray
    steps: FloatArray
    step_columns: FloatArray
    memory: FloatArray
    risks: FloatArray
    maxima: FloatArray


class _Window(msgspec.Struct, dict=True):
    """Some days of a user: one row for each, and one for the unfinished day of the state.

    Attributes:
        scorer: Scores them.
        state: What is remembered at their start.
        values: The events.
        days: Number of each day, ascending, (G,).
        day_of: Row of the day of each event, (B,).
        new_keys: Values without a code, of the state and of the events, ascending.
        ids: Number of each value among the codes and these, (B, C).
        today: Number of events of each day with each value, (G, W).
        sizes: Number of events of each day, (G,).
        weights: Weight at which each day is learned, (G,); 0 for the last day, which is not over.
        day_steps: Sum of what the events of each day add to the carryover, (G,).
        carryover: What the days before each day add to its evidence, and after the last, (G + 1,).
    """

    scorer: DailyScorer
    state: UsageState
    values: EventValues
    days: IntArray
    day_of: NDArray[np.intp]
    new_keys: IntArray
    ids: NDArray[np.intp]
    today: FloatArray
    sizes: FloatArray
    weights: FloatArray

    def __post_init__(self) -> None:
        self.day_steps = np.zeros(len(self.days))
        self.carryover = np.zeros(len(self.days) + 1)

    @classmethod
    def open(
        cls, scorer: DailyScorer, values: EventValues, days: IntArray, state: UsageState
    ) -> _Window:
        """Count the values of each day."""
        codes = len(scorer.usage.counts)
        known = state.keys[: np.searchsorted(state.keys, 0)]
        unknown = values.keys < 0
        new_keys = np.union1d(known, values.keys[unknown]) if unknown.any() else known
        ids = values.keys.astype(np.intp)
        ids[unknown] = codes + np.searchsorted(new_keys, values.keys[unknown])
        numbers = np.union1d([state.day] if state.today_events else [], days).astype(np.int64)
        day_of = np.searchsorted(numbers, days)
        shape = len(numbers), codes + len(new_keys)
        cells = (day_of[:, None] * shape[1] + ids).ravel()
        today = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        sizes = np.bincount(day_of, minlength=shape[0]).astype(np.float64)
        weights = np.ones(shape[0])
        weights[-1] = 0
        window = cls(scorer, state, values, numbers, day_of, new_keys, ids, today, sizes, weights)
        if state.today_events:
            today[0, window.saved_ids] += state.today
            sizes[0] += state.today_events
        return window

    def weigh_days(self, by_history: _ByHistory) -> None:
        """Set the weight of each day that is over.

        It follows from the day's most unusual event by what was known at the end of the history. So
        what an intruder does is not soon usual, and a change that stays is learned in time.

        Args:
            by_history: Evidence of distinct rows by the history alone.
        """
        evidence = by_history.evidence[self.values.inverse]
        self._find_carryover(self.values.ignore(by_history.steps[self.values.inverse]))
        self.first_maxima[0] = self.state.today_first_maximum if self.state.today_events else 0
        np.maximum.at(self.first_maxima, self.day_of, RISK_PER_NAT * np.maximum(evidence, 0))
        maxima = self.scorer.maxima
        pvalues = PValues.from_days(maxima, np.ones(len(maxima))).compute(self.first_maxima)
        steps = np.floor(WEIGHT_STEPS * np.minimum(pvalues / FULL_WEIGHT_PVALUE, 1))
        steps = np.floor(steps * (1 - self.carryover[1:] / MEMORY_LIMIT))
        self.weights = np.maximum(steps, 1) / WEIGHT_STEPS
        if not self.scorer.learns:
            self.weights[:] = 0
        self.weights[-1] = 0

    def _find_carryover(self, steps: FloatArray) -> None:
        """Set what earlier days add to the evidence of each day's events.

        Each day adds, or takes away, the mean of its events: how typical their values are of other
        users, by the history alone. Values that the history does not have tell nothing here: a new
        address or agent that stays is most often the user's own.

        Args:
            steps: What each event adds, (B,).
        """
        state, unit = self.state, 10.0**EVIDENCE_DECIMALS
        # Sums of whole numbers do not depend on where the input is cut.
        sums = np.bincount(self.day_of, np.rint(steps * unit), len(self.days))
        self.day_steps = sums.astype(np.float64)
        if state.today_events:
            self.day_steps[0] += state.today_steps
        carryover = [state.carryover]
        for mean in (self.day_steps / self.sizes / unit).tolist():
            carryover.append(min(max(carryover[-1] + mean, 0.0), MEMORY_LIMIT))
        self.carryover = np.array(carryover)

    @cached_property
    def first_maxima(self) -> FloatArray:
        """Highest risk of each day by what was known at the end of the history, (G,)."""
        return np.zeros(len(self.days))

    @cached_property
    def starts_day(self) -> NDArray[np.bool_]:
        """Whether each event is the first of its day, (B,)."""
        starts = np.diff(self.day_of, prepend=self.day_of[:1]) > 0
        starts[0] = not (self.state.today_events and self.day_of[0] == 0)
        return starts

    @cached_property
    def saved_ids(self) -> NDArray[np.intp]:
        """Number of each value of the state, (K,)."""
        keys, codes = self.state.keys, len(self.scorer.usage.counts)
        return np.where(keys < 0, codes + np.searchsorted(self.new_keys, keys), keys)

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """Column of each value, (W,)."""
        return np.append(self.scorer.usage.column_of, columns_of_new(self.new_keys))

    @cached_property
    def forgotten(self) -> NDArray[np.intp]:
        """Numbers of the codes that stand for any new value of a column, (C,)."""
        return np.asarray(self.scorer.usage.offsets + UNKNOWN)

    @cached_property
    def others(self) -> FloatArray:
        """Share of each value among other users, (W,)."""
        usage = self.scorer.usage
        new = usage.others[self.forgotten[columns_of_new(self.new_keys)]]
        return np.append(usage.others, new).astype(np.float64)

    @cached_property
    def counts_of_history(self) -> FloatArray:
        """Number of events of the history with each value, (W,)."""
        return np.append(self.scorer.usage.counts, np.zeros(len(self.new_keys)))

    def find_known(self) -> _KnownValues:
        """Count what was known at the start of each day."""
        usage, state, weights = self.scorer.usage, self.state, self.weights
        counts = self.counts_of_history.copy()
        counts[self.saved_ids] += state.counts
        counts = counts + _sum_before(weights[:, None] * self.today)
        counts[:, self.forgotten] = 0
        new = self._sum_by_column(np.where(counts == 0, self.today, 0)) / self.sizes[:, None]
        start: tuple[FloatArray, float] = (usage.new_share, usage.new_days)
        if state.new_share is not None:
            start = state.new_share, state.new_days
        new_share, new_days = decay_shares(new[:-1], weights[:-1], start)
        events = usage.events + state.events + _sum_before(weights * self.sizes)
        return _KnownValues(
            counts / np.maximum(events, 1)[:, None],
            events,
            estimate_novelty(new_share, new_days[:, None], usage.novelty_prior),
            counts[-1],
            new_share[-1],
            float(new_days[-1]),
        )

    def _sum_by_column(self, cells: FloatArray) -> FloatArray:
        """Add up the values of each column, (G, W) to (G, C)."""
        rows, ids = np.nonzero(cells)
        shape = len(self.days), len(self.scorer.usage.offsets)
        sums = np.bincount(
            rows * shape[1] + self.columns[ids], cells[rows, ids], shape[0] * shape[1]
        )
        return np.asarray(sums.reshape(shape), dtype=np.float64)

    def find_evidence(self) -> _Evidence:
        """Compute the evidence of each event, with the weights as they are."""
        known, values, day = self.find_known(), self.values, self.day_of[:, None]
        own, novelty = known.shares[day, self.ids], known.novelty[self.day_of]
        others = self.others[self.ids]
        marginal = compare_with_others(own, others, novelty)
        probability = values.probability[values.inverse]
        likely = np.where(probability > 0, probability, own)
        errors = (values.number_error**2)[values.inverse]
        conditional = errors - np.log((1 - novelty) * likely + novelty * others)
        leads = self.scorer.usage.leads
        excess = self.scorer.usual.excess_z(conditional, CONDITIONAL_STD_FLOOR)
        columns = (marginal + excess).round(EVIDENCE_DECIMALS)
        evidence = combine_columns(columns, leads)
        paid = np.where(self._find_repeated(marginal > 0), 0, marginal)
        step_columns = paid.round(EVIDENCE_DECIMALS)
        steps = self.values.ignore(combine_columns(step_columns, leads))
        memory = np.array(_accumulate(steps.tolist(), self.starts_day.tolist(), self.state.memory))
        carryover = self.carryover[self.day_of]
        risks = RISK_PER_NAT * np.maximum(evidence + memory[:-1] + carryover, 0)
        risks = self.values.ignore(risks.round(RISK_DECIMALS))
        maxima = np.zeros(len(self.days))
        maxima[0] = self.state.today_maximum if self.state.today_events else 0
        np.maximum.at(maxima, self.day_of, risks)
        return _Evidence(
            *(known, marginal, conditional, evidence, columns),
            *(steps, step_columns, memory, risks, maxima),
        )

    def _find_repeated(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the chosen values an earlier event of the day has too, (B, C)."""
        repeated = np.zeros(chosen.shape, dtype=np.bool_)
        width = len(self.columns)
        cells = (self.day_of[:, None] * width + self.ids)[chosen]
        again = np.ones(len(cells), dtype=np.bool_)
        again[np.unique(cells, return_index=True)[1]] = False
        if self.state.today_events:
            carried = np.zeros(self.today.size, dtype=np.bool_)
            carried[self.saved_ids] = self.state.today > 0
            again |= carried[cells]
        repeated[chosen] = again
        return repeated

    def rank(self, risks: FloatArray, day_of: NDArray[np.intp], maxima: FloatArray) -> FloatArray:
        """Return the p-value of risks among the user's earlier days.

        Args:
            risks: The risks, (n,).
            day_of: Row of the day of each risk, (n,).
            maxima: Highest risk of each day, (G,).
        """
        state, own = self.state, self.scorer.maxima
        known = PValues.from_days(
            np.append(own, state.maxima), np.append(np.ones(len(own)), state.weights)
        )
        earlier = np.arange(len(maxima)) < day_of[:, None]
        higher = ((maxima >= risks[:, None]) & earlier) @ self.weights
        return known.compute(risks, higher, earlier @ self.weights)

    def summarise(self, evidence: _Evidence) -> DailyScores:
        """Return the scores of the events."""
        risks = evidence.risks
        own = RISK_PER_NAT * np.maximum(evidence.own, 0)
        incident = self._running_maxima(risks)
        unknown = self.scorer.usage.is_unknown(self.values.keys)
        share = evidence.known.shares[self.day_of[:, None], self.ids]
        return DailyScores(
            risks,
            np.minimum(own.round(RISK_DECIMALS), risks),
            self.rank(risks, self.day_of, evidence.maxima),
            incident,
            self.rank(incident, self.day_of, evidence.maxima),
            unknown & (share == 0),
            find_frequency(share, evidence.known.events[self.day_of, None]),
            evidence.marginal,
            evidence.memory[:-1],
            evidence.columns,
            evidence.steps,
            evidence.step_columns,
            self.starts_day,
        )

    def _running_maxima(self, risks: FloatArray) -> FloatArray:
        """Return the highest risk of the day up to each event, (B,)."""
        maxima = risks.copy()
        if self.state.today_events and self.day_of[0] == 0:
            maxima[0] = max(maxima[0], self.state.today_maximum)
        bounds = np.searchsorted(self.day_of, np.arange(len(self.days) + 1)).tolist()
        for start, end in pairwise(bounds):
            np.maximum.accumulate(maxima[start:end], out=maxima[start:end])
        return maxima

    def save(self, evidence: _Evidence) -> None:
        """Put what is known at the start of the last day, and that day so far, into the state."""
        state, known, over = self.state, evidence.known, self.weights > 0
        self._save_values(known.counts)
        if len(self.days) > 1:
            state.new_share, state.new_days = known.new_share, known.new_days
        state.events += float((self.weights * self.sizes).sum())
        state.maxima = np.append(state.maxima, evidence.maxima[over])[-MAX_OWN_DAYS:]
        state.weights = np.append(state.weights, self.weights[over])[-MAX_OWN_DAYS:]
        state.day, state.today_events = int(self.days[-1]), int(self.sizes[-1])
        state.today_maximum, state.memory = float(evidence.maxima[-1]), float(evidence.memory[-1])
        state.today_first_maximum = float(self.first_maxima[-1])
        state.today_steps, state.carryover = int(self.day_steps[-1]), float(self.carryover[-2])
        state.forget_oldest()

    def _save_values(self, counts: FloatArray) -> None:
        """Save the values that today has, and those with other counts than in the history."""
        state, codes, today = self.state, len(self.scorer.usage.counts), self.today[-1]
        changed = np.flatnonzero((today > 0) | (counts != self.counts_of_history))
        ids = np.concatenate([changed[changed >= codes], changed[changed < codes]])
        days = np.zeros(len(counts), dtype=np.int64)
        days[self.saved_ids] = state.latest
        present = (self.today > 0) * self.days[:, None]
        state.latest = np.maximum(days, present.max(0))[ids]
        state.keys = np.append(np.arange(codes), self.new_keys)[ids]
        state.counts = (counts - self.counts_of_history)[ids]
        state.today = today[ids].astype(np.int64)


def _sum_before(rows: NDArray[Number]) -> NDArray[Number]:
    """Return the sum of the rows before each row."""
    return np.asarray(np.cumsum(rows, axis=0) - rows)


def _accumulate(steps: Sequence[float], starts_day: Sequence[bool], start: float) -> list[float]:
    """Return the memory before each event, and after the last one; see `MEMORY_LIMIT`.

    Args:
        steps: What each event adds, or takes away, (B,).
        starts_day: Whether an event is the first of its day, (B,). A day starts without memory.
        start: The memory before the first event.
    """
    memory = []
    for step, is_first in zip(steps, starts_day, strict=True):
        start = 0.0 if is_first else start
        memory.append(start)
        start += step
        if start < 0:
            start = 0.0
        elif start > MEMORY_LIMIT:
            start = MEMORY_LIMIT
    return [*memory, start]


def encode_keys(
    usage: Usage,
    codes: NDArray[np.int32],
    inverse: NDArray[np.intp],
    values: ColumnValues,
) -> IntArray:
    """Return the key of each value of some events, (B, C); see `EventValues`.

    A new value of a column in which most values are new has the code UNKNOWN: it is not remembered.

    Args:
        usage: The user's history.
        codes: Distinct rows, (D, C).
        inverse: Distinct row of each event, (B,).
        values: Returns the values of a column for some events.
    """
    keys = (codes + usage.offsets)[inverse]
    remembered = (codes == UNKNOWN).any(0) & (usage.novelty < MIN_CHANGING_NOVELTY)
    for column in np.flatnonzero(remembered).tolist():
        events = np.flatnonzero(codes[inverse, column] == UNKNOWN)
        texts = values(column, events)
        hashes = {text: hash_new_value(column, text or "") for text in dict.fromkeys(texts)}
        keys[events, column] = [hashes[text] for text in texts]
    return keys


class DayRecord(msgspec.Struct, frozen=True, dict=True):
    """How the events of a batch were scored, for later stages that need the same scores.

    Attributes:
        rows: The events, encoded.
        before: What was remembered before them.
        after: What is remembered after them.
        predictions: What the network says about the distinct rows.
        all_scores: Scores of these events, and of events of other users.
        span: Position of these events.
    """

    rows: EncodedRows
    before: UsageState
    after: UsageState
    predictions: MaskedPredictions
    all_scores: DailyScores
    span: slice = msgspec.field(default_factory=lambda: slice(None))

    @cached_property
    def scores(self) -> DailyScores:
        """Scores of the events."""
        return self.all_scores.take(self.span)

    def follows(self, rows: EncodedRows, usage: UsageState) -> bool:
        """Return whether these are the scores of some rows, after what a state remembers."""
        return rows is self.rows and usage.equals(self.before)

    def part(self, name: str) -> FloatArray:
        """Return one of the scores of the events, (rows,)."""
        return np.asarray(getattr(self.all_scores, name)[self.span])


class RecentCounter(msgspec.Struct):
    """Times of the marked events in the last day, to count them.

    It holds at most `MAX_COUNTED` times of 8 bytes; counts stop at that number.

    Attributes:
        seconds: Times of the marked events, ascending, (events,).
    """

    seconds: FloatArray = msgspec.field(default_factory=lambda: np.empty(0))

    def count_before(self, marked: NDArray[np.bool_], seconds: FloatArray) -> IntArray:
        """Count the marked events in the hour and in the day before each event.

        Args:
            marked: Which events are counted, (rows,).
            seconds: Time of each event, (rows,).

        Returns:
            Counts, (2, rows).

        >>> marked, seconds = np.array([True, True, False]), np.array([0.0, 9.0, 4000.0])
        >>> RecentCounter().count_before(marked, seconds).tolist()
        [[0, 1, 0], [0, 1, 2]]
        """
        if not len(seconds):
            return np.zeros((2, 0), dtype=np.int64)
        clock = np.maximum.accumulate(np.maximum(seconds, self.seconds[-1:].max(initial=-np.inf)))
        times = np.concatenate([self.seconds, clock[marked]])
        n_before = len(self.seconds) + np.cumsum(marked) - marked
        counts = [
            n_before - np.searchsorted(times, clock - span) for span in (SHORT_SPAN, LONG_SPAN)
        ]
        # The latest MAX_COUNTED are enough for counts that stop there, wherever batches are cut.
        self.seconds = times[times >= clock[-1] - LONG_SPAN][-MAX_COUNTED:].copy()
        return np.minimum(np.stack(counts), MAX_COUNTED)
