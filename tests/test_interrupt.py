import os
import signal
import subprocess
import sys
import time

import pytest

from morpheus.runtime.chain import GracefulShutdown


def numbers(interrupted_at):
    for number in range(10):
        if number == interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        yield number


def test_ctrl_c_while_waiting_ends_the_stream_after_the_last_item():
    stream = GracefulShutdown(numbers(3))
    assert list(stream) == [0, 1, 2]
    assert stream.stopped


def test_ctrl_c_that_a_library_turns_into_another_error_ends_the_stream_too():
    def convert():
        yield 0
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ValueError("no data type") from None

    stream = GracefulShutdown(convert())
    assert list(stream) == [0]
    assert stream.stopped


def test_an_error_without_ctrl_c_is_an_error():
    def fail():
        yield 0
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(GracefulShutdown(fail()))


def test_ctrl_c_during_work_on_an_item_lets_the_work_finish():
    stream, done = GracefulShutdown(numbers(None)), []
    for number in stream:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(number)
    assert done == [0]
    assert stream.stopped


def test_a_second_ctrl_c_stops_the_work():
    stream = GracefulShutdown(numbers(None))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the second is the point
        for _ in stream:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_the_signal_handler_is_restored_at_the_end():
    before = signal.getsignal(signal.SIGINT)
    assert list(GracefulShutdown(iter([1, 2]))) == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before


EARLY = """
import signal
import sys

class Stop:
    def find_spec(self, name, *_):
        if name == "{module}":
            signal.raise_signal(signal.{name})

sys.meta_path.insert(0, Stop())
sys.argv = ["morpheus", "run", "pipeline-ae", "from-cloudtrail"]
from morpheus.__main__ import main
main()
"""
"""A signal while the command imports a module."""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["click", "polars"])
def test_a_signal_during_imports_stops_the_command_without_a_traceback(module, name):
    code = EARLY.format(module=module, name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr


LATE = """
import atexit
import signal
import sys
import threading
import time

def stop():
    threading.main_thread().join()
    for _ in range(400):  # one that comes just before the main thread waits has no effect
        signal.pthread_kill(threading.main_thread().ident, signal.{name})
        time.sleep(0.05)

if "{phase}" == "threads":
    threading.Thread(target=stop).start()
else:
    atexit.register(signal.raise_signal, signal.{name})
sys.argv = ["morpheus", *{words}]
from morpheus.__main__ import main
main()
"""
"""A signal while the process ends."""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", ["threads", "interpreter"])
@pytest.mark.parametrize(("words", "expected"), [(["--version"], 0), (["no-command"], 2)])
def test_a_signal_at_the_end_ends_the_command_with_its_exit_code(phase, name, words, expected):
    code = LATE.format(phase=phase, name=name, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == expected
    assert b"Traceback" not in done.stderr
    assert done.stdout.startswith(b"morpheus ") == (expected == 0)
