"""`filter`: only the events whose score is above a threshold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from operator import or_

import polars as pl

from morpheus.columns import RISK
from morpheus.errors import UsageError
from morpheus.records import Losses, Scored
from morpheus.stage import Transform, option
from morpheus.stages.alerts import CandidateFilter, BudgetFilter
from morpheus.stages.outputs import exceeds, validate_labels, mask_batch, iter_with_scores
from morpheus.suppressions.rules import NO_MATCH, Suppressions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filter(Transform):
    """Hand on only the events whose score is above a threshold.

    Takes events with losses or scores. An event stays if any of its scores is above `--threshold`;
    events without a score go. The summary counts what was left out. `timeseries` behind it looks at
    what is left.

    With `--alerts_per_day`, an alert is a run of a user's events without an hour's pause, of which
    one at least is above the user's own threshold. The summary says how many alerts were to be
    expected, with the interval that 95 of 100 such runs should keep to, and how many there were.
    Stages between it and `serialize` still see the events that come into question.

    `--suppressions` holds back what people have judged harmless, for the users it names and until
    the day it says. The summary says how many events each suppression has held back, and how many
    it would have, had it not ended. `morpheus tools suppress` makes the file, and previews it.

    Example: `filter --threshold=2.5`, `filter --alerts_per_day=2`,
    `filter --filter_source=DATAFRAME --field_name=max_abs_z`, or
    `filter --alerts_per_day=2 --suppressions=suppressions.toml`
    """

    name = "filter"
    takes = (Losses, Scored)

    threshold: float = option(
        0.5, "Score above which an event stays. Scores are no probabilities: look first."
    )
    label: tuple[str, ...] = option(
        (), "Score looked at; repeat for more. By default every label of --labels_file."
    )
    copy: bool = option(
        True, "Accepted for old command lines. Events that stay are never changed here."
    )
    filter_source: str = option(
        "Auto",
        "What is looked at: the scores (TENSOR, and Auto), or a column (DATAFRAME).",
        choices=("Auto", "TENSOR", "DATAFRAME"),
    )
    field_name: str = option("probs", "Column of numbers to look at, with DATAFRAME.")
    alerts_per_day: float | None = option(
        None,
        "Instead of a threshold: alerts a day among all users together. Each user's threshold "
        "comes from how `risk` went on held-out days.",
        min=0,
    )
    suppressions: tuple[str, ...] = option(
        (), "File of suppressions, which hold back what would have stayed; repeat for more."
    )
    rules: Suppressions | None = None

    def expand(self) -> tuple[Transform, ...]:
        """With a budget, a look at each user and then one at everybody."""
        # Read here, where the files are: other parts of the chain may run on other machines.
        rules = self._load_suppressions()
        if self.alerts_per_day is None:
            return (replace(self, rules=rules),)
        return (
            CandidateFilter(self.alerts_per_day, rules, options=self.options),
            BudgetFilter(self.alerts_per_day, rules, options=self.options),
        )

    def validate(self) -> None:
        """Refuse labels that nothing computes, and what goes ill with a budget."""
        self._warn_expired(datetime.now(UTC))
        if self.alerts_per_day is not None:
            self._validate_budget()
            return
        if not self._uses_column:
            validate_labels(self.name, self.label, self.options)

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Losses | Scored]:
        """Leave events out, and count them; a batch of which nothing stays carries the count."""
        rules = self._load_suppressions()
        for batch, looked_at in self._iter_with_values(batches):
            alarming = reduce(or_, (exceeds(values, self.threshold) for values in looked_at))
            rows = alarming.to_numpy()
            held, ended = rules.match(batch.user, batch.frame)
            account = rules.count(held[rows], ended[rows])
            stay = rows & (held == NO_MATCH)
            yield mask_batch(batch, stay, account, collect_stats=self.options.keeps_dropped_stats)

    def _load_suppressions(self) -> Suppressions:
        return self.rules or Suppressions.read(*self.suppressions)

    def _warn_expired(self, now: datetime) -> None:
        for rule in self._load_suppressions().rules:
            if rule.until <= now:
                logger.warning(
                    "filter: the suppression %s, has ended: later events stay. Take it out of its "
                    "file, or look again and give it another `until`.",
                    rule.label,
                )

    def _validate_budget(self) -> None:
        if set(self.label) - {RISK} or self._uses_column:
            raise UsageError(
                "filter: --alerts_per_day goes by `risk` alone, which is calibrated for it. Leave "
                "--label, --filter_source and --field_name out, or give a --threshold instead."
            )
        if self.options.unbounded:
            raise UsageError(
                "filter: --alerts_per_day needs to have met every user, and this input never ends. "
                "Give `--label=risk --threshold=...`; a run over past days says which threshold."
            )

    @property
    def _uses_column(self) -> bool:
        return self.filter_source.upper() == "DATAFRAME"

    def _iter_with_values(
        self, batches: Iterator[Losses | Scored]
    ) -> Iterator[tuple[Losses | Scored, list[pl.Series]]]:
        if self._uses_column:
            for batch in batches:
                yield batch, [self._column_values(batch)]
        else:
            for batch, found in iter_with_scores(batches, self.label, self.options):
                yield batch, list(found.values())

    def _column_values(self, batch: Losses | Scored) -> pl.Series:
        if self.field_name not in batch.frame.columns:
            numbers = [n for n, kind in batch.frame.schema.items() if kind.is_float()]
            known = f" Columns of numbers are {', '.join(numbers)}." if numbers else ""
            raise UsageError(
                f"filter: --field_name: events have no column `{self.field_name}` here.{known} "
                "Put the stage that adds it in front of `filter`."
            )
        return batch.frame[self.field_name]
