"""What the model gives of an event, by label: for stages that judge by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import polars as pl

from morpheus.errors import UsageError
from morpheus.records import Losses, Scored
from morpheus.stage import Settings
from morpheus.stages.add_scores import AddScores

_MARK = "_output_of_"


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
    held: deque[Losses | Scored] = deque()

    def remembered() -> Iterator[Losses | Scored]:
        for batch in batches:
            held.append(batch)
            yield batch

    for scored in AddScores(label=label, prefix=_MARK, settings=settings)(remembered()):
        names = [name for name in scored.frame.columns if name.startswith(_MARK)]
        yield held.popleft(), {name.removeprefix(_MARK): scored.frame[name] for name in names}


def above(values: pl.Series, threshold: float) -> pl.Series:
    """Which values are above a threshold; no number is above nothing."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )
