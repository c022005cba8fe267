"""`train-ae`: load or train the fingerprint of each user.

`TrainAe` is the stage. A `ModelProvider`, one per process, loads and trains fingerprints for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.batch import Events, RunMetrics, WithModel
from morpheus.core.stage import Outputs, Requirements, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.models.batched_training import require_torch, resolve_device, select_trainer
from morpheus.models.fit import FitOptions, TrainingDataBackoff, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.profile import Fingerprint, ModelCard
from morpheus.models.store import ModelStore, commit_index, put_model
from morpheus.models.training import (
    EPOCHS,
    MAX_BATCHED_USERS,
    gpu_possible,
    train_sequentially,
)
from morpheus.storage.folder import open_store
from morpheus.storage.object_store import is_object_url

logger = logging.getLogger(__name__)

DEFAULT_MAX_HISTORY = 1000
"""Maximum number of events to train on, per user, if there are no training files."""
_PER_RUN = (
    "it trains on the input of each run. Give `--train_data_glob` or `--pretrained_filename`, the "
    "same in each run."
)


@dataclass(frozen=True)
class ModelLookup:
    """A user's fingerprint and its card, or the reason why there is none."""

    fingerprint: Fingerprint | None = None
    card: ModelCard | None = None
    reason: str | None = None

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> ModelLookup:
        """Return the lookup of a user with a fingerprint."""
        return cls(fingerprint, fingerprint.card)


@dataclass
class UserTraining:
    """What `train-ae` remembers about one user during a run.

    Attributes:
        provider: Loads and trains fingerprints.
        lookup: The fingerprint or the reason why there is none; None before the lookup.
        waiting: Batches that wait for the user's last event, when users are trained on the input.
        recent_events: The latest events, when users are trained on an unbounded input.
    """

    provider: ModelProvider
    lookup: ModelLookup | None = None
    waiting: list[Events] = field(default_factory=list)
    recent_events: pl.DataFrame | None = None


