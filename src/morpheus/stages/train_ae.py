"""`train-ae`: load or train the fingerprint of each user.

`TrainAe` is the stage. A `ModelProvider`, one per process, loads and trains fingerprints for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import polars as pl
from msgspec import structs

from morpheus.columns import INDEX, POPULATION_USER, ROW, TIME
from morpheus.core.batch import Events, RunMetrics, WithModel
from morpheus.core.registry import stage_names
from morpheus.core.stage import (
    Outputs,
    Requirements,
    StageContext,
    Transform,
    option,
)
from morpheus.errors import ModelCorruptedError, MorpheusError, UsageError, find_error_code
from morpheus.models.batched_training import require_torch, resolve_device, select_trainer
from morpheus.models.fit import (
    MIN_EVENTS_FOR_PEERS,
    MIN_PEERS,
    FitOptions,
    PeerNetworks,
    SharedNetwork,
    TrainingDataBackoff,
    UserHistory,
    fit_fingerprints,
)
from morpheus.models.input_check import (
    MIN_EVENTS_TO_CHECK,
    DatasetProfile,
    InputCheck,
    InputProfile,
)
from morpheus.models.population import Population
from morpheus.models.profile import (
    SCOPE_GLOBAL,
    SCOPE_PEER_GROUP,
    Fingerprint,
    ModelCard,
    list_names,
)
from morpheus.models.store import KEY_VARIABLE, ModelStore, SavedModels, put_model, read_key
from morpheus.models.training import (
    EPOCHS,
    MAX_BATCHED_USERS,
    gpu_possible,
    train_sequentially,
)
from morpheus.storage.object_store import is_remote
from morpheus.text import describe_no_folder, suggest

if TYPE_CHECKING:
    from morpheus.models.versions import ModelVersion, Replaced, StagingFolder, VersionedStore
    from morpheus.suppressions.proposals import TrainingVerdicts

logger = logging.getLogger(__name__)

DEFAULT_MAX_HISTORY = 1000
"""Maximum number of events to train on, per user, if there are no training files."""
ALL, INDIVIDUAL, GENERIC, NONE = "all", "individual", "generic", "none"
"""Values of `--train_users`."""
NO_FINGERPRINT = "no fingerprint"
_RETRY_SECONDS = 2.0
"""Seconds between two attempts to read models that cannot be read."""
_TOO_FEW_EVENTS = "all users together have too little history"
_PER_RUN = (
    "it trains on the input of each run. Give `--train_data_glob` or `--pretrained_filename`, the "
    "same in each run."
)


class ModelLookup(msgspec.Struct, frozen=True):
    """A user's fingerprint and its card, or the reason why there is none."""

    fingerprint: Fingerprint | None = None
    card: ModelCard | None = None
    reason: str | None = None
    replaced: Replaced | None = None

    @classmethod
    def from_fingerprint(
        cls, fingerprint: Fingerprint, replaced: Replaced | None = None
    ) -> ModelLookup:
        """Return the lookup of a user with a fingerprint.

        Args:
            fingerprint: The fingerprint.
            replaced: The damaged fingerprint that it replaces.
        """
        return cls(fingerprint, fingerprint.card, replaced=replaced)


class UserTraining(msgspec.Struct):
    """What `train-ae` remembers about one user during a run.

    Attributes:
        provider: Loads and trains fingerprints.
        lookup: The fingerprint or the reason why there is none; None before the lookup.
        waiting: Batches that wait for the user's last event, when users are trained on the input,
            or on accepted events of it.
        recent_events: The latest events, when users are trained on an unbounded input.
        accepted: Number of accepted events in the history, until a batch has it.
        excluded: Number of excluded events, until a batch has it.
        loaded: `ModelProvider.loaded` when the fingerprint was looked up.
    """

    provider: ModelProvider
    lookup: ModelLookup | None = None
    waiting: list[Events] = msgspec.field(default_factory=list)
    recent_events: pl.DataFrame | None = None
    accepted: int = 0
    excluded: int = 0
    loaded: int = 0


