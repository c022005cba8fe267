"""`pipeline-ae`: a chain of stages, each word of it a command made from a stage class."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from morpheus import registry
from morpheus.atomic import atomic_write
from morpheus.cli.command import Group, heading, help_of
from morpheus.cli.drawing import draw
from morpheus.cli.exits import stoppable
from morpheus.cli.misplaced import home_of
from morpheus.cli.options import given, options_of
from morpheus.cli.screen import say
from morpheus.errors import EXIT_INTERRUPTED, UsageError
from morpheus.stage import PipelineOptions, Transform

if TYPE_CHECKING:
    from morpheus.pipeline import Pipeline
    from morpheus.records import RunMetrics

log = logging.getLogger(__name__)

HELP = """Learn each user's habits with an autoencoder, and score events by them.

The stages follow, in the order in which events pass through them, each with its options:

\b
morpheus run pipeline-ae --userid_column_name=userIdentityarn \\
  from-cloudtrail --input_glob=AWSLogs/2026/11/ \\
  train-ae --train_data_glob=AWSLogs/2026/10/ \\
  preprocess inf-pytorch add-scores \\
  serialize to-file --filename=output.csv
"""
TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
TRUTHS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


class Chain(Group):
    """A group whose commands are the registry's stages, loaded when their word is used."""

    def __init__(self, name: str, **attributes: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(
            name,
            chain=True,
            help=HELP,
            invoke_without_command=True,  # the pipeline has its own word for an empty chain
            no_args_is_help=True,
            subcommand_metavar="STAGE...",
            **attributes,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every stage, sorted."""
        del ctx
        return list(registry.stage_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make the command of a stage; None where no stage has the name."""
        del ctx
        return command_of(cmd_name) if cmd_name in registry.stage_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next stage, or say what was meant."""
        word = args[0]
        if not ctx.resilient_parsing and word[:1] != "-" and word not in registry.stage_names():
            ctx.fail(_unexpected(word, ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the stages; one that cannot be loaded does not hide the others."""
        rows = [(word, described(word)[1]) for word in self.list_commands(ctx)]
        with formatter.section("Stages"):
            formatter.write_dl(rows)


class StageCommand(click.Command):
    """The command of one stage. Its flags may be given a value, as some releases wanted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of this stage, and leave those of the stages behind it."""
        return super().parse_args(ctx, list(self._without_values(args)))

    def _without_values(self, args: list[str]) -> Iterator[str]:
        options = [one for one in self.params if isinstance(one, click.Option)]
        flags = {name for one in options if one.is_flag for name in one.opts}
        valued = {name for one in options if not one.is_flag for name in one.opts}
        words = deque(args)
        while words and words[0].startswith("-"):
            word = words.popleft()
            name, equals, value = word.partition("=")
            if name in flags and not equals and words and words[0].lower() in TRUTHS:
                value = words.popleft()
            if name not in flags or not value:
                yield word
            elif value.lower() not in TRUTHS:
                raise click.BadOptionUsage(name, f"Option '{name}': {value!r} is no true or false.")
            elif TRUTHS[value.lower()]:
                yield name
            if name in valued and not equals and words:
                yield words.popleft()
        yield from words


def command_of(word: str) -> click.Command:
    """Make a stage's command: called, it gives the stage."""
    stage = registry.load_stage(word)

    @click.pass_context
    def build(context: click.Context, /, **_: object) -> Transform:
        return stage(**given(context))

    return StageCommand(
        word, params=options_of(stage), callback=build, help=help_of(stage), epilog=flow_of(stage)
    )


def flow_of(stage: type[Transform]) -> str:
    """Say what a stage takes and gives."""
    takes = " or ".join(one.__name__ for one in stage.takes)
    gives = stage.gives.__name__ if stage.gives is not None else "what it took"
    return f"Takes {takes}, gives {gives}." if takes else f"A source: gives {gives}."


def described(word: str) -> tuple[str, str]:
    """What a stage takes and gives, and the first line of its help, or why it has none."""
    try:
        stage = registry.load_stage(word)
    except UsageError as error:
        return "", f"(cannot be used: {error})"
    return flow_of(stage), heading(help_of(stage))


@click.pass_context
def run_chain(context: click.Context, /, stages: Sequence[Transform], **_: object) -> None:
    """Check the chain, run it, and say what became of the events."""
    from morpheus.pipeline import Pipeline  # noqa: PLC0415 - `--help` runs nothing

    say("Configuring Pipeline via CLI", fg="green")
    above = context.parent
    settings = PipelineOptions(**(given(above) if above is not None else {}), **given(context))
    pipeline = Pipeline(stages, settings)
    with stoppable():
        pipeline.validate()
        _announce(pipeline)
        summary = pipeline.run(_tell)
    if summary.interrupted:
        raise Exit(EXIT_INTERRUPTED)


def _tell(summary: RunMetrics) -> None:
    from morpheus.cli.summary import summary_lines  # noqa: PLC0415 - `--help` runs nothing

    say("\n".join(summary_lines(summary)))


def _announce(pipeline: Pipeline) -> None:
    """Say what is about to run, in the words that old notebooks show."""
    settings = pipeline.options
    if settings.use_cpp:
        log.warning("C++ is disabled for AutoEncoder pipelines at this time.")
    log.debug("Loaded columns. Current columns: [%r]", list(settings.columns))
    if settings.labels_file is not None:
        log.debug("Loaded labels file. Current labels: [%r]", list(settings.labels))
    if settings.userid_filter is not None:
        log.info("Filtering all users except ID: '%s'", settings.userid_filter)
    if settings.viz_file is not None:
        _draw(pipeline, Path(settings.viz_file))
    say("Starting pipeline via CLI... Ctrl+C to Quit", fg="red")


def _draw(pipeline: Pipeline, file: Path) -> None:
    """Write the chain's drawing, whole or not at all."""
    drawing = draw(pipeline.links(), file, pipeline.options.viz_direction)
    with atomic_write(file) as drawn:
        drawn.write(drawing.encode())
    say(f"Pipeline visualization saved to {file}", fg="yellow")


def _unexpected(word: str, context: click.Context) -> str:
    """What to say of a word where a stage should stand."""
    if home := home_of(word, context):
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
    from morpheus.cli.compatibility import REASONS  # noqa: PLC0415 - read for a wrong word alone

    if word in REASONS:
        return f"There is no stage `{word}` here: {REASONS[word]}."
    return registry.unknown_stage_message(word)
