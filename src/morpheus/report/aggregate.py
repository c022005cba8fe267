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

RANKINGS = (RISK, "zscore", SCORE)
"""Scores that a page can go by, the best first."""


def ranking_of(columns: Sequence[str]) -> str | None:
    """The best of the scores that there are."""
    return next((name for name in RANKINGS if name in columns), None)


@dataclass(frozen=True)
class Look:
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
    def of(cls, frame: pl.DataFrame) -> Self:
        """Look at events with `TIME` and what stages have added."""
        ranking, nothing = ranking_of(frame.columns), np.full(frame.height, np.nan)
        scores = nothing if ranking is None else _numbers(frame[ranking])
        seconds = frame[TIME].dt.epoch("us").to_numpy() / 1e6
        return cls(seconds, scores, _flags(frame), scores if ranking == RISK else nothing)

    @property
    def cells(self) -> TimeHistogram:
        """The events, cell by cell."""
        return TimeHistogram.from_events(self.seconds, self.scores, self.flagged)


def _numbers(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _flags(frame: pl.DataFrame) -> NDArray[np.bool_]:
    if TS_ANOMALY not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    column = frame[TS_ANOMALY]
    if column.dtype != pl.Boolean:
        column = column.cast(pl.String).str.to_lowercase() == "true"
    return column.fill_null(value=False).to_numpy()


FAR = 4.0
"""Standard deviations above a user's mean from which a score is worth a look."""
SEVERITIES = ((4.0, "critical"), (2.0, "high"), (1.0, "medium"))
"""Least level of each severity; below all of them it is `low`."""


def severity(level: float) -> str:
    """What a level is called.

    >>> [severity(level) for level in (0.5, 1.0, 3.9, 12.0)]
    ['low', 'medium', 'high', 'critical']
    """
    return next((name for least, name in SEVERITIES if level >= least), "low")


@dataclass(frozen=True)
class Yardstick:
    """Turns scores into levels: 0 is usual, 1 as high as it gets on ordinary days.

    Attributes:
        usual: The score whose level is 0.
        reach: The score whose level is 1.
    """

    usual: float
    reach: float

    @classmethod
    def of(cls, portrait: ModelSummary | None, ranking: str) -> Self | None:
        """Measure by a user's held-out events: level 1 is `FAR` deviations above their mean.

        None where scores need no measure of each user, or nothing is known of them.
        """
        if ranking == "zscore":
            return cls(0.0, FAR)
        if ranking == RISK or portrait is None:
            return None
        return cls(portrait.usual, portrait.usual + FAR * max(portrait.spread, 1e-6))

    @classmethod
    def common(cls, portraits: Sequence[ModelSummary]) -> Self | None:
        """Measure `risk`, which ranks the events of all users in one list.

        Level 1 is the highest risk that the median user came to on held-out days; None without any.
        """
        highest = [portrait.risks[-1] for portrait in portraits]
        return cls(0.0, max(float(np.median(highest)), 1e-6)) if highest else None

    def levels(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of scores, at least 0; of no score, no level.

        >>> Yardstick(1.0, 3.0).levels(np.array([0.0, 2.0, 7.0])).tolist()
        [0.0, 0.5, 3.0]
        """
        return np.asarray(np.maximum((scores - self.usual) / (self.reach - self.usual), 0.0))


USER, SECONDS, LEVEL, FLAGGED, PLACE = "_user_", "_seconds_", "_level_", "_flagged_", "_place_"
OWN = (USER, SECONDS, LEVEL, FLAGGED, PLACE)
LONGEST = 4096
"""Signs of a value that are kept."""


@dataclass
class Candidates:
    """The highest events of a run, in bounded memory; the order in which they come does not matter.

    Attributes:
        most: Events kept.
        left_out: Events that were to be shown, and for which there was no room.
    """

    most: int = 5000
    left_out: int = 0
    _held: list[pl.DataFrame] = field(default_factory=list)
    _height: int = 0
    _floor: float = -1.0

    def add(
        self,
        user: str | None,
        frame: pl.DataFrame,
        look: Look,
        levels: NDArray[np.float64],
        meant: NDArray[np.bool_],
    ) -> None:
        """Take note of those events of a user that are meant and have a level, (rows,) each."""
        known = np.isfinite(levels) & meant
        high = known & (levels > self._floor)
        self.left_out += int((known & ~high).sum())
        if not high.any():
            return
        rows = np.flatnonzero(high)
        self._held.append(
            shortened(frame[rows]).with_columns(
                pl.lit(user, pl.String).alias(USER),
                pl.Series(SECONDS, look.seconds[rows]),
                pl.Series(LEVEL, levels[rows]),
                pl.Series(FLAGGED, look.flagged[rows]),
                pl.Series(PLACE, rows, dtype=pl.Int64),
            )
        )
        self._height += len(rows)
        if self._height > 2 * self.most:
            self._prune()

    def events(self) -> pl.DataFrame:
        """The highest events, by user and time."""
        if not self._held:
            return pl.DataFrame(schema={USER: pl.String, SECONDS: pl.Float64, LEVEL: pl.Float64})
        self._prune()
        return ordered(self._held[0])

    def _prune(self) -> None:
        every = pl.concat(self._held, how="diagonal_relaxed")
        kept = every.sort(LEVEL, SECONDS, USER, descending=[True, False, False]).head(self.most)
        if every.height > self.most:
            self.left_out += every.height - self.most
            self._floor = float(kept[LEVEL][-1])
        self._held, self._height = [kept], kept.height


def ordered(events: pl.DataFrame) -> pl.DataFrame:
    """By user and time; of one moment, as they came."""
    return events.sort(USER, SECONDS, PLACE, nulls_last=True, maintain_order=True)


def shortened(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut long values, but not what `explain` says, and say so behind them.

    >>> shortened(pl.DataFrame({"agent": ["x" * 5000]}))["agent"][0][-35:]
    'xxxxxxxx… (cut, 5,000 signs in all)'
    """
    words = ExplanationColumns.find_in(frame.columns) or ()
    texts = [name for name in frame.select(cs.string()).columns if name not in words]
    long = [name for name in texts if (frame[name].str.len_chars() > LONGEST).any()]
    return frame.with_columns(
        pl.col(name).map_elements(_shortened, return_dtype=pl.String) for name in long
    )


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… (cut, {len(text):,} signs in all)"


NAMED = 6
"""Techniques that are named, at most."""


@dataclass(frozen=True)
class Rehearsed:
    """What came of techniques replayed in the name of one user.

    Attributes:
        tried: How many techniques could be placed.
        missed: By technique, the grades of disguise at which it would have raised no alert.
    """

    tried: int
    missed: Mapping[str, tuple[str, ...]]

    def told(self) -> str:
        """Say what was not caught; those missed at most grades come first.

        >>> missed = {"stop-trail": ("hours",), "role-chain": ("agent", "hours")}
        >>> Rehearsed(28, missed).told().partition(": ")[2]
        'role-chain (agent, hours), stop-trail (hours).'
        """
        ordered = sorted(self.missed.items(), key=lambda one: (-len(one[1]), one[0]))
        names = [f"{technique} ({', '.join(grades)})" for technique, grades in ordered[:NAMED]]
        more = [f"{len(ordered) - NAMED} more"] if len(ordered) > NAMED else []
        return (
            f"Of {self.tried} attack techniques replayed, {len(ordered)} would have raised no "
            f"alert behind some disguise: {', '.join([*names, *more])}."
        )


PLAIN = Yardstick(0.0, 1.0)
"""Leaves scores as they are: what is high is found out at the end."""


@dataclass
class Seen:
    """What was seen of one user.

    Attributes:
        card: Their fingerprint's.
        events: Events that came through the chain.
        unscored: Why they have no score.
        tally: Events with a `risk`, and those above each of the portrait's risks.
        rehearsed: What came of attacks replayed in their name; None if nobody has told.
    """

    card: ModelCard | None = None
    events: int = 0
    unscored: str | None = None
    tally: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(1 + len(EXCEEDANCE_LEVELS), np.int64)
    )
    rehearsed: Rehearsed | None = None


@dataclass
class Findings:
    """What was found, so far.

    Attributes:
        yardsticks: How high is high, of each user; by default their fingerprints say so.
        filtered: Whether only alerts come: `filter` has left out the others.
        ranking: The score that is gone by.
        columns: All columns that came.
        lanes: Everybody's events over time, those that were left out included.
        candidates: The highest of those that came.
        offbeat: The highest of those that break their user's rhythm.
        users: What was seen of each.
    """

    yardsticks: Mapping[str | None, Yardstick] = field(default_factory=dict)
    filtered: bool = False
    ranking: str | None = None
    columns: dict[str, None] = field(default_factory=dict)
    lanes: UserHistograms = field(default_factory=UserHistograms)
    candidates: Candidates = field(default_factory=Candidates)
    offbeat: Candidates = field(default_factory=lambda: Candidates(most=1000))
    users: dict[str | None, Seen] = field(default_factory=dict)

    def see(self, user: str | None, card: ModelCard | None, unscored: str | None) -> Seen:
        """Take note of a user."""
        seen = self.users.setdefault(user, Seen())
        seen.card = card or seen.card
        seen.unscored = unscored or seen.unscored
        return seen

    def add(self, user: str | None, frame: pl.DataFrame) -> None:
        """Add events of a user that was seen, one row each, with `TIME` and what stages added."""
        self.columns |= dict.fromkeys(frame.columns)
        self.ranking = self.ranking or ranking_of(frame.columns)
        look, seen = Look.of(frame), self.users[user]
        levels = self.yardstick(user).levels(look.scores)
        self.candidates.add(user, frame, look, levels, ~look.flagged)
        known = np.nan_to_num(levels)  # a break in the rhythm is shown even without a score
        self.offbeat.add(user, frame, look, known, look.flagged)
        portrait = None if seen.card is None else seen.card.portrait
        self.picture(user, look.cells, count_exceedances(portrait, look.risks))
        seen.events += frame.height

    def picture(self, user: str | None, cells: TimeHistogram, counts: NDArray[np.int64]) -> None:
        """Add events of a user that was seen and of which no more is known."""
        self.lanes.add(user, cells)
        self.users[user].tally += counts

    def events_of(self, user: str | None) -> int:
        """All events of a user, those of which no more is known among them."""
        self.lanes.compact()
        cells = self.lanes.users.get(user)
        return 0 if cells is None else int(cells.events.sum())

    def common(self) -> Yardstick | None:
        """What `PLAIN` scores are measured by; None if nothing is known."""
        if self.ranking != RISK:
            return None
        cards = [seen.card for seen in self.users.values() if seen.card is not None]
        return Yardstick.common([card.portrait for card in cards if card.portrait is not None])

    def yardstick(self, user: str | None) -> Yardstick:
        """How high is high for a user; `PLAIN` if that is known at the end only."""
        if user in self.yardsticks:
            return self.yardsticks[user]
        card = self.users[user].card
        portrait = None if card is None else card.portrait
        return Yardstick.of(portrait, self.ranking or RISK) or PLAIN
