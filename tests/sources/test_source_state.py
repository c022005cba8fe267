"""Runs that restore what earlier runs remembered give what one run over all events gives."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import RunMetrics, StreamPartition
from morpheus.core.stage import PipelineOptions
from morpheus.core.state import StateKey, encode_state
from morpheus.features.derived import distinct_count_today, log_count, map_values
from morpheus.runtime.local import encode_source, restore_source
from morpheus.runtime.pool import WorkerPool
from morpheus.sources import log_format, seen_events
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.group_by_user import USER, USER_RANK, EventKey
from morpheus.sources.ingest import FileIngest
from morpheus.sources.log_format import DerivedFeatures, resolve_derived
from morpheus.sources.partitioning import UserPartition
from morpheus.sources.source_state import PartitionState, SourceState
from morpheus.sources.spill_sort import PartitionSlice
from morpheus.sources.watcher import DirectoryWatcher

START = datetime(2024, 5, 31, tzinfo=UTC)
COLUMNS = {
    "logcount": log_count(),
    "locincrement": distinct_count_today("city", "verb", joined=True),
    "pair": map_values(lambda city, verb: f"{city}-{verb}" if verb else None, "city", "verb"),
}
DERIVED = resolve_derived(
    [
        *("logcount", "locincrement", "new:pair", "new:city"),
        *("previous:pair", "new:previous:verb", "previous:new:city"),
    ],
    COLUMNS,
)
SCHEMA: dict[str, Any] = {
    INDEX: pl.Int64,
    "id": pl.String,
    "user": pl.String,
    "city": pl.String,
    "verb": pl.String,
    TIME: pl.Datetime("us", "UTC"),
}
Saved = dict[StateKey, bytes]
Handed = dict[str | None, pl.DataFrame]


@dataclass(frozen=True)
class Event:
    """One event, `hour` hours after `START`."""

    hour: int
    user: str | None
    city: str | None
    verb: str | None
    number: int

    def row(self, index: int) -> tuple[Any, ...]:
        name = str(uuid.UUID(int=self.number)) if self.number else "no id"
        time = START + timedelta(hours=self.hour)
        return index, name, self.user, self.city, self.verb, time


EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 3000),
        st.sampled_from(["ann", "bob", None]),
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["get", "put", None]),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=25,
)


def partition_of(
    events: list[Event], history: list[Event] | None = None, chunk_rows: int | None = None
) -> UserPartition:
    names = [name for name in SCHEMA if name not in {INDEX, TIME}]
    users = list(dict.fromkeys(e.user for e in [*events, *(history or [])]))

    def slice_of(some: list[Event]) -> PartitionSlice:
        rows = [event.row(index) for index, event in enumerate(some)]
        return PartitionSlice("user", names, [pl.DataFrame(rows, schema=SCHEMA, orient="row")], [])

    return UserPartition(
        pl.DataFrame(
            {USER: users, USER_RANK: range(len(users))},
            schema={USER: pl.String, USER_RANK: pl.UInt32},
        ),
        slice_of(events),
        None if history is None else slice_of(history),
        EventKey("user", "id"),
        DerivedFeatures("user", DERIVED),
        batch_size=7,
        chunk_rows=chunk_rows,
    )


def read(
    partition: UserPartition, metrics: RunMetrics, state: PartitionState | None = None
) -> Handed:
    frames = defaultdict(list)
    for batch in partition.events(metrics, state):
        frames[batch.user].append(batch.table.to_frame().drop(INDEX))
    whole = {user: pl.concat(parts) for user, parts in frames.items()}
    return {user: frame for user, frame in whole.items() if frame.height}


def restore(saved: Saved) -> PartitionState:
    return restore_source(saved)


def save(state: PartitionState, users: list[str | None]) -> Saved:
    return encode_source(state, users)


def states_of(saved: Saved, user: str | None) -> Saved:
    return {key: data for key, data in saved.items() if key.user == user}


def users_of(saved: Saved) -> list[str | None]:
    return list(dict.fromkeys(key.user for key in saved))


def read_in_runs(partitions: list[UserPartition], metrics: RunMetrics) -> tuple[Handed, Saved]:
    """Read one partition a run; each run knows what the earlier ones saved, and nothing else."""
    saved: Saved = {}
    handed: Handed = {}
    for partition in partitions:
        users = partition.user_names()
        state = restore({key: data for key, data in saved.items() if key.user in users})
        for user, frame in read(partition, metrics, state).items():
            handed[user] = pl.concat([handed[user], frame]) if user in handed else frame
        saved |= save(state, users)
    return handed, saved


def cut(events: list[Event], hours: list[int]) -> list[list[Event]]:
    bounds = [-1, *sorted(hours), 4000]
    pieces = [[e for e in events if low < e.hour <= high] for low, high in pairwise(bounds)]
    return [piece for piece in pieces if piece]


def assert_equal(one: Handed, other: Handed) -> None:
    assert one.keys() == other.keys()
    for user, frame in one.items():
        assert frame.equals(other[user]), user


@settings(deadline=None, max_examples=25)
@given(
    EVENTS,
    st.lists(st.integers(0, 3000), max_size=3),
    st.none() | EVENTS,
    st.sampled_from([None, 1, 5]),
)
def test_runs_with_saved_state_give_what_one_run_gives(
    events: list[Event], hours: list[int], history: list[Event] | None, chunk_rows: int | None
) -> None:
    history = history and [event for event in history if event.user]
    if chunk_rows is not None:  # only a user who has a partition alone is read in pieces
        events = [replace(event, user="ann") for event in events]
        history = history and [event for event in history if event.user == "ann"]
    once, runs = RunMetrics(), RunMetrics()
    whole = read(partition_of(events, history), once)
    partitions = [partition_of(piece, history, chunk_rows) for piece in cut(events, hours)]
    handed, _ = read_in_runs(partitions, runs)
    assert_equal(handed, whole)
    assert runs.input.duplicates == once.input.duplicates
    for frame in handed.values():
        assert frame[ROW].to_list() == list(range(frame.height))


def test_columns_computed_from_other_derived_columns_continue_in_daily_runs() -> None:
    # City v and verb list are on the first and the last days; w and del are new on the latter.
    cities = ("yvyxz", "xyyxz", "vwyxz")
    verbs = ("get get put list get", "put put get get put", "get del put list get")
    events = [
        Event(24 * day + hour, "ann", city, verb, 5 * day + hour + 1)
        for day in range(12)
        for part in [(day > 0) + (day > 9)]
        for hour, (city, verb) in enumerate(zip(cities[part], verbs[part].split(), strict=True))
    ]
    whole = read(partition_of(events), RunMetrics())
    for width in (1, 5, 14):
        cuts = [[*events[at : at + width]] for at in range(0, len(events), width)]
        handed, _ = read_in_runs([partition_of(piece) for piece in cuts], RunMetrics())
        assert_equal(handed, whole)
    for name in ("new:previous:verb", "previous:new:city"):
        assert set(whole["ann"][name]) == {"True", "False", None}


@settings(deadline=None, max_examples=25)
@given(EVENTS, st.integers(0, 3000))
def test_events_given_again_are_counted_as_duplicates(events: list[Event], hour: int) -> None:
    events = [replace(event, number=event.number + 1) for event in events]
    once, runs = RunMetrics(), RunMetrics()
    whole = read(partition_of(events), once)
    first = [event for event in events if event.hour <= hour] or events
    partitions = [partition_of(some) for some in (first, events, events)]
    handed, saved = read_in_runs(partitions, runs)
    assert_equal(handed, whole)
    count = len(first) + 2 * len(events)
    assert runs.input.duplicates == count - sum(frame.height for frame in whole.values())
    again, saved_again = read_in_runs([partition_of(events)], RunMetrics())
    assert_equal(again, whole)
    assert {key: len(data) for key, data in saved_again.items()} == {
        key: len(data) for key, data in saved.items()
    }


@settings(deadline=None, max_examples=25)
@given(EVENTS, st.lists(st.integers(0, 3000), max_size=2))
def test_users_do_not_affect_each_other(events: list[Event], hours: list[int]) -> None:
    interleaved, saved = read_in_runs([partition_of(p) for p in cut(events, hours)], RunMetrics())
    for user, frame in interleaved.items():
        own = [event for event in events if event.user == user]
        alone, saved_alone = read_in_runs([partition_of(p) for p in cut(own, hours)], RunMetrics())
        assert_equal(alone, {user: frame})
        assert saved_alone == states_of(saved, user)


@settings(deadline=None, max_examples=25)
@given(EVENTS, st.integers(0, 3000))
def test_snapshot_of_a_restored_state_is_unchanged(events: list[Event], hour: int) -> None:
    handed, saved = read_in_runs([partition_of(p) for p in cut(events, [hour])], RunMetrics())
    assert saved.items() >= save(restore(saved), users_of(saved)).items()
    assert set(users_of(saved)) == handed.keys()
    assert not restore(saved).snapshot(["nobody"])


def test_history_is_given_once_per_run_and_not_counted_again() -> None:
    past = [Event(0, "ann", "x", "get", 1)]
    events = [Event(hour, "ann", "y", "get", hour) for hour in (2, 3)]
    saved: Saved = {}
    for event, count in zip(events, (1, 2), strict=True):
        state = restore(saved)
        partition = partition_of([event], past)
        [batch] = partition.events(RunMetrics(), state)
        assert batch.history is not None
        assert batch.history.height == 1
        assert batch.table["logcount"].to_list() == [count]
        [batch] = partition_of([Event(5, "ann", "y", "get", 9)], past).events(RunMetrics(), state)
        assert batch.history is not None
        assert batch.history.height == 0
        state = restore(saved)
        list(partition.events(RunMetrics(), state))
        saved = save(state, ["ann"])


def test_state_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_events, "_MAX_SEEN_KEYS", 20)
    monkeypatch.setattr(log_format, "_MAX_RECENT_ROWS", 30)
    events = [Event(n // 20, "ann", f"{n}" * 9, "get", n + 1) for n in range(200)]
    state = PartitionState.restore({})
    list(partition_of(events).events(RunMetrics(), state))
    [one] = state.snapshot(["ann"]).values()
    assert one.rows == 200
    assert len(one.event_digests) == len(one.event_times) == 20
    assert len(one.recent_times) == 31
    assert one.recent_times[0] == int(START.timestamp() * 1e6)


@pytest.mark.parametrize("limit", [5_000, 8_000, 12_000])
def test_recent_rows_are_dropped_if_their_text_is_long(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    events = [Event(n // 20, "ann", f"{n} " * 50, "get", n + 1) for n in range(100)]
    monkeypatch.setattr(SourceState, "max_bytes", limit)
    state = PartitionState.restore({})
    list(partition_of(events).events(RunMetrics(), state))
    [one] = state.snapshot(["ann"]).values()
    assert len(encode_state(one)) <= limit
    assert 0 < len(one.recent_times) < 100
    assert one.recent_times[0] == int(START.timestamp() * 1e6)


def test_run_without_state_remembers_nothing() -> None:
    partition = partition_of([Event(0, "ann", "x", "get", 1)])
    state = partition.create_state()
    list(partition.events(RunMetrics(), state))
    assert state.recent_rows is None
    assert state.dedup_window is None


def test_partition_names_its_users() -> None:
    events = [Event(0, user, "x", "get", 1) for user in ("bob", None, "ann")]
    assert partition_of(events).user_names() == ["bob", None, "ann"]
    assert StreamPartition(iter(())).user_names() == []


def record(number: int) -> dict[str, Any]:
    return {
        "eventID": str(uuid.UUID(int=number)),
        "eventTime": f"2024-05-{1 + number // 24:02}T{number % 24:02}:00:00Z",
        "eventName": "GetObject" if number % 5 else "PutObject",
        "userIdentity": {"accountId": f"{number % 3}"},
    }


def test_files_read_on_two_days_give_what_one_run_gives(tmp_path: Any) -> None:
    options = PipelineOptions(columns=("eventName", "logcount", "new:eventName"))
    days = {"mon": range(300), "tue": range(280, 500)}
    for day, numbers in days.items():
        text = json.dumps({"Records": [record(n) for n in numbers]})
        (tmp_path / f"{day}.json").write_text(text)

    def handed(pattern: str, state: PartitionState | None) -> tuple[Handed, RunMetrics]:
        metrics, frames = RunMetrics(), defaultdict(list)
        source = FromCloudtrail(input_glob=str(tmp_path / pattern), options=options)
        with source.partitions(None, metrics, WorkerPool(1)) as partitions:
            for partition in partitions:
                for batch in partition.events(metrics, state):
                    frames[batch.user].append(batch.table.to_frame().drop(INDEX))
        return {user: pl.concat(parts) for user, parts in frames.items()}, metrics

    whole, _ = handed("*.json", None)
    monday = PartitionState.restore({})
    first, _ = handed("mon.json", monday)
    second, metrics = handed("tue.json", restore(save(monday, list(first))))
    assert metrics.input.duplicates == 20
    assert_equal({user: pl.concat([first[user], second[user]]) for user in first}, whole)


def test_watched_directory_continues_from_a_saved_state(tmp_path: Any) -> None:
    for name, numbers in {"a": range(100), "b": range(90, 200), "c": range(200, 300)}.items():
        text = json.dumps({"Records": [record(n) for n in numbers]})
        (tmp_path / f"{name}.json").write_text(text)
    options = PipelineOptions(columns=("eventName", "logcount"))

    def handed(names: str, state: PartitionState | None) -> Handed:
        waiting = [tmp_path / f"{name}.json" for name in names]
        listed: list[Any] = []

        def list_files() -> list[Any]:
            if waiting and len(looks) % 3 == 0:
                listed.append(waiting.pop(0))
            looks.append(1)
            return list(listed)

        looks: list[int] = []
        watcher = DirectoryWatcher(
            list_files, idle_timeout=0.0, max_files=len(names), sleep=lambda _: None
        )
        files = FileDiscovery(str(tmp_path))
        source = FromCloudtrail(input_glob=str(tmp_path), options=options)
        ingest = FileIngest(source.get_log_format(), files, options, watcher=watcher)
        frames = defaultdict(list)
        for batch in ingest.events(None, RunMetrics(), state):
            frames[batch.user].append(batch.table.to_frame().drop(INDEX))
        return {user: pl.concat(parts) for user, parts in frames.items()}

    whole = handed("abc", None)
    state = PartitionState.restore({})
    first = handed("a", state)
    second = handed("bc", restore(save(state, list(first))))
    assert sum(frame.height for frame in whole.values()) == 300
    assert_equal({user: pl.concat([first[user], second[user]]) for user in first}, whole)
