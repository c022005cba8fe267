"""What a source has to be: the first link of a chain, which opens the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

from morpheus.columns import TIME, read_lines
from morpheus.core.batch import Events, Partition, RunMetrics, StreamPartition
from morpheus.core.stage import PipelineOptions, Stage, option
from morpheus.errors import UsageError
from morpheus.runtime.dask_cluster import Cluster
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.discovery import FileDiscovery, is_delta_table
from morpheus.sources.ingest import DirectoryWatcher, FileIngest
from morpheus.sources.log_format import LogFormat
from morpheus.sources.source_state import PartitionState
from morpheus.sources.time_range import TimeRange
from morpheus.storage.object_store import is_s3_url


@dataclass(frozen=True)
class Source(Stage):
    """The first link of a chain: bytes -> Events.

    `default_columns` names the shipped list of feature columns that fits this kind of log,
    `default_user` the column that says whose event it is.
    """

    gives = Events
    default_columns: ClassVar[str] = "columns_ae.txt"
    default_user: ClassVar[str] = "userIdentityaccountId"

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Settings, with what is usual of this kind of log where they leave it open.

        Raises:
            UsageError: A columns file is not there, or not for this source.
        """
        named = options.columns_file or self.default_columns
        if named.lower().endswith(".toml"):
            raise UsageError(
                f"--columns_file: `{named}` describes a log, for `from-file`. `{self.name}` knows "
                "its log: give a text file of feature columns, one name a line."
            )
        return replace(
            options,
            columns=options.columns or read_lines(named, option="--columns_file"),
            userid_column_name=options.userid_column_name or self.default_user,
        )

    def is_unbounded(self) -> bool:
        """Whether the input may go on for ever, so that no user's events are ever all there."""
        return False

    def overlaps_input(self, path: Path, training_input: str | None) -> bool:  # noqa: ARG002 - for sources of files
        """Whether a file is one of those to be read, or with `history` to be learnt from."""
        return False

    def events(
        self,
        training_input: str | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,
    ) -> Iterator[Events]:
        """Read the input, user after user, each in time order.

        The order of users is that of their first events, and nothing in the result depends on the
        order in which files are found.

        Args:
            training_input: Glob of the files to learn from, read as the input is. The first batch of each
                user carries that user's; users with history and no events come last, by name, as
                batches of no rows. None for no history.
            metrics: Counted into as files are read.
            state: What is remembered of the users' earlier events; updated. None for nothing.

        Raises:
            UsageError: No file matches, or none has the user column.
            BadRecord: A record cannot be read, and is not to be left out.
        """
        raise NotImplementedError

    def partitions(
        self,
        training_input: str | None,
        metrics: RunMetrics,
        pool: WorkerPool | Cluster,  # noqa: ARG002 - for sources that let others read too
    ) -> AbstractContextManager[Sequence[Partition]]:
        """Give the same events in portions, which stay readable until the `with` block ends.

        Users come in the portions' order. By default it is one portion, read by this process.

        Args:
            training_input: As in `events`.
            metrics: As in `events`; portions count into the one that they are given.
            pool: Processes that may help to read, or the workers that are to.
        """
        events = self.events(training_input, metrics)
        # Once the first user is there, everybody has been looked at.
        return nullcontext([StreamPartition(chain(list(islice(events, 1)), events))])


