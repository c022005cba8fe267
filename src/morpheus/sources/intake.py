"""From files of one kind of log to events: all that sources of files have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Generic

import polars as pl

from morpheus.cluster.workers import Cluster
from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, TIME
from morpheus.errors import UsageError
from morpheus.processes import Crew
from morpheus.quoting import quoted
from morpheus.records import Events, Reading, Summary
from morpheus.scratch import Scratch
from morpheus.sources import deriving
from morpheus.sources.arrivals import Arrivals
from morpheus.sources.by_user import Identity, Memory
from morpheus.sources.deriving import Deriving
from morpheus.sources.files import Log
from morpheus.sources.gathering import Room
from morpheus.sources.ground import Disk, Given, Ground, Heap, Recipe
from morpheus.sources.log_files import Found, LogFiles
from morpheus.sources.log_format import LogFormat
from morpheus.sources.period import Period
from morpheus.sources.portion import GatheredPortion, Remembered
from morpheus.sources.reader import no_user
from morpheus.sources.spread import Spreading, SpreadPortion
from morpheus.sources.survey import Known, Survey
from morpheus.sources.work import Work
from morpheus.stage import Settings

log = logging.getLogger(__name__)

_FEWEST_ROWS = 1 << 13


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
        learnt_from: The period of the history; None for all of it.
        room: How much is in memory at a time.
        survey: How large a sample of everybody is, where one is asked for.
    """

    format: LogFormat
    files: LogFiles
    settings: Settings
    repeat: int = 1
    skip: bool = False
    everything: bool = False
    arrivals: Arrivals | None = None
    learnt_from: Period | None = None
    room: Room = field(default_factory=Room)
    survey: Survey = field(default_factory=Survey)

    @property
    def user(self) -> str:
        """Column of the user."""
        named = self.settings.userid_column_name or self.format.user
        return ACTOR if named == ACTOR_OPTION else named

    def deriving(self, *, endless: bool = False) -> Deriving:
        """Derives the features that are derived columns."""
        derived = deriving.wanted(self.settings.columns, self.format.derived)
        return Deriving(self.user, derived, endless)

    def events(self, history: str | None, summary: Summary) -> Iterator[Events]:
        """Read the events of each user; see `Source.events`."""
        if self.arrivals is not None:
            yield from self._followed(self.arrivals, history, summary)
            return
        workers = Crew(self.settings.num_threads)
        with workers as crew, self.portions(history, summary, crew) as portions:
            for portion in portions:
                yield from portion.events(summary)

    @contextmanager
    def portions(
        self, history: str | None, summary: Summary, crew: Crew | Cluster
    ) -> Iterator[Sequence[GatheredPortion | SpreadPortion]]:
        """Read the files there are; see `Source.portions`."""
        found = self.files.need()
        _tell(summary.input, self.files, found)
        with Scratch() as scratch:
            if isinstance(crew, Crew):
                disk = Disk(self.recipe(), self.room, self.survey, scratch, crew)
                yield Run(self, summary, disk).portions(found.paths, history)
            else:
                workers = Spreading(self.recipe(), self.room, self.survey, crew)
                yield Run(self, summary, workers).portions(found.paths, history)

    def _followed(
        self, arrivals: Arrivals, history: str | None, summary: Summary
    ) -> Iterator[Events]:
        remembered = Remembered(self.deriving(endless=True), Memory())
        summary.input.period = str(self.files.period or "")
        with Scratch() as scratch:
            disk = Disk(self.recipe(), self.room, self.survey, scratch, Crew(1))
            run = Run(self, summary, disk)
            for paths in arrivals.rounds():
                with Crew(self.settings.num_threads) as disk.crew:
                    portions = run.portions(paths, history)
                for portion in portions:
                    yield from portion.events(summary, remembered)
                remembered.end_round()
                history = None

    def recipe(self) -> Recipe:
        """What portions have in common."""
        rows = max(self.settings.pipeline_batch_size, _FEWEST_ROWS)
        identity = Identity(self.user, self.format.id, self.format.accounts, self.format.id_pattern)
        return Recipe(identity, self.deriving(), rows, self.settings.columns)

    def work(self, files: LogFiles, repeat: int, *, named: bool) -> Work:
        """How files become frames."""
        user = self.user
        return Work(
            self.format,
            files,
            user,
            self.format.wanted(self.settings.columns, user),
            only=self.settings.userid_filter,
            named=named,
            skip=self.skip,
            everything=self.everything,
            repeat=repeat,
        )


