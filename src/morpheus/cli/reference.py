"""Pages of the docs that are generated from the commands, in Markdown.

`render_reference` makes docs/cli.md. `render_compatibility` makes docs/compatibility.md: what is
supported of each stage and option of NVIDIA Morpheus, which `data/upstream.csv` lists.
"""

from __future__ import annotations

import csv
import inspect
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from textwrap import dedent

import click
import msgspec

REFERENCE_TITLE = """# Command line

`make docs` generates this page from the commands and stages. Edit those, not this page.
"""


def render_reference(command: click.Command, name: str) -> str:
    """Return the reference of a command and of those below it."""
    return "\n".join(
        [REFERENCE_TITLE, *_render_command(click.Context(command, info_name=name))]
    ).rstrip()


def _render_command(context: click.Context) -> Iterator[str]:
    """Yield a command's help, its options, then its own commands."""
    command = context.command
    yield f"## {context.command_path}\n"
    yield from _render_prose(command.help or "")
    yield from _render_prose(command.epilog or "")
    yield from _render_options(context)
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None:
                yield from _render_command(click.Context(below, info_name=word, parent=context))


def _render_prose(text: str) -> Iterator[str]:
    """Yield paragraphs. Those that keep their line breaks become code blocks."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b\n"):
            yield f"```sh\n{dedent(part[2:]).rstrip()}\n```\n"
        elif part:
            yield f"{part.strip()}\n"


def _render_options(context: click.Context) -> Iterator[str]:
    """Yield a table of the options."""
    options = [param for param in context.command.params if isinstance(param, click.Option)]
    if not options:
        return
    yield "| Option | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for option in options:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        cells = (names, describe_value(option), describe_default(option), option.help or "")
        yield "| " + " | ".join(map(escape_cell, cells)) + " |"
    yield ""


def escape_cell(text: str) -> str:
    """Return text for a cell of a table: on one line, with bars escaped."""
    return " ".join(text.replace("|", "\\|").split())


def describe_value(option: click.Option) -> str:
    """Return the type, choices or range of an option's value; empty for a flag."""
    if option.is_flag:
        return ""
    kind = option.type
    text = (
        ", ".join(f"`{x}`" for x in kind.choices) if isinstance(kind, click.Choice) else kind.name
    )
    if isinstance(kind, click.IntRange | click.FloatRange):
        low = f" ≥ {kind.min}" if kind.min is not None else ""
        high = f" ≤ {kind.max}" if kind.max is not None else ""
        text = f"{text.removesuffix(' range')}{low}{high}"
    return f"{text}, repeatable" if option.multiple else text


def describe_default(option: click.Option) -> str:
    """Return the default of an option; empty if there is none."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    if option.is_flag or default is None or default in ((), ""):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return ", ".join(f"`{value}`" for value in values)


COMPATIBILITY_TITLE = """# Compatibility

