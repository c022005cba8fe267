"""The command `morpheus`: its groups, its general options, and options from the environment."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from morpheus.cli.output import LOG_FORMATS, discard_unwritten, handle_errors, set_log_format
from morpheus.text import quote_backtick, suggest

# Options given twice.


class StrictCommand(click.Command):
    """A command that rejects an option given twice, unless the option is repeatable.

    Of two values, one would be lost in silence. It also rejects an empty argument, which a variable
    of the shell without a value gives: as a path, it would be the current folder.
    """

    def make_parser(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's parser has no public type
        """Return the parser of this command."""
        parser = super().make_parser(ctx)
        parse_args = parser.parse_args

        def parse(args: list[str]) -> Any:  # noqa: ANN401 - as click declares it
            values, rest, order = parse_args(args)
            if not ctx.resilient_parsing:
                _reject_repeated(order, ctx)
                _reject_empty(self.params, values, ctx)
            return values, rest, order

        parser.parse_args = parse  # type: ignore[method-assign]  # click has no hook between
        return parser


def _reject_empty(
    parameters: Sequence[click.Parameter], values: Mapping[str, Any], context: click.Context
) -> None:
    """Reject arguments with an empty text.

    Args:
        parameters: Options and arguments of the command.
        values: Words of the command line, by name of the parameter.
        context: Context of the command.
    """
    for each in parameters:
        given = values.get(each.name or "")
        words = given if isinstance(given, tuple) else (given,)
        if isinstance(each, click.Argument) and "" in words:
            raise click.BadArgumentUsage(
                f"Argument '{each.human_readable_name}' is an empty text. If it comes from a "
                "variable, check that the variable is set.",
                ctx=context,
            )


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
        owners = [
            words
            for words, each in _iter_commands(root)
            if error.option_name in _option_names(each)
        ]
        if error.option_name in _option_names(root):
            owners.insert(0, [root.name or ""])
        # Commands of several groups have the same name.
        known = [words for words in owners if set(words) <= {*argv, root.name or ""}]
        places = known or owners
        if places:
            can_follow = "run" in argv or bool(known)
            described = _describe_places(list(map(_name_place, places)), can_follow=can_follow)
            message = f"{error.message} {described}"
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


def _name_place(words: Sequence[str]) -> str:
    """Return the word of a stage, which is not ambiguous, or all words of another command."""
    return words[-1] if words[0] == "run" else " ".join(words)


def _describe_places(places: Sequence[str], *, can_follow: bool) -> str:
    """Return which commands have an option, and that it belongs there if one can still follow."""
    names = [f"`{word}`" for word in dict.fromkeys(places)]
    more = ["others"] if len(names) > MAX_PLACES else []
    *first, last = [*names[:MAX_PLACES], *more]
    listed = f"{', '.join(first)} and {last}" if first else last
    advice = f" Put it after {'one of these words' if first else last}." if can_follow else ""
    return f"It is an option of {listed}.{advice}"


# Groups and commands.


class LazyCommand(NamedTuple):
    """A command whose module is imported when the command is used, not for the help of its group.

    Attributes:
        location: Where it is: `module:attribute`.
        summary: First line of its help.
        imports_more: Its own commands import modules. `resume_gc` is called after those.
    """

    location: str
    summary: str
    imports_more: bool = False

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.location.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        if not self.imports_more:
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


def first_line(text: str) -> str:
    """Return the first line of a help text."""
    return text.partition("\n")[0]


# The command `morpheus`.

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
    import logging  # noqa: PLC0415 - `--help` logs nothing

    logger = logging.getLogger(__name__)
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
        with handle_errors(), locate_option(self, ctx.meta[ARGV_KEY]):
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
    "run": LazyCommand(
        "morpheus.cli.chain:run",
        "Run a pipeline of stages.",
        imports_more=True,
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
"""Modules of these commands import more than all of `--help`, and most of them polars."""


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
        from morpheus.core.registry import register_plugin  # noqa: PLC0415 - most have no plugin

        register_plugin(source)
    warn_unknown(context.command)


@morpheus.group(cls=CommandGroup, lazy=TOOLS)
def tools() -> None:
    """Utilities: attack replay, suppressions, shell completion, lists of stages and options."""


def main() -> None:
    """Run the command `morpheus`."""
    # numpy reads this when it is imported. See `runtime.pool.SINGLE_THREAD_ENV`.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        morpheus(prog_name="morpheus")
    finally:
        discard_unwritten()
