"""Records that are cut give the cells that they give when they are decoded whole."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from morpheus.sources.cut_records import find_cut_fields
from morpheus.sources.json_records import Flattener

PATHS = ("id", "time", "who.name", "who.kind", "what.name", "what.list", "action", "note", "size")
Rng = random.Random
COLUMNS = tuple(path.replace(".", "") for path in PATHS)
TEXTS = (
    *("a", "", " ", "null", "é😀", 'a"b', "a\\b", "a\nb", '},{"id":"', '"id":"x"', '\\"id\\":\\"'),
    *(",", "}", "{", "\x00", "\x7f", "\\", '"', '\\"', "\ud800"),
)
RECORDS = 200
N = int(os.environ.get("N", "100"))
"""Number of hostile logs; see `make fuzz`."""


def make_record(rng: Rng, number: int) -> dict[str, Any]:
    """Make a record like those of a log."""
    return {
        "who": {"name": f"user-{rng.randrange(5)}", "kind": "person"},
        "time": f"2024-05-01T00:{number // 60:02}:{number % 60:02}Z",
        "action": rng.choice(["Get", "Put", "List"]),
        "what": {"name": rng.choice(["x", "y"]), "list": [1, {"b": 1, "a": None}]},
        "id": f"{rng.getrandbits(64):016x}",
        "size": rng.choice([1, 2.5, True, None, 10**30]),
    }


def write(record: object, rng: Rng) -> bytes:
    """Write a record as one of the programs that write logs does."""
    separators = rng.choice([(",", ":"), (",", ":"), (", ", ": ")])
    text = json.dumps(record, separators=separators, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def damage(record: dict[str, Any], rng: Rng) -> dict[str, Any]:
    """Change a record in a way that could mislead what cuts it."""
    name = rng.choice([*record, "more", "id", "time"])
    value: Any = rng.choice([*TEXTS, 7, None, [], {}, {"id": "x", "time": "y"}, [{"id": "z"}]])
    changed = record | {name: value}
    if rng.random() < 0.3:
        changed["who"] = {"name": rng.choice(TEXTS), "id": "inner", "time": "inner"}
    if rng.random() < 0.3:
        changed.pop(rng.choice(list(changed)))
    items = list(changed.items())
    if rng.random() < 0.3:
        rng.shuffle(items)
    return dict(items)


def mangle(text: bytes, rng: Rng) -> bytes:
    """Change the text of a record: a name twice, an escaped name, a lost or a wrong byte."""
    at = rng.randrange(len(text))
    return rng.choice(
        [
            text[:-1] + b',"id":"twice"}',
            text[:-1] + b',"time":"twice","who":{"name":"twice"}}',
            b'{"id":"first",' + text[1:],
            text.replace(b'"id"', b'"i\\u0064"'),
            text.replace(b'"who"', b'"w\\u0068o"'),
            text[:at] + text[at + 1 :],
            text[:at] + bytes([rng.choice(b'"\\{}[],:\x00\xff')]) + text[at + 1 :],
            text + b"x",
            b" " + text + b"\n",
        ]
    )


def make_flattener(**options: Any) -> Flattener:
    """Make a flattener that also cuts few records."""
    flattener = Flattener(COLUMNS, PATHS, **options)
    assert flattener.cutter is not None
    flattener.cutter.min_bytes = 0
    return flattener


def assert_same_as_whole(records: Sequence[bytes], **options: Any) -> None:
    """Assert that cutting changes nothing, the second time too, when parts are known."""
    flattener = make_flattener(**options)
    expected, refused = flattener.flatten_whole(records)
    for _ in range(2):
        frame, bad = flattener.flatten(records)
        assert_frame_equal(frame, expected)
        assert bad == refused


def log(rng: Rng, number: int = RECORDS) -> Iterator[dict[str, Any]]:
    """Make the records of a log."""
    return (make_record(rng, each) for each in range(number))


def test_records_of_a_log_are_cut_and_give_the_same_cells() -> None:
    rng = Rng(1)
    records = [json.dumps(each, separators=(",", ":")).encode() for each in log(rng)]
    flattener = make_flattener()
    assert flattener.cutter is not None
    cut = flattener.cutter.cut(records)
    assert cut is not None
    assert cut.usable.all()
    assert_same_as_whole(records)


@settings(max_examples=N, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.02, 0.3]))
def test_hostile_records_give_the_cells_and_refusals_of_whole_ones(seed: int, share: float) -> None:
    rng = Rng(seed)
    records = []
    for record in log(rng):
        odd = rng.random() < share
        text = write(damage(record, rng) if odd else record, rng)
        records.append(mangle(text, rng) if rng.random() < share / 2 else text)
    assert_same_as_whole(records)


def test_values_that_are_converted_are_not_cut_out() -> None:
    records = [json.dumps(each, separators=(",", ":")).encode() for each in log(Rng(2))]
    assert_same_as_whole(records, transforms={"id": lambda value: f"<{value}>"})


def test_a_field_that_moves_between_parts_keeps_its_values() -> None:
    rng = Rng(3)
    records = []
    for record in log(rng):
        who = record.pop("who")
        moved = {**record, "who": who} if rng.random() < 0.5 else {"who": who, **record}
        records.append(json.dumps(moved, separators=(",", ":")).encode())
    assert_same_as_whole(records)


def test_flat_records_are_decoded_whole_because_their_names_may_be_others() -> None:
    records = [b'{"id":"%d","Action":"Get","time":"t%d"}' % (n, n) for n in range(RECORDS)]
    assert_same_as_whole(records, other_names={"action": "action"})


def test_cutting_stops_where_nothing_repeats() -> None:
    records = [
        json.dumps({"id": f"i{n}", "who": {"name": f"n{n}"}, "note": [n]}).encode()
        for n in range(RECORDS)
    ]
    flattener = make_flattener()
    assert flattener.cutter is not None
    flattener.flatten(records)
    assert flattener.cutter.cut(records) is None


def test_forgetting_parts_between_two_calls_changes_no_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("morpheus.sources.cut_records._MAX_PARTS", 3)
    monkeypatch.setattr("morpheus.sources.cut_records._PROBE_RECORDS", 70)
    monkeypatch.setattr("morpheus.sources.cut_records._BLOCK_RECORDS", 16)
    for seed in range(5):
        rng = Rng(seed)
        records = [json.dumps(each, separators=(",", ":")).encode() for each in log(rng)]
        flattener = make_flattener()
        for start in (0, 40, 100, 0):
            part = records[start : start + 100]
            assert_frame_equal(flattener.flatten(part)[0], flattener.flatten_whole(part)[0])


@pytest.mark.parametrize("number", [0, 1, 63])
def test_few_records_are_not_examined(number: int) -> None:
    assert_same_as_whole([b'{"id":"%d"}' % each for each in range(number)])
    assert find_cut_fields([b'{"id":"%d"}' % each for each in range(number)], {}) == []
