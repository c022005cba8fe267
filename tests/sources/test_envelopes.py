import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.envelopes import (
    RecordFinder,
    Records,
    is_valid_json,
    split_record_blocks,
    split_records,
)
from morpheus.sources.json_records import decode_leniently, encode_json

FINDER = CLOUDTRAIL_FORMAT.record_finder

PLAIN = RecordFinder()
A: dict[str, Any] = {"eventName": "A", "userIdentity": {"arn": "a"}}
B: dict[str, Any] = {"eventName": "B", "list": [{"x": "é"}]}


def records(data: str | bytes) -> list[Any]:
    return values(split_records(data.encode() if isinstance(data, str) else data, FINDER))


def values(found: Records) -> list[Any]:
    return [json.loads(bytes(text)) for text in found.raw_records]


def lookup(record: object) -> dict[str, Any]:
    return {"EventId": "1", "CloudTrailEvent": json.dumps(record)}


FORMATS = {
    "records": json.dumps({"Records": [A, B]}),
    "pretty": json.dumps({"Records": [A, B]}, indent=2),
    "list": json.dumps([A, B]),
    "pretty list": json.dumps([A, B], indent=1),
    "lines": f"{json.dumps(A)}\n{json.dumps(B)}\n",
    "windows lines": f"{json.dumps(A)}\r\n\r\n{json.dumps(B)}",
    "lines of documents": f"{json.dumps({'Records': [A]})}\n{json.dumps({'Records': [B]})}",
    "documents in a row": json.dumps({"Records": [A]}) + json.dumps({"Records": [B]}),
    "pretty records in a row": json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2),
    "lookup": json.dumps({"Events": [lookup(A), lookup(B)], "NextToken": "x"}, indent=4),
    "lookup lines": f"{json.dumps(lookup(A))}\n{json.dumps(lookup(B))}",
    "lake": json.dumps({"QueryResultRows": [[{n: v} for n, v in r.items()] for r in (A, B)]}),
    "lake events": json.dumps(
        {"QueryResultRows": [[{"eventJson": json.dumps(r)}] for r in (A, B)]}
    ),
    "lake lines": f"{json.dumps({'eventJson': json.dumps(A)})}\n{json.dumps({'eventJson': B})}",
    "byte order": " \n" + json.dumps([A, B]),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_gives_the_same_records(form: str) -> None:
    assert records(FORMATS[form]) == [A, B]


def test_json_lines_have_line_numbers_and_documents_record_numbers() -> None:
    assert list(split_records(b'{"a":1}\n\n{"a":2}\n', FINDER).line_numbers) == [1, 3]
    assert list(split_records(b'[{"a":1},\n\n{"a":2}]', FINDER).line_numbers) == [1, 2]


@pytest.mark.parametrize("data", [b"", b" \n", b"[]", b'{"Records": []}', b'{"Events":[]}'])
def test_empty_file_has_no_records_and_no_errors(data: bytes) -> None:
    found = split_records(data, FINDER)
    assert not found.raw_records
    assert not found.errors


