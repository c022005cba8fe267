"""A model store in MLflow: versions, aliases and artifacts of a registered model."""

import gc
import importlib
import inspect
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.errors import TransientError, UsageError
from morpheus.models import mlflow_store
from morpheus.models.versions import StagingFolder, VersionedStore, open_models
from people import day, fingerprint

mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
DATA = Path(__file__).parents[2] / "examples" / "data"
STORE = "mlflow:people"


@pytest.fixture(autouse=True)
def _server(tmp_path, monkeypatch):
    """A tracking server in a folder."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow.set_tracking_uri(None)
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")  # so that it is as before afterwards
        os.environ.pop(f"MLFLOW_HTTP_REQUEST_{name}")


@pytest.fixture
def whole_calls(monkeypatch):
    """A registry that finishes a call before it begins the next one, as a server with a database.

    In a folder, MLflow reads files that another call has written in part.
    """
    lock = threading.RLock()

    def finish_first(call):
        @wraps(call)
        def locked(*values, **options):
            with lock:
                return call(*values, **options)

        return locked

    stores = ("model_registry", "tracking")
    for store in [importlib.import_module(f"mlflow.store.{name}.file_store") for name in stores]:
        for name, call in vars(store.FileStore).items():
            if not name.startswith("_") and inspect.isfunction(call):
                monkeypatch.setattr(store.FileStore, name, finish_first(call))
    mlflow.tracking.MlflowClient().search_registered_models()  # loads what threads cannot


def named(user, model):
    return replace(model, card=msgspec.structs.replace(model.card, user=user))


@pytest.fixture(scope="module")
def two():
    return fingerprint(), fingerprint(day(500, seed=1))


def test_versions_and_aliases_are_those_of_the_registered_model(two):
    store = VersionedStore.open(STORE)
    assert store.versions() == ()
    assert store.publish([named(user, two[0]) for user in ("ann", "bob")], note="first") == 1
    assert store.publish([named("ann", two[1])]) == 2
    client = mlflow.tracking.MlflowClient()
    assert int(client.get_model_version_by_alias("people", "champion").version) == 1
    assert client.get_model_version("people", "1").description == "first"
    assert store.promote() == 2
    assert int(client.get_model_version_by_alias("people", "champion").version) == 2
    assert [store.load("ann", number).card.events for number in (1, 2)] == [400, 500]
    assert store.load("bob").card.version == 1
    assert store.rollback() == 1


@pytest.mark.parametrize("alias", ["latest", "v1"])
def test_an_alias_that_mlflow_reserves_is_rejected_before_anything_is_read(two, alias):
    store = VersionedStore.open(STORE)
    with pytest.raises(UsageError, match=f"MLflow reserves the alias `{alias}`"):
        store.publish([named("ann", two[0])], alias=alias)
    assert store.versions() == ()
    words = ["run", "pipeline-ae", "from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv"]
    words += ["train-ae", f"--models_output_filename={STORE}@{alias}"]
    result = CliRunner().invoke(morpheus, words)
    assert (result.exit_code, "reserves the alias" in result.output) == (2, True), result.output


@pytest.mark.usefixtures("whole_calls")
def test_two_publishers_lose_nothing(two):
    VersionedStore.open(STORE).publish([named("ann", two[0])])

    def publish(name):
        for number in range(3):
            user = named(f"{name}{number}", two[0])
            VersionedStore.open(STORE).publish([user], alias="champion")

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(publish, name) for name in "xy"]:
            each.result()
    names = {f"{name}{number}" for name in "xy" for number in range(3)} | {"ann"}
    assert set(VersionedStore.open(STORE).open_version().cards) == names


def test_runs_at_the_same_time_have_numbers_of_their_own(two):
    for first in (1, 3):  # in a new store, and in one with versions
        runs = [StagingFolder(VersionedStore.open(STORE)) for _ in range(2)]
        numbers = [run.reserve() for run in runs]
        assert numbers == [first, first + 1]
        for number in reversed(numbers):
            named_user = named(f"user{number}", two[0])
            assert VersionedStore.open(STORE).publish([named_user], number=number) == number
    store = VersionedStore.open(STORE)
    assert [each.number for each in store.versions()] == [1, 2, 3, 4]
    assert sorted(store.open_version(3).cards) == ["user2", "user3"]  # 2 was first


def test_a_run_that_fails_leaves_no_version_and_nobody_waits_for_it(two):
    run = StagingFolder(VersionedStore.open(STORE))
    assert run.reserve() == 1
    del run
    gc.collect()
    assert mlflow.tracking.MlflowClient().search_model_versions("name = 'people'") == []
    assert VersionedStore.open(STORE).publish([named("ann", two[0])]) == 2, "MLflow reuses none"


def test_a_published_version_is_never_released(two):
    """Its number still counts as reserved if the server fails just after the publication."""
    store = VersionedStore.open(STORE)
    number = store.publish([named("ann", two[0])], alias="champion")
    client = mlflow.tracking.MlflowClient()
    client.set_model_version_tag("people", str(number), mlflow_store.RESERVED_TAG, "1")
    store.release(number)
    assert open_models(STORE).number == number


@pytest.mark.usefixtures("whole_calls")
def test_first_runs_that_start_at_once_share_one_model_and_lose_nothing(two):
    def publish(name):
        run = StagingFolder(VersionedStore.open(STORE))
        number = run.reserve()
        user = named(name, two[0])
        return VersionedStore.open(STORE).publish([user], alias="champion", number=number)

    with ThreadPoolExecutor(4) as pool:
        published = list(pool.map(publish, "abcd"))
    assert sorted(published) == [1, 2, 3, 4]
    assert sorted(VersionedStore.open(STORE).open_version().cards) == ["a", "b", "c", "d"]
    assert VersionedStore.open(STORE).load("a") is not None


def test_a_publisher_that_fails_or_died_leaves_the_version_before(two, monkeypatch):
    store = VersionedStore.open(STORE)
    store.publish([named("ann", two[0])])
    taken = mlflow_store.MlflowVersions._update  # noqa: SLF001 - to fail in the middle
    monkeypatch.setattr(mlflow_store.MlflowVersions, "_update", fail)
    with pytest.raises(RuntimeError):
        store.publish([named("bob", two[0])])
    monkeypatch.setattr(mlflow_store.MlflowVersions, "_update", taken)
    assert [each.number for each in store.versions()] == [1]
    client = mlflow.tracking.MlflowClient()
    run = client.get_registered_model("people").tags[mlflow_store.RUN_TAG]
    tags = {mlflow_store.PENDING_TAG: "1"}
    client.create_model_version("people", "file:///none", run, tags=tags)  # of a run that died
    monkeypatch.setattr(mlflow_store, "WAIT_SECONDS", 0.5)
    number = store.publish([named("bob", two[0])], alias="champion")
    assert [each.number for each in store.versions()] == [1, number]
    assert sorted(store.open_version().cards) == ["ann", "bob"]


def fail(*_):
    raise RuntimeError


def test_pruned_and_erased_versions_are_removed_from_the_server(two):
    store = VersionedStore.open(STORE)
    for user in ("ann", "bob", "eve", "joe"):
        store.publish([named(user, two[0])], base=None)
    removed = store.prune(keep=1)
    assert removed
    client = mlflow.tracking.MlflowClient()
    left = {int(each.version) for each in client.search_model_versions("name = 'people'")}
    assert left == {1, 2, 3, 4} - set(removed)
    store.erase(["ann"])
    assert "ann" not in store.open_version(1).cards


def test_a_run_publishes_and_loads(tmp_path):
    words = ["run", "--num_threads=1", "pipeline-ae"]
    words += ["--userid_column_name=userIdentitysessionContextsessionIssueruserName"]
    words += ["from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv", "train-ae"]
    rest = ["preprocess", "inf-pytorch", "add-scores", "serialize", "to-file"]
    learn = [f"--train_data_glob={DATA}/training-data/*.csv", "--train_epochs=1"]
    first, again = tmp_path / "first.csv", tmp_path / "again.csv"
    for training, out in (
        ([*learn, f"--models_output_filename={STORE}"], first),
        ([f"--pretrained_filename={STORE}"], again),
    ):
        result = CliRunner().invoke(morpheus, [*words, *training, *rest, f"--filename={out}"])
        assert result.exit_code == 0, result.output
    assert first.read_bytes() == again.read_bytes()
    assert sorted(open_models(STORE).cards) == ["role-g", "user123"]
    listed = CliRunner().invoke(morpheus, ["models", "list", STORE])
    assert "champion" in listed.output


@pytest.mark.parametrize("name", ["mlflow:", "mlflow:a/b", "mlflow:a b"])
def test_a_name_that_is_no_model_is_rejected(name):
    with pytest.raises(UsageError, match=r"names no registered model. Give `mlflow:NAME`"):
        VersionedStore.open(name)


def test_a_key_is_rejected():
    with pytest.raises(UsageError, match="stores in MLflow are not signed"):
        VersionedStore.open(STORE, b"k" * 32)


@contextmanager
def silent_server():
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dead_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def unknown_name():
    yield "http://nowhere.invalid:5000"


@pytest.mark.parametrize("server", [dead_address, silent_server, unknown_name])
def test_a_server_that_does_not_answer_is_named_soon(server, monkeypatch):
    with server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//ann:secret@"))
        begin = time.monotonic()
        for command in (["list", STORE], ["promote", f"{STORE}@2"]):
            result = CliRunner().invoke(morpheus, ["models", *command])
            assert result.exit_code == 1
            assert f"{STORE}: the MLflow server {address} cannot be reached (" in result.output
            assert "set MLFLOW_TRACKING_URI" in result.output
            assert "secret" not in result.output
        assert time.monotonic() - begin < 2 * 15


def test_a_server_that_is_gone_meanwhile_is_an_error_soon(monkeypatch):
    with silent_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr(mlflow_store, "_check_server", lambda *_: None)
        files = VersionedStore.open(STORE).folder
        _ = files.client
    begin = time.monotonic()
    with pytest.raises(TransientError, match="mlflow:people: MLflow answered with an error"):
        files.find_model()
    assert time.monotonic() - begin < 15


def test_a_server_that_stops_to_answer_meanwhile_is_an_error_soon(monkeypatch):
    monkeypatch.setitem(mlflow_store.PATIENCE, mlflow_store.TIMEOUT, "1")
    with silent_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr(mlflow_store, "_check_server", lambda *_: None)
        files = VersionedStore.open(STORE).folder
        begin = time.monotonic()
        with pytest.raises(TransientError, match="mlflow:people: MLflow answered with an error"):
            files.find_model()
        assert time.monotonic() - begin < 15
