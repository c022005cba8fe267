"""`morpheus tools replay`: would we have caught it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from morpheus.cli.command import made_of
from morpheus.cli.exits import FAILED, stoppable
from morpheus.cli.screen import say
from morpheus.cli.summary import count
from morpheus.cli.table import show
from morpheus.errors import UsageError
from morpheus.replay.drill import Drill

if TYPE_CHECKING:
    import polars as pl

    from morpheus.replay.outcome import Outcome

SHOWN = 3
ALL = "all"


def _replay(drill: Drill) -> None:
    from morpheus.replay.outcome import judged  # noqa: PLC0415 - `--help` replays nothing
    from morpheus.replay.trials import run  # noqa: PLC0415 - the same

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

    from morpheus.sinks.formats import encode_csv_header, write_csv_rows, write_json_rows  # noqa: PLC0415 - the same

    text = io.BytesIO()
    if kind == "csv":
        text.write(encode_csv_header(trials.columns))
    (write_csv_rows if kind == "csv" else write_json_rows)(trials, text)
    return text.getvalue()


def _write(trials: pl.DataFrame, path: Path, kind: str) -> None:
    from morpheus.atomic import atomic_write  # noqa: PLC0415 - only where trials are written

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
