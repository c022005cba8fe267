"""`morpheus detect`: find the most unusual incidents of some logs, with one short command.

The command recognises the kind of log, counts its users and days, and from this makes a pipeline of
the usual stages. `PipelineWords` is that pipeline both as stages, which run, and as the words of
`morpheus run`, which are shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from morpheus.cli.chain import command_from_dataclass, to_words
from morpheus.cli.output import (
    echo,
    interruptible,
    list_left_out,
    list_unscored,
    print_table,
    show_progress,
)
from morpheus.cli.suppress import DEFAULT_DAYS, TuningSources, make_proposals
from morpheus.columns import ACTOR_OPTION, ExplanationColumns
from morpheus.core.batch import ReadStats, RunMetrics
from morpheus.core.registry import load_stage
from morpheus.core.stage import PipelineOptions, Stage, option
from morpheus.detection import MIN_INCIDENTS, LogOverview, Plan, choose_budget, list_detect_stages
from morpheus.errors import UsageError
from morpheus.models.store import ModelStore
from morpheus.models.versions import find_models
from morpheus.pipeline import Pipeline
from morpheus.replay.injection import ReplayConfig
from morpheus.report.incidents import Incident
from morpheus.report.view import ReportData, RunCounts
from morpheus.report_cli import MODELS_FOLDER
from morpheus.sinks.to_report import ToReport
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.compression import LogPath, keep_objects
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.results import (
    KindTrial,
    LogKind,
    choose_kind,
    known_log_formats,
    list_kinds,
)
from morpheus.status import STATUS_FILE
from morpheus.storage.atomic import TempFolder, atomic_write
from morpheus.storage.object_store import is_object_url, normalise_location
from morpheus.suppressions.proposals import Proposals, Verdicts, render_suppressions
from morpheus.text import format_count, suggest_path

REPORT_FILE, ALERTS_FILE = "report.html", "alerts.jsonl"
SUPPRESSIONS_FILE = "suppressions.toml"
EXPLAIN_PREFIX = "why_"
"""Prefix of the columns of `explain`, if the log has a column of such a name."""
MAX_RECORDS_TRIED = 1_000
"""Number of records of each file that are read to recognise the kind of log."""
MAX_FILES_TRIED, MAX_FILES_RECOGNISED = 12, 3
"""Number of files that are read to recognise the kind of log: at most, and as each kind."""


@dataclass(frozen=True)
class DetectOptions:
    r"""Find the most unusual incidents in logs, with one command.

    LOGS are files, folders or globs, on this machine or in an object store. The kind of log is
    recognised. An incident is a day of one user (`@actor`: a person, a role or a service). Each
    user's fingerprint is trained on --history. Without it, the first 70 % of the days of LOGS are
    for training, and the other days are scored. If the output folder has fingerprints of an
    earlier `detect`, these are used, and the days after their training are scored.

    The output folder gets the report (report.html), the events of the incidents (alerts.jsonl,
    with risk, severity and reason) and the fingerprints (models). `morpheus report` and
    `morpheus serve` read this folder. The command prints the `morpheus run` command that it stands
    for.

    With --verdicts, incidents that were judged harmless, and others like them, are hidden. The
    suppressions are written to the output folder (suppressions.toml).

        morpheus detect AWSLogs/
        morpheus detect s3://bucket/AWSLogs/2026/11/ --history=s3://bucket/AWSLogs/2026/10/
        morpheus detect AWSLogs/ --verdicts=verdicts.json
    """

    history: tuple[str, ...] = option(
        (),
        "Earlier logs, for training only: a file, folder or glob; repeat for more.",
        location="any",
    )
    out: str = option(
        "morpheus-results",
        "Output folder, on this machine. Results in it are replaced.",
        location="local",
    )
    source: str = option(
        "",
        "Kind of log, such as `cloudtrail`, `ocsf`, `azure`, `duo` or `okta`; or your own schema, "
        "such as `vpn.toml`.",
        default_display="recognised by the contents",
    )
    alerts_per_day: float | None = option(
        None,
        "Incidents per day that you are ready to review.",
        min=0,
        default_display="one per week for each 20 users, but at least 15 in the scored days and at "
        "most a fifth of the days of users",
    )
    verdicts: tuple[str, ...] = option(
        (),
        "File of verdicts that the report exported; repeat for more. Harmless incidents and their "
        "like are hidden, accepted ones are trained with, and events of dangerous ones never are.",
        location="local",
    )
    suppressions: tuple[str, ...] = option(
        (), "File of suppressions, as for `filter`; repeat for more.", location="local"
    )


def recognise_kind(logs: Sequence[str], source: str = "") -> LogKind:
    """Return the kind of some logs: the one with the most known values per record.

    Args:
        logs: Files, folders and globs.
        source: Name of the kind, or a schema; empty to look at some of the files.

    Raises:
        UsageError: There are no files, or their kind is not known, or they are of several kinds.
    """
    if source:
        return choose_kind(source)
    kinds = list_kinds()
    paths = _choose_samples(logs)
    found: dict[LogKind, LogPath] = {}
    unknown: dict[LogPath, str] = {}
    recognised = 0
    for path in paths:
        # Once the kind is known, files of another kind are looked for.
        if recognised >= MAX_FILES_RECOGNISED and _is_of_kind(path, next(iter(found))):
            continue
        trials = [_try_kind(kind, path) for kind in kinds]
        best = KindTrial.find_best(trials)
        if best.is_recognised:
            found.setdefault(best.kind, path)
            recognised += 1
        else:
            unknown[path] = _explain_unknown(path, trials)
        if len(found) > 1:
            break
    if len(found) == 1:
        return next(iter(found))
    raise _make_kind_error(found, unknown, [kind.name for kind in kinds])


def _explain_unknown(path: LogPath, trials: Sequence[KindTrial]) -> str:
    """Return what is wrong with a file; empty if it has records, but of no known kind."""
    errors = {trial.error for trial in trials}
    if len(errors) == 1 and "" not in errors:
        return errors.pop()
    return "" if any(trial.records or trial.error for trial in trials) else f"`{path}` is empty."


def _make_kind_error(
    found: Mapping[LogKind, LogPath], unknown: Mapping[LogPath, str], names: Sequence[str]
) -> UsageError:
    if found:
        parts = " and ".join(f"`{path}` is {kind.name}" for kind, path in found.items())
        return UsageError(
            f"LOGS: the files are of several kinds: {parts}. Give one kind at a time, or read only "
            f"one of them with --source={next(iter(found)).name}."
        )
    other = next((path for path, error in unknown.items() if not error), None)
    if other is None:
        return UsageError(f"LOGS: {next(iter(unknown.values()))}")
    return UsageError(
        f"LOGS: the kind of log is not recognised: `{other}` has no records of a known kind. Give "
        f"--source, one of {', '.join(names)}; or describe your log in a schema, and give "
        "--source=SCHEMA.toml."
    )


def _choose_samples(logs: Sequence[str]) -> list[LogPath]:
    """Return some of the files, spread over all of them, the smallest ones on disk first."""
    skipped = {name for log in known_log_formats().values() for name in log.skip_dirs}
    paths = _find_files(logs, "LOGS", tuple(sorted(skipped)))
    step = -(-len(paths) // MAX_FILES_TRIED)
    return sorted(paths[::step], key=lambda p: p.stat().st_size if isinstance(p, Path) else 0)


def _find_files(globs: Sequence[str], name: str, skip_dirs: tuple[str, ...]) -> Sequence[LogPath]:
    """Return the files of some globs, or reject them if there is none."""
    paths = FileDiscovery(tuple(globs), name, skip_dirs=skip_dirs).find().paths
    if not paths:
        raise UsageError(
            f"{name}: no log file is found in {', '.join(f'`{each}`' for each in globs)}."
            f"{''.join(map(suggest_path, globs))} Give files, folders or globs of JSON, CSV or "
            "Parquet."
        )
    return paths


def _is_of_kind(path: LogPath, kind: LogKind) -> bool:
    return _try_kind(kind, path).is_recognised


def _try_kind(kind: LogKind, path: LogPath) -> KindTrial:
    """Read a file as a kind of log."""
    # A file of a Delta table can only be read alone if its type is given.
    file_type = "parquet" if path.suffix.lower() == ".parquet" else "auto"
    source = kind.make_source(
        [str(path)], bad_record="skip", file_type=file_type, max_records=MAX_RECORDS_TRIED
    )
    return KindTrial.from_source(kind, source)


# The plan: what to train on, what to score, and how many incidents to ask for.


def make_plan(
    options: DetectOptions,
    kind: LogKind,
    logs: Sequence[str],
    overview: LogOverview,
    verdicts: Verdicts | None = None,
) -> Plan:
    """Decide what to train on.

    Fingerprints in the output folder are used, unless verdicts change their training.

    Raises:
        UsageError: There is nothing to train on, or the fingerprints in the folder do not fit.
    """
    models = str(Path(options.out) / MODELS_FOLDER)
    saves: dict[str, object] = {"models_output_filename": models}
    if verdicts is not None and (verdicts.accepted or verdicts.dangerous):
        saves["verdicts"] = options.verdicts
    if options.history:
        _find_files(options.history, "--history", ())
        words = f"the logs of --history: {', '.join(options.history)}"
        training = {"train_data_glob": options.history, **saves}
        return Plan(words, {}, training, overview.first, overview.days)
    store = find_models(models)
    # A store without fingerprints is what a run with too little history leaves.
    is_usable = store is not None and (store.cards or store.global_card)
    if store is not None and is_usable and not _change_training(verdicts, store):
        _check_store(store, kind, logs, models)
        loading = {"pretrained_filename": models}
        words = f"the fingerprints in {models}"
        return Plan.after(overview, store.trained_until, words, loading)
    if overview.days == 1:
        raise UsageError(
            f"LOGS: all events are of one day, {overview.first}, so there are no earlier days to "
            "learn from. Give earlier logs as --history."
        )
    return Plan.split(overview, {"train_data_glob": tuple(logs), **saves})


def _change_training(verdicts: Verdicts | None, store: ModelStore) -> bool:
    """Return whether verdicts add events to the training of fingerprints, or exclude some."""
    if verdicts is None:
        return False
    until = datetime.fromisoformat(store.trained_until) if store.trained_until else None
    trained = (until is None or verdict.start <= until for verdict in verdicts.dangerous)
    return bool(verdicts.accepted) or any(trained)


def _check_store(store: ModelStore, kind: LogKind, logs: Sequence[str], models: str) -> None:
    """Reject fingerprints of other logs."""
    source = kind.make_source(logs)
    options = source.with_defaults(PipelineOptions(**kind.pipeline_values))
    inputs = replace(source, options=options).describe_input()
    problems = [] if store.inputs is None else store.inputs.find_differences(inputs)
    if problems:
        raise UsageError(
            f"--out: the fingerprints in `{models}` do not fit these logs. {problems[0]}. Or give "
            "another --out, or remove the fingerprints to train again."
        )


# The pipeline.


def choose_explain_prefix(columns: Collection[str]) -> str:
    """Return a prefix with which no column of `explain` has the name of a column of the log.

    >>> choose_explain_prefix({"eventName"}), choose_explain_prefix({"reason", "user"})
    ('', 'why_')
    """
    prefix = ""
    while not set(columns).isdisjoint(ExplanationColumns().with_prefix(prefix)):
        prefix += EXPLAIN_PREFIX
    return prefix


class PipelineWords(msgspec.Struct, frozen=True):
    """A pipeline, as stages that run and as the words of a command line.

    Attributes:
        run_values: Options of `run`.
        pipeline_values: Options of `pipeline-ae`.
        stages: Word and options of each stage.
    """

    run_values: Mapping[str, Any]
    pipeline_values: Mapping[str, Any]
    stages: Sequence[tuple[str, Mapping[str, Any]]]

    def build(self) -> Pipeline:
        """Return the pipeline."""
        stages = [load_stage(word)(**values) for word, values in self.stages]
        return Pipeline(stages, PipelineOptions(**self.run_values, **self.pipeline_values))

    def to_command(self) -> str:
        """Return the command line of the same pipeline."""
        words = ["morpheus", "run", *to_words(PipelineOptions, self.run_values)]
        words += ["pipeline-ae", *to_words(PipelineOptions, self.pipeline_values)]
        for word, values in self.stages:
            words += [word, *to_words(load_stage(word), values)]
        return shlex.join(words)


def make_pipeline(  # noqa: PLR0913, PLR0917 - all that the pipeline depends on
    options: DetectOptions,
    kind: LogKind,
    logs: Sequence[str],
    plan: Plan,
    budget: float,
    suppressions: Sequence[str] = (),
    explain_prefix: str = "",
) -> PipelineWords:
    """Return the pipeline that reads the logs and writes the results.

    Args:
        options: The options of the command.
        kind: Kind of the logs.
        logs: The logs.
        plan: What to train on and to score.
        budget: Number of incidents per day.
        suppressions: Files of suppressions.
        explain_prefix: Prefix of the columns of `explain`.
    """
    out = Path(options.out)
    reading = {"input_glob": tuple(logs), **plan.source_values, "bad_record": "skip"}
    stages: list[tuple[str, Mapping[str, Any]]] = [
        (kind.word, reading),
        ("train-ae", plan.training_values),
        *list_detect_stages(budget, suppressions, explain_prefix),
        ("to-report", {"filename": str(out / REPORT_FILE), "overwrite": True}),
        ("to-file", {"filename": str(out / ALERTS_FILE), "overwrite": True}),
    ]
    run_values = {"status_file": str(out / STATUS_FILE)}
    return PipelineWords(run_values, kind.pipeline_values, stages)


# The command.


def run_detect(options: DetectOptions, logs: Sequence[str]) -> None:
    """Plan, run, and print the incidents."""
    logs = tuple(normalise_location(log, "LOGS") for log in logs)
    _check_out(options, logs)
    verdicts = Verdicts.read(options.verdicts, "--verdicts") if options.verdicts else None
    out = Path(options.out)
    with (
        interruptible(),
        show_progress() as on_step,
        _download_once((*logs, *options.history)),
    ):
        kind = recognise_kind(logs, options.source)
        source = kind.make_source(logs, bad_record="skip")
        # Of the features, one is enough: they are not looked at.
        columns = (source.get_log_format().time_column,) if not kind.columns_file else ()
        counting = PipelineOptions(columns=columns, **kind.pipeline_values)
        overview = LogOverview.from_source(source, counting, on_step=on_step)
        plan = make_plan(options, kind, logs, overview, verdicts)
        budget = options.alerts_per_day
        if budget is None:
            budget = choose_budget(overview.users, plan.days)
        with _restore_on_error(out / SUPPRESSIONS_FILE), _restore_on_error(out / STATUS_FILE):
            proposals = _write_suppressions(options, kind, logs, verdicts)
            suppressions = options.suppressions
            if proposals is not None and proposals.rules.rules:
                suppressions = (*suppressions, str(out / SUPPRESSIONS_FILE))
            prefix = choose_explain_prefix(overview.columns | kind.list_columns())
            words = make_pipeline(options, kind, logs, plan, budget, suppressions, prefix)
            pipeline = words.build()
            pipeline.validate()
            _print_plan(kind, overview, plan, budget, words)
            metrics = pipeline.run(on_step=on_step)
    data = _get_report_data(pipeline.stages, metrics)
    incidents = [view.incident for view in data.incidents]
    _print_counts(metrics, data.account, incidents, has_history=bool(options.history))
    _print_hidden(metrics, proposals)
    _print_incidents(incidents)
    _print_results(options, incidents)


def _write_suppressions(
    options: DetectOptions, kind: LogKind, logs: Sequence[str], verdicts: Verdicts | None
) -> Proposals | None:
    """Propose suppressions for verdicts, and write them to the output folder."""
    if verdicts is None:
        return None
    out = Path(options.out)
    alerts = out / ALERTS_FILE
    files = [alerts] if alerts.is_file() and alerts.stat().st_size else []
    models, replay = out / MODELS_FOLDER, None
    if kind.word == FromCloudtrail.name and find_models(str(models)) is not None:
        replay = ReplayConfig(
            input_glob=tuple(logs),
            pretrained_filename=str(models),
            userid_column_name=ACTOR_OPTION,
            bad_record="skip",
        )
    sources = TuningSources(files, ACTOR_OPTION, replay=replay, log=kind.log_format.describe())
    proposals, _ = make_proposals(sources, verdicts, DEFAULT_DAYS)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / SUPPRESSIONS_FILE) as file:
        file.write(render_suppressions(proposals, options.verdicts).encode())
    return proposals


@contextmanager
def _download_once(logs: Sequence[str]) -> Iterator[None]:
    """Keep copies of objects in the block, which reads them several times."""
    if not any(map(is_object_url, logs)):
        yield
        return
    with TempFolder() as folder, keep_objects(folder):
        yield


@contextmanager
def _restore_on_error(path: Path) -> Iterator[None]:
    """Give a file its contents back if the block fails. Remove it, and its folder, if it is new."""
    before = path.read_bytes() if path.is_file() else None
    existed = path.parent.exists()
    try:
        yield
    except BaseException:
        if before is not None:
            with atomic_write(path) as file:
                file.write(before)
            raise
        path.unlink(missing_ok=True)
        if not existed and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
        raise


def _check_out(options: DetectOptions, logs: Sequence[str]) -> None:
    """Reject an output folder that cannot be one."""
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: `{out}` is not a folder. Give another name.")
    given = [Path(name).absolute() for name in options.suppressions]
    if options.verdicts and (out / SUPPRESSIONS_FILE).absolute() in given:
        raise UsageError(
            f"--suppressions: `{out / SUPPRESSIONS_FILE}` is replaced with --verdicts. Give a "
            "copy of it, or leave one of the two options out."
        )
    for log in (*logs, *options.history):
        inside = not is_object_url(log) and out.absolute().is_relative_to(Path(log).absolute())
        if inside and Path(log).is_dir():
            raise UsageError(
                f"--out: `{out}` is in the folder of logs `{log}`, and the next run would read the "
                "results as logs. Give a folder outside of it."
            )


def _get_report_data(stages: Sequence[Stage], metrics: RunMetrics) -> ReportData:
    """Return the data of the report that was written."""
    report = next(stage for stage in stages if isinstance(stage, ToReport))
    return report.make_report_data(metrics)


def _print_facts(facts: Mapping[str, str]) -> None:
    echo("\n".join(f"{name:10}  {text}" for name, text in facts.items()))


def _print_plan(
    kind: LogKind, overview: LogOverview, plan: Plan, budget: float, words: PipelineWords
) -> None:
    events, users = format_count(overview.events, "event"), format_count(overview.users, "user")
    files = format_count(overview.files, "file")
    period = f"{overview.first} to {overview.last}"
    _print_facts({"Log": f"{kind.name}: {events} of {users} in {files}, {period}"})
    _print_left_out(overview.stats)
    _print_facts(
        {
            "Trained on": plan.trained,
            "Scored": f"{plan.first} to {overview.last}: {format_count(plan.days, 'day')}",
            "Budget": f"{budget:g} incidents per day. Change it with --alerts_per_day.",
            "Same as": words.to_command(),
        }
    )


def _print_left_out(stats: ReadStats) -> None:
    """Print which records and files of the logs were left out, and why."""
    for fact, text in list_left_out(stats):
        _print_facts({fact.capitalize(): text})


def _print_counts(
    metrics: RunMetrics, counts: RunCounts, incidents: Sequence[Incident], *, has_history: bool
) -> None:
    events = format_count(sum(incident.count for incident in incidents), "event")
    found = format_count(len(incidents), "incident")
    _print_facts({"Found": f"{found} with {events}, of {counts.scored:,} that were scored"})
    if has_history:
        for fact, text in list_left_out(metrics.training):
            _print_facts({"History": f"{fact}: {text}"})
    for text in list_unscored(metrics):
        _print_facts({"Not scored": text})
    if not incidents:
        _print_facts({"Why none": _explain_none(metrics)})


def _print_hidden(metrics: RunMetrics, proposals: Proposals | None) -> None:
    """Print what suppressions and verdicts have done."""
    lines = [
        f"{format_count(number, 'event')} by {label}"
        for label, number in metrics.suppressed.most_common()
    ]
    if metrics.followers:
        lines.append(f"{format_count(metrics.followers, 'event')} that only follow these")
    report = metrics.budget_report
    if lines and report is not None:
        lines.insert(0, format_count(report.suppressed, "incident"))
    lines += [f"{label}: expired" for label in metrics.expired]
    for place, line in enumerate(lines):
        _print_facts({"" if place else "Hidden": line})
    if proposals is not None:
        _print_unmet(proposals)
    if metrics.accepted or metrics.excluded:
        accepted = format_count(metrics.accepted, "accepted event")
        excluded = format_count(metrics.excluded, "dangerous event")
        _print_facts({"Training": f"{accepted} added, {excluded} left out"})


def _print_unmet(proposals: Proposals) -> None:
    """Print which verdicts hide nothing."""
    for proposal in proposals.proposals:
        if proposal.conflicts:
            _print_facts({"Rejected": f"{proposal.rule.label}: {'; '.join(proposal.conflicts)}"})
    for verdict in proposals.unactionable:
        reason = "it has no user, or no value by which others like it could be found"
        _print_facts({"Not hidden": f"incident {verdict.incident}, {verdict.verdict}: {reason}"})


def _explain_none(metrics: RunMetrics) -> str:
    """Say why there is no incident."""
    report = metrics.budget_report
    if not metrics.cards:
        reasons = list(dict.fromkeys(metrics.unscored_reasons.values()))
        why = reasons[0] if reasons else metrics.empty_reason
        return f"no event has a score: {why}."
    if report is not None and report.reason and not report.days:
        return f"{report.reason}."
    why = "no day of a user is unusual enough for this budget."
    if report is not None and report.next_pvalue:
        why += f" The most unusual one is one in {1 / report.next_pvalue:,.0f} days."
    return f"{why} Give a larger --alerts_per_day to see more."


def _print_incidents(incidents: Sequence[Incident]) -> None:
    rows = []
    for incident in incidents[:MIN_INCIDENTS]:
        severity = f"{incident.severity} {incident.severity_name}"
        events, reason = f"{incident.count:,}", incident.reason or ""
        rows.append((severity, incident.user or "", incident.day, events, reason))
    if rows:
        print_table(("SEVERITY", "USER", "DAY", "EVENTS", "REASON"), rows)


def _print_results(options: DetectOptions, incidents: Sequence[Incident]) -> None:
    out = Path(options.out)
    more = len(incidents) - MIN_INCIDENTS
    facts = {}
    if more > 0:
        facts["More"] = f"{format_count(more, 'incident')} in the report, less severe"
    facts["Results"] = f"{out}: {REPORT_FILE}, {ALERTS_FILE}, {MODELS_FOLDER}"
    folder = shlex.quote(str(out))
    facts["Next"] = f"Open {out / REPORT_FILE}. To see it live, type `morpheus serve {folder}`."
    if incidents:
        facts["Next"] += (
            " To hide what is harmless, give verdicts in the report, download them, and add "
            "`--verdicts=verdicts.json` to this command."
        )
    _print_facts(facts)


LOGS_ARGUMENT = click.Argument(["logs"], nargs=-1, required=True)
detect = command_from_dataclass("detect", DetectOptions, run_detect, LOGS_ARGUMENT)
