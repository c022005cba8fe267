"""What the command prints and draws.

Messages, progress and the summary go to stderr, tables to stdout. The module also has the exit
codes, and diagrams of a pipeline for `--viz_file`.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import click
from click.exceptions import Abort, Exit

from morpheus.errors import (
    EXIT_INTERRUPTED,
    STOPPING_MESSAGE,
    MorpheusError,
    UsageError,
    find_error_code,
)
from morpheus.text import (
    MAX_LENGTH,
    display_value,
    escape_control,
    format_count,
    format_duration,
)

if TYPE_CHECKING:
    from morpheus.core.batch import AlertBudgetReport, ClusterStats, ReadStats, RunMetrics, Step
    from morpheus.core.stage import Outputs, PipelineOptions, Sink, Stage
    from morpheus.models.input_check import ModelAge
    from morpheus.models.store import SavedModels


LOG_FORMATS = ("text", "json")
_FORMAT = {"log": LOG_FORMATS[0]}


def set_log_format(log_format: str) -> None:
    """Choose how lines are written to stderr: as text, or each as a JSON object."""
    _FORMAT["log"] = log_format.lower()


def writes_json() -> bool:
    """Return whether each line on stderr is a JSON object."""
    return _FORMAT["log"] == "json"


def echo_json(level: str, message: str, **fields: object) -> None:
    """Write a JSON object in one line to stderr. Fields that are None are left out.

    It is ASCII, with control characters as escapes, whatever the message has.
    """
    import json  # noqa: PLC0415 - `--help` writes none
    from datetime import UTC, datetime  # noqa: PLC0415 - as above

    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    known = {name: value for name, value in fields.items() if value is not None}
    text = escape_control(message, keep="\n\t")
    line = {"time": now, "level": level, "message": text} | known
    _write_line(json.dumps(line, default=str), color=False)


def echo(text: str, **style: Any) -> None:  # noqa: ANN401 - the styles of click
    """Write lines to stderr. They have colours only on a terminal, and not if NO_COLOR is set."""
    if writes_json():
        level = {"red": "error", "yellow": "warning"}.get(style.get("fg", ""), "info")
        echo_json(level, text.removeprefix("Warning: "))
        return
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    text = escape_control(text, keep="\n")
    # Without a style, click.secho would still end the text with a code.
    _write_line(click.style(text, **style) if style else text, color=False if plain else None)


def _write_line(text: str, *, color: bool | None) -> None:
    """Write a line to stderr. A stderr that is full or gone is no error of the run."""
    with _TERMINAL.free(), suppress(OSError, ValueError):
        click.echo(text, err=True, color=color)


def discard_unwritten() -> None:
    """Discard messages that stderr does not take. Else the process would exit with 120."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def echo_error(message: str, code: str | None = None) -> None:
    """Write the message of a failure to stderr.

    Args:
        message: The message.
        code: Kind of the failure, for JSON.
    """
    if writes_json():
        echo_json("error", message, code=code)
    else:
        echo(f"Error: {message}", fg="red")


# Progress.

PROGRESS_INTERVAL = 0.25
"""Seconds between two updates of the progress."""
_ERASE = "\r\x1b[K"


