"""`detect` for data frames, and what it decides on the command line, too.

`LogOverview` and `Plan` say what to train on and what to score, `choose_budget` how many incidents
to ask for. `detect` runs the same pipeline on a frame as `morpheus detect` does on files, and
returns a `Detection`.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from msgspec import structs

from morpheus.api import (
    EXPLAIN_PREFIX,
    MAX_SHOWN,
    PREFIXED_SCHEMA,
    REASON_SCHEMA,
    SCORE_SCHEMA,
    Fingerprints,
    warn_unscored,
)
from morpheus.columns import (
    ACTOR,
    ACTOR_OPTION,
    INCIDENT_ID,
    INCIDENT_SEVERITY,
    INDEX,
    PVALUE,
    RISK,
    SCORE,
    TIME,
    ExplanationColumns,
)
from morpheus.core.batch import Batch, Events, OutputRows, ReadStats, RunMetrics, Scored, Step
from morpheus.core.registry import load_stage
from morpheus.core.stage import (
    Outputs,
    PipelineOptions,
    Requirements,
    Sink,
    Stage,
)
from morpheus.errors import UsageError
from morpheus.models.explanation import list_column_reasons
from morpheus.models.versions import find_models
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.incidents import Incident
from morpheus.report.page import import_pyplot, plot_incidents, plot_user, render_table
from morpheus.report.view import RunCounts
from morpheus.sinks.to_report import ToReport
from morpheus.sources.base import FileSource
from morpheus.sources.dataframe import (
    FrameLike,
    FrameLog,
    FrameRows,
    append_columns,
    as_polars,
)
from morpheus.sources.results import silence_log
from morpheus.sources.tabular import FRAME_NAME
from morpheus.sources.time_range import UTC_DATETIME, check_timezone
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import TempFolder
from morpheus.text import format_count, quote_backtick, suggest

logger = logging.getLogger(__name__)

TRAINING_SHARE = 0.7
"""Share of the days that are for training, if there is no history."""
USERS_PER_WEEKLY_INCIDENT = 20
"""Default budget: one incident per week for so many users ..."""
MIN_INCIDENTS = 15
"""... but at least so many incidents of all days together. As many are shown."""
MAX_SHARE_OF_USER_DAYS = 0.2
"""Maximum share of the days of users that the budget asks for, in spite of `MIN_INCIDENTS`."""
DAYS_PER_WEEK = 7
RESULT_COLUMNS = frozenset({SCORE, ExplanationColumns().top_columns})
"""Columns of output files that no log has."""


# What `detect` decides, on the command line and for frames.


@dataclass(frozen=True)
class TimesSink(Sink):
    """Find the first and the last time of some events, without writing anything.

    Attributes:
        logs: Name of the argument with the logs, for messages.
        times: The first and the last time, once there are events.
        columns: Names of the columns of the log that were read.
    """

    name = "times"
    takes = (Events,)
    needs = Requirements()

    logs: str = "LOGS"
    times: list[datetime] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)

    def process(self, batch: Events, state: None) -> Iterator[Events]:  # noqa: ARG002 - no state
        """Look at a batch.

        Raises:
            UsageError: It has columns of an output file.
        """
        found = RESULT_COLUMNS & set(batch.table.names)
        if found:
            raise UsageError(
                f"{self.logs}: there are results of an earlier run among the logs: some events "
                f"have a column {quote_backtick(min(found))}. Give the logs without the outputs."
            )
        self.columns.update(batch.log_columns)
        if batch.table.height:
            column = batch.table[TIME]
            ends = [cast("datetime", column.min()), cast("datetime", column.max()), *self.times]
            self.times[:] = [min(ends), max(ends)]
        yield batch


@dataclass(frozen=True)
class LogOverview:
    """What the logs have.

    Attributes:
        events: Number of events.
        files: Number of files.
        users: Number of users.
        first: First day, in UTC.
        last: Last day.
        columns: Names of the columns that were read.
        stats: What was read, and what was left out.
    """

    events: int
    files: int
    users: int
    first: date
    last: date
    columns: frozenset[str] = frozenset()
    stats: ReadStats = field(default_factory=ReadStats)

    @classmethod
    def from_source(
        cls,
        source: FileSource,
        options: PipelineOptions,
        logs: str = "LOGS",
        on_step: Callable[[Step], None] | None = None,
    ) -> LogOverview:
        """Read the times and users of all events.

        Args:
            source: The source.
            options: Options of the pipeline.
            logs: As in `TimesSink`.
            on_step: Called when the reading begins; see `RunMetrics.on_step`.

        Raises:
            UsageError: There is no event with a user.
        """
        sink = TimesSink(logs)

        def begin(step: Step) -> None:
            if on_step is not None and step.unit == "file":
                on_step(structs.replace(step, name="Counting events"))

        with silence_log():
            metrics = Pipeline([source, sink], options).run(on_step=begin)
        users = len(metrics.users.keys() - {None})
        if not users:
            raise UsageError(
                f"{logs}: {metrics.empty_reason or 'no event has a user'}, so there is nothing to "
                "learn. Give other logs."
            )
        first, last = (time.astimezone(UTC).date() for time in sink.times)
        columns = frozenset(sink.columns)
        stats = metrics.input
        return cls(metrics.users.total(), stats.files, users, first, last, columns, stats)

    @property
    def days(self) -> int:
        """Number of days from the first to the last."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True)
