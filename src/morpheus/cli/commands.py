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

from morpheus.cli.chain import CommandGroup, command_from_dataclass
from morpheus.cli.output import (
    EXIT_FAILURE,
    align_columns,
    echo,
    format_count,
    interruptible,
    print_table,
)
from morpheus.cli.suppress import suppress
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.replay.injection import ReplayConfig
from morpheus.report_cli import ReportRequest

if TYPE_CHECKING:
    import polars as pl

    from morpheus.replay.evaluation import ReplayReport


def _run_report(request: ReportRequest, files: Sequence[Path]) -> None:
    from morpheus.report_cli import write_report  # noqa: PLC0415 - `--help` reads no file

    with interruptible():
        found = write_report(request, files)
    events, incidents = (
        format_count(found.account.read, "event"),
        format_count(len(found.incidents), "incident"),
    )
    echo(f"{request.filename}: {incidents} among {events}")


FILES_ARGUMENT = click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path))
report = command_from_dataclass("report", ReportRequest, _run_report, FILES_ARGUMENT)


@dataclass(frozen=True)
class ServeOptions:
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


def _run_server(options: ServeOptions, folder: Path) -> None:
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
    from morpheus.serve.live import LiveReport  # noqa: PLC0415 - as above

    store = None if options.models is None else ModelStore.open(options.models)
    live = LiveReport(folder, options.userid_column_name, options.alerts_per_day, store)
    serve(live, port=options.port, with_token=options.token, on_listening=_print_address)


def _print_address(address: str) -> None:
    echo(f"Serving at {address}")
    echo("Whoever on this machine has this address can read. Ctrl+C ends it.", dim=True)


FOLDER_ARGUMENT = click.Argument(["folder"], type=click.Path(path_type=Path))
serve = command_from_dataclass("serve", ServeOptions, _run_server, FOLDER_ARGUMENT)


MAX_REASONS_SHOWN = 3
TOTAL_LABEL = "all"


def _run_replay_command(config: ReplayConfig) -> None:
    from morpheus.replay.evaluation import (
        evaluate,  # noqa: PLC0415 - `--help` replays nothing
        run_replay,  # noqa: PLC0415 - the same
    )

    kind = _choose_trial_format(config)
    with interruptible():
        batches, summary = run_replay(config)
    outcome = evaluate(batches, config.alerts_per_day)
    if config.filename is not None:
        _write_trials(outcome.trials, Path(config.filename), kind)
    if config.filename is not None or kind == "table":
        _print_shares(outcome, config)
    else:
        click.echo(_encode_trials(outcome.trials, kind), nl=False)
    _print_facts(outcome, summary.seconds)
    _check_recall(outcome, config.min_recall)


replay = command_from_dataclass("replay", ReplayConfig, _run_replay_command)


def _choose_trial_format(config: ReplayConfig) -> str:
    """How trials are written: as asked for, or as the file is named."""
    asked = config.output_format.lower()
    if config.filename is None or asked != "table":
        return asked
    kind = Path(config.filename).suffix.lower().removeprefix(".")
    if kind not in {"csv", "json"}:
        raise UsageError(
            f"--filename: `{config.filename}` is to be `.csv` or `.json`. Name it so, or give "
            "`--output_format csv` or json."
        )
    return kind


def _encode_trials(trials: pl.DataFrame, kind: str) -> bytes:
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


def _write_trials(trials: pl.DataFrame, path: Path, kind: str) -> None:
    from morpheus.storage.atomic import atomic_write  # noqa: PLC0415 - only where trials are written

    with atomic_write(path) as file:
        file.write(_encode_trials(trials, kind))


def _print_shares(result: ReplayReport, config: ReplayConfig) -> None:
    """The share caught, by technique and grade, and by user and grade."""
    for by in ("technique", "user"):
        if result.trials.height:
            head = (by.upper(), *(grade.upper() for grade in config.evasion_levels))
            print_table(head, _build_share_rows(result, by, config.evasion_levels))
            click.echo()


def _build_share_rows(result: ReplayReport, by: str, grades: tuple[str, ...]) -> list[list[str]]:
    """A row for each value of a column, a cell for each grade; then one for all."""
    each = result.count_caught(by, "grade").iter_rows()
    cells = {(name, grade): f"{caught}/{tried}" for name, grade, caught, tried in each}
    names = result.trials[by].unique(maintain_order=True).to_list()
    rows = [[name, *(cells.get((name, grade), "") for grade in grades)] for name in names]
    total = {
        grade: f"{caught}/{tried}"
        for grade, caught, tried in result.count_caught("grade").iter_rows()
    }
    return [*rows, [TOTAL_LABEL, *(total.get(grade, "") for grade in grades)]]


def _print_facts(result: ReplayReport, seconds: float) -> None:
    """What the figures rest on."""
    trials, recall = result.trials, result.recall
    caught, tried = int(trials["caught"].sum()), int(trials["caught"].count())
    facts = {"Caught": f"{caught:,} of {format_count(tried, 'trial')}"}
    if recall is not None:
        facts["Caught"] += f", recall {recall:.3f}"
    allowed = format_count(result.alerts_allowed, "alert")
    facts["Budget"] = f"{allowed} on the users' own events, which raise {result.alerts_raised:,}"
    if trials.height > tried:
        facts["Not placed"] = (
            f"{format_count(trials.height - tried, 'trial')}: longer than active hours"
        )
    if result.skipped:
        facts["Not tried"] = (
            f"{format_count(len(result.skipped), 'user')}: {_describe_skipped(result)}"
        )
    if hidden := trials["hidden_by"].count():
        facts["Hidden"] = (
            f"{format_count(hidden, 'trial')} that suppressions alone let go: `hidden_by`"
        )
    facts["Seconds"] = f"{seconds:.1f}"
    width = max(map(len, facts))
    echo("\n".join(f"{name:{width}}  {text}" for name, text in facts.items()))


