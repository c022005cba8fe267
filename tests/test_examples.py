"""The examples: data that a generator writes, notebooks that run, a demonstration."""

import csv
import filecmp
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbclient
import nbformat
import polars as pl
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = EXAMPLES / "data"
EVENTS = {
    "input-data/role-g.csv": 314,
    "input-data/user123.csv": 847,
    "training-data/role-g.csv": 1887,
    "training-data/user123.csv": 2387,
}
FILES = list(EVENTS)
NOTEBOOKS = ["000_all_users.ipynb", "001_one_user.ipynb"]
INTRUDER = slice(314, 322)
ORDER = ("", "eventID", "eventTime")
TEN_MINUTES = 600


def rows(file):
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def generated(folder, seed):
    command = [sys.executable, EXAMPLES / "make_data.py", "--seed", str(seed), "--into", folder]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def theirs():
    return rows("input-data/user123.csv")[INTRUDER]


@pytest.fixture(scope="module")
def own():
    events = rows("input-data/user123.csv")
    return events[: INTRUDER.start] + events[INTRUDER.stop :]


@pytest.fixture(scope="module")
def history():
    return rows("training-data/user123.csv")


def test_the_generator_writes_the_committed_data_again(tmp_path):
    same, *others = filecmp.cmpfiles(DATA, generated(tmp_path, 42), FILES, shallow=False)
    assert same == FILES, others


def test_another_seed_writes_other_data(tmp_path):
    same, *_ = filecmp.cmpfiles(DATA, generated(tmp_path, 7), FILES, shallow=False)
    assert same == []


def test_the_data_is_small():
    assert sum((DATA / file).stat().st_size for file in FILES) < 3_000_000


@pytest.mark.parametrize(("file", "events"), EVENTS.items())
def test_a_file_numbers_one_users_events_in_order_of_time(file, events):
    table = rows(file)
    numbers = [str(number) for number in range(events)]
    assert [row[""] for row in table] == numbers
    assert [row["eventID"] for row in table] == numbers
    times = [datetime.strptime(row["eventTime"], "%Y-%m-%dT%H:%M:%S%z") for row in table]
    assert times == sorted(times)
    [user] = {row["userIdentitysessionContextsessionIssueruserName"] for row in table}
    assert Path(file).stem == user


def test_training_ends_before_input_begins():
    for user in ("role-g", "user123"):
        before, after = rows(f"training-data/{user}.csv"), rows(f"input-data/{user}.csv")
        assert before[-1]["eventTime"] <= after[0]["eventTime"]


def test_role_g_comes_first():
    first = {user: rows(f"input-data/{user}.csv")[0]["eventTime"] for user in ("role-g", "user123")}
    assert first["role-g"] < first["user123"]


def test_the_intruders_calls_fall_into_one_ten_minute_bin(theirs):
    times = [datetime.fromisoformat(row["eventTime"]).timestamp() for row in theirs]
    assert len({time // TEN_MINUTES for time in times}) == 1
    calls = {row["eventName"] for row in theirs}
    assert {"DetachRolePolicy", "DeleteEverything", "DescribeSubnets"} <= calls


def test_every_value_of_the_intruder_is_one_that_the_user_has_had(theirs, history):
    for column in theirs[0].keys() - set(ORDER):
        assert {row[column] for row in theirs} <= {row[column] for row in history}, column


def test_no_value_that_all_of_the_intruders_events_share_gives_them_away(theirs, own, history):
    for column in theirs[0].keys() - set(ORDER):
        values = {row[column] for row in theirs}
        if len(values) > 1:
            continue
        [value] = values
        assert sum(row[column] == value for row in history) >= 0.005 * len(history), column
        assert any(row[column] == value for row in own), column


def test_it_is_the_company_of_values_that_the_user_has_never_had(theirs, own, history):
    def company(row):
        return row["sourceIPAddress"], row["userAgent"], row["eventSource"]

    usual = {company(row) for row in (*own, *history)}
    assert usual.isdisjoint(company(row) for row in theirs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_folder(name, tmp_path, monkeypatch):
    shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("output"))
    beside = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([beside, os.environ["PATH"]]))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "data/output/output.csv").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


STORED = "002_detect.ipynb"


def texts_of(notebook):
    """Printed text, plain results and kinds of pictures of each cell."""
    return [
        [
            output["text"] if output["output_type"] == "stream" else texts["text/plain"]
            for output in cell.get("outputs", [])
            if output["output_type"] == "stream" or (texts := output["data"])
        ]
        for cell in notebook.cells
    ]


def test_the_detect_notebook_runs_and_its_stored_outputs_are_current(tmp_path):
    shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("output"))
    notebook = nbformat.read(EXAMPLES / STORED, as_version=4)
    nbformat.validate(notebook)
    stored = texts_of(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    assert texts_of(notebook) == stored
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    assert any("1 incident with 8 events" in text for cell in stored for text in cell)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`demo.py` as a module, in a copy of the examples where it has run."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(DATA, folder / "data", ignore=shutil.ignore_patterns("output"))
    shutil.copy(EXAMPLES / "demo.py", folder)
    done = subprocess.run(
        [sys.executable, folder / "demo.py"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    spec = importlib.util.spec_from_file_location("demo", folder / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.shown = done.stdout
    return module


def test_the_demonstration_shows_the_intruder_in_100_columns(demo):
    lines = demo.shown.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith(" user123  2024-05-18 11:5") for line in lines) == 8
    assert "Time-series anomalies: 8 events (user123)." in lines
    assert "examples/data/output/output.csv" in demo.shown


def test_the_demonstration_names_the_columns_and_says_why_the_first_event_is_unusual(demo):
    events = demo.add_zscore(pl.read_csv(demo.HERE / demo.OUTPUT, infer_schema=False))
    first = demo.most_unusual(events).row(0, named=True)
    shown = " ".join(demo.shown.split())
    assert " ".join(f"Reason for the first: {first['reason']}".split()) in shown
    *cells, columns = demo.make_cells(first)
    assert " ".join([*cells, columns.split(", ")[0]]) in shown
    assert first["top_columns"].startswith("errorMessage, ")
    assert first["reason"].startswith(f"`{first['eventName']}` with error message `User: ")


def test_the_demonstration_escapes_what_a_log_says(demo):
    events = demo.add_zscore(pl.read_csv(demo.HERE / demo.OUTPUT, infer_schema=False)).head(1)
    hostile = events.with_columns(pl.lit("\x1b[2J[red]Get").alias("eventName"))
    console = demo.Console(width=100, record=True, file=io.StringIO())
    console.print(demo.make_table(hostile))
    shown = console.export_text()
    assert "\x1b" not in shown
    assert r"\x1b[2J[red]Get" in shown
