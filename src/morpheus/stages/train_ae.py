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

from morpheus.bucket import is_address
from morpheus.columns import OWNER, TIME
from morpheus.errors import UsageError
from morpheus.folder import folder_at
from morpheus.models import store
from morpheus.models.device import device_of, may_be_gpu, trainer_on
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.ladder import Ladder
from morpheus.models.learning import History, Options, learn_all
from morpheus.models.population import Population
from morpheus.models.training import EPOCHS, SIDE_BY_SIDE
from morpheus.records import Events, Fingerprinted, Summary
from morpheus.stage import Stage, option
from morpheus.stages.teacher import REMEMBERED, Teacher

LOG = logging.getLogger(__name__)

SOURCES = {
    "CloudTrailSourceStage": "from-cloudtrail",
    "AzureSourceStage": "from-azure",
    "DuoSourceStage": "from-duo",
    "FileSourceStage": "from-file",
}
"""Words for the classes that old command lines name."""


@dataclass(frozen=True)
class TrainAe(Stage):
    """Learn each user's fingerprint, from training files, from a saved run, or from the input.

    Takes what a source gives. Put `preprocess` behind it. A user of too little history is learnt
    from it filled up with that of peers, who do alike, or without any from everyone's; the labels
    `rung` and `own_share` of `add-scores` say so. Where even everyone's is too short, events go
    through without a score, and the summary says so.

        train-ae --train_data_glob="data/training-data/*.csv" --seed 42
    """

    name = "train-ae"
    takes = (Events,)
    gives = Fingerprinted

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
        low=1,
    )
    train_min_history: int = option(
        300, "Events of history that a user needs; fewer are filled up with others'.", low=1
    )
    train_max_history: int | None = option(
        None,
        f"Latest events of each user to learn from. [default: all of the training files; "
        f"{REMEMBERED} of the input]",
        low=1,
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
    ladder: Ladder | None = field(default=None, repr=False, compare=False)

    def check(self) -> None:
        """Refuse options that exclude each other, a missing GPU, and a broken index."""
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        elif self.models_output_filename is not None:
            folder_at(self.models_output_filename).reach()
        self._check_source()
        if self.device.lower() == "cuda" and self.costly():
            self._check_gpu()

    def history(self) -> str | None:
        """The training files, unless fingerprints are loaded."""
        return None if self.pretrained_filename else self.train_data_glob

    def curious(self) -> bool:
        """Whom users are compared with is asked while learning."""
        return self.pretrained_filename is None and self.model == "compact"

    def meet(self, everybody: pl.DataFrame | None) -> TrainAe:
        """Compare users with everybody, and fill short histories up."""
        if everybody is None or everybody.is_empty():
            return self
        known = everybody.drop(OWNER, TIME, strict=False)
        population = Population(everybody[OWNER], everybody[TIME], known)
        return replace(
            self, ladder=Ladder(population, self.train_min_history, self.settings.use_generic_model)
        )

    def finish(self, summary: Summary) -> None:
        """Publish the index of the saved fingerprints, with everyone's."""
        if self.models_output_filename is None:
            return
        folder, everyone = self.models_output_filename, self.meet(summary.everybody).everyone()
        card = None if everyone is None else store.add(folder, everyone)
        # Who has no history of their own has no file of their own.
        cards = {user: card for user, card in summary.cards.items() if card.events}
        store.publish(folder, cards, card)

    def everyone(self) -> Fingerprint | None:
        """The fingerprint of users of whom nothing is known, if enough is known of the others."""
        history = None if self.ladder is None else self.ladder.everyone()
        return None if history is None else self.learn([history])[0]

    def __call__(self, batches: Iterator[Events]) -> Iterator[Fingerprinted]:
        """Give each batch its user's fingerprint."""
        teacher, groups = Teacher(self), self._groups(batches)
        while some := list(islice(groups, self.together())):
            yield from teacher.fingerprinted(some)

    def costly(self) -> bool:
        """Learning is; looking fingerprints up is not."""
        return self.pretrained_filename is None

    def anywhere(self) -> TrainAe:
        """The same folders, named in full."""
        return replace(
            self,
            pretrained_filename=_absolute(self.pretrained_filename),
            models_output_filename=_absolute(self.models_output_filename),
        )

    def writes_into(self) -> Path | None:
        """The folder of the fingerprints."""
        folder = self.models_output_filename
        return None if folder is None or "://" in folder else Path(folder)

    def resources(self) -> Mapping[str, float]:
        """A GPU, where one is asked for."""
        return {"GPU": 1.0} if self.device.lower() == "cuda" and self.costly() else {}

    def together(self) -> int:
        """As many users as a GPU trains side by side, where one may be at hand."""
        stackable = self.model == "compact" and not self.settings.endless and self.costly()
        return SIDE_BY_SIDE if stackable and may_be_gpu(self.device.lower()) else 1

    def learn(self, histories: Sequence[History]) -> list[Fingerprint]:
        """Learn the fingerprints of users, as the options say."""
        columns, options = self.settings.columns, self._options()
        if self.model == "reference":
            from morpheus.models import reference_training  # noqa: PLC0415 - torch takes a second to import

            return reference_training.learn_all(histories, columns, **options)
        trainer = trainer_on(self.device.lower(), len(histories))
        population = None if self.ladder is None else self.ladder.population
        kinds = self.settings.kinds
        return learn_all(
            histories, columns, trainer=trainer, population=population, kinds=kinds, **options
        )

    def _options(self) -> Options:
        """How fingerprints are learnt, whatever the network."""
        seed = self.settings.manual_seed if self.seed is None else self.seed
        scaler = self.settings.feature_scaler.replace("gaussrank", "gauss_rank")
        options = Options(scaler=scaler, seed=seed or 0)
        return options if self.train_epochs is None else options | {"epochs": self.train_epochs}

    def _groups(self, batches: Iterator[Events]) -> Iterator[list[Events]]:
        # Only learning from the input needs all of a user's events before the first is scored;
        # where the input never ends, what has come so far has to do.
        if self.pretrained_filename or self.train_data_glob or self.settings.endless:
            return ([batch] for batch in batches)
        return (list(group) for _, group in groupby(batches, key=attrgetter("user")))

    def _check_source(self) -> None:
        named = (self.source_stage_class or "").rsplit(".", 1)[-1]
        source, ours = SOURCES.get(named, named), self.settings.source
        leave = "Leave the option out: training files are read by the chain's own source."
        if named and source not in {*SOURCES.values(), ours}:
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
        if self.model == "reference" or self.settings.endless:
            what = "on an endless input" if self.settings.endless else "with `--model=reference`"
            raise UsageError(
                f"--device: {what} users are learnt one by one, which a GPU does not make faster. "
                "Leave the option out: they are learnt on the CPU."
            )
        if self.settings.engine.lower() != "dask":  # Its workers have GPUs of their own.
            device_of("cuda")

    def _check_pretrained(self, folder: str) -> None:
        if self.train_data_glob is not None:
            LOG.warning("--train_data_glob will be ignored: --pretrained_filename is given.")
        if self.models_output_filename is not None:
            raise UsageError(
                "--models_output_filename: with --pretrained_filename nothing is trained, so there "
                "is nothing to save. Leave one of the two out."
            )
        if not is_address(folder) and not Path(folder).is_dir():
            raise UsageError(
                f"--pretrained_filename: there is no folder `{folder}`. Give the folder that "
                "`train-ae --models_output_filename=...` wrote. Files of other programs (pickle, "
                "dill) are never read: they can run code."
            )
        self.saved  # noqa: B018 - reads and checks the index

    @cached_property
    def saved(self) -> store.Store:
        """The saved fingerprints."""
        return store.Store.open(self.pretrained_filename or "")


def _absolute(folder: str | None) -> str | None:
    return str(Path(folder).absolute()) if folder and "://" not in folder else folder
