"""Training of fingerprints from histories.

A history is split in time. A first network learns the earlier part. The later part gives the best
number of epochs, the rates of new values, and the calibration. Then a second network learns the
whole history. `TrainingDataBackoff` extends short histories with those of other users.

Sizes in shapes: D distinct rows, C columns, S events of the population sample.
"""

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
    find_filled_columns,
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

VALIDATION_FRACTION = 0.25
"""Share of the history, at its end, that validates and calibrates."""
BASELINE_FRACTION = 1 / 3
"""Share of the validation events, at their start, that give the baseline for the others."""
BASELINE_QUANTILE = 0.9
"""Quantile of the short moving average that is its baseline."""
MAX_POOL = 2000
"""Maximum number of events of all users in the history of the global model."""
MIN_PEERS = 2
"""Minimum number of other users from whom a history is borrowed."""
MIN_EVENTS_FOR_PEERS = 20
"""Minimum number of own events to select similar users by."""


@dataclass(frozen=True)
class UserHistory:
    """History of a user.

    Attributes:
        user: The user; empty for the global model.
        events: One row per event, at least one, in time order.
        times: Time of each event.
        training_data_scope: Whose history this is.
        borrowed_events: Number of events of other users; they come first, user after user.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series
    training_data_scope: str = SCOPE_OWN
    borrowed_events: int = 0

    def make_card(
        self, distinct: int, epochs: int, seed: int, columns: Sequence[str] = ()
    ) -> ModelCard:
        """Describe a fingerprint that is trained on the feature columns of this history."""
        own = self.times[self.borrowed_events :]
        first, last = ("", "") if own.is_empty() else (own[0].isoformat(), own[-1].isoformat())
        facts = (len(own), distinct, first, last, epochs, seed)
        card = ModelCard(self.user, *facts, self.training_data_scope, self.borrowed_events)
        filled = find_filled_columns(self.events, columns)
        return msgspec.structs.replace(card, filled_columns=filled)

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
    """Train the fingerprint of each user on the user's own history.

    Args:
        histories: Histories of the users.
        columns: Feature columns; those that a history does not have are left out.
        scaler: Scale of number columns: "none", "standard" or "gauss_rank".
        epochs: Maximum number of passes over the distinct rows.
        seed: Random seed of the run; each user's seed is derived from it.
        trainer: Trains the networks.
        population: Sample of all users, with which each user is compared; None for no comparison.
        kinds: `category` or `number` by column; by default the values decide.

    Returns:
        One fingerprint for each history, in order.
    """
    encode = partial(Encoder.fit, names=columns, scaler=scaler, kinds=kinds)
    splits = [
        TrainValidationSplit.from_history(history, encode, seed, population)
        for history in histories
    ]
    validated = trainer([split.make_validation_job(epochs) for split in splits])
    jobs = [
        split.make_final_job(best.epochs) for split, best in zip(splits, validated, strict=True)
    ]
    results = zip(splits, validated, trainer(jobs), strict=True)
    return [split.build_fingerprint(best, final) for split, best, final in results]


def fit_fingerprint(
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    **options: Unpack[FitOptions],
) -> Fingerprint:
    """Train the fingerprint of one user; see `fit_fingerprints`."""
    [fingerprint] = fit_fingerprints([UserHistory(user, history, times)], columns, **options)
    return fingerprint


class FitOptions(TypedDict, total=False):
    """Options of training; see `fit_fingerprints`."""

    scaler: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class TrainValidationSplit:
    """A history, encoded twice: split into an earlier and a later part, and as a whole.

    Attributes:
        history: The history.
        train_encoder: Encoder fitted to the earlier part.
        train_rows: The earlier part, encoded by it.
        validation_rows: The later part, encoded by it.
        encoder: Encoder fitted to the whole.
        rows: The whole, encoded by it.
        seed: Random seed of the run.
        population: Sample of all users.
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
        """Split and encode a history.

        Args:
            history: The history.
            encode: Fits an encoder to events.
            seed: Random seed of the run.
            population: Sample of all users; None for no comparison.
        """
        events = history.events
        n_validation = max(1, int(events.height * VALIDATION_FRACTION))
        early, late = events.head(max(1, events.height - n_validation)), events.tail(n_validation)
        train_encoder, encoder = (encode(part) for part in (early, events))
        dictionary = DictionaryEncoder(events, encoder.names)
        start = events.height - late.height
        train_rows = train_encoder.encode(early, EncodedSlice(early, dictionary))
        validation_rows = train_encoder.encode(late, EncodedSlice(late, dictionary, start))
        rows = encoder.encode(events, EncodedSlice(events, dictionary))
        sample = population or Population.from_single_user(history.user, events, history.times)
        return cls(history, train_encoder, train_rows, validation_rows, encoder, rows, seed, sample)

    def make_validation_job(self, epochs: int) -> TrainJob:
        """Return the training that finds the best number of epochs."""
        config = make_network_config(self.train_encoder)
        return TrainJob(self.train_rows, config, epochs, self._user_seed, self.validation_rows)

    def make_final_job(self, epochs: int) -> TrainJob:
        """Return the training on the whole history."""
        return TrainJob(self.rows, make_network_config(self.encoder), epochs, self._user_seed)

    def build_fingerprint(self, validated: TrainResult, final: TrainResult) -> Fingerprint:
        """Build the fingerprint.

        Args:
            validated: Result of the validation job, which gives the baselines and the calibration.
            final: Result of the final job.
        """
        user = self.history.user
        seconds = self.history.seconds[-len(self.validation_rows.inverse) :]
        parts = self.train_rows, self.validation_rows
        run = ValidationRun.from_network(
            validated.net, self.train_encoder, parts, seconds, self.population, user=user
        )
        estimates, calibration = run.estimate_baseline(), run.calibrate()
        oov_rates = estimates.oov_rates
        likelihoods = Likelihoods.fit(self.encoder, self.rows, oov_rates, self.population, user)
        own_seconds = self.history.seconds[self.history.borrowed_events :]
        rate_by_column = dict(zip(self.encoder.names, oov_rates.tolist(), strict=True))
        summary = ModelSummary.from_calibration(
            own_seconds, validated.loss_curve, calibration, rate_by_column
        )
        card = self.history.make_card(
            len(self.rows.codes), final.epochs, self.seed, self.encoder.names
        )
        return Fingerprint(
            msgspec.structs.replace(card, summary=summary),
            self.encoder,
            final.net,
            oov_rates,
            estimates.baseline,
            calibration,
            replace(estimates.surprise_model, likelihoods=likelihoods),
            find_redundant_columns(self.encoder, self.rows),
        )

    @property
    def _user_seed(self) -> int:
        return derive_user_seed(self.seed, self.history.user)


