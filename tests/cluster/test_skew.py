"""Skewed users: one very large user does not delay the rest, and small ones share tasks."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
from distributed import Client

from jobs import Clocked, Narrow, SmallMemory
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.runtime import dask
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.cluster_partitioning import (
    MAX_PARTITION_EVENTS,
    USER_OVERHEAD,
    assign_partitions,
)
from morpheus.sources.spill_sort import MemoryBudget
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from nodes import cluster

GIANT, OTHERS, PER_USER = 60_000, 100, 1000  # events of the giant; other users; events of each
SECONDS_PER_EVENT = 0.0001
START = datetime(2024, 5, 31, tzinfo=UTC)


def write_logs(folder, giant, others, each=100):
    """Write logs of a very large user and of `others` other users around it."""
    folder.mkdir()
    users = [f"user{n % others}" for n in range(each * others)]
    users[len(users) // 2 : len(users) // 2] = ["giant"] * giant
    seconds = range(len(users))
    columns = {
        "eventTime": [(START + timedelta(seconds=n)).isoformat() for n in seconds],
        "userIdentityaccountId": users,
        "eventName": [f"Do{n * n % 11}" for n in seconds],
    }
    frame = pl.DataFrame(columns)
    for number, part in enumerate(frame.iter_slices(frame.height // 4)):
        part.write_csv(folder / f"{number}.csv")
    return folder


def test_largest_user_starts_first_and_others_run_beside_it(tmp_path):
    logs = write_logs(tmp_path / "logs", GIANT, OTHERS, PER_USER)
    (tmp_path / "clock").mkdir()
    chain = [
        FromCloudtrail(input_glob=str(logs)),
        Clocked(SECONDS_PER_EVENT, str(tmp_path / "clock")),
        *(Serialize(), ToFile(filename=str(tmp_path / "out.csv"))),
    ]
    with cluster(tmp_path / "nodes", 1, "--nworkers=4") as address:
        with Client(address) as client:
            client.wait_for_workers(4)
        metrics = Pipeline(chain, PipelineOptions(engine="dask", scheduler=address)).run()
    assert metrics.users.total() == GIANT + PER_USER * OTHERS
    assert metrics.cluster_stats.slowest_users[0][0] == "giant"
    clock = {path.name: path.read_text().split() for path in (tmp_path / "clock").iterdir()}
    worker, start, end = clock.pop("giant")
    earlier = [user for user, (who, when, _) in clock.items() if who == worker and when < start]
    later = [user for user, (_, when, _) in clock.items() if when > end]
    assert len(clock) == OTHERS
    assert not earlier
    assert len(later) < OTHERS / 4


def run_in_pieces(logs, out, engine, address):
    """Output of a run that reads the giant in pieces and compresses rows early."""
    budget = MemoryBudget(max_cells_in_memory=20_000, partition_cells=8_000)
    score = [Preprocess(), InfPytorch(), AddScores(), Timeseries()]
    chain = [
        SmallMemory(input_glob=str(logs), memory_budget=budget),
        Narrow(most=8_000 // 3),
        TrainAe(train_data_glob=str(logs / "0.csv"), train_max_history=300, train_epochs=2),
        *score,
        *(Serialize(), ToFile(filename=str(out))),
    ]
    options = PipelineOptions(engine=engine, scheduler=address)
    Pipeline(chain, replace(options, columns=("eventName",))).run()
    return out.read_bytes()


def test_reading_a_large_user_in_pieces_does_not_change_the_output(monkeypatch, nodes, tmp_path):
    monkeypatch.setattr(dask, "INLINE_ROWS", 3_000)
    logs = write_logs(tmp_path / "logs", 25_000, 10)
    local = run_in_pieces(logs, tmp_path / "local.csv", "local", None)
    assert local.count(b"\n") == 26_000 + 1
    assert run_in_pieces(logs, tmp_path / "remote.csv", "dask", nodes) == local


def test_small_users_share_partitions_and_the_giant_has_its_own():
    rows = [30] * 2500 + [10_000_000] + [30] * 2500
    parts = assign_partitions(rows, workers=4)
    [giant] = parts[2500:2501]
    assert (parts == giant).sum() == 1
    assert parts.is_sorted()
    weights = (
        pl.DataFrame({"part": parts, "rows": rows})
        .group_by("part")
        .agg((pl.col("rows") + USER_OVERHEAD).sum())
    )
    others = weights.filter(pl.col("part") != giant)["rows"]
    assert others.max() <= MAX_PARTITION_EVENTS
    assert others.min() > MAX_PARTITION_EVENTS / 3
