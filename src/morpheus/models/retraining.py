"""Guarded retraining: what of a user's recent behaviour may be learned, and whether it helped.

`UserReview` compares a user's recent events with two fingerprints: the champion, which is in use,
and the anchor, which is older than anything that may have been slipped in since. `retrain` and
`update` make a candidate of what the review lets through. `compare` measures it beside the champion
on later days that neither has learned. docs/retraining.md says why.

Sizes in shapes: n events of a user in time order, G days, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np
import polars as pl
from msgspec import structs
from numpy.typing import NDArray

from morpheus.models.calibration import CalibrationSet
from morpheus.models.daily_usage import EventValues, UsageState
from morpheus.models.drift import (
    DRIFT_LIMIT,
    MAX_LEARNED_PVALUE,
    TRIMMED_SHARE,
    Rise,
    Selection,
    Shift,
    compute_pvalues,
    drift_martingale,
    find_rise,
    measure_column_shift,
    measure_score_shift,
    select_learnable,
)
from morpheus.models.profile import Fingerprint
from morpheus.models.scoring import (
    MaskedPredictions,
    PValues,
    Usage,
    number_days,
    number_sessions,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BASELINE_DAYS = 14
"""Number of days after the anchor's training that later days are compared with: each weekday is
there twice, and the anchor scores them as it scores all later days, without having learned them."""
MIN_RISE = 10.0
"""Minimum rise of the mean risk of a day, in tenths of nats: 2.7 times as likely of others."""
MAX_FOREIGN_DAYS = 20
"""Maximum number of other users' days that are scored as a user's own, to measure recall."""
MAX_LOST_FOREIGN = 2
"""Number of other users' days that a candidate may find less, for a single user."""
TOP_CAUSES = 3
"""Maximum number of columns that are named as the causes of a rise."""


class Guard(msgspec.Struct, frozen=True):
    """What protects the training.

    Attributes:
        threshold: P-value up to which an event is above the threshold, and is not learned.
        trim: Share of the remaining events since the last training, the strangest ones, that is
            not learned yet.
        freeze: Whether a sustained rise of a user's scores freezes the user.
        anchor: Whether the anchor's scores count, too.
    """

    threshold: float = MAX_LEARNED_PVALUE
    trim: float = TRIMMED_SHARE
    freeze: bool = True
    anchor: bool = True


class UserEvents(msgspec.Struct, frozen=True, dict=True):
    """A user's events, at least one, in time order.

    Attributes:
        user: The user.
        events: The feature columns.
        times: Time of each event, (n,).
        timezone: Time zone of days.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series
    timezone: str = "UTC"

    def __len__(self) -> int:
        return self.events.height

    @cached_property
    def days(self) -> IntArray:
        """Number of the day of each event since 1970, (n,)."""
        return number_days(self.times, self.timezone)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Position of the first event of each day, (G,)."""
        return np.flatnonzero(np.diff(self.days, prepend=-(1 << 31)))

    def take(self, chosen: BoolArray) -> UserEvents:
        """Return some of the events."""
        kept = pl.Series(chosen)
        return structs.replace(self, events=self.events.filter(kept), times=self.times.filter(kept))

    def find_after(self, day: int) -> BoolArray:
        """Return which events are of later days than a day, (n,)."""
        return np.asarray(self.days > day)


def last_day(fingerprint: Fingerprint, timezone: str) -> int:
    """Return the number of the last day that a fingerprint has learned; -1 if it is not known."""
    text = fingerprint.card.last
    if not text:
        return -1
    time = pl.Series([text]).str.to_datetime(time_unit="us", time_zone="UTC")
    return int(number_days(time, timezone)[0])


def score_by_history(fingerprint: Fingerprint, given: UserEvents) -> FloatArray:
    """Return the risk of each event by what the fingerprint has learned alone, (n,).

    Earlier events do not count, so it does not get used to anything.
    """
    rows = fingerprint.encoder.encode(given.events)
    return np.asarray(fingerprint.column_risks(rows).sum(1)[rows.inverse])


class DayScores(msgspec.Struct, frozen=True):
    """Scores by the days before each event, as `add-scores` computes them.

    Attributes:
        risk: Risk of each event, (n,).
        pvalue: P-value of it, (n,).
        day_pvalue: P-value of the highest risk of each day, (G,).
    """

    risk: FloatArray
    pvalue: FloatArray
    day_pvalue: FloatArray


