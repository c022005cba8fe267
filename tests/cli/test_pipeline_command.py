from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheus import __version__
from morpheus.cli.main import (
    COMMANDS,
    LOG_LEVELS,
    TOOLS,
    LazyCommand,
    first_line,
    main,
    morpheus,
)

from .conftest import Run

AE = ("run", "pipeline-ae")


def test_a_run_announces_itself_on_stderr_and_ends_with_the_summary(pipeline_process: Run) -> None:
    done = pipeline_process(*AE, "from-names", "--who=ann", "--who", "bob", "fail")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[:3] == [
        "Configuring Pipeline via CLI",
        "C++ is disabled for AutoEncoder pipelines at this time.",
        "Starting pipeline via CLI... Ctrl+C to Quit",
    ]
    assert "Passed      2 events of 2 users" in done.stderr
    assert "\x1b" not in done.stderr


def test_debug_logs_columns_and_user_filter_in_nvidias_words(pipeline: Run, tmp_path: Path) -> None:
    (tmp_path / "columns.txt").write_text("eventName\nerrorCode\n")
    (tmp_path / "labels.txt").write_text("ae_anomaly_score\n")
    words = ("--columns_file=columns.txt", "--labels_file=labels.txt", "--userid_filter=ann")
    done = pipeline("--log_level=debug", *AE, *words, "from-names", "fail")
    lines = [line for line in done.stderr.splitlines() if "oad" in line or "ilter" in line]
    assert lines[:3] == [
        "Loaded columns. Current columns: [['eventName', 'errorCode']]",
        "Loaded labels file. Current labels: [['ae_anomaly_score']]",
        "Filtering all users except ID: 'ann'",
    ]


def test_the_environment_sets_options_of_all_commands(pipeline: Run) -> None:
    done = pipeline(
        "run",
        "pipeline-ae",
        "from-names",
        "fail",
        MORPHEUS_LOG_LEVEL="INFO",
        MORPHEUS_RUN_PIPELINE_AE_USERID_FILTER="ann",
        MORPHEUS_RUN_PIPELINE_AE_FROM_NAMES_WHO="ann bob cy",
    )
    assert "Filtering all users except ID: 'ann'" in done.stderr
    assert "3 users" in done.stderr
    assert pipeline(*AE, MORPHEUS_RUN_NUM_THREADS="0").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--userid_filter=x",), "The pipeline is empty. Start with a source"),
        (("from-name",), "There is no stage `from-name`. Did you mean `from-names`"),
        (("zzz",), "There is no stage `zzz`. `morpheus tools stages` lists them."),
        (("from-names", "b.csv"), "`b.csv` is a file, but a stage is expected"),
        (("from-names", "--wh=x"), "No such option '--wh'"),
        (("fail", "from-names"), "Stage 1 `fail` is in front of the source `from-names`"),
        (("fail",), "The pipeline starts with `fail`, which does not read logs"),
        (("from-names", "from-names"), "more than one source"),
        (
            ("from-names", "fail", "fail"),
            "`fail` takes Events, but stage 2 `fail` gives OutputRows",
        ),
        (("--columns_file=gone.txt", "from-names"), "there is no file `gone.txt`"),
    ],
)
def test_a_wrong_pipeline_is_rejected_with_the_fix(
    pipeline: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "b.csv").touch()
    done = pipeline(*AE, *words)
    assert done.returncode == 2
    assert message in done.stderr.replace(":", "") or message in done.stderr
    assert "Traceback" not in done.stderr
    assert "Starting pipeline" not in done.stderr


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("usage", 2, "Error: The option `--how` is wrong."),
        ("record", 1, r"Error: a.json:3: `eventTime` is \x1b[2J."),
        ("bug", 1, "Error: KeyError: 'lost'. This is a bug in morpheus, not in your logs."),
        ("disk", 1, "Error: /nowhere/at/all: No such file or directory."),
        ("pipe", 1, "Error: The program that reads this command's output has closed it."),
    ],
)
def test_a_failure_gives_a_message_and_an_exit_code(
    pipeline: Run, how: str, code: int, message: str
) -> None:
    done = pipeline(*AE, "from-names", "fail", f"--how={how}")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["INT", "TERM"])
