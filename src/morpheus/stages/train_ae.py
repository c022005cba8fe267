"""train-ae: each user's fingerprint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import polars as pl

from morpheus.bucket import is_s3_url
from morpheus.columns import POPULATION_USER, TIME
from morpheus.errors import UsageError
from morpheus.folder import open_store
from morpheus.models import store
from morpheus.models.device import resolve_device, gpu_possible, select_trainer
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.ladder import TrainingDataBackoff
from morpheus.models.learning import UserHistory, FitOptions, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.training import EPOCHS, MAX_BATCHED_USERS
from morpheus.records import Events, WithModel, RunMetrics
from morpheus.stage import Transform, option
from morpheus.stages.teacher import DEFAULT_MAX_HISTORY, ModelProvider

logger = logging.getLogger(__name__)

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
            self, backoff=TrainingDataBackoff(population, self.train_min_history, self.options.use_generic_model)
        )

    def commit(self, metrics: RunMetrics) -> None:
        """Publish the index of the saved fingerprints, with everyone's."""
        if self.models_output_filename is None:
            return
        folder, everyone = self.models_output_filename, self.with_population(metrics.population_sample).global_model()
        card = None if everyone is None else store.put_model(folder, everyone)
        # Who has no history of their own has no file of their own.
        cards = {user: card for user, card in metrics.cards.items() if card.events}
        store.commit_index(folder, cards, card)

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
            from morpheus.models import reference_training  # noqa: PLC0415 - torch takes a second to import

            return reference_training.fit_dfencoder_fingerprints(histories, columns, **options)
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
    def model_store(self) -> store.ModelStore:
        """The saved fingerprints."""
        return store.ModelStore.open(self.pretrained_filename or "")


def _make_absolute(folder: str | None) -> str | None:
    return str(Path(folder).absolute()) if folder and "://" not in folder else folder
