"""The outbox of an endless run: rows stay in the state file until every sink has taken them.

`Outbox` keeps the rows of a checkpoint. `SinkWorker` hands them to one sink, in a thread of its
own, so that a sink that is slow or down stops neither the run nor the other sinks.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from morpheus.core.batch import (
    Batch,
    DroppedStats,
    OutputRows,
    Scored,
    SinkStats,
    Table,
    take_outputs,
)
from morpheus.core.stage import Requirements, Sink, StageContext, Transform
from morpheus.core.state import State, decode_state, encode_state
from morpheus.errors import TransientError, find_error_code
from morpheus.models.profile import ModelCard
from morpheus.runtime.states import OutboxReader, SinkProgress, SqliteStateStore

logger = logging.getLogger(__name__)

_ENTRY_ROWS = 1 << 14
"""Rows from which an entry is written, although the checkpoint is not due."""
_FIRST_DELAY, _MAX_DELAY = 1.0, 60.0
"""Seconds before the first and before later attempts to reach a sink that is down."""
_ABANDON_SECONDS = 2.0
"""Seconds that a sink has to stop after an error of the run."""
_IDLE_SECONDS = 0.5
"""Seconds after which a sink that holds rows back is asked again."""
_OPENED = "opened"
"""Part of the position of a sink that was opened: what it finds at its place is its own."""
_KINDS: dict[str, type[Batch]] = {"Scored": Scored, "OutputRows": OutputRows}


class SavedBatch(State):
    """A batch in the outbox; its rows are in a frame of the entry.

    Attributes:
        kind: Name of its class.
        user: As in `Batch`.
        frame: Number of the frame.
        rows: Number of rows.
        card: Number of the model card; None without one.
        unscored_reason: As in `Batch`.
        scores: As in `Batch`.
        dropped_stats: As in `Batch`.
    """

    kind: str
    user: str | None
    frame: int
    rows: int
    card: int | None
    unscored_reason: str | None
    scores: tuple[str, ...]
    dropped_stats: DroppedStats | None


class SavedRows(State):
    """An entry of the outbox.

    Attributes:
        batches: The batches, in order.
        frames: Rows of the same columns, in Arrow's format for files.
        cards: The model cards that the sinks read.
    """

    batches: list[SavedBatch]
    frames: list[bytes]
    cards: list[ModelCard]


def encode_batches(batches: Sequence[Batch], *, with_cards: bool) -> bytes:
    """Encode the batches of an entry; see `decode_batches`.

    Args:
        batches: `Scored` or `OutputRows`.
        with_cards: Keep the model cards, too.
    """
    tables: dict[str, list[Table]] = {}
    cards: dict[str, ModelCard] = {}
    saved = []
    for batch in batches:
        key = repr(batch.table.schema_key)
        tables.setdefault(key, []).append(batch.table)
        card = batch.card if with_cards else None
        if card is not None:
            cards.setdefault(card.user, card)
        saved.append(
            SavedBatch(
                type(batch).__name__,
                batch.user,
                list(tables).index(key),
                batch.table.height,
                None if card is None else list(cards).index(card.user),
                batch.unscored_reason,
                batch.scores,
                batch.dropped_stats,
            )
        )
    frames = [_encode_frame(Table.concat(parts).to_frame()) for parts in tables.values()]
    return encode_state(SavedRows(saved, frames, list(cards.values())))


def decode_batches(data: bytes) -> Iterator[Batch]:
    """Yield the batches of an entry, with what sinks read of them.

    Raises:
        ModelCorruptedError: The entry is damaged.
    """
    rows = decode_state(SavedRows, data)
    frames = [pl.read_ipc(BytesIO(frame)) for frame in rows.frames]
    starts = [0] * len(frames)
    for saved in rows.batches:
        start = starts[saved.frame]
        starts[saved.frame] += saved.rows
        common = {
            "user": saved.user,
            "table": Table(frames[saved.frame].slice(start, saved.rows)),
            "card": None if saved.card is None else rows.cards[saved.card],
            "unscored_reason": saved.unscored_reason,
            "scores": saved.scores,
            "dropped_stats": saved.dropped_stats,
        }
        if saved.kind == "Scored":
            # No sink reads the losses of columns.
            yield Scored(**common, losses=np.full((saved.rows, 1), np.nan, np.float32))  # type: ignore[arg-type]  # typed above
        else:
            yield OutputRows(**common)  # type: ignore[arg-type]  # as above


def _encode_frame(frame: pl.DataFrame) -> bytes:
    data = BytesIO()
    frame.write_ipc(data, compression="lz4")
    return data.getvalue()


class Outbox(msgspec.Struct):
    """Collects the rows that reach sinks, until a checkpoint saves them.

    Attributes:
        store: The state file.
        with_cards: Whether the sinks of each place read model cards.
        waiting: Batches that are not in the file yet, by place.
        newest: Number of the latest entry, by place.
        saved: The same of the entries that are committed.
        is_closed: Rows are dropped, because the outbox had them before a restart.
        empty: A batch of each place that had no rows, if there was one: it has the columns.
    """

    store: SqliteStateStore
    with_cards: dict[str, bool] = msgspec.field(default_factory=dict)
    waiting: dict[str, list[Batch]] = msgspec.field(default_factory=dict)
    newest: dict[str, int] = msgspec.field(default_factory=dict)
    saved: dict[str, int] = msgspec.field(default_factory=dict)
    is_closed: bool = False
    empty: dict[str, Batch] = msgspec.field(default_factory=dict)
    _rows: dict[str, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.newest = self.store.list_newest()
        self.saved = dict(self.newest)

    def add(self, place: str, batch: Batch) -> None:
        """Keep a batch for the sinks of a place."""
        if self.is_closed:
            return
        if not batch.table.height and place not in self.empty:
            self.empty[place] = replace(batch, fingerprint=None, dict_codes=None, encoded=None)
        batches = self.waiting.setdefault(place, [])
        if batch.table.height or batch.dropped_stats is not None:
            batches.append(batch)
        self._rows[place] = self._rows.get(place, 0) + batch.table.height
        if self._rows[place] >= _ENTRY_ROWS:
            self._write(place)

    @property
    def has_rows(self) -> bool:
        """Whether there are rows that are not committed."""
        return any(self.waiting.values()) or self.newest != self.saved

    def write(self) -> int:
        """Put all batches into the transaction of the checkpoint; return the number of entries."""
        return sum(map(self._write, list(self.waiting)))

    def _write(self, place: str) -> int:
        batches, self._rows[place] = self.waiting.pop(place), 0
        if batches:
            data = encode_batches(batches, with_cards=self.with_cards.get(place, False))
            self.newest[place] = self.store.add_to_outbox(place, data)
        return bool(batches)


@dataclass(frozen=True)
class PutIntoOutbox(Transform):
    """Takes the place of consecutive sinks: keeps the rows for them, and passes them on."""

    name = "outbox"
    takes = (Batch,)
    scope = "global"
    needs = Requirements()

    place: str = ""
    outbox: Outbox | None = field(default=None, compare=False, repr=False)

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Keep the rows of a batch."""
        if self.outbox is not None:
            self.outbox.add(self.place, batch)
        yield batch


