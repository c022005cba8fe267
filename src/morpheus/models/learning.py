"""From histories to fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict, Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.dictionary import DictionaryEncoder, EncodedSlice
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.models.evidence import Likelihoods
from morpheus.models.fingerprint import SCOPE_OWN, ModelCard, Fingerprint, make_network_config
from morpheus.models.population import Population
from morpheus.models.portrait import ModelSummary
from morpheus.models.training import EPOCHS, TrainJob, TrainResult, Trainer, train_sequentially, derive_user_seed
from morpheus.models.trial import ValidationRun
from morpheus.models.twins import find_redundant_columns

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
    studies = [TrainValidationSplit.from_history(history, encode, seed, population) for history in histories]
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
        trial = ValidationRun.from_network(validated.net, self.train_encoder, parts, seconds, self.population, user=user)
        usual = trial.estimate_baseline()
        chances = Likelihoods.fit(self.encoder, self.rows, usual.oov_rates, self.population, user)
        calibration = trial.calibrate()
        novelty = dict(zip(self.encoder.names, usual.oov_rates.tolist(), strict=True))
        own = self.history.seconds[self.history.borrowed_events :]
        card = self.history.make_card(len(self.rows.codes), final.epochs, self.seed)
        return Fingerprint(
            replace(card, portrait=ModelSummary.from_calibration(own, validated.loss_curve, calibration, novelty)),
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
