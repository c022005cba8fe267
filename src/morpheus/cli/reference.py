"""The reference of the command line, in Markdown, made from the commands themselves."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from textwrap import dedent

import click

REFERENCE_TITLE = """# Command line

Made by `make docs` from the stages themselves; edit those, not this page.
"""


def render_reference(command: click.Command, name: str) -> str:
    """The reference: this command, then those below it."""
    return "\n".join(
        [REFERENCE_TITLE, *_render_command(click.Context(command, info_name=name))]
    ).rstrip()


def _render_command(context: click.Context) -> Iterator[str]:
    """A command: what it does, its options, then its own commands."""
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
    """Paragraphs; those that keep their lines become blocks of code."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b\n"):
            yield f"```sh\n{dedent(part[2:]).rstrip()}\n```\n"
        elif part:
            yield f"{part.strip()}\n"


def _render_options(context: click.Context) -> Iterator[str]:
    """A table of the options."""
    options = [one for one in context.command.params if isinstance(one, click.Option)]
    if not options:
        return
    yield "| Option | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for one in options:
        names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
        cells = (names, describe_value(one), describe_default(one), one.help or "")
        yield "| " + " | ".join(map(escape_cell, cells)) + " |"
    yield ""


def escape_cell(text: str) -> str:
    """Text as a cell of a table: on one line."""
    return " ".join(text.replace("|", "\\|").split())


def describe_value(option: click.Option) -> str:
    """What an option takes."""
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
    """What holds where an option is not given."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    if option.is_flag or default is None or default in ((), ""):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return ", ".join(f"`{one}`" for one in values)


COMPATIBILITY_TITLE = """# Compatibility

Every stage and option that NVIDIA Morpheus had in its autoencoder mode, in any release from 22.04
to 24.06, and what becomes of it here. Made by `morpheus tools compatibility` from
`morpheus/data/upstream.csv` and from the commands themselves; `make docs` writes it to this page.
What differs in the outcome is in [differences.md](differences.md).
"""
WORKS, ACCEPTED, REFUSED, ABSENT = "works", "accepted, without effect", "refused", "absent"
_REMOTE_SOURCE_REASON = (
    "logs are read from files; fetch them, or bring a source of your own (`--plugin`)"
)
ABSENCE_REASONS = {
    "tools onnx-to-trt": "TensorRT needs a GPU, and there is no ONNX model here",
    "from-cm-kafka": "its control messages were of no use to the stages behind it",
    "from-arxiv": _REMOTE_SOURCE_REASON,
    "from-databricks-deltalake": _REMOTE_SOURCE_REASON,
    "from-http": _REMOTE_SOURCE_REASON,
    "from-http-client": _REMOTE_SOURCE_REASON,
    "from-rss": _REMOTE_SOURCE_REASON,
    "to-elasticsearch": "`to-http --receiver=elasticsearch` sends to its bulk interface",
    "to-http --respect_retry_after_header": "`Retry-After` is always heeded",
    "to-http --accept_status_codes": "what a receiver answers is understood, event by event",
    "to-http --static_endpoint": "the address is always the same",
    "to-http --method": "alerts are always posted",
    "to-http --lines": "each receiver gets the form that it reads; a webhook gets an array",
    "to-http-server": "who waits to be asked can lose what nobody asks for; `to-http` sends",
}
"""Why something is not here, by command, or by command and option; a stage's is told when typed."""


@dataclass(frozen=True)
class UpstreamOption:
    """A stage or option of NVIDIA Morpheus.

    Attributes:
        command: The command that had it: `run`, `train-ae`.
        option: As typed; a command's name for one below `tools`; empty for a stage without any.
        releases: The first and the last that had it.
        default: What held there without it.
        example: How it was typed.
    """

    command: str
    option: str
    releases: str
    default: str
    example: str

    @property
    def name(self) -> str:
        """Command and option."""
        return f"{self.command} {self.option}".strip()

    @property
    def command_path(self) -> list[str]:
        """The words that lead to the command, behind `morpheus`."""
        if self.command == "morpheus":
            return []
        if self.command == "run" or self.command.startswith("tools"):
            words = self.command.split()
            return words if self.option.startswith("-") else [*words, self.option]
        above = ["run", "pipeline-ae"]
        return above if self.command == "pipeline-ae" else [*above, self.command]


