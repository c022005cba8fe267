"""Commands made from dataclasses: options, groups, and `morpheus run pipeline-ae`.

An option is declared once, as a field of a dataclass by `morpheus.core.stage.option`. This module
turns such fields into click's options, and stages into the commands of a pipeline. It also explains
words and options typed in the wrong place.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource
from click.exceptions import Exit

from morpheus.cli.main import (
    CommandGroup,
    StrictCommand,
    first_line,
    resume_gc,
    suggest_command,
)
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
    check_values,
    list_values,
    option,
    resolve_locations,
)
from morpheus.errors import EXIT_INTERRUPTED, MorpheusError, UsageError
from morpheus.text import NOTICE

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

    Raises:
        UsageError: A field of a stage has a type that no option can have.
    """
    hints, options = get_type_hints(options_class), list[click.Parameter]()
    for field in _select_fields(options_class, command):
        try:
            options.append(_build_option(field, hints[field.name]))
        except (TypeError, ValueError) as error:
            known = ", ".join(kind.__name__ for kind in CLICK_TYPES)
            raise UsageError(
                f"{options_class.__name__}: the option `{field.name}` has the type "
                f"`{hints[field.name]}`. The type of an option is one of {known}, or a tuple of "
                "one of them."
            ) from error
    return options


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
        if isinstance(value, tuple):
            value = tuple(each for each in value if each != "")
        if isinstance(parameter.type, TextValues) and value and len(value) == 1:
            value = value[0]
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
    if get_origin(hint) is tuple and get_args(hint)[0] in CLICK_TYPES:
        return get_args(hint)[0], True
    if isinstance(hint, type) and hint in CLICK_TYPES:
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


# Commands.

_DOCSTRING_SECTION = re.compile(r"^(?:[A-Z]\w+:$|>>>)", re.MULTILINE)


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
        options = resolve_locations(check_values(options_class(**values)))
        return callback(options, *positional)

    return StrictCommand(
        name,
        params=[*arguments, *options_from_dataclass(options_class)],
        callback=call,
        help=help_from_docstring(options_class),
    )


def to_words(declared: type, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words of options on a command line.

    Args:
        declared: The dataclass whose fields are the options.
        values: Their values, by name of the field.
    """
    names = {each.name: each.metadata for each in fields(declared)}
    for name, value in values.items():
        word = (names[name]["names"] or (f"--{name}",))[0]
        if names[name]["flag"]:
            yield word
            continue
        for one in value if isinstance(value, tuple) else (value,):
            yield f"{word}={one}"


def help_from_docstring(documented: type) -> str:
    """Return the prose of a docstring, without its sections. Indented lines keep their breaks."""
    prose = _DOCSTRING_SECTION.split(inspect.getdoc(documented) or "", maxsplit=1)[0].strip()
    return "\n\n".join(
        f"\b\n{part}" if re.search(r"^\s", part, re.MULTILINE) else part
        for part in prose.split("\n\n")
    )


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
    from morpheus.runtime.pool import keep_freed_memory  # noqa: PLC0415 - the same

    resume_gc()
    echo("Configuring Pipeline via CLI")
    parent = context.parent
    values = explicit_values(parent) if parent is not None else {}
    monitoring = _split_monitoring(values)
    pipeline = Pipeline(stages, PipelineOptions(**values, **explicit_values(context)))
    watch = _make_watch(monitoring)
    with interruptible(), _record_run(monitoring, watch, pipeline):
        pipeline.validate()
        if not pipeline.is_unbounded:  # a stream shares the machine for months
            keep_freed_memory()
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
    given = MonitoringOptions(**{name: values.pop(name) for name in names})
    options = resolve_locations(check_values(given))
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
def _record_run(
    options: MonitoringOptions, watch: RunWatch | None, pipeline: Pipeline
) -> Iterator[None]:
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
    is_valid = False
    with suppress(MorpheusError):  # the block says what is wrong with the pipeline
        pipeline.validate()
        is_valid = True
    if is_valid:
        pipeline.check_written_file(name, Path(filename))
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
            # The run has ended as it has: the state of a complete one is saved.
            logger.error("--metrics_file: %s", error)  # noqa: TRY400 - it says all


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


@click.group(
    cls=CommandGroup,
    params=[
        *options_from_dataclass(PipelineOptions, command="run"),
        *options_from_dataclass(MonitoringOptions),
    ],
)
def run(**_: object) -> None:
    """Run a pipeline of stages."""
    from morpheus.runtime.pool import SINGLE_THREAD_ENV  # noqa: PLC0415 - `--help` runs nothing

    for name, value in SINGLE_THREAD_ENV.items():
        os.environ.setdefault(name, value)


run.add_command(
    PipelineGroup(
        "pipeline-ae",
        params=options_from_dataclass(PipelineOptions, command="pipeline-ae"),
        result_callback=run_pipeline,
    )
)
