"""`morpheus tools`: what is not a run."""

from __future__ import annotations

import click

from morpheus.cli.autocomplete import autocomplete
from morpheus.cli.command import Group
from morpheus.cli.replay import replay
from morpheus.cli.suppress import suppress
from morpheus.cli.table import aligned


@click.group(cls=Group)
def tools() -> None:
    """Look at what is installed, and at what it would catch."""


@tools.command()
def stages() -> None:
    """List the stages that exist: what each takes, gives, and which package brings it."""
    from morpheus import registry  # noqa: PLC0415 - `--help` lists nothing
    from morpheus.cli.chain import described  # noqa: PLC0415 - the same

    rows = [(word, registry.distribution_of(word), *described(word)) for word in registry.stage_names()]
    click.echo(aligned(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@tools.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of this command line, in Markdown."""
    from morpheus.cli.reference import reference_of  # noqa: PLC0415 - `--help` prints no reference

    click.echo(reference_of(context.find_root().command, "morpheus"))


@tools.command()
@click.pass_context
def compatibility(context: click.Context) -> None:
    """Print what becomes of each stage and option of NVIDIA Morpheus, in Markdown."""
    from morpheus.cli.compatibility import page  # noqa: PLC0415 - `--help` prints no table

    click.echo(page(context.find_root().command))


tools.add_command(autocomplete)
tools.add_command(replay)
tools.add_command(suppress)
