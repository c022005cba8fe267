"""Real console sessions of one user, with recorded attack techniques among the later days.

The sessions lie on 28 days; the last quarter of these is scored, the rest learnt from. Techniques
go in rounds, one of each round a day, so that none is the neighbour of another; the recorded attack
on an account has a round of its own. Identity and address were taken out of the sessions by their
publisher, so `agent` hides all there is of the client.
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
from morpheus.replay.injection import INJECTED, TargetUser, inject
from morpheus.replay.techniques import Technique, load_techniques
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


def scenes(data: Path, seed: int, *, few: bool = False) -> Mapping[str, Sequence[Trial]]:
    """The rounds of each grade.

    Args:
        data: Folder of the public logs.
        seed: Of where in its day each technique begins.
        few: One round only.
    """
    events = flat(data / "cloudtrail-console")
    history, later = divided(events)
    victim = TargetUser.from_events(NAME, USER, events)
    techniques = load_techniques(str(data / "cloudtrail-techniques"))
    count = -(-len(techniques) // len(by_day(later)))
    rounds = [techniques[n::count] for n in range(count)]
    rounds = rounds[:1] if few else [*rounds, [attack(data / "cloudtrail-attack")]]
    return {
        grade: [
            scene(
                history, later, [retold(*pair, victim, grade, seed) for pair in dealt(some, later)]
            )
            for some in rounds
        ]
        for grade in GRADES
    }


def scene(history: pl.DataFrame, later: pl.DataFrame, told: Sequence[pl.DataFrame]) -> Trial:
    """A trial with some techniques among the later events."""
    scored = pl.concat([later, *told]).sort(TIME, maintain_order=True).drop(TIME)
    kinds = {n: each[EVENT][0].partition("/")[0] for n, each in enumerate(told)}
    incidents = {name: n for n, each in enumerate(told) for name in each[EVENT].to_list()}
    columns = tuple(name for name in COLUMNS if name in scored.columns)
    return Trial(NAME, USER, columns, history.drop(TIME), scored, incidents, kinds)


def dealt(
    techniques: Sequence[Technique], later: pl.DataFrame
) -> Iterator[tuple[Technique, pl.DataFrame]]:
    """Each technique with the events of a day of its own."""
    return zip(techniques, by_day(later), strict=False)


def retold(
    technique: Technique, day: pl.DataFrame, victim: TargetUser, grade: str, seed: int
) -> pl.DataFrame:
    """A technique's events as the victim's, with names of their own."""
    told = inject(day, technique, victim, grade, seed).filter(INJECTED).drop(INJECTED)
    name = pl.format("{}/{}/{}", pl.lit(technique.name), pl.lit(grade), pl.int_range(pl.len()))
    return told.with_columns(name.alias(EVENT)).select(day.columns)


def divided(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The earlier days, and the later ones."""
    later = pl.col(TIME) >= find_split_time(events[TIME])
    return events.filter(~later), events.filter(later)


def by_day(events: pl.DataFrame) -> list[pl.DataFrame]:
    """The events of each day."""
    day = pl.col(TIME).dt.truncate("1d").alias("day")
    return events.with_columns(day).partition_by("day", maintain_order=True, include_key=False)


@cache
def flat(folder: Path) -> pl.DataFrame:
    """The events of a folder, flattened by our own source, in the order of time."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "flat.parquet")
        stages = [FromCloudtrail(input_glob=str(folder)), Serialize(), ToFile(filename=str(path))]
        Pipeline(stages).run()
        found = pl.read_parquet(path)
    texts = [name for name, kind in found.schema.items() if kind == pl.String]
    frame = found.select(texts).with_columns(pl.lit(NAME).alias(USER))
    return frame.with_columns(times(frame).alias(TIME)).sort(TIME, EVENT)


def attack(folder: Path) -> Technique:
    """What the one who did most on an attacked account did there."""
    files = sorted(folder.rglob("*.json.gz"))
    records = [one for file in files for one in read(file)]
    [(busiest, _)] = Counter(map(actor, records)).most_common(1)
    own = sorted((one for one in records if actor(one) == busiest), key=lambda one: one[WHEN])
    return Technique("attack", tuple(own))


def read(path: Path) -> list[dict[str, Any]]:
    """A log file's records."""
    records: list[dict[str, Any]] = msgspec.json.decode(read_bytes(path))["Records"]
    return records


def actor(record: Mapping[str, Any]) -> str | None:
    """Who did it."""
    name: str | None = record["userIdentity"].get("arn")
    return name
