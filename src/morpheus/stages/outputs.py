"""What the model gives of an event, by label: for stages that judge by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.errors import UsageError
from morpheus.models.context import Context
from morpheus.records import Batch, Losses, Scored
from morpheus.stage import Settings
from morpheus.stages.add_scores import AddScores, View, named
from morpheus.stages.leftovers import picture
from morpheus.suppressions.rules import Held

Kind = TypeVar("Kind", bound=Batch)


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
    measures = AddScores(label=label, settings=settings).outputs()
    contexts: defaultdict[str | None, Context] = defaultdict(Context)
    for batch in batches:
        view = View(batch, contexts[batch.user])
        yield batch, {name: named(name, measure(view)) for name, measure in measures.items()}


def kept(
    batch: Kind,
    rows: NDArray[np.bool_],
    held: tuple[Held, ...] = (),
    *,
    pictured: bool = False,
) -> Kind:
    """Leave events out of a batch, and count them.

    Args:
        batch: The events.
        rows: Which of them stay, (rows,).
        held: What suppressions have met of them.
        pictured: A sink wants to know what those that go were like.
    """
    codes = batch.encoded and replace(batch.encoded, row_of=batch.encoded.row_of[rows])
    some = replace(
        batch,
        frame=batch.frame.filter(pl.Series(rows, dtype=pl.Boolean)),
        encoded=codes,
        filtered=batch.filtered + int((~rows).sum()),
        picture=picture(batch, ~rows) if pictured else batch.picture,
        held=batch.held + held,
        watched=batch.watched and batch.watched.kept(rows),
    )
    return replace(some, losses=some.losses[rows]) if isinstance(some, Losses | Scored) else some


def above(values: pl.Series, threshold: float) -> pl.Series:
    """Which values are above a threshold; no number is above nothing."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )
