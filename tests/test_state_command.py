"""`morpheus state`: what a state file has, beside a run too, and removing some of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.core.state import StateKey, encode_state, part_key
from morpheus.runtime.states import SqliteStateStore
from morpheus.sources.seen_events import SeenPart
from morpheus.sources.source_state import SourceState, TextColumn
from morpheus.stages.serialize import SerializeState

JANUARY = 1_767_225_600_000_000  # 2026-01-01, in microseconds
USERS = ("ann", "bob", "=cy\x1b[31m")
CONFIG = {
    "source": "from-cloudtrail",
    "--userid_column_name": "actor",
    "--columns_file": [f"column{number}" for number in range(9)],
    "--pseudonymize": [],
}


def command(*words: object) -> Result:
    return CliRunner().invoke(morpheus, ["state", *map(str, words)], prog_name="morpheus")


def make_states(user: str | None) -> dict[StateKey, bytes]:
    number = 10 if user is None else len(user) * 100
    source = SourceState(
        rows=number,
        event_times=JANUARY + np.arange(number) * 1_000_000,
        recent_times=JANUARY + np.arange(2),
        recent_values={"eventName": TextColumn(["Get", None], np.array([0, 1], np.int32))},
    )
    columns = SerializeState(columns=["", "eventName"])
    return {
        StateKey("source", user): encode_state(source),
        StateKey("serialize#1", user): encode_state(columns),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A state file of three users and of events without a user, with an offset and an entry."""
    path = tmp_path / "state.db"
    with closing(SqliteStateStore(path, CONFIG)) as store:
        for user in (*USERS, None):
            store.save(make_states(user))
        store.save_offsets({"logs/a.jsonl": msgspec.msgpack.encode({"end": 4711})})
        store.save_offsets({"logs-3": b"118", "lateness/0": bytes(range(200))})
        store.add_to_outbox("tail", b"rows of two users")
        store.commit()
    return path


def contents_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        query = (
            "SELECT stage, user, data FROM states UNION ALL SELECT stage, user, data FROM parts "
            "ORDER BY 1, 2"
        )
        return database.execute(query).fetchall()


def test_show_tells_what_the_file_is_bound_to_and_what_it_has(file: Path) -> None:
    shown = command("show", file)
    assert shown.exit_code == 0
    for line in (
        "In use           no",
        "Users            3",
        "Offsets          3 partitions",
        "Outbox           1 entry, 21 bytes",
        "source                from-cloudtrail",
        "--userid_column_name  actor",
        "--columns_file        column0, column1, column2, column3, 5 more",
    ):
        assert line in shown.stdout
    assert "format 3" in shown.stdout
    assert "--pseudonymize" not in shown.stdout
    table = [line.split() for line in shown.stdout.splitlines()]
    [source] = [row for row in table if row[:1] == ["source"] and len(row) == 5]
    sizes = [len(make_states(user)[StateKey("source", user)]) for user in (*USERS, None)]
    assert source[1:3] == ["4", f"{sum(sizes):,}"]
    assert ["logs/a.jsonl", '{"end":', "4711}"] in table
    assert ["logs-3", "118"] in table
    assert ["lateness/0", "200", "bytes"] in table


def test_parts_of_the_state_of_the_source_are_shown_and_removed_with_it(file: Path) -> None:
    part = encode_state(SeenPart(np.arange(256), np.zeros((256, 16), np.uint8)))
    parts = {part_key("ann", number): part for number in range(3)}
    with closing(SqliteStateStore(file, CONFIG)) as store:
        store.save(parts)
        store.commit()
    table = [line.split() for line in command("show", file).stdout.splitlines()]
    [source] = [row for row in table if row[:1] == ["source"] and len(row) == 5]
    assert source[1] == "4"  # as without parts
    whole = len(make_states("ann")[StateKey("source", "ann")])
    assert source[4] == f"{whole + 3 * len(part):,}"
    shown = command("show", file, "--user=ann").stdout
    assert f"source: 3 parts with earlier events, {3 * len(part):,} bytes" in shown
    assert command("reset", file, "--user=ann", "--stage=source", "--delete").exit_code == 0
    assert [stage for stage, user, _ in contents_of(file) if user == "=ann"] == ["serialize#1"]


def test_bytes_of_a_user_are_those_of_all_stages(file: Path) -> None:
    sizes = {user: sum(map(len, make_states(user).values())) for user in USERS}
    line = next(x for x in command("show", file).stdout.splitlines() if x.startswith("Bytes of"))
    assert f"median {sorted(sizes.values())[1]:,}" in line
    assert f"largest {max(sizes.values()):,} (=cy\\x1b[31m)" in line


def test_show_of_a_user_is_readable(file: Path) -> None:
    shown = command("show", file, "--user=ann").stdout
    assert "source: " in shown
    assert "version 1, saved 20" in shown
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert "rows 300" in lines
    assert "event_times 300 times, 2026-01-01 00:00:00 to 2026-01-01 00:04:59" in lines
    assert "recent_values eventName: {values: {Get, none}, codes: 0, 1}" in lines
    assert "\x1b" not in command("show", file, f"--user={USERS[2]}").stdout


def test_show_and_export_read_beside_a_run_and_leave_no_files(file: Path) -> None:
    before = command("show", file).stdout
    assert list(file.parent.iterdir()) == [file]
    with closing(SqliteStateStore(file, CONFIG)) as store:
        store.save(make_states("dora"))
        shown = command("show", file).stdout
        assert "In use           by a run" in shown
        assert "Users            3" in shown, "what is not committed is not shown"
        store.commit()
        assert "Users            4" in command("show", file).stdout
        lines = command("export", file, "--user=dora").stdout.splitlines()
        assert len(lines) == 2
    assert list(file.parent.iterdir()) == [file]
    assert "Users            3" in before


def test_export_writes_bounded_json_lines(file: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in command("export", file).stdout.splitlines()]
    assert {(line["stage"], line["user"]) for line in lines} == {
        (stage, user) for stage in ("source", "serialize#1") for user in (*USERS, None)
    }
    [ann] = [x for x in lines if (x["stage"], x["user"]) == ("source", "ann")]
    assert ann["state"]["event_times"] == [JANUARY + n * 1_000_000 for n in range(300)]
    assert ann["state"]["recent_values"] == {
        "eventName": {"values": ["Get", None], "codes": [0, 1]}
    }
    output = tmp_path / "ann.jsonl"
    written = command(
        "export", file, "--user=ann", "--stage=source", "--max_values=3", f"--filename={output}"
    )
    assert "ann.jsonl: 1 state" in written.stderr
    state = json.loads(output.read_text())["state"]
    assert state["event_times"][2:] == [JANUARY + 2_000_000, "... (300 values)"]


@pytest.mark.parametrize("name", ["state.db", "link.jsonl", "./state.db-wal"])
def test_an_export_does_not_replace_the_state_file(file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link.jsonl").hardlink_to(file)
    before = file.read_bytes()
    output = file.parent / name.replace("state.db", file.name)
    result = command("export", file, f"--filename={output}")
    assert result.exit_code == 2
    assert "is the state file itself, and would be replaced. Give another file." in result.stderr
    assert file.read_bytes() == before


def test_reset_removes_nothing_without_delete_and_then_only_what_was_asked_for(file: Path) -> None:
    before = contents_of(file)
    listed = command("reset", file, "--user=ann", "--user=bob")
    assert "Found 4 states. Nothing was removed. Add --delete to remove them." in listed.stderr
    assert contents_of(file) == before
    assert (
        "Removed 4 states." in command("reset", file, "--user=ann", "--user=bob", "--delete").stderr
    )
    after = contents_of(file)
    assert after == [row for row in before if row[1] not in {"=ann", "=bob"}]
    assert "Removed 2 states." in command("reset", file, "--stage=serialize", "--delete").stderr
    assert contents_of(file) == [row for row in after if row[0] == "source"]


def test_reset_of_a_file_that_a_run_has_open_is_refused(file: Path) -> None:
    with closing(SqliteStateStore(file, CONFIG)):
        refused = command("reset", file, "--user=ann", "--delete")
    assert refused.exit_code == 1
    assert "is in use by another run. Wait until it has ended." in refused.stderr
    assert command("reset", file, "--user=ann", "--delete").exit_code == 0


def test_states_that_a_run_would_read_from_a_topic_are_not_removed_from_the_file_alone(
    file: Path,
) -> None:
    with closing(SqliteStateStore(file, CONFIG)) as store:
        store.save({StateKey("filter#1", None): b"for all users"})
        store.note_changelog("trail-states")
        store.commit()
    before = contents_of(file)
    for words in (["--stage=serialize"], ["--user=ann"], ["--user=bob", "--stage=source"]):
        refused = command("reset", file, *words, "--delete")
        assert refused.exit_code == 2
        assert "are in the topic `trail-states`, too, and the next run reads them" in refused.stderr
        assert "Give --changelog_topic=trail-states and --bootstrap_servers." in refused.stderr
        listed = command("reset", file, *words)
        assert (listed.exit_code, "Warning: FILE: the states of" in listed.stderr) == (0, True)
    assert contents_of(file) == before
    shown = command("show", file).stdout
    assert "Changelog        topic trail-states, from which a run" in shown
    assert "changelog_topic" not in shown
    assert "Removed 1 state." in command("reset", file, "--stage=filter", "--delete").stderr
    one = command("reset", file, "--user=ann", "--changelog_topic=trail-states")
    assert (one.exit_code, "together, or neither" in one.stderr) == (2, True)
    with closing(SqliteStateStore(file, CONFIG)) as store:
        store.note_changelog(None)
        store.commit()
    assert "Removed 2 states." in command("reset", file, "--user=ann", "--delete").stderr


def test_a_damaged_state_is_shown_as_damaged(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE states SET data = x'00000000ff' WHERE user = '=ann'")
    assert "does not match its checksum" in command("show", file, "--user=ann").stdout
    assert command("export", file).exit_code == 0


@dataclass(frozen=True)
class Wrong:
    """A wrong command line, and what it says."""

    words: tuple[str, ...]
    message: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(("show", "{folder}/none.db"), "FILE: there is no file"),
        Wrong(("show", "{folder}/text"), "is not a state file of morpheus: file is not a database"),
        Wrong(("show", "{file}", "--user=an"), "no state of `an`. Did you mean `ann`?"),
        Wrong(("export", "{file}", "--user=an"), "the file has no state of `an`"),
        Wrong(("show", "{folder}"), "is a folder. Give the file that `pipeline-ae --state` wrote"),
        Wrong(("show", "{folder}/empty"), "has no states: no run with it has begun to read"),
        Wrong(("export", "{file}", "--stage=sorce"), "--stage: `sorce` has no state"),
        Wrong(("reset", "{file}"), "Give --user, --stage or both"),
        Wrong(("reset", "{file}", "--stage=sorce"), "--stage: `sorce` has no state"),
        Wrong(("reset", "{file}", "--stage=x"), "There are states of serialize#1, source."),
    ],
)
def test_wrong_usage_is_explained(file: Path, tmp_path: Path, wrong: Wrong) -> None:
    (tmp_path / "text").write_text("no database at all, but a text")
    (tmp_path / "empty").touch()
    result = command(*(word.format(folder=tmp_path, file=file) for word in wrong.words))
    assert result.exit_code == 2
    assert wrong.message in result.stderr
