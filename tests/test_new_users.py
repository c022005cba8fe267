"""New users, end to end: users with little or no history are scored with others' models."""

import json
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

COLUMNS = ["eventName", "sourceIPAddress", "userAgent"]
HABITS = {"clerk": ["GetObject", "ListObjects", "PutObject"], "builder": ["RunJob", "PushImage"]}


def events(user, count, seed, start):
    rng, trade = np.random.default_rng(seed), user.rstrip("0123456789")
    return [
        {
            "eventID": f"{user}-{start:%m%d}-{n}",
            "eventTime": (start + timedelta(minutes=7 * n)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "eventName": str(rng.choice(HABITS[trade])),
            "sourceIPAddress": f"house of {user}",
            "userAgent": f"{trade}'s tool",
            "who": user,
        }
        for n in range(count)
    ]


def write(path: Path, parts):
    rows = [row for part in parts for row in part]
    pl.DataFrame(rows).write_csv(path)


@pytest.fixture
def company(tmp_path):
    """Twelve users with history; clerk8 has 60 events of history, and clerk9 none."""
    before, now = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 2, 2, tzinfo=UTC)
    people = [f"clerk{n}" for n in range(8)] + [f"builder{n}" for n in range(4)]
    history = [events(user, 320, n, before) for n, user in enumerate(people)]
    write(tmp_path / "history.csv", [*history, events("clerk8", 60, 50, before)])
    new = [events(user, 20, 60, now) for user in ("clerk0", "clerk8", "clerk9")]
    write(tmp_path / "now.csv", new)
    (tmp_path / "columns.txt").write_text("\n".join(COLUMNS))
    return tmp_path


LABELS = ("ae_anomaly_score", "risk", "rung", "own_share")


def run_command(command, folder, words):
    """Run a command, and return what it says."""
    result = subprocess.run(
        [command, *words], check=False, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture
def run(warm_morpheus, company):
    """A function that runs a command without worker processes."""
    return partial(run_command, warm_morpheus, company)


def morpheus(run, folder, train, threads=1, options=()):
    chosen = [f"--label={label}" for label in LABELS]
    words = [
        *("run", f"--num_threads={threads}"),
        *("pipeline-ae", "--columns_file=columns.txt", "--userid_column_name=who", *options),
        *("from-cloudtrail", "--input_glob=now.csv", "train-ae", *train),
        *("preprocess", "inf-pytorch", "add-scores", *chosen, "serialize"),
        *("to-file", "--filename=out.jsonlines", "--overwrite"),
    ]
    log = run(words)
    lines = (folder / "out.jsonlines").read_text().splitlines()
    return {row["eventID"]: row for row in map(json.loads, lines)}, log


TO_FILE = ["serialize", "to-file", "--filename=out.csv"]
TRAIN = ["--train_data_glob=history.csv", "--train_epochs=8"]


def test_every_user_is_scored_with_the_training_data_of_its_history(run, company):
    rows, log = morpheus(run, company, TRAIN)
    rungs = {(row["who"], row["rung"], row["own_share"]) for row in rows.values()}
    assert rungs == {("clerk0", "own", 1.0), ("clerk8", "peers", 0.2), ("clerk9", "everyone", 0.0)}
    assert all(math.isfinite(row["risk"]) for row in rows.values())
    assert "1 trained on own history, 1 with data of similar users, 1 global" in log


def test_the_result_does_not_depend_on_the_number_of_threads(run, company):
    own_process = partial(run_command, Path(sys.executable).with_name("morpheus"), company)
    parallel, _ = morpheus(own_process, company, TRAIN, threads=2)
    assert morpheus(run, company, TRAIN)[0] == parallel


def test_saved_models_have_the_global_model_for_unknown_users(run, company):
    first, _ = morpheus(run, company, [*TRAIN, "--models_output_filename=models"])
    again, _ = morpheus(run, company, ["--pretrained_filename=models"])
    assert again == first


def test_use_generic_model_skips_similar_users(run, company):
    rows, _ = morpheus(run, company, TRAIN, options=["--use_generic_model"])
    assert {row["rung"] for row in rows.values() if row["who"] == "clerk8"} == {"everyone"}


@pytest.mark.parametrize("stages", [(), ("filter", "--threshold=0.0")])
def test_events_of_users_without_a_model_are_counted_whatever_is_logged(run, stages):
    start = ["--log_level=CRITICAL", "run", "--num_threads=1", "pipeline-ae"]
    start += ["--columns_file=columns.txt", "--userid_column_name=who"]
    source = ["from-cloudtrail", "--input_glob=now.csv"]
    train = ["train-ae", *TRAIN, "--train_users=individual", "--train_min_history=100"]
    score = ["preprocess", "inf-pytorch", "add-scores", "--label=risk", *stages]
    log = run([*start, *source, *train, *score, *TO_FILE])
    [line] = [line for line in log.splitlines() if "Not scored" in line]
    assert line.split(maxsplit=2)[2] == (
        "20 events of 1 user: 0 events of history, 100 needed (clerk9)"
    )
