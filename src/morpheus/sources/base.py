"""Base classes of sources: `Source`, and `FileSource` for sources that read log files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, cast

from msgspec import structs

from morpheus.columns import TIME, LogDescription
from morpheus.core.batch import (
    BatchPartition,
    Events,
    MicroBatch,
    Partition,
    RunMetrics,
    StreamPartition,
    Table,
)
from morpheus.core.stage import (
    PipelineOptions,
    Stage,
    Values,
    list_values,
    option,
    read_lines,
    to_user_column,
)
from morpheus.errors import UsageError
from morpheus.models.profile import FeatureSpec, InputSpec
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.compression import ReadLimits
from morpheus.sources.discovery import FileDiscovery, is_delta_table
from morpheus.sources.ingest import FileIngest
from morpheus.sources.log_format import LogFormat
from morpheus.sources.pseudonyms import Pseudonymizer
from morpheus.sources.source_state import FileMemory, PartitionState
from morpheus.sources.tabular import FrameInput
from morpheus.sources.time_range import (
    PlausibleTimes,
    TimeRange,
    check_time_format,
    check_timezone,
    parse_allowance,
)
from morpheus.storage.object_store import ObjectPath, head_object, is_in_folder, is_object_url
from morpheus.text import describe_no_folder

if TYPE_CHECKING:
    from morpheus.runtime.changelog import Changelog
    from morpheus.runtime.dask_cluster import Cluster
    from morpheus.sources.watcher import DirectoryWatcher


@dataclass(frozen=True)
class Source(Stage):
    """First stage of a pipeline: bytes -> Events.

    Attributes:
        default_columns: Name of the built-in feature list that fits this kind of log.
        default_user: Name of the column that identifies the user.
    """

    gives = Events
    default_columns: ClassVar[str] = "columns_ae.txt"
    default_user: ClassVar[str] = "userIdentityaccountId"

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Fill options that are not given with the defaults for this kind of log.

        Raises:
            UsageError: The feature list does not exist, or is not for this source.
        """
        named = options.columns_file or self.default_columns
        if named.lower().endswith(".toml"):
            raise UsageError(
                f"--columns_file: `{named}` is a schema, which only `from-file` reads. For "
                f"`{self.name}`, give a text file with one feature column per line."
            )
        return replace(
            options,
            columns=options.columns or read_lines(named, option="--columns_file"),
            userid_column_name=options.userid_column_name or self.default_user,
        )

    def describe_log(self) -> LogDescription | None:
        """Return what outputs need to know about the log; None if it is not known."""
        return None

    def get_pseudonymizer(self) -> Pseudonymizer | None:
        """Return what replaces values by pseudonyms; None if the options or the source have none.

        Raises:
            UsageError: An option is wrong, or the key file is not a key.
        """
        return None

    def describe_input(self) -> InputSpec:
        """Describe what fingerprints of this input depend on, once the options are filled in."""
        options = self.options
        features = tuple(
            FeatureSpec(name, options.column_types.get(name, "auto")) for name in options.columns
        )
        return InputSpec(self.name, options.userid_column_name, features, source=self.name)

    def make_empty_batch(self, columns: Sequence[str]) -> Events | None:  # noqa: ARG002 - for sources that know the columns
        """Return a batch without events, which gives an empty output its columns.

        Args:
            columns: Columns of the log; see `RunMetrics.columns`.
        """
        return None

    def get_changelog(self) -> Changelog | None:
        """Return where states go, so that another process can take them over; None for nowhere."""
        return None

    def is_unbounded(self) -> bool:
        """Return whether the input has no end, so that a user's events are never complete."""
        return False

    def resume(self, saved: bytes | None) -> Self:  # noqa: ARG002 - for sources that remember
        """Return the source that continues after the earlier runs of a state file.

        Args:
            saved: What `remember` returned in the run before; None in the first run.
        """
        return self

    def remember(self, metrics: RunMetrics) -> bytes | None:  # noqa: ARG002 - as above
        """Return what the next run must know about the whole input; None for nothing.

        Args:
            metrics: What happened to the records.
        """
        return None

    def overlaps_input(self, path: Path | ObjectPath, training_input: Values | None) -> bool:  # noqa: ARG002 - for sources of files
        """Return whether a file is part of the input, or of the training input."""
        return False

    def would_read(self, path: Path | ObjectPath, training_input: Values | None) -> bool:  # noqa: ARG002 - for sources of files
        """Return whether a new file of this name would be part of the input or training input."""
        return False

    def find_input_in(
        self,
        folder: Path | ObjectPath,  # noqa: ARG002 - for sources of files
        training_input: Values | None,  # noqa: ARG002 - the same
    ) -> Path | ObjectPath | None:
        """Return a file of the input, or of the training input, that a folder contains."""
        return None

    def events(
        self,
        training_input: Values | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,
    ) -> Iterator[Events]:
        """Read the input, one user at a time, each in time order.

        Users come in the order of their first events. The result does not depend on the order in
        which files are found.

        Args:
            training_input: Glob of the training files. The first batch of each user has the user's
                history. Users who have history but no events come last, by name, as batches
                without rows. None for no history.
            metrics: Counts what happens to the records.
            state: What is remembered of the users' earlier events; updated. None for nothing.

        Raises:
            UsageError: No file matches, or none has the user column.
            RecordError: A record cannot be read, and bad records are not skipped.
        """
        raise NotImplementedError

    def partitions(
        self,
        training_input: Values | None,
        metrics: RunMetrics,
        pool: WorkerPool | Cluster,  # noqa: ARG002 - for sources that let others read too
    ) -> AbstractContextManager[Sequence[Partition]]:
        """Divide the events into partitions, which are readable until the `with` block ends.

        Users come in the order of the partitions. The default is one partition that only this
        process can read.

        Args:
            training_input: As in `events`.
            metrics: As in `events`. A partition counts into the metrics passed to it.
            pool: Local processes or cluster workers to read with.
        """
        events = self.events(training_input, metrics)
        # The first batch is read here, because the population sample is ready only after it.
        return nullcontext([StreamPartition(chain(list(islice(events, 1)), events))])

    def replay(self, journal: Sequence[bytes]) -> Source:
        """Return a source that begins with the micro-batches of a journal.

        Args:
            journal: `MicroBatch.journal` of micro-batches whose states were not saved. The offsets
                are those after them.
        """
        del journal  # for sources that keep one
        return self

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read an input without end, if `is_unbounded`.

        The first micro-batch may be without events: what the stages need to know about the
        history is ready with it. While nothing comes, an empty one is due about once a second.

        Args:
            training_input: As in `events`; the users' histories come with the first micro-batch.
            metrics: As in `events`.
            offsets: Offsets of the last checkpoint, by partition of the source; empty to begin at
                the start. See `MicroBatch.offsets`.

        By default, each batch of `events` is a micro-batch. There are no offsets then, so a run
        that is started again begins again.

        Raises:
            UsageError: The input cannot be read, or the offsets are of another input.
        """
        del offsets  # for sources that can go on where they were
        for batch in self.events(training_input, metrics):
            yield MicroBatch([BatchPartition(batch)])


MIN_LOOK_BACK = timedelta(minutes=1)
INPUT_HELP = (
    "Files to read: a glob in quotes, a file or a folder, on this machine or in an object store "
    "(`s3://`, `gs://`, `az://`)."
)


@dataclass(frozen=True)
class FileSource(Source):
    """A source that reads files of one kind of log. A subclass only has to name the log format.

    Attributes:
        glob_name: What the command calls `input_glob`, for messages.
        frames: Events in memory, which are read in place of files; None to read files.
        memory: What the runs of a state file have taken; None if they do not remember it.
    """

    log_format: ClassVar[LogFormat]

    input_glob: str | tuple[str, ...] = option(
        "",
        f"{INPUT_HELP} Repeat for more.",
        required=True,
        location="any",
    )
    watch_directory: bool = option(
        False,
        "Watch the directory for new files, and for lines that are appended to files. A folder of "
        "an object store is listed again and again.",
    )
    max_files: int | None = option(
        None,
        "Maximum number of files to read, in sorted order; -1 reads all files.",
        min=-1,
    )
    file_type: str = option(
        "auto",
        "File format. The default depends on the suffix of each file.",
        names=("--file_type", "--file-type"),
        choices=("auto", "csv", "json", "parquet"),
    )
    repeat: int = option(
        1,
        "Number of times to read each file, each time shifted by the time span of the file.",
        min=1,
    )
    sort_glob: bool = option(
        False,
        "Accepted for old command lines. Files are always read in sorted order.",
    )
    recursive: bool = option(
        True,
        "Also match in subfolders: `logs/*.json` finds `logs/may/a.json`.",
    )
    queue_max_size: int = option(
        128,
        "Accepted for old command lines. There are no queues between stages.",
        min=1,
    )
    batch_timeout: float = option(
        5.0,
        "With --watch_directory or --sqs_queue: seconds to wait for more new files before reading "
        "them.",
        min=0.0,
    )
    watch_interval: float = option(
        60.0,
        "With --watch_directory on an object store: seconds between two listings.",
        min=1.0,
    )
    sqs_queue: str | None = option(
        None,
        "URL of a queue of Amazon SQS that gets the notifications of new objects. The input has no "
        "end: objects that match --input_glob are read as they are announced.",
    )
    sqs_visibility_timeout: int = option(
        300,
        "With --sqs_queue: seconds for which a message is hidden from other readers. It is "
        "extended while the message is in work.",
        min=10,
        max=43_200,
    )
    sqs_max_receives: int = option(
        5,
        "With --sqs_queue: how often a message is received whose object cannot be read. Then it "
        "goes to the queue's own dead-letter queue, or to --sqs_quarantine if there is none.",
        min=1,
    )
    sqs_quarantine: str = option(
        "sqs-quarantine.jsonl",
        "With --sqs_queue: file that gets the messages whose objects cannot be read, one JSON "
        "object per line.",
        path=True,
        location="local",
    )
    start_time: str | None = option(
        None,
        "Start of the time range, inclusive: `2024-05-31` or `2024-05-31T09:30:00Z`. UTC unless a "
        "zone is given.",
    )
    end_time: str | None = option(
        None, "End of the time range, exclusive. Written like --start_time."
    )
    duration: str | None = option(
        None,
        "Length of the time range, such as `60d` or `12h`: from --start_time, or up to --end_time, "
        "or up to now.",
    )
    lag: str | None = option(
        None,
        "End the time range this long before now, such as `20m`, so that events that are delivered "
        "late are there. Adds the column `late`. A run with --state also takes events that came "
        "after the run of their period.",
    )
    look_back: str = option(
        "1d",
        "With --state and a time range: how long before the time range events are taken that no "
        "earlier run has taken. With --watch_directory on an object store: how late an object can "
        "become visible, or arrive in the folder of a day that is over, and is still found.",
    )
    delivery_delay: str | None = option(
        None,
        "Late-delivery allowance, such as `15m`: also open files delivered up to this long after "
        "the time range. Default: --lag; without it, open the folders and partitions of the days "
        "in the range.",
    )
    train_duration: str | None = option(
        None,
        "Length of the training time range, which ends at --start_time. Default: read all events "
        "of the training files.",
    )
    time_format: str = option(
        "",
        "Format of the times, as for `strftime`, such as `%m/%d/%Y, %I:%M:%S %p`. Needed for days "
        "and months written as two numbers. Other forms are recognised.",
    )
    implausible_time: str = option(
        "skip",
        "What to do with events before 2000 or more than a day after the clock of this machine: "
        "fail the run, skip and count them, or keep them. If most events are after the clock, all "
        "are kept, because the clock is wrong.",
        choices=("fail", "skip", "keep"),
    )
    bad_record: str = option(
        "fail",
        "What to do with a record that cannot be read: fail the run, or skip the record and count "
        "it in the summary.",
        choices=("fail", "skip"),
    )
    max_file_size: float | None = option(
        None,
        "Maximum size of a file after decompression, in MB. Default: 200 times its stored size but "
        "at least 67, or 1000 of a Parquet file. It is 1000 for a file that must be read as a "
        "whole, such as one JSON document.",
        min=1,
    )
    max_columns: int = option(
        10_000,
        "Maximum number of columns of a table and of fields of a record.",
        min=1,
    )
    all_columns: bool = option(
        False,
        "Keep all columns of JSON records, not only features and context columns.",
        flag=True,
    )
    glob_name: str = field(default="--input_glob", kw_only=True, compare=False, repr=False)
    frames: FrameInput | None = field(default=None, kw_only=True, compare=False, repr=False)
    memory: FileMemory | None = field(default=None, kw_only=True, compare=False, repr=False)

    max_records: int | None = None  # of each file, for a sample; not an option

    def validate(self) -> None:
        """Reject options that contradict each other."""
        if self.max_files == 0:
            raise UsageError(
                "--max_files: 0 would read no files. Give a positive number, or -1 for all files."
            )
        if not self.input_glob:
            raise UsageError("--input_glob: no files given. Give a glob in quotes.")
        if self.watch_directory and self.repeat > 1:
            raise UsageError(
                "--repeat reads files again and --watch_directory waits for new ones. Use only one "
                "of them."
            )
        self._check_watching()
        if self.is_unbounded() and self.lag is not None:
            name = "a watched directory" if self.watch_directory else "a queue"
            option = "--watch_directory" if self.watch_directory else "--sqs_queue"
            raise UsageError(f"--lag: {name} has no end. Leave out --lag or {option}.")
        parse_allowance(self.look_back, option="--look_back")
        self._make_training_range(self._make_time_range())
        check_time_format(self.time_format, "--time_format")
        check_timezone(self.options.timezone, "--timezone")
        form, user = self.get_log_format(), self.options.userid_column_name
        form.check_actor_column(self.options.columns, to_user_column(user or form.user_column))

    def _check_watching(self) -> None:
        """Reject an input without end that cannot be read."""
        remote = [glob for glob in self._globs if is_object_url(glob)]
        if self.sqs_queue is not None:
            self._check_queue()
        if not self.watch_directory:
            return
        if remote and len(remote) < len(self._globs):
            raise UsageError(
                "--watch_directory: some of --input_glob are folders, some are in an object store. "
                "Start one run for each."
            )
        for folder in () if remote else self._globs:
            if is_delta_table(Path(folder)):
                raise UsageError(
                    f"--watch_directory: `{folder}` is a Delta table, whose files may be "
                    "rewritten. Start a run every hour with `--duration 1h`."
                )
        if remote and parse_allowance(self.look_back, option="--look_back") < MIN_LOOK_BACK:
            raise UsageError(
                f"--look_back: `{self.look_back}` is too short for a watched bucket, in which "
                "objects can become visible late. Give `1m` or more."
            )

    def _check_queue(self) -> None:
        from morpheus.sources.sqs import check_queue_url  # noqa: PLC0415 - only for queues

        check_queue_url(self.sqs_queue or "")
        if self.watch_directory:
            raise UsageError(
                "--sqs_queue: the queue announces new objects, and --watch_directory lists them. "
                "Use only one of them."
            )
        if self.repeat > 1:
            raise UsageError("--repeat reads files again, and the input of --sqs_queue has no end.")
        folder = Path(self.sqs_quarantine).absolute().parent
        if not folder.is_dir():
            raise UsageError(
                f"--sqs_quarantine: {describe_no_folder(folder)} Create it, or give another file."
            )
        others = [glob for glob in self._globs if not glob.startswith("s3://")]
        if others:
            raise UsageError(
                f"--sqs_queue: `{others[0]}` is not in S3. Give the folder of the bucket, such as "
                "--input_glob=s3://BUCKET/AWSLogs/."
            )

    def is_unbounded(self) -> bool:
        """Return whether a directory is watched, or a queue is read."""
        return self.watch_directory or self.sqs_queue is not None

    @property
    def _follows_bucket(self) -> bool:
        return self.sqs_queue is not None or (
            self.watch_directory and any(map(is_object_url, self._globs))
        )

    def overlaps_input(self, path: Path | ObjectPath, training_input: Values | None) -> bool:
        """Return whether one of the globs matches an existing file."""
        if self.frames is not None:
            return False
        exists = head_object(path) is not None if isinstance(path, ObjectPath) else path.exists()
        return exists and any(
            found == path or _is_same_file(found, path)
            for found in self._find_files(training_input, remote=isinstance(path, ObjectPath))
        )

    def would_read(self, path: Path | ObjectPath, training_input: Values | None) -> bool:
        """Return whether one of the globs would match a new file of this name."""
        patterns = (*self._globs, *list_values(training_input))
        return self.frames is None and any(
            structs.replace(self._make_discovery(), pattern=pattern).would_find(path)
            for pattern in patterns
        )

    def find_input_in(
        self, folder: Path | ObjectPath, training_input: Values | None
    ) -> Path | ObjectPath | None:
        """Return a file of the input that a folder contains; see `Source.find_input_in`."""
        if self.frames is not None or (isinstance(folder, Path) and not folder.is_dir()):
            return None
        paths = self._find_files(training_input, remote=isinstance(folder, ObjectPath))
        return next((path for path in paths if is_in_folder(path, folder)), None)

    def _find_files(
        self, training_input: Values | None, *, remote: bool
    ) -> Iterator[Path | ObjectPath]:
        """Yield the files of the globs that are in an object store, or of those on disk."""
        for pattern in (*self._globs, *list_values(training_input)):
            if is_object_url(pattern) is remote:
                yield from (structs.replace(self._make_discovery(), pattern=pattern).find().paths)

    def events(
        self,
        training_input: Values | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,
    ) -> Iterator[Events]:
        """Read the input, one user at a time, each in time order; see `Source.events`."""
        if self._follows_bucket:
            state = state or PartitionState.restore({})
            return (
                cast("Events", batch)
                for micro_batch in self.micro_batches(training_input, metrics, {})
                for part in micro_batch.partitions
                for batch in part.events(metrics, state)
            )
        return self._make_ingest().events(training_input, metrics, state)

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Watch the directory or the bucket; see `Source.micro_batches`."""
        if self._follows_bucket:
            return self._follow_bucket(training_input, metrics, offsets)
        return self._make_ingest().micro_batches(training_input, metrics, offsets)

    def partitions(
        self, training_input: Values | None, metrics: RunMetrics, pool: WorkerPool | Cluster
    ) -> AbstractContextManager[Sequence[Partition]]:
        """Read the input and divide the users into partitions; see `Source.partitions`."""
        if self.is_unbounded():
            return super().partitions(training_input, metrics, pool)
        return self._make_ingest().partitions(training_input, metrics, pool)

    def get_pseudonymizer(self) -> Pseudonymizer | None:
        """Return what replaces values by pseudonyms; see `Source.get_pseudonymizer`."""
        return self._make_ingest().pseudonymizer

    def describe_input(self) -> InputSpec:
        """Describe what fingerprints of this input depend on; see `Source.describe_input`."""
        spec = self._make_ingest().describe_input()
        any_format = self.frames is not None and self.frames.any_format
        return structs.replace(spec, log_format="") if any_format else spec

    def describe_log(self) -> LogDescription:
        """Return what outputs need to know about the log."""
        return self._configure_log_format().describe()

    def make_empty_batch(self, columns: Sequence[str]) -> Events | None:
        """Return a batch without events; see `Source.make_empty_batch`."""
        return Events(user=None, table=Table(self._make_ingest().make_empty_frame(columns)))

    def make_ingest(self) -> FileIngest:
        """Return what reads the files, for sources that have the same log in another place."""
        return self._make_ingest()

    def get_log_format(self) -> LogFormat:
        """Return the format of the log files."""
        return self.log_format

    @property
    def _globs(self) -> tuple[str, ...]:
        return list_values(self.input_glob)

    def _make_time_range(self) -> TimeRange | None:
        return TimeRange.from_options(
            self.start_time, self.end_time, self.duration, self.delivery_delay, self.lag
        )

    def _make_training_range(self, time_range: TimeRange | None) -> TimeRange | None:
        if self.train_duration is None:
            return None
        return (time_range or TimeRange()).preceding(self.train_duration, "--train_duration")

    def _make_ingest(self) -> FileIngest:
        period = self._make_time_range()
        return FileIngest(
            log_format=self._configure_log_format(),
            files=structs.replace(self._make_discovery(), time_range=period),
            training_range=self._make_training_range(period),
            options=self.options,
            repeat=self.repeat,
            skip_bad_records=self.bad_record.lower() == "skip",
            plausible_times=PlausibleTimes.from_option(self.implausible_time),
            limits=ReadLimits(self.max_file_size, self.max_columns, max_records=self.max_records),
            all_columns=self.all_columns,
            watcher=None
            if self._follows_bucket or not self.watch_directory
            else self._make_watcher(),
            frames=self.frames,
            memory=self.memory,
            marks_late=self.lag is not None,
        )

    def resume(self, saved: bytes | None) -> Self:
        """Return the source with the memory of earlier runs; see `Source.resume`."""
        has_memory = not self.is_unbounded() and self.frames is None and self.repeat == 1
        if not has_memory or self._make_time_range() is None:
            return self
        look_back = parse_allowance(self.look_back, option="--look_back")
        return replace(self, memory=FileMemory.restore(saved, look_back))

    def remember(self, metrics: RunMetrics) -> bytes | None:
        """Return what the next run must know; see `Source.remember`."""
        return None if self.memory is None else self.memory.snapshot(metrics.input.file_spans)

    def _configure_log_format(self) -> LogFormat:
        log, time = self.get_log_format(), self.options.timestamp_column_name
        if self.time_format:
            log = structs.replace(log, time_format=self.time_format)
        if time in {"", log.time_column} or (time == TIME and self.frames is None):
            return log
        return structs.replace(log, time_column=time, leading_columns=(*log.leading_columns, time))

    def _make_discovery(self) -> FileDiscovery:
        return FileDiscovery(
            self.input_glob,
            self.glob_name,
            recursive=self.recursive,
            max_files=self.max_files,
            file_type=self.file_type.lower(),
            skip_dirs=self.get_log_format().skip_dirs,
            other_files=self.get_log_format().other_files,
        )

    def _make_watcher(self) -> DirectoryWatcher:
        from morpheus.sources.watcher import DirectoryWatcher  # noqa: PLC0415 - most inputs end

        files = structs.replace(self._make_discovery(), max_files=None)
        limit = None if self.max_files in {None, -1} else self.max_files
        return DirectoryWatcher(
            lambda: [p for p in files.find().paths if isinstance(p, Path)],
            idle_timeout=self.batch_timeout,
            max_files=limit,
            detect_type=files.detect_type,
        )

    def _follow_bucket(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        from morpheus.sources.bucket import BucketLister, ObjectFeed, ObjectStream  # noqa: PLC0415 - only for buckets
        from morpheus.sources.sqs import Quarantine, SqsFeed, SqsQueue  # noqa: PLC0415 - the same

        ingest = self._make_ingest()
        files = structs.replace(ingest.files, max_files=None)
        feed: ObjectFeed
        if self.sqs_queue is None:
            look_back = parse_allowance(self.look_back, option="--look_back")
            feed = BucketLister(files, look_back, self.watch_interval)
        else:
            feed = SqsFeed(
                files,
                SqsQueue(self.sqs_queue, self.sqs_visibility_timeout),
                Quarantine(Path(self.sqs_quarantine)),
                self.sqs_max_receives,
                self.batch_timeout,
            )
        limit = None if self.max_files in {None, -1} else self.max_files
        ingest = replace(ingest, options=replace(self.options, unbounded=True))
        return ObjectStream(ingest, feed, metrics, limit).micro_batches(training_input, offsets)


def _is_same_file(found: Path | ObjectPath, path: Path | ObjectPath) -> bool:
    if not isinstance(found, Path) or not isinstance(path, Path):
        return False
    return found.name == path.name and found.samefile(path)
