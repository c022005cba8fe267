"""`morpheus report`: a page from the files that earlier runs wrote."""

from __future__ import annotations

from pathlib import Path

import click

from morpheus.cli.chain import help_of
from morpheus.cli.exits import stoppable
from morpheus.cli.options import given, options_of
from morpheus.cli.screen import say
from morpheus.cli.summary import count
from morpheus.review.request import Request


@click.pass_context
def _report(context: click.Context, /, file: tuple[Path, ...], **_: object) -> None:
    from morpheus.review.writing import write  # noqa: PLC0415 - `--help` reads no file

    values = given(context)
    del values["file"]
    request = Request(**values)
    with stoppable():
        found = write(request, file)
    events, incidents = count(found.account.read, "event"), count(len(found.incidents), "incident")
    say(f"{request.filename}: {incidents} among {events}")


report = click.Command(
    "report",
    params=[
        click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path)),
        *options_of(Request),
    ],
    callback=_report,
    help=help_of(Request),
)
