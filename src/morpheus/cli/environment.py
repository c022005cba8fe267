"""Options from the environment: which variables there are, and what to say of wrong ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import click
from click.core import ParameterSource

log = logging.getLogger(__name__)

PREFIX = "MORPHEUS"
PLUGINS = f"{PREFIX}_PLUGINS"
OURS = (f"{PREFIX}_RUN_", f"{PREFIX}_TOOLS_")
"""How variables begin that can only be meant as options of commands."""


def variables(command: click.Command, prefix: str = PREFIX) -> Iterator[str]:
    """The variables that the options of a command, and of those below it, are read from.

    >>> @click.command(params=[click.Option(["--num_threads"])])
    ... def run(): pass
    >>> list(variables(run, "MORPHEUS_RUN"))
    ['MORPHEUS_RUN_NUM_THREADS']
    """
    context = click.Context(command)
    for one in command.params:
        if isinstance(one, click.Option) and one.name:
            yield f"{prefix}_{one.name.upper()}"
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None:
                yield from variables(below, f"{prefix}_{word.upper().replace('-', '_')}")


def tell_unknown(root: click.Command) -> None:
    """Warn of variables that are meant as options, and are none."""
    set_ = sorted(name for name in os.environ if name.startswith(OURS))
    known = set(variables(root)) if set_ else set()
    for name in set_:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = (
                f"Did you mean {close[0]}?"
                if close
                else "`morpheus --help` says how they are named."
            )
            log.warning("%s is set, but no option is read from it. %s", name, meant)


@contextmanager
def named() -> Iterator[None]:
    """Name the variable that a wrong value comes from: whoever is told may not have typed it."""
    try:
        yield
    except click.BadParameter as error:
        option, context = error.param, error.ctx
        if option is not None and context is not None and option.name:
            source = context.get_parameter_source(option.name)
            if source is ParameterSource.ENVIRONMENT:
                variable = f"{context.auto_envvar_prefix}_{option.name.upper()}"
                told = f"{error.message} It comes from the environment, {variable}."
                raise click.BadParameter(told, context, option) from error
        raise
