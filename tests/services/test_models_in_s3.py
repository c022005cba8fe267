"""Model stores in S3, shared by runs and workers."""

from __future__ import annotations

import gc
import io
import threading
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl
import pytest

from lakes import Lake
from morpheus.core.stage import PipelineOptions
from morpheus.errors import ModelCorruptedError, TransientError, UsageError
from morpheus.models import store
from morpheus.models.profile import Fingerprint
from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model
from morpheus.models.versions import NewVersion, StagingFolder, VersionedStore, open_models
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import ObjectStore
from morpheus.storage.object_store import (
    ObjectPath,
    delete_objects,
    put_if_match,
    read_object,
    write_object,
)
from people import day, fingerprint

MODELS = "s3://lake/models/"


@pytest.fixture(scope="module")
def ann() -> Fingerprint:
    return fingerprint()


def for_user(ann: Fingerprint, user: str) -> Fingerprint:
    return replace(ann, card=msgspec.structs.replace(ann.card, user=user))


def test_model_survives_the_store(lake: Lake, ann: Fingerprint) -> None:
    users = {user: put_model(MODELS, for_user(ann, user)) for user in ("ann", "bob")}
    commit_index(MODELS, ModelIndex.from_cards(users))
    lake.forget()
    models = ModelStore.open("s3://lake/models")
    loaded = models.load("bob")
    assert loaded is not None
    assert loaded.card == users["bob"]
    rows = ann.encoder.encode(day())
    assert np.array_equal(loaded.losses(rows), ann.losses(rows))
    name = f"models/fingerprints/{users['bob'].sha256}.safetensors"
    assert lake.fetched == [name, "models/index.json"], "only the index and the user's model"


def test_interrupted_run_keeps_the_old_index(lake: Lake, ann: Fingerprint) -> None:
    commit_index(MODELS, ModelIndex.from_cards({"ann": put_model(MODELS, ann)}))
    put_model(MODELS, for_user(ann, "bob"))
    assert set(ModelStore.open(MODELS).cards) == {"ann"}
    assert len(lake.names("models/fingerprints")) == 2


