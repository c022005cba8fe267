"""For tests of stages, also of plugins: builders of batches, and the laws of stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.reduction import ForkingPickler
from typing import TypeVar

import numpy as np
import polars as pl
from msgspec import structs

from morpheus.columns import INDEX, ROW, SCORE, TIME
from morpheus.core.batch import Batch, Losses, OutputRows, Scored, Table
from morpheus.core.stage import StageContext, Transform
from morpheus.core.state import State, StateKey
from morpheus.errors import StageError
from morpheus.runtime.chain import Segment

BatchT = TypeVar("BatchT", bound=Batch)

DAY = datetime(2021, 10, 9, tzinfo=UTC)
"""Day of the built events."""


def make_events(seconds: Sequence[float], **columns: Sequence[object]) -> pl.DataFrame:
    """Build events with the columns that every event has.

    Args:
        seconds: Time of each event, in seconds after the start of `DAY`.
        columns: Additional columns.

    >>> make_events([0, 90], eventName=["GetUser", None]).rows()[1]
    (1, 1, None, datetime.datetime(2021, 10, 9, 0, 1, 30, tzinfo=zoneinfo.ZoneInfo(key='UTC')))
    """
    start = int(DAY.timestamp() * 1e6)
    times = np.array([start + round(second * 1e6) for second in seconds], dtype=np.int64)
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
    """Build events with losses.

    Args:
        frame: The events.
        rows: Losses of the columns, for each event. None for NaN, as without a fingerprint.
        user: The user.

    >>> make_losses(make_events([0, 1]), [[1.0, 3.0], [0.5, 0.5]]).losses.shape
    (2, 2)
    """
    unscored = "no fingerprint" if rows is None else None
    array = np.full((frame.height, 1), np.nan) if rows is None else np.array(rows)
    return Losses(
        user=user,
        table=Table(frame),
        unscored_reason=unscored,
        losses=array.astype(np.float32, copy=False),
    )


def make_scored(
    frame: pl.DataFrame, scores: Sequence[float] | None = None, *, user: str | None = "ann"
) -> Scored:
    """Build events with scores.

    Args:
        frame: The events.
        scores: Score of each event; 1 by default.
        user: The user.
    """
    values = np.array([1.0] * frame.height if scores is None else scores, dtype=np.float64)
    return Scored(
        user=user,
        table=Table(frame.with_columns(pl.Series(SCORE, values))),
        scores=(SCORE,),
        losses=values.reshape(-1, 1).astype(np.float32),
    )


def make_output_rows(frame: pl.DataFrame, *, user: str | None = "ann") -> OutputRows:
    """Build events as sinks get them."""
    return OutputRows(user=user, table=Table(frame))


def split_frame(frame: pl.DataFrame, sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Split a frame into consecutive frames of these heights, and one with the remaining rows.

    Examples:
        >>> [part.height for part in split_frame(make_events(range(7)), [2, 0, 3])]
        [2, 0, 3, 2]
    """
    start = 0
    for size in sizes:
        yield frame[start : start + size]
        start += size
    yield frame[start:]


def run_stage(
    stage: Transform,
    batches: Iterable[Batch],
    *,
    unbounded: bool = False,
    population: pl.DataFrame | None = None,
) -> list[Batch]:
    """Run a stage on batches as the runtime does, each with the state of its user.

    Args:
        stage: The stage, with its options.
        batches: The batches, in the order in which they arrive.
        unbounded: A user's batches can arrive at any time, so states are kept until the end.
        population: Sample of all users' histories, for stages that need one.

    >>> from morpheus.stages.add_scores import AddClass
    >>> [out] = run_stage(AddClass(), [make_scored(make_events([0, 1]), [0.0, 1.0])])
    >>> out.table["ae_anomaly_score"].to_list()
    [False, True]
    """
    segment = Segment.from_stages([stage], unbounded=unbounded)
    with ExitStack() as resources:
        opened = replace(segment, population=population).open(resources=resources)
        return list(opened.run(batches))


