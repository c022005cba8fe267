"""`train-ae`: find or train the fingerprint of each user."""

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
from morpheus.models.batched_training import gpu_possible, resolve_device, select_trainer
from morpheus.models.fit import FitOptions, TrainingDataBackoff, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.profile import Fingerprint, ModelCard
from morpheus.models.store import ModelStore, commit_index, put_model
from morpheus.models.training import EPOCHS, MAX_BATCHED_USERS
from morpheus.storage.folder import open_store
from morpheus.storage.object_store import is_s3_url

logger = logging.getLogger(__name__)

DEFAULT_MAX_HISTORY = 1000
"""Events of each user learnt from, at most, where there are no training files."""


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
    """What `train-ae` keeps of one user during a run.

    Attributes:
        trainer: Finds and trains fingerprints.
        lookup: The fingerprint, once it is known.
        waiting: Batches that wait for the user's last event, when users are trained on the input.
        recent_events: The latest events, when users are trained on an unbounded input.
    """

    trainer: ModelProvider
    lookup: ModelLookup | None = None
    waiting: list[Events] = field(default_factory=list)
    recent_events: pl.DataFrame | None = None


@dataclass
class ModelProvider:
    """Finds or trains the fingerprints of users.

    Attributes:
        stage: The options.
        backoff: Fills short histories up with those of similar users; None without a population.
    """

    stage: TrainAe
    backoff: TrainingDataBackoff | None

    @classmethod
    def from_population(cls, stage: TrainAe, population: pl.DataFrame | None) -> ModelProvider:
        """Compare users with a sample of all users' histories, if there is one."""
        if population is None or population.is_empty():
            return cls(stage, None)
        features = population.drop(POPULATION_USER, TIME, strict=False)
        users = Population(population[POPULATION_USER], population[TIME], features)
        generic = stage.options.use_generic_model
        return cls(stage, TrainingDataBackoff(users, stage.train_min_history, generic))

    @cached_property
    def global_model(self) -> ModelLookup | None:
        """The fingerprint of users without history; None if all of it is too short."""
        history = None if self.backoff is None else self.backoff.resolve_global()
        return None if history is None else ModelLookup.from_fingerprint(self.train([history])[0])

    def look_up(self, users: Sequence[tuple[UserTraining, Sequence[Events]]]) -> None:
        """Find or train the fingerprints of some users, together.

        Args:
            users: State of each, which takes the fingerprint, and batches of each.
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
        """Train the fingerprints of users, as the options say."""
        stage = self.stage
        columns, options = stage.options.columns, stage.fit_options()
        if stage.model == "reference":
            from morpheus.models.reference import fit_dfencoder_fingerprints  # noqa: PLC0415 - torch takes a second to import

            return fit_dfencoder_fingerprints(histories, columns, **options)
        trainer = select_trainer(stage.device.lower(), len(histories))
        population = None if self.backoff is None else self.backoff.population
        kinds = stage.options.column_types
        return fit_fingerprints(
            histories, columns, trainer=trainer, population=population, kinds=kinds, **options
        )

    def _find(
        self, state: UserTraining, batches: Sequence[Events], pending: dict[str, UserHistory]
    ) -> ModelLookup | None:
        """Return what is known of a user; None if the history put into `pending` will tell."""
        user, stage = batches[0].user, self.stage
        if user is None:
            return ModelLookup(reason=f"no value in `{stage.options.userid_column_name}`")
        if stage.pretrained_filename:
            fingerprint = stage.model_store.load(user)
            if fingerprint is None:
                return ModelLookup(reason="no fingerprint")
            return ModelLookup.from_fingerprint(fingerprint)
        if batches[0].frame.is_empty() and stage.models_output_filename is None:
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

    def _with_backoff(self, history: UserHistory) -> UserHistory | None:
        if self.backoff is not None:
            return self.backoff.resolve(history)
        enough = history.events.height >= self.stage.train_min_history
        return history if enough else None

    def _training_history(self, state: UserTraining, batches: Sequence[Events]) -> pl.DataFrame:
        limit = self.stage.train_max_history
        if self.stage.train_data_glob:
            history = batches[0].history
            history = batches[0].frame.clear() if history is None else history
            return history if limit is None else history.tail(limit)
        frames = [] if state.recent_events is None else [state.recent_events]
        joined = pl.concat([*frames, *(batch.frame for batch in batches)], how="diagonal")
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
                "None of the feature columns is in the logs. Name columns of the logs with "
                "`--columns_file=...`, one a line: " + ", ".join(columns[2:12]) + ", ..."
            )


SOURCE_STAGE_CLASSES = {
    "CloudTrailSourceStage": "from-cloudtrail",
    "AzureSourceStage": "from-azure",
    "DuoSourceStage": "from-duo",
    "FileSourceStage": "from-file",
}
"""Words for the classes that old command lines name."""


@dataclass(frozen=True)
class TrainAe(Transform):
    """Learn each user's fingerprint, from training files, from a saved run, or from the input.

    Takes what a source gives. Put `preprocess` behind it. A user of too little history is learnt
    from it filled up with that of peers, who do alike, or without any from everyone's; the labels
    `rung` and `own_share` of `add-scores` say so. Where even everyone's is too short, events go
    through without a score, and the summary says so.

        train-ae --train_data_glob="data/training-data/*.csv" --seed 42
    """

    name = "train-ae"
    takes = (Events,)
    gives = WithModel

    pretrained_filename: str | None = option(
        None,
        "Folder of fingerprints that an earlier run saved, on disk or as `s3://bucket/folder`; "
        "nothing is trained.",
        path=True,
    )
    train_data_glob: str | None = option(
        None,
        "Files to learn from, read as the input is. Without it, users are learnt from the input.",
    )
    source_stage_class: str | None = option(
        None,
        "Source that reads the training files, as old command lines name it: that of the chain.",
    )
    model: str = option(
        "compact",
        "Network to learn with: `compact` is small, and trained until it is best on later events; "
        "`reference` is that of NVIDIA Morpheus 22.09, trained for all epochs, for comparison.",
        choices=("compact", "reference"),
    )
    device: str = option(
        "auto",
        "Where networks are trained: `cuda` trains many users side by side, `cpu` one on each of "
        "--num_threads; `auto` takes the GPU where there is one.",
        choices=("auto", "cpu", "cuda"),
    )
    train_epochs: int | None = option(
        None,
        "Passes over a user's distinct rows, at most; training stops when it is best. "
        f"[default: {EPOCHS}; 25 of the reference]",
        min=1,
    )
    train_min_history: int = option(
        300, "Events of history that a user needs; fewer are filled up with others'.", min=1
    )
    train_max_history: int | None = option(
        None,
        f"Latest events of each user to learn from. [default: all of the training files; "
        f"{DEFAULT_MAX_HISTORY} of the input]",
        min=1,
    )
    seed: int | None = option(
        None, "Seed of everything random. Without it, the seed is 0: runs always repeat."
    )
    sort_glob: bool = option(
        False, "Accepted for old command lines: files are always read in sorted order.", flag=True
    )
    models_output_filename: str | None = option(
        None,
        "Folder to save the fingerprints in, on disk or as `s3://bucket/folder`, for "
        "--pretrained_filename of later runs.",
        path=True,
    )

    def validate(self) -> None:
        """Refuse options that exclude each other, a missing GPU, and a broken index."""
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        elif self.models_output_filename is not None:
            open_store(self.models_output_filename).check_access()
        self._check_source()
        if self.device.lower() == "cuda" and not self.pretrained_filename:
            self._check_gpu()

    @property
    def needs(self) -> Requirements:
        """Training needs the training files, a population, and processor time."""
        if self.pretrained_filename:
            return Requirements(per_run=True)
        on_gpu = self.device.lower() == "cuda"
        return Requirements(
            cpu_bound=True,
            population=self.model == "compact",
            users_per_bundle=self._users_per_bundle(),
            per_run=True,
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
        """Train several users together, as a GPU does best."""
        if users:
            users[0][0].trainer.look_up(users)

    def process(self, batch: Events, state: UserTraining) -> Iterator[WithModel]:
        """Attach the fingerprint to a batch."""
        if state.lookup is None and self._waits_for_all_events():
            state.waiting.append(batch)
            return
        if state.lookup is None or self._trains_again():
            state.trainer.look_up([(state, [batch])])
        yield self._attach(batch, state)

    def flush(self, state: UserTraining) -> Iterator[WithModel]:
        """Train on all events of the user, where they are the training data."""
        if state.waiting:
            state.trainer.look_up([(state, state.waiting)])
            for batch in state.waiting:
                yield self._attach(batch, state)

    def outputs(self) -> Outputs:
        """The folder of the fingerprints."""
        folder = self.models_output_filename
        return Outputs() if folder is None or "://" in folder else Outputs(folders=(Path(folder),))

    def commit(self, metrics: RunMetrics) -> None:
        """Publish the index of the saved fingerprints, with the global model."""
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
        """Options of training that both kinds of network share."""
        seed = self.options.manual_seed if self.seed is None else self.seed
        scaler = self.options.feature_scaler.replace("gaussrank", "gauss_rank")
        options = FitOptions(scaler=scaler, seed=seed or 0)
        return options if self.train_epochs is None else options | {"epochs": self.train_epochs}

    @cached_property
    def model_store(self) -> ModelStore:
        """The saved fingerprints."""
        return ModelStore.open(self.pretrained_filename or "")

    def _attach(self, batch: Events, state: UserTraining) -> WithModel:
        found = state.lookup or ModelLookup()
        return batch.evolve(
            WithModel,
            fingerprint=found.fingerprint,
            card=found.card,
            unscored_reason=found.reason,
        )

    def _trains_on_input(self) -> bool:
        return not self.pretrained_filename and not self.train_data_glob

    def _waits_for_all_events(self) -> bool:
        # On an unbounded input there is no last event, so the events so far have to do.
        return self._trains_on_input() and not self.options.unbounded

    def _trains_again(self) -> bool:
        return self._trains_on_input() and self.options.unbounded

    def _users_per_bundle(self) -> int:
        """As many users as a GPU trains together, where there may be one."""
        together = self.model == "compact" and not self.options.unbounded
        return MAX_BATCHED_USERS if together and gpu_possible(self.device.lower()) else 1

    def _check_source(self) -> None:
        named = (self.source_stage_class or "").rsplit(".", 1)[-1]
        source, ours = SOURCE_STAGE_CLASSES.get(named, named), self.options.source
        leave = "Leave the option out: training files are read by the chain's own source."
        if named and source not in {*SOURCE_STAGE_CLASSES.values(), ours}:
            raise UsageError(
                f"--source_stage_class: there is no source `{self.source_stage_class}`. {leave}"
            )
        if named and ours and source != ours:
            raise UsageError(
                f"--source_stage_class: `{self.source_stage_class}` is `{source}`, but the chain "
                f"begins with `{ours}`: what is learnt from one log says nothing about the other. "
                f"{leave}"
            )

    def _check_gpu(self) -> None:
        if self.model == "reference" or self.options.unbounded:
            what = "on an endless input" if self.options.unbounded else "with `--model=reference`"
            raise UsageError(
                f"--device: {what} users are learnt one by one, which a GPU does not make faster. "
                "Leave the option out: they are learnt on the CPU."
            )
        if self.options.engine.lower() != "dask":  # Its workers have GPUs of their own.
            resolve_device("cuda")

    def _check_pretrained(self, folder: str) -> None:
        if self.train_data_glob is not None:
            logger.warning("--train_data_glob will be ignored: --pretrained_filename is given.")
        if self.models_output_filename is not None:
            raise UsageError(
                "--models_output_filename: with --pretrained_filename nothing is trained, so there "
                "is nothing to save. Leave one of the two out."
            )
        if not is_s3_url(folder) and not Path(folder).is_dir():
            raise UsageError(
                f"--pretrained_filename: there is no folder `{folder}`. Give the folder that "
                "`train-ae --models_output_filename=...` wrote. Files of other programs (pickle, "
                "dill) are never read: they can run code."
            )
        self.model_store  # noqa: B018 - reads and checks the index
