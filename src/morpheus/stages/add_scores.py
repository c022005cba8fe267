"""`add-scores`: turn the losses of an event's columns into scores of the event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, SCORE, TIME
from morpheus.core.batch import Losses, Scored
from morpheus.core.stage import COMPAT_RELEASES, Requirements, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.models.temporal import TemporalContext

logger = logging.getLogger(__name__)

# The network computes in float32, about seven digits. The last digits depend on how matrix products
# are grouped. Rounding hides them, so equal events get equal scores on every machine.
DECIMALS = 6
Z_LOSS_SUFFIX = "_z_loss"
"""Suffix of the labels of single columns."""
FloatArray = NDArray[np.float64]


class ScoreState(State):
    """What scores remember about one user.

    Attributes:
        context: Decaying means of earlier events, which `risk` adds to the event itself.
    """

    context: TemporalContext = msgspec.field(default_factory=TemporalContext)


@dataclass
class ScoreContext:
    """The values that labels are computed from, each computed once for a batch.

    What depends on the losses alone is computed for distinct rows. Everything is NaN for a user
    without a fingerprint.

    Attributes:
        batch: The events.
        temporal_context: The user's earlier events.
    """

    batch: Losses | Scored
    temporal_context: TemporalContext

    @cached_property
    def inverse(self) -> NDArray[np.intp]:
        """Which distinct row each event is, (rows,)."""
        rows = self.batch.encoded
        return np.arange(self.batch.frame.height) if rows is None else rows.inverse

    @cached_property
    def losses(self) -> NDArray[np.float32]:
        """Losses of distinct rows; of one that no event is, any, (distinct, columns)."""
        event_of = np.zeros(self.inverse.max(initial=-1) + 1, dtype=np.intp)
        event_of[self.inverse] = np.arange(len(self.inverse))
        return self.batch.losses[event_of]

    @cached_property
    def score(self) -> FloatArray:
        """Mean over columns of each event's losses, (rows,)."""
        return np.asarray(self.losses.mean(axis=1, dtype=np.float64).round(DECIMALS)[self.inverse])

    @cached_property
    def z_losses(self) -> FloatArray:
        """Spreads of each column's loss above its usual, negative below it, (columns, distinct)."""
        known = self.batch.fingerprint
        losses = self.losses if known is None else known.baseline.zscore(self.losses)
        return np.ascontiguousarray(losses.T, dtype=np.float64)

    @cached_property
    def column_positions(self) -> dict[str, int]:
        """Where each column is among the fingerprint's."""
        known = self.batch.fingerprint
        names = () if known is None else known.encoder.names
        return {name: place for place, name in enumerate(names)}

    @cached_property
    def abs_z_losses(self) -> FloatArray:
        """How far each column's loss is from its usual, either way, (columns, distinct)."""
        return np.abs(self.z_losses)

    @cached_property
    def zscore(self) -> FloatArray:
        """Spreads of each score above the mean of held-out ones, negative below it, (rows,)."""
        known = self.batch.fingerprint
        return self.score if known is None else known.calibration.zscore(self.score)

    @cached_property
    def risk(self) -> FloatArray:
        """Each event's surprise, weighed with what came before it, (rows,).

        Raises:
            UsageError: The fingerprint was learnt with the reference network.
        """
        known, rows = self.batch.fingerprint, self.batch.encoded
        if known is None or rows is None:
            return np.full(self.batch.frame.height, np.nan)
        if known.surprise_model is None:
            raise UsageError(
                "add-scores: what `train-ae --model=reference` learns has no `risk` and no "
                "`pvalue`. Leave these labels out, or learn with `--model=compact`."
            )
        surprise, shared = (part.sum(1)[rows.inverse] for part in known.column_anomaly(rows))
        seconds = self.batch.frame[TIME].dt.epoch("ms").to_numpy() / 1000
        hour = known.calibration.short_ema_p90
        return self.temporal_context.compute_risk(surprise, shared, seconds, hour).round(DECIMALS)

    @property
    def pvalue(self) -> FloatArray:
        """Share of held-out events at least as risky, (rows,)."""
        known = self.batch.fingerprint
        return self.risk if known is None else known.calibration.pvalue(self.risk)

    @property
    def own_share(self) -> FloatArray:
        """Share of the fingerprint's history that is the user's own, (rows,)."""
        card = self.batch.card
        return np.full(self.batch.frame.height, np.nan if card is None else card.own_share)

    @property
    def training_data_scope(self) -> pl.Series:
        """Whose history the fingerprint was learnt from, (rows,)."""
        card = self.batch.card
        return pl.repeat(None if card is None else card.rung, self.batch.frame.height, eager=True)

    def column_z_loss(self, name: str, *, signed: bool = True) -> FloatArray | pl.Series:
        """The z-loss of one column; NaN where there is no such column, (rows,)."""
        if name not in self.column_positions:
            return np.full(self.batch.frame.height, np.nan)
        values = self.z_losses if signed else self.abs_z_losses
        return pl.Series(values[self.column_positions[name]].round(DECIMALS)[self.inverse])


ScoreFunction = Callable[[ScoreContext], FloatArray | pl.Series]

