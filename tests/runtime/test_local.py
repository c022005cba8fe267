import os
from dataclasses import dataclass, field

import polars as pl
import pytest

from jobs import Counting, Dying
from morpheus.core.batch import Events, Table
from morpheus.core.stage import Requirements, Transform
from morpheus.errors import TransientError
from morpheus.runtime.chain import Segment
from morpheus.runtime.local import LocalRunner
from morpheus.runtime.pool import WorkerPool


@dataclass(frozen=True)
class Bundling(Transform):
    """Prepares several users together."""

    name = "bundling"
    needs = Requirements(users_per_bundle=3)

    def prepare(self, users):
        assert 1 <= len(users) <= self.needs.users_per_bundle

    def process(self, batch, state):
        yield batch


@dataclass(frozen=True)
class InParent(Transform):
    """A stage that checks that it runs in the process that made it."""

    name = "in-parent"
    parent: int = field(default_factory=os.getpid)

    def process(self, batch, state):
        assert os.getpid() == self.parent
        yield batch


def events(users, batches=1):
    for user in range(users):
        for _ in range(batches):
            yield Events(user=f"user{user}", table=Table(pl.DataFrame({"a": [user]})))


def test_users_keep_their_order_when_a_stage_prepares_several_together():
    with WorkerPool(2) as pool:
        batches = list(LocalRunner(pool).run(Segment.from_stages([Bundling()]), events(7)))
    assert [batch.user for batch in batches] == [f"user{n}" for n in range(7)]


@pytest.mark.parametrize("users", [7, 23])
def test_users_are_bundled_in_workers_too(users):
    with WorkerPool(2) as pool:
        batches = list(
            LocalRunner(pool).run(Segment.from_stages([Counting()]), events(users, batches=2))
        )
    assert [batch.user for batch in batches[::2]] == [f"user{n}" for n in range(users)]
    rows = pl.concat(batch.table.to_frame() for batch in batches)
    assert rows["users"].to_list() == [5] * (users // 5 * 10) + [users % 5] * (users % 5 * 2)
    assert (os.getpid() in rows["process"]) == (users == 7)


def test_bundles_do_not_depend_on_the_number_of_workers():
    bundles = []
    for workers in (1, 2):
        with WorkerPool(workers) as pool:
            batches = list(LocalRunner(pool).run(Segment.from_stages([Counting()]), events(23)))
        bundles.append([batch.table["users"].item() for batch in batches])
    assert bundles[0] == bundles[1]


def test_cheap_stages_run_in_this_process():
    with WorkerPool(2) as pool:
        assert len(list(LocalRunner(pool).run(Segment.from_stages([InParent()]), events(20)))) == 20


def test_killed_worker_is_reported_with_what_to_type():
    error = pytest.raises(TransientError, match=r"memory ran out.*--num_threads=1")
    with error, WorkerPool(2) as pool:
        list(LocalRunner(pool).run(Segment.from_stages([Dying()]), events(20)))


def test_unbounded_input_is_not_read_ahead():
    read = []

    def stream():
        for batch in events(50):
            read.append(batch.user)
            yield batch

    batches = LocalRunner(WorkerPool(2)).run(Segment.from_stages([], unbounded=True), stream())
    next(iter(batches))
    assert read == ["user0"]
