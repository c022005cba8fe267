"""Options from the environment: which variables there are, and what to say of wrong ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click
from click.core import ParameterSource

from morpheus.cli.chain import (
    CommandGroup,
    PipelineGroup,
    locate_option,
    options_from_dataclass,
    run_pipeline,
)
from morpheus.cli.commands import report, serve, tools
from morpheus.cli.output import handle_errors
from morpheus.core.registry import register_plugin
from morpheus.core.stage import PipelineOptions

logger = logging.getLogger(__name__)

ENV_PREFIX = "MORPHEUS"
PLUGINS_VARIABLE = f"{ENV_PREFIX}_PLUGINS"
OPTION_PREFIXES = (f"{ENV_PREFIX}_RUN_", f"{ENV_PREFIX}_TOOLS_")
"""How variables begin that can only be meant as options of commands."""


def iter_variables(command: click.Command, prefix: str = ENV_PREFIX) -> Iterator[str]:
    """The variables that the options of a command, and of those below it, are read from.

    >>> @click.command(params=[click.Option(["--num_threads"])])
    ... def run(): pass
    >>> list(iter_variables(run, "MORPHEUS_RUN"))
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
                yield from iter_variables(below, f"{prefix}_{word.upper().replace('-', '_')}")


def warn_unknown(root: click.Command) -> None:
    """Warn of variables that are meant as options, and are none."""
    set_ = sorted(name for name in os.environ if name.startswith(OPTION_PREFIXES))
    known = set(iter_variables(root)) if set_ else set()
    for name in set_:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = (
                f"Did you mean {close[0]}?"
                if close
                else "`morpheus --help` says how they are named."
            )
            logger.warning("%s is set, but no option is read from it. %s", name, meant)


@contextmanager
def env_error_context() -> Iterator[None]:
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


ARGV_KEY = "morpheus.typed"
"""Where the context keeps all that was typed."""
LOG_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG")


class RootGroup(CommandGroup):
    """The outermost group: whatever goes wrong below it ends here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the first command."""
        ctx.meta[ARGV_KEY] = list(args)
        with locate_option(self, ctx.meta[ARGV_KEY]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run a command; its failures become messages and exit codes."""
        with handle_errors(), env_error_context(), locate_option(self, ctx.meta[ARGV_KEY]):
            return super().invoke(ctx)


@click.group(
    cls=RootGroup,
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
    help="Log all there is to log, tracebacks of errors included.",
)
@click.option(
    "--log_level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    default="WARNING",
    help="Least level of what is logged on the screen.",
)
@click.option(
    "--log_config_file",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="Where to log to, and what, in place of the screen: Python's `logging` configuration, as "
    "JSON (dictConfig) or ini (fileConfig).",
)
@click.option(
    "--plugin",
    multiple=True,
    default=(),
    help="Python module, or file, that brings stages of its own; repeat for more. MORPHEUS_PLUGINS "
    "names some too, with commas between them.",
)
@click.version_option(package_name="morpheus")
@click.pass_context
def morpheus(
    context: click.Context,
    *,
    debug: bool,
    log_level: str,
    log_config_file: str | None,
    plugin: tuple[str, ...],
) -> None:
    """Learn what each user in your logs usually does, and tell when one stops being themselves.

    Every option is also read from the environment: --num_threads of `run` from
    MORPHEUS_RUN_NUM_THREADS, --seed of `train-ae` from MORPHEUS_RUN_PIPELINE_AE_TRAIN_AE_SEED,
    --seed of `tools replay` from MORPHEUS_TOOLS_REPLAY_SEED. What is typed counts for more.
    """
    from morpheus.cli.logging import configure_logging  # noqa: PLC0415 - `--help` logs nothing

    configure_logging("DEBUG" if debug else log_level, log_config_file)
    plugins = os.environ.get(PLUGINS_VARIABLE, "").split(",")
    for source in filter(None, (*map(str.strip, plugins), *plugin)):
        register_plugin(source)
    warn_unknown(context.command)


@morpheus.group(cls=CommandGroup, params=options_from_dataclass(PipelineOptions, command="run"))
def run(**_: object) -> None:
    """Run a chain of stages."""
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
morpheus.add_command(report)
morpheus.add_command(serve)
morpheus.add_command(tools)


def main() -> None:
    """Be the command `morpheus`."""
    # Read by numpy when it is imported; see `processes.ONE_THREAD`.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    morpheus(prog_name="morpheus")
