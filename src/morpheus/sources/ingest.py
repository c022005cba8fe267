"""Reads the files of a source: once, or in micro-batches from a watched directory.

`FileIngest` has the settings of a source. `IngestRun` reads the files of one run and divides the
users into partitions. `DirectoryWatcher` waits for new files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import polars as pl
from msgspec import structs

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, ROW, TIME
from morpheus.core.batch import Events, MicroBatch, ReadStats, RunMetrics, Step
from morpheus.core.stage import PipelineOptions, Values, list_values, to_user_column
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.features.derived import DerivedColumn
from morpheus.models.input_check import DatasetProfile, InputProfile
from morpheus.models.profile import FeatureSpec, InputSpec
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import DEFAULT_LIMITS, LogPath, ReadLimits, find_copies
from morpheus.sources.discovery import DiscoveredFiles, FileDiscovery
from morpheus.sources.group_by_user import (
    NUM_EVENTS,
    USER,
    EventKey,
    UserStats,
    find_other_views,
)
from morpheus.sources.json_records import normalize_name
from morpheus.sources.log_format import (
    DerivedFeatures,
    LogFormat,
    list_input_columns,
    resolve_derived,
)
from morpheus.sources.partitioning import (
    DatasetT,
    HasUserStats,
    LateEvents,
    LocalPartitionStore,
    PartitionSpec,
    PartitionStore,
    PartitionT,
    SampleSpec,
    UserPartition,
)
from morpheus.sources.pseudonyms import Pseudonymizer, is_pseudonym
from morpheus.sources.reader import ReadTask, missing_user_error
from morpheus.sources.source_state import FileMemory, PartitionState
from morpheus.sources.spill_sort import (
    LatenessBuffer,
    MemoryBudget,
    SpillBuffer,
    SpilledDataset,
)
from morpheus.sources.tabular import FrameInput, parse_hive_partitions
from morpheus.sources.time_range import (
    UTC_DATETIME,
    PlausibleTimes,
    TimeRange,
    current_time,
    find_gaps,
    merge_hours,
    name_partition,
    parse_allowance,
)
from morpheus.storage.spill import SpillDir
from morpheus.text import format_count, quote_backtick, suggest

if TYPE_CHECKING:
    from morpheus.runtime.dask_cluster import Cluster
    from morpheus.sources.cluster_partitioning import DistributedPartition
    from morpheus.sources.watcher import DirectoryWatcher, FilePart

FoundT = TypeVar("FoundT")

logger = logging.getLogger(__name__)

_MAX_NOTED = 100_000
"""Maximum number of files whose times are noted, where nothing else needs them than gaps."""
_MAX_WATERMARKS = 1000
_MAX_GAPS = 20
"""Maximum number of gaps to name."""
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
        plausible_times: The times that events can have.
        limits: Maximum sizes of a file.
        memory_budget: Limits of what is in memory.
        sample_spec: Size of the population sample.
        frames: Events in memory, in place of files; None to read files.
        memory: What the runs of a state file have taken; None if they do not remember it.
        marks_late: Whether events have a column that says whether they are late.
    """

    log_format: LogFormat
    files: FileDiscovery
    options: PipelineOptions
    repeat: int = 1
    skip_bad_records: bool = False
    all_columns: bool = False
    watcher: DirectoryWatcher | None = None
    training_range: TimeRange | None = None
    plausible_times: PlausibleTimes = field(default_factory=PlausibleTimes)
    limits: ReadLimits = DEFAULT_LIMITS
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    sample_spec: SampleSpec = field(default_factory=SampleSpec)
    frames: FrameInput | None = field(default=None, compare=False, repr=False)
    memory: FileMemory | None = field(default=None, compare=False, repr=False)
    marks_late: bool = False

    @property
    def user_column(self) -> str:
        """Return the name of the user column."""
        return to_user_column(self.options.userid_column_name or self.log_format.user_column)

    @cached_property
    def pseudonymizer(self) -> Pseudonymizer | None:
        """Return what replaces values by pseudonyms, if that is wanted."""
        options = self.options
        if not options.pseudonymize and options.pseudonym_key_file is None:
            return None
        return Pseudonymizer.from_options(options, self.log_format, self.user_column)

    def make_derived_features(self) -> DerivedFeatures:
        """Make what computes the features that are derived columns."""
        derived = resolve_derived(self.options.columns, self.log_format.derived_columns)
        computed = {} if self.pseudonymizer is None else self.pseudonymizer.derived_columns
        rest = {name: column for name, column in derived.items() if name not in computed}
        return DerivedFeatures(self.user_column, rest, self.options.timezone)

    def list_derived_columns(self) -> dict[str, DerivedColumn]:
        """Return the derived columns among the features and their inputs, inputs first."""
        return resolve_derived(self.options.columns, self.log_format.derived_columns)

    def describe_input(self) -> InputSpec:
        """Describe what fingerprints of this input depend on; see `Source.describe_input`."""
        options, pseudonymizer = self.options, self.pseudonymizer
        derived = self.list_derived_columns()
        features = tuple(
            FeatureSpec(
                name, "derived" if name in derived else options.column_types.get(name, "auto")
            )
            for name in options.columns
        )
        return InputSpec(
            self.log_format.name,
            self.user_column,
            features,
            source=options.source,
            timezone=options.timezone,
            columns_file=Path(options.columns_file or "").name,
            pseudonyms=() if pseudonymizer is None else tuple(sorted(pseudonymizer.columns)),
            pseudonym_key_id="" if pseudonymizer is None else pseudonymizer.key_id,
        )

    def events(
        self,
        training_input: Values | None,
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
            for micro_batch in self.micro_batches(training_input, metrics, {}):
                for part in micro_batch.partitions:
                    yield from cast("Iterator[Events]", part.events(metrics, state))
            return
        with (
            WorkerPool(self.options.num_threads) as pool,
            self.partitions(training_input, metrics, pool) as partitions,
        ):
            for partition in partitions:
                yield from partition.events(metrics, state)

    @contextmanager
    def partitions(
        self, training_input: Values | None, metrics: RunMetrics, pool: WorkerPool | Cluster
    ) -> Iterator[Sequence[UserPartition | DistributedPartition]]:
        """Read the current files; see `Source.partitions`."""
        files, late = self._plan_period()
        ingest, paths = replace(self, files=files), list[LogPath]()
        if self.frames is None:
            metrics.begin(Step("Finding files", lambda: (0, 0)))
            found = files.require(may_be_outside=True)
            paths = found.paths
            _record_skipped(metrics.input, self.files, found)
            if self.memory is not None:
                paths = self.memory.choose(paths, metrics.input)
                paths = self.memory.leave_growing(paths, self._is_being_written, metrics.input)
                self.memory.leave_unfinished(paths, self._find_unfinished, metrics.input)
        spec = structs.replace(self.make_partition_spec(), late=late)
        with SpillDir() as spill_dir:
            if isinstance(pool, WorkerPool):
                local = LocalPartitionStore(
                    spec, self.memory_budget, self.sample_spec, spill_dir, pool
                )
                yield IngestRun(ingest, metrics, local).partitions(paths, training_input)
            else:
                from morpheus.sources.cluster_partitioning import DistributedPartitionStore  # noqa: PLC0415 - for clusters

                remote = DistributedPartitionStore(spec, self.memory_budget, self.sample_spec, pool)
                yield IngestRun(ingest, metrics, remote).partitions(paths, training_input)

    def _find_unfinished(self, path: LogPath) -> int | None:
        """Return where the last line of a file begins, if it is being written; else None."""
        from morpheus.sources.watcher import find_unfinished_line  # noqa: PLC0415 - for --state

        return self._look_at(path, find_unfinished_line)

    def _is_being_written(self, path: LogPath) -> bool:
        """Return whether a file without lines is being written."""
        from morpheus.sources.watcher import is_being_written  # noqa: PLC0415 - for --state

        return bool(self._look_at(path, is_being_written))

    def _look_at(self, path: LogPath, find: Callable[..., FoundT]) -> FoundT | None:
        """Return what a function finds in a local file, given whether it is CSV; else None."""
        if not isinstance(path, Path):
            return None  # objects appear when they are complete
        try:
            return find(path, is_csv=self.files.detect_type(path) == "csv")
        except OSError:
            return None  # the reader says what is wrong

    def _plan_period(self) -> tuple[FileDiscovery, LateEvents]:
        """Return what finds the files of this run, and which events are late.

        If the runs of a state file remember what they have taken, this run also takes events of
        earlier periods that none has taken.
        """
        late, wanted = LateEvents(marks=self.marks_late), self.files.time_range
        if self.memory is None or wanted is None:
            return self.files, late
        period = self.memory.plan(wanted, current_time())
        files = structs.replace(self.files, time_range=period.takes)
        return files, structs.replace(late, before=period.late_before)

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Watch a directory; see `Source.micro_batches`."""
        watcher = self.watcher
        assert watcher is not None  # noqa: S101 - `Source.is_unbounded` says so
        watcher.restore(offsets)
        metrics.input.time_range = str(self.files.time_range or "")
        first = True
        with SpillDir() as spill_dir, SpillDir() as copies:
            watcher.copy_folder = copies.folder
            store = LocalPartitionStore(
                self.make_partition_spec(),
                self.memory_budget,
                self.sample_spec,
                spill_dir,
                WorkerPool(1),
            )
            run = IngestRun(self, metrics, store)
            for parts in watcher.iter_micro_batches():
                if not parts and not first:
                    metrics.input.skip_copies(watcher.take_copies())
                    yield MicroBatch(offsets=watcher.take_offsets())
                    continue
                first = False
                metrics.input.skip_copies(watcher.take_copies())
                # Workers only exist while files are read: waiting may take hours.
                with (
                    WorkerPool(self.options.num_threads) as store.pool,
                    _written_parts(parts, watcher, metrics.input) as run.origins,
                ):
                    partitions = run.partitions(list(run.origins), training_input)
                yield MicroBatch(partitions, watcher.take_offsets())
                training_input = None

    def _make_event_key(self) -> EventKey:
        if self.frames is not None and self.frames.keeps_rows:
            return EventKey(self.user_column, "")
        return EventKey(
            self.user_column,
            self.log_format.id_column,
            self.log_format.account_columns,
            self.log_format.id_pattern,
            self.log_format.shared_id_column,
            self.log_format.record_order,
            ordered_by_content=self.has_allowance,
        )

    @property
    def has_allowance(self) -> bool:
        """Whether events that come later than others are put in order."""
        text = self.options.allowed_lateness
        return bool(parse_allowance(text, option="--allowed_lateness"))

    def make_partition_spec(self) -> PartitionSpec:
        """Make what all partitions have in common."""
        batch_size = max(self.options.pipeline_batch_size, _MIN_BATCH_ROWS)
        return PartitionSpec(
            self._make_event_key(),
            self.make_derived_features(),
            batch_size,
            self.options.columns,
            LateEvents(marks=self.marks_late or self.has_allowance),
        )

    def make_empty_frame(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return a frame of events without rows, as partitions give it.

        Args:
            columns: Columns of the log.
        """
        names = [*columns, *([] if self.user_column in columns else [self.user_column])]
        texts = {name: pl.String() for name in names if name not in {ROW, INDEX, TIME}}
        schema = {ROW: pl.Int64(), INDEX: pl.Int64(), **texts, TIME: UTC_DATETIME}
        events = self.make_derived_features().add(pl.DataFrame(schema=pl.Schema(schema)))
        return self.make_partition_spec().late.mark(events, ReadStats())

    def make_read_task(self, files: FileDiscovery, repeat: int, *, require_user: bool) -> ReadTask:
        """Make the task that reads files into frames.

        Args:
            files: Finds the files.
            repeat: Number of times to read each file.
            require_user: Whether to skip events without a user.
        """
        user = self.user_column
        _require_single_value(user, self.log_format)
        return ReadTask(
            self.log_format,
            files,
            user,
            self.log_format.columns_to_read(
                self.options.columns, user, with_identity=self.pseudonymizer is None
            ),
            only_users=self._translate_users(list_values(self.options.userid_filter)),
            skip_users=self._translate_users(self.options.skip_user),
            require_user=require_user,
            skip_bad_records=self.skip_bad_records,
            all_columns=self.all_columns,
            repeat=repeat,
            event_key=self._make_event_key() if repeat == 1 else None,
            pseudonymizer=self.pseudonymizer,
            plausible_times=self.plausible_times.at_this_moment(),
            limits=self.limits,
            compare_actors=not (self.options.userid_filter or self.options.skip_user),
            frame=None if self.frames is None else self.frames.events,
        )

    def _translate_users(self, users: Iterable[str]) -> tuple[str, ...]:
        """Return users as events have them: in lower case or as pseudonyms, if these apply."""
        names = [self.log_format.normalize_user(self.user_column, user) for user in users]
        pseudonymizer = self.pseudonymizer
        return tuple(names if pseudonymizer is None else map(pseudonymizer.translate, names))


@contextmanager
def _written_parts(
    parts: Sequence[FilePart], watcher: DirectoryWatcher, stats: ReadStats
) -> Iterator[dict[LogPath, LogPath]]:
    """Yield the files with parts of files, and the files that are whole.

    Each has the file that it is, or that it is a part of.

    Messages of the block that are counted in `stats` name the original files.

    Raises:
        TransientError: The disk is full, or a file was replaced while it was read.
    """
    names, paths = dict[str, str](), dict[LogPath, LogPath]()
    whole: list[FilePart] = []
    with SpillDir() as spill_dir:
        for number, part in enumerate(parts):
            if part.is_whole and part.has_moved():
                watcher.take_again(part)  # under its new name
            elif part.is_whole:
                whole.append(part)
                paths[part.path] = part.path
            elif (copy := _write_part(part, spill_dir.folder / str(number))) is not None:
                paths[copy] = part.path
                place = f", from byte {part.start:,}" if part.start else ""
                names[str(copy)] = f"{part.path}{place}"
        try:
            yield paths
        except RecordError as error:
            name = names.get(error.file, error.file)
            raise RecordError(
                error.reason, file=name, line=error.line, records=error.records
            ) from error
    for part in parts:
        if part.copy is not None:
            part.copy.unlink()
    _check_not_replaced(whole)
    stats.files -= sum(part.start > 0 for part in parts)
    for texts in (stats.refusals, stats.implausible_times):
        for written, name in names.items():
            texts[:] = [text.replace(written, name) for text in texts]


def _write_part(part: FilePart, folder: Path) -> Path | None:
    """Return a file with the part; None if its file is gone."""
    try:
        return part.copy or part.write(folder)
    except FileNotFoundError:
        logger.warning("%s: removed before it was read.", part.path)
        return None


def _check_not_replaced(parts: Iterable[FilePart]) -> None:
    for part in parts:
        if part.path.exists() and part.has_moved():
            raise TransientError(
                f"{part.path}: another file got this name while the file was read. Run again: "
                "with --state, the run goes on from the last checkpoint."
            )


@dataclass
class IngestRun(Generic[DatasetT, PartitionT]):
    """One run of a source, over one or more micro-batches.

    Attributes:
        ingest: Settings of the source.
        metrics: Counts what happens to the records.
        store: Stores the events until partitions are read.
        training: The history, once it is read.
        users_checked: Whether the user column was compared with the actors.
        origins: The files that the next ones to read are parts of.
        hours: Hours with events of each folder, to find gaps.
    """

    ingest: FileIngest
    metrics: RunMetrics
    store: PartitionStore[DatasetT, PartitionT]
    training: DatasetT | None = None
    users_checked: bool = False
    origins: Mapping[LogPath, LogPath] = field(default_factory=dict)
    hours: dict[str, set[int]] = field(default_factory=dict)

    def partitions(
        self, paths: Sequence[LogPath], training_input: Values | None
    ) -> list[PartitionT]:
        """Read files and, in the first call, the history; divide the users into partitions."""
        if training_input is not None:
            self.training = self._read_training(training_input)
        task = self.ingest.make_read_task(self.ingest.files, self.ingest.repeat, require_user=False)
        lateness = self.metrics.lateness if self._is_unbounded else None
        memory = self.ingest.memory
        if memory is not None:
            task = replace(task, taken=memory.find_taken(paths), ends=memory.ends)
        elif self.ingest.repeat == 1 and self.ingest.frames is None and len(paths) < _MAX_NOTED:
            task = replace(task, taken={})  # so that the times of events are noted
        events = self._read_dataset(task, paths, self.metrics.input)
        latest = self._note_times(paths)
        if self.ingest.frames is None:
            warn_missing_features(self.ingest, events, self.training)
        self._check_pseudonyms(events)
        self._check_users(events)
        if lateness is not None:
            events = self._put_in_order(events, latest, lateness)
        if self.training is not None:
            events.column_names = events.column_names or self.training.column_names
        self.metrics.columns = tuple(events.column_names or task.wanted_columns)
        self._drop_other_views(events)
        if not self._is_unbounded:
            self.metrics.begin(Step("Sorting events by user", lambda: (0, 0)))
        partitions = self.store.partition_users(events, self.training, unbounded=self._is_unbounded)
        self._draw_population_sample(events)
        if self.metrics.on_input is not None and events.user_stats.num_events:
            self.metrics.on_input(self._make_profile(events))
        return partitions

    def _note_times(self, paths: Sequence[LogPath]) -> dict[str, int]:
        """Note when there were events, and return the time of the latest one of each folder."""
        stats, memory = self.metrics.input, self.ingest.memory
        latest, hours = dict[str, int](), dict[str, set[int]]()
        for path in paths:
            span = stats.file_spans.get(str(path))
            if span is not None:
                name = name_partition(str(self.origins.get(path, path)))
                latest[name] = max(span.last, latest.get(name, span.last))
                hours.setdefault(name, set()).update(span.hours)
        if memory is None:
            stats.file_spans = {}
        self.hours = merge_hours(self.hours if memory is None else memory.hours, hours)
        if memory is not None:
            memory.hours = self.hours
        gaps = find_gaps(self.hours, self._find_end_hour())
        stats.gaps = [str(gap) for gap in gaps][-_MAX_GAPS:]
        stream = self.metrics.stream
        if stream is not None and self.metrics.lateness is None:
            marks = {name: at / 1e6 for name, at in latest.items()}
            known = {name: at for name, at in stream.watermarks.items() if name not in marks}
            old = {name: max(at, stream.watermarks.get(name, at)) for name, at in marks.items()}
            stream.watermarks = dict([*known.items(), *old.items()][-_MAX_WATERMARKS:])
        return latest

    def _find_end_hour(self) -> int:
        """Return the hour until which all parts of the input can have events."""
        memory = self.ingest.memory
        if memory is not None and memory.period is not None:
            end = memory.period.until
        elif self._is_unbounded:
            end = current_time()
        else:
            return max((max(each) for each in self.hours.values()), default=0)
        return int(end.timestamp()) // 3600

    def _put_in_order(
        self, events: DatasetT, latest: Mapping[str, int], lateness: LatenessBuffer
    ) -> DatasetT:
        """Hold events until those before them have come; return those that wait no longer."""
        store = self.store
        assert isinstance(store, LocalPartitionStore)  # noqa: S101 - of an endless input
        assert isinstance(events, SpilledDataset)  # noqa: S101 - of such a store
        buffer = SpillBuffer(events.user, store.memory_budget, store.spill_dir)
        spec = store.partition_spec

        def pass_on(frame: pl.DataFrame) -> None:
            buffer.add(frame)
            shared = spec.event_key.select_shared(frame)
            buffer.user_stats.shared_records += [] if shared is None else [shared]

        before = lateness.exchange(events, latest, pass_on)
        buffer.user_stats.headers |= lateness.headers
        store.partition_spec = structs.replace(spec, late=structs.replace(spec.late, before=before))
        lateness.read_nothing = lambda: self.partitions([], None)
        return cast("DatasetT", buffer.finish())

    def _make_profile(self, events: DatasetT) -> InputProfile:
        """Describe what was read, for the stages that check it."""
        derived, form = self.ingest.list_derived_columns(), self.ingest.log_format
        frames = self.ingest.frames
        parts = [events.user_stats, *([] if self.training is None else [self.training.user_stats])]
        profiles = [
            DatasetProfile(part.merge_users(), part.num_events, add_derived_counts(part, derived))
            for part in parts
        ]
        features = [
            name
            for name in self.ingest.options.columns
            if (derived[name].inputs if name in derived else name != self.ingest.user_column)
        ]
        if self.ingest.options.feature_stages:
            counts = (pair for part in parts for pair in part.value_counts.items())
            read = {*form.columns, *derived, *(name for name, count in counts if count)}
            features = [name for name in features if name in read]
        filled = set[str]().union(*(part.non_null_columns for part in parts))
        known = {*form.columns, *derived, *features, self.ingest.user_column, INDEX, TIME}
        return InputProfile(
            profiles[0],
            profiles[1] if len(profiles) > 1 else None,
            self.metrics.population_sample,
            tuple(features),
            tuple(sorted(filled - known)),
            in_memory=frames is not None,
            warns_empty=frames is not None and frames.warns_empty,
        )

    def _drop_other_views(self, events: DatasetT) -> None:
        """Let partitions drop records of requests that the caller's own account logs, too."""
        datasets = [events, *([] if self.training is None else [self.training])]
        shared = [frame for each in datasets for frame in each.user_stats.shared_records]
        views = find_other_views(shared, all_users=self.ingest.user_column == ACTOR)
        spec = self.store.partition_spec
        key = replace(spec.event_key, other_views=views)
        self.store.partition_spec = structs.replace(spec, event_key=key)

    def _check_users(self, events: DatasetT) -> None:
        """Warn once if the user column splits or joins actors."""
        options = self.ingest.options
        if self.users_checked or options.userid_filter or options.skip_user:
            return
        if self.ingest.frames is not None:
            return  # the advice is about options of the command line
        self.users_checked = True
        stats = (events if self.training is None else self.training).user_stats
        problem = describe_user_column(
            self.ingest.user_column, stats.merge_users()[NUM_EVENTS], events.user_stats.actor_pairs
        )
        if problem:
            logger.warning("%s", problem)

    def _check_pseudonyms(self, events: DatasetT) -> None:
        pseudonymizer = self.ingest.pseudonymizer
        if pseudonymizer is not None:
            datasets = [events, *([] if self.training is None else [self.training])]
            filled = set[str]().union(*(each.user_stats.non_null_columns for each in datasets))
            copies = set[str]().union(*(each.user_stats.copied_columns for each in datasets))
            pseudonymizer.check_columns(filled, copies, self.ingest.log_format)

    @property
    def _is_unbounded(self) -> bool:
        return self.ingest.watcher is not None or self.ingest.options.unbounded

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
        columns = dataset.column_names if options.feature_stages else options.columns
        self.metrics.population_sample = self.store.sample(
            dataset, columns, is_training=self.training is not None
        )

    def _read_training(self, pattern: Values) -> DatasetT:
        stats = self.metrics.training
        files = structs.replace(
            self.ingest.files,
            pattern=pattern,
            option="--train_data_glob",
            max_files=None,
            time_range=self.ingest.training_range,
        )
        task = self.ingest.make_read_task(files, 1, require_user=True)
        # `_check_users` compares the actors of the input.
        task = replace(task, compare_actors=False)
        frames = self.ingest.frames
        if frames is not None:
            history = frames.events if frames.history is None else frames.history
            return self._read_dataset(replace(task, frame=history), (), stats)
        found = files.require()
        _record_skipped(stats, files, found)
        return self._read_dataset(task, found.paths, stats)

    def _read_dataset(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats
    ) -> DatasetT:
        copies = find_copies(paths, parse_hive_partitions)
        stats.skip_copies(copies.items())
        paths = [path for path in paths if path not in copies]
        before = replace(stats)
        self._begin_reading(stats, len(paths))
        events = self.store.read(read_task, paths, stats)
        late = stats.too_late - before.too_late
        plausible = count_plausible(stats) - count_plausible(before)
        if late > max(plausible, _MIN_LATE_EVENTS):
            events = self._read_without_clock(read_task, paths, stats, before)
        self._check_anything_read(read_task, stats, before)
        users = events.user_stats.users
        if (
            events.user_stats.non_null_columns
            and read_task.user not in events.user_stats.non_null_columns
        ):
            self._check_user_column(read_task)
        if stats is self.metrics.training or not self._is_unbounded:
            _warn_unknown_users(read_task, events.user_stats, stats)
        logger.debug(
            "%s loading complete. Total rows: %d. Timespan: %s",
            read_task.log_format.name,
            events.user_stats.num_events,
            users.select(pl.col("last").max() - pl.col("first").min()).item(),
        )
        return events

    def _begin_reading(self, stats: ReadStats, files: int) -> None:
        if self._is_unbounded:
            return
        earlier = (stats.files, stats.read)
        name = "Reading the history" if stats is self.metrics.training else "Reading"
        count = lambda: (stats.files - earlier[0], stats.read - earlier[1])  # noqa: E731
        self.metrics.begin(Step(name, count, "file", files))

    def _check_anything_read(
        self, read_task: ReadTask, stats: ReadStats, before: ReadStats
    ) -> None:
        """Fail if files have records, but none of them can be read; warn while files are awaited.

        Args:
            read_task: How the files were read.
            stats: What happened to the records.
            before: The counts before these files.

        Raises:
            RecordError: Everything was rejected, or is no record of this log.
        """
        implausible = stats.implausible - before.implausible
        refused = stats.refused - before.refused + implausible
        others = stats.other_records - before.other_records
        is_delivery = not refused and stats.empty_files > before.empty_files
        read = stats.read - before.read
        if read > refused + others and refused > read - refused:
            where = read_task.files.describe()
            logger.warning("%s: most records were rejected: %d of %d.", where, refused, read)
        if read > refused + others or not refused + others or is_delivery:
            return
        kinds = stats.kinds - before.kinds
        found = ", ".join(format_count(number, kind) for kind, number in sorted(kinds.items()))
        if refused:
            every = f"all {refused:,} records were" if refused > 1 else "the only record was"
            reason = f"{every} rejected, and nothing was read"
            reason += f"; left out: {found}" if found else ""
            examples = [*stats.refusals, *stats.implausible_times]
            reason += f". The first one: {examples[0]}" if examples else ""
            if implausible and read_task.frame is not None:
                reason += " Correct the time column"
            elif implausible:
                reason += " Correct `--time_format`, or add `--implausible_time=keep`"
        else:
            reason = f"there is no {read_task.log_format.name} event; found only {found}"
        error = RecordError(reason.rstrip("."), file=read_task.files.describe())
        if not self._is_unbounded:
            raise error
        logger.warning("%s", error)

    def _read_without_clock(
        self, read_task: ReadTask, paths: Sequence[LogPath], stats: ReadStats, before: ReadStats
    ) -> DatasetT:
        """Read again, with all events after the clock, because most of them are.

        Args:
            read_task: How to read the files.
            paths: The files.
            stats: Counts what happens to the records.
            before: The counts before these files.
        """
        logger.warning(
            "%s: most events are after the clock of this machine, %s UTC. They are kept. Is the "
            "clock right?",
            read_task.files.describe(),
            f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        )
        for each in fields(ReadStats):
            setattr(stats, each.name, getattr(before, each.name))
        limits = structs.replace(read_task.plausible_times, latest=None)
        return self.store.read(replace(read_task, plausible_times=limits), paths, stats)

    def _check_user_column(self, read_task: ReadTask) -> None:
        """Warn if a known user column has no values; an unknown user column is an error."""
        if read_task.frame is not None:
            return  # its events without a user are reported as events without a score
        form, files = read_task.log_format, read_task.files
        if read_task.user not in form.columns:
            raise missing_user_error(
                read_task.user, form.columns, f"{files.option}: {form.name} events have"
            )
        logger.warning(
            "%s: no event has a `%s`, so no event has a user. Give the user column with "
            "`--userid_column_name=NAME`.",
            files.describe(),
            read_task.user,
        )


def _warn_unknown_users(read_task: ReadTask, user_stats: UserStats, stats: ReadStats) -> None:
    """Warn about users of --userid_filter and --skip_user without events, with similar names."""
    if stats.read == stats.outside_range:
        return  # the users are not known
    seen = {*user_stats.other_users, *user_stats.users[USER].drop_nulls()}
    unknown = [("--userid_filter", user) for user in read_task.only_users if user not in seen]
    unknown += [("--skip_user", user) for user in read_task.skip_users if user not in seen]
    for name, user in unknown:
        logger.warning(
            "%s: no event in %s has %s as its `%s`.%s",
            *(name, read_task.files.describe(), quote_backtick(user), read_task.user),
            suggest(user, () if is_pseudonym(user) else seen),
        )


def _require_single_value(user: str, log: LogFormat) -> None:
    """Reject a user column that is an object with many fields.

    Raises:
        UsageError: The user column is an object.
    """
    prefix = normalize_name(user)
    if user != ACTOR and prefix in log.objects and user not in log.columns:
        fields = [name for name in log.columns if normalize_name(name).startswith(prefix)][:6]
        raise UsageError(
            f"--userid_column_name: `{user}` is an object with many fields, not a name. Give one "
            f"of its fields: {', '.join(map(quote_backtick, fields))}."
        )


_MIN_LATE_EVENTS = 5
"""Number of events after the clock that may all come from another wrong clock."""


def count_plausible(stats: ReadStats) -> int:
    """Return the number of records that can be read and have a plausible time."""
    return stats.read - stats.refused - stats.implausible


_FEW_EVENTS = 100
"""Median number of events per user below which users have too few to learn from."""
_MIN_SPLIT, _MIN_SPLIT_USERS = 3, 12
"""Users per actor, and number of users, from which the user column splits actors."""
_MIN_JOINED = 3
"""Actors per user from which the user column joins actors."""
_ACCOUNT_SUFFIX = re.compile(r"@[^@.]+$")


def describe_user_column(
    column: str, events_per_user: pl.Series, pairs: Mapping[tuple[str, str], int]
) -> str | None:
    """Say if a user column splits actors into sessions, or joins many actors in one user.

    Args:
        column: Name of the user column.
        events_per_user: Number of events of each user.
        pairs: Number of sampled events by user and actor.

    Returns:
        What is wrong and what to do; None if nothing is.

    >>> sessions = {(f"role/{n}", "role@1"): 2 for n in range(20)}
    >>> describe_user_column("arn", pl.Series([2] * 20), sessions).partition(".")[0]
    '`arn` splits 1 actor into 20 users, most with few events (median 2)'
    """
    users, actors = (len({pair[at] for pair in pairs}) for at in (0, 1))
    advice = f"`--userid_column_name={ACTOR_OPTION}` makes each person, role and service one user."
    found = events_per_user.median()
    median = float(found) if isinstance(found, int | float) else 0.0
    if users >= max(_MIN_SPLIT_USERS, _MIN_SPLIT * actors) and median < _FEW_EVENTS:
        return (
            f"`{column}` splits {actors:,} {'actor' if actors == 1 else 'actors'} into {users:,} "
            f"users, most with few events (median {median:,.0f}). Such users may be sessions. "
            f"{advice}"
        )
    # One name in several accounts, such as a role of an organization, may be one user on purpose.
    names: dict[str, set[str]] = {}
    for user, actor in pairs:
        names.setdefault(user, set()).add(_ACCOUNT_SUFFIX.sub("", actor))
    most = max((len(each) for each in names.values()), default=0)
    joined = sum(n for (user, _), n in pairs.items() if len(names[user]) >= _MIN_JOINED)
    if 2 * joined > sum(pairs.values()):
        return f"`{column}` joins at least {most:,} actors in one user. {advice}"
    return None


def _record_skipped(stats: ReadStats, files: FileDiscovery, found: DiscoveredFiles) -> None:
    """Count the files that are not read."""
    stats.skipped_files = found.skipped_files
    stats.file_kinds = found.kinds
    stats.not_read = [str(each) for each in found.not_read]
    if files.time_range is not None:
        stats.time_range = str(files.time_range)
        stats.outside_files, stats.outside_folders = found.outside_files, found.outside_folders


def add_derived_counts(
    user_stats: UserStats, derived: Mapping[str, DerivedColumn]
) -> dict[str, int]:
    """Count the events with a value, also in derived columns: those with a value in an input.

    Args:
        user_stats: Statistics of the events.
        derived: The derived columns, inputs first.
    """
    counts = dict(user_stats.value_counts)
    for name, column in derived.items():
        inputs = [counts.get(each, 0) for each in column.inputs]
        counts[name] = max([*inputs, counts.get(name, 0)]) if inputs else user_stats.num_events
    return counts


def warn_missing_features(ingest: FileIngest, *datasets: HasUserStats | None) -> None:
    """Warn about features that no event has. With stages that add features, there is no warning.

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
    if ingest.options.feature_stages:
        return
    if missing and len(missing) == len(wanted):
        existing = sorted(filled - {INDEX, TIME})[:8]
        raise UsageError(
            f"--columns_file: no event has any of its {len(wanted)} columns, such as "
            f"{quote_backtick(missing[0])}. Events have "
            f"{', '.join(map(quote_backtick, existing))}. "
            "Give a text file with one of these names per line."
        )
    for name in missing:
        hint = suggest(name, known, 1)
        logger.warning("--columns_file: no event has a column %s.%s", quote_backtick(name), hint)
