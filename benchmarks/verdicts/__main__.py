"""Play the analyst: `python benchmarks/verdicts [--seeds S ...]`, or `make verdicts`.

Generates companies with one user of much benign variety, judges six of that user's incidents of the
first half as expected, makes suppressions of these verdicts, and scores all days with and without
them. It prints how many of the user's benign incidents are left, and whether a planted one is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from engineer.journey import Bucket  # noqa: E402 - the line above finds it
from figures.machine import described  # noqa: E402 - the same
from figures.table import Table  # noqa: E402 - the same
from speed.meter import MORPHEUS  # noqa: E402 - the same

SEEDS = (1, 2, 3, 4, 5)
DAYS, BUDGET, VERDICTS = 84, 1.5, 6
"""Days of a company, half of them for training; incidents per day; number of verdicts."""
NOISY = "person-00000"
"""Name of the user with much benign variety."""
COLUMNS = ("actor", "day", "incident_id", "incident_severity", "risk", "top_columns", "eventTime")


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Play the analyst.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="one company each")
    given = parser.parse_args()
    table = Table(
        f"{VERDICTS} verdicts on a noisy user",
        [
            "seed",
            *("benign incidents, before", "after", "fall"),
            *("of the second half, before", "after", "planted incidents, before", "lost"),
            "incidents of others lost",
        ],
        note="Incidents of all scored days, by suppressions of verdicts on the first half of them. "
        "Planted incidents are those of all users, the noisy one included.",
    )
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as folder:
            table.add(seed, *measure(Path(folder), seed))
    print(table.markdown())
    print(f"{described()}. Mean load in the last minute: {os.getloadavg()[0]:.1f}.")


def measure(folder: Path, seed: int) -> list[str | int]:
    """Return the figures of one company."""
    options = ("--days", str(DAYS), "--noisy", "1")
    bucket = Bucket.generate(folder / "company", 50, seed, *options)
    half = link_first_half(bucket.logs / "scored", folder / "first")
    history = bucket.logs / "training"
    detect = ["detect", folder / "first", "--history", history, "--alerts_per_day", BUDGET]
    morpheus(*detect, "--out", folder / "out")
    alerts = read_alerts(folder / "out" / "alerts.jsonl", bucket)
    write_verdicts(alerts, half, folder / "verdicts.json")
    # It ends with 1 if a verdict leads to no suppression.
    suppress = ["tools", "suppress", folder / "verdicts.json", "--preview", folder / "out"]
    suppress += ["--userid_column_name", "@actor", "--filename", folder / "rules.toml"]
    suppress += ["--replay_glob", folder / "first"]
    suppress += ["--pretrained_filename", folder / "out" / "models"]
    morpheus(*suppress, ok=(0, 1))
    before = Scored.of(folder, bucket, half)
    after = Scored.of(folder, bucket, half, "--suppressions", folder / "rules.toml")
    fall = 1 - len(after.benign) / max(len(before.benign), 1)
    return [
        *(len(before.benign), len(after.benign), f"{fall:.0%}"),
        *(len(before.later), len(after.later)),
        *(len(before.planted), len(before.planted - after.planted)),
        len(before.others - after.others),
    ]


@dataclass(frozen=True)
class Scored:
    """The incidents of all scored days.

    Attributes:
        benign: Benign incidents of the noisy user.
        later: Those of the second half.
        planted: Planted incidents that were found.
        others: Incidents of other users.
    """

    benign: set[str]
    later: set[str]
    planted: set[str]
    others: set[str]

    @classmethod
    def of(cls, folder: Path, bucket: Bucket, half: str, *filtering: object) -> Scored:
        """Score all days with the fingerprints of the first half's run."""
        file = folder / f"alerts-{len(filtering)}.jsonl"
        morpheus(
            *("run", "pipeline-ae", "--userid_column_name=@actor"),
            *("from-cloudtrail", f"--input_glob={bucket.logs / 'scored'}"),
            *("train-ae", f"--pretrained_filename={folder / 'out' / 'models'}"),
            *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "explain"),
            *("filter", f"--alerts_per_day={BUDGET}", *filtering),
            *("serialize", "to-file", f"--filename={file}"),
        )
        alerts = read_alerts(file, bucket)
        mine = alerts.filter(pl.col("actor").str.starts_with(NOISY))
        bad = mine.filter(pl.col("planted").is_not_null())["incident_id"].unique()
        benign = mine.filter(~pl.col("incident_id").is_in(bad.to_list()))
        others = alerts.filter(~pl.col("actor").str.starts_with(NOISY))
        return cls(
            set(benign["incident_id"]),
            set(benign.filter(pl.col("day") >= half)["incident_id"]),
            set(alerts["planted"].drop_nulls()),
            set(others["incident_id"]),
        )


def link_first_half(scored: Path, folder: Path) -> str:
    """Link the first half of the scored days into a folder; return the first day after it."""
    days = {path.parent for path in scored.rglob("*.json.gz")}
    dates = sorted({"-".join(day.parts[-3:]) for day in days})
    half = dates[len(dates) // 2]
    for day in days:
        if "-".join(day.parts[-3:]) < half:
            link = folder / day.relative_to(scored)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(day.resolve())
    return half


def read_alerts(file: Path, bucket: Bucket) -> pl.DataFrame:
    """Read alerts, with the day and the planted incident of each event."""
    rows = pl.read_ndjson(file, infer_schema_length=None)
    return rows.with_columns(
        pl.col("eventTime").str.slice(0, 10).alias("day"),
        pl.col("eventID").replace_strict(bucket.planted, default=None).alias("planted"),
    )


def write_verdicts(alerts: pl.DataFrame, made: str, file: Path) -> None:
    """Judge the most severe benign incidents of the noisy user as expected."""
    mine = alerts.filter(pl.col("actor").str.starts_with(NOISY))
    incidents = [rows for _, rows in mine.group_by("incident_id", maintain_order=True)]
    benign = [rows for rows in incidents if rows["planted"].null_count() == rows.height]
    benign.sort(key=lambda rows: (-rows["incident_severity"].max(), rows["day"][0]))  # type: ignore[operator] # a number
    verdicts = [judge(rows) for rows in benign[:VERDICTS]]
    content = {"format": "morpheus-verdicts", "version": 1, "made": f"{made}T00:00:00Z"}
    file.write_text(json.dumps(content | {"verdicts": verdicts}), encoding="utf-8")


def judge(rows: pl.DataFrame) -> dict[str, object]:
    """Return the verdict on an incident, as the report page exports it."""
    worst = rows.sort("risk", descending=True).row(0, named=True)
    columns = [{"column": name, "value": worst[name]} for name in worst["top_columns"].split(", ")]
    return {
        "incident": worst["incident_id"],
        "user": worst["actor"],
        "verdict": "expected",
        "note": "",
        "start": rows["eventTime"].min(),
        "end": rows["eventTime"].max(),
        "events": rows.height,
        "columns": columns,
    }


def morpheus(*words: object, ok: tuple[int, ...] = (0,)) -> None:
    """Run the command.

    Raises:
        RuntimeError: It failed.
    """
    command = [*MORPHEUS, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode not in ok:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
