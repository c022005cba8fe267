"""Fields of a dataclass, made by `morpheus.stage.option`, as options of a command."""

from __future__ import annotations

import inspect
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from click.exceptions import Exit

from morpheus.cli.drawing import render_diagram
from morpheus.cli.output import echo, interruptible
from morpheus.core.registry import load_stage, stage_names, unknown_stage_message
from morpheus.core.stage import PipelineOptions, Stage
from morpheus.errors import EXIT_INTERRUPTED, UsageError
from morpheus.storage.atomic import atomic_write

if TYPE_CHECKING:
    from morpheus.core.batch import RunMetrics
    from morpheus.pipeline import Pipeline

CLICK_TYPES: dict[type, click.ParamType[Any]] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


def options_from_dataclass(options_class: type, *, command: str = "") -> list[click.Parameter]:
    """Make the options of a stage, or those of `PipelineOptions` that a command owns."""
    hints = get_type_hints(options_class)
    return [_build_option(one, hints[one.name]) for one in _select_fields(options_class, command)]


def explicit_values(context: click.Context) -> dict[str, Any]:
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


def _select_fields(options_class: type, command: str) -> Iterator[Field[Any]]:
    """Fields that are options of this command."""
    for one in fields(options_class):
        if "text" in one.metadata and one.metadata["command"] == command:
            yield one


def _build_option(declared: Field[Any], hint: object) -> click.Option:
    """One field as an option."""
    about = declared.metadata
    kind, many = _unwrap_optional(hint)
    default: dict[str, Any] = {} if about["required"] else {"default": declared.default}
    return click.Option(
        [declared.name, *(about["names"] or (f"--{declared.name}",))],
        type=_to_click_type(kind, about),
        is_flag=about["flag"],
        multiple=many,
        required=about["required"],
        help=about["text"],
        show_default=about["shown"] or True,
        show_envvar=False,
        **default,
    )


def _unwrap_optional(hint: object) -> tuple[type, bool]:
    """The type of one value, without None; and whether the option is repeatable."""
    if get_origin(hint) in (Union, UnionType):
        [hint] = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if isinstance(hint, type):
        return hint, False
    raise TypeError(f"an option cannot be a {hint}")


def _to_click_type(kind: type, about: Mapping[str, Any]) -> click.ParamType[Any]:
    """How click reads a value of this type."""
    if about["choices"]:
        return click.Choice(about["choices"], case_sensitive=False)
    low, high = about["low"], about["high"]
    if low is not None or high is not None:
        return click.IntRange(low, high) if kind is int else click.FloatRange(low, high)
    return CLICK_TYPES[kind]


MAX_PLACES = 4
"""Places that are named, at most."""


@contextmanager
def locate_option(root: click.Group, argv: Sequence[str]) -> Iterator[None]:
    """Let the error of an unknown option say to which words it belongs, those typed if any is."""
    try:
        yield
    except click.NoSuchOption as error:
        every = [
            words[-1]
            for words, one in _iter_commands(root)
            if error.option_name in _option_names(one)
        ]
        places = [word for word in every if word in argv] or every
        if places:
            raise click.NoSuchOption(
                error.option_name, f"{error.message} {_describe_places(places)}", ctx=error.ctx
            ) from error
        raise


def suggest_command(word: str, context: click.Context) -> str | None:
    """What to type for a word that is a command elsewhere; None if it is none.

    >>> @click.group()
    ... def tool(): pass
    >>> @tool.command()
    ... def dig(): pass
    >>> suggest_command("dig", click.TemporalContext(tool, info_name="tool"))
    'There is no `dig` here. Type `tool dig`.'
    """
    top = context.find_root()
    if word == "help":
        return f"Type `{context.command_path} --help`."
    assert isinstance(top.command, click.Group)  # noqa: S101 - only a group resolves words
    found = next((words for words, _ in _iter_commands(top.command) if words[-1:] == [word]), None)
    if found is None:
        return None
    return f"There is no `{word}` here. Type `{' '.join([top.info_name or '', *found])}`."


