"""From a wheel and a bucket of logs to the first incidents, as a person would go."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from speed.meter import Run, run

ROOT = Path(__file__).parents[2]
PIP = "-m", "pip", "--quiet", "--disable-pip-version-check"
ROW = re.compile(
    r"^\d+ \w+ +(?P<user>\S+) +(?P<day>\d{4}-\d\d-\d\d) +[\d,]+ +(?P<reason>.*)$", re.MULTILINE
)
"""An incident in the terminal."""


@dataclass(frozen=True)
class Bucket:
    """Generated logs, with known incidents.

    Attributes:
        logs: Folder of the logs.
        planted: The incident of each event of an incident.
    """

    logs: Path
    planted: dict[str, str]

    @classmethod
    def generate(cls, folder: Path, users: int, seed: int, *options: str) -> Bucket:
        """Write the logs of a company in which incidents are planted.

        Args:
            folder: Folder to write to.
            users: Number of users.
            seed: Random seed.
            options: More options of `examples/make_fleet.py`.
        """
        script = str(ROOT / "examples" / "make_fleet.py")
        words = ["--into", str(folder), "--users", str(users), "--seed", str(seed), *options]
        run([sys.executable, script, "--form=json", *words])
        with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
            planted = {row["eventID"]: row["incident"] for row in csv.DictReader(file)}
        return cls(folder / "json", planted)


@dataclass(frozen=True)
class Installation:
    """A fresh environment with the wheel.

    Attributes:
        command: The command `morpheus`.
        cost: Cost of creating the environment and of `pip install`.
    """

    command: Path
    cost: Run

    @classmethod
    def make(cls, folder: Path) -> Installation:
        """Build the wheel, which is not timed, and install it into a new environment."""
        run([sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
        [wheel] = folder.glob("*.whl")
        environment = folder / "environment"
        made = run([sys.executable, "-m", "venv", str(environment)])
        installed = run([str(environment / "bin" / "python"), *PIP, "install", str(wheel)])
        cost = Run(
            made.wall + installed.wall,
            made.cpu + installed.cpu,
            max(made.peak, installed.peak),
            installed.shown,
        )
        return cls(environment / "bin" / "morpheus", cost)


@dataclass(frozen=True)
class Detected:
    """What `morpheus detect` has found.

    Attributes:
        cost: Cost of the command.
        shown: User and day of each incident in the terminal, in this order.
        first: Reason of the first one.
        found: Planted incidents among these.
    """

    cost: Run
    shown: list[tuple[str, str]]
    first: str
    found: set[str]

    @classmethod
    def run(cls, installation: Installation, bucket: Bucket, out: Path) -> Detected:
        """Run the command on a bucket."""
        words = ["detect", str(bucket.logs), "--out", str(out)]
        cost = run([str(installation.command), *words])
        rows = list(ROW.finditer(cost.shown))
        shown = [(row["user"], row["day"]) for row in rows]
        alerts = map(json.loads, (out / "alerts.jsonl").read_text(encoding="utf-8").splitlines())
        found = {
            bucket.planted[alert["eventID"]]
            for alert in alerts
            if (alert["actor"], alert["eventTime"][:10]) in shown
            and alert["eventID"] in bucket.planted
        }
        return cls(cost, shown, rows[0]["reason"] if rows else "", found)
