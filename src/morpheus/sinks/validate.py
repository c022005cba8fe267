"""`validate`: compares the events of a run with a file, row by row."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Batch, OutputRows, RunMetrics, Scored
from morpheus.core.stage import Outputs, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.sinks.to_file import ToFile, validate_output
from morpheus.sources.results import READ_ERRORS, read_as_text
from morpheus.sources.time_range import parse_times
from morpheus.storage.atomic import TempFolder, atomic_write
from morpheus.text import ColumnPattern, format_count, quote_backtick, suggest, suggest_path

logger = logging.getLogger(__name__)

MAX_SHOWN_ROWS = 10
_KEY, _OCCURRENCE, _POSITION, _EQUAL = "_key_", "_nth_", "_at_", "_same_"
_FOUND = "_other_"


class DataFrameDiff:
    """Compares two tables of text, row by row.

    Rows are matched by the value of a column. Rows with equal values are matched in order.

    Args:
        expected: Expected rows.
        found: Rows to check.
        index: Column to match rows by. None: the running number of events of a user, or, if there
            is none, the position in the table.
        numeric_columns: Columns of numbers, for which the tolerances apply.
        abs_tol: Absolute tolerance.
        rel_tol: Relative tolerance, as a share of the number found.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - two tables, and how to compare them
        self,
        expected: pl.DataFrame,
        found: pl.DataFrame,
        index: str | None = None,
        numeric_columns: set[str] | None = None,
        abs_tol: float = 0.0,
        rel_tol: float = 0.0,
    ) -> None:
        for frame in (expected, found) if index is not None else ():
            if index not in frame.columns:
                raise UsageError(
                    f"--index_col: there is no column `{index}`."
                    f"{suggest(index or '', frame.columns)} The columns are "
                    f"{', '.join(name or '(the unnamed first)' for name in frame.columns)}."
                )
        numbered = ROW in expected.columns and ROW in found.columns
        self.index = index if index is not None else (ROW if numbered else None)
        self.columns = [n for n in expected.columns if n in found.columns and n != ROW]
        self.extra = [n for n in found.columns if n not in expected.columns and n != ROW]
        self.missing = [n for n in expected.columns if n not in found.columns and n != ROW]
        self.numeric_columns, self.abs_tol, self.rel_tol = (
            numeric_columns or set(),
            abs_tol,
            rel_tol,
        )
        left, right = self._add_row_keys(expected), self._add_row_keys(found)
        self.unexpected = right.join(left, on=[_KEY, _OCCURRENCE], how="anti", nulls_equal=True)
        self.rows = self._join(left, right)

    @property
    def differing_rows(self) -> pl.DataFrame:
        """Expected rows that are missing or different."""
        return self.rows.filter(~pl.col(_EQUAL))

    def summarise(self) -> dict[str, Any]:
        """Return the outcome under the keys of NVIDIA Morpheus."""
        unequal = self.differing_rows.height
        return {
            "total_rows": self.rows.height,
            "matching_rows": self.rows.height - unequal,
            "diff_rows": unequal,
            "matching_cols": self.columns,
            "extra_cols": self.extra,
            "missing_cols": self.missing,
            "diff_cols": len(self.extra) + len(self.missing),
        }

    def log(self) -> None:
        """Log the outcome and the first different rows, in the words of NVIDIA Morpheus."""
        self._log_missing()
        unequal, total = self.differing_rows, self.rows.height
        if unequal.is_empty():
            if not self.missing and self.unexpected.is_empty():
                logger.info("Results match validation dataset")
            return
        described = "\n".join(
            map(self._describe_row, unequal.head(MAX_SHOWN_ROWS).iter_rows(named=True))
        )
        share = 100 * unequal.height / total
        logger.warning(
            "Results do not match. Diff %d/%d (%f %%). First %d mismatched rows:\n%s",
            unequal.height,
            total,
            share,
            MAX_SHOWN_ROWS,
            described,
        )

    def _log_missing(self) -> None:
        """Log columns and rows that only one side has."""
        if self.missing:
            logger.warning(
                "Results do not match. They have no column %s. Exclude it with --exclude, or "
                "validate against a file that has the columns of this pipeline.",
                ", ".join(map(quote_backtick, self.missing)),
            )
        if self.unexpected.height:
            logger.warning(
                "Results do not match. The file lacks %s of this run.",
                format_count(self.unexpected.height, "row"),
            )

    def _describe_row(self, row: dict[str, Any]) -> str:
        key = "" if self.index is None else f" ({self.index or 'event'} {row[_KEY]})"
        if not row[_FOUND]:
            return f"  row {row[_POSITION] + 1}{key}: not found"
        cells = [
            f"{name}: {row[name]!a}, not {row[f'{_FOUND}{name}']!a}"
            for name in self.columns
            if not row[f"{_EQUAL}{name}"]
        ]
        return f"  row {row[_POSITION] + 1}{key}: {'; '.join(cells)}"

    def _join(self, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        right = right.rename({name: f"{_FOUND}{name}" for name in self.columns})
        right = right.with_columns(pl.lit(value=True).alias(_FOUND)).drop(_POSITION)
        rows = left.join(
            right, on=[_KEY, _OCCURRENCE], how="left", nulls_equal=True, maintain_order="left"
        )
        is_found = pl.col(_FOUND).fill_null(value=False)
        equal = [self._compare_column(name).alias(f"{_EQUAL}{name}") for name in self.columns]
        all_equal = [pl.col(f"{_EQUAL}{name}") for name in self.columns]
        return rows.with_columns(*equal, is_found).with_columns(
            pl.all_horizontal(pl.col(_FOUND), *all_equal).alias(_EQUAL)
        )

    def _add_row_keys(self, frame: pl.DataFrame) -> pl.DataFrame:
        rows = frame.select(self.columns).with_row_index(_POSITION)
        key = pl.col(_POSITION).cast(pl.String) if self.index is None else frame[self.index]
        return rows.with_columns(key.alias(_KEY)).with_columns(
            pl.int_range(pl.len()).over(_KEY).alias(_OCCURRENCE)
        )

    def _compare_column(self, name: str) -> pl.Expr:
        expected, found = pl.col(name), pl.col(f"{_FOUND}{name}")
        equal = expected.eq_missing(found)
        if name not in self.numeric_columns:
            return equal
        a, b = (value.cast(pl.Float64, strict=False) for value in (expected, found))
        close = (a - b).abs() <= self.abs_tol + self.rel_tol * b.abs()
        return equal | close.fill_null(value=False)


@dataclass(frozen=True)
class Validate(Transform):
    """Compare the events with those of a file, such as `to-file` wrote in an earlier run.

    Takes events with scores, or rows, and passes them on. At the end it warns about rows
    that differ, with the first ones, and about rows and columns that only one side has. Further
    columns of the events are not compared. Numbers that a stage has added may differ by `--abs_tol`
    and `--rel_tol`. The outcome does not affect the exit code.

    Example: `validate --val_file_name=expected.csv --results_file_name=results.json --overwrite`
    """

    name = "validate"
    takes = (Scored, OutputRows)
    scope = "barrier"

    val_file_name: str = option(
        "",
        "File to compare with: CSV, JSON lines or Parquet.",
        required=True,
        location="local",
    )
    results_file_name: str | None = option(None, "JSON file for the outcome.", location="local")
    overwrite: bool = option(False, "Replace an existing results file.", flag=True)
    include: tuple[str, ...] = option(
        (), "Regular expression of columns to compare; repeat for more. Default: all."
    )
    exclude: tuple[str, ...] = option(
        ("^ID$", "^_ts_"), "Regular expression of columns to exclude; repeat for more."
    )
    index_col: str | None = option(
        None, "Column to match rows by. Default: the running number of events of a user."
    )
    abs_tol: float = option(0.001, "Absolute tolerance for numbers.", min=0)
    rel_tol: float = option(0.05, "Relative tolerance for numbers, as a share.", min=0)

    def validate(self) -> None:
        """Reject a missing file, an existing results file, and an unbounded input."""
        if not Path(self.val_file_name).is_file():
            raise UsageError(
                f"--val_file_name: there is no file `{self.val_file_name}`."
                f"{suggest_path(self.val_file_name)} Give a file that `to-file` wrote."
            )
        results = self.results_file_name
        if results is not None:
            validate_output(
                results,
                overwrite=True,
                stage_name=self.name,
                option="--results_file_name",
                suffixes=(".json",),
            )
        if results is not None and Path(results).exists() and not self.overwrite:
            raise UsageError(
                f"--results_file_name: there is a file `{results}` already. Give `validate "
                "--overwrite` to replace it, or another --results_file_name."
            )
        if self.options.unbounded:
            raise UsageError(
                "validate: the input is unbounded. Remove --watch_directory or --sqs_queue."
            )
        for pattern in (*self.include, *self.exclude):
            _compile_column_pattern(pattern)

    def outputs(self) -> Outputs:
        """The file for the outcome."""
        file = self.results_file_name
        return Outputs() if file is None else Outputs(files=(Path(file),))

    def commit(self, metrics: RunMetrics) -> None:
        """Do nothing: the file is written when all events have passed."""

    def open(self, context: StageContext) -> _WrittenEvents:
        """Write the events to a temporary file of the same kind as the expected one."""
        folder = context.resources.enter_context(TempFolder())
        path = folder / f"events{''.join(Path(self.val_file_name).suffixes[-2:])}"
        return _WrittenEvents(path, context.resources.enter_context(ExitStack()))

    def process(self, batch: Batch, state: _WrittenEvents) -> Iterator[Batch]:
        """Write a batch, and note which of its columns are numbers."""
        state.write(batch)
        yield batch

    def flush(self, state: _WrittenEvents) -> Iterator[Batch]:
        """Compare what was written with what was expected."""
        state.finish()
        expected, found = self._read(Path(self.val_file_name)), self._read(state.path)
        report = DataFrameDiff(
            expected, found, self.index_col, state.numeric_columns, self.abs_tol, self.rel_tol
        )
        report.log()
        if self.results_file_name is not None:
            with atomic_write(Path(self.results_file_name)) as file:
                file.write(json.dumps(report.summarise(), indent=2, sort_keys=True).encode())
        return iter(())

    def _read(self, path: Path) -> pl.DataFrame:
        include = [_compile_column_pattern(pattern) for pattern in self.include or ("",)]
        exclude = [_compile_column_pattern(pattern) for pattern in self.exclude]
        try:
            frame = read_as_text(path)
        except READ_ERRORS as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"--val_file_name: `{path}` cannot be read: {reason}") from error
        if self.index_col == INDEX and INDEX not in frame.columns:
            # An input log has this number in its unnamed first column.
            frame = frame.rename({ROW: INDEX}, strict=False)
        if TIME in frame.columns:
            # Files write the same time in different ways.
            times = parse_times(frame[TIME]).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            frame = frame.with_columns(times.zip_with(times.is_not_null(), frame[TIME]).alias(TIME))
        kept, removed = (
            set[str]().union(*(pattern.match_all(frame.columns) for pattern in patterns))
            for patterns in (include, exclude)
        )
        kept = (kept - removed) | {ROW}
        return frame.select(n for n in frame.columns if n in kept or n == self.index_col)


class _WrittenEvents:
    """The events that passed, in a file that can be read as the expected one is.

    Args:
        path: The file.
        resources: Closes the file.
    """

    def __init__(self, path: Path, resources: ExitStack) -> None:
        self.path = path
        self.numeric_columns: set[str] = set()
        self._resources = resources
        self._sink = ToFile(filename=str(path))
        self._state = self._sink.open(StageContext(resources=resources))

    def write(self, batch: Batch) -> None:
        """Write a batch."""
        schema = batch.table.schema
        self.numeric_columns.update(name for name, kind in schema.items() if kind.is_numeric())
        rows = batch.evolve(OutputRows, fingerprint=None)
        for _ in self._sink.process(rows, self._state):
            pass

    def finish(self) -> None:
        """Complete the file."""
        for _ in self._sink.flush(self._state):
            pass
        self._resources.close()


def _compile_column_pattern(pattern: str) -> ColumnPattern:
    try:
        return ColumnPattern(pattern)
    except ValueError as error:
        raise UsageError(f"validate: {pattern!r} {error}.") from error
