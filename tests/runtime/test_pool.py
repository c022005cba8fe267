import os
import time

import pytest

from jobs import Large, bad, fatal, first_is_slow, late, stopped
from morpheus.errors import RecordError, TransientError
from morpheus.runtime.pool import MAX_IN_FLIGHT, WorkerPool


def test_results_are_ordered_this_process_works_too_and_a_message_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with WorkerPool(2) as pool:
        numbers, workers = zip(*pool.map(late, range(4)), strict=True)
    assert numbers == (0, 1, 2, 3)
    assert len(set(workers)) == 2
    assert os.getpid() in workers
    assert caplog.messages == ["the same for all"]


def test_few_results_are_computed_ahead_of_the_first() -> None:
    with WorkerPool(2) as pool:
        (first, worker), *rest = pool.map(first_is_slow, range(9))
    assert worker != os.getpid()
    assert sum(end < first for end, _ in rest) == MAX_IN_FLIGHT * 2 - 1
    assert len(rest) == 8


def test_ctrl_c_while_this_process_works_ends_the_workers() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), WorkerPool(2) as pool:
        list(pool.map(stopped, [os.getpid()] * 4))
    assert time.monotonic() - start < 30


def test_one_worker_is_this_process() -> None:
    with WorkerPool(1) as pool:
        assert {worker for _, worker in pool.map(late, [3])} == {os.getpid()}


def test_first_error_in_job_order_is_raised() -> None:
    with pytest.raises(RecordError, match=r"a\.json:1: no time"), WorkerPool(2) as pool:
        list(pool.map(bad, range(4)))


def test_killed_worker_is_reported() -> None:
    with pytest.raises(TransientError, match="A worker process was killed"), WorkerPool(2) as pool:
        list(pool.map(fatal, [os.getpid()] * 4))


def test_shared_work_is_sent_once_to_each_worker_which_has_one_thread() -> None:
    with WorkerPool(2) as pool:
        list(pool.map(late, range(2)))
        results = list(pool.map_shared(Large(), range(8)))
    assert results == [(number, 1, 1) for number in range(8)]


def test_killed_worker_with_shared_work_is_reported() -> None:
    with pytest.raises(TransientError, match="A worker process was killed"), WorkerPool(2) as pool:
        list(pool.map_shared(fatal, [os.getpid()] * 4))
