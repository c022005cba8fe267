"""Tables of figures for the console and for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | float | int | None


@dataclass
class Table:
    """A table of figures.

    Attributes:
        title: What was measured.
        header: Names and units of the columns.
        rows: One row per measurement.
        note: How to read the table.
    """

    title: str
    header: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        self.rows.append(cells)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(map(shown, line)) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def shown(cell: Cell) -> str:
    """Format a cell: three digits of a number, all digits of a count, a dash for None.

    >>> [shown(cell) for cell in (0.12345, 12.345, 1234567.8, 1000000, None)]
    ['0.123', '12.3', '1,234,568', '1,000,000', '-']
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or cell >= 100:  # noqa: PLR2004 - three digits
        return f"{cell:,.0f}"
    return f"{cell:.3g}"
