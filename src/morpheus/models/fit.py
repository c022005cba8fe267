"""From histories to fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict, Unpack

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.encoder import DictionaryEncoder, EncodedRows, EncodedSlice, Encoder
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.calibration import CalibrationSet, ModelSummary
from morpheus.models.population import Population
from morpheus.models.profile import (
    SCOPE_GLOBAL,
    SCOPE_OWN,
    SCOPE_PEER_GROUP,
    Fingerprint,
    ModelCard,
    apply_oov_penalty,
    find_redundant_columns,
    make_network_config,
    measure_oov_rates,
    raw_losses,
)
from morpheus.models.scoring import (
    ANOMALY_DECIMALS,
    BaselineStats,
    Likelihoods,
    MaskedPredictions,
    SurpriseModel,
)
from morpheus.models.temporal import SHORT_HALF_LIFE, ExponentialMovingAverage, TemporalContext
from morpheus.models.training import (
    EPOCHS,
    Trainer,
    TrainJob,
    TrainResult,
    derive_user_seed,
    train_sequentially,
)

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
        chances = Likelihoods.fit(
            self.encoder, self.train_rows, novelty, self.population, self.user
        )
        habit, company = self.predictions.compute_surprise(chances, novelty, rows)
        usual = BaselineStats.fit(apply_oov_penalty(self.losses, novelty, rows), counts)
        evidence = SurpriseModel(
            chances, BaselineStats.fit(habit, counts), BaselineStats.fit(company, counts)
        )
        return BaselineEstimates(novelty, usual, evidence)

    def calibrate(self) -> CalibrationSet:
        """What is usual of whole events: the first of them say what is usual of the others.

        What an hour usually is, is told to each half of these by the other half, as it will be told
        to events to come by events before them.
        """
        row_of = self.validation_rows.inverse
        first = np.arange(max(1, int(len(row_of) * BASELINE_FRACTION)))
        start = len(first) if len(row_of) > len(first) else 0
        scores, surprise, shared = (
            part[row_of] for part in self._score_rows(self.estimate_baseline(first))
        )
        events = [part[:, None] for part in (surprise, shared, self.seconds)]
        users = np.split(np.hstack(events), np.flatnonzero(np.diff(self.seconds) < 0) + 1)
        levels = np.concatenate([_short_emas(user[:, 0], user[:, 2]) for user in users])[start:]
        halves = levels[: len(levels) // 2], levels[len(levels) // 2 :]
        others = (
            _baseline_quantile(halves[1]),
            _baseline_quantile(halves[0] if len(halves[0]) else halves[1]),
        )
        early, late = (
            np.concatenate([_compute_risks(u, hour) for u in users])[start:] for hour in others
        )
        risks = np.concatenate([early[: len(halves[0])], late[len(halves[0]) :]])
        return CalibrationSet.from_scores(
            scores[start:], risks, self.seconds[start:], _baseline_quantile(levels)
        )

    def _score_rows(self, estimates: BaselineEstimates) -> tuple[NDArray[np.float64], ...]:
        """Of each distinct row: mean loss, surprise, and surprise by shared values, each (D,)."""
        losses = apply_oov_penalty(self.losses, estimates.oov_rates, self.validation_rows)
        chances = estimates.surprise_model.likelihoods
        found = self.predictions.compute_surprise(
            chances, estimates.oov_rates, self.validation_rows
        )
        strangeness = estimates.surprise_model.column_anomaly(*found)
        shared = strangeness * chances.seen_by_others[self.validation_rows.codes + chances.offsets]
        return losses.mean(1, dtype=np.float64), strangeness.sum(1), shared.sum(1)


def _short_emas(
    event_anomaly: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean root of surprise in the last hour of each event of a user, (events,)."""
    means, _ = ExponentialMovingAverage(SHORT_HALF_LIFE).update(
        np.sqrt(event_anomaly)[:, None], seconds
    )
    return np.asarray(means[:, 0])


def _baseline_quantile(levels: NDArray[np.float64]) -> float:
    """What levels stay below, most of the time."""
    return float(np.quantile(levels, BASELINE_QUANTILE).round(ANOMALY_DECIMALS))


def _compute_risks(events: NDArray[np.float64], short_ema_baseline: float) -> NDArray[np.float64]:
    """Risk of each event of a user, of columns surprise, shared and seconds, (events, 3)."""
    surprise, shared, seconds = events.T
    return TemporalContext().compute_risk(surprise, shared, seconds, short_ema_baseline)


VALIDATION_FRACTION = 0.25
"""Share of the history, its end, that is held out to choose the epochs and to calibrate on."""


