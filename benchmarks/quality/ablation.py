"""Ablation of `risk`: scores of the same fingerprints with parts left out.

Uses the trials for choosing settings: half A of the commits' users, and the companies of seeds 1
to 3. The trials that are compared with other detectors are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Unpack

import numpy as np
from figures.ranking import average_precision, recall
from figures.table import Table
from numpy.typing import NDArray

from morpheus.models.fit import FitOptions, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.profile import Fingerprint
from morpheus.models.scoring import (
    ANOMALY_EXPONENT,
    CONDITIONAL_STD_FLOOR,
    MARGINAL_STD_FLOOR,
    STD_FLOOR,
    MaskedPredictions,
)
from morpheus.models.temporal import (
    LONG_EMA_WEIGHT,
    LONG_HALF_LIFE,
    SHORT_EMA_WEIGHT,
    SHORT_HALF_LIFE,
    ExponentialMovingAverage,
)
from quality.trial import Attacked, Case, Trial, times

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Read:
    """A user's events and the fingerprint's results for them."""

    known: Fingerprint
    case: Case

    @cached_property
    def evidence(self) -> tuple[Floats, Floats]:
        """Marginal and conditional surprisal above the typical value, each (rows, C)."""
        rows = self.known.encoder.encode(self.case.scored)
        found = self.known.surprise_model
        assert found is not None and self.known.oov_rates is not None  # noqa: S101, PT018 - compact
        predictions = MaskedPredictions.predict(self.known.net, rows)  # type: ignore[arg-type]  # always present here
        habit, company = predictions.compute_surprise(found.likelihoods, self.known.oov_rates, rows)
        above = (
            found.marginal_baseline.excess_z(habit, MARGINAL_STD_FLOOR),
            found.conditional_baseline.excess_z(company, CONDITIONAL_STD_FLOOR),
        )
        return above[0][rows.inverse].astype(float), above[1][rows.inverse].astype(float)

    @cached_property
    def plain(self) -> Floats:
        """Reconstruction losses above the typical value, (rows, C)."""
        rows = self.known.encoder.encode(self.case.scored)
        return np.asarray(
            self.known.baseline.excess_z(self.known.losses(rows), STD_FLOOR)[rows.inverse]
        )

    @cached_property
    def loss(self) -> Floats:
        """Mean loss, (rows,)."""
        rows = self.known.encoder.encode(self.case.scored)
        return np.asarray(self.known.losses(rows)[rows.inverse].mean(1))

    @cached_property
    def shared(self) -> Floats:
        """Whether other users have the values, too, (rows, C)."""
        rows = self.known.encoder.encode(self.case.scored)
        assert self.known.surprise_model is not None  # noqa: S101 - compact has it
        chances = self.known.surprise_model.likelihoods
        return np.asarray(
            chances.seen_by_others[rows.codes + chances.offsets][rows.inverse], dtype=float
        )

    def remembered(self, strange: Floats, *, hour: bool = True, month: str = "shared") -> Floats:
        """Return column or event anomaly, (rows, C) or (rows,), with earlier events.

        Args:
            strange: Anomaly of each event.
            hour: Include the last hour.
            month: What to include of the last month: `shared` values, `all`, or `nothing`.
        """
        columns = strange.reshape(len(strange), -1).astype(float)
        risk = total = columns.sum(1)
        if hour:
            above = np.maximum(
                self._mean(total, SHORT_HALF_LIFE) - self.known.calibration.short_ema_p90, 0
            )
            risk = risk + SHORT_EMA_WEIGHT * above**2
        if month != "nothing":
            kept = (columns * self.shared).sum(1) if month == "shared" else total
            risk = risk + LONG_EMA_WEIGHT * self._mean(kept, LONG_HALF_LIFE) ** 2
        return np.asarray(risk)

    def _mean(self, surprise: Floats, half: float) -> Floats:
        seconds = times(self.case.scored).dt.epoch("s").to_numpy().astype(float)
        return np.asarray(
            ExponentialMovingAverage(half).update(np.sqrt(surprise)[:, None], seconds)[0][:, 0]
        )

    def strange(self) -> Floats:
        """Return the column anomaly, (rows, C)."""
        return np.asarray((sum(self.evidence) / 2) ** ANOMALY_EXPONENT)


WAYS: Mapping[str, Callable[[Read], Floats]] = {
    "`risk`": lambda read: read.remembered(read.strange()),
    "without temporal context": lambda read: read.strange().sum(1),
    "context of the last hour only": lambda read: read.remembered(read.strange(), month="nothing"),
    "context of the last month only": lambda read: read.remembered(read.strange(), hour=False),
    "month context of all values": lambda read: read.remembered(read.strange(), month="all"),
    "marginal surprisal only": lambda read: read.remembered(
        (read.evidence[0] / 2) ** ANOMALY_EXPONENT
    ),
    "conditional surprisal only (masked prediction)": lambda read: read.remembered(
        (read.evidence[1] / 2) ** ANOMALY_EXPONENT
    ),
    "plain reconstruction instead of masked prediction": lambda read: read.remembered(
        ((read.evidence[0] + read.plain) / 2) ** ANOMALY_EXPONENT
    ),
    "sum of z-scores, no power": lambda read: read.remembered(np.asarray(sum(read.evidence)) / 2),
    "plain reconstruction, sum of z-scores, no context": lambda read: read.plain.sum(1),
    "mean loss, no context": lambda read: read.loss,
}


def table(kinds: Mapping[str, Attacked]) -> Table:
    """Return a row per variant, and `risk` without a comparison with other users."""
    found: dict[str, list[str]] = {}
    header = ["variant"]
    for kind, trials in kinds.items():
        header += [f"{kind}: AP", "recall at 1 %"]
        figures = _figures(trials)
        for way, each in figures.items():
            found.setdefault(way, []).extend(f"{value:.3f}" for value in each)
    result = Table("Parts of `risk`, on the trials that settings are chosen on", header)
    for way, cells in found.items():
        result.add(way, *cells)
    return result


def _figures(trials: Attacked) -> dict[str, Floats]:
    each: dict[str, list[tuple[float, float]]] = {}
    for trial, cases in trials:
        for alone in (False, True):
            for known, case in zip(learnt(trial, cases, alone=alone), cases, strict=True):
                ways = {"without comparison to other users": WAYS["`risk`"]} if alone else WAYS
                for way, measure in ways.items():
                    scores = measure(Read(known, case))
                    pair = average_precision(scores, case.marked), recall(scores, case.marked, 0.01)
                    each.setdefault(way, []).append(pair)
    return {way: np.mean(pairs, axis=0) for way, pairs in each.items()}


def learnt(
    trial: Trial, cases: list[Case], *, alone: bool = False, **options: Unpack[FitOptions]
) -> list[Fingerprint]:
    """Train the users of some cases, compared with all users unless `alone`."""
    columns = trial.history.select(trial.columns)
    population_of_all = Population(trial.history[trial.user], times(trial.history), columns)
    histories = [
        UserHistory(case.user, case.history.select(trial.columns), times(case.history))
        for case in cases
    ]
    population = None if alone else population_of_all
    return fit_fingerprints(histories, trial.columns, population=population, **options)


def attacked(trial: Trial, users: Iterable[str]) -> list[Case]:
    """Return the cases of users with both kinds of events and enough history."""
    wanted = set(users)
    return [
        case
        for case in trial.cases
        if case.user in wanted and case.marked.any() and not case.marked.all()
    ]
