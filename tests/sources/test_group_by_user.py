import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Events, ReadStats
from morpheus.sources import seen_events
from morpheus.sources.group_by_user import (
    DedupWindow,
    EventKey,
    UserGroups,
    iter_batches,
    plan_partitions,
)
from morpheus.sources.spill_sort import MemoryBudget, SpillBuffer, SpilledDataset
from morpheus.storage.spill import SpillDir

IDENTITY = EventKey("user", "id", ("account",))
NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)
SCHEMA: dict[str, Any] = {
    INDEX: pl.Int64,
    "id": pl.String,
    "user": pl.String,
    "account": pl.String,
    TIME: pl.Datetime("us", "UTC"),
}


def event(
    second: int, user: str | None = "ann", *, index: int = 0, name: str = "7", account: str = "1"
) -> tuple[Any, ...]:
    return index, name, user, account, NOON + timedelta(seconds=second)


def frame(*events: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame(events, schema=SCHEMA, orient="row")


@dataclass
class Taken:
    """What was dataset, ordered, and how it is handed out."""

    dataset: SpilledDataset
    stats: ReadStats

    def by_user(self, users: pl.DataFrame, memory: DedupWindow | None = None) -> UserGroups:
        return UserGroups.from_frame(
            self.dataset.slice_users(users).read(users),
            users,
            IDENTITY,
            self.stats,
            [] if memory is None else [memory],
        )


def gather(*frames: pl.DataFrame, stats: ReadStats | None = None) -> Taken:
    buffer = SpillBuffer("user", MemoryBudget(), SpillDir())
    for part in frames:
        buffer.add(part)
    return Taken(buffer.finish(), stats or ReadStats())


def handed(events: Taken, history: Taken | None = None, rows: int = 99) -> list[Events]:
    past = None if history is None else history.dataset.user_stats
    users = plan_partitions(events.dataset.user_stats, past, 10**9, include_history_only=True)
    events.dataset.column_names = (
        events.dataset.column_names or (history or events).dataset.column_names
    )
    if history is not None:
        history.dataset.column_names = events.dataset.column_names
    before = None if history is None else history.by_user(users)
    return list(iter_batches(users, events.by_user(users), before, batch_size=rows))


def test_users_are_ordered_by_first_event_and_events_by_time() -> None:
    out = handed(gather(frame(event(3, "ann"), event(2, "bob"), event(1, "ann"), event(0, None))))
    assert [batch.user for batch in out] == [None, "ann", "bob"]
    assert out[1].table[TIME].to_list() == [NOON + timedelta(seconds=s) for s in (1, 3)]


def test_frame_starts_with_row_and_index_and_ends_with_time() -> None:
    [batch] = handed(gather(frame(event(1, index=4), event(0, index=9))))
    assert batch.table.names == [ROW, INDEX, "id", "user", "account", TIME]
    assert batch.table[ROW].to_list() == [0, 1]
    assert batch.table[INDEX].to_list() == [9, 4]
    assert batch.table.schema[ROW] == batch.table.schema[INDEX] == pl.Int64


def test_frames_of_many_small_files_are_joined_and_give_the_same_events() -> None:
    events = [event(n, "ann" if n % 3 else "bob", name=str(n)) for n in range(1500)]
    small = [frame(each).drop("account") if n % 2 else frame(each) for n, each in enumerate(events)]
    apart, whole = gather(*small), gather(pl.concat(small, how="diagonal"))
    assert len(apart.dataset.frames_in_memory) < 1000
    assert apart.dataset.user_stats.users.n_chunks() < 1000
    for one, other in zip(handed(apart), handed(whole), strict=True):
        names = other.table.names
        assert one.table.to_frame().select(names).equals(other.table.to_frame())


def test_ties_in_time_are_ordered_by_index_then_id_then_content() -> None:
    events = [
        event(0, index=1),
        event(0, name="b"),
        event(0, name="a", account="2"),
        event(0, name="a"),
    ]
    [batch] = handed(gather(frame(*events)))
    assert batch.table.to_frame().select(INDEX, "id", "account").rows() == [
        (0, "a", "1"),
        (0, "a", "2"),
        (0, "b", "1"),
        (1, "7", "1"),
    ]


EVENTS = st.builds(
    event,
    st.integers(0, 2),
    st.sampled_from(["ann", "bob", None]),
    index=st.integers(0, 1),
    name=st.sampled_from(["1", str(uuid.UUID(int=1)), str(uuid.UUID(int=2))]),
    account=st.sampled_from(["1", "2"]),
)


@given(st.lists(EVENTS, min_size=1), st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_and_split_of_frames_do_not_matter(
    events: list[tuple[Any, ...]],
    random: Any,
    cut: int,
) -> None:
    shuffled = random.sample(events, len(events))
    parts = [frame(*shuffled[i : i + cut]) for i in range(0, len(shuffled), cut)]
    one, other = handed(gather(frame(*events))), handed(gather(*parts))
    assert [batch.user for batch in one] == [batch.user for batch in other]
    assert all(a.table.equals(b.table) for a, b in zip(one, other, strict=True))


@given(st.lists(EVENTS))
def test_every_event_is_kept_or_counted(events: list[tuple[Any, ...]]) -> None:
    stats = ReadStats(read=len(events))
    out = handed(gather(frame(*events), stats=stats))
    assert sum(batch.table.height for batch in out) == stats.accepted


def test_columns_do_not_depend_on_the_order_of_frames() -> None:
    wide, narrow = frame(event(0)), frame(event(1)).drop("account").with_columns(extra=pl.lit("x"))
    columns = [INDEX, "id", "user", "account", "extra", TIME]
    wide = wide.with_columns(more=pl.lit("y"))
    one, other = (
        gather(wide, narrow).dataset.column_names,
        gather(narrow, wide).dataset.column_names,
    )
    assert one == other
    assert set(columns) < {INDEX, *one, TIME}


def test_event_delivered_twice_counts_once() -> None:
    name, stats = str(uuid.uuid4()), ReadStats()
    parts = [frame(event(0, name=name, index=i)) for i in (3, 1)]
    [batch] = handed(gather(*parts, stats=stats))
    assert batch.table[INDEX].to_list() == [1]
    assert stats.duplicates == 1


def test_same_number_in_other_accounts_or_users_is_no_duplicate() -> None:
    name, stats = str(uuid.uuid4()), ReadStats()
    events = [
        event(0),
        event(1),
        event(2, name=name),
        event(3, name=name, account="2"),
        event(4, "bob", name=name),
    ]
    handed(gather(frame(*events), stats=stats))
    assert stats.duplicates == 0


def test_later_batch_recognises_earlier_events() -> None:
    memory, stats = DedupWindow(), ReadStats()
    names = [str(uuid.UUID(int=n)) for n in (1, 1, 2)]
    for name in names:
        taken = gather(frame(event(0, name=name)), stats=stats)
        taken.by_user(
            plan_partitions(taken.dataset.user_stats, None, 99, include_history_only=True), memory
        )
    assert stats.duplicates == 1
    assert sum(len(each.times) for each in memory.seen_events.values()) == 2


@pytest.mark.parametrize("compared", [1 << 20, 200, 0])  # pair by pair, and by sorting
def test_the_latest_events_are_recognised_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr(seen_events, "_MAX_COMPARED", compared)
    monkeypatch.setattr(seen_events, "_MAX_SEEN_KEYS", 50)
    window, known = DedupWindow(), dict[int, int]()
    for start in range(0, 400, 40):
        numbers = [n * n % 90 for n in range(start, start + 40)]
        times = pl.Series(range(start, start + 40)).cast(pl.Datetime("us", "UTC"))
        keys = pl.Series([f"key {n}" for n in numbers])
        seen = window.update(pl.Series(["ann"] * 40), times, keys)
        assert seen.to_list() == [n in known for n in numbers]
        for time, number in zip(range(start, start + 40), numbers, strict=True):
            known.setdefault(number, time)
        known = dict(sorted(known.items(), key=lambda item: item[1])[-50:])
    assert sorted(window.seen_events["ann"].times) == sorted(known.values())


def test_users_are_split_into_batches_with_continuous_row_numbers() -> None:
    out = handed(gather(frame(*(event(s) for s in range(5)))), gather(frame(event(-1))), rows=2)
    assert [batch.table[ROW].to_list() for batch in out] == [[0, 1], [2, 3], [4]]
    assert [batch.history is not None for batch in out] == [True, False, False]


def test_history_is_in_the_first_batch_and_users_without_events_come_last() -> None:
    history = gather(frame(event(0, "zoe"), event(1, "ann"), event(2, "bob"), event(3, "ann")))
    out = handed(gather(frame(event(9, "eve"), event(9, "ann", index=1))), history)
    assert [(b.user, b.table.height, b.history is not None and b.history.height) for b in out] == [
        ("eve", 1, 0),
        ("ann", 1, 2),
        ("bob", 0, 1),
        ("zoe", 0, 1),
    ]


def test_history_has_the_columns_of_the_events() -> None:
    other = frame(event(0)).drop("account").with_columns(old=pl.lit("x"))
    [batch] = handed(gather(frame(event(1))), gather(other))
    assert batch.history is not None
    assert batch.history.schema == batch.table.schema


def test_user_with_history_only_has_an_empty_batch() -> None:
    [batch] = handed(gather(), gather(frame(event(0))))
    assert (batch.user, batch.table.height) == ("ann", 0)
    assert batch.history is not None
    assert batch.history.schema == batch.table.schema
