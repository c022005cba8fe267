"""`morpheus tools`: what is not a run."""

from __future__ import annotations

from collections.abc import Sequence

import click


@click.group()
def tools() -> None:
    """Look at what is installed."""


@tools.command()
def stages() -> None:
    """List the stages that exist: what each takes, gives, and which package brings it."""
    from morpheus import registry  # noqa: PLC0415 - `--help` lists nothing
    from morpheus.cli.chain import described  # noqa: PLC0415 - the same

    rows = [(word, registry.package(word), *described(word)) for word in registry.words()]
    click.echo(_table(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@tools.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of this command line, in Markdown."""
    from morpheus.cli.reference import reference_of  # noqa: PLC0415 - `--help` prints no reference

    click.echo(reference_of(context.find_root().command, "morpheus"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)
