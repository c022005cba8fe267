"""Fingerprints in S3, shared by runs and workers."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from lakes import Lake
from morpheus.core.stage import PipelineOptions
from morpheus.errors import ModelCorruptedError, TransientError, UsageError
from morpheus.models import store
from morpheus.models.profile import Fingerprint
from morpheus.models.store import ModelStore, commit_index, put_model
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.folder import ObjectStore
from morpheus.storage.object_store import (
    S3Path,
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


def named(ann: Fingerprint, user: str) -> Fingerprint:
    return replace(ann, card=replace(ann.card, user=user))


def test_a_fingerprint_comes_back_as_it_was(lake: Lake, ann: Fingerprint) -> None:
    users = {user: put_model(MODELS, named(ann, user)) for user in ("ann", "bob")}
    commit_index(MODELS, users)
    lake.forget()
    opened = ModelStore.open("s3://lake/models")
    back = opened.load("bob")
    assert back is not None
    assert back.card == users["bob"]
    rows = ann.encoder.encode(day())
    assert np.array_equal(back.losses(rows), ann.losses(rows))
    name = f"models/fingerprints/{users['bob'].sha256}.safetensors"
    assert lake.fetched == [name, "models/index.json"], "no object but the index and the user's"


def test_half_a_run_leaves_the_last_good_ones(lake: Lake, ann: Fingerprint) -> None:
    commit_index(MODELS, {"ann": put_model(MODELS, ann)})
    put_model(MODELS, named(ann, "bob"))
    assert set(ModelStore.open(MODELS).cards) == {"ann"}
    assert len(lake.names("models/fingerprints")) == 2


def test_what_no_index_has_is_removed_once_it_is_old(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_index(MODELS, {"ann": put_model(MODELS, ann)})
    bob = put_model(MODELS, named(ann, "bob"))
    monkeypatch.setattr(store, "GC_GRACE", timedelta(seconds=-60))
    commit_index(MODELS, {"bob": bob})
    assert len(lake.names("models/fingerprints")) == 2, "the last index had ann"
    commit_index(MODELS, {"bob": bob})
    assert lake.names("models/fingerprints") == [f"models/fingerprints/{bob.sha256}.safetensors"]


def rival(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Another run, which writes the index as often, whenever this one has read it."""
    read, left = ObjectStore.get_with_etag, iter(range(times))

    def read_late(where: ObjectStore, name: str) -> tuple[bytes, str | None]:
        found, index = read(where, name), S3Path("lake", "models/index.json")
        for _ in islice(left, 1):
            write_object(index, read_object(index) + b" ")
        return found

    monkeypatch.setattr(ObjectStore, "read_marked", read_late)


def test_of_two_runs_that_publish_at_once_the_last_index_is_whole(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (put_model(MODELS, named(ann, user)) for user in ("ann", "bob"))
    commit_index(MODELS, {"bob": theirs})
    lake.forget()
    rival(monkeypatch, times=2)
    commit_index(MODELS, {"ann": mine})
    assert set(ModelStore.open(MODELS).cards) == {"ann"}
    puts = [path for method, path in lake.asked if method == "PUT"]
    assert len(puts) == 2 + 2 + 1, "each of theirs, mine refused as often, and mine"


def test_an_index_that_others_keep_writing_is_given_up(
    lake: Lake, ann: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = put_model(MODELS, ann)
    commit_index(MODELS, {"ann": card})
    assert lake.address
    rival(monkeypatch, times=99)
    with pytest.raises(
        TransientError, match=r"index.json: other runs keep writing it. Train again"
    ):
        commit_index(MODELS, {"ann": card})


class Old(BaseHTTPRequestHandler):
    """A server that knows no conditions."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = {"If-Match", "If-None-Match"} & set(self.headers)
        self.kept |= {} if asked else {self.path: body}
        self.send_response(501 if asked else 200)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", '"1"')
        self.end_headers()

    def log_message(self, *about: object) -> None:
        """Say nothing."""


def test_a_server_without_conditions_is_written_to_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for mark in (None, '"1"'):
        assert put_if_match(S3Path("lake", "index.json"), b"new", mark)
        assert Old.kept.pop("/lake/index.json") == b"new"
    server.shutdown()
    server.server_close()


def test_a_changed_object_and_a_missing_one_are_named(lake: Lake, ann: Fingerprint) -> None:
    commit_index(MODELS, {"ann": put_model(MODELS, ann)})
    [key] = lake.names("models/fingerprints")
    lake.put(key, lake.read(key)[:-1] + b"?")
    with pytest.raises(
        ModelCorruptedError, match=rf"s3://lake/{key}: fingerprint of 'ann' does not match"
    ):
        ModelStore.open(MODELS).load("ann")
    delete_objects([S3Path("lake", key)])
    with pytest.raises(ModelCorruptedError, match=r"'ann' cannot be read \(no such object\)"):
        ModelStore.open(MODELS).load("ann")
    with pytest.raises(ModelCorruptedError, match=r"s3://lake/other/index.json: cannot be read"):
        ModelStore.open("s3://lake/other")


def test_a_bucket_that_is_not_there_ends_the_run_before_anything_is_learnt(lake: Lake) -> None:
    assert lake.address
    with pytest.raises(UsageError, match="there is no bucket `nowhere`"):
        TrainAe(models_output_filename="s3://nowhere/models").validate()
    with pytest.raises(UsageError, match="there is no bucket `nowhere`"):
        TrainAe(pretrained_filename="s3://nowhere/models").validate()


def events(users: int, rows: int) -> bytes:
    """Users who each call one of two services, once an hour."""
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
    written = io.BytesIO()
    frame.write_parquet(written)
    return written.getvalue()


def scored(out: Path, logs: str, train: TrainAe) -> bytes:
    settings = PipelineOptions(
        userid_column_name="userIdentityuserName", columns=("eventName", "eventSource")
    )
    stages = [FromCloudtrail(input_glob=logs), train, Preprocess(), InfPytorch(), AddScores()]
    Pipeline([*stages, Serialize(), ToFile(filename=str(out))], settings).run()
    return out.read_bytes()


def test_runs_share_models_through_a_bucket(lake: Lake, tmp_path: Path) -> None:
    lake.put("logs/date=2024-05-01/a.parquet", events(3, 200))
    logs, few = "s3://lake/logs/", {"train_min_history": 100, "train_epochs": 3}
    models = str(tmp_path / "models")
    learnt = [
        scored(
            tmp_path / f"{n}.csv",
            logs,
            TrainAe(train_data_glob=logs, models_output_filename=place, **few),  # type: ignore[arg-type] # numbers only
        )
        for n, place in enumerate((models, MODELS))
    ]
    there = {key.removeprefix("models/"): lake.read(key) for key in lake.names("models")}
    here = {path.relative_to(models).as_posix(): path for path in Path(models).rglob("*.*")}
    assert there == {name: path.read_bytes() for name, path in here.items()}
    loaded = scored(tmp_path / "2.csv", logs, TrainAe(pretrained_filename=MODELS))
    assert learnt[0] == learnt[1] == loaded
