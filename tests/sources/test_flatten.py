import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.sources.json_records import Flattener, to_text

PATHS = ("user.arn", "user.issuer.name", "name", "request.owners", "request.count")
WANTED = ("name", "userarn", "userissuername", "requestcount")


def rows(*records: object, wanted: tuple[str, ...] = WANTED, **given: Any) -> list[dict[str, Any]]:
    texts = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    frame, _ = Flattener(wanted, PATHS, **given).flatten(texts)
    return frame.to_dicts()


def test_nested_names_are_joined_without_dots() -> None:
    [row] = rows({"name": "n", "user": {"arn": "a", "issuer": {"name": "i"}}, "other": 1})
    assert row == {"name": "n", "userarn": "a", "userissuername": "i", "requestcount": None}


@pytest.mark.parametrize(
    "record",
    [
        {"name": "n", "userarn": "a", "userissuername": "i"},
        {"name": "n", "user.arn": "a", "user.issuer.name": "i"},
        {"name": "n", "user.arn": "a", "user.issuer": {"name": "i"}},
        {"name": "n", "user.arn": "a", "user.issuer.name": "i", "request": {"owners": 1}},
        {"name": "n", "user": None, "user.arn": "a", "user.issuer.name": "i", "request": None},
    ],
)
def test_flat_records_give_the_same_columns(record: object) -> None:
    assert rows(record) == [
        {"name": "n", "userarn": "a", "userissuername": "i", "requestcount": None}
    ]


def test_names_in_lower_case_inside_an_object_are_columns() -> None:
    paths = ("userIdentity.accountId", "userIdentity.issuer.userName", "name")
    wanted = ("name", "userIdentityaccountId", "userIdentityissueruserName")
    own = {"name": "n", "userIdentity": {"accountId": "1", "issuer": {"userName": "u"}}}
    lower = {"name": "n", "userIdentity": {"accountid": "1", "issuer": {"username": "u"}}}
    inner = {"name": "n", "userIdentity": {"accountId": "1", "issuer": {"username": "u"}}}
    texts = [json.dumps(each).encode() for each in (own, lower, inner)]
    frame, refused = Flattener(wanted, paths).flatten(texts)
    assert not refused
    assert frame.rows() == [("n", "1", "u")] * 3


def test_known_and_unknown_names_are_flattened_the_same_way() -> None:
    record = {"name": "n", "user": {"arn": "a"}, "request": {"count": 3, "deep": {"er": True}}}
    [walked] = rows(record, wanted=(*WANTED, "requestdeeper"))
    assert walked == {**rows(record)[0], "requestdeeper": "True"}


def test_values_become_text() -> None:
    cells = ["007", True, False, 10**30, 1.5, None, {"b": 1, "a": [None]}, [], "é\n"]
    [*got] = (rows({"request": {"count": cell}})[0]["requestcount"] for cell in cells)
    expected = [
        "007",
        "True",
        "False",
        "1" + "0" * 30,
        "1.5",
        None,
        '{"a":[null],"b":1}',
        "[]",
        "é\n",
    ]
    assert got == expected


def test_column_of_mixed_types_becomes_text() -> None:
    cells: list[Any] = ["05", 1, True, None, [1], {"x": 1}, 2.5, 10**400]
    for column in (cells, cells[::-1]):
        got = [row["requestcount"] for row in rows(*({"request": {"count": c}} for c in column))]
        expected = ["05", "1", "True", None, "[1]", '{"x":1}', "2.5", "1" + "0" * 400]
        assert got == (expected if column is cells else expected[::-1])


def test_text_in_place_of_an_object_does_not_hide_other_values() -> None:
    assert rows({"name": "n", "user": "root"}, {"name": "m", "user": {"arn": "a"}}) == [
        {"name": "n", "userarn": None, "userissuername": None, "requestcount": None},
        {"name": "m", "userarn": "a", "userissuername": None, "requestcount": None},
    ]


def test_wanted_object_is_text_next_to_its_leaves() -> None:
    [row] = rows({"user": {"arn": "a"}}, wanted=("user", "userarn"))
    assert row == {"user": '{"arn":"a"}', "userarn": "a"}


def test_other_columns_come_sorted_after_the_wanted_ones() -> None:
    got = rows({"z": 1, "user": {"id": "i"}}, {"b": {"a": []}, "name": "n"}, all_columns=True)
    assert list(got[0]) == [*WANTED, "ba", "userid", "z"]
    assert [row["z"] for row in got] == ["1", None]


def test_equal_flat_names_cause_a_warning_and_the_first_value_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [{"user": {"id": None}, "userid": "b", "us": {"erid": "c"}}] * 2
    with caplog.at_level(logging.WARNING):
        got = rows(*records, wanted=("userid",))
    assert got == [{"userid": "b"}] * 2
    [message] = caplog.messages
    assert message.startswith("`user.id` and `userid` are the same column `userid`")


def test_lone_surrogates_are_replaced_and_bytes_that_are_not_utf8_are_read_as_windows_1252() -> (
    None
):
    got = rows(rb'{"name":"\ud800","user":{"arn":"a"}}', b'{"name":"\xff","user":{"arn":"b"}}')
    assert [row["name"] for row in got] == ["\N{REPLACEMENT CHARACTER}", "ÿ"]
    assert [row["userarn"] for row in got] == ["a", "b"]


@pytest.mark.parametrize("record", [b'{"a":', b"[1]", b'"x"', b"", b"[" * 100_000])
def test_invalid_records_are_rejected_by_row(record: bytes) -> None:
    frame, refused = Flattener(WANTED, PATHS).flatten([b'{"name":"n"}', record, b'{"name":"m"}'])
    assert frame["name"].to_list() == ["n", None, "m"]
    assert list(refused) == [1]


def test_values_can_be_transformed() -> None:
    [row] = rows(
        {"request": {"owners": [1, 2]}},
        wanted=("requestowners",),
        transforms={"requestowners": len},
    )
    assert row == {"requestowners": "2"}


KEYS = st.sampled_from(["name", "user", "arn", "issuer", "request", "count", "x"])
RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
).filter(lambda value: isinstance(value, dict))


@given(st.lists(RECORDS, max_size=5))
def test_typed_and_untyped_decoding_agree(records: list[Any]) -> None:
    fast = rows(*records)
    walked = [{n: row[n] for n in WANTED} for row in rows(*records, wanted=(*WANTED, "unknown"))]
    assert fast == walked


@given(st.integers() | st.booleans() | st.text())
def test_text_of_a_scalar_is_its_python_text(value: object) -> None:
    assert to_text(value) == str(value)
