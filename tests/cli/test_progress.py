"""Progress on a terminal: the real command, on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from morpheus.cli.output import ProgressLine, Terminal
from morpheus.core.batch import Step
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe

from .conftest import Install

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
COMMAND = [sys.executable, "-m", "morpheus"]
STEPS = (
    "Finding files",
    "Counting events",
    "Reading the history",
    "Reading",
    "Sorting events by user",
    "Preparing",
    "Training and scoring",
    "Scoring",
    "Processing",
    "Ranking events",
    "Writing",
)
DRAWN = re.compile(rf"\r\x1b\[K((?:{'|'.join(STEPS)}): [^\r\n\x1b]+)")
SLOW = '''
    """A stage for the tests of progress."""

    import time
    from dataclasses import dataclass

    from morpheus.core.batch import Batch
    from morpheus.core.stage import Transform, option
    from morpheus.errors import UsageError


    @dataclass(frozen=True)
    class Slow(Transform):
        """Wait at each batch."""

        name = "slow"
        takes = (Batch,)
        seconds: float = option(0.7, "Time to wait.")
        fails: bool = option(False, "Fail after that.", flag=True)

        def process(self, batch, state):
            """Wait."""
            time.sleep(self.seconds)
            if self.fails:
                raise UsageError("It was slow.")
            yield batch
'''


@dataclass
class Shown:
    """What a command has written to a terminal, and its exit code."""

    text: str
    code: int

    @property
    def progress(self) -> list[str]:
        """The lines of progress, as they were drawn."""
        return DRAWN.findall(self.text)

    @property
    def screen(self) -> list[str]:
        """The lines that are left at the end."""
        return list(render(self.text))


def render(text: str) -> Iterator[str]:
    """Yield the lines that a terminal shows, if nothing moves the cursor to another line."""
    line, at = "", 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            yield line.rstrip()
            line, at = "", 0
        elif part == "\r":
            at = 0
        elif part == "\x1b[K":
            line = line[:at]
        elif not part.startswith("\x1b"):
            line = line[:at].ljust(at) + part + line[at + len(part) :]
            at += len(part)
    yield line.rstrip()


@pytest.fixture
def folder(tmp_path: Path, install: Install) -> Path:
    """A folder with the logs of the lessons, and a slow stage."""
    install("slow_package", SLOW, {"slow": "slow_package:Slow"})
    shutil.copytree(EXAMPLES, tmp_path / "data", ignore=shutil.ignore_patterns("output"))
    return tmp_path


def show(
    folder: Path, *words: str, columns: int = 200, press: str = "", **environment: str
) -> Shown:
    """Run the command on a terminal.

    Args:
        folder: Where it runs.
        words: The command line.
        columns: Width of the terminal.
        press: Key to press when the first line of progress of the stages is drawn.
        environment: More variables.
    """
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    known = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables = {**known, "TERM": "xterm", "PYTHONPATH": path, **environment}
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
    ) as process:
        os.close(theirs)
        text = ""
        for part in read_parts(ours):
            text += part
            if press and re.search("(Processing|scoring): ", text):
                os.write(ours, press.encode())
                press = ""
        os.close(ours)
    return Shown(text.replace("\r\n", "\n"), process.returncode)


def read_parts(descriptor: int) -> Iterator[str]:
    try:
        while part := os.read(descriptor, 1 << 16):
            yield part.decode()
    except OSError:  # on Linux, when the other side is closed
        return


def run_words(*stages: str) -> tuple[str, ...]:
    return (
        *("run", "--num_threads=1", "pipeline-ae"),
        "--userid_column_name=userIdentitysessionContextsessionIssueruserName",
        *("from-cloudtrail", "--input_glob=data/input-data/*.csv"),
        *stages,
    )


TRAINED = (
    *("train-ae", "--train_data_glob=data/training-data/*.csv", "--train_epochs=1"),
    *("preprocess", "inf-pytorch", "add-scores", "serialize"),
)


def test_detect_shows_its_steps_and_leaves_only_its_results(folder: Path) -> None:
    plain = show(folder, "--no-progress", "detect", "data", "--out=out")
    shutil.rmtree(folder / "out")
    drawn = show(folder, "detect", "data", "--out=out")
    assert (plain.code, drawn.code) == (0, 0)
    assert plain.progress == []
    assert drawn.progress != []
    assert drawn.screen == plain.screen


def test_a_step_shows_what_is_done_how_fast_and_the_time_left(folder: Path) -> None:
    shown = show(folder, *run_words(*TRAINED, "slow", "to-file", "--filename=out.csv"))
    assert shown.code == 0
    scoring = [line for line in shown.progress if line.startswith("Training and scoring")]
    assert re.fullmatch(r"Training and scoring: 0 of 2 users, 00:0\d", scoring[0])
    assert re.fullmatch(
        r"Training and scoring: 1 of 2 users, 314 events, [\d,]+ events/s, 00:0\d left", scoring[-1]
    )
    names = [line.partition(" ")[0] for line in shown.screen if line]
    assert names[-3:] == ["Seconds", "Results", "Next"]
    assert not any(step in line for step in STEPS for line in shown.screen if ": " in line)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_without_a_terminal_nothing_is_shown(folder: Path, term: str) -> None:
    done = subprocess.run(
        [*COMMAND, *run_words(*TRAINED, "to-file", "--filename=out.csv")],
        cwd=folder,
        env={**os.environ, "TERM": term},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not any(f"{step}:" in done.stderr for step in STEPS)


@pytest.mark.parametrize("environment", [{}, {"MORPHEUS_PROGRESS": "0"}])
def test_progress_can_be_turned_off(folder: Path, environment: dict[str, str]) -> None:
    words = () if environment else ("--no-progress",)
    shown = show(folder, *words, *run_words("slow"), **environment)
    assert shown.code == 0
    assert "\x1b[K" not in shown.text


def test_no_color_gives_no_colour_and_a_dumb_terminal_no_code_at_all(folder: Path) -> None:
    words = run_words("slow", "--seconds=1.2")
    colours = re.compile(r"\x1b\[[\d;]*m")
    plain = show(folder, *words, NO_COLOR="1")
    assert plain.progress != []
    assert not colours.search(plain.text)
    dumb = show(folder, *words, TERM="dumb")
    assert "\x1b" not in dumb.text
    assert "\r" not in dumb.text
    assert "Processing ..." in dumb.screen


def test_only_warnings_are_yellow_and_only_failures_are_red(folder: Path) -> None:
    words = run_words(*TRAINED, "to-file", "--filename=out.csv", "--overwrite")
    ordinary = show(folder, "--no-progress", *words[:3], "--viz_file=a.dot", *words[3:])
    assert ordinary.code == 0
    assert "\x1b[" not in ordinary.text
    warned = show(folder, "--no-progress", *words[:3], "--userid_filter=role_g", *words[3:])
    assert re.search(r"\x1b\[33mWarning: --userid_filter: no event ", warned.text)
    assert "\x1b[31m" not in warned.text
    failed = show(folder, "--no-progress", *run_words("slow", "--fails"))
    assert "\x1b[31mError: It was slow.\x1b[0m" in failed.text
    assert "\x1b[33m" not in failed.text


@pytest.mark.parametrize("sink", [("to-console",), ("to-file", "--filename=-")])
def test_rows_on_the_same_terminal_stay_whole(folder: Path, sink: tuple[str, ...]) -> None:
    words = run_words(*TRAINED, "slow", *sink)
    screens = [show(folder, *words, **more).screen for more in ({}, {"MORPHEUS_PROGRESS": "0"})]
    drawn, plain = ([line for line in screen if "Seconds" not in line] for screen in screens)
    assert len(plain) > 1161
    assert drawn == plain


def test_a_monitor_takes_the_place_of_the_line(folder: Path) -> None:
    shown = show(folder, *run_words("slow", "monitor"))
    assert shown.code == 0
    assert shown.progress == []
    assert "Progress[Complete]: 1161 messages" in shown.text


def test_the_line_is_narrower_than_the_terminal(folder: Path) -> None:
    shown = show(folder, *run_words("slow"), columns=30)
    assert max(map(len, shown.progress)) == 29


def test_ctrl_c_leaves_no_half_line(folder: Path) -> None:
    shown = show(folder, *run_words("slow", "--seconds=20"), press="\x03")
    assert shown.code == 130
    assert shown.progress != []
    stopping = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."
    assert [line for line in shown.screen if line][-1] == stopping
    assert not any("Processing" in line for line in shown.screen)


def test_an_error_leaves_no_half_line(folder: Path) -> None:
    shown = show(folder, *run_words("slow", "--fails"))
    assert shown.code == 2
    assert shown.progress != []
    assert [line for line in shown.screen if line][-1] == "Error: It was slow."
    assert not any("Processing" in line for line in shown.screen)


class Recorder(Terminal):
    """A terminal that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def write(self, text: str) -> None:
        """Keep a text."""
        self.texts.append(text)