class ModelProvider(msgspec.Struct, dict=True):
    """Loads or trains the fingerprints of users.

    Attributes:
        stage: The stage, with the options.
        backoff: Extends short histories with events of similar users; None without a population.
        loaded: How many versions of the store have been opened; see `refresh`.
        etag: State of the store when it was last looked at.
        next_look: Time of the next look at the store, by the monotonic clock.
        newer: The version that has been opened since the start; None for the first one.
        wait: See `StageContext`.
        shared: The global model, with the `loaded` of its store: users without a fingerprint share
            it.
    """

    stage: TrainAe
    backoff: TrainingDataBackoff | None
    loaded: int = 0
    etag: object = None
    next_look: float = 0.0
    newer: ModelVersion | None = None
    wait: Callable[[float], None] = time.sleep
    shared: tuple[int, ModelLookup] | None = None

    @property
    def store(self) -> ModelVersion:
        """The version whose fingerprints are loaded."""
        return self.newer or self.stage.model_store

    @classmethod
    def from_population(cls, stage: TrainAe, population: pl.DataFrame | None) -> ModelProvider:
        """Make a provider that compares users with a sample of all users' histories."""
        if population is not None and stage.training_verdicts is not None:
            population = stage.training_verdicts.drop_dangerous(population)
        if population is None or population.is_empty():
            return cls(stage, None)
        features = population.drop(POPULATION_USER, TIME, strict=False)
        users = Population(population[POPULATION_USER], population[TIME], features)
        generic = stage.options.use_generic_model
        return cls(stage, TrainingDataBackoff(users, stage.train_min_history, generic))

    @cached_property
    def global_model(self) -> ModelLookup | None:
        """The fingerprint for users without history; None if the whole population is too small."""
        stage = self.stage
        if stage.prepared.global_model is not None:
            return stage.prepared.global_model
        history = None
        if self.backoff is not None and not stage.prepared.keeps_global:
            min_owners = 1 if stage.train_users == GENERIC else MIN_PEERS
            history = self.backoff.resolve_global(min_owners)
        if history is not None:
            return ModelLookup.from_fingerprint(self.train([history])[0])
        saved = stage.model_store.load_global() if stage.renews else None
        return None if saved is None else ModelLookup.from_fingerprint(saved)

    def look_up(self, users: Sequence[tuple[UserTraining, Sequence[Events]]]) -> None:
        """Load or train the fingerprints of several users together.

        Args:
            users: State and batches of each user. The result is put into the state.
        """
        pending: dict[str, UserHistory] = {}
        waiting: dict[str, UserTraining] = {}
        for state, batches in users:
            state.lookup = self._find(state, batches, pending)
            if state.lookup is None:
                waiting[str(batches[0].user)] = state
        for user, history in pending.items():
            self._check_columns(history.events.columns)
            logger.debug("Training AE model for user: '%s'...", user)
        fingerprints = self.train(list(pending.values())) if pending else []
        for fingerprint in fingerprints:
            user = fingerprint.card.user
            logger.debug("Training AE model for user: '%s'... Complete.", user)
            waiting[user].lookup = ModelLookup.from_fingerprint(self._save(fingerprint))

    def train(
        self, histories: Sequence[UserHistory], shared: SharedNetwork | None = None
    ) -> list[Fingerprint]:
        """Train the fingerprints of users with the options of the stage.

        Args:
            histories: Histories of the users.
            shared: Network that all of them get in place of a training; None to train.
        """
        stage = self.stage
        columns, options = stage.options.columns, stage.fit_options()
        if stage.model == "reference":
            from morpheus.models.reference import fit_dfencoder_fingerprints  # noqa: PLC0415 - torch takes a second to import

            return fit_dfencoder_fingerprints(histories, columns, **options)
        device, n_users = stage.device.lower(), len(histories)
        may_use_gpu = gpu_possible(device, n_users)
        trainer = select_trainer(device, n_users) if may_use_gpu else train_sequentially
        population = None if self.backoff is None else self.backoff.population
        return fit_fingerprints(
            histories,
            columns,
            trainer=trainer,
            population=population,
            kinds=stage.options.column_types,
            timezone=stage.options.timezone,
            shared=shared,
            **options,
        )

    def _find(
        self, state: UserTraining, batches: Sequence[Events], pending: dict[str, UserHistory]
    ) -> ModelLookup | None:
        """Return the fingerprint of a user, or the reason why there is none.

        If the fingerprint must be trained, put the training history into `pending`, and return
        None.
        """
        user, stage = batches[0].user, self.stage
        if user is None:
            return ModelLookup(reason=f"no value in `{stage.options.userid_column_name}`")
        if not stage.trains:
            return self._load_patiently(user)
        if not batches[0].table.height and stage.models_output_filename is None:
            return ModelLookup()
        if stage.train_users == GENERIC:
            return self._load_own(user) or self.global_model or ModelLookup(reason=_TOO_FEW_EVENTS)
        events = self._training_history(state, batches)
        found = self._find_untrained(user, events)
        if found is None:
            history = self._with_backoff(UserHistory(user, events, events[TIME]))
            if history is None:
                return self._explain_missing(events)
            pending[user] = history
        return found

    def _find_untrained(self, user: str, events: pl.DataFrame) -> ModelLookup | None:
        """Return what a user with too little history gets; None if the user is to be trained."""
        stage = self.stage
        saved = None if events.height >= stage.train_min_history else self._load_own(user)
        if saved is not None:
            return saved
        if not self._needs_global(user, events.height):
            return self._adapt_peer_network(user, events)
        return (
            self._explain_missing(events) if stage.train_users == INDIVIDUAL else self.global_model
        )

    def _explain_missing(self, events: pl.DataFrame) -> ModelLookup:
        needed = self.stage.train_min_history
        return ModelLookup(reason=f"{events.height} events of history, {needed} needed")

    def _load(self, user: str) -> ModelLookup:
        store = self.store
        is_own = user in store.cards
        if not is_own and self.shared is not None and self.shared[0] == self.loaded:
            return self.shared[1]
        known = len(store.replaced)
        fingerprint = store.load(user)
        if fingerprint is None:
            return ModelLookup(reason=NO_FINGERPRINT)
        replaced = next(iter(store.replaced[known:]), None)
        found = ModelLookup.from_fingerprint(fingerprint, replaced)
        if not is_own:
            self.shared = (self.loaded, found)
        return found

    def _load_patiently(self, user: str) -> ModelLookup:
        """Load a fingerprint. An endless run waits while the store cannot be read.

        Its folder is moved, or its server is down: that is no reason to stop, or to leave events
        without a score.
        """
        waited = False
        while True:
            try:
                found = self._load(user)
                break
            except (MorpheusError, OSError) as error:
                if not self.stage.options.unbounded or _is_damage(error):
                    raise
                logger.warning(
                    "train-ae: %s The run waits until the models can be read.",
                    error,
                    extra={"stage": self.stage.name, "code": find_error_code(error)},
                )
            waited = True
            self.wait(_RETRY_SECONDS)
            if self.stage.follows_store:
                self._look()
        if waited:
            logger.warning("train-ae: the models can be read again.")
        return found

    def refresh(self, state: UserTraining, user: str | None) -> None:
        """Look whether the store has a new version, and forget a user's fingerprint if it changed.

        The store is looked at no more often than every `--model_refresh` seconds. A store that
        cannot be read is no reason to stop: the present fingerprints stay in use.
        """
        now, stage = time.monotonic(), self.stage
        if now >= self.next_look:
            first, self.next_look = self.next_look == 0, now + stage.model_refresh
            self._look(first=first)
        if state.loaded != self.loaded:
            state.loaded = self.loaded
            before = None if state.lookup is None else state.lookup.card
            placed = None if user is None else self.store.find_used(user)
            after = None if placed is None else placed.card
            if before is None or after is None or before.sha256 != after.sha256:
                state.lookup = None

    def _look(self, *, first: bool = False) -> None:
        """Open the newest version; keep the present one if there is no other that can be used."""
        try:
            self._open_newer(first=first)
        except (MorpheusError, OSError) as error:
            logger.warning("train-ae: no new version of the models can be used: %s", error)

    def _open_newer(self, *, first: bool) -> None:
        """Open the version that the alias names, if the store has changed.

        A version can change and keep its number: users are erased, or another store is moved there.
        """
        from morpheus.models.versions import CHAMPION, VersionedStore  # noqa: PLC0415 - runs without a store do not need it

        location, alias = self.stage.pretrained_place
        versions = VersionedStore.open(location, self.stage.key)
        etag, before = versions.read_etag(), self.etag
        if etag == before:
            return
        if not versions.versions():
            raise ModelCorruptedError(f"{location}: has no versions any more. Put the store back.")
        stored = versions.find_stored(alias or CHAMPION)
        if (stored.number, stored.indexes) == (self.store.number, self.store.indexes):
            self.etag = etag
            return
        opened, number = versions.open_version(alias or CHAMPION), self.store.number
        self.stage.check_inputs(opened, f"The models in `{opened.location}`")
        self.etag = etag
        if (opened.number, opened.indexes) == (number, self.store.indexes):
            return
        self.newer, self.loaded = opened, self.loaded + 1
        if not first and opened.number != number:
            logger.info("train-ae: version %d of the models is used from now on.", opened.number)

    def _load_own(self, user: str) -> ModelLookup | None:
        """Load the user's own fingerprint when a store is renewed; None if there is none."""
        known = self.stage.renews and user in self.stage.model_store.cards
        return self._load(user) if known else None

    def _needs_global(self, user: str, events: int) -> bool:
        """Return whether a user has too little history to be trained, even with similar users."""
        if self.backoff is None or events == 0:
            return events == 0
        return self.backoff.choose_scope(user, events) == SCOPE_GLOBAL

    def _adapt_peer_network(self, user: str, events: pl.DataFrame) -> ModelLookup | None:
        """Return a fingerprint with a peer group's network; None for a user with more events."""
        if (
            self.backoff is None
            or self.stage.model == "reference"
            or self.backoff.choose_scope(user, events.height) != SCOPE_PEER_GROUP
            or not self.backoff.can_share(events.height)
        ):
            return None
        fingerprint = self._peer_networks.adapt(UserHistory(user, events, events[TIME]))
        return ModelLookup.from_fingerprint(self._save(fingerprint))

    @cached_property
    def _peer_networks(self) -> PeerNetworks:
        assert self.backoff is not None  # noqa: S101 - `_adapt_peer_network` has looked
        return PeerNetworks(self.backoff, self.train)

    def _with_backoff(self, history: UserHistory) -> UserHistory | None:
        if self.backoff is not None:
            return self.backoff.resolve(history)
        enough = history.events.height >= self.stage.train_min_history
        return history if enough else None

    def _training_history(self, state: UserTraining, batches: Sequence[Events]) -> pl.DataFrame:
        limit = self.stage.train_max_history
        if self.stage.train_data_glob:
            given = batches[0].history
            history = (batches[0].table.clear() if given is None else given).to_frame()
            history = self._apply_verdicts(state, history, batches)
            return history if limit is None else history.tail(limit)
        frames = [] if state.recent_events is None else [state.recent_events]
        joined = pl.concat(
            [*frames, *(batch.table.to_frame() for batch in batches)], how="diagonal"
        )
        joined = self._exclude(state, batches[0].user, joined)
        state.recent_events = joined.tail(limit or DEFAULT_MAX_HISTORY)
        return state.recent_events

    def _exclude(self, state: UserTraining, user: str | None, events: pl.DataFrame) -> pl.DataFrame:
        """Drop and count events that were judged dangerous."""
        if self.stage.training_verdicts is None:
            return events
        dangerous = self.stage.training_verdicts.find_dangerous(user, events)
        state.excluded += int(dangerous.sum())
        return events.filter(~dangerous)

    def _apply_verdicts(
        self, state: UserTraining, history: pl.DataFrame, batches: Sequence[Events]
    ) -> pl.DataFrame:
        """Add accepted events of the input to a history, and drop dangerous ones."""
        user, judged = batches[0].user, self.stage.training_verdicts
        history = self._exclude(state, user, history)
        if judged is None or user not in judged.accepted:
            return history
        events = pl.concat([batch.table.to_frame() for batch in batches], how="diagonal")
        accepted = events.filter(
            judged.find_accepted(user, events) & ~judged.find_dangerous(user, events)
        )
        # The same files can be input and training files.
        names = [name for name in events.columns if name not in {ROW, INDEX}]
        names = [name for name in names if name in history.columns]
        accepted = accepted.join(history, on=names, how="anti", nulls_equal=True)
        state.accepted += accepted.height
        return pl.concat([history, accepted], how="diagonal_relaxed").sort(
            TIME, maintain_order=True
        )

    def _save(self, fingerprint: Fingerprint) -> Fingerprint:
        if self.stage.models_output_filename is None:
            return fingerprint
        written = self.stage.write_file(fingerprint)
        card = structs.replace(written, version=self.stage.saved_version)
        return replace(fingerprint, card=card)

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not set(self.stage.options.columns) & set(columns):
            raise UsageError(
                "None of the feature columns is in the logs. Give a feature list with "
                "`--columns_file=...`, one column per line: " + ", ".join(columns[2:12]) + ", ..."
            )


