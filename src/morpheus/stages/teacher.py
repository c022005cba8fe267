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
from morpheus.models.fingerprint import ModelCard, Fingerprint
from morpheus.models.learning import UserHistory
from morpheus.records import Events, WithModel

if TYPE_CHECKING:
    from morpheus.stages.train_ae import TrainAe

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

    def _find_model(self, group: list[Events], pending_training: dict[str, UserHistory]) -> ModelLookup | None:
        """What is known of a group's user; None where the history put into `lessons` will tell."""
        user = group[0].user
        if user is None:
            return ModelLookup(reason=f"no value in `{self.stage.options.userid_column_name}`")
        if user in self.lookups:
            return self.lookups[user]
        if self.stage.pretrained_filename:
            fingerprint = self.stage.model_store.load(user)
            return ModelLookup.from_fingerprint(fingerprint) if fingerprint else ModelLookup(reason="no fingerprint")
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
        return {one.card.user: ModelLookup.from_fingerprint(self._save(one)) for one in fingerprints}

    def _save(self, fingerprint: Fingerprint) -> Fingerprint:
        if self.stage.models_output_filename is None:
            return fingerprint
        card = store.put_model(self.stage.models_output_filename, fingerprint)
        return replace(fingerprint, card=card)

    def _check_columns(self, columns: Sequence[str]) -> None:
        if not set(self.stage.options.columns) & set(columns):
            raise UsageError(
                "None of the feature columns is in the logs. Name some that are with "
                "`--columns_file=...`, one a line: " + ", ".join(columns[2:12]) + ", ..."
            )
