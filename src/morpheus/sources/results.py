"""Read the results of earlier runs: CSV, JSON lines or Parquet, as sinks write them.

The one reader of our own outputs. `read_results` reads a file of events with their times,
`read_frames` any file of rows, and `read_as_text` a whole file as text. `parse_csv` and
`parse_json_lines` read text that is still growing. `find_log` recognises the kind of log by the
columns of results, `KindTrial` by reading records.
"""

from __future__ import annotations

import gzip
import io
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self, cast

import msgspec
import polars as pl
import zstandard
from polars._typing import PolarsDataType
from polars.exceptions import PolarsError

from morpheus.columns import ACTOR, ACTOR_OPTION, ROW, TIME, LogDescription, merge_descriptions
from morpheus.core.batch import RunMetrics
from morpheus.core.registry import load_stage, stage_names
from morpheus.core.stage import PipelineOptions, to_user_column
from morpheus.errors import MorpheusError, RecordError, UsageError
from morpheus.sources.base import FileSource
from morpheus.sources.compression import detect_file_type
from morpheus.sources.json_records import clear_missing_texts
from morpheus.sources.log_format import LogFormat, collect_rule_columns, resolve_actors
from morpheus.sources.schema_file import (
    is_schema_file,
    list_builtin_schemas,
    load_builtin_schema,
    load_schema,
)
from morpheus.sources.time_range import UTC_DATETIME, parse_times
from morpheus.text import suggest, suggest_path

READ_ERRORS = (PolarsError, OSError, EOFError, ValueError, zstandard.ZstdError)
"""What `read_frames` raises for a file that cannot be read."""
_BATCH_ROWS = 1 << 15
_ROW_NAMES = ("Unnamed: 0",)
"""Other names of the column `ROW`, which pandas and our Parquet files use."""
_SOURCE_PREFIX = "from-"
_MIN_COLUMNS = 3
"""Minimum number of columns with a known meaning for a log to be recognised."""


def complete_log(
    log: LogDescription | None, source: str, columns: Collection[str]
) -> LogDescription:
    """Return a description of a log; where it is silent, as `find_log` finds it.

    Args:
        log: What the source says about the log; None for nothing.
        source: As in `find_log`.
        columns: As in `find_log`.
    """
    if log is None:
        return find_log(source, columns)
    event_id = log.event_fields.event_id
    if log.event_fields.columns.difference(event_id):
        return log
    found = find_log("", columns).event_fields
    return replace(log, event_fields=replace(found, event_id=event_id or found.event_id))


def find_log(source: str, columns: Collection[str]) -> LogDescription:
    """Describe the log of some results.

    Args:
        source: Word of the source; empty if it is not known.
        columns: Columns of the results. They tell the log if the source does not.

    Returns:
        The log; if it is not known, a description with the columns of all known sources.

    >>> find_log("", ["createdDateTime", "userPrincipalName", "ipAddress", "id"]).name
    'Azure'
    """
    logs = known_logs()
    return logs.get(source) or logs.get(_recognize(columns)) or unknown_log()


def _recognize(columns: Collection[str]) -> str:
    """Return the name of the known log that has most of some columns; empty if none is alike."""
    present = frozenset(columns)
    matches = {
        name: len(present & {log.time_column, *log.user_columns, *log.event_fields.columns})
        for name, log in known_logs().items()
        if log.time_column in present or not present.isdisjoint(log.user_columns)
    }
    best = max(matches, key=lambda name: matches[name], default="")
    return best if matches.get(best, 0) >= _MIN_COLUMNS else ""


def find_log_format(columns: Collection[str]) -> LogFormat | None:
    """Return the format of the log that some flat columns are of; None if it is not known."""
    return known_log_formats().get(_recognize(columns))


def find_users(rows: pl.DataFrame, column: str) -> pl.Series | None:
    """Return the user of each row; None if the rows do not tell.

    Args:
        rows: Events of one kind of log, flat.
        column: The user column. `@actor` is the column `actor` or, without it, the actor by the
            rules of the log that the columns are of.
    """
    name = to_user_column(column)
    if name in rows.columns:
        return rows[name].cast(pl.String)
    log = find_log_format(rows.columns) if column == ACTOR_OPTION else None
    if log is None:
        return None
    used = [name for name in collect_rule_columns(log.actor_rules) if name in rows.columns]
    texts = clear_missing_texts(rows.select(pl.col(used).cast(pl.String)))
    return resolve_actors(texts, log.actor_rules) if used else None


