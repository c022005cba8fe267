"""What sources of files have in common: their options, and how they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from morpheus.bucket import is_address
from morpheus.cluster.workers import Cluster
from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.processes import Crew
from morpheus.records import Events, Portion, Summary
from morpheus.sources.arrivals import Arrivals
from morpheus.sources.intake import Intake
from morpheus.sources.lake_tables import is_delta
from morpheus.sources.log_files import LogFiles
from morpheus.sources.log_format import LogFormat
from morpheus.sources.period import Period
from morpheus.sources.source import Source
from morpheus.stage import option


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
        low=-1,
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
        low=1,
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
        low=1,
    )
    batch_timeout: float = option(
        5.0,
        "With --watch_directory: seconds without a new file after which those that came are read.",
        low=0.0,
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

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.max_files == 0:
            raise UsageError("--max_files: 0 files hold no events. Give a number, or -1 for all.")
        if not self.input_glob:
            raise UsageError("--input_glob: no files given. Give a glob in quotes.")
        if self.watch_directory and self.repeat > 1:
            told = "--repeat reads files again, --watch_directory waits for new ones. Give only one"
            raise UsageError(f"{told} of the two.")
        if self.watch_directory and is_address(self.input_glob):
            raise UsageError(
                "--watch_directory: it follows folders on disk. For a bucket, start a run every "
                "hour, with `--duration 1h`."
            )
        if self.watch_directory and is_delta(Path(self.input_glob)):
            raise UsageError(
                f"--watch_directory: `{self.input_glob}` is a table of Delta, whose files are "
                "rewritten now and then. Start a run every hour, with `--duration 1h`."
            )
        self._learnt_from(self._period())

    def endless(self) -> bool:
        """Whether a folder is followed."""
        return self.watch_directory

    def reads(self, path: Path, history: str | None) -> bool:
        """Whether a glob stands for a file on disk."""
        globs = [one for one in (self.input_glob, history) if one and not is_address(one)]
        return path.exists() and any(
            isinstance(found, Path) and found.name == path.name and found.samefile(path)
            for one in globs
            for found in replace(self._files(), pattern=one).find().paths
        )

    def events(self, history: str | None, summary: Summary) -> Iterator[Events]:
        """Read the input, user after user, each in time order; see `Source.events`."""
        return self._intake().events(history, summary)

    def portions(
        self, history: str | None, summary: Summary, crew: Crew | Cluster
    ) -> AbstractContextManager[Sequence[Portion]]:
        """Read the input, and divide the users; see `Source.portions`."""
        if self.watch_directory:
            return super().portions(history, summary, crew)
        return self._intake().portions(history, summary, crew)

    def read_as(self) -> LogFormat:
        """Of which kind of log the files are."""
        return self.log_format

    def _period(self) -> Period | None:
        return Period.of(self.start_time, self.end_time, self.duration, self.delivery_delay)

    def _learnt_from(self, period: Period | None) -> Period | None:
        if self.train_duration is None:
            return None
        return (period or Period()).before(self.train_duration, "--train_duration")

    def _intake(self) -> Intake:
        period = self._period()
        return Intake(
            format=self._format(),
            files=replace(self._files(), period=period),
            learnt_from=self._learnt_from(period),
            settings=self.settings,
            repeat=self.repeat,
            skip=self.bad_record.lower() == "skip",
            everything=self.all_columns,
            arrivals=self._arrivals() if self.watch_directory else None,
        )

    def _format(self) -> LogFormat:
        log, time = self.read_as(), self.settings.timestamp_column_name
        if time in {"", TIME, log.time}:
            return log
        return replace(log, time=time, leading=(*log.leading, time))

    def _files(self) -> LogFiles:
        return LogFiles(
            self.input_glob,
            recursive=self.recursive,
            max_files=self.max_files,
            file_type=self.file_type.lower(),
            without=self.read_as().without,
        )

    def _arrivals(self) -> Arrivals:
        files = replace(self._files(), max_files=None)
        limit = None if self.max_files in {None, -1} else self.max_files
        return Arrivals(
            lambda: [p for p in files.find().paths if isinstance(p, Path)],
            quiet=self.batch_timeout,
            limit=limit,
        )
