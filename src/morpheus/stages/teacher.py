"""What `train-ae` knows of users while it runs, and how it comes to know more."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.models import store
from morpheus.models.fingerprint import Card, Fingerprint
from morpheus.models.learning import History
from morpheus.records import Events, Fingerprinted

if TYPE_CHECKING:
    from morpheus.stages.train_ae import TrainAe

LOG = logging.getLogger(__name__)

REMEMBERED = 1000
"""Events of each user learnt from, at most, where there are no training files."""


@dataclass(frozen=True)
class Known:
    """A user's fingerprint and its card, or why there is none."""

    fingerprint: Fingerprint | None = None
    card: Card | None = None
    reason: str | None = None

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> Known:
        """What is known of a user who has a fingerprint."""
        return cls(fingerprint, fingerprint.card)


@dataclass
class Teacher:
    """Finds or learns the fingerprint of each user.

    Attributes:
        stage: Says how.
        known: What was found, by user.
        remembered: The latest events of each, where there are no training files.
    """

    stage: TrainAe
    known: dict[str, Known] = field(default_factory=dict)
    remembered: dict[str, pl.DataFrame] = field(default_factory=dict)

    def fingerprinted(self, groups: list[list[Events]]) -> Iterator[Fingerprinted]:
        """Give batches the fingerprints of their users; each group is of one user."""
        lessons: dict[str, History] = {}
        found = [self._known(group, lessons) for group in groups]
        learnt = self._learnt(lessons) if lessons else {}
        for group, known in zip(groups, found, strict=True):
            user = group[0].user
            outcome = learnt[user] if known is None and user is not None else known or Known()
            self._keep(user, outcome)
            for batch in group:
                yield batch.become(
                    Fingerprinted,
                    fingerprint=outcome.fingerprint,
                    card=outcome.card,
                    unscored=outcome.reason,
                )

    def _known(self, group: list[Events], lessons: dict[str, History]) -> Known | None:
        """What is known of a group's user; None where the history put into `lessons` will tell."""
        user = group[0].user
        if user is None:
            return Known(reason=f"no value in `{self.stage.settings.userid_column_name}`")
        if user in self.known:
            return self.known[user]
        if self.stage.pretrained_filename:
            fingerprint = self.stage.saved.load(user)
            return Known.of(fingerprint) if fingerprint else Known(reason="no fingerprint")
        if group[0].frame.is_empty() and self.stage.models_output_filename is None:
            return Known()
        return self._prepared(user, self._history(user, group), lessons)

    def _prepared(
        self, user: str, events: pl.DataFrame, lessons: dict[str, History]
    ) -> Known | None:
        if events.is_empty() and self.everyone is not None:
            return self.everyone
        history = self._climbed(History(user, events, events[TIME]))
        if history is None:
            needed = self.stage.train_min_history
            return Known(reason=f"{events.height} events of history, {needed} needed")
        lessons[user] = history
        return None

    def _climbed(self, history: History) -> History | None:
        if self.stage.ladder is not None:
            return self.stage.ladder.climbed(history)
        enough = history.events.height >= self.stage.train_min_history
        return history if enough else None

    @cached_property
    def everyone(self) -> Known | None:
        """What is known of a user of whom nothing is known."""
        fingerprint = self.stage.everyone()
        return None if fingerprint is None else Known.of(fingerprint)

    def _keep(self, user: str | None, known: Known) -> None:
        # What was learnt from the input is learnt anew when more has come.
        if user is not None and (self.stage.pretrained_filename or self.stage.train_data_glob):
            self.known[user] = known

    def _history(self, user: str, group: list[Events]) -> pl.DataFrame:
        most = self.stage.train_max_history
        if self.stage.train_data_glob:
            history = group[0].history
            history = group[0].frame.clear() if history is None else history
            return history if most is None else history.tail(most)
        frames = [self.remembered[user]] if user in self.remembered else []
        joined = pl.concat([*frames, *(batch.frame for batch in group)], how="diagonal")
        self.remembered[user] = joined.tail(most or REMEMBERED)
        return self.remembered[user]

    def _learnt(self, lessons: Mapping[str, History]) -> dict[str, Known]:
        for user, history in lessons.items():
            self._check_columns(history.events.columns)
            LOG.debug("Training AE model for user: '%s'...", user)
        fingerprints = self.stage.learn(list(lessons.values()))
        for user in lessons:
            LOG.debug("Training AE model for user: '%s'... Complete.", user)
        return {one.card.user: Known.of(self._saved(one)) for one in fingerprints}

    def _saved(self, fingerprint: Fingerprint) -> Fingerprint:
        if self.stage.models_output_filename is None:
            return fingerprint
        card = store.add(self.stage.models_output_filename, fingerprint)
        return replace(fingerprint, card=card)

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not set(self.stage.settings.columns) & set(columns):
            raise UsageError(
                "None of the feature columns is in the logs. Name some that are with "
                "`--columns_file=...`, one a line: " + ", ".join(columns[2:12]) + ", ..."
            )
