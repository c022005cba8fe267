import os
import time

import pytest

from jobs import Large, bad, fatal, first_is_slow, late, stopped
from morpheus.errors import RecordError, TransientError
from morpheus.runtime.pool import MAX_IN_FLIGHT, WorkerPool


def test_results_come_in_order_this_process_works_too_and_a_message_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with WorkerPool(2) as crew:
        numbers, workers = zip(*crew.map(late, range(4)), strict=True)
    assert numbers == (0, 1, 2, 3)
    assert len(set(workers)) == 2
    assert os.getpid() in workers
    assert caplog.messages == ["the same for all"]


def test_while_the_first_result_is_waited_for_few_others_are_made() -> None:
    with WorkerPool(2) as crew:
        (first, there), *others = crew.map(first_is_slow, range(9))
    assert there != os.getpid()
    assert sum(when < first for when, _ in others) == MAX_IN_FLIGHT * 2 - 1
    assert len(others) == 8


def test_ctrl_c_while_this_process_works_ends_the_others() -> None:
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), WorkerPool(2) as crew:
        list(crew.map(stopped, [os.getpid()] * 4))
    assert time.monotonic() - before < 30


def test_one_worker_is_this_process() -> None:
    with WorkerPool(1) as crew:
        assert {worker for _, worker in crew.map(late, [3])} == {os.getpid()}


def test_the_first_error_in_the_order_of_jobs_is_raised() -> None:
    with pytest.raises(RecordError, match=r"a\.json:1: no time"), WorkerPool(2) as crew:
        list(crew.map(bad, range(4)))


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(TransientError, match="A worker process was killed"), WorkerPool(2) as crew:
        list(crew.map(fatal, [os.getpid()] * 4))


def test_large_work_is_given_once_to_each_worker_which_has_one_thread() -> None:
    with WorkerPool(2) as crew:
        list(crew.map(late, range(2)))
        found = list(crew.map_shared(Large(), range(8)))
    assert found == [(number, 1, 1) for number in range(8)]


def test_a_killed_worker_that_was_given_its_work_is_told() -> None:
    with pytest.raises(TransientError, match="A worker process was killed"), WorkerPool(2) as crew:
        list(crew.map_shared(fatal, [os.getpid()] * 4))
