"""Suppressions proposed from verdicts: what `morpheus tools suppress` does, without the command.

`read_verdicts` reads the verdicts that people gave in the report. `propose` finds for them the
narrowest suppressions that hide the harmless incidents and their like. `preview_rule` finds what a
suppression would have hidden of past alerts. `render_suppressions` writes the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property, reduce
from itertools import combinations
from operator import and_, or_
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace

from morpheus.columns import (
    CONDITION_FIELDS,
    INCIDENT_ID,
    POPULATION_USER,
    RISK,
    TIME,
    ExplanationColumns,
    LogDescription,
)
from morpheus.errors import UsageError
from morpheus.features.derived import NOVELTY_PREFIX, PREVIOUS_PREFIX
from morpheus.suppressions.rules import (
    MISSING,
    SUPPRESSIONS_FORMAT,
    SUPPRESSIONS_VERSION,
    Mask,
    Suppression,
    Suppressions,
    WeeklyHours,
    find_agent_family,
    find_network,
    format_end,
)
from morpheus.text import display_value, escape_control, quote_backtick

BENIGN = ("expected", "benign-new")
"""Verdicts that lead to a suppression. The other verdicts prevent one."""
VERDICTS_FORMAT = "morpheus-verdicts"
END_TOLERANCE = timedelta(seconds=1)
"""Maximum loss when the end of an incident was rounded to text."""


_LAST_SECOND = 253_402_300_799  # of the year 9999
AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]


class ColumnValue(msgspec.Struct, frozen=True):
    """A column that made an incident unusual, and its value."""

    column: str
    value: str | None = None


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person wants done with the user or with the events of an incident.

    Attributes:
        action: `mute`: hide everything of the user. `hours`: hide everything of the user within the
            hours. `accept`: train with the events of the incident.
        until: End of the suppression; None for the default.
        hours: Hours of the week; see `WeeklyHours`.
        timezone: Their time zone.
    """

    action: Literal["mute", "hours", "accept"]
    until: date | None = None
    hours: tuple[str, ...] = ()
    timezone: str = "UTC"


