"""Hostile inputs of every kind: a message or a result, never a traceback, and all is accounted for.

`make fuzz` tries 2,000 inputs; N=10000 SEED=7 choose how many, and which.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from click.testing import CliRunner

from fuzz import runner
from fuzz.inputs import KINDS, USER, make_good_record
from fuzz.runner import Outcome, serve
from morpheus.cli.main import morpheus

N, SEED = int(os.environ.get("N", "100")), os.environ.get("SEED", "1")
NO_ANSWER_SECONDS = 120
"""Wall time after which a process hangs for sure. Machines are shared; CPU time counts before."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")


@pytest.fixture(scope="module", autouse=True)
def _templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model folder and a state file, which inputs copy and damage."""
    folder = tmp_path_factory.mktemp("templates")
    records = [make_good_record(number) | {"awsRegion": f"r{number % 3}"} for number in range(40)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"]
    words += [f"--state={folder}/state.db", "from-cloudtrail", f"--input_glob={folder}/a.jsonl"]
    words += ["train-ae", f"--train_data_glob={folder}/a.jsonl", "--train_min_history=10"]
    words += ["--train_epochs=1", f"--models_output_filename={folder}/models", "preprocess"]
    words += ["inf-pytorch", "add-scores", "serialize", "to-file", f"--filename={folder}/out.csv"]
    assert CliRunner().invoke(morpheus, words).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUZZ_MODELS", f"{folder}/models")
        patch.setenv("FUZZ_STATE", f"{folder}/state.db")
        yield


@contextmanager
def child() -> Iterator[Connection]:
    """A process that runs inputs."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        with ours:
            yield ours
    finally:
        process.join(5)
        process.kill()
        process.join()


def test_an_input_is_not_charged_for_what_the_process_held_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "MAX_MB", 300)
    held = bytearray(b"x") * 400_000_000
    outcome = runner.run_seed("1 1", tmp_path)
    assert (outcome.problems, outcome.peak_mb < 300, len(held)) == ([], True, 400_000_000)


@pytest.mark.parametrize("content", [b"a,b\n", b"\xff"])
def test_reading_an_output_leaves_the_limit_of_cells_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.csv").write_bytes(content)
    before = csv.field_size_limit()
    with suppress(UnicodeDecodeError):
        runner.read_output()
    assert csv.field_size_limit() == before


def run_all(folder: Path) -> Iterator[Outcome]:
    number = 0
    while number < N:
        with child() as connection:
            while number < N:
                seed, place = f"{SEED} {number}", folder / str(number)
                place.mkdir()
                number += 1
                connection.send((seed, place))
                try:
                    if not connection.poll(NO_ANSWER_SECONDS):
                        yield Outcome(seed, problems=["it hangs"])
                        break
                    yield connection.recv()
                except EOFError:
                    yield Outcome(seed, problems=["the process died"])
                    break


def report(text: str) -> None:
    """Show text if the test fails."""
    sys.stdout.write(f"{text}\n")


def test_hostile_inputs_give_a_message_or_a_result_and_all_is_accounted_for(
    tmp_path: Path,
) -> None:
    outcomes = list(run_all(tmp_path))
    assert len(outcomes) == N
    failed = [each for each in outcomes if each.problems]
    for each in failed:
        report(f"\n== {each.kind}: python tests/fuzz/runner.py '{each.seed}' FOLDER")
        report("\n".join(problem[-3000:] for problem in each.problems))
    codes = Counter((each.kind, each.exit_code) for each in outcomes)
    slowest = max(outcomes, key=lambda each: each.seconds)
    largest = max(outcomes, key=lambda each: each.peak_mb)
    report(f"{codes}\nslowest: {slowest}\nlargest: {largest}")
    assert not failed, f"{len(failed)} of {N} inputs: {[each.seed for each in failed]}"
    if N >= 100:
        assert {kind for kind, _ in codes} == set(KINDS)
    if N >= 1000:  # of fewer, all of the rarest kind can be refused
        assert {(kind, 0) for kind in KINDS} <= codes.keys()
