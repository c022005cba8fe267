"""Finds the records in a file, whatever is wrapped around them.

Cloud services, log shippers and people wrap records in envelopes: lists, fields of other records,
text that holds JSON, base64. `ENVELOPES` lists them as data, and `RecordFinder` applies the list to
each record. A record of the log is never opened: its format knows the fields of a record. What is
not a record of the log is recognised by `OTHER_KINDS`.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from morpheus.sources.compression import (
    DEFAULT_LIMITS,
    GZIP_MAGIC,
    LogPath,
    ReadLimits,
    is_utf16,
    strip_padding,
    to_utf8,
)
from morpheus.sources.cut_records import RawJson
from morpheus.sources.json_records import (
    TABLE_MISSING_TEXTS,
    ParseErrors,
    decode_leniently,
    encode_json,
    normalize_name,
    replace_surrogates,
)
from morpheus.text import decode_text

ValueT = TypeVar("ValueT")
Fields = Mapping[str, msgspec.Raw]
"""The fields of an object, undecoded."""

_MAX_DEPTH = 16
"""Maximum number of envelopes around a record."""
_MAX_SEARCHED = 1_000
"""Maximum number of fields of an object that is searched for records."""
_MAX_PREFIX = 512
"""Maximum length of what a shipper writes in front of a record, in bytes."""
_MAX_UNPACKED = 1 << 26
"""Maximum size of compressed data inside an envelope, unpacked, in bytes."""
MIN_FIELDS, _MIN_SIMILAR_FIELDS = 2, 3
"""Number of known fields, besides the time, that make an object a record: with exactly the names of
the format, and with similar names (`EventName`, `event_name`)."""


class Envelope(msgspec.Struct, frozen=True):
    """Where one kind of envelope has its content.

    Attributes:
        path: Name of the field with the content; dots lead into objects. A shipper may also write
            the whole path as one name.
        marks: Other fields that this kind of envelope has.
        is_delivery: Whether an object with nothing but a list in this field is always an envelope,
            even if the list is empty or none of its items is a record.
        holds_record: Whether the content is opened even if the envelope looks like a record.
        is_declared: Whether a log format or a schema names this envelope. Its content is always
            opened.
        is_base64: Whether the content may be base64, also of gzip.
        inherited: Fields of the envelope that belong to the record, with their name in the record.
            A field of the record itself takes precedence.
    """

    path: str
    marks: tuple[str, ...] = ()
    is_delivery: bool = False
    holds_record: bool = False
    is_declared: bool = False
    is_base64: bool = False
    inherited: Mapping[str, str] = msgspec.field(default_factory=dict)

    def get_content(self, fields: Fields) -> msgspec.Raw | None:
        """Return the content of an object; None if it is not this kind of envelope."""
        if self.marks and not all(mark in fields for mark in self.marks):
            return None
        if self.path in fields:
            return fields[self.path]
        first, *rest = self.path.split(".")
        content = fields.get(first) if rest else None
        for name in rest:
            inner = None if content is None else _decode_object(content)
            content = None if inner is None else inner.get(name)
        return content


def _list_names(*names: str) -> tuple[Envelope, ...]:
    return tuple(Envelope(name, is_delivery=True) for name in names)


def _list_fields(*names: str) -> tuple[Envelope, ...]:
    return tuple(Envelope(name) for name in names)


ENVELOPES = (
    # EventBridge, CloudWatch subscriptions, CloudEvents; Splunk, Elastic and their shippers.
    Envelope("detail", ("detail-type",), holds_record=True),
    Envelope("logEvents", ("messageType",), is_delivery=True, holds_record=True),
    Envelope("data", ("specversion",), holds_record=True, is_base64=True),
    Envelope("data_base64", ("specversion",), holds_record=True, is_base64=True),
    Envelope("event.original", holds_record=True),
    Envelope("_source", ("_index",), is_declared=True),
    Envelope("_raw", holds_record=True),
    Envelope("result._raw", holds_record=True),
    # Files and answers that list records.
    *_list_names(
        "Records", "records", "Events", "events", "logEvents", "value", "entries", "items"
    ),
    *_list_names("QueryResultRows", "results", "result", "rows", "hits.hits", "hits"),
    *_list_names("Messages", "messages", "receivedMessages", "data"),
    # Queues and streams: SNS, SQS, Lambda, Kinesis, Firehose, Pub/Sub, Event Hubs, Kafka.
    *_list_fields("Sns", "Message"),
    Envelope("Body", is_base64=True),
    Envelope("body", is_base64=True),
    Envelope("message.data", is_base64=True),
    Envelope("kinesis.data", is_base64=True),
    Envelope("awslogs.data", is_base64=True),
    Envelope("data", is_base64=True),
    Envelope("payload", is_base64=True),
    Envelope("Data", is_base64=True),
    # Shippers: Filebeat, Logstash, Fluent Bit, Vector, Docker, journald, Elasticsearch.
    *_list_fields("message", "log", "@message", "MESSAGE", "msg", "event", "json", "_source"),
    *_list_fields("detail", "result", "record", "raw", "line", "textPayload", "jsonPayload"),
    # Results of Athena, Log Analytics and Kusto.
    *_list_fields("ResultSet", "tables", "Tables"),
)
"""Known envelopes, in order of preference. Any other field is searched for records after these."""


class OtherKind(msgspec.Struct, frozen=True, dict=True):
    """What is among the records of a log and is none itself.

    Attributes:
        name: What it is, in the singular, for the summary.
        fields: Fields that it has.
        values: Texts that fields have.
        is_alone: Whether it has no other fields.
        absent: Fields that it does not have.
    """

    name: str
    fields: tuple[str, ...] = ()
    values: Mapping[str, str] = msgspec.field(default_factory=dict)
    absent: tuple[str, ...] = ()
    is_alone: bool = False

    def matches(self, fields: Fields) -> bool:
        """Return whether an object is of this kind."""
        # Every record that cannot be read is compared with every kind.
        return (
            fields.keys() >= self._names
            and not any(name in fields for name in self.absent)
            and (not self.is_alone or len(fields) == len(self.fields))
            and all(_decode_text(fields[name]) == text for name, text in self.values.items())
        )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset((*self.fields, *self.values))


OTHER_KINDS = (
    OtherKind("CloudTrail digest", ("digestStartTime", "digestEndTime")),
    OtherKind("CloudTrail delivery notice", ("s3Bucket", "s3ObjectKey")),
    OtherKind("CloudWatch control message", values={"messageType": "CONTROL_MESSAGE"}),
    OtherKind("AWS Config file", ("configurationItems", "fileVersion")),
    OtherKind("AWS Config file", ("configSnapshotId", "fileVersion")),
    OtherKind("AWS Config message", ("configurationItem",)),
    OtherKind("AWS Config message", ("configurationItemSummary",)),
    OtherKind("AWS Config test file", ("configWritabilityCheck",)),
    OtherKind("GuardDuty finding", ("schemaVersion", "service", "severity", "type")),
    OtherKind("Security Hub finding", ("SchemaVersion", "ProductArn", "GeneratorId")),
    OtherKind("S3 test event", values={"Event": "s3:TestEvent"}),
    OtherKind("S3 notification", ("s3", "eventSource", "eventName")),
    OtherKind("SNS subscription message", ("TopicArn", "SubscribeURL")),
    OtherKind("bulk action line", ("index",), is_alone=True),
    OtherKind("bulk action line", ("create",), is_alone=True),
    OtherKind("Splunk status line", ("preview",), absent=("result", "results")),
    OtherKind("Kubernetes object event", ("involvedObject", "reason")),
)
"""What cloud services and tools write beside records. `RecordFinder` never calls a record so."""

_TYPED_ENVELOPES = tuple(
    each for each in ENVELOPES if {"detail-type", "specversion"} & {*each.marks}
)
_TEXT_FIELDS = ("message", "log", "@message", "MESSAGE", "Message", "_raw", "textPayload")
_OTHER_TYPE = "event of another type"
"""What an envelope holds that states a type, and has no record of the log in it."""
_TEXT_LINE = "text line"
"""What an envelope holds whose content is not JSON, such as the messages of other programs."""

_BOM = codecs.BOM_UTF8
_SEPARATORS = b" \t\r\n,\x1e\0" + _BOM
"""What may stand between documents. The bytes of the byte order mark begin no JSON."""
_SEPARATOR_CHARACTERS = re.compile(r"[ \t\r\n,\x1e\0\ufeff]*")
_LIST_BEGIN = re.compile(rb"[ \t\r\n,\x1e\0\xef\xbb\xbf]*\[[ \t\r\n]*(?:[\[{]|$)")
"""The beginning of a list of records, not of a line with a time in brackets."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{8,}={0,2}\s*")
_DOCUMENT_BOUNDARY = re.compile(rb"(?<=\})[ \t\r\n\x1e\xef\xbb\xbf]*(?=\{)")
_NEXT_DOCUMENT = re.compile(r"\n[\x1e\ufeff]?(?=\{)")
_TIME_TEXT = re.compile(rb'"\d{10,19}"')
_BRACES = re.compile(rb"[{}]")
_TRAILING_COMMA = re.compile(rb",(?=\s*[\]}])")
_CONTAINER_LINE = re.compile(rb"\S+ (?:stdout|stderr) ([FP])(?::\S*)? ")
"""What container runtimes write in front of a line: time, stream, and whether the line is full."""
_LIST_DECODER = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
_OBJECT_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_MAX_BROKEN = 100
"""Maximum number of damaged parts of a file after which the rest is not read."""
_FEW_FIELDS = 5
"""Number of fields by which most records are known."""
_MAX_PROBE_LINES = 20
"""Maximum number of lines checked to detect JSON lines."""
_TRUNCATED = "Input data was truncated"
"""Error of msgspec for text that is the beginning of JSON, and that no other decoder can read."""
_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


