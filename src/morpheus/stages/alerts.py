"""What `filter --alerts_per_day` does: first with each user alone, then with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME
from morpheus.models.budget import Forecast, Level, margin
from morpheus.models.calibration import DAY, PAUSE
from morpheus.records import Batch, Losses, Scored, Spending, Watched
from morpheus.stage import Stage
from morpheus.stages.outputs import kept, with_outputs
from morpheus.suppressions.rules import NO_RULE, Suppressions


@dataclass(frozen=True)
class Candidates(Stage):
    """Keep the events of a user that would be alerts if the whole budget were theirs."""

    name = "filter"
    takes = (Losses, Scored)

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Losses | Scored]:
        """Leave out what cannot be an alert, and count it."""
        runs = _Runs()
        for batch, found in with_outputs(batches, (RISK,), self.settings):
            numbers, seconds = runs.of(batch.frame[TIME])
            if batch.fingerprint is None or seconds is None:
                nothing = np.zeros(batch.frame.height, dtype=np.bool_)
                yield kept(batch, nothing, pictured=self.settings.pictured)
                continue
            level = Level.of(batch.fingerprint.held_out)
            margins = found[RISK].to_numpy() - level.usual
            met = self.rules.met(batch.user, batch.frame)
            watched = Watched(level, margins, numbers, seconds, *met)
            rows = margins > level.alone(self.alerts_per_day)
            yield kept(replace(batch, watched=watched), rows, pictured=self.settings.pictured)


@dataclass
class _Runs:
    """Numbers the runs of a user's events, from batch to batch."""

    last: float = -np.inf
    number: int = -1

    def of(self, times: pl.Series) -> tuple[NDArray[np.int64], tuple[float, float] | None]:
        """The run of each event, and the first and the last second."""
        seconds = times.dt.epoch("ms").to_numpy() / 1000
        if not len(seconds):
            return np.zeros(0, dtype=np.int64), None
        starts = np.diff(seconds, prepend=self.last) > PAUSE
        numbers = self.number + np.cumsum(starts)
        self.last, self.number = float(seconds[-1]), int(numbers[-1])
        return numbers, (float(seconds.min()), float(seconds.max()))


@dataclass(frozen=True)
class Spend(Stage):
    """Divide the budget: keep the candidates that are above their users' thresholds.

    All candidates are held until the last user has come: they are as few as alerts are. No
    threshold depends on suppressions, which hold back what would have been an alert.
    """

    name = "filter"
    # It may be moved behind the user's other stages, which then still have the fingerprint at hand:
    # `explain` explains candidates.
    scope = "run"
    takes = (Batch,)
    needs_fingerprint = False

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Wait for everybody, then let alerts pass."""
        ledger = _Ledger(self.rules)
        held = [ledger.entered(batch) for batch in batches]
        limit = margin(list(ledger.levels.values()), ledger.days, self.alerts_per_day)
        for place, batch in enumerate(held):
            yield ledger.passed(batch, limit, last=place == len(held) - 1)


@dataclass
class _Ledger:
    """Who there is, since when and until when, and what has become an alert."""

    rules: Suppressions
    levels: dict[str | None, Level] = field(default_factory=dict)
    spans: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    alerts: set[tuple[str | None, int]] = field(default_factory=set)
    held: set[tuple[str | None, int]] = field(default_factory=set)

    @property
    def days(self) -> list[float]:
        """How many days there are of each user."""
        return [last // DAY - first // DAY + 1 for first, last in self.spans.values()]

    def entered(self, batch: Batch) -> Batch:
        """Take note of a batch's user and times."""
        if batch.watched is not None:
            first, last = batch.watched.seconds
            since, until = self.spans.get(batch.user, (first, last))
            self.levels[batch.user] = batch.watched.level
            self.spans[batch.user] = min(first, since), max(last, until)
        return batch

    def passed(self, batch: Batch, limit: float, *, last: bool) -> Batch:
        """Leave out what is no alert; the last batch brings the account."""
        if batch.watched is not None:
            batch = self._judged(batch, batch.watched, batch.watched.margins > limit)
        return replace(batch, spending=self._spending(limit)) if last else batch

    def _judged(self, batch: Batch, watched: Watched, alarming: NDArray[np.bool_]) -> Batch:
        """Let pass what is alarming and held back by nothing."""
        rows = alarming & (watched.held == NO_RULE)
        self.alerts |= {(batch.user, int(run)) for run in watched.runs[rows]}
        self.held |= {(batch.user, int(run)) for run in watched.runs[alarming & ~rows]}
        met = self.rules.account(watched.held[alarming], watched.ended[alarming])
        judged = replace(batch, watched=None)
        return kept(judged, rows, met, pictured=batch.picture is not None)

    def _spending(self, limit: float) -> Spending:
        forecast = Forecast.of(list(self.levels.values()), self.days, limit)
        return Spending(forecast, len(self.alerts), len(self.held - self.alerts))