def divide_tail(
    tail: Sequence[Transform], names: Sequence[str], outbox: Outbox
) -> tuple[list[Transform], list[tuple[str, str, Sink]]]:
    """Replace the sinks of a pipeline by the outbox.

    Args:
        tail: The stages after the keyed ones.
        names: Their names; see `name_stages`.
        outbox: Keeps the rows.

    Returns:
        The stages that run with the source, as many as before, and each sink with its key and the
        place whose rows it takes.
    """
    stages: list[Transform] = []
    sinks: list[tuple[str, str, Sink]] = []
    # A place has the name of what comes before it, so that sinks can be added and removed.
    place, is_first = "start", True
    counts: Counter[tuple[str, ...]] = Counter()
    for stage, name in zip(tail, names, strict=True):
        if not isinstance(stage, Sink):
            place, is_first = f"after {name}", True
            stages.append(stage)
            continue
        sinks.append((_name_sink(stage, counts), place, stage))
        outbox.with_cards[place] = outbox.with_cards.get(place, False) or stage.needs.card
        stages.append(PutIntoOutbox(place=place, outbox=outbox if is_first else None))
        is_first = False
    return stages, sinks


def _name_sink(sink: Sink, counts: Counter[tuple[str, ...]]) -> str:
    """Return the key of a sink: its name and where it writes to, whatever sinks are beside it.

    Args:
        sink: The sink.
        counts: Number of sinks so far that write to the same place; updated.
    """
    outputs = sink.outputs()
    places = [*(outputs.files or outputs.folders), *outputs.data_sets, *outputs.destinations]
    words = (sink.name, *map(str, places))
    counts[words] += 1
    return " ".join([f"{sink.name}#{counts[words]}", *words[1:]])