def score_daily(
    fingerprint: Fingerprint, given: UserEvents, state: UsageState | None = None
) -> DayScores:
    """Score events by the days before them.

    Args:
        fingerprint: The fingerprint.
        given: The events.
        state: What is remembered of the days since the training; updated. None for nothing.
    """
    values = _read_values(fingerprint, given)
    scorer = fingerprint.scoring_parts.scorer
    scores = scorer.score(values, UsageState() if state is None else state)
    lowest = np.minimum.reduceat(scores.incident_pvalue, given.starts)
    return DayScores(scores.risk, scores.pvalue, lowest)


def _read_values(fingerprint: Fingerprint, given: UserEvents) -> EventValues:
    parts, events = fingerprint.scoring_parts, given.events
    names = fingerprint.encoder.names

    def read(column: int, positions: NDArray[np.intp]) -> list[str | None]:
        if names[column] not in events.columns:
            return [None] * len(positions)
        return events[names[column]].gather(positions).cast(pl.String).to_list()

    rows = fingerprint.encoder.encode(events)
    predictions = MaskedPredictions.predict(parts.net, rows)
    return parts.read_values(rows, predictions, read, given.days)


def count_flagged(
    fingerprint: Fingerprint,
    given: UserEvents,
    threshold: float,
    state: UsageState | None = None,
) -> int:
    """Count the days up to a p-value. Each is scored as if there were none before it.

    Args:
        fingerprint: The fingerprint.
        given: The events.
        threshold: The p-value.
        state: What is remembered of the days since the training; not changed. None for nothing.
    """
    if not len(given):
        return 0
    values, flagged = _read_values(fingerprint, given), 0
    scorer = fingerprint.scoring_parts.scorer
    for start, end in pairwise([*given.starts.tolist(), len(given)]):
        known = UsageState() if state is None else deepcopy(state)
        scores = scorer.score(values.take(slice(start, end)), known)
        flagged += int(scores.incident_pvalue.min() <= threshold)
    return flagged


class Cause(msgspec.Struct, frozen=True):
    """A column whose values made scores rise.

    Attributes:
        column: The column.
        risk: How much its part of the mean risk of a day has risen, in tenths of nats.
        value: The value that has become more frequent by most; None for no value.
        before: Share of events with it in the baseline.
        after: Share of events with it in the rise.
    """

    column: str
    risk: float
    value: str | None
    before: float
    after: float


class UserRise(msgspec.Struct, frozen=True):
    """A sustained rise of a user's scores.

    Attributes:
        since: First day of the rise.
        found: Day on which it was found.
        usual: Mean risk of a day of the baseline.
        risen: Mean risk of a day since the rise.
        causes: The columns that rose most.
    """

    since: date
    found: date
    usual: float
    risen: float
    causes: tuple[Cause, ...] = ()