def draw_all(times: Iterable[float], counts: Iterable[tuple[int, int]], total: int) -> list[str]:
    """Return what is drawn at some times, the first of which is the start of the step."""
    terminal, now = Recorder(), iter(times)
    line = ProgressLine(terminal, clock=lambda: next(now))
    current = iter(counts)
    line.begin(Step("Reading", lambda: next(current), "file", total))
    for _ in counts:
        line._draw()  # noqa: SLF001 - what its thread does at these times
    return [text.removeprefix("\r\x1b[K") for text in terminal.texts]


def test_the_time_left_falls_while_nothing_is_counted() -> None:
    counts = [(0, 0), (2, 100), (2, 100), (4, 200)]
    assert draw_all([0, 5, 10, 12, 20], counts, 8) == [
        "Reading: 0 of 8 files, 00:05",
        "Reading: 2 of 8 files, 100 events, 10 events/s, 00:30 left",
        "Reading: 2 of 8 files, 100 events, 10 events/s, 00:28 left",
        "Reading: 4 of 8 files, 200 events, 10 events/s, 00:20 left",
    ]


def list_steps(folder: Path, *, threads: int = 1, **options: object) -> list[tuple[Step, int, int]]:
    """The steps of a run on the lessons' data, each with its last counts."""
    user = "userIdentitysessionContextsessionIssueruserName"
    train = TrainAe(train_data_glob=str(folder / "data/training-data/*.csv"), train_epochs=1)
    stages = [
        FromCloudtrail(input_glob=str(folder / "data/input-data/*.csv"), **options),  # type: ignore[arg-type]  # any option
        *(train, Preprocess(), InfPytorch(), AddScores(), Serialize()),
        ToFile(str(folder / "out.csv"), overwrite=True),
    ]
    steps: list[Step] = []
    pipeline = Pipeline(stages, PipelineOptions(userid_column_name=user, num_threads=threads))
    pipeline.run(on_step=steps.append)
    return [(step, *step.count()) for step in steps]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_step_ends_with_all_its_units_and_events(folder: Path, threads: int) -> None:
    steps = list_steps(folder, threads=threads)
    assert [(step.name, step.unit, step.total, *counts) for step, *counts in steps] == [
        ("Finding files", "", None, 0, 0),
        ("Reading the history", "file", 2, 2, 4274),
        ("Reading", "file", 2, 2, 1161),
        ("Sorting events by user", "", None, 0, 0),
        ("Preparing", "", None, 0, 0),
        ("Training and scoring", "user", 2, 2, 1161),
        ("Ranking events", "", None, 0, 0),
        ("Writing", "output", 2, 2, 1161),
    ]
    assert {step.name for step, *_ in steps if step.prints} == {step.name for step, *_ in steps[5:]}


def test_an_input_without_end_has_neither_a_total_nor_a_time_left(folder: Path) -> None:
    steps = list_steps(folder, watch_directory=True, max_files=2, batch_timeout=0.1)
    [(step, _, events)] = [each for each in steps if each[0].name == "Watching for new files"]
    assert (step.unit, step.total, events) == ("", None, 1161)
    assert "Reading" not in {each[0].name for each in steps}