@dataclass(frozen=True)
class FileSource(Source):
    """A source that reads files of one kind of log, which is all that a subclass has to name."""

    log_format: ClassVar[LogFormat]

    input_glob: str = option(
        "",
        "Files to read: a glob in quotes, a file or a folder; in S3, `s3://bucket/...`.",
        required=True,
    )
    watch_directory: bool = option(
        False,
        "Go on for ever, reading files that come later.",
    )
    max_files: int | None = option(
        None,
        "Read so many files at most, the first in sorted order; -1 for all.",
        min=-1,
    )
    file_type: str = option(
        "auto",
        "How to read the files, whatever their suffix.",
        names=("--file_type", "--file-type"),
        choices=("auto", "csv", "json", "parquet"),
    )
    repeat: int = option(
        1,
        "Read each file so many times, each time later by as long as the file lasts.",
        min=1,
    )
    sort_glob: bool = option(
        False,
        "Accepted for old command lines. Files are always read in sorted order here.",
    )
    recursive: bool = option(
        True,
        "Also match in subfolders: `logs/*.json` finds `logs/may/a.json`.",
    )
    queue_max_size: int = option(
        128,
        "Accepted for old command lines. Stages pull from each other here, so nothing is queued.",
        min=1,
    )
    batch_timeout: float = option(
        5.0,
        "With --watch_directory: seconds without a new file after which those that came are read.",
        min=0.0,
    )
    start_time: str | None = option(
        None,
        "Read the events of this time and later: `2024-05-31`, or `2024-05-31T09:30:00Z`; without "
        "a zone it is in UTC.",
    )
    end_time: str | None = option(None, "Read the events before this time; as --start_time.")
    duration: str | None = option(
        None,
        "Read the events of so long, such as `60d` or `12h`: from --start_time on, or up to "
        "--end_time, or up to now.",
    )
    delivery_delay: str | None = option(
        None,
        "Open also what was delivered up to so long after the period, such as `15m`. Without it, "
        "the folders and partitions of its own days are opened.",
    )
    train_duration: str | None = option(
        None,
        "Of training files, read the events of so long before --start_time. Without it, the period "
        "does not concern them.",
    )
    bad_record: str = option(
        "fail",
        "What becomes of a record that cannot be read: the run fails, or it is left out and "
        "counted in the summary.",
        choices=("fail", "skip"),
    )
    all_columns: bool = option(
        False,
        "Pass on all columns of JSON records, not only the features and what helps to judge them.",
        flag=True,
    )

    def validate(self) -> None:
        """Refuse options that contradict each other."""
        if self.max_files == 0:
            raise UsageError("--max_files: 0 files hold no events. Give a number, or -1 for all.")
        if not self.input_glob:
            raise UsageError("--input_glob: no files given. Give a glob in quotes.")
        if self.watch_directory and self.repeat > 1:
            told = "--repeat reads files again, --watch_directory waits for new ones. Give only one"
            raise UsageError(f"{told} of the two.")
        if self.watch_directory and is_s3_url(self.input_glob):
            raise UsageError(
                "--watch_directory: it follows folders on disk. For a bucket, start a run every "
                "hour, with `--duration 1h`."
            )
        if self.watch_directory and is_delta_table(Path(self.input_glob)):
            raise UsageError(
                f"--watch_directory: `{self.input_glob}` is a table of Delta, whose files are "
                "rewritten now and then. Start a run every hour, with `--duration 1h`."
            )
        self._make_training_range(self._make_time_range())

    def is_unbounded(self) -> bool:
        """Whether a folder is followed."""
        return self.watch_directory

    def overlaps_input(self, path: Path, training_input: str | None) -> bool:
        """Whether a glob stands for a file on disk."""
        globs = [one for one in (self.input_glob, training_input) if one and not is_s3_url(one)]
        return path.exists() and any(
            isinstance(found, Path) and found.name == path.name and found.samefile(path)
            for one in globs
            for found in replace(self._make_discovery(), pattern=one).find().paths
        )

    def events(
        self,
        training_input: str | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,
    ) -> Iterator[Events]:
        """Read the input, user after user, each in time order; see `Source.events`."""
        return self._make_ingest().events(training_input, metrics, state)

    def partitions(
        self, training_input: str | None, metrics: RunMetrics, pool: WorkerPool | Cluster
    ) -> AbstractContextManager[Sequence[Partition]]:
        """Read the input, and divide the users; see `Source.partitions`."""
        if self.watch_directory:
            return super().partitions(training_input, metrics, pool)
        return self._make_ingest().partitions(training_input, metrics, pool)

    def get_log_format(self) -> LogFormat:
        """Of which kind of log the files are."""
        return self.log_format

    def _make_time_range(self) -> TimeRange | None:
        return TimeRange.from_options(
            self.start_time, self.end_time, self.duration, self.delivery_delay
        )

    def _make_training_range(self, time_range: TimeRange | None) -> TimeRange | None:
        if self.train_duration is None:
            return None
        return (time_range or TimeRange()).preceding(self.train_duration, "--train_duration")

    def _make_ingest(self) -> FileIngest:
        period = self._make_time_range()
        return FileIngest(
            log_format=self._configure_log_format(),
            files=replace(self._make_discovery(), time_range=period),
            training_range=self._make_training_range(period),
            options=self.options,
            repeat=self.repeat,
            skip_bad_records=self.bad_record.lower() == "skip",
            all_columns=self.all_columns,
            watcher=self._make_watcher() if self.watch_directory else None,
        )

    def _configure_log_format(self) -> LogFormat:
        log, time = self.get_log_format(), self.options.timestamp_column_name
        if time in {"", TIME, log.time_column}:
            return log
        return replace(log, time_column=time, leading_columns=(*log.leading_columns, time))

    def _make_discovery(self) -> FileDiscovery:
        return FileDiscovery(
            self.input_glob,
            recursive=self.recursive,
            max_files=self.max_files,
            file_type=self.file_type.lower(),
            skip_dirs=self.get_log_format().skip_dirs,
        )

    def _make_watcher(self) -> DirectoryWatcher:
        files = replace(self._make_discovery(), max_files=None)
        limit = None if self.max_files in {None, -1} else self.max_files
        return DirectoryWatcher(
            lambda: [p for p in files.find().paths if isinstance(p, Path)],
            idle_timeout=self.batch_timeout,
            max_files=limit,
        )
