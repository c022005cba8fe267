"""Logs, models and outputs of one command line can be in any object store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.models.versions import VersionedStore
from morpheus.storage.object_store import ObjectPath, list_recursive, read_object, write_object
from services.buckets import serve_buckets

USER = "userIdentityuserName"
ANONYMOUS = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}


def make_log(days: range) -> bytes:
    """CloudTrail events of two users, one an hour."""
    events = [
        {
            "eventID": f"{day:04}{hour:04}-0000-4000-8000-00000000000{number}",
            "eventTime": f"2024-05-{day:02}T{hour:02}:30:00Z",
            "eventName": ("GetObject", "PutObject", "ListBuckets")[(day + hour) % 3],
            "eventSource": "s3.amazonaws.com",
            "userIdentity": {"userName": user},
        }
        for day in days
        for hour in range(8, 18)
        for number, user in enumerate(("ann", "bob"))
    ]
    return json.dumps({"Records": events}).encode()


@pytest.fixture(params=["s3", "gs", "az"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket on a server of this machine."""
    scheme = request.param
    if scheme == "s3":
        request.getfixturevalue("lake")
        yield "s3://lake"
        return
    with serve_buckets(scheme) as buckets:
        account = json.dumps({"gcs_base_url": buckets.address} | ANONYMOUS)
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", account)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", buckets.address)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
        yield f"{scheme}://lake"


@pytest.fixture
def logs(store: str) -> str:
    """The same bucket with the logs of four days."""
    for name, days in (("old", range(1, 4)), ("new", range(4, 5))):
        write_object(ObjectPath.parse(f"{store}/{name}/a.json"), make_log(days))
    return store


def run(*words: str, source: str, training: str) -> Result:
    before = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"]
    stages = ["from-cloudtrail", f"--input_glob={source}", "train-ae", "--train_min_history=10"]
    stages += [f"--train_data_glob={training}", "--train_epochs=1", "preprocess", "inf-pytorch"]
    return CliRunner().invoke(morpheus, [*before, *stages, "add-scores", *words])


def score(*words: str, logs: str) -> Result:
    return run(*words, source=f"{logs}/new/", training=f"{logs}/old/*.json")


def read(address: str) -> bytes:
    return read_object(ObjectPath.parse(address))


def test_every_output_can_be_an_object(logs: str, tmp_path: Path) -> None:
    done = score(
        *("to-ecs", f"--filename={logs}/out/a.jsonl"),
        *("to-ocsf", f"--filename={logs}/out/a.parquet", "serialize"),
        *("to-file", f"--filename={tmp_path}/rows.csv"),
        *("to-file", f"--filename={logs}/out/rows.csv"),
        *("to-report", f"--filename={logs}/out/page.html"),
        *("to-parquet", f"--folder={logs}/set", "--partition_by=user"),
        logs=logs,
    )
    assert done.exit_code == 0, done.output
    assert read(f"{logs}/out/rows.csv") == (tmp_path / "rows.csv").read_bytes()
    incidents = 2  # of two users on one day
    assert len(read(f"{logs}/out/a.jsonl").splitlines()) == incidents
    assert pl.read_parquet(read(f"{logs}/out/a.parquet"))["count"].to_list() == [10, 10]
    assert read(f"{logs}/out/page.html").startswith(b"<!doctype html>")
    written = {path.key for path in list_recursive(ObjectPath.parse(f"{logs}/set"))}
    parts = {f"set/user={user}/part-00000.parquet" for user in ("ann", "bob")}
    assert written == {"set/_SUCCESS", *parts}


def test_an_object_is_replaced_on_request_only(logs: str) -> None:
    words = ("serialize", "to-file", f"--filename={logs}/rows.csv")
    assert score(*words, logs=logs).exit_code == 0
    first = read(f"{logs}/rows.csv")
    done = score(*words, logs=logs)
    assert done.exit_code == 2
    assert f"there is an object `{logs}/rows.csv` already" in done.stderr
    assert score(*words, "--overwrite", logs=logs).exit_code == 0
    assert read(f"{logs}/rows.csv") == first