class Plan:
    """What a run trains on and scores.

    Attributes:
        trained: What the fingerprints are trained on, in words.
        source_values: Options of the source.
        training_values: Options of `train-ae`.
        first: First day to score.
        days: Number of days to score.
    """

    trained: str
    source_values: Mapping[str, Any]
    training_values: Mapping[str, Any]
    first: date
    days: int

    @classmethod
    def split(cls, overview: LogOverview, training_values: Mapping[str, Any]) -> Plan:
        """Train on the first days of logs of several days, and score the others."""
        number = min(max(int(TRAINING_SHARE * overview.days), 1), overview.days - 1)
        start = overview.first + timedelta(days=number)
        words = (
            f"{overview.first} to {start - timedelta(days=1)}: "
            f"the first {number:,} of {format_count(overview.days, 'day')}"
        )
        period = {"start_time": str(start), "train_duration": f"{number}d"}
        return cls(words, period, training_values, start, overview.days - number)

    @classmethod
    def after(
        cls, overview: LogOverview, trained_until: str, models: str, loading: Mapping[str, Any]
    ) -> Plan:
        """Score the days after the training of fingerprints; all days if none is after it.

        Args:
            overview: What the logs have.
            trained_until: As in `ModelStore`.
            models: The fingerprints, in words.
            loading: Options of `train-ae` that load them.
        """
        words = f"earlier; {models} are used"
        if not trained_until:
            return cls(words, {}, loading, overview.first, overview.days)
        until = datetime.fromisoformat(trained_until).astimezone(UTC).date()
        words = f"{until} and before; {models} are used"
        if not overview.first <= until < overview.last:
            return cls(words, {}, loading, overview.first, overview.days)
        start = until + timedelta(days=1)
        days = (overview.last - start).days + 1
        return cls(words, {"start_time": str(start)}, loading, start, days)


