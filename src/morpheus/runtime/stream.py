"""The loop of an endless run: micro-batches, checkpoints, delivery.

A micro-batch is read and passes the stages; what reaches a sink goes to the outbox. A checkpoint
saves offsets, changed states and the outbox in one transaction. So after a crash the run goes on
where it was, no row is lost, and a row that is written again is the same. Between two checkpoints,
rows go to the sinks too, if the source has a journal: then the outbox is saved with the events, not
with the states. After a crash, these events are processed again, and their rows are dropped.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from morpheus.core.batch import Batch, MicroBatch, Partition, RunMetrics, StreamStats
from morpheus.core.stage import Sink, StageContext, Transform
from morpheus.errors import TransientError
from morpheus.runtime.chain import Chain, WaitStoppedError
from morpheus.runtime.changelog import Changelog, PlacedPartition, StateGroup
from morpheus.runtime.local import encode_source, restore_source
from morpheus.runtime.outbox import (
    Outbox,
    SinkWorker,
    divide_tail,
    find_sink_key,
    list_places,
)
from morpheus.runtime.states import SinkProgress, SqliteStateStore
from morpheus.sources.source_state import PartitionState

logger = logging.getLogger(__name__)

_MAX_SHARE = 0.08
"""Share of the time that checkpoints may take."""
_STOP_SECONDS = 10.0
"""Seconds that a sink has at the end to take what is left."""
_PAUSE_SECONDS, _POLL_SECONDS = 0.2, 0.02
_DELIVERY_SECONDS = 0.2
"""Seconds between two deliveries of rows, if they do not wait for a checkpoint."""
_REMOVAL_SECONDS = 600.0
"""Seconds between two searches for states that are too old."""
_MAX_NAMED_USERS = 10_000
"""Users that the summary of an endless run counts by name."""
_BUNDLE_ROWS = 1 << 14
"""Events that pass the stages together."""
_MEGABYTE = 1_000_000
_GC_THRESHOLDS = 10_000, 20, 50
"""New objects after which garbage is collected, and how much more often young objects are examined
than old ones. With Python's own, it would take a tenth of the time: each micro-batch makes many
objects, and the states of thousands of users are examined again and again."""


class StreamSettings(msgspec.Struct, frozen=True):
    """Options of an endless run; see `PipelineOptions`."""

    checkpoint_interval: float = 1.0
    max_outbox: int = 10_000
    max_live_users: int = 20_000
    state_max_age: timedelta | None = None


@contextmanager
def collect_rarely() -> Iterator[None]:
    """Collect garbage less often, as many live users need."""
    before = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@dataclass
class Stream:
    """An endless run without a state file: sinks run in line, and nothing is kept.

    Attributes:
        chains: Head, keyed segment and tail.
        metrics: Counts events.
        source_state: What the source remembers of each user.
        waiting: What to call when the sinks have taken all rows.
        make_columns: Makes a batch without events for the tail, which has the columns.
    """

    chains: Sequence[Chain]
    metrics: RunMetrics
    source_state: PartitionState = field(default_factory=lambda: PartitionState.restore({}))
    waiting: list[Callable[[], None]] = field(default_factory=list)
    make_columns: Callable[[], Iterable[Batch]] = tuple
    _any_batch: bool = False

    def __post_init__(self) -> None:
        self.metrics.max_users = _MAX_NAMED_USERS

    def run(self, micro_batches: Iterator[MicroBatch]) -> Iterator[Batch]:
        """Process micro-batches, and yield what leaves the last stage."""
        self.metrics.stream = StreamStats(progress=time.monotonic())
        try:
            for micro_batch in micro_batches:
                yield from self.process(micro_batch)
                if micro_batch.acknowledge is not None:
                    self.waiting.append(micro_batch.acknowledge)
                self.acknowledge()
        except WaitStoppedError:
            # The sinks finish what they have. With a state file, the events are read again.
            logger.warning(
                "The latest events are not written. With --state, the next run would read them."
            )
        yield from self._push_columns()
        yield from self.flush()

    def process(self, micro_batch: MicroBatch) -> Iterator[Batch]:
        """Pass the events of a micro-batch through the stages."""
        stats = self.metrics.stream or StreamStats()
        stats.micro_batches += bool(micro_batch.partitions)
        for partition in micro_batch.partitions:
            yield from self._process_partition(partition)
        stats.live_users = max(len(chain.recent) for chain in self.chains)
        stats.paused = False
        self.metrics.tick()

    def acknowledge(self) -> None:
        """Let the source forget what it has read, if the sinks have it."""
        if not self.waiting or not all(map(_sync_sinks, self.chains)):
            return
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each()

    def flush(self) -> Iterator[Batch]:
        """End the input: flush all stages."""
        for position, chain in enumerate(self.chains):
            yield from self._push(chain.flush(), position + 1)

    def _process_partition(self, partition: Partition) -> Iterator[Batch]:
        events = partition.events(self.metrics, self.source_state)
        while bundle := list(_take_rows(events, _BUNDLE_ROWS)):
            yield from self._push(bundle)

    def _push_columns(self) -> Iterator[Batch]:
        """Give an output its columns, if there was no event."""
        if not self._any_batch:
            yield from self._push(list(self.make_columns()), len(self.chains) - 1)

    def _push(self, batches: Sequence[Batch], first: int = 0) -> Iterator[Batch]:
        """Push batches through the chains from the first one on."""
        self._any_batch = True
        for chain in self.chains[first:]:
            batches = chain.push_many(batches)
        yield from batches


def _take_rows(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """Yield batches until they have a number of rows."""
    while rows > 0 and (batch := next(batches, None)) is not None:
        rows -= max(1, batch.table.height)
        yield batch


def _sync_sinks(chain: Chain) -> bool:
    """Make the rows of a chain's sinks safe; return whether they are."""
    results = [
        stage.sync(chain.states.live[None][name])
        for stage, name in zip(chain.segment.stages, chain.segment.names, strict=True)
        if isinstance(stage, Sink)
    ]
    return None not in results


