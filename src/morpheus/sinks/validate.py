"""`validate`: whether the events are those of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from morpheus.atomic import atomic_write
from morpheus.columns import ROW
from morpheus.errors import UsageError
from morpheus.records import Batch, OutputRows, Scored
from morpheus.sinks.comparison import DataFrameDiff, read_as_text
from morpheus.sinks.to_file import ToFile
from morpheus.stage import Transform, option


@dataclass(frozen=True)
class Validate(Transform):
    """Compare the events with those of a file, such as `to-file` wrote in an earlier run.

    Takes events with scores, or rows, and hands them on. At the end it is told how many rows are
    equal, and which are not; numbers that a stage has added may differ by `--abs_tol` and
    `--rel_tol`. The run's exit code does not depend on it.

    Example: `validate --val_file_name=expected.csv --results_file_name=results.json --overwrite`
    """

    name = "validate"
    takes = (Scored, OutputRows)
    scope = "barrier"
    needs_model = False

    val_file_name: str = option(
        "", "File to compare with: CSV, JSON lines or Parquet.", required=True
    )
    results_file_name: str | None = option(None, "JSON file to write the outcome to.")
    overwrite: bool = option(False, "Replace a file of outcomes of that name.", flag=True)
    include: tuple[str, ...] = option(
        (), "Pattern of columns to compare; repeat for more. By default all."
    )
    exclude: tuple[str, ...] = option(
        ("^ID$", "^_ts_"), "Pattern of columns to leave out, of those; repeat for more."
    )
    index_col: str | None = option(
        None, "Column by whose value rows find each other; by default their place within the user."
    )
    abs_tol: float = option(0.001, "Difference of numbers that is none.", min=0)
    rel_tol: float = option(0.05, "Difference of numbers that is none, as a share.", min=0)

    def validate(self) -> None:
        """Refuse files that are not there, or are there already, and an input without end."""
        if not Path(self.val_file_name).is_file():
            raise UsageError(
                f"--val_file_name: there is no file `{self.val_file_name}`. Give one that "
                "`to-file` wrote."
            )
        results = self.results_file_name
        if results is not None and Path(results).exists() and not self.overwrite:
            raise UsageError(
                f"Cannot output validation results to '{results}'. File exists and overwrite = "
                "False. Give `validate --overwrite`, or another --results_file_name."
            )
        if self.options.unbounded:
            raise UsageError("validate: the input has no end. Leave out --watch_directory.")
        for pattern in (*self.include, *self.exclude):
            _compile_column_pattern(pattern)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on; compare when all have passed."""
        with TemporaryDirectory(prefix="morpheus-") as folder:
            # Written as the file was, the events can be read as it is.
            path = Path(folder) / f"events{''.join(Path(self.val_file_name).suffixes[-2:])}"
            numbers: set[str] = set()
            yield from _write_and_forward(path, batches, numbers)
            expected, found = self._read(Path(self.val_file_name)), self._read(path)
        report = DataFrameDiff(expected, found, self.index_col, numbers, self.abs_tol, self.rel_tol)
        report.log()
        if self.results_file_name is not None:
            with atomic_write(Path(self.results_file_name)) as file:
                file.write(json.dumps(report.summarise(), indent=2, sort_keys=True).encode())

    def _read(self, path: Path) -> pl.DataFrame:
        include = [_compile_column_pattern(pattern) for pattern in self.include or ("",)]
        exclude = [_compile_column_pattern(pattern) for pattern in self.exclude]
        frame = read_as_text(path)
        return frame.select(
            name
            for name in frame.columns
            if name in {ROW, self.index_col}
            or (any(p.match(name) for p in include) and not any(p.match(name) for p in exclude))
        )


def _write_and_forward(path: Path, batches: Iterator[Batch], numeric_columns: set[str]) -> Iterator[Batch]:
    """Write batches as they pass, and note which of their columns are numbers."""
    held: list[Batch] = []

    def rows() -> Iterator[OutputRows]:
        for batch in batches:
            numeric_columns.update(n for n, kind in batch.frame.schema.items() if kind.is_numeric())
            held.append(batch)
            yield batch.evolve(OutputRows, fingerprint=None)

    for _ in ToFile(filename=str(path))(rows()):
        yield held.pop()


def _compile_column_pattern(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"validate: {pattern!r} is not a regular expression: {error}. Write a backslash before "
            "a sign that is meant as itself."
        ) from error
