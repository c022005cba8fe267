"""Files that runs wrote, user by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import ROW, SCORE
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.aggregate import (
    Z_REFERENCE,
    EventArrays,
    ReplayResult,
    ReportAggregator,
    ScoreScale,
    choose_ranking,
)
from morpheus.report.page import render_page
from morpheus.report.view import ReportData, RunCounts, build_report_data
from morpheus.sinks.to_file import validate_output_path
from morpheus.sources.results import READ_ERRORS, read_frames, read_results
from morpheus.storage.atomic import atomic_write

USER_COLUMNS = (
    "actor",
    "userIdentitysessionContextsessionIssueruserName",
    "userIdentityarn",
    "userPrincipalName",
    "username",
    "userIdentityaccountId",
)
"""Columns that may say whose event it is, the first that there is."""
_USER = "_owner_"


@dataclass(frozen=True)
class ResultFiles:
    """Files that runs wrote.

    Attributes:
        files: The files, at least one.
        user_column: Column that says whose event it is.
        ranking: The best score that they hold.
    """

    files: Sequence[Path]
    user_column: str
    ranking: str | None

    @classmethod
    def from_files(cls, files: Sequence[Path], user_column: str) -> Self:
        """Look into the first of them; `user` may be empty, if the column is a usual one."""
        rows = next(read_results(files[0]), None)
        if rows is None:
            raise UsageError(f"`{files[0]}` holds no rows. Give the output of an earlier run.")
        found = user_column or next((one for one in USER_COLUMNS if one in rows.columns), "")
        if not found or found not in rows.columns:
            there = ", ".join(f"`{one}`" for one in rows.columns[:12] if one)
            what = (
                f"no column `{user_column}`"
                if user_column
                else "none of the usual columns of users"
            )
            raise UsageError(
                f"--userid_column_name: `{files[0]}` has {what}. Name one of its own, such as "
                f"{there}."
            )
        return cls(files, found, choose_ranking(rows.columns))

    def iter_by_user(self) -> Iterator[tuple[str | None, pl.DataFrame]]:
        """Rows of one user at a time, in the files' order."""
        for rows in chain.from_iterable(map(read_results, self.files)):
            column = pl.col(self.user_column) if self.user_column in rows.columns else pl.lit(None)
            owned = rows.with_columns(column.cast(pl.String).alias(_USER))
            for some in owned.partition_by(_USER, maintain_order=True):
                yield some[_USER][0], some.drop(_USER)

    def fit_scales(self) -> Mapping[str | None, ScoreScale]:
        """How high is high by the files alone: by the mean and the spread of each user's scores."""
        sums: dict[str | None, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        for owner, rows in self.iter_by_user():
            scores = EventArrays.from_frame(rows).scores
            known = scores[~np.isnan(scores)]
            more = np.array([len(known), known.sum(), (known**2).sum()])
            sums[owner] = sums.get(owner, np.zeros(3)) + more
        return {owner: _fit_scale(*each.tolist()) for owner, each in sums.items()}


def _fit_scale(count: float, total: float, squares: float) -> ScoreScale:
    mean = total / max(count, 1)
    spread = max(squares / max(count, 1) - mean**2, 0) ** 0.5
    return ScoreScale(mean, mean + Z_REFERENCE * max(spread, 1e-6))


@dataclass(frozen=True)
class ReportRequest:
    """Write a page from what earlier runs wrote to files: CSV, JSON lines or Parquet.

    It is the page of the stage `to-report`, as far as the files know. Where they hold scores of all
    events, alerts are the highest; where `filter` has left events out, all that are there.

    Example: `morpheus report output.csv --filename=report.html`
    """

    filename: str = option("report.html", "Page to write; its folder is made if there is none.")
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )
    userid_column_name: str = option(
        "", "Column that says whose event it is.", default_display="the first that is known to"
    )
    models: str | None = option(
        None,
        "Folder of the fingerprints that scored: the page shows them, and measures by them.",
    )
    replay: str | None = option(
        None,
        "File that `morpheus tools replay --filename=trials.csv` wrote: what would have raised no "
        "alert stands among each user's weak spots. With --models.",
    )
    alerts_per_day: float = option(
        5.0, "Where nothing was left out: incidents a day that are shown, at most.", min=0
    )
    all_alerts: bool = option(
        False, "Every event of the files is an alert. Found out by itself, but in JSON.", flag=True
    )