class ProgressLine:
    """Shows on a terminal how far a run is, in one line that is drawn again and again.

    A thread draws it, so the run only says which step begins. A terminal without cursor movement
    (TERM=dumb) gets the name of each step that takes long.

    Args:
        terminal: The terminal.
        hides_for_rows: Rows are written to the same terminal, so steps that may write some are not
            shown.
        is_plain: The terminal cannot move the cursor.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        hides_for_rows: bool = False,
        is_plain: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal, self._clock = terminal, clock
        self._hides_for_rows, self._is_plain = hides_for_rows, is_plain
        self._step: Step | None = None
        self._started_at = self._counted_at = 0.0
        self._counts = (0, 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(1)

    def stop(self) -> None:
        """Remove the line, and draw it no more."""
        self._stopped.set()
        with self._terminal.free():
            self._step = None

    def begin(self, step: Step) -> None:
        """Show another step."""
        is_hidden = step.prints and self._hides_for_rows
        with self._terminal.free():
            self._step = None if is_hidden else step
            self._started_at = self._counted_at = self._clock()
            self._counts = (0, 0)

    def _run(self) -> None:
        while not self._stopped.wait(PROGRESS_INTERVAL):
            self._draw()

    def _draw(self) -> None:
        with self._terminal.lock:
            step = self._step
            if step is None or self._stopped.is_set():
                return
            now, counts = self._clock(), step.count()
            if counts != self._counts:
                self._counts, self._counted_at = counts, now
            seconds = now - self._started_at
            if not self._is_plain:
                counted = self._counted_at - self._started_at
                self._terminal.draw(format_progress(step, counts, counted, seconds))
            elif seconds >= _LONG_STEP:
                self._terminal.write(f"{step.name} ...\n")
                self._step = None


_LONG_STEP = 2.0  # seconds


def format_progress(step: Step, counts: tuple[int, int], counted: float, seconds: float) -> str:
    """Return the progress of a step in one line.

    Args:
        step: The step.
        counts: Units and events so far, as `Step.count` returns them.
        counted: Seconds from the start of the step to the last change of these.
        seconds: Seconds from its start until now.

    >>> from morpheus.core.batch import Step
    >>> step = Step("Reading", lambda: (3, 4500), "file", 12)
    >>> format_progress(step, step.count(), 2.0, 3.0)
    'Reading: 3 of 12 files, 4,500 events, 2,250 events/s, 00:05 left'
    >>> format_progress(step, (0, 0), 0.0, 61.0)
    'Reading: 0 of 12 files, 01:01'
    """
    done, events = counts
    parts = []
    if step.unit and step.total is not None:
        parts.append(f"{done:,} of {format_count(step.total, step.unit)}")
    if events and counted:
        parts += [format_count(events, "event"), f"{events / counted:,.0f} events/s"]
    if step.total is not None and 0 < done <= step.total:
        # Not more than the last estimate, while nothing is counted.
        left = counted * step.total / done - seconds
        parts.append(f"{format_duration(max(left, 0))} left")
    else:
        parts.append(format_duration(seconds))
    if detail := step.detail():
        parts.append(detail)
    return f"{step.name}: {', '.join(parts)}"


class Terminal:
    """The terminal of stderr, with at most one line that is drawn again and again.

    Attributes:
        lock: Held while anything is written. A signal handler can take it again.
        progress: What draws the line; None if nothing does.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.progress: ProgressLine | None = None
        self._is_drawn = False

    @contextmanager
    def free(self) -> Iterator[None]:
        """Remove the line, and let the block write other lines."""
        with self.lock:
            if self._is_drawn:
                self._is_drawn = False
                self.write(_ERASE)
            yield

    def draw(self, text: str) -> None:
        """Draw the line, no wider than the terminal. A job in the background draws nothing."""
        if _is_in_foreground():
            # One write, so that no other process can write between the parts.
            self.write(_ERASE + text[: _find_width() - 1])
            self._is_drawn = True

    def write(self, text: str) -> None:
        """Write to stderr. A terminal that is gone is no error of the run."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _find_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


_USUAL_WIDTH = 80


def _is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, AttributeError):  # not the terminal of this session, or no such functions
        return True


_TERMINAL = Terminal()


@contextmanager
def show_progress(stages: Sequence[Stage] = ()) -> Iterator[Callable[[Step], None] | None]:
    """Show progress in the block, if stderr is a terminal and `--no-progress` is not given.

    Args:
        stages: The pipeline. If it has a `monitor`, that shows the progress.

    Yields:
        What to call with each step that begins; None if no progress is shown.
    """
    context = click.get_current_context(silent=True)
    is_wanted = context is None or context.find_root().params.get("progress", True)
    has_monitor = any(stage.name == "monitor" for stage in stages)
    is_wanted = is_wanted and not writes_json()
    if not is_wanted or has_monitor or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from morpheus.core.stage import WritesOutputs  # noqa: PLC0415 - `--help` shows no progress

    prints = any(isinstance(stage, WritesOutputs) and stage.outputs().stdout for stage in stages)
    line = ProgressLine(
        _TERMINAL,
        hides_for_rows=prints and sys.stdout.isatty(),
        is_plain=os.environ.get("TERM", "dumb") == "dumb",
    )
    with line:
        _TERMINAL.progress = line
        try:
            yield line.begin
        finally:
            _TERMINAL.progress = None


# Tables.

TableRow = Sequence[str]


def align_columns(header: TableRow, rows: Sequence[TableRow]) -> str:
    """Return a table with aligned columns.

    >>> print(align_columns(("WORD", "MEANING"), [("a", "the first"), ("beta", "")]))
    WORD  MEANING
    a     the first
    beta
    """
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = ("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


_NAME_COLUMNS = {"USER": MAX_LENGTH, "TECHNIQUE": MAX_LENGTH, "WHAT": 2 * MAX_LENGTH}
"""Columns of a table with names from logs or files, and how many characters a cell shows."""


def print_table(header: TableRow, rows: Sequence[TableRow]) -> None:
    """Write a table to stdout, with control characters as escapes, and with long names shortened.

    A name of hundreds of characters would push the other columns of all rows off the screen.
    """
    lengths = [_NAME_COLUMNS.get(name) for name in header]
    rows = [
        [
            escape_control(cell) if length is None else display_value(cell, length)
            for cell, length in zip(row, lengths, strict=True)
        ]
        for row in rows
    ]
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


# Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

EXIT_FAILURE = 1
BUG_MESSAGE = (
    "This is a bug in morpheus, not in your logs. `morpheus --debug ...` shows the traceback."
)
OUT_OF_MEMORY_MESSAGE = (
    "There is not enough memory. Use fewer workers, `morpheus run --num_threads=1 ...`, or read "
    "fewer files at a time."
)
OUTPUT_CLOSED_MESSAGE = "The program that reads this command's output has closed it."


def find_exit_code(error: BaseException | None) -> int:
    """Return the exit code of a command that ends with an error, or without one."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, MorpheusError | click.ClickException | Exit):
        return error.exit_code
    return EXIT_FAILURE


