"""A misspelt name is answered with the names that may be meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from morpheus.text import suggest_path

from .conftest import Run

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
READ = ("run", "pipeline-ae", f"--userid_column_name={USER}", "from-cloudtrail")
FILE = "data/input-data/user123.csv"
INPUT = "--input_glob=data/input-data/*.csv"
SCORE = ("train-ae", "--pretrained_filename=models", "preprocess", "inf-pytorch", "add-scores")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the logs of the lessons."""
    shutil.copytree(EXAMPLES, tmp_path / "data", ignore=shutil.ignore_patterns("output"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("detct", "data"), "There is no command `detct`. Did you mean `detect`?"),
        (("tools", "replai"), "There is no command `replai`. Did you mean `replay`?"),
        (("frobnicate",), "There is no command `frobnicate`. Type `morpheus --help`."),
        ((*READ, INPUT, "preproces"), "no stage `preproces`. Did you mean `preprocess`?"),
        (("detect", "dta"), "no log file is found in `dta`. Did you mean `data`?"),
        (("report", "data/user123.cvs"), "There is no file `data/user123.cvs`. Give the output"),
        (
            ("report", "data/input-data/user132.csv"),
            (
                "There is no file `data/input-data/user132.csv`. Did you mean "
                "`data/input-data/user123.csv`?"
            ),
        ),
        (("serve", "dat"), "there is no folder `dat`. Did you mean `data`?"),
        ((*READ, "--input_glob=dat/input-data"), "There is no folder `dat`. Did you mean `data`?"),
        (
            (*READ, "--input_glob=data/input-data/role_g.csv"),
            "Did you mean `data/input-data/role-g.csv`?",
        ),
        (
            ("run", "pipeline-ae", "--columns_file=colums_ae.txt", "from-cloudtrail", INPUT),
            "there is no file `colums_ae.txt`. Did you mean `columns_ae.txt`",
        ),
        (
            ("run", "pipeline-ae", "--columns_file=oktaa.toml", "from-file", INPUT),
            "there is no file `oktaa.toml`. Did you mean `okta.toml`",
        ),
        (
            ("run", "pipeline-ae", "--userid_column_name=userIdentityTyp", *READ[3:], INPUT),
            "Did you mean `userIdentitytype`",
        ),
        (
            (*READ, INPUT, "train-ae", "--pretrained_filename=dta"),
            "there is no folder `dta`. Did you mean `data`?",
        ),
        *(
            (words, f"`{FILE}` is a file, not a folder. Give")
            for words in (
                ("serve", FILE),
                (*READ, f"--input_glob={FILE}/*"),
                (*READ, INPUT, "train-ae", f"--pretrained_filename={FILE}"),
                ("tools", "replay", INPUT, f"--techniques={FILE}"),
            )
        ),
    ],
)
def test_an_error_says_what_may_be_meant(
    folder: Path, run: Run, words: tuple[str, ...], message: str
) -> None:
    assert folder.is_dir()
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "stages", "message"),
    [
        (("--userid_filter=role_g",), (), "Did you mean `role-g`?"),
        (("--skip_user=user-123",), (), "Did you mean `user123`?"),
        (
            (),
            ("add-scores", "--label=risk", "--label=rsk"),
            "add-scores: there is no score `rsk`, so this --label is ignored. Did you mean `risk`?",
        ),
        (
            (),
            ("add-scores", "serialize", "--include=event_Name"),
            "serialize: --include 'event_Name' matches no column. Did you mean `eventName`",
        ),
        (
            (),
            ("add-scores", "serialize", "--exclude=Source_IP_Address"),
            (
                "serialize: --exclude 'Source_IP_Address' matches no column. Did you mean "
                "`sourceIPAddress`"
            ),
        ),
    ],
)
def test_a_warning_says_what_may_be_meant(
    folder: Path, run: Run, options: tuple[str, ...], stages: tuple[str, ...], message: str
) -> None:
    assert folder.is_dir()
    trained = ("train-ae", "--train_data_glob=data/training-data/*.csv", "--train_epochs=1")
    chain = (*trained, "preprocess", "inf-pytorch", *stages) if stages else ()
    done = run("run", "--num_threads=1", *READ[1:3], *options, READ[3], INPUT, *chain)
    [line] = [line for line in done.stderr.splitlines() if message in line]
    assert line.startswith("Warning: ")


def test_a_feature_that_no_event_has_is_answered_with_similar_columns(
    folder: Path, run: Run
) -> None:
    (folder / "features.txt").write_text("eventName\nsourceIpAdress\n")
    done = run(*READ[:3], "--columns_file=features.txt", READ[3], INPUT)
    assert "no event has a column `sourceIpAdress`. Did you mean `sourceIPAddress`" in done.stderr


def test_erase_names_similar_users(folder: Path, run: Run) -> None:
    training = "--train_data_glob=data/training-data/*.csv"
    saved = "--models_output_filename=models"
    assert run(*READ, INPUT, "train-ae", training, saved, "--train_epochs=1").returncode == 0
    done = run("tools", "erase", "--models=models", "user_123")
    assert "Nothing is stored about `user_123`. Did you mean `user123`?" in done.stderr
    assert "Nothing is stored" not in run("tools", "erase", "--models=models", "user123").stderr
    assert folder.is_dir()


def test_a_common_suffix_is_no_likeness_and_any_part_of_a_path_can_be_wrong(folder: Path) -> None:
    assert suggest_path(folder / "data" / "input-data" / "x.csv") == ""
    right = folder / "data" / "training-data" / "user123.csv"
    wrong = folder / "data" / "trainingdata" / "user123.csv"
    assert suggest_path(wrong) == f" Did you mean `{right}`?"
    assert suggest_path(folder / "data" / "trainingdata" / "nobody.csv") == ""


def test_escapes_in_names_of_files_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "log\x1b[2J.csv").touch()
    assert "\x1b" not in suggest_path(tmp_path / "log[2J.csv")


def test_a_path_that_exists_is_not_its_own_suggestion(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert suggest_path(tmp_path / "logs") == ""
    (tmp_path / "logs.json").touch()
    assert suggest_path(tmp_path / "logs") == f" Did you mean `{tmp_path / 'logs.json'}`?"


@pytest.mark.parametrize(
    "words",
    [
        ("state", "export", "state.db", "--filename=data"),
        ("tools", "replay", INPUT, "--output_format=csv", "--filename=data"),
        ("tools", "suppress", "verdicts.json", "--filename=data"),
    ],
)
def test_a_folder_in_place_of_an_output_file_is_wrong_usage_at_once(
    folder: Path, run: Run, words: tuple[str, ...]
) -> None:
    assert folder.is_dir()
    done = run(*words)
    assert done.returncode == 2
    assert "--filename: `data` is a folder. Give a file in it" in done.stderr