def test_a_signal_gives_a_message_and_an_exit_code(pipeline_process: Run, how: str) -> None:
    done = pipeline_process(*AE, "from-names", "fail", f"--how={how}")
    assert done.returncode == 130
    assert "Stopping pipeline. Please wait... Press Ctrl+C again to kill." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_kills(pipeline_process: Run) -> None:
    done = pipeline_process(*AE, "from-names", "fail", "--how=twice")
    assert done.returncode == -signal.SIGINT
    assert "Stopping pipeline." in done.stderr


@pytest.mark.parametrize("words", [("--debug",), ("--log_level=DEBUG",)])
def test_debug_shows_the_traceback(pipeline: Run, words: tuple[str, ...]) -> None:
    done = pipeline(*words, *AE, "from-names", "fail", "--how=bug")
    assert 'raise KeyError("lost")' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: KeyError")


def test_logs_and_warnings_of_libraries_are_shown_for_debugging_only(
    pipeline_process: Run,
) -> None:
    quiet = pipeline_process(*AE, "from-names", "fail", "--how=noisy")
    assert quiet.returncode == 0
    assert "again" not in quiet.stderr
    assert "old" not in quiet.stderr
    shown = pipeline_process("--debug", *AE, "from-names", "fail", "--how=noisy")
    assert "urllib3.pool: try again" in shown.stderr
    assert "py.warnings: " in shown.stderr
    assert "UserWarning: old" in shown.stderr


def test_the_diagram_is_written_atomically(pipeline: Run, tmp_path: Path) -> None:
    done = pipeline(*AE, "--viz_file=chain.dot", "from-names", "fail")
    assert "Pipeline visualization saved to chain.dot" in done.stderr
    diagram = (tmp_path / "chain.dot").read_text()
    assert diagram.startswith("digraph")
    assert "from-names" in diagram
    (tmp_path / "taken").touch()
    done = pipeline(*AE, "--viz_file=taken/chain.dot", "from-names", "fail")
    assert done.returncode == 2
    assert "taken` is a file, not a folder. Give another --viz_file." in done.stderr


