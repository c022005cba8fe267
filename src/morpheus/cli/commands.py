"""The commands beside `run`: `report`, `serve`, and those of `tools` without `suppress`.

`morpheus.cli.main` imports this module when one of them is used.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import polars as pl
from click.exceptions import Exit
from click.shell_completion import get_completion_class

from morpheus.cli.chain import CommandGroup, command_from_dataclass, describe_stage
from morpheus.cli.output import (
    EXIT_FAILURE,
    NO_USER,
    align_columns,
    echo,
    format_count,
    interruptible,
    print_table,
)
from morpheus.cli.reference import render_compatibility, render_reference
from morpheus.core.registry import distribution_of, stage_names
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.models.store import ModelStore
from morpheus.replay.evaluation import ReplayReport, evaluate, run_replay
from morpheus.replay.injection import ReplayConfig
from morpheus.report_cli import ReportRequest, write_report
from morpheus.sinks.formats import encode_csv_header, write_csv_rows, write_json_rows
from morpheus.storage.atomic import atomic_write

# `morpheus report`.


def _run_report(request: ReportRequest, files: Sequence[Path]) -> None:
    with interruptible():
        data = write_report(request, files)
    events = format_count(data.account.read, "event")
    incidents = format_count(len(data.incidents), "incident")
    echo(f"{request.filename}: {incidents} in {events}")


FILES_ARGUMENT = click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path))
report = command_from_dataclass("report", ReportRequest, _run_report, FILES_ARGUMENT)


# `morpheus serve`.


@dataclass(frozen=True)
class ServeOptions:
    r"""Serve a live report page for a folder that a run writes to.

    FOLDER is the folder of the output files. The page shows rows as they arrive, in files that grow
    (`to-file --flush`) and in new files. Only this machine can open the page, and only with the
    token in its address, which is printed once. The page is read-only. Press Ctrl+C to stop.

        morpheus run --status_file=out/status.json pipeline-ae ... \
            to-file --filename=out/alerts.jsonl --flush
        morpheus serve out
    """

    port: int = option(8321, "Port on 127.0.0.1. 0 picks a free one.", min=0, max=65535)
    token: bool = option(
        True, "Require the token. Without it, everybody on this machine can read the page."
    )
    userid_column_name: str = option(
        "",
        "User column of the rows.",
        default_display="the column in the status of the run, or the first known one",
    )
    models: str | None = option(
        None,
        "Model store that the events were scored with. The page shows the models, and measures "
        "severity by them.",
    )
    alerts_per_day: float | None = option(
        None,
        "Alert budget: alerts per day that you are ready to review.",
        min=0,
        default_display="the budget of `filter` in the run, or 5",
    )


def _run_server(options: ServeOptions, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"FOLDER: there is no folder `{folder}`. Give the folder that `to-file` writes to."
        )
    try:
        from morpheus.serve.app import serve  # noqa: PLC0415 - `--help` serves nothing
        from morpheus.serve.live import LiveReport  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve: `{error.name}` is not installed. Type `pip install 'morpheus-dfp[serve]'`."
        ) from error
    store = None if options.models is None else ModelStore.open(options.models)
    live = LiveReport(folder, options.userid_column_name, options.alerts_per_day, store)
    serve(live, port=options.port, with_token=options.token, on_listening=_print_address)


def _print_address(address: str) -> None:
    echo(f"Serving at {address}")
    echo("Everybody on this machine with this address can read. Press Ctrl+C to stop.", dim=True)


FOLDER_ARGUMENT = click.Argument(["folder"], type=click.Path(path_type=Path))
serve = command_from_dataclass("serve", ServeOptions, _run_server, FOLDER_ARGUMENT)


# `morpheus tools replay`.

MAX_USERS_SHOWN = 3
"""Maximum number of skipped users to name."""
TOTAL_LABEL = "all"


def _run_replay_command(config: ReplayConfig) -> None:
    kind = _choose_trial_format(config)
    with interruptible():
        batches, metrics = run_replay(config)
    result = evaluate(batches, config.alerts_per_day)
    if config.filename is not None:
        with atomic_write(Path(config.filename)) as file:
            file.write(_encode_trials(result.trials, kind))
    if config.filename is not None or kind == "table":
        _print_shares(result, config)
    else:
        click.echo(_encode_trials(result.trials, kind), nl=False)
    _print_facts(result, metrics.seconds)
    _check_recall(result, config.min_recall)


replay = command_from_dataclass("replay", ReplayConfig, _run_replay_command)


def _choose_trial_format(config: ReplayConfig) -> str:
    """Return the format of the trials: the one asked for, or that of the file's extension."""
    asked = config.output_format.lower()
    if config.filename is None or asked != "table":
        return asked
    kind = Path(config.filename).suffix.lower().removeprefix(".")
    if kind not in {"csv", "json"}:
        raise UsageError(
            f"--filename: `{config.filename}` must end in `.csv` or `.json`. Rename it, or give "
            "`--output_format` csv or json."
        )
    return kind


