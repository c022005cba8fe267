"""Checks that the events of a run fit the fingerprints that score them.

A source describes what it has read as an `InputProfile`. `InputCheck` compares it with the saved
fingerprints, or with the training events of the same run. `NewValues` counts the values that are
new to the fingerprints, once events are encoded.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import INDEX, POPULATION_USER, ROW, TIME
from morpheus.errors import UsageError
from morpheus.features.encoder import MISSING, UNKNOWN, EncodedRows, Number
from morpheus.models.profile import MIN_FILLED, Fingerprint, list_names
from morpheus.models.store import ModelStore
from morpheus.text import quote_backtick, suggest

logger = logging.getLogger(__name__)

MAX_MODEL_AGE = timedelta(days=60)
"""Maximum time between the end of a fingerprint's training data and the events, without a warning.
The production workflow of NVIDIA Morpheus trains on 60 days: older data would have left its window.
"""
MAX_HINTS = 3
"""Maximum number of suggestions in a warning."""
MIN_EVENTS_TO_CHECK = 10
"""Minimum number of events from which a missing feature is inferred."""
MIN_NEW_SHARE = 0.9
"""Minimum share of new values, from which a column has other values than in training."""
MAX_USUAL_NEW_SHARE = 0.5
"""Maximum share of new values in validation, for a column in which new values say something. Most
values of an identifier are new."""
MIN_USERS_WITH_NEW = 3
"""Minimum number of users with new values of a form that training values have. One user can use
another account or address all day; then the values are new, and the log is as it was."""
_RUN = re.compile(r"[A-Za-z]*[0-9]+[A-Za-z0-9]*|[A-Za-z]+")


class DatasetProfile(msgspec.Struct, frozen=True, dict=True):
    """What is in some events, once they are read.

    Attributes:
        users: One row per user: `user` (null for events without one), the times `first` and `last`,
            and `rows`, the number of events.
        num_events: Number of events.
        value_counts: Number of events with a value, by feature. A derived feature has a value if
            its inputs have.
    """

    users: pl.DataFrame
    num_events: int
    value_counts: Mapping[str, int]

    @cached_property
    def events_by_user(self) -> dict[str, int]:
        """Number of events of each user."""
        return dict(self.users.drop_nulls("user").select("user", "rows").iter_rows())

    @property
    def time_range(self) -> tuple[datetime, datetime] | None:
        """Time of the first and of the last event; None without events."""
        first, last = self.users["first"].min(), self.users["last"].max()
        return (first, last) if isinstance(first, datetime) and isinstance(last, datetime) else None

    def find_empty(self, features: Iterable[str]) -> list[str]:
        """Return the features without a value in any event."""
        return [name for name in features if not self.value_counts.get(name)]


class InputProfile(msgspec.Struct, frozen=True):
    """What is in the input and in the training events of a run.

    Attributes:
        events: The input; for a watched directory, the new files.
        training: The training events; None without training files.
        population: Sample of all users' histories, as `RunMetrics.population_sample`.
        log_features: The features that come from the log. Derived columns that only depend on the
            time, the user column, and features that other stages add are not among them.
        unknown_columns: Columns with a value that the log format does not know, for suggestions.
        in_memory: Whether the events are in a data frame.
        warns_empty: Whether to warn about every feature without a value.
    """

    events: DatasetProfile
    training: DatasetProfile | None = None
    population: pl.DataFrame | None = None
    log_features: tuple[str, ...] = ()
    unknown_columns: tuple[str, ...] = ()
    in_memory: bool = False
    warns_empty: bool = False


class ColumnNovelty(msgspec.Struct, frozen=True):
    """How many values of a column are new to the fingerprints.

    A user is one of a batch: in an endless run, users count once for each batch.

    Attributes:
        events: Number of events with a value.
        users: Number of users who have them.
        new_events: Number of those of users to whom nearly all values are new, though few values
            were new in validation.
        new_users: Number of these users.
        new_form_users: Number of those of them to whom also the form of a value is new.
        example: A new value; None if there are no such users.
        usual: The most frequent value in the training of its user; None for a number.
    """

    events: int
    users: int
    new_events: int = 0
    new_users: int = 0
    new_form_users: int = 0
    example: str | None = None
    usual: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether nearly all values are new, and are to most users, in form or to several."""
        return (
            self.events >= MIN_EVENTS_TO_CHECK
            and self.new_events >= MIN_NEW_SHARE * self.events
            and self.new_users >= self.users / 2
            and (self.new_users >= MIN_USERS_WITH_NEW or self.new_form_users == self.new_users)
        )

    def merge(self, other: ColumnNovelty) -> ColumnNovelty:
        """Return the sum."""
        named = self if self.new_users else other
        return ColumnNovelty(
            self.events + other.events,
            self.users + other.users,
            self.new_events + other.new_events,
            self.new_users + other.new_users,
            self.new_form_users + other.new_form_users,
            *(named.example, named.usual),
        )

    def describe(self, name: str) -> str:
        """Return the column with its example, in words."""
        usual = "a number" if self.usual is None else quote_backtick(self.usual)
        example = quote_backtick(self.example or "")
        return f"{quote_backtick(name)} ({example}; in training {usual})"


class NewValues(msgspec.Struct, frozen=True):
    """How many values are new to the fingerprints, by column.

    Logs that are exported in another form than those of the training have new values only.

    Attributes:
        events: Number of events with a fingerprint.
        columns: The columns with values.
    """

    events: int = 0
    columns: Mapping[str, ColumnNovelty] = msgspec.field(default_factory=dict)

    def merge(self, other: NewValues) -> NewValues:
        """Return the sum."""
        columns = dict(self.columns)
        for name, novelty in other.columns.items():
            columns[name] = columns[name].merge(novelty) if name in columns else novelty
        return NewValues(self.events + other.events, columns)

    def warn(self, features: Iterable[str]) -> None:
        """Warn about features in which nearly all values are new to most users.

        Args:
            features: The features that come from the log. The others can change with the time of
                the day, or with what stages compute.
        """
        wanted = set(features)
        found = [
            novelty.describe(name)
            for name, novelty in self.columns.items()
            if name in wanted and novelty.is_new
        ]
        if found:
            logger.warning(
                "preprocess: nearly all values of the input are new to their users, so that every "
                "event with a value looks unusual, in %s. Training and input must have values of "
                "the same form: check how the logs are exported. If behaviour has changed, train "
                "again.",
                ", ".join(found),
            )


def count_new_values(
    fingerprints: Sequence[Fingerprint],
    rows: Sequence[EncodedRows],
    read_value: Callable[[int, str, int], str | None],
) -> NewValues:
    """Count the values of some users, and those that are new to them.

    Args:
        fingerprints: Fingerprint of each user.
        rows: Events of each user, at least one.
        read_value: Returns the value of a user, by its position, in a column, in an event.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for user, fingerprint in enumerate(fingerprints):
        groups.setdefault(fingerprint.encoder.names, []).append(user)
    columns: dict[str, ColumnNovelty] = {}
    for names, users in groups.items():
        filled, new = _count_values([rows[user] for user in users])
        events, owners = filled.sum(0).tolist(), np.count_nonzero(filled, axis=0).tolist()
        found = {
            name: ColumnNovelty(*counts)
            for name, *counts in zip(names, events, owners, strict=True)
        }
        for i, c in np.argwhere((filled > 0) & (new >= MIN_NEW_SHARE * filled)).tolist():
            user, name = users[i], names[c]
            if not _has_usual_values(fingerprints[user], c):
                continue
            value = read_value(user, name, _find_first_new(rows[user], c)) or ""
            novelty = ColumnNovelty(
                *(0, 0, int(filled[i, c]), 1, _has_new_form(fingerprints[user], c, value)),
                *(value, _find_usual(fingerprints[user], c)),
            )
            found[name] = found[name].merge(novelty)
        columns |= {
            name: columns[name].merge(novelty) if name in columns else novelty
            for name, novelty in found.items()
            if novelty.events
        }
    return NewValues(sum(len(each.inverse) for each in rows), columns)


def _count_values(rows: Sequence[EncodedRows]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the events with a value, and with a new one, (users, columns)."""
    distinct = np.array([len(each.codes) for each in rows], dtype=np.intp)
    heights = [len(each.inverse) for each in rows]
    starts = distinct.cumsum() - distinct
    inverse = np.concatenate([each.inverse for each in rows]) + np.repeat(starts, heights)
    counts = np.bincount(inverse, minlength=int(distinct.sum()))[:, None]
    codes = np.concatenate([each.codes for each in rows])
    filled, new = (
        np.add.reduceat(chosen * counts, starts, axis=0)
        for chosen in (codes != MISSING, codes == UNKNOWN)
    )
    return filled, new


def _has_usual_values(fingerprint: Fingerprint, column: int) -> bool:
    """Return whether most validation events with a value had one that is known."""
    rates, usage = fingerprint.oov_rates, fingerprint.usage
    if rates is None or usage is None:
        return False
    missing = float(usage.counts[usage.offsets[column] + MISSING])
    share = 1 - missing / max(usage.events, 1)
    return bool(rates[column] <= MAX_USUAL_NEW_SHARE * share)


def _find_usual(fingerprint: Fingerprint, column: int) -> str | None:
    """Return the most frequent value of a column in training; None for numbers."""
    found = fingerprint.encoder.columns[column]
    return None if isinstance(found, Number) else next(iter(found.vocabulary), "")


def _has_new_form(fingerprint: Fingerprint, column: int, value: str) -> bool:
    """Return whether no value of the training looks like a value."""
    found = fingerprint.encoder.columns[column]
    if isinstance(found, Number):
        return True
    form = describe_form(value)
    return all(describe_form(known) != form for known in found.vocabulary)


def describe_form(value: str) -> str:
    """Describe what a text looks like: its letters by their case, and its digits.

    >>> describe_form("10.0.0.12") == describe_form("192.168.1.7")
    True
    >>> describe_form("ASIA9A13") == describe_form("ASIAC4DE")
    True
    >>> len({describe_form(each) for each in ("ann", "ANN", "['ann']", "Ann", "7")})
    5
    """
    return _RUN.sub(_describe_run, value)


def _describe_run(found: re.Match[str]) -> str:
    text = found[0]
    if text.isdigit():
        return "0"
    return "A" if text.isupper() else "a" if text.islower() else "Aa"


def _find_first_new(rows: EncodedRows, column: int) -> int:
    """Return the first event with a new value in a column."""
    return int((rows.codes[rows.inverse, column] == UNKNOWN).argmax())


class ModelAge(msgspec.Struct, frozen=True):
    """How old the fingerprints of a run are.

    Attributes:
        oldest: Time of the latest training event of the oldest fingerprint.
        newest: The same of the newest fingerprint.
        first_event: Time of the first event of the input.
    """

    oldest: datetime
    newest: datetime
    first_event: datetime

    @property
    def days(self) -> int:
        """Days between the end of the newest fingerprint and the first event; 0 if they overlap."""
        return max(0, (self.first_event - self.newest).days)


class InputCheck(msgspec.Struct, frozen=True):
    """Compares events with the fingerprints that score them, or with the training events.

    Attributes:
        profile: What was read.
        columns: The feature columns of the run.
        store: The fingerprints that are loaded; None for none.
        uses_training: Whether the training events are used.
    """

    profile: InputProfile
    columns: Sequence[str]
    store: ModelStore | None = None
    uses_training: bool = True

    def warn_unknown_users(self) -> None:
        """Warn if not one user of the input has a fingerprint, or training events."""
        users, known = self.profile.events.events_by_user, self._known_users()
        if not users or not known or not known.keys().isdisjoint(users):
            return
        where = "the training events" if self._training is not None else "the models"
        logger.warning(
            "train-ae: none of the %d users of the input is among the %d users of %s. The input "
            "has %s; there they are %s. Check --userid_column_name: users may be named by another "
            "column.",
            len(users),
            len(known),
            where,
            list_names(sorted(users)[:3]),
            list_names(sorted(known)[:3]),
        )

    def find_age(self) -> ModelAge | None:
        """Return how old the fingerprints of the input's users are, and warn if they are too old.

        Training events that are part of the run count only if they end a day or more before it.
        """
        events = self.profile.events.time_range
        first = dict(self.profile.events.users.select("user", "first").iter_rows())
        known = self._known_users()
        ends = {user: known[user] for user in first.keys() & known.keys() if known[user]}
        times = {user: _parse_time(text) for user, text in ends.items()}
        until = [_parse_time(text) for text in [self._trained_until] if text]
        if events is None or not (times or until):
            return None
        ends_of_all = [*times.values()] or until
        oldest, newest = min(ends_of_all), max(ends_of_all)
        age = ModelAge(oldest, newest, events[0])
        old = [user for user, end in times.items() if first[user] - end > MAX_MODEL_AGE]
        if old or (not times and events[0] - newest > MAX_MODEL_AGE):
            logger.warning(
                "train-ae: the training data of %s end more than %d days before the events; the "
                "oldest end on %s, %d days before. Behaviour changes: train on newer logs.",
                f"{len(old):,} of {len(times):,} users" if times else "the global model",
                MAX_MODEL_AGE.days,
                oldest.date(),
                (events[0] - oldest).days,
            )
        return age if self._training is None or age.days else None

    def check_features(self, *, fail: bool) -> list[str]:
        """Look for features that have values in the training events or in the input, but not both.

        Args:
            fail: Raise an error. Else warn.

        Returns:
            The features of a log without a value in any event, in words, for the summary.

        Raises:
            UsageError: There are such features.
        """
        notes = self._check_empty(fail=fail)
        lost, new = self._find_lost_features(), self._find_new_features()
        problems = []
        if lost:
            problems.append(
                f"no event of the input has a value in {list_names(lost)}, but nearly all training "
                "events of its users had one, so that every event would look unusual"
            )
        if new:
            problems.append(
                f"no training event had a value in {list_names(new)}, but most events of the input "
                "have one, so that every event would look new"
            )
        if not problems:
            return notes
        message = f"train-ae: {'; and '.join(problems)}. Training and input must have the same "
        message += f"columns: check how the logs are exported, or give {self._list} without them"
        if fail:
            raise UsageError(f"{message}. `{self._continue}` continues.")
        logger.warning("%s.", message)
        return notes

    def _check_empty(self, *, fail: bool) -> list[str]:
        """Name the features that have no value in any event of the input or of the training files.

        Raises:
            UsageError: All features of the log are among them, and `fail` is set.
        """
        features, training = self._log_features, self._training
        empty = self.profile.events.find_empty(features)
        notes = self._report_empty(empty, "event of the input", self.profile.events, fail=fail)
        if training is not None and training.num_events:
            names = training.find_empty(features)
            if names != empty or len(names) == len(features):
                notes += self._report_empty(names, "training event", training, fail=fail)
        return notes

    def _report_empty(
        self, names: Sequence[str], what: str, dataset: DatasetProfile, *, fail: bool
    ) -> list[str]:
        """Return features without a value; warn if all of them have none, or one may be a typo."""
        if not names:
            return []
        features = self._log_features
        filled = [name for name, count in dataset.value_counts.items() if count]
        others = [name for name in filled if name not in {*self.columns, ROW, INDEX, TIME}]
        if len(names) == len(features):
            message = (
                f"{self._list}: no {what} has a value in any of the {len(features)} features of "
                f"the log: {list_names(names)}. The events have {list_names(others) or 'no others'}"
                ". Is it another kind of log? Give a feature list with columns of these events"
            )
            if fail:
                raise UsageError(f"{message}. `{self._continue}` continues.")
            logger.warning("%s.", message)
            return []
        suggestions = {name: suggest(name, self.profile.unknown_columns) for name in names}
        hints = [f"{quote_backtick(name)}:{hint}" for name, hint in suggestions.items() if hint]
        found = f"no {what} has a value in {len(names)} of {len(features)} features"
        found += f": {list_names(names)}"
        # Most logs lack some features.
        if not hints and not self.profile.warns_empty:
            return [found]
        logger.warning("%s: %s.%s", self._list, found, "".join(f" {x}" for x in hints[:MAX_HINTS]))
        return []

    @property
    def _list(self) -> str:
        return "columns" if self.profile.in_memory else "--columns_file"

    @property
    def _continue(self) -> str:
        return "missing_features='warn'" if self.profile.in_memory else "--missing_features=warn"

    @property
    def _log_features(self) -> list[str]:
        """The features that come from the log, also those that a data frame lacks."""
        if self.store is None or self.store.inputs is None:
            return list(self.profile.log_features)
        from_log, present = set(self.profile.log_features), set(self.columns)
        return [name for name in self._learned_features if name in from_log or name not in present]

    @property
    def _training(self) -> DatasetProfile | None:
        return self.profile.training if self.uses_training else None

    @property
    def _trained_until(self) -> str:
        if self._training is not None and self._training.time_range is not None:
            return self._training.time_range[1].isoformat()
        return "" if self.store is None else self.store.trained_until

    def _known_users(self) -> dict[str, str]:
        """Return the end of each known user's training events, ISO 8601, by user."""
        users = self.profile.events.events_by_user
        known = {}
        if self.store is not None:
            cards = self.store.cards
            known = {user: cards[user].last if user in users else "" for user in cards}
        if self._training is not None:
            ends = self._training.users.drop_nulls("user").select("user", "last")
            known |= {user: last.isoformat() for user, last in ends.iter_rows()}
        return known

    def _find_lost_features(self) -> list[str]:
        """Return the features that the users' training events had, and no event of the input has.

        A single user can change, so half of the input's events must be of such users.
        """
        events, never = self.profile.events, self._untrained_features
        # A derived column can have a value without its inputs, such as a count of zero.
        empty = [name for name in events.find_empty(self._log_features) if name not in never]
        if not empty:
            return []
        filled = self._filled_by_user(empty)
        counts = Counter[str]()
        for user, number in events.events_by_user.items():
            for name in filled.get(user, filled.get("", ())):
                counts[name] += number
        least = max(MIN_EVENTS_TO_CHECK, sum(events.events_by_user.values()) / 2)
        return [name for name in empty if counts[name] >= least]

    def _find_new_features(self) -> list[str]:
        """Return the features that no training event had, and most events of the input have."""
        events, training = self.profile.events, self._training
        if training is not None and training.num_events < MIN_EVENTS_TO_CHECK:
            return []
        least = max(MIN_EVENTS_TO_CHECK, events.num_events / 2)
        counts = events.value_counts
        return [name for name in self._untrained_features if counts.get(name, 0) >= least]

    @property
    def _untrained_features(self) -> Sequence[str]:
        """The features without a value in any training event."""
        if self._training is not None:
            return self._training.find_empty(self._log_features)
        return () if self.store is None else self.store.empty_features

    @property
    def _learned_features(self) -> tuple[str, ...]:
        inputs = None if self.store is None else self.store.inputs
        return tuple(self.columns) if inputs is None else inputs.feature_names

    def _filled_by_user(self, names: Sequence[str]) -> dict[str, Sequence[str]]:
        """Return which features nearly all training events had, by user; "" is all other users."""
        filled: dict[str, Sequence[str]] = {}
        store = self.store
        if store is not None:
            users = self.profile.events.events_by_user.keys() & set(store.cards)
            cards = {user: store.cards[user] for user in users}
            shared = {} if store.global_card is None else {"": store.global_card}
            filled = {user: card.filled_columns for user, card in (cards | shared).items()}
        if self._training is not None and self.profile.population is not None:
            filled |= _filled_in_sample(self.profile.population, names)
        wanted = set(names)
        return {
            user: [name for name in columns if name in wanted] for user, columns in filled.items()
        }


def _filled_in_sample(sample: pl.DataFrame, names: Sequence[str]) -> dict[str, list[str]]:
    """Return which columns nearly all events of each user of a sample have; "" is all users."""
    present = [name for name in names if name in sample.columns]
    if not present or sample.is_empty():
        return {}
    shares = pl.col(present).is_not_null().mean()
    overall = sample.select(pl.lit("").alias(POPULATION_USER), shares)
    users = pl.concat([overall, sample.group_by(POPULATION_USER).agg(shares)])
    return {
        row[POPULATION_USER]: [name for name in present if row[name] >= MIN_FILLED]
        for row in users.iter_rows(named=True)
    }


def _parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
