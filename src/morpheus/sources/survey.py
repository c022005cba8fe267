"""A sample of everybody's events: few of each user, spread over all of their time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, Protocol

import numpy as np
import polars as pl

from morpheus.columns import INDEX, OWNER, TIME
from morpheus.sources.census import USER, Census
from morpheus.sources.gathering import Gathered

AT_ONCE = 10_000
"""Events that are drawn of together, at least."""
_KEY = "_key_"
_DRAWN: dict[str, Any] = {
    OWNER: pl.String,
    INDEX: pl.Int64,
    TIME: pl.Datetime("us", "UTC"),
    _KEY: pl.UInt64,
}
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class Survey:
    """How large a sample is. No result hangs on how its events were read.

    Attributes:
        users: Users that it is of, at most.
        rows: Events in it, about.
        least: Events of each user, at least, where there are so many.
    """

    users: int = 2000
    rows: int = 50_000
    least: int = 25

    def of(
        self,
        gathered: Gathered,
        columns: Sequence[str],
        *,
        derived: Collection[str] = (),
        frames: Iterable[pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """Take a sample: `OWNER`, `TIME` and the feature columns, by owner, then time.

        Args:
            gathered: All events.
            columns: The feature columns.
            derived: Those of them that are not in the log.
            frames: All events once more, with these; by default as they were gathered.
        """
        draw = self.draw(gathered, columns, derived=derived)
        return draw.done(draw.of(_frames(gathered) if frames is None else frames))

    def draw(
        self, gathered: Known, columns: Sequence[str], *, derived: Collection[str] = ()
    ) -> Draw:
        """Decide what is drawn; see `of`."""
        chosen = self._chosen(gathered.census)
        each = max(self.least, self.rows // max(1, len(chosen)))
        known = {*gathered.names, *derived}
        there = [name for name in dict.fromkeys(columns) if name in known]
        return Draw(gathered.user, chosen, each, there)

    def _chosen(self, census: Census) -> list[str]:
        users = census.users[USER].unique().drop_nulls().to_list()
        return sorted(users, key=lambda user: blake2b(user.encode(), digest_size=8).digest())[
            : self.users
        ]


class Known(Protocol):
    """Events of which it is known who is in them, and which columns there are."""

    user: str
    names: list[str]
    census: Census


@dataclass(frozen=True)
class Draw:
    """What of each frame of events is in a sample.

    Attributes:
        user: Column of the user.
        chosen: Users that it is of.
        each: Events of each user.
        columns: Columns of these.
    """

    user: str
    chosen: list[str]
    each: int
    columns: list[str]

    def of(self, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Draw of these events alone."""
        return self.joined(_of(frame, self.user, self.chosen, self.columns) for frame in frames)

    def joined(self, samples: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Join what was drawn of some events and of others."""
        sample, more = pl.DataFrame(schema=_DRAWN), list[pl.DataFrame]()
        for some in samples:
            more.append(some)
            # As much again: of many small tables, most would pass without a change.
            if sum(each.height for each in more) >= max(sample.height, AT_ONCE):
                sample, more = self._lowest([sample, *more]), []
        return self._lowest([sample, *more])

    def _lowest(self, samples: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Of each user those events whose numbers are the lowest."""
        whole = pl.concat(samples, how="diagonal")
        return whole.filter(pl.col(_KEY).rank("min").over(OWNER) <= self.each)

    def done(self, sample: pl.DataFrame) -> pl.DataFrame:
        """The sample, once all events have been drawn of."""
        names = (OWNER, TIME, *self.columns)
        # Where every record was refused, there was no frame to bring the columns.
        absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in sample.columns]
        return sample.with_columns(absent).select(names).sort(names, nulls_last=True)


def _frames(gathered: Gathered) -> Iterator[pl.DataFrame]:
    yield from gathered.held
    sorted_ = () if gathered.shelves is None else chain(*gathered.shelves.tables.values())
    yield from (blob.read() for blob in (*gathered.blobs, *sorted_))


def _of(frame: pl.DataFrame, user: str, chosen: list[str], columns: list[str]) -> pl.DataFrame:
    there = [name for name in columns if name in frame.columns]
    some = frame.filter(pl.col(user).is_in(chosen)).select(
        pl.col(user).alias(OWNER), INDEX, TIME, *(name for name in there if name != OWNER)
    )
    return some.with_columns(pl.Series(_KEY, _keys(some)))


def _keys(frame: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Numbers that scatter events at random, and the same ones every time."""
    parts = (frame[TIME].to_physical(), frame[INDEX])
    times, places = (part.fill_null(0).to_numpy().astype(np.uint64) for part in parts)
    mixed = (times * np.uint64(_ODD[0])) ^ (places * np.uint64(_ODD[1]))
    return np.asarray((mixed ^ (mixed >> np.uint64(29))) * np.uint64(_ODD[0]), dtype=np.uint64)
