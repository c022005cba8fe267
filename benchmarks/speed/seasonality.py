"""The `timeseries` stage on many events of one user, compared with upstream's algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
from figures.table import Table
from numpy.typing import NDArray

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Scored
from morpheus.core.batch import Table as EventTable
from morpheus.runtime.chain import Segment
from morpheus.stages.timeseries import Timeseries
from speed.meter import cpu_seconds
from speed.scale import Scale
from speed.upstream_rhythm import flags

DAY = 86_400
A_DAY = 1_000
"""Events per day of the user."""
START = 1_740_960_000
BATCH = 1 << 15
"""Rows per batch of our sources."""


def tables(scale: Scale) -> Iterator[Table]:
    """Return CPU seconds by number of events."""
    table = Table(
        "`timeseries --resolution 10m`, one user, CPU seconds",
        [
            *("events", "morpheus", "events/s", "NVIDIA Morpheus, messages of 256"),
            *("messages of 1,024", "times faster"),
        ],
        note="The algorithm of NVIDIA Morpheus 22.11 is reimplemented directly with pandas. Times "
        "faster: compared with messages of 256, its default.",
    )
    for events in (10_000, 100_000) if scale.quick else (100_000, 1_000_000):
        times = lived(events)
        ours = cpu_seconds(partial(judged, times), 1 if scale.quick else 3)
        theirs = [cpu_seconds(partial(flags, times, rows)) for rows in (256, 1024)]
        table.add(events, ours, events / ours, *theirs, theirs[0] / ours)
    yield table


def lived(events: int) -> NDArray[np.int64]:
    """Draw event times in seconds: more by day than by night, with bursts."""
    random = np.random.default_rng(1)
    days = random.integers(0, max(events // A_DAY, 1), events)
    hours = np.clip(random.normal(13, 3, events), 0, 23.99)
    burst = random.random(events) < 0.01  # noqa: PLR2004 - one in a hundred
    hours[burst] = 3 + random.random(int(burst.sum())) / 60
    return np.sort(START + days * DAY + (hours * 3600).astype(np.int64))


def judged(times: NDArray[np.int64]) -> int:
    """Process them with our stage."""
    stage = Timeseries(resolution="10m")
    batches = (batch(times[n : n + BATCH], n) for n in range(0, len(times), BATCH))
    return sum(out.table.height for out in Segment.from_stages([stage]).open().run(batches))


def batch(times: NDArray[np.int64], first: int) -> Scored:
    """Return events as a batch."""
    numbers = pl.Series(ROW, np.arange(first, first + len(times)))
    when = pl.Series(TIME, times * 1_000_000).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame([numbers, numbers.alias(INDEX), when])
    return Scored(user="one", table=EventTable(frame), losses=np.zeros((len(times), 1), np.float32))