class _Found(msgspec.Struct):
    """Records that were found.

    Attributes:
        records: The JSON of each record.
        has_record: Whether one of them looks like a record of the log.
        has_kind: Whether one of them is of a known other kind.
    """

    records: list[RawJson] = msgspec.field(default_factory=list)
    has_record: bool = False
    has_kind: bool = False

    @property
    def is_known(self) -> bool:
        """Whether there is anything in it that is known."""
        return self.has_record or self.has_kind

    @classmethod
    def join(cls, several: Iterable[_Found]) -> _Found:
        parts = list(several)
        records = [record for part in parts for record in part.records]
        return cls(
            records, any(part.has_record for part in parts), any(part.has_kind for part in parts)
        )


@dataclass(frozen=True)
class RecordFinder:
    """Finds the records of one kind of log.

    Attributes:
        time_fields: Fields with the time of a record, on the top level.
        known_fields: Other fields of a record, on the top level.
        similar_time_names: Other names of the time, normalized; see `normalize_name`.
        similar_names: Other names of fields, normalized.
        envelopes: Envelopes that the log format names.
        excluded_kinds: What the log format knows not to be a record, even if it looks like one.
    """

    time_fields: frozenset[str] = frozenset()
    known_fields: frozenset[str] = frozenset()
    similar_time_names: frozenset[str] = frozenset()
    similar_names: frozenset[str] = frozenset()
    envelopes: tuple[Envelope, ...] = ()
    excluded_kinds: tuple[OtherKind, ...] = ()

    def find(self, text: RawJson) -> list[RawJson]:
        """Return the records in a value, at any depth; the value itself if it is not an envelope.

        >>> finder = RecordFinder(frozenset({"at"}), frozenset({"who"}))
        >>> message = msgspec.json.encode('{"at": 1, "who": "ann"}')
        >>> [bytes(record) for record in finder.find(b'{"log": %s, "stream": "stdout"}' % message)]
        [b'{"at": 1, "who": "ann"}']
        >>> finder.find(b'{"at": 1, "who": "ann", "log": "{}"}')
        [b'{"at": 1, "who": "ann", "log": "{}"}']
        """
        return self._find(text, 0).records

    def has_record(self, text: RawJson) -> bool:
        """Return whether there is a record of the log in a value."""
        return self._find(text, 0).has_record

    def examine(self, text: RawJson) -> list[tuple[RawJson, str]]:
        """Return the records in a value as `find` does, each with the kind that it is instead.

        The kind of a record is an empty text.
        """
        fields = _decode_object(text)
        is_record = fields is not None and self._is_record(fields)
        if fields is not None and is_record and self._openers.isdisjoint(fields):
            return [(text, self._classify(fields, is_record=True))]
        found = self.find(text)
        if len(found) == 1 and found[0] is text:
            kind = "" if fields is None else self._classify_any(fields, is_record=is_record)
            return [(text, kind)]
        return [(record, self.classify(record)) for record in found]

    def classify(self, text: RawJson) -> str:
        """Return what a value is instead of a record; an empty text if it may be a record."""
        fields = _decode_object(text)
        if fields is None:
            return ""
        return self._classify_any(fields, is_record=self._is_record(fields))

    def _classify_any(self, fields: Fields, *, is_record: bool) -> str:
        kind = self._classify(fields, is_record=is_record)
        if kind or is_record:
            return kind
        if self._holds_other_type(fields):
            return _OTHER_TYPE
        return _TEXT_LINE if self._holds_text_line(fields) else ""

    def has_known_field(self, names: Iterable[str]) -> bool:
        """Return whether a record of the log may have one of some fields, besides the time.

        >>> RecordFinder(frozenset({"at"}), frozenset({"who"})).has_known_field(["at", "why"])
        False
        """
        similar = self.similar_names - self.similar_time_names
        return any(name in self.known_fields or normalize_name(name) in similar for name in names)

    def count_times(self, text: RawJson) -> int:
        """Return how many records a text that cannot be opened seems to hold, at least 1.

        >>> finder = RecordFinder(frozenset({"at"}))
        >>> finder.count_times(b'{"Records": [{"at": 1}, {"at": 2}, {"a')
        2
        """
        return max(1, len(self._time_pattern.findall(bytes(text)))) if self.time_fields else 1

    def has_time(self, text: RawJson) -> bool:
        """Return whether the name of a time is anywhere in a text."""
        return bool(self.time_fields) and self._time_pattern.search(bytes(text)) is not None

    @cached_property
    def _time_pattern(self) -> re.Pattern[bytes]:
        names = "|".join(map(re.escape, sorted(self.time_fields)))
        return re.compile(rf'"(?:{names})\\*"\s*:'.encode())

    def is_list_field(self, name: str) -> bool:
        """Return whether an object with nothing but this field lists records."""
        return name in self._list_fields

    @cached_property
    def _list_fields(self) -> frozenset[str]:
        return frozenset(
            each.path
            for each in (*self.envelopes, *ENVELOPES)
            if (each.is_delivery or each.is_declared) and not each.marks and not each.inherited
        )

    @cached_property
    def _min_fields(self) -> int:
        return min(MIN_FIELDS, len(self.known_fields))

    def _is_record(self, fields: Fields) -> bool:
        """Return whether an object looks like a record: it has a time and other known fields."""
        known = self.known_fields.intersection(fields)
        if len(known) >= self._min_fields and _has_value(fields, self.time_fields):
            return True
        names = {_normalize(name): name for name in fields}
        times = [names[name] for name in self.similar_time_names.intersection(names)]
        similar = self.similar_names.intersection(names).difference(self.similar_time_names)
        return len(similar) >= _MIN_SIMILAR_FIELDS and _has_value(fields, times)

    @cached_property
    def _openers(self) -> frozenset[str]:
        """Return the fields that are opened even in a record."""
        opened = (*self.envelopes, *(each for each in ENVELOPES if each.holds_record))
        return frozenset(name for each in opened for name in (each.path, each.path.split(".")[0]))

    def _classify(self, fields: Fields, *, is_record: bool) -> str:
        kinds = [] if is_record else [x for n in fields for x in _KINDS_BY_FIELD.get(n, ())]
        for kind in (*self.excluded_kinds, *kinds):
            if kind.matches(fields):
                return kind.name
        return ""

    def _holds_other_type(self, fields: Fields) -> bool:
        """Return whether an envelope that states a type holds an object without known fields."""
        contents = (envelope.get_content(fields) for envelope in _TYPED_ENVELOPES)
        inner = next((_decode_object(content) for content in contents if content is not None), None)
        return inner is not None and self.known_fields.isdisjoint(inner)

    def _holds_text_line(self, fields: Fields) -> bool:
        """Return whether an object without known fields holds text that is not JSON."""
        name = next((name for name in _TEXT_FIELDS if name in fields), None)
        if name is None or self.known_fields.intersection(fields) - {name}:
            return False
        text = (_decode_text(fields[name]) or "").lstrip()
        return bool(text) and text[0] not in '{["'

    def _find(self, text: RawJson, depth: int) -> _Found:
        start = bytes(memoryview(text)[:64]).lstrip()[:1]
        found: _Found | None = None
        if depth > _MAX_DEPTH:
            return _Found([text])
        if start == b"[":
            found = self._find_in_list(text, depth)
        elif start == b"{":
            fields = _decode_object(text)
            found = None if fields is None else self._find_in_object(text, fields, depth)
        elif start == b'"':
            inner = _decode_text(text)
            found = None if inner is None else self._find_in_text(inner.encode(), depth + 1)
        elif bytes(text).strip() == b"null":
            found = _Found()
        if found is None and depth == 0:
            found = self._find_in_damaged(bytes(text))
        return found or _Found([text])

    def _find_in_list(self, text: RawJson, depth: int) -> _Found | None:
        items = _decode_list(text)
        if items is not None and len(items) == 2 and _TIME_TEXT.fullmatch(bytes(items[0])):  # noqa: PLR2004 - a pair
            items = items[1:]  # Loki writes a line as its time and its text.
        return None if items is None else _Found.join(self._find(item, depth) for item in items)

    def _find_in_damaged(self, text: bytes) -> _Found | None:
        """Find records in a line that is not JSON: with a prefix, or with several documents."""
        stripped = text.strip(_SEPARATORS)
        if stripped in {b"", b"[", b"]"}:
            return _Found()
        return self._find_in_text(stripped, 1)

    def split_cut(self, text: bytes) -> tuple[list[RawJson], bytes]:
        """Split a document that is cut off or damaged into its complete part and the rest.

        The complete part is a document again, such as the envelope with its first records. A part
        of a record is never complete.

        Args:
            text: What is not JSON.

        Returns:
            The complete part, if it has a record of the log; and the rest of the text.

        >>> finder = RecordFinder(frozenset({"at"}), frozenset({"who"}))
        >>> finder.split_cut(b'{"Records": [{"at": 1, "who": "a"}, {"at": 2, "who": "b')
        ([b'{"Records": [{"at": 1, "who": "a"}]}'], b'{"at": 2, "who": "b')
        >>> finder.split_cut(b'{"at": 1, "who": "a", "tags": [{"at": 1, "who": "b"}, ')
        ([], b'{"at": 1, "who": "a", "tags": [{"at": 1, "who": "b"}, ')
        """
        if self._is_part_of_record(text):
            return [], text
        whole, at, brackets = decode_text(text), 0, ""
        for _ in range(_MAX_DEPTH):
            opener = whole[at : at + 1]
            if not opener or opener not in "[{":
                break
            brackets = ("]" if opener == "[" else "}") + brackets
            part = _read_complete_items(whole, at, self._is_record)
            if opener == "{" and self._is_record(part.fields):
                break
            if (opener == "[" and part.count) or whole[part.rest : part.rest + 1] not in {"[", "{"}:
                complete = (whole[: part.end] + brackets).encode()
                rest = whole[part.rest :].encode()
                return ([complete], rest) if self._find(complete, 1).has_record else ([], text)
            at = part.rest
        return [], text

    def _is_part_of_record(self, text: bytes) -> bool:
        """Return whether a text is one record that is cut off, by its brackets.

        This is fast, for files with very many such lines.
        """
        times = list(islice(self._time_pattern.finditer(text), 2)) if self.time_fields else []
        if len(times) != 1:
            return False
        depth = 0
        for bracket in _BRACES.findall(text, times[0].start()):
            depth += 1 if bracket == b"{" else -1
            if depth < 0:
                return False
        return True

    def _find_in_object(self, text: RawJson, fields: Fields, depth: int) -> _Found:
        if not fields:
            return _Found()
        if (opened := self._open_declared(fields, depth)) is not None:
            return opened
        is_record = self._is_record(fields)
        if self._classify(fields, is_record=is_record):
            return _Found([text], has_kind=True)
        rows = None if is_record else _make_rows(fields)
        if rows is not None:
            return self._find_in_list(rows, depth) or _Found()
        for _, envelope in sorted(_iter_envelopes(fields), key=itemgetter(0)):
            if envelope.holds_record or not is_record:
                opened = self._open(envelope, fields, depth)
                if opened is not None:
                    return opened
        may_hold = not is_record and len(fields) <= _MAX_SEARCHED and self.has_time(text)
        inside = self._search(fields, depth) if may_hold else _Found()
        return inside if inside.has_record else _Found([text], has_record=is_record)

    def _search(self, fields: Fields, depth: int) -> _Found:
        """Search all fields for records of the log."""
        found = (
            self._find_in_value(value, depth + 1, is_base64=False) for value in fields.values()
        )
        return _Found.join(part for part in found if part is not None and part.has_record)

    def _open(self, envelope: Envelope, fields: Fields, depth: int) -> _Found | None:
        """Return the records in an envelope; None if the object is not this kind of envelope."""
        content: RawJson | None = envelope.get_content(fields)
        if content is None:
            return None
        if envelope.inherited:
            content = _add_inherited(content, envelope.inherited, fields)
        found = self._find_in_value(content, depth + 1, is_base64=envelope.is_base64)
        if found is None or found.is_known or (envelope.is_declared and found.records):
            return found
        if envelope in _TYPED_ENVELOPES and not self._holds_other_type(fields):
            return found  # a bad record is rejected, and is no event of the envelope's time
        begin = bytes(memoryview(content)[:64]).lstrip()[:1]
        is_delivery = envelope.is_delivery or envelope.is_declared
        lists_only = is_delivery and begin in {b"[", b"n"} and self.known_fields.isdisjoint(fields)
        return found if lists_only else None

    def _open_declared(self, fields: Fields, depth: int) -> _Found | None:
        """Return the records in an envelope of the log format, or what is damaged in it."""
        for envelope in self.envelopes:
            if (opened := self._open(envelope, fields, depth)) is not None:
                return opened
            if damaged := self._get_damaged(envelope, fields):
                return _Found([damaged])
        return None

    def _get_damaged(self, envelope: Envelope, fields: Fields) -> bytes:
        """Return the text in an envelope of the log format that cannot be opened.

        The fields beside it, such as those of LookupEvents, are not the record. Nothing if there is
        no such text.
        """
        content = envelope.get_content(fields)
        text = "" if content is None else (_decode_text(content) or "").strip()
        if not text or text in TABLE_MISSING_TEXTS:
            return b""
        return text.encode() if text[0] == "{" or self._is_record(fields) else b""

    def _find_in_value(self, value: RawJson, depth: int, *, is_base64: bool) -> _Found | None:
        """Find records in a value of an object; None if it cannot contain any."""
        begin = bytes(memoryview(value)[:64]).lstrip()[:1]
        if begin == b"[":
            rows = _merge_rows(value)
            return self._find(value, depth) if rows is None else self._find_in_list(rows, depth)
        if begin in {b"{", b"n"}:
            return self._find(value, depth)
        if begin != b'"' or len(bytes(memoryview(value)[:3])) < 3:  # noqa: PLR2004 - empty text
            return None
        text = (_decode_text(value) or "").encode()
        found = self._find_in_text(text, depth)
        if found is None and is_base64:
            found = self._find_in_text(_decode_base64(text), depth)
        return found

    def _find_in_text(self, text: bytes, depth: int) -> _Found | None:
        """Find records in text that holds JSON, perhaps with a prefix; None if it does not."""
        text = text.strip(_SEPARATORS)
        if depth > _MAX_DEPTH or not text:
            return None
        if text[:1] in b'{["':
            if is_valid_json(text):
                return self._find(text, depth)
            found = self._find_in_parts(text, depth)
            if found is not None:
                return found
        rest = _remove_prefix(text)
        found = self._find(rest, depth) if rest and is_valid_json(rest) else None
        return found if found is not None and found.records else None

    def _find_in_parts(self, text: bytes, depth: int) -> _Found | None:
        """Find records in several documents, also if one is damaged; None if there are none."""
        documents, broken = _split_documents(text)
        parts = [self._find(document, depth) for document in documents]
        if not broken:
            return _Found.join(parts) if parts else None
        for part, _ in broken:
            complete, rest = self.split_cut(part)
            parts += [*(self._find(each, depth) for each in complete), _Found([rest])]
        found = _Found.join(parts)
        return found if found.is_known else None