@pytest.mark.parametrize("indent", [None, 2])
def test_truncated_document_is_one_error(indent: int | None) -> None:
    text = json.dumps({"Records": [A, B] * 9}, indent=indent)
    found = split_records(text[: len(text) // 2].encode(), FINDER)
    assert list(found.raw_records) == []
    [(place, reason)] = found.errors
    assert place is None
    assert "not complete JSON" in reason
    assert "download it again" in reason


C = {"eventTime": "2024-05-01T00:00:00Z", "eventName": "C", "userIdentity": {"arn": "é"}}
D = {**C, "eventName": "D", "resources": [{"x": 1}, {"y": [1, 2]}]}
DOCUMENTS: dict[str, Callable[[list[Any]], Any]] = {
    "records": lambda found: {"Records": found},
    "list": lambda found: found,
    "list of documents": lambda found: [{"Records": found}],
    "answer": lambda found: {"took": 1, "hits": {"total": 9, "hits": [{"_source": found}]}},
    "lookup": lambda found: {"Events": [lookup(each) for each in found]},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", DOCUMENTS)
def test_complete_records_before_a_cut_are_read_and_no_part_of_a_record(
    form: str, indent: int | None
) -> None:
    text = json.dumps(DOCUMENTS[form]([C, D, C, D]), indent=indent)
    most = 0
    for end in range(2, len(text)):
        found = split_records(text[:end].encode(), FINDER)
        read = [json.loads(bytes(each)) for each in found.raw_records if FINDER.has_record(each)]
        assert read == [C, D, C, D][: len(read)]
        assert len(read) >= most
        assert len(read) == text[:end].count("eventTime") or found.errors or found.raw_records
        most = len(read)
    assert most == 4


def test_a_cut_is_one_error_beside_the_records_before_it() -> None:
    text = json.dumps({"Records": [C, D, C, C]})
    found = split_records(text[: text.rindex("eventTime") + 20].encode(), FINDER)
    assert values(found) == [C, D, C]
    [(_, reason)] = found.errors
    assert "not complete JSON" in reason
    assert found.num_lost == 1


def test_damage_in_a_document_loses_the_records_from_there_on_and_counts_them() -> None:
    text = json.dumps({"Records": [C, C, C, C]})
    at = text.index("eventName", text.index("eventName") + 1)
    found = split_records(f"{text[:at]}\0{text[at:]}".encode(), FINDER)
    assert values(found) == [C]
    assert found.num_lost == 3


def test_a_line_that_is_cut_keeps_its_complete_records() -> None:
    line = json.dumps({"Records": [C, D, C]})
    found = split_records(f"{line}\n{line[:-50]}\n{line}".encode(), FINDER)
    assert list(found.line_numbers) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [FINDER.has_record(each) for each in found.raw_records] == [
        *(True, True, True),
        *(True, True, False),
        *(True, True, True),
    ]


@pytest.mark.parametrize(
    ("content", "is_read"),
    [(json.dumps(C), True), (json.dumps(C)[:-9], False), ("cut: Get", False), ("", True)],
)
def test_lookup_events_with_a_damaged_record_are_no_events(
    content: str,
    is_read: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    outer = {"EventId": "1", "EventName": "C", "EventTime": "2024", "EventSource": "s3"}
    text = json.dumps({"Events": [{**outer, "Username": "a", "CloudTrailEvent": content}]})
    [found] = split_records(text.encode(), FINDER).raw_records
    assert FINDER.has_record(found) is is_read
    assert is_valid_json(found) is is_read


def test_truncated_json_lines_keep_all_complete_lines() -> None:
    found = split_records(json.dumps(A).encode() + b"\n" + json.dumps(B).encode()[:9], FINDER)
    assert len(found.raw_records) == 2
    assert records(json.dumps(A)) == [json.loads(bytes(found.raw_records[0]))]


def test_invalid_first_line_does_not_hide_the_others() -> None:
    assert list(split_records(b'{"a": \n{"a":1}\n{"a":2}', FINDER).line_numbers) == [1, 2, 3]


def test_document_with_a_lone_surrogate_is_read() -> None:
    assert records(r'{"Records":[{"a":"\ud800x"},{"b":1}]}') == [
        {"a": "\N{REPLACEMENT CHARACTER}x"},
        {"b": 1},
    ]


def test_bytes_that_are_not_utf8_are_read_as_windows_1252() -> None:
    assert decode_leniently('{"a":"Zoë €"}'.encode("cp1252")) == {"a": "Zoë €"}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", DOCUMENTS)
def test_a_document_that_is_cut_anywhere_is_reported(form: str, indent: int | None) -> None:
    assert_every_cut_is_reported(json.dumps(DOCUMENTS[form]([C, D]), indent=indent).encode())


@pytest.mark.parametrize("separator", [",\n", "\n,", ",", ", \r\n"])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ("[\n", "\n]\n"), ("[", "\n]")])
def test_a_list_that_is_cut_anywhere_is_reported(separator: str, begin: str, end: str) -> None:
    data = (begin + separator.join(map(json.dumps, [C, D, C])) + end).encode()
    assert_every_cut_is_reported(data)


def assert_every_cut_is_reported(data: bytes) -> None:
    for end in range(1, len(data.rstrip())):
        blocks = [data[:end][start : start + 150] for start in range(0, end, 150)]
        for parts in ([split_records(data[:end], FINDER)], split_record_blocks(blocks, FINDER)):
            found = list(parts)
            records = [record for part in found for record in part.raw_records]
            is_reported = any(part.errors or part.has_no_end for part in found)
            assert is_reported or not all(map(is_valid_json, records)), data[:end]
    for found in ([split_records(data, FINDER)], [*split_record_blocks([data], FINDER)]):
        assert not any(part.errors or part.has_no_end for part in found)


@pytest.mark.parametrize("separator", [",\n", "\n,", ",", ", \r\n"])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ("[\n", "\n]\n"), ("[", "\n]")])
@pytest.mark.parametrize("size", [99, 150, 1 << 20])
def test_a_list_in_blocks_gives_the_records_of_the_list(
    separator: str, begin: str, end: str, size: int
) -> None:
    data = (begin + separator.join(map(json.dumps, [C, D, C, D])) + end).encode()
    blocks = [data[start : start + size] for start in range(0, len(data), size)]
    found = [
        json.loads(bytes(record))
        for part in split_record_blocks(blocks, FINDER)
        for text in part.raw_records
        for record, _ in FINDER.examine(text)
    ]
    assert found == [C, D, C, D]


