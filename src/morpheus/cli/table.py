"""Tables on stdout: drawn on a terminal, plain and aligned anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from morpheus.quoting import escape_control

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
