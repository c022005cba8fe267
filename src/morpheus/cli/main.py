"""The command `morpheus`: its groups, and the options that hold for all of them."""

from __future__ import annotations

import os
from typing import Any

import click

from morpheus import registry
from morpheus.cli.chain import Chain, run_chain
from morpheus.cli.command import Group
from morpheus.cli.environment import PLUGINS, PREFIX, named, tell_unknown
from morpheus.cli.exits import endings
from morpheus.cli.misplaced import sent_home
from morpheus.cli.options import options_of
from morpheus.cli.report import report
from morpheus.cli.serve import serve
from morpheus.cli.tools import tools
from morpheus.stage import PipelineOptions

TYPED = "morpheus.typed"
"""Where the context keeps all that was typed."""
LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG")


class Root(Group):
    """The outermost group: whatever goes wrong below it ends here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the first command."""
        ctx.meta[TYPED] = list(args)
        with sent_home(self, ctx.meta[TYPED]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run a command; its failures become messages and exit codes."""
        with endings(), named(), sent_home(self, ctx.meta[TYPED]):
            return super().invoke(ctx)


@click.group(
    cls=Root,
    context_settings={
        "auto_envvar_prefix": PREFIX,
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
    type=click.Choice(LEVELS, case_sensitive=False),
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
    from morpheus.cli import log  # noqa: PLC0415 - `--help` logs nothing

    log.configure("DEBUG" if debug else log_level, log_config_file)
    plugins = os.environ.get(PLUGINS, "").split(",")
    for source in filter(None, (*map(str.strip, plugins), *plugin)):
        registry.register_plugin(source)
    tell_unknown(context.command)


@morpheus.group(cls=Group, params=options_of(PipelineOptions, command="run"))
def run(**_: object) -> None:
    """Run a chain of stages."""
    from morpheus.processes import SINGLE_THREAD_ENV  # noqa: PLC0415 - `--help` runs nothing

    for name, value in SINGLE_THREAD_ENV.items():
        os.environ.setdefault(name, value)


run.add_command(
    Chain(
        "pipeline-ae",
        params=options_of(PipelineOptions, command="pipeline-ae"),
        result_callback=run_chain,
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
