"""A user's page: their lane, their rhythm, and their fingerprint's card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.models.fingerprint import SCOPE_OWN, ModelCard
from morpheus.models.portrait import HOURS_PER_WEEK, EXCEEDANCE_LEVELS, ModelSummary, hour_of_week
from morpheus.report.findings import Seen
from morpheus.report.incidents import brief
from morpheus.report.rehearsed import Rehearsed
from morpheus.report.yardstick import Yardstick
from morpheus.rhythm.cells import SECONDS_PER_HOUR, TimeHistogram

UNSCORED = -1
"""Level, in hundredths, of a cell whose events have no score."""
TOP = 9999
OFTEN = 0.2
"""Share of events that bring a new value from which a column's new values say little."""
SHORT, FEW = 14, 100
"""Days of history, and held-out events, below which a fingerprint knows little."""
WEEK = 7 * 24 * 3600


class Lane(msgspec.Struct, frozen=True):
    """A user's cells, from the page's first cell on.

    Attributes:
        at: Which cells.
        n: Events in each.
        w: The highest level in each, in hundredths; UNSCORED without one.
        f: Cells that hold a break of the rhythm, by place in `at`.
    """

    at: list[int]
    n: list[int]
    w: list[int]
    f: list[int]

    @classmethod
    def of(cls, cells: TimeHistogram, first: int, yardstick: Yardstick) -> Self:
        """Draw a lane."""
        known = np.isfinite(cells.max_scores)
        levels = yardstick.levels(np.where(known, cells.max_scores, yardstick.usual))
        hundredths = np.minimum(np.rint(levels * 100), TOP).astype(int)
        return cls(
            (cells.buckets - first).tolist(),
            cells.events.tolist(),
            np.where(known, hundredths, UNSCORED).tolist(),
            np.flatnonzero(cells.flagged).tolist(),
        )


class Rhythm(msgspec.Struct, frozen=True):
    """Events in each hour of the week, Monday, midnight UTC first.

    Attributes:
        hours: Events, (168,).
        weeks: How many weeks they are of.
        learnt: They are of the history; else of this run.
    """

    hours: list[int]
    weeks: float
    learnt: bool

    @classmethod
    def of(cls, portrait: ModelSummary | None, cells: TimeHistogram, step: int) -> Self | None:
        """A user's usual week: that of their history, or else of this run."""
        if portrait is not None and any(portrait.hours):
            return cls(list(portrait.hours), portrait.weeks, learnt=True)
        if step != SECONDS_PER_HOUR or not len(cells.buckets):
            return None
        hours = hour_of_week(cells.buckets.astype(np.float64) * SECONDS_PER_HOUR)
        counts = np.bincount(hours, weights=cells.events, minlength=HOURS_PER_WEEK).astype(int)
        weeks = max((int(cells.buckets[-1]) - int(cells.buckets[0])) * SECONDS_PER_HOUR / WEEK, 1 / 7)
        return cls(counts.tolist(), brief(weeks), learnt=False)

    @property
    def usual(self) -> NDArray[np.float64]:
        """Events that are usual in each hour, (168,)."""
        return np.array(self.hours) / self.weeks


class Calibration(msgspec.Struct, frozen=True):
    """What was stated of a user's risks, and what came true.

    Attributes:
        risks: The risk that each share of held-out events exceeds.
        stated: Those shares.
        realised: Shares of this run's events that exceed it.
        events: How many events of this run these are of.
        held_out: Events held out.
        days: Days that these span.
    """

    risks: list[float]
    stated: list[float]
    realised: list[float]
    events: int
    held_out: int
    days: int


class Profile(msgspec.Struct, frozen=True):
    """A fingerprint's card, for people.

    Attributes:
        events: Events of the user's own history.
        borrowed: Those of others that it was filled up with.
        rung: Whose history it was learnt from.
        distinct: Distinct rows.
        first: Beginning of the history.
        last: Its end.
        epochs: Epochs of training.
        curve: Loss on held-out events after each epoch of the trial.
        calibration: Stated and realised risks.
        weak: What it is weak at, in sentences.
    """

    events: int
    borrowed: int
    rung: str
    distinct: int
    first: str
    last: str
    epochs: int
    curve: list[float]
    calibration: Calibration | None
    weak: list[str]

    @classmethod
    def of(cls, card: ModelCard, seen: Seen) -> Self:
        """Tell of a card, and of what was seen of its user."""
        portrait = card.portrait
        return cls(
            card.events,
            card.borrowed,
            card.rung,
            card.distinct,
            card.first,
            card.last,
            card.epochs,
            [] if portrait is None else list(portrait.curve),
            None if portrait is None else _calibration(portrait, seen.tally),
            list(weak_spots(card, seen.rehearsed)),
        )


class Person(msgspec.Struct, frozen=True):
    """A user of a page.

    Attributes:
        name: Whoever the user column names; None for events of nobody.
        events: All their events, those left out included.
        worst: Their highest level.
        lane: Their events over time.
        rhythm: Their usual week.
        profile: Their fingerprint's card.
        unscored: Why they have no score.
    """

    name: str | None
    events: int
    worst: float
    lane: Lane
    rhythm: Rhythm | None
    profile: Profile | None
    unscored: str | None

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - who, what was seen, and how it is drawn
        cls,
        name: str | None,
        seen: Seen,
        cells: TimeHistogram,
        yardstick: Yardstick,
        step: int,
        wide: tuple[int, int],
    ) -> Self:
        """Tell of a user.

        Args:
            name: Who.
            seen: What was seen of them.
            cells: Their events.
            yardstick: How high is high.
            step: Seconds of a cell.
            wide: How many of these are one on the page, and the page's first.
        """
        factor, first = wide
        portrait = None if seen.card is None else seen.card.portrait
        lane = Lane.of(cells.downsample(factor), first, yardstick)
        return cls(
            name,
            int(cells.events.sum()),
            max(lane.w, default=UNSCORED) / 100,
            lane,
            Rhythm.of(portrait, cells, step),
            None if seen.card is None else Profile.of(seen.card, seen),
            seen.unscored,
        )


def _calibration(portrait: ModelSummary, tally: NDArray[np.int64]) -> Calibration:
    known = int(tally[0])
    realised = (tally[1:] / max(known, 1)).tolist()
    return Calibration(
        list(portrait.risks),
        list(EXCEEDANCE_LEVELS),
        [brief(share) for share in realised] if known else [],
        known,
        portrait.held_out,
        portrait.days,
    )


def weak_spots(card: ModelCard, rehearsed: Rehearsed | None = None) -> Iterator[str]:
    """Say what a fingerprint cannot be good at, and what it was not good at."""
    if rehearsed is not None and rehearsed.missed:
        yield rehearsed.told()
    portrait = card.portrait
    if card.rung != SCOPE_OWN:
        share = f"{card.own_share:.0%}"
        yield f"{share} of what it was learnt from is the user's own; the rest is of {card.rung}."
    if portrait is None:
        return
    if portrait.weeks * 7 < SHORT and card.events:
        days = f"{portrait.weeks * 7:.0f} days"
        yield f"The history spans {days}: a weekly habit may be unknown to it."
    if portrait.held_out < FEW:
        least = f"{1 / (portrait.held_out + 1):.3f}"
        yield f"{portrait.held_out} events were held out: no p-value is below {least}."
    lively = [f"{name} ({rate:.0%})" for name, rate in portrait.lively if rate >= OFTEN]
    if lively:
        yield f"New values are usual, so that one more says little, in {', '.join(lively)}."
