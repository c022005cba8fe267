import os
import pty
import sys
import threading

import pytest

from morpheus.stages.monitor import Monitor, RateMeter
from morpheus.testing import make_events, make_scored, run_stage


def test_nothing_is_shown_without_a_terminal_and_batches_do_not_change(capfd):
    batches = [make_scored(make_events(range(n))) for n in (3, 0, 2)]
    assert list(run_stage(Monitor(), batches)) == batches
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_final_count_is_shown_on_a_terminal(monkeypatch):
    reading, writing = pty.openpty()
    shown = []
    reader = threading.Thread(target=lambda: shown.append(read_all(reading)))
    reader.start()
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        batches = [make_scored(make_events(range(300))), make_scored(make_events(range(14)))]
        output = list(run_stage(Monitor(description="Rate", unit="inf"), batches))
        monkeypatch.undo()
    reader.join()
    os.close(reading)
    assert output == batches
    assert "Rate[Complete]: 314 inf [00:0" in shown[0]


def read_all(descriptor):
    text = b""
    try:
        while part := os.read(descriptor, 4096):
            text += part
    except OSError:  # on Linux, when the other side is closed
        pass
    return text.decode()


def test_control_characters_are_escaped():
    meter = RateMeter("\x1b[31mred\r\n", "\u202einf")
    assert meter.render().startswith(r"\x1b[31mred\r\n: 0 \u202einf [00:00")


def test_rate_is_smoothed_over_batches():
    clock = iter([0.0, 1.0, 2.0, 2.0]).__next__
    meter = RateMeter("Rate", "inf", 0.5, clock)
    meter.start()
    meter.add(100)
    meter.add(300)
    assert meter.render() == "Rate: 400 inf [00:02, 200.0 inf/s]"


def test_delayed_clock_starts_at_the_first_batch():
    clock = iter([10.0, 10.0, 12.0, 14.0]).__next__
    meter = RateMeter("Rate", "inf", clock=clock, complete=True)
    meter.add(2)
    meter.add(2)
    assert meter.render() == "Rate[Complete]: 4 inf [00:04, 1.0 inf/s]"