def _describe_skipped(result: ReplayReport) -> str:
    """Why the first few users were left out."""
    some = sorted(result.skipped.items(), key=lambda one: one[0] or "")
    told = [
        f"{'(no user)' if user is None else user} ({why})" for user, why in some[:MAX_REASONS_SHOWN]
    ]
    more = [f"{len(some) - MAX_REASONS_SHOWN:,} more"] if len(some) > MAX_REASONS_SHOWN else []
    return ", ".join([*told, *more])


def _check_recall(result: ReplayReport, min_recall: float | None) -> None:
    """Fail where nothing was tried, or too little was caught."""
    if result.recall is None:
        echo("Error: nothing was tried. Give users more history, or lower --train_min_history.")
        raise Exit(EXIT_FAILURE)
    if min_recall is not None and result.recall < min_recall:
        echo(f"Error: recall {result.recall:.3f} is under --min_recall {min_recall:g}.")
        raise Exit(EXIT_FAILURE)


BLOCK_BEGIN, BLOCK_END = "# >>> morpheus completion >>>", "# <<< morpheus completion <<<"
SHELL_FILES = {
    "bash": "~/.bash_completion",
    "fish": "~/.config/fish/completions/morpheus.fish",
    "zsh": "~/.zshrc",
}
"""Where each shell looks."""

_SHELL_OPTION = click.option(
    "--shell",
    type=click.Choice(sorted(SHELL_FILES)),
    default=None,
    help="Shell to complete in.",
    show_default="that of $SHELL, or bash",
)


@click.group(cls=CommandGroup)
def autocomplete() -> None:
    """Let the shell complete commands, stages and options."""


@autocomplete.command("show")
@_SHELL_OPTION
@click.pass_context
def show_completion(context: click.Context, shell: str | None) -> None:
    """Print what the shell has to run.

    Example: `morpheus tools autocomplete show --shell=zsh`
    """
    shell = shell or _detect_shell()
    echo(
        f"To add {shell} completion, write the following code to '{SHELL_FILES[shell]}':", fg="blue"
    )
    click.echo(render_completion(context.find_root().command, shell), nl=False)


@autocomplete.command()
@click.option(
    "--append/--overwrite",
    default=False,
    help="Accepted for old command lines: what was installed before is replaced, and the rest of "
    "the file stays as it is.",
)
@_SHELL_OPTION
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

    shell = shell or _detect_shell()
    file = Path(path or SHELL_FILES[shell]).expanduser()
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--path: `{file}` cannot be read: {error}. Give another.") from error
    text = insert_block(before, render_completion(context.find_root().command, shell))
    with atomic_write(file) as out:
        out.write(text.encode())
    echo(f"{shell} completion installed in {file}")


def render_completion(root: click.Command, shell: str) -> str:
    """What a shell has to run, between two marks."""
    complete = get_completion_class(shell)
    assert complete is not None, shell  # noqa: S101 - click knows all of PATHS
    script = complete(root, {}, "morpheus", "_MORPHEUS_COMPLETE").source()
    return f"{BLOCK_BEGIN}\n{script.strip()}\n{BLOCK_END}\n"


def insert_block(text: str, block: str) -> str:
    """A file with the block in it, once, where it was or at the end.

    >>> insert_block("alias l=ls", BLOCK_BEGIN).splitlines()
    ['alias l=ls', '# >>> morpheus completion >>>']
    """
    old = re.compile(
        f"^{re.escape(BLOCK_BEGIN)}$.*?^{re.escape(BLOCK_END)}$\n?", re.MULTILINE | re.DOTALL
    )
    if old.search(text):
        return old.sub(lambda _: block, text, count=1)
    return text + ("\n" if text and not text.endswith("\n") else "") + block


def _detect_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELL_FILES else "bash"


@click.group(cls=CommandGroup)
def tools() -> None:
    """Look at what is installed, and at what it would catch."""


@tools.command()
def stages() -> None:
    """List the stages that exist: what each takes, gives, and which package brings it."""
    from morpheus.cli.chain import describe_stage  # noqa: PLC0415 - the same
    from morpheus.core.registry import distribution_of, stage_names  # noqa: PLC0415 - `--help` lists nothing

    rows = [(word, distribution_of(word), *describe_stage(word)) for word in stage_names()]
    click.echo(align_columns(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@tools.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of this command line, in Markdown."""
    from morpheus.cli.reference import render_reference  # noqa: PLC0415 - `--help` prints no reference

    click.echo(render_reference(context.find_root().command, "morpheus"))


@tools.command()
@click.pass_context
def compatibility(context: click.Context) -> None:
    """Print what becomes of each stage and option of NVIDIA Morpheus, in Markdown."""
    from morpheus.cli.reference import render_compatibility  # noqa: PLC0415 - `--help` prints no table

    click.echo(render_compatibility(context.find_root().command))


tools.add_command(autocomplete)
tools.add_command(replay)
tools.add_command(suppress)