def list_places(sink: Sink) -> list[str]:
    """Return where a sink writes to, with full paths."""
    outputs = sink.outputs()
    files = [*(outputs.files or outputs.folders), *outputs.data_sets]
    places = [
        os.path.normpath(place.absolute()) if isinstance(place, Path) else str(place).rstrip("/")
        for place in files
    ]
    return [*places, *outputs.destinations]


def find_sink_key(key: str, places: Sequence[str], known: Mapping[str, SinkProgress]) -> str:
    """Return the key that a sink has in a state file, however its output was typed before.

    Args:
        key: Its key by the present command.
        places: Where it writes to; see `list_places`.
        known: The sinks in the state file.
    """
    name = key.partition(" ")[0]
    for other, progress in known.items():
        other_name, _, typed = other.partition(" ")
        if other_name != name:
            continue
        before = progress.places
        if before is None:
            if other == key:
                return key
            before = [typed if "://" in typed else os.path.normpath(Path(typed).absolute())]
        if len(before) == len(places) and (
            all(map(_is_same_place, before, places))
            or (other == key and all(map(_has_moved, before, places)))
        ):
            return other
    # Another output was typed like that, in another working directory.
    return " ".join([name, *places]) if key in known else key


def _is_same_place(one: str, other: str) -> bool:
    if one == other:
        return True
    is_url = "://" in one or "://" in other
    return not is_url and os.path.realpath(one) == os.path.realpath(other)


def _has_moved(before: str, now: str) -> bool:
    """Return whether a place is the one before, because the folders above it were moved."""
    is_url = "://" in before or "://" in now
    moved = not is_url and not os.path.lexists(before) and os.path.lexists(now)
    return before == now or moved