def _is_damage(error: Exception) -> bool:
    """Return whether models were read, and are not as their store says.

    A file that is missing or too short can be on its way.
    """
    is_missing = isinstance(error.__cause__, OSError | EOFError)
    return isinstance(error, ModelCorruptedError) and not is_missing


class PreparedRun(msgspec.Struct):
    """What `TrainAe.check_input` has found out before the first event, for all processes.

    Attributes:
        global_model: The global model, if it is surely needed; it is trained once.
        keeps_global: The global model of the renewed store is kept, because the training files have
            too few of its users.
        trained_until: Time of the latest training event, ISO 8601; empty if it is not known.
        empty_features: Features without a value in any training event.
        checked: Whether the input of a watched directory has been checked.
        loaded_version: Number of the version of the loaded store, the same in all processes.
        saved_version: Number of the version that will be published.
        reserved: The same, if no other run can take it; else None.
        staging: Folder for the files of the fingerprints until they are published, if the store is
            on disk. Each run has its own: another one can train the same fingerprints.
    """

    global_model: ModelLookup | None = None
    keeps_global: bool = False
    trained_until: str = ""
    empty_features: tuple[str, ...] = ()
    checked: bool = False
    loaded_version: int | None = None
    saved_version: int | None = None
    reserved: int | None = None
    staging: str = ""


