"""A sample of everybody's events: few of each user, spread over all of their time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, Protocol

import numpy as np
import polars as pl

from morpheus.columns import INDEX, POPULATION_USER, TIME
from morpheus.sources.census import USER, UserStats
from morpheus.sources.gathering import SpilledDataset

MIN_MERGE_EVENTS = 10_000
"""Events that are drawn of together, at least."""
_SAMPLE_KEY = "_key_"
_SAMPLE_SCHEMA: dict[str, Any] = {
    POPULATION_USER: pl.String,
    INDEX: pl.Int64,
    TIME: pl.Datetime("us", "UTC"),
    _SAMPLE_KEY: pl.UInt64,
}
_HASH_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class SampleSpec:
    """How large a sample is. No result hangs on how its events were read.

    Attributes:
        max_users: Users that it is of, at most.
        target_events: Events in it, about.
        min_events_per_user: Events of each user, at least, where there are so many.
    """

    max_users: int = 2000
    target_events: int = 50_000
    min_events_per_user: int = 25

    def take_sample(
        self,
        dataset: SpilledDataset,
        columns: Sequence[str],
        *,
        derived_columns: Collection[str] = (),
        frames: Iterable[pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """Take a sample: `POPULATION_USER`, `TIME` and the feature columns, by owner, then time.

        Args:
            dataset: All events.
            columns: The feature columns.
            derived_columns: Those of them that are not in the log.
            frames: All events once more, with these; by default as they were gathered.
        """
        draw = self.make_sampler(dataset, columns, derived_columns=derived_columns)
        return draw.finish(draw.sample(_iter_all_frames(dataset) if frames is None else frames))

    def make_sampler(
        self, dataset: HasUserStats, columns: Sequence[str], *, derived_columns: Collection[str] = ()
    ) -> StratifiedSampler:
        """Decide what is drawn; see `of`."""
        chosen = self._choose_users(dataset.user_stats)
        each = max(self.min_events_per_user, self.target_events // max(1, len(chosen)))
        known = {*dataset.column_names, *derived_columns}
        there = [name for name in dict.fromkeys(columns) if name in known]
        return StratifiedSampler(dataset.user, chosen, each, there)

    def _choose_users(self, user_stats: UserStats) -> list[str]:
        users = user_stats.users[USER].unique().drop_nulls().to_list()
        return sorted(users, key=lambda user: blake2b(user.encode(), digest_size=8).digest())[
            : self.max_users
        ]


class HasUserStats(Protocol):
    """Events of which it is known who is in them, and which columns there are."""

    user: str
    column_names: list[str]
    user_stats: UserStats


@dataclass(frozen=True)
class StratifiedSampler:
    """What of each frame of events is in a sample.

    Attributes:
        user: Column of the user.
        users: Users that it is of.
        events_per_user: Events of each user.
        columns: Columns of these.
    """

    user: str
    users: list[str]
    events_per_user: int
    columns: list[str]

    def sample(self, frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Draw of these events alone."""
        return self.merge(_sample_frame(frame, self.user, self.users, self.columns) for frame in frames)

    def merge(self, samples: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Join what was drawn of some events and of others."""
        sample, more = pl.DataFrame(schema=_SAMPLE_SCHEMA), list[pl.DataFrame]()
        for some in samples:
            more.append(some)
            # As much again: of many small tables, most would pass without a change.
            if sum(each.height for each in more) >= max(sample.height, MIN_MERGE_EVENTS):
                sample, more = self._keep_lowest([sample, *more]), []
        return self._keep_lowest([sample, *more])

    def _keep_lowest(self, samples: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Of each user those events whose numbers are the lowest."""
        whole = pl.concat(samples, how="diagonal")
        return whole.filter(pl.col(_SAMPLE_KEY).rank("min").over(POPULATION_USER) <= self.events_per_user)

    def finish(self, sample: pl.DataFrame) -> pl.DataFrame:
        """The sample, once all events have been drawn of."""
        names = (POPULATION_USER, TIME, *self.columns)
        # Where every record was refused, there was no frame to bring the columns.
        absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in sample.columns]
        return sample.with_columns(absent).select(names).sort(names, nulls_last=True)


def _iter_all_frames(dataset: SpilledDataset) -> Iterator[pl.DataFrame]:
    yield from dataset.frames_in_memory
    sorted_ = () if dataset.buckets is None else chain(*dataset.buckets.tables_by_bucket.values())
    yield from (blob.read() for blob in (*dataset.spilled_tables, *sorted_))


def _sample_frame(frame: pl.DataFrame, user: str, users: list[str], columns: list[str]) -> pl.DataFrame:
    there = [name for name in columns if name in frame.columns]
    some = frame.filter(pl.col(user).is_in(users)).select(
        pl.col(user).alias(POPULATION_USER), INDEX, TIME, *(name for name in there if name != POPULATION_USER)
    )
    return some.with_columns(pl.Series(_SAMPLE_KEY, _compute_sample_keys(some)))


def _compute_sample_keys(frame: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Numbers that scatter events at random, and the same ones every time."""
    parts = (frame[TIME].to_physical(), frame[INDEX])
    times, places = (part.fill_null(0).to_numpy().astype(np.uint64) for part in parts)
    mixed = (times * np.uint64(_HASH_MULTIPLIERS[0])) ^ (places * np.uint64(_HASH_MULTIPLIERS[1]))
    return np.asarray((mixed ^ (mixed >> np.uint64(29))) * np.uint64(_HASH_MULTIPLIERS[0]), dtype=np.uint64)
