"""What is said to the person at the terminal: on stderr, stdout being for results."""

from __future__ import annotations

import os
from typing import Any

import click


def printable(text: str, *, keep: str = "") -> str:
    r"""Show control characters as escapes: names out of a log must not command the terminal.

    Args:
        text: Anything.
        keep: Characters to leave as they are.

    >>> print(printable("ann\x1b[2J\n"))
    ann\x1b[2J\n
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def say(text: str, **style: Any) -> None:  # noqa: ANN401 - the styles of click
    """Write lines to stderr, coloured only on a terminal, and not where NO_COLOR is set."""
    color = False if os.environ.get("NO_COLOR") else None
    click.secho(printable(text, keep="\n"), err=True, color=color, **style)
