"""`serialize`: choose the columns that are written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice

import msgspec
import polars as pl

from morpheus.columns import ROW, ROW_ID, TIME
from morpheus.core.batch import Batch, OutputRows, Table
from morpheus.core.stage import StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.text import ColumnPattern, suggest

logger = logging.getLogger(__name__)

_ID_BYTES = 12
_DEFAULT_EXCLUDE = ("^ID$", "^_ts_")


class SerializeState(State):
    """What `serialize` remembers about one user.

    Attributes:
        columns: Columns of the first batch; None before it.
        dropped: Later columns, for which a warning was logged.
    """

    max_bytes = 1 << 20

    columns: list[str] | None = None
    dropped: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True)
class Serialize(Transform):
    r"""Choose the columns that are written.

    Takes events at any point of the pipeline and keeps the chosen columns, in their order. On an
    endless input with --state, `row_id` is added: a row that is written again has the same id. A
    pattern is a regular expression that is matched at the start of a column name. The unnamed first
    column always stays; `to-file --include-index-col=false` leaves it out.

    Example: `serialize --include="event" --include="ae_" --exclude="eventID$"`
    """

    name = "serialize"
    takes = (Batch,)
    gives = OutputRows

    include: tuple[str, ...] = option(
        (), "Pattern of columns to keep; repeat for more. Default: all columns."
    )
    exclude: tuple[str, ...] = option(
        _DEFAULT_EXCLUDE, "Pattern of columns to remove from those kept; repeat for more."
    )
    fixed_columns: bool = option(
        True,
        "Keep the columns of a user's first events: columns missing later are written empty, new "
        "ones are dropped with a warning.",
    )

    def validate(self) -> None:
        """Reject patterns that are not regular expressions."""
        for name, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _compile_pattern(pattern, option=name)

    def open(self, context: StageContext) -> SerializeState:  # noqa: ARG002 - starts empty
        """Start without columns."""
        return SerializeState()

    def process(self, batch: Batch, state: SerializeState) -> Iterator[OutputRows]:
        """Keep the chosen columns, and release the fingerprint."""
        columns = list(_choose_columns(self.include, self.exclude, tuple(batch.table.names)))
        if self.fixed_columns and state.columns is not None:
            _warn_dropped_columns(columns, state)
            columns = state.columns
        state.columns = columns
        table = _select_columns(batch.table, columns)
        if self._adds_ids(batch.table):
            table = table.with_columns([_make_row_ids([batch], batch.table)])
        yield batch.evolve(OutputRows, table=table, fingerprint=None)

    def process_users(
        self, batches: Sequence[Batch], states: Sequence[SerializeState]
    ) -> Iterator[list[OutputRows]]:
        """Keep the chosen columns of batches of several users."""
        tables = [batch.table for batch in batches]
        chosen = list(_choose_columns(self.include, self.exclude, tuple(tables[0].names)))
        kept = [state.columns for state in states] if self.fixed_columns else []
        if any(each not in (None, chosen) for each in kept) or not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        joined = Table.concat(tables)
        whole = _select_columns(joined, chosen)
        if self._adds_ids(joined):
            whole = whole.with_columns([_make_row_ids(batches, joined)])
        parts = whole.split(table.height for table in tables)
        for batch, state, table in zip(batches, states, parts, strict=True):
            state.columns = chosen
            yield [batch.evolve(OutputRows, table=table, fingerprint=None)]

    def _adds_ids(self, table: Table) -> bool:
        return self.options.durable and {ROW, TIME} <= set(table.names)


def _make_row_ids(batches: Sequence[Batch], table: Table) -> pl.Series:
    """Return an id of each row: a digest of user, row number and time.

    A row that is written again after a crash has the same id.

    Args:
        batches: Batches of different users.
        table: The rows of all batches.
    """
    rows, ids = zip(table[ROW].to_list(), table.times_us.tolist(), strict=True), list[str]()
    for batch in batches:
        start = blake2b((batch.user or "").encode(), digest_size=_ID_BYTES)
        start.update(b"" if batch.user is None else b"=")
        for number, time in islice(rows, batch.table.height):
            digest = start.copy()
            digest.update(b"%d %d" % (number, time))
            ids.append(digest.hexdigest())
    return pl.Series(ROW_ID, ids, pl.String)


@lru_cache(maxsize=16)
def _choose_columns(
    include: tuple[str, ...], exclude: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the columns that a pattern of --include matches and no pattern of --exclude."""
    wanted = [_compile_pattern(pattern, option="--include") for pattern in include or ("",)]
    unwanted = [_compile_pattern(pattern, option="--exclude") for pattern in exclude]
    kept = set[str]()
    for pattern in wanted:
        kept |= _match_columns(pattern, columns, "--include")
    removed = set[str]()
    for pattern in unwanted:
        removed |= _match_columns(pattern, columns, "--exclude")
    if not kept - removed - {ROW}:
        logger.warning("serialize: --include and --exclude leave no column, so rows are empty.")
    return tuple(name for name in columns if name == ROW or name in kept - removed)


def _match_columns(pattern: ColumnPattern, columns: Sequence[str], option: str) -> set[str]:
    """Return the columns that a pattern matches; warn if there are none, but similar names.

    Nobody has typed the default patterns, so they give no warning.
    """
    found = pattern.match_all(columns)
    is_expected = bool(found) or pattern.pattern in _DEFAULT_EXCLUDE
    hint = "" if is_expected else suggest(pattern.pattern, columns)
    if hint:
        logger.warning("serialize: %s %r matches no column.%s", option, pattern.pattern, hint)
    return found


def _compile_pattern(pattern: str, *, option: str) -> ColumnPattern:
    try:
        return ColumnPattern(pattern)
    except ValueError as error:
        raise UsageError(f"serialize: {option} {pattern!r} {error}.") from error


def _select_columns(table: Table, columns: list[str]) -> Table:
    """Select columns in order; a column that the table lacks is empty."""
    if columns == table.names:
        return table
    existing = set(table.names)
    empty = [
        pl.repeat(None, table.height, dtype=pl.String, eager=True).alias(name)
        for name in columns
        if name not in existing
    ]
    return table.with_columns(empty).select(columns)


def _warn_dropped_columns(columns: list[str], state: SerializeState) -> None:
    """Warn about each dropped column once."""
    new = sorted(set(columns) - set(state.columns or ()) - set(state.dropped))
    if new:
        state.dropped = [*state.dropped, *new]
        logger.warning(
            "serialize: column %s came after the first events and is dropped. "
            "Use `serialize --fixed_columns=false` to keep it.",
            ", ".join(repr(name) for name in new),
        )
