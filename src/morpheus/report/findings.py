"""What a page needs of a run, gathered batch by batch, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK
from morpheus.models.fingerprint import ModelCard
from morpheus.models.portrait import EXCEEDANCE_LEVELS, count_exceedances
from morpheus.report.candidates import Candidates
from morpheus.report.look import Look, ranking_of
from morpheus.report.rehearsed import Rehearsed
from morpheus.report.yardstick import Yardstick
from morpheus.rhythm.cells import TimeHistogram, UserHistograms

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
    tally: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 + len(EXCEEDANCE_LEVELS), np.int64))
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
