"""Users differ: one giant does not hold up the rest, and the tiny travel together."""

import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from jobs import Slow
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.spread import A_USER, HEAVIEST, packed
from morpheus.stage import Settings
from morpheus.stages.serialize import Serialize
from nodes import cluster

EVENTS = 20_000
MILLISECOND = 0.001
START = datetime(2024, 5, 31, tzinfo=UTC)


@pytest.fixture
def logs(tmp_path):
    """In the midst of 140 users of 100 events, one with 30 % of all events."""
    giant = EVENTS * 3 // 10
    users = [f"user{n % 140}" for n in range(EVENTS - giant)]
    users[len(users) // 2 : len(users) // 2] = ["giant"] * giant
    times = [(START + timedelta(seconds=n)).isoformat() for n in range(EVENTS)]
    folder = tmp_path / "logs"
    folder.mkdir()
    frame = pl.DataFrame({"eventTime": times, "userIdentityaccountId": users})
    for number, some in enumerate(frame.iter_slices(EVENTS // 4)):
        some.write_csv(folder / f"{number}.csv")
    return folder


def took(logs, out, address, **settings):
    chain = [FromCloudtrail(input_glob=str(logs)), Slow(MILLISECOND), Serialize()]
    begin = time.monotonic()
    given = Settings(engine="dask", scheduler=address, **settings)
    summary = Pipeline([*chain, ToFile(filename=str(out))], given).run()
    return time.monotonic() - begin, summary


def test_a_giant_does_not_hold_up_the_rest(logs, tmp_path):
    with cluster(tmp_path / "nodes", 1, "--nworkers=4") as address:
        took(logs, tmp_path / "once.csv", address, userid_filter="nobody")
        alone, one = took(logs, tmp_path / "one.csv", address, userid_filter="giant")
        together, all_ = took(logs, tmp_path / "all.csv", address)
    assert one.users.total() == 0.3 * EVENTS
    assert all_.users.total() == EVENTS
    assert all_.effort.slowest[0][0] == "giant"
    assert together <= 1.3 * alone


def test_the_tiny_travel_together_and_the_giant_alone():
    rows = [30] * 2500 + [10_000_000] + [30] * 2500
    parts = packed(rows, workers=4)
    [giant] = parts[2500:2501]
    assert (parts == giant).sum() == 1
    assert parts.is_sorted()
    weights = (
        pl.DataFrame({"part": parts, "rows": rows})
        .group_by("part")
        .agg((pl.col("rows") + A_USER).sum())
    )
    others = weights.filter(pl.col("part") != giant)["rows"]
    assert others.max() <= HEAVIEST
    assert others.min() > HEAVIEST / 3
