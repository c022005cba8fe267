"""`morpheus tools replay` as a person, and a CI job, meet it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINING = EXAMPLES / "data" / "training-data"
USER = "--userid_column_name=userIdentitysessionContextsessionIssueruserName"
HEAD = ["technique", "user", "grade", "caught", "rank", "events_of_day", "seconds_to_catch"]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of one technique."""
    shipped = Path(__file__).parents[2] / "src" / "morpheus" / "data" / "techniques"
    folder = tmp_path / "techniques"
    folder.mkdir()
    (folder / "stop-trail.json").write_text((shipped / "stop-trail.json").read_text())
    return folder


def replay(*words: str, glob: object = TRAINING / "role-g.csv") -> Result:
    command = ["tools", "replay", f"--input_glob={glob}", USER, "--num_threads=1"]
    return CliRunner().invoke(morpheus, [*command, *words], prog_name="morpheus")


def test_stdout_has_the_share_caught_and_stderr_what_it_rests_on(few: Path) -> None:
    done = replay(f"--techniques={few}")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "TECHNIQUE   RECORDED  AGENT  HOURS",
        "stop-trail  1/1       1/1    1/1",
        "all         1/1       1/1    1/1",
        "",
        "USER    RECORDED  AGENT  HOURS",
        "role-g  1/1       1/1    1/1",
        "all     1/1       1/1    1/1",
        "",
    ]
    assert done.stderr.startswith(
        "Caught   3 of 3 trials, recall 1.000\n"
        "Budget   2 alerts on the users' own events, which raise "
    )


def test_csv_and_json_have_a_line_for_each_trial(few: Path) -> None:
    lines = replay(f"--techniques={few}", "--output_format=csv").stdout.splitlines()
    rows = list(csv.DictReader(lines))
    text = replay(f"--techniques={few}", "--output_format=json").stdout
    objects = [json.loads(line) for line in text.splitlines()]
    assert list(objects[0])[:7] == HEAD
    assert [row["grade"] for row in objects] == ["recorded", "agent", "hours"]
    assert [int(row["rank"]) for row in rows] == [row["rank"] for row in objects]


@pytest.mark.parametrize("name", ["trials.csv", "trials.json"])
def test_a_file_has_the_trials_and_stdout_the_table(few: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("what was there")
    done = replay(f"--techniques={few}", f"--filename={file}", "--grade=agent")
    assert done.stdout.startswith("TECHNIQUE   AGENT\nstop-trail  1/1")
    only = replay(f"--techniques={few}", f"--output_format={file.suffix[1:]}", "--grade=agent")
    assert file.read_text() == only.stdout


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    done = replay(f"--filename={tmp_path / 'trials.txt'}")
    assert done.exit_code == 2
    assert "trials.txt` is to be `.csv` or `.json`. Name it so, or give" in done.stderr


@pytest.mark.parametrize(("least", "code"), [("0.5", 0), ("0.51", 1), ("1", 1)])
def test_too_small_a_recall_is_exit_code_1(few: Path, least: str, code: int) -> None:
    # What the role does all day, done once more by a stranger: nobody can tell.
    usual = json.loads((few / "stop-trail.json").read_text())["Records"][0]
    usual |= {"eventSource": "ssm.amazonaws.com", "eventName": "GetParameter"}
    (few / "usual.json").write_text(json.dumps([usual]))
    done = replay(f"--techniques={few}", "--grade=agent", f"--min_recall={least}")
    assert done.exit_code == code, done.output
    said = f"Error: recall 0.500 is under --min_recall {least}.\n"
    assert (said in done.stderr) == (code == 1)


def test_where_nothing_can_be_tried_the_command_fails_and_says_why(few: Path) -> None:
    done = replay(f"--techniques={few}", "--train_min_history=5000")
    assert done.exit_code == 1
    assert "Not tried  1 user: role-g (" in done.stderr
    assert "Error: nothing was tried. Give users more history, or lower" in done.stderr


def test_a_folder_that_is_not_there_is_exit_code_2(tmp_path: Path) -> None:
    done = replay(f"--techniques={tmp_path / 'nowhere'}")
    assert done.exit_code == 2
    assert "--techniques: there is no folder `" in done.stderr
    assert done.stdout == ""


def test_names_out_of_a_log_cannot_command_the_terminal(few: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text((TRAINING / "role-g.csv").read_text().replace("role-g", "role\x1b[2Jg"))
    done = replay(f"--techniques={few}", glob=log)
    assert done.exit_code == 0, done.output
    assert "role\\x1b[2Jg" in done.stdout
    assert "\x1b" not in done.output
