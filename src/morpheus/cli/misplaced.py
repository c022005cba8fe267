"""Words and options that were typed where they do not belong: what to say of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

SHOWN = 4
"""Places that are named, at most."""


@contextmanager
def sent_home(root: click.Group, typed: Sequence[str]) -> Iterator[None]:
    """Let the error of an unknown option say to which words it belongs, those typed if any is."""
    try:
        yield
    except click.NoSuchOption as error:
        every = [words[-1] for words, one in _below(root) if error.option_name in _options(one)]
        places = [word for word in every if word in typed] or every
        if places:
            raise click.NoSuchOption(
                error.option_name, f"{error.message} {_belongs(places)}", ctx=error.ctx
            ) from error
        raise


def home_of(word: str, context: click.Context) -> str | None:
    """What to type for a word that is a command elsewhere; None if it is none.

    >>> @click.group()
    ... def tool(): pass
    >>> @tool.command()
    ... def dig(): pass
    >>> home_of("dig", click.TemporalContext(tool, info_name="tool"))
    'There is no `dig` here. Type `tool dig`.'
    """
    top = context.find_root()
    if word == "help":
        return f"Type `{context.command_path} --help`."
    assert isinstance(top.command, click.Group)  # noqa: S101 - only a group resolves words
    found = next((words for words, _ in _below(top.command) if words[-1:] == [word]), None)
    if found is None:
        return None
    return f"There is no `{word}` here. Type `{' '.join([top.info_name or '', *found])}`."


def _below(
    group: click.Group, above: tuple[str, ...] = ()
) -> Iterator[tuple[list[str], click.Command]]:
    """Every command below a group, by the words that lead to it."""
    context = click.Context(group)
    for word in group.list_commands(context):
        one = group.get_command(context, word)
        if one is None:
            continue
        yield [*above, word], one
        if isinstance(one, click.Group):
            yield from _below(one, (*above, word))


def _options(command: click.Command) -> set[str]:
    return {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


def _belongs(places: Sequence[str]) -> str:
    names = [f"`{word}`" for word in dict.fromkeys(places)]
    more = ["others"] if len(names) > SHOWN else []
    *first, last = [*names[:SHOWN], *more]
    listed = f"{', '.join(first)} and {last}" if first else last
    these = "these words" if first else "that word"
    return f"It is an option of {listed}: put it behind {'one of ' if first else ''}{these}."
