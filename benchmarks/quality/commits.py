"""Commits of real people. From a date on, a peer of the same repository commits as the user.

Nothing else is changed. The peer's events keep their order, intervals, hours and weekdays: they are
moved by whole weeks, and start when the user's own events end. Columns with the name of the
repository or the e-mail address are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import NamedTuple

import polars as pl

from quality.trial import EVENT, STAMP, WHEN, Trial

LEAST_EVENTS, LEAST_DAYS = 300, 40
"""Minimum numbers for a user to be included."""
LEARNT, MOST_LEARNT = 0.7, 2_000
"""Share of a user's events that are history, and how many of the latest are used for training."""
MOST_OWN, MOST_SWAPPED = 1_000, 300
COLUMNS = ("action", "dir", "top", "ext", "block", "weekday", "via", "mail_kind", "files")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ZONED = "%Y-%m-%dT%H:%M:%S%:z"
WEEK = timedelta(weeks=1)


class Person(NamedTuple):
    """A user's events, split by time."""

    name: str
    history: pl.DataFrame
    later: pl.DataFrame


def trial(path: Path) -> Trial:
    """Make the trial from `commits.jsonl.gz`."""
    frame = read(path)
    histories, scored = [], []
    incidents: dict[str, int] = {}
    for number, (person, peer) in enumerate(pairs(frame)):
        own = person.later.head(MOST_OWN)
        swapped = [] if peer is None else [moved(peer.later.head(MOST_SWAPPED), own)]
        events = pl.concat([own, *swapped]).with_columns(
            user=pl.lit(person.name),
            **{EVENT: pl.format("{}-{}", pl.lit(person.name), pl.int_range(pl.len()))},
        )
        incidents |= dict.fromkeys(events[EVENT][own.height :].to_list(), number)
        histories.append(person.history.tail(MOST_LEARNT))
        scored.append(events)
    later = stamped(pl.concat(scored))
    kinds = dict.fromkeys(incidents.values(), "swap")
    return Trial("commits", "user", COLUMNS, stamped(pl.concat(histories)), later, incidents, kinds)


def read(path: Path) -> pl.DataFrame:
    """Return the events of included users with features, by commit time."""
    frame = pl.read_ndjson(path).with_columns(
        pl.col("commit_time").str.to_datetime(ZONED, time_unit="us", time_zone="UTC").alias(WHEN),
        day=pl.col("time").str.slice(0, 10).str.to_date(),
        hour=pl.col("time").str.slice(11, 2).cast(pl.Int32),
    )
    enough = (pl.len() >= LEAST_EVENTS) & (pl.col("day").n_unique() >= LEAST_DAYS)
    frame = frame.filter((enough & ~pl.col("bot").any()).over("user"))
    numbered = pl.format("h{}", pl.int_range(pl.len())).alias(EVENT)
    kept = frame.with_columns(numbered, *features()).sort("user", WHEN, maintain_order=True)
    return kept.select("user", "repo", EVENT, WHEN, *COLUMNS)


def features() -> list[pl.Expr]:
    """Return columns of the action and of the author's local time."""
    begin = pl.col("hour") // 3 * 3
    bits = (pl.col("files_in_commit") + 1).log(2).floor().cast(pl.Int32)
    return [
        pl.col("dir").str.split("/").list.first().alias("top"),
        pl.format("{}-{} h", begin, begin + 3).alias("block"),
        (pl.col("day").dt.weekday() - 1).replace_strict(dict(enumerate(DAYS))).alias("weekday"),
        pl.format("from {}", 2**bits - 1).alias("files"),
    ]


def pairs(frame: pl.DataFrame) -> Iterator[tuple[Person, Person | None]]:
    """Pair each user with the next of the same repository, in a ring. A single user has no peer."""
    rings: dict[str, list[Person]] = {}
    for events in frame.partition_by("user", maintain_order=True):
        usual = events["repo"].mode().sort()[0]
        cut = int(events.height * LEARNT)
        person = Person(events["user"][0], *(part.drop("repo") for part in split(events, cut)))
        rings.setdefault(usual, []).append(person)
    for ring in rings.values():
        for person, peer in zip(ring, [*ring[1:], ring[0]], strict=True):
            yield person, None if peer is person else peer


def split(events: pl.DataFrame, cut: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split events by time."""
    return events[:cut], events[cut:]


def moved(events: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """Move events by whole weeks, to start when the user's own events end."""
    weeks = ceil((own[WHEN][-1] - events[WHEN][0]) / WEEK)
    return events.with_columns(pl.col(WHEN) + weeks * WEEK)


def stamped(events: pl.DataFrame) -> pl.DataFrame:
    """Return events with times as text."""
    return events.with_columns(pl.col(WHEN).dt.strftime(STAMP))