def find_source_word(class_name: str) -> str | None:
    """Return the word of a source; None if there is no such source.

    Args:
        class_name: The word, or the class in old command lines, with or without its package.

    >>> find_source_word("morpheus.stages.input.CloudTrailSourceStage")
    'from-cloudtrail'
    """
    name = class_name.rsplit(".", 1)[-1]
    word = name if name.startswith("from-") else f"from-{name.removesuffix('SourceStage').lower()}"
    return word if word in stage_names() else None


@dataclass(frozen=True)
class TrainAe(Transform):
    """Train or load the fingerprint of each user: an autoencoder of the user's normal behaviour.

    Takes events of a source; put `preprocess` after it. Fingerprints are trained on
    `--train_data_glob`, loaded from `--pretrained_filename`, or trained on the input itself.

    A user with too little history is trained with additional events of similar users. A user
    without history gets the global model, which is trained on events of all users. The labels
    `rung` and `own_share` of `add-scores` show this. If even all users together have too little
    history, events get no score, and the summary says so.

    Fingerprints are saved in a model store with numbered versions; `morpheus models` lists them.
    `STORE@candidate` and `STORE@3` select a version by its alias or number. An input without end
    takes new versions without a restart.

    Fingerprints are saved with the log format, the user column and the features. A run with others
    is rejected. To renew some of the fingerprints of a folder, give `--pretrained_filename`,
    `--train_data_glob` and `--models_output_filename`. All others are kept.

    Example: `train-ae --train_data_glob="data/training-data/*.csv" --seed=42`
    """

    name = "train-ae"
    takes = (Events,)
    gives = WithModel

    pretrained_filename: str | None = option(
        None,
        "Model store to load fingerprints from, on disk, as `s3://bucket/folder` or as "
        "`mlflow:NAME`, and `@` with an alias or a number. Default: its champion. Nothing is "
        "trained, unless --train_data_glob and --models_output_filename are given too.",
        path=True,
        location="any",
    )
    train_data_glob: str | tuple[str, ...] | None = option(
        None,
        "Glob of the training files, in the format of the input. Repeat for more. By default users "
        "are trained on the input.",
        location="any",
    )
    source_stage_class: str | None = option(
        None,
        "Accepted for old command lines. The source of the pipeline reads the training files.",
    )
    model: str = option(
        "compact",
        "Network: `compact` is small, and training stops when it is best on validation events. "
        "`reference` is the network of NVIDIA Morpheus 22.09, trained for all epochs, for "
        "comparison. It needs torch.",
        choices=("compact", "reference"),
    )
    device: str = option(
        "auto",
        "Device for training: `cuda` trains many users at a time, `cpu` trains --num_threads users "
        "at a time. `auto` uses a GPU if there is one.",
        choices=("auto", "cpu", "cuda"),
    )
    train_epochs: int | None = option(
        None,
        "Maximum number of passes over a user's distinct rows; training stops earlier when it is "
        f"best. [default: {EPOCHS}; 25 for the reference]",
        min=1,
    )
    train_min_history: int = option(
        300,
        "Minimum number of training events of a user. Fewer are extended with events of similar "
        "users.",
        min=1,
    )
    train_max_history: int | None = option(
        None,
        "Maximum number of training events of a user; the latest are used. [default: all events of "
        f"the training files; {DEFAULT_MAX_HISTORY} events of the input]",
        min=1,
    )
    seed: int | None = option(
        None, "Random seed. Default: --manual_seed of `run`, or 0. Equal seeds give equal results."
    )
    sort_glob: bool = option(
        False,
        "Accepted for old command lines; no effect. Files are always read in sorted order.",
        flag=True,
    )
    models_output_filename: str | None = option(
        None,
        "Model store to publish a version in, on disk, as `s3://bucket/folder` or as "
        "`mlflow:NAME`, and `@` with the alias that names it. Default alias: `champion`, which "
        "later runs load with --pretrained_filename. Fingerprints of other users of the champion "
        "are kept.",
        path=True,
        location="any",
    )
    model_refresh: float = option(
        10.0,
        "On an input without end, seconds between two looks for a new version of the store of "
        "--pretrained_filename. Each user's next batch uses it. 0: never.",
        min=0,
    )
    train_users: str = option(
        ALL,
        "What to train: individual fingerprints and the global (generic) model, only one of the "
        "two, or nothing.",
        choices=(ALL, INDIVIDUAL, GENERIC, NONE),
    )
    verdicts: tuple[str, ...] = option(
        (),
        "File of verdicts that the report exported; repeat for more. Events of incidents accepted "
        "as normal are added to the training, also those of the input. Events of incidents judged "
        "suspicious or malicious are left out of it.",
        location="local",
    )
    models_key_file: str | None = option(
        None,
        "File with a secret key of at least 16 bytes, which signs the folders of fingerprints. A "
        "folder that was changed, or signed with another key, is rejected. [default: "
        f"${KEY_VARIABLE}]",
        path=True,
        location="local",
    )

    def validate(self) -> None:
        """Check that options fit together, and that torch, a GPU and the index are there."""
        if self.model == "reference":
            require_torch("--model=reference")
        self._check_train_users()
        self._check_verdicts()
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        if self.models_output_filename is not None:
            self._check_output()
        self._check_source()
        if self.device.lower() == "cuda" and self.trains:
            self._check_gpu()

    @property
    def needs(self) -> Requirements:
        """Training needs the training files, a population sample, and CPU time."""
        if not self.trains:
            return Requirements(reopens=True)
        on_gpu = self.device.lower() == "cuda"
        return Requirements(
            cpu_bound=True,
            population=self.model == "compact",
            users_per_bundle=self._users_per_bundle(),
            per_run=_PER_RUN if self._trains_on_input() else "",
            training_input=self.train_data_glob,
            resources={"GPU": 1.0} if on_gpu else {},
        )

    def open(self, context: StageContext) -> UserTraining:
        """Start without a fingerprint; all users of a process share one provider."""
        provider = context.cache.get(self.name)
        if provider is None:
            provider = ModelProvider.from_population(self, context.population)
            provider.wait = context.wait
            context.cache[self.name] = provider
        return UserTraining(provider)

    def prepare(self, users: Sequence[tuple[UserTraining, Sequence[Events]]]) -> None:
        """Train several users together, which is faster on a GPU."""
        if users:
            users[0][0].provider.look_up(users)

    def process(self, batch: Events, state: UserTraining) -> Iterator[WithModel]:
        """Attach the fingerprint to a batch."""
        if state.lookup is None and self._waits_for_all_events(batch.user):
            state.waiting.append(batch)
            return
        if self.follows_store:
            state.provider.refresh(state, batch.user)
        if state.lookup is None or self._trains_again():
            state.provider.look_up([(state, [batch])])
        yield self._attach(batch, state)

    def flush(self, state: UserTraining) -> Iterator[WithModel]:
        """Train on all events of the user, if the input is the training data."""
        if state.waiting:
            state.provider.look_up([(state, state.waiting)])
            for batch in state.waiting:
                yield self._attach(batch, state)

    def outputs(self) -> Outputs:
        """Return the folder of the fingerprints, if it is on disk."""
        folder = self.output_folder
        elsewhere = not folder or is_remote(folder)
        return Outputs() if elsewhere else Outputs(folders=(Path(folder),))

    def commit(self, metrics: RunMetrics) -> None:
        """Write the index of the saved fingerprints, with the global model."""
        if self.models_output_filename is None:
            return
        from morpheus.models.versions import (  # noqa: PLC0415 - runs without a store do not need it
            CHAMPION,
            ModelFacts,
            NewVersion,
            VersionedStore,
            is_same_folder,
        )

        folder, alias = self.output_place
        versions, old = VersionedStore.open(folder, self.key), self._find_base()
        new = [card for user, card in metrics.cards.items() if self._is_new(user, card)]
        shared = self._save_global(metrics)
        written = new if shared is None else [*new, shared]
        placed = list(versions.take_files(written, self.prepared.staging))
        if self.renews and not is_same_folder(self.model_store.folder, versions.folder):
            trained = {card.user for card in written}
            users = [user for user in [*self.model_store.cards, ""] if user not in trained]
            placed += versions.write_contents(self.model_store.read_contents(users))
        facts = ModelFacts(
            self.options.inputs, self.prepared.trained_until, self.prepared.empty_features
        )
        if old is not None:
            facts = ModelFacts.from_store(old).merge(facts)
        base, number = self._base_number(versions), self.prepared.reserved
        made = NewVersion(placed, base, number=number, facts=facts, relabels=True)
        version = versions.publish_placed(made, alias or CHAMPION)
        self.staging.close()
        self._warn_other_number(version)
        kept = 0 if old is None else len(old.cards.keys() - {card.user for card in new})
        metrics.saved_models = SavedModels(folder, len(new), kept, version, alias)

    def _warn_other_number(self, version: int) -> None:
        """Warn if the rows of this run have another number than the version it has published."""
        if self.saved_version != version:
            logger.warning(
                "train-ae: another run has published version %d of the models meanwhile. The "
                "models of this run are version %d, but its rows say %d.",
                *(self.saved_version, version, self.saved_version),
            )

    def _is_new(self, user: str, card: ModelCard) -> bool:
        """Return whether this run has trained a user's fingerprint, and written its file."""
        if card.user != user or not card.sha256 or card.version != self.saved_version:
            return False  # it is the global model, or was loaded
        return not self.renews or self.model_store.cards.get(user) != card

    def _find_base(self) -> ModelVersion | None:
        """Return the version whose other users the new version keeps."""
        return self.model_store if self.renews else self.output_store.find_version()

    def _base_number(self, versions: VersionedStore) -> int | str:
        """Return the base of the new version in its store.

        It is the champion at the time of the publication: another run can have renewed other users
        meanwhile. A version that the command names is the base itself.
        """
        from morpheus.models.versions import (  # noqa: PLC0415 - runs without a store do not need it
            CHAMPION,
            is_same_folder,
        )

        which = self.pretrained_place[1]
        if which and self.renews and is_same_folder(self.model_store.folder, versions.folder):
            return self.model_store.number
        return CHAMPION

    @cached_property
    def output_store(self) -> VersionedStore:
        """The store to publish in."""
        from morpheus.models.versions import VersionedStore  # noqa: PLC0415 - runs without a store do not need it

        return VersionedStore.open(self.output_folder, self.key)

    @cached_property
    def staging(self) -> StagingFolder:
        """The folder for files of fingerprints until they are published, with their version."""
        from morpheus.models.versions import StagingFolder  # noqa: PLC0415 - runs without a store do not need it

        return StagingFolder(self.output_store)

    def fit_options(self) -> FitOptions:
        """Return the training options that both networks have."""
        seed = self.options.manual_seed if self.seed is None else self.seed
        scaler = self.options.feature_scaler.replace("gaussrank", "gauss_rank")
        options = FitOptions(scaler=scaler, seed=seed or 0)
        return options if self.train_epochs is None else options | {"epochs": self.train_epochs}

    @cached_property
    def model_store(self) -> ModelVersion:
        """The saved fingerprints: in each process the version that the first one has found."""
        from morpheus.models.versions import open_models  # noqa: PLC0415 - runs without a store do not need it

        location, number = self.pretrained_filename or "", self.prepared.loaded_version
        if number is not None:
            location = f"{self.pretrained_place[0]}@{number}"
        return open_models(location, self.key)

    @property
    def pretrained_place(self) -> tuple[str, str]:
        """The store to load from, and its alias or version; empty texts for none."""
        from morpheus.models.versions import split_location  # noqa: PLC0415 - runs without a store do not need it

        return split_location(self.pretrained_filename or "", "--pretrained_filename")

    @property
    def output_place(self) -> tuple[str, str]:
        """The store to publish in, and the alias of the new version; empty texts for none."""
        from morpheus.models.versions import split_location  # noqa: PLC0415 - runs without a store do not need it

        location = self.models_output_filename or ""
        return split_location(location, "--models_output_filename", "alias")

    @property
    def output_folder(self) -> str:
        """Folder of the store to publish in; empty if there is none."""
        return self.output_place[0] if self.models_output_filename else ""

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process, without the index and the key: it reads both."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in {"model_store", "output_store", "staging", "key"}
        }

    @cached_property
    def key(self) -> bytes | None:
        """The key that signs folders of fingerprints; None without one."""
        return read_key(self.models_key_file)

    @cached_property
    def prepared(self) -> PreparedRun:
        """What `check_input` has found out."""
        return PreparedRun()

    @property
    def loads(self) -> bool:
        """Whether saved fingerprints are loaded."""
        return self.pretrained_filename is not None

    @property
    def renews(self) -> bool:
        """Whether the fingerprints of some users are trained again, and the others are kept."""
        given = (self.pretrained_filename, self.train_data_glob, self.models_output_filename)
        return all(given) and self.train_users != NONE

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.renews or not (self.pretrained_filename or self.train_users == NONE)

    def check_input(self, profile: InputProfile, metrics: RunMetrics) -> None:
        """Check that the events fit the fingerprints, before anything is trained or scored.

        Args:
            profile: What was read.
            metrics: Gets the age of the fingerprints.

        Raises:
            UsageError: Features that the fingerprints depend on have no value in any event, or new
                features have a value in most events.
        """
        metrics.log_features = profile.log_features
        if not self.options.unbounded or self._is_first_check(profile):
            self._check_profile(profile, metrics)
            if self.loads:
                metrics.replaced_models.update(
                    (each.user, each) for each in self.model_store.replaced
                )
        if self.trains:
            self._prepare(profile)

    def _check_profile(self, profile: InputProfile, metrics: RunMetrics) -> None:
        check = InputCheck(
            profile,
            self.options.columns,
            store=self.model_store if self.loads else None,
            uses_training=self.trains,
        )
        check.warn_unknown_users()
        metrics.model_age = check.find_age()
        fail = self.options.missing_features == "fail"
        metrics.empty_features = tuple(check.check_features(fail=fail))

    def _is_first_check(self, profile: InputProfile) -> bool:
        """Return whether new files in a watched directory are the first with enough events."""
        first = not self.prepared.checked and profile.events.num_events >= MIN_EVENTS_TO_CHECK
        self.prepared.checked |= first
        return first

    def _prepare(self, profile: InputProfile) -> None:
        """Note what the index needs to know of the training events; train the global model."""
        prepared, training = self.prepared, profile.training or profile.events
        if self.models_output_filename is not None:
            _ = self.saved_version  # now, so that all processes have the same
            prepared.staging = self.staging.open()
        prepared.empty_features = tuple(training.find_empty(profile.log_features))
        if training.time_range is not None:
            prepared.trained_until = training.time_range[1].isoformat()
        if self.renews:
            users = len(training.events_by_user)
            few = users * 2 < len(self.model_store.cards) and self.train_users == ALL
            prepared.keeps_global = few and self.model_store.global_card is not None
            self._warn_kept(training)
        saved = self.models_output_filename is not None or self._has_short_histories(profile)
        needed = self.train_users == GENERIC or (self.train_users == ALL and saved)
        if needed and prepared.global_model is None and profile.population is not None:
            provider = ModelProvider.from_population(self, profile.population)
            prepared.global_model = provider.global_model

    def _warn_kept(self, training: DatasetProfile) -> None:
        """Warn about users of the training files whose older fingerprints are kept."""
        known, least = self.model_store.cards, self.train_min_history
        counts = training.events_by_user
        kept = sorted(user for user, number in counts.items() if number < least and user in known)
        if kept:
            logger.warning(
                "train-ae: %d of %d users of the training files have fewer than %d events there, "
                "so their older fingerprints are kept: %s. `--train_min_history` sets the limit.",
                *(len(kept), len(counts), least, list_names(kept)),
            )

    def _has_short_histories(self, profile: InputProfile) -> bool:
        """Return whether a user of the input has too little history to be trained.

        Then the global model is trained before the workers start, so that it is trained once.
        """
        training = (profile.training or profile.events).events_by_user
        least = self.train_min_history
        if not self.options.use_generic_model:
            least = min(least, MIN_EVENTS_FOR_PEERS)
        known = self.model_store.cards if self.renews else {}
        users = [user for user in profile.events.events_by_user if user not in known]
        return any(training.get(user, 0) < least for user in users)

    def _save_global(self, metrics: RunMetrics) -> ModelCard | None:
        """Write the global model, unless it is that of the renewed store; return its card."""
        if self.train_users == INDIVIDUAL:
            return None
        provider = ModelProvider.from_population(self, metrics.population_sample)
        model = None if provider.global_model is None else provider.global_model.fingerprint
        if model is None or model.card.sha256:
            return None
        return self.write_file(model)

    def write_file(self, fingerprint: Fingerprint) -> ModelCard:
        """Write the file of a fingerprint for the version that the run publishes at its end."""
        folder = self.prepared.staging or self.output_store.folder
        return put_model(folder, fingerprint, durable=False)

    def _attach(self, batch: Events, state: UserTraining) -> WithModel:
        lookup = state.lookup or ModelLookup()
        accepted, excluded = state.accepted, state.excluded
        state.accepted = state.excluded = 0
        return batch.evolve(
            WithModel,
            accepted=accepted,
            excluded=excluded,
            fingerprint=lookup.fingerprint,
            card=lookup.card,
            unscored_reason=lookup.reason,
            model_version=self._find_version(lookup.card),
            replaced_model=lookup.replaced,
        )

    def _find_version(self, card: ModelCard | None) -> int | None:
        """Return the version of a fingerprint, 0 for no fingerprint; None without a store."""
        if not self.loads and self.models_output_filename is None:
            return None
        if card is None:
            return 0
        return card.version or (0 if self.models_output_filename is None else self.saved_version)

    @property
    def saved_version(self) -> int:
        """Number of the version that this run will publish."""
        prepared = self.prepared
        if prepared.saved_version is None:
            prepared.reserved = self.staging.reserve()
            following = prepared.reserved or self.output_store.read_manifest().next_number
            prepared.saved_version = following
        return prepared.saved_version

    @property
    def follows_store(self) -> bool:
        """Whether new versions of the store are used without a restart."""
        follows = self.options.unbounded and self.loads and not self.trains
        if not follows or self.model_refresh == 0:
            return False
        return not self.pretrained_place[1].isdecimal()

    def _trains_on_input(self) -> bool:
        return self.trains and not self.train_data_glob

    def _waits_for_all_events(self, user: str | None) -> bool:
        # An unbounded input has no last event, so users are trained on their events so far.
        judged = self.training_verdicts
        accepted = judged is not None and user in judged.accepted
        waits = self._trains_on_input() or (self.trains and accepted)
        return waits and not self.options.unbounded and self.train_users != GENERIC

    def _trains_again(self) -> bool:
        return self._trains_on_input() and self.options.unbounded

    def _users_per_bundle(self) -> int:
        """Return how many users a GPU trains together, if there can be one."""
        batches = self.model == "compact" and not self.options.unbounded
        return MAX_BATCHED_USERS if batches and gpu_possible(self.device.lower()) else 1

    def _check_source(self) -> None:
        expected = self.options.source
        if not self.source_stage_class or self.source_stage_class == expected:
            return
        source = find_source_word(self.source_stage_class)
        fix = "Leave the option out: the source of the pipeline reads the training files."
        if source is None:
            raise UsageError(
                f"--source_stage_class: there is no source `{self.source_stage_class}`. {fix}"
            )
        if expected and source != expected:
            raise UsageError(
                f"--source_stage_class: `{self.source_stage_class}` is `{source}`, but the "
                f"pipeline starts with `{expected}`. Training and input must be the same kind of "
                f"log. {fix}"
            )

    def _check_gpu(self) -> None:
        if self.model == "reference" or self.options.unbounded:
            case = "on an unbounded input" if self.options.unbounded else "with --model=reference"
            raise UsageError(
                f"--device: {case} users are trained one at a time, and a GPU is not faster. "
                "Leave the option out to train on the CPU."
            )
        if self.options.engine.lower() != "dask":  # Its workers have GPUs of their own.
            resolve_device("cuda")

    def _check_pretrained(self, folder: str) -> None:
        if self.train_data_glob is not None and not self.renews:
            logger.warning(
                "--train_data_glob is ignored, because --pretrained_filename is given. To train "
                "these users again and keep the others, add --models_output_filename."
            )
        if self.models_output_filename is not None and not self.renews:
            raise UsageError(
                "--models_output_filename: with --pretrained_filename nothing is trained, so there "
                "is nothing to save. Leave one of the two out, or give the logs to train on with "
                "--train_data_glob."
            )
        store = self.pretrained_place[0]
        if not is_remote(store) and not Path(store).is_dir():
            raise UsageError(
                f"--pretrained_filename: {describe_no_folder(store)} Give "
                "a folder that `train-ae --models_output_filename=...` has written. Model files of "
                "other programs (pickle, dill) are never read: they can run code."
            )
        self.check_inputs(self.model_store, f"--pretrained_filename: the models in `{folder}`")
        if not self.options.unbounded:
            # All processes load the same version, whatever the alias names later.
            self.prepared.loaded_version = self.model_store.number

    def _check_output(self) -> None:
        """Check that the folder can be written, and that its models are of the same kind."""
        from morpheus.models.versions import check_new_version  # noqa: PLC0415 - runs without a store do not need it

        folder, alias = self.output_place
        check_new_version(folder, alias, "--models_output_filename")
        if alias:
            self.output_store.check_alias(alias)
        self.output_store.folder.check_access()
        try:
            existing = self.output_store.find_version()
        except ModelCorruptedError as error:
            raise UsageError(
                f"--models_output_filename: {error} To start again, give another folder or remove "
                "this one."
            ) from error
        if existing is not None:
            self._check_network(existing, folder)
            self.check_inputs(
                existing,
                f"--models_output_filename: `{folder}` has models already, which are kept. They",
                "Or give another folder.",
            )
        if alias:
            self._warn_new_alias(alias)

    def _warn_new_alias(self, alias: str) -> None:
        """Warn about an alias that may be a misspelt one: no run would load its version."""
        from morpheus.models.versions import CANDIDATE, CHAMPION  # noqa: PLC0415 - runs without a store do not need it

        aliases = self.output_store.read_manifest().aliases
        guess = suggest(alias, {CHAMPION, CANDIDATE, *aliases})
        if guess and alias not in {CHAMPION, CANDIDATE, *aliases}:
            logger.warning(
                "--models_output_filename: the alias `%s` is new. The version of this run gets "
                "it.%s",
                *(alias, guess),
            )

    def _check_network(self, store: ModelStore, folder: str) -> None:
        """Reject a store with the other network: it has other scores."""
        first = next(iter(store.cards.values()), None)
        if first is not None and (first.summary is None) != (self.model == "reference"):
            known = "reference" if first.summary is None else "compact"
            raise UsageError(
                f"--model: the models in `{folder}`, which are kept, were trained with "
                f"--model={known}. Give that, or another folder."
            )

    def check_inputs(
        self, store: ModelStore, which: str, advice: str = "Or train new models."
    ) -> None:
        """Check that models fit the input of this run.

        Raises:
            UsageError: They do not. The message says why, and what to give.
        """
        if store.inputs is None or self.options.inputs is None:
            return
        differences = store.inputs.find_differences(self.options.inputs)
        if differences:
            raise UsageError(f"{which} do not fit this run. {'. '.join(differences)}. {advice}")

    def _check_verdicts(self) -> None:
        """Read the verdicts now, because other machines may not have the files."""
        if self.verdicts and not self.trains:
            raise UsageError(
                "--verdicts: nothing is trained, so verdicts have no effect. Give training files "
                "with --train_data_glob, or leave the option out."
            )
        _ = self.training_verdicts

    @cached_property
    def training_verdicts(self) -> TrainingVerdicts | None:
        """What verdicts say about training events; None without verdicts."""
        if not self.verdicts:
            return None
        from morpheus.suppressions.proposals import TrainingVerdicts  # noqa: PLC0415 - most runs have no verdicts

        return TrainingVerdicts.read(self.verdicts, "--verdicts")

    def _check_train_users(self) -> None:
        """Check that what is trained fits the other options."""
        if self.train_users == NONE and not self.pretrained_filename:
            raise UsageError(
                "--train_users=none: nothing is trained, so fingerprints must be loaded. Give "
                "--pretrained_filename."
            )
        if self.train_users == GENERIC and self.model == "reference":
            raise UsageError(
                "--train_users=generic: the global model is trained with --model=compact only. "
                "Leave --model out."
            )
        if self.train_users == GENERIC and self._trains_on_input() and self.options.unbounded:
            raise UsageError(
                "--train_users=generic: on an unbounded input, the global model needs training "
                "files. Give --train_data_glob."
            )
