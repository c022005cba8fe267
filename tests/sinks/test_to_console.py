import os
import pty
import re
import sys
import threading

import pytest

from morpheus.errors import UsageError
from morpheus.sinks.to_console import ToConsole
from morpheus.stages.monitor import Monitor
from morpheus.testing import make_events, make_output_rows, run_stage
from strange import iterate

HOSTILE = "x\x1b[2J\r\t\u202e[bold]x[/bold]\n"
SAFE = r"x\x1b[2J\r\t\u202e[bold]x[/bold]\n"


def alerts(*reasons, user="ann", **columns):
    count = len(reasons)
    return make_output_rows(
        make_events(range(count), risk=[2.5] * count, reason=list(reasons), **columns), user=user
    )


def show(*batches, **options):
    assert list(run_stage(ToConsole(**options), batches)) == list(batches)


class Terminal:
    """A terminal in place of stdout or stderr, and what was written to it."""

    def __init__(self, monkeypatch, *names):
        self.monkeypatch, self.names, self.text = monkeypatch, names, b""

    def __enter__(self):
        self.ours, theirs = pty.openpty()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        self.file = os.fdopen(theirs, "w")
        self.monkeypatch.setenv("TERM", "xterm")
        self.monkeypatch.setenv("COLUMNS", "100")
        for name in self.names:
            self.monkeypatch.setattr(sys, name, self.file)
        return self

    def __exit__(self, *about):
        self.monkeypatch.undo()
        self.file.close()
        self.reader.join()
        os.close(self.ours)

    def read(self):
        try:
            while part := os.read(self.ours, 4096):
                self.text += part
        except OSError:  # Linux raises it when the other side is closed
            pass

    @property
    def lines(self):
        """The text, without styles and without erased text."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text.decode())
        return [line.rpartition("\r")[2].rstrip() for line in plain.split("\r\n")]


def test_each_row_is_a_line_outside_a_terminal(capsys):
    show(alerts("new value", None, eventName=["Get", "Put"]), alerts("x", user=None))
    assert capsys.readouterr().out.splitlines() == [
        "2021-10-09 00:00:00\tann\t2.50\tGet\tnew value",
        "2021-10-09 00:00:01\tann\t2.50\tPut\t",
        "2021-10-09 00:00:00\t(no user)\t2.50\tx",
    ]


def test_reason_of_explain_is_shown_not_that_of_the_log(capsys):
    ours = {"why_reason": ["new"], "why_top_columns": ["agent"]}
    show(alerts("user_approved", **ours))
    assert capsys.readouterr().out.rstrip().endswith("\tnew")


def test_rows_are_shown_before_the_next_batch_is_requested(capsys):
    def batches():
        yield alerts("one")
        assert capsys.readouterr().out.endswith("one\n")
        yield alerts("two")

    assert len(list(iterate(ToConsole(), batches()))) == 2


def test_text_of_the_log_stays_in_its_cell(capsys):
    show(alerts(HOSTILE, user=HOSTILE))
    assert capsys.readouterr().out == f"2021-10-09 00:00:00\t{SAFE}\t2.50\t{SAFE}\n"


def test_columns_can_be_chosen_and_a_missing_one_is_reported(capsys):
    show(alerts("why", agent=["cli"]), column=("agent", "risk"))
    assert capsys.readouterr().out == "2021-10-09 00:00:00\tann\tcli\t2.50\n"
    message = r"rows have no column `agents`\. Did you mean `agent`\? They"
    with pytest.raises(UsageError, match=message):
        show(alerts("why", agent=["cli"]), column=("agents",))


def test_terminal_shows_a_table_with_one_header(monkeypatch):
    with Terminal(monkeypatch, "stdout") as terminal:
        show(alerts("new value"), alerts(HOSTILE, user="bob"))
    text = "\n".join(terminal.lines)
    assert [line.split() for line in terminal.lines if "USER" in line] == [
        ["TIME", "USER", "RISK", "REASON"]
    ]
    assert re.search(r"2021-10-09 +ann +2\.50 +new value\n00:00:00", text)
    assert SAFE in text
    assert "\x1b[2J" not in terminal.text.decode()


def test_table_and_progress_line_share_a_terminal(monkeypatch):
    with Terminal(monkeypatch, "stdout", "stderr") as terminal:
        rows = iterate(ToConsole(), [alerts("one"), alerts("two")])
        list(iterate(Monitor(description="Rate"), rows))
    lines = [line for line in terminal.lines if line]
    assert [line.split()[-1] for line in lines if "ann" in line] == ["one", "two"]
    assert lines[-1].startswith("Rate[Complete]: 2 messages")


def test_progress_line_does_not_mix_with_a_pipe(monkeypatch, capsys):
    with Terminal(monkeypatch, "stderr") as terminal:
        list(iterate(Monitor(), iterate(ToConsole(), [alerts("one")])))
    assert capsys.readouterr().out.endswith("ann\t2.50\tone\n")
    assert "one" not in terminal.text.decode()