def list_detect_stages(
    budget: float, suppressions: Sequence[str] = (), explain_prefix: str = ""
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return word and options of the stages between `train-ae` and the outputs.

    Args:
        budget: Number of incidents per day.
        suppressions: Files of suppressions.
        explain_prefix: Prefix of the columns of `explain`.
    """
    hidden = {"suppressions": tuple(suppressions)} if suppressions else {}
    explain = {"prefix": explain_prefix} if explain_prefix else {}
    return [
        ("preprocess", {}),
        ("inf-pytorch", {}),
        ("add-scores", {"label": (RISK, PVALUE)}),
        ("explain", explain),
        ("filter", {"alerts_per_day": budget, **hidden}),
        ("serialize", {}),
    ]


def choose_budget(users: int, days: int) -> float:
    """Return the default number of incidents per day.

    >>> choose_budget(users=50, days=18)  # 15 in 18 days; one per week for 20 users were 6
    0.833
    >>> choose_budget(users=1000, days=18), choose_budget(users=2, days=10)
    (7.14, 0.4)
    """
    usual = users / USERS_PER_WEEKLY_INCIDENT / DAYS_PER_WEEK
    wanted = min(max(usual, MIN_INCIDENTS / days), MAX_SHARE_OF_USER_DAYS * users)
    return float(f"{wanted:.3g}")


# `detect` for frames.


_NO_LOSSES = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class KeepScores(CollectSink):
    """Keep the scores and reasons of all events, at its place: in front of `filter`."""

    scope = "barrier"

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Keep the columns of a batch that results have."""
        table = batch.table.select([INDEX, TIME, *SCORE_SCHEMA, *PREFIXED_SCHEMA])
        self.batches.append(Scored(user=batch.user, table=table, losses=_NO_LOSSES))
        yield batch

    def to_frame(self) -> pl.DataFrame:
        """Return the events with a score, in the order of the frame."""
        schema = pl.Schema({INDEX: pl.Int64(), TIME: UTC_DATETIME, **SCORE_SCHEMA, **REASON_SCHEMA})
        names = dict(zip(PREFIXED_SCHEMA, REASON_SCHEMA, strict=True))
        empty = pl.DataFrame(schema=pl.Schema({"user": pl.String(), **schema}))
        tables = [
            batch.table.to_frame()
            .rename(names)
            .cast(schema)
            .select(pl.lit(batch.user, pl.String).alias("user"), *schema)
            for batch in self.batches
        ]
        events = pl.concat([empty, *tables]).with_columns(pl.col(pl.Float64).fill_nan(None))
        return events.filter(pl.col(RISK).is_not_null()).sort(INDEX)


@dataclass(frozen=True)
class KeepReport(ToReport):
    """Collect what a report shows, and the alerts. It writes no file."""

    batches: list[Batch] = field(default_factory=list, repr=False, compare=False)

    def validate(self) -> None:
        """Accept every option: there is no file."""

    def outputs(self) -> Outputs:
        """Return no file."""
        return Outputs()

    def process(self, batch: OutputRows, state: ReportAggregator) -> Iterator[OutputRows]:
        """Keep a batch."""
        self.batches.append(batch)
        yield from super().process(batch, state)

    def commit(self, metrics: RunMetrics) -> None:
        """Write nothing."""

    def list_alerts(self) -> pl.DataFrame:
        """Return row and incident of each alert."""
        schema = pl.Schema({INDEX: pl.Int64(), INCIDENT_ID: pl.String()})
        frames = [
            batch.table.select(schema.names()).to_frame()
            for batch in self.batches
            if INCIDENT_ID in batch.table
        ]
        return pl.concat([pl.DataFrame(schema=schema), *frames])


@dataclass(frozen=True)
class DetectionCounts:
    """What happened to each row of a frame. `read` is the sum of all other numbers.

    Attributes:
        read: Number of rows.
        scored: Number of events with a score.
        unscored: Number of events without a score, by reason.
        left_out: Number of rows that are no events to score, by reason.
    """

    read: int
    scored: int
    unscored: Mapping[str, int]
    left_out: Mapping[str, int]

    @classmethod
    def from_run(cls, stats: ReadStats, counts: RunCounts, first: date) -> DetectionCounts:
        """Count the rows of a run.

        Args:
            stats: What happened to the rows.
            counts: What happened to the events.
            first: The first day that was scored.
        """
        example = f", such as {stats.refusals[0]}" if stats.refusals else ""
        reasons = {
            f"before {first}, the first day that is scored": stats.outside_range,
            f"cannot be read{example}": stats.refused,
            "the same event as another row": stats.duplicates,
            "time before 2000 or after the clock": stats.implausible,
            "another kind of record": stats.other_records + stats.other_classes,
            "excluded by the schema": stats.unwanted_rows,
        }
        left_out = {reason: number for reason, number in reasons.items() if number}
        return cls(stats.read, counts.scored, dict(counts.unscored), left_out)


class UnknownEventError(UsageError, KeyError):
    """There is no such incident, or no such event with a score. It is a `KeyError`, too."""

    __str__ = Exception.__str__  # that of `KeyError` quotes the message


@dataclass(frozen=True, repr=False, eq=False)
class Detection:
    """The incidents of a frame, most severe first. `detect` makes it; `len` counts the incidents.

    Methods return frames of the kind that `detect` was given: pandas (with its index), pyarrow, or
    Polars.

    Attributes:
        counts: What happened to each row.
        fingerprints: The fingerprints that scored the events; None if no user could be trained.
        budget: Number of incidents per day that were asked for.
        scored_days: First and last day that were scored.
    """

    counts: DetectionCounts
    fingerprints: Fingerprints | None
    budget: float
    scored_days: tuple[date, date]
    _incidents: Sequence[Incident]
    _events: pl.DataFrame
    _alert_rows: Any
    _given: FrameRows

    @property
    def users(self) -> list[str]:
        """The users whose events have a score, in alphabetical order."""
        return self._events["user"].unique().drop_nulls().sort().to_list()

    def __len__(self) -> int:
        return len(self._incidents)

    def __repr__(self) -> str:
        return f"<Detection: {self._describe()}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{incident.severity} {incident.severity_name}",
                incident.user or "",
                incident.day,
                f"{incident.count:,}",
                incident.reason or "",
                incident.id,
            )
            for incident in self._incidents[:MAX_SHOWN]
        ]
        header = ("severity", "user", "day", "events", "reason", "id")
        return render_table(self._describe(), header, rows)

    def _describe(self) -> str:
        alerts = format_count(sum(incident.count for incident in self._incidents), "event")
        found = f"{format_count(len(self), 'incident')} with {alerts}"
        scored = format_count(self.counts.scored, "scored event")
        return f"{found}, of {scored} of {format_count(len(self.users), 'user')}"

    def incidents(self) -> Any:  # noqa: ANN401 - a frame of the caller's library
        """Return one row for each incident, most severe first.

        Returns:
            Columns: `id`, `user`, `day`, `severity` (0 to 100), `severity_name`, `start` and `end`
            (times of the first and the last event), `count` (number of events), and `reason`.
        """
        names = ("id", "user", "day", "severity", "severity_name", "start", "end", "count")
        rows = [
            {name: getattr(each, name) for name in (*names, "reason")} for each in self._incidents
        ]
        texts = pl.DataFrame(rows, schema=_INCIDENT_SCHEMA)
        times = [pl.col(name).str.to_datetime(time_zone="UTC") for name in ("start", "end")]
        return self._given.convert(texts.with_columns(pl.col("day").str.to_date(), *times))

    def alerts(self) -> Any:  # noqa: ANN401 - as above
        """Return the rows of the frame that belong to incidents: most severe first, then by time.

        Returns:
            All columns of the frame, and: `row` (position in the frame), `actor` (if `@actor` finds
            the users), `ae_anomaly_score`, `risk`, `pvalue`, `reason`, `incident_id` and
            `incident_severity`. A name that the frame has too gets the prefix `morpheus_`.
        """
        return self._alert_rows

    def scores(self) -> Any:  # noqa: ANN401 - as above
        """Return all events with a score, in the order of the frame.

        Returns:
            Columns: `row` (position in the frame), `user`, `time`, the columns of
            `Fingerprints.score`, `reason`, and `incident_id` (null for events of no incident).
        """
        names = {INDEX: "row", TIME: "time"}
        events = self._events.rename(names).drop("top_columns", "explanation")
        first = ["row", "user", "time"]
        return self._given.convert(events.select(*first, pl.exclude(first)), events["row"])

    def explain(self, event: object) -> Any:  # noqa: ANN401 - as above
        """Explain an incident or an event: one row for each column that is unusual.

        Args:
            event: Id of an incident; or an event with a score: its label in the index of pandas,
                for other frames its row number.

        Returns:
            Columns: `row`, `time`, `reason`, `column`, `value` (`(no value)` if there is none),
            `expected` (the most likely value; `(new value)` for any that is new), `probability` (of
            the value, given the event's other values), `bits` (-log2 of it), `usual_bits` (their
            mean on usual events), `new` (whether the value is new) and `risk`
            (its part of the risk). Events of an incident are in the order of time.

        Raises:
            UnknownEventError: There is no such incident or event.
        """
        rows = self._events.filter(pl.col(INCIDENT_ID) == event) if isinstance(event, str) else None
        if rows is None or not rows.height:
            rows = self._find_event(event)
        explained = list_column_reasons(rows.sort(TIME, INDEX))
        return self._given.convert(explained, explained["row"])

    def _find_event(self, label: object) -> pl.DataFrame:
        """Return the events of a label.

        Raises:
            UnknownEventError: There is none.
        """
        positions = self._given.find(label)
        rows = self._events.filter(pl.col(INDEX).is_in(positions))
        if not positions:
            known = [incident.id for incident in self._incidents]
            raise UnknownEventError(
                f"There is no incident and no row {quote_backtick(str(label))}."
                f"{suggest(str(label), known)} `incidents()` lists the incidents."
            )
        if not rows.height:
            first, last = self.scored_days
            raise UnknownEventError(
                f"Row {quote_backtick(str(label))} has no score. `scores()` lists the events that "
                f"have one, of {first} to {last}, and `counts` says why others have none."
            )
        return rows

    def plot(self, user: str | None = None, *, ax: Any = None) -> Any:  # noqa: ANN401 - axes of matplotlib
        """Plot incidents by user and day; or the risk of one user's events, with the incidents.

        It needs matplotlib: `pip install 'morpheus-dfp[plot]'`.

        Args:
            user: The user; None for the users with the most severe incidents.
            ax: Axes of matplotlib to plot into. Default: new ones.

        Returns:
            The axes.

        Raises:
            UsageError: matplotlib is not installed, or no event of the user has a score.
        """
        pyplot = import_pyplot()
        if user is not None and user not in self.users:
            raise UsageError(
                f"plot: no event of {quote_backtick(user)} has a score.{suggest(user, self.users)}"
            )
        ax = ax or pyplot.subplots(figsize=(10, 4), layout="constrained")[1]
        if user is None:
            plot_incidents(ax, self._incidents)
        else:
            mine = [incident for incident in self._incidents if incident.user == user]
            plot_user(ax, user, self._events.filter(pl.col("user") == user), mine)
        return ax


