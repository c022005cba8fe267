"""The oracle: what was promised, what has arrived, and which laws were broken. It is never killed.

An event becomes an obligation when its source has taken it for good. At the end, each obligation
must have arrived at each sink, with the content that follows from its id.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from soak.events import Events, parse_id
from soak.receiver import Receipt

Row = Mapping[str, object]
SHOWN = 5
"""Number of examples that are shown of a broken law."""
TIMES = "timestamp", "eventTime"
COPIED = {
    "eventName": ("eventName",),
    "eventSource": ("eventSource",),
    "sourceIPAddress": ("sourceIPAddress",),
    "userAgent": ("userAgent",),
    "userIdentitysessionContextsessionIssueruserName": (
        *("userIdentity", "sessionContext", "sessionIssuer", "userName"),
    ),
}
"""Columns of a row, and where their value is in the record."""


@dataclass
class Law:
    """A law, and what breaks it.

    Attributes:
        name: The law.
        checked: Number of things that were checked.
        broken: Descriptions of those that break it.
    """

    name: str
    checked: int = 0
    broken: list[str] = field(default_factory=list)

    def check(self, *, holds: bool, what: object) -> None:
        """Count one check."""
        self.checked += 1
        if not holds:
            self.broken.append(str(what))


@dataclass
class Oracle:
    """What was claimed and what is owed.

    Attributes:
        events: The events.
        claimed: Number after the latest event that was claimed.
        first: Number of the first event.
        owed: Events that the source has for good.
    """

    events: Events
    first: int
    claimed: int
    owed: set[int] = field(default_factory=set)

    def claim(self, count: int) -> list[int]:
        """Return the ids of the next events."""
        numbers = list(range(self.claimed, self.claimed + count))
        self.claimed += count
        return numbers

    def owe(self, numbers: Iterable[int]) -> None:
        """Note that the source has some events for good."""
        self.owed.update(numbers)

    def judge_rows(self, sink: str, rows: Iterable[Row], *, repeats: bool) -> list[Law]:
        """Check the rows of a sink.

        Args:
            sink: Name of the sink.
            rows: The rows, in the order in which they came.
            repeats: Whether a row may come again, the same.
        """
        arrived = Law(f"{sink}: each event has arrived")
        issued = Law(f"{sink}: only ids that were issued")
        payload = Law(f"{sink}: the content follows from the id")
        again = Law(f"{sink}: repeats are identical" if repeats else f"{sink}: no row twice")
        seen: dict[int, Row] = {}
        for row in rows:
            number = parse_id(row.get("eventID"))
            known = number is not None and self.first <= number < self.claimed
            issued.check(holds=known, what=row.get("eventID"))
            if number is None or not known:
                continue
            payload.check(holds=self._is_own(number, row), what=row)
            if number in seen:
                again.check(holds=repeats and seen[number] == row, what=(seen[number], row))
            seen[number] = row
        for number in sorted(self.owed):
            arrived.check(holds=number in seen, what=self.events.event_id(number))
        return [arrived, issued, payload, again]

    def _is_own(self, number: int, row: Row) -> bool:
        record = self.events.record(number)
        for column, place in COPIED.items():
            value: object = record
            for name in place:
                value = value[name] if isinstance(value, dict) else None
            if column in row and row[column] != value:
                return False
        times = [str(row[name]) for name in TIMES if name in row]
        return all(
            datetime.fromisoformat(time) == datetime.fromisoformat(str(record["eventTime"]))
            for time in times
        )


def judge_repeats(receipts: Iterable[Receipt]) -> Law:
    """Check that an event comes again only if the product was killed, or some event was refused.

    Rows that are delivered together are repeated together.
    """
    law = Law("http: repeats only after a restart or a refusal")
    latest: dict[str, tuple[Receipt, int]] = {}
    refusals = 0
    for receipt in receipts:
        name = str(receipt.row.get("eventID"))
        refusals += not receipt.accepted
        before, refusals_before = latest.get(name, (None, 0))
        if before is not None:
            refused = not before.accepted or refusals > refusals_before
            allowed = before.life != receipt.life or refused
            law.check(holds=allowed, what=f"{name} twice in life {receipt.life}")
        latest[name] = receipt, refusals
    return law


def judge_equal(name: str, found: Mapping[object, object], right: Mapping[object, object]) -> Law:
    """Check that two mappings are equal."""
    law = Law(name)
    for key in sorted(found.keys() | right.keys(), key=str):
        same = key in found and key in right and found[key] == right[key]
        law.check(holds=same, what=_describe_difference(key, found.get(key), right.get(key)))
    return law


def _describe_difference(key: object, found: object, right: object) -> str:
    if isinstance(found, dict) and isinstance(right, dict):
        names = [name for name in found | right if found.get(name) != right.get(name)]
        found, right = ({name: row.get(name) for name in names} for row in (found, right))
    if isinstance(found, bytes) and isinstance(right, bytes):
        return f"{key}: {len(found)} bytes, undisturbed {len(right)} bytes"
    return f"{key}: {found!r}, undisturbed {right!r}"


@dataclass
class Tail:
    """The events in a file that grows, read once. If the file is cut, it is read again.

    Attributes:
        path: A JSON lines file.
        seen: The events in it.
    """

    path: Path
    seen: set[int | None] = field(default_factory=set)
    _offset: int = 0
    _last: bytes = b""

    def update(self) -> set[int | None]:
        """Read what is new, and return all events."""
        if not self.path.exists():
            return self.seen
        with self.path.open("rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self.seen, self._offset, self._last = set(), 0, b""
                file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._last = line
                row = msgspec.json.decode(line, type=dict[str, object])
                self.seen.add(parse_id(row.get("eventID")))
        return self.seen


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the complete rows of a JSON lines file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=dict[str, object])


def rows_by_id(rows: Iterable[Row]) -> dict[object, object]:
    """Return rows by the number of their event."""
    return {parse_id(row.get("eventID")): dict(row) for row in rows}


def read_state(path: Path) -> dict[object, object]:
    """Return the encoded state of each stage and user in a state file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return {
            (stage, user): bytes(data)
            for stage, user, data in database.execute(
                "SELECT stage, user, data FROM states UNION ALL SELECT stage, user, data FROM parts"
            )
        }


def count_repeats(receipts: Iterable[Receipt]) -> int:
    """Return how many events came again."""
    counts: defaultdict[object, int] = defaultdict(int)
    for receipt in receipts:
        counts[receipt.row.get("eventID")] += 1
    return sum(count - 1 for count in counts.values())
