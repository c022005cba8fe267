import os
import pty
import sys
import threading

import pytest

from morpheus.stages.monitor import Monitor, RateMeter
from morpheus.testing import make_events, make_scored, run_stage


def test_batches_pass_unchanged_and_in_silence_where_there_is_no_terminal(capfd):
    batches = [make_scored(make_events(range(n))) for n in (3, 0, 2)]
    assert list(run_stage(Monitor(), batches)) == batches
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_the_count_at_the_end(monkeypatch):
    ours, theirs = pty.openpty()
    shown = []
    reader = threading.Thread(target=lambda: shown.append(read_all(ours)))
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        batches = [make_scored(make_events(range(300))), make_scored(make_events(range(14)))]
        passed = list(run_stage(Monitor(description="Rate", unit="inf"), batches))
        monkeypatch.undo()
    reader.join()
    os.close(ours)
    assert passed == batches
    assert "Rate[Complete]: 314 inf [00:0" in shown[0]


def read_all(descriptor):
    text = b""
    try:
        while part := os.read(descriptor, 4096):
            text += part
    except OSError:  # Linux says so when the other side has closed
        pass
    return text.decode()


def test_control_characters_are_written_out():
    meter = RateMeter("\x1b[31mred\r\n", "\u202einf")
    assert meter.render().startswith(r"\x1b[31mred\r\n: 0 \u202einf [00:00")


def test_the_speed_leans_to_the_latest_batch_by_the_smoothing():
    clock = iter([0.0, 1.0, 2.0, 2.0]).__next__
    meter = RateMeter("Rate", "inf", 0.5, clock)
    meter.start()
    meter.add(100)
    meter.add(300)
    assert meter.render() == "Rate: 400 inf [00:02, 200.0 inf/s]"


def test_a_delayed_clock_starts_with_the_first_batch():
    clock = iter([10.0, 10.0, 12.0, 14.0]).__next__
    meter = RateMeter("Rate", "inf", clock=clock, complete=True)
    meter.add(2)
    meter.add(2)
    assert meter.render() == "Rate[Complete]: 4 inf [00:04, 1.0 inf/s]"