class VerdictRow(msgspec.Struct, frozen=True):
    """An event of an incident, with the values that matter.

    Attributes:
        at: Time, in seconds since 1970.
        values: Values by column.
        explained: Columns that explain the event.
        risk: Its risk; None if it is not known.
        own: The part of the event itself in it.
    """

    at: Annotated[float, msgspec.Meta(ge=0, le=_LAST_SECOND)]
    values: dict[str, str | None]
    explained: tuple[str, ...] = ()
    risk: float | None = None
    own: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """A person's verdict on an incident.

    Attributes:
        incident: Id of the incident.
        user: Its user. None for events without a user, for which there can be no suppression.
        verdict: The verdict.
        note: The person's note.
        start: Time of the first event.
        end: Time of the last event.
        events: Number of events.
        columns: Values that made it unusual.
        tuning: What else to do; None for no wish.
        rows: Its most severe events; empty if the file has none.
    """

    incident: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    user: str | None
    verdict: Literal["expected", "benign-new", "suspicious", "malicious"]
    start: AwareDatetime
    end: AwareDatetime
    events: int
    columns: tuple[ColumnValue, ...]
    note: str = ""
    tuning: Tuning | None = None
    rows: tuple[VerdictRow, ...] = ()

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Distinct values by column, sorted."""
        by_column: dict[str, set[str]] = {}
        for cell in self.columns:
            by_column.setdefault(cell.column, set()).add(cell.value or MISSING)
        return {column: tuple(sorted(values)) for column, values in by_column.items()}

    @property
    def is_benign(self) -> bool:
        """Whether it is harmless."""
        return self.verdict in BENIGN

    def covers(self, events: pl.DataFrame) -> pl.Series:
        """Return which events belong to the incident: by its id, or by user and time, (rows,)."""
        user = pl.col(POPULATION_USER).eq_missing(pl.lit(self.user, pl.String))
        inside = self.spans() & user
        if INCIDENT_ID in events.columns:
            inside |= pl.col(INCIDENT_ID).eq_missing(pl.lit(self.incident))
        return events.select(inside.fill_null(value=False).alias("covers")).to_series()

    def spans(self) -> pl.Expr:
        """Return which events are within the times of the incident."""
        start, end = self.start.astimezone(UTC), self.end.astimezone(UTC) + END_TOLERANCE
        return pl.col(TIME).is_between(start, end)


class _VerdictFile(msgspec.Struct, frozen=True):
    """A file of verdicts. Verdicts of version 1 have no `tuning`."""

    format: Literal["morpheus-verdicts"]
    version: Literal[1, 2]
    made: AwareDatetime
    verdicts: tuple[Verdict, ...]


class Verdicts(msgspec.Struct, frozen=True):
    """The verdicts of some files. Of several on one incident, the last one counts.

    Attributes:
        verdicts: The verdicts.
        exported_at: When the latest file was exported.
    """

    verdicts: tuple[Verdict, ...]
    exported_at: datetime

    @classmethod
    def read(cls, paths: Sequence[str], option: str = "VERDICTS") -> Self:
        """Read files of verdicts.

        Args:
            paths: The files, in the order of their age.
            option: What gave the files, for messages.

        Raises:
            UsageError: A file cannot be read, or is not a file of verdicts.
        """
        files = [_read_verdicts(path, option) for path in paths]
        latest = {each.incident: each for file in files for each in file.verdicts}
        exported = max(file.made for file in files).astimezone(UTC)
        return cls(tuple(latest.values()), exported)

    @property
    def benign(self) -> tuple[Verdict, ...]:
        """Harmless incidents to hide."""
        return tuple(x for x in self.verdicts if x.is_benign and not _accepts(x))

    @property
    def dangerous(self) -> tuple[Verdict, ...]:
        """Verdicts `suspicious` and `malicious`."""
        return tuple(verdict for verdict in self.verdicts if not verdict.is_benign)

    @property
    def accepted(self) -> tuple[Verdict, ...]:
        """Harmless incidents whose events are for training."""
        return tuple(x for x in self.verdicts if x.is_benign and _accepts(x))


class TrainingVerdicts(msgspec.Struct, frozen=True):
    """What verdicts say about training events.

    Attributes:
        accepted: Incidents whose events are for training, by user.
        dangerous: Incidents whose events are not, by user.
    """

    accepted: Mapping[str | None, Sequence[Verdict]]
    dangerous: Mapping[str | None, Sequence[Verdict]]

    @classmethod
    def read(cls, paths: Sequence[str], option: str) -> Self:
        """Read files of verdicts; see `Verdicts.read`."""
        verdicts = Verdicts.read(paths, option)
        return cls(_group_by_user(verdicts.accepted), _group_by_user(verdicts.dangerous))

    def find_accepted(self, user: str | None, events: pl.DataFrame) -> pl.Series:
        """Return which events of a user were accepted, (rows,)."""
        return _find_spanned(self.accepted.get(user, ()), events)

    def find_dangerous(self, user: str | None, events: pl.DataFrame) -> pl.Series:
        """Return which events of a user must not be used, (rows,)."""
        return _find_spanned(self.dangerous.get(user, ()), events)

    def drop_dangerous(self, population: pl.DataFrame) -> pl.DataFrame:
        """Drop the events of all users that must not be used.

        Args:
            population: Events, with their users in `POPULATION_USER`.
        """
        for user, verdicts in self.dangerous.items():
            spans = reduce(or_, (verdict.spans() for verdict in verdicts))
            own = pl.col(POPULATION_USER).eq_missing(pl.lit(user, pl.String))
            population = population.filter(~(spans & own))
        return population


def _group_by_user(verdicts: Iterable[Verdict]) -> dict[str | None, list[Verdict]]:
    groups: dict[str | None, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.user, []).append(verdict)
    return groups


def _find_spanned(verdicts: Sequence[Verdict], events: pl.DataFrame) -> pl.Series:
    if not verdicts:
        return pl.Series([False], dtype=pl.Boolean).new_from_index(0, events.height)
    spans = reduce(or_, (verdict.spans() for verdict in verdicts))
    return events.select(spans.alias("spanned")).to_series()


def _accepts(verdict: Verdict) -> bool:
    return verdict.tuning is not None and verdict.tuning.action == "accept"


def _read_verdicts(path: str, option: str) -> _VerdictFile:
    try:
        file = msgspec.json.decode(Path(path).read_bytes(), type=_VerdictFile)
        for verdict in file.verdicts:
            if verdict.tuning is not None and verdict.tuning.action == "hours":
                WeeklyHours(verdict.tuning.hours, verdict.tuning.timezone)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{option}: `{path}` cannot be read: {reason}. Give a file that the report exported: "
            f'JSON with "format": "{VERDICTS_FORMAT}".'
        ) from error
    return file


# Past alerts, and what is typical of their columns.

EXPLAINED, OWN = "_explained_", "_own_"
"""Columns of past alerts: the columns that explain an event, and the part of the event itself in
its risk."""
_PRECEDING_OWN = "$.preceding.own"
MIN_DAYS_TO_MEASURE = 3
"""Number of incidents with a column from which its values are measured."""
MIN_RECURRENCE = 0.5
"""Share of incidents that have a value of another incident, below which a column is volatile."""


class PastAlerts(msgspec.Struct, frozen=True):
    """Events of past alerts.

    Attributes:
        events: Columns of the log as text, `POPULATION_USER`, `TIME`, `INCIDENT_ID`, and if they
            are known `EXPLAINED`, `RISK` and `OWN`.
        log: Description of the log.
    """

    events: pl.DataFrame
    log: LogDescription

    @classmethod
    def from_rows(cls, rows: pl.DataFrame, log: LogDescription) -> Self:
        """Take what is needed of rows of results.

        Args:
            rows: Rows with `POPULATION_USER`, `TIME` and `INCIDENT_ID`.
            log: Description of the log.
        """
        explained = ExplanationColumns.find_in(rows.columns)
        special = {TIME, RISK, *(explained or ())}
        columns = [pl.col(name).cast(pl.String) for name in rows.columns if name not in special]
        columns += [pl.col(TIME)]
        if RISK in rows.columns:
            columns += [pl.col(RISK).cast(pl.Float64, strict=False)]
        if explained is not None and explained.top_columns in rows.columns:
            columns += [pl.col(explained.top_columns).alias(EXPLAINED)]
        if explained is not None and explained.explanation in rows.columns:
            own = pl.col(explained.explanation).str.json_path_match(_PRECEDING_OWN)
            columns += [own.cast(pl.Float64, strict=False).alias(OWN)]
        return cls(rows.select(columns), log)

    @classmethod
    def empty(cls, log: LogDescription) -> Self:
        """Return no past alert."""
        texts = dict.fromkeys((POPULATION_USER, INCIDENT_ID), pl.String())
        return cls(pl.DataFrame(schema={**texts, TIME: pl.Datetime("us", "UTC")}), log)

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> PastAlerts:
        """Add the events of verdicts, of incidents that are not there."""
        known = set(self.events[INCIDENT_ID].to_list())
        parts = [_read_rows(each) for each in verdicts if each.rows and each.incident not in known]
        return replace(self, events=pl.concat([self.events, *parts], how="diagonal"))

    @property
    def thresholds(self) -> Mapping[str | None, float]:
        """The lowest risk of an alert, by user."""
        if RISK not in self.events.columns:
            return {}
        known = self.events.filter(pl.col(RISK).is_not_null())
        lowest = known.group_by(POPULATION_USER).agg(pl.col(RISK).min())
        return dict(lowest.iter_rows())

    def drop_followers(self) -> pl.DataFrame:
        """Leave out events that are alerts only because of the events before them.

        An incident keeps all its events if it has no other.
        """
        if not {OWN, RISK} <= set(self.events.columns):
            return self.events
        lowest = pl.col(RISK).min().over(POPULATION_USER)
        causes = (pl.col(OWN) >= lowest).fill_null(value=True)
        return self.events.filter(causes | ~causes.any().over(INCIDENT_ID))


def _read_rows(verdict: Verdict) -> pl.DataFrame:
    """Return the events of a verdict as past alerts."""
    names = dict.fromkeys(name for row in verdict.rows for name in row.values)
    columns = [
        pl.Series(name, [row.values.get(name) for row in verdict.rows], pl.String) for name in names
    ]
    times = [datetime.fromtimestamp(row.at, UTC) for row in verdict.rows]
    return pl.DataFrame(
        [
            *columns,
            pl.Series(TIME, times, pl.Datetime("us", "UTC")),
            pl.Series(RISK, [row.risk for row in verdict.rows], pl.Float64),
            pl.Series(OWN, [row.own for row in verdict.rows], pl.Float64),
            pl.Series(EXPLAINED, [", ".join(row.explained) for row in verdict.rows], pl.String),
        ]
    ).with_columns(
        pl.lit(verdict.user, pl.String).alias(POPULATION_USER),
        pl.lit(verdict.incident).alias(INCIDENT_ID),
    )


class Dimension(NamedTuple):
    """A column that a suppression can have a condition on.

    Attributes:
        kind: Word of the condition: `where`, `network` or `family`.
        column: The column.
    """

    kind: str
    column: str

    def generalise(self, text: str) -> str:
        """Return the value that a condition has for a value of an event."""
        widen = _WIDENED.get(self.kind)
        return widen(text) if widen and text else text

    def read(self, events: pl.DataFrame) -> pl.Series:
        """Return the values of a condition for some events, (rows,)."""
        if self.column not in events.columns:
            return pl.Series([MISSING], dtype=pl.String).new_from_index(0, events.height)
        texts = events[self.column].fill_null(MISSING)
        distinct = texts.unique().to_list()
        return texts.replace_strict(distinct, [self.generalise(text) for text in distinct])


_WIDENED: Mapping[str, Callable[[str], str]] = {
    "network": find_network,
    "family": find_agent_family,
}
MAX_DIMENSIONS = 9
"""Maximum number of columns from which those of a suppression are chosen."""


class DimensionFinder(msgspec.Struct, frozen=True):
    """Finds the columns that suppressions can have conditions on.

    Attributes:
        log: Description of the log.
        events: Past alerts, by which columns are measured.
    """

    log: LogDescription
    events: pl.DataFrame

    def find(self, events: pl.DataFrame, user: str) -> list[Dimension]:
        """Return the columns that tell about some events of a user, the most useful first.

        Volatile columns are left out, except those of an action, a source or an agent. That there
        is no value tells only in columns of which other events have one.
        """
        known = [name for each in CONDITION_FIELDS for name in self._list_filled(each)[:1]]
        names = dict.fromkeys([*known, *_list_explained(events)])
        chosen = [
            self._make(name)
            for name in names
            if name in events.columns and name not in self.log.volatile_columns
        ]
        useful = [
            each for each in chosen if each.column in known or (each.read(events) != MISSING).any()
        ]
        return [
            each for each in useful if each.column in known or not self.is_volatile(each, user)
        ][:MAX_DIMENSIONS]

    def _list_filled(self, field_name: str) -> list[str]:
        """Return the columns of a field of the log that have a value, the best one first."""
        names = getattr(self.log.event_fields, field_name)
        return [
            name
            for name in names
            if name in self.events.columns and self.events[name].null_count() < self.events.height
        ]

    def first(self, field_name: str, dimensions: Sequence[Dimension]) -> Dimension | None:
        """Return the dimension of a field of the log; None if there is none."""
        names = getattr(self.log.event_fields, field_name)
        return next((each for each in dimensions if each.column in names), None)

    def _make(self, column: str) -> Dimension:
        fields = self.log.event_fields
        if column in fields.source_address:
            return Dimension("network", column)
        return Dimension("family" if column in fields.user_agent else "where", column)

    def is_volatile(self, dimension: Dimension, user: str) -> bool:
        """Return whether most incidents with a value in the column have none of another incident.

        The user's own past incidents tell; if they are too few, those of all users.
        """
        if dimension.column not in self.events.columns:
            return False
        pairs = self.events.select(
            POPULATION_USER, INCIDENT_ID, dimension.read(self.events).alias("value")
        )
        pairs = pairs.filter(pl.col("value") != MISSING).unique()
        repeated = pl.len().over(POPULATION_USER, "value") > 1
        recurs = (
            pairs.with_columns(repeated.alias("repeated"))
            .group_by(POPULATION_USER, INCIDENT_ID)
            .agg(pl.col("repeated").any())
        )
        own = recurs.filter(pl.col(POPULATION_USER) == user)
        measured = own if own.height >= MIN_DAYS_TO_MEASURE else recurs
        if measured.height < MIN_DAYS_TO_MEASURE:
            return False
        return float(measured["repeated"].mean()) < MIN_RECURRENCE  # type: ignore[arg-type]  # a mean of booleans


def _list_explained(events: pl.DataFrame) -> list[str]:
    """Return the columns that explain some events, the most frequent first."""
    if EXPLAINED not in events.columns:
        return []
    texts = events[EXPLAINED].drop_nulls().to_list()
    counts = Counter(name for text in texts for name in _split_explained(text))
    return sorted(counts, key=lambda name: (-counts[name], name))


def _split_explained(text: str) -> list[str]:
    names = (name.removeprefix(NOVELTY_PREFIX) for name in text.split(", "))
    return [name for name in names if name and not name.startswith(PREVIOUS_PREFIX)]


# The search for a suppression.

MIN_SHARE, MIN_NAMED_SHARE = 0.9, 0.8
"""Share of what a wider proposal hides, from which a narrower one is made; and from which one is
made that names actions."""
Choice = tuple[Dimension, ...]
"""Dimensions on which one suppression has conditions."""
Cover = tuple[Choice, ...]
"""Dimensions of one suppression, or of several that hide incidents together."""


class _Sample(msgspec.Struct, frozen=True):
    """Events, and which conditions they meet.

    Attributes:
        incidents: Incident of each event, (rows,).
        masks: Which events meet the condition of each dimension, (rows,).
    """

    incidents: Sequence[str]
    masks: Mapping[Dimension, Mask]

    @classmethod
    def from_events(
        cls, events: pl.DataFrame, known: Mapping[Dimension, Collection[str]]
    ) -> _Sample:
        """Compare the values of some events with those of conditions."""
        masks = {
            each: each.read(events).is_in(list(values)).to_numpy() for each, values in known.items()
        }
        return cls(events[INCIDENT_ID].to_list(), masks)

    @classmethod
    def concat(cls, samples: Sequence[_Sample]) -> _Sample:
        """Join samples with the same dimensions, at least one."""
        incidents = [incident for sample in samples for incident in sample.incidents]
        masks = {
            each: np.concatenate([sample.masks[each] for sample in samples])
            for each in samples[0].masks
        }
        return cls(incidents, masks)

    def match(self, cover: Cover) -> Mask:
        """Return which events meet all conditions of one of the suppressions, (rows,)."""
        matches = (reduce(and_, (self.masks[each] for each in choice)) for choice in cover)
        return reduce(or_, matches)

    def list_touched(self, cover: Cover) -> list[str]:
        """Return the incidents of which an event matches."""
        pairs = zip(self.incidents, self.match(cover).tolist(), strict=True)
        return list(dict.fromkeys(incident for incident, found in pairs if found))

    def list_whole(self, cover: Cover) -> list[str]:
        """Return the incidents of which all events match."""
        pairs = zip(self.incidents, self.match(cover).tolist(), strict=True)
        left = {incident for incident, found in pairs if not found}
        return [each for each in dict.fromkeys(self.incidents) if each not in left]


class RuleSearch(msgspec.Struct, frozen=True, dict=True):
    """Finds the narrowest suppressions that hide some harmless events and their like.

    A suppression has conditions on some of the dimensions, each with the values of the harmless
    events. Left-out incidents tell how many others it would hide: for each incident, conditions are
    made of the other incidents. Incidents without a verdict count, too, if they are like the
    harmless ones; see `find_alike`.

    Attributes:
        dimensions: Dimensions to choose from.
        required: Those that every suppression has.
        volatile: Those that are only used to hide less.
        action: The action; None if the log has none.
        harmless: Harmless events, of one user; with `INCIDENT_ID`.
        alike: Events of incidents without a verdict that are like the harmless ones.
        dangerous: Events that no suppression may hide.
        attacks: Events of replayed attacks that are found, with `INCIDENT_ID`. Suppressions may not
            hide all events of one.
    """

    dimensions: Sequence[Dimension]
    required: Sequence[Dimension]
    volatile: Sequence[Dimension]
    action: Dimension | None
    harmless: pl.DataFrame
    alike: pl.DataFrame
    dangerous: pl.DataFrame
    attacks: pl.DataFrame

    def find(self) -> Cover | None:
        """Return the dimensions of the suppressions; None if all hide too much.

        They are the narrowest of those that hide most of what is like the harmless events.
        """
        allowed = [cover for cover in self._list_covers() if self.is_allowed(cover)]
        stable = [c for c in allowed if not {each for one in c for each in one} & {*self.volatile}]
        hidden = {cover: len(self._trials.list_whole(cover)) for cover in stable or allowed}
        if not hidden:
            return None
        named = [cover for cover in hidden if all(self.action in choice for choice in cover)]
        most = max((hidden[cover] for cover in named), default=-1)
        covers = named if most >= MIN_NAMED_SHARE * max(hidden.values()) else [*hidden]
        enough = MIN_SHARE * max(hidden[cover] for cover in covers)
        covers = [cover for cover in covers if hidden[cover] >= enough]
        return max(covers, key=lambda each: (min(map(len, each)), hidden[each], -len(each)))

    def _list_covers(self) -> Iterator[Cover]:
        """Yield single suppressions, and pairs of which each has one more condition."""
        optional = [each for each in self.dimensions if each not in self.required]
        for size in range(len(optional), -1, -1):
            for chosen in combinations(optional, size):
                choice = (*self.required, *chosen)
                if self.has_value(choice):
                    yield (choice,)
                    others = (x for x in optional if x not in choice and x != self.action)
                    for one, other in combinations(others, 2):
                        yield (*choice, one), (*choice, other)

    def has_value(self, choice: Iterable[Dimension]) -> bool:
        """Return whether a condition has a value, so that not almost all events meet it."""
        return any(self._known[each] - {MISSING} for each in choice)

    def values(self, choice: Choice) -> dict[Dimension, tuple[str, ...]]:
        """Return the values of the conditions, sorted."""
        return {each: tuple(sorted(self._known[each])) for each in choice}

    def list_dangerous(self, cover: Cover) -> list[str]:
        """Return the incidents of which suppressions would hide an event they may not hide."""
        return self._dangerous.list_touched(cover)

    def list_attacks(self, cover: Cover) -> list[str]:
        """Return the attacks of which suppressions would hide all events."""
        return self._attacks.list_whole(cover)

    def is_allowed(self, cover: Cover) -> bool:
        """Return whether suppressions hide nothing that they may not hide."""
        return not (self.list_dangerous(cover) or self.list_attacks(cover))

    @cached_property
    def _known(self) -> Mapping[Dimension, frozenset[str]]:
        return {each: frozenset(each.read(self.harmless)) for each in self.dimensions}

    @cached_property
    def _dangerous(self) -> _Sample:
        return _Sample.from_events(self.dangerous, self._known)

    @cached_property
    def _attacks(self) -> _Sample:
        return _Sample.from_events(self.attacks, self._known)

    @cached_property
    def _trials(self) -> _Sample:
        """Incidents that tell what conditions made of others hide."""
        samples = [_Sample.from_events(self.alike, self._known)]
        incidents = self.harmless[INCIDENT_ID].unique(maintain_order=True)
        for left_out in incidents if len(incidents) > 1 else []:
            others = self.harmless.filter(pl.col(INCIDENT_ID) != left_out)
            known = {each: frozenset(each.read(others)) for each in self.dimensions}
            events = self.harmless.filter(pl.col(INCIDENT_ID) == left_out)
            samples.append(_Sample.from_events(events, known))
        return _Sample.concat(samples)


def find_alike(
    events: pl.DataFrame, harmless: pl.DataFrame, dimensions: Sequence[Dimension]
) -> pl.DataFrame:
    """Return the events of the incidents that are like some harmless ones.

    In such an incident, every event has the action of a harmless event, and is unusual in columns
    in which harmless events are.

    Args:
        events: Events without a verdict.
        harmless: Harmless events.
        dimensions: What an action is: service, action and error.
    """
    same = np.ones(events.height, dtype=np.bool_)
    if dimensions:
        known, found = (
            list(zip(*(each.read(part).to_list() for each in dimensions), strict=True))
            for part in (harmless, events)
        )
        kinds = set(known)
        same = np.array([kind in kinds for kind in found], dtype=np.bool_)
    if EXPLAINED in events.columns:
        explained = set(_list_explained(harmless))
        texts = events[EXPLAINED].fill_null("").to_list()
        same &= np.array([explained.issuperset(_split_explained(text)) for text in texts], np.bool_)
    return events.filter(pl.col(INCIDENT_ID).is_in(_list_whole(events, same)))


def _list_whole(events: pl.DataFrame, matches: Mask) -> list[str]:
    """Return the incidents of which all events match, in the order of the events."""
    marked = events.select(INCIDENT_ID, pl.Series("match", matches, pl.Boolean))
    whole = marked.group_by(INCIDENT_ID, maintain_order=True).agg(pl.col("match").all())
    return whole.filter("match")[INCIDENT_ID].to_list()


# Proposals.


class Proposal(msgspec.Struct, frozen=True):
    """A proposed suppression.

    Attributes:
        rule: The suppression.
        verdicts: The verdicts that it comes from.
        conflicts: Why it must be rejected; empty if it need not be.
        warnings: What a person should check before using it.
    """

    rule: Suppression
    verdicts: tuple[Verdict, ...]
    conflicts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def add_objections(self, conflicts: Sequence[str], warnings: Sequence[str]) -> Proposal:
        """Add conflicts and warnings. What it would hide is not among what it may hide."""
        conflicts = [*self.conflicts, *conflicts]
        certain = {each.replace(_WOULD_HIDE, _MAY_HIDE, 1) for each in conflicts}
        kept = [each for each in (*self.warnings, *warnings) if each not in certain]
        return replace(
            self, conflicts=tuple(dict.fromkeys(conflicts)), warnings=tuple(dict.fromkeys(kept))
        )


_WOULD_HIDE, _MAY_HIDE = "it would hide", "it may hide"


class Proposals(msgspec.Struct, frozen=True):
    """The suppressions proposed from verdicts.

    Attributes:
        proposals: The suppressions, in the order of the verdicts.
        dangerous: Verdicts `suspicious` and `malicious`.
        unactionable: Harmless incidents without a user, or without a value to match.
        accepted: Harmless incidents whose events are for training, and which are not hidden.
        exported_at: When the latest file was exported.
    """

    proposals: tuple[Proposal, ...]
    dangerous: tuple[Verdict, ...]
    unactionable: tuple[Verdict, ...]
    accepted: tuple[Verdict, ...]
    exported_at: datetime

    @property
    def rules(self) -> Suppressions:
        """The suppressions that are not rejected."""
        return Suppressions(tuple(each.rule for each in self.proposals if not each.conflicts))

    def with_objections(
        self, objections: Sequence[tuple[Sequence[str], Sequence[str]]]
    ) -> Proposals:
        """Add conflicts and warnings to the proposals, a pair for each proposal."""
        proposals = tuple(
            proposal.add_objections(conflicts, warnings)
            for proposal, (conflicts, warnings) in zip(self.proposals, objections, strict=True)
        )
        return replace(self, proposals=proposals)


class ProposalMaker(msgspec.Struct, frozen=True, dict=True):
    """Makes suppressions from verdicts.

    Attributes:
        verdicts: The verdicts.
        days: Days from the export to the end of the suppressions.
        past: Past alerts.
        attacks: Events of replayed attacks that are found: columns of the log as text,
            `POPULATION_USER`, and the attack in `INCIDENT_ID`.
    """

    verdicts: Verdicts
    days: int
    past: PastAlerts
    attacks: pl.DataFrame | None = None

    def make(self) -> Proposals:
        """Return one suppression for all verdicts that it covers."""
        benign, dangerous = self.verdicts.benign, self.verdicts.dangerous
        asked = [verdict for verdict in benign if verdict.tuning is not None and verdict.user]
        proposals = [self._follow(verdict) for verdict in asked]
        by_user: dict[str, list[Verdict]] = {}
        for verdict in benign:
            if verdict.user and verdict.tuning is None:
                by_user.setdefault(verdict.user, []).append(verdict)
        for user, verdicts in by_user.items():
            proposals += self._propose_for_user(user, verdicts)
        merged = [_check_values(each, dangerous) for each in _merge_users(proposals)]
        used = {verdict.incident for each in merged for verdict in each.verdicts}
        unused = tuple(verdict for verdict in benign if verdict.incident not in used)
        accepted, exported = self.verdicts.accepted, self.verdicts.exported_at
        return Proposals(tuple(merged), dangerous, unused, accepted, exported)

    def _find_end(self, until: date | None) -> datetime:
        last = until or self.verdicts.exported_at.date() + timedelta(days=self.days)
        return datetime.combine(last, time.min, tzinfo=UTC)

    def _follow(self, verdict: Verdict) -> Proposal:
        """Return the suppression that a person has asked for."""
        tuning, user = verdict.tuning or Tuning("mute"), verdict.user or ""
        hours = WeeklyHours(tuning.hours, tuning.timezone) if tuning.action == "hours" else None
        rule = Suppression(
            {},
            (user,),
            self._find_end(tuning.until),
            _join_reasons([verdict]),
            hours=hours,
            mutes=hours is None,
        )
        return Proposal(rule, (verdict,))

    def _propose_for_user(self, user: str, verdicts: Sequence[Verdict]) -> list[Proposal]:
        harmless = self._collect_events(verdicts)
        finder = DimensionFinder(self.past.log, self._causes if self._causes.height else harmless)
        dimensions = finder.find(harmless, user)
        service = finder.first("service", dimensions)
        groups = [harmless]
        if service is not None:
            groups = harmless.with_columns(service.read(harmless).alias(_SERVICE)).partition_by(
                _SERVICE, maintain_order=True, include_key=False
            )
        kinds = [finder.first(each, dimensions) for each in ("service", "action", "error_code")]
        alike = find_alike(
            self._find_unjudged(user), harmless, [each for each in kinds if each is not None]
        )
        searches = [self._prepare_search(user, group, alike, finder) for group in groups]
        found = [(each, each.find()) for each in searches if each.has_value(each.dimensions)]
        return [
            self._to_proposal(user, search, cover, choice, verdicts)
            for search, cover in _merge_searches(found)
            for choice in cover or (tuple(search.dimensions),)
        ]

    @cached_property
    def _causes(self) -> pl.DataFrame:
        return self.past.add_verdicts(self.verdicts.verdicts).drop_followers()

    def _collect_events(self, verdicts: Sequence[Verdict]) -> pl.DataFrame:
        """Return the events of some incidents; if they are not known, what the verdicts have."""
        parts = []
        for verdict in verdicts:
            events = self._causes.filter(verdict.covers(self._causes))
            events = events if events.height else _to_rows(verdict)
            parts.append(events.with_columns(pl.lit(verdict.incident).alias(INCIDENT_ID)))
        return pl.concat(parts, how="diagonal")

    def _prepare_search(
        self, user: str, harmless: pl.DataFrame, alike: pl.DataFrame, finder: DimensionFinder
    ) -> RuleSearch:
        """Prepare the search for a suppression of some events of a user and one service."""
        dimensions = finder.find(harmless, user)
        service, action = (finder.first(name, dimensions) for name in ("service", "action"))
        required = [each for each in (service or action,) if each is not None]
        attacks = pl.DataFrame(schema={INCIDENT_ID: pl.String})
        if self.attacks is not None:
            attacks = self.attacks.filter(pl.col(POPULATION_USER) == user)
        if service is not None:
            alike = alike.filter(service.read(alike).is_in(list(set(service.read(harmless)))))
        dangerous = self._find_dangerous(user)
        volatile = [
            each for each in dimensions if each not in required and finder.is_volatile(each, user)
        ]
        return RuleSearch(
            dimensions, required, volatile, action, harmless, alike, dangerous, attacks
        )

    def _find_dangerous(self, user: str) -> pl.DataFrame:
        past = self.past.add_verdicts(self.verdicts.verdicts).events
        events = past.filter(pl.col(POPULATION_USER) == user)
        parts = [
            events.filter(verdict.covers(events)).with_columns(
                pl.lit(verdict.incident).alias(INCIDENT_ID)
            )
            for verdict in self.verdicts.dangerous
        ]
        return pl.concat([events.clear(), *parts])

    def _find_unjudged(self, user: str) -> pl.DataFrame:
        events = self._causes.filter(pl.col(POPULATION_USER) == user)
        judged = [verdict.covers(events) for verdict in self.verdicts.verdicts]
        return events.filter(~reduce(or_, judged)) if judged else events

    def _to_proposal(
        self,
        user: str,
        search: RuleSearch,
        cover: Cover | None,
        choice: Choice,
        verdicts: Sequence[Verdict],
    ) -> Proposal:
        """Return a suppression with conditions on the chosen dimensions.

        Args:
            user: The user.
            search: The search that has found it.
            cover: The suppressions that belong together; None if this one must be rejected.
            choice: The dimensions of this one.
            verdicts: The verdicts on incidents of the user.
        """
        incidents = set(search.harmless[INCIDENT_ID])
        used = tuple(verdict for verdict in verdicts if verdict.incident in incidents)
        by_kind: dict[str, dict[str, tuple[str, ...]]] = {}
        for dimension, values in search.values(choice).items():
            by_kind.setdefault(dimension.kind, {})[dimension.column] = values
        rule = Suppression(
            by_kind.get("where", {}),
            (user,),
            self._find_end(None),
            _join_reasons(used),
            networks=by_kind.get("network", {}),
            families=by_kind.get("family", {}),
        )
        judged = {verdict.incident: verdict.verdict for verdict in self.verdicts.dangerous}
        conflicts = [
            f"it would hide incident {incident}, judged {judged[incident]}"
            for incident in ([] if cover else search.list_dangerous((choice,)))
        ]
        if not cover and (attacks := search.list_attacks((choice,))):
            conflicts.append(describe_attacks(attacks))
        return Proposal(rule, used, tuple(conflicts))


_SERVICE = "_service_"
"""Temporary column of the service."""
MAX_ATTACKS_SHOWN = 3
"""Maximum number of attacks that a warning names."""


def describe_attacks(attacks: Sequence[str]) -> str:
    """Return that a suppression would hide some attacks.

    >>> describe_attacks(["stop-trail (agent)"])
    'it would hide replayed attacks: stop-trail (agent)'
    """
    more = len(attacks) - MAX_ATTACKS_SHOWN
    rest = f" and {more:,} more" if more > 0 else ""
    return f"it would hide replayed attacks: {', '.join(attacks[:MAX_ATTACKS_SHOWN])}{rest}"


def _to_rows(verdict: Verdict) -> pl.DataFrame:
    """Return events with the values of a verdict: as many as a column has values."""
    values = verdict.values
    height = max(map(len, values.values()), default=0)
    rows = {
        column: [found[min(place, len(found) - 1)] for place in range(height)]
        for column, found in values.items()
    }
    frame = pl.DataFrame(rows, schema_overrides=dict.fromkeys(rows, pl.String))
    explained = pl.lit(", ".join(values), pl.String).alias(EXPLAINED)
    return frame.with_columns(pl.lit(verdict.user, pl.String).alias(POPULATION_USER), explained)


def _merge_searches(
    found: Iterable[tuple[RuleSearch, Cover | None]],
) -> Iterator[tuple[RuleSearch, Cover | None]]:
    """Join the suppressions with conditions on the same columns, if that hides nothing else."""
    by_cover: dict[Cover | None, list[RuleSearch]] = {}
    for search, cover in found:
        by_cover.setdefault(cover, []).append(search)
    for cover, searches in by_cover.items():
        if cover is not None and len(searches) > 1:
            dimensions = tuple(dict.fromkeys(each for choice in cover for each in choice))
            events = pl.concat([each.harmless for each in searches], how="diagonal")
            joined = replace(searches[0], dimensions=dimensions, harmless=events)
            if joined.is_allowed(cover):
                yield joined, cover
                continue
        yield from ((search, cover) for search in searches)


def _merge_users(proposals: Iterable[Proposal]) -> Iterator[Proposal]:
    """Join the suppressions of several users with the same conditions."""
    groups: dict[tuple[object, ...], list[Proposal]] = {}
    for each in proposals:
        rule = each.rule
        conditions = frozenset(rule.conditions)
        key = (conditions, rule.until, rule.hours, rule.mutes, each.conflicts)
        groups.setdefault(key, []).append(each)
    for group in groups.values():
        verdicts = tuple(verdict for each in group for verdict in each.verdicts)
        users = tuple(dict.fromkeys(user for each in group for user in each.rule.users))
        rule = replace(group[0].rule, users=users, reason=_join_reasons(verdicts))
        yield replace(group[0], rule=rule, verdicts=verdicts)


def _join_reasons(verdicts: Iterable[Verdict]) -> str:
    notes = ((verdict.verdict, verdict.note.strip()) for verdict in verdicts)
    return "; ".join(dict.fromkeys(f"{name}: {note}" if note else name for name, note in notes))


def _check_values(proposal: Proposal, dangerous: Sequence[Verdict]) -> Proposal:
    """Add the dangerous incidents that the proposal would hide, or may hide, by their values."""
    conflicts, warnings = list[str](), list[str]()
    for verdict in dangerous:
        applies = verdict.user in proposal.rule.all_spellings
        matching = applies and proposal.rule.matches_values(verdict.values)
        incident = f"incident {verdict.incident}, judged {verdict.verdict}"
        if matching:
            conflicts.append(f"{_WOULD_HIDE} {incident}")
        elif matching is None:
            warnings.append(f"{_MAY_HIDE} {incident}")
    return proposal.add_objections(conflicts, warnings)


MIN_UNIQUE_FOR_ID = 5
"""Minimum number of values, all different, for a column to count as an id."""


class SuppressionPreview(msgspec.Struct, frozen=True):
    """The past alerts that a suppression would have suppressed.

    Attributes:
        events: The events, with the columns of `past_alerts` in `preview_rule`.
        dangerous: Verdicts `suspicious` and `malicious` with events among them.
        id_columns: Columns of the suppression in which no two past alerts have the same value.
        hidden: Incidents that it would have hidden, with the other suppressions.
        unjudged: Those of them without a verdict.
        partly: Incidents of which it would have hidden some events only.
    """

    events: pl.DataFrame
    dangerous: tuple[Verdict, ...]
    id_columns: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()


def preview_rule(
    rule: Suppression,
    past_alerts: pl.DataFrame,
    benign: Sequence[Verdict] = (),
    dangerous: Sequence[Verdict] = (),
    hidden: Collection[str] = (),
) -> SuppressionPreview:
    """Return what a suppression would have suppressed of past alerts.

    Args:
        rule: The suppression.
        past_alerts: Events of past alerts: columns as text, `POPULATION_USER`, `INCIDENT_ID`, and
            `TIME` as a datetime.
        benign: Verdicts that do not prevent it.
        dangerous: Verdicts that prevent it.
        hidden: Incidents that all suppressions together hide; see `list_hidden`.
    """
    in_scope = _find_in_scope(rule, past_alerts)
    events = past_alerts.filter(in_scope)
    covered = [verdict.covers(events) for verdict in (*benign, *dangerous)]
    others = events.filter(~reduce(or_, covered)) if covered else events
    found = tuple(verdict for verdict in dangerous if verdict.covers(events).any())
    ids = tuple(each for each in rule.where if _is_id_column(each, past_alerts))
    incidents = events[INCIDENT_ID].unique(maintain_order=True).to_list()
    whole = tuple(incident for incident in incidents if incident in hidden)
    partly = tuple(incident for incident in incidents if incident not in hidden)
    without = set(others[INCIDENT_ID].to_list())
    unjudged = tuple(incident for incident in whole if incident in without)
    return SuppressionPreview(events, found, ids, whole, unjudged, partly)


def _find_in_scope(rule: Suppression, events: pl.DataFrame) -> Mask:
    """Return which events of any user a suppression hides, (rows,)."""
    names = pl.Series(list(rule.all_spellings), dtype=pl.String)
    applies = events[POPULATION_USER].is_in(names).fill_null(value=False).to_numpy()
    applies |= rule.find_scope(None, events)
    in_time = (events[TIME] < rule.until).to_numpy()
    return np.asarray(applies & in_time & rule.matches(events))


def list_hidden(rules: Sequence[Suppression], past: PastAlerts) -> frozenset[str]:
    """Return the incidents that suppressions hide together.

    These are the incidents of which they hide all events but those that are unusual only after
    the others.
    """
    causes = past.drop_followers()
    matches = np.zeros(causes.height, dtype=np.bool_)
    for rule in rules:
        matches |= _find_in_scope(rule, causes)
    return frozenset(_list_whole(causes, matches))


def _is_id_column(column: str, past_alerts: pl.DataFrame) -> bool:
    values = past_alerts.get_column(column, default=pl.Series([], dtype=pl.String)).drop_nulls()
    return len(values) >= MIN_UNIQUE_FOR_ID and values.is_unique().all()


FILE_HEADER = """\
# Suppressions for `filter --suppressions`.
# Created by `morpheus tools suppress` from {verdicts}, exported {made}.
#
# Review each before you use it. An event is suppressed if its user is one of `users`, its time is
# before `until` (UTC, the day itself excluded), and it meets every condition: `where` (values, ""
# is no value), `network`, `family` (a product, in any version), `hours`. If you remove a condition,
# the suppression hides more; if you add one, it hides less. The summary of each run counts the
# events by suppression.
format = "{format}"
version = {version}
"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_NOTE_LENGTH = 120
"""Maximum number of characters of a note or a name in a comment."""


