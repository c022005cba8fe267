"""Proposals as a file of suppressions: for people to read, change and use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from morpheus.quoting import legible, printable, quoted
from morpheus.suppressions.rules import FORMAT, spelt
from morpheus.suppressions.verdicts import Proposal, Proposals, Verdict

HEAD = """\
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
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = 120
"""Signs of a reason or a name that a comment shows."""


def text_of(proposals: Proposals, files: Sequence[str]) -> str:
    """Write the file.

    Args:
        proposals: What is proposed; those that something speaks against become comments.
        files: What the verdicts were read from.
        notes: More to be said of a proposal, by its place.
    """
    verdicts = ", ".join(quoted(file) for file in files)
    head = HEAD.format(verdicts=verdicts, made=_moment(proposals.made), format=FORMAT)
    parts = ["\n".join(_lines(one)) + "\n" for one in proposals.each]
    silent = "".join(
        f"# No suppression: {_told(one)}; it names no user, or no value.\n"
        for one in proposals.mute
    )
    return "\n".join([head, *parts, *([silent] if silent else [])])


def text(value: str) -> str:
    r"""A basic string of TOML; what cannot be seen is an escape.

    >>> print(text('say "hi"\n\u202e'))
    "say \"hi\"\u000a\u202e"
    """
    return '"' + "".join(map(_sign, value)) + '"'


def _sign(sign: str) -> str:
    if sign in {'"', "\\"}:
        return "\\" + sign
    if sign.isprintable():
        return sign
    return f"\\u{ord(sign):04x}" if ord(sign) < 1 << 16 else f"\\U{ord(sign):08x}"


def _lines(proposal: Proposal) -> Iterator[str]:
    rule = proposal.rule
    for one in proposal.verdicts:
        yield f"# {_told(one)}"
    for doubt in proposal.doubts:
        yield f"# Look: {printable(doubt)}"
    for reason in proposal.against:
        yield f"# Refused: {printable(reason)}"
    mark = "# " if proposal.against else ""
    yield f"{mark}[[suppression]]"
    for column, values in rule.where.items():
        key = column if _BARE.fullmatch(column) else text(column)
        yield f"{mark}where.{key} = {text(values[0]) if len(values) == 1 else _list(values)}"
    yield f"{mark}users = {_list(rule.users)}"
    yield f"{mark}until = {spelt(rule.until)}"
    yield f"{mark}reason = {text(rule.reason)}"


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(text, values)) + "]"


def _told(verdict: Verdict) -> str:
    count = f"{verdict.events:,} event{'s' if verdict.events != 1 else ''}"
    span = f"{_moment(verdict.start)} to {_moment(verdict.end)}"
    note = f": {legible(verdict.note, _PLAIN)}" if verdict.note else ""
    user = legible(verdict.user or "no user", _PLAIN)
    return f"Incident {verdict.incident}, {count} of {user}, {span}, {verdict.verdict}{note}"


def _moment(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