def _encode_trials(trials: pl.DataFrame, kind: str) -> bytes:
    """Return the trials as CSV or as JSON lines."""
    text = io.BytesIO()
    if kind == "csv":
        text.write(encode_csv_header(trials.columns))
    (write_csv_rows if kind == "csv" else write_json_rows)(trials, text)
    return text.getvalue()


def _print_shares(result: ReplayReport, config: ReplayConfig) -> None:
    """Print the share caught, by technique and evasion level, and by user and evasion level."""
    for by in ("technique", "user"):
        if result.trials.height:
            header = (by.upper(), *(level.upper() for level in config.evasion_levels))
            print_table(header, _build_share_rows(result, by, config.evasion_levels))
            click.echo()


def _build_share_rows(result: ReplayReport, by: str, levels: tuple[str, ...]) -> list[list[str]]:
    """Return a row for each value of a column, with a cell for each level, and a total."""
    counts = result.count_caught(by, "grade").iter_rows()
    cells = {(name, level): f"{caught}/{tried}" for name, level, caught, tried in counts}
    names = result.trials[by].unique(maintain_order=True).to_list()
    rows = [[name, *(cells.get((name, level), "") for level in levels)] for name in names]
    total = {
        level: f"{caught}/{tried}"
        for level, caught, tried in result.count_caught("grade").iter_rows()
    }
    return [*rows, [TOTAL_LABEL, *(total.get(level, "") for level in levels)]]


def _print_facts(result: ReplayReport, seconds: float) -> None:
    """Print what the shares are based on, to stderr."""
    trials, recall = result.trials, result.recall
    caught, tried = int(trials["caught"].sum()), int(trials["caught"].count())
    facts = {"Caught": f"{caught:,} of {format_count(tried, 'trial')}"}
    if recall is not None:
        facts["Caught"] += f", recall {recall:.3f}"
    allowed = format_count(result.alerts_allowed, "alert")
    facts["Budget"] = f"{allowed} for the users' own events, which raise {result.alerts_raised:,}"
    if trials.height > tried:
        not_placed = format_count(trials.height - tried, "trial")
        facts["Not placed"] = f"{not_placed}, longer than the user's active hours"
    if result.skipped:
        skipped = format_count(len(result.skipped), "user")
        facts["Not tried"] = f"{skipped}: {_describe_skipped(result.skipped)}"
    if hidden := trials["hidden_by"].count():
        trials_hidden = format_count(hidden, "trial")
        facts["Hidden"] = f"{trials_hidden} missed only because of suppressions: see `hidden_by`"
    facts["Seconds"] = f"{seconds:.1f}"
    width = max(map(len, facts))
    echo("\n".join(f"{name:{width}}  {text}" for name, text in facts.items()))


def _describe_skipped(skipped: Mapping[str | None, str]) -> str:
    """Return the first few skipped users, each with the reason, and the number of others."""
    users = sorted(skipped.items(), key=lambda pair: pair[0] or "")
    shown = [
        f"{NO_USER if user is None else user} ({reason})"
        for user, reason in users[:MAX_USERS_SHOWN]
    ]
    more = [f"{len(users) - MAX_USERS_SHOWN:,} more"] if len(users) > MAX_USERS_SHOWN else []
    return ", ".join([*shown, *more])


