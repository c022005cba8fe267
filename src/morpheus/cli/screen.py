"""What is said to the person at the terminal: on stderr, stdout being for results."""

from __future__ import annotations

import os
from typing import Any

import click

from morpheus.quoting import escape_control


def say(text: str, **style: Any) -> None:  # noqa: ANN401 - the styles of click
    """Write lines to stderr, coloured only on a terminal, and not where NO_COLOR is set."""
    color = False if os.environ.get("NO_COLOR") else None
    click.secho(escape_control(text, keep="\n"), err=True, color=color, **style)
