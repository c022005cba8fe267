"""A folder followed: files that come later, in rounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Generic

import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, TIME
from morpheus.core.batch import Events, ReadStats, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.runtime.dask_cluster import Cluster
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import LogPath
from morpheus.sources.discovery import DiscoveredFiles, FileDiscovery
from morpheus.sources.group_by_user import EventKey
from morpheus.sources.log_format import (
    DerivedFeatures,
    LogFormat,
    list_input_columns,
    resolve_derived,
)
from morpheus.sources.partitioning import (
    DatasetT,
    DistributedPartition,
    DistributedPartitionStore,
    HasUserStats,
    LocalPartitionStore,
    PartitionSpec,
    PartitionStore,
    PartitionT,
    SampleSpec,
    UserPartition,
)
from morpheus.sources.reader import ReadTask, missing_user_error
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import MemoryBudget
from morpheus.sources.time_range import TimeRange
from morpheus.storage.spill import SpillDir
from morpheus.text import quote_backtick

_MAX_WAIT_FACTOR = 10
"""Quiet times after which a round is released although files keep coming."""


@dataclass
class DirectoryWatcher:
    """Follows the files that a search finds, for ever.

    A file is taken once, when its size has not changed from one look to the next: what is still
    being written is left alone. What a file gains after that is not seen.

    Args:
        list_files: Lists the files there are now.
        idle_timeout: Seconds without news after which the files so far are released.
        max_files: Files to take in all; None for no end.
        poll_interval: Seconds between two looks.
        sleep: Waits so many seconds.
    """

    list_files: Callable[[], list[Path]]
    idle_timeout: float
    max_files: int | None = None
    poll_interval: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    last_sizes: dict[Path, int] = field(default_factory=dict)
    taken_files: set[Path] = field(default_factory=set)

    def iter_micro_batches(self) -> Iterator[list[Path]]:
        """The files there at the start, which may be none; then those that came, round by round."""
        self._scan()
        self.sleep(self.poll_interval)
        ready, _ = self._scan()
        count = len(ready)
        yield ready
        while self.max_files is None or count < self.max_files:
            released = self._wait_for_micro_batch()
            count += len(released)
            yield released

    def _wait_for_micro_batch(self) -> list[Path]:
        waiting: list[Path] = []
        still = waited = 0.0
        while not waiting or (
            still < self.idle_timeout and waited < _MAX_WAIT_FACTOR * self.idle_timeout
        ):
            self.sleep(self.poll_interval)
            ready, news = self._scan()
            waited += self.poll_interval if waiting else 0.0
            waiting += ready
            still = 0.0 if news else still + self.poll_interval
        return sorted(waiting)

    def _scan(self) -> tuple[list[Path], bool]:
        """Take the files whose size is still; and whether anything has changed."""
        sizes = {path: _get_size(path) for path in self.list_files()}
        free = None if self.max_files is None else max(0, self.max_files - len(self.taken_files))
        new = [path for path in sizes if path not in self.taken_files]
        ready = [path for path in new if self.last_sizes.get(path) == sizes[path] is not None][
            :free
        ]
        news = any(self.last_sizes.get(path) != sizes[path] for path in new) or bool(ready)
        # Forget files that are gone, so that what is remembered stays as large as the folder.
        self.taken_files = (self.taken_files & sizes.keys()) | set(ready)
        self.last_sizes = {path: size for path, size in sizes.items() if size is not None}
        return ready, news


def _get_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


logger = logging.getLogger(__name__)

_MIN_BATCH_ROWS = 1 << 13


@dataclass(frozen=True)
class FileIngest:
    """Reads files of one kind of log, for a source.

    Attributes:
        log_format: Of which kind.
        files: Which files.
        options: Says who the user is, which columns are features, and how large batches are.
        repeat: How often each file is read, later each time; see `repeated`.
        skip_bad_records: Leave bad records out, and count them.
        all_columns: Pass on all columns of JSON, not only those that are looked at.
        watcher: The folder followed for ever; None to end with the files there are.
        training_range: The period of the history; None for all of it.
        memory_budget: How much is in memory at a time.
        sample_spec: How large a sample of everybody is, where one is asked for.
    """

    log_format: LogFormat
    files: FileDiscovery
    options: PipelineOptions
    repeat: int = 1
    skip_bad_records: bool = False
    all_columns: bool = False
    watcher: DirectoryWatcher | None = None
    training_range: TimeRange | None = None
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    sample_spec: SampleSpec = field(default_factory=SampleSpec)

    @property
    def user_column(self) -> str:
        """Column of the user."""
        named = self.options.userid_column_name or self.log_format.user_column
        return ACTOR if named == ACTOR_OPTION else named

    def make_derived_features(self) -> DerivedFeatures:
        """Derives the features that are derived columns."""
        derived = resolve_derived(self.options.columns, self.log_format.derived_columns)
        return DerivedFeatures(self.user_column, derived)

    def events(
        self,
        training_input: str | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,
    ) -> Iterator[Events]:
        """Read the events of each user; see `Source.events`.

        Args:
            training_input: As in `Source.events`.
            metrics: Counted into.
            state: What is remembered of earlier runs; updated. None for nothing.
        """
        if self.watcher is not None:
            state = state or PartitionState.restore({})
            yield from self._watch(self.watcher, training_input, metrics, state)
            return
        workers = WorkerPool(self.options.num_threads)
        with workers as crew, self.partitions(training_input, metrics, crew) as portions:
            for portion in portions:
                yield from portion.events(metrics, state)

    @contextmanager
    def partitions(
        self, training_input: str | None, metrics: RunMetrics, pool: WorkerPool | Cluster
    ) -> Iterator[Sequence[UserPartition | DistributedPartition]]:
        """Read the files there are; see `Source.partitions`."""
        found = self.files.require()
        _record_skipped(metrics.input, self.files, found)
        with SpillDir() as scratch:
            if isinstance(pool, WorkerPool):
                disk = LocalPartitionStore(
                    self.make_partition_spec(), self.memory_budget, self.sample_spec, scratch, pool
                )
                yield IngestRun(self, metrics, disk).partitions(found.paths, training_input)
            else:
                workers = DistributedPartitionStore(
                    self.make_partition_spec(), self.memory_budget, self.sample_spec, pool
                )
                yield IngestRun(self, metrics, workers).partitions(found.paths, training_input)

    def _watch(
        self,
        watcher: DirectoryWatcher,
        training_input: str | None,
        metrics: RunMetrics,
        state: PartitionState,
    ) -> Iterator[Events]:
        metrics.input.time_range = str(self.files.time_range or "")
        with SpillDir() as scratch:
            disk = LocalPartitionStore(
                self.make_partition_spec(),
                self.memory_budget,
                self.sample_spec,
                scratch,
                WorkerPool(1),
            )
            run = IngestRun(self, metrics, disk)
            for paths in watcher.iter_micro_batches():
                with WorkerPool(self.options.num_threads) as disk.pool:
                    portions = run.partitions(paths, training_input)
                for portion in portions:
                    yield from portion.events(metrics, state)
                training_input = None

    def make_partition_spec(self) -> PartitionSpec:
        """What portions have in common."""
        rows = max(self.options.pipeline_batch_size, _MIN_BATCH_ROWS)
        identity = EventKey(
            self.user_column,
            self.log_format.id_column,
            self.log_format.account_columns,
            self.log_format.id_pattern,
        )
        return PartitionSpec(identity, self.make_derived_features(), rows, self.options.columns)

    def make_read_task(self, files: FileDiscovery, repeat: int, *, require_user: bool) -> ReadTask:
        """How files become frames."""
        user = self.user_column
        return ReadTask(
            self.log_format,
            files,
            user,
            self.log_format.columns_to_read(self.options.columns, user),
            only_user=self.options.userid_filter,
            require_user=require_user,
            skip_bad_records=self.skip_bad_records,
            all_columns=self.all_columns,
            repeat=repeat,
        )


@dataclass
class IngestRun(Generic[DatasetT, PartitionT]):
    """One run of a source: what it remembers from round to round.

    Attributes:
        ingest: How the files are read.
        metrics: Counted into.
        store: Where events lie until they are handed out.
        training: What is to be learnt from.
    """

    ingest: FileIngest
    metrics: RunMetrics
    store: PartitionStore[DatasetT, PartitionT]
    training: DatasetT | None = None

    def partitions(self, paths: Sequence[LogPath], training_input: str | None) -> list[PartitionT]:
        """Read the files of a round, and what is to be learnt from, and divide the users."""
        if training_input is not None:
            self.training = self._read_training(training_input)
        work = self.ingest.make_read_task(self.ingest.files, self.ingest.repeat, require_user=False)
        events = self._read_dataset(work, paths, self.metrics.input)
        warn_missing_features(self.ingest, events, self.training)
        if self.training is not None:
            events.column_names = events.column_names or self.training.column_names
        portions = self.store.partition_users(events, self.training, unbounded=self._is_unbounded)
        self._draw_population_sample(events)
        return portions

    @property
    def _is_unbounded(self) -> bool:
        return self.ingest.watcher is not None

    def _draw_population_sample(self, events: DatasetT) -> None:
        """Take a sample once, of what is to be learnt from, or else of an input that ends."""
        known = events if self.training is None and not self._is_unbounded else self.training
        settings = self.ingest.options
        if (
            not settings.needs_population
            or known is None
            or self.metrics.population_sample is not None
        ):
            return
        past = self.training is not None
        self.metrics.population_sample = self.store.sample(
            known, settings.columns, is_training=past
        )

    def _read_training(self, pattern: str) -> DatasetT:
        reading = self.metrics.training
        option = "--train_data_glob"
        files = replace(
            self.ingest.files,
            pattern=pattern,
            option=option,
            max_files=None,
            time_range=self.ingest.training_range,
        )
        found = files.require()
        _record_skipped(reading, files, found)
        work = self.ingest.make_read_task(files, 1, require_user=True)
        return self._read_dataset(work, found.paths, reading)

    def _read_dataset(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> DatasetT:
        events = self.store.read(read_task, paths, stats)
        users = events.user_stats.users
        if (
            events.user_stats.non_null_columns
            and read_task.user not in events.user_stats.non_null_columns
        ):
            self._check_user_column(read_task)
        if stats.other_users and not events.user_stats.num_events:
            told = "--userid_filter: no event in %s has %s as its `%s`."
            logger.warning(
                told,
                read_task.files.pattern,
                quote_backtick(read_task.only_user or ""),
                read_task.user,
            )
        span = users.select(pl.col("last").max() - pl.col("first").min()).item()
        told = "%s loading complete. Total rows: %d. Timespan: %s"
        logger.debug(told, read_task.log_format.name, events.user_stats.num_events, span)
        return events

    def _check_user_column(self, read_task: ReadTask) -> None:
        """A column that events may have, and none has, names nobody; another one is a mistake."""
        form, files = read_task.log_format, read_task.files
        if read_task.user not in form.columns:
            raise missing_user_error(
                read_task.user, form.columns, f"{files.option}: {form.name} events have"
            )
        told = (
            "%s: no event has a `%s`, so all belong to no user. Give the column that names the "
            "user, as `--userid_column_name=NAME`."
        )
        logger.warning(told, files.pattern, read_task.user)


def _record_skipped(stats: ReadStats, files: FileDiscovery, found: DiscoveredFiles) -> None:
    """Say which files are not read, and why."""
    stats.skipped_files = found.skipped_files
    if files.time_range is not None:
        stats.time_range = str(files.time_range)
        stats.outside_files, stats.outside_folders = found.outside_files, found.outside_folders


def warn_missing_features(ingest: FileIngest, *datasets: HasUserStats | None) -> None:
    """Name the features that no event has, and what may have been meant."""
    filled = set[str]().union(
        *(one.user_stats.non_null_columns for one in datasets if one is not None)
    )
    derived = ingest.make_derived_features().derived_columns
    known = {*ingest.log_format.columns, *filled, *ingest.log_format.derived_columns}
    wanted = (*ingest.options.columns, *list_input_columns(derived)) if filled else ()
    missing = [name for name in wanted if name not in known and name not in derived]
    if missing and len(missing) == len(wanted):
        there = sorted(filled - {INDEX, TIME})[:8]
        raise UsageError(
            f"--columns_file: no event has any of its {len(wanted)} columns, such as "
            f"{quote_backtick(missing[0])}. Events have {', '.join(map(quote_backtick, there))}. "
            "Give a text file with one name of these a line."
        )
    for name in missing:
        close = get_close_matches(name, sorted(known), n=1)
        meant = f" Did you mean `{close[0]}`?" if close else ""
        logger.warning("--columns_file: no event has a column %s.%s", quote_backtick(name), meant)
