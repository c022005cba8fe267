"""The wheel in a fresh environment without torch: both lessons, their notebooks, and `detect`."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbclient
import nbformat
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


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    [wheel] = folder.glob("morpheus_dfp-*.whl")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True
    )
    scripts = folder / "environment" / "bin"
    pip("--python", scripts / "python", "install", "--quiet", "--no-compile", wheel)
    return scripts


@pytest.fixture
def run(tmp_path, environment):
    """Return a function that runs a command in the environment."""
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "data")
    path = os.pathsep.join([str(environment), os.environ["PATH"]])
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


def add_kernel(folder, python):
    """Describe the kernel `another`, of a chosen Python; return the folder for JUPYTER_PATH."""
    place = folder / "kernels" / "another"
    place.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "another", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(kernel))
    return str(folder)


@pytest.mark.parametrize("own_kernel", [True, False], ids=["its kernel", "another kernel"])
def test_the_notebooks_of_the_wheel_find_the_command_anywhere(
    tmp_path, environment, monkeypatch, own_kernel
):
    """Neither is `morpheus` on the path, nor is the environment active, and names have blanks."""
    folder = tmp_path / "my lessons"
    subprocess.run([environment / "morpheus", "lessons", folder], check=True)
    plain = [part for part in os.environ["PATH"].split(os.pathsep) if not has_command(part)]
    monkeypatch.setenv("PATH", os.pathsep.join(plain))
    # The notebook tools of this environment, in which no morpheus is installed as a package there:
    # Python does not follow links (`.pth` files) in such folders.
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    base = Path(sys.base_prefix, "bin", "python3")
    python = environment / "python" if own_kernel else base
    monkeypatch.setenv("JUPYTER_PATH", add_kernel(tmp_path / "jupyter", python))
    for name in ("000_all_users.ipynb", "001_one_user.ipynb"):
        notebook = nbformat.read(folder / name, as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        client = nbclient.NotebookClient(
            notebook, kernel_name="another", timeout=120, resources=resources
        )
        client.execute()
        shown = "".join(
            output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
        )
        assert "Scored" in shown, shown


def has_command(folder):
    return Path(folder, "morpheus").exists()


def test_an_engineer_gets_from_the_wheel_and_a_bucket_to_the_planted_incidents(
    part, environment, tmp_path
):
    journey, meter = part("engineer.journey"), part("speed.meter")
    bucket = journey.Bucket.generate(tmp_path / "bucket", 12, 42, "--days=28", "--training=19")
    installation = journey.Installation(environment / "morpheus", meter.Run(0, 0, 0, ""))
    detected = journey.Detected.run(installation, bucket, tmp_path / "results")
    assert detected.first
    assert len(detected.shown) == len(set(detected.shown)) > 0
    sys.stdout.write(f"found: {len(detected.found)} of {len(set(bucket.planted.values()))}\n")
    assert 2 * len(detected.found) >= len(set(bucket.planted.values())) > 2