def render_suppressions(proposals: Proposals, files: Sequence[str]) -> str:
    """Return the text of the file.

    Args:
        proposals: The proposals. Those with conflicts become comments.
        files: The files that the verdicts were read from.
    """
    header = FILE_HEADER.format(
        verdicts=", ".join(quote_backtick(file) for file in files),
        made=_format_time(proposals.exported_at),
        format=SUPPRESSIONS_FORMAT,
        version=SUPPRESSIONS_VERSION,
    )
    parts = ["\n".join(_render_lines(proposal)) + "\n" for proposal in proposals.proposals]
    others = [
        f"# No suppression: {_describe_verdict(verdict)}; it has no user, or no value by which "
        "others like it could be found.\n"
        for verdict in proposals.unactionable
    ]
    others += [
        f"# No suppression: {_describe_verdict(verdict)}; its events are for training.\n"
        for verdict in proposals.accepted
    ]
    return "\n".join([header, *parts, *(["".join(others)] if others else [])])


def toml_string(value: str) -> str:
    r"""Return a basic string of TOML. Characters that are not printable become escapes.

    >>> print(toml_string('say "hi"\n\u202e'))
    "say \"hi\"\u000a\u202e"
    """
    return '"' + "".join(map(_escape_char, value)) + '"'


def _escape_char(char: str) -> str:
    if char in {'"', "\\"}:
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _render_lines(proposal: Proposal) -> Iterator[str]:
    rule = proposal.rule
    for verdict in proposal.verdicts:
        yield f"# {_describe_verdict(verdict)}"
    for warning in proposal.warnings:
        yield f"# Check: {escape_control(warning)}"
    for conflict in proposal.conflicts:
        yield f"# Rejected: {escape_control(conflict)}"
    prefix = "# " if proposal.conflicts else ""
    yield f"{prefix}[[suppression]]"
    for condition in rule.conditions:
        column = condition.column
        key = column if _BARE_KEY.fullmatch(column) else toml_string(column)
        yield f"{prefix}{condition.name}.{key} = {_toml_values(condition.values)}"
    if rule.hours is not None:
        yield f"{prefix}hours = {_toml_values(rule.hours.spans)}"
        yield f"{prefix}timezone = {toml_string(rule.hours.timezone)}"
    if rule.mutes:
        yield f"{prefix}mute = true"
    yield f"{prefix}users = {_toml_list(rule.users)}"
    yield f"{prefix}until = {format_end(rule.until)}"
    yield f"{prefix}reason = {toml_string(rule.reason)}"


def _toml_values(values: Sequence[str]) -> str:
    return toml_string(values[0]) if len(values) == 1 else _toml_list(values)


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(toml_string, values)) + "]"


def _describe_verdict(verdict: Verdict) -> str:
    count = f"{verdict.events:,} event{'s' if verdict.events != 1 else ''}"
    span = f"{_format_time(verdict.start)} to {_format_time(verdict.end)}"
    note = f": {display_value(verdict.note, _MAX_NOTE_LENGTH)}" if verdict.note else ""
    user = display_value(verdict.user or "no user", _MAX_NOTE_LENGTH)
    return f"Incident {verdict.incident}, {count} of {user}, {span}, {verdict.verdict}{note}"


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