class SinkWorker(msgspec.Struct):
    """Gives the entries of the outbox to one sink, in order, in a thread of its own.

    A sink that fails is opened again, and gets all entries again that were not safe, for as long as
    it takes.

    Attributes:
        key: Name of the sink and where it writes to.
        place: The place of the pipeline whose rows it takes.
        sink: The sink.
        context: What it gets when it is opened.
        open_reader: Opens a reader of the outbox.
        progress: How far it has come; its position is complete.
        stats: The same, for people.
        error: What has ended the thread; None if nothing has.
        empty: A batch without rows. The sink gets it last, so that an empty output has columns.
    """

    key: str
    place: str
    sink: Sink
    context: StageContext
    open_reader: Callable[[], OutboxReader]
    progress: SinkProgress
    stats: SinkStats = msgspec.field(default_factory=SinkStats)
    error: BaseException | None = None
    empty: Batch | None = None
    last_failure: Exception | None = None
    _unsaved: SinkProgress | None = None
    _state: object = None
    _resources: ExitStack = msgspec.field(default_factory=ExitStack)
    _read: int = 0
    _wake: threading.Event = msgspec.field(default_factory=threading.Event)
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    _stopping: bool = False
    _deadline: float = 0.0
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the sink, so that an output that cannot be written fails at once, and start.

        Raises:
            MorpheusError: The sink cannot be opened.
        """
        self._open()
        self.stats.delivered = self.progress.delivered
        self._thread = threading.Thread(target=self._run, name=self.key, daemon=True)
        self._thread.start()

    def wake(self, newest: int) -> None:
        """Say that there are new entries, up to a number."""
        if newest > self.stats.delivered and self.stats.behind_since is None:
            self.stats.behind_since = time.monotonic()
        self._wake.set()

    def take_progress(self) -> SinkProgress | None:
        """Return what has changed since the last call, to be saved; None for nothing."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, None
        return unsaved

    def finish(self, deadline: float) -> None:
        """Ask the sink to take what is left, and to close.

        Args:
            deadline: Until when a sink that fails is tried again, by `time.monotonic`.
        """
        self._deadline = deadline
        self._stopping = True
        self._wake.set()

    @property
    def is_running(self) -> bool:
        """Whether the sink can still take rows."""
        return self._thread is not None and self._thread.is_alive()

    def is_behind(self, newest: int) -> bool:
        """Return whether an entry, up to a number, is not safe with the sink yet."""
        return self.stats.delivered < newest

    def abandon(self) -> None:
        """Stop after an error of the run."""
        self.finish(0.0)
        if self._thread is not None:
            self._thread.join(_ABANDON_SECONDS)

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self.error is not None:
            raise self.error

    def _open(self) -> None:
        self._resources = ExitStack()
        context = replace(
            self.context, resources=self._resources, position=dict(self.progress.position)
        )
        self._read = self.progress.delivered
        try:
            self._state = self.sink.open(context)
        except BaseException:
            self._resources.close()
            raise
        if _OPENED not in self.progress.position:
            self._note_progress(self.progress.delivered, {_OPENED: b"1"})

    def _note_progress(self, delivered: int, changes: Mapping[str, bytes]) -> None:
        """Keep how far the sink has come, and what has changed of its position."""
        position = self.progress.position
        for name, data in changes.items():
            if data:
                position[name] = data
            else:
                position.pop(name, None)
        with self._lock:
            self.progress.delivered = self.stats.delivered = delivered
            known = self._unsaved or SinkProgress()
            self._unsaved = SinkProgress(delivered, known.position | dict(changes))

    def _run(self) -> None:
        delay = _FIRST_DELAY
        reader = self.open_reader()
        is_open = True
        try:
            while True:
                try:
                    if not is_open:
                        self._open()
                        is_open = True
                    if self._take_all(reader):
                        return
                    delay = _FIRST_DELAY
                except (TransientError, OSError) as error:
                    self._fail(error, delay)
                    is_open = False
                    if self._wait(delay):
                        return
                    delay = min(2 * delay, _MAX_DELAY)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.error = error
        finally:
            reader.close()
            if is_open:
                self._resources.close()

    def _take_all(self, reader: OutboxReader) -> bool:
        """Take entries until there are none; return whether the sink must stop."""
        stopping = self._stopping  # before looking: what was written before it is still taken
        while (entry := reader.next(self.place, self._read)) is not None:
            for batch in decode_batches(entry.data):
                take_outputs(self.sink, self.sink.process(batch, self._state))
            self._read = entry.number
            self._sync()
        if stopping:
            if self.empty is not None:
                take_outputs(self.sink, self.sink.process(self.empty, self._state))
            take_outputs(self.sink, self.sink.flush(self._state), "flush")
            self._sync()
            return True
        if self._read > self.progress.delivered:
            self._sync()
        else:
            self.stats.behind_since = None
        self._wake.wait(_IDLE_SECONDS)
        self._wake.clear()
        return False

    def _sync(self) -> None:
        changes = self.sink.sync(self._state)
        self.stats.last_error = ""
        if changes is not None:
            self._note_progress(self._read, changes)

    def _fail(self, error: Exception, delay: float) -> None:
        """Close a sink that has failed, and say so."""
        self.stats.errors += 1
        self.stats.last_error = find_error_code(error)
        self.last_failure = error
        logger.warning(
            "%s: %s Its rows wait in the state file. Trying again in %.0f seconds.",
            *(self.key, str(error).rstrip(".") + ".", delay),
            extra={"stage": self.sink.name, "code": self.stats.last_error},
        )
        try:
            self._resources.close()
        except (TransientError, OSError) as closing:
            logger.debug("%s: closing: %s", self.key, closing)

    def _wait(self, seconds: float) -> bool:
        """Wait before the next attempt; return whether there must be none."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if self._stopping:
                end = min(end, now + _FIRST_DELAY)  # the run waits
                if now >= self._deadline:
                    return True
            self._wake.wait(min(_IDLE_SECONDS, max(0.0, end - now)))
            self._wake.clear()
        return self._stopping and time.monotonic() >= self._deadline