def _check_recall(result: ReplayReport, min_recall: float | None) -> None:
    """Fail if nothing was tried, or if the recall is too low."""
    if result.recall is None:
        echo("Error: nothing was tried. Give users more history, or lower --train_min_history.")
        raise Exit(EXIT_FAILURE)
    if min_recall is not None and result.recall < min_recall:
        echo(f"Error: recall {result.recall:.3f} is below --min_recall {min_recall:g}.")
        raise Exit(EXIT_FAILURE)


# `morpheus tools autocomplete`.

BLOCK_BEGIN, BLOCK_END = "# >>> morpheus completion >>>", "# <<< morpheus completion <<<"
SHELL_FILES = {
    "bash": "~/.bash_completion",
    "fish": "~/.config/fish/completions/morpheus.fish",
    "zsh": "~/.zshrc",
}
"""The file that each shell reads completions from."""

_SHELL_OPTION = click.option(
    "--shell",
    type=click.Choice(sorted(SHELL_FILES)),
    default=None,
    help="Shell to set up.",
    show_default="that of $SHELL, or bash",
)


@click.group(cls=CommandGroup)
def autocomplete() -> None:
    """Set up shell completion of commands, stages and options."""


@autocomplete.command("show")
@_SHELL_OPTION
@click.pass_context
def show_completion(context: click.Context, shell: str | None) -> None:
    """Print the completion script.

    Example: `morpheus tools autocomplete show --shell=zsh`
    """
    shell = shell or _detect_shell()
    file = SHELL_FILES[shell]
    echo(f"To add {shell} completion, write the following code to '{file}':", fg="blue")
    click.echo(render_completion(context.find_root().command, shell), nl=False)


@autocomplete.command()
@click.option(
    "--append/--overwrite",
    default=False,
    help="Accepted for old command lines. An earlier completion script in the file is replaced, "
    "and the rest of the file stays.",
)
@_SHELL_OPTION
@click.option(
    "--path",
    default=None,
    help="File to write to.",
    show_default="the file that the shell reads",
)
@click.pass_context
def install(context: click.Context, *, append: bool, shell: str | None, path: str | None) -> None:
    """Write the completion script to the shell's file, or replace an earlier one.

    Example: `morpheus tools autocomplete install`
    """
    del append
    shell = shell or _detect_shell()
    file = Path(path or SHELL_FILES[shell]).expanduser()
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--path: cannot read `{file}`: {error}. Give another file.") from error
    text = insert_block(text, render_completion(context.find_root().command, shell))
    # A start-up file of the shell, not a result of a run: the umask decides its mode.
    with atomic_write(file, private=False) as out:
        out.write(text.encode())
    echo(f"{shell} completion installed in {file}")


def render_completion(root: click.Command, shell: str) -> str:
    """Return the completion script of a shell, between two marker lines."""
    complete = get_completion_class(shell)
    assert complete is not None, shell  # noqa: S101 - click knows all of PATHS
    script = complete(root, {}, "morpheus", "_MORPHEUS_COMPLETE").source()
    return f"{BLOCK_BEGIN}\n{script.strip()}\n{BLOCK_END}\n"


def insert_block(text: str, block: str) -> str:
    """Return a file's text with the block in it once: in its old place, or at the end.

    >>> insert_block("alias l=ls", BLOCK_BEGIN).splitlines()
    ['alias l=ls', '# >>> morpheus completion >>>']
    """
    begin, end = re.escape(BLOCK_BEGIN), re.escape(BLOCK_END)
    old = re.compile(f"^{begin}$.*?^{end}$\n?", re.MULTILINE | re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: block, text, count=1)
    return text + ("\n" if text and not text.endswith("\n") else "") + block


def _detect_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELL_FILES else "bash"


# The lists of `morpheus tools`.


@click.command()
def stages() -> None:
    """List the stages: what each accepts and outputs, and its package."""
    rows = [(word, distribution_of(word), *describe_stage(word)) for word in stage_names()]
    click.echo(align_columns(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@click.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of the command line, in Markdown."""
    click.echo(render_reference(context.find_root().command, "morpheus"))


@click.command()
@click.pass_context
def compatibility(context: click.Context) -> None:
    """Print what is supported of each stage and option of NVIDIA Morpheus, in Markdown."""
    click.echo(render_compatibility(context.find_root().command))
