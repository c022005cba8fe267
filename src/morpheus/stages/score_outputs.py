"""What the model gives of an event, by label: for stages that judge by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.core.batch import Batch, DroppedStats, Losses, Scored
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.calibration import count_exceedances
from morpheus.models.temporal import TemporalContext
from morpheus.report.aggregate import EventArrays
from morpheus.stages.add_scores import AddScores, ScoreContext, to_series
from morpheus.suppressions.rules import SuppressionCounts


def summarise_dropped(batch: Batch, dropped: NDArray[np.bool_]) -> DroppedStats:
    """Add some of a batch's events to what is known of those left out before.

    Args:
        batch: Events, those to be left out among them.
        dropped: Which these are, (rows,).
    """
    look = EventArrays.from_frame(batch.frame.filter(pl.Series(dropped)))
    portrait = None if batch.card is None else batch.card.portrait
    seen = DroppedStats(look.histogram, count_exceedances(portrait, look.risks))
    return seen if batch.dropped_stats is None else batch.dropped_stats.merge(seen)


BatchT = TypeVar("BatchT", bound=Batch)


def validate_labels(stage_name: str, label: tuple[str, ...], options: PipelineOptions) -> None:
    """Refuse labels of which none is computed; warn of those left out.

    Args:
        stage_name: The word of the stage that was given them.
        label: The labels; none for all.
        options: Says which labels there are.
    """
    try:
        AddScores(label=label, options=options).validate()
    except UsageError as error:
        raise UsageError(str(error).replace(AddScores.name, stage_name)) from error


def iter_with_scores(
    batches: Iterator[Losses | Scored], label: tuple[str, ...], options: PipelineOptions
) -> Iterator[tuple[Losses | Scored, dict[str, pl.Series]]]:
    """Give each batch the outputs of its events, by label; NaN without a fingerprint."""
    measures = AddScores(label=label, options=options).score_functions()
    contexts: defaultdict[str | None, TemporalContext] = defaultdict(TemporalContext)
    for batch in batches:
        view = ScoreContext(batch, contexts[batch.user])
        yield batch, {name: to_series(name, measure(view)) for name, measure in measures.items()}


def mask_batch(
    batch: BatchT,
    mask: NDArray[np.bool_],
    suppressed: tuple[SuppressionCounts, ...] = (),
    *,
    collect_stats: bool = False,
) -> BatchT:
    """Leave events out of a batch, and count them.

    Args:
        batch: The events.
        mask: Which of them stay, (rows,).
        suppressed: What suppressions have met of them.
        collect_stats: A sink wants to know what those that go were like.
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
    """Which values are above a threshold; no number is above nothing."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )
