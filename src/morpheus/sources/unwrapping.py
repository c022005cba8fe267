"""From what holds records to the records themselves: lists under a name, and envelopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from morpheus.sources.documents import RawJson


@dataclass(frozen=True)
class EnvelopeUnwrapper:
    """Where the records are in a JSON object that is not itself a record.

    Attributes:
        list_fields: Names under which an object has records: a list of them, or an object that holds such
            a list in turn.
        record_field: Name under which an envelope has its one record, as an object or as text; empty for
            no envelopes.
        envelope_fields: What stands in the envelope beside it and belongs to the record: its name there, and
            in the record. What the record says of itself counts for more.
    """

    list_fields: tuple[str, ...] = ()
    record_field: str = ""
    envelope_fields: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, fields: Mapping[str, msgspec.Raw]) -> Sequence[RawJson] | None:
        """The records in an object; None if it is one.

        >>> unwrap = EnvelopeUnwrapper(("value",), "properties", {"time": "at"})
        >>> unwrap({"time": msgspec.Raw(b'"2024-05-31"'), "properties": msgspec.Raw(b'{"id": 1}')})
        [b'{"at":"2024-05-31","id": 1}']
        >>> [bytes(record) for record in unwrap({"value": msgspec.Raw(b'[{"id": 1}]')})]
        [b'{"id": 1}']
        """
        if self.record_field in fields:
            return [self._open_envelope(fields)]
        for name in self.list_fields:
            if name in fields:
                return _list_or_single(fields[name])
        return None

    def _open_envelope(self, fields: Mapping[str, msgspec.Raw]) -> RawJson:
        inner = fields[self.record_field]
        text = bytes(memoryview(inner)).lstrip()
        if text[:1] == b'"':
            text = msgspec.json.decode(inner, type=str).encode().lstrip()
        if text[:1] != b"{":
            return text
        around = b",".join(
            b"%s:%s" % (msgspec.json.encode(name), memoryview(fields[outer]))
            for outer, name in self.envelope_fields.items()
            if outer in fields
        )
        rest = text[1:].lstrip()
        # Of a name given twice JSON readers take the last: what a record says of itself.
        return b"{" + around + (b"," if around and rest[:1] != b"}" else b"") + rest


def _list_or_single(value: msgspec.Raw) -> Sequence[RawJson] | None:
    begin = bytes(memoryview(value)[:64]).lstrip()[:1]
    if begin == b"[":
        return msgspec.json.decode(value, type=list[msgspec.Raw])
    return [value] if begin == b"{" else None
