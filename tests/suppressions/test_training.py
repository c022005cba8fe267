"""Training with verdicts: accepted events are learned, dangerous ones never are."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus

DATA = Path(__file__).parents[2] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
NIGHT = ("2024-05-18T11:52:00Z", "2024-05-18T11:54:09Z")
"""The intruder's events in the lesson's data."""


def write_verdicts(folder: Path, judged: str, **more: object) -> Path:
    """A verdict on the incident of that night."""
    verdict = {
        "incident": "d1adc9a246d6f4cd",
        "user": "user123",
        "verdict": judged,
        "start": NIGHT[0],
        "end": NIGHT[1],
        "events": 8,
        "columns": [],
        **more,
    }
    file = {"format": "morpheus-verdicts", "version": 2, "made": "2024-06-04T00:00:00Z"}
    path = folder / f"{judged}.json"
    path.write_text(json.dumps({**file, "verdicts": [verdict]}))
    return path


def run(folder: Path, name: str, training: Path, *words: str, given: Path | None = None) -> Result:
    """Train and score; the output is NAME.csv."""
    given = given or DATA / "input-data"
    command = [
        *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"),
        *("from-cloudtrail", f"--input_glob={given}/*.csv", "--file_type=csv"),
        *("train-ae", f"--train_data_glob={training}/*.csv", "--seed=42", *words),
        *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "serialize"),
        *("to-file", f"--filename={folder / name}.csv"),
    ]
    done = CliRunner().invoke(morpheus, command, prog_name="morpheus")
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training files, with the input of user123 appended."""
    folder = tmp_path_factory.mktemp("training")
    for name in ("role-g", "user123"):
        write_rows(folder / f"{name}.csv", read_rows("training-data", name))
    write_rows(folder / "user123-later.csv", read_rows("input-data", "user123"))
    return folder


def read_rows(folder: str, name: str) -> pl.DataFrame:
    return pl.read_csv(DATA / folder / f"{name}.csv", infer_schema=False)


def write_rows(path: Path, rows: pl.DataFrame) -> None:
    path.parent.mkdir(exist_ok=True)
    rows.write_csv(path)


def of_that_night() -> pl.Expr:
    return pl.col("eventTime").is_between(pl.lit(NIGHT[0]), pl.lit(NIGHT[1]))


def test_dangerous_events_are_as_if_they_were_not_in_the_training_files(
    tmp_path: Path, whole: Path
) -> None:
    verdicts = write_verdicts(tmp_path, "malicious")
    done = run(tmp_path, "judged", whole, f"--verdicts={verdicts}")
    assert "excluded  8 events of --verdicts, left out" in done.output
    without = tmp_path / "without"
    for file in whole.glob("*.csv"):
        rows = pl.read_csv(file, infer_schema=False)
        write_rows(without / file.name, rows.filter(~of_that_night()))
    run(tmp_path, "removed", without)
    run(tmp_path, "all", whole)
    judged, removed, everything = (
        (tmp_path / f"{name}.csv").read_bytes() for name in ("judged", "removed", "all")
    )
    assert judged == removed != everything


def test_accepted_events_of_the_input_are_as_if_they_were_in_the_training_files(
    tmp_path: Path,
) -> None:
    training = DATA / "training-data"
    accepted = write_verdicts(tmp_path, "expected", tuning={"action": "accept"})
    done = run(tmp_path, "judged", training, f"--verdicts={accepted}")
    assert "accepted  8 events of --verdicts, added" in done.output
    added = tmp_path / "added"
    for name in ("role-g", "user123"):
        write_rows(added / f"{name}.csv", read_rows("training-data", name))
    night = read_rows("input-data", "user123").filter(of_that_night())
    write_rows(added / "night.csv", night)
    run(tmp_path, "added", added)
    run(tmp_path, "before", training)
    found = {name: pl.read_csv(tmp_path / f"{name}.csv") for name in ("judged", "added", "before")}
    # The sample of all users has the training files only.
    risks = {name: rows.filter(of_that_night())["risk"] for name, rows in found.items()}
    assert risks["judged"].max() < risks["before"].max() / 2
    assert (risks["judged"] - risks["added"]).abs().max() < 5


def test_events_that_are_in_the_training_files_already_are_not_added_again(
    tmp_path: Path, whole: Path
) -> None:
    accepted = write_verdicts(tmp_path, "expected", tuning={"action": "accept"})
    done = run(tmp_path, "judged", whole, f"--verdicts={accepted}")
    assert "accepted" not in done.output
    run(tmp_path, "all", whole)
    assert (tmp_path / "judged.csv").read_bytes() == (tmp_path / "all.csv").read_bytes()


@pytest.mark.parametrize("judged", ["expected", "benign-new", "suspicious"])
def test_other_verdicts_add_no_event(tmp_path: Path, judged: str) -> None:
    done = run(
        tmp_path, judged, DATA / "training-data", f"--verdicts={write_verdicts(tmp_path, judged)}"
    )
    assert "--verdicts" not in done.output


def test_a_run_that_trains_nothing_rejects_verdicts(tmp_path: Path) -> None:
    models = tmp_path / "models"
    run(tmp_path, "first", DATA / "training-data", f"--models_output_filename={models}")
    verdicts = write_verdicts(tmp_path, "malicious")
    command = [
        *("run", "pipeline-ae", "from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv"),
        *("train-ae", f"--pretrained_filename={models}", f"--verdicts={verdicts}"),
        *("preprocess", "inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={tmp_path / 'x.csv'}"),
    ]
    done = CliRunner().invoke(morpheus, command, prog_name="morpheus")
    assert done.exit_code == 2
    assert "--verdicts: nothing is trained, so verdicts have no effect" in done.output


def test_the_number_of_processes_does_not_matter(tmp_path: Path, whole: Path) -> None:
    del whole
    accepted = write_verdicts(tmp_path, "expected", tuning={"action": "accept"})
    for batch_size in (16, 4096):
        command = [
            *("run", "--num_threads=2", f"--pipeline_batch_size={batch_size}", "pipeline-ae"),
            *(f"--userid_column_name={USER}", "from-cloudtrail"),
            *(f"--input_glob={DATA}/input-data/*.csv", "train-ae", "--seed=42"),
            *(f"--train_data_glob={DATA}/training-data/*.csv", f"--verdicts={accepted}"),
            *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "serialize"),
            *("to-file", f"--filename={tmp_path / str(batch_size)}.csv"),
        ]
        done = CliRunner().invoke(morpheus, command, prog_name="morpheus")
        assert done.exit_code == 0, done.output
    assert (tmp_path / "16.csv").read_bytes() == (tmp_path / "4096.csv").read_bytes()
