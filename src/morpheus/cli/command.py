"""Commands made of classes: options of the fields, help of the docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import click

from morpheus.cli.misplaced import home_of
from morpheus.cli.options import given, options_of

_SECTION = re.compile(r"^(?:[A-Z]\w+:$|>>>)", re.MULTILINE)


class Group(click.Group):
    """A group that says of each of its commands, in whole sentences, what it does."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next command, or say where it is one."""
        word = args[0]
        known = word in self.list_commands(ctx)
        if not (known or ctx.resilient_parsing or word.startswith("-")):
            home = home_of(word, ctx)
            if home is not None:
                ctx.fail(home)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands."""
        found = ((word, self.get_command(ctx, word)) for word in self.list_commands(ctx))
        rows = [(word, heading(one.help or "")) for word, one in found if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def made_of(
    word: str, owner: type, run: Callable[..., object], *arguments: click.Argument
) -> click.Command:
    """Make a command.

    Args:
        word: Its name.
        owner: A dataclass: its fields are the options, its docstring the help.
        run: Is given the dataclass, and then the value of each argument.
        arguments: What is typed beside options.
    """

    @click.pass_context
    def called(context: click.Context, /, **_: object) -> object:
        values = given(context)
        typed = [values.pop(one.name or "") for one in arguments]
        return run(owner(**values), *typed)

    return click.Command(
        word, params=[*arguments, *options_of(owner)], callback=called, help=help_of(owner)
    )


def help_of(owner: type) -> str:
    """The prose of a docstring, without its sections; indented lines stay lines."""
    prose = _SECTION.split(inspect.getdoc(owner) or "", maxsplit=1)[0].strip()
    return "\n\n".join(
        f"\b\n{part}" if re.search(r"^\s", part, re.MULTILINE) else part
        for part in prose.split("\n\n")
    )


def heading(text: str) -> str:
    """The first line of a help."""
    return text.partition("\n")[0]
