"""Command lines of the starter example of NVIDIA Morpheus 22.09 to 24.06, unchanged."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.core.stage import read_lines

RUN = """--log_level=DEBUG run --num_threads=1 --pipeline_batch_size=1024
    --model_max_batch_size=1024 --use_cpp=False pipeline-ae"""
REST = "preprocess inf-pytorch monitor --description='Inference rate' --unit inf add-scores"
INPUT = "monitor --description='Input rate'"
CLASS = "--source_stage_class=morpheus.stages.input"
TRAIN = {
    log: f"""{INPUT} train-ae --train_data_glob="train/*.json"
        {CLASS}.{log}_source_stage.{log.title()}SourceStage --seed 42
        --models_output_filename=models/{log}_ae_user_models.pkl {REST}
        serialize to-file --filename={log}-detections.csv --overwrite"""
    for log in ("duo", "azure")
}
RECIPES = {
    "cloudtrail": f"""{RUN} --columns_file=data/columns_ae_cloudtrail.txt
        --userid_column_name=userIdentitysessionContextsessionIssueruserName
        --userid_filter=user123 --feature_scaler=standard
        from-cloudtrail --input_glob="input/*.csv" --max_files=200
        train-ae --train_data_glob="train/*.csv"
        {CLASS}.cloud_trail_source_stage.CloudTrailSourceStage --seed 42
        {REST} serialize to-file --filename=cloudtrail-detections.csv --overwrite""",
    "duo": f"""{RUN} --columns_file=data/columns_ae_duo.txt --userid_column_name=username
        --feature_scaler=standard from-duo --input_glob="input/*.json" --max_files=200
        {TRAIN["duo"]}""",
    "azure": f"""{RUN} --columns_file=data/columns_ae_azure.txt
        --userid_column_name=userPrincipalName --feature_scaler=standard
        from-azure --input_glob="input/*.json" --max_files=200 {TRAIN["azure"]}""",
}
RANDOM = random.Random(7)  # noqa: S311 - no secret


def duo(time: datetime) -> dict[str, Any]:
    return {
        "isotimestamp": time.isoformat(),
        "user": {"name": "ann"},
        "access_device": {
            "browser": RANDOM.choice(["Chrome", "Safari"]),
            "os": "Mac OS X",
            "location": {"city": RANDOM.choice(["Cork", "Dublin"]), "state": "", "country": "IE"},
        },
        "auth_device": {"name": "phone"},
        "result": RANDOM.choice(["success", "success", "denied"]),
        "reason": "user_approved",
    }


def azure(time: datetime) -> dict[str, Any]:
    properties = {
        "createdDateTime": time.isoformat(),
        "userPrincipalName": "ann@x.org",
        "appDisplayName": RANDOM.choice(["Mail", "Chat", "Files"]),
        "clientAppUsed": "Browser",
        "deviceDetail": {"browser": "Edge", "displayName": "PC", "operatingSystem": "Linux"},
        "location": {"city": RANDOM.choice(["Cork", "Dublin"]), "countryOrRegion": "IE"},
        "status": {"failureReason": "Other."},
    }
    return {"time": time.isoformat(), "category": "SignInLogs", "properties": properties}


def cloudtrail(time: datetime) -> dict[str, Any]:
    return {
        "eventTime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
        "userIdentitysessionContextsessionIssueruserName": "user123",
        "eventName": RANDOM.choice(["GetUser", "ListRoles"]),
        "sourceIPAddress": "203.0.113.9",
    }


RECORD_MAKERS: dict[str, Callable[[datetime], dict[str, Any]]] = {
    "cloudtrail": cloudtrail,
    "duo": duo,
    "azure": azure,
}


def write_logs(folder: Path, log: str, events: int, day: int) -> None:
    folder.mkdir()
    start = datetime(2024, 5, day, tzinfo=UTC)
    records = [RECORD_MAKERS[log](start + timedelta(minutes=3 * n)) for n in range(events)]
    if log == "cloudtrail":
        pl.DataFrame(records).write_csv(folder / "a.csv")
    else:
        (folder / "a.json").write_text(json.dumps(records))


Run = Callable[[Path, str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run(warm_morpheus: Path) -> Run:
    """Run a command line in a folder."""
    return lambda folder, line: subprocess.run(
        [warm_morpheus, *shlex.split(line)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("log", RECIPES)
def test_a_recipe_runs_unchanged(tmp_path: Path, run: Run, log: str) -> None:
    write_logs(tmp_path / "train", log, 320, day=1)
    write_logs(tmp_path / "input", log, 40, day=3)
    done = run(tmp_path, RECIPES[log])
    assert done.returncode == 0, done.stderr
    output = pl.read_csv(tmp_path / f"{log}-detections.csv")
    assert (output.height, output["ae_anomaly_score"].is_nan().sum()) == (40, 0)
    if log == "cloudtrail":
        return
    assert output["logcount"].to_list() == list(range(40))
    assert set(output["locincrement"]) == {1, 2}
    pretrained = RECIPES[log].replace(
        TRAIN[log],
        f"""{INPUT} train-ae --pretrained_filename=models/{log}_ae_user_models.pkl {REST} validate
            --val_file_name={log}-detections.csv --results_file_name=results.json
            serialize to-file --filename=again.csv""",
    )
    done = run(tmp_path, pretrained)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert (report["matching_rows"], report["diff_rows"], report["diff_cols"]) == (40, 0, 0)
    detections = (tmp_path / f"{log}-detections.csv").read_bytes()
    assert (tmp_path / "again.csv").read_bytes() == detections


def test_validate_names_a_changed_cell(tmp_path: Path, run: Run) -> None:
    write_logs(tmp_path / "train", "duo", 320, day=1)
    write_logs(tmp_path / "input", "duo", 40, day=3)
    assert run(tmp_path, RECIPES["duo"]).returncode == 0
    expected = tmp_path / "duo-detections.csv"
    lines = expected.read_text().splitlines()
    lines[18] = lines[18].replace("Mac OS X", "Plan 9")
    expected.write_text("\n".join(lines) + "\n")
    line = RECIPES["duo"].replace("--models_output_filename=models/duo_ae_user_models.pkl", "")
    line = line.replace("duo-detections.csv --overwrite", "again.csv")
    line = line.replace("serialize", "validate --val_file_name=duo-detections.csv serialize")
    done = run(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert "Results do not match. Diff 1/40" in done.stderr
    assert "row 18 (event 17): accessdeviceos: 'Plan 9', not 'Mac OS X'" in done.stderr


def test_the_summary_counts_filtered_events(tmp_path: Path, run: Run) -> None:
    write_logs(tmp_path / "train", "duo", 320, day=1)
    write_logs(tmp_path / "input", "duo", 40, day=3)
    line = RECIPES["duo"].replace("add-scores", "add-scores filter --threshold=1e9")
    done = run(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Filtered +40 events$", done.stderr, re.MULTILINE)
    assert pl.read_csv(tmp_path / "duo-detections.csv").height == 0


@pytest.mark.parametrize("log", RECIPES)
def test_compat_gives_the_columns_of_a_release(tmp_path: Path, run: Run, log: str) -> None:
    write_logs(tmp_path / "train", log, 320, day=1)
    write_logs(tmp_path / "input", log, 40, day=3)
    done = run(tmp_path, RECIPES[log].replace("pipeline-ae", "pipeline-ae --compat 22.11"))
    assert done.returncode == 0, done.stderr
    output = pl.read_csv(tmp_path / f"{log}-detections.csv", null_values=["NaN", "nan"])
    features = read_lines(f"data/columns_ae_{log}.txt", option="")
    z_losses = [f"{name}_z_loss" for name in features]
    added = [*z_losses, "max_abs_z", "mean_abs_z", "reconstruct_loss", "zscore"]
    if "--models_output_filename" in RECIPES[log]:
        assert output.columns[-1] == "model_version"
        output = output.drop("model_version")
    assert output.columns[-len(added) :] == added
    complete = [name for name in z_losses if not output[name].has_nulls()]
    largest = output.select(pl.max_horizontal(complete).alias("max_abs_z"))["max_abs_z"]
    assert largest.to_list() == output["max_abs_z"].to_list()
    assert "ae_anomaly_score" not in output.columns
