"""The two lessons: their command lines as printed, and the calls of their cells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe

EXAMPLES = Path(__file__).parents[1] / "examples"
USER = "userIdentitysessionContextsessionIssueruserName"
INTRUDER = range(314, 322)

ALL_USERS = """\
morpheus --log_level=DEBUG run \\
    --num_threads=1 \\
  pipeline-ae \\
    --userid_column_name="userIdentitysessionContextsessionIssueruserName" \\
  from-cloudtrail \\
    --input_glob="data/input-data/*.csv" \\
  train-ae \\
    --train_data_glob="data/training-data/*.csv" \\
    --seed 42 \\
  preprocess \\
  inf-pytorch \\
  add-scores \\
  timeseries \\
    --resolution=10m \\
    --zscore_threshold=8.0 \\
  serialize \\
  to-file \\
    --filename="data/output/output.csv" \\
    --overwrite
"""

ONE_ROLE = """\
morpheus run \\
  --num_threads=1 \\
  pipeline-ae \\
    --userid_filter="role-g" \\
    --userid_column_name="userIdentitysessionContextsessionIssueruserName" \\
  from-cloudtrail \\
    --input_glob="data/input-data/*.csv" \\
  train-ae \\
    --train_data_glob="data/training-data/*.csv" \\
    --seed 42 \\
  preprocess \\
  inf-pytorch \\
  add-scores \\
  timeseries \\
    --resolution=10m \\
    --zscore_threshold=8.0 \\
  serialize \\
  to-file \\
    --filename="data/output/output.csv" \\
    --overwrite
"""

ONE_USER = """\
morpheus run \\
  --num_threads=1 \\
  pipeline-ae \\
    --userid_filter="user123" \\
    --userid_column_name="userIdentitysessionContextsessionIssueruserName" \\
  from-cloudtrail \\
    --input_glob="data/input-data/*.csv" \\
  train-ae \\
    --train_data_glob="data/training-data/*.csv" \\
    --seed 42 \\
  preprocess \\
  inf-pytorch \\
  add-scores \\
  serialize \\
  to-file \\
    --filename="data/output/output.csv" \\
    --overwrite
