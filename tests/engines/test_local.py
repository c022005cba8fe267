import os
from dataclasses import dataclass, field

import polars as pl
import pytest

from jobs import Counting, Dying
from morpheus.core.batch import Events
from morpheus.core.stage import Transform
from morpheus.errors import TransientError
from morpheus.runtime.local import LocalRunner
from morpheus.runtime.pool import WorkerPool


@dataclass(frozen=True)
class Mixing(Transform):
    """Sees several users at a time, and hands them out from the last to the first."""

    name = "mixing"
    users: int = 3

    def users_per_bundle(self):
        return self.users

    def __call__(self, batches):
        seen = list(batches)
        assert len({batch.user for batch in seen}) <= self.users
        yield from reversed(seen)


@dataclass(frozen=True)
class Here(Transform):
    """A stage that knows its process."""

    name = "here"
    parent: int = field(default_factory=os.getpid)

    def __call__(self, batches):
        assert os.getpid() == self.parent
        yield from batches


def events(users, batches=1):
    for user in range(users):
        for _ in range(batches):
            yield Events(user=f"user{user}", frame=pl.DataFrame({"a": [user]}))


def test_users_come_out_in_order_from_a_stage_that_sees_several_at_a_time():
    with WorkerPool(2) as crew:
        passed = list(LocalRunner(crew).run([Mixing()], events(7), unbounded=False))
    assert [batch.user for batch in passed] == [f"user{n}" for n in range(7)]


@pytest.mark.parametrize("users", [7, 23])
def test_users_are_seen_together_in_other_processes_too(users):
    with WorkerPool(2) as crew:
        passed = list(
            LocalRunner(crew).run([Counting()], events(users, batches=2), unbounded=False)
        )
    assert [batch.user for batch in passed[::2]] == [f"user{n}" for n in range(users)]
    seen = pl.concat(batch.frame for batch in passed)
    assert seen["users"].to_list() == [5] * (users // 5 * 10) + [users % 5] * (users % 5 * 2)
    assert (os.getpid() in seen["process"]) == (users == 7)


def test_who_is_seen_together_is_the_same_whatever_the_number_of_processes():
    seen = []
    for workers in (1, 2):
        with WorkerPool(workers) as crew:
            passed = list(LocalRunner(crew).run([Counting()], events(23), unbounded=False))
        seen.append([batch.frame["users"].item() for batch in passed])
    assert seen[0] == seen[1]


def test_what_costs_less_than_the_way_to_a_process_stays_in_this_one():
    with WorkerPool(2) as crew:
        assert len(list(LocalRunner(crew).run([Here()], events(20), unbounded=False))) == 20


def test_a_killed_worker_is_told_with_what_to_type():
    told = pytest.raises(TransientError, match=r"want of memory.*--num_threads=1")
    with told, WorkerPool(2) as crew:
        list(LocalRunner(crew).run([Dying()], events(20), unbounded=False))


def test_nothing_is_read_ahead_of_an_input_without_an_end():
    read = []

    def stream():
        for batch in events(50):
            read.append(batch.user)
            yield batch

    passed = LocalRunner(WorkerPool(2)).run([], stream(), unbounded=True)
    next(iter(passed))
    assert read == ["user0"]