def test_a_log_file_replaces_the_console(pipeline: Run, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(
        '{"version": 1, "root": {"level": "DEBUG", "handlers": ["h"]}, "handlers":'
        ' {"h": {"class": "logging.FileHandler", "filename": "out.log"}}}'
    )
    done = pipeline("--log_config_file=log.json", *AE, "from-names", "fail", "--how=bug")
    assert "C++" not in done.stderr
    assert "Traceback" in (tmp_path / "out.log").read_text()


@pytest.mark.parametrize(
    "words", [(), ("run",), AE, ("tools",), (*AE, "train-ae"), (*AE, "from-names")]
)
def test_all_commands_have_help(pipeline: Run, words: tuple[str, ...]) -> None:
    done = pipeline(*words, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_help_of_a_stage_is_its_docstring_and_its_flow(pipeline: Run) -> None:
    help_text = pipeline(*AE, "fail", "--help").stdout
    assert "Fail in the way asked for." in help_text
    assert "Accepts Events, outputs OutputRows." in help_text
    assert "Not for the screen" not in pipeline(*AE, "from-names", "--help").stdout


def test_the_version_is_that_of_the_installed_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert __version__ == version("morpheus-dfp")
    assert CliRunner().invoke(morpheus, ["--version"]).output == f"morpheus {__version__}\n"
    monkeypatch.setattr("morpheus._DISTRIBUTION", "not-installed")
    assert CliRunner().invoke(morpheus, ["--version"]).output == "morpheus 0+unknown\n"


def test_no_variable_of_the_environment_asks_for_the_version(pipeline: Run) -> None:
    done = pipeline("tools", "--help", MORPHEUS_VERSION="0.1.0")
    assert (done.returncode, done.stdout[:6]) == (0, "Usage:")


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_log_levels_ignore_case(level: str) -> None:
    for word in (level, level.lower()):
        result = CliRunner().invoke(morpheus, [f"--log_level={word}", "tools", "stages", "--help"])
        assert result.exit_code == 0


def test_main_runs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["morpheus", "--version"])
    with pytest.raises(SystemExit, match="0"):
        main()


def test_python_m_runs_the_command(pipeline_process: Run) -> None:
    words = (sys.executable, "-m", "morpheus", "--version")
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == pipeline_process("--version").stdout


def test_stages_are_listed_with_their_package(pipeline: Run) -> None:
    lines = pipeline("tools", "stages").stdout.splitlines()
    assert any(line.split()[:2] == ["fail", "own_package"] for line in lines)
    assert any("Source, outputs Events." in line for line in lines if line.startswith("from-names"))


def test_an_interrupt_that_another_library_converts_is_still_an_interrupt(
    pipeline_process: Run,
) -> None:
    done = pipeline_process(*AE, "from-names", "fail", "--how=disguised")
    assert done.returncode == 130
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "from-names"), "Type `morpheus run pipeline-ae from-names`."),
        (("pipeline-ae",), "Type `morpheus run pipeline-ae`."),
        (("suppress",), "Type `morpheus tools suppress`."),
        (("run", "help"), "Type `morpheus run --help`."),
        ((*AE, "help"), "Type `morpheus run pipeline-ae --help`."),
        (
            ("--userid_column_name=a", *AE, "from-names"),
            "No such option '--userid_column_name'. It is an option of `pipeline-ae`. Put",
        ),
        (
            (*AE, "from-names", "--num_threads=2", "fail"),
            "It is an option of `run`. Put it after `run`.",
        ),
        ((*AE, "--no-progress"), "It is an option of `morpheus`. Put it after `morpheus`."),
        ((*AE, "--who=ann"), "It is an option of `from-names`. Put it after `from-names`."),
        (
            (*AE, "--seed=1"),
            "It is an option of `retrain`, `train-ae` and `tools replay`. Put it after one of",
        ),
        (
            ("state", "show", "a.db", "--models_key_file=x"),
            "`models list`, `models promote` and others.\n",
        ),
        ((*AE, "--filename=1"), " and others. Put it after one of these words."),
        ((*AE, "."), "`.` is a folder, but a stage is expected. Give it to the source, as in"),
    ],
)
def test_a_word_or_option_in_the_wrong_place_is_rejected_with_its_place(
    pipeline: Run, words: tuple[str, ...], message: str
) -> None:
    done = pipeline(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_has_a_short_option_and_whole_sentences(pipeline: Run) -> None:
    assert pipeline("-h").stdout == pipeline("--help").stdout
    for words in ((), ("run",), ("tools",)):
        assert "..." not in pipeline(*words, "-h").stdout.partition("\nCommands:")[2]


@pytest.mark.parametrize(("word", "command"), [*COMMANDS.items(), *TOOLS.items()])
def test_the_summary_of_a_lazy_command_is_the_first_line_of_its_help(
    word: str, command: LazyCommand
) -> None:
    loaded = command.load()
    assert (loaded.name, first_line(loaded.help or "")) == (word, command.summary)


@pytest.fixture
def _without_gc() -> Iterator[None]:
    """Garbage collection as the imports of the command leave it."""
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("_without_gc")
@pytest.mark.parametrize(
    "words",
    [
        (*AE, "from-cloudtrail", "--input_glob=none.json"),
        ("tools", "stages"),
        ("report", "none"),
        ("serve", "none"),
    ],
)
def test_commands_run_with_the_garbage_collection_that_imports_do_without(
    words: tuple[str, ...],
) -> None:
    CliRunner().invoke(morpheus, words)
    assert gc.isenabled()
