"""Reads the objects of a bucket as they arrive, in micro-batches.

`ObjectStream` downloads objects, reads them and accounts for them. A feed says which objects are
new: `BucketLister` lists the bucket, `morpheus.sources.sqs` gets notifications.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from copy import deepcopy
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec.structs import replace

from morpheus.core.batch import MicroBatch, ReadStats, RunMetrics
from morpheus.core.stage import Values, list_values
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import (
    MAX_CONCURRENCY,
    PREFETCH_BYTES,
    keep_object,
    keep_objects,
)
from morpheus.sources.discovery import DiscoveredFiles, FileDiscovery, is_delta_table
from morpheus.sources.ingest import FileIngest, IngestRun
from morpheus.sources.partitioning import LocalPartitionStore, UserPartition
from morpheus.sources.spill_sort import SpilledDataset
from morpheus.sources.time_range import find_date_format, parse_interval
from morpheus.storage.object_store import (
    ObjectPath,
    RequestThreads,
    is_object_url,
    list_after,
    list_dir,
)
from morpheus.storage.spill import SpillDir
from morpheus.text import format_duration

logger = logging.getLogger(__name__)

MAX_OBJECTS = 500
"""Maximum number of objects of a micro-batch."""
MAX_BYTES = PREFETCH_BYTES
"""Stored bytes above which a micro-batch gets no further objects."""
TICK_SECONDS = 1.0
"""Time after which an empty micro-batch is due."""
_FIRST_BACKOFF, _MAX_BACKOFF = 1.0, 60.0
"""Seconds after which failed downloads are tried again."""
BUCKET = "bucket"
"""Name of the offset that says which buckets the others are of."""


def digest_object(path: ObjectPath) -> bytes:
    """Return what identifies the content of an object: a digest of bucket, key and ETag."""
    text = f"{path.bucket}\n{path.key}\n{path.etag}"
    return blake2b(text.encode(), digest_size=16).digest()


class ObjectGroup(msgspec.Struct, frozen=True):
    """Objects that are read together.

    Attributes:
        paths: The objects. Those with an ETag may differ from the stored ones.
        other_keys: Another key to try if there is no object of a key, by key.
    """

    paths: Sequence[ObjectPath] = ()
    other_keys: Mapping[str, str] = msgspec.field(default_factory=dict)


class GroupResult(msgspec.Struct):
    """What has happened to the objects of a group.

    Attributes:
        read: The objects that were read, by what the group calls them.
        deleted: The objects that do not exist any more.
        unreadable: Why objects cannot be read.
    """

    read: dict[ObjectPath, ObjectPath] = msgspec.field(default_factory=dict)
    deleted: set[ObjectPath] = msgspec.field(default_factory=set)
    unreadable: dict[ObjectPath, str] = msgspec.field(default_factory=dict)


class ObjectFeed(Protocol):
    """Knows which objects of a bucket are new.

    Attributes:
        keeps_unreadable: Whether it comes back to objects that cannot be read. If not, the first
            one ends the run.
        max_objects: Number of objects above which a group gets no further ones.
    """

    keeps_unreadable: bool
    max_objects: int

    def open(self, offsets: Mapping[str, bytes], metrics: RunMetrics) -> None:
        """Continue after a checkpoint; see `Source.micro_batches`."""

    def groups(self) -> Iterator[ObjectGroup | None]:
        """Yield new objects; None about once a second while there are none."""

    def is_known(self, path: ObjectPath) -> bool:
        """Return whether an object, as it was downloaded, was read before."""

    def finish(self, result: GroupResult) -> MicroBatch:
        """Account for the group that was yielded last, and return the offsets after it."""

    def close(self) -> None:
        """Release what is open."""


def leave_out(stats: ReadStats, kind: str, number: int = 1) -> None:
    """Count objects or notifications that are not read.

    Args:
        stats: The counts.
        kind: What they are, in the singular.
        number: How many.
    """
    if number:
        stats.skipped_files += number
        stats.file_kinds = stats.file_kinds + Counter({kind: number})


def count_others(stats: ReadStats, found: DiscoveredFiles, matching: int) -> None:
    """Count the objects that `FileDiscovery.choose` has not chosen.

    Args:
        stats: The counts.
        found: What it has chosen.
        matching: Number of objects that it chose from.
    """
    stats.skipped_files += found.skipped_files
    stats.file_kinds = stats.file_kinds + found.kinds
    stats.outside_files += found.outside_files
    unsupported = sum(each.count for each in found.not_read)
    leave_out(stats, "unsupported file", unsupported)
    others = matching - len(found.paths) - found.skipped_files - found.outside_files - unsupported
    leave_out(stats, "unmatched object", others)


def check_binding(offsets: Mapping[str, bytes], files: FileDiscovery) -> dict[str, bytes]:
    """Reject offsets of another bucket, and return the offset that names this one.

    Args:
        offsets: Offsets of the last checkpoint.
        files: The files to read.

    Raises:
        UsageError: The offsets are of another bucket, or of folders.
    """
    roots = [ObjectPath.parse(each) for each in list_values(files.pattern)]
    mine = ", ".join(sorted({f"{root.scheme}://{root.bucket}" for root in roots}))
    saved = offsets.get(BUCKET, b"").decode()
    if offsets and saved != mine:
        raise UsageError(
            f"--state: the state was saved while reading {saved or 'another kind of input'}, and "
            f"{files.option} is in {mine}. Give another file as --state, or the former "
            f"{files.option}."
        )
    return {} if offsets else {BUCKET: mine.encode()}


class ObjectStream(msgspec.Struct):
    """Reads the objects that a feed names.

    Attributes:
        ingest: Settings of the source.
        feed: Knows which objects are new.
        metrics: Counts what happens to objects and records.
        max_files: Number of objects after which the stream ends; None for no end.
        sleep: Waits for a number of seconds.
    """

    ingest: FileIngest
    feed: ObjectFeed
    metrics: RunMetrics
    max_files: int | None = None
    sleep: Callable[[float], object] = time.sleep

    def micro_batches(
        self, training_input: Values | None, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read objects as they arrive; see `Source.micro_batches`."""
        ingest, stats = self.ingest, self.metrics.input
        stats.time_range = str(ingest.files.time_range or "")
        bound = check_binding(offsets, ingest.files)
        with SpillDir() as spill_dir:
            store = LocalPartitionStore(
                ingest.make_partition_spec(),
                ingest.memory_budget,
                ingest.sample_spec,
                spill_dir,
                WorkerPool(1),
            )
            run = IngestRun(ingest, self.metrics, store)
            self.feed.open(offsets, self.metrics)
            try:
                with WorkerPool(ingest.options.num_threads) as store.pool:
                    first = run.partitions([], training_input)
                yield MicroBatch(first, bound)
                yield from self._follow(run, store)
            finally:
                self.feed.close()

    def _follow(
        self, run: IngestRun[SpilledDataset, UserPartition], store: LocalPartitionStore
    ) -> Iterator[MicroBatch]:
        taken = 0
        self.feed.max_objects = min(MAX_OBJECTS, self.max_files or MAX_OBJECTS)
        for group in self.feed.groups():
            if group is None:
                yield MicroBatch()
                continue
            result = GroupResult()
            with SpillDir() as spill_dir, keep_objects(spill_dir.folder):
                for _ in self._download(group, result):
                    yield MicroBatch()
                # Workers only exist while objects are read: waiting may take hours.
                with WorkerPool(self.ingest.options.num_threads) as store.pool:
                    partitions = self._read(run, result)
            taken += len(result.read)
            done = self.feed.finish(result)
            yield MicroBatch(partitions, done.offsets, done.acknowledge)
            if self.max_files is not None:
                self.feed.max_objects = min(MAX_OBJECTS, self.max_files - taken)
                if taken >= self.max_files:
                    return

    def _download(self, group: ObjectGroup, result: GroupResult) -> Iterator[None]:
        """Download objects, and yield about once a second. A server that is down is waited for."""
        missing, backoff = deque(group.paths), _FIRST_BACKOFF
        with RequestThreads(MAX_CONCURRENCY) as pool:
            while missing:
                jobs = {path: pool.submit(keep_object, path) for path in missing}
                yield from _wait_for(jobs.values())
                missing.clear()
                for path, job in jobs.items():
                    self._take(path, job, group, result, missing)
                if missing:
                    yield from self._pause(backoff)
                    backoff = min(2 * backoff, _MAX_BACKOFF)

    def _take(
        self,
        path: ObjectPath,
        job: Future[ObjectPath],
        group: ObjectGroup,
        result: GroupResult,
        missing: deque[ObjectPath],
    ) -> None:
        """Account for a download.

        Raises:
            UsageError: The bucket does not exist, or access is denied.
            RecordError: See `_refuse`.
        """
        stats, other = self.metrics.input, group.other_keys.get(path.key)
        try:
            found = job.result()
        except (FileNotFoundError, RecordError) as error:
            is_refused = isinstance(error, RecordError)
            if other is not None and path.with_key(other) not in group.paths:
                missing.append(path.with_key(other))
                # The reason counts if there is no object of the other key.
                result.unreadable |= {path.with_key(other): str(error)} if is_refused else {}
            elif isinstance(error, RecordError):
                result.unreadable[path] = str(error)
                self._refuse(error)
            elif path not in result.unreadable:
                result.deleted.add(path)
                leave_out(stats, "deleted object")
                logger.warning("%s: it was deleted before it was read.", path)
        except TransientError as error:
            missing.append(path)
            if len(missing) == 1:
                logger.warning("%s It is tried again until it succeeds.", error)
        else:
            result.unreadable.pop(path, None)
            leave_out(stats, "replaced object", int(path.etag not in {"", found.etag}))
            if self.feed.is_known(found) or found in result.read.values():
                leave_out(stats, "repeated object")
            else:
                result.read[path] = found

    def _refuse(self, error: RecordError) -> None:
        """Account for an object that the server does not give.

        Raises:
            RecordError: The feed would not come back to it, and such objects are not skipped.
        """
        if self.feed.keeps_unreadable:
            return
        if not self.ingest.skip_bad_records:
            hint = "use `--bad_record skip` to skip and count such objects"
            raise RecordError(f"{error.reason}; {hint}", file=error.file, records=None)
        self.metrics.input.read += 1
        self.metrics.input.refuse(str(error))

    def _pause(self, seconds: float) -> Iterator[None]:
        while seconds > 0:
            self.sleep(min(seconds, TICK_SECONDS))
            seconds -= TICK_SECONDS
            yield

    def _read(
        self, run: IngestRun[SpilledDataset, UserPartition], result: GroupResult
    ) -> Sequence[UserPartition]:
        """Read the downloaded objects. An object that cannot be read is left out as a whole.

        Raises:
            RecordError: An object cannot be read, and the feed would not come back to it.
        """
        stats = self.metrics.input
        while result.read:
            before = deepcopy(stats)
            try:
                return run.partitions(sorted(result.read.values()), None)
            except RecordError as error:
                bad = [path for path, found in result.read.items() if str(found) == error.file]
                if not bad or not self.feed.keeps_unreadable:
                    raise
                for each in fields(ReadStats):
                    setattr(stats, each.name, getattr(before, each.name))
                for path in bad:
                    del result.read[path]
                    result.unreadable[path] = str(error)
        return ()


