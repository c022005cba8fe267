"""The command `morpheus`: its groups, its general options, and options from the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from morpheus.cli.chain import (
    CommandGroup,
    LazyCommand,
    MonitoringOptions,
    PipelineGroup,
    locate_option,
    options_from_dataclass,
    run_pipeline,
)
from morpheus.cli.output import LOG_FORMATS, handle_errors, set_log_format
from morpheus.core.registry import register_plugin
from morpheus.core.stage import PipelineOptions
from morpheus.text import suggest

logger = logging.getLogger(__name__)

ENV_PREFIX = "MORPHEUS"
PLUGINS_VARIABLE = f"{ENV_PREFIX}_PLUGINS"
OPTION_PREFIXES = (f"{ENV_PREFIX}_RUN_", f"{ENV_PREFIX}_TOOLS_")
"""Prefixes of variables that can only be options of commands."""
ARGV_KEY = "morpheus.argv"
"""Key of the whole command line in the metadata of click's context."""
LOG_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG")


def iter_variables(command: click.Command, prefix: str = ENV_PREFIX) -> Iterator[str]:
    """Yield the environment variables of the options of a command and of those below it.

    >>> @click.command(params=[click.Option(["--num_threads"])])
    ... def run(): pass
    >>> list(iter_variables(run, "MORPHEUS_RUN"))
    ['MORPHEUS_RUN_NUM_THREADS']
    """
    context = click.Context(command)
    for param in command.params:
        if isinstance(param, click.Option) and param.name:
            yield f"{prefix}_{param.name.upper()}"
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None:
                yield from iter_variables(below, f"{prefix}_{word.upper().replace('-', '_')}")


def warn_unknown(root: click.Command) -> None:
    """Log a warning for each variable that looks like an option but is none."""
    candidates = sorted(name for name in os.environ if name.startswith(OPTION_PREFIXES))
    if not candidates:
        return
    known = set(iter_variables(root))
    for name in candidates:
        if name not in known:
            hint = suggest(name, known, 1) or " `morpheus --help` describes the names of variables."
            logger.warning("%s is set, but it is not an option.%s", name, hint)


@contextmanager
def env_error_context() -> Iterator[None]:
    """Add the name of the variable to the error of a value from the environment.

    The user may not know that the variable is set.
    """
    try:
        yield
    except click.BadParameter as error:
        option, context = error.param, error.ctx
        if option is not None and context is not None and option.name:
            source = context.get_parameter_source(option.name)
            if source is ParameterSource.ENVIRONMENT:
                variable = f"{context.auto_envvar_prefix}_{option.name.upper()}"
                message = f"{error.message} The value comes from the environment, {variable}."
                raise click.BadParameter(message, context, option) from error
        raise


