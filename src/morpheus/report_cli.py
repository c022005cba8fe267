"""Reports on files of results: what `morpheus report` does, without the command.

`ResultFiles` reads the output of earlier runs user by user. `build_report` makes the data of the
report page, `write_report` the page.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import (
    ACTOR_OPTION,
    INCIDENT_SEVERITY,
    MODEL_VERSION,
    ROW,
    SCORE,
    LogDescription,
)
from morpheus.core.stage import option, to_user_column
from morpheus.errors import UsageError
from morpheus.models.profile import ModelCard, list_names
from morpheus.models.store import ModelStore
from morpheus.models.versions import VersionedStore, has_models, open_models, split_location
from morpheus.report.aggregate import (
    Z_REFERENCE,
    EventArrays,
    ReplayResult,
    ReportAggregator,
    ScoreScale,
    choose_ranking,
)
from morpheus.report.page import render_page
from morpheus.report.view import Origin, ReportData, RunCounts, build_log_view, build_report_data
from morpheus.sinks.to_file import validate_output
from morpheus.sinks.to_report import HTML_SUFFIXES
from morpheus.sources.compression import detect_file_type
from morpheus.sources.results import (
    READ_ERRORS,
    find_log,
    find_user_column,
    find_users,
    read_frames,
    read_results,
)
from morpheus.sources.time_range import check_timezone
from morpheus.status import STATUS_FILE, read_status
from morpheus.storage.atomic import open_output
from morpheus.storage.object_store import parse_location
from morpheus.text import format_count, quote_backtick, suggest, suggest_path

logger = logging.getLogger(__name__)

MODELS_FOLDER = "models"
"""Usual name of the model store, in the folder of the outputs."""
_USER = "_owner_"
"""Temporary column of users."""


class ResultFiles(msgspec.Struct, frozen=True):
    """Output files of earlier runs.

    Attributes:
        files: The files, one or more.
        user_column: The user column.
        log: Description of the log.
        ranking: The best score column to rank events by; None if there is none.
    """

    files: Sequence[Path]
    user_column: str
    log: LogDescription
    ranking: str | None

    @classmethod
    def from_files(cls, files: Sequence[Path], user_column: str) -> Self:
        """Return the files, or reject them if none has rows; see `find`."""
        found = cls.find(files, user_column)
        if found is None:
            raise UsageError(f"`{files[0]}` has no rows. Give the output of an earlier run.")
        return found

    @classmethod
    def find(cls, files: Sequence[Path], user_column: str) -> Self | None:
        """Find the columns in the first file that has rows; None if there is none.

        A day without alerts has no rows.

        Args:
            files: The files, one or more.
            user_column: The user column; empty to use a known one.

        Raises:
            UsageError: That file has no such column, or cannot be read.
        """
        first = next(((file, rows) for file in files for rows in read_results(file)), None)
        if first is None:
            return None
        file, rows = first
        chosen = user_column or find_user_column(rows.columns) or ""
        if not chosen or find_users(rows, chosen) is None:
            existing = ", ".join(f"`{name}`" for name in rows.columns[:12] if name)
            missing = f"no column `{user_column}`" if user_column else "no known user column"
            raise UsageError(
                f"--userid_column_name: `{file}` has {missing}."
                f"{suggest(user_column, rows.columns)} Give one of its columns, such "
                f"as {existing}."
            )
        return cls(files, chosen, find_log("", rows.columns), choose_ranking(rows.columns))

    @property
    def origin(self) -> Origin:
        """Where the events come from."""
        return Origin("", to_user_column(self.user_column), self.log)

    def iter_by_user(self) -> Iterator[tuple[str | None, pl.DataFrame]]:
        """Yield rows of one user at a time, in the order of the files. Users may repeat."""
        for rows in chain.from_iterable(map(read_results, self.files)):
            users = find_users(rows, self.user_column)
            names = pl.lit(None, pl.String) if users is None else users
            keyed = rows.with_columns(names.alias(_USER))
            for part in keyed.partition_by(_USER, maintain_order=True):
                yield part[_USER][0], part.drop(_USER)

    def fit_scales(self) -> Mapping[str | None, ScoreScale]:
        """Return the score scale of each user, from the mean and spread of their scores."""
        sums: dict[str | None, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        for user, rows in self.iter_by_user():
            scores = EventArrays.from_frame(rows).scores
            valid = scores[~np.isnan(scores)]
            moments = np.array([len(valid), valid.sum(), (valid**2).sum()])
            sums[user] = sums.get(user, np.zeros(3)) + moments
        return {user: _fit_scale(*moments.tolist()) for user, moments in sums.items()}


def _fit_scale(count: float, total: float, squares: float) -> ScoreScale:
    mean = total / max(count, 1)
    spread = max(squares / max(count, 1) - mean**2, 0) ** 0.5
    return ScoreScale(mean, mean + Z_REFERENCE * max(spread, 1e-6))


@dataclass(frozen=True)
class ReportRequest:
    """Write a report page from the output files of earlier runs.

    The files are CSV, JSON lines or Parquet. The page is that of the stage `to-report`, with the
    data that the files have. If they have the scores of all events, the alerts are the highest. If
    `filter` has dropped events, all events in the files are alerts.

    Instead of files, give the output folder of `morpheus detect`, or of a run with
    `--status_file=FOLDER/status.json`. Its models are used.

    Example: `morpheus report output.csv --filename=report.html`, `morpheus report morpheus-results`
    """

    filename: str = option(
        "report.html",
        "Page to write, on this machine or in an object store. Missing folders are created.",
        location="any",
    )
    overwrite: bool = option(
        False, "Replace an existing page, when the new one is complete.", flag=True
    )
    userid_column_name: str = option(
        "",
        f"User column of the rows. `{ACTOR_OPTION}` finds the actor of each event.",
        default_display="the first known one",
    )
    models: str | None = option(
        None,
        "Model store that the events were scored with. The page shows the models, and measures "
        "severity by them.",
        location="any",
    )
    replay: str | None = option(
        None,
        "File that `morpheus tools replay --filename=trials.csv` wrote. The page lists techniques "
        "that raised no alert as detection gaps of the user. Needs --models.",
        location="local",
    )
    alerts_per_day: float = option(
        5.0, "Maximum number of incidents per day, if the files have all events.", min=0
    )
    timezone: str = option(
        "UTC", "Time zone of the days of incidents, as for `pipeline-ae`. Times are shown in UTC."
    )
    all_alerts: bool = option(
        False,
        "Every event in the files is an alert. Detected automatically, except in JSON files of "
        "`filter --threshold`.",
        flag=True,
    )


REPLAY_COLUMNS = ("technique", "user", "grade", "caught")


def read_replay(path: Path) -> Mapping[str | None, ReplayResult]:
    """Read the trials of `morpheus tools replay`, by user.

    Raises:
        UsageError: It cannot be read, or is not a file of trials.
    """
    try:
        trials = _read_trials(path)
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(
            f"--replay: `{path}` cannot be read: {reason}.{suggest_path(path)} Give a file that "
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


def open_folder(
    request: ReportRequest, files: Sequence[Path]
) -> tuple[ReportRequest, Sequence[Path], RunCounts | None]:
    """Replace a folder of results by its files, its models, and what its status file says.

    A file that is given twice is read once.

    Returns:
        The request, the files, and the counts of the run; None without a status file.

    Raises:
        UsageError: The folder has no results.
    """
    unique: dict[Path, Path] = {}
    for path in files:
        unique.setdefault(path.resolve(), path)
    files = list(unique.values())
    if len(files) != 1 or not files[0].is_dir():
        return request, files, None
    [folder] = files
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name != STATUS_FILE and not path.name.startswith(".") and path.is_file()
        if detect_file_type(path)
    ]
    if not found:
        raise UsageError(
            f"`{folder}` has no results: no CSV, JSON or Parquet file. Give the output folder of "
            "`morpheus detect`, or files."
        )
    status = read_status(folder / STATUS_FILE)
    filled = replace(
        request,
        models=request.models or find_models(folder),
        all_alerts=request.all_alerts or (status is not None and status.filtered),
    )
    return filled, found, None if status is None else status.account


def find_models(folder: Path) -> str | None:
    """Return the model store in a folder of results, if there is one.

    That of a first run which has not published anything yet does not count.
    """
    models = folder / MODELS_FOLDER
    there = has_models(models) and VersionedStore.open(models).versions()
    return str(models) if there else None


def write_report(request: ReportRequest, files: Sequence[Path]) -> ReportData:
    """Read the files, and write the page.

    Raises:
        UsageError: A file cannot be read, or the page cannot be written.
        RecordError: A row has no time.
    """
    validate_output(
        request.filename,
        overwrite=request.overwrite,
        stage_name="morpheus report",
        suffixes=HTML_SUFFIXES,
    )
    request, files, counts = open_folder(request, files)
    page, existing = parse_location(request.filename), [path for path in files if path.exists()]
    if isinstance(page, Path) and page.exists() and any(map(page.samefile, existing)):
        raise UsageError(
            f"morpheus report: --filename: `{request.filename}` is one of the files to read, and "
            "would be replaced. Give another name."
        )
    results = _open_results(request, files, counts)
    data = _build_report(request, results, counts)
    log = build_log_view(results.origin)
    text = render_page(msgspec.json.encode(data), msgspec.json.encode(log))
    with open_output(parse_location(request.filename)) as writer, writer.guard_io():
        writer.file.write(text)
    return data


def build_report(request: ReportRequest, files: Sequence[Path]) -> ReportData:
    """Return the data of the page."""
    request, files, counts = open_folder(request, files)
    return _build_report(request, _open_results(request, files, counts), counts)


def _open_results(
    request: ReportRequest, files: Sequence[Path], counts: RunCounts | None
) -> ResultFiles:
    """Open the files. Of a run whose counts are known, they may have no rows: it had no alert."""
    column = request.userid_column_name
    if counts is None:
        return ResultFiles.from_files(files, column)
    empty = ResultFiles(files, column or ACTOR_OPTION, find_log("", ()), None)
    return ResultFiles.find(files, column) or empty


def _build_report(
    request: ReportRequest, results: ResultFiles, counts: RunCounts | None
) -> ReportData:
    check_timezone(request.timezone, "--timezone")
    aggregator = _aggregate_results(request, results)
    events = sum(user.events for user in aggregator.users.values())
    cards = [user.card for user in aggregator.users.values() if user.card is not None]
    return build_report_data(
        aggregator,
        counts
        or RunCounts(
            read=events,
            scored=events,
            rungs=dict(Counter(card.training_data_scope for card in cards)),
        ),
        request.alerts_per_day,
        models_hint="--models=FOLDER (which train-ae --models_output_filename wrote)",
        origin=results.origin,
    )


def _aggregate_results(request: ReportRequest, results: ResultFiles) -> ReportAggregator:
    """Aggregate all rows. They are read twice if there are no models to take scales from."""
    store = None if request.models is None else open_models(request.models)
    if request.replay is not None and store is None:
        raise UsageError("--replay: detection gaps belong to models. Give --models, too.")
    trials = {} if request.replay is None else read_replay(Path(request.replay))
    fit_scales = store is None and results.ranking == SCORE
    scales = results.fit_scales() if fit_scales else {}
    aggregator = ReportAggregator(scales=scales, timezone=request.timezone)
    last_rows, unmarked = Counter[str | None](), 0
    for user, rows in results.iter_by_user():
        aggregator.register_user(user, _find_card(store, user), None)
        aggregator.add(user, rows)
        marked = rows[INCIDENT_SEVERITY].count() if INCIDENT_SEVERITY in rows.columns else 0
        unmarked += rows.height - marked
        if ROW in rows.columns:
            numbers = rows[ROW].cast(pl.Int64, strict=False).drop_nulls().to_list()
            last_rows[user] = max(last_rows[user], *numbers, 0)
    # Fewer events than row numbers: `filter` has dropped some.
    dropped = any(aggregator.users[user].events <= row for user, row in last_rows.items())
    # `filter --alerts_per_day` marks all rows that it passes, and nothing else marks rows.
    aggregator.filtered = request.all_alerts or dropped or (bool(aggregator.users) and not unmarked)
    if request.models is not None and store is not None:
        column = results.origin.user_column
        warn_other_store(aggregator, store, location=request.models, user_column=column)
    for user, replay_result in trials.items():
        if user in aggregator.users:
            aggregator.users[user].replay_result = replay_result
    return aggregator


def _find_card(store: ModelStore | None, user: str | None) -> ModelCard | None:
    if store is None or user is None:
        return None
    return store.cards.get(user, store.global_card)


def warn_other_store(
    aggregator: ReportAggregator, store: ModelStore, *, location: str, user_column: str
) -> None:
    """Warn if results were probably not scored with the models of a store.

    Args:
        aggregator: The results.
        store: The store.
        location: Where it is, for the message.
        user_column: The user column of the results.
    """
    problem = _find_unknown_users(aggregator, store, user_column)
    problem = problem or _find_other_version(aggregator, location)
    if problem:
        logger.warning(
            "--models: the events were probably not scored with `%s`: %s The models and severities "
            "of the page may be wrong. Give the model store of the run that wrote the files.",
            location,
            problem,
        )


def _find_unknown_users(aggregator: ReportAggregator, store: ModelStore, user_column: str) -> str:
    """Say which users with a score have no model; empty if all of them can have one."""
    scored = {user for user, each in aggregator.users.items() if user and each.scored}
    unknown = sorted(user for user in scored if user and user not in store.cards)
    other_column = store.inputs is not None and store.inputs.user_column != user_column
    # The global model scores new users, and the alerts of a day can be those of new users alone.
    others_scored = len(unknown) < len(scored) or not store.cards
    is_global = others_scored or (aggregator.filtered and not other_column)
    if not unknown or (store.global_card is not None and is_global):
        return ""
    known = f"; it has {list_names(sorted(store.cards)[:3])}" if store.cards else ""
    if other_column and store.inputs is not None:
        known += f", which are values of `{store.inputs.user_column}`"
    return (
        f"it has no model of {len(unknown):,} of {format_count(len(scored), 'user')} with a score, "
        f"such as {quote_backtick(unknown[0])}{known}."
    )


def _find_other_version(aggregator: ReportAggregator, location: str) -> str:
    """Say whose events have another version than the models; empty if they agree.

    A version is older if the user has had no event since the latest training.
    """
    versions = {
        user: (each.model_version, each.card.version)
        for user, each in sorted(aggregator.users.items(), key=lambda pair: pair[0] or "")
        if each.model_version and each.card is not None and each.card.version
    }
    later = [user for user, (scored, stored) in versions.items() if scored > stored]
    if not later and any(scored == stored for scored, stored in versions.values()):
        return ""
    user = next(iter(later or versions), None)
    if user is None:
        return ""
    scored, stored = versions[user]
    folder, _ = split_location(location)
    return (
        f"those of {quote_backtick(user)} have {scored} in `{MODEL_VERSION}`, but the model "
        f"has version {stored}; `{folder}@{scored}` names the other one."
    )