REPLAY_COLUMNS = ("technique", "user", "grade", "caught")


def read_replay(path: Path) -> Mapping[str | None, ReplayResult]:
    """Read the trials of `morpheus tools replay`, by user.

    Raises:
        UsageError: It is not a file of trials.
    """
    try:
        trials = _read_trials(path)
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(
            f"--replay: `{path}` cannot be read: {reason}. Give the file that "
            "`morpheus tools replay --filename=trials.csv` wrote."
        ) from error
    injected = trials.filter(pl.col("caught").is_not_null())
    users = injected.group_by("user", maintain_order=True)
    return {user: _to_replay_result(rows) for (user,), rows in users}


def _read_trials(path: Path) -> pl.DataFrame:
    empty = pl.DataFrame(schema=dict.fromkeys(REPLAY_COLUMNS, pl.String))
    parts = (frame.select(REPLAY_COLUMNS).cast(pl.String) for frame in read_frames(path))
    return pl.concat([empty, *parts])


def _to_replay_result(trials: pl.DataFrame) -> ReplayResult:
    missed: dict[str, list[str]] = {}
    for technique, _, grade, caught in trials.iter_rows():
        if caught.lower() != "true":
            missed.setdefault(technique, []).append(grade)
    tried = trials["technique"].n_unique()
    return ReplayResult(tried, {technique: tuple(grades) for technique, grades in missed.items()})


def write_report(request: ReportRequest, files: Sequence[Path]) -> ReportData:
    """Read the files, and write the page.

    Raises:
        UsageError: There is nothing to read, or the page cannot be written there.
        BadRecord: A row has no time.
    """
    validate_output_path(
        Path(request.filename), overwrite=request.overwrite, stage_name="morpheus report"
    )
    found = build_report(request, files)
    text = render_page(msgspec.json.encode(found))
    with atomic_write(Path(request.filename)) as file:
        file.write(text)
    return found


def build_report(request: ReportRequest, files: Sequence[Path]) -> ReportData:
    """All that the page says."""
    outputs = ResultFiles.from_files(files, request.userid_column_name)
    findings = _aggregate_results(request, outputs)
    events = sum(seen.events for seen in findings.users.values())
    cards = [seen.card for seen in findings.users.values() if seen.card is not None]
    return build_report_data(
        findings,
        RunCounts(
            read=events,
            scored=events,
            rungs=dict(Counter(card.training_data_scope for card in cards)),
        ),
        request.alerts_per_day,
        models_hint="--models=FOLDER (which train-ae --models_output_filename wrote)",
        origin=("", outputs.user_column),
    )


def _aggregate_results(request: ReportRequest, results: ResultFiles) -> ReportAggregator:
    """Look at all rows; twice where users have to be measured first."""
    store = None if request.models is None else ModelStore.open(request.models)
    if request.replay is not None and store is None:
        raise UsageError("--replay: weak spots are those of fingerprints. Give --models, too.")
    trials = {} if request.replay is None else read_replay(Path(request.replay))
    measure = store is None and results.ranking == SCORE
    findings = ReportAggregator(scales=results.fit_scales() if measure else {})
    last = Counter[str | None]()
    for owner, rows in results.iter_by_user():
        findings.register_user(owner, _find_card(store, owner), None)
        findings.add(owner, rows)
        if ROW in rows.columns:
            numbers = rows[ROW].cast(pl.Int64, strict=False).drop_nulls().to_list()
            last[owner] = max(last[owner], *numbers, 0)
    fewer = any(findings.users[owner].events <= row for owner, row in last.items())
    findings.filtered = request.all_alerts or fewer
    for owner, found in trials.items():
        if owner in findings.users:
            findings.users[owner].replay_result = found
    return findings


def _find_card(store: ModelStore | None, user: str | None) -> ModelCard | None:
    if store is None or user is None:
        return None
    return store.cards.get(user, store.global_card)
