import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import (
    DiesWhenRead,
    Large,
    bad,
    fatal,
    first_is_slow,
    late,
    noisy,
    panic,
    stopped,
    unreadable,
)
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


def test_messages_of_libraries_in_workers_are_logged_here_and_not_printed_there(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with WorkerPool(2) as pool:
        assert list(pool.map_shared(noisy, range(3))) == [0, 1, 2]
    assert "try again" in caplog.messages
    assert any("UserWarning: old in" in message for message in caplog.messages)
    assert capfd.readouterr().err == ""


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


def test_a_process_reads_the_function_of_its_jobs_once() -> None:
    numbers = [*range(10)] * 3
    with WorkerPool(2) as pool:
        results = list(pool.map(Large(), numbers))
    assert [number for number, *_ in results] == numbers
    assert {loads for _, loads, _ in results} <= {0, 1}  # 0 in this process


def test_shared_work_is_sent_once_to_each_worker_which_has_one_thread() -> None:
    with WorkerPool(2) as pool:
        list(pool.map(late, range(2)))
        results = list(pool.map_shared(Large(), range(8)))
    assert results == [(number, 1, 1) for number in range(8)]


def test_killed_worker_with_shared_work_is_reported() -> None:
    with pytest.raises(TransientError, match="A worker process was killed"), WorkerPool(2) as pool:
        list(pool.map_shared(fatal, [os.getpid()] * 4))


@pytest.mark.parametrize("size", [0, 10_000_000])
def test_a_worker_that_dies_while_it_starts_fails_the_run_and_does_not_block_it(size: int) -> None:
    message = r"A worker process ended while it started \(signal 9\).*--num_threads=1"
    with pytest.raises(TransientError, match=message), WorkerPool(2) as pool:
        list(pool.map_shared(DiesWhenRead(b"x" * size), range(8)))


def test_a_panic_and_a_result_that_cannot_be_read_are_errors_of_their_job() -> None:
    with pytest.raises(RuntimeError, match="Panic: at the disco"), WorkerPool(2) as pool:
        list(pool.map(panic, [os.getpid()] * 4))
    with pytest.raises(TypeError, match="cannot pickle"), WorkerPool(2) as pool:
        list(pool.map(unreadable, [os.getpid()] * 4))


PROMPT = """
import sys
from jobs import sleep_and_note, spin_and_note
from morpheus.runtime.pool import WorkerPool
if __name__ == "__main__":
    with WorkerPool(3) as pool:
        work = {"busy": spin_and_note, "idle": sleep_and_note}[sys.argv[1]]
        list(pool.map_shared(work, [sys.argv[2]] * 4))
"""


@pytest.mark.parametrize("work", ["busy", "idle"])
def test_workers_end_when_the_process_at_the_prompt_is_killed(work: str, tmp_path: Path) -> None:
    script, notes = tmp_path / "prompt.py", tmp_path / "notes"
    script.write_text(PROMPT)
    notes.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, script, work, notes], env=environment) as prompt:
        deadline = time.monotonic() + 30
        while len(workers := [int(path.name) for path in notes.iterdir()]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        prompt.kill()
    deadline = time.monotonic() + 2
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()


USES_MEMORY = """
import resource
import sys

from morpheus.runtime.pool import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(100):
    first, second = bytearray(20_000_000), bytearray(20_000_000)
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory")
def test_memory_of_large_blocks_is_not_requested_again() -> None:
    def count_faults(word: str) -> int:
        command = [sys.executable, "-c", USES_MEMORY, word]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert count_faults("keep") < count_faults("return") / 10