@dataclass
class ModelProvider:
    """Loads or trains the fingerprints of users.

    Attributes:
        stage: The stage, with the options.
        backoff: Extends short histories with events of similar users; None without a population.
    """

    stage: TrainAe
    backoff: TrainingDataBackoff | None

    @classmethod
    def from_population(cls, stage: TrainAe, population: pl.DataFrame | None) -> ModelProvider:
        """Make a provider that compares users with a sample of all users' histories."""
        if population is None or population.is_empty():
            return cls(stage, None)
        features = population.drop(POPULATION_USER, TIME, strict=False)
        users = Population(population[POPULATION_USER], population[TIME], features)
        generic = stage.options.use_generic_model
        return cls(stage, TrainingDataBackoff(users, stage.train_min_history, generic))

    @cached_property
    def global_model(self) -> ModelLookup | None:
        """The fingerprint for users without history; None if the whole population is too small."""
        history = None if self.backoff is None else self.backoff.resolve_global()
        return None if history is None else ModelLookup.from_fingerprint(self.train([history])[0])

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

    def train(self, histories: Sequence[UserHistory]) -> list[Fingerprint]:
        """Train the fingerprints of users with the options of the stage."""
        stage = self.stage
        columns, options = stage.options.columns, stage.fit_options()
        if stage.model == "reference":
            from morpheus.models.reference import fit_dfencoder_fingerprints  # noqa: PLC0415 - torch takes a second to import

            return fit_dfencoder_fingerprints(histories, columns, **options)
        device, n_users = stage.device.lower(), len(histories)
        may_use_gpu = gpu_possible(device, n_users)
        trainer = select_trainer(device, n_users) if may_use_gpu else train_sequentially
        population = None if self.backoff is None else self.backoff.population
        kinds = stage.options.column_types
        return fit_fingerprints(
            histories, columns, trainer=trainer, population=population, kinds=kinds, **options
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
        if stage.pretrained_filename:
            return self._load(user)
        if not batches[0].table.height and stage.models_output_filename is None:
            return ModelLookup()
        events = self._training_history(state, batches)
        if events.is_empty() and self.global_model is not None:
            return self.global_model
        history = self._with_backoff(UserHistory(user, events, events[TIME]))
        if history is None:
            needed = stage.train_min_history
            return ModelLookup(reason=f"{events.height} events of history, {needed} needed")
        pending[user] = history
        return None

    def _load(self, user: str) -> ModelLookup:
        fingerprint = self.stage.model_store.load(user)
        if fingerprint is None:
            return ModelLookup(reason="no fingerprint")
        return ModelLookup.from_fingerprint(fingerprint)

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
            return history if limit is None else history.tail(limit)
        frames = [] if state.recent_events is None else [state.recent_events]
        joined = pl.concat(
            [*frames, *(batch.table.to_frame() for batch in batches)], how="diagonal"
        )
        state.recent_events = joined.tail(limit or DEFAULT_MAX_HISTORY)
        return state.recent_events

    def _save(self, fingerprint: Fingerprint) -> Fingerprint:
        if self.stage.models_output_filename is None:
            return fingerprint
        card = put_model(self.stage.models_output_filename, fingerprint)
        return replace(fingerprint, card=card)

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not set(self.stage.options.columns) & set(columns):
            raise UsageError(
                "None of the feature columns is in the logs. Give a feature list with "
                "`--columns_file=...`, one column per line: " + ", ".join(columns[2:12]) + ", ..."
            )


SOURCE_STAGE_CLASSES = {
    "CloudTrailSourceStage": "from-cloudtrail",
    "AzureSourceStage": "from-azure",
    "DuoSourceStage": "from-duo",
    "FileSourceStage": "from-file",
}
"""Words of the source classes in old command lines."""


@dataclass(frozen=True)
class TrainAe(Transform):
    """Train or load the fingerprint of each user: an autoencoder of the user's normal behaviour.

    Takes events of a source; put `preprocess` after it. Fingerprints are trained on
    `--train_data_glob`, loaded from `--pretrained_filename`, or trained on the input itself.

    A user with too little history is trained with additional events of similar users. A user
    without history gets the global model, which is trained on events of all users. The labels
    `rung` and `own_share` of `add-scores` show this. If even all users together have too little
    history, events get no score, and the summary says so.

    Example: `train-ae --train_data_glob="data/training-data/*.csv" --seed=42`
    """

    name = "train-ae"
    takes = (Events,)
    gives = WithModel

    pretrained_filename: str | None = option(
        None,
        "Folder of fingerprints to load, on disk or as `s3://bucket/folder`. Nothing is trained.",
        path=True,
    )
    train_data_glob: str | None = option(
        None,
        "Glob of the training files, in the format of the input. By default users are trained on "
        "the input.",
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
        "Folder for the fingerprints, on disk or as `s3://bucket/folder`. Later runs load them "
        "with --pretrained_filename.",
        path=True,
    )

    def validate(self) -> None:
        """Check that options fit together, and that torch, a GPU and the index are there."""
        if self.model == "reference":
            require_torch("--model=reference")
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        elif self.models_output_filename is not None:
            open_store(self.models_output_filename).check_access()
        self._check_source()
        if self.device.lower() == "cuda" and not self.pretrained_filename:
            self._check_gpu()

    @property
    def needs(self) -> Requirements:
        """Training needs the training files, a population sample, and CPU time."""
        if self.pretrained_filename:
            return Requirements()
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
            context.cache[self.name] = provider
        return UserTraining(provider)

    def prepare(self, users: Sequence[tuple[UserTraining, Sequence[Events]]]) -> None:
        """Train several users together, which is faster on a GPU."""
        if users:
            users[0][0].provider.look_up(users)

    def process(self, batch: Events, state: UserTraining) -> Iterator[WithModel]:
        """Attach the fingerprint to a batch."""
        if state.lookup is None and self._waits_for_all_events():
            state.waiting.append(batch)
            return
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
        folder = self.models_output_filename
        return Outputs() if folder is None or "://" in folder else Outputs(folders=(Path(folder),))

    def commit(self, metrics: RunMetrics) -> None:
        """Write the index of the saved fingerprints, with the global model."""
        if self.models_output_filename is None:
            return
        folder = self.models_output_filename
        provider = ModelProvider.from_population(self, metrics.population_sample)
        model = provider.global_model
        card = None
        if model is not None and model.fingerprint is not None:
            card = put_model(folder, model.fingerprint)
        # A user without own events has no file.
        cards = {user: card for user, card in metrics.cards.items() if card.events}
        commit_index(folder, cards, card)

    def fit_options(self) -> FitOptions:
        """Return the training options that both networks have."""
        seed = self.options.manual_seed if self.seed is None else self.seed
        scaler = self.options.feature_scaler.replace("gaussrank", "gauss_rank")
        options = FitOptions(scaler=scaler, seed=seed or 0)
        return options if self.train_epochs is None else options | {"epochs": self.train_epochs}

    @cached_property
    def model_store(self) -> ModelStore:
        """The saved fingerprints."""
        return ModelStore.open(self.pretrained_filename or "")

    def _attach(self, batch: Events, state: UserTraining) -> WithModel:
        lookup = state.lookup or ModelLookup()
        return batch.evolve(
            WithModel,
            fingerprint=lookup.fingerprint,
            card=lookup.card,
            unscored_reason=lookup.reason,
        )

    def _trains_on_input(self) -> bool:
        return not self.pretrained_filename and not self.train_data_glob

    def _waits_for_all_events(self) -> bool:
        # An unbounded input has no last event, so users are trained on their events so far.
        return self._trains_on_input() and not self.options.unbounded

    def _trains_again(self) -> bool:
        return self._trains_on_input() and self.options.unbounded

    def _users_per_bundle(self) -> int:
        """Return how many users a GPU trains together, if there can be one."""
        batches = self.model == "compact" and not self.options.unbounded
        return MAX_BATCHED_USERS if batches and gpu_possible(self.device.lower()) else 1

    def _check_source(self) -> None:
        class_name = (self.source_stage_class or "").rsplit(".", 1)[-1]
        source, expected = SOURCE_STAGE_CLASSES.get(class_name, class_name), self.options.source
        fix = "Leave the option out: the source of the pipeline reads the training files."
        if class_name and source not in {*SOURCE_STAGE_CLASSES.values(), expected}:
            raise UsageError(
                f"--source_stage_class: there is no source `{self.source_stage_class}`. {fix}"
            )
        if class_name and expected and source != expected:
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
        if self.train_data_glob is not None:
            logger.warning("--train_data_glob is ignored, because --pretrained_filename is given.")
        if self.models_output_filename is not None:
            raise UsageError(
                "--models_output_filename: with --pretrained_filename nothing is trained, so there "
                "is nothing to save. Leave one of the two out."
            )
        if not is_object_url(folder) and not Path(folder).is_dir():
            raise UsageError(
                f"--pretrained_filename: there is no folder `{folder}`. Give a folder that "
                "`train-ae --models_output_filename=...` has written. Model files of other "
                "programs (pickle, dill) are never read: they can run code."
            )
        self.model_store  # noqa: B018 - reads and checks the index