_INCIDENT_SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "user": pl.String(),
        "day": pl.String(),
        "severity": pl.Int64(),
        "severity_name": pl.String(),
        "start": pl.String(),
        "end": pl.String(),
        "count": pl.Int64(),
        "reason": pl.String(),
    }
)


def detect(  # noqa: PLR0913 - keyword options of the command
    frame: FrameLike,
    *,
    history: FrameLike | None = None,
    user: str | None = None,
    time: str | None = None,
    alerts_per_day: float | None = None,
    fingerprints: Fingerprints | str | PathLike[str] | None = None,
    columns: Sequence[str] | None = None,
    timezone: str = "UTC",
    seed: int = 0,
    threads: int = 1,
) -> Detection:
    """Find the most unusual incidents in the events of a frame, as `morpheus detect` does in files.

    The kind of log is recognised. Each user's fingerprint is trained on `history`. Without it, the
    first 70 % of the days (UTC) are for training, and the other days are scored. An incident is a
    day of one user.

    Args:
        frame: The events, one row each: a frame of pandas, Polars, pyarrow, or another library with
            `__arrow_c_stream__`.
        history: Earlier events, for training only.
        user: Name of the user column. Default: `@actor` for a known kind of log, which finds the
            person, role or service of each event.
        time: Name of the time column. Default: that of the known kind of log.
        alerts_per_day: Incidents per day that you are ready to review. Default: one per week for
            each 20 users, but at least 15 in the scored days and at most a fifth of the days of
            users.
        fingerprints: Trained fingerprints, or their folder. Then nothing is trained, and the days
            after their training are scored.
        columns: Feature columns. Default: for a known kind of log those of the command line, for
            others all columns except the user and the time.
        timezone: Time zone of the days of incidents, and of hours and days of derived columns.
        seed: Random seed.
        threads: Maximum number of parallel workers. Does not affect results. Above 1, a script must
            protect its entry point with `if __name__ == "__main__":`.

    Raises:
        UsageError: The frame has no events, its kind of log is not known and `user` or `time` is
            not given, a column does not exist, or there are no days to train on.
    """
    events, past = _drop_results(as_polars(frame)), None
    if not events.height:
        raise UsageError("frame: it has no rows. Give the events to score.")
    is_budget = alerts_per_day is None or (
        isinstance(alerts_per_day, Real) and 0 <= float(alerts_per_day) < math.inf
    )
    if not is_budget:
        raise UsageError(f"alerts_per_day: {alerts_per_day!r} is not a number of at least 0.")
    check_timezone(timezone, "timezone")
    if history is not None:
        past = _drop_results(as_polars(history, "history"))
    if isinstance(fingerprints, str | PathLike):
        fingerprints = Fingerprints.load(fingerprints, user=user, time=time)
    if not isinstance(fingerprints, Fingerprints | None):
        raise UsageError(
            "fingerprints: trained fingerprints or their folder are required, not "
            f"{type(fingerprints).__name__}."
        )
    if fingerprints is None:
        log = FrameLog.recognise(events, user, time, columns, timezone)
    else:
        given = {"history": history, "user": user, "time": time, "columns": columns}
        log = _describe_scored(fingerprints, events, timezone, given)
    if past is not None:
        log.check_frame(past)
    run = _DetectRun(log, events, past, fingerprints, seed, threads)
    return run.run(alerts_per_day, frame)


