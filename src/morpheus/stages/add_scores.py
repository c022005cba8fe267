"""`add-scores`: from the losses of an event's columns to one number for the event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import SCORE
from morpheus.errors import UsageError
from morpheus.records import Losses, Scored
from morpheus.stage import Stage, option

logger = logging.getLogger(__name__)

# The network counts in float32, about seven digits, the last of which hang on how its matrix
# products are grouped. Rounding hides them: equal events get equal scores on every machine.
DECIMALS = 6


def mean_loss(batch: Losses | Scored) -> NDArray[np.float64]:
    """Mean over columns of each event's losses, shape (rows,); NaN without a fingerprint."""
    losses = np.ascontiguousarray(batch.losses, dtype=np.float64)
    mean: NDArray[np.float64] = losses.mean(axis=1).round(DECIMALS)
    return mean


Measure = Callable[[Losses | Scored], NDArray[np.float64]]

OUTPUTS: tuple[Measure, ...] = (mean_loss,)
"""What the model gives of an event, in the order in which labels name it."""
LABELS: dict[str, Measure] = {SCORE: mean_loss}
"""Labels that say by themselves what is to be computed."""


@dataclass(frozen=True)
class AddScores(Stage):
    """Say how unusual each event is for its user.

    Takes events with the loss of each column and adds `ae_anomaly_score`, the mean over columns:
    0 and up, higher is more unusual. Events of a user without a fingerprint get no score.

    Example: `add-scores`, or `add-scores --prefix=dfp_`
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
        known = _functions(self.settings.labels)
        for label in self.label:
            if label not in known:
                logger.warning(
                    "The label '%s' is not in Config.class_labels and will be ignored", label
                )
        if not self._columns():
            raise UsageError(
                "add-scores: no --label is left to add. "
                f"Use one of {', '.join(f'`--label {label}`' for label in known)}."
            )

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Scored]:
        """Add one column for each label."""
        columns = self._columns()
        for batch in batches:
            scores = [pl.Series(name, score(batch)) for name, score in columns.items()]
            yield batch.become(
                Scored,
                frame=_with(batch.frame, scores),
                scores=tuple(dict.fromkeys((*batch.scores, *columns))),
                losses=batch.losses,
            )

    def _columns(self) -> dict[str, Measure]:
        """Column to add -> what computes it."""
        known = _functions(self.settings.labels)
        wanted = [label for label in self.label or known if label in known]
        return {self.prefix + label: known[label] for label in wanted}


def _with(frame: pl.DataFrame, scores: list[pl.Series]) -> pl.DataFrame:
    """Add columns; one that is there already is replaced where it stands."""
    if any(score.name in frame.columns for score in scores):
        return frame.with_columns(scores)
    # Not by an expression: at a thousand events those cost ten times as much.
    return frame.hstack(scores)


def _functions(labels: tuple[str, ...]) -> dict[str, Measure]:
    """Label -> what computes it: by name where all are known, else in the model's order."""
    if labels and LABELS.keys() >= set(labels):
        return {label: LABELS[label] for label in labels}
    if len(labels) != len(OUTPUTS):
        raise UsageError(
            f"add-scores: there are {len(labels)} labels ({', '.join(labels)}), but the model has "
            f"{len(OUTPUTS)} output. Give `--labels_file` a file with {len(OUTPUTS)} line, or "
            f"leave it out for `{SCORE}`."
        )
    return dict(zip(labels, OUTPUTS, strict=True))