def _remove_prefix(line: bytes) -> bytes:
    """Return an object without what a shipper writes in front of it; nothing if there is none."""
    at = line.find(b"{", 0, _MAX_PREFIX)
    return line[at:] if at > 0 else b""


_KINDS_BY_FIELD: dict[str, list[OtherKind]] = {}
"""The other kinds by one of their fields."""
for _kind in OTHER_KINDS:
    _KINDS_BY_FIELD.setdefault((*_kind.fields, *_kind.values)[0], []).append(_kind)
_NAMES_OF_ENVELOPES = {
    name: [
        (number, each)
        for number, each in enumerate(ENVELOPES)
        if name in {each.path, each.path.split(".")[0]}
    ]
    for envelope in ENVELOPES
    for name in (envelope.path, envelope.path.split(".")[0])
}
"""The envelopes by the name of a field, with their position in the list."""
_normalize = lru_cache(maxsize=1 << 12)(normalize_name)


def _iter_envelopes(fields: Fields) -> Iterator[tuple[int, Envelope]]:
    """Yield the envelopes that an object may be, with their position in the list."""
    for name in fields:
        yield from _NAMES_OF_ENVELOPES.get(name, ())


def _has_value(fields: Fields, names: Iterable[str]) -> bool:
    return any(name in fields and bytes(fields[name]) not in {b"null", b'""'} for name in names)


