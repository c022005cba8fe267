"""Command lines of NVIDIA Morpheus run unchanged, as docs/compatibility.md says."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from itertools import groupby
from pathlib import Path

import pytest

from golden import inputs
from morpheus.cli.reference import UpstreamCommand, read_upstream_commands

COMMANDS = read_upstream_commands()
GROUPS = {
    name: list(commands)
    for name, commands in groupby(COMMANDS, lambda command: command.name.partition(":")[0])
}
"""Command lines that follow each other: the second one loads models of the first."""
DATA = Path(__file__).parents[2] / "examples" / "data"
USERS = ("role-g", "user123")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like NVIDIA Morpheus's repository, with logs of our own."""
    folder = tmp_path_factory.mktemp("upstream")
    sets = folder / "models" / "datasets"
    for part, source in (("validation", "input"), ("training", "training")):
        (sets / f"{part}-data").mkdir(parents=True)
        for user in USERS:
            log = DATA / f"{source}-data" / f"{user}.csv"
            for name in (f"hammah-{user}-{part}-data", f"dfp-cloudtrail-{user}-{part}-data-input"):
                shutil.copy(log, sets / f"{part}-data" / f"{name}.csv")
    output = "dfp-cloudtrail-role-g-validation-data-output.csv"
    shutil.copy(DATA / "input-data" / "role-g.csv", sets / "validation-data" / output)
    for name, source in (("input_glob1", "input"), ("train_glob1", "training")):
        _rename_user(DATA / f"{source}-data" / "user123.csv", folder / f"{name}.csv")
    made = tmp_path_factory.mktemp("made")
    inputs.build(made)
    examples = folder / "examples" / "data" / "dfp"
    for kind, log in (("azure", "signins.json"), ("duo", "authentications.json")):
        for part, name in (("inference", log), ("training", "training.jsonl.gz")):
            (examples / f"{kind}-{part}-data").mkdir(parents=True)
            # The examples name `*.json`. What is gzip is recognised by its first bytes.
            shutil.copy(made / kind / name, examples / f"{kind}-{part}-data" / "log.json")
    (folder / "common").symlink_to(folder)
    return folder


def _rename_user(source: Path, target: Path) -> None:
    """Copy a log to one with a column `user_col`, in which the user is called user321."""
    with source.open(newline="") as old, target.open("w", newline="") as new:
        rows = csv.reader(old)
        writer = csv.writer(new)
        writer.writerow([*next(rows), "user_col"])
        writer.writerows([*row, "user321"] for row in rows)


@pytest.mark.parametrize("name", GROUPS)
def test_command_lines_of_nvidia_morpheus_run_unchanged(
    name: str, root: Path, warm_morpheus: Path
) -> None:
    for file in ("results.json", "out.csv"):  # these commands do not overwrite
        (root / file).unlink(missing_ok=True)
    for command in GROUPS[name]:
        check_that_it_runs(command, root, warm_morpheus.parent)


def check_that_it_runs(command: UpstreamCommand, root: Path, scripts: Path) -> None:
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    # Only /common, a folder of a container, cannot be made here.
    line = command.line.replace("=/common/", f"={root}/common/")
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", line],
        cwd=root,
        env={**os.environ, "PATH": path, "MORPHEUS_ROOT": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    written = root / line.rpartition("--filename=")[2].split()[0].strip('"').replace(
        "${MORPHEUS_ROOT}/", ""
    )
    shown = done.stdout + done.stderr
    assert "Error" not in shown
    header, *rows = written.read_text().splitlines()
    assert rows, done.stderr
    assert "ae_anomaly_score" in header


def test_the_commands_are_those_that_people_copy() -> None:
    origins = {command.origin.rpartition("/")[2] for command in COMMANDS}
    assert origins == {
        "README.md",
        "morpheus_quickstart_guide.md",
        "test_cli.py",
        "val-run-pipeline.sh",
    }
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)