@contextmanager
def handle_errors() -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code.

    Click's own errors are shown as click does, except as JSON. The traceback is logged at level
    DEBUG.
    """
    try:
        yield
    except (Exit, Abort):
        raise
    except KeyboardInterrupt:
        raise Exit(EXIT_INTERRUPTED) from None
    except click.ClickException as error:
        if writes_json():
            _exit_with_error(error)
        with suppress(OSError):
            error.show()
        raise Exit(error.exit_code) from None
    except Exception as error:  # noqa: BLE001 - the last place where anything can be caught
        _exit_with_error(error)
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        _exit_with_error(error)


_PANIC = "PanicException"
"""A panic of polars, which is no `Exception`. Its class is not imported for this."""


def _describe_failure(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, MorpheusError):
        return str(error)
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY_MESSAGE
    if isinstance(error, OSError):
        return _describe_os_error(error)
    name = "Polars failed" if type(error).__name__ == _PANIC else type(error).__name__
    return f"{name}: {error}. {BUG_MESSAGE}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl+C and SIGTERM raise KeyboardInterrupt in the block. The second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handler = _SignalHandler()
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    except BaseException as error:
        # In a Python callback of polars, the interrupt becomes an exception of polars.
        if handler.received and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, old in zip(numbers, previous, strict=True):
            signal.signal(number, old)


class _SignalHandler:
    """Unwinds the stack, which removes half-written files. The next signal ends the process.

    Attributes:
        received: Whether a signal has been received.
    """

    received = False

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.received = True
        if _TERMINAL.progress is not None:
            _TERMINAL.progress.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        echo(STOPPING_MESSAGE)
        raise KeyboardInterrupt


def _exit_with_error(error: BaseException) -> NoReturn:
    _log_traceback()
    is_usage = isinstance(error, click.ClickException)
    echo_error(_describe_failure(error), UsageError.code if is_usage else find_error_code(error))
    raise Exit(find_exit_code(error)) from None


def _log_traceback() -> None:
    # If logging is not imported, nobody has asked for tracebacks.
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("morpheus.cli").debug("Traceback:", exc_info=True)


def _describe_os_error(error: OSError) -> str:
    if error.errno == errno.EPIPE:
        return OUTPUT_CLOSED_MESSAGE
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}."


# The summary of a run.

MAX_USERS_SHOWN = 3
"""Maximum number of users that a line of the summary names."""
NO_USER = "(no user)"
NO_SCORE_REASON = "no stage of this pipeline scores"
SCOPE_TEXT = {
    "own": "trained on own history",
    "peers": "with data of similar users",
    "everyone": "global",
}
"""How models are counted, by the scope of their training data."""


def format_metrics(metrics: RunMetrics, results: Mapping[str, str] | None = None) -> list[str]:
    """Return the summary of a run: one fact per line, aligned.

    Args:
        metrics: What the run has done.
        results: More lines for the end; see `format_results`.

    >>> from morpheus.core.batch import ReadStats, RunMetrics
    >>> metrics = RunMetrics(input=ReadStats(files=1, read=4), seconds=1.5)
    >>> metrics.users["ann"] = 4
    >>> metrics.unscored_reasons["ann"] = "300 events of history are needed, 12 found"
    >>> for line in format_metrics(metrics):
    ...     print(line)
    Input       4 events in 1 file
    Written     4 events of 1 user
    Scored      0 events, with 0 models
    Not scored  4 events of 1 user: 300 events of history are needed, 12 found (ann)
    Seconds     1.5
    """
    return format_facts([*_lines(metrics), *(results or {}).items()])


def format_facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each fact, its name in front, aligned.

    >>> format_facts([("Log", "a.json"), ("Scored", "4 events")])
    ['Log     a.json', 'Scored  4 events']
    """
    facts = list(facts)
    width = max((len(name) for name, _ in facts), default=0)
    return [f"{name:{width}}  {escape_control(text)}" for name, text in facts]


