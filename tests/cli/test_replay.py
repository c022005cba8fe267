"""`morpheus tools replay`: its output, its files and its exit codes."""

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
def techniques(tmp_path: Path) -> Path:
    """A folder of one technique."""
    shipped = Path(__file__).parents[2] / "src" / "morpheus" / "data" / "techniques"
    folder = tmp_path / "techniques"
    folder.mkdir()
    (folder / "stop-trail.json").write_text((shipped / "stop-trail.json").read_text())
    return folder


def replay(*words: str, glob: object = TRAINING / "role-g.csv") -> Result:
    command = ["tools", "replay", f"--input_glob={glob}", USER, "--num_threads=1"]
    return CliRunner().invoke(morpheus, [*command, *words], prog_name="morpheus")


def test_stdout_has_the_shares_caught_and_stderr_the_counts(techniques: Path) -> None:
    done = replay(f"--techniques={techniques}")
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
        "Budget   2 alerts for the users' own events, which raise "
    )


@pytest.mark.parametrize("option", ["--input_glob", "--train_data_glob"])
def test_the_trials_do_not_replace_a_log(techniques: Path, tmp_path: Path, option: str) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes((TRAINING / "role-g.csv").read_bytes())
    inputs = log if option == "--input_glob" else TRAINING / "role-g.csv"
    words = [f"--train_data_glob={log}"] if option == "--train_data_glob" else []
    done = replay(f"--techniques={techniques}", f"--filename={log}", *words, glob=inputs)
    assert done.exit_code == 2
    assert "is one of the input logs, and would be replaced. Give another file." in done.stderr
    assert log.read_bytes() == (TRAINING / "role-g.csv").read_bytes()


def test_csv_and_json_have_a_line_per_trial(techniques: Path) -> None:
    lines = replay(f"--techniques={techniques}", "--output_format=csv").stdout.splitlines()
    rows = list(csv.DictReader(lines))
    text = replay(f"--techniques={techniques}", "--output_format=json").stdout
    objects = [json.loads(line) for line in text.splitlines()]
    assert list(objects[0])[:7] == HEAD
    assert [row["grade"] for row in objects] == ["recorded", "agent", "hours"]
    assert [int(row["rank"]) for row in rows] == [row["rank"] for row in objects]


@pytest.mark.parametrize("name", ["trials.csv", "trials.json"])
def test_a_file_has_the_trials_and_stdout_the_table(
    techniques: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_text("old")
    done = replay(f"--techniques={techniques}", f"--filename={file}", "--grade=agent")
    assert done.stdout.startswith("TECHNIQUE   AGENT\nstop-trail  1/1")
    only = replay(
        f"--techniques={techniques}", f"--output_format={file.suffix[1:]}", "--grade=agent"
    )
    assert file.read_text() == only.stdout


def test_a_file_with_another_extension_is_rejected(tmp_path: Path) -> None:
    done = replay(f"--filename={tmp_path / 'trials.txt'}")
    assert done.exit_code == 2
    assert "trials.txt` must end in `.csv` or `.json`. Rename it, or give" in done.stderr


@pytest.mark.parametrize(("min_recall", "code"), [("0.5", 0), ("0.51", 1), ("1", 1)])
def test_a_low_recall_is_exit_code_1(techniques: Path, min_recall: str, code: int) -> None:
    # The most frequent action of the role. As the role, it is not unusual.
    usual = json.loads((techniques / "stop-trail.json").read_text())["Records"][0]
    usual |= {"eventSource": "ssm.amazonaws.com", "eventName": "GetParameter"}
    (techniques / "usual.json").write_text(json.dumps([usual]))
    done = replay(f"--techniques={techniques}", "--grade=agent", f"--min_recall={min_recall}")
    assert done.exit_code == code, done.output
    message = f"Error: recall 0.500 is below --min_recall {min_recall}.\n"
    assert (message in done.stderr) == (code == 1)


def test_the_command_fails_if_nothing_can_be_tried(techniques: Path) -> None:
    done = replay(f"--techniques={techniques}", "--train_min_history=5000")
    assert done.exit_code == 1
    assert "Not tried  1 user: role-g (" in done.stderr
    assert "of history, 5000 needed). Give users more history, or lower" in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--userid_filter=role"], "no event of the input is of a wanted user. Give another --u"),
        (["--skip_user=role-g"], "no event of the input is of a wanted user. Give another --u"),
        (["--pretrained_filename={models}"], "models has no fingerprint of a user of the input"),
    ],
)
def test_the_reason_why_nothing_was_tried_is_that_of_this_input(
    techniques: Path, tmp_path: Path, words: list[str], why: str
) -> None:
    models = tmp_path / "models"
    words = [word.format(models=models) for word in words]
    if str(models) in words[0]:
        run = [
            "run",
            "pipeline-ae",
            USER,
            "from-cloudtrail",
            f"--input_glob={TRAINING}/user123.csv",
        ]
        train = ["train-ae", f"--models_output_filename={models}", "--train_users=individual"]
        assert CliRunner().invoke(morpheus, [*run, *train]).exit_code == 0
    done = replay(f"--techniques={techniques}", *words)
    assert done.exit_code == 1, done.output
    assert "Error: nothing was tried: " in done.stderr
    assert why in done.stderr
    assert "more history" not in done.stderr
    assert ("Did you mean `role-g`?" in done.stderr) == ("filter" in words[0])


def test_a_missing_folder_is_exit_code_2(tmp_path: Path) -> None:
    done = replay(f"--techniques={tmp_path / 'nowhere'}")
    assert done.exit_code == 2
    assert "--techniques: there is no folder `" in done.stderr
    assert done.stdout == ""


def test_control_characters_in_names_are_escaped(techniques: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text((TRAINING / "role-g.csv").read_text().replace("role-g", "role\x1b[2Jg"))
    done = replay(f"--techniques={techniques}", glob=log)
    assert done.exit_code == 0, done.output
    assert "role\\x1b[2Jg" in done.stdout
    assert "\x1b" not in done.output