def test_unreferenced_models_are_removed_after_the_grace_period(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_index(MODELS, ModelIndex.from_cards({"ann": put_model(MODELS, ann)}))
    bob = put_model(MODELS, for_user(ann, "bob"))
    monkeypatch.setattr(store, "GC_GRACE", timedelta(seconds=-60))
    commit_index(MODELS, ModelIndex.from_cards({"bob": bob}))
    assert len(lake.names("models/fingerprints")) == 2, "the previous index had ann"
    commit_index(MODELS, ModelIndex.from_cards({"bob": bob}))
    assert lake.names("models/fingerprints") == [f"models/fingerprints/{bob.sha256}.safetensors"]


def simulate_concurrent_writes(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Simulate another run that writes the index after this one has read it, some times."""
    read, left = ObjectStore.get_with_etag, iter(range(times))

    def read_late(where: ObjectStore, name: str) -> tuple[bytes, str | None]:
        state, index = read(where, name), ObjectPath("lake", "models/index.json")
        for _ in islice(left, 1):
            write_object(index, read_object(index) + b" ")
        return state

    monkeypatch.setattr(ObjectStore, "get_with_etag", read_late)


def test_concurrent_runs_leave_a_complete_index(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (put_model(MODELS, for_user(ann, user)) for user in ("ann", "bob"))
    commit_index(MODELS, ModelIndex.from_cards({"bob": theirs}))
    lake.forget()
    simulate_concurrent_writes(monkeypatch, times=2)
    commit_index(MODELS, ModelIndex.from_cards({"ann": mine}))
    assert set(ModelStore.open(MODELS).cards) == {"ann"}
    puts = [path for method, path in lake.asked if method == "PUT"]
    assert len(puts) == 2 + 2 + 1, "two of the other run, two rejected, and the last"


def test_index_that_others_keep_writing_is_an_error(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = put_model(MODELS, ann)
    commit_index(MODELS, ModelIndex.from_cards({"ann": card}))
    assert lake.address
    simulate_concurrent_writes(monkeypatch, times=99)
    with pytest.raises(
        TransientError, match=r"index.json: other runs keep writing it. Train again"
    ):
        commit_index(MODELS, ModelIndex.from_cards({"ann": card}))


class Old(BaseHTTPRequestHandler):
    """A server without conditional writes."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        conditions = {"If-Match", "If-None-Match"} & set(self.headers)
        self.kept |= {} if conditions else {self.path: body}
        self.send_response(501 if conditions else 200)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", '"1"')
        self.end_headers()

    def log_message(self, *about: object) -> None:
        """Say nothing."""


def test_server_without_conditional_writes_is_written_unconditionally(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for etag in (None, '"1"'):
        assert put_if_match(ObjectPath("lake", "index.json"), b"new", etag)
        assert Old.kept.pop("/lake/index.json") == b"new"
    server.shutdown()
    server.server_close()


def test_changed_and_missing_objects_are_reported(lake: Lake, ann: Fingerprint) -> None:
    commit_index(MODELS, ModelIndex.from_cards({"ann": put_model(MODELS, ann)}))
    [key] = lake.names("models/fingerprints")
    lake.put(key, lake.read(key)[:-1] + b"?")
    with pytest.raises(
        ModelCorruptedError, match=rf"s3://lake/{key}: fingerprint of 'ann' does not match"
    ):
        ModelStore.open(MODELS).load("ann")
    delete_objects([ObjectPath("lake", key)])
    with pytest.raises(ModelCorruptedError, match=r"'ann' cannot be read \(no such object\)"):
        ModelStore.open(MODELS).load("ann")
    with pytest.raises(ModelCorruptedError, match=r"s3://lake/other/index.json: cannot be read"):
        ModelStore.open("s3://lake/other")


def test_missing_bucket_is_rejected_before_training(lake: Lake) -> None:
    assert lake.address
    with pytest.raises(UsageError, match="there is no bucket `nowhere`"):
        TrainAe(models_output_filename="s3://nowhere/models").validate()
    with pytest.raises(UsageError, match="there is no bucket `nowhere`"):
        TrainAe(pretrained_filename="s3://nowhere/models").validate()


def events(users: int, rows: int) -> bytes:
    """Events of users who call one of two services, once an hour."""
    frame = pl.DataFrame(
        [
            {
                "eventTime": f"2024-05-{1 + row // 24:02}T{row % 24:02}:00:00Z",
                "eventName": f"Call{(row * row) % 7}",
                "eventSource": ("s3", "ec2")[(row // (user + 2)) % 2],
                "userIdentityuserName": f"user{user}",
            }
            for user in range(users)
            for row in range(rows)
        ]
    )
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def score(out: Path, logs: str, train: TrainAe) -> bytes:
    options = PipelineOptions(
        userid_column_name="userIdentityuserName", columns=("eventName", "eventSource")
    )
    stages = [FromCloudtrail(input_glob=logs), train, Preprocess(), InfPytorch(), AddScores()]
    Pipeline([*stages, Serialize(), ToFile(filename=str(out))], options).run()
    return out.read_bytes()


def test_runs_share_models_through_a_bucket(lake: Lake, tmp_path: Path) -> None:
    lake.put("logs/date=2024-05-01/a.parquet", events(3, 200))
    logs, few = "s3://lake/logs/", {"train_min_history": 100, "train_epochs": 3}
    models = str(tmp_path / "models")
    outputs = [
        score(
            tmp_path / f"{n}.csv",
            logs,
            TrainAe(train_data_glob=logs, models_output_filename=target, **few),  # type: ignore[arg-type] # numbers only
        )
        for n, target in enumerate((models, MODELS))
    ]
    assert open_models(MODELS).cards == open_models(models).cards
    assert "models/store.json" in lake.names("models")
    loaded = score(tmp_path / "2.csv", logs, TrainAe(pretrained_filename=MODELS))
    assert outputs[0] == outputs[1] == loaded


def test_versions_in_a_bucket_share_what_did_not_change(lake: Lake, ann: Fingerprint) -> None:
    versions = VersionedStore.open(MODELS)
    assert versions.publish([for_user(ann, "ann"), for_user(ann, "bob")]) == 1
    assert versions.publish([for_user(ann, "eve")]) == 2
    lake.fetched.clear()
    assert open_models(f"{MODELS}@candidate").load("bob") is not None
    packs = [name for name in lake.fetched if "/packs/" in name]
    assert len(packs) == 1, "a part of one pack"
    assert versions.promote() == 2
    assert versions.rollback() == 1
    assert sorted(open_models(MODELS).cards) == ["ann", "bob"]
    versions.erase(["bob"])
    assert all(b"bob" not in lake.read(name) for name in lake.names("models"))
    assert sorted(open_models(f"{MODELS}@2").cards) == ["ann", "eve"]


@pytest.mark.usefixtures("lake")
def test_two_publishers_of_a_bucket_lose_nothing(
    ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    VersionedStore.open(MODELS).publish([for_user(ann, "ann")])
    write, others = ObjectStore.put_if_match, ["bob", "eve"]

    def publish_between(place: ObjectStore, name: str, content: bytes, etag: str | None) -> bool:
        if others:
            user = others.pop()
            VersionedStore.open(MODELS).publish([for_user(ann, user)], alias="champion")
        return write(place, name, content, etag)

    monkeypatch.setattr(ObjectStore, "put_if_match", publish_between)
    VersionedStore.open(MODELS).publish([for_user(ann, "joe")], alias="champion")
    versions = VersionedStore.open(MODELS)
    assert [each.number for each in versions.versions()] == [1, 2, 3, 4]
    assert sorted(versions.open_version().cards) == ["ann", "bob", "eve", "joe"]


def test_a_bucket_that_has_lost_its_manifest_is_damaged_and_not_an_empty_store(
    lake: Lake, ann: Fingerprint
) -> None:
    versions = VersionedStore.open(MODELS)
    assert versions.publish([for_user(ann, "ann")]) == 1
    delete_objects([ObjectPath("lake", "models/store.json")])
    before = lake.names("models")
    for act in (
        versions.versions,
        versions.reserve,
        lambda: open_models(MODELS),
        lambda: versions.publish_placed(NewVersion(()), "champion"),
        lambda: versions.erase(["ann"]),
    ):
        with pytest.raises(ModelCorruptedError, match=r"store.json: is missing, but there are"):
            act()
    with pytest.raises(UsageError, match=r"is missing.*To start again, give another folder"):
        TrainAe(models_output_filename=MODELS).validate()
    assert lake.names("models") == before


def test_first_runs_of_a_bucket_have_numbers_of_their_own(lake: Lake, ann: Fingerprint) -> None:
    runs = [StagingFolder(VersionedStore.open(MODELS)) for _ in range(3)]
    assert [run.reserve() for run in runs] == [1, 2, 3]
    runs.pop()
    gc.collect()
    assert VersionedStore.open(MODELS).versions() == ()
    assert VersionedStore.open(MODELS).publish([for_user(ann, "ann")]) == 3, "it was given back"
    assert lake.names("models").count("models/store.json") == 1


@pytest.mark.usefixtures("lake")
def test_a_publisher_that_is_always_overtaken_says_so(
    ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore, "put_if_match", lambda *_: False)
    with pytest.raises(TransientError, match=r"store.json: other runs keep writing it"):
        VersionedStore.open(MODELS).publish([for_user(ann, "ann")])


def test_a_bucket_without_versions_is_version_1(lake: Lake, ann: Fingerprint) -> None:
    commit_index(MODELS, ModelIndex.from_cards({"ann": put_model(MODELS, for_user(ann, "ann"))}))
    versions = VersionedStore.open(MODELS)
    assert [each.number for each in versions.versions()] == [1]
    assert versions.publish([for_user(ann, "bob")]) == 2
    assert sorted(open_models(f"{MODELS}@2").cards) == ["ann", "bob"]
    assert open_models(f"{MODELS}@2").load("ann") is not None
    assert "models/index.json" not in lake.names("models")
