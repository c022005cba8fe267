"""Batched training on a GPU, compared with one user at a time on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from figures.table import Table

from morpheus.columns import TIME
from morpheus.features.encoder import Encoder
from morpheus.models.batched_training import train_batched
from morpheus.models.fit import TrainValidationSplit, UserHistory
from morpheus.models.training import TrainJob, TrainResult, train_sequentially
from speed.logs import COLUMNS, USER, fleet
from speed.scale import Scale
from speed.training import histories

EPOCHS = 25
Trainer = Callable[[Sequence[TrainJob]], Sequence[TrainResult]]


def tables(scale: Scale) -> Iterator[Table]:
    """Return seconds by number of users, or a note that there is no GPU."""
    header = [
        *("users", "cpu, one thread, s", "cuda, s", "times faster"),
        "difference of losses, median",
    ]
    table = Table(
        "Training users with 1,000 rows: one by one on the CPU, and batched on a GPU", header
    )
    if not torch.cuda.is_available():
        table.note = (
            "Not measured: this machine has no GPU. On a machine with a GPU, "
            "`python benchmarks/speed --only gpu` fills the table."
        )
        yield table
        return
    table.note = (
        f"{torch.cuda.get_device_name()}; wall seconds of training alone, without the first "
        "batch. Difference of losses: between the two networks, on the history, as a share of the "
        "loss on the CPU."
    )
    tasks = trials(scale)
    on_gpu = partial(train_batched, device=torch.device("cuda"))
    on_gpu(tasks[:2])
    for users in (16,) if scale.quick else (16, 128, 512):
        table.add(*beside(on_gpu, [tasks[n % len(tasks)] for n in range(users)]))
    yield table


def trials(scale: Scale) -> list[TrainJob]:
    """Return the training job of each user that finds the best number of epochs."""
    logs = fleet(scale.scratch, 12, rate=scale.rich, forms=("parquet",))
    users = [UserHistory(user[USER][0], user, user[TIME]) for user in histories(logs, 1000)]
    splits = (
        TrainValidationSplit.from_history(user, COLUMNS, Encoder.fit, seed=1) for user in users
    )
    return [split.make_validation_job(EPOCHS) for split in splits]


def beside(stacked: Trainer, tasks: Sequence[TrainJob]) -> tuple[int, float, float, float, float]:
    """Return a table row: batched users compared with the same users on the CPU."""
    (alone, slow), (batched, fast) = timed(train_sequentially, tasks), timed(stacked, tasks)
    return len(tasks), slow, fast, slow / fast, apart(tasks, alone, batched)


def timed(trainer: Trainer, tasks: Sequence[TrainJob]) -> tuple[Sequence[TrainResult], float]:
    """Train, and return the seconds."""
    begin = time.perf_counter()
    trained = trainer(tasks)
    return trained, time.perf_counter() - begin


def apart(
    tasks: Sequence[TrainJob], one: Sequence[TrainResult], other: Sequence[TrainResult]
) -> float:
    """Return the relative difference of two trainings' losses, for the median user."""
    shares = []
    for task, *trained in zip(tasks, one, other, strict=True):
        codes, numbers = task.rows.codes.astype(np.int64), task.rows.numbers
        first, second = (float(each.net.losses(codes, numbers).mean()) for each in trained)
        shares.append(abs(second / first - 1))
    return float(np.median(shares))