@dataclass
class DurableStream(Stream):
    """An endless run with a state file.

    Attributes:
        store: The state file.
        settings: Options.
        outbox: Rows of the next checkpoint.
        workers: One for each sink.
        is_stopped: Returns whether the run was asked to stop.
        changelog: Gets the states when the sinks have their rows; None for none.
        replays: Number of micro-batches of the journal that are processed again.
    """

    store: SqliteStateStore = field(kw_only=True)
    outbox: Outbox = field(kw_only=True)
    settings: StreamSettings = field(default_factory=StreamSettings, kw_only=True)
    workers: list[SinkWorker] = field(default_factory=list, kw_only=True)
    is_stopped: Callable[[], bool] = field(default=lambda: False, kw_only=True)
    changelog: Changelog | None = field(default=None, kw_only=True)
    replays: int = field(default=0, kw_only=True)
    _journal: list[bytes] | None = field(default_factory=list)
    _delivery_due: float = 0.0
    _places: dict[str | None, str] = field(default_factory=dict)
    _group: StateGroup = field(default_factory=StateGroup)
    _sealed: StateGroup | None = None
    _offsets: dict[str, bytes] = field(default_factory=dict)
    _loaded: dict[str | None, None] = field(default_factory=dict)
    _unsaved: set[str | None] = field(default_factory=set)
    _has_changes: bool = False
    _due: float = 0.0
    _removal_due: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_state.dedup_window is not None:
            self.source_state.dedup_window.load = self.store.load_parts

    def run(self, micro_batches: Iterator[MicroBatch]) -> Iterator[Batch]:
        """Process micro-batches with checkpoints; yield the rows that go to the sinks."""
        stats = self.metrics.stream = StreamStats(progress=time.monotonic())
        stats.sinks = {worker.key: worker.stats for worker in self.workers}
        self._measure(stats)
        for micro_batch in micro_batches:
            self._take_over(micro_batch)
            if micro_batch.is_replay:
                self._process_again(micro_batch)
                continue
            yield from self.process(micro_batch)
            self._note(micro_batch)
            self._publish()
            if time.monotonic() >= self._delivery_due:
                self._deliver()
            if time.monotonic() >= self._due:
                self._checkpoint(stats)
            self._wait_for_room(stats)
        self._finish(stats)

    def _take_over(self, micro_batch: MicroBatch) -> None:
        """Drop the states of users whom another process has now, and take over those of others."""
        if self.changelog is None:
            return
        groups = [self._group, *([] if self._sealed is None else [self._sealed])]
        revoked = [place for place, data in micro_batch.offsets.items() if not data]
        gone = {user for place in revoked for group in groups for user in group.forget(place)}
        gone |= {user for user, place in self._places.items() if place in revoked}
        self._places = {user: place for user, place in self._places.items() if user not in gone}
        self._drop({*gone, *(key.user for key in micro_batch.restored)})
        self.store.drop_users(gone)
        self.store.save(micro_batch.restored)
        self._has_changes |= bool(micro_batch.restored)

    def _process_again(self, micro_batch: MicroBatch) -> None:
        """Bring the states to where they were with the rows that the outbox had."""
        self.outbox.is_closed = True
        for _ in self.process(micro_batch):
            pass
        self.outbox.is_closed = False
        self.replays -= 1
        self._has_changes = True

    def _drop(self, users: Collection[str | None]) -> None:
        """Drop the live states of some users."""
        for chain in self.chains:
            chain.unsaved.difference_update(users)
            chain.drop(users)
        self.source_state.forget(users)
        self._unsaved.difference_update(users)
        for user in users:
            self._loaded.pop(user, None)

    def _publish(self) -> None:
        """Write to the changelog what belongs to rows that all sinks have."""
        while self.changelog is not None:
            if self._sealed is None:
                if not (self._group.offsets or self._group.acknowledge):
                    return
                self._sealed, self._group = self._group, StateGroup()
            newest = self._sealed.newest
            if any(each.is_behind(newest.get(each.place, 0)) for each in self.workers):
                return
            if not self.changelog.write(self._sealed):
                return
            for acknowledge in self._sealed.acknowledge:
                acknowledge()
            self._sealed = None

    def _note(self, micro_batch: MicroBatch) -> None:
        """Remember what belongs to the next checkpoint."""
        self._offsets.update(micro_batch.offsets)
        self._has_changes |= bool(micro_batch.partitions or micro_batch.offsets)
        if micro_batch.acknowledge is not None:
            self._has_changes = True
            self.waiting.append(micro_batch.acknowledge)
        if micro_batch.journal is None and (micro_batch.partitions or micro_batch.offsets):
            self._journal = None
        elif micro_batch.journal is not None and self._journal is not None:
            self._journal.append(micro_batch.journal)
        for worker in self.workers:
            worker.check()

    def _process_partition(self, partition: Partition) -> Iterator[Batch]:
        users = list(dict.fromkeys(partition.user_names()))
        new = [user for user in users if user not in self._loaded]
        if new:
            states = self.store.load(new, with_parts=False)
            self.source_state.merge(restore_source(states))
            for chain in self.chains:
                chain.restore(states)
        for user in users:
            self._loaded.pop(user, None)
            self._loaded[user] = None
        self._unsaved.update(users)
        if isinstance(partition, PlacedPartition):
            places = dict.fromkeys(users, partition.place)
            places.pop(None, None)  # events without a user have no state of their own
            self._places.update(places)
        yield from super()._process_partition(partition)
        if len(self._loaded) > 2 * self.settings.max_live_users:
            # A checkpoint may be far, so that many users would be in memory at once.
            self._save_states()
            self._evict()
            self._journal = None  # the transaction has states

    def _deliver(self) -> None:
        """Give the sinks their rows before the states are saved; see `MicroBatch.journal`."""
        if self._journal is None or not self.outbox.has_rows:
            return
        for data in self._journal:
            self.store.add_to_journal(data)
        self.store.save_offsets(self._offsets)
        self._offsets, self._journal = {}, []
        self.outbox.write()
        self._save_sinks(self._take_progress())
        self.store.commit()
        self._wake_sinks()
        self._delivery_due = time.monotonic() + _DELIVERY_SECONDS

    def _take_progress(self) -> list[tuple[SinkWorker, SinkProgress]]:
        progress = [(worker, worker.take_progress()) for worker in self.workers]
        return [(worker, each) for worker, each in progress if each is not None]

    def _save_sinks(self, moved: Sequence[tuple[SinkWorker, SinkProgress]]) -> None:
        for worker, progress in moved:
            self.store.save_sink(worker.key, worker.place, progress)
        self.store.trim_outbox()

    def _wake_sinks(self) -> None:
        """Say that rows are committed."""
        self.outbox.saved = dict(self.outbox.newest)
        for worker in self.workers:
            worker.wake(self.outbox.newest.get(worker.place, 0))

    def _checkpoint(self, stats: StreamStats) -> None:
        """Save everything that has changed, in one transaction."""
        start = time.monotonic()
        if self.replays:
            return  # the journal has what the states lack
        moved = self._take_progress()
        if not self._has_changes and not moved:
            self._due, self._journal = start + self.settings.checkpoint_interval, []
            return
        self._save(moved)
        self._remove_old()
        self.store.commit()
        waiting, self.waiting = self.waiting, []
        if self.changelog is None:
            for acknowledge in waiting:
                acknowledge()
        else:
            self._group.acknowledge += waiting
            self._group.newest = dict(self.outbox.newest)
        self._wake_sinks()
        self._evict()
        self._measure(stats)
        seconds = time.monotonic() - start
        stats.checkpoints += 1
        stats.checkpoint_seconds += seconds
        rest = seconds / _MAX_SHARE - seconds
        self._due = start + seconds + max(self.settings.checkpoint_interval, rest)

    def _save(self, moved: Sequence[tuple[SinkWorker, SinkProgress]]) -> None:
        self.store.save_offsets(self._offsets)
        self._save_states()
        if self.changelog is not None:
            self._group.offsets |= {place: data for place, data in self._offsets.items() if data}
        self.outbox.write()
        self._save_sinks(moved)
        self.store.clear_journal()
        self._offsets, self._journal, self._has_changes = {}, [], False

    def _save_states(self) -> None:
        """Put the states that have changed into the transaction of the next checkpoint."""
        states = encode_source(self.source_state, self._unsaved)
        for chain in self.chains:
            states |= chain.take_changes()
        self.store.save(states)
        if self.changelog is not None:
            self._group.places |= self._places
            self._group.save(states)
            self._places = {}
        self._unsaved = set()

    def _remove_old(self) -> None:
        """Remove the states of users who have not come for too long, also from memory."""
        age, now = self.settings.state_max_age, time.monotonic()
        if age is None or now < self._removal_due:
            return
        self._removal_due = now + _REMOVAL_SECONDS
        gone = self.store.remove_older(age)
        for chain in self.chains:
            chain.drop(gone)
        self.source_state.forget(gone)
        for user in gone:
            self._loaded.pop(user, None)

    def _evict(self) -> None:
        """Drop the states of users who have not come for longest."""
        most = self.settings.max_live_users
        if len(self._loaded) <= most:
            return
        kept = [set(chain.recent) for chain in self.chains]
        for chain in self.chains:
            chain.evict(most)
        kept = [users & set(chain.recent) for users, chain in zip(kept, self.chains, strict=True)]
        live = set[str | None]().union(*kept)
        gone = [user for user in list(self._loaded)[:-most] if user not in live]
        self.source_state.forget(gone)
        for user in gone:
            del self._loaded[user]

    def _measure(self, stats: StreamStats) -> None:
        stats.outbox_entries, stats.outbox_bytes = self.store.measure_outbox()

    def _wait_for_room(self, stats: StreamStats) -> None:
        """Pause while the outbox is full, so that a sink that is down fills no disk."""
        limit = self.settings.max_outbox * _MEGABYTE
        while stats.outbox_bytes > limit and not self.is_stopped():
            if not stats.paused:
                logger.warning(
                    "--max_outbox: %d MB of rows wait for %s. Reading pauses until they are taken.",
                    *(self.settings.max_outbox, self._name_late_sinks()),
                )
            stats.paused = True
            time.sleep(_PAUSE_SECONDS)
            self.metrics.tick()  # it waits for the sink, and does not hang
            for worker in self.workers:
                worker.check()
            if time.monotonic() >= self._due:
                self._checkpoint(stats)
        stats.paused = False

    def _name_late_sinks(self) -> str:
        return ", ".join(f"`{worker.key}`" for worker in self._list_late()) or "a sink"

    def _list_late(self) -> list[SinkWorker]:
        newest = self.outbox.newest
        return [each for each in self.workers if each.is_behind(newest.get(each.place, 0))]

    def _finish(self, stats: StreamStats) -> None:
        """Save everything, let the sinks take what is left, and save that."""
        for _ in self._push_columns():
            pass
        self._checkpoint(stats)
        self._wait_for_sinks()
        self._checkpoint(stats)
        self._publish()
        behind = self._list_late()
        if not behind:
            return
        names = ", ".join(f"`{worker.key}`" for worker in behind)
        message = (
            f"Rows for {names} wait in `{self.store.path}`. The next run with this --state file "
            "delivers them."
        )
        if self.is_stopped():
            logger.warning("%s", message)
            return
        failures = [str(each.last_failure) for each in behind if each.last_failure is not None]
        raise TransientError(" ".join([*failures[:1], message]))

    def _wait_for_sinks(self) -> None:
        """Let the sinks take what is left, for as long as they get on, or until a signal."""
        end = time.monotonic() + _STOP_SECONDS
        delivered = -1
        for worker in self.workers:
            worker.empty = self.outbox.empty.get(worker.place)
        while any(worker.is_running for worker in self.workers) and time.monotonic() < end:
            taken = sum(worker.stats.delivered for worker in self.workers)
            if taken != delivered and not self.is_stopped():
                delivered, end = taken, time.monotonic() + _STOP_SECONDS
            for worker in self.workers:
                worker.finish(end)
            time.sleep(_POLL_SECONDS)
        for worker in self.workers:
            worker.check()