This page lists every stage and option of the autoencoder mode of NVIDIA Morpheus, in any release
from 22.04 to 24.06, and whether it works here. `morpheus tools compatibility` generates it from
`morpheus/data/upstream.csv` and from the commands. `make docs` writes it to this page.
[differences.md](differences.md) lists differences in results. [Command lines](#command-lines) lists
examples that run unchanged.
"""
COMMAND_LINES_TITLE = """## Command lines

These command lines of NVIDIA Morpheus run here unchanged. A test runs each of them, on logs of the
same names. Paths such as `morpheus/data/columns_ae_duo.txt` name the shipped feature lists if there
is no such file.
"""
WORKS, ACCEPTED, REJECTED, ABSENT = "works", "accepted, no effect", "rejected", "absent"
_REMOTE_SOURCE_REASON = (
    "logs are read from files; download them, or write your own source (`--plugin`)"
)
ABSENCE_REASONS = {
    "tools onnx-to-trt": "TensorRT needs a GPU and an ONNX model; neither is used here",
    "from-cm-kafka": "the stages after it did not use its control messages",
    "from-arxiv": _REMOTE_SOURCE_REASON,
    "from-databricks-deltalake": _REMOTE_SOURCE_REASON,
    "from-http": _REMOTE_SOURCE_REASON,
    "from-http-client": _REMOTE_SOURCE_REASON,
    "from-rss": _REMOTE_SOURCE_REASON,
    "to-elasticsearch": "`to-http --receiver=elasticsearch` uses its bulk API",
    "to-http --respect_retry_after_header": "`Retry-After` is always respected",
    "to-http --accept_status_codes": "responses are parsed for each event",
    "to-http --static_endpoint": "the address is always static",
    "to-http --method": "the method is always POST",
    "to-http --lines": "the receiver decides the format; a webhook gets an array",
    "to-http-server": "a server loses the events that no client requests; use `to-http`",
}
"""Why a command, or an option of a command, is absent. Errors quote the reason of a stage."""


# How the help of a stage or option starts if it does not work.
_REJECTED_HELP = re.compile(r"Removed\. ")
_NO_EFFECT_HELP = re.compile(r"(?:Accepted for old command lines|Deprecated)(?:; no effect)?[.:] ?")


class UpstreamOption(msgspec.Struct, frozen=True):
    """A stage or option of NVIDIA Morpheus.

    Attributes:
        command: Its command: `run`, `train-ae`.
        option: As typed. The name of the command for those of `tools`. Empty for the stage itself.
        releases: The first and the last release with it.
        default: Its default there.
        example: How it was used.
    """

    command: str
    option: str
    releases: str
    default: str
    example: str

    @property
    def name(self) -> str:
        """Command and option, as a key of `ABSENCE_REASONS`."""
        return f"{self.command} {self.option}".strip()

    @property
    def command_path(self) -> list[str]:
        """The words that lead to the command, after `morpheus`."""
        if self.command == "morpheus":
            return []
        if self.command == "run" or self.command.startswith("tools"):
            words = self.command.split()
            return words if self.option.startswith("-") else [*words, self.option]
        group = ["run", "pipeline-ae"]
        return group if self.command == "pipeline-ae" else [*group, self.command]


class Support(msgspec.Struct, frozen=True):
    """Whether a stage or option works here.

    Attributes:
        status: `WORKS`, `ACCEPTED`, `REJECTED` or `ABSENT`.
        default: Its default here.
        note: The type of its value, or why it is rejected or absent.
    """

    status: str
    default: str = ""
    note: str = ""


def read_upstream_options() -> list[UpstreamOption]:
    """Return every stage and option of NVIDIA Morpheus."""
    text = (resources.files("morpheus") / "data" / "upstream.csv").read_text(encoding="utf-8")
    return [UpstreamOption(**row) for row in csv.DictReader(text.splitlines())]


class UpstreamCommand(msgspec.Struct, frozen=True):
    """A command line of NVIDIA Morpheus.

    Attributes:
        name: What it is for.
        origin: File of NVIDIA Morpheus's repository that has it.
        releases: The first and the last release with it.
        line: The command line, for a shell.
    """

    name: str
    origin: str
    releases: str
    line: str


def read_upstream_commands() -> list[UpstreamCommand]:
    """Return the command lines of NVIDIA Morpheus that run unchanged."""
    text = (resources.files("morpheus") / "data" / "upstream_commands.toml").read_text("utf-8")
    return [UpstreamCommand(**each) for each in tomllib.loads(text)["command"]]


def find_support(upstream: UpstreamOption, root: click.Command) -> Support:
    """Look up a stage or option in the commands and their help."""
    command = find_command(upstream, root)
    if command is None:
        return _explain_absence(upstream)
    command_help = command.help or ""
    if rejected := _REJECTED_HELP.match(command_help):
        return Support(REJECTED, note=command_help[rejected.end() :].partition("\n\n")[0])
    if not upstream.option.startswith("-"):
        return Support(ACCEPTED if _NO_EFFECT_HELP.match(command_help) else WORKS)
    option = find_option(upstream, command)
    if option is None:
        return _explain_absence(upstream)
    if accepted := _NO_EFFECT_HELP.match(option.help or ""):
        note = (option.help or "")[accepted.end() :]
        return Support(ACCEPTED, describe_default(option), note)
    return Support(WORKS, describe_default(option), describe_value(option))


def find_command(upstream: UpstreamOption, root: click.Command) -> click.Command | None:
    """Return the command with this stage or option; None if there is none."""
    command: click.Command | None = root
    context = click.Context(root)
    for word in upstream.command_path:
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(context, word)
    return command


def find_option(upstream: UpstreamOption, command: click.Command) -> click.Option | None:
    """Return this option of a command; None if there is none."""
    context = click.Context(command)
    return next(
        (
            param
            for param in command.get_params(context)
            if isinstance(param, click.Option)
            and upstream.option in {*param.opts, *param.secondary_opts}
        ),
        None,
    )


def _explain_absence(upstream: UpstreamOption) -> Support:
    if upstream.command in ABSENCE_REASONS:
        return Support(REJECTED, note=ABSENCE_REASONS[upstream.command])
    return Support(ABSENT, note=ABSENCE_REASONS.get(upstream.name, ""))


def render_compatibility(root: click.Command) -> str:
    """Return the page: a table for each command."""
    return "\n".join(
        [
            COMPATIBILITY_TITLE,
            *_render_sections(read_upstream_options(), root),
            COMMAND_LINES_TITLE,
            *_render_command_lines(read_upstream_commands()),
        ]
    ).rstrip()


def _render_command_lines(commands: Sequence[UpstreamCommand]) -> Iterator[str]:
    for command in commands:
        yield f"### {command.name}\n"
        yield f"From `{command.origin}`, {command.releases}.\n"
        yield f"```sh\n{command.line.strip()}\n```\n"


def _render_sections(
    upstream_options: Sequence[UpstreamOption], root: click.Command
) -> Iterator[str]:
    rows = [(upstream, find_support(upstream, root)) for upstream in upstream_options]
    counts = (
        f"{sum(support.status == status for _, support in rows)} {status}"
        for status in (WORKS, ACCEPTED, REJECTED, ABSENT)
    )
    yield f"{len(rows)} rows: {'; '.join(counts)}.\n"
    for command in dict.fromkeys(upstream.command for upstream in upstream_options):
        yield f"## {command}\n"
        yield "| Option | Releases | Here | Default there | Default here | Notes |"
        yield "|---|---|---|---|---|---|"
        for upstream, support in rows:
            if upstream.command == command:
                name = f"`{upstream.option}`" if upstream.option else "(the stage)"
                default = f"`{upstream.default}`" if upstream.default else ""
                cells = (
                    *(name, upstream.releases, support.status),
                    *(default, support.default, support.note),
                )
                yield "| " + " | ".join(map(escape_cell, cells)) + " |"
        yield ""