_RESULT_NAMES = frozenset({INCIDENT_ID, INCIDENT_SEVERITY, *RESULT_COLUMNS})


def _drop_results(events: pl.DataFrame) -> pl.DataFrame:
    """Drop columns that an earlier detection has added."""
    return events.drop(_RESULT_NAMES, strict=False)


def _describe_scored(
    fingerprints: Fingerprints, events: pl.DataFrame, timezone: str, given: Mapping[str, object]
) -> FrameLog:
    """Return how events are read for fingerprints to score them.

    Args:
        fingerprints: The fingerprints.
        events: The events.
        timezone: The time zone that the caller gave.
        given: Other arguments of the caller.

    Raises:
        UsageError: An argument contradicts the fingerprints.
    """
    known = {"user": fingerprints.user, "time": fingerprints.time}
    for name, value in given.items():
        if value is not None and not (name in known and value == known[name]):
            raise UsageError(
                f"{name}: the fingerprints are trained already, with what they need. Leave out "
                f"`{name}` or `fingerprints`."
            )
    log = FrameLog.from_store(fingerprints.store, fingerprints.user, fingerprints.time, events)
    log.check_frame(events)
    inputs = fingerprints.store.inputs
    derived = inputs is not None and any(each.kind == "derived" for each in inputs.features)
    if derived and log.options.timezone != timezone:
        raise UsageError(
            f"timezone: the fingerprints know hours and days of {log.options.timezone}. Give "
            f'`timezone="{log.options.timezone}"`.'
        )
    return structs.replace(log, options=replace(log.options, timezone=timezone))