def _decode_object(text: RawJson) -> Fields | None:
    """Return the fields of an object; None if the text is not an object."""
    try:
        return _OBJECT_DECODER.decode(text)
    except _ERRORS as error:
        if str(error) == _TRUNCATED:
            return None
    if bytes(memoryview(text)[:64]).lstrip()[:1] != b"{":
        return None
    value = _decode_leniently(text, dict)
    if value is None:
        return None
    return {name: msgspec.Raw(encode_json(inner)) for name, inner in value.items()}


def _decode_leniently(text: RawJson, kind: type[ValueT]) -> ValueT | None:
    """Decode JSON that violates the standard; None if it is not of a type."""
    try:
        value = decode_leniently(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def _decode_list(text: RawJson) -> Sequence[RawJson] | None:
    try:
        return _ARRAY_DECODER.decode(text)
    except _ERRORS:
        pass
    value = _decode_leniently(text, list)
    return None if value is None else [encode_json(item) for item in value]


def _decode_text(text: RawJson) -> str | None:
    try:
        return msgspec.json.decode(text, type=str)
    except _ERRORS:
        pass
    return _decode_leniently(text, str)


def _decode_base64(text: bytes) -> bytes:
    """Decode base64, and unpack gzip in it; return nothing if it is not base64."""
    if not _BASE64.fullmatch(text):
        return b""
    try:
        data = base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")))
        if not data.startswith(GZIP_MAGIC):
            return data
        unpacker = zlib.decompressobj(wbits=31)
        unpacked = unpacker.decompress(data, _MAX_UNPACKED)
    except (binascii.Error, zlib.error, ValueError):
        return b""
    return unpacked if unpacker.eof else b""


def _add_inherited(content: RawJson, names: Mapping[str, str], fields: Fields) -> RawJson:
    """Add fields of an envelope to the record in it."""
    text = bytes(memoryview(content)).lstrip()
    if text[:1] == b'"':
        text = (_decode_text(content) or "").encode().lstrip()
    if text[:1] != b"{" or not is_valid_json(text):
        return content
    added = b",".join(
        b"%s:%s" % (msgspec.json.encode(name), memoryview(fields[outer]))
        for outer, name in names.items()
        if outer in fields
    )
    rest = text[1:].lstrip()
    # JSON decoders keep the last of two equal names: here the record's own.
    return b"{" + added + (b"," if added and rest[:1] != b"}" else b"") + rest


def _merge_rows(value: RawJson) -> bytes | None:
    """Join the cells of each row of a query's result; None if a list does not have such rows.

    CloudTrail Lake and CloudWatch Logs Insights return rows as lists of cells.

    >>> _merge_rows(b'[[{"field": "@message", "value": "a"}], [{"a": "Ls"}, {"n": "null"}]]')
    b'[{"@message":"a"},{"a":"Ls","n":null}]'
    """
    if bytes(memoryview(value)[:64]).replace(b" ", b"").replace(b"\n", b"")[:3] != b"[[{":
        return None
    try:
        rows = msgspec.json.decode(value, type=list[list[dict[str, Any]]])
    except _ERRORS:
        return None
    return b"[%s]" % b",".join(msgspec.json.encode(_merge_row(row)) for row in rows)


_COLUMN_FIELDS = ("columns", "Columns", "schema")
_ROW_FIELDS = ("rows", "Rows", "data", "values")
_NAME_FIELDS = ("name", "ColumnName")
_CELL_FIELDS = ("VarCharValue", "v")


def _make_rows(fields: Fields) -> bytes | None:
    """Make objects of the rows of a query's result; None if an object is none.

    Log Analytics, Kusto, Trino and Elasticsearch return names and rows apart. BigQuery and Athena
    put each cell in an object. Athena's first row has the names.

    >>> columns = msgspec.Raw(b'[{"name": "a", "type": "string"}, {"name": "b"}]')
    >>> _make_rows({"columns": columns, "rows": msgspec.Raw(b'[["x", null]]')})
    b'[{"a":"x","b":null}]'
    >>> _make_rows({"Rows": msgspec.Raw(b'[{"Data":[{"VarCharValue":"a"}]},{"Data":[{}]}]')})
    b'[{"a":null}]'
    """
    rows = next((fields[name] for name in _ROW_FIELDS if name in fields), None)
    given = next((fields[name] for name in _COLUMN_FIELDS if name in fields), None)
    if rows is None or (given is None and "Rows" not in fields):
        return None
    try:
        cells = list(map(_list_cells, msgspec.json.decode(rows, type=list[Any])))
        names = cells.pop(0) if given is None else _list_column_names(msgspec.json.decode(given))
    except (*_ERRORS, IndexError):
        return None
    if not names or not all(isinstance(name, str) for name in names):
        return None
    table = (dict(zip(names, row, strict=False)) for row in cells)
    return msgspec.json.encode([_clear_missing(row) for row in table])


def _list_cells(row: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """Return the cells of a row."""
    if isinstance(row, dict):
        row = row.get("Data", row.get("f"))
    if not isinstance(row, list):
        raise ValueError("not a row")  # noqa: TRY004 - as for other results of another form
    return [_get_first(cell, _CELL_FIELDS) if isinstance(cell, dict) else cell for cell in row]


def _list_column_names(columns: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """Return the names of columns, which are texts or objects."""
    columns = columns.get("fields") if isinstance(columns, dict) else columns
    if not isinstance(columns, list):
        return []
    return [_get_first(each, _NAME_FIELDS) if isinstance(each, dict) else each for each in columns]


def _get_first(value: Mapping[str, Any], names: Iterable[str]) -> Any:  # noqa: ANN401 - any JSON value
    return next((value[name] for name in names if name in value), None)


def _clear_missing(row: Mapping[str, Any]) -> dict[str, Any]:
    # Cells of such results are text, as in CSV.
    return {
        name: None if type(value) is str and value in TABLE_MISSING_TEXTS else value
        for name, value in row.items()
    }


def _merge_row(row: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if all(cell.keys() == {"field", "value"} for cell in row):
        cells = {str(cell["field"]): cell["value"] for cell in row}
    else:
        cells = {name: value for cell in row for name, value in cell.items()}
    # All cells of such results are text, as in CSV.
    return {n: None if value in TABLE_MISSING_TEXTS else value for n, value in cells.items()}


# Files.


class Records(msgspec.Struct, frozen=True):
    """The records of one file.

    Attributes:
        raw_records: The JSON of each record. Lines of JSON lines are not validated yet, and may be
            envelopes.
        line_numbers: Line (JSON lines) or number (documents) of each record, from 1.
        errors: Parts of the file that could not be split into records.
        num_lost: Number of records in these parts, as far as it can be seen.
        has_no_end: Whether the file is a list without its end, as if it were cut after a record.
    """

    raw_records: Sequence[RawJson]
    line_numbers: Sequence[int]
    errors: ParseErrors = ()
    num_lost: int = 0
    has_no_end: bool = False


def split_records(data: bytes, finder: RecordFinder) -> Records:
    """Split the contents of a file into its records.

    A file is one document, JSON lines, or several documents in a row. Envelopes are opened if the
    first record is in one. `RecordFinder.examine` opens the others, when the records are decoded.

    Args:
        data: Contents of the file, in UTF-8.
        finder: Finds the records in a document.

    >>> finder = RecordFinder()
    >>> records = split_records(b'{"Records": [{"a": 1}, {"a": 2}]}', finder)
    >>> [bytes(record) for record in records.raw_records]
    [b'{"a": 1}', b'{"a": 2}']
    >>> split_records(b'{"a": 1}' + bytes([10, 10]) + b'{"a": 2}', finder).line_numbers
    [1, 3]
    """
    data = strip_padding(data)
    if not data or data.isspace():
        return Records([], [])
    texts = _split_single_list(data, finder)
    if texts is None and is_valid_json(data):
        texts = finder.find(data)
    if texts is not None:
        return Records(texts, range(1, len(texts) + 1))
    if _TRAILING_COMMA.search(data[-64:]) and is_valid_json(
        repaired := _TRAILING_COMMA.sub(b"", data)
    ):
        return split_records(repaired, finder)
    lines = data.split(b"\n")
    if _are_json_lines(lines) or _CONTAINER_LINE.match(lines[0]):
        return replace(_split_lines(lines, finder), has_no_end=_is_open_list(data))
    return _split_other(data, lines, finder)


def split_record_blocks(
    blocks: Iterable[bytes],
    finder: RecordFinder,
    path: LogPath = Path(),
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Records]:
    """Split a file that is read in blocks.

    JSON lines are split block by block. Any other file is collected first.

    Args:
        blocks: Contents of the file.
        finder: Finds the records in a document.
        path: The file, for messages.
        limits: Maximum size of a line, and of a file that is collected.

    Raises:
        RecordError: A limit is exceeded.
    """
    rest, line, tail = b"", 1, b""
    blocks = iter(blocks)
    first = next(blocks, b"")
    if not _starts_with_lines(first):
        whole = limits.check_blocks(chain([first], blocks), path, limits.max_whole)
        yield split_records(to_utf8(b"".join(whole)), finder)
        return
    for block in chain([to_utf8(first)], blocks, [b"\n"]):
        data = rest + block
        end = data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        limits.check_record(len(rest), path, line + data.count(b"\n"))
        records = _split_lines(data.split(b"\n"), finder)
        yield Records(records.raw_records, [line - 1 + number for number in records.line_numbers])
        line += data.count(b"\n")
        tail = data.rstrip(_SEPARATORS)[-1:] or tail
    if _LIST_BEGIN.match(first) and tail != b"]":
        yield Records([], [], has_no_end=True)


def _starts_with_lines(block: bytes) -> bool:
    """Return whether a block is the beginning of JSON lines. Its last line may be incomplete."""
    if is_utf16(block):
        return False
    lines = to_utf8(block).split(b"\n")[:-1]
    return any(line.strip() for line in lines) and _are_json_lines(lines)


def _split_single_list(data: bytes, finder: RecordFinder) -> Sequence[RawJson] | None:
    """Return the records of an object that only contains one list of records, as AWS writes it.

    Such a file is decoded once. Any other document is decoded once to validate it, and once more
    at each level.
    """
    try:
        [(name, items)] = _LIST_DECODER.decode(data).items()
    except _ERRORS:
        return None
    if not items or not finder.is_list_field(name):
        return None
    first = finder.find(items[0])
    return items if len(first) == 1 and first[0] is items[0] else None


def is_valid_json(text: RawJson) -> bool:
    """Return whether a text is one JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _are_json_lines(lines: list[bytes]) -> bool:
    """Return whether one of the first lines is a complete object."""
    stripped = (line.strip(b" \t\r\x1e" + _BOM) for line in lines)
    first = list(islice(filter(None, stripped), _MAX_PROBE_LINES))
    return bool(first) and first[0] != b"[" and any(map(_is_nonempty_container, first))


def _is_nonempty_container(line: bytes) -> bool:
    line = line.rstrip(b",")
    candidates = (line if line[:1] in b"{[" else b"", _remove_prefix(line))
    return any(text not in {b"", b"{}", b"[]"} and is_valid_json(text) for text in candidates)


def _split_lines(lines: list[bytes], finder: RecordFinder) -> Records:
    if lines and _CONTAINER_LINE.match(lines[0]):
        lines = _join_partial_lines(lines)
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line.isspace()]
    probe = next((line for _, line in numbered if is_valid_json(line)), b"")
    found = finder.find(probe)
    if len(found) != 1 or found[0] is not probe:
        numbered = [(n, text) for n, line in numbered for text in finder.find(line)]
    return Records([text for _, text in numbered], [n for n, _ in numbered])


def _join_partial_lines(lines: list[bytes]) -> list[bytes]:
    """Join the parts of long lines, which container runtimes cut, and remove their prefixes."""
    joined: list[bytes] = []
    start: list[bytes] = []
    for line in lines:
        prefix = _CONTAINER_LINE.match(line)
        text = line[prefix.end() :] if prefix else line
        if prefix and prefix[1] == b"P":
            start.append(text)
            text = b""
        elif start:
            text = b"".join([*start, text])
            start = []
        joined.append(text)
    return [*joined, b"".join(start)] if start else joined


def _split_other(data: bytes, lines: list[bytes], finder: RecordFinder) -> Records:
    """Split documents in a row, or lines if that finds more records of the log."""
    documents, broken = _split_documents(data)
    texts = [text for document in documents for text in finder.find(document)]
    enough, lost = max(1, len(texts)), 0
    for part, _ in broken:
        complete, rest = finder.split_cut(part)
        texts += [text for document in complete for text in finder.find(document)]
        enough = len(texts) + 1 if complete else enough
        lost += finder.count_times(rest)
    if broken:
        known = (line for line in lines if finder.has_time(line) and finder.has_record(line))
        if sum(1 for _ in islice(known, enough)) == enough:
            return _split_lines(lines, finder)
    errors = [(None, reason) for _, reason in broken]
    return Records(texts, range(1, len(texts) + 1), errors, lost, _is_open_list(data))


def _is_open_list(data: bytes) -> bool:
    """Return whether a text is a list without its end, such as a log that is still appended to."""
    return bool(_LIST_BEGIN.match(data)) and not data.rstrip(_SEPARATORS).endswith(b"]")


class _CompleteItems(msgspec.Struct):
    """What is complete in a list or an object that is cut off or damaged.

    Attributes:
        end: Position after the last complete item.
        rest: Position of the value that is not complete.
        count: Number of complete items.
        fields: The fields, if it is an object. One that is not complete is an empty object.
    """

    end: int
    rest: int
    count: int = 0
    fields: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


_decode_first = json.JSONDecoder().raw_decode
"""Decodes the JSON value at a position of a text, whatever follows it."""


# Possessive: a name without an end is given up at once, and takes no memory for each character.
_FIELD_BEGIN = re.compile(r'[ \t\r\n,]*"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*:[ \t\r\n]*')


def _read_complete_items(
    text: str, start: int, is_record: Callable[[Fields], bool]
) -> _CompleteItems:
    """Read the complete items of a list or an object.

    Args:
        text: Not JSON as a whole.
        start: Position of the opening bracket.
        is_record: Tells whether an object is a record. Not all of its fields are read.
    """
    is_object = text[start] == "{"
    begin = _FIELD_BEGIN if is_object else _SEPARATOR_CHARACTERS
    found = _CompleteItems(start + 1, start + 1)
    try:
        while True:
            opening = begin.match(text, found.rest)
            if opening is None:
                return found
            found.rest = opening.end()
            if is_object:
                found.fields[opening[1]] = msgspec.Raw(b"{}")
            _, found.end = _decode_first(text, found.rest)
            found.count += 1
            if is_object:
                value = text[found.rest : found.end].encode()
                found.fields[opening[1]] = msgspec.Raw(value)
            found.rest = found.end
            if is_object and found.count == _FEW_FIELDS and is_record(found.fields):
                return found
    except (ValueError, RecursionError):
        return found


def _split_documents(data: bytes) -> tuple[list[RawJson], list[tuple[bytes, str]]]:
    """Split documents in a row, and JSON that only the standard library can read.

    Returns:
        The documents; and each part that is not JSON, with the reason.
    """
    data = data.strip(_SEPARATORS)
    pieces: list[RawJson] = list(_DOCUMENT_BOUNDARY.split(data))
    if len(pieces) > 1 and all(map(is_valid_json, pieces)):
        return pieces, []
    if is_valid_json(repaired := _TRAILING_COMMA.sub(b"", data)):
        return [repaired], []
    text = decode_text(data)
    # A log that is appended to as one list has no end.
    text = text[1:] if text[:1] == "[" and not text.endswith("]") else text
    at = _skip_separators(text, 0)
    documents: list[RawJson] = []
    broken: list[tuple[bytes, str]] = []
    while at < len(text):
        try:
            value, end = _decode_first(text, at)
            documents.append(encode_json(replace_surrogates(value)))
        except (ValueError, RecursionError) as error:
            after = _NEXT_DOCUMENT.search(text, at + 1)
            end = after.end() if after else len(text)
            if len(broken) == _MAX_BROKEN:
                after, end = None, len(text)
            broken.append((text[at:end].encode(), _describe_error(error, is_rest=not after)))
        at = _skip_separators(text, end)
    return documents, broken


def _skip_separators(text: str, at: int) -> int:
    found = _SEPARATOR_CHARACTERS.match(text, at)
    return at if found is None else found.end()


def _describe_error(error: Exception, *, is_rest: bool) -> str:
    rest = ", the rest of the file" if is_rest else ""
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error}){rest}"
    where = f"{error.msg} at line {error.lineno}, column {error.colno}"
    return f"not complete JSON ({where}){rest}; if the file is truncated, download it again"