def _iter_commands(
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
            yield from _iter_commands(one, (*above, word))


def _option_names(command: click.Command) -> set[str]:
    return {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


def _describe_places(places: Sequence[str]) -> str:
    names = [f"`{word}`" for word in dict.fromkeys(places)]
    more = ["others"] if len(names) > MAX_PLACES else []
    *first, last = [*names[:MAX_PLACES], *more]
    listed = f"{', '.join(first)} and {last}" if first else last
    these = "these words" if first else "that word"
    return f"It is an option of {listed}: put it behind {'one of ' if first else ''}{these}."


_DOCSTRING_SECTION = re.compile(r"^(?:[A-Z]\w+:$|>>>)", re.MULTILINE)


class CommandGroup(click.Group):
    """A group that says of each of its commands, in whole sentences, what it does."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next command, or say where it is one."""
        word = args[0]
        known = word in self.list_commands(ctx)
        if not (known or ctx.resilient_parsing or word.startswith("-")):
            home = suggest_command(word, ctx)
            if home is not None:
                ctx.fail(home)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands."""
        found = ((word, self.get_command(ctx, word)) for word in self.list_commands(ctx))
        rows = [(word, first_line(one.help or "")) for word, one in found if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def command_from_dataclass(
    name: str, options_class: type, callback: Callable[..., object], *arguments: click.Argument
) -> click.Command:
    """Make a command.

    Args:
        name: Its name.
        options_class: A dataclass: its fields are the options, its docstring the help.
        callback: Is given the dataclass, and then the value of each argument.
        arguments: What is typed beside options.
    """

    @click.pass_context
    def called(context: click.Context, /, **_: object) -> object:
        values = explicit_values(context)
        typed = [values.pop(one.name or "") for one in arguments]
        return callback(options_class(**values), *typed)

    return click.Command(
        name,
        params=[*arguments, *options_from_dataclass(options_class)],
        callback=called,
        help=help_from_docstring(options_class),
    )


def help_from_docstring(documented: type) -> str:
    """The prose of a docstring, without its sections; indented lines stay lines."""
    prose = _DOCSTRING_SECTION.split(inspect.getdoc(documented) or "", maxsplit=1)[0].strip()
    return "\n\n".join(
        f"\b\n{part}" if re.search(r"^\s", part, re.MULTILINE) else part
        for part in prose.split("\n\n")
    )


def first_line(text: str) -> str:
    """The first line of a help."""
    return text.partition("\n")[0]


logger = logging.getLogger(__name__)

PIPELINE_HELP = """Learn each user's habits with an autoencoder, and score events by them.

The stages follow, in the order in which events pass through them, each with its options:

\b
morpheus run pipeline-ae --userid_column_name=userIdentityarn \\
  from-cloudtrail --input_glob=AWSLogs/2026/11/ \\
  train-ae --train_data_glob=AWSLogs/2026/10/ \\
  preprocess inf-pytorch add-scores \\
  serialize to-file --filename=output.csv
"""
BOOLEAN_WORDS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
BOOLEAN_WORDS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


class PipelineGroup(CommandGroup):
    """A group whose commands are the registry's stages, loaded when their word is used."""

    def __init__(self, name: str, **attributes: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(
            name,
            chain=True,
            help=PIPELINE_HELP,
            invoke_without_command=True,  # the pipeline has its own word for an empty chain
            no_args_is_help=True,
            subcommand_metavar="STAGE...",
            **attributes,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every stage, sorted."""
        del ctx
        return list(stage_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make the command of a stage; None where no stage has the name."""
        del ctx
        return build_stage_command(cmd_name) if cmd_name in stage_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next stage, or say what was meant."""
        word = args[0]
        if not ctx.resilient_parsing and word[:1] != "-" and word not in stage_names():
            ctx.fail(_explain_unexpected_word(word, ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the stages; one that cannot be loaded does not hide the others."""
        rows = [(word, describe_stage(word)[1]) for word in self.list_commands(ctx)]
        with formatter.section("Stages"):
            formatter.write_dl(rows)


class StageCommand(click.Command):
    """The command of one stage. Its flags may be given a value, as some releases wanted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of this stage, and leave those of the stages behind it."""
        return super().parse_args(ctx, list(self._normalise_flags(args)))

    def _normalise_flags(self, args: list[str]) -> Iterator[str]:
        options = [one for one in self.params if isinstance(one, click.Option)]
        flags = {name for one in options if one.is_flag for name in one.opts}
        valued = {name for one in options if not one.is_flag for name in one.opts}
        words = deque(args)
        while words and words[0].startswith("-"):
            word = words.popleft()
            name, equals, value = word.partition("=")
            if name in flags and not equals and words and words[0].lower() in BOOLEAN_WORDS:
                value = words.popleft()
            if name not in flags or not value:
                yield word
            elif value.lower() not in BOOLEAN_WORDS:
                raise click.BadOptionUsage(name, f"Option '{name}': {value!r} is no true or false.")
            elif BOOLEAN_WORDS[value.lower()]:
                yield name
            if name in valued and not equals and words:
                yield words.popleft()
        yield from words


def build_stage_command(word: str) -> click.Command:
    """Make a stage's command: called, it gives the stage."""
    stage = load_stage(word)

    @click.pass_context
    def build(context: click.Context, /, **_: object) -> Stage:
        return stage(**explicit_values(context))

    return StageCommand(
        word,
        params=options_from_dataclass(stage),
        callback=build,
        help=help_from_docstring(stage),
        epilog=describe_flow(stage),
    )


def describe_flow(stage_class: type[Stage]) -> str:
    """Say what a stage takes and gives."""
    takes = " or ".join(one.__name__ for one in stage_class.takes)
    gives = stage_class.gives.__name__ if stage_class.gives is not None else "what it took"
    return f"Takes {takes}, gives {gives}." if takes else f"A source: gives {gives}."


def describe_stage(word: str) -> tuple[str, str]:
    """What a stage takes and gives, and the first line of its help, or why it has none."""
    try:
        stage = load_stage(word)
    except UsageError as error:
        return "", f"(cannot be used: {error})"
    return describe_flow(stage), first_line(help_from_docstring(stage))


@click.pass_context
def run_pipeline(context: click.Context, /, stages: Sequence[Stage], **_: object) -> None:
    """Check the chain, run it, and say what became of the events."""
    from morpheus.pipeline import Pipeline  # noqa: PLC0415 - `--help` runs nothing

    echo("Configuring Pipeline via CLI", fg="green")
    above = context.parent
    settings = PipelineOptions(
        **(explicit_values(above) if above is not None else {}), **explicit_values(context)
    )
    pipeline = Pipeline(stages, settings)
    with interruptible():
        pipeline.validate()
        _announce_run(pipeline)
        summary = pipeline.run(_print_metrics)
    if summary.interrupted:
        raise Exit(EXIT_INTERRUPTED)


def _print_metrics(metrics: RunMetrics) -> None:
    from morpheus.cli.output import format_metrics  # noqa: PLC0415 - `--help` runs nothing

    echo("\n".join(format_metrics(metrics)))


def _announce_run(pipeline: Pipeline) -> None:
    """Say what is about to run, in the words that old notebooks show."""
    settings = pipeline.options
    if settings.use_cpp:
        logger.warning("C++ is disabled for AutoEncoder pipelines at this time.")
    logger.debug("Loaded columns. Current columns: [%r]", list(settings.columns))
    if settings.labels_file is not None:
        logger.debug("Loaded labels file. Current labels: [%r]", list(settings.labels))
    if settings.userid_filter is not None:
        logger.info("Filtering all users except ID: '%s'", settings.userid_filter)
    if settings.viz_file is not None:
        _write_diagram(pipeline, Path(settings.viz_file))
    echo("Starting pipeline via CLI... Ctrl+C to Quit", fg="red")


def _write_diagram(pipeline: Pipeline, file: Path) -> None:
    """Write the chain's drawing, whole or not at all."""
    drawing = render_diagram(pipeline.links(), file, pipeline.options.viz_direction)
    with atomic_write(file) as drawn:
        drawn.write(drawing.encode())
    echo(f"Pipeline visualization saved to {file}", fg="yellow")


def _explain_unexpected_word(word: str, context: click.Context) -> str:
    """What to say of a word where a stage should stand."""
    if home := suggest_command(word, context):
        return home
    if Path(word).is_dir():
        return (
            f"`{word}` is a folder, where a stage should stand. Give the source the folder whose "
            f"files it is to read, as in `from-cloudtrail --input_glob={word}`."
        )
    if Path(word).exists():
        return (
            f"`{word}` is a file, where a stage should stand. If the shell has spread out a "
            f"pattern, put it in quotes, as in --input_glob='data/*.csv'."
        )
    from morpheus.cli.reference import ABSENCE_REASONS  # noqa: PLC0415 - read for a wrong word alone

    if word in ABSENCE_REASONS:
        return f"There is no stage `{word}` here: {ABSENCE_REASONS[word]}."
    return unknown_stage_message(word)
