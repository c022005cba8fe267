"""From histories to fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict, Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.dictionary import Dictionary, Excerpt
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.models.evidence import Chances
from morpheus.models.fingerprint import OWN, Card, Fingerprint, shape_of
from morpheus.models.population import Population
from morpheus.models.portrait import Portrait
from morpheus.models.training import EPOCHS, Task, Trained, Trainer, train_each, user_seed
from morpheus.models.trial import Trial
from morpheus.models.twins import twins

LATER = 0.25
"""Share of the history, its end, that is held out to choose the epochs and to calibrate on."""


@dataclass(frozen=True)
class History:
    """What there is to learn of a user.

    Attributes:
        user: Whose it is.
        events: One row an event, at least one, in time order.
        times: Time of each event.
        rung: Whose history this is.
        borrowed: How many of the first events are others', user after user.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series
    rung: str = OWN
    borrowed: int = 0

    def card(self, distinct: int, epochs: int, seed: int) -> Card:
        """Describe a fingerprint learnt from it."""
        own = self.times[self.borrowed :]
        first, last = ("", "") if own.is_empty() else (own[0].isoformat(), own[-1].isoformat())
        learnt = (len(own), distinct, first, last, epochs, seed)
        return Card(self.user, *learnt, self.rung, self.borrowed)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Time of each event, in seconds since 1970, (events,)."""
        return self.times.dt.epoch("ms").to_numpy() / 1000.0


def learn_all(  # noqa: PLR0913 - what fingerprints depend on, and nothing else
    histories: Sequence[History],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = EPOCHS,
    seed: int = 0,
    trainer: Trainer = train_each,
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
    studies = [Study.of(history, encode, seed, population) for history in histories]
    tried = trainer([study.trial(epochs) for study in studies])
    wholes = [study.whole(best.epochs) for study, best in zip(studies, tried, strict=True)]
    outcomes = zip(studies, tried, trainer(wholes), strict=True)
    return [study.fingerprint(best, final) for study, best, final in outcomes]


def learn(
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    **options: Unpack[Options],
) -> Fingerprint:
    """Learn one user's fingerprint; see `learn_all`."""
    [fingerprint] = learn_all([History(user, history, times)], columns, **options)
    return fingerprint


class Options(TypedDict, total=False):
    """How fingerprints are learnt; see `learn_all`."""

    scaler: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class Study:
    """A history, encoded twice: its earlier part with the later one held out, and the whole.

    Attributes:
        history: What is learnt.
        trial_encoder: Knows the earlier part.
        early: The earlier part, encoded by it.
        held_out: The later part, encoded by it.
        encoder: Knows the whole.
        rows: The whole, encoded by it.
        seed: Seed of the run.
        population: With whom the user is compared.
    """

    history: History
    trial_encoder: Encoder
    early: EncodedRows
    held_out: EncodedRows
    encoder: Encoder
    rows: EncodedRows
    seed: int
    population: Population

    @classmethod
    def of(
        cls,
        history: History,
        encode: Callable[[pl.DataFrame], Encoder],
        seed: int,
        population: Population | None = None,
    ) -> Study:
        """Divide and encode a history.

        Args:
            history: What is learnt.
            encode: Learns how to encode some events.
            seed: Seed of the run.
            population: With whom the user is compared; None to compare with nobody.
        """
        events = history.events
        later = max(1, int(events.height * LATER))
        early, held_out = events.head(max(1, events.height - later)), events.tail(later)
        trial, whole = (encode(part) for part in (early, events))
        dictionary = Dictionary(events, whole.names)
        cut = events.height - held_out.height
        earlier = trial.encode(early, Excerpt(early, dictionary))
        later_on = trial.encode(held_out, Excerpt(held_out, dictionary, cut))
        rows = whole.encode(events, Excerpt(events, dictionary))
        everybody = population or Population.of_one(history.user, events, history.times)
        return cls(history, trial, earlier, later_on, whole, rows, seed, everybody)

    def trial(self, epochs: int) -> Task:
        """The training that finds out how many epochs are best."""
        shape = shape_of(self.trial_encoder)
        return Task(self.early, shape, epochs, self._own_seed, self.held_out)

    def whole(self, epochs: int) -> Task:
        """The training on all that there is."""
        return Task(self.rows, shape_of(self.encoder), epochs, self._own_seed)

    def fingerprint(self, tried: Trained, trained: Trained) -> Fingerprint:
        """Put together what was learnt; the network that was tried says what is usual."""
        user = self.history.user
        seconds = self.history.seconds[-len(self.held_out.row_of) :]
        parts = self.early, self.held_out
        trial = Trial.of(tried.net, self.trial_encoder, parts, seconds, self.population, user=user)
        usual = trial.measured()
        chances = Chances.of(self.encoder, self.rows, usual.novelty, self.population, user)
        calibration = trial.calibrated()
        novelty = dict(zip(self.encoder.names, usual.novelty.tolist(), strict=True))
        own = self.history.seconds[self.history.borrowed :]
        card = self.history.card(len(self.rows.codes), trained.epochs, self.seed)
        return Fingerprint(
            replace(card, portrait=Portrait.of(own, tried.curve, calibration, novelty)),
            self.encoder,
            trained.net,
            usual.novelty,
            usual.usual,
            calibration,
            replace(usual.evidence, chances=chances),
            twins(self.encoder, self.rows),
        )

    @property
    def _own_seed(self) -> int:
        return user_seed(self.seed, self.history.user)