@dataclass(frozen=True)
class BaselineEstimates:
    """Baselines from some validation events.

    Attributes:
        oov_rates: Rate of new values of each column, (C,).
        baseline: Normal loss of each column.
        surprise_model: Normal surprise of each column.
    """

    oov_rates: NDArray[np.float32]
    baseline: BaselineStats
    surprise_model: SurpriseModel


@dataclass(frozen=True)
class ValidationRun:
    """Validation events, as seen by a network that was trained on earlier events.

    Attributes:
        encoder: Encoder fitted to the earlier events.
        train_rows: The earlier events, encoded.
        validation_rows: The validation events, encoded.
        seconds: Their times, (events,); a step back in time starts another user's events.
        population: Sample of all users.
        user: The user.
        losses: Raw loss of each column of each distinct row, (D, C).
        predictions: Predictions of each column from the other columns.
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
        """Run a network on the validation events.

        Args:
            net: The network.
            encoder: Encoder fitted to the earlier events.
            parts: The earlier and the validation events, encoded.
            seconds: Times of the validation events, (events,).
            population: Sample of all users.
            user: The user.
        """
        train_rows, rows = parts
        results = raw_losses(net, rows), MaskedPredictions.predict(net, rows)
        return cls(encoder, train_rows, rows, seconds, population, user, *results)

    def estimate_baseline(self, events: NDArray[np.intp] | None = None) -> BaselineEstimates:
        """Compute baselines.

        Args:
            events: Positions of the validation events to use; None for all.
        """
        rows = self.validation_rows
        inverse = rows.inverse if events is None else rows.inverse[events]
        counts = np.bincount(inverse, minlength=len(rows.codes))
        oov_rates = measure_oov_rates(rows.codes, counts)
        likelihoods = Likelihoods.fit(
            self.encoder, self.train_rows, oov_rates, self.population, self.user
        )
        marginal, conditional = self.predictions.compute_surprise(likelihoods, oov_rates, rows)
        baseline = BaselineStats.fit(apply_oov_penalty(self.losses, oov_rates, rows), counts)
        surprise_model = SurpriseModel(
            likelihoods, BaselineStats.fit(marginal, counts), BaselineStats.fit(conditional, counts)
        )
        return BaselineEstimates(oov_rates, baseline, surprise_model)

    def calibrate(self) -> CalibrationSet:
        """Score the validation events, with baselines from the first of them.

        The baseline of the short moving average for one half of the events comes from the other
        half, because the baseline for new events also comes from other events.
        """
        inverse = self.validation_rows.inverse
        first = np.arange(max(1, int(len(inverse) * BASELINE_FRACTION)))
        start = len(first) if len(inverse) > len(first) else 0
        scores, anomaly, shared = (
            part[inverse] for part in self._score_rows(self.estimate_baseline(first))
        )
        events = np.stack([anomaly, shared, self.seconds], axis=1)
        users = np.split(events, np.flatnonzero(np.diff(self.seconds) < 0) + 1)
        emas = np.concatenate([_short_emas(user[:, 0], user[:, 2]) for user in users])[start:]
        half = len(emas) // 2
        baselines = (
            _baseline_quantile(emas[half:]),
            _baseline_quantile(emas[:half] if half else emas[half:]),
        )
        early, late = (
            np.concatenate([_compute_risks(user, baseline) for user in users])[start:]
            for baseline in baselines
        )
        risks = np.concatenate([early[:half], late[half:]])
        return CalibrationSet.from_scores(
            scores[start:], risks, self.seconds[start:], _baseline_quantile(emas)
        )

    def _score_rows(self, estimates: BaselineEstimates) -> tuple[NDArray[np.float64], ...]:
        """Return mean loss, anomaly, and shared anomaly of each distinct row, (D,) each."""
        losses = apply_oov_penalty(self.losses, estimates.oov_rates, self.validation_rows)
        likelihoods = estimates.surprise_model.likelihoods
        surprise = self.predictions.compute_surprise(
            likelihoods, estimates.oov_rates, self.validation_rows
        )
        anomaly = estimates.surprise_model.column_anomaly(*surprise)
        shared = (
            anomaly * likelihoods.seen_by_others[self.validation_rows.codes + likelihoods.offsets]
        )
        return losses.mean(1, dtype=np.float64), anomaly.sum(1), shared.sum(1)


def _short_emas(
    event_anomaly: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the short moving average of the root of the anomaly, (events,)."""
    means, _ = ExponentialMovingAverage(SHORT_HALF_LIFE).update(
        np.sqrt(event_anomaly)[:, None], seconds
    )
    return np.asarray(means[:, 0])


