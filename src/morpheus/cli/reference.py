"""The reference of the command line, in Markdown, made from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from textwrap import dedent

import click

TITLE = """# Command line

Made by `make docs` from the stages themselves; edit those, not this page.
"""


def reference_of(command: click.Command, name: str) -> str:
    """The reference: this command, then those below it."""
    return "\n".join([TITLE, *_page(click.Context(command, info_name=name))]).rstrip()


def _page(context: click.Context) -> Iterator[str]:
    """A command: what it does, its options, then its own commands."""
    command = context.command
    yield f"## {context.command_path}\n"
    yield from _prose(command.help or "")
    yield from _prose(command.epilog or "")
    yield from _options(context)
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None:
                yield from _page(click.Context(below, info_name=word, parent=context))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs; those that keep their lines become blocks of code."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b\n"):
            yield f"```sh\n{dedent(part[2:]).rstrip()}\n```\n"
        elif part:
            yield f"{part.strip()}\n"


def _options(context: click.Context) -> Iterator[str]:
    """A table of the options."""
    options = [one for one in context.command.params if isinstance(one, click.Option)]
    if not options:
        return
    yield "| Option | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for one in options:
        names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
        cells = (names, value_of(one), default_of(one), one.help or "")
        yield "| " + " | ".join(map(cell, cells)) + " |"
    yield ""


def cell(text: str) -> str:
    """Text as a cell of a table: on one line."""
    return " ".join(text.replace("|", "\\|").split())


def value_of(option: click.Option) -> str:
    """What an option takes."""
    if option.is_flag:
        return ""
    kind = option.type
    text = (
        ", ".join(f"`{x}`" for x in kind.choices) if isinstance(kind, click.Choice) else kind.name
    )
    if isinstance(kind, click.IntRange | click.FloatRange):
        low = f" ≥ {kind.min}" if kind.min is not None else ""
        high = f" ≤ {kind.max}" if kind.max is not None else ""
        text = f"{text.removesuffix(' range')}{low}{high}"
    return f"{text}, repeatable" if option.multiple else text


def default_of(option: click.Option) -> str:
    """What holds where an option is not given."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    if option.is_flag or default is None or default in ((), ""):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return ", ".join(f"`{one}`" for one in values)
