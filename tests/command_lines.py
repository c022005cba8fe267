"""Command lines of `morpheus` in text: found, and checked without being run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click
from click.exceptions import Exit

from morpheus.cli.chain import run
from morpheus.cli.main import morpheus
from morpheus.core.stage import Stage

LEFT_OUT = ("...", "…")
"""Words that stand for others."""
_ARRAY = re.compile(r"^\w+=\((morpheus [^)]*)\)", re.MULTILINE)
_COMMAND = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(morpheus (?:.*\\\n)*.*)$", re.MULTILINE)
_PUNCTUATION = frozenset("|&;<>()")


def find_commands(text: str) -> Iterator[list[str]]:
    r"""Yield the words of each command line in the text of a shell.

    >>> list(find_commands("$ morpheus report a.csv \\\n    --alerts_per_day=1 > x && ls  # y\n"))
    [['morpheus', 'report', 'a.csv', '--alerts_per_day=1']]
    """
    arrays = (match[1] for match in _ARRAY.finditer(text))
    for line in (*arrays, *(match[1] for match in _COMMAND.finditer(_ARRAY.sub("", text)))):
        words = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        found: list[str] = []
        for word in words:
            if set(word) <= _PUNCTUATION:
                break
            found.append(word)
        # The number of a file descriptor, as in `2>&1`.
        yield found[:-1] if found[-1] == "2" else found


def check_command(words: Sequence[str]) -> None:
    """Check a command line as far as this is possible without running it.

    Raises:
        click.ClickException: It is wrong.
        morpheus.errors.UsageError: The value of an option is wrong.
    """
    if set(LEFT_OUT) & set(words):
        check_options(words)
        return
    with suppress(Exit):  # of `--version`, which writes it
        _parse(morpheus, "morpheus", list(words[1:]), None)


def iter_options(command: click.Command = morpheus) -> Iterator[tuple[click.Command, str]]:
    """Yield each option of a command and of those below it."""
    for param in command.params:
        yield from ((command, option) for option in (*param.opts, *param.secondary_opts))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None:
                yield from iter_options(below)


def check_options(words: Sequence[str]) -> None:
    """Check that the commands in a line exist, and that each option is one of its command.

    Raises:
        click.NoSuchOption: An option is wrong.
    """
    command: click.Command = morpheus
    context = click.Context(command)
    pipeline = run.get_command(context, "pipeline-ae")
    assert isinstance(pipeline, click.Group)
    for word in words[1:]:
        name = word.partition("=")[0]
        if word.startswith("-"):
            options = {opt for one in command.params for opt in (*one.opts, *one.secondary_opts)}
            if name not in options | {"--help"}:
                raise click.NoSuchOption(name)
            continue
        group = command if isinstance(command, click.Group) else pipeline
        below = group.get_command(context, word) or pipeline.get_command(context, word)
        if below is None and any(each.startswith("--plugin") for each in words):
            return  # a stage of the plugin
        command = below or command


def _parse(
    command: click.Command, name: str, words: list[str], above: click.Context | None
) -> None:
    context = command.make_context(name, words, parent=above)
    rest = [*context._protected_args, *context.args]  # noqa: SLF001 - as click's groups do
    if not isinstance(command, click.Group) or not rest:
        return
    if not command.chain:
        _, below, args = command.resolve_command(context, rest)
        assert below is not None
        _parse(below, rest[0], args, context)
        return
    while rest:
        _, stage, args = command.resolve_command(context, rest)
        assert stage is not None
        one = stage.make_context(
            rest[0], args, parent=context, allow_extra_args=True, allow_interspersed_args=False
        )
        rest = one.args
        assert isinstance(stage.invoke(one), Stage)
