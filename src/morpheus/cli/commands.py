"""`morpheus report`: a page from the files that earlier runs wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit
from click.shell_completion import get_completion_class

from morpheus.cli.chain import Group, made_of
from morpheus.cli.output import FAILED, aligned, count, say, show, stoppable
from morpheus.cli.suppress import suppress
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.replay.injection import Drill
from morpheus.report_cli import Request

if TYPE_CHECKING:
    import polars as pl

    from morpheus.replay.evaluation import Outcome


def _report(request: Request, files: Sequence[Path]) -> None:
    from morpheus.report_cli import write  # noqa: PLC0415 - `--help` reads no file

    with stoppable():
        found = write(request, files)
    events, incidents = count(found.account.read, "event"), count(len(found.incidents), "incident")
    say(f"{request.filename}: {incidents} among {events}")


FILES = click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path))
report = made_of("report", Request, _report, FILES)


@dataclass(frozen=True)
class Serve:
    r"""Show the report's page, live, of a FOLDER into which a run writes.

    Rows are shown as they come: files that grow (`to-file --flush`), and new files. Only this
    machine can open the page, and only with the token that stands in its address, printed once.
    Nothing can be changed through it. Ctrl+C ends it.

        morpheus run --status_file=out/status.json pipeline-ae ... \
            to-file --filename=out/alerts.jsonl --flush
        morpheus serve out
    """

    port: int = option(
        8321, "Where to listen, on 127.0.0.1; 0 for any that is free.", min=0, max=65535
    )
    token: bool = option(True, "Ask for the token. Without, everybody on this machine can read.")
    userid_column_name: str = option(
        "",
        "Column of the rows that says whose event it is.",
        default_display="the one that the run's status names, or the first that is known to",
    )
    models: str | None = option(
        None,
        "Folder of the fingerprints that scored: the page shows them, and measures by them.",
    )
    alerts_per_day: float | None = option(
        None,
        "Alerts a day that you are ready to look at.",
        min=0,
        default_display="that of the run's `filter`, or 5",
    )


def _serve(options: Serve, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"FOLDER: there is no folder `{folder}`. Give the one into which `to-file` writes."
        )
    try:
        from morpheus.serve.app import serve  # noqa: PLC0415 - `--help` serves nothing
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve: `{error.name}` is not installed. Get it by `pip install 'morpheus[serve]'`."
        ) from error
    from morpheus.models.store import ModelStore  # noqa: PLC0415 - as above
    from morpheus.serve.live import Live  # noqa: PLC0415 - as above

    store = None if options.models is None else ModelStore.open(options.models)
    live = Live(folder, options.userid_column_name, options.alerts_per_day, store)
    serve(live, port=options.port, with_token=options.token, tell=_tell)


def _tell(address: str) -> None:
    say(f"Serving at {address}")
    say("Whoever on this machine has this address can read. Ctrl+C ends it.", dim=True)


FOLDER = click.Argument(["folder"], type=click.Path(path_type=Path))
serve = made_of("serve", Serve, _serve, FOLDER)


SHOWN = 3
ALL = "all"


def _replay(drill: Drill) -> None:
    from morpheus.replay.evaluation import (
        judged,  # noqa: PLC0415 - `--help` replays nothing
        run,  # noqa: PLC0415 - the same
    )

    kind = _kind(drill)
    with stoppable():
        batches, summary = run(drill)
    outcome = judged(batches, drill.alerts_per_day)
    if drill.filename is not None:
        _write(outcome.trials, Path(drill.filename), kind)
    if drill.filename is not None or kind == "table":
        _show(outcome, drill)
    else:
        click.echo(_text(outcome.trials, kind), nl=False)
    _say(outcome, summary.seconds)
    _end(outcome, drill.min_recall)


replay = made_of("replay", Drill, _replay)


def _kind(drill: Drill) -> str:
    """How trials are written: as asked for, or as the file is named."""
    asked = drill.output_format.lower()
    if drill.filename is None or asked != "table":
        return asked
    kind = Path(drill.filename).suffix.lower().removeprefix(".")
    if kind not in {"csv", "json"}:
        raise UsageError(
            f"--filename: `{drill.filename}` is to be `.csv` or `.json`. Name it so, or give "
            "`--output_format csv` or json."
        )
    return kind


def _text(trials: pl.DataFrame, kind: str) -> bytes:
    """Trials, one line each."""
    import io  # noqa: PLC0415 - only where trials are written

    from morpheus.sinks.formats import (
        encode_csv_header,  # noqa: PLC0415 - the same
        write_csv_rows,  # noqa: PLC0415 - the same
        write_json_rows,  # noqa: PLC0415 - the same
    )

    text = io.BytesIO()
    if kind == "csv":
        text.write(encode_csv_header(trials.columns))
    (write_csv_rows if kind == "csv" else write_json_rows)(trials, text)
    return text.getvalue()


def _write(trials: pl.DataFrame, path: Path, kind: str) -> None:
    from morpheus.storage.atomic import atomic_write  # noqa: PLC0415 - only where trials are written

    with atomic_write(path) as file:
        file.write(_text(trials, kind))


def _show(outcome: Outcome, drill: Drill) -> None:
    """The share caught, by technique and grade, and by user and grade."""
    for by in ("technique", "user"):
        if outcome.trials.height:
            head = (by.upper(), *(grade.upper() for grade in drill.grades))
            show(head, _shares(outcome, by, drill.grades))
            click.echo()


def _shares(outcome: Outcome, by: str, grades: tuple[str, ...]) -> list[list[str]]:
    """A row for each value of a column, a cell for each grade; then one for all."""
    each = outcome.share(by, "grade").iter_rows()
    cells = {(name, grade): f"{caught}/{tried}" for name, grade, caught, tried in each}
    names = outcome.trials[by].unique(maintain_order=True).to_list()
    rows = [[name, *(cells.get((name, grade), "") for grade in grades)] for name in names]
    total = {
        grade: f"{caught}/{tried}" for grade, caught, tried in outcome.share("grade").iter_rows()
    }
    return [*rows, [ALL, *(total.get(grade, "") for grade in grades)]]


def _say(outcome: Outcome, seconds: float) -> None:
    """What the figures rest on."""
    trials, recall = outcome.trials, outcome.recall
    caught, tried = int(trials["caught"].sum()), int(trials["caught"].count())
    facts = {"Caught": f"{caught:,} of {count(tried, 'trial')}"}
    if recall is not None:
        facts["Caught"] += f", recall {recall:.3f}"
    allowed = count(outcome.allowed, "alert")
    facts["Budget"] = f"{allowed} on the users' own events, which raise {outcome.raised:,}"
    if trials.height > tried:
        facts["Not placed"] = f"{count(trials.height - tried, 'trial')}: longer than active hours"
    if outcome.untried:
        facts["Not tried"] = f"{count(len(outcome.untried), 'user')}: {_reasons(outcome)}"
    if hidden := trials["hidden_by"].count():
        facts["Hidden"] = f"{count(hidden, 'trial')} that suppressions alone let go: `hidden_by`"
    facts["Seconds"] = f"{seconds:.1f}"
    width = max(map(len, facts))
    say("\n".join(f"{name:{width}}  {text}" for name, text in facts.items()))


def _reasons(outcome: Outcome) -> str:
    """Why the first few users were left out."""
    some = sorted(outcome.untried.items(), key=lambda one: one[0] or "")
    told = [f"{'(no user)' if user is None else user} ({why})" for user, why in some[:SHOWN]]
    more = [f"{len(some) - SHOWN:,} more"] if len(some) > SHOWN else []
    return ", ".join([*told, *more])


def _end(outcome: Outcome, least: float | None) -> None:
    """Fail where nothing was tried, or too little was caught."""
    if outcome.recall is None:
        say("Error: nothing was tried. Give users more history, or lower --train_min_history.")
        raise Exit(FAILED)
    if least is not None and outcome.recall < least:
        say(f"Error: recall {outcome.recall:.3f} is under --min_recall {least:g}.")
        raise Exit(FAILED)


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


@autocomplete.command("show")
@_SHELL
@click.pass_context
def show_completion(context: click.Context, shell: str | None) -> None:
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
    from morpheus.storage.atomic import atomic_write  # noqa: PLC0415 - `--help` writes nothing

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


@click.group(cls=Group)
def tools() -> None:
    """Look at what is installed, and at what it would catch."""


@tools.command()
def stages() -> None:
    """List the stages that exist: what each takes, gives, and which package brings it."""
    from morpheus.cli.chain import described  # noqa: PLC0415 - the same
    from morpheus.core.registry import distribution_of, stage_names  # noqa: PLC0415 - `--help` lists nothing

    rows = [(word, distribution_of(word), *described(word)) for word in stage_names()]
    click.echo(aligned(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@tools.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of this command line, in Markdown."""
    from morpheus.cli.reference import reference_of  # noqa: PLC0415 - `--help` prints no reference

    click.echo(reference_of(context.find_root().command, "morpheus"))


@tools.command()
@click.pass_context
def compatibility(context: click.Context) -> None:
    """Print what becomes of each stage and option of NVIDIA Morpheus, in Markdown."""
    from morpheus.cli.reference import page  # noqa: PLC0415 - `--help` prints no table

    click.echo(page(context.find_root().command))


tools.add_command(autocomplete)
tools.add_command(replay)
tools.add_command(suppress)
