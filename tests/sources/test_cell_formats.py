"""Cells in which exports write objects are decoded, and damaged ones are not."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.sources.json_records import decode_cell, is_type_name, looks_like_object

ROLE = (
    "{type=AssumedRole, principalid=AROA:ann@x.org, sessioncontext={attributes="
    "{mfaauthenticated=false, creationdate=2026-10-01T08:00:00Z}, sessionissuer={type=Role, "
    "username=deploy}}, invokedby=null}"
)


def test_nested_structs_are_decoded() -> None:
    assert decode_cell(ROLE) == {
        "type": "AssumedRole",
        "principalid": "AROA:ann@x.org",
        "sessioncontext": {
            "attributes": {"mfaauthenticated": "false", "creationdate": "2026-10-01T08:00:00Z"},
            "sessionissuer": {"type": "Role", "username": "deploy"},
        },
        "invokedby": None,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ("@{}", {}),
        ("{a=}", {"a": None}),
        ("{a=x, y, b=2}", {"a": "x, y", "b": "2"}),
        ("{a=x=y,z=1, b=2}", {"a": "x=y,z=1", "b": "2"}),
        ("{a=[{b=1}, {b=2}], c=3}", {"a": "[{b=1}, {b=2}]", "c": "3"}),
        ('{a={"x":[{"y":"1, z=2"}]}, b=2}', {"a": {"x": [{"y": "1, z=2"}]}, "b": "2"}),
        ("{a={x}, b=2}", {"a": "{x}", "b": "2"}),
        ("{a={}, b={c=null}}", {"a": {}, "b": {"c": None}}),
        ("@{a=1; b=x, y; c=@{d=2; e=}}", {"a": "1", "b": "x, y", "c": {"d": "2", "e": None}}),
        ("@{a=System.Object[]; b=1}", {"a": None, "b": "1"}),
        ("@{a=x; y; b=1}", {"a": "x; y", "b": "1"}),
        (
            "class Status {\n  ErrorCode: 0\n  Reason: a: b\n  More: \n}",
            {"ErrorCode": "0", "Reason": "a: b", "More": None},
        ),
        ('{"a": {"b": null}}', {"a": {"b": None}}),
        (r'"{\"a\": {\"b\": null}}"', {"a": {"b": None}}),
        ("{'a': True, 'b': [1]}", {"a": True, "b": [1]}),
    ],
)
def test_objects_of_exports_are_decoded(text: str, expected: dict[str, Any]) -> None:
    assert decode_cell(text) == expected
    assert looks_like_object(text)


@pytest.mark.parametrize(
    "text",
    ["", "ann", "{", "{a=1", "{a=1}}", "{a={b=1}", "{a, b}", '{"a": 1', "@{a=1; b", "{IAMUser, 1}"],
)
def test_cut_off_and_other_text_is_no_object(text: str) -> None:
    assert decode_cell(text) is None


def test_type_names_are_recognised() -> None:
    assert is_type_name("Microsoft.Graph.PowerShell.Models.MicrosoftGraphSignInStatus")
    assert is_type_name("System.Collections.Generic.List`1[System.String]")
    assert not is_type_name("Microsoft Office 365 Portal")
    assert not is_type_name("Microsoft")


KEYS = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
VALUES = st.recursive(
    st.from_regex(r"[A-Za-z0-9:/@._-]{1,8}", fullmatch=True).filter(
        lambda text: text not in {"null", "NULL", "None"} and not is_type_name(text)
    ),
    lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=8,
)


def write_struct(value: object, begin: str, separator: str) -> str:
    if not isinstance(value, dict):
        return str(value)
    pairs = (f"{key}={write_struct(inner, begin, separator)}" for key, inner in value.items())
    return begin + separator.join(pairs) + "}"


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_structs_are_read_back(value: dict[str, Any]) -> None:
    assert decode_cell(write_struct(value, "{", ", ")) == value
    assert decode_cell(write_struct(value, "@{", "; ")) == value
    assert decode_cell(msgspec.json.encode(value).decode()) == value
    assert decode_cell(repr(value)) == value


@pytest.mark.parametrize("piece", ["{a=", "a=1, ", "@{", "}", "[", "; ", "x, y="])
def test_hostile_cells_take_linear_time(piece: str) -> None:
    start = time.perf_counter()
    decode_cell("{a=1, " + piece * 100_000 + "}")
    assert time.perf_counter() - start < 5
