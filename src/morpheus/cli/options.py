"""Fields of a dataclass, made by `morpheus.stage.option`, as options of a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

TYPES: dict[type, click.ParamType[Any]] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


def options_of(owner: type, *, command: str = "") -> list[click.Parameter]:
    """Make the options of a stage, or those of `PipelineOptions` that a command owns."""
    hints = get_type_hints(owner)
    return [_option(one, hints[one.name]) for one in _declared(owner, command)]


def given(context: click.Context) -> dict[str, Any]:
    """Values that were given, on the command line or by the environment.

    What was not given, or given as nothing, is left to the default of the field.

    Raises:
        click.MissingParameter: A required option was given as nothing.
    """
    values = {}
    for one in context.command.params:
        name, value = one.name or "", context.params.get(one.name or "")
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        if value not in (None, "", ()):
            values[name] = value
        elif one.required:
            raise click.MissingParameter(ctx=context, param=one)
    return values


def _declared(owner: type, command: str) -> Iterator[Field[Any]]:
    """Fields that are options of this command."""
    for one in fields(owner):
        if "text" in one.metadata and one.metadata["command"] == command:
            yield one


def _option(declared: Field[Any], hint: object) -> click.Option:
    """One field as an option."""
    about = declared.metadata
    kind, many = _plain(hint)
    default: dict[str, Any] = {} if about["required"] else {"default": declared.default}
    return click.Option(
        [declared.name, *(about["names"] or (f"--{declared.name}",))],
        type=_type(kind, about),
        is_flag=about["flag"],
        multiple=many,
        required=about["required"],
        help=about["text"],
        show_default=about["shown"] or True,
        show_envvar=False,
        **default,
    )


def _plain(hint: object) -> tuple[type, bool]:
    """The type of one value, without None; and whether the option is repeatable."""
    if get_origin(hint) in (Union, UnionType):
        [hint] = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if isinstance(hint, type):
        return hint, False
    raise TypeError(f"an option cannot be a {hint}")


def _type(kind: type, about: Mapping[str, Any]) -> click.ParamType[Any]:
    """How click reads a value of this type."""
    if about["choices"]:
        return click.Choice(about["choices"], case_sensitive=False)
    low, high = about["low"], about["high"]
    if low is not None or high is not None:
        return click.IntRange(low, high) if kind is int else click.FloatRange(low, high)
    return TYPES[kind]
