"""Reads the files of a source: once, or in micro-batches from a watched directory.

`FileIngest` has the settings of a source. `IngestRun` reads the files of one run and divides the
users into partitions. `DirectoryWatcher` waits for new files.
"""

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
from morpheus.sources.cluster_partitioning import DistributedPartition, DistributedPartitionStore
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
"""A micro-batch waits at most this many idle timeouts, even while new files arrive."""


@dataclass
class DirectoryWatcher:
    """Watches a directory for new files.

    A file is read once, when its size has not changed between two scans, so that unfinished files
    are left alone. Data appended later is not read.

    Attributes:
        list_files: Lists the current files.
        idle_timeout: Seconds without a new file after which a micro-batch is complete.
        max_files: Maximum number of files in all; None for no limit.
        poll_interval: Seconds between two scans.
        sleep: Waits for a number of seconds.
        last_sizes: Size of each file in the last scan, in bytes.
        taken_files: Files that were taken.
    """

    list_files: Callable[[], list[Path]]
    idle_timeout: float
    max_files: int | None = None
    poll_interval: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    last_sizes: dict[Path, int] = field(default_factory=dict)
    taken_files: set[Path] = field(default_factory=set)

    def iter_micro_batches(self) -> Iterator[list[Path]]:
        """Yield the files at the start, which may be none; then new files, as they come."""
        self._scan()
        self.sleep(self.poll_interval)
        ready, _ = self._scan()
        count = len(ready)
        yield ready
        while self.max_files is None or count < self.max_files:
            batch = self._wait_for_micro_batch()
            count += len(batch)
            yield batch

    def _wait_for_micro_batch(self) -> list[Path]:
        files: list[Path] = []
        idle = waited = 0.0
        while not files or (
            idle < self.idle_timeout and waited < _MAX_WAIT_FACTOR * self.idle_timeout
        ):
            self.sleep(self.poll_interval)
            ready, changed = self._scan()
            waited += self.poll_interval if files else 0.0
            files += ready
            idle = 0.0 if changed else idle + self.poll_interval
        return sorted(files)

    def _scan(self) -> tuple[list[Path], bool]:
        """Take the files whose size did not change, and return whether anything else changed."""
        sizes = {path: _get_size(path) for path in self.list_files()}
        free = None if self.max_files is None else max(0, self.max_files - len(self.taken_files))
        new = [path for path in sizes if path not in self.taken_files]
        ready = [path for path in new if self.last_sizes.get(path) == sizes[path] is not None][
            :free
        ]
        changed = any(self.last_sizes.get(path) != sizes[path] for path in new) or bool(ready)
        # Forget deleted files, so that memory does not grow with time.
        self.taken_files = (self.taken_files & sizes.keys()) | set(ready)
        self.last_sizes = {path: size for path, size in sizes.items() if size is not None}
        return ready, changed


def _get_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


logger = logging.getLogger(__name__)

_MIN_BATCH_ROWS = 1 << 13
"""Minimum of the maximum batch size: smaller batches are slower, with the same results."""