def _lines(metrics: RunMetrics) -> Iterator[tuple[str, str]]:
    """Yield name and value of each line of the summary."""
    yield from _read_lines("Training", metrics.training)
    yield from _judged_lines(metrics)
    yield from _read_lines("Input", metrics.input)
    yield from _input_lines(metrics)
    yield from _filter_lines(metrics)
    written = format_count(metrics.users.total(), "event")
    more = "more than " if metrics.has_other_users else ""
    users = more + format_count(metrics.num_users, "user")
    no_user = f", {metrics.users[None]:,} without a user" if metrics.users[None] else ""
    yield "Written" if metrics.has_sink else "Passed", f"{written} of {users}{no_user}"
    if reason := metrics.empty_reason:
        yield "  no event", reason
    models = format_count(len(metrics.cards), "model")
    yield "Scored", f"{format_count(metrics.num_scored, 'event')}, with {models}"
    scopes = Counter(card.training_data_scope for card in metrics.cards.values())
    if scopes.keys() - {"own"}:
        counts = (
            f"{scopes[scope]:,} {text}" for scope, text in SCOPE_TEXT.items() if scopes[scope]
        )
        yield "  models", ", ".join(counts)
    if metrics.model_age is not None:
        yield "  models end", _format_age(metrics.model_age)
    if metrics.saved_models is not None:
        yield "Saved", _format_saved(metrics.saved_models)
    for text in _damaged_lines(metrics):
        yield "Damaged", text
    for text in list_unscored(metrics):
        yield "Not scored", text
    if metrics.flagged is not None:
        yield "Flagged", format_count(metrics.flagged, "event")
    if metrics.cluster_stats is not None:
        yield from _cluster_lines(metrics.cluster_stats)
    yield "Seconds", f"{metrics.seconds:.1f}"


def _input_lines(metrics: RunMetrics) -> Iterator[tuple[str, str]]:
    """Yield which events wait, and which features are empty."""
    if metrics.num_waiting:
        waiting = format_count(metrics.num_waiting, "event")
        yield "  waiting", f"{waiting} for --allowed_lateness, in the --state file"
    for text in metrics.empty_features:
        yield "  empty", text


def _judged_lines(metrics: RunMetrics) -> Iterator[tuple[str, str]]:
    """Yield what verdicts have added to the training, and what they have left out."""
    if metrics.accepted:
        yield "  accepted", f"{format_count(metrics.accepted, 'event')} of --verdicts, added"
    if metrics.excluded:
        yield "  excluded", f"{format_count(metrics.excluded, 'event')} of --verdicts, left out"


def _format_age(age: ModelAge) -> str:
    """Return when the training data of the models end, and how long before the events."""
    newest, oldest = age.newest.date(), age.oldest.date()
    end = f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
    if not age.days:
        return end
    return f"{end}, {format_count(age.days, 'day')} before the first event"


