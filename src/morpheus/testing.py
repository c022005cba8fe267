"""Builders for tests, of ours and of plugin authors, and the laws that every stage obeys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import polars as pl

from morpheus.columns import INDEX, ROW, SCORE, TIME
from morpheus.core.batch import Batch, Losses, OutputRows, Scored
from morpheus.core.stage import Transform

BatchT = TypeVar("BatchT", bound=Batch)

DAY = datetime(2021, 10, 9, tzinfo=UTC)
"""The day on which built events happen."""


def make_events(seconds: Sequence[float], **columns: Sequence[object]) -> pl.DataFrame:
    """Events at those seconds of `DAY`, with the columns that every event has, and more.

    >>> make_events([0, 90], eventName=["GetUser", None]).rows()[1]
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


def make_losses(
    frame: pl.DataFrame, rows: Sequence[Sequence[float]] | None = None, *, user: str | None = "ann"
) -> Losses:
    """Events with the losses of their columns; NaN where there are none, as without a fingerprint.

    >>> make_losses(make_events([0, 1]), [[1.0, 3.0], [0.5, 0.5]]).losses.shape
    (2, 2)
    """
    unscored = "no fingerprint" if rows is None else None
    array = np.full((frame.height, 1), np.nan) if rows is None else np.array(rows)
    return Losses(
        user=user,
        frame=frame,
        unscored_reason=unscored,
        losses=array.astype(np.float32, copy=False),
    )


def make_scored(
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


def make_output_rows(frame: pl.DataFrame, *, user: str | None = "ann") -> OutputRows:
    """Events as a sink takes them."""
    return OutputRows(user=user, frame=frame)


def split_frame(frame: pl.DataFrame, sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Cut a frame into consecutive frames of those heights, the last taking what is left.

    >>> [part.height for part in split_frame(make_events(range(7)), [2, 0, 3])]
    [2, 0, 3, 2]
    """
    at = 0
    for size in sizes:
        yield frame[at : at + size]
        at += size
    yield frame[at:]


def check_stage(stage: Transform, batch: Batch) -> None:
    """Pass a user's events through a stage in several ways, and hold the laws of stages against it.

    It takes and gives the records it says. No event is lost but those counted in `filtered`. The
    batch it is handed is not changed. A second call gives what the first gave, and however the
    events are cut into batches, the rows that come out are the same.

    Args:
        stage: The stage, of scope `user`, checked and with its settings.
        batch: All events of one user; at least three, so that they can be cut.

    Raises:
        AssertionError: Says which law is broken.

    >>> from morpheus.stages.add_class import AddClass
    >>> check_stage(AddClass(), make_scored(make_events(range(5)), [0, 1, 2, 3, 4]))
    """
    before, gives = batch.frame.clone(), stage.gives or type(batch)
    out = list(stage(iter([batch])))
    whole, filtered = _concat_frames(out), sum(each.filtered for each in out)
    _require(isinstance(batch, stage.takes), f"takes {[kind.__name__ for kind in stage.takes]}")
    _require(all(isinstance(each, gives) for each in out), f"gives {gives.__name__}")
    _require(whole.height + filtered == batch.frame.height, "loses no event that it does not count")
    _require(batch.frame.equals(before), "does not change the batch it is handed")
    _require(_concat_frames(stage(iter([batch]))).equals(whole), "gives the same when called again")
    for sizes in ([1] * batch.frame.height, [1, 0], [batch.frame.height - 1]):
        again = _concat_frames(stage(_split_batch(batch, sizes)))
        _require(again.equals(whole), f"gives the same rows for batches of {sizes} and the rest")


def _split_batch(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    at = 0
    for frame in split_frame(batch.frame, sizes):
        rows = slice(at, at + frame.height)
        codes = batch.encoded and replace(batch.encoded, inverse=batch.encoded.inverse[rows])
        part = replace(batch, frame=frame, encoded=codes)
        if isinstance(part, Losses | Scored):
            part = replace(part, losses=part.losses[rows])
        yield part
        at += frame.height


def _concat_frames(batches: Iterator[Batch] | Sequence[Batch]) -> pl.DataFrame:
    frames = [batch.frame for batch in batches]
    return pl.concat([frame for frame in frames if frame.height] or frames[:1])


def _require(holds: bool, law: str) -> None:  # noqa: FBT001 - what is claimed, as of `assert`
    if not holds:
        raise AssertionError(f"A stage {law}; this one does not.")