@dataclass(frozen=True)
class UserHistory:
    """What there is to learn of a user.

    Attributes:
        user: Whose it is.
        events: One row an event, at least one, in time order.
        times: Time of each event.
        training_data_scope: Whose history this is.
        borrowed_events: How many of the first events are others', user after user.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series
    training_data_scope: str = SCOPE_OWN
    borrowed_events: int = 0

    def make_card(self, distinct: int, epochs: int, seed: int) -> ModelCard:
        """Describe a fingerprint learnt from it."""
        own = self.times[self.borrowed_events :]
        first, last = ("", "") if own.is_empty() else (own[0].isoformat(), own[-1].isoformat())
        learnt = (len(own), distinct, first, last, epochs, seed)
        return ModelCard(self.user, *learnt, self.training_data_scope, self.borrowed_events)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Time of each event, in seconds since 1970, (events,)."""
        return self.times.dt.epoch("ms").to_numpy() / 1000.0


def fit_fingerprints(  # noqa: PLR0913 - what fingerprints depend on, and nothing else
    histories: Sequence[UserHistory],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = EPOCHS,
    seed: int = 0,
    trainer: Trainer = train_sequentially,
    population: Population | None = None,
    kinds: Mapping[str, str] | None = None,
) -> list[Fingerprint]:
    """Learn the fingerprint of each user from its history alone.

    The earlier part is learnt first: how many epochs are best, how often each column brings new
    values, and what its losses usually are, is seen on the later part, which that network never
    met. Then the whole history is learnt anew, for as many epochs.

    Args:
        histories: Those of the users.
        columns: Feature columns; those that a history does not have are left out.
        scaler: How number columns are scaled: "none", "standard" or "gauss_rank".
        epochs: Passes over the distinct rows, at most.
        seed: Seed of the run; each user's own is derived from it.
        trainer: Trains the networks.
        population: Everybody, with whom each user is compared; None to compare with nobody.
        kinds: `category` or `number`, by column; by default the values tell.
    """
    encode = partial(Encoder.fit, names=columns, scaler=scaler, kinds=kinds)
    studies = [
        TrainValidationSplit.from_history(history, encode, seed, population)
        for history in histories
    ]
    tried = trainer([study.make_validation_job(epochs) for study in studies])
    wholes = [study.make_final_job(best.epochs) for study, best in zip(studies, tried, strict=True)]
    outcomes = zip(studies, tried, trainer(wholes), strict=True)
    return [study.build_fingerprint(best, final) for study, best, final in outcomes]


def fit_fingerprint(
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    **options: Unpack[FitOptions],
) -> Fingerprint:
    """Learn one user's fingerprint; see `fit_fingerprints`."""
    [fingerprint] = fit_fingerprints([UserHistory(user, history, times)], columns, **options)
    return fingerprint


class FitOptions(TypedDict, total=False):
    """How fingerprints are learnt; see `fit_fingerprints`."""

    scaler: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class TrainValidationSplit:
    """A history, encoded twice: its earlier part with the later one held out, and the whole.

    Attributes:
        history: What is learnt.
        train_encoder: Knows the earlier part.
        train_rows: The earlier part, encoded by it.
        validation_rows: The later part, encoded by it.
        encoder: Knows the whole.
        rows: The whole, encoded by it.
        seed: Seed of the run.
        population: With whom the user is compared.
    """

    history: UserHistory
    train_encoder: Encoder
    train_rows: EncodedRows
    validation_rows: EncodedRows
    encoder: Encoder
    rows: EncodedRows
    seed: int
    population: Population

    @classmethod
    def from_history(
        cls,
        history: UserHistory,
        encode: Callable[[pl.DataFrame], Encoder],
        seed: int,
        population: Population | None = None,
    ) -> TrainValidationSplit:
        """Divide and encode a history.

        Args:
            history: What is learnt.
            encode: Learns how to encode some events.
            seed: Seed of the run.
            population: With whom the user is compared; None to compare with nobody.
        """
        events = history.events
        later = max(1, int(events.height * VALIDATION_FRACTION))
        early, held_out = events.head(max(1, events.height - later)), events.tail(later)
        trial, whole = (encode(part) for part in (early, events))
        dictionary = DictionaryEncoder(events, whole.names)
        cut = events.height - held_out.height
        earlier = trial.encode(early, EncodedSlice(early, dictionary))
        later_on = trial.encode(held_out, EncodedSlice(held_out, dictionary, cut))
        rows = whole.encode(events, EncodedSlice(events, dictionary))
        everybody = population or Population.from_single_user(history.user, events, history.times)
        return cls(history, trial, earlier, later_on, whole, rows, seed, everybody)

    def make_validation_job(self, epochs: int) -> TrainJob:
        """The training that finds out how many epochs are best."""
        shape = make_network_config(self.train_encoder)
        return TrainJob(self.train_rows, shape, epochs, self._user_seed, self.validation_rows)

    def make_final_job(self, epochs: int) -> TrainJob:
        """The training on all that there is."""
        return TrainJob(self.rows, make_network_config(self.encoder), epochs, self._user_seed)

    def build_fingerprint(self, validated: TrainResult, final: TrainResult) -> Fingerprint:
        """Put together what was learnt; the network that was tried says what is usual."""
        user = self.history.user
        seconds = self.history.seconds[-len(self.validation_rows.inverse) :]
        parts = self.train_rows, self.validation_rows
        trial = ValidationRun.from_network(
            validated.net, self.train_encoder, parts, seconds, self.population, user=user
        )
        usual = trial.estimate_baseline()
        chances = Likelihoods.fit(self.encoder, self.rows, usual.oov_rates, self.population, user)
        calibration = trial.calibrate()
        novelty = dict(zip(self.encoder.names, usual.oov_rates.tolist(), strict=True))
        own = self.history.seconds[self.history.borrowed_events :]
        card = self.history.make_card(len(self.rows.codes), final.epochs, self.seed)
        return Fingerprint(
            msgspec.structs.replace(
                card,
                summary=ModelSummary.from_calibration(
                    own, validated.loss_curve, calibration, novelty
                ),
            ),
            self.encoder,
            final.net,
            usual.oov_rates,
            usual.baseline,
            calibration,
            replace(usual.surprise_model, likelihoods=chances),
            find_redundant_columns(self.encoder, self.rows),
        )

    @property
    def _user_seed(self) -> int:
        return derive_user_seed(self.seed, self.history.user)


