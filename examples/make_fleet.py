"""Write the logs of a made-up company: `python make_fleet.py --into fleet --users 50`.

The folder gets these files, in the requested formats:

    json/training/AWSLogs/.../*.json.gz     CloudTrail records, in AWS's folder structure
    parquet/training/2025-03-03.parquet     the feature columns, flattened; also for csv
    labels.csv                              incident and kind of each event of an incident

In place of `training`, `scored` holds the days to score. The same arguments give the same bytes.
`--copies` repeats the scored days whole weeks later, with new identifiers. This is a fast way to
make ten million events.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from random import Random

import polars as pl
from generator.fleet import FIRST_DAY, Fleet, Logged
from generator.trail import ACCOUNT, FEATURES, Record, document, record, rows
from isal import igzip

FORMATS = ("json", "csv", "parquet")
LABELS = ("eventID", "kind", "incident", "user")
MAX_RECORDS = 5_000
"""Maximum number of records in one log file."""
COMPRESSION_LEVEL = 1
"""Files are a fifth larger than at the highest level, and are written several times faster."""


@dataclass
class Writer:
    """Writes the logs of a fleet.

    Attributes:
        fleet: The fleet.
        into: Output folder.
        forms: Formats to write.
        copies: Number of copies of the scored days.
        events: Number of events written, in training and scored.
        labels: Rows of `labels.csv`.
    """

    fleet: Fleet
    into: Path
    forms: Sequence[str] = FORMATS
    copies: int = 1
    events: dict[str, int] = field(default_factory=lambda: {"training": 0, "scored": 0})
    labels: list[tuple[str, str, int, str]] = field(default_factory=list)

    def write(self) -> None:
        """Write all days and the labels."""
        split = FIRST_DAY + timedelta(days=self.fleet.training)
        for day, events in self.fleet.by_day():
            records = [record(logged, self.fleet.members) for logged in events]
            part = "training" if day < split else "scored"
            for copy in range(self.copies if part == "scored" else 1):
                self._write(part, day, copy, events, records)
        self.into.mkdir(parents=True, exist_ok=True)
        with (self.into / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(LABELS)
            table.writerows(self.labels)

    def _write(
        self, part: str, day: date, copy: int, events: list[Logged], records: list[Record]
    ) -> None:
        ids = identifiers(2 * len(records), f"{self.fleet.seed} {day} {copy}")
        shifted = shift_day(day, copy, self.fleet.days - self.fleet.training)
        self.events[part] += len(records)
        self.labels += self._labels(events, ids, copy)
        if "json" in self.forms:
            self._write_native(self.into / "json" / part, shifted, records, ids)
        if set(self.forms) & {"csv", "parquet"} and records:
            frame = pl.DataFrame(
                rows(records, shifted, ids), dict.fromkeys(FEATURES, pl.String), orient="row"
            )
            self._write_flat(frame, part, shifted)

    def _write_native(
        self, folder: Path, day: date, records: list[Record], ids: Sequence[str]
    ) -> None:
        order = sorted(range(len(records)), key=lambda n: records[n].region)
        for region, group in groupby(order, key=lambda n: records[n].region):
            numbers = list(group)
            for first in range(0, len(numbers), MAX_RECORDS):
                slice_ = numbers[first : first + MAX_RECORDS]
                chosen = [records[n] for n in slice_]
                own_ids = [id_ for n in slice_ for id_ in ids[2 * n : 2 * n + 2]]
                path = folder / log_path(region, day, chosen[-1].clock, first)
                path.parent.mkdir(parents=True, exist_ok=True)
                packed = igzip.compress(document(chosen, day, own_ids), COMPRESSION_LEVEL, mtime=0)
                path.write_bytes(packed)

    def _write_flat(self, frame: pl.DataFrame, part: str, day: date) -> None:
        for form in set(self.forms) & {"csv", "parquet"}:
            path = self.into / form / part / f"{day}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if form == "csv":
                frame.write_csv(path)
            else:
                frame.write_parquet(path, compression="zstd", compression_level=1)

    def _labels(
        self, events: list[Logged], ids: Sequence[str], copy: int
    ) -> Iterator[tuple[str, str, int, str]]:
        incidents, members = self.fleet.incidents, self.fleet.members
        for n, logged in enumerate(events):
            if logged.incident is not None:
                number = logged.incident + copy * len(incidents)
                kind = incidents[logged.incident].kind
                yield ids[2 * n], kind, number, members[logged.member].name


def log_path(region: str, day: date, clock: bytes, number: int) -> Path:
    """Return the path of a log file, as AWS would name it."""
    stamp = f"{day:%Y%m%d}T{clock[1:3].decode()}{clock[4:6].decode()}Z"
    folder = Path("AWSLogs", ACCOUNT, "CloudTrail", region, f"{day:%Y/%m/%d}")
    return folder / f"{ACCOUNT}_CloudTrail_{region}_{stamp}_{number:016d}.json.gz"


def identifiers(count: int, seed: str) -> list[str]:
    """Return random UUIDs."""
    digits = Random(f"ids {seed}").randbytes(16 * count).hex()  # noqa: S311 - made-up logs, not secrets
    return [
        f"{part[:8]}-{part[8:12]}-4{part[13:16]}-a{part[17:20]}-{part[20:]}"
        for part in (digits[at : at + 32] for at in range(0, len(digits), 32))
    ]


def shift_day(day: date, copy: int, days: int) -> date:
    """Return the day of a copy: whole weeks later, so that weekdays stay the same."""
    return day + timedelta(weeks=copy * -(-days // 7))


def main() -> None:
    """Parse the command line and write the logs."""
    parser = argparse.ArgumentParser(description="Write the logs of a made-up company.")
    parser.add_argument("--into", type=Path, required=True, help="output folder")
    parser.add_argument("--users", type=int, default=50, help="number of users")
    parser.add_argument("--days", type=int, default=60, help="number of days")
    parser.add_argument("--training", type=int, default=42, help="training days, without incidents")
    parser.add_argument("--rate", type=float, default=22.0, help="mean events per user and day")
    parser.add_argument("--attacked", type=float, default=0.2, help="share of attacked users")
    parser.add_argument(
        "--noisy",
        type=int,
        default=0,
        help="number of users with much benign variety in the scored days, who also have an "
        "incident of each kind",
    )
    parser.add_argument("--copies", type=int, default=1, help="copies of the scored days")
    parser.add_argument(
        "--form", action="append", choices=FORMATS, help="output format; repeatable"
    )
    parser.add_argument("--seed", type=int, default=42, help="random seed")
    options = parser.parse_args()
    fleet = Fleet(
        options.users,
        options.days,
        options.training,
        options.rate,
        options.attacked,
        options.seed,
        options.noisy,
    )
    writer = Writer(fleet, options.into, options.form or ["json"], options.copies)
    writer.write()
    counts, incidents = writer.events, len(fleet.incidents) * options.copies
    print(f"{counts['training']} training events, {counts['scored']} events to score,")
    print(f"{len(writer.labels)} of them in {incidents} incidents.")


if __name__ == "__main__":
    main()