@dataclass(frozen=True)
class Support:
    """What becomes of it here.

    Attributes:
        status: `WORKS`, `ACCEPTED`, `REFUSED` or `ABSENT`.
        default: What holds here without it.
        note: What is to be said of it.
    """

    status: str
    default: str = ""
    note: str = ""


def read_upstream_options() -> list[UpstreamOption]:
    """What NVIDIA Morpheus had."""
    text = (resources.files("morpheus") / "data" / "upstream.csv").read_text(encoding="utf-8")
    return [UpstreamOption(**row) for row in csv.DictReader(text.splitlines())]


def find_support(upstream: UpstreamOption, root: click.Command) -> Support:
    """What becomes of a row, as the commands themselves have it."""
    command = find_command(upstream, root)
    if command is None:
        return _explain_absence(upstream)
    help_ = command.help or ""
    if help_.startswith("Refused:"):
        return Support(REFUSED, note=help_.partition("\n\n")[0].removeprefix("Refused: "))
    if not upstream.option.startswith("-"):
        does_nothing = help_.startswith("Do nothing")
        return Support(ACCEPTED if does_nothing else WORKS)
    option = find_option(upstream, command)
    if option is None:
        return _explain_absence(upstream)
    about = option.help or ""
    before, _, after = about.partition("Accepted for old command lines")
    if after and not before:
        return Support(ACCEPTED, describe_default(option), after.lstrip(".: "))
    return Support(WORKS, describe_default(option), describe_value(option))


def find_command(upstream: UpstreamOption, root: click.Command) -> click.Command | None:
    """The command that a row is about; None where there is none."""
    command: click.Command | None = root
    context = click.Context(root)
    for word in upstream.command_path:
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(context, word)
    return command


def find_option(upstream: UpstreamOption, command: click.Command) -> click.Option | None:
    """The option of a command that a row is about; None where there is none."""
    context = click.Context(command)
    return next(
        (
            one
            for one in command.get_params(context)
            if isinstance(one, click.Option) and upstream.option in {*one.opts, *one.secondary_opts}
        ),
        None,
    )


def _explain_absence(upstream: UpstreamOption) -> Support:
    if upstream.command in ABSENCE_REASONS:
        return Support(REFUSED, note=ABSENCE_REASONS[upstream.command])
    return Support(ABSENT, note=ABSENCE_REASONS.get(upstream.name, ""))


def render_compatibility(root: click.Command) -> str:
    """The table, in Markdown: a section for each command."""
    return "\n".join(
        [COMPATIBILITY_TITLE, *_render_sections(read_upstream_options(), root)]
    ).rstrip()


def _render_sections(
    upstream_options: Sequence[UpstreamOption], root: click.Command
) -> Iterator[str]:
    done = [(row, find_support(row, root)) for row in upstream_options]
    numbers = (
        f"{sum(one.status == status for _, one in done)} {status}"
        for status in (WORKS, ACCEPTED, REFUSED, ABSENT)
    )
    yield f"{len(done)} rows: {'; '.join(numbers)}.\n"
    for command in dict.fromkeys(row.command for row in upstream_options):
        yield f"## {command}\n"
        yield "| Option | Releases | Here | Default there | Default here | |"
        yield "|---|---|---|---|---|---|"
        for row, one in done:
            if row.command == command:
                name = f"`{row.option}`" if row.option else "(the stage)"
                there = f"`{row.default}`" if row.default else ""
                cells = (name, row.releases, one.status, there, one.default, one.note)
                yield "| " + " | ".join(map(escape_cell, cells)) + " |"
        yield ""