def find_user_column(columns: Collection[str]) -> str | None:
    """Return the best user column among the columns of some results; None if none is known.

    >>> find_user_column(["eventTime", "userIdentityarn", "userIdentityaccountId"])
    'userIdentityarn'
    """
    names = (ACTOR, *find_log("", columns).user_columns, *unknown_log().user_columns)
    return next((name for name in names if name in columns), None)


@cache
def known_logs() -> Mapping[str, LogDescription]:
    """Describe the logs of all sources, by word, and of all built-in schemas, by file name."""
    return {name: log.describe() for name, log in known_log_formats().items()}


@cache
def known_log_formats() -> Mapping[str, LogFormat]:
    """Return the log formats of all sources, by word, and of all built-in schemas, by file name."""
    formats = dict(_iter_source_formats())
    return formats | {n: load_builtin_schema(n).log_format for n in list_builtin_schemas()}


@cache
def unknown_log() -> LogDescription:
    """Describe a log of unknown kind: it may have the columns of any source's log.

    The built-in schemas are left out: some of their names, such as `status`, mean other things in
    other logs.
    """
    logs = known_logs()
    return merge_descriptions([logs[name] for name in logs if name.startswith(_SOURCE_PREFIX)])


def _iter_source_formats() -> Iterator[tuple[str, LogFormat]]:
    for word in stage_names():
        if not word.startswith(_SOURCE_PREFIX):
            continue
        # A package that is broken and not used must not stop this run.
        with suppress(UsageError):
            log = getattr(load_stage(word), "log_format", None)
            if isinstance(log, LogFormat):
                yield word, log


def read_results(path: Path) -> Iterator[pl.DataFrame]:
    """Read a file that `to-file` wrote.

    Yields:
        Rows in the order of the file, with their time in `TIME`. Other columns as in the file.

    Raises:
        UsageError: The file does not exist or cannot be read.
        RecordError: A row has no valid time.
    """
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder. Give the files in it, as `{path}/*.parquet`.")
    if ":/" in path.as_posix() and not path.exists():
        raise UsageError(f"`{path}` is not a file on this machine. Download it, and give the copy.")
    if not path.is_file():
        raise UsageError(
            f"There is no file `{path}`.{suggest_path(path)} Give the output of an earlier "
            "`to-file`."
        )
    row = 2 if detect_file_type(path) == "csv" else 1
    try:
        for frame in read_frames(path):
            if not frame.width:
                continue  # a JSON file without rows has no columns
            renamed = frame.rename(dict.fromkeys(_ROW_NAMES, ROW), strict=False)
            yield _add_time(renamed, path, row)
            row += frame.height
    except READ_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"`{path}` cannot be read: {reason}. Give CSV, JSON lines or Parquet, as `to-file` "
            "writes it."
        ) from error


def read_frames(path: Path) -> Iterator[pl.DataFrame]:
    """Read a file of rows, in parts. The suffix tells the format; without one, it is JSON lines.

    Yields:
        Rows in the order of the file. Columns of CSV are text. Columns of JSON lines are in order
        of first appearance, and text where their type changes.

    Raises:
        OSError: The file does not exist.
        Exception: One of `READ_ERRORS`: the file cannot be read.
    """
    file_type = detect_file_type(path) or "json"
    if file_type == "json":
        with closing(_open_decompressed(path)) as lines:
            while part := list(islice(lines, _BATCH_ROWS)):
                yield _infer_json_lines(part)
        return
    scan = _scan_table(path, file_type)
    yield from scan.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)


def read_as_text(path: Path) -> pl.DataFrame:
    """Read a whole file of rows as text, so that files of different formats can be compared.

    Returns:
        The rows, in the order of the file. Values of JSON have one spelling: the fields of objects
        are in alphabetical order, without white space.

    Raises:
        OSError: The file does not exist.
        Exception: One of `READ_ERRORS`: the file cannot be read.
    """
    file_type = detect_file_type(path) or "json"
    if file_type == "json":
        with closing(_open_decompressed(path)) as lines:
            rows = [_decode_object(line) for line in lines if line.strip()]
        return _to_text_frame(
            [{name: _sort_keys(raw) for name, raw in row.items()} for row in rows]
        )
    frame = _scan_table(path, file_type).collect().cast(pl.String)
    return frame.rename(dict.fromkeys(_ROW_NAMES, ROW), strict=False)


def _scan_table(path: Path, file_type: str) -> pl.LazyFrame:
    """Scan CSV, as text, or Parquet."""
    is_csv = file_type == "csv"
    return pl.scan_csv(path, infer_schema=False) if is_csv else pl.scan_parquet(path)


