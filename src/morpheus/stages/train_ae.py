"""train-ae: each user's fingerprint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.records import Batch, Events, Fingerprinted
from morpheus.stage import Stage, option

if TYPE_CHECKING:
    from morpheus.models.fingerprint import Card, Fingerprint
    from morpheus.models.store import Store

LOG = logging.getLogger(__name__)

REMEMBERED = 1000
"""Events of each user learnt from, at most, where there are no training files."""
SOURCES = {
    "CloudTrailSourceStage": "from-cloudtrail",
    "AzureSourceStage": "from-azure",
    "DuoSourceStage": "from-duo",
}
"""Words for the classes that old command lines name."""

Known = tuple["Fingerprint | None", "Card | None", str | None]
"""A user's fingerprint, its card, and why there is none."""


@dataclass(frozen=True)
class TrainAe(Stage):
    """Learn each user's fingerprint, from training files, from a saved run, or from the input.

    Takes what a source gives. Put `preprocess` behind it. A user without enough history goes
    through without a score, and the summary says so.

        train-ae --train_data_glob="data/training-data/*.csv" --seed 42
    """

    name = "train-ae"
    takes = (Events,)
    gives = Fingerprinted

    pretrained_filename: str | None = option(
        None, "Folder of fingerprints that an earlier run saved; nothing is trained."
    )
    train_data_glob: str | None = option(
        None,
        "Files to learn from, read as the input is. Without it, users are learnt from the input.",
    )
    source_stage_class: str | None = option(
        None,
        "Accepted for old command lines: training files are read by the chain's own source.",
    )
    train_epochs: int = option(
        25, "Passes over a user's distinct rows, at most; training stops when it is best.", low=1
    )
    train_min_history: int = option(300, "Events of history that a user needs.", low=1)
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
        None, "Folder to save the fingerprints in, for --pretrained_filename of later runs."
    )

    def check(self) -> None:
        """Refuse options that exclude each other, and a broken index of fingerprints."""
        if self.pretrained_filename is not None:
            self._check_pretrained(self.pretrained_filename)
        named = (self.source_stage_class or "CloudTrailSourceStage").rsplit(".", 1)[-1]
        if named not in SOURCES:
            raise UsageError(
                f"--source_stage_class: there is no source `{self.source_stage_class}`. "
                "Leave the option out: training files are read by the chain's own source."
            )

    def history(self) -> str | None:
        """The training files, unless fingerprints are loaded."""
        return None if self.pretrained_filename else self.train_data_glob

    def finish(self, cards: Mapping[str, Any]) -> None:
        """Publish the index of the saved fingerprints."""
        if self.models_output_filename is not None:
            from morpheus.models import store  # noqa: PLC0415 - torch takes a second to import

            store.publish(Path(self.models_output_filename), cards)

    def __call__(self, batches: Iterator[Events]) -> Iterator[Fingerprinted]:
        """Give each batch its user's fingerprint."""
        teacher = _Teacher(self)
        for group in self._groups(batches):
            yield from teacher.fingerprinted(group)

    def _groups(self, batches: Iterator[Events]) -> Iterator[list[Events]]:
        # Only learning from the input needs all of a user's events before the first is scored;
        # where the input never ends, what has come so far has to do.
        if self.pretrained_filename or self.train_data_glob or self.settings.endless:
            return ([batch] for batch in batches)
        return (list(group) for _, group in groupby(batches, key=attrgetter("user")))

    def _check_pretrained(self, folder: str) -> None:
        if self.train_data_glob is not None:
            LOG.warning("--train_data_glob will be ignored: --pretrained_filename is given.")
        if self.models_output_filename is not None:
            raise UsageError(
                "--models_output_filename: with --pretrained_filename nothing is trained, so there "
                "is nothing to save. Leave one of the two out."
            )
        if not Path(folder).is_dir():
            raise UsageError(
                f"--pretrained_filename: there is no folder `{folder}`. Give the folder that "
                "`train-ae --models_output_filename=...` wrote. Files of other programs (pickle, "
                "dill) are never read: they can run code."
            )
        self.store  # noqa: B018 - reads and checks the index

    @cached_property
    def store(self) -> Store:
        """The saved fingerprints."""
        from morpheus.models.store import Store  # noqa: PLC0415 - torch takes a second to import

        return Store.open(Path(self.pretrained_filename or ""))


@dataclass
class _Teacher:
    """What `train-ae` remembers while it runs: one entry a user."""

    stage: TrainAe
    known: dict[str, Known] = field(default_factory=dict)
    remembered: dict[str, pl.DataFrame] = field(default_factory=dict)

    def fingerprinted(self, group: list[Events]) -> Iterator[Fingerprinted]:
        """Give batches of one user the user's fingerprint."""
        fingerprint, card, reason = self._known(group)
        for batch in group:
            yield Fingerprinted(
                user=batch.user,
                frame=batch.frame,
                fingerprint=fingerprint,
                card=card,
                unscored=reason,
            )

    def _known(self, group: list[Events]) -> Known:
        user = group[0].user
        if user is None:
            return None, None, f"no value in `{self.stage.settings.userid_column_name}`"
        if self.stage.pretrained_filename or self.stage.train_data_glob:
            if user not in self.known:
                self.known[user] = self._met(user, group[0])
            return self.known[user]
        return self._learnt(user, self._remember(user, group))

    def _met(self, user: str, batch: Events) -> Known:
        if self.stage.pretrained_filename:
            return self._loaded(user)
        if batch.frame.is_empty() and self.stage.models_output_filename is None:
            return None, None, None
        if batch.history is None:
            return None, None, "no history"
        most = self.stage.train_max_history
        return self._learnt(user, batch.history if most is None else batch.history.tail(most))

    def _loaded(self, user: str) -> Known:
        fingerprint = self.stage.store.load(user)
        if fingerprint is None:
            return None, None, "no fingerprint"
        return fingerprint, fingerprint.card, None

    def _remember(self, user: str, group: Iterable[Batch]) -> pl.DataFrame:
        frames = [self.remembered[user]] if user in self.remembered else []
        joined = pl.concat([*frames, *(batch.frame for batch in group)], how="diagonal")
        self.remembered[user] = joined.tail(self.stage.train_max_history or REMEMBERED)
        return self.remembered[user]

    def _learnt(self, user: str, history: pl.DataFrame) -> Known:
        if history.height < self.stage.train_min_history:
            needed = self.stage.train_min_history
            return None, None, f"{history.height} events of history, {needed} needed"
        if not set(self.stage.settings.columns) & set(history.columns):
            raise UsageError(
                "None of the feature columns is in the logs. Name some that are with "
                "`--columns_file=...`, one a line: " + ", ".join(history.columns[2:12]) + ", ..."
            )
        from morpheus.models import fingerprint, store  # noqa: PLC0415 - torch takes a second

        LOG.debug("Training AE model for user: '%s'...", user)
        settings = self.stage.settings
        learnt = fingerprint.learn(
            user,
            history,
            settings.columns,
            times=history[TIME],
            scaler=settings.feature_scaler.replace("gaussrank", "gauss_rank"),
            epochs=self.stage.train_epochs,
            seed=self.stage.seed or 0,
        )
        LOG.debug("Training AE model for user: '%s'... Complete.", user)
        if self.stage.models_output_filename is None:
            return learnt, learnt.card, None
        return learnt, store.add(Path(self.stage.models_output_filename), learnt), None
