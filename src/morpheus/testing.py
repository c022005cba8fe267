"""Builders for tests, of ours and of plugin authors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import polars as pl

from morpheus.columns import INDEX, ROW, SCORE, TIME
from morpheus.records import Batch, Losses, Rows, Scored

Record = TypeVar("Record", bound=Batch)

DAY = datetime(2021, 10, 9, tzinfo=UTC)
"""The day on which built events happen."""


def events_at(seconds: Sequence[float], **columns: Sequence[object]) -> pl.DataFrame:
    """Events at those seconds of `DAY`, with the columns that every event has, and more.

    >>> events_at([0, 90], eventName=["GetUser", None]).rows()[1]
    (1, 1, None, datetime.datetime(2021, 10, 9, 0, 1, 30, tzinfo=zoneinfo.ZoneInfo(key='UTC')))
    """
    start = int(DAY.timestamp() * 1e6)
    times = np.array([start + round(each * 1e6) for each in seconds], dtype=np.int64)
    return pl.DataFrame(
        {
            ROW: np.arange(len(times)),
            INDEX: np.arange(len(times)),
            **columns,
            TIME: pl.Series(times).cast(pl.Datetime("us", "UTC")),
        }
    )


def losses(
    frame: pl.DataFrame, rows: Sequence[Sequence[float]] | None = None, *, user: str | None = "ann"
) -> Losses:
    """Events with the losses of their columns; NaN where there are none, as without a fingerprint.

    >>> losses(events_at([0, 1]), [[1.0, 3.0], [0.5, 0.5]]).losses.shape
    (2, 2)
    """
    unscored = "no fingerprint" if rows is None else None
    array = np.full((frame.height, 1), np.nan) if rows is None else np.array(rows)
    return Losses(
        user=user, frame=frame, unscored=unscored, losses=array.astype(np.float32, copy=False)
    )


def scored(
    frame: pl.DataFrame, scores: Sequence[float] | None = None, *, user: str | None = "ann"
) -> Scored:
    """Events with their scores; all of them 1 by default."""
    values = np.array([1.0] * frame.height if scores is None else scores, dtype=np.float64)
    return Scored(
        user=user,
        frame=frame.with_columns(pl.Series(SCORE, values)),
        scores=(SCORE,),
        losses=values.reshape(-1, 1).astype(np.float32),
    )


def rows(frame: pl.DataFrame, *, user: str | None = "ann") -> Rows:
    """Events as a sink takes them."""
    return Rows(user=user, frame=frame)


def cut(frame: pl.DataFrame, sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Cut a frame into consecutive frames of those heights, the last taking what is left.

    >>> [part.height for part in cut(events_at(range(7)), [2, 0, 3])]
    [2, 0, 3, 2]
    """
    at = 0
    for size in sizes:
        yield frame[at : at + size]
        at += size
    yield frame[at:]
