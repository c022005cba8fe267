"""A portion of what was gathered: all events of some users, which any process can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from morpheus.records import Events, Reading, Summary
from morpheus.sources.by_user import ByUser, Identity, Memory, hand_out
from morpheus.sources.deriving import Deriving
from morpheus.sources.gathering import Where


@dataclass
class Remembered:
    """What is remembered from portion to portion, where the same users come again.

    Attributes:
        deriving: Derives columns, from earlier events too.
        memory: What counts as seen besides; None for nothing.
        numbered: Rows handed out before, by user.
    """

    deriving: Deriving
    memory: Memory | None = None
    numbered: Counter[str | None] = field(default_factory=Counter)

    def end_round(self) -> None:
        """All portions of a round are read."""
        if self.memory is not None:
            self.memory.end_round()


@dataclass(frozen=True)
class GatheredPortion:
    """The events of some users, and their history.

    Attributes:
        users: `USER` and `RANK` of each, in order.
        present: Where their events are.
        past: Where their history is; None for no history.
        identity: The columns that tell users and events apart.
        deriving: Derives the columns that are derived.
        rows: Rows of a batch, at most.
    """

    users: pl.DataFrame
    present: Where
    past: Where | None
    identity: Identity
    deriving: Deriving
    rows: int

    def events(self, summary: Summary, remembered: Remembered | None = None) -> Iterator[Events]:
        """Read the users' events, who are in memory meanwhile.

        Args:
            summary: Counts duplicates.
            remembered: What was before; None for nothing.
        """
        known = remembered or Remembered(self.deriving)
        now = self._by_user(self.present.of(self.users), summary.input, known.memory)
        past = None
        if self.past is not None:
            before = _with_columns(self.past.of(self.users), now.frame.columns)
            past = self._by_user(before, summary.training, None)
        now.frame = known.deriving.add(now.frame, None if past is None else past.frame)
        if past is not None:
            past.frame = self.deriving.add(past.frame)
        yield from hand_out(self.users, now, past, rows=self.rows, numbered=known.numbered)

    def _by_user(self, frame: pl.DataFrame, reading: Reading, memory: Memory | None) -> ByUser:
        return ByUser.of(frame, self.users, self.identity, reading, memory)


def _with_columns(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Exactly these columns; what is learnt from need not be written as the events are."""
    absent = [pl.lit(None, pl.String).alias(name) for name in names if name not in frame.columns]
    return frame.with_columns(absent).select(names)
