"""What a source remembers about its users from one run to the next.

`SourceState` is the part that the runtime saves, one per user. `PartitionState` is the same for all
users of a partition, held in frames so that reading stays vectorised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import TIME
from morpheus.core.state import State
from morpheus.features.derived import USER as ROW_USER
from morpheus.sources.group_by_user import DIGEST, DIGEST_SIZE, USER, DedupWindow
from morpheus.sources.log_format import RecentRows

_ENTRY_BYTES = 6
"""Bytes that MessagePack adds to a text or an array, at most, and some reserve."""


def _no_times() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _no_digests() -> NDArray[np.uint8]:
    return np.empty((0, DIGEST_SIZE), np.uint8)


class TextColumn(msgspec.Struct):
    """A text column, dictionary-coded.

    Attributes:
        values: The distinct values; None for no value.
        codes: Position in `values` of each row, (rows,).
    """

    values: list[str | None]
    codes: NDArray[np.int32]


class SourceState(State):
    """What a source remembers about one user.

    A run that restores it continues the row numbers and derived columns of earlier runs, and
    recognises their events. At most 250,000 event keys and 250,000 recent rows are kept, the latest
    ones. Recent rows also give way where they would exceed `max_bytes`; the user's first stays.

    Attributes:
        rows: Events handed out so far, which is the next row number.
        recent_times: Time of each recent row, in microseconds since 1970, (recent rows,).
        recent_values: The columns that derived columns need, by name, (recent rows,) each.
        event_times: Time of each known event, in microseconds since 1970, (events,).
        event_digests: 16-byte BLAKE2b digest of each known event's key, (events, 16).
    """

    version: ClassVar[int] = 1
    max_bytes: ClassVar[int] = 1 << 25

    rows: int = 0
    recent_times: NDArray[np.int64] = msgspec.field(default_factory=_no_times)
    recent_values: dict[str, TextColumn] = msgspec.field(default_factory=dict)
    event_times: NDArray[np.int64] = msgspec.field(default_factory=_no_times)
    event_digests: NDArray[np.uint8] = msgspec.field(default_factory=_no_digests)


@dataclass
class PartitionState:
    """What is remembered of some users between partitions, batches of files, and runs.

    Attributes:
        recent_rows: Earlier events that derived columns look back on; None to keep none.
        dedup_window: Earlier events that are recognised; None to recognise none.
        row_offsets: Events handed out so far, by user.
        history_given: Users whose history this process has handed out.
    """

    recent_rows: RecentRows | None = None
    dedup_window: DedupWindow | None = None
    row_offsets: Counter[str | None] = field(default_factory=Counter)
    history_given: set[str | None] = field(default_factory=set)

    @classmethod
    def restore(cls, saved: Mapping[str | None, SourceState]) -> Self:
        """Continue from what `snapshot` returned; an empty mapping starts without state.

        Args:
            saved: The state of each user who has one.
        """
        recent = [
            _restore_rows(user, state) for user, state in saved.items() if len(state.recent_times)
        ]
        seen = [
            _restore_keys(user, state) for user, state in saved.items() if len(state.event_times)
        ]
        window = DedupWindow()
        if seen:
            window.seen_events = pl.concat(seen, rechunk=True)
        return cls(
            RecentRows(pl.concat(recent, how="diagonal", rechunk=True) if recent else None),
            window,
            Counter({user: state.rows for user, state in saved.items()}),
        )

    def snapshot(self, users: Iterable[str | None]) -> dict[str | None, SourceState]:
        """Describe what is remembered of some users.

        Args:
            users: Which users; those of whom nothing is remembered are left out.
        """
        names = list(dict.fromkeys(users))
        recent = (
            {} if self.recent_rows is None else _by_user(self.recent_rows.frame, ROW_USER, names)
        )
        seen = (
            {}
            if self.dedup_window is None
            else _by_user(self.dedup_window.seen_events, USER, names)
        )
        states = {}
        for user in names:
            state = SourceState(rows=self.row_offsets.get(user, 0))
            if user in seen:
                state.event_times = _to_microseconds(seen[user])
                state.event_digests = _pack_digests(seen[user][DIGEST])
            if user in recent:
                _save_rows(state, recent[user])
            if state.rows or user in seen or user in recent:
                states[user] = state
        return states


def _by_user(
    frame: pl.DataFrame | None, column: str, users: Sequence[str | None]
) -> dict[str | None, pl.DataFrame]:
    if frame is None:
        return {}
    wanted = pl.DataFrame({column: users}, schema={column: pl.String})
    kept = frame.join(wanted, on=column, how="semi", nulls_equal=True, maintain_order="left")
    return {part[column][0]: part for part in kept.partition_by(column, maintain_order=True)}


def _to_microseconds(frame: pl.DataFrame) -> NDArray[np.int64]:
    return frame[TIME].to_physical().to_numpy()


def _to_times(microseconds: NDArray[np.int64]) -> pl.Series:
    return pl.Series(TIME, microseconds, pl.Int64).cast(pl.Datetime("us", "UTC"))


def _save_rows(state: SourceState, rows: pl.DataFrame) -> None:
    """Put recent rows into a state, as many of the latest as fit, and the first."""
    limit = state.max_bytes - state.event_times.nbytes - state.event_digests.nbytes
    names = [name for name in rows.columns if name not in {ROW_USER, TIME}]
    while True:
        times = _to_microseconds(rows)
        columns = {name: _encode_texts(rows[name]) for name in names}
        size = times.nbytes + sum(map(_text_bytes, columns.values()))
        if size + sum(len(name.encode()) for name in names) < limit or rows.height == 1:
            break
        rows = pl.concat([rows.head(1), rows.tail((rows.height - 1) // 2)])
    state.recent_times, state.recent_values = times, columns


def _text_bytes(column: TextColumn) -> int:
    """An upper bound of the encoded size."""
    texts = sum(_ENTRY_BYTES + len((text or "").encode()) for text in column.values)
    return column.codes.nbytes + texts + 8 * _ENTRY_BYTES


def _encode_texts(column: pl.Series) -> TextColumn:
    values = column.unique(maintain_order=True)
    positions = pl.DataFrame({"value": values}).with_row_index("code")
    codes = pl.DataFrame({"value": column}).join(
        positions, on="value", how="left", nulls_equal=True, maintain_order="left"
    )["code"]
    return TextColumn(values.to_list(), codes.cast(pl.Int32).to_numpy())


def _restore_rows(user: str | None, state: SourceState) -> pl.DataFrame:
    columns = {
        name: pl.Series(name, column.values, pl.String).gather(column.codes)
        for name, column in state.recent_values.items()
    }
    times = _to_times(state.recent_times)
    return pl.DataFrame(
        {ROW_USER: pl.repeat(user, len(times), dtype=pl.String, eager=True), TIME: times} | columns
    )


def _pack_digests(digests: pl.Series) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)


def _restore_keys(user: str | None, state: SourceState) -> pl.DataFrame:
    data = state.event_digests.tobytes()
    digests = [data[at : at + DIGEST_SIZE] for at in range(0, len(data), DIGEST_SIZE)]
    return pl.DataFrame(
        {
            USER: pl.repeat(user, len(digests), dtype=pl.String, eager=True),
            TIME: _to_times(state.event_times),
            DIGEST: pl.Series(digests, dtype=pl.Binary),
        }
    )
