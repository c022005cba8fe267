"""`morpheus report`: a page from the files that earlier runs wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from morpheus.cli.command import made_of
from morpheus.cli.exits import stoppable
from morpheus.cli.screen import say
from morpheus.cli.summary import count
from morpheus.review.request import Request


def _report(request: Request, files: Sequence[Path]) -> None:
    from morpheus.review.writing import write  # noqa: PLC0415 - `--help` reads no file

    with stoppable():
        found = write(request, files)
    events, incidents = count(found.account.read, "event"), count(len(found.incidents), "incident")
    say(f"{request.filename}: {incidents} among {events}")


FILES = click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path))
report = made_of("report", Request, _report, FILES)