class RootGroup(CommandGroup):
    """The outermost group. It turns errors of all commands into messages and exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the first command."""
        ctx.meta[ARGV_KEY] = list(args)
        set_log_format(LOG_FORMATS[0])  # a process may have run another command before
        with locate_option(self, ctx.meta[ARGV_KEY]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run a command."""
        with handle_errors(), env_error_context(), locate_option(self, ctx.meta[ARGV_KEY]):
            return super().invoke(ctx)


def _print_version(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - as click calls it
    if value and not context.resilient_parsing:
        from morpheus import __version__  # noqa: PLC0415 - reads the installed metadata

        click.echo(f"morpheus {__version__}")
        context.exit()


def _choose_log_format(_context: click.Context, _option: click.Parameter, value: str) -> str:
    # Before the other options, so that a wrong command is reported in this format.
    set_log_format(value)
    return value


COMMANDS = {
    "detect": LazyCommand(
        "morpheus.cli.detect:detect",
        "Find the most unusual incidents in logs, with one command.",
    ),
    "lessons": LazyCommand(
        "morpheus.cli.commands:lessons",
        "Copy the lessons, notebooks with their data, into a folder.",
    ),
    "models": LazyCommand(
        "morpheus.cli.models:models",
        "Versions of a model store: list, compare, promote, roll back, remove and copy them.",
    ),
    "report": LazyCommand(
        "morpheus.cli.commands:report",
        "Write a report page from the output files of earlier runs.",
    ),
    "retrain": LazyCommand(
        "morpheus.cli.retrain:retrain",
        "Train fingerprints again on recent logs, without learning what an intruder did.",
    ),
    "serve": LazyCommand(
        "morpheus.cli.commands:serve",
        "Serve a live report page for a folder that a run writes to.",
    ),
    "state": LazyCommand(
        "morpheus.cli.state:state",
        "Show, export or reset what `pipeline-ae --state` keeps about users.",
    ),
}
TOOLS = {
    "autocomplete": LazyCommand(
        "morpheus.cli.commands:autocomplete",
        "Set up shell completion of commands, stages and options.",
    ),
    "compatibility": LazyCommand(
        "morpheus.cli.commands:compatibility",
        "Print what is supported of each stage and option of NVIDIA Morpheus, in Markdown.",
    ),
    "erase": LazyCommand(
        "morpheus.cli.commands:erase",
        "List what is stored about users; with --delete, remove it.",
    ),
    "prune": LazyCommand(
        "morpheus.cli.commands:prune",
        "List old outputs and old state; with --delete, remove them.",
    ),
    "pseudonym": LazyCommand(
        "morpheus.cli.commands:pseudonym",
        "Show the pseudonyms of names, or find the names behind pseudonyms.",
    ),
    "pseudonym-key": LazyCommand(
        "morpheus.cli.commands:pseudonym_key",
        "Create a key for `pipeline-ae --pseudonymize`: 256 random bits, in a file with mode 0600.",
    ),
    "reference": LazyCommand(
        "morpheus.cli.commands:reference",
        "Print the reference of the command line, in Markdown.",
    ),
    "replay": LazyCommand(
        "morpheus.cli.commands:replay",
        "Replay attack techniques as each user, and count how many raise an alert.",
    ),
    "stages": LazyCommand(
        "morpheus.cli.commands:stages",
        "List the stages: what each accepts and outputs, and its package.",
    ),
    "suppress": LazyCommand(
        "morpheus.cli.suppress:suppress",
        "Create suppressions from the verdicts that people gave in the report.",
    ),
}
"""Modules of these commands import polars, which takes longer than all of `--help`."""


@click.group(
    cls=RootGroup,
    lazy=COMMANDS,
    context_settings={
        "auto_envvar_prefix": ENV_PREFIX,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.option(
    "--debug/--no-debug",
    default=False,
    help="Verbose logging, with tracebacks of errors.",
)
@click.option(
    "--log_level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    default="WARNING",
    help="Minimum console log level.",
)
@click.option(
    "--progress/--no-progress",  # read by `cli.output.show_progress`
    default=True,
    help="Show progress, if standard error is a terminal.",
)
@click.option(
    "--log_config_file",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="Configuration of Python's `logging`, in place of the console: JSON (dictConfig) or ini "
    "(fileConfig).",
)
@click.option(
    "--log_format",
    type=click.Choice(LOG_FORMATS, case_sensitive=False),
    default=LOG_FORMATS[0],
    is_eager=True,
    callback=_choose_log_format,
    help="Format of messages on standard error: text, or one JSON object per line with `time`, "
    "`level`, `message` and, if known, `code`, `stage`, `logger` and `left_out`.",
)
@click.option(
    "--plugin",
    multiple=True,
    default=(),
    help="Python module or file with additional stages; repeat for several. The environment "
    "variable MORPHEUS_PLUGINS adds more, separated by commas.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    show_default=False,
    allow_from_autoenv=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def morpheus(  # noqa: PLR0913 - one argument for each option
    context: click.Context,
    /,
    *,
    debug: bool,
    log_level: str,
    log_config_file: str | None,
    log_format: str,
    plugin: tuple[str, ...],
    **_: object,
) -> None:
    """Learn how each user in your audit logs behaves, and alert when one behaves unusually.

    Every option can also be set in the environment: --num_threads of `run` by
    MORPHEUS_RUN_NUM_THREADS, --seed of `train-ae` by MORPHEUS_RUN_PIPELINE_AE_TRAIN_AE_SEED, --seed
    of `tools replay` by MORPHEUS_TOOLS_REPLAY_SEED. The command line overrides the environment.
    """
    from morpheus.cli.logging import configure_logging  # noqa: PLC0415 - `--help` logs nothing

    configure_logging("DEBUG" if debug else log_level, log_config_file, log_format)
    plugins = os.environ.get(PLUGINS_VARIABLE, "").split(",")
    for source in filter(None, (*map(str.strip, plugins), *plugin)):
        register_plugin(source)
    warn_unknown(context.command)


@morpheus.group(
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


@morpheus.group(cls=CommandGroup, lazy=TOOLS)
def tools() -> None:
    """Utilities: attack replay, suppressions, shell completion, lists of stages and options."""


def main() -> None:
    """Run the command `morpheus`."""
    # numpy reads this when it is imported. See `runtime.pool.SINGLE_THREAD_ENV`.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    morpheus(prog_name="morpheus")