def test_lines_with_a_time_in_brackets_are_no_list_without_an_end() -> None:
    data = b"[2024-05-01 00:00:00] " + json.dumps(C).encode()
    assert not split_records(data + b"\n" + data, FINDER).has_no_end


def test_very_deep_nesting_is_rejected() -> None:
    found = split_records(b"[" * 100_000, FINDER)
    assert len(found.errors) == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_encoding_keeps_the_value(value: object) -> None:
    assert json.loads(encode_json(value)) == value


@given(st.binary(max_size=60))
def test_splitting_never_fails(data: bytes) -> None:
    found = split_records(data, FINDER)
    assert len(found.raw_records) == len(found.line_numbers)


@given(
    st.lists(st.sampled_from(['{"a":1}', "", '{"Records":[{"b":1},{"b":2}]}', '{"cut'])),
    st.integers(1, 40),
)
def test_json_lines_in_blocks_equal_json_lines_read_at_once(lines: list[str], size: int) -> None:
    text = "\n".join(['{"x":"first"}', *lines]).encode()
    blocks = [text[:14], *(text[i : i + size] for i in range(14, len(text), size))]
    plain = [part for one in split_record_blocks(blocks, PLAIN) for part in pairs(one)]
    assert plain == pairs(split_records(text, PLAIN))


def pairs(records: Records) -> list[tuple[int, bytes]]:
    return [
        (n, bytes(text).strip())
        for n, record in zip(records.line_numbers, records.raw_records, strict=True)
        for text in PLAIN.find(record)
    ]


def test_document_in_blocks_is_read_completely() -> None:
    text = json.dumps({"Records": [{"a": n} for n in range(9)]}, indent=1)
    for data in (text.encode(), text.encode("utf-16")):
        blocks = [data[i : i + 20] for i in range(0, len(data), 20)]
        [records] = split_record_blocks(blocks, FINDER)
        assert len(records.raw_records) == 9


NAMES = ["Records", "detail", "detail-type", "message", "data", "eventTime", "eventName", "log"]
WRAPPED = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["{", '{"a', "[", "H4sI"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | inner.map(json.dumps)
    ),
    max_leaves=15,
)


@given(WRAPPED, st.booleans())
def test_opening_never_fails_and_opens_everything_at_once(value: object, cut: bool) -> None:  # noqa: FBT001 - drawn
    text = json.dumps(value).encode()
    found = FINDER.examine(text[:-1] if cut else text)
    for record, _ in found:
        assert [bytes(each) for each, _ in FINDER.examine(record)] == [bytes(record)]


@example(b"{}")
@given(st.binary(max_size=60))
def test_examining_bytes_that_are_no_json_returns_them_as_they_are(data: bytes) -> None:
    text = b"!" + data
    assert [(bytes(record), kind) for record, kind in FINDER.examine(text)] == [(text, "")]
