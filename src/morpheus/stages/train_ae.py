"""What `train-ae` knows of users while it runs, and how it comes to know more."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.batch import Events, RunMetrics, WithModel
from morpheus.core.stage import Transform, option
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
    """A user's fingerprint and its card, or why there is none."""

    fingerprint: Fingerprint | None = None
    card: ModelCard | None = None
    reason: str | None = None

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> ModelLookup:
        """What is known of a user who has a fingerprint."""
        return cls(fingerprint, fingerprint.card)


@dataclass
class ModelProvider:
    """Finds or learns the fingerprint of each user.

    Attributes:
        stage: Says how.
        lookups: What was found, by user.
        recent_events: The latest events of each, where there are no training files.
    """

    stage: TrainAe
    lookups: dict[str, ModelLookup] = field(default_factory=dict)
    recent_events: dict[str, pl.DataFrame] = field(default_factory=dict)

    def attach_models(self, groups: list[list[Events]]) -> Iterator[WithModel]:
        """Give batches the fingerprints of their users; each group is of one user."""
        lessons: dict[str, UserHistory] = {}
        found = [self._find_model(group, lessons) for group in groups]
        learnt = self._train_pending(lessons) if lessons else {}
        for group, known in zip(groups, found, strict=True):
            user = group[0].user
            outcome = learnt[user] if known is None and user is not None else known or ModelLookup()
            self._cache(user, outcome)
            for batch in group:
                yield batch.evolve(
                    WithModel,
                    fingerprint=outcome.fingerprint,
                    card=outcome.card,
                    unscored_reason=outcome.reason,
                )

    def _find_model(
        self, group: list[Events], pending_training: dict[str, UserHistory]
    ) -> ModelLookup | None:
        """What is known of a group's user; None where the history put into `lessons` will tell."""
        user = group[0].user
        if user is None:
            return ModelLookup(reason=f"no value in `{self.stage.options.userid_column_name}`")
        if user in self.lookups:
            return self.lookups[user]
        if self.stage.pretrained_filename:
            fingerprint = self.stage.model_store.load(user)
            return (
                ModelLookup.from_fingerprint(fingerprint)
                if fingerprint
                else ModelLookup(reason="no fingerprint")
            )
        if group[0].frame.is_empty() and self.stage.models_output_filename is None:
            return ModelLookup()
        return self._prepare_training(user, self._training_history(user, group), pending_training)

    def _prepare_training(
        self, user: str, events: pl.DataFrame, pending_training: dict[str, UserHistory]
    ) -> ModelLookup | None:
        if events.is_empty() and self.global_model is not None:
            return self.global_model
        history = self._with_backoff(UserHistory(user, events, events[TIME]))
        if history is None:
            needed = self.stage.train_min_history
            return ModelLookup(reason=f"{events.height} events of history, {needed} needed")
        pending_training[user] = history
        return None

    def _with_backoff(self, history: UserHistory) -> UserHistory | None:
        if self.stage.backoff is not None:
            return self.stage.backoff.resolve(history)
        enough = history.events.height >= self.stage.train_min_history
        return history if enough else None

    @cached_property
    def global_model(self) -> ModelLookup | None:
        """What is known of a user of whom nothing is known."""
        fingerprint = self.stage.global_model()
        return None if fingerprint is None else ModelLookup.from_fingerprint(fingerprint)

    def _cache(self, user: str | None, lookup: ModelLookup) -> None:
        # What was learnt from the input is learnt anew when more has come.
        if user is not None and (self.stage.pretrained_filename or self.stage.train_data_glob):
            self.lookups[user] = lookup

    def _training_history(self, user: str, group: list[Events]) -> pl.DataFrame:
        most = self.stage.train_max_history
        if self.stage.train_data_glob:
            history = group[0].history
            history = group[0].frame.clear() if history is None else history
            return history if most is None else history.tail(most)
        frames = [self.recent_events[user]] if user in self.recent_events else []
        joined = pl.concat([*frames, *(batch.frame for batch in group)], how="diagonal")
        self.recent_events[user] = joined.tail(most or DEFAULT_MAX_HISTORY)
        return self.recent_events[user]

    def _train_pending(self, pending_training: Mapping[str, UserHistory]) -> dict[str, ModelLookup]:
        for user, history in pending_training.items():
            self._check_columns(history.events.columns)
            logger.debug("Training AE model for user: '%s'...", user)
        fingerprints = self.stage.train(list(pending_training.values()))
        for user in pending_training:
            logger.debug("Training AE model for user: '%s'... Complete.", user)
        return {
            one.card.user: ModelLookup.from_fingerprint(self._save(one)) for one in fingerprints
        }

    def _save(self, fingerprint: Fingerprint) -> Fingerprint:
        if self.stage.models_output_filename is None:
            return fingerprint
        card = put_model(self.stage.models_output_filename, fingerprint)
        return replace(fingerprint, card=card)

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not set(self.stage.options.columns) & set(columns):
            raise UsageError(
                "None of the feature columns is in the logs. Name some that are with "
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
    )
    backoff: TrainingDataBackoff | None = field(default=None, repr=False, compare=False)

    def validate(self) -> None:
        """Refuse options that exclude each other, a missing GPU, and a broken index."""
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        elif self.models_output_filename is not None:
            open_store(self.models_output_filename).check_access()
        self._check_source()
        if self.device.lower() == "cuda" and self.is_cpu_bound():
            self._check_gpu()

    def training_input(self) -> str | None:
        """The training files, unless fingerprints are loaded."""
        return None if self.pretrained_filename else self.train_data_glob

    def needs_population(self) -> bool:
        """Whom users are compared with is asked while learning."""
        return self.pretrained_filename is None and self.model == "compact"

    def with_population(self, population: pl.DataFrame | None) -> TrainAe:
        """Compare users with everybody, and fill short histories up."""
        if population is None or population.is_empty():
            return self
        known = population.drop(POPULATION_USER, TIME, strict=False)
        population = Population(population[POPULATION_USER], population[TIME], known)
        return replace(
            self,
            backoff=TrainingDataBackoff(
                population, self.train_min_history, self.options.use_generic_model
            ),
        )

    def commit(self, metrics: RunMetrics) -> None:
        """Publish the index of the saved fingerprints, with everyone's."""
        if self.models_output_filename is None:
            return
        folder, everyone = (
            self.models_output_filename,
            self.with_population(metrics.population_sample).global_model(),
        )
        card = None if everyone is None else put_model(folder, everyone)
        # Who has no history of their own has no file of their own.
        cards = {user: card for user, card in metrics.cards.items() if card.events}
        commit_index(folder, cards, card)

    def global_model(self) -> Fingerprint | None:
        """The fingerprint of users of whom nothing is known, if enough is known of the others."""
        history = None if self.backoff is None else self.backoff.resolve_global()
        return None if history is None else self.train([history])[0]

    def __call__(self, batches: Iterator[Events]) -> Iterator[WithModel]:
        """Give each batch its user's fingerprint."""
        teacher, groups = ModelProvider(self), self._group_by_user(batches)
        while some := list(islice(groups, self.users_per_bundle())):
            yield from teacher.attach_models(some)

    def is_cpu_bound(self) -> bool:
        """Learning is; looking fingerprints up is not."""
        return self.pretrained_filename is None

    def with_absolute_paths(self) -> TrainAe:
        """The same folders, named in full."""
        return replace(
            self,
            pretrained_filename=_make_absolute(self.pretrained_filename),
            models_output_filename=_make_absolute(self.models_output_filename),
        )

    def output_dir(self) -> Path | None:
        """The folder of the fingerprints."""
        folder = self.models_output_filename
        return None if folder is None or "://" in folder else Path(folder)

    def resources(self) -> Mapping[str, float]:
        """A GPU, where one is asked for."""
        return {"GPU": 1.0} if self.device.lower() == "cuda" and self.is_cpu_bound() else {}

    def users_per_bundle(self) -> int:
        """As many users as a GPU trains side by side, where one may be at hand."""
        stackable = self.model == "compact" and not self.options.unbounded and self.is_cpu_bound()
        return MAX_BATCHED_USERS if stackable and gpu_possible(self.device.lower()) else 1

    def train(self, histories: Sequence[UserHistory]) -> list[Fingerprint]:
        """Learn the fingerprints of users, as the options say."""
        columns, options = self.options.columns, self._train_options()
        if self.model == "reference":
            from morpheus.models.reference import fit_dfencoder_fingerprints  # noqa: PLC0415 - torch takes a second to import

            return fit_dfencoder_fingerprints(histories, columns, **options)
        trainer = select_trainer(self.device.lower(), len(histories))
        population = None if self.backoff is None else self.backoff.population
        kinds = self.options.column_types
        return fit_fingerprints(
            histories, columns, trainer=trainer, population=population, kinds=kinds, **options
        )

    def _train_options(self) -> FitOptions:
        """How fingerprints are learnt, whatever the network."""
        seed = self.options.manual_seed if self.seed is None else self.seed
        scaler = self.options.feature_scaler.replace("gaussrank", "gauss_rank")
        options = FitOptions(scaler=scaler, seed=seed or 0)
        return options if self.train_epochs is None else options | {"epochs": self.train_epochs}

    def _group_by_user(self, batches: Iterator[Events]) -> Iterator[list[Events]]:
        # Only learning from the input needs all of a user's events before the first is scored;
        # where the input never ends, what has come so far has to do.
        if self.pretrained_filename or self.train_data_glob or self.options.unbounded:
            return ([batch] for batch in batches)
        return (list(group) for _, group in groupby(batches, key=attrgetter("user")))

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

    @cached_property
    def model_store(self) -> ModelStore:
        """The saved fingerprints."""
        return ModelStore.open(self.pretrained_filename or "")


def _make_absolute(folder: str | None) -> str | None:
    return str(Path(folder).absolute()) if folder and "://" not in folder else folder
