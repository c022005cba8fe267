"""From files of one kind of log to events: all that sources of files have in common."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events, Reading, Summary
from morpheus.sources import times
from morpheus.sources.arrivals import Arrivals
from morpheus.sources.by_user import COPY, Gathered, Gathering, Identity, hand_out
from morpheus.sources.files import LogFiles
from morpheus.sources.flatten import Flattener
from morpheus.sources.reader import LogFormat, Reader, no_user
from morpheus.stage import Settings

log = logging.getLogger(__name__)

_FEWEST_ROWS = 1 << 15


@dataclass(frozen=True)
class Intake:
    """Reads files of one kind of log, for a source.

    Attributes:
        format: Of which kind.
        files: Which files.
        settings: Says who the user is, which columns are features, and how large batches are.
        repeat: How often each file is read, later each time; see `repeated`.
        skip: Leave bad records out, and count them.
        everything: Pass on all columns of JSON, not only those that are looked at.
        arrivals: The folder followed for ever; None to end with the files there are.
    """

    format: LogFormat
    files: LogFiles
    settings: Settings
    repeat: int = 1
    skip: bool = False
    everything: bool = False
    arrivals: Arrivals | None = None

    def events(self, history: str | None, summary: Summary) -> Iterator[Events]:
        """Read the events of each user; see `Source.events`."""
        rounds = self._rounds(summary.input)
        learnt = None if history is None else self._learnt(history, summary.training)
        gathering = self._gathering(summary.input)
        numbered: Counter[str | None] = Counter()
        rows = max(self.settings.pipeline_batch_size, _FEWEST_ROWS)
        for paths in rounds:
            events = self._gathered(paths, self.files, gathering, self.repeat)
            self._tell_missing(events, learnt)
            last = self.arrivals is None
            yield from hand_out(events, learnt, rows=rows, numbered=numbered, last=last)

    def _rounds(self, reading: Reading) -> Iterator[list[Path]]:
        if self.arrivals is not None:
            return self.arrivals.rounds()
        found = self.files.need()
        reading.skipped_files = found.skipped
        return iter([found.paths])

    def _learnt(self, pattern: str, reading: Reading) -> Gathered:
        files = replace(self.files, pattern=pattern, option="--train_data_glob", max_files=None)
        found = files.need()
        reading.skipped_files = found.skipped
        learnt = self._gathered(found.paths, files, self._gathering(reading), repeat=1)
        reading.other_users += learnt.take(None).height
        return learnt

    def _gathering(self, reading: Reading) -> Gathering:
        user, only = self.settings.userid_column_name, self.settings.userid_filter
        identity = Identity(user, self.format.id, self.format.accounts)
        return Gathering(identity, only, reading)

    def _gathered(
        self, paths: list[Path], files: LogFiles, gathering: Gathering, repeat: int
    ) -> Gathered:
        named = rows = 0
        reader = self._reader(gathering.reading, whole=repeat > 1)
        for frame in reader.frames(paths, files):
            rows += frame.height
            named += frame[reader.user].count()
            gathering.add(frame if repeat == 1 else self._repeated(frame, gathering.reading))
        if rows and not named:
            self._check_known(files)
        events = gathering.gather()
        span = events.frame.select(pl.col(TIME).max() - pl.col(TIME).min()).item()
        told = "%s loading complete. Total rows: %d. Timespan: %s"
        log.debug(told, self.format.name, events.frame.height, span)
        return events

    def _reader(self, reading: Reading, *, whole: bool) -> Reader:
        user = self.settings.userid_column_name
        wanted = self.format.wanted(self.settings.columns, user)
        flattener = Flattener(
            wanted, self.format.paths, self.format.leaves, self.format.dropped, self.everything
        )
        return Reader(self.format, flattener, user, self.skip, reading, whole)

    def _repeated(self, frame: pl.DataFrame, reading: Reading) -> pl.DataFrame:
        copies = repeated(frame, self.repeat, self.format.time)
        reading.read += copies.height - frame.height
        return copies

    def _check_known(self, files: LogFiles) -> None:
        """A column that events may have, and none has, names nobody; another one is a mistake."""
        user = self.settings.userid_column_name
        if user not in self.format.columns:
            raise no_user(
                user, self.format.columns, f"{files.option}: {self.format.name} events have"
            )
        told = "%s: no event has a `%s`, so all belong to no user."
        log.warning(told, files.pattern, user)

    def _tell_missing(self, *gathered: Gathered | None) -> None:
        frames = [read.frame for read in gathered if read is not None and read.frame.height]
        for name in self.settings.columns if frames else ():
            held = any(name in frame.columns and frame[name].count() for frame in frames)
            if name not in self.format.columns and not held:
                log.warning("No event has the column `%s` of the columns file.", name)


def repeated(frame: pl.DataFrame, times_over: int, time: str) -> pl.DataFrame:
    """Put later copies below the events of a file, each as long after the last as the file lasts.

    Args:
        frame: Events with `TIME` and, as text, the time as logged.
        times_over: How often the events are there in the end.
        time: Column of the time as logged, rewritten in the copies.
    """
    span = pl.col(TIME).max() - pl.col(TIME).min()
    copies = [frame.with_columns(pl.lit(0).alias(COPY))]
    for copy in range(1, times_over):
        later = frame.with_columns(pl.col(TIME) + span * copy, pl.lit(copy).alias(COPY))
        copies.append(later.with_columns(pl.col(TIME).dt.strftime(times.USUAL).alias(time)))
    return pl.concat(copies)
