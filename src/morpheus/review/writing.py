"""The page of finished runs, written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import polars as pl

from morpheus.atomic import atomic_write
from morpheus.columns import ROW, SCORE
from morpheus.errors import UsageError
from morpheus.models.fingerprint import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.account import Account
from morpheus.report.contents import Contents, contents
from morpheus.report.findings import Findings
from morpheus.report.page import page
from morpheus.review.outputs import Outputs
from morpheus.review.request import Request
from morpheus.review.trials import rehearsed
from morpheus.sinks.place import validate_output_path


def write(request: Request, files: Sequence[Path]) -> Contents:
    """Read the files, and write the page.

    Raises:
        UsageError: There is nothing to read, or the page cannot be written there.
        BadRecord: A row has no time.
    """
    validate_output_path(Path(request.filename), overwrite=request.overwrite, stage_name="morpheus report")
    found = reviewed(request, files)
    text = page(msgspec.json.encode(found))
    with atomic_write(Path(request.filename)) as file:
        file.write(text)
    return found


def reviewed(request: Request, files: Sequence[Path]) -> Contents:
    """All that the page says."""
    outputs = Outputs.of(files, request.userid_column_name)
    findings = _findings(request, outputs)
    events = sum(seen.events for seen in findings.users.values())
    cards = [seen.card for seen in findings.users.values() if seen.card is not None]
    return contents(
        findings,
        Account(read=events, scored=events, rungs=dict(Counter(one.rung for one in cards))),
        request.alerts_per_day,
        cards="--models=FOLDER (which train-ae --models_output_filename wrote)",
        about=("", outputs.user),
    )


def _findings(request: Request, outputs: Outputs) -> Findings:
    """Look at all rows; twice where users have to be measured first."""
    store = None if request.models is None else ModelStore.open(request.models)
    if request.replay is not None and store is None:
        raise UsageError("--replay: weak spots are those of fingerprints. Give --models, too.")
    trials = {} if request.replay is None else rehearsed(Path(request.replay))
    measure = store is None and outputs.ranking == SCORE
    findings = Findings(yardsticks=outputs.measured() if measure else {})
    last = Counter[str | None]()
    for owner, rows in outputs.by_user():
        findings.see(owner, _card(store, owner), None)
        findings.add(owner, rows)
        if ROW in rows.columns:
            numbers = rows[ROW].cast(pl.Int64, strict=False).drop_nulls().to_list()
            last[owner] = max(last[owner], *numbers, 0)
    fewer = any(findings.users[owner].events <= row for owner, row in last.items())
    findings.filtered = request.all_alerts or fewer
    for owner, found in trials.items():
        if owner in findings.users:
            findings.users[owner].rehearsed = found
    return findings


def _card(store: ModelStore | None, owner: str | None) -> ModelCard | None:
    if store is None or owner is None:
        return None
    return store.cards.get(owner, store.global_card)
