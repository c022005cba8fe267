import json
import os
import pickletools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from morpheus.errors import ModelCorruptedError
from morpheus.models.store import (
    INDEX_VERSION,
    LazyModelCards,
    ModelIndex,
    ModelStore,
    commit_index,
    put_model,
)
from people import day, fingerprint


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


@pytest.fixture
def folder(tmp_path, ann):
    path = tmp_path / "models"
    commit(path, {"ann": put_model(path, ann)})
    return path


def commit(path, cards, global_card=None, **options):
    commit_index(path, ModelIndex.from_cards(cards, global_card), **options)


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_saved_fingerprint_loads_unchanged(folder, ann):
    back = ModelStore.open(folder).load("ann")
    rows = ann.encoder.encode(day())
    assert np.array_equal(back.losses(rows), ann.losses(rows))
    assert np.array_equal(back.net.weights, ann.net.weights)
    assert msgspec.structs.replace(back.card, size=0, sha256="") == ann.card
    assert back.encoder == ann.encoder


def test_user_without_a_fingerprint_gives_none(folder):
    assert ModelStore.open(folder).load("bob") is None


def test_flipped_byte_in_a_fingerprint_is_detected(folder):
    [path] = (folder / "fingerprints").iterdir()
    for at in (0, 9, 100, path.stat().st_size // 2, path.stat().st_size - 1):
        flipped(path, at)
        with pytest.raises(
            ModelCorruptedError, match=r"'ann' does not match its checksum.*train again"
        ):
            ModelStore.open(folder).load("ann")
        flipped(path, at)
    assert ModelStore.open(folder).load("ann") is not None


def test_flipped_byte_in_the_index_is_detected(folder):
    path = folder / "index.json"
    for at in range(0, path.stat().st_size, 3):
        flipped(path, at)
        with pytest.raises(ModelCorruptedError):
            ModelStore.open(folder)
        flipped(path, at)


def test_error_names_a_missing_file_or_index(folder):
    [path] = (folder / "fingerprints").iterdir()
    path.unlink()
    with pytest.raises(ModelCorruptedError, match=rf"{path.name}.*cannot be read"):
        ModelStore.open(folder).load("ann")
    with pytest.raises(
        ModelCorruptedError, match=r"index.json: cannot be read.*--models_output_filename"
    ):
        ModelStore.open(folder.parent)


def test_user_name_never_becomes_a_path(tmp_path, ann):
    path = tmp_path / "deep" / "models"
    name = "../../../etc/x"
    card = put_model(path, replace(ann, card=msgspec.structs.replace(ann.card, user=name)))
    commit(path, {name: card})
    assert ModelStore.open(path).load(name) is not None
    assert {p.parent for p in tmp_path.rglob("*.safetensors")} == {path / "fingerprints"}


def test_index_cannot_point_outside_the_folder(folder):
    card = msgspec.structs.replace(ModelStore.open(folder).cards["ann"], sha256="../../secret")
    commit(folder, {"ann": card})
    with pytest.raises(ModelCorruptedError, match=r"card of 'ann'.*sha256.*Train again"):
        ModelStore.open(folder).load("ann")
    commit(folder, {}, card)
    with pytest.raises(ModelCorruptedError, match=r"is not an index of fingerprints.*train again"):
        ModelStore.open(folder)


def test_commit_keeps_the_files_of_the_index_before(folder, ann):
    [old] = (folder / "fingerprints").iterdir()
    bob = put_model(folder, replace(ann, card=msgspec.structs.replace(ann.card, user="bob")))
    assert set(ModelStore.open(folder).cards) == {"ann"}, "half a run leaves the last good index"
    begun = ModelStore.open(folder)
    os.utime(old, (0, 0))
    commit(folder, {"bob": bob})
    assert set(ModelStore.open(folder).cards) == {"bob"}
    assert begun.load("ann") is not None, "a run that began before goes on"
    commit(folder, {"bob": bob})
    assert not old.exists(), "no index has it, nor had the last, and it is old"


def test_commit_keeps_young_files_of_other_runs(folder, ann):
    card = put_model(folder, replace(ann, card=msgspec.structs.replace(ann.card, user="bob")))
    commit(folder, ModelStore.open(folder).cards)
    commit(folder, ModelStore.open(folder).cards)
    commit(folder, {"bob": card})
    assert ModelStore.open(folder).load("bob") is not None


def test_files_hold_no_raw_rows_and_no_pickle(folder):
    [path] = (folder / "fingerprints").iterdir()
    with pytest.raises(ValueError, match=r"opcode|pickle"):
        pickletools.dis(path.read_bytes())
    assert json.loads((folder / "index.json").read_text())["version"] == INDEX_VERSION


def test_index_of_another_version_is_rejected(folder):
    path = folder / "index.json"
    content = path.read_bytes()
    for version, age in ((4, "an older"), (6, "a newer")):
        path.write_bytes(content.replace(b'"version":5', b'"version":%d' % version))
        with pytest.raises(
            ModelCorruptedError, match=rf"{age} version of morpheus wrote it.*Train again"
        ):
            ModelStore.open(folder)


def test_card_is_decoded_when_used_and_a_broken_card_is_named(folder, ann):
    cards = ModelStore.open(folder).cards
    assert (list(cards), len(cards), "ann" in cards, "bob" in cards) == (["ann"], 1, True, False)
    assert msgspec.structs.replace(cards["ann"], size=0, sha256="") == ann.card
    assert cards.get("bob") is None
    broken = LazyModelCards({"bob": msgspec.Raw(b'{"user":7}')})
    with pytest.raises(
        ModelCorruptedError, match=r"card of 'bob'.*Expected `str`, got `int`.*Train again"
    ):
        broken["bob"]


def test_file_that_is_not_an_index_is_replaced(folder, ann):
    (folder / "index.json").write_bytes(b"no index")
    commit(folder, {"ann": put_model(folder, ann)})
    assert ModelStore.open(folder).load("ann") is not None
