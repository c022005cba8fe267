from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheus.cli.main import LOG_LEVELS, main, morpheus

from .conftest import Run

AE = ("run", "pipeline-ae")


def test_a_run_says_what_it_does_on_stderr_and_ends_with_the_summary(chain: Run) -> None:
    done = chain(*AE, "from-names", "--who=ann", "--who", "bob", "fail")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[:3] == [
        "Configuring Pipeline via CLI",
        "C++ is disabled for AutoEncoder pipelines at this time.",
        "Starting pipeline via CLI... Ctrl+C to Quit",
    ]
    assert "Passed      2 events of 2 users" in done.stderr
    assert "\x1b" not in done.stderr


def test_at_debug_the_columns_and_the_filter_are_shown_as_old_notebooks_show_them(
    chain: Run, tmp_path: Path
) -> None:
    (tmp_path / "columns.txt").write_text("eventName\nerrorCode\n")
    (tmp_path / "labels.txt").write_text("ae_anomaly_score\n")
    words = ("--columns_file=columns.txt", "--labels_file=labels.txt", "--userid_filter=ann")
    done = chain("--log_level=debug", *AE, *words, "from-names", "fail")
    lines = [line for line in done.stderr.splitlines() if "oad" in line or "ilter" in line]
    assert lines[:3] == [
        "Loaded columns. Current columns: [['eventName', 'errorCode']]",
        "Loaded labels file. Current labels: [['ae_anomaly_score']]",
        "Filtering all users except ID: 'ann'",
    ]


def test_the_environment_sets_options_of_every_level(chain: Run) -> None:
    done = chain(
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
    assert chain(*AE, MORPHEUS_RUN_NUM_THREADS="0").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--userid_filter=x",), "The chain is empty. Begin with a source"),
        (("from-name",), "There is no stage `from-name`. Did you mean `from-names`"),
        (("zzz",), "There is no stage `zzz`. `morpheus tools stages` lists them."),
        (("from-names", "b.csv"), "`b.csv` is a file, where a stage should stand"),
        (("from-names", "--wh=x"), "No such option '--wh'"),
        (("fail", "from-names"), "Stage 1 `fail` stands before the source `from-names`"),
        (("fail",), "The chain begins with `fail`, which reads no logs"),
        (("from-names", "from-names"), "more than one source"),
        (("from-names", "fail", "fail"), "`fail` takes Events, but stage 2 `fail` gives Rows"),
        (("--columns_file=gone.txt", "from-names"), "there is no file `gone.txt`"),
    ],
)
def test_a_wrong_chain_is_refused_with_the_fix(
    chain: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "b.csv").touch()
    done = chain(*AE, *words)
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
        ("pipe", 1, "Error: Whatever reads this command's output has closed it."),
        ("INT", 130, "Stopping pipeline. Please wait... Press Ctrl+C again to kill."),
        ("TERM", 130, "Stopping pipeline. Please wait... Press Ctrl+C again to kill."),
    ],
)
def test_a_failure_is_a_message_and_an_exit_code(
    chain: Run, how: str, code: int, message: str
) -> None:
    done = chain(*AE, "from-names", "fail", f"--how={how}")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_kills(chain: Run) -> None:
    done = chain(*AE, "from-names", "fail", "--how=twice")
    assert done.returncode == -signal.SIGINT
    assert "Stopping pipeline." in done.stderr


@pytest.mark.parametrize("words", [("--debug",), ("--log_level=DEBUG",)])
def test_the_traceback_is_there_for_who_asks(chain: Run, words: tuple[str, ...]) -> None:
    done = chain(*words, *AE, "from-names", "fail", "--how=bug")
    assert 'raise KeyError("lost")' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: KeyError")


def test_the_chain_is_drawn_whole_or_not_at_all(chain: Run, tmp_path: Path) -> None:
    done = chain(*AE, "--viz_file=chain.dot", "from-names", "fail")
    assert "Pipeline visualization saved to chain.dot" in done.stderr
    drawing = (tmp_path / "chain.dot").read_text()
    assert drawing.startswith("digraph")
    assert "from-names" in drawing
    (tmp_path / "taken").touch()
    done = chain(*AE, "--viz_file=taken/chain.dot", "from-names", "fail")
    assert done.returncode == 1
    assert "taken/chain.dot" in done.stderr


def test_a_log_file_takes_the_place_of_the_screen(chain: Run, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(
        '{"version": 1, "root": {"level": "DEBUG", "handlers": ["h"]}, "handlers":'
        ' {"h": {"class": "logging.FileHandler", "filename": "out.log"}}}'
    )
    done = chain("--log_config_file=log.json", *AE, "from-names", "fail", "--how=bug")
    assert "C++" not in done.stderr
    assert "Traceback" in (tmp_path / "out.log").read_text()


@pytest.mark.parametrize(
    "words", [(), ("run",), AE, ("tools",), (*AE, "train-ae"), (*AE, "from-names")]
)
def test_every_level_has_help(chain: Run, words: tuple[str, ...]) -> None:
    done = chain(*words, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_a_stage_helps_with_its_docstring_and_what_it_takes(chain: Run) -> None:
    screen = chain(*AE, "fail", "--help").stdout
    assert "Fail in the way asked for." in screen
    assert "Takes Events, gives Rows." in screen
    assert "Not for the screen" not in chain(*AE, "from-names", "--help").stdout


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(morpheus, ["--version"]).output.startswith("morpheus, version 0")


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_levels_are_accepted_in_either_case(level: str) -> None:
    for word in (level, level.lower()):
        result = CliRunner().invoke(morpheus, [f"--log_level={word}", "tools", "stages", "--help"])
        assert result.exit_code == 0


def test_the_command_of_the_package_is_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["morpheus", "--version"])
    with pytest.raises(SystemExit, match="0"):
        main()


def test_the_package_runs_as_the_command(chain: Run) -> None:
    words = (sys.executable, "-m", "morpheus", "--version")
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == chain("--version").stdout


def test_stages_are_listed_with_their_package(chain: Run) -> None:
    lines = chain("tools", "stages").stdout.splitlines()
    assert any(x.split()[:2] == ["fail", "shelf"] for x in lines)
    assert any("A source: gives Events." in x for x in lines if x.startswith("from-names"))


def test_an_interrupt_that_another_library_disguises_still_ends_as_stopped(chain: Run) -> None:
    done = chain(*AE, "from-names", "fail", "--how=disguised")
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
            "No such option '--userid_column_name'. It is an option of `pipeline-ae`: put",
        ),
        (
            (*AE, "from-names", "--num_threads=2", "fail"),
            "It is an option of `run`: put it behind that word.",
        ),
        ((*AE, "--who=ann"), "It is an option of `from-names`: put it behind that word."),
        ((*AE, "--seed=1"), "It is an option of `train-ae` and `replay`: put it behind one of"),
        ((*AE, "--filename=1"), " and others: put it behind one of these words."),
        ((*AE, "."), "`.` is a folder, where a stage should stand. Give the source the folder"),
    ],
)
def test_what_is_typed_in_the_wrong_place_is_sent_home(
    chain: Run, words: tuple[str, ...], message: str
) -> None:
    done = chain(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_has_a_short_name_and_whole_sentences(chain: Run) -> None:
    assert chain("-h").stdout == chain("--help").stdout
    for words in ((), ("run",), ("tools",)):
        assert "..." not in chain(*words, "-h").stdout.partition("\nCommands:")[2]
