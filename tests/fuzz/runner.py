"""Runs the command line on hostile inputs in a process of its own, and checks what it did.

`python tests/fuzz/runner.py "1 17" folder` repeats number 17 of seed 1 in a folder.
"""

from __future__ import annotations

import csv
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.inputs import GOOD_USER, USER, Case, make_case
from morpheus.cli.main import morpheus
from morpheus.core.batch import RunMetrics
from morpheus.pipeline import Pipeline

MAX_SECONDS, MAX_MB = 10, 1000
ADDRESS_SPACE = 16 << 30
"""Limit of the process, so that a mistake does not take the memory of the machine."""


@dataclass
class Outcome:
    """What happened with one input.

    Attributes:
        seed: Its seed.
        kind: Its kind.
        exit_code: Exit code of the command.
        problems: What is wrong; empty if all is well.
        seconds: CPU time.
        peak_mb: Most memory that it took, beyond what the process had before.
    """

    seed: str
    kind: str = ""
    exit_code: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: int = 0


def serve(connection: Connection) -> None:
    """Answer seeds and folders with outcomes, until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    while True:
        try:
            seed, folder = connection.recv()
        except EOFError:
            return
        connection.send(run_seed(seed, folder))


def run_seed(seed: str, folder: Path) -> Outcome:
    """Make an input in an empty folder, run the command there, and check it."""
    outcome = Outcome(seed)
    os.chdir(folder)
    try:
        case = make_case(seed, folder)
        outcome.kind = case.kind
        reset_peak()
        before, held = cpu_seconds(), peak_mb()
        run_case(case, outcome)
        # What earlier inputs have left in the process is not taken by this one.
        outcome.seconds, outcome.peak_mb = cpu_seconds() - before, peak_mb() - held
    except BaseException:  # noqa: BLE001 - reported with the seed
        outcome.problems.append(f"the fuzzer failed: {traceback.format_exc()}")
    if outcome.seconds > MAX_SECONDS:
        outcome.problems.append(f"it took {outcome.seconds:.1f} s of CPU time")
    if outcome.peak_mb > MAX_MB:
        outcome.problems.append(f"it took {outcome.peak_mb} MB")
    return outcome


def run_case(case: Case, outcome: Outcome) -> None:
    words = ["run", "--num_threads=1", "pipeline-ae", *case.options, *case.source, *case.stages]
    words += ["serialize", "to-file", "--filename=out.csv"]
    with captured_metrics() as runs:
        result = CliRunner().invoke(morpheus, words)
    outcome.exit_code, said = result.exit_code, result.stderr
    problems = outcome.problems
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        problems.append("".join(traceback.format_exception(result.exception)))
    if "Traceback" in said or "bug in morpheus" in said:
        problems.append(said)
    if result.exit_code not in {0, 1, 2}:
        problems.append(f"exit code {result.exit_code}: {said}")
    if result.exit_code and "Error: " not in said:
        problems.append(f"no message: {said}")
    left = [path.name for path in Path().iterdir() if path.name.endswith(".part")]
    if result.exit_code and (left or Path("out.csv").exists()):
        problems.append(f"files stay after a failure: {left} {said}")
    if result.exit_code == 0:
        problems += check_account(case, runs[-1], said)


@contextmanager
def captured_metrics() -> Iterator[list[RunMetrics]]:
    """Give the metrics of the runs in the block."""
    runs: list[RunMetrics] = []
    run = Pipeline.run

    def wrapper(*args: object, **named: object) -> RunMetrics:
        metrics = run(*args, **named)  # type: ignore[arg-type] # as given
        runs.append(metrics)
        return metrics

    with patch.object(Pipeline, "run", wrapper):
        yield runs


def check_account(case: Case, metrics: RunMetrics, said: str) -> Iterator[str]:
    """Check that every record is written or counted, and that the summary names each loss."""
    stats, written = metrics.input, metrics.users.total()
    if stats.accepted != written + metrics.filtered:
        yield f"read {stats}, but {written} written and {metrics.filtered} filtered: {said}"
    rows = read_output()
    if len(rows) - 1 != written:
        yield f"{len(rows) - 1} rows, but {written} events are written: {said}"
    left_out = stats.read - stats.accepted
    if left_out and "left out" not in said:
        yield f"{left_out} records are left out, and the summary does not say so: {said}"
    if case.planted is not None:
        at = rows[0].index(USER) if USER in rows[0] else -1
        found = sum(row[at] == GOOD_USER for row in rows[1:])
        if found < case.planted:
            yield f"{found} of {case.planted} good records are written: {said}"


def read_output() -> list[list[str]]:
    """Read what the command wrote, however large its cells are."""
    limit = csv.field_size_limit(1 << 30)
    try:
        with Path("out.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    finally:
        # It is one limit for the process. With this one, hostile cells take gigabytes.
        csv.field_size_limit(limit)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{run_seed(sys.argv[1], Path(sys.argv[2]).resolve())}\n")