def _baseline_quantile(emas: NDArray[np.float64]) -> float:
    """Return the level that the short moving average stays below most of the time."""
    return float(np.quantile(emas, BASELINE_QUANTILE).round(ANOMALY_DECIMALS))


def _compute_risks(events: NDArray[np.float64], short_ema_baseline: float) -> NDArray[np.float64]:
    """Return the risk of each event, given anomaly, shared anomaly and seconds, (events, 3)."""
    anomaly, shared, seconds = events.T
    return TemporalContext().compute_risk(anomaly, shared, seconds, short_ema_baseline)


@dataclass(frozen=True)
class TrainingDataBackoff:
    """Extends short histories with events of other users.

    The other users' events come first, user after user. So the later part, which validates, has
    users that the earlier part does not have. What distinguishes users is then new in it, and is
    not anomalous for a new user.

    Attributes:
        population: Sample of all users' histories.
        min_events: Minimum number of events to train on.
        global_only: Whether to skip similar users, and use all users for every short history.
    """

    population: Population
    min_events: int
    global_only: bool = False

    def resolve(self, history: UserHistory) -> UserHistory | None:
        """Return the history to train a user on; None if that of all users is too short too."""
        own = history.events.height
        scope = self.choose_scope(history.user, own)
        if scope is None or scope == SCOPE_OWN:
            return history if scope else None
        others = self._other_users(history.user)
        if scope == SCOPE_GLOBAL:
            return self._fill(history, _sample_evenly(others, MAX_POOL), SCOPE_GLOBAL)
        by_similarity = others[np.argsort(-self._similarity(history)[others], kind="stable")]
        peers = np.sort(by_similarity[: max(self.min_events - own, 0)])
        return self._fill(history, peers, SCOPE_PEER_GROUP)

    def choose_scope(self, user: str, own: int) -> str | None:
        """Return whose events a user is trained on; None if there are too few.

        Args:
            user: The user.
            own: Number of the user's own events.
        """
        if own >= self.min_events:
            return SCOPE_OWN
        others = self._other_users(user)
        owners = self.population.users[others].n_unique()
        if owners < MIN_PEERS or own + len(others) < self.min_events:
            return None
        few = self.global_only or own < MIN_EVENTS_FOR_PEERS
        return SCOPE_GLOBAL if few else SCOPE_PEER_GROUP

    def resolve_global(self, min_owners: int = MIN_PEERS) -> UserHistory | None:
        """Return the history of the global model; None if all users have too little history.

        Args:
            min_owners: Minimum number of users.
        """
        all_rows = self._other_users("")
        owners = self.population.users[all_rows].n_unique()
        if owners < min_owners or len(all_rows) < self.min_events:
            return None
        no_events = self.population.events.clear()
        history = UserHistory("", no_events, self.population.times.clear())
        return self._fill(history, _sample_evenly(all_rows, MAX_POOL), SCOPE_GLOBAL)

    def _other_users(self, user: str) -> NDArray[np.intp]:
        return np.flatnonzero((self.population.users != user).to_numpy())

    def _fill(self, history: UserHistory, borrowed: NDArray[np.intp], scope: str) -> UserHistory:
        events = pl.concat([self.population.events[borrowed], history.events], how="diagonal")
        times = pl.concat([self.population.times[borrowed], history.times])
        return UserHistory(history.user, events, times, scope, len(borrowed))

    def _similarity(self, history: UserHistory) -> NDArray[np.float64]:
        """Return the similarity of the user of each sample event to a user, (S,).

        It is the overlap of the shares of values, added up over all columns.
        """
        similarity = np.zeros(self.population.owner_numbers.max(initial=-1) + 1)
        for name, usage in self.population.value_usage.items():
            own = history.events.get_column(name, default=None)
            if own is not None:
                similarity += usage.similarity(own)
        return np.asarray(similarity[self.population.owner_numbers])


def _sample_evenly(rows: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    positions = np.linspace(0, len(rows) - 1, min(len(rows), limit)).round().astype(int)
    return np.asarray(rows[positions])
