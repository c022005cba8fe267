"""`add-scores`: from the losses of an event's columns to numbers for the event."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, SCORE, TIME
from morpheus.errors import UsageError
from morpheus.models.context import Context
from morpheus.records import Losses, Scored
from morpheus.stage import RELEASES, Stage, option

logger = logging.getLogger(__name__)

# The network counts in float32, about seven digits, the last of which hang on how its matrix
# products are grouped. Rounding hides them: equal events get equal scores on every machine.
DECIMALS = 6
Z_LOSS = "_z_loss"
"""Ends the labels of single columns."""
Values = NDArray[np.float64]


@dataclass
class View:
    """A batch, as labels look at it: what several of them need is computed once.

    What hangs on the losses alone is computed of distinct rows, as these were. Everything is NaN
    for a user without a fingerprint.
    """

    batch: Losses | Scored
    context: Context

    @cached_property
    def row_of(self) -> NDArray[np.intp]:
        """Which distinct row each event is, (rows,)."""
        rows = self.batch.encoded
        return np.arange(self.batch.frame.height) if rows is None else rows.row_of

    @cached_property
    def losses(self) -> NDArray[np.float32]:
        """Losses of distinct rows; of one that no event is, any, (distinct, columns)."""
        event_of = np.zeros(self.row_of.max(initial=-1) + 1, dtype=np.intp)
        event_of[self.row_of] = np.arange(len(self.row_of))
        return self.batch.losses[event_of]

    @cached_property
    def score(self) -> Values:
        """Mean over columns of each event's losses, (rows,)."""
        return np.asarray(self.losses.mean(axis=1, dtype=np.float64).round(DECIMALS)[self.row_of])

    @cached_property
    def z_losses(self) -> Values:
        """Spreads of each column's loss above its usual, negative below it, (columns, distinct)."""
        known = self.batch.fingerprint
        losses = self.losses if known is None else known.usual.standardised(self.losses)
        return np.ascontiguousarray(losses.T, dtype=np.float64)

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each column is among the fingerprint's."""
        known = self.batch.fingerprint
        names = () if known is None else known.encoder.names
        return {name: place for place, name in enumerate(names)}

    @cached_property
    def sizes(self) -> Values:
        """How far each column's loss is from its usual, either way, (columns, distinct)."""
        return np.abs(self.z_losses)

    @cached_property
    def zscore(self) -> Values:
        """Spreads of each score above the mean of held-out ones, negative below it, (rows,)."""
        known = self.batch.fingerprint
        return self.score if known is None else known.held_out.zscore(self.score)

    @cached_property
    def risk(self) -> Values:
        """Each event's surprise, weighed with what came before it, (rows,).

        Raises:
            UsageError: The fingerprint was learnt with the reference network.
        """
        known, rows = self.batch.fingerprint, self.batch.encoded
        if known is None or rows is None:
            return np.full(self.batch.frame.height, np.nan)
        if known.evidence is None:
            raise UsageError(
                "add-scores: what `train-ae --model=reference` learns has no `risk` and no "
                "`pvalue`. Leave these labels out, or learn with `--model=compact`."
            )
        surprise, shared = (part.sum(1)[rows.row_of] for part in known.strangeness(rows))
        seconds = self.batch.frame[TIME].dt.epoch("ms").to_numpy() / 1000
        hour = known.held_out.hour
        return self.context.risk(surprise, shared, seconds, hour).round(DECIMALS)

    @property
    def pvalue(self) -> Values:
        """Share of held-out events at least as risky, (rows,)."""
        known = self.batch.fingerprint
        return self.risk if known is None else known.held_out.pvalue(self.risk)

    @property
    def own_share(self) -> Values:
        """Share of the fingerprint's history that is the user's own, (rows,)."""
        card = self.batch.card
        return np.full(self.batch.frame.height, np.nan if card is None else card.own_share)

    @property
    def rung(self) -> pl.Series:
        """Whose history the fingerprint was learnt from, (rows,)."""
        card = self.batch.card
        return pl.repeat(None if card is None else card.rung, self.batch.frame.height, eager=True)

    def column(self, name: str, *, signed: bool = True) -> Values | pl.Series:
        """The z-loss of one column; NaN where there is no such column, (rows,)."""
        if name not in self.places:
            return np.full(self.batch.frame.height, np.nan)
        values = self.z_losses if signed else self.sizes
        return pl.Series(values[self.places[name]].round(DECIMALS)[self.row_of])


Measure = Callable[[View], Values | pl.Series]

LABELS: dict[str, Measure] = {
    SCORE: lambda view: view.score,
    "reconstruct_loss": lambda view: view.score,
    "zscore": lambda view: np.maximum(view.zscore, 0),
    "abs_zscore": lambda view: np.abs(view.zscore),
    "max_abs_z": lambda view: view.sizes.max(axis=0)[view.row_of],
    "mean_abs_z": lambda view: view.sizes.mean(axis=0)[view.row_of],
    RISK: lambda view: view.risk,
    "pvalue": lambda view: view.pvalue,
    "rung": lambda view: view.rung,
    "own_share": lambda view: view.own_share,
}
"""Labels that say by themselves what is to be computed; `<column>_z_loss` is one more each."""
EARLIER, LATER = RELEASES
LATER_LABELS = LABELS | {"zscore": LABELS["abs_zscore"]}
"""From 22.09 on, a score below the mean counted as one above it."""
OUTPUTS = {EARLIER: (SCORE,), LATER: ("reconstruct_loss", "zscore")}
"""What the model gives of an event, by release: the labels where none are given, and the order in
which labels of other names name it."""