"""


def copy_data(folder):
    for part in ("input-data", "training-data"):
        shutil.copytree(EXAMPLES / "data" / part, folder / "data" / part)
    return folder


def run_shell(command, folder):
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ["PATH"]])
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def run_lesson(command, folder):
    run_shell(command, folder)
    return (folder / "data/output/output.csv").read_bytes()


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return copy_data(tmp_path_factory.mktemp("all_users"))


@pytest.fixture(scope="module")
def screen(lesson):
    done = run_shell(ALL_USERS, lesson)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def all_users(lesson, screen):
    assert "Configuring" in screen
    return lesson / "data/output/output.csv"


@pytest.fixture(scope="module")
def one_user_run(tmp_path_factory):
    folder = copy_data(tmp_path_factory.mktemp("one_user"))
    done = run_shell(ONE_USER, folder)
    return folder / "data/output/output.csv", done.stdout + done.stderr


def add_zscore(output):
    unique_users = output[USER].unique()
    for user in unique_users:
        anomaly_score = output["ae_anomaly_score"]
        is_user = output[USER] == user
        mean = output[is_user]["ae_anomaly_score"].mean()
        deviation = output[is_user]["ae_anomaly_score"].std()
        output.loc[is_user, ["zscore"]] = (anomaly_score - mean) / deviation
    return output


def test_lesson_000_shows_two_users_and_role_g_comes_first(all_users):
    output = pd.read_csv(all_users)
    unique_users = output[USER].unique()
    assert len(unique_users) == 2
    assert list(unique_users) == ["role-g", "user123"]
    assert output.groupby(USER).size().to_dict() == {"role-g": 314, "user123": 847}
    assert output["Unnamed: 0"].tolist() == [*range(314), *range(847)]


def test_lesson_000_both_users_exceed_2_and_only_user123_exceeds_4(all_users):
    output = add_zscore(pd.read_csv(all_users))
    above = {
        threshold: output[output["zscore"] > threshold][["zscore", USER]] for threshold in (2, 4)
    }
    assert list(above[2][USER].unique()) == ["role-g", "user123"]
    assert list(above[4][USER].unique()) == ["user123"]


def test_lesson_000_only_user123_has_time_series_anomalies(all_users):
    output = pd.read_csv(all_users)
    flagged = output[output["ts_anomaly"] == True]  # noqa: E712 - as the lesson's cell has it
    assert list(flagged[USER].unique()) == ["user123"]
    assert flagged["Unnamed: 0"].tolist() == list(INTRUDER)


def test_only_events_of_the_intruder_exceed_4(all_users):
    output = add_zscore(pd.read_csv(all_users))
    high = output[output["zscore"] > 4]
    assert set(high["Unnamed: 0"]) <= set(INTRUDER)


def test_lesson_000_logs_what_the_lesson_shows(screen):
    for line in (
        "Configuring Pipeline via CLI",
        "C++ is disabled for AutoEncoder pipelines at this time.",
        "Loaded columns. Current columns: [['eventSource', 'eventName', 'sourceIPAddress', ",
        "Starting pipeline via CLI... Ctrl+C to Quit",
        "Training AE model for user: 'role-g'...",
        "Training AE model for user: 'user123'...",
    ):
        assert line in screen
    assert "512" not in screen.split()


def test_lesson_001_logs_what_the_lesson_shows(one_user_run):
    lines = one_user_run[1].splitlines()
    shown = [
        "Configuring Pipeline via CLI",
        "C++ is disabled for AutoEncoder pipelines at this time.",
        "Starting pipeline via CLI... Ctrl+C to Quit",
    ]
    assert [line for line in lines if line in shown] == shown
    assert "512" not in lines


def test_lesson_001_has_the_lessons_columns_and_types(one_user_run):
    types = pd.read_csv(one_user_run[0]).dtypes
    text = [
        "eventTime",
        "userIdentityaccountId",
        "eventSource",
        "eventName",
        "sourceIPAddress",
        "userAgent",
        "userIdentitytype",
        "apiVersion",
        "userIdentityprincipalId",
        "userIdentityarn",
        "userIdentityaccessKeyId",
        USER,
        "errorCode",
        "errorMessage",
    ]
    assert list(types.index[:17]) == ["Unnamed: 0", "_index_", "eventID", *text]
    assert types.iloc[:3].eq("int64").all()
    assert all(pd.api.types.is_string_dtype(types[name]) for name in text)
    assert list(types.index[-2:]) == ["event_dt", "ae_anomaly_score"]
    assert types["ae_anomaly_score"] == "float64"


def test_lesson_001_scores_847_events_and_ranks_the_intruder_first(one_user_run):
    output = pd.read_csv(one_user_run[0])
    score = output["ae_anomaly_score"]
    assert score.describe()["count"] == 847
    output["zscore"] = (score - score.mean()) / score.std()
    assert output["zscore"].describe()["mean"] == pytest.approx(0, abs=1e-12)
    order = output.sort_values(by="zscore", ascending=False)["zscore"]
    assert set(order.index[:5]) <= set(INTRUDER)
    assert order.iloc[0] > 4


def test_a_users_scores_do_not_depend_on_other_users(all_users, one_user_run):
    combined = pd.read_csv(all_users).query(f"{USER} == 'user123'")["ae_anomaly_score"]
    alone = pd.read_csv(one_user_run[0])["ae_anomaly_score"]
    assert combined.tolist() == alone.tolist()


def test_the_command_for_role_g_has_no_score_above_4(tmp_path):
    run_lesson(ONE_ROLE, copy_data(tmp_path))
    output = add_zscore(pd.read_csv(tmp_path / "data/output/output.csv"))
    assert len(output) == 314
    assert not (output["zscore"] > 4).any()
    assert not output["ts_anomaly"].any()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("--num_threads=1", "--num_threads=2"),
        ("--num_threads=1", "--num_threads=1 --pipeline_batch_size 64"),
        ("--num_threads=1", "--num_threads=1 --pipeline_batch_size 1024"),
    ],
    ids=["again", "two threads", "batches of 64", "batches of 1024"],
)
def test_the_output_does_not_depend_on_threads_and_batch_size(tmp_path, all_users, old, new):
    command = ALL_USERS.replace(old, new)
    assert run_lesson(command, copy_data(tmp_path)) == all_users.read_bytes()


def test_the_output_does_not_depend_on_the_order_of_files(tmp_path, all_users):
    copy_data(tmp_path)
    for folder in (tmp_path / "data/input-data", tmp_path / "data/training-data"):
        (folder / "role-g.csv").rename(folder / "z.csv")
        (folder / "user123.csv").rename(folder / "a.csv")
    assert run_lesson(ALL_USERS, tmp_path) == all_users.read_bytes()


def zscores(folder, seed, output):
    chain = [
        FromCloudtrail(input_glob=str(folder / "data/input-data/*.csv")),
        TrainAe(train_data_glob=str(folder / "data/training-data/*.csv"), seed=seed),
        Preprocess(),
        InfPytorch(),
        AddScores(),
        Serialize(),
        ToFile(filename=str(output), overwrite=True),
    ]
    Pipeline(chain, PipelineOptions(userid_column_name=USER, num_threads=1)).run()
    return add_zscore(pd.read_csv(output))


@pytest.mark.parametrize("seed", range(1, 21))
def test_the_lessons_results_hold_for_every_seed(tmp_path, seed):
    output = zscores(EXAMPLES, seed, tmp_path / "output.csv")
    role, person = (output[output[USER] == user]["zscore"] for user in ("role-g", "user123"))
    assert 2 < role.max() < 4
    assert person.max() > 4
    above = output.loc[person[person > 4].index, "Unnamed: 0"]
    assert set(above) <= set(INTRUDER)
