"""Events of earlier reads are recognised, and what is kept of them is written once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from morpheus.core.state import PARTS, SOURCE, StateKey, encode_state
from morpheus.runtime.local import encode_source, restore_source
from morpheus.runtime.states import SqliteStateStore
from morpheus.sources import seen_events
from morpheus.sources.source_state import PartitionState, SourceState

START = datetime(2026, 3, 1, tzinfo=UTC)
STEP = timedelta(minutes=5)
CHECKPOINT = 100  # events


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStateStore]:
    with closing(SqliteStateStore(tmp_path / "state.db", {})) as opened:
        yield opened


def see(state: PartitionState, numbers: range, user: str = "ann") -> list[bool]:
    """Return whether each event of a user was there before."""
    assert state.dedup_window is not None
    users = pl.Series([user] * len(numbers))
    times = pl.Series([START + number * STEP for number in numbers], dtype=pl.Datetime("us", "UTC"))
    keys = pl.Series([f"{user}-{number}" for number in numbers])
    return state.dedup_window.update(users, times, keys).to_list()


def begin(store: SqliteStateStore, user: str = "ann", *, unbounded: bool) -> PartitionState:
    """Begin a run, which loads a user's state."""
    if not unbounded:
        return restore_source(store.load([user]))
    state = restore_source({})
    assert state.dedup_window is not None
    state.dedup_window.load = store.load_parts
    state.merge(restore_source(store.load([user], with_parts=False)))
    return state


def save(state: PartitionState, store: SqliteStateStore, user: str = "ann") -> int:
    """Save a user's state, and return its size."""
    changed = encode_source(state, [user])
    store.save(changed)
    store.commit()
    return sum(map(len, changed.values()))


def read_all(store: SqliteStateStore, number: int, *, unbounded: bool) -> list[int]:
    """Read events in steps, and return how much each has written."""
    state = begin(store, unbounded=unbounded)
    written = []
    for first in range(0, number, CHECKPOINT):
        assert not any(see(state, range(first, first + CHECKPOINT)))
        written.append(save(state, store))
    return written


@pytest.mark.parametrize("unbounded", [True, False])
def test_a_checkpoint_does_not_write_again_what_a_user_did_long_ago(
    store: SqliteStateStore, *, unbounded: bool
) -> None:
    written = read_all(store, 20_000, unbounded=unbounded)
    assert max(written[-20:]) < 1.5 * max(written[:20]) < 40_000


@pytest.mark.parametrize("unbounded", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_all_events_are_recognised_in_whatever_order_they_come_again(
    store: SqliteStateStore, *, unbounded: bool, restarted: bool
) -> None:
    read_all(store, 5000, unbounded=unbounded)
    state = begin(store, unbounded=unbounded)
    if not restarted:
        see(state, range(5000, 6000))
        save(state, store)
    assert all(see(state, range(4990, 5000)))
    assert all(see(state, range(5000)))
    assert not any(see(state, range(5000), user="bob"))
    assert see(state, range(6998, 7002)) == [False] * 4


def test_an_unbounded_run_keeps_the_latest_events_alone_in_memory(store: SqliteStateStore) -> None:
    read_all(store, 20_000, unbounded=True)
    state = begin(store, unbounded=True)
    see(state, range(10_000, 20_100))
    save(state, store)
    assert state.dedup_window is not None
    seen = state.dedup_window.seen_events["ann"]
    assert len(seen.times) < 1000
    assert seen.loaded == {}


def test_a_late_event_among_known_ones_is_not_a_duplicate(store: SqliteStateStore) -> None:
    state = begin(store, unbounded=True)
    see(state, range(0, 4000, 2))
    save(state, store)
    assert see(state, range(1000, 1004)) == [True, False, True, False]


def test_at_most_250_000_events_are_kept_the_latest_ones(
    store: SqliteStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_events, "_MAX_PARTS", 10)
    read_all(store, 6000, unbounded=True)
    parts = [key for key in store.load(["ann"]) if key.stage.startswith(PARTS)]
    assert len(parts) == 10
    state = begin(store, unbounded=True)
    known = see(state, range(6000))
    kept = 10 * seen_events.PART_KEYS + seen_events._MAX_LIVE_KEYS  # noqa: SLF001 - the limit
    assert not any(known[: -kept - seen_events.PART_KEYS])
    assert all(known[-kept:])


def test_a_state_of_an_earlier_version_is_divided_once(store: SqliteStateStore) -> None:
    before = begin(store, unbounded=False)
    see(before, range(5000))
    assert before.dedup_window is not None
    seen = before.dedup_window.seen_events["ann"]
    whole = SourceState(rows=5000, event_times=seen.times, event_digests=seen.to_bytes())
    store.save({StateKey(SOURCE, "ann"): encode_state(whole)})
    store.commit()
    state = begin(store, unbounded=True)
    assert all(see(state, range(0, 5000, 7)))
    assert save(state, store) > 100_000
    assert save(state, store) < 20_000
    assert all(see(begin(store, unbounded=True), range(5000)))


def test_times_in_any_order_are_found(store: SqliteStateStore) -> None:
    state = begin(store, unbounded=True)
    numbers = np.random.default_rng(1).permutation(4000).tolist()
    for number in range(0, 4000, 50):
        for each in numbers[number : number + 50]:
            assert see(state, range(each, each + 1)) == [False]
        save(state, store)
    assert all(see(state, range(4000)))
