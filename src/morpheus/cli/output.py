"""What is said to the person at the terminal: on stderr, stdout being for results."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import Abort, Exit

from morpheus.errors import EXIT_INTERRUPTED, MorpheusError
from morpheus.text import escape_control

if TYPE_CHECKING:
    from morpheus.core.batch import AlertBudgetReport, ClusterStats, ReadStats, RunMetrics


def say(text: str, **style: Any) -> None:  # noqa: ANN401 - the styles of click
    """Write lines to stderr, coloured only on a terminal, and not where NO_COLOR is set."""
    color = False if os.environ.get("NO_COLOR") else None
    click.secho(escape_control(text, keep="\n"), err=True, color=color, **style)


Row = Sequence[str]


def aligned(head: Row, rows: Sequence[Row]) -> str:
    """Aligned columns.

    >>> print(aligned(("WORD", "MEANING"), [("a", "the first"), ("beta", "")]))
    WORD  MEANING
    a     the first
    beta
    """
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def show(head: Row, rows: Sequence[Row]) -> None:
    """Write a table to stdout; text out of a log cannot command the terminal."""
    rows = [[escape_control(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo(aligned(head, rows))
        return
    from rich import box  # noqa: PLC0415 - 40 ms that only a terminal needs
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(*head, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


FAILED = 1
BUG = "This is a bug in morpheus, not in your logs. `morpheus --debug ...` shows the traceback."
CLOSED = "Whatever reads this command's output has closed it."
STOPPING = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."


@contextmanager
def endings() -> Iterator[None]:
    """Turn what goes wrong into a message on stderr and an exit code.

    Click's own errors pass: click shows them. The traceback is logged at DEBUG.
    """
    try:
        yield
    except (click.ClickException, Exit, Abort):
        raise
    except KeyboardInterrupt:
        raise Exit(EXIT_INTERRUPTED) from None
    except MorpheusError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(_disk(error), FAILED)
    except Exception as error:  # noqa: BLE001 - the last place where anything can be caught
        _end(f"{type(error).__name__}: {error}. {BUG}", FAILED)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl+C and SIGTERM stop what runs here; the second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    stop = _Stop()
    before = [signal.signal(one, stop) for one in signals]
    try:
        yield
    except BaseException as error:
        # Where Rust calls Python, polars makes an error of its own of the interrupt.
        if stop.asked and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


class _Stop:
    """Unwinds, which takes away what is half written; the next signal ends the process.

    Attributes:
        asked: Whether a signal has come.
    """

    asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.asked = True
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        say(STOPPING)
        raise KeyboardInterrupt


def _end(message: str, code: int) -> NoReturn:
    """Say why, and end."""
    _log_traceback()
    say(f"Error: {message}")
    raise Exit(code) from None


def _log_traceback() -> None:
    """Log the exception at hand, unless nothing can have asked for it."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("morpheus.cli").debug("Traceback:", exc_info=True)


def _disk(error: OSError) -> str:
    """What the operating system refused, and where."""
    if error.errno == errno.EPIPE:
        return CLOSED
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}."


SHOWN = 3
NOBODY = "(no user)"
UNKNOWN = "no stage of this chain scores"

RUNGS = {"own": "by their own history", "peers": "with their peers'", "everyone": "by everyone's"}
"""What it is called to be scored by a fingerprint of each rung."""


def summary_lines(summary: RunMetrics) -> list[str]:
    """Say what became of every event of a run, one fact a line, aligned.

    >>> from morpheus.records import ClusterStats, ReadStats, AlertBudgetReport, RunMetrics
    >>> summary = RunMetrics(input=ReadStats(files=1, read=4), seconds=1.5)
    >>> summary.users["ann"] = 4
    >>> summary.unscored["ann"] = "300 events of history are needed, 12 found"
    >>> for line in summary_lines(summary):
    ...     print(line)
    Input       4 events in 1 file
    Written     4 events of 1 user
    Scored      0 events, with 0 models
    Not scored  4 events: 300 events of history are needed, 12 found (ann)
    Seconds     1.5
    """
    facts = list(_facts(summary))
    width = max(len(name) for name, _ in facts)
    return [f"{name:{width}}  {escape_control(text)}" for name, text in facts]


def _facts(summary: RunMetrics) -> Iterator[tuple[str, str]]:
    """Names and values of the summary's lines."""
    yield from _reading("Training", summary.training)
    yield from _reading("Input", summary.input)
    if summary.filtered or summary.expired:
        yield "Filtered", f"{count(summary.filtered, 'event')} out"
    for title, number in _most(summary.suppressed):
        yield "  held back", f"{count(number, 'event')} by {title}"
    for title, number in _most(summary.expired):
        yield "  not held", f"{count(number, 'event')}, for the suppression has ended: {title}"
    if summary.budget_report is not None:
        yield "Alerts", _account(summary.budget_report)
    written = count(summary.users.total(), "event")
    named = count(len(summary.users.keys() - {None}), "user")
    nobody = f", {summary.users[None]:,} of no user" if summary.users[None] else ""
    yield "Written" if summary.has_sink else "Passed", f"{written} of {named}{nobody}"
    models = count(len(summary.cards), "model")
    yield "Scored", f"{count(summary.scored, 'event')}, with {models}"
    rungs = Counter(card.rung for card in summary.cards.values())
    if rungs.keys() - {"own"}:
        by = ", ".join(f"{rungs[rung]:,} {whose}" for rung, whose in RUNGS.items() if rungs[rung])
        yield "  users", by
    for text in _unscored(summary):
        yield "Not scored", text
    if summary.flagged is not None:
        yield "Flagged", count(summary.flagged, "event")
    if summary.cluster_stats is not None:
        yield from _effort(summary.cluster_stats)
    yield "Seconds", f"{summary.seconds:.1f}"


def _effort(effort: ClusterStats) -> Iterator[tuple[str, str]]:
    """What a cluster had to do."""
    lost = f", {effort.lost_workers:,} lost on the way" if effort.lost_workers else ""
    again = f", {effort.retries:,} begun again" if effort.retries else ""
    tasks = count(effort.tasks, "task")
    yield "Cluster", f"{tasks} on {count(effort.workers, 'worker')}{lost}{again}"
    if effort.slowest_users:
        slowest = (
            f"{NOBODY if user is None else user} {took:.1f} s"
            for user, took in effort.slowest_users
        )
        yield "  slowest", ", ".join(slowest)


def _account(spending: AlertBudgetReport) -> str:
    """Alerts stated beside those that came."""
    stated = spending.forecast
    held = f", and {spending.suppressed:,} held back" if spending.suppressed else ""
    expected = f"{stated.alerts:.0f} expected ({stated.low:.0f} to {stated.high:.0f})"
    return f"{spending.alerts:,}{held}, {expected}"


def _most(numbers: Counter[str]) -> list[tuple[str, int]]:
    """The largest first; of equals, by name."""
    return sorted(numbers.items(), key=lambda one: (-one[1], one[0]))


def _reading(name: str, reading: ReadStats) -> Iterator[tuple[str, str]]:
    """What became of the records of one set of files; nothing where none was read."""
    if not reading.files and not reading.skipped_files and not reading.read:
        return
    yield name, f"{count(reading.read, 'event')} in {count(reading.files, 'file')}"
    if reading.time_range:
        yield "  period", reading.time_range
    left_out = {
        "outside the period": reading.outside_range,
        "refused": reading.refused,
        "delivered twice": reading.duplicates,
        "of other kinds": reading.other_classes,
        "of other users": reading.other_users,
        "of no user": reading.no_user,
    }
    parts = [f"{number:,} {why}" for why, number in left_out.items() if number]
    if reading.skipped_files:
        parts.append(f"{count(reading.skipped_files, 'file')} of another kind")
    unopened = {"file": reading.outside_files, "folder": reading.outside_folders}
    parts += [f"{count(n, what)} outside the period" for what, n in unopened.items() if n]
    if parts:
        yield "  left out", ", ".join(parts)
    for reason in reading.refusals:
        yield "  refused", reason


def _unscored(summary: RunMetrics) -> Iterator[str]:
    """Events without a score, and why: one line a reason, the most events first."""
    users: dict[str, list[str | None]] = {}
    for user, reason in summary.unscored_reasons.items():
        users.setdefault(reason, []).append(user)
    numbers = Counter({reason: sum(summary.users[x] for x in who) for reason, who in users.items()})
    for reason, number in sorted(numbers.items(), key=lambda one: (-one[1], one[0])):
        who = sorted(users[reason], key=lambda user: (-summary.users[user], user or ""))
        whose = f" ({_first(who)})" if who != [None] else ""
        yield f"{count(number, 'event')}: {reason}{whose}"
    rest = summary.users.total() - summary.scored - numbers.total()
    if rest > 0:
        yield f"{count(rest, 'event')}: {UNKNOWN}"


def _first(users: Sequence[str | None]) -> str:
    """The first few users by name, the others by number."""
    names: Iterable[str] = (NOBODY if user is None else user for user in users[:SHOWN])
    more = [f"{len(users) - SHOWN:,} more"] if len(users) > SHOWN else []
    return ", ".join([*names, *more])


def count(number: int, noun: str) -> str:
    """A number of things.

    >>> count(1, "event"), count(1161, "event")
    ('1 event', '1,161 events')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