def check_stage(stage: Transform, batch: Batch) -> None:
    """Check a stage against the laws that every stage obeys.

    - It takes and gives the classes that it declares, and does not change its input.
    - It counts each dropped event in `filtered`.
    - It can be sent to another process, also after it has processed batches.
    - Users do not affect each other: a user's rows are the same when batches of another user come
      in between.
    - Cutting does not matter: for any division into batches the rows are the same, also if the
      state is encoded and decoded between two batches, as between two runs.

    Args:
        stage: The stage, validated and with its options.
        batch: All events of one user, at least three.

    Raises:
        AssertionError: The stage breaks a law; the message says which.

    >>> from morpheus.stages.add_scores import AddClass
    >>> check_stage(AddClass(), make_scored(make_events(range(5)), [0, 1, 2, 3, 4]))
    """
    before, gives = _concat_frames([batch]).clone(), stage.gives or type(batch)
    try:
        outputs = run_stage(stage, [batch])
    except StageError as error:
        raise AssertionError(str(error)) from error
    whole, filtered = _concat_frames(outputs), sum(each.filtered for each in outputs)
    _require(isinstance(batch, stage.takes), f"takes {[kind.__name__ for kind in stage.takes]}")
    _require(all(isinstance(each, gives) for each in outputs), f"gives {gives.__name__}")
    _require(whole.height + filtered == batch.table.height, "loses no event that it does not count")
    _require(_concat_frames([batch]).equals(before), "does not change the batch it is given")
    _require(_concat_frames(run_stage(stage, [batch])).equals(whole), "gives the same again")
    sent = _send(stage)
    _require(sent == stage, "is the same in another process")
    _require(_concat_frames(run_stage(sent, [batch])).equals(whole), "gives the same there")
    for sizes in ([1] * batch.table.height, [1, 0], [batch.table.height - 1]):
        parts = list(split_batch(batch, sizes))
        again = _concat_frames(run_stage(stage, parts))
        _require(again.equals(whole), f"gives the same rows for batches of {sizes} and the rest")
        _check_users_apart(stage, parts, whole)
        _check_restart(stage, parts, whole)


def _send(stage: Transform) -> Transform:
    """Return a stage as another process gets it."""
    try:
        received: Transform = ForkingPickler.loads(ForkingPickler.dumps(stage))
    except Exception as error:  # a stage may fail in any way
        reason = f"A stage can be sent to another process; this one cannot: {error}"
        raise AssertionError(reason) from error
    return received


def _check_users_apart(stage: Transform, parts: Sequence[Batch], whole: pl.DataFrame) -> None:
    """Check that interleaved batches of two users give the same rows as each user alone."""
    if stage.scope != "keyed":
        return
    other = [replace(part, user="another user") for part in parts]
    mixed = [batch for pair in zip(other, parts, strict=True) for batch in pair]
    outputs = run_stage(stage, mixed, unbounded=True)
    expected = {parts[0].user: whole, "another user": _concat_frames(run_stage(stage, other))}
    for user, rows in expected.items():
        mixed_rows = _concat_frames([batch for batch in outputs if batch.user == user])
        _require(mixed_rows.equals(rows), "keeps users apart")


def _check_restart(stage: Transform, parts: Sequence[Batch], whole: pl.DataFrame) -> None:
    """Check that runs of one batch each, with saved states, give the same rows as one run."""
    if stage.scope != "keyed" or stage.needs.per_run:
        return
    segment = replace(Segment.from_stages([stage]), saves=True)
    saved: dict[StateKey, bytes] = {}
    outputs: list[Batch] = []
    for part in parts:
        opened = segment.open(saved)
        outputs += opened.run([part])
        for key, data in opened.changed.items():
            _require(len(data) <= _max_bytes(stage), "has a state of bounded size")
            saved[key] = data
    _require(_concat_frames(outputs).equals(whole), "continues from a saved state")


def _max_bytes(stage: Transform) -> int:
    state = stage.open(StageContext())
    return state.max_bytes if isinstance(state, State) else 0


def split_batch(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    """Split a batch into consecutive batches of these sizes, and one with the remaining events."""
    start = 0
    for frame in split_frame(batch.table.to_frame(), sizes):
        rows = slice(start, start + frame.height)
        codes = batch.encoded and structs.replace(
            batch.encoded, inverse=batch.encoded.inverse[rows]
        )
        part = replace(batch, table=Table(frame), encoded=codes)
        if isinstance(part, Losses | Scored):
            part = replace(part, losses=part.losses[rows])
        yield part
        start += frame.height


_LOSSES = "_losses_"
"""Temporary column of the losses."""


def _concat_frames(batches: Iterator[Batch] | Sequence[Batch]) -> pl.DataFrame:
    """Return the rows of some batches, with their losses."""
    frames = [_add_losses(batch) for batch in batches] or [pl.DataFrame()]
    return pl.concat([frame for frame in frames if frame.height] or frames[:1])


def _add_losses(batch: Batch) -> pl.DataFrame:
    frame = batch.table.to_frame()
    if isinstance(batch, Losses | Scored) and len(batch.losses) == frame.height:
        return frame.with_columns(pl.Series(_LOSSES, batch.losses.tolist(), pl.List(pl.Float64)))
    return frame


def _require(holds: bool, law: str) -> None:  # noqa: FBT001 - what is claimed, as of `assert`
    if not holds:
        raise AssertionError(f"A stage {law}; this one does not.")
