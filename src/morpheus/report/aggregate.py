"""What a report needs of a run, collected while events pass, in bounded memory.

`ReportAggregator` keeps, for each user, counts over time, the events with the highest scores and
the time-series anomalies. `EventArrays` reads the columns that a page uses out of a frame.
`ScoreScale` converts scores into levels, which are comparable between users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self, cast

import msgspec
import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from morpheus.columns import (
    INCIDENT_SEVERITY,
    MODEL_VERSION,
    PVALUE,
    RISK,
    SCORE,
    SEVERITY,
    TIME,
    TS_ANOMALY,
    ExplanationColumns,
)
from morpheus.models.calibration import (
    EXCEEDANCE_LEVELS,
    MAX_SEVERITY,
    ModelSummary,
    compute_severity,
    count_exceedances,
)
from morpheus.models.profile import ModelCard
from morpheus.models.scoring import number_days
from morpheus.seasonality.detector import TimeHistogram, UserHistograms

RANKING_SCORES = (RISK, "zscore", SCORE)
"""Scores that a page can rank by, best first."""
USER, DAY, SECONDS, LEVEL = "_user_", "_day_", "_seconds_", "_level_"
FLAGGED, POSITION = "_flagged_", "_place_"
INTERNAL_COLUMNS = (USER, DAY, SECONDS, LEVEL, FLAGGED, POSITION)
"""Columns that `TopEvents` adds to the events it keeps."""
MAX_VALUE_CHARS = 4096
"""Characters of a value that are kept."""
TRUNCATION_SUFFIX = " characters in all)"
"""End of a value that was truncated."""
MAX_TECHNIQUES_NAMED = 6
Z_REFERENCE = 4.0
"""Standard deviations above a user's mean that make level 1."""
MIN_SPREAD = 1e-6
LEVEL_ONE_SEVERITY = 25.0
"""Severity of level 1. Twice the level adds as much again."""


def choose_ranking(columns: Sequence[str]) -> str | None:
    """Return the best of `RANKING_SCORES` among the columns, or None."""
    return next((name for name in RANKING_SCORES if name in columns), None)