@dataclass(frozen=True)
class FileIngest:
    """Reads the log files of a source.

    Attributes:
        log_format: Format of the files.
        files: Finds the files.
        options: The user column, the features and the batch size.
        repeat: Number of times to read each file; see `replicate`.
        skip_bad_records: Whether to skip and count bad records.
        all_columns: Whether to keep all columns of JSON records.
        watcher: Watches a directory for new files; None for a bounded input.
        training_range: Time range of the history; None for all of it.
        memory_budget: Limits of what is in memory.
        sample_spec: Size of the population sample.
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
        """Return the name of the user column."""
        name = self.options.userid_column_name or self.log_format.user_column
        return ACTOR if name == ACTOR_OPTION else name

    def make_derived_features(self) -> DerivedFeatures:
        """Make what computes the features that are derived columns."""
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
            metrics: Counts what happens to the records.
            state: What is remembered of earlier runs; updated. None for nothing.
        """
        if self.watcher is not None:
            state = state or PartitionState.restore({})
            yield from self._watch(self.watcher, training_input, metrics, state)
            return
        with (
            WorkerPool(self.options.num_threads) as pool,
            self.partitions(training_input, metrics, pool) as partitions,
        ):
            for partition in partitions:
                yield from partition.events(metrics, state)

    @contextmanager
    def partitions(
        self, training_input: str | None, metrics: RunMetrics, pool: WorkerPool | Cluster
    ) -> Iterator[Sequence[UserPartition | DistributedPartition]]:
        """Read the current files; see `Source.partitions`."""
        found = self.files.require()
        _record_skipped(metrics.input, self.files, found)
        spec = self.make_partition_spec()
        with SpillDir() as spill_dir:
            if isinstance(pool, WorkerPool):
                local = LocalPartitionStore(
                    spec, self.memory_budget, self.sample_spec, spill_dir, pool
                )
                yield IngestRun(self, metrics, local).partitions(found.paths, training_input)
            else:
                remote = DistributedPartitionStore(spec, self.memory_budget, self.sample_spec, pool)
                yield IngestRun(self, metrics, remote).partitions(found.paths, training_input)

    def _watch(
        self,
        watcher: DirectoryWatcher,
        training_input: str | None,
        metrics: RunMetrics,
        state: PartitionState,
    ) -> Iterator[Events]:
        metrics.input.time_range = str(self.files.time_range or "")
        with SpillDir() as spill_dir:
            store = LocalPartitionStore(
                self.make_partition_spec(),
                self.memory_budget,
                self.sample_spec,
                spill_dir,
                WorkerPool(1),
            )
            run = IngestRun(self, metrics, store)
            for paths in watcher.iter_micro_batches():
                # Workers only exist while files are read: waiting may take hours.
                with WorkerPool(self.options.num_threads) as store.pool:
                    partitions = run.partitions(paths, training_input)
                for partition in partitions:
                    yield from partition.events(metrics, state)
                training_input = None

    def make_partition_spec(self) -> PartitionSpec:
        """Make what all partitions have in common."""
        batch_size = max(self.options.pipeline_batch_size, _MIN_BATCH_ROWS)
        event_key = EventKey(
            self.user_column,
            self.log_format.id_column,
            self.log_format.account_columns,
            self.log_format.id_pattern,
        )
        return PartitionSpec(
            event_key, self.make_derived_features(), batch_size, self.options.columns
        )

    def make_read_task(self, files: FileDiscovery, repeat: int, *, require_user: bool) -> ReadTask:
        """Make the task that reads files into frames.

        Args:
            files: Finds the files.
            repeat: Number of times to read each file.
            require_user: Whether to skip events without a user.
        """
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
    """One run of a source, over one or more micro-batches.

    Attributes:
        ingest: Settings of the source.
        metrics: Counts what happens to the records.
        store: Stores the events until partitions are read.
        training: The history, once it is read.
    """

    ingest: FileIngest
    metrics: RunMetrics
    store: PartitionStore[DatasetT, PartitionT]
    training: DatasetT | None = None

    def partitions(self, paths: Sequence[LogPath], training_input: str | None) -> list[PartitionT]:
        """Read files and, in the first call, the history; divide the users into partitions."""
        if training_input is not None:
            self.training = self._read_training(training_input)
        task = self.ingest.make_read_task(self.ingest.files, self.ingest.repeat, require_user=False)
        events = self._read_dataset(task, paths, self.metrics.input)
        warn_missing_features(self.ingest, events, self.training)
        if self.training is not None:
            events.column_names = events.column_names or self.training.column_names
        partitions = self.store.partition_users(events, self.training, unbounded=self._is_unbounded)
        self._draw_population_sample(events)
        return partitions

    @property
    def _is_unbounded(self) -> bool:
        return self.ingest.watcher is not None

    def _draw_population_sample(self, events: DatasetT) -> None:
        """Draw a sample once: of the history or, without one, of a bounded input."""
        dataset = events if self.training is None and not self._is_unbounded else self.training
        options = self.ingest.options
        if (
            not options.needs_population
            or dataset is None
            or self.metrics.population_sample is not None
        ):
            return
        self.metrics.population_sample = self.store.sample(
            dataset, options.columns, is_training=self.training is not None
        )

    def _read_training(self, pattern: str) -> DatasetT:
        stats = self.metrics.training
        files = replace(
            self.ingest.files,
            pattern=pattern,
            option="--train_data_glob",
            max_files=None,
            time_range=self.ingest.training_range,
        )
        found = files.require()
        _record_skipped(stats, files, found)
        task = self.ingest.make_read_task(files, 1, require_user=True)
        return self._read_dataset(task, found.paths, stats)

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
            logger.warning(
                "--userid_filter: no event in %s has %s as its `%s`.",
                read_task.files.pattern,
                quote_backtick(read_task.only_user or ""),
                read_task.user,
            )
        logger.debug(
            "%s loading complete. Total rows: %d. Timespan: %s",
            read_task.log_format.name,
            events.user_stats.num_events,
            users.select(pl.col("last").max() - pl.col("first").min()).item(),
        )
        return events

    def _check_user_column(self, read_task: ReadTask) -> None:
        """Warn if a known user column has no values; an unknown user column is an error."""
        form, files = read_task.log_format, read_task.files
        if read_task.user not in form.columns:
            raise missing_user_error(
                read_task.user, form.columns, f"{files.option}: {form.name} events have"
            )
        logger.warning(
            "%s: no event has a `%s`, so no event has a user. Give the user column with "
            "`--userid_column_name=NAME`.",
            files.pattern,
            read_task.user,
        )


def _record_skipped(stats: ReadStats, files: FileDiscovery, found: DiscoveredFiles) -> None:
    """Count the files that are not read."""
    stats.skipped_files = found.skipped_files
    if files.time_range is not None:
        stats.time_range = str(files.time_range)
        stats.outside_files, stats.outside_folders = found.outside_files, found.outside_folders


def warn_missing_features(ingest: FileIngest, *datasets: HasUserStats | None) -> None:
    """Warn about features that no event has.

    Raises:
        UsageError: No event has any of the features.
    """
    filled = set[str]().union(
        *(dataset.user_stats.non_null_columns for dataset in datasets if dataset is not None)
    )
    derived = ingest.make_derived_features().derived_columns
    known = {*ingest.log_format.columns, *filled, *ingest.log_format.derived_columns}
    wanted = (*ingest.options.columns, *list_input_columns(derived)) if filled else ()
    missing = [name for name in wanted if name not in known and name not in derived]
    if missing and len(missing) == len(wanted):
        existing = sorted(filled - {INDEX, TIME})[:8]
        raise UsageError(
            f"--columns_file: no event has any of its {len(wanted)} columns, such as "
            f"{quote_backtick(missing[0])}. Events have "
            f"{', '.join(map(quote_backtick, existing))}. "
            "Give a text file with one of these names per line."
        )
    for name in missing:
        close = get_close_matches(name, sorted(known), n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        logger.warning("--columns_file: no event has a column %s.%s", quote_backtick(name), hint)