@dataclass(frozen=True)
class AddScores(Stage):
    """Say how unusual each event is for its user.

    Takes events with the loss of each column and adds `ae_anomaly_score`, the mean over columns:
    0 and up, higher is more unusual. Events of a user without a fingerprint get no score.

    Other labels: `risk` is the best single ranking across users: how much rather everybody's than
    this user's an event's values are and how ill they go together, with what came in the hour and
    the month before. `pvalue` is the share of the user's held-out events at least as risky.
    `zscore` measures the score against theirs, 0 below their mean; `abs_zscore` counts both ways.
    `<column>_z_loss` is each column's loss in spreads from its usual, `max_abs_z` and `mean_abs_z`
    sum these up; `pipeline-ae --compat 22.11` adds them all. `rung` and `own_share` say whose
    history the user's fingerprint was learnt from.

    Example: `add-scores`, or `add-scores --label ae_anomaly_score --label risk`
    """

    name = "add-scores"
    takes = (Losses, Scored)
    gives = Scored

    label: tuple[str, ...] = option(
        (), "Score to add; repeat for more. By default every label of --labels_file."
    )
    prefix: str = option("", "Put before each label to make the name of its column.")
    probs_type: str = option(
        "FLOAT32",
        "Accepted for old command lines. Scores are 64-bit numbers with six decimals here.",
        choices=("BOOL8", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT32", "UINT64"),
    )

    def check(self) -> None:
        """Refuse labels that nothing computes; warn of those left out."""
        known = self._known()
        for label in self.label:
            if label not in known:
                logger.warning(
                    "The label '%s' is not in Config.class_labels and will be ignored", label
                )
        if not self.outputs():
            raise UsageError(
                "add-scores: no --label is left to add. "
                f"Use one of {', '.join(f'`--label {label}`' for label in known)}."
            )

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Scored]:
        """Add one column for each label."""
        outputs = {self.prefix + label: measure for label, measure in self.outputs().items()}
        columns = self._beside() | outputs
        contexts: defaultdict[str | None, Context] = defaultdict(Context)
        for batch in batches:
            view = View(batch, contexts[batch.user])
            scores = [named(name, measure(view)) for name, measure in columns.items()]
            yield batch.become(
                Scored,
                frame=_with(batch.frame, scores),
                scores=tuple(dict.fromkeys((*batch.scores, *columns))),
                losses=batch.losses,
            )

    def outputs(self) -> dict[str, Measure]:
        """Label -> what computes it, of those asked for."""
        known = self._known()
        wanted = [label for label in self.label or self._default() if label in known]
        return {label: known[label] for label in wanted}

    def _beside(self) -> dict[str, Measure]:
        """Columns that come whatever is asked for, as `inf-pytorch` gave them from 22.09 on."""
        if self.settings.compat == EARLIER:
            return {}
        sums = {name: LABELS[name] for name in ("max_abs_z", "mean_abs_z")}
        return self._columns() | sums

    def _columns(self) -> dict[str, Measure]:
        """The labels of single columns."""
        signed = self.settings.compat == EARLIER
        return {
            f"{name}{Z_LOSS}": partial(View.column, name=name, signed=signed)
            for name in self.settings.columns
        }

    def _default(self) -> tuple[str, ...]:
        return self.settings.labels or OUTPUTS[self.settings.compat]

    def _known(self) -> Mapping[str, Measure]:
        """Label -> what computes it: by name where all are known, else in the model's order."""
        named = LABELS if self.settings.compat == EARLIER else LATER_LABELS
        known: dict[str, Measure] = named | self._columns()
        labels, outputs = self._default(), OUTPUTS[self.settings.compat]
        if known.keys() >= set(labels):
            return known
        if len(labels) != len(outputs):
            many, lines = ("output", "line") if len(outputs) == 1 else ("outputs", "lines")
            raise UsageError(
                f"add-scores: there are {len(labels)} labels ({', '.join(labels)}), but the model "
                f"has {len(outputs)} {many}. Give `--labels_file` a file with {len(outputs)} "
                f"{lines}, leave it out for {' and '.join(f'`{one}`' for one in outputs)}, or name "
                f"labels that are known: {', '.join(LABELS)}."
            )
        return known | dict(zip(labels, (known[one] for one in outputs), strict=True))


def named(name: str, values: Values | pl.Series) -> pl.Series:
    """Make a column of what was measured."""
    if isinstance(values, pl.Series):
        return values.alias(name)
    return pl.Series(name, values.round(DECIMALS))


def _with(frame: pl.DataFrame, scores: list[pl.Series]) -> pl.DataFrame:
    """Add columns; one that is there already is replaced where it stands."""
    if any(score.name in frame.columns for score in scores):
        return frame.with_columns(scores)
    # Not by an expression: at a thousand events those cost ten times as much.
    return frame.hstack(scores)
