"""Proposals as a file of suppressions: for people to read, change and use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from morpheus.quoting import display_value, escape_control, quote_backtick
from morpheus.suppressions.rules import SUPPRESSIONS_FORMAT, format_end
from morpheus.suppressions.verdicts import Proposal, Proposals, Verdict

FILE_HEADER = """\
# Suppressions: what `filter --suppressions` holds back, and until when.
# Made by `morpheus tools suppress` from {verdicts}, exported {made}.
#
# Read each before you use it. An event is held back if it is of one of `users`, lies before `until`
# (UTC, that day not included), and has a value of every `where`; "" stands for no value. A line of
# `where` taken out makes a suppression wider, one added makes it narrower. The summary of each run
# says how many events every suppression has held back.
format = "{format}"
version = 1
"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_NOTE_LENGTH = 120
"""Signs of a reason or a name that a comment shows."""


def render_suppressions(proposals: Proposals, files: Sequence[str]) -> str:
    """Write the file.

    Args:
        proposals: What is proposed; those that something speaks against become comments.
        files: What the verdicts were read from.
        notes: More to be said of a proposal, by its place.
    """
    verdicts = ", ".join(quote_backtick(file) for file in files)
    head = FILE_HEADER.format(verdicts=verdicts, made=_format_time(proposals.exported_at), format=SUPPRESSIONS_FORMAT)
    parts = ["\n".join(_render_lines(one)) + "\n" for one in proposals.proposals]
    silent = "".join(
        f"# No suppression: {_describe_verdict(one)}; it names no user, or no value.\n"
        for one in proposals.unactionable
    )
    return "\n".join([head, *parts, *([silent] if silent else [])])


def toml_string(value: str) -> str:
    r"""A basic string of TOML; what cannot be seen is an escape.

    >>> print(toml_string('say "hi"\n\u202e'))
    "say \"hi\"\u000a\u202e"
    """
    return '"' + "".join(map(_escape_char, value)) + '"'


def _escape_char(char: str) -> str:
    if char in {'"', "\\"}:
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _render_lines(proposal: Proposal) -> Iterator[str]:
    rule = proposal.rule
    for one in proposal.verdicts:
        yield f"# {_describe_verdict(one)}"
    for doubt in proposal.warnings:
        yield f"# Look: {escape_control(doubt)}"
    for reason in proposal.conflicts:
        yield f"# Refused: {escape_control(reason)}"
    mark = "# " if proposal.conflicts else ""
    yield f"{mark}[[suppression]]"
    for column, values in rule.where.items():
        key = column if _BARE_KEY.fullmatch(column) else toml_string(column)
        yield f"{mark}where.{key} = {toml_string(values[0]) if len(values) == 1 else _toml_list(values)}"
    yield f"{mark}users = {_toml_list(rule.users)}"
    yield f"{mark}until = {format_end(rule.until)}"
    yield f"{mark}reason = {toml_string(rule.reason)}"


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(toml_string, values)) + "]"


def _describe_verdict(verdict: Verdict) -> str:
    count = f"{verdict.events:,} event{'s' if verdict.events != 1 else ''}"
    span = f"{_format_time(verdict.start)} to {_format_time(verdict.end)}"
    note = f": {display_value(verdict.note, _MAX_NOTE_LENGTH)}" if verdict.note else ""
    user = display_value(verdict.user or "no user", _MAX_NOTE_LENGTH)
    return f"Incident {verdict.incident}, {count} of {user}, {span}, {verdict.verdict}{note}"


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