def open_outbox_tail(
    tail: Sequence[Transform], names: Sequence[str], store: SqliteStateStore
) -> tuple[list[Transform], Outbox, list[SinkWorker]]:
    """Replace the sinks at the end of a pipeline by an outbox, and make a worker for each.

    Args:
        tail: The stages after the keyed ones.
        names: Their names.
        store: The state file.
    """
    outbox = Outbox(store)
    stages, sinks = divide_tail(tail, names, outbox)
    store.commit()  # readers of the outbox see what is committed
    known = store.load_sinks()
    workers = []
    for typed, place, sink in sinks:
        places = list_places(sink)
        key = find_sink_key(typed, places, known)
        progress = known.get(key, SinkProgress())
        if progress.places != places:
            progress.places = places
            store.save_sink(key, place, progress)
        context = StageContext(unbounded=True, resources=ExitStack())
        workers.append(SinkWorker(key, place, sink, context, store.open_reader, progress))
    return stages, outbox, workers


def drop_former_sinks(store: SqliteStateStore, workers: Sequence[SinkWorker]) -> None:
    """Remove what a state file has of sinks that are gone, once all others have been opened."""
    for key in store.load_sinks().keys() - {worker.key for worker in workers}:
        undelivered = store.count_undelivered(key)
        if undelivered:
            logger.warning(
                "--state: %d parts of rows were not delivered to `%s`, which the pipeline does not "
                "have any more. They are dropped.",
                *(undelivered, key),
            )
        store.remove_sink(key)
    store.commit()