def _format_saved(saved: SavedModels) -> str:
    """Return how many models were trained, and how many of the folder were kept."""
    kept = f", {saved.kept:,} older kept" if saved.kept else ""
    new = format_count(saved.trained, "new model")
    return f"{new}{kept}, in {saved.folder}, version {saved.version}"


def _damaged_lines(metrics: RunMetrics) -> Iterator[str]:
    """Yield the damaged fingerprints, and the versions that are used in place of theirs."""
    for user, replaced in metrics.replaced_models.items():
        if user is None:
            yield f"version {replaced.damaged}; version {replaced.used} is used"
    users = [each for user, each in metrics.replaced_models.items() if user is not None]
    if users:
        numbers = ", ".join(str(number) for number in sorted({each.damaged for each in users}))
        models = format_count(len(users), "fingerprint")
        yield f"{models} of version {numbers}; earlier ones are used"


def _filter_lines(metrics: RunMetrics) -> Iterator[tuple[str, str]]:
    """Yield what filters and suppressions have removed, and the alerts that are left."""
    if metrics.filtered or metrics.expired:
        yield "Filtered", format_count(metrics.filtered, "event")
    for label, number in _sort_counts(metrics.suppressed):
        yield "  suppressed", f"{format_count(number, 'event')} by {label}"
    if metrics.followers:
        events = format_count(metrics.followers, "event")
        yield "  followers", f"{events} that are unusual only after suppressed ones"
    for label, number in _sort_counts(metrics.expired):
        yield "  expired", f"{format_count(number, 'event')} no longer suppressed: {label}"
    if metrics.budget_report is not None:
        yield from _alert_lines(metrics.budget_report)


def _alert_lines(report: AlertBudgetReport) -> Iterator[tuple[str, str]]:
    """Yield the number of alerts beside the expected number, and what came next."""
    yield "Alerts", _format_alerts(report)
    if report.reason:
        yield "  uncertain", report.reason
    if report.capped:
        yield "  capped", f"{format_count(report.capped, 'user-day')} by --max_alerts_per_day"
    if report.next_pvalue:
        days = _format_amount(1 / report.next_pvalue)
        yield "  next", f"the most unusual other user-day, which is one in {days} days"


def _format_alerts(report: AlertBudgetReport) -> str:
    """Return the number of alerts beside the wanted and the expected number."""
    suppressed = f", plus {report.suppressed:,} suppressed" if report.suppressed else ""
    wanted = "" if report.wanted is None else f", {_format_amount(report.wanted)} wanted"
    mean, low, high = map(_format_amount, report.interval)
    return f"{report.alerts:,}{suppressed}{wanted}, {mean} expected ({low} to {high})"


def _format_amount(amount: float) -> str:
    """Return a number with two digits below ten, and as a whole number from there on.

    >>> [_format_amount(amount) for amount in (0.0, 0.14, 3.0, 12.3, 1234.5)]
    ['0', '0.14', '3', '12', '1,234']
    """
    return f"{amount:.2g}" if amount < 9.95 else f"{amount:,.0f}"  # noqa: PLR2004 - rounds to ten


def _read_lines(name: str, stats: ReadStats) -> Iterator[tuple[str, str]]:
    """Yield what was read from one set of files, and what was left out; nothing without files."""
    not_read = stats.skipped_files or stats.outside_files or stats.outside_folders
    not_read = not_read or stats.taken_files
    if not stats.files and not not_read and not stats.read:
        return
    place = f" in {format_count(stats.files, 'file')}" if stats.files or not_read else ""
    yield name, f"{format_count(stats.read, 'event')}{place}"
    if stats.time_range:
        yield "  period", stats.time_range
    for fact, text in list_left_out(stats):
        yield f"  {fact}", text


def list_left_out(stats: ReadStats) -> Iterator[tuple[str, str]]:
    """Yield what of some files was left out, and what is odd about them, as lines of a summary."""
    if parts := _list_left_out(stats):
        yield "left out", ", ".join(parts)
    for text in stats.gaps:
        yield "gap", text
    if stats.late:
        yield "late", f"{format_count(stats.late, 'event')} came late"
    for text in stats.not_read:
        yield "not read", text
    for reason in stats.refusals:
        yield "rejected", reason
    for reason in stats.copies:
        yield "copy", reason
    for reason in stats.implausible_times:
        yield "implausible", reason