def levels_to_severity(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the severity of levels, from 0 to 100. NaN stays NaN.

    It is used where the rows have no severity and no p-value.

    >>> levels_to_severity(np.array([0.0, 0.5, 1.0, 2.0, 8.0, 99.0])).tolist()
    [0.0, 12.5, 25.0, 50.0, 100.0, 100.0]
    """
    above = 1 + np.log2(np.maximum(levels, 1.0))
    return np.minimum(LEVEL_ONE_SEVERITY * np.where(levels < 1, levels, above), MAX_SEVERITY)


class EventArrays(msgspec.Struct, frozen=True):
    """The columns of events that a page uses, each of shape (rows,).

    Attributes:
        seconds: Time of each event, in seconds since 1970.
        scores: The best score in the frame. NaN where there is none.
        flagged: Whether the event is a time-series anomaly.
        risks: `scores` if they are `risk`, otherwise NaN.
    """

    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    risks: NDArray[np.float64]

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Self:
        """Read the arrays from events with `TIME` and the columns that stages add."""
        ranking, missing = choose_ranking(frame.columns), np.full(frame.height, np.nan)
        scores = missing if ranking is None else _to_floats(frame[ranking])
        seconds = frame[TIME].dt.epoch("us").to_numpy() / 1e6
        return cls(seconds, scores, _to_flags(frame), scores if ranking == RISK else missing)

    @property
    def histogram(self) -> TimeHistogram:
        """Events over time."""
        return TimeHistogram.from_events(self.seconds, self.scores, self.flagged)


def find_severities(frame: pl.DataFrame) -> NDArray[np.float64]:
    """Return the severities that rows state: of the incident, of the day so far, or their own.

    Returns:
        Severities, shape (rows,). NaN where a row has no severity and no p-value.
    """
    for name in (INCIDENT_SEVERITY, SEVERITY):
        if name in frame.columns:
            return _to_floats(frame[name])
    if PVALUE in frame.columns:
        return compute_severity(np.clip(_to_floats(frame[PVALUE]), 1e-9, 1.0))
    return np.full(frame.height, np.nan)


def _to_floats(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _to_flags(frame: pl.DataFrame) -> NDArray[np.bool_]:
    if TS_ANOMALY not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    column = frame[TS_ANOMALY]
    if column.dtype != pl.Boolean:  # files of text hold `True` or `true`
        column = column.cast(pl.String).str.to_lowercase() == "true"
    return column.fill_null(value=False).to_numpy()


class ScoreScale(msgspec.Struct, frozen=True):
    """Converts scores to levels: 0 is typical, 1 is the maximum expected on a normal day.

    Attributes:
        baseline: Score of level 0.
        reference: Score of level 1.
    """

    baseline: float
    reference: float

    @classmethod
    def from_summary(cls, summary: ModelSummary | None, ranking: str) -> Self | None:
        """Fit the scale of one user to the validation events of the user's model.

        Level 1 is the highest `risk`, or `Z_REFERENCE` standard deviations above the mean of other
        scores. Returns None without a summary.
        """
        if ranking == "zscore":
            return cls(0.0, Z_REFERENCE)
        if summary is None:
            return None
        if ranking == RISK:
            return cls(0.0, max(summary.risks[-1], MIN_SPREAD))
        return cls(
            summary.score_mean,
            summary.score_mean + Z_REFERENCE * max(summary.score_std, MIN_SPREAD),
        )

    def to_levels(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert scores to levels of at least 0. NaN stays NaN.

        >>> ScoreScale(1.0, 3.0).to_levels(np.array([0.0, 2.0, 7.0])).tolist()
        [0.0, 0.5, 3.0]
        """
        span = self.reference - self.baseline
        return np.asarray(np.maximum((scores - self.baseline) / span, 0.0))


IDENTITY_SCALE = ScoreScale(0.0, 1.0)
"""Leaves scores unchanged, for users without a model."""


_MAX_FRAMES = 500
"""Number of frames that wait to be joined."""


class TopEvents(msgspec.Struct):
    """The events with the highest levels, in bounded memory.

    The highest event of each user's day is kept before all others. The result does not depend on
    the order in which events are added.

    Attributes:
        max_events: Maximum number of events to keep.
    """

    max_events: int = 5000
    _frames: list[pl.DataFrame] = msgspec.field(default_factory=list)
    _num_rows: int = 0
    _min_level: float = -1.0

    def add(
        self,
        user: str | None,
        frame: pl.DataFrame,
        arrays: EventArrays,
        levels: NDArray[np.float64],
        days: NDArray[np.int64],
    ) -> None:
        """Add events of one user.

        Args:
            user: The user.
            frame: The events.
            arrays: The same events as arrays.
            levels: Level of each event, shape (rows,). Events whose level is NaN are ignored.
            days: Number of the day of each event, shape (rows,).
        """
        rows = np.flatnonzero(np.isfinite(levels))
        if not len(rows):
            return
        if self._min_level >= 0:
            highest = _find_highest_of_days(levels[rows], days[rows])
            rows = rows[(levels[rows] > self._min_level) | highest]
        self._frames.append(
            truncate_values(frame[rows]).with_columns(
                pl.lit(user, pl.String).alias(USER),
                pl.Series(DAY, days[rows]),
                pl.Series(SECONDS, arrays.seconds[rows]),
                pl.Series(LEVEL, levels[rows]),
                pl.Series(FLAGGED, arrays.flagged[rows]),
                pl.Series(POSITION, rows, dtype=pl.Int64),
            )
        )
        self._num_rows += len(rows)
        # Pruning sorts. Waiting for twice the maximum keeps its cost linear in the events added.
        if self._num_rows > 2 * self.max_events:
            self._prune()
        elif len(self._frames) > _MAX_FRAMES:
            # Of users with few events each, columns take more memory than rows.
            self._frames = [pl.concat(self._frames, how="diagonal_relaxed", rechunk=True)]

    def to_frame(self) -> pl.DataFrame:
        """Return the events with `INTERNAL_COLUMNS`, by user and time."""
        if not self._frames:
            schema = {USER: pl.String, DAY: pl.Int64, SECONDS: pl.Float64, LEVEL: pl.Float64}
            return pl.DataFrame(schema=schema | {FLAGGED: pl.Boolean, POSITION: pl.Int64})
        self._prune()
        return sort_events(self._frames[0])

    def _prune(self) -> None:
        events = pl.concat(self._frames, how="diagonal_relaxed")
        order = events.sort(LEVEL, SECONDS, USER, POSITION, descending=[True, False, False, False])
        if events.height > self.max_events:
            first = order.select(pl.struct(USER, DAY).is_first_distinct()).to_series()
            order = pl.concat([order.filter(first), order.filter(~first)]).head(self.max_events)
            self._min_level = max(float(cast("float", order[LEVEL][-1])), 0.0)
        self._frames, self._num_rows = [order], order.height


def _find_highest_of_days(
    levels: NDArray[np.float64], days: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which events are the highest of their day, the first ones among equals, (rows,)."""
    order = np.lexsort((np.arange(len(levels)), -levels, days))
    first = np.ones(len(levels), dtype=np.bool_)
    first[1:] = np.diff(days[order]) != 0
    highest = np.zeros(len(levels), dtype=np.bool_)
    highest[order[first]] = True
    return highest


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """Sort by user and time. Events of the same time keep the order of the input."""
    return events.sort(USER, SECONDS, POSITION, nulls_last=True, maintain_order=True)


def truncate_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Truncate long values, apart from explanations, and append the full length.

    >>> truncate_values(pl.DataFrame({"agent": ["x" * 5000]}))["agent"][0][-40:]
    'xxxxxxxx… (cut, 5,000 characters in all)'
    """
    explanation_columns = ExplanationColumns.find_in(frame.columns) or ()
    texts = [n for n in frame.select(cs.string()).columns if n not in explanation_columns]
    long = [name for name in texts if (frame[name].str.len_chars() > MAX_VALUE_CHARS).any()]
    return frame.with_columns(
        pl.col(name).map_elements(_truncate_text, return_dtype=pl.String) for name in long
    )


def _truncate_text(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… (cut, {len(text):,}{TRUNCATION_SUFFIX}"


class ReplayResult(msgspec.Struct, frozen=True):
    """Result of an attack replay for one user.

    Attributes:
        num_tried: Number of techniques that were injected.
        missed: By technique, the evasion levels at which it raised no alert.
    """

    num_tried: int
    missed: Mapping[str, tuple[str, ...]]

    def describe(self) -> str:
        """List the missed techniques, those missed at most evasion levels first.

        >>> missed = {"stop-trail": ("hours",), "role-chain": ("agent", "hours")}
        >>> ReplayResult(28, missed).describe().partition(": ")[2]
        'role-chain (agent, hours), stop-trail (hours).'
        """
        ranked = sorted(self.missed.items(), key=lambda item: (-len(item[1]), item[0]))
        shown, rest = ranked[:MAX_TECHNIQUES_NAMED], len(ranked) - MAX_TECHNIQUES_NAMED
        names = [f"{technique} ({', '.join(levels)})" for technique, levels in shown]
        more = [f"{rest} more"] if rest > 0 else []
        return (
            f"Of {self.num_tried} attack techniques replayed, {len(ranked)} raised no alert at "
            f"one or more evasion levels: {', '.join([*names, *more])}."
        )


class IncidentCounts(msgspec.Struct):
    """What is counted of all alerts of one user on one day, those that are not kept included.

    Attributes:
        events: Number of events.
        flagged: Number of time-series anomalies among them.
        start: Time of the first event, in seconds since 1970.
        end: Time of the last event.
        severity: Highest severity that the rows state; NaN if they state none.
    """

    events: int
    flagged: int
    start: float
    end: float
    severity: float

    def add(self, other: IncidentCounts) -> None:
        """Add other events of the same user and day."""
        self.events += other.events
        self.flagged += other.flagged
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.severity = float(np.fmax(self.severity, other.severity))


def count_incidents(
    days: NDArray[np.int64],
    arrays: EventArrays,
    severities: NDArray[np.float64],
    alerts: NDArray[np.bool_],
) -> Iterator[tuple[int, IncidentCounts]]:
    """Yield the number of each day with alerts of a user, and what is counted of it.

    Args:
        days: Number of the day of each event, shape (rows,).
        arrays: The events.
        severities: Severity that the event states, shape (rows,).
        alerts: Whether the event is an alert, shape (rows,).
    """
    for day in np.unique(days[alerts]).tolist():
        rows = alerts & (days == day)
        seconds = arrays.seconds[rows]
        counts = IncidentCounts(
            events=len(seconds),
            flagged=int(arrays.flagged[rows].sum()),
            start=float(seconds.min()),
            end=float(seconds.max()),
            severity=float(np.fmax.reduce(severities[rows])),
        )
        yield day, counts


class UserAggregate(msgspec.Struct):
    """What is known about one user of a run.

    Attributes:
        card: Card of the user's model.
        events: Events that reached the report, without those that `filter` dropped.
        unscored_reason: Why the user's events have no score.
        exceedances: Events with a `risk`, then those above each of the model's risk levels, shape
            (1 + levels,).
        replay_result: Result of an attack replay, if there was one.
        scored: Events with a score.
        model_version: Highest version of the model store that an event was scored with; 0 if the
            events do not say.
    """

    card: ModelCard | None = None
    events: int = 0
    unscored_reason: str | None = None
    exceedances: NDArray[np.int64] = msgspec.field(
        default_factory=lambda: np.zeros(1 + len(EXCEEDANCE_LEVELS), np.int64)
    )
    replay_result: ReplayResult | None = None
    scored: int = 0
    model_version: int = 0

    @property
    def summary(self) -> ModelSummary | None:
        """Calibration of the user's model, if it is known."""
        return None if self.card is None else self.card.summary


class ReportAggregator(msgspec.Struct):
    """Collects what a report shows.

    Attributes:
        scales: Scale of each user. Without one, the user's model determines it.
        filtered: Whether all events are alerts because `filter` dropped the others.
        timezone: Time zone of the days of incidents.
        ranking: The score that levels are computed from.
        columns: All columns seen, in order.
        histograms: Events of all users over time, dropped events included.
        top_events: Events with the highest levels.
        ts_anomalies: Time-series anomalies with the highest levels.
        incident_counts: What is counted of each user's days, by user and number of the day.
        users: What is known about each user.
    """

    scales: Mapping[str | None, ScoreScale] = msgspec.field(default_factory=dict)
    filtered: bool = False
    timezone: str = "UTC"
    ranking: str | None = None
    columns: dict[str, None] = msgspec.field(default_factory=dict)
    histograms: UserHistograms = msgspec.field(default_factory=UserHistograms)
    top_events: TopEvents = msgspec.field(default_factory=TopEvents)
    ts_anomalies: TopEvents = msgspec.field(default_factory=lambda: TopEvents(max_events=1000))
    incident_counts: dict[tuple[str | None, int], IncidentCounts] = msgspec.field(
        default_factory=dict
    )
    users: dict[str | None, UserAggregate] = msgspec.field(default_factory=dict)

    def register_user(
        self, user: str | None, card: ModelCard | None, unscored_reason: str | None
    ) -> UserAggregate:
        """Add a user, or complete what is known about the user."""
        aggregate = self.users.setdefault(user, UserAggregate())
        aggregate.card = card or aggregate.card
        aggregate.unscored_reason = unscored_reason or aggregate.unscored_reason
        return aggregate

    def register_columns(self, columns: Sequence[str]) -> None:
        """Add columns of events, also if `filter` dropped all events that have them."""
        self.columns |= dict.fromkeys(columns)
        self.ranking = self.ranking or choose_ranking(columns)

    def add(self, user: str | None, frame: pl.DataFrame) -> None:
        """Add events of a registered user: rows with `TIME` and the columns that stages add."""
        self.register_columns(frame.columns)
        arrays, aggregate = EventArrays.from_frame(frame), self.users[user]
        levels = self.find_scale(user).to_levels(arrays.scores)
        days = number_days(frame[TIME], self.timezone)
        self.top_events.add(user, frame, arrays, np.where(arrays.flagged, np.nan, levels), days)
        # A time-series anomaly is an alert even if its events have no score.
        flagged_levels = np.where(arrays.flagged, np.nan_to_num(levels), np.nan)
        self.ts_anomalies.add(user, frame, arrays, flagged_levels, days)
        alerts = np.isfinite(levels) | arrays.flagged
        for day, counts in count_incidents(days, arrays, find_severities(frame), alerts):
            known = self.incident_counts.setdefault((user, day), counts)
            if known is not counts:
                known.add(counts)
        exceedances = count_exceedances(aggregate.summary, arrays.risks)
        self.add_histogram(user, arrays.histogram, exceedances)
        aggregate.events += frame.height
        aggregate.scored += int(np.isfinite(arrays.scores).sum())
        if MODEL_VERSION in frame.columns:
            latest = frame[MODEL_VERSION].cast(pl.Int64, strict=False).max()
            aggregate.model_version = max(aggregate.model_version, cast("int", latest or 0))

    def add_histogram(
        self, user: str | None, histogram: TimeHistogram, exceedances: NDArray[np.int64]
    ) -> None:
        """Add counts of events of a registered user, without the events themselves."""
        self.histograms.add(user, histogram)
        self.users[user].exceedances += exceedances

    def count_events(self, user: str | None) -> int:
        """Count all events of a user, dropped events included."""
        self.histograms.compact()
        histogram = self.histograms.users.get(user)
        return 0 if histogram is None else int(histogram.events.sum())

    @property
    def has_all_events(self) -> bool:
        """Whether the histograms count the events that `filter` dropped, too."""
        kept = sum(aggregate.events for aggregate in self.users.values())
        return not self.filtered or not kept or sum(map(self.count_events, self.users)) > kept

    def find_scale(self, user: str | None) -> ScoreScale:
        """Return the scale of a user, `IDENTITY_SCALE` if it is not known."""
        if user in self.scales:
            return self.scales[user]
        own_scale = ScoreScale.from_summary(self.users[user].summary, self.ranking or RISK)
        return own_scale or IDENTITY_SCALE
