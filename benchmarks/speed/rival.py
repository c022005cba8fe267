"""The reference's path from log files to CSV, measured in parts."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from figures.table import Table
from rivals.environment import answers

from speed.logs import USER, Logs
from speed.meter import cpu_seconds
from speed.scale import Scale
from speed.training import features, histories, job

OLD, NEW = "22.08", "22.11"
"""Releases: one that outputs a score, and one that outputs the loss of each column."""
WIDE, NARROW = 1024, 8
"""Rows per call of the network: those of a message, and the default."""
SAMPLE = 20_000
"""Number of events to measure."""
FEW = 2_000
"""Number of events with eight rows per call."""
HISTORY = 1000
"""Number of rows that are reused for the network."""
ASKED = 50
"""Number of users to select rows of."""
PARTS = ("reading", "splitting", "stages", "writing")


@dataclass(frozen=True)
class Rival:
    """Cost of scoring by a release of Morpheus.

    Attributes:
        release: The release, which determines the columns.
        rows: Rows per call of the network.
        reading: CPU seconds per event of reading.
        splitting: CPU seconds per event of sorting by time and splitting by user.
        stages: CPU seconds per event of `preprocess` and `inf-pytorch`.
        writing: CPU seconds per event of `to-file`.
    """

    release: str
    rows: int
    reading: float
    splitting: float
    stages: float
    writing: float

    @property
    def parts(self) -> list[float]:
        """CPU seconds per event, in the order of the path."""
        return [self.reading, self.splitting, self.stages, self.writing]

    @property
    def speed(self) -> float:
        """Events per CPU second."""
        return 1 / sum(self.parts)


def table(paths: Sequence[Rival]) -> Table:
    """Measure the parts of the reference's path."""
    table = Table(
        "The reference's path from JSON to CSV, CPU µs per event",
        ["columns of", "rows per call", *PARTS, "total", "events per CPU s"],
        note="Reading: as JSON lines, then with pandas `json_normalize`, as in 22.11. Splitting: "
        "all files become one table, which is sorted by time; then the names of all events are "
        f"searched for each user. The search is measured for {ASKED} of the users and grows with "
        "their number; extracting a user's rows is not counted. Stages: `preprocess` and "
        "`inf-pytorch`, rewritten in `benchmarks/rivals/stages.py` around dfencoder 0.0.42, on "
        f"messages of {WIDE:,} rows of a user with {HISTORY:,} rows. Writing: pandas `to_csv`. "
        "Each step runs in one thread, on a sample, without its start. The reference cannot read "
        "Parquet, so our Parquet rows are compared with its JSON rows.",
    )
    for path in paths:
        micros = [1e6 * part for part in path.parts]
        table.add(path.release, path.rows, *micros, sum(micros), path.speed)
    return table


def measured(logs: Logs, scale: Scale) -> Iterator[Rival]:
    """Measure the reference's path for the columns of each release."""
    texts = sample(logs)
    frames: list[Any] = []
    reading = cpu_seconds(lambda: frames.extend(map(read_slowly, texts)))
    events = sum(len(frame) for frame in frames)
    splitting = cpu_seconds(lambda: in_order(frames)) / events + searching(logs)
    history = histories(logs, HISTORY)[0]
    for release, rows in product((OLD, NEW), (WIDE, NARROW)):
        named = [] if release == OLD else [f"{name}_z_loss" for name in features(history)]
        writing = cpu_seconds(partial(write_slowly, frames, named))
        count = SAMPLE if rows == WIDE else FEW
        scored = pl.concat([history] * (count // HISTORY))
        given = [job(scale, 0, history, scored)]
        [answer] = answers(f"stages of {release}, {rows} rows a call", given, epochs=1)
        stages = answer["scoring"] / count
        yield Rival(release, rows, reading / events, splitting, stages, writing / events)


def sample(logs: Logs) -> list[bytes]:
    """Return the text of the first log files."""
    files = iter(sorted((logs.folder / "json/scored").rglob("*.json.gz")))
    texts: list[bytes] = []
    events = 0
    for path in files:
        if events >= SAMPLE:
            break
        texts.append(path.read_bytes())
        events += len(json.loads(gzip.decompress(texts[-1]))["Records"])
    return texts


def read_slowly(packed: bytes) -> Any:  # noqa: ANN401 - pandas', the rival's
    """Read a log file as the reference does: as JSON lines, then again if that gives one record."""
    import pandas as pd  # noqa: PLC0415 - the rival's, not ours

    text = gzip.decompress(packed)
    frame = pd.read_json(io.BytesIO(text), lines=True)
    if list(frame.columns) == ["Records"]:
        frame = pd.json_normalize(json.loads(text)["Records"])
    frame.columns = frame.columns.str.replace(".", "", regex=False)
    return frame


def in_order(frames: Sequence[Any]) -> Any:  # noqa: ANN401 - pandas', the rival's
    """Return all events by time; ties keep the order of rows."""
    import pandas as pd  # noqa: PLC0415 - the rival's, not ours

    timed = [frame.assign(event_dt=pd.to_datetime(frame["eventTime"])) for frame in frames]
    return pd.concat(timed).reset_index().sort_values(["event_dt", "index"], kind="stable")


def searching(logs: Logs) -> float:
    """Return CPU seconds per event of selecting each user's rows."""
    import pandas as pd  # noqa: PLC0415 - the rival's, not ours

    scanned = pl.scan_parquet(logs.folder / "parquet/scored/*.parquet").select(USER).collect()
    names = pd.Series(scanned[USER].to_list())
    users = names.dropna().unique()
    asked = users[:ASKED]
    spent = cpu_seconds(lambda: [names == user for user in asked])
    return spent * len(users) / len(asked) / len(names)


def write_slowly(frames: Sequence[Any], names: Sequence[str]) -> None:
    """Write messages as the reference does, with scores and more columns."""
    import pandas as pd  # noqa: PLC0415 - the rival's, not ours

    for frame in frames:
        numbers = np.random.default_rng(0).lognormal(size=(len(frame), 1 + len(names)))
        added = pd.DataFrame(numbers, columns=["score", *names], index=frame.index)
        pd.concat([frame, added], axis=1).to_csv()
