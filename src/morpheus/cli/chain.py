"""Commands made from dataclasses: options, groups, and `morpheus run pipeline-ae`.

An option is declared once, as a field of a dataclass by `morpheus.core.stage.option`. This module
turns such fields into click's options, and stages into the commands of a pipeline. It also explains
words and options typed in the wrong place.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from click.exceptions import Exit

from morpheus.cli.output import (
    echo,
    find_exit_code,
    format_metrics,
    format_results,
    interruptible,
    render_diagram,
    show_progress,
)
from morpheus.core.registry import load_stage, stage_names, unknown_stage_message
from morpheus.core.stage import (
    PipelineOptions,
    Stage,
    Values,
    list_values,
    option,
    resolve_locations,
)
from morpheus.errors import EXIT_INTERRUPTED, MorpheusError, UsageError
from morpheus.text import NOTICE, quote_backtick, suggest

if TYPE_CHECKING:
    from morpheus.core.batch import RunMetrics
    from morpheus.pipeline import Pipeline
    from morpheus.status import RunWatch

logger = logging.getLogger(__name__)

# Options.

CLICK_TYPES: dict[type, click.ParamType[Any]] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


def options_from_dataclass(options_class: type, *, command: str = "") -> list[click.Parameter]:
    """Return the options that the fields of a dataclass declare.

    Args:
        options_class: A stage, the options of a command, or `PipelineOptions`.
        command: For `PipelineOptions`: the command whose options are wanted.
    """
    hints = get_type_hints(options_class)
    return [
        _build_option(field, hints[field.name]) for field in _select_fields(options_class, command)
    ]


class TextValues(click.types.StringParamType):
    """A text that may be given several times. In the environment, each has a line of its own."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the values of a variable. Paths and user names may contain blanks."""
        return [line for line in rv.splitlines() if line.strip()]


def explicit_values(context: click.Context) -> dict[str, Any]:
    """Return the values given on the command line or by the environment.

    Other options, and those with an empty value, keep the default of their field.

    Raises:
        click.MissingParameter: The value of a required option is empty.
    """
    values = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        if isinstance(parameter.type, TextValues) and value:
            texts = tuple(filter(None, value))
            value = texts[0] if len(texts) == 1 else texts
        if value not in (None, "", ()):
            values[name] = value
        elif parameter.required:
            raise click.MissingParameter(ctx=context, param=parameter)
    return values


def _select_fields(options_class: type, command: str) -> Iterator[Field[Any]]:
    """Yield the fields that are options of this command."""
    for field in fields(options_class):
        if "help" in field.metadata and field.metadata["command"] == command:
            yield field


def _build_option(field: Field[Any], hint: object) -> click.Option:
    """Make the option of one field, whose type is `hint`."""
    declared = field.metadata
    kind, repeatable = _unwrap_optional(hint)
    one_or_more = _is_values(hint)
    default: dict[str, Any] = {} if declared["required"] else {"default": field.default}
    return click.Option(
        [field.name, *(declared["names"] or (f"--{field.name}",))],
        type=TextValues() if one_or_more else _to_click_type(kind, declared),
        # With False, click would take a value that begins with a dash for an option.
        is_flag=declared["flag"] or None,
        multiple=repeatable,
        required=declared["required"],
        help=declared["help"],
        show_default=declared["default_display"] or True,
        show_envvar=False,
        **default,
    )


def _is_values(hint: object) -> bool:
    """Return whether the type of a field is `Values`, with or without None."""
    return set(get_args(Values)) <= set(get_args(hint))


def _unwrap_optional(hint: object) -> tuple[type, bool]:
    """Return the type of one value, without None, and whether the option is repeatable."""
    if _is_values(hint):
        return str, True
    if get_origin(hint) in (Union, UnionType):
        [hint] = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if isinstance(hint, type):
        return hint, False
    raise TypeError(f"an option cannot be a {hint}")


def _to_click_type(kind: type, declared: Mapping[str, Any]) -> click.ParamType[Any]:
    """Return click's type for a value of this type, with its choices or its range."""
    if declared["choices"]:
        return click.Choice(declared["choices"], case_sensitive=False)
    low, high = declared["min"], declared["max"]
    if low is not None or high is not None:
        return click.IntRange(low, high) if kind is int else click.FloatRange(low, high)
    return CLICK_TYPES[kind]