def _list_left_out(stats: ReadStats) -> list[str]:
    """Return what was read and left out, by reason, and the files that were not opened."""
    left_out = {
        "outside the period": stats.outside_range,
        "taken by earlier runs": stats.taken,
        "rejected": stats.refused,
        "with an implausible time": stats.implausible,
        "duplicate": stats.duplicates,
        "excluded by the schema": stats.unwanted_rows,
        "of other event classes": stats.other_classes,
        "of other users": stats.other_users,
        "of skipped users": stats.skipped_users,
        "without a user": stats.no_user,
    }
    parts = [f"{number:,} {reason}" for reason, number in left_out.items() if number]
    kinds = {**stats.kinds, **stats.file_kinds}
    parts += [format_count(number, kind) for kind, number in sorted(kinds.items())]
    if stats.empty_files:
        parts.append(f"{format_count(stats.empty_files, 'file')} without an event")
    if stats.copied_files:
        parts.append(f"{format_count(stats.copied_files, 'file')} with the contents of another")
    others = stats.skipped_files - stats.file_kinds.total()
    if others:
        parts.append(f"{format_count(others, 'file')} of another format")
    if stats.taken_files:
        parts.append(f"{format_count(stats.taken_files, 'file')} read by earlier runs")
    not_opened = {"file": stats.outside_files, "folder": stats.outside_folders}
    return [
        *parts,
        *(f"{format_count(n, what)} outside the period" for what, n in not_opened.items() if n),
    ]


def list_unscored(metrics: RunMetrics) -> Iterator[str]:
    """Yield a line for each reason why events have no score, the most events first."""
    unscored, users_by_reason = metrics.unscored, dict[str, list[str | None]]()
    for user, reason in metrics.unscored_reasons.items():
        users_by_reason.setdefault(reason, []).append(user)
    counts = Counter(
        {reason: sum(unscored[user] for user in each) for reason, each in users_by_reason.items()}
    )
    counts.update(metrics.more_unscored)
    for reason, number in _sort_counts(counts):
        users = sorted(users_by_reason.get(reason, ()), key=lambda x: (-unscored[x], x or ""))
        known = len(users) - users.count(None)
        who = f" of {format_count(known, 'user')}" if known else ""
        names = f" ({_format_users(users)})" if known else ""
        yield f"{format_count(number, 'event')}{who}: {reason}{names}"
    rest = metrics.users.total() - metrics.scored
    rest -= counts.total() - metrics.unscored_filtered.total()
    if rest > 0:
        yield f"{format_count(rest, 'event')}: {NO_SCORE_REASON}"


def _cluster_lines(stats: ClusterStats) -> Iterator[tuple[str, str]]:
    """Yield what ran on a cluster."""
    lost = f", {stats.lost_workers:,} lost" if stats.lost_workers else ""
    retried = f", {format_count(stats.retries, 'task')} restarted" if stats.retries else ""
    tasks = format_count(stats.tasks, "task")
    yield "Cluster", f"{tasks} on {format_count(stats.workers, 'worker')}{lost}{retried}"
    if stats.slowest_users:
        slowest = (
            f"{NO_USER if user is None else user} {seconds:.1f} s"
            for user, seconds in stats.slowest_users
        )
        yield "  slowest", ", ".join(slowest)


