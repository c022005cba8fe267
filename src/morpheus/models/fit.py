"""Training of fingerprints from histories.

A history is split in time. A first network learns the earlier part. The later part gives the best
number of epochs, the rates of new values, and the calibration. Then a second network learns the
whole history. `TrainingDataBackoff` extends short histories with those of other users.

Sizes in shapes: D distinct rows, C columns, S events of the population sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypedDict, Unpack

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.features.encoder import (
    UNKNOWN,
    Column,
    DictionaryEncoder,
    EncodedRows,
    EncodedSlice,
    Encoder,
    Number,
    match_codes,
)
from morpheus.models.autoencoder import Autoencoder, log_shares
from morpheus.models.calibration import CalibrationSet, ModelSummary
from morpheus.models.daily_usage import DailyScorer, EventValues
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
    BaselineStats,
    MaskedPredictions,
    Usage,
    number_days,
    number_sessions,
    to_milliseconds,
)
from morpheus.models.training import (
    EPOCHS,
    LAST_SHARE,
    TrainedWeights,
    Trainer,
    TrainingSet,
    TrainJob,
    TrainResult,
    derive_user_seed,
    train_sequentially,
)

VALIDATION_FRACTION = 0.25
"""Share of the history, at its end, that validates and calibrates."""
MIN_LIMIT_DAYS = 3
"""Minimum number of days to tell what only one of them has from what is usual."""
MAX_POOL = 2000
"""Maximum number of events of all users in the history of the global model."""
MIN_PEERS = 2
"""Minimum number of other users from whom a history is borrowed."""
MAX_SHARED_HISTORY = 1 / 3
"""Share of `min_events` up to which users get the model of a peer group. With more events, they are
trained themselves, with events of similar users."""
MIN_EVENTS_FOR_PEERS = 20
"""Minimum number of own events to select similar users by."""


class UserHistory(msgspec.Struct, frozen=True):
    """History of a user.

    Attributes:
        user: The user; empty for the global model.
        events: One row per event, at least one, in time order.
        times: Time of each event.
        training_data_scope: Whose history this is.
        borrowed_events: Number of events of other users; they come first, user after user.
        learned: Which events are learned, (events,); the others only calibrate, so that what is
            not learned of usual behaviour does not seem more unusual than it is. None for all.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series
    training_data_scope: str = SCOPE_OWN
    borrowed_events: int = 0
    learned: NDArray[np.bool_] | None = None

    def make_card(
        self, distinct: int, epochs: int, seed: int, columns: Sequence[str] = ()
    ) -> ModelCard:
        """Describe a fingerprint that is trained on the feature columns of this history."""
        own = self.times[self.borrowed_events :]
        first, last = ("", "") if own.is_empty() else (own[0].isoformat(), own[-1].isoformat())
        facts = (len(own), distinct, first, last, epochs, seed)
        card = ModelCard(self.user, *facts, self.training_data_scope, self.borrowed_events)
        filled = find_filled_columns(self.events, columns)
        return replace(card, filled_columns=filled)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Time of each event, in seconds since 1970, (events,)."""
        return to_milliseconds(self.times) / 1000.0

    def sessions(self, timezone: str) -> NDArray[np.intp]:
        """Return the number of the day of each event, user after user, (events,)."""
        return number_sessions(number_days(self.times, timezone))


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
    timezone: str = "UTC",
    shared: SharedNetwork | None = None,
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
        timezone: Time zone of days.
        shared: Network that all of them get in place of a training; None to train.

    Returns:
        One fingerprint for each history, in order.
    """
    encode = partial(Encoder.fit, scaler=scaler, kinds=kinds)
    splits = [
        TrainValidationSplit.from_history(
            history, columns, encode, seed=seed, population=population, timezone=timezone
        )
        for history in histories
    ]
    validated = trainer([split.make_validation_job(epochs, shared) for split in splits])
    jobs = [
        split.make_final_job(best, shared) for split, best in zip(splits, validated, strict=True)
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


class TrainValidationSplit(msgspec.Struct, frozen=True, dict=True):
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
        timezone: Time zone of days.
    """

    history: UserHistory
    train_encoder: Encoder
    train_rows: EncodedRows
    validation_rows: EncodedRows
    encoder: Encoder
    rows: EncodedRows
    seed: int
    population: Population
    timezone: str = "UTC"

    @classmethod
    def from_history(  # noqa: PLR0913 - what it depends on, and nothing else
        cls,
        history: UserHistory,
        columns: Sequence[str],
        encode: Callable[..., Encoder],
        *,
        seed: int,
        population: Population | None = None,
        timezone: str = "UTC",
    ) -> TrainValidationSplit:
        """Split and encode a history.

        Args:
            history: The history.
            columns: Feature columns.
            encode: Fits an encoder to events; see `Encoder.fit`.
            seed: Random seed of the run.
            population: Sample of all users; None for no comparison.
            timezone: Time zone of days.
        """
        events, learned = history.events, history.learned
        n_validation = max(1, int(events.height * VALIDATION_FRACTION))
        early, late = events.head(max(1, events.height - n_validation)), events.tail(n_validation)
        dictionary = DictionaryEncoder(events, columns)
        early_slice, whole = EncodedSlice(early, dictionary), EncodedSlice(events, dictionary)
        late_slice = EncodedSlice(late, dictionary, events.height - late.height)
        known = whole
        if learned is not None:
            early = early.filter(learned[: early.height])
            early_slice = EncodedSlice.from_frame(early, columns)
            known = EncodedSlice.from_frame(events.filter(learned), columns)
        train_encoder, encoder = (
            encode(part.frame, columns, encoded_slice=part) for part in (early_slice, known)
        )
        train_rows = train_encoder.encode(early, early_slice)
        validation_rows = train_encoder.encode(late, late_slice)
        rows = encoder.encode(events, whole)
        sample = population or Population.from_single_user(history.user, events, history.times)
        parts = train_rows, validation_rows, encoder, rows
        return cls(history, train_encoder, *parts, seed, sample, timezone)

    def make_validation_job(self, epochs: int, shared: SharedNetwork | None = None) -> TrainJob:
        """Return the training that finds the best number of epochs; none with a shared network."""
        if shared is not None:
            return shared.make_job(self.train_rows, self.train_encoder, self._user_seed)
        config = make_network_config(self.train_encoder)
        return TrainJob(self.train_rows, config, epochs, self._user_seed, self.validation_rows)

    def make_final_job(
        self, validated: TrainResult, shared: SharedNetwork | None = None
    ) -> TrainJob:
        """Return the training on the whole history.

        Args:
            validated: Result of the validation job, with whose weights it starts.
            shared: Network that is not trained.
        """
        if shared is not None:
            return shared.make_job(self.learned_rows, self.encoder, self._user_seed)
        data, epochs = TrainingSet.from_rows(self.train_rows), validated.epochs
        places = match_codes(self.encoder, self.train_encoder)
        return TrainJob(
            self.learned_rows,
            make_network_config(self.encoder),
            epochs,
            self._user_seed,
            start=TrainedWeights.from_training(validated.net, data, *places),
            first_epoch=epochs - math.ceil(epochs * LAST_SHARE) + 1,
        )

    def build_fingerprint(self, validated: TrainResult, final: TrainResult) -> Fingerprint:
        """Build the fingerprint.

        Args:
            validated: Result of the validation job, which gives the baselines and the calibration.
            final: Result of the final job.
        """
        run = ValidationRun.from_network(self, validated.net)
        usual = run.measure_usual()
        calibration = run.calibrate().center(self._typical_score(final.net))
        own_seconds = self.history.seconds[self.history.borrowed_events :]
        rate_by_column = dict(zip(self.encoder.names, self.oov_rates.tolist(), strict=True))
        summary = ModelSummary.from_calibration(
            own_seconds, validated.loss_curve, calibration, rate_by_column
        )
        card = self.history.make_card(
            len(self.rows.codes), final.epochs, self.seed, self.encoder.names
        )
        return Fingerprint(
            replace(card, summary=summary),
            self.encoder,
            final.net,
            self.oov_rates,
            run.measure_losses(),
            calibration,
            self.count_usage(len(self.rows.inverse)),
            usual,
        )

    def count_usage(self, events: int) -> Usage:
        """Count the values of the first events of the history, with the codes of the whole."""
        codes, sessions = self.rows.codes[self.rows.inverse[:events]], self.sessions[:events]
        if self.history.learned is not None:
            learned = self.history.learned[:events]
            codes, sessions = codes[learned], number_sessions(sessions[learned].astype(np.int64))
        return Usage.fit(
            codes,
            sessions,
            sizes=[column.n_codes for column in self.encoder.columns],
            others=self._others,
            novelty_prior=self._novelty_prior,
            leads=self._leads,
        )

    @cached_property
    def _others(self) -> NDArray[np.float64]:
        """Share of each code among other users, (V,)."""
        population, user = self.population, self.history.user
        columns = self.encoder.columns
        return np.concatenate([population.others(c.name, _vocabulary(c), user) for c in columns])

    @cached_property
    def _novelty_prior(self) -> NDArray[np.float64]:
        """Rate of new values of each column in the population, (C,)."""
        novelty = np.array([self.population.novelty(name) for name in self.encoder.names])
        return np.where(np.isnan(novelty), self.oov_rates, novelty)

    @cached_property
    def _leads(self) -> tuple[int, ...]:
        """For each column the first column with the same information, (C,)."""
        return find_redundant_columns(self.encoder, self.learned_rows)

    @cached_property
    def learned_rows(self) -> EncodedRows:
        """The events that are learned, encoded by `encoder`."""
        learned = self.history.learned
        if learned is None:
            return self.rows
        return self.encoder.encode(self.history.events.filter(learned))

    @cached_property
    def oov_rates(self) -> NDArray[np.float32]:
        """Share of validation events with a new value, (C,)."""
        return measure_oov_rates(self.validation_rows.codes, self.validation_rows.counts)

    @cached_property
    def sessions(self) -> NDArray[np.intp]:
        """Number of the day of each event of the history, (events,)."""
        return self.history.sessions(self.timezone)

    def _typical_score(self, net: Autoencoder) -> float:
        """Return the median score of the history by the network that scores."""
        losses = apply_oov_penalty(raw_losses(net, self.rows), self.oov_rates, self.rows)
        return float(np.median(losses.mean(1, dtype=np.float64)[self.rows.inverse]))

    @property
    def _user_seed(self) -> int:
        return derive_user_seed(self.seed, self.history.user)


class ValidationRun(msgspec.Struct, frozen=True, dict=True):
    """Validation events, as scored by a network and by counts of earlier events.

    Attributes:
        split: The history.
        losses: Raw loss of each column of each distinct row, (D, C).
        predictions: Predictions of each column from the other columns.
    """

    split: TrainValidationSplit
    losses: NDArray[np.float32]
    predictions: MaskedPredictions

    @classmethod
    def from_network(cls, split: TrainValidationSplit, net: Autoencoder) -> ValidationRun:
        """Run a network that was trained on the earlier events on the validation events."""
        rows = split.validation_rows
        return cls(split, raw_losses(net, rows), MaskedPredictions.predict(net, rows))

    @cached_property
    def sessions(self) -> NDArray[np.intp]:
        """Number of the day of each validation event, (events,)."""
        return self.split.sessions[-len(self.split.validation_rows.inverse) :]

    def measure_losses(self) -> BaselineStats:
        """Return the usual loss of each column."""
        rows = self.split.validation_rows
        losses = apply_oov_penalty(self.losses, self.split.oov_rates, rows)[rows.inverse]
        return BaselineStats.fit(limit_by_day(losses, self.sessions))

    def measure_usual(self, events: NDArray[np.bool_] | None = None) -> BaselineStats:
        """Return the usual conditional surprise of each column.

        Args:
            events: Which validation events to use; None for all.
        """
        chosen = slice(None) if events is None else events
        return BaselineStats.fit(limit_by_day(self._surprise[chosen], self.sessions[chosen]))

    def calibrate(self) -> CalibrationSet:
        """Score the validation events, each day by the days before it.

        What is usual in one half of the days is measured in the other half, because it is also
        measured in other days for new events.
        """
        rows = self.split.validation_rows
        losses = apply_oov_penalty(self.losses, self.split.oov_rates, rows)
        scores = losses.mean(1, dtype=np.float64)[rows.inverse]
        days = self.sessions - self.sessions[0]
        late = days > days[-1] // 2 if days[-1] else np.arange(len(days)) >= len(days) // 2
        risks = np.zeros(len(days))
        for half in (late, ~late):
            if half.any():
                usual = self.measure_usual(~half if (~half).any() else half)
                # What comes after the half does not change its risks.
                end = int(np.flatnonzero(half)[-1]) + 1
                scored = self._scorer(usual).measure_risks(self._values.take(slice(end)))
                risks[:end][half[:end]] = scored[half[:end]]
        whole = self.sessions != self._cut_day
        maxima = _maxima_by_day(risks, self.sessions, whole if whole.any() else ~whole)
        limited = limit_by_day(scores[:, None], self.sessions)[:, 0]
        return CalibrationSet.from_scores(limited, risks, maxima)

    @cached_property
    def _surprise(self) -> NDArray[np.float64]:
        """Conditional surprise of each column of each validation event, (events, C)."""
        return self._scorer().measure_conditional(self._values)

    @cached_property
    def _values(self) -> EventValues:
        split, rows = self.split, self.split.validation_rows
        usage, inverse = self._usage, rows.inverse
        codes = split.rows.codes[split.rows.inverse[-len(inverse) :]]
        known = np.where(rows.codes == UNKNOWN, 0, self.predictions.probability)
        return EventValues(
            keys=codes + usage.offsets,
            codes=codes + usage.offsets,
            probability=known[inverse].astype(np.float64),
            number_error=self.predictions.number_error[inverse].astype(np.float64),
            inverse=np.arange(len(inverse)),
            days=self.sessions.astype(np.int64),
        )

    @cached_property
    def _usage(self) -> Usage:
        """The earlier events."""
        split = self.split
        return split.count_usage(len(split.rows.inverse) - len(self.sessions))

    @cached_property
    def _cut_day(self) -> int:
        """Number of a day that has both earlier and validation events; -1 if none has."""
        sessions, first = self.split.sessions, int(self.sessions[0])
        before = len(sessions) - len(self.sessions) - 1
        return first if before >= 0 and sessions[before] == first else -1

    def _scorer(self, usual: BaselineStats | None = None) -> DailyScorer:
        none = np.zeros(len(self._usage.offsets), dtype=np.float32)
        return DailyScorer(self._usage, usual or BaselineStats(none, none), np.empty(0))


class SharedNetwork(msgspec.Struct, frozen=True):
    """The network of a peer group, which users with little history take over without training.

    Values that only the user has are added to its vocabulary. The network predicts them by how
    often they occur.

    Attributes:
        fingerprint: Trained on events of the group alone.
        initial_bias: Biases of its codes before the training, (V,).
        peers: Events of the group in the population sample.
    """

    fingerprint: Fingerprint
    initial_bias: NDArray[np.float64]
    peers: NDArray[np.intp]

    @classmethod
    def from_history(
        cls, fingerprint: Fingerprint, history: UserHistory, peers: NDArray[np.intp]
    ) -> SharedNetwork:
        """Find the initial biases from the history that the network was trained on."""
        config = make_network_config(fingerprint.encoder)
        data = TrainingSet.from_rows(fingerprint.encoder.encode(history.events))
        return cls(fingerprint, log_shares(config, data.code_frequencies(config)), peers)

    def make_job(self, rows: EncodedRows, encoder: Encoder, seed: int) -> TrainJob:
        """Return a training of no epochs.

        Args:
            rows: The events whose frequencies the network follows.
            encoder: What encoded them.
            seed: Seed of the user.
        """
        base = self.fingerprint
        assert isinstance(base.net, Autoencoder)  # noqa: S101 - the reference network is not shared
        places = match_codes(encoder, base.encoder)
        start, epochs = TrainedWeights(base.net, *places, self.initial_bias), base.card.epochs
        config = make_network_config(encoder)
        return TrainJob(rows, config, epochs, seed, start=start, first_epoch=epochs + 1)


def limit_by_day(
    values: NDArray[np.floating[Any]], sessions: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Limit values to the second highest maximum of a day, (n, quantities).

    So what was unusual on a single day, such as an intrusion or a wrong record, does not change
    what is usual. With fewer than `MIN_LIMIT_DAYS` days nothing is limited.

    Args:
        values: The values.
        sessions: Number of the day of each row, ascending, (n,).

    >>> limit_by_day(np.array([[1.0], [9.0], [2.0], [3.0]]), np.array([0, 1, 2, 2])).ravel()
    array([1., 3., 2., 3.])
    """
    starts = np.flatnonzero(np.diff(sessions, prepend=-1))
    if len(starts) < MIN_LIMIT_DAYS:
        return np.asarray(values, dtype=np.float64)
    maxima = np.maximum.reduceat(values, starts, axis=0)
    limit = np.sort(maxima, axis=0)[-2]
    return np.asarray(np.minimum(values, limit), dtype=np.float64)


def _vocabulary(column: Column) -> tuple[str, ...] | None:
    return None if isinstance(column, Number) else column.vocabulary


def _maxima_by_day(
    risks: NDArray[np.float64], sessions: NDArray[np.intp], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    starts = np.flatnonzero(np.diff(sessions[chosen], prepend=-1))
    return np.asarray(np.maximum.reduceat(risks[chosen], starts))


class PeerNetworks(msgspec.Struct):
    """The networks of the peer groups that users have needed so far.

    Attributes:
        backoff: Chooses the events of a group.
        fit: Trains fingerprints, or gives them a network; see `fit_fingerprints`.
        networks: Network by number of the group.
    """

    backoff: TrainingDataBackoff
    fit: Callable[[Sequence[UserHistory], SharedNetwork | None], Sequence[Fingerprint]]
    networks: dict[int, SharedNetwork] = msgspec.field(default_factory=dict)

    def adapt(self, history: UserHistory) -> Fingerprint:
        """Return the fingerprint of a user with little history."""
        group = self.backoff.population.peer_groups.find(history.events)
        if group not in self.networks:
            self.networks[group] = self._train(group)
        network = self.networks[group]
        [fingerprint] = self.fit([self.backoff.add_peers(history, network.peers)], network)
        return fingerprint

    def _train(self, group: int) -> SharedNetwork:
        population, peers = self.backoff.population, self.backoff.find_peers(group)
        none = population.events.clear(), population.times.clear()
        history = self.backoff.add_peers(UserHistory(f"peer group {group}", *none), peers)
        [trained] = self.fit([history], None)
        return SharedNetwork.from_history(trained, history, peers)


class TrainingDataBackoff(msgspec.Struct, frozen=True):
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
        owners, events = self.population.count_others(user)
        if owners < MIN_PEERS or own + events < self.min_events:
            return None
        few = self.global_only or own < MIN_EVENTS_FOR_PEERS
        return SCOPE_GLOBAL if few else SCOPE_PEER_GROUP

    def resolve_global(self, min_owners: int = MIN_PEERS) -> UserHistory | None:
        """Return the history of the global model; None if all users have too little history.

        Args:
            min_owners: Minimum number of users.
        """
        owners, events = self.population.count_others("")
        if owners < min_owners or events < self.min_events:
            return None
        all_rows = self._other_users("")
        no_events = self.population.events.clear()
        history = UserHistory("", no_events, self.population.times.clear())
        return self._fill(history, _sample_evenly(all_rows, MAX_POOL), SCOPE_GLOBAL)

    def can_share(self, own: int) -> bool:
        """Return whether a user with so many events gets the model of a peer group."""
        return own < MAX_SHARED_HISTORY * self.min_events

    def find_peers(self, group: int) -> NDArray[np.intp]:
        """Return the events of a peer group in the sample.

        Events of other similar users follow, until there are twice as many as a training needs:
        those of the user in question are left out later.

        Args:
            group: Number of the group.
        """
        groups, owners = self.population.peer_groups, self.population.owner_numbers
        order = groups.order_users(group)
        ends = np.bincount(owners, minlength=len(order))[order].cumsum()
        enough = int(np.searchsorted(ends, 2 * self.min_events)) + 1
        members = int((groups.owners == group).sum())
        chosen = order[: max(members, enough, MIN_PEERS + 1)]
        return np.flatnonzero(np.isin(owners, chosen))

    def add_peers(self, history: UserHistory, peers: NDArray[np.intp]) -> UserHistory:
        """Extend a history with some events of a peer group, without those of the user.

        Args:
            history: The user's own history.
            peers: What `find_peers` returned.
        """
        population, missing = self.population, self.min_events - history.events.height
        own = population.find_owner(history.user)
        others = peers[population.owner_numbers[peers] != own]
        return self._fill(history, _sample_evenly(others, missing), SCOPE_PEER_GROUP)

    def _other_users(self, user: str) -> NDArray[np.intp]:
        population = self.population
        return np.flatnonzero(population.owner_numbers != population.find_owner(user))

    def _fill(self, history: UserHistory, borrowed: NDArray[np.intp], scope: str) -> UserHistory:
        events = pl.concat([self.population.events[borrowed], history.events], how="diagonal")
        times = pl.concat([self.population.times[borrowed], history.times])
        learned = history.learned
        if learned is not None:
            learned = np.append(np.ones(len(borrowed), dtype=np.bool_), learned)
        return UserHistory(history.user, events, times, scope, len(borrowed), learned)

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