# Options given twice.


class StrictCommand(click.Command):
    """A command that rejects an option given twice, unless the option is repeatable.

    Of two values, one would be lost in silence.
    """

    def make_parser(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's parser has no public type
        """Return the parser of this command."""
        parser = super().make_parser(ctx)
        parse_args = parser.parse_args

        def parse(args: list[str]) -> Any:  # noqa: ANN401 - as click declares it
            values, rest, order = parse_args(args)
            if not ctx.resilient_parsing:
                _reject_repeated(order, ctx)
            return values, rest, order

        parser.parse_args = parse  # type: ignore[method-assign]  # click has no hook between
        return parser


def _reject_repeated(order: Sequence[click.Parameter], context: click.Context) -> None:
    """Reject options that take one value and are given more than once.

    Args:
        order: Each parameter of the command line, once for each time that it is given.
        context: Context of the command.
    """
    for given in dict.fromkeys(order):
        takes_one = isinstance(given, click.Option) and not (
            given.multiple or given.is_flag or given.count
        )
        if takes_one and order.count(given) > 1:
            name = given.opts[0]
            raise click.BadOptionUsage(
                name,
                f"Option '{name}' is given {order.count(given)} times, but takes one value. Give "
                "it once.",
                ctx=context,
            )


# Words and options typed in the wrong place.

MAX_PLACES = 4
"""Maximum number of commands that an error message names."""


@contextmanager
def locate_option(root: click.Group, argv: Sequence[str]) -> Iterator[None]:
    """Add to the error of an unknown option the commands that have this option.

    Args:
        root: The outermost command.
        argv: The command line. If it has some of these commands, only those are named.
    """
    try:
        yield
    except click.NoSuchOption as error:
        commands = [((root.name or "",), root), *_iter_commands(root)]
        owners = [
            words[-1] for words, command in commands if error.option_name in _option_names(command)
        ]
        places = [word for word in owners if word in argv] or owners
        if places:
            message = f"{error.message} {_describe_places(places)}"
            raise click.NoSuchOption(error.option_name, message, ctx=error.ctx) from error
        raise


def suggest_command(word: str, context: click.Context) -> str | None:
    """Return what to type for a command that belongs elsewhere; None for an unknown word.

    >>> @click.group()
    ... def tool(): pass
    >>> @tool.command()
    ... def dig(): pass
    >>> suggest_command("dig", click.Context(tool, info_name="tool"))
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
    """Yield every command below a group, with the words that lead to it."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if command is None:
            continue
        yield [*above, word], command
        if isinstance(command, click.Group):
            yield from _iter_commands(command, (*above, word))


def _option_names(command: click.Command) -> set[str]:
    options = (param for param in command.params if isinstance(param, click.Option))
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def _describe_places(places: Sequence[str]) -> str:
    names = [f"`{word}`" for word in dict.fromkeys(places)]
    more = ["others"] if len(names) > MAX_PLACES else []
    *first, last = [*names[:MAX_PLACES], *more]
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"It is an option of {listed}. Put it after {'one of these words' if first else last}."


# Groups and commands.

_DOCSTRING_SECTION = re.compile(r"^(?:[A-Z]\w+:$|>>>)", re.MULTILINE)


class LazyCommand(NamedTuple):
    """A command whose module is imported when the command is used, not for the help of its group.

    Attributes:
        location: Where it is: `module:attribute`.
        summary: First line of its help.
    """

    location: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.location.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        resume_gc()
        return command


def resume_gc() -> None:
    """Enable garbage collection after the imports, and never examine what they made.

    Collections during the imports would take a tenth of the time of a short run.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class CommandGroup(StrictCommand, click.Group):
    """A group that shows whole sentences in its list of commands, and may load commands lazily.

    Args:
        lazy: Commands by name, to load when they are used.
    """

    command_class = StrictCommand

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - click's own
        lazy: Mapping[str, LazyCommand] | None = None,
        **attributes: Any,  # noqa: ANN401 - click's own
    ) -> None:
        super().__init__(*args, **attributes)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None if there is none of this name."""
        if cmd_name in self.lazy:
            return self.lazy[cmd_name].load()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next command, or say where the word is a command."""
        word = args[0]
        known = word in self.list_commands(ctx)
        if not (known or ctx.resilient_parsing or word.startswith("-")):
            ctx.fail(suggest_command(word, ctx) or self._explain_unknown(word, ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(word, self._summary(ctx, word)) for word in self.list_commands(ctx)]
            )

    def _explain_unknown(self, word: str, ctx: click.Context) -> str:
        hint = suggest(word, self.list_commands(ctx)) or f" Type `{ctx.command_path} --help`."
        return f"There is no command {quote_backtick(word)}.{hint}"

    def _summary(self, ctx: click.Context, word: str) -> str:
        if word in self.lazy:
            return self.lazy[word].summary
        command = self.get_command(ctx, word)
        return first_line(command.help or "") if command is not None else ""


def command_from_dataclass(
    name: str, options_class: type, callback: Callable[..., object], *arguments: click.Argument
) -> click.Command:
    """Make a command.

    Args:
        name: Its name.
        options_class: A dataclass. Its fields are the options, its docstring is the help.
        callback: Is called with the dataclass and then the value of each argument.
        arguments: Arguments beside the options.
    """

    @click.pass_context
    def call(context: click.Context, /, **_: object) -> object:
        values = explicit_values(context)
        positional = [values.pop(argument.name or "", ()) for argument in arguments]
        return callback(resolve_locations(options_class(**values)), *positional)

    return StrictCommand(
        name,
        params=[*arguments, *options_from_dataclass(options_class)],
        callback=call,
        help=help_from_docstring(options_class),
    )


def help_from_docstring(documented: type) -> str:
    """Return the prose of a docstring, without its sections. Indented lines keep their breaks."""
    prose = _DOCSTRING_SECTION.split(inspect.getdoc(documented) or "", maxsplit=1)[0].strip()
    return "\n\n".join(
        f"\b\n{part}" if re.search(r"^\s", part, re.MULTILINE) else part
        for part in prose.split("\n\n")
    )


def first_line(text: str) -> str:
    """Return the first line of a help text."""
    return text.partition("\n")[0]


# `morpheus run pipeline-ae`.

PIPELINE_HELP = """Train an autoencoder per user, and score events by how unusual they are.

The stages follow in the order in which events pass through them, each with its own options:

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
    """A group whose commands are the registered stages, each loaded when its word is used."""

    def __init__(self, name: str, **attributes: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(
            name,
            chain=True,
            help=PIPELINE_HELP,
            invoke_without_command=True,  # the pipeline has a better message for no stages
            no_args_is_help=True,
            subcommand_metavar="STAGE...",
            **attributes,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the words of all stages, sorted."""
        del ctx
        return list(stage_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a stage; None if there is no such stage."""
        del ctx
        return build_stage_command(cmd_name) if cmd_name in stage_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next stage, or explain the word."""
        word = args[0]
        if not ctx.resilient_parsing and word[:1] != "-" and word not in stage_names():
            ctx.fail(_explain_unexpected_word(word, ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the stages. A stage that cannot be loaded does not hide the others."""
        rows = [(word, describe_stage(word)[1]) for word in self.list_commands(ctx)]
        with formatter.section("Stages"):
            formatter.write_dl(rows)


class StageCommand(StrictCommand):
    """The command of one stage. Flags may have a value, because some releases required one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of this stage. Those of the next stages stay."""
        return super().parse_args(ctx, list(self._normalise_flags(args)))

    def _normalise_flags(self, args: list[str]) -> Iterator[str]:
        """Yield the words, with `--flag`, or nothing, in place of `--flag=true` or `--flag no`."""
        options = [param for param in self.params if isinstance(param, click.Option)]
        flags = {name for option in options if option.is_flag for name in option.opts}
        valued = {name for option in options if not option.is_flag for name in option.opts}
        words = deque(args)
        while words and words[0].startswith("-"):
            word = words.popleft()
            name, equals, value = word.partition("=")
            if name in flags and not equals and words and words[0].lower() in BOOLEAN_WORDS:
                value = words.popleft()
            if name not in flags or not value:
                yield word
            elif value.lower() not in BOOLEAN_WORDS:
                raise click.BadOptionUsage(name, f"Option '{name}': {value!r} is not a boolean.")
            elif BOOLEAN_WORDS[value.lower()]:
                yield name
            if name in valued and not equals and words:
                yield words.popleft()
        yield from words


def build_stage_command(word: str) -> click.Command:
    """Make the command of a stage. The command returns the stage."""
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
    """Return what batches a stage accepts and outputs, as a sentence."""
    accepts = " or ".join(kind.__name__ for kind in stage_class.takes)
    outputs = stage_class.gives.__name__ if stage_class.gives is not None else "the same"
    return f"Accepts {accepts}, outputs {outputs}." if accepts else f"Source, outputs {outputs}."


def describe_stage(word: str) -> tuple[str, str]:
    """Return a stage's flow and the first line of its help; why there is none if it fails."""
    try:
        stage = load_stage(word)
    except UsageError as error:
        return "", f"(cannot be used: {error})"
    return describe_flow(stage), first_line(help_from_docstring(stage))


@dataclass(frozen=True)
class MonitoringOptions:
    """Options of `run` for programs that watch a run."""

    metrics_port: int | None = option(
        None,
        "Port for metrics of the running process in Prometheus's format at `/metrics`, for "
        "`/healthz` and for `/readyz`. 0 picks a free port.",
        min=0,
        max=65535,
        default_display="no server",
    )
    metrics_host: str = option(
        "127.0.0.1",
        "Address that --metrics_port listens on. Anyone who reaches it can read the metrics. They "
        "name no user.",
    )
    ready_seconds: float = option(
        60.0,
        "`/readyz` responds 503 if the run has made no progress for this number of seconds.",
        min=1,
    )
    metrics_file: str | None = option(
        None,
        "File for the textfile collector of node_exporter, written when the run ends, also if it "
        "fails: exit code, duration, time of the last success, and counts. It must end in `.prom`.",
        location="local",
    )


@click.pass_context
def run_pipeline(context: click.Context, /, stages: Sequence[Stage], **_: object) -> None:
    """Validate the pipeline, run it, and print the summary."""
    from morpheus.pipeline import Pipeline  # noqa: PLC0415 - `--help` runs nothing

    resume_gc()
    echo("Configuring Pipeline via CLI")
    parent = context.parent
    values = explicit_values(parent) if parent is not None else {}
    monitoring = _split_monitoring(values)
    pipeline = Pipeline(stages, PipelineOptions(**values, **explicit_values(context)))
    watch = _make_watch(monitoring)
    with interruptible(), _record_run(monitoring, watch):
        pipeline.validate()
        _announce_run(pipeline)
        with show_progress(pipeline.stages) as on_step, _publish_run(monitoring, watch):
            print_summary = partial(_print_summary, pipeline)
            if watch is None:
                metrics = pipeline.run(print_summary, on_step)
            else:
                metrics = pipeline.run(print_summary, watch.follow_steps(on_step), watch.start)
        if metrics.interrupted:
            raise Exit(EXIT_INTERRUPTED)


def _split_monitoring(values: dict[str, Any]) -> MonitoringOptions:
    """Remove the options of `MonitoringOptions` from those of `run`, and return them."""
    names = [each.name for each in fields(MonitoringOptions) if each.name in values]
    options = resolve_locations(MonitoringOptions(**{name: values.pop(name) for name in names}))
    for name in {"metrics_host", "ready_seconds"} & set(names):
        if options.metrics_port is None:
            raise UsageError(f"--{name}: needs --metrics_port. Add it, or leave --{name} out.")
    return options


def _make_watch(options: MonitoringOptions) -> RunWatch | None:
    """Return what watches a run for other programs; None if no program does."""
    if not (
        options.metrics_file or "NOTIFY_SOCKET" in os.environ or options.metrics_port is not None
    ):
        return None
    from morpheus.status import RunWatch  # noqa: PLC0415 - most runs are not watched

    return RunWatch()


@contextmanager
def _publish_run(options: MonitoringOptions, watch: RunWatch | None) -> Iterator[None]:
    """Serve the metrics of the run in the block, and tell systemd of its progress."""
    with ExitStack() as resources:
        if watch is not None and options.metrics_port is not None:
            from morpheus.serve.metrics import serve_metrics  # noqa: PLC0415 - for this option only

            address = options.metrics_host, options.metrics_port
            server = serve_metrics(watch, *address, options.ready_seconds)
            echo(f"Metrics at {resources.enter_context(server).url}/metrics")
        if watch is not None:
            from morpheus.status import ServiceNotifier  # noqa: PLC0415 - most runs are not watched

            notifier = ServiceNotifier.from_environment()
            if notifier is not None:
                resources.enter_context(notifier.follow(watch))
        yield


@contextmanager
def _record_run(options: MonitoringOptions, watch: RunWatch | None) -> Iterator[None]:
    """Write the file of `--metrics_file` when the block ends, also if it fails."""
    filename = options.metrics_file
    if filename is None or watch is None:
        yield
        return
    from morpheus.serve.metrics import write_metrics_file  # noqa: PLC0415 - for this option only
    from morpheus.sinks.to_file import validate_output  # noqa: PLC0415 - `--help` runs nothing

    # node_exporter ignores files with other suffixes.
    name, suffixes = "--metrics_file", (".prom",)
    validate_output(filename, overwrite=True, stage_name="run", option=name, suffixes=suffixes)
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        try:
            write_metrics_file(Path(filename), watch, find_exit_code(failure))
        except MorpheusError as error:
            if failure is None:
                raise
            logger.error("--metrics_file: %s", error)  # noqa: TRY400 - the failure of the run counts


def _print_summary(pipeline: Pipeline, metrics: RunMetrics) -> None:
    stages = [replace(stage, options=pipeline.options) for stage in pipeline.stages]
    echo("\n".join(format_metrics(metrics, format_results(stages, metrics))))


def _announce_run(pipeline: Pipeline) -> None:
    """Log what is about to run, in the words of NVIDIA Morpheus, which old notebooks show."""
    options = pipeline.options
    if options.use_cpp:
        logger.warning("C++ is disabled for AutoEncoder pipelines at this time.", extra=NOTICE)
    logger.debug("Loaded columns. Current columns: [%r]", list(options.columns))
    if options.labels_file is not None:
        logger.debug("Loaded labels file. Current labels: [%r]", list(options.labels))
    users = list_values(options.userid_filter)
    if users and not options.pseudonymize:
        logger.info("Filtering all users except ID: '%s'", "', '".join(users))
    if options.viz_file is not None:
        _write_diagram(pipeline, Path(options.viz_file))
    echo("Starting pipeline via CLI... Ctrl+C to Quit")


def _write_diagram(pipeline: Pipeline, path: Path) -> None:
    """Write the diagram of a pipeline atomically."""
    from morpheus.storage.atomic import atomic_write  # noqa: PLC0415 - for `--viz_file` only

    diagram = render_diagram(pipeline.links(), path, pipeline.options.viz_direction)
    with atomic_write(path) as file:
        file.write(diagram.encode())
    echo(f"Pipeline visualization saved to {path}")


def _explain_unexpected_word(word: str, context: click.Context) -> str:
    """Return the error message for a word that is not a stage."""
    if suggestion := suggest_command(word, context):
        return suggestion
    if Path(word).is_dir():
        return (
            f"`{word}` is a folder, but a stage is expected. Give it to the source, as in "
            f"`from-cloudtrail --input_glob={word}`."
        )
    if Path(word).exists():
        return (
            f"`{word}` is a file, but a stage is expected. If the shell expanded a glob, quote it, "
            "as in --input_glob='data/*.csv'."
        )
    from morpheus.cli.reference import ABSENCE_REASONS  # noqa: PLC0415 - read for a wrong word alone

    if word in ABSENCE_REASONS:
        return f"There is no stage `{word}`: {ABSENCE_REASONS[word]}."
    return unknown_stage_message(word)
