"""`tools prune`, `tools erase` and `tools pseudonym`: old data, one user's data, and names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.core.state import StateKey
from morpheus.models.store import ModelIndex, commit_index, put_model
from morpheus.models.versions import VersionedStore, open_models
from morpheus.runtime.states import SinkProgress, SqliteStateStore
from morpheus.sources.pseudonyms import PseudonymKey
from people import day, fingerprint

NOW = datetime.now(UTC)
KEY = "k" * 32


def tools(*words: object, text: str = "") -> Result:
    command = ["tools", *map(str, words)]
    return CliRunner().invoke(morpheus, command, prog_name="morpheus", input=text)


def make_file(path: Path, days_old: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("row\n")
    changed = (NOW - timedelta(days=days_old)).timestamp()
    os.utime(path, (changed, changed))
    return path


def make_state(
    path: Path, users: Iterable[str | None], monkeypatch: pytest.MonkeyPatch, days_old: float = 0
) -> Path:
    saved = (NOW - timedelta(days=days_old)).timestamp()
    monkeypatch.setattr("morpheus.runtime.states.time.time", lambda: saved)
    with closing(SqliteStateStore(path, {"source": "from-duo"})) as store:
        store.save({StateKey("source", user): f"secret of {user}".encode() for user in users})
        store.commit()
    return path


def users_of(path: Path) -> set[str | None]:
    with closing(SqliteStateStore(path, {})) as store:
        return set(store.list_users())


def test_prune_removes_nothing_without_delete(tmp_path: Path) -> None:
    old = make_file(tmp_path / "old.csv", days_old=100)
    listed = tools("prune", "--older_than=90d", tmp_path)
    assert listed.exit_code == 0
    assert str(old) in listed.output
    assert "Found 1 item. Nothing was removed" in listed.output
    assert old.exists()
    removed = tools("prune", "--older_than=90d", "--delete", tmp_path)
    assert "Removed 1 item." in removed.output
    assert not old.exists()


def test_prune_goes_by_the_day_of_a_folder_and_else_by_the_last_change(tmp_path: Path) -> None:
    today = f"{NOW:%Y-%m-%d}"
    gone = [
        make_file(tmp_path / "date=2020-01-05" / "user=ann" / "part-00000.parquet"),
        make_file(tmp_path / "region=eu" / "eventDay=20200105" / "a.parquet"),
        make_file(tmp_path / "page.html", days_old=91),
        make_file(tmp_path / "alerts.jsonl.zst", days_old=91),
        make_file(tmp_path / "dead-letters.jsonl", days_old=91),
    ]
    kept = [
        make_file(tmp_path / f"date={today}" / "part-00000.parquet", days_old=200),
        make_file(tmp_path / "new.csv", days_old=89),
        make_file(tmp_path / "date=2020-13-45" / "new.csv"),
        make_file(tmp_path / ".hidden.csv", days_old=200),
        make_file(tmp_path / "notes.txt", days_old=200),
        make_file(tmp_path / "table" / "_delta_log" / "0.json", days_old=200),
        make_file(tmp_path / "table" / "date=2020-01-05" / "a.parquet", days_old=200),
        make_file(tmp_path / "models" / "index.json", days_old=200),
        make_file(tmp_path / "models" / "fingerprints" / "a.csv", days_old=200),
    ]
    link = tmp_path / "link.csv"
    link.symlink_to(make_file(tmp_path.parent / "elsewhere.csv", days_old=200))
    result = tools("prune", "--older_than=90d", "--delete", tmp_path)
    assert result.exit_code == 0
    assert [path for path in gone if path.exists()] == []
    assert [path for path in (*kept, link) if not path.exists()] == []
    assert not (tmp_path / "date=2020-01-05").exists()
    assert (tmp_path.parent / "elsewhere.csv").exists()
    assert "this Delta table is left alone" in result.output
    assert "this model store is left alone" in result.output


def test_prune_removes_the_state_of_users_whom_no_run_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_state(tmp_path / "state.db", ["ann", None], monkeypatch, days_old=100)
    make_state(path, ["bob"], monkeypatch)
    monkeypatch.undo()
    listed = tools("prune", "--older_than=90d", path)
    assert "state of ann" in listed.output
    assert "state of (no user)" in listed.output
    assert "bob" not in listed.output
    assert users_of(path) == {"ann", "bob", None}
    tools("prune", "--older_than=90d", "--delete", path)
    assert users_of(path) == {"bob"}
    assert b"secret of ann" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_prune_rejects_paths_that_it_cannot_read(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", "s3://bucket/out"):
        result = tools("prune", "--older_than=90d", place)
        assert result.exit_code == 2
        assert "on this machine" in result.output
    assert tools("prune", tmp_path).exit_code == 2


def test_erase_removes_the_state_of_a_user_by_name_and_by_pseudonym(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    hidden = PseudonymKey(KEY.encode()).pseudonym("ann")
    path = make_state(tmp_path / "state.db", ["ann", hidden, "bob"], monkeypatch)
    monkeypatch.undo()
    words = ["erase", f"--state={path}", f"--pseudonym_key_file={key_file}", "ann"]
    assert "Found 2 items. Nothing was removed" in tools(*words).output
    assert users_of(path) == {"ann", hidden, "bob"}
    assert "Removed 2 items" in tools(*words, "--delete").output
    assert users_of(path) == {"bob"}
    content = path.read_bytes()
    assert b"secret of ann" not in content
    assert hidden.encode() not in content


def test_erase_says_that_rows_wait_and_overwrites_those_that_do_not_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_state(tmp_path / "state.db", ["ann"], monkeypatch)
    monkeypatch.undo()
    rows = b"rows of ann " * 5000
    with closing(SqliteStateStore(path, {})) as store:
        number = store.add_to_outbox("tail", rows)
        store.commit()
    words = ["erase", f"--state={path}", "ann", "--delete"]
    assert "also has rows that wait for a sink" in tools(*words).output
    with closing(SqliteStateStore(path, {})) as store:
        store.save_sink("to-file#1", "tail", SinkProgress(number))
        store.trim_outbox()
        store.commit()
    assert "rows that wait" not in tools(*words).output
    assert b"rows of ann" not in path.read_bytes()


def test_erase_removes_the_fingerprints_of_a_user_with_their_older_files(tmp_path: Path) -> None:
    store = tmp_path / "models"
    cards = {}
    for user, seed in (("ann", 0), ("ann", 1), ("bob", 2)):
        learned = fingerprint(day(seed=seed))
        named = replace(learned, card=msgspec.structs.replace(learned.card, user=user))
        cards[user] = put_model(store, named)
    commit_index(store, ModelIndex.from_cards(cards))
    assert len(list((store / "fingerprints").iterdir())) == 3
    listed = tools("erase", f"--models={store}", "ann", "carl")
    assert "fingerprint of ann" in listed.output
    assert "Found 1 item. Nothing was removed" in listed.output
    assert "Removed 1 item." in tools("erase", f"--models={store}", "ann", "--delete").output
    assert set(open_models(str(store)).cards) == {"bob"}
    assert VersionedStore.open(str(store)).load("bob") is not None
    left = {file.stem for file in store.rglob("*") if file.is_file()}
    assert left & {card.sha256 for card in cards.values()} == {cards["bob"].sha256}
    assert not list((store / "fingerprints").iterdir()), "the older file of ann, too"
    assert "Nothing found." in tools("erase", f"--models={store}", "ann", "--delete").output


def test_erase_needs_a_place_and_an_existing_file(tmp_path: Path) -> None:
    assert "Give --state, --models or --changelog_topic" in tools("erase", "ann").output
    result = tools("erase", f"--state={tmp_path / 'none.db'}", "ann")
    assert result.exit_code == 2
    assert "--state: there is no file" in result.output
    assert not (tmp_path / "none.db").exists()


def test_a_new_key_is_private_and_never_replaces_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = tools("pseudonym-key", file)
    assert made.exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_text()
    assert len(content.strip()) == 64
    again = tools("pseudonym-key", file)
    assert again.exit_code == 2
    assert "may be the only copy of a key" in again.output
    assert file.read_text() == content
    assert content.strip() not in made.output


def test_names_and_pseudonyms_are_looked_up_in_both_directions(tmp_path: Path) -> None:
    key_file, names = tmp_path / "key", tmp_path / "names.txt"
    key_file.write_text(KEY)
    names.write_text("Ann@Example.com\nbob\n\n")
    key = PseudonymKey(KEY.encode())
    option = f"--pseudonym_key_file={key_file}"
    assert key.pseudonym("carl") in tools("pseudonym", option, "carl").output
    lower = key.pseudonym("ann@example.com")
    assert lower in tools("pseudonym", option, "Ann@Example.com").output
    found = tools("pseudonym", option, f"--names_file={names}", lower)
    assert found.exit_code == 0
    assert "ann@example.com" in found.output
    assert "bob" not in found.output
    every = tools("pseudonym", option, "--names_file=-", text=names.read_text())
    assert key.pseudonym("bob") in every.output


def test_a_pseudonym_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    option = f"--pseudonym_key_file={key_file}"
    unknown = tools("pseudonym", option, PseudonymKey(KEY.encode()).pseudonym("carl"))
    assert unknown.exit_code == 1
    assert "no candidate has the pseudonym" in unknown.output
    foreign = PseudonymKey(b"o" * 32)
    result = tools("pseudonym", option, foreign.pseudonym("carl"))
    assert result.exit_code == 2
    assert f"was made with key {foreign.id}" in result.output
    assert tools("pseudonym", option).exit_code == 2
    assert "--names_file" in tools("pseudonym", option, "--names_file=/nowhere").output
