"""The population sample does not depend on how events were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.group_by_user import UserStats
from morpheus.sources.ingest import FileIngest
from morpheus.sources.partitioning import SampleSpec
from morpheus.sources.spill_sort import MemoryBudget, SpilledDataset
from morpheus.testing import make_events
from sources.test_ingest import TINY, record, write_files

COLUMNS = ("userIdentityarn", "userIdentityaccountId")
RECORDS = [record(n, f"{n % 7}", n % 60) for n in range(300)]


def sample(folder: Path, budget: MemoryBudget, threads: int, **options: Any) -> pl.DataFrame:
    settings = PipelineOptions(columns=COLUMNS, num_threads=threads, needs_population=True)
    file_ingest = FileIngest(
        CLOUDTRAIL_FORMAT, FileDiscovery(str(folder)), settings, memory_budget=budget, **options
    )
    metrics = RunMetrics()
    next(file_ingest.events(None, metrics))
    assert metrics.population_sample is not None
    return metrics.population_sample


@pytest.mark.parametrize(("budget", "threads"), [(TINY, 1), (TINY, 2), (MemoryBudget(), 2)])
def test_sample_does_not_depend_on_how_events_were_read(
    tmp_path: Path, budget: MemoryBudget, threads: int
) -> None:
    folder, few = (
        write_files(tmp_path / "logs", RECORDS, 20),
        SampleSpec(target_events=70, min_events_per_user=5),
    )
    whole = sample(folder, MemoryBudget(), 1, sample_spec=few)
    assert_frame_equal(sample(folder, budget, threads, sample_spec=few), whole)
    assert whole.height == 70
    assert whole.columns == [POPULATION_USER, TIME, *COLUMNS]


def make_dataset(users: dict[str, int]) -> SpilledDataset:
    frames = [make_events(range(n), who=[user] * n).drop("") for user, n in users.items()]
    frame = pl.concat(frames)
    return SpilledDataset("who", UserStats.from_frame(frame, "who"), ["who"], [frame], [])


def test_sample_has_few_events_of_each_of_many_users() -> None:
    found = SampleSpec(target_events=100, min_events_per_user=5).take_sample(
        make_dataset({"ann": 1000, "bob": 1000, "eve": 3}), ["who"]
    )
    assert dict(found[POPULATION_USER].value_counts().iter_rows()) == {
        "ann": 33,
        "bob": 33,
        "eve": 3,
    }


def test_sample_of_too_many_users_is_reproducible() -> None:
    users = {f"user{n}": 30 for n in range(50)}
    found = SampleSpec(max_users=10, target_events=100, min_events_per_user=5).take_sample(
        make_dataset(users), ["who"]
    )
    backwards = dict(reversed(users.items()))
    again = SampleSpec(max_users=10, target_events=100, min_events_per_user=5).take_sample(
        make_dataset(backwards), ["who"]
    )
    assert found[POPULATION_USER].n_unique() == 10
    assert_frame_equal(found, again)


def test_sample_is_empty_if_no_event_is_of_the_chosen_user(tmp_path: Path) -> None:
    lines = [f'{{"eventName": "Ls", "eventTime": "2024-05-31T09:30:0{n}Z"}}' for n in range(2)]
    (tmp_path / "a.json").write_text("\n".join(lines))
    settings = PipelineOptions(
        columns=("eventName", "logcount"),
        num_threads=1,
        needs_population=True,
        userid_filter="nobody",
    )
    metrics = RunMetrics()
    files = FileDiscovery(str(tmp_path / "a.json"))
    assert (
        list(
            FileIngest(CLOUDTRAIL_FORMAT, files, settings, skip_bad_records=True).events(
                None, metrics
            )
        )
        == []
    )
    assert metrics.population_sample is not None
    assert metrics.population_sample.columns[:2] == [POPULATION_USER, TIME]
    assert metrics.population_sample.height == 0
    assert metrics.input.other_users == 2
