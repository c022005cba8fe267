"""Files of one kind of log, read into tables with a time, every record accounted for."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import msgspec
import polars as pl

from morpheus.columns import ACTOR, INDEX, TIME
from morpheus.errors import BadRecord, UsageError
from morpheus.records import Reading
from morpheus.sources import times
from morpheus.sources.documents import Broken, Records, Undecoded, split, split_blocks
from morpheus.sources.fetching import Fetching
from morpheus.sources.files import BLOCK, PACKED, Log, is_large, read_blocks, utf8
from morpheus.sources.flatten import Flattener
from morpheus.sources.log_files import LogFiles
from morpheus.sources.log_format import LogFormat
from morpheus.sources.partitions import with_partitions
from morpheus.sources.tables import Table, csv_blocks, parquet_blocks, read_csv, read_parquet

log = logging.getLogger(__name__)

_ENOUGH_BYTES = 1 << 24
_ENOUGH_RECORDS = 1 << 15


@dataclass(frozen=True)
class Part:
    """Records of one file: undecoded, or as a table."""

    path: Log
    places: Sequence[int]
    index: Sequence[int] | pl.Series
    records: Sequence[Undecoded] = ()
    size: int = 0
    broken: Broken = ()

    def slice(self, start: int, stop: int) -> Part:
        """Some of its records."""
        records = self.records[start:stop]
        return Part(self.path, self.places[start:stop], self.index[start:stop], records)


@dataclass
class Reader:
    """Reads files of one kind of log.

    Args:
        format: Of which kind.
        flattener: Flattens its JSON records.
        user: The column that every table must have.
        wanted: The columns that pass from JSON; None for all.
        skip: Leave bad records out, and count them; else the first ends the run.
        reading: Counted into.
        whole: Give each file a frame of its own; else small files share one.
    """

    format: LogFormat
    flattener: Flattener
    user: str
    skip: bool
    reading: Reading
    whole: bool = False
    wanted: tuple[str, ...] | None = None

    def frames(self, paths: Sequence[Log], files: LogFiles) -> Iterator[pl.DataFrame]:
        """Read files, in their order, into frames of `INDEX`, text columns and `TIME`.

        Raises:
            UsageError: A table lacks the user's column, or a file must not be read.
            BadRecord: A record cannot be read, and bad ones are not left out.
        """
        with Fetching(paths) as fetching:
            yield from self._frames(paths, files, fetching)

    def _frames(
        self, paths: Sequence[Log], files: LogFiles, fetching: Fetching
    ) -> Iterator[pl.DataFrame]:
        held: list[Part] = []
        for path in paths:
            self.reading.files += 1
            for part, table in self._pieces(path, files.kind(path), fetching):
                if table is not None or part.broken:
                    # What comes first is refused first.
                    yield from self._flattened(held)
                    held = []
                    self._refuse_all(part)
                if table is not None:
                    yield self._timed(table, [part])
                    continue
                held.append(part)
                if self.whole or _enough(held):
                    yield from self._flattened(held)
                    held = []
        yield from self._flattened(held)

    def _pieces(
        self, path: Log, kind: str, fetching: Fetching
    ) -> Iterator[tuple[Part, pl.DataFrame | None]]:
        """The records of a file, in one piece or block by block; it may turn out to be broken."""
        try:
            if not self.whole and (_in_order(path, kind) or is_large(path)):
                yield from self._blocks(path, kind, fetching)
            else:
                yield self._open(path, kind, fetching)
        except BadRecord as error:
            yield Part(path, (), (), broken=[(error.line, error.reason)]), None

    def _open(self, path: Log, kind: str, fetching: Fetching) -> tuple[Part, pl.DataFrame | None]:
        data = fetching.read(path)
        if kind == "json":
            return _part(path, split(utf8(data), self.format.unwrap), 0, len(data)), None
        dropped = self.format.dropped
        if kind == "csv":
            return self._tabled(path, read_csv(data, path, dropped), kind)
        return self._tabled(path, read_parquet(data, path, dropped, self._nested), kind)

    def _blocks(
        self, path: Log, kind: str, fetching: Fetching
    ) -> Iterator[tuple[Part, pl.DataFrame | None]]:
        if kind == "json":
            before = 0
            for records in split_blocks(read_blocks(path), self.format.unwrap):
                yield _part(path, records, before, BLOCK), None
                before += len(records.texts)
        elif kind == "csv":
            for table in csv_blocks(read_blocks(path), path, self.format.dropped):
                yield self._tabled(path, table, kind)
        elif path.suffix.lower() in PACKED:
            yield self._open(path, kind, fetching)
        else:
            dropped = self.format.dropped
            for table in parquet_blocks(path, _ENOUGH_RECORDS, dropped, self._nested):
                yield self._tabled(path, table, kind)

    @property
    def _nested(self) -> tuple[str, ...] | None:
        """The columns wanted of nested tables, which are those wanted of JSON."""
        return None if self.wanted is None else self.flattener.wanted

    def _tabled(self, path: Log, table: Table, kind: str) -> tuple[Part, pl.DataFrame | None]:
        rows = range(table.frame.height)
        numbers = rows if table.index is None else table.index
        text = next((n for n in self.format.embedded if n in table.frame.columns), None)
        if text is not None:
            texts = [cell.encode() for cell in table.frame[text].fill_null("").to_list()]
            return Part(
                path, table.places, numbers, texts, sum(map(len, texts)), table.broken
            ), None
        files = [(path, table.frame.height)]
        whole = with_partitions(table.frame, files, self.format.dropped, add=True)
        frame = self._mended(self.format.spelt(whole), kind)
        frame = self.format.completed(frame, self.user, keep=self.wanted or ())
        self._check_header(path, replace(table, frame=frame))
        return Part(path, table.places, numbers, broken=table.broken), frame

    def _check_header(self, path: Log, table: Table) -> None:
        for name, names in table.doubles.items():
            both = " and ".join(f"`{double}`" for double in names)
            log.warning("%s: %s are one column `%s`; the first value is kept.", path, both, name)
        names = table.frame.columns
        if self.format.time not in names and not self.skip:
            reason = f"the file has no column `{self.format.time}`; it has {', '.join(names)}"
            raise BadRecord(reason, file=path)
        if self.user not in names:
            raise no_user(self.user, names, f"{path} has")

    def _mended(self, frame: pl.DataFrame, kind: str) -> pl.DataFrame:
        if kind != "csv":
            return frame
        cells = self.format.cells.items()
        return frame.with_columns(
            mend(pl.col(n)).alias(n) for n, mend in cells if n in frame.columns
        )

    def _flattened(self, parts: list[Part]) -> Iterator[pl.DataFrame]:
        for chunk in [parts] if self.whole and parts else _chunks(parts):
            records = [record for part in chunk for record in part.records]
            frame, refused = self.flattener.table(records)
            files = [(part.path, len(part.records)) for part in chunk]
            frame = with_partitions(frame, files, self.format.dropped, add=self.wanted is None)
            frame = self.format.completed(frame, self.user, keep=self.flattener.wanted)
            names = [*(self.wanted or ()), *([ACTOR] if self.user == ACTOR else [])]
            if self.wanted is not None and frame.columns != names:
                frame = frame.select(names)
            yield self._timed(frame, chunk, refused, records)

    def _timed(
        self,
        frame: pl.DataFrame,
        parts: list[Part],
        refused: Mapping[int, str] | None = None,
        records: Sequence[Undecoded] = (),
    ) -> pl.DataFrame:
        """Add `INDEX` and `TIME`, and refuse the rows that have none."""
        self.reading.read += frame.height
        index = pl.concat([pl.Series(INDEX, part.index, dtype=pl.Int64) for part in parts])
        texts = frame.get_column(self.format.time, default=None)
        if texts is None:
            texts = pl.Series(self.format.time, [None] * frame.height, dtype=pl.String)
        time = times.parse(texts, self.format.time_format)
        bad = dict.fromkeys(time.is_null().arg_true(), "") | dict(refused or {})
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part.places))
        for row, why in sorted(bad.items()):
            at = bisect_right(starts, row) - 1
            reason = why or self._untimed(texts[row], records[row : row + 1])
            place = parts[at].places[row - starts[at]]
            self._refuse(BadRecord(reason, file=parts[at].path, line=place))
        ours = [name for name in frame.columns if name in {INDEX, TIME}]
        timed = frame.drop(ours).with_columns(index, time.alias(TIME))
        return timed.filter(time.is_not_null()) if bad else timed

    def _untimed(self, found: str | None, record: Sequence[Undecoded]) -> str:
        name, usual = self.format.time, self.format.time_format or "2024-05-31T09:30:00Z"
        if found is not None:
            return f"`{name}` is {found!r}, which is not a time like {usual}"
        has = f"; it has {', '.join(_names(record[0]))}" if record else ""
        return f"the record has no `{name}`{has}"

    def _refuse_all(self, part: Part) -> None:
        for place, reason in part.broken:
            self._refuse(BadRecord(reason, file=part.path, line=place), read=1)

    def _refuse(self, error: BadRecord, read: int = 0) -> None:
        if not self.skip:
            hint = "to leave such records out, counted, give `--bad_record skip`"
            raise BadRecord(f"{error.reason}; {hint}", file=error.file, line=error.line) from error
        self.reading.read += read
        self.reading.refuse(str(error))


def _in_order(path: Log, kind: str) -> bool:
    """Whether a file can be read from the disk in parts, whatever its size."""
    return kind == "parquet" and isinstance(path, Path)


def _part(path: Log, records: Records, before: int, size: int) -> Part:
    index = range(before, before + len(records.texts))
    return Part(path, records.places, index, records.texts, size, records.broken)


def _enough(parts: Sequence[Part]) -> bool:
    records = sum(len(part.records) for part in parts)
    return records >= _ENOUGH_RECORDS or sum(part.size for part in parts) >= _ENOUGH_BYTES


def _chunks(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Cut and join parts, so that a frame is neither small nor large."""
    chunk: list[Part] = []
    room = _ENOUGH_RECORDS
    for part in parts:
        start = 0
        while start < len(part.records):
            piece = part.slice(start, start + room)
            chunk.append(piece)
            start, room = start + len(piece.records), room - len(piece.records)
            if not room:
                yield chunk
                chunk, room = [], _ENOUGH_RECORDS
    if chunk:
        yield chunk


def _names(record: Undecoded) -> list[str]:
    try:
        return list(msgspec.json.decode(record, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ["what cannot be decoded"]


def no_user(user: str, names: Iterable[str], where: str) -> UsageError:
    """Say that nothing has the user's column, and which one may be meant."""
    close = get_close_matches(user.replace(".", ""), names, n=3, cutoff=0.5)
    meant = f"Is it {' or '.join(f'`{name}`' for name in close)}? " if close else ""
    type_it = (
        f"Give the column that names the user, as `--userid_column_name={(close or ['NAME'])[0]}`."
    )
    return UsageError(
        f"{where} no column `{user}`, which is to say whose event it is. {meant}{type_it}"
    )