@dataclass(frozen=True)
class _DetectRun:
    """One call of `detect`.

    Attributes:
        log: How events are read.
        events: The events.
        history: Training events; None for those among `events`.
        fingerprints: Trained fingerprints; None to train.
        seed: Random seed.
        threads: Maximum number of parallel workers.
    """

    log: FrameLog
    events: pl.DataFrame
    history: pl.DataFrame | None
    fingerprints: Fingerprints | None
    seed: int
    threads: int

    def run(self, alerts_per_day: float | None, given: FrameLike) -> Detection:
        """Plan, run, and return the incidents.

        Args:
            alerts_per_day: Incidents per day; None for the default.
            given: The caller's frame.
        """
        options = replace(self.log.options, num_threads=self.threads)
        counted = self.log.make_source(self.events, bad_record="skip")
        overview = LogOverview.from_source(counted, options, FRAME_NAME)
        temp_folder = TempFolder()
        try:
            plan = self._make_plan(overview, temp_folder.path)
            budget = alerts_per_day
            if budget is None:
                budget = choose_budget(overview.users, plan.days)
            scores, report, metrics = self._score(plan, budget, options)
            fingerprints = self.fingerprints or self._open_trained(temp_folder)
        except BaseException:  # an interrupt, too, must not leave the folder
            temp_folder.close()
            raise
        if fingerprints is None:
            temp_folder.close()
        data = report.make_report_data(metrics)
        incidents = [view.incident for view in data.incidents]
        events, rows = self._join_alerts(scores.to_frame(), report.list_alerts(), incidents)
        return Detection(
            DetectionCounts.from_run(metrics.input, data.account, plan.first),
            fingerprints,
            budget,
            (plan.first, overview.last),
            incidents,
            events,
            append_columns(given, rows["row"], rows),
            FrameRows.from_frame(given),
        )

    def _join_alerts(
        self, events: pl.DataFrame, alerts: pl.DataFrame, incidents: Sequence[Incident]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the events with the ids of their incidents, and the columns of alerts, in order.

        Args:
            events: Scores of all events.
            alerts: Row and incident of each alert.
            incidents: The incidents, in order.
        """
        facts = [(at, each.id, each.severity) for at, each in enumerate(incidents)]
        schema = {_RANK: pl.Int64, INCIDENT_ID: pl.String, INCIDENT_SEVERITY: pl.Int64}
        order = pl.DataFrame(facts, schema, orient="row")
        alerts = alerts.join(order, on=INCIDENT_ID)
        ids = alerts.select(INDEX, INCIDENT_ID)
        events = events.join(ids, on=INDEX, how="left", maintain_order="left")
        rows = events.join(alerts.drop(INCIDENT_ID), on=INDEX).sort(_RANK, TIME, INDEX)
        names = [name for name in _ALERT_COLUMNS if name != ACTOR or self._finds_actor]
        return events, rows.rename({"user": ACTOR, INDEX: "row"}).select(names)

    @property
    def _finds_actor(self) -> bool:
        return self.log.options.userid_column_name == ACTOR_OPTION

    def _make_plan(self, overview: LogOverview, models: Path) -> Plan:
        """Decide what to train on and what to score.

        Raises:
            UsageError: There are no days to train on.
        """
        if self.fingerprints is not None:
            store = self.fingerprints.store
            loading = {
                "pretrained_filename": store.location,
                "models_key_file": self.fingerprints.key_file,
            }
            return Plan.after(overview, store.trained_until, "the fingerprints", loading)
        training = {
            "models_output_filename": str(models),
            "train_data_glob": (FRAME_NAME,),
            "seed": self.seed,
        }
        if self.history is not None:
            return Plan("the history", {}, training, overview.first, overview.days)
        if overview.days == 1:
            raise UsageError(
                f"frame: all events are of one day, {overview.first}, so there are no earlier days "
                "to learn from. Give earlier events as `history=`."
            )
        return Plan.split(overview, training)

    def _score(
        self, plan: Plan, budget: float, options: PipelineOptions
    ) -> tuple[KeepScores, KeepReport, RunMetrics]:
        """Run the pipeline of the command on the frames."""
        source = self.log.make_source(
            self.events, self.history, bad_record="skip", **plan.source_values
        )
        scores, report = KeepScores(), KeepReport()
        stages: list[Stage] = [source, TrainAe(**plan.training_values)]
        changes: Mapping[str, Mapping[str, Any]] = {
            "add-scores": {"label": tuple(SCORE_SCHEMA)},
            "explain": {"prefix": EXPLAIN_PREFIX},
        }
        for word, values in list_detect_stages(budget):
            stages += [scores] if word == "filter" else []
            stages.append(load_stage(word)(**{**values, **changes.get(word, {})}))
        metrics = Pipeline([*stages, report], options).run()
        warn_unscored(metrics)
        return scores, report, metrics

    def _open_trained(self, temp_folder: TempFolder) -> Fingerprints | None:
        """Open the fingerprints of this run, whose folder is removed with them."""
        store = find_models(str(temp_folder.path))
        if store is None or not (store.cards or store.global_card):
            return None
        options = self.log.options
        names = options.userid_column_name, options.timestamp_column_name
        fingerprints = Fingerprints(*names, store)
        weakref.finalize(fingerprints, temp_folder.close)
        return fingerprints


_RANK = "_rank_"
_ALERT_COLUMNS = ("row", ACTOR, SCORE, RISK, PVALUE, "reason", INCIDENT_ID, INCIDENT_SEVERITY)
