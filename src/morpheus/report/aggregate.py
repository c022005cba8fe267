"""What a page looks at in every event: when it was, how high it scored, whether it is off beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from morpheus.columns import RISK, SCORE, TIME, TS_ANOMALY, ExplanationColumns
from morpheus.models.calibration import EXCEEDANCE_LEVELS, ModelSummary, count_exceedances
from morpheus.models.profile import ModelCard
from morpheus.seasonality.histogram import TimeHistogram, UserHistograms

RANKING_SCORES = (RISK, "zscore", SCORE)
"""Scores that a page can go by, the best first."""


def choose_ranking(columns: Sequence[str]) -> str | None:
    """The best of the scores that there are."""
    return next((name for name in RANKING_SCORES if name in columns), None)


@dataclass(frozen=True)
class EventArrays:
    """Some events, looked at, (rows,) each.

    Attributes:
        seconds: When, since 1970.
        scores: The best score that there is, NaN without one.
        flagged: Whether each breaks its user's rhythm.
        risks: The same scores if they are `risk`, else NaN.
    """

    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    risks: NDArray[np.float64]

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Self:
        """Look at events with `TIME` and what stages have added."""
        ranking, nothing = choose_ranking(frame.columns), np.full(frame.height, np.nan)
        scores = nothing if ranking is None else _to_floats(frame[ranking])
        seconds = frame[TIME].dt.epoch("us").to_numpy() / 1e6
        return cls(seconds, scores, _to_flags(frame), scores if ranking == RISK else nothing)

    @property
    def histogram(self) -> TimeHistogram:
        """The events, cell by cell."""
        return TimeHistogram.from_events(self.seconds, self.scores, self.flagged)


def _to_floats(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _to_flags(frame: pl.DataFrame) -> NDArray[np.bool_]:
    if TS_ANOMALY not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    column = frame[TS_ANOMALY]
    if column.dtype != pl.Boolean:
        column = column.cast(pl.String).str.to_lowercase() == "true"
    return column.fill_null(value=False).to_numpy()


Z_REFERENCE = 4.0
"""Standard deviations above a user's mean from which a score is worth a look."""
SEVERITIES = ((4.0, "critical"), (2.0, "high"), (1.0, "medium"))
"""Least level of each severity; below all of them it is `low`."""


def classify_severity(level: float) -> str:
    """What a level is called.

    >>> [classify_severity(level) for level in (0.5, 1.0, 3.9, 12.0)]
    ['low', 'medium', 'high', 'critical']
    """
    return next((name for least, name in SEVERITIES if level >= least), "low")