MAX_POOL = 2000
"""Events of everyone that stand for a user of whom nothing is known, at most."""
MIN_PEERS = 2
"""Others that stand for a user, at least: one alone is nobody's measure."""
MIN_EVENTS_FOR_PEERS = 20
"""Events of a user from which one can say who is alike."""


@dataclass(frozen=True)
class TrainingDataBackoff:
    """Fills short histories up with those of others.

    The others' events come first, user after user, so that the later part, which says what is
    usual, holds users that the earlier one has not: what tells one user from another is then new
    in it, and surprises nobody in a user who is new.

    Attributes:
        population: A sample of everybody's history.
        min_events: Events of history that a fingerprint is learnt from.
        global_only: Leave the peers out: everyone alone stands for a user of little history.
    """

    population: Population
    min_events: int
    global_only: bool = False

    def resolve(self, history: UserHistory) -> UserHistory | None:
        """The history that a user is learnt from; None where even everyone's is too short."""
        own = history.events.height
        if own >= self.min_events:
            return history
        others = self._other_users(history.user)
        owners = self.population.users[others].n_unique()
        if owners < MIN_PEERS or own + len(others) < self.min_events:
            return None
        if self.global_only or own < MIN_EVENTS_FOR_PEERS:
            return self._fill(history, _sample_evenly(others, MAX_POOL), SCOPE_GLOBAL)
        alike = others[np.argsort(-self._similarity(history)[others], kind="stable")]
        peers = np.sort(alike[: max(self.min_events - own, 0)])
        return self._fill(history, peers, SCOPE_PEER_GROUP)

    def resolve_global(self) -> UserHistory | None:
        """The history that stands for a user of whom nothing is known."""
        nothing = self.population.events.clear()
        return self.resolve(UserHistory("", nothing, self.population.times.clear()))

    def _other_users(self, user: str) -> NDArray[np.intp]:
        return np.flatnonzero((self.population.users != user).to_numpy())

    def _fill(self, history: UserHistory, borrowed: NDArray[np.intp], scope: str) -> UserHistory:
        events = pl.concat([self.population.events[borrowed], history.events], how="diagonal")
        times = pl.concat([self.population.times[borrowed], history.times])
        return UserHistory(history.user, events, times, scope, len(borrowed))

    def _similarity(self, history: UserHistory) -> NDArray[np.float64]:
        """How alike the owner of each event of the sample is to a user, (S,).

        The share of the user's own values that the owner's mean event has, over all columns.
        """
        alike = np.zeros(self.population.owner_numbers.max(initial=-1) + 1)
        for name, owned in self.population.value_usage.items():
            own = history.events.get_column(name, default=None)
            if own is not None:
                alike += owned.similarity(own)
        return np.asarray(alike[self.population.owner_numbers])


def _sample_evenly(rows: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    places = np.linspace(0, len(rows) - 1, min(len(rows), limit)).round().astype(int)
    return np.asarray(rows[places])
