"""Scores of a batch by label, and dropping events by them: shared by `filter` and `add-class`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.core.batch import Batch, DroppedStats, Losses, Scored
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.calibration import count_exceedances
from morpheus.report.aggregate import EventArrays
from morpheus.stages.add_scores import AddScores, ScoreContext, ScoreState, to_series
from morpheus.suppressions.rules import SuppressionCounts


def summarise_dropped(batch: Batch, dropped: NDArray[np.bool_]) -> DroppedStats:
    """Summarise the dropped events of a batch, with those dropped before.

    Args:
        batch: The events, dropped ones included.
        dropped: Which events are dropped, shape (rows,).
    """
    arrays = EventArrays.from_frame(batch.frame.filter(pl.Series(dropped)))
    portrait = None if batch.card is None else batch.card.portrait
    seen = DroppedStats(arrays.histogram, count_exceedances(portrait, arrays.risks))
    return seen if batch.dropped_stats is None else batch.dropped_stats.merge(seen)


BatchT = TypeVar("BatchT", bound=Batch)


def validate_labels(stage_name: str, label: tuple[str, ...], options: PipelineOptions) -> None:
    """Reject labels of which none exists; warn about those that are ignored.

    Args:
        stage_name: The word of the stage that has the option.
        label: The labels; empty for all.
        options: Options of the pipeline, which say which labels exist.

    Raises:
        UsageError: None of the labels exists.
    """
    try:
        AddScores(label=label, options=options).validate()
    except UsageError as error:
        raise UsageError(str(error).replace(AddScores.name, stage_name)) from error


def compute_scores(
    batch: Losses | Scored, state: ScoreState, label: tuple[str, ...], options: PipelineOptions
) -> dict[str, pl.Series]:
    """Compute the scores of a batch's events, by label; NaN without a fingerprint.

    Args:
        batch: The events.
        state: What is known of the user's earlier events.
        label: The labels; empty for all of the pipeline.
        options: Options of the pipeline, which say which labels exist.
    """
    functions = AddScores(label=label, options=options).score_functions()
    view = ScoreContext(batch, state.context)
    return {name: to_series(name, function(view)) for name, function in functions.items()}


def mask_batch(
    batch: BatchT,
    mask: NDArray[np.bool_],
    suppressed: tuple[SuppressionCounts, ...] = (),
    *,
    collect_stats: bool = False,
) -> BatchT:
    """Drop events of a batch and count them.

    Args:
        batch: The events.
        mask: Which events to keep, shape (rows,).
        suppressed: Counts of suppressed events, to be added to the batch.
        collect_stats: Summarise the dropped events for a later stage.
    """
    codes = batch.encoded and replace(batch.encoded, inverse=batch.encoded.inverse[mask])
    some = replace(
        batch,
        frame=batch.frame.filter(pl.Series(mask, dtype=pl.Boolean)),
        encoded=codes,
        filtered=batch.filtered + int((~mask).sum()),
        dropped_stats=summarise_dropped(batch, ~mask) if collect_stats else batch.dropped_stats,
        suppressed=batch.suppressed + suppressed,
        candidates=batch.candidates and batch.candidates.filter(mask),
    )
    return replace(some, losses=some.losses[mask]) if isinstance(some, Losses | Scored) else some


def exceeds(values: pl.Series, threshold: float) -> pl.Series:
    """Return which values are above a threshold; a missing value is not."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )
