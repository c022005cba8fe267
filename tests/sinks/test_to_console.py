import os
import pty
import re
import sys
import threading

import pytest

from morpheus.errors import UsageError
from morpheus.sinks.to_console import ToConsole
from morpheus.stages.monitor import Monitor
from morpheus.testing import make_events, make_output_rows

HOSTILE = "x\x1b[2J\r\t\u202e[bold]x[/bold]\n"
SAFE = r"x\x1b[2J\r\t\u202e[bold]x[/bold]\n"


def alerts(*reasons, user="ann", **columns):
    count = len(reasons)
    return make_output_rows(
        make_events(range(count), risk=[2.5] * count, reason=list(reasons), **columns), user=user
    )


def shown(*batches, **options):
    assert list(ToConsole(**options)(iter(batches))) == list(batches)


class Terminal:
    """A terminal in place of stdout and stderr, or of one of them, and what it was told."""

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
        except OSError:  # Linux says so when the other side has closed
            pass

    @property
    def lines(self):
        """What was told, without styles and without what was wiped again."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text.decode())
        return [line.rpartition("\r")[2].rstrip() for line in plain.split("\r\n")]


def test_each_row_is_a_line_where_stdout_is_no_terminal(capsys):
    shown(alerts("new value", None, eventName=["Get", "Put"]), alerts("x", user=None))
    assert capsys.readouterr().out.splitlines() == [
        "2021-10-09 00:00:00\tann\t2.50\tGet\tnew value",
        "2021-10-09 00:00:01\tann\t2.50\tPut\t",
        "2021-10-09 00:00:00\t(no user)\t2.50\tx",
    ]


def test_our_reason_is_shown_and_not_that_of_the_log(capsys):
    ours = {"why_reason": ["new"], "why_top_columns": ["agent"]}
    shown(alerts("user_approved", **ours))
    assert capsys.readouterr().out.rstrip().endswith("\tnew")


def test_rows_are_shown_before_the_next_ones_are_asked_for(capsys):
    def batches():
        yield alerts("one")
        assert capsys.readouterr().out.endswith("one\n")
        yield alerts("two")

    assert len(list(ToConsole()(batches()))) == 2


def test_what_a_log_says_stays_in_its_cell(capsys):
    shown(alerts(HOSTILE, user=HOSTILE))
    assert capsys.readouterr().out == f"2021-10-09 00:00:00\t{SAFE}\t2.50\t{SAFE}\n"


def test_columns_can_be_chosen_and_one_that_is_not_there_is_answered_with_those_that_are(capsys):
    shown(alerts("why", agent=["cli"]), column=("agent", "risk"))
    assert capsys.readouterr().out == "2021-10-09 00:00:00\tann\tcli\t2.50\n"
    with pytest.raises(UsageError, match=r"rows have no column `agents`\. They have .*agent, "):
        shown(alerts("why", agent=["cli"]), column=("agents",))


def test_a_terminal_shows_a_table_with_one_head(monkeypatch):
    with Terminal(monkeypatch, "stdout") as terminal:
        shown(alerts("new value"), alerts(HOSTILE, user="bob"))
    told = "\n".join(terminal.lines)
    assert [line.split() for line in terminal.lines if "USER" in line] == [
        ["TIME", "USER", "RISK", "REASON"]
    ]
    assert re.search(r"2021-10-09 +ann +2\.50 +new value\n00:00:00", told)
    assert SAFE in told
    assert "\x1b[2J" not in terminal.text.decode()


def test_a_table_and_a_live_line_share_a_terminal(monkeypatch):
    with Terminal(monkeypatch, "stdout", "stderr") as terminal:
        list(Monitor(description="Rate")(ToConsole()(iter([alerts("one"), alerts("two")]))))
    lines = [line for line in terminal.lines if line]
    assert [line.split()[-1] for line in lines if "ann" in line] == ["one", "two"]
    assert lines[-1].startswith("Rate[Complete]: 2 messages")


def test_a_live_line_takes_nothing_from_a_pipe(monkeypatch, capsys):
    with Terminal(monkeypatch, "stderr") as terminal:
        list(Monitor()(ToConsole()(iter([alerts("one")]))))
    assert capsys.readouterr().out.endswith("ann\t2.50\tone\n")
    assert "one" not in terminal.text.decode()