SCORE_FUNCTIONS: dict[str, ScoreFunction] = {
    SCORE: lambda view: view.score,
    "reconstruct_loss": lambda view: view.score,
    "zscore": lambda view: np.maximum(view.zscore, 0),
    "abs_zscore": lambda view: np.abs(view.zscore),
    "max_abs_z": lambda view: view.abs_z_losses.max(axis=0)[view.inverse],
    "mean_abs_z": lambda view: view.abs_z_losses.mean(axis=0)[view.inverse],
    RISK: lambda view: view.risk,
    "pvalue": lambda view: view.pvalue,
    "rung": lambda view: view.training_data_scope,
    "own_share": lambda view: view.own_share,
}
"""Labels that say by themselves what is to be computed; `<column>_z_loss` is one more each."""
COMPAT_22_08, COMPAT_22_11 = COMPAT_RELEASES
SCORE_FUNCTIONS_22_11 = SCORE_FUNCTIONS | {"zscore": SCORE_FUNCTIONS["abs_zscore"]}
"""From 22.09 on, a score below the mean counted as one above it."""
MODEL_OUTPUTS = {COMPAT_22_08: (SCORE,), COMPAT_22_11: ("reconstruct_loss", "zscore")}
"""What the model gives of an event, by release: the labels where none are given, and the order in
which labels of other names name it."""


@dataclass(frozen=True)
class AddScores(Transform):
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
    needs = Requirements(model=True)

    label: tuple[str, ...] = option(
        (), "Score to add; repeat for more. By default every label of --labels_file."
    )
    prefix: str = option("", "Put before each label to make the name of its column.")
    probs_type: str = option(
        "FLOAT32",
        "Accepted for old command lines. Scores are 64-bit numbers with six decimals here.",
        choices=("BOOL8", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT32", "UINT64"),
    )

    def validate(self) -> None:
        """Refuse labels that nothing computes; warn of those left out."""
        known = self._available_functions()
        for label in self.label:
            if label not in known:
                logger.warning(
                    "The label '%s' is not in Config.class_labels and will be ignored", label
                )
        if not self.score_functions():
            raise UsageError(
                "add-scores: no --label is left to add. "
                f"Use one of {', '.join(f'`--label {label}`' for label in known)}."
            )

    def open(self, context: StageContext) -> ScoreState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ScoreState()

    def process(self, batch: Losses | Scored, state: ScoreState) -> Iterator[Scored]:
        """Add one column for each label."""
        outputs = {
            self.prefix + label: function for label, function in self.score_functions().items()
        }
        columns = self._compat_functions() | outputs
        view = ScoreContext(batch, state.context)
        scores = [to_series(name, function(view)) for name, function in columns.items()]
        yield batch.evolve(
            Scored,
            frame=_add_columns(batch.frame, scores),
            scores=tuple(dict.fromkeys((*batch.scores, *columns))),
            losses=batch.losses,
        )

    def score_functions(self) -> dict[str, ScoreFunction]:
        """Label -> what computes it, of those asked for."""
        known = self._available_functions()
        wanted = [label for label in self.label or self._default_labels() if label in known]
        return {label: known[label] for label in wanted}

    def _compat_functions(self) -> dict[str, ScoreFunction]:
        """Columns that come whatever is asked for, as `inf-pytorch` gave them from 22.09 on."""
        if self.options.compat == COMPAT_22_08:
            return {}
        sums = {name: SCORE_FUNCTIONS[name] for name in ("max_abs_z", "mean_abs_z")}
        return self._column_functions() | sums

    def _column_functions(self) -> dict[str, ScoreFunction]:
        """The labels of single columns."""
        signed = self.options.compat == COMPAT_22_08
        return {
            f"{name}{Z_LOSS_SUFFIX}": partial(ScoreContext.column_z_loss, name=name, signed=signed)
            for name in self.options.columns
        }

    def _default_labels(self) -> tuple[str, ...]:
        return self.options.labels or MODEL_OUTPUTS[self.options.compat]

    def _available_functions(self) -> Mapping[str, ScoreFunction]:
        """Label -> what computes it: by name where all are known, else in the model's order."""
        named = SCORE_FUNCTIONS if self.options.compat == COMPAT_22_08 else SCORE_FUNCTIONS_22_11
        known: dict[str, ScoreFunction] = named | self._column_functions()
        labels, outputs = self._default_labels(), MODEL_OUTPUTS[self.options.compat]
        if known.keys() >= set(labels):
            return known
        if len(labels) != len(outputs):
            many, lines = ("output", "line") if len(outputs) == 1 else ("outputs", "lines")
            raise UsageError(
                f"add-scores: there are {len(labels)} labels ({', '.join(labels)}), but the model "
                f"has {len(outputs)} {many}. Give `--labels_file` a file with {len(outputs)} "
                f"{lines}, leave it out for {' and '.join(f'`{one}`' for one in outputs)}, or name "
                f"labels that are known: {', '.join(SCORE_FUNCTIONS)}."
            )
        return known | dict(zip(labels, (known[one] for one in outputs), strict=True))


def to_series(name: str, values: FloatArray | pl.Series) -> pl.Series:
    """Make a column of what was measured."""
    if isinstance(values, pl.Series):
        return values.alias(name)
    return pl.Series(name, values.round(DECIMALS))


def _add_columns(frame: pl.DataFrame, scores: list[pl.Series]) -> pl.DataFrame:
    """Add columns; one that is there already is replaced where it stands."""
    if any(score.name in frame.columns for score in scores):
        return frame.with_columns(scores)
    # Not by an expression: at a thousand events those cost ten times as much.
    return frame.hstack(scores)
