"""`to-console`: rows on stdout, as a table on a terminal, else one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morpheus.columns import RISK, SCORE, TIME, ExplanationColumns
from morpheus.core.batch import OutputRows, Table
from morpheus.core.stage import Outputs, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sources.results import complete_log
from morpheus.text import escape_control, suggest

if TYPE_CHECKING:
    from rich.console import Console

SCORE_COLUMNS = (RISK, "zscore", SCORE)
"""Scores to show; the first that exists is shown."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
NO_USER = "(no user)"
SCORE_WIDTH = 8
"""Width of a score, in characters."""
_COLUMN_WIDTHS = {"time": len("2021-10-09"), **dict.fromkeys(SCORE_COLUMNS, SCORE_WIDTH)}


@dataclass(frozen=True)
class ToConsole(Sink):
    """Show each row on stdout: time, user, score, operation and reason.

    Takes rows and passes them on. On a terminal, rows are a table; elsewhere they are lines with
    tabs between cells. Text of the log cannot control the terminal: control characters, and
    characters that reverse text, are shown as escapes. Put `filter` before it, or every event is
    shown.

    Example: `explain filter --alerts_per_day=2 serialize to-console`
    """

    name = "to-console"
    takes = (OutputRows,)
    gives = OutputRows

    column: tuple[str, ...] = option(
        (),
        "Column to show after time and user; repeat for more.",
        default_display="the best score, the operation and the reason, if they exist",
    )

    def outputs(self) -> Outputs:
        """Stdout."""
        return Outputs(stdout=True)

    def open(self, context: StageContext) -> _PlainOutput | _TableOutput:  # noqa: ARG002 - prints
        """Print a table on a terminal, and plain lines elsewhere."""
        return _TableOutput() if sys.stdout.isatty() else _PlainOutput()

    def process(
        self, batch: OutputRows, state: _PlainOutput | _TableOutput
    ) -> Iterator[OutputRows]:
        """Print the rows of a batch."""
        if batch.table.height:
            chosen = self._choose_columns(batch.table)
            state.show(chosen, list(_format_rows(batch, chosen)))
        yield batch

    def _choose_columns(self, table: Table) -> list[str]:
        missing = [name for name in self.column if name not in table]
        if missing:
            raise UsageError(
                f"to-console: --column: rows have no column `{missing[0]}`."
                f"{suggest(missing[0], table.names)} They have "
                f"{', '.join(map(escape_control, table.names))}."
            )
        reason = (ExplanationColumns.find_in(table.names) or ExplanationColumns()).reason
        log = complete_log(self.options.log, self.options.source, table.names)
        actions = [name for name in log.summary_columns if name in table]
        filled = [name for name in actions if table[name].null_count() < table.height]
        found = (
            _first_present(names, table)
            for names in (SCORE_COLUMNS, (*filled, *actions), (reason,))
        )
        return list(dict.fromkeys(self.column)) or [name for name in found if name is not None]


def _first_present(names: Sequence[str], table: Table) -> str | None:
    return next((name for name in names if name in table), None)


def _format_rows(batch: OutputRows, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each row, safe to display."""
    user = escape_control(NO_USER if batch.user is None else batch.user)
    table = batch.table
    times = table[TIME].dt.strftime(TIME_FORMAT) if TIME in table else [""] * table.height
    rows = table.select(columns).to_frame().iter_rows()
    for time, row in zip(times, rows, strict=True):
        yield [time or "", user, *map(_format_cell, row)]


def _format_cell(value: object) -> str:
    r"""Format a value as text that is safe to display.

    >>> _format_cell(3.14159), _format_cell(None), _format_cell("a\tb")
    ('3.14', '', 'a\\tb')
    """
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else escape_control(str(value))


class _PlainOutput:
    """Writes one line per row, for other programs."""

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:  # noqa: ARG002 - lines have no header
        """Write rows and flush."""
        sys.stdout.write("".join("\t".join(cells) + "\n" for cells in rows))
        sys.stdout.flush()


class _TableOutput:
    """Writes a table that grows at its end.

    It is drawn in parts of equal widths. The output goes through `sys.stdout`, which `monitor`
    keeps clear of its progress line.
    """

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - 40 ms, needed on terminals only

        self.console: Console = Console()
        self.header: Sequence[str] | None = None

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draw rows, with a header if the columns have changed."""
        from rich.table import Table  # noqa: PLC0415 - as in `__init__`
        from rich.text import Text  # noqa: PLC0415 - as in `__init__`

        table = Table(
            box=None, show_header=columns != self.header, padding=(0, 2, 0, 0), expand=True
        )
        default_width = max(self.console.width // 6, SCORE_WIDTH)
        for name in ("time", "user", *columns):
            is_last = name == columns[-1]
            table.add_column(
                Text(escape_control(name).upper()),
                width=None if is_last else _COLUMN_WIDTHS.get(name, default_width),
                ratio=1 if is_last else None,
                overflow="fold",
            )
        for cells in rows:
            table.add_row(*map(Text, cells))
        self.header = list(columns)
        with self.console.capture() as drawn:
            self.console.print(table)
        sys.stdout.write(drawn.get())
        sys.stdout.flush()