def _sort_counts(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return counts, the largest first; equal ones by name."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _format_users(users: Sequence[str | None]) -> str:
    """Return the names of the first few users, and the number of others."""
    names = [NO_USER if user is None else user for user in users[:MAX_USERS_SHOWN]]
    more = [f"{len(users) - MAX_USERS_SHOWN:,} more"] if len(users) > MAX_USERS_SHOWN else []
    return ", ".join([*names, *more])


# Where the results of a run are, and what to do next.


def format_results(stages: Sequence[Stage], metrics: RunMetrics) -> dict[str, str]:
    """Return where the results of a run are, and the next command, as lines of the summary.

    Args:
        stages: The stages, with the options of the pipeline.
        metrics: What the run has done.

    Returns:
        The text of each line by its name; nothing if an output has failed, which is an error.
    """
    if metrics.failed_outputs:
        return {}
    from morpheus.core.stage import Sink, WritesOutputs  # noqa: PLC0415 - `--help` runs nothing

    # The summary has a line for saved fingerprints.
    writers = [x for x in stages if isinstance(x, WritesOutputs) and x.name != "train-ae"]
    places = list(dict.fromkeys(place for x in writers for place in _list_places(x.outputs())))
    sinks = [stage for stage in stages if isinstance(stage, Sink)]
    facts = {"Results": ", ".join(places)} if places else {}
    step = _find_next_step(sinks, stages[0].options, metrics)
    return facts | ({"Next": step} if step else {})


def _list_places(outputs: Outputs) -> list[str]:
    places = outputs.files or outputs.folders or outputs.data_sets
    return [*map(str, places), *outputs.destinations]


def _find_next_step(sinks: Sequence[Sink], options: PipelineOptions, metrics: RunMetrics) -> str:
    """Return what to do with the results; empty if nothing is usual."""
    files = {sink.name: [f for f in sink.outputs().files if isinstance(f, Path)] for sink in sinks}
    status = options.status_file
    for page in files.get("to-report", ()):
        serve = f", or type `morpheus serve {quote_word(Path(status).parent)}`" if status else ""
        return f"Open {page}{serve}."
    if not sinks and metrics.users.total() and metrics.saved_models is None:
        return "To keep the events, add `serialize to-file --filename=output.csv` to the pipeline."
    rows = next(iter(files.get("to-file", ())), None)
    if rows is None or not metrics.scored:
        return ""
    if status and Path(status).parent == rows.parent:
        return f"Type `morpheus report {quote_word(rows.parent)}` to get a report page."
    words = ["morpheus", "report", str(rows), *_list_report_options(rows, options, metrics)]
    return f"Type `{shlex.join(words)}` to get a report page."


def quote_word(word: object) -> str:
    """Return a word as a shell needs it."""
    return shlex.quote(str(word))


def _list_report_options(
    rows: Path, options: PipelineOptions, metrics: RunMetrics
) -> Iterator[str]:
    """Yield the options that `morpheus report` needs for the rows of this run."""
    from morpheus.columns import ACTOR  # noqa: PLC0415 - `--help` runs nothing
    from morpheus.core.stage import to_user_column  # noqa: PLC0415 - the same

    user, log = options.userid_column_name, options.log
    known = (ACTOR, *(() if log is None else log.user_columns))
    present = {*metrics.columns, to_user_column(user)}
    if next((name for name in known if name in present), None) != to_user_column(user):
        yield f"--userid_column_name={user}"
    if metrics.saved_models is not None:
        yield f"--models={metrics.saved_models.location}"
    # Other files have row numbers, which show that events were dropped.
    if metrics.filtered and any(suffix.startswith(".json") for suffix in rows.suffixes):
        yield "--all_alerts"


# Diagrams of a pipeline: its stages, and the batches between them.

Links = Sequence[tuple[str, str]]
"""The word of each stage, and the class of the batches it outputs."""

_BOX_WIDTH, _BOX_HEIGHT = 150, 40
"""Size in pixels."""
_BOX_GAP = {"LR": 110, "RL": 110, "TB": 60, "BT": 60}


def render_diagram(links: Links, file: Path, direction: str = "LR") -> str:
    """Return a diagram in the language of a file's extension.

    Args:
        links: The pipeline.
        file: The file that the diagram is for. It is not written.
        direction: LR (left to right), RL, TB (top to bottom) or BT.

    Raises:
        UsageError: The extension is unknown.
    """
    try:
        render = RENDERERS[file.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"--viz_file: `{file}` cannot be drawn: `{file.suffix}` is not one of "
            f"{', '.join(filter(None, RENDERERS))}. Give `--viz_file={file.with_suffix('.svg')}`, "
            f"or write a `.dot` file and let Graphviz draw it: `dot -Tpng chain.dot`."
        ) from None
    return render(links, direction.upper())


def render_dot(links: Links, direction: str) -> str:
    """Return a diagram in the language of Graphviz.

    >>> print(render_dot([("from-duo", "Events"), ("train-ae", "WithModel")], "LR"), end="")
    digraph morpheus {
      rankdir=LR; node [shape=box];
      0 [label="from-duo"];
      1 [label="train-ae"];
      0 -> 1 [label="Events"];
    }
    """
    lines = [f"  rankdir={direction}; node [shape=box];"]
    lines += [f'  {i} [label="{word}"];' for i, (word, _) in enumerate(links)]
    lines += [f'  {i} -> {i + 1} [label="{kind}"];' for i, (_, kind) in enumerate(links[:-1])]
    return "\n".join(["digraph morpheus {", *lines, "}", ""])


def render_mermaid(links: Links, direction: str) -> str:
    """Return a diagram in the language of Mermaid, which many wikis render.

    >>> print(render_mermaid([("from-duo", "Events"), ("train-ae", "WithModel")], "LR"), end="")
    flowchart LR
      0["from-duo"]
      1["train-ae"]
      0 -->|Events| 1
    """
    lines = [f'  {i}["{word}"]' for i, (word, _) in enumerate(links)]
    lines += [f"  {i} -->|{kind}| {i + 1}" for i, (_, kind) in enumerate(links[:-1])]
    return "\n".join([f"flowchart {direction}", *lines, ""])


def render_svg(links: Links, direction: str) -> str:
    """Return a diagram as an SVG image."""
    from html import escape  # noqa: PLC0415 - its table of characters is large

    links = [(escape(word), escape(kind)) for word, kind in links]
    horizontal = direction in {"LR", "RL"}
    step = _BOX_GAP[direction] + (_BOX_WIDTH if horizontal else _BOX_HEIGHT)
    places = [10 + step * i for i in range(len(links))]
    if direction in {"RL", "BT"}:
        places.reverse()
    corners = [(place, 20) if horizontal else (10, place) for place in places]
    width, height = (
        (canvas_size(places, _BOX_WIDTH), 80)
        if horizontal
        else (170, canvas_size(places, _BOX_HEIGHT))
    )
    shapes = [
        *(_svg_box(corner, word) for corner, (word, _) in zip(corners, links, strict=True)),
        *(
            _svg_arrow(corners[i], corners[i + 1], kind, horizontal=horizontal)
            for i, (_, kind) in enumerate(links[:-1])
        ),
    ]
    return "\n".join([_SVG_HEADER.format(width=width, height=height), *shapes, "</svg>", ""])


def canvas_size(places: Sequence[int], size: int) -> int:
    """Return the width or height of the image, with a margin, in pixels.

    Args:
        places: Start of each box.
        size: Size of a box.
    """
    return max(places, default=0) + size + 10


_SVG_HEADER = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"
 font-family="sans-serif" font-size="13" text-anchor="middle">
<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z"/></marker></defs>"""


def _svg_box(corner: tuple[int, int], word: str) -> str:
    x, y = corner
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" fill="#eef2f7" '
        f'stroke="#345"/><text x="{x + _BOX_WIDTH // 2}" y="{y + 25}">{word}</text>'
    )