def test_an_input_object_is_not_overwritten(logs: str) -> None:
    word = f"--filename={logs}/new/a.json"
    done = score("serialize", "to-file", word, "--overwrite", logs=logs)
    assert done.exit_code == 2
    assert "is one of the input logs, and would be replaced" in done.stderr


def test_an_output_that_cannot_be_written_is_rejected_before_the_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scheme = store.partition(":")[0]
    wrong = {
        f"{scheme}://nobody/rows.csv": "there is no (bucket|container) `nobody`",
        f"{scheme}:///rows.csv": "names no (bucket|container)",
        f"{scheme}:/lake/rows.csv": "two slashes are missing",
        f"{store}/": "is a folder",
    }
    for name, message in wrong.items():
        # The logs do not exist: the output is looked at first.
        done = run(
            *("serialize", "to-file", f"--filename={name}", "--file_type=csv"),
            source=f"{tmp_path}/none/*.json",
            training=f"{tmp_path}/none/*.json",
        )
        assert done.exit_code == 2, name
        assert re.search(message, done.stderr), (name, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_models_can_be_kept_in_any_object_store(logs: str, tmp_path: Path) -> None:
    save = ["train-ae", f"--train_data_glob={logs}/old/", "--train_min_history=10"]
    load = ["train-ae", f"--pretrained_filename={logs}/models"]
    for number, words in enumerate(([*save, f"--models_output_filename={logs}/models"], load)):
        before = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"]
        source = ["from-cloudtrail", f"--input_glob={logs}/new/a.json"]
        stages = ["preprocess", "inf-pytorch", "add-scores", "serialize", "to-file"]
        done = CliRunner().invoke(
            morpheus, [*before, *source, *words, *stages, f"--filename={tmp_path}/{number}.csv"]
        )
        assert done.exit_code == 0, done.output
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_versions_are_published_and_rolled_back_in_any_object_store(
    logs: str, tmp_path: Path
) -> None:
    store = f"{logs}/models"
    save = ("train-ae", f"--train_data_glob={logs}/old/", "--train_min_history=10")
    for number in ("1", "2"):
        words = [
            *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"),
            *("from-cloudtrail", f"--input_glob={logs}/new/a.json"),
            *(*save, f"--models_output_filename={store}", "preprocess", "inf-pytorch"),
            *("add-scores", "serialize", "to-file", f"--filename={tmp_path}/{number}.csv"),
        ]
        done = CliRunner().invoke(morpheus, words)
        assert done.exit_code == 0, done.output
        assert set(pl.read_csv(tmp_path / f"{number}.csv")["model_version"]) == {int(number)}
    done = CliRunner().invoke(morpheus, ["models", "rollback", store])
    assert done.exit_code == 0, done.output
    versions = VersionedStore.open(store)
    assert versions.read_manifest().aliases["champion"] == 1
    content, before = versions.folder.get_with_etag("store.json")
    assert versions.folder.put_if_match("store.json", content + b" ", before)
    assert not versions.folder.put_if_match("store.json", content, before), "it has changed"


@pytest.mark.usefixtures("lake")
def test_other_urls_are_rejected_where_they_cannot_be_used(tmp_path: Path) -> None:
    for words, message in (
        (["--state=s3://lake/state"], "--state: `s3://lake/state`: `s3://` is not supported here"),
        (["--columns_file=https://x/a.txt"], "--columns_file: .*`https://` is not supported"),
    ):
        before = ["run", "pipeline-ae", *words, "from-cloudtrail", f"--input_glob={tmp_path}"]
        done = CliRunner().invoke(morpheus, before)
        assert done.exit_code == 2
        assert re.search(message, done.stderr), done.stderr
