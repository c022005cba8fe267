"""The pipeline to measure, on one machine or on a cluster, with training and scoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from speed.logs import USER, Logs, fleet
from speed.meter import Run, morpheus

from morpheus.core.stage import read_lines


@dataclass(frozen=True)
class Size:
    """Sizes to measure.

    Attributes:
        scratch: Temporary folder for logs and output.
        quick: Small sizes, for a quick check.
    """

    scratch: Path
    quick: bool = False

    def users(self, many: int) -> int:
        """Return the number of users; fewer in a quick run."""
        return max(4, many // 20) if self.quick else many

    def fleet(self, users: int, rate: float) -> Logs:
        """Write the logs of a company for 56 days."""
        return fleet(self.scratch, self.users(users), rate=rate, forms=("json",))


def chain(
    logs: Path, into: Path, *run: str, history: Path | None = None, train: tuple[str, ...] = ()
) -> Run:
    """Train on some logs, or on the input itself, and score the input."""
    learnt = (f"--train_data_glob={history}",) if history else ()
    return morpheus(
        *("run", *run, "pipeline-ae", "--columns_file=columns_ae_cloudtrail.txt"),
        *(f"--userid_column_name={USER}", "from-cloudtrail", f"--input_glob={logs}"),
        *("train-ae", *learnt, *train, "--seed=1", "preprocess", "inf-pytorch"),
        *("add-scores", "serialize", "to-file", f"--filename={into}", "--overwrite"),
    )


def both(
    logs: Logs, into: Path, *run: str, train: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Run:
    """Train on a company's first days, unless fingerprints are loaded, and score the other days."""
    past = None if train else logs.folder / "json/training"
    return chain(logs.folder / "json/scored", into, *run, history=past, train=(*train, *more))


def dask(workers: int) -> tuple[str, ...]:
    """Return options of a run with some workers on this machine."""
    return ("--engine=dask", f"--num_threads={workers}")


def alone() -> tuple[str, ...]:
    """Return options of a run in one process."""
    return ("--num_threads=1",)


def flat(users: list[str], folder: Path) -> int:
    """Write flattened events, one per name and second; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")
    ends = pl.int_range(len(users), eager=True)
    start = pl.datetime(2024, 5, 31, time_zone="UTC") + pl.duration(seconds=pl.lit(ends))
    frame = pl.DataFrame({USER: users}).with_columns(
        start.dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("eventTime"),
        *(_values(name, ends) for name in columns if name not in {USER, "eventTime"}),
    )
    for number, some in enumerate(frame.iter_slices(25_000)):
        some.write_csv(folder / f"{number:04}.csv")
    return frame.height


def _values(name: str, ends: pl.Series) -> pl.Series:
    """Return a column of few values, some of them rare."""
    scattered = ends * (7919 + 2 * len(name)) % 97
    rare = (scattered * scattered // 700).cast(pl.String)
    return (name[-6:] + rare).alias(name)