class UserReview(msgspec.Struct, frozen=True, dict=True):
    """A user's recent events, as the champion and the anchor see them.

    Attributes:
        given: The events.
        champion: The fingerprint in use.
        anchor: The older one.
        guard: What protects the training.
        suspicious: Whether each event is part of an open or dangerous incident, (n,).
        accepted: Whether a person has accepted it as normal, (n,).
    """

    given: UserEvents
    champion: Fingerprint
    anchor: Fingerprint
    guard: Guard
    suspicious: BoolArray
    accepted: BoolArray

    @cached_property
    def selection(self) -> Selection:
        """What is done with each event.

        The strictest of the two fingerprints counts: what is unusual for the anchor is not learned,
        even if the champion is used to it.
        """
        seen = [self._judge(self.champion)]
        later = self.given.find_after(last_day(self.champion, self.given.timezone))
        if later.any():
            # These days have the p-values of their alerts.
            seen[0][0][later] = score_daily(self.champion, self.given.take(later)).pvalue
        if self.guard.anchor:
            seen.append(self._judge(self.anchor))
        pvalues, risks = (np.array(each) for each in zip(*seen, strict=True))
        return select_learnable(
            pvalues.min(0),
            risks.max(0),
            self.suspicious,
            self.accepted,
            fresh=later,
            threshold=self.guard.threshold,
            share=self.guard.trim,
        )

    def _judge(self, fingerprint: Fingerprint) -> tuple[FloatArray, FloatArray]:
        """Return the p-value and the risk of each event by the history alone, (n,) each.

        What was left out of a history is still unusual for it, and an anchor gets used to nothing.
        """
        risks = score_by_history(fingerprint, self.given)
        maxima = fingerprint.calibration.day_maxima.astype(np.float64)
        return PValues.from_days(maxima, np.ones(len(maxima))).compute(risks), risks

    @cached_property
    def later(self) -> UserEvents:
        """The events of the days after the anchor's training."""
        return self.given.take(
            self.given.find_after(last_day(self.anchor, self.given.timezone)) & ~self.accepted
        )

    @cached_property
    def day_risks(self) -> FloatArray:
        """Mean risk of each of these days by the anchor's history alone, (G,)."""
        if not len(self.later):
            return np.empty(0)
        risks, starts = score_by_history(self.anchor, self.later), self.later.starts
        sizes = np.diff(np.append(starts, len(risks)))
        return np.asarray(np.add.reduceat(risks, starts) / sizes)

    @cached_property
    def day_pvalues(self) -> FloatArray:
        """P-value of each day after the baseline among all days before it, (G,)."""
        risks = self.day_risks
        return compute_pvalues(risks[:BASELINE_DAYS], risks[BASELINE_DAYS:])

    @property
    def martingale(self) -> float:
        """Base-10 logarithm of the highest martingale against no change; never below 0."""
        return max(float(drift_martingale(self.day_pvalues).max(initial=0.0)), 0.0)

    @property
    def has_drifted(self) -> bool:
        """Whether behaviour has changed since the anchor's training."""
        return self.martingale >= DRIFT_LIMIT

    @cached_property
    def rise(self) -> UserRise | None:
        """The sustained rise of the scores since the anchor's training; None without one."""
        found = find_rise(self.day_pvalues) if self.guard.freeze else None
        if found is None:
            return None
        start = BASELINE_DAYS + found.start
        usual = float(self.day_risks[:BASELINE_DAYS].mean())
        risen = float(self.day_risks[start:].mean())
        if risen - usual < MIN_RISE:
            return None
        return self._describe_rise(found, usual, risen)

    def _describe_rise(self, found: Rise, usual: float, risen: float) -> UserRise:
        days = self.later.days[self.later.starts]
        first, day = (int(days[BASELINE_DAYS + at]) for at in (found.start, found.found))
        before = self.later.take(self.later.days < days[BASELINE_DAYS])
        after = self.later.take(self.later.days >= first)
        causes = find_causes(self.anchor, before, after)
        return UserRise(_to_date(first), _to_date(day), usual, risen, causes)

    @cached_property
    def score_shift(self) -> Shift:
        """Shift of the risks by the anchor's history, from the baseline to the days after it."""
        before, after = self._split_baseline()
        risks = score_by_history(self.anchor, self.later) if len(self.later) else np.empty(0)
        return measure_score_shift(risks[before], risks[after])

    @cached_property
    def column_shifts(self) -> dict[str, Shift]:
        """Shift of each column, from the baseline to the days after it."""
        before, after = self._split_baseline()
        if not before.any() or not after.any():
            return {}
        return {
            name: measure_column_shift(
                self.later.events[name].filter(pl.Series(before)),
                self.later.events[name].filter(pl.Series(after)),
            )
            for name in self.anchor.encoder.names
            if name in self.later.events.columns
        }

    def _split_baseline(self) -> tuple[BoolArray, BoolArray]:
        days = self.later.days
        if len(self.day_risks) <= BASELINE_DAYS:
            return np.ones(len(days), dtype=np.bool_), np.zeros(len(days), dtype=np.bool_)
        early = days < days[self.later.starts[BASELINE_DAYS]]
        return early, ~early


def _to_date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)


def find_causes(anchor: Fingerprint, before: UserEvents, after: UserEvents) -> tuple[Cause, ...]:
    """Return the columns whose part of the risk has risen most, the first one first.

    Args:
        anchor: Scores the events.
        before: Events of the baseline.
        after: Events of the rise.
    """
    means = []
    for part in (before, after):
        rows = anchor.encoder.encode(part.events)
        means.append(rows.counts @ anchor.column_risks(rows) / max(len(part), 1))
    gains = means[1] - means[0]
    names = anchor.encoder.names
    top = [c for c in np.argsort(-gains, kind="stable").tolist() if gains[c] > 0][:TOP_CAUSES]
    return tuple(_describe_cause(names[c], float(gains[c]), before, after) for c in top)


def _describe_cause(column: str, gain: float, before: UserEvents, after: UserEvents) -> Cause:
    shares = []
    for part in (before, after):
        values = part.events[column].cast(pl.String) if column in part.events.columns else None
        counts = {} if values is None else dict(values.value_counts().iter_rows())
        shares.append({name: count / max(len(part), 1) for name, count in counts.items()})
    early, late = shares
    risen = max(late, key=lambda name: (late[name] - early.get(name, 0.0), name or ""), default="")
    return Cause(column, gain, risen, early.get(risen, 0.0), late.get(risen, 0.0))