@dataclass
class Run(Generic[Heap, Given]):
    """One run of a source: what it remembers from round to round.

    Attributes:
        intake: How the files are read.
        summary: Counted into.
        ground: Where events lie until they are handed out.
        learnt: What is to be learnt from.
    """

    intake: Intake
    summary: Summary
    ground: Ground[Heap, Given]
    learnt: Heap | None = None

    def portions(self, paths: Sequence[Log], history: str | None) -> list[Given]:
        """Read the files of a round, and what is to be learnt from, and divide the users."""
        if history is not None:
            self.learnt = self._learnt(history)
        work = self.intake.work(self.intake.files, self.intake.repeat, named=False)
        events = self._gathered(work, paths, self.summary.input)
        tell_missing(self.intake, events, self.learnt)
        if self.learnt is not None:
            events.names = events.names or self.learnt.names
        portions = self.ground.divided(events, self.learnt, endless=self._endless)
        self._survey(events)
        return portions

    @property
    def _endless(self) -> bool:
        return self.intake.arrivals is not None

    def _survey(self, events: Heap) -> None:
        """Take a sample once, of what is to be learnt from, or else of an input that ends."""
        known = events if self.learnt is None and not self._endless else self.learnt
        settings = self.intake.settings
        if not settings.survey or known is None or self.summary.everybody is not None:
            return
        past = self.learnt is not None
        self.summary.everybody = self.ground.sample(known, settings.columns, past=past)

    def _learnt(self, pattern: str) -> Heap:
        reading = self.summary.training
        option = "--train_data_glob"
        files = replace(
            self.intake.files,
            pattern=pattern,
            option=option,
            max_files=None,
            period=self.intake.learnt_from,
        )
        found = files.need()
        _tell(reading, files, found)
        work = self.intake.work(files, 1, named=True)
        return self._gathered(work, found.paths, reading)

    def _gathered(self, work: Work, paths: Sequence[Log], reading: Reading) -> Heap:
        events = self.ground.read(work, paths, reading)
        users = events.census.users
        if events.census.filled and work.user not in events.census.filled:
            self._check_known(work)
        if reading.other_users and not events.census.rows:
            told = "--userid_filter: no event in %s has %s as its `%s`."
            log.warning(told, work.files.pattern, quoted(work.only or ""), work.user)
        span = users.select(pl.col("last").max() - pl.col("first").min()).item()
        told = "%s loading complete. Total rows: %d. Timespan: %s"
        log.debug(told, work.format.name, events.census.rows, span)
        return events

    def _check_known(self, work: Work) -> None:
        """A column that events may have, and none has, names nobody; another one is a mistake."""
        form, files = work.format, work.files
        if work.user not in form.columns:
            raise no_user(work.user, form.columns, f"{files.option}: {form.name} events have")
        told = (
            "%s: no event has a `%s`, so all belong to no user. Give the column that names the "
            "user, as `--userid_column_name=NAME`."
        )
        log.warning(told, files.pattern, work.user)


def _tell(reading: Reading, files: LogFiles, found: Found) -> None:
    """Say which files are not read, and why."""
    reading.skipped_files = found.skipped
    if files.period is not None:
        reading.period = str(files.period)
        reading.outside_files, reading.outside_folders = found.outside, found.outside_folders


def tell_missing(intake: Intake, *gathered: Known | None) -> None:
    """Name the features that no event has, and what may have been meant."""
    filled = set[str]().union(*(one.census.filled for one in gathered if one is not None))
    derived = intake.deriving().derived
    known = {*intake.format.columns, *filled, *intake.format.derived}
    wanted = (*intake.settings.columns, *deriving.logged(derived)) if filled else ()
    missing = [name for name in wanted if name not in known and name not in derived]
    if missing and len(missing) == len(wanted):
        there = sorted(filled - {INDEX, TIME})[:8]
        raise UsageError(
            f"--columns_file: no event has any of its {len(wanted)} columns, such as "
            f"{quoted(missing[0])}. Events have {', '.join(map(quoted, there))}. "
            "Give a text file with one name of these a line."
        )
    for name in missing:
        close = get_close_matches(name, sorted(known), n=1)
        meant = f" Did you mean `{close[0]}`?" if close else ""
        log.warning("--columns_file: no event has a column %s.%s", quoted(name), meant)
