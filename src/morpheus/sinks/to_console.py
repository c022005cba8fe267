"""`to-console`: alerts on stdout, as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from morpheus.columns import RISK, SCORE, TIME, ExplanationColumns
from morpheus.core.batch import OutputRows
from morpheus.core.stage import Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.text import escape_control

if TYPE_CHECKING:
    from rich.console import Console

SCORE_COLUMNS = (RISK, "zscore", SCORE)
"""Scores, the best first."""
ACTION_COLUMNS = ("eventName", "operationName", "appDisplayName", "integration")
"""Columns that say what was done, the first that there is."""
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
NO_USER = "(no user)"
SCORE_WIDTH = 8
"""Width of a score."""


@dataclass(frozen=True)
class ToConsole(Sink):
    """Show each row on stdout, as it comes: when, who, how unusual, what was done, and why.

    Takes rows and hands them on. On a terminal they are a table; anywhere else one line each, with
    a tab between cells. What a log says cannot command the terminal: control characters, and marks
    that turn text around, are shown as escapes. Put it behind `filter`, or every event is shown.

    Example: `explain filter --alerts_per_day=2 serialize to-console`
    """

    name = "to-console"
    takes = (OutputRows,)
    gives = OutputRows

    column: tuple[str, ...] = option(
        (),
        "Column to show behind time and user; repeat for more.",
        default_display="the best score, what was done, and the reason, where there are such columns",
    )

    def open(self, context: StageContext) -> _PlainOutput | _TableOutput:  # noqa: ARG002 - prints
        """Print a table on a terminal, and plain lines elsewhere."""
        return _TableOutput() if sys.stdout.isatty() else _PlainOutput()

    def process(
        self, batch: OutputRows, state: _PlainOutput | _TableOutput
    ) -> Iterator[OutputRows]:
        """Print the rows of a batch."""
        if batch.frame.height:
            chosen = self._choose_columns(batch.frame)
            state.show(chosen, list(_format_rows(batch, chosen)))
        yield batch

    def _choose_columns(self, frame: pl.DataFrame) -> list[str]:
        missing = [name for name in self.column if name not in frame.columns]
        if missing:
            raise UsageError(
                f"to-console: --column: rows have no column `{missing[0]}`. They have "
                f"{', '.join(map(escape_control, frame.columns))}."
            )
        reason = (ExplanationColumns.find_in(frame.columns) or ExplanationColumns()).reason
        found = (
            _first_present(names, frame) for names in (SCORE_COLUMNS, ACTION_COLUMNS, (reason,))
        )
        return list(dict.fromkeys(self.column)) or [name for name in found if name is not None]


def _first_present(names: Sequence[str], frame: pl.DataFrame) -> str | None:
    return next((name for name in names if name in frame.columns), None)


def _format_rows(batch: OutputRows, columns: Sequence[str]) -> Iterator[list[str]]:
    """The cells of each row, safe to be shown."""
    user = escape_control(NO_USER if batch.user is None else batch.user)
    frame = batch.frame
    times = frame[TIME].dt.strftime(TIME_FORMAT) if TIME in frame.columns else [""] * frame.height
    rows = frame.select(columns).iter_rows()
    for time, row in zip(times, rows, strict=True):
        yield [time or "", user, *map(_format_cell, row)]


def _format_cell(value: object) -> str:
    r"""A value as text.

    >>> _format_cell(3.14159), _format_cell(None), _format_cell("a\tb")
    ('3.14', '', 'a\\tb')
    """
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else escape_control(str(value))


class _PlainOutput:
    """One line a row, for whatever reads them."""

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:  # noqa: ARG002 - lines have no head
        """Write rows at once."""
        sys.stdout.write("".join("\t".join(cells) + "\n" for cells in rows))
        sys.stdout.flush()


class _TableOutput:
    """A table that grows at its end.

    It is drawn in parts, all of the same widths. What is drawn goes through `sys.stdout`, which
    `monitor` keeps clear of its own line.
    """

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - 40 ms that only a terminal needs

        self.console: Console = Console()
        self.header: Sequence[str] | None = None

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draw rows, under a head where the columns are others than before."""
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415 - as above

        table = Table(
            box=None, show_header=columns != self.header, padding=(0, 2, 0, 0), expand=True
        )
        some = max(self.console.width // 6, SCORE_WIDTH)
        for name in ("time", "user", *columns):
            width = {"time": len("2021-10-09"), **dict.fromkeys(SCORE_COLUMNS, SCORE_WIDTH)}.get(
                name, some
            )
            last = name == columns[-1]
            table.add_column(
                Text(escape_control(name).upper()),
                width=None if last else width,
                ratio=1 if last else None,
                overflow="fold",
            )
        for cells in rows:
            table.add_row(*map(Text, cells))
        self.header = list(columns)
        with self.console.capture() as drawn:
            self.console.print(table)
        sys.stdout.write(drawn.get())
        sys.stdout.flush()
