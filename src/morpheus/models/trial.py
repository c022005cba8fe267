"""A network tried on events that it had not met: what these say is usual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.calibration import CalibrationSet
from morpheus.models.company import MaskedPredictions
from morpheus.models.context import SHORT_HALF_LIFE, TemporalContext, ExponentialMovingAverage
from morpheus.models.evidence import ANOMALY_DECIMALS, Likelihoods, SurpriseModel, BaselineStats
from morpheus.models.fingerprint import measure_oov_rates, raw_losses, apply_oov_penalty
from morpheus.models.population import Population

BASELINE_FRACTION = 1 / 3
"""Share of the held-out events, the first, that say what is usual of those that follow."""
BASELINE_QUANTILE = 0.9
"""Share of the others whose last hour is as strange as it usually may be."""


@dataclass(frozen=True)
class BaselineEstimates:
    """What some held-out events say is usual.

    Attributes:
        oov_rates: How often each column brings a new value, (C,).
        baseline: Of the loss of each column.
        surprise_model: Of the evidence of each column.
    """

    oov_rates: NDArray[np.float32]
    baseline: BaselineStats
    surprise_model: SurpriseModel


@dataclass(frozen=True)
class ValidationRun:
    """Held-out events, as a network found them that had learnt the earlier ones.

    Attributes:
        encoder: Knows the earlier events.
        train_rows: These, encoded.
        validation_rows: The later ones, encoded.
        seconds: When they happened, (events,); a step back in time is another user.
        population: With whom the user is compared.
        user: Who that is.
        losses: Plain loss of each column of each distinct row, (D, C).
        predictions: Each column of these guessed from the others.
    """

    encoder: Encoder
    train_rows: EncodedRows
    validation_rows: EncodedRows
    seconds: NDArray[np.float64]
    population: Population
    user: str
    losses: NDArray[np.float32]
    predictions: MaskedPredictions

    @classmethod
    def from_network(  # noqa: PLR0913 - what a trial is, and nothing else
        cls,
        net: Autoencoder,
        encoder: Encoder,
        parts: tuple[EncodedRows, EncodedRows],
        seconds: NDArray[np.float64],
        population: Population,
        *,
        user: str,
    ) -> ValidationRun:
        """Try a network; `parts` are the earlier and the later events, encoded."""
        early, later = parts
        found = raw_losses(net, later), MaskedPredictions.predict(net, later)
        return cls(encoder, early, later, seconds, population, user, *found)

    def estimate_baseline(self, events: NDArray[np.intp] | None = None) -> BaselineEstimates:
        """What some of the held-out events, by number, or all say is usual."""
        rows = self.validation_rows
        row_of = rows.inverse if events is None else rows.inverse[events]
        counts = np.bincount(row_of, minlength=len(rows.codes))
        novelty = measure_oov_rates(rows.codes, counts)
        chances = Likelihoods.fit(self.encoder, self.train_rows, novelty, self.population, self.user)
        habit, company = self.predictions.compute_surprise(chances, novelty, rows)
        usual = BaselineStats.fit(apply_oov_penalty(self.losses, novelty, rows), counts)
        evidence = SurpriseModel(chances, BaselineStats.fit(habit, counts), BaselineStats.fit(company, counts))
        return BaselineEstimates(novelty, usual, evidence)

    def calibrate(self) -> CalibrationSet:
        """What is usual of whole events: the first of them say what is usual of the others.

        What an hour usually is, is told to each half of these by the other half, as it will be told
        to events to come by events before them.
        """
        row_of = self.validation_rows.inverse
        first = np.arange(max(1, int(len(row_of) * BASELINE_FRACTION)))
        start = len(first) if len(row_of) > len(first) else 0
        scores, surprise, shared = (part[row_of] for part in self._score_rows(self.estimate_baseline(first)))
        events = [part[:, None] for part in (surprise, shared, self.seconds)]
        users = np.split(np.hstack(events), np.flatnonzero(np.diff(self.seconds) < 0) + 1)
        levels = np.concatenate([_short_emas(user[:, 0], user[:, 2]) for user in users])[start:]
        halves = levels[: len(levels) // 2], levels[len(levels) // 2 :]
        others = _baseline_quantile(halves[1]), _baseline_quantile(halves[0] if len(halves[0]) else halves[1])
        early, late = (np.concatenate([_compute_risks(u, hour) for u in users])[start:] for hour in others)
        risks = np.concatenate([early[: len(halves[0])], late[len(halves[0]) :]])
        return CalibrationSet.from_scores(scores[start:], risks, self.seconds[start:], _baseline_quantile(levels))

    def _score_rows(self, estimates: BaselineEstimates) -> tuple[NDArray[np.float64], ...]:
        """Of each distinct row: mean loss, surprise, and surprise by shared values, each (D,)."""
        losses = apply_oov_penalty(self.losses, estimates.oov_rates, self.validation_rows)
        chances = estimates.surprise_model.likelihoods
        found = self.predictions.compute_surprise(chances, estimates.oov_rates, self.validation_rows)
        strangeness = estimates.surprise_model.column_anomaly(*found)
        shared = strangeness * chances.seen_by_others[self.validation_rows.codes + chances.offsets]
        return losses.mean(1, dtype=np.float64), strangeness.sum(1), shared.sum(1)


def _short_emas(event_anomaly: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean root of surprise in the last hour of each event of a user, (events,)."""
    means, _ = ExponentialMovingAverage(SHORT_HALF_LIFE).update(np.sqrt(event_anomaly)[:, None], seconds)
    return np.asarray(means[:, 0])


def _baseline_quantile(levels: NDArray[np.float64]) -> float:
    """What levels stay below, most of the time."""
    return float(np.quantile(levels, BASELINE_QUANTILE).round(ANOMALY_DECIMALS))


def _compute_risks(events: NDArray[np.float64], short_ema_baseline: float) -> NDArray[np.float64]:
    """Risk of each event of a user, of columns surprise, shared and seconds, (events, 3)."""
    surprise, shared, seconds = events.T
    return TemporalContext().compute_risk(surprise, shared, seconds, short_ema_baseline)