def freeze(fingerprint: Fingerprint, since: date) -> Fingerprint:
    """Return a fingerprint that does not get used to the user's later days.

    Args:
        fingerprint: The anchor.
        since: First day of the rise.
    """
    card = structs.replace(fingerprint.card, frozen_since=since.isoformat())
    return replace(fingerprint, card=card)


def update(fingerprint: Fingerprint, given: UserEvents, selection: Selection) -> Fingerprint:
    """Return a fingerprint with new counts and a new calibration, and the same network.

    Values are counted again in the events that may be learned. Days since the training are added to
    the calibration as they were scored. A value without a code stays new until the next training.

    Args:
        fingerprint: The champion.
        given: The events of the window.
        selection: What to do with each of them.

    Raises:
        ValueError: The fingerprint has a reference network, or there is nothing to learn.
    """
    old = fingerprint.scoring_parts.usage
    rows = fingerprint.encoder.encode(given.events)
    learned = given.take(selection.learned)
    if not len(learned):
        raise ValueError("no event may be learned")
    usage = Usage.fit(
        rows.codes[rows.inverse[selection.learned]],
        number_sessions(learned.days),
        sizes=[column.n_codes for column in fingerprint.encoder.columns],
        others=old.others.astype(np.float64),
        novelty_prior=old.novelty_prior.astype(np.float64),
        leads=old.leads.tolist(),
    )
    fresh = given.find_after(last_day(fingerprint, given.timezone)) & selection.usable
    calibration = fingerprint.calibration
    if fresh.any():
        calibration = _add_days(fingerprint, given.take(fresh))
    card = structs.replace(
        fingerprint.card,
        events=len(learned),
        first=learned.times[0].isoformat(),
        last=learned.times[-1].isoformat(),
        size=0,
        sha256="",
    )
    return replace(fingerprint, card=card, usage=usage, calibration=calibration)


def _add_days(fingerprint: Fingerprint, given: UserEvents) -> CalibrationSet:
    """Return a calibration with the scores of later days."""
    old, daily = fingerprint.calibration, score_daily(fingerprint, given)
    rows = fingerprint.encoder.encode(given.events)
    losses = fingerprint.losses(rows).mean(1, dtype=np.float64)[rows.inverse]
    maxima = np.maximum.reduceat(daily.risk, given.starts)
    added = CalibrationSet.from_scores(
        np.append(old.scores, losses).astype(np.float64),
        np.append(old.risks, daily.risk).astype(np.float64),
        np.append(old.day_maxima, maxima).astype(np.float64),
    )
    return structs.replace(added, events=old.events + len(given)).center(old.typical_score)


class Comparison(msgspec.Struct, frozen=True):
    """Champion and candidate on later days that neither has learned.

    Attributes:
        days: Number of the user's own days.
        champion_alerts: Own days that the champion flags.
        candidate_alerts: Own days that the candidate flags.
        foreign: Number of days of other users, scored as the user's own.
        champion_found: Those that the champion flags.
        candidate_found: Those that the candidate flags.
    """

    days: int = 0
    champion_alerts: int = 0
    candidate_alerts: int = 0
    foreign: int = 0
    champion_found: int = 0
    candidate_found: int = 0

    def add(self, other: Comparison) -> Comparison:
        """Add the figures of another user."""
        names = self.__struct_fields__
        return Comparison(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def loses_recall(self) -> bool:
        """Whether the candidate of a single user finds clearly less."""
        return self.candidate_found + MAX_LOST_FOREIGN < self.champion_found


def compare(
    champion: Fingerprint,
    candidate: Fingerprint,
    own: UserEvents,
    foreign: Sequence[UserEvents],
    threshold: float,
) -> Comparison:
    """Compare two fingerprints of a user.

    Args:
        champion: The fingerprint in use.
        candidate: The one that may replace it.
        own: Later events of the user.
        foreign: Later days of other users.
        threshold: P-value up to which a day is flagged.
    """
    alerts = [count_flagged(each, own, threshold) for each in (champion, candidate)]
    found = [
        sum(count_flagged(each, day, threshold) for day in foreign)
        for each in (champion, candidate)
    ]
    days = len(np.unique(own.days))
    return Comparison(days, alerts[0], alerts[1], len(foreign), found[0], found[1])