def _svg_arrow(
    start: tuple[int, int], stop: tuple[int, int], kind: str, *, horizontal: bool
) -> str:
    forward = stop > start
    if horizontal:
        y = start[1] + _BOX_HEIGHT // 2
        ends = (start[0] + _BOX_WIDTH, stop[0]) if forward else (start[0], stop[0] + _BOX_WIDTH)
        (x1, y1), (x2, y2) = (ends[0], y), (ends[1], y)
    else:
        x = start[0] + _BOX_WIDTH // 2
        ends = (start[1] + _BOX_HEIGHT, stop[1]) if forward else (start[1], stop[1] + _BOX_HEIGHT)
        (x1, y1), (x2, y2) = (x, ends[0]), (x, ends[1])
    x, y = ((x1 + x2) // 2 + (0 if horizontal else 50), (y1 + y2) // 2 - (6 if horizontal else -4))
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#345" marker-end="url(#tip)"/>'
        f'<text x="{x}" y="{y}" fill="#567">{kind}</text>'
    )


RENDERERS: dict[str, Callable[[Links, str], str]] = {
    ".svg": render_svg,
    ".dot": render_dot,
    ".gv": render_dot,
    ".mmd": render_mermaid,
    "": render_dot,
}
"""Renderers by extension; without one, Graphviz."""
