"""Write the logs of a made-up company: `python make_fleet.py --into fleet --users 50`.

Under the folder lie `training` and `scored`, each with the form asked for, and `labels.csv`:

    json/training/AWSLogs/.../*.json.gz     CloudTrail's own form, in AWS's folders
    parquet/training/2025-03-03.parquet     the feature columns, flat; csv likewise
    labels.csv                              which events belong to which incident, and of what kind

The same arguments write the same bytes. `--copies` repeats the scored days, each copy whole weeks
after the last, with new identifiers: a cheap way to ten million events.
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

FORMS = ("json", "csv", "parquet")
LABELS = ("eventID", "kind", "incident", "user")
MOST_RECORDS = 5_000
"""Records in one log file."""
PACKING = 1
"""Level of compression: one fifth larger than the most, and several times faster."""


@dataclass
class Writer:
    """Writes a fleet's days.

    Attributes:
        fleet: Whose.
        into: The folder.
        forms: Which forms to write.
        copies: How often the scored days are there in the end.
        events: Events written so far, in training and scored.
        labels: Rows of the labels so far.
    """

    fleet: Fleet
    into: Path
    forms: Sequence[str] = FORMS
    copies: int = 1
    events: dict[str, int] = field(default_factory=lambda: {"training": 0, "scored": 0})
    labels: list[tuple[str, str, int, str]] = field(default_factory=list)

    def write(self) -> None:
        """Write all days, and the labels."""
        split = FIRST_DAY + timedelta(days=self.fleet.training)
        for day, lived in self.fleet.by_day():
            records = [record(logged, self.fleet.members) for logged in lived]
            part = "training" if day < split else "scored"
            for copy in range(self.copies if part == "scored" else 1):
                self._write(part, day, copy, lived, records)
        self.into.mkdir(parents=True, exist_ok=True)
        with (self.into / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(LABELS)
            table.writerows(self.labels)

    def _write(
        self, part: str, day: date, copy: int, lived: list[Logged], records: list[Record]
    ) -> None:
        ids = identifiers(2 * len(records), f"{self.fleet.seed} {day} {copy}")
        moved = later(day, copy, self.fleet.days - self.fleet.training)
        self.events[part] += len(records)
        self.labels += self._labelled(lived, ids, copy)
        if "json" in self.forms:
            self._native(self.into / "json" / part, moved, records, ids)
        if set(self.forms) & {"csv", "parquet"} and records:
            frame = pl.DataFrame(
                rows(records, moved, ids), dict.fromkeys(FEATURES, pl.String), orient="row"
            )
            self._flat(frame, part, moved)

    def _native(self, folder: Path, day: date, records: list[Record], ids: Sequence[str]) -> None:
        order = sorted(range(len(records)), key=lambda n: records[n].region)
        for region, group in groupby(order, key=lambda n: records[n].region):
            numbers = list(group)
            for first in range(0, len(numbers), MOST_RECORDS):
                slice_ = numbers[first : first + MOST_RECORDS]
                chosen = [records[n] for n in slice_]
                named = [one for n in slice_ for one in ids[2 * n : 2 * n + 2]]
                path = folder / place(region, day, chosen[-1].clock, first)
                path.parent.mkdir(parents=True, exist_ok=True)
                packed = igzip.compress(document(chosen, day, named), PACKING, mtime=0)
                path.write_bytes(packed)

    def _flat(self, frame: pl.DataFrame, part: str, day: date) -> None:
        for form in set(self.forms) & {"csv", "parquet"}:
            path = self.into / form / part / f"{day}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if form == "csv":
                frame.write_csv(path)
            else:
                frame.write_parquet(path, compression="zstd", compression_level=1)

    def _labelled(
        self, lived: list[Logged], ids: Sequence[str], copy: int
    ) -> Iterator[tuple[str, str, int, str]]:
        incidents, members = self.fleet.incidents, self.fleet.members
        for n, logged in enumerate(lived):
            if logged.incident is not None:
                number = logged.incident + copy * len(incidents)
                kind = incidents[logged.incident].kind
                yield ids[2 * n], kind, number, members[logged.member].name


def place(region: str, day: date, clock: bytes, number: int) -> Path:
    """Where AWS would put a log file."""
    stamp = f"{day:%Y%m%d}T{clock[1:3].decode()}{clock[4:6].decode()}Z"
    folder = Path("AWSLogs", ACCOUNT, "CloudTrail", region, f"{day:%Y/%m/%d}")
    return folder / f"{ACCOUNT}_CloudTrail_{region}_{stamp}_{number:016d}.json.gz"


def identifiers(count: int, seed: str) -> list[str]:
    """UUIDs."""
    digits = Random(f"ids {seed}").randbytes(16 * count).hex()  # noqa: S311 - made-up logs, not secrets
    return [
        f"{one[:8]}-{one[8:12]}-4{one[13:16]}-a{one[17:20]}-{one[20:]}"
        for one in (digits[at : at + 32] for at in range(0, len(digits), 32))
    ]


def later(day: date, copy: int, days: int) -> date:
    """The day of a copy: whole weeks later, so that weekdays stay."""
    return day + timedelta(weeks=copy * -(-days // 7))


def main() -> None:
    """Read the command line and write the logs."""
    parser = argparse.ArgumentParser(description="Write the logs of a made-up company.")
    parser.add_argument("--into", type=Path, required=True, help="folder to write into")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--training", type=int, default=42, help="days without an incident")
    parser.add_argument("--rate", type=float, default=22.0, help="events of a user and day, about")
    parser.add_argument("--attacked", type=float, default=0.2, help="share of users attacked")
    parser.add_argument("--copies", type=int, default=1, help="of the scored days")
    parser.add_argument("--form", action="append", choices=FORMS, help="repeat for more than json")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    fleet = Fleet(given.users, given.days, given.training, given.rate, given.attacked, given.seed)
    writer = Writer(fleet, given.into, given.form or ["json"], given.copies)
    writer.write()
    print(f"{writer.events['training']} events to learn from, {writer.events['scored']} to score, ")
    print(f"{len(writer.labels)} of them in {len(fleet.incidents) * given.copies} incidents.")


if __name__ == "__main__":
    main()