def _wait_for(jobs: Iterable[Future[Any]]) -> Iterator[None]:
    waiting = set(jobs)
    while waiting:
        _, waiting = wait(waiting, timeout=TICK_SECONDS)
        if waiting:
            yield


MAX_RECENT = 1 << 16
"""Maximum number of objects that are remembered of a branch."""
_WALK_SECONDS = 600.0
"""Time after which new accounts and regions are looked for."""
_MAX_PAGES = 5
"""Pages of a listing after which other branches are listed."""
_WAVE = 4 * MAX_CONCURRENCY
"""Number of branches that are listed together."""
_ORDERED_KEYS = 1000
"""Number of keys from which it matters whether keys are in the order of time."""
_BRANCH = "branch:"
_MIN_TIME = -1 << 62
_SECOND = 1_000_000


class BranchState(msgspec.Struct, array_like=True):
    """How far a branch of a bucket was listed. Times are in microseconds since 1970.

    Attributes:
        is_shallow: Whether subfolders of the branch are branches of their own.
        floor: Objects that are not newer are known.
        newest: Time of the newest object.
        began: When the present pass began; 0 if there is none.
        progress: Key up to which the present pass has come.
        cut: Objects that are not newer are not remembered, because there are too many.
        full_pass: When the last pass over all keys began.
        date_format: Format of the dates in the keys after the branch, for `strftime`; empty if
            there are none, or if new objects are not in the folders of recent days.
        digests: Digests of the recent objects, one after the other.
        times: Times of these.
    """

    is_shallow: bool = False
    floor: int = _MIN_TIME
    newest: int = _MIN_TIME
    began: int = 0
    progress: str = ""
    cut: int = _MIN_TIME
    full_pass: int = 0
    date_format: str = ""
    digests: bytes = b""
    times: bytes = b""