def parse_csv(data: bytes) -> pl.DataFrame:
    """Parse CSV with its header. All columns are text.

    Raises:
        PolarsError: It is not CSV.
    """
    return pl.read_csv(io.BytesIO(data), infer_schema=False)


def parse_json_lines(lines: Iterable[bytes]) -> tuple[pl.DataFrame, int]:
    """Parse lines of JSON objects. All columns are text, in order of first appearance.

    Returns:
        The rows, and the number of lines that are not JSON objects, which are skipped. Strings are
        unescaped. Other values are text as in the file.
    """
    rows, num_unreadable = [], 0
    for line in lines:
        try:
            rows.append(_decode_object(line))
        except msgspec.DecodeError:
            num_unreadable += line.strip() not in _NO_ROW
    return _to_text_frame(rows), num_unreadable


def _open_decompressed(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    if suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.BufferedReader(cast("io.RawIOBase", reader))
    return path.open("rb")


def _infer_json_lines(lines: Sequence[bytes]) -> pl.DataFrame:
    """Parse lines of JSON objects with the types of their values, in a fixed order of columns."""
    lines = [line for line in lines if line.strip() not in _NO_ROW]
    rows = [_decode_object(line) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    data = b"".join(lines)
    try:
        inferred = pl.read_ndjson(data, infer_schema_length=None)
        # Polars infers in parallel: the order of columns and fields depends on the timing of its
        # threads. Read again with an order of our own where fields may be affected.
        schema = {name: _sort_fields(inferred.schema[name]) for name in names}
        if any(kind.is_nested() for kind in schema.values()):
            return pl.read_ndjson(data, schema=schema)
    except PolarsError:
        return _to_text_frame([_remove_white_space(row) for row in rows])
    return inferred.select(list(names))


def _sort_fields(kind: PolarsDataType) -> PolarsDataType:
    """Return a type with the fields of its structs in alphabetical order."""
    if isinstance(kind, pl.Struct):
        fields = sorted(kind.to_schema().items())
        return pl.Struct({name: _sort_fields(field) for name, field in fields})
    if isinstance(kind, pl.List):
        return pl.List(_sort_fields(kind.inner))
    return kind


_NO_ROW = (b"", b"[]")
"""Lines without a row. A JSON file without any row is an empty list."""


def _decode_object(line: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except RecursionError as error:
        raise msgspec.DecodeError("a value is nested too deeply") from error


def _remove_white_space(row: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    return {n: msgspec.Raw(msgspec.json.format(bytes(raw), indent=-1)) for n, raw in row.items()}


def _sort_keys(raw: msgspec.Raw) -> msgspec.Raw:
    """Spell a value in one way. Strings stay as they are."""
    if bytes(raw).startswith(b'"'):
        return raw
    return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(raw), order="sorted"))


def _to_text_frame(rows: Sequence[dict[str, msgspec.Raw]]) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame(
        {name: [_to_text(row.get(name)) for row in rows] for name in names},
        schema_overrides=dict.fromkeys(names, pl.String),
    )


def _to_text(raw: msgspec.Raw | None) -> str | None:
    if raw is None or bytes(raw) == b"null":
        return None
    if bytes(raw).startswith(b'"'):
        return msgspec.json.decode(raw, type=str)
    return bytes(raw).decode()


def _add_time(frame: pl.DataFrame, path: Path, row: int) -> pl.DataFrame:
    """Add the time of each row. `row` is the line number of the first row."""
    names = list(dict.fromkeys([TIME, *(log.time_column for log in known_logs().values())]))
    name = next((name for name in names if name in frame.columns), None)
    if name is None:
        raise UsageError(
            f"`{path}` has no time column: none of {', '.join(names)}. Let `serialize` keep "
            f"`{TIME}`."
        )
    column = frame[name]
    is_time = isinstance(column.dtype, pl.Datetime)
    times = column.cast(UTC_DATETIME) if is_time else parse_times(column.cast(pl.String))
    missing = times.is_null().arg_true()
    if len(missing):
        at = int(missing[0])
        raise RecordError(
            f"`{name}` is {column[at]!r}, which is not a valid time", file=path, line=row + at
        )
    return frame.with_columns(times.alias(TIME))


MIN_KNOWN_VALUES = 3
"""Minimum number of values per record in known columns for a kind of log to be recognised."""


class LogKind(msgspec.Struct, frozen=True):
    """A kind of log that the package can read.

    Attributes:
        name: Its name on the command line: `cloudtrail`, `okta`.
        word: Word of the source that reads it.
        columns_file: Its schema; empty if the source needs none.
    """

    name: str
    word: str
    columns_file: str = ""

    @property
    def pipeline_values(self) -> dict[str, Any]:
        """Options of `pipeline-ae` for this kind of log."""
        schema = {"columns_file": self.columns_file} if self.columns_file else {}
        return schema | {"userid_column_name": ACTOR_OPTION}

    def make_source(self, globs: Sequence[str], **values: object) -> FileSource:
        """Return the source that reads some files."""
        make = cast("Callable[..., FileSource]", load_stage(self.word))
        return make(input_glob=tuple(globs), **values)

    @property
    def log_format(self) -> LogFormat:
        """The format of its records."""
        if self.columns_file:
            return load_schema(self.columns_file).log_format
        return known_log_formats()[self.word]

    def list_columns(self) -> frozenset[str]:
        """Return the columns that its records can have."""
        return frozenset(self.log_format.columns)


def list_kinds() -> list[LogKind]:
    """Return all kinds of logs: those of sources, then those of built-in schemas."""
    formats, kinds, seen = known_log_formats(), list[LogKind](), set[str]()
    for key, log in formats.items():
        if log.name in seen or log.name == "":
            continue
        seen.add(log.name)
        if key.endswith(".toml"):
            kinds.append(LogKind(key.removesuffix(".toml"), "from-file", key))
        else:
            kinds.append(LogKind(key.removeprefix("from-"), key))
    return kinds


def find_kind(word: str, columns_file: str = "") -> LogKind | None:
    """Return the kind of log that a source reads; None if the package does not describe it.

    Args:
        word: Word of the source.
        columns_file: Name of the feature list or schema.
    """
    if columns_file in list_builtin_schemas():
        return LogKind(columns_file.removesuffix(".toml"), "from-file", columns_file)
    kinds = (kind for kind in list_kinds() if kind.word == word and not kind.columns_file)
    return next(kinds, None)


def choose_kind(source: str) -> LogKind:
    """Return the kind of log that the option --source names, or the one that a schema describes.

    Raises:
        UsageError: There is no such kind, or the schema cannot be read.
    """
    if is_schema_file(source):
        described = load_schema(source, "--source").log_format
        return find_kind("from-file", source) or LogKind(described.name, "from-file", source)
    kinds = {kind.name: kind for kind in list_kinds()}
    if source not in kinds:
        raise UsageError(
            f"--source: there is no kind of log `{source}`.{suggest(source, kinds)} Give one of "
            f"{', '.join(kinds)}; or a schema of your own, such as `vpn.toml`."
        )
    return kinds[source]


class KindTrial(msgspec.Struct, frozen=True):
    """Result of reading some records as a kind of log.

    Attributes:
        kind: The kind.
        records: Number of records.
        known_values: Mean number of values per record in columns of this kind.
        features: Number of features of this kind that have a value in a record.
        error: Why the records cannot be read; empty if they can.
    """

    kind: LogKind
    records: int = 0
    known_values: float = 0.0
    features: int = 0
    error: str = ""

    @classmethod
    def from_source(cls, kind: LogKind, source: FileSource) -> Self:
        """Read the records of a source that `LogKind.make_source` made."""
        metrics, counts = RunMetrics(), Counter[str]()
        try:
            with silence_log():
                options = source.with_defaults(PipelineOptions(**kind.pipeline_values))
                source = replace(source, options=options)
                known = set(source.get_log_format().columns)
                for batch in source.events(None, metrics):
                    frame = batch.table.to_frame()
                    counts.update({n: frame[n].count() for n in frame.columns if n in known})
        except MorpheusError as error:
            return cls(kind, error=str(error))
        records, features = metrics.input.read, sum(counts[n] > 0 for n in options.columns)
        return cls(kind, records, counts.total() / max(records, 1), features)

    @classmethod
    def find_best(cls, trials: Sequence[Self]) -> Self:
        """Return the trial with the most known values: a recognised one, if there is one."""
        return max(trials, key=lambda trial: (trial.is_recognised, trial.known_values))

    @property
    def is_recognised(self) -> bool:
        """Whether the records have enough values in columns of this kind, and in a feature.

        A time, a user and an action are in many tables.
        """
        return self.known_values >= MIN_KNOWN_VALUES and self.features > 0


@contextmanager
def silence_log() -> Iterator[None]:
    """Log nothing below errors: most trials read a file as what it is not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
