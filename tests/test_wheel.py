"""The wheel runs both lessons in a fresh environment without torch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from test_lessons import ALL_USERS, ONE_USER

ROOT = Path(__file__).parents[1]
NO_INDEX = re.compile(
    r"No matching distribution|Could not find a version|connection", re.IGNORECASE
)


def pip(*words):
    """Run pip. Skip the test if pip cannot find or download a package."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip(f"pip cannot reach a package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path):
    """Install the wheel into a fresh environment. Return a function that runs a command there."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("morpheus_dfp-*.whl")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment"], check=True
    )
    scripts = tmp_path / "environment" / "bin"
    pip("--python", scripts / "python", "install", "--quiet", "--no-compile", wheel)
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "data")
    path = os.pathsep.join([str(scripts), os.environ["PATH"]])
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command):
        return subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=tmp_path,
            env={**variables, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# One test, so that the wheel is built and installed once, whatever the number of test workers.
def test_the_wheel_runs_both_lessons_without_torch(run, tmp_path):
    assert "No module named 'torch'" in run("python -c 'import torch'").stderr

    version = run("python -c 'import morpheus; print(morpheus.__version__)'").stdout.strip()
    assert re.fullmatch(r"\d+\.\d+.*", version)
    assert run("morpheus --version").stdout.split()[-1] == version

    for lesson, events in ((ALL_USERS, 1_161), (ONE_USER, 847)):
        done = run(lesson)
        assert done.returncode == 0, done.stderr
        output = pl.read_csv(tmp_path / "data" / "output" / "output.csv")
        assert output["ae_anomaly_score"].count() == events

    done = run(ONE_USER.replace("--seed 42", "--model=reference"))
    assert done.returncode == 2
    assert "`pip install 'morpheus-dfp[torch]'`" in done.stderr
