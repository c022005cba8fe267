"""What the model gives of an event, by label: for stages that judge by it."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from morpheus.errors import UsageError
from morpheus.models.context import Context
from morpheus.records import Losses, Scored
from morpheus.stage import Settings
from morpheus.stages.add_scores import AddScores, View, named


def check_labels(stage: str, label: tuple[str, ...], settings: Settings) -> None:
    """Refuse labels of which none is computed; warn of those left out.

    Args:
        stage: The word of the stage that was given them.
        label: The labels; none for all.
        settings: Says which labels there are.
    """
    try:
        AddScores(label=label, settings=settings).check()
    except UsageError as error:
        raise UsageError(str(error).replace(AddScores.name, stage)) from error


def with_outputs(
    batches: Iterator[Losses | Scored], label: tuple[str, ...], settings: Settings
) -> Iterator[tuple[Losses | Scored, dict[str, pl.Series]]]:
    """Give each batch the outputs of its events, by label; NaN without a fingerprint."""
    measures, context = AddScores(label=label, settings=settings).outputs(), Context()
    for batch in batches:
        view = View(batch, context)
        yield batch, {name: named(name, measure(view)) for name, measure in measures.items()}


def above(values: pl.Series, threshold: float) -> pl.Series:
    """Which values are above a threshold; no number is above nothing."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )
