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


def echo(text: str, **style: Any) -> None:  # noqa: ANN401 - the styles of click
    """Write lines to stderr, coloured only on a terminal, and not where NO_COLOR is set."""
    color = False if os.environ.get("NO_COLOR") else None
    click.secho(escape_control(text, keep="\n"), err=True, color=color, **style)


TableRow = Sequence[str]


def align_columns(header: TableRow, rows: Sequence[TableRow]) -> str:
    """Aligned columns.

    >>> print(align_columns(("WORD", "MEANING"), [("a", "the first"), ("beta", "")]))
    WORD  MEANING
    a     the first
    beta
    """
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = ("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def print_table(header: TableRow, rows: Sequence[TableRow]) -> None:
    """Write a table to stdout; text out of a log cannot command the terminal."""
    rows = [[escape_control(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo(align_columns(header, rows))
        return
    from rich import box  # noqa: PLC0415 - 40 ms that only a terminal needs
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


EXIT_FAILURE = 1
BUG_MESSAGE = (
    "This is a bug in morpheus, not in your logs. `morpheus --debug ...` shows the traceback."
)
OUTPUT_CLOSED_MESSAGE = "Whatever reads this command's output has closed it."
STOPPING_MESSAGE = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."


@contextmanager
def handle_errors() -> Iterator[None]:
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
        _exit_with_error(str(error), error.exit_code)
    except OSError as error:
        _exit_with_error(_describe_os_error(error), EXIT_FAILURE)
    except Exception as error:  # noqa: BLE001 - the last place where anything can be caught
        _exit_with_error(f"{type(error).__name__}: {error}. {BUG_MESSAGE}", EXIT_FAILURE)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl+C and SIGTERM stop what runs here; the second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    stop = _SignalHandler()
    before = [signal.signal(one, stop) for one in signals]
    try:
        yield
    except BaseException as error:
        # Where Rust calls Python, polars makes an error of its own of the interrupt.
        if stop.received and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


class _SignalHandler:
    """Unwinds, which takes away what is half written; the next signal ends the process.

    Attributes:
        received: Whether a signal has come.
    """

    received = False

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.received = True
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        echo(STOPPING_MESSAGE)
        raise KeyboardInterrupt


def _exit_with_error(message: str, code: int) -> NoReturn:
    """Say why, and end."""
    _log_traceback()
    echo(f"Error: {message}")
    raise Exit(code) from None


def _log_traceback() -> None:
    """Log the exception at hand, unless nothing can have asked for it."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("morpheus.cli").debug("Traceback:", exc_info=True)


def _describe_os_error(error: OSError) -> str:
    """What the operating system refused, and where."""
    if error.errno == errno.EPIPE:
        return OUTPUT_CLOSED_MESSAGE
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}."


MAX_USERS_SHOWN = 3
NO_USER = "(no user)"
NO_SCORE_REASON = "no stage of this chain scores"

SCOPE_TEXT = {
    "own": "by their own history",
    "peers": "with their peers'",
    "everyone": "by everyone's",
}
"""What it is called to be scored by a fingerprint of each rung."""


def format_metrics(metrics: RunMetrics) -> list[str]:
    """Say what became of every event of a run, one fact a line, aligned.

    >>> from morpheus.records import ClusterStats, ReadStats, AlertBudgetReport, RunMetrics
    >>> summary = RunMetrics(input=ReadStats(files=1, read=4), seconds=1.5)
    >>> summary.users["ann"] = 4
    >>> summary.unscored_reason["ann"] = "300 events of history are needed, 12 found"
    >>> for line in format_metrics(summary):
    ...     print(line)
    Input       4 events in 1 file
    Written     4 events of 1 user
    Scored      0 events, with 0 models
    Not scored  4 events: 300 events of history are needed, 12 found (ann)
    Seconds     1.5
    """
    facts = list(_lines(metrics))
    width = max(len(name) for name, _ in facts)
    return [f"{name:{width}}  {escape_control(text)}" for name, text in facts]


def _lines(metrics: RunMetrics) -> Iterator[tuple[str, str]]:
    """Names and values of the summary's lines."""
    yield from _read_lines("Training", metrics.training)
    yield from _read_lines("Input", metrics.input)
    if metrics.filtered or metrics.expired:
        yield "Filtered", f"{format_count(metrics.filtered, 'event')} out"
    for title, number in _sort_counts(metrics.suppressed):
        yield "  held back", f"{format_count(number, 'event')} by {title}"
    for title, number in _sort_counts(metrics.expired):
        yield (
            "  not held",
            f"{format_count(number, 'event')}, for the suppression has ended: {title}",
        )
    if metrics.budget_report is not None:
        yield "Alerts", _format_alerts(metrics.budget_report)
    written = format_count(metrics.users.total(), "event")
    named = format_count(len(metrics.users.keys() - {None}), "user")
    nobody = f", {metrics.users[None]:,} of no user" if metrics.users[None] else ""
    yield "Written" if metrics.has_sink else "Passed", f"{written} of {named}{nobody}"
    models = format_count(len(metrics.cards), "model")
    yield "Scored", f"{format_count(metrics.scored, 'event')}, with {models}"
    rungs = Counter(card.rung for card in metrics.cards.values())
    if rungs.keys() - {"own"}:
        by = ", ".join(
            f"{rungs[rung]:,} {whose}" for rung, whose in SCOPE_TEXT.items() if rungs[rung]
        )
        yield "  users", by
    for text in _unscored_lines(metrics):
        yield "Not scored", text
    if metrics.flagged is not None:
        yield "Flagged", format_count(metrics.flagged, "event")
    if metrics.cluster_stats is not None:
        yield from _cluster_lines(metrics.cluster_stats)
    yield "Seconds", f"{metrics.seconds:.1f}"


def _cluster_lines(stats: ClusterStats) -> Iterator[tuple[str, str]]:
    """What a cluster had to do."""
    lost = f", {stats.lost_workers:,} lost on the way" if stats.lost_workers else ""
    again = f", {stats.retries:,} begun again" if stats.retries else ""
    tasks = format_count(stats.tasks, "task")
    yield "Cluster", f"{tasks} on {format_count(stats.workers, 'worker')}{lost}{again}"
    if stats.slowest_users:
        slowest = (
            f"{NO_USER if user is None else user} {took:.1f} s"
            for user, took in stats.slowest_users
        )
        yield "  slowest", ", ".join(slowest)


def _format_alerts(report: AlertBudgetReport) -> str:
    """Alerts stated beside those that came."""
    stated = report.forecast
    held = f", and {report.suppressed:,} held back" if report.suppressed else ""
    expected = f"{stated.alerts:.0f} expected ({stated.low:.0f} to {stated.high:.0f})"
    return f"{report.alerts:,}{held}, {expected}"


def _sort_counts(numbers: Counter[str]) -> list[tuple[str, int]]:
    """The largest first; of equals, by name."""
    return sorted(numbers.items(), key=lambda one: (-one[1], one[0]))


def _read_lines(name: str, stats: ReadStats) -> Iterator[tuple[str, str]]:
    """What became of the records of one set of files; nothing where none was read."""
    if not stats.files and not stats.skipped_files and not stats.read:
        return
    yield name, f"{format_count(stats.read, 'event')} in {format_count(stats.files, 'file')}"
    if stats.time_range:
        yield "  period", stats.time_range
    left_out = {
        "outside the period": stats.outside_range,
        "refused": stats.refused,
        "delivered twice": stats.duplicates,
        "of other kinds": stats.other_classes,
        "of other users": stats.other_users,
        "of no user": stats.no_user,
    }
    parts = [f"{number:,} {why}" for why, number in left_out.items() if number]
    if stats.skipped_files:
        parts.append(f"{format_count(stats.skipped_files, 'file')} of another kind")
    unopened = {"file": stats.outside_files, "folder": stats.outside_folders}
    parts += [f"{format_count(n, what)} outside the period" for what, n in unopened.items() if n]
    if parts:
        yield "  left out", ", ".join(parts)
    for reason in stats.refusals:
        yield "  refused", reason


def _unscored_lines(metrics: RunMetrics) -> Iterator[str]:
    """Events without a score, and why: one line a reason, the most events first."""
    users: dict[str, list[str | None]] = {}
    for user, reason in metrics.unscored_reasons.items():
        users.setdefault(reason, []).append(user)
    numbers = Counter({reason: sum(metrics.users[x] for x in who) for reason, who in users.items()})
    for reason, number in sorted(numbers.items(), key=lambda one: (-one[1], one[0])):
        who = sorted(users[reason], key=lambda user: (-metrics.users[user], user or ""))
        whose = f" ({_format_users(who)})" if who != [None] else ""
        yield f"{format_count(number, 'event')}: {reason}{whose}"
    rest = metrics.users.total() - metrics.scored - numbers.total()
    if rest > 0:
        yield f"{format_count(rest, 'event')}: {NO_SCORE_REASON}"


def _format_users(users: Sequence[str | None]) -> str:
    """The first few users by name, the others by number."""
    names: Iterable[str] = (NO_USER if user is None else user for user in users[:MAX_USERS_SHOWN])
    more = [f"{len(users) - MAX_USERS_SHOWN:,} more"] if len(users) > MAX_USERS_SHOWN else []
    return ", ".join([*names, *more])


def format_count(number: int, noun: str) -> str:
    """A number of things.

    >>> format_count(1, "event"), format_count(1161, "event")
    ('1 event', '1,161 events')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