class Branch(msgspec.Struct):
    """A folder of a bucket that is listed by itself, such as one account and region.

    An object is new if it is newer than the floor and not among the recent objects. The floor is
    `look_back` before the newest object, so an object that becomes visible late is found, and
    memory is bounded by the number of objects in that time.

    Attributes:
        folder: The folder.
        look_back: Time in which objects may become visible late, in microseconds.
        state: How far it was listed.
        recent: Time of each recent object, by digest.
        listed_to: Key up to which the present pass has been listed, which may be beyond what was
            read.
        resume_key: Key before the first recent object, if the keys are in the order of time.
        is_done: Whether the present pass is complete.
        saved_floor: The floor in the last offsets.
        inner: Keys of folders below that other branches list, with a slash at the end.
        start: Start of the time range of the events; None for no limit.
    """

    folder: ObjectPath
    look_back: int
    state: BranchState = msgspec.field(default_factory=BranchState)
    recent: dict[bytes, int] = msgspec.field(default_factory=dict)
    listed_to: str = ""
    resume_key: str = ""
    is_done: bool = False
    saved_floor: int = _MIN_TIME
    inner: set[str] = msgspec.field(default_factory=set)
    start: datetime | None = None
    _order: KeyOrder | None = None
    _pruned: int = 0

    @classmethod
    def restore(cls, folder: ObjectPath, look_back: int, saved: bytes) -> Branch:
        """Continue with what `encode` returned."""
        state = msgspec.msgpack.decode(saved, type=BranchState)
        digests = (state.digests[at : at + 16] for at in range(0, len(state.digests), 16))
        times = np.frombuffer(state.times, np.int64).tolist()
        recent = dict(zip(digests, times, strict=True))
        state.digests = state.times = b""
        return cls(folder, look_back, state, recent, state.progress, saved_floor=state.floor)

    def encode(self) -> bytes:
        """Return what `restore` needs."""
        self.saved_floor = self.state.floor
        state = replace(
            self.state,
            digests=b"".join(self.recent),
            times=np.fromiter(self.recent.values(), np.int64, len(self.recent)).tobytes(),
        )
        return msgspec.msgpack.encode(state)

    @property
    def name(self) -> str:
        """Name of its offset."""
        return f"{_BRANCH}{self.folder}"

    def begin_pass(self, now: int) -> None:
        """Begin to list, unless an earlier pass is not complete.

        Most passes begin where new objects are likely. Twice in the look-back time, all keys are
        listed, so that no object is missed wherever it is.
        """
        self.is_done = False
        if self.state.began:
            return
        self.state.began = now
        self.listed_to = ""
        if 0 <= now - self.state.full_pass < self.look_back // 2:
            floor = datetime.fromtimestamp(max(self.state.floor, 0) / _SECOND, UTC)
            self.listed_to = max(self._make_date_key(floor), self.resume_key)
        else:
            self.state.full_pass, self.resume_key = now, ""
            self.listed_to = self._make_date_key(self.start)
            self._order = KeyOrder(self.look_back)

    def _make_date_key(self, day: datetime | None) -> str:
        """Return a key before those of a day; empty if keys have no dates."""
        if not self.state.date_format or day is None:
            return ""
        return (self.folder / day.strftime(self.state.date_format)).key

    def _find_first_day(self) -> str:
        """Return a key before those of the first day of the time range, for the first listing."""
        is_first = self.state.newest == _MIN_TIME and not self.listed_to
        if self.start is None or not is_first or self.state.is_shallow:
            return ""
        first = next(list_after(self.folder), [])[:1]
        folders = [path.parts[len(self.folder.parts) : -1] for path in first]
        form = find_date_format(folders[0]) if folders else None
        if form is None or form[0] > 0:
            return ""
        return (self.folder / self.start.strftime(form[1])).key

    def list_step(self) -> tuple[list[ObjectPath], list[ObjectPath]]:
        """List the next pages of the present pass.

        Returns:
            All objects, and those among them that are new.

        Raises:
            UsageError: The bucket does not exist, or listing it is denied.
            TransientError: The object store does not respond.
        """
        listed, new = list[ObjectPath](), list[ObjectPath]()
        self.listed_to = max(self.listed_to, self._find_first_day())
        for number, page in enumerate(self._list_pages(), 1):
            listed += page
            new += [path for path in page if self.is_new(path)]
            if number >= _MAX_PAGES or len(new) >= MAX_OBJECTS:
                return listed, new
        self.is_done = True
        return listed, new

    def _list_pages(self) -> Iterator[list[ObjectPath]]:
        if not self.state.is_shallow:
            yield from list_after(self.folder, self.listed_to)
            return
        _, objects = list_dir(self.folder)
        yield sorted(path for path in objects if path.key > self.listed_to)

    def is_new(self, path: ObjectPath) -> bool:
        """Return whether an object was not read before."""
        if self.inner and any(f"{key}/" in self.inner for key in _list_parents(path.key)):
            return False
        return _get_time(path) > self.state.floor and digest_object(path) not in self.recent

    def pass_over(self, listed: Sequence[ObjectPath]) -> None:
        """Go on after objects that were listed."""
        if not listed:
            return
        self.listed_to = max(self.listed_to, listed[-1].key)
        if self._order is not None:
            self._order.add(listed)

    def remember(self, paths: Iterable[ObjectPath]) -> None:
        """Remember objects that were read or left out."""
        state = self.state
        for path in paths:
            if _get_time(path) >= state.newest:
                state.newest = _get_time(path)
                state.date_format = self._find_date_format(path)
            self.recent[digest_object(path)] = _get_time(path)
        if len(self.recent) > 2 * self._pruned + MAX_OBJECTS:
            self._forget_older(self._find_next_floor())
        if len(self.recent) > MAX_RECENT:
            self._forget_oldest()

    def _find_date_format(self, path: ObjectPath) -> str:
        """Return the format of the dates in keys, if this object is in the folder of its day."""
        folders = path.parts[len(self.folder.parts) : -1]
        form, interval = find_date_format(folders), parse_interval(folders)
        if form is None or interval is None or form[0] > 0:
            return ""
        late = _get_time(path) - int(interval.end.timestamp() * _SECOND)
        return form[1] if late <= self.look_back else ""

    def _forget_older(self, limit: int) -> None:
        self.recent = {each: at for each, at in self.recent.items() if at > limit}
        self._pruned = len(self.recent)

    def _forget_oldest(self) -> None:
        cut = sorted(self.recent.values())[len(self.recent) - MAX_RECENT // 2]
        self._forget_older(cut)
        if self.state.cut == _MIN_TIME:
            logger.warning(
                "%s: more than %d objects are newer than --look_back. Only the newest ones are "
                "remembered, so an object that becomes visible more than %s late is not read.",
                *(self.folder, MAX_RECENT),
                format_duration((self.state.newest - cut) / _SECOND),
            )
        self.state.cut = max(self.state.cut, cut)

    def _find_next_floor(self) -> int:
        state = self.state
        latest = min(state.began or state.newest, state.newest)
        return max(state.floor, state.cut, latest - self.look_back)

    def save_progress(self, key: str, *, is_last: bool) -> None:
        """Take note that all objects up to a key are read, and perhaps that the pass is complete.

        Args:
            key: The key.
            is_last: Whether the pass has no further key.
        """
        state = self.state
        state.progress = key
        if not is_last:
            return
        if state.newest != _MIN_TIME:
            state.floor = self._find_next_floor()
            self._forget_older(state.floor)
        if self._order is not None:
            self.resume_key = self._order.find_resume_key(state.floor)
            self._order = None
        state.began, state.progress, self.listed_to = 0, "", ""

    @property
    def should_save(self) -> bool:
        """Whether the floor has moved so far that a restart would list much more."""
        return self.state.floor - self.saved_floor > self.look_back // 4


class KeyOrder:
    """Finds out whether the keys of a branch are in the order of time.

    Args:
        tolerance: How much older an object may be than one before it, in microseconds.
    """

    def __init__(self, tolerance: int) -> None:
        self._tolerance, self._newest, self._number, self._in_order = tolerance, _MIN_TIME, 0, True
        # Of each thousand keys, the newest time up to it and its last key are enough.
        self._last_keys = deque[tuple[int, str]]()

    def add(self, listed: Sequence[ObjectPath]) -> None:
        """Look at objects, in the order of their keys."""
        for path in listed:
            at = _get_time(path)
            self._number += 1
            self._in_order &= at >= self._newest - self._tolerance
            self._newest = max(self._newest, at)
            if self._number % _ORDERED_KEYS == 0:
                self._last_keys.append((self._newest, path.key))

    def find_resume_key(self, floor: int) -> str:
        """Return a key before which all objects are at most as new as `floor`; empty for none."""
        if not self._in_order or self._number < _ORDERED_KEYS:
            return ""
        return max((key for newest, key in self._last_keys if newest <= floor), default="")


def _get_time(path: ObjectPath) -> int:
    assert path.modified is not None  # noqa: S101 - it was listed
    return int(path.modified.timestamp() * _SECOND)


class _Step(msgspec.Struct):
    """Objects of a branch that were listed one after the other.

    Attributes:
        branch: The branch.
        chosen: New objects to read.
        others: New objects that are left out.
        key: The last key.
        is_last: Whether the pass is complete with it.
    """

    branch: Branch
    chosen: list[ObjectPath]
    others: list[ObjectPath]
    key: str
    is_last: bool


class BucketLister(msgspec.Struct):
    """Lists a bucket again and again, branch by branch.

    Attributes:
        files: Chooses the objects.
        look_back: Time in which objects may become visible late.
        interval: Seconds between two listings.
        sleep: Waits for a number of seconds.
        clock: Returns the time.
        branches: The branches, by the name of their offset.
    """

    files: FileDiscovery
    look_back: timedelta
    interval: float = 60.0
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.time
    keeps_unreadable: bool = False
    max_objects: int = MAX_OBJECTS
    branches: dict[str, Branch] = msgspec.field(default_factory=dict)
    _metrics: RunMetrics = msgspec.field(default_factory=RunMetrics)
    _pending: list[_Step] = msgspec.field(default_factory=list)
    _walked: float | None = None
    _is_checked: bool = False

    def open(self, offsets: Mapping[str, bytes], metrics: RunMetrics) -> None:
        """Continue after a checkpoint.

        Raises:
            UsageError: It is a Delta table, whose files may be rewritten.
        """
        self._metrics = metrics
        for name, saved in offsets.items():
            if name.startswith(_BRANCH):
                folder = ObjectPath.parse(name.removeprefix(_BRANCH))
                self.branches[name] = Branch.restore(folder, self._span, saved)
                self.branches[name].start = self._start
        self._try_to_check()

    def _try_to_check(self) -> None:
        """Reject Delta tables. If the object store does not respond, they are checked later."""
        try:
            self._is_checked = self._is_checked or self._check_tables()
        except TransientError as error:
            logger.warning("%s It is tried again with the next listing.", error)

    def _check_tables(self) -> bool:
        for pattern in list_values(self.files.pattern):
            if is_object_url(pattern) and is_delta_table(ObjectPath.parse(pattern.rstrip("/"))):
                raise UsageError(
                    f"--watch_directory: `{pattern}` is a Delta table, whose files may be "
                    "rewritten. Start a run every hour with `--duration 1h`."
                )
        return True

    def groups(self) -> Iterator[ObjectGroup | None]:
        """List all branches, then wait; yield new objects as they are found."""
        is_later = False
        while True:
            with RequestThreads(MAX_CONCURRENCY) as pool:
                if is_later and not self._is_checked:
                    job = pool.submit(self._try_to_check)
                    yield from _wait_for([job])
                    job.result()
                if self._is_checked:
                    yield from self._list_branches(pool)
            is_later = True
            left = self.interval
            while left > 0:
                self.sleep(min(left, TICK_SECONDS))
                left -= TICK_SECONDS
                yield None

    def is_known(self, path: ObjectPath) -> bool:  # noqa: ARG002 - listing has told
        """Return False: objects are compared when they are listed."""
        return False

    def finish(self, result: GroupResult) -> MicroBatch:
        """Save how far the branches are listed."""
        steps, self._pending = self._pending, []
        changed = dict[str, Branch]()
        for step in steps:
            branch = step.branch
            # An object may have been replaced since it was listed.
            read = [result.read[path] for path in step.chosen if path in result.read]
            branch.remember([*step.chosen, *step.others, *read])
            was_saved = bool(branch.state.progress)
            branch.save_progress(step.key, is_last=step.is_last)
            if step.chosen or step.others or was_saved or not step.is_last or branch.should_save:
                changed[branch.name] = branch
        return MicroBatch(offsets={name: branch.encode() for name, branch in changed.items()})

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def _list_branches(self, pool: RequestThreads) -> Generator[ObjectGroup | None]:
        """List every branch once, to its end."""
        yield from self._find_branches(pool)
        now = int(self.clock() * _SECOND)
        for branch in self.branches.values():
            branch.begin_pass(now)
        active = list(self.branches.values())
        while active:
            failed = set[str]()
            for at in range(0, len(active), _WAVE):
                wave = active[at : at + _WAVE]
                jobs = [(branch, pool.submit(branch.list_step)) for branch in wave]
                while any(not job.done() for _, job in jobs):
                    wait([job for _, job in jobs], timeout=TICK_SECONDS)
                    yield None
                for branch, job in jobs:
                    try:
                        yield from self._take(branch, *job.result())
                    except TransientError as error:
                        failed.add(branch.name)
                        if len(failed) == 1:
                            logger.warning("%s It is listed again with the next listing.", error)
            active = [each for each in active if not each.is_done and each.name not in failed]
        if self._pending:
            yield ObjectGroup(self._chosen)

    def _find_branches(self, pool: RequestThreads) -> Iterator[None]:
        """Look for new branches from time to time."""
        # The clock may have been set back.
        if self._walked is not None and 0 <= self.clock() - self._walked < _WALK_SECONDS:
            return
        job = pool.submit(self.files.find_branches)
        while not job.done():
            wait([job], timeout=TICK_SECONDS)
            yield
        try:
            folders = job.result()
        except TransientError as error:
            logger.warning("%s It is tried again with the next listing.", error)
            return
        self._walked = self.clock()
        self._add_branches(folders)

    def _add_branches(self, folders: Mapping[ObjectPath, bool]) -> None:
        """Add the branches that are not listed yet.

        Args:
            folders: The folders found, and whether their subfolders are branches of their own.
        """
        for folder, is_shallow in sorted(folders.items()):
            name = f"{_BRANCH}{folder}"
            # A folder that had no subfolders is listed as a whole, also when it has some.
            if name not in self.branches and not list(self._find_above(folder)):
                state = BranchState(is_shallow)
                self.branches[name] = Branch(folder, self._span, state, start=self._start)
        self._exclude_inner()

    def _exclude_inner(self) -> None:
        """Let no branch list what another one lists."""
        for branch in self.branches.values():
            for above in self._find_above(branch.folder):
                above.inner.add(f"{branch.folder.key}/")

    def _find_above(self, folder: ObjectPath) -> Iterator[Branch]:
        """Return the branches that list a folder, too."""
        for key in _list_parents(folder.key):
            branch = self.branches.get(f"{_BRANCH}{folder.with_key(key)}")
            if branch is not None and not branch.state.is_shallow:
                yield branch

    @property
    def _start(self) -> datetime | None:
        return None if self.files.time_range is None else self.files.time_range.start

    @property
    def _span(self) -> int:
        return self.look_back // timedelta(microseconds=1)

    def _take(
        self, branch: Branch, listed: list[ObjectPath], new: list[ObjectPath]
    ) -> Iterator[ObjectGroup]:
        """Add the objects of a step to the group; yield the group whenever it is large enough."""
        branch.pass_over(listed)
        at = 0
        while True:
            part = new[at : at + max(1, self.max_objects - len(self._chosen))]
            at += len(part)
            ends = at >= len(new)
            key = branch.listed_to if ends else part[-1].key
            found = self.files.choose(part)
            count_others(self._metrics.input, found, len(part))
            chosen = [path for path in found.paths if isinstance(path, ObjectPath)]
            others = sorted(set(part).difference(chosen))
            self._pending.append(_Step(branch, chosen, others, key, ends and branch.is_done))
            size = sum(path.size for path in self._chosen)
            if len(self._chosen) >= self.max_objects or size >= MAX_BYTES:
                yield ObjectGroup(self._chosen)
            if ends:
                return

    @property
    def _chosen(self) -> list[ObjectPath]:
        return [path for step in self._pending for path in step.chosen]


def _list_parents(key: str) -> list[str]:
    """Return the keys of the folders above a folder.

    >>> _list_parents("a/b/c")
    ['', 'a', 'a/b']
    """
    parts = [part for part in key.split("/") if part]
    return ["/".join(parts[:depth]) for depth in range(len(parts))]
