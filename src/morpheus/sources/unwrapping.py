"""From what holds records to the records themselves: lists under a name, and envelopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from morpheus.sources.documents import Undecoded


@dataclass(frozen=True)
class Unwrapping:
    """Where the records are in a JSON object that is not itself a record.

    Attributes:
        lists: Names under which an object has records: a list of them, or an object that holds such
            a list in turn.
        inner: Name under which an envelope has its one record, as an object or as text; empty for
            no envelopes.
        around: What stands in the envelope beside it and belongs to the record: its name there, and
            in the record. What the record says of itself counts for more.
    """

    lists: tuple[str, ...] = ()
    inner: str = ""
    around: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, fields: Mapping[str, msgspec.Raw]) -> Sequence[Undecoded] | None:
        """The records in an object; None if it is one.

        >>> unwrap = Unwrapping(("value",), "properties", {"time": "at"})
        >>> unwrap({"time": msgspec.Raw(b'"2024-05-31"'), "properties": msgspec.Raw(b'{"id": 1}')})
        [b'{"at":"2024-05-31","id": 1}']
        >>> [bytes(record) for record in unwrap({"value": msgspec.Raw(b'[{"id": 1}]')})]
        [b'{"id": 1}']
        """
        if self.inner in fields:
            return [self._opened(fields)]
        for name in self.lists:
            if name in fields:
                return _items(fields[name])
        return None

    def _opened(self, fields: Mapping[str, msgspec.Raw]) -> Undecoded:
        inner = fields[self.inner]
        text = bytes(memoryview(inner)).lstrip()
        if text[:1] == b'"':
            text = msgspec.json.decode(inner, type=str).encode().lstrip()
        if text[:1] != b"{":
            return text
        around = b",".join(
            b"%s:%s" % (msgspec.json.encode(name), memoryview(fields[outer]))
            for outer, name in self.around.items()
            if outer in fields
        )
        rest = text[1:].lstrip()
        # Of a name given twice JSON readers take the last: what a record says of itself.
        return b"{" + around + (b"," if around and rest[:1] != b"}" else b"") + rest


def _items(value: msgspec.Raw) -> Sequence[Undecoded] | None:
    begin = bytes(memoryview(value)[:64]).lstrip()[:1]
    if begin == b"[":
        return msgspec.json.decode(value, type=list[msgspec.Raw])
    return [value] if begin == b"{" else None
