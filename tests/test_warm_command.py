"""A command in a warm process does what it does in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = "eventTime,userIdentityaccountId\n2024-05-31T09:30:01Z,ann\n"
RUN = ("run", "pipeline-ae", "from-cloudtrail", "--input_glob=a.csv", "serialize", "to-file")


def run(folder: Path, *command: str | Path, **environment: str) -> tuple[int, str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "a.csv").write_text(LOG)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr.partition("Seconds")[0]


@pytest.mark.parametrize(
    "words",
    [("tools", "stages"), (*RUN, "--filename=b.csv"), ("run", "no-such-word"), ("run", "--no")],
)
def test_output_and_exit_code_are_those_of_a_process_of_its_own(
    words: tuple[str, ...], warm_morpheus: Path, tmp_path: Path
) -> None:
    own = run(tmp_path / "own", sys.executable, "-m", "morpheus", *words)
    for name in ("once", "again"):
        assert run(tmp_path / name, warm_morpheus, *words) == own
        for file in (tmp_path / "own").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


def test_the_environment_of_a_command_is_that_of_its_caller(
    warm_morpheus: Path, tmp_path: Path
) -> None:
    command = (warm_morpheus, *RUN, "--filename=b.csv", "--overwrite")
    code, _, said = run(tmp_path, *command, MORPHEUS_RUN_NUM_THREADS="none")
    assert (code, "MORPHEUS_RUN_NUM_THREADS" in said) == (2, True)
    assert run(tmp_path, *command)[0] == 0


def test_a_command_with_several_processes_closes_its_output(
    warm_morpheus: Path, tmp_path: Path
) -> None:
    rows = [f"2024-05-31T09:30:{n % 60:02}Z,user{n % 20},List{n % 3}" for n in range(1200)]
    header = "eventTime,userIdentityaccountId,eventName"
    (tmp_path / "many.csv").write_text("\n".join([header, *rows]))
    pipeline = ("pipeline-ae", "--userid_column_name=userIdentityaccountId", "from-cloudtrail")
    train = ("train-ae", "--train_data_glob=many.csv", "--train_epochs=1")
    scores = (*train, "preprocess", "inf-pytorch", "add-scores")
    out = ("serialize", "to-file", "--filename=b.csv")
    words = ("run", "--num_threads=2", *pipeline, "--input_glob=many.csv", *scores, *out)
    code, _, said = run(tmp_path, warm_morpheus, *words)
    assert code == 0, said