@dataclass(frozen=True)
class ScoreScale:
    """Turns scores into levels: 0 is usual, 1 as high as it gets on ordinary days.

    Attributes:
        baseline: The score whose level is 0.
        reference: The score whose level is 1.
    """

    baseline: float
    reference: float

    @classmethod
    def from_summary(cls, summary: ModelSummary | None, ranking: str) -> Self | None:
        """Measure by a user's held-out events: level 1 is `Z_REFERENCE` deviations above their mean.

        None where scores need no measure of each user, or nothing is known of them.
        """
        if ranking == "zscore":
            return cls(0.0, Z_REFERENCE)
        if ranking == RISK or summary is None:
            return None
        return cls(summary.usual, summary.usual + Z_REFERENCE * max(summary.spread, 1e-6))

    @classmethod
    def from_summaries(cls, summaries: Sequence[ModelSummary]) -> Self | None:
        """Measure `risk`, which ranks the events of all users in one list.

        Level 1 is the highest risk that the median user came to on held-out days; None without any.
        """
        highest = [portrait.risks[-1] for portrait in summaries]
        return cls(0.0, max(float(np.median(highest)), 1e-6)) if highest else None

    def to_levels(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of scores, at least 0; of no score, no level.

        >>> ScoreScale(1.0, 3.0).to_levels(np.array([0.0, 2.0, 7.0])).tolist()
        [0.0, 0.5, 3.0]
        """
        return np.asarray(
            np.maximum((scores - self.baseline) / (self.reference - self.baseline), 0.0)
        )


USER, SECONDS, LEVEL, FLAGGED, POSITION = "_user_", "_seconds_", "_level_", "_flagged_", "_place_"
INTERNAL_COLUMNS = (USER, SECONDS, LEVEL, FLAGGED, POSITION)
MAX_VALUE_CHARS = 4096
"""Signs of a value that are kept."""


@dataclass
class TopEvents:
    """The highest events of a run, in bounded memory; the order in which they come does not matter.

    Attributes:
        max_events: Events kept.
        dropped: Events that were to be shown, and for which there was no room.
    """

    max_events: int = 5000
    dropped: int = 0
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _num_rows: int = 0
    _min_level: float = -1.0

    def add(
        self,
        user: str | None,
        frame: pl.DataFrame,
        arrays: EventArrays,
        levels: NDArray[np.float64],
        mask: NDArray[np.bool_],
    ) -> None:
        """Take note of those events of a user that are meant and have a level, (rows,) each."""
        known = np.isfinite(levels) & mask
        high = known & (levels > self._min_level)
        self.dropped += int((known & ~high).sum())
        if not high.any():
            return
        rows = np.flatnonzero(high)
        self._frames.append(
            truncate_values(frame[rows]).with_columns(
                pl.lit(user, pl.String).alias(USER),
                pl.Series(SECONDS, arrays.seconds[rows]),
                pl.Series(LEVEL, levels[rows]),
                pl.Series(FLAGGED, arrays.flagged[rows]),
                pl.Series(POSITION, rows, dtype=pl.Int64),
            )
        )
        self._num_rows += len(rows)
        if self._num_rows > 2 * self.max_events:
            self._prune()

    def to_frame(self) -> pl.DataFrame:
        """The highest events, by user and time."""
        if not self._frames:
            return pl.DataFrame(schema={USER: pl.String, SECONDS: pl.Float64, LEVEL: pl.Float64})
        self._prune()
        return sort_events(self._frames[0])

    def _prune(self) -> None:
        every = pl.concat(self._frames, how="diagonal_relaxed")
        kept = every.sort(LEVEL, SECONDS, USER, descending=[True, False, False]).head(
            self.max_events
        )
        if every.height > self.max_events:
            self.dropped += every.height - self.max_events
            self._min_level = float(kept[LEVEL][-1])
        self._frames, self._num_rows = [kept], kept.height


def sort_events(events: pl.DataFrame) -> pl.DataFrame:
    """By user and time; of one moment, as they came."""
    return events.sort(USER, SECONDS, POSITION, nulls_last=True, maintain_order=True)


def truncate_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut long values, but not what `explain` says, and say so behind them.

    >>> truncate_values(pl.DataFrame({"agent": ["x" * 5000]}))["agent"][0][-35:]
    'xxxxxxxx… (cut, 5,000 signs in all)'
    """
    words = ExplanationColumns.find_in(frame.columns) or ()
    texts = [name for name in frame.select(cs.string()).columns if name not in words]
    long = [name for name in texts if (frame[name].str.len_chars() > MAX_VALUE_CHARS).any()]
    return frame.with_columns(
        pl.col(name).map_elements(_truncate_text, return_dtype=pl.String) for name in long
    )


def _truncate_text(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… (cut, {len(text):,} signs in all)"


MAX_TECHNIQUES_NAMED = 6
"""Techniques that are named, at most."""


@dataclass(frozen=True)
class ReplayResult:
    """What came of techniques replayed in the name of one user.

    Attributes:
        num_tried: How many techniques could be placed.
        missed: By technique, the grades of disguise at which it would have raised no alert.
    """

    num_tried: int
    missed: Mapping[str, tuple[str, ...]]

    def describe(self) -> str:
        """Say what was not caught; those missed at most grades come first.

        >>> missed = {"stop-trail": ("hours",), "role-chain": ("agent", "hours")}
        >>> ReplayResult(28, missed).describe().partition(": ")[2]
        'role-chain (agent, hours), stop-trail (hours).'
        """
        ordered = sorted(self.missed.items(), key=lambda one: (-len(one[1]), one[0]))
        names = [
            f"{technique} ({', '.join(grades)})"
            for technique, grades in ordered[:MAX_TECHNIQUES_NAMED]
        ]
        more = (
            [f"{len(ordered) - MAX_TECHNIQUES_NAMED} more"]
            if len(ordered) > MAX_TECHNIQUES_NAMED
            else []
        )
        return (
            f"Of {self.num_tried} attack techniques replayed, {len(ordered)} would have raised no "
            f"alert behind some disguise: {', '.join([*names, *more])}."
        )


IDENTITY_SCALE = ScoreScale(0.0, 1.0)
"""Leaves scores as they are: what is high is found out at the end."""


@dataclass
class UserAggregate:
    """What was seen of one user.

    Attributes:
        card: Their fingerprint's.
        events: Events that came through the chain.
        unscored_reason: Why they have no score.
        exceedances: Events with a `risk`, and those above each of the portrait's risks.
        replay_result: What came of attacks replayed in their name; None if nobody has told.
    """

    card: ModelCard | None = None
    events: int = 0
    unscored_reason: str | None = None
    exceedances: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(1 + len(EXCEEDANCE_LEVELS), np.int64)
    )
    replay_result: ReplayResult | None = None


@dataclass
class ReportAggregator:
    """What was found, so far.

    Attributes:
        scales: How high is high, of each user; by default their fingerprints say so.
        filtered: Whether only alerts come: `filter` has left out the others.
        ranking: The score that is gone by.
        columns: All columns that came.
        histograms: Everybody's events over time, those that were left out included.
        top_events: The highest of those that came.
        ts_anomalies: The highest of those that break their user's rhythm.
        users: What was seen of each.
    """

    scales: Mapping[str | None, ScoreScale] = field(default_factory=dict)
    filtered: bool = False
    ranking: str | None = None
    columns: dict[str, None] = field(default_factory=dict)
    histograms: UserHistograms = field(default_factory=UserHistograms)
    top_events: TopEvents = field(default_factory=TopEvents)
    ts_anomalies: TopEvents = field(default_factory=lambda: TopEvents(max_events=1000))
    users: dict[str | None, UserAggregate] = field(default_factory=dict)

    def register_user(
        self, user: str | None, card: ModelCard | None, unscored_reason: str | None
    ) -> UserAggregate:
        """Take note of a user."""
        seen = self.users.setdefault(user, UserAggregate())
        seen.card = card or seen.card
        seen.unscored_reason = unscored_reason or seen.unscored_reason
        return seen

    def add(self, user: str | None, frame: pl.DataFrame) -> None:
        """Add events of a user that was seen, one row each, with `TIME` and what stages added."""
        self.columns |= dict.fromkeys(frame.columns)
        self.ranking = self.ranking or choose_ranking(frame.columns)
        look, seen = EventArrays.from_frame(frame), self.users[user]
        levels = self.find_scale(user).to_levels(look.scores)
        self.top_events.add(user, frame, look, levels, ~look.flagged)
        known = np.nan_to_num(levels)  # a break in the rhythm is shown even without a score
        self.ts_anomalies.add(user, frame, look, known, look.flagged)
        portrait = None if seen.card is None else seen.card.portrait
        self.add_histogram(user, look.histogram, count_exceedances(portrait, look.risks))
        seen.events += frame.height

    def add_histogram(
        self, user: str | None, histogram: TimeHistogram, exceedances: NDArray[np.int64]
    ) -> None:
        """Add events of a user that was seen and of which no more is known."""
        self.histograms.add(user, histogram)
        self.users[user].exceedances += exceedances

    def count_events(self, user: str | None) -> int:
        """All events of a user, those of which no more is known among them."""
        self.histograms.compact()
        cells = self.histograms.users.get(user)
        return 0 if cells is None else int(cells.events.sum())

    def fit_population_scale(self) -> ScoreScale | None:
        """What `IDENTITY_SCALE` scores are measured by; None if nothing is known."""
        if self.ranking != RISK:
            return None
        cards = [seen.card for seen in self.users.values() if seen.card is not None]
        return ScoreScale.from_summaries(
            [card.portrait for card in cards if card.portrait is not None]
        )

    def find_scale(self, user: str | None) -> ScoreScale:
        """How high is high for a user; `IDENTITY_SCALE` if that is known at the end only."""
        if user in self.scales:
            return self.scales[user]
        card = self.users[user].card
        portrait = None if card is None else card.portrait
        return ScoreScale.from_summary(portrait, self.ranking or RISK) or IDENTITY_SCALE
