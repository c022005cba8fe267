"""Real console sessions of one user, with recorded attack techniques in the later days.

The sessions are on 28 days. The last quarter of them is scored, the rest is used for training.
Techniques are divided into rounds, one technique per day, so that they do not affect each other.
The recorded attack on an account has a round of its own. The publisher removed identity and address
from the sessions, so `agent` hides everything about the client.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from morpheus.columns import TIME
from morpheus.pipeline import Pipeline
from morpheus.replay.evaluation import find_split_time
from morpheus.replay.injection import INJECTED, TargetUser, Technique, inject, load_techniques
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.compression import read_bytes
from morpheus.stages.serialize import Serialize
from quality.fleet import COLUMNS
from quality.trial import EVENT, WHEN, Trial, times

USER, NAME = "user", "console"
GRADES = {
    "recorded": "techniques as recorded, in the victim's name",
    "agent": "with the victim's user agent",
    "hours": "with the victim's user agent, at the victim's hours",
}


def scenes(
    data: Path, seed: int, *, few: bool = False, every: int = 1
) -> Mapping[str, Sequence[Trial]]:
    """Return the rounds of each evasion level.

    Args:
        data: Folder of the public logs.
        seed: Random seed of each technique's start.
        few: Only one round.
        every: A technique on every day, or on every second one: then other days are benign. Which
            days have techniques differs between rounds.
    """
    events = flat(data / "cloudtrail-console")
    history, later = divided(events)
    victim = TargetUser.from_events(NAME, USER, events)
    techniques = load_techniques(str(data / "cloudtrail-techniques"))
    count = -(-len(techniques) // (len(by_day(later)) // every))
    rounds = [techniques[n::count] for n in range(count)]
    rounds = rounds[:1] if few else [*rounds, [attack(data / "cloudtrail-attack")]]
    return {
        grade: [
            scene(
                history,
                later,
                [
                    rewrite_technique(*pair, victim, grade, seed)
                    for pair in pair_with_days(some, by_day(later)[place % every :: every])
                ],
            )
            for place, some in enumerate(rounds)
        ]
        for grade in GRADES
    }


def scene(history: pl.DataFrame, later: pl.DataFrame, recordings: Sequence[pl.DataFrame]) -> Trial:
    """Return a trial with some techniques in the later events."""
    scored = pl.concat([later, *recordings]).sort(TIME, maintain_order=True).drop(TIME)
    kinds = {n: each[EVENT][0].partition("/")[0] for n, each in enumerate(recordings)}
    incidents = {name: n for n, each in enumerate(recordings) for name in each[EVENT].to_list()}
    columns = tuple(name for name in COLUMNS if name in scored.columns)
    return Trial(NAME, USER, columns, history.drop(TIME), scored, incidents, kinds)


def pair_with_days(
    techniques: Sequence[Technique], days: Sequence[pl.DataFrame]
) -> Iterator[tuple[Technique, pl.DataFrame]]:
    """Pair each technique with the events of a day.

    Raises:
        ValueError: If there are more techniques than days.
    """
    if len(techniques) > len(days):
        raise ValueError(f"{len(techniques)} techniques do not fit into {len(days)} days")
    return zip(techniques, days, strict=False)


def rewrite_technique(
    technique: Technique, day: pl.DataFrame, victim: TargetUser, grade: str, seed: int
) -> pl.DataFrame:
    """Return a technique's events as the victim's, with their own names."""
    recordings = inject(day, technique, victim, grade, seed).filter(INJECTED).drop(INJECTED)
    name = pl.format("{}/{}/{}", pl.lit(technique.name), pl.lit(grade), pl.int_range(pl.len()))
    return recordings.with_columns(name.alias(EVENT)).select(day.columns)


def divided(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the earlier days from the later ones."""
    later = pl.col(TIME) >= find_split_time(events[TIME])
    return events.filter(~later), events.filter(later)


def by_day(events: pl.DataFrame) -> list[pl.DataFrame]:
    """Return the events of each day."""
    day = pl.col(TIME).dt.truncate("1d").alias("day")
    return events.with_columns(day).partition_by("day", maintain_order=True, include_key=False)


@cache
def flat(folder: Path) -> pl.DataFrame:
    """Return the events of a folder, flattened by `from-cloudtrail`, by time."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "flat.parquet")
        stages = [FromCloudtrail(input_glob=str(folder)), Serialize(), ToFile(filename=str(path))]
        Pipeline(stages).run()
        found = pl.read_parquet(path)
    texts = [name for name, kind in found.schema.items() if kind == pl.String]
    frame = found.select(texts).with_columns(pl.lit(NAME).alias(USER))
    return frame.with_columns(times(frame).alias(TIME)).sort(TIME, EVENT)


def attack(folder: Path) -> Technique:
    """Return the events of the most active identity on an attacked account."""
    files = sorted(folder.rglob("*.json.gz"))
    records = [one for file in files for one in read(file)]
    [(busiest, _)] = Counter(map(actor, records)).most_common(1)
    own = sorted((one for one in records if actor(one) == busiest), key=lambda one: one[WHEN])
    return Technique("attack", tuple(own))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log file."""
    records: list[dict[str, Any]] = msgspec.json.decode(read_bytes(path))["Records"]
    return records


def actor(record: Mapping[str, Any]) -> str | None:
    """Return the identity of a record."""
    name: str | None = record["userIdentity"].get("arn")
    return name
