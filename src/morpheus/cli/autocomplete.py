"""`morpheus tools autocomplete`: the shell completes commands, stages and options."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from morpheus.cli.command import Group
from morpheus.cli.screen import say
from morpheus.errors import UsageError

BEGIN, END = "# >>> morpheus completion >>>", "# <<< morpheus completion <<<"
PATHS = {
    "bash": "~/.bash_completion",
    "fish": "~/.config/fish/completions/morpheus.fish",
    "zsh": "~/.zshrc",
}
"""Where each shell looks."""

_SHELL = click.option(
    "--shell",
    type=click.Choice(sorted(PATHS)),
    default=None,
    help="Shell to complete in.",
    show_default="that of $SHELL, or bash",
)


@click.group(cls=Group)
def autocomplete() -> None:
    """Let the shell complete commands, stages and options."""


@autocomplete.command()
@_SHELL
@click.pass_context
def show(context: click.Context, shell: str | None) -> None:
    """Print what the shell has to run.

    Example: `morpheus tools autocomplete show --shell=zsh`
    """
    shell = shell or _current()
    say(f"To add {shell} completion, write the following code to '{PATHS[shell]}':", fg="blue")
    click.echo(code(context.find_root().command, shell), nl=False)


@autocomplete.command()
@click.option(
    "--append/--overwrite",
    default=False,
    help="Accepted for old command lines: what was installed before is replaced, and the rest of "
    "the file stays as it is.",
)
@_SHELL
@click.option(
    "--path",
    default=None,
    help="File to write to.",
    show_default="where the shell looks",
)
@click.pass_context
def install(context: click.Context, *, append: bool, shell: str | None, path: str | None) -> None:
    """Write it where the shell finds it. Installing again replaces it.

    Example: `morpheus tools autocomplete install`
    """
    del append
    from morpheus.atomic import atomic_write  # noqa: PLC0415 - `--help` writes nothing

    shell = shell or _current()
    file = Path(path or PATHS[shell]).expanduser()
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--path: `{file}` cannot be read: {error}. Give another.") from error
    text = installed(before, code(context.find_root().command, shell))
    with atomic_write(file) as out:
        out.write(text.encode())
    say(f"{shell} completion installed in {file}")


def code(root: click.Command, shell: str) -> str:
    """What a shell has to run, between two marks."""
    complete = get_completion_class(shell)
    assert complete is not None, shell  # noqa: S101 - click knows all of PATHS
    script = complete(root, {}, "morpheus", "_MORPHEUS_COMPLETE").source()
    return f"{BEGIN}\n{script.strip()}\n{END}\n"


def installed(before: str, block: str) -> str:
    """A file with the block in it, once, where it was or at the end.

    >>> installed("alias l=ls", BEGIN).splitlines()
    ['alias l=ls', '# >>> morpheus completion >>>']
    """
    old = re.compile(f"^{re.escape(BEGIN)}$.*?^{re.escape(END)}$\n?", re.MULTILINE | re.DOTALL)
    if old.search(before):
        return old.sub(lambda _: block, before, count=1)
    return before + ("\n" if before and not before.endswith("\n") else "") + block


def _current() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in PATHS else "bash"
