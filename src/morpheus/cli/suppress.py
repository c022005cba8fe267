"""`morpheus tools suppress`: suppressions from verdicts, and a preview of what they would hide.

`TuningSources` has what proposals are made of: past alerts, and the logs to replay attacks in.
`morpheus detect --verdicts` uses it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import msgspec
import polars as pl
from click.exceptions import Exit
from msgspec import structs

from morpheus.cli.chain import command_from_dataclass
from morpheus.cli.output import EXIT_FAILURE, echo, interruptible, print_table
from morpheus.columns import INCIDENT_ID, POPULATION_USER, TIME, LogDescription
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.models.scoring import number_days
from morpheus.replay.evaluation import (
    SUPPRESSED_BY,
    evaluate,
    list_found_events,
    run_replay,
)
from morpheus.replay.injection import ReplayConfig
from morpheus.report.incidents import format_day, incident_id
from morpheus.report_cli import ReportRequest, ResultFiles, open_folder
from morpheus.sinks.to_file import validate_output
from morpheus.sources.results import choose_kind, find_log
from morpheus.storage.atomic import atomic_write
from morpheus.suppressions.proposals import (
    PastAlerts,
    ProposalMaker,
    Proposals,
    SuppressionPreview,
    Verdict,
    Verdicts,
    describe_attacks,
    list_hidden,
    preview_rule,
    render_suppressions,
)
from morpheus.suppressions.rules import Suppression, Suppressions
from morpheus.text import display_value, format_count, quote_backtick

DEFAULT_DAYS = 90
"""Days until a suppression ends."""


@dataclass(frozen=True)
class SuppressOptions:
    r"""Create suppressions from the verdicts that people gave in the report.

    VERDICTS are files that the report exported. For incidents judged `expected` or `benign-new`,
    each suppression is the narrowest one that hides them and their like: some events of one user,
    by service, action, network, program, and the values that made them unusual. Values that change
    in each event or session, such as temporary keys, are left out. Review the file, then use it by
    `filter --suppressions`. A suppression that would also hide an incident judged `suspicious` or
    `malicious`, or a replayed attack, is rejected: it becomes a comment in the file, and the exit
    code is 1.

    stdout shows what each suppression would hide: past incidents (--preview), and attacks
    (--replay_glob). If you give suppressions in place of verdicts, they are only previewed.

        morpheus tools suppress verdicts.json --preview=alerts.csv \
            --replay_glob="june/*.json.gz" --userid_column_name=userIdentityarn
    """

    filename: str = option("suppressions.toml", "File to write, for you to edit.", location="local")
    overwrite: bool = option(False, "Replace an existing file.", flag=True)
    days: int = option(
        DEFAULT_DAYS, "Days until the suppressions end, from the day of the export.", min=1, max=366
    )
    preview: tuple[str, ...] = option(
        (),
        "Past alerts: a file that `to-file` wrote after `filter`, or the output folder of "
        "`morpheus detect`; repeat for several.",
        location="local",
    )
    userid_column_name: str = option(
        "",
        "User column of the past alerts and of the logs. `@actor` finds the actor of each event.",
        default_display="the first known one",
    )
    source: str = option(
        "",
        "Kind of the log, such as `okta`; or your own schema, such as `vpn.toml`. Its "
        "`[event_fields]` are what suppressions can have conditions on.",
        default_display="recognised by the columns of the past alerts",
    )
    replay_glob: str | tuple[str, ...] | None = option(
        None,
        "CloudTrail files to replay attacks in, as for `morpheus tools replay --input_glob`. This "
        "takes some time.",
        location="any",
    )
    train_data_glob: str | tuple[str, ...] | None = option(
        None, "Training files for the replay, as for `morpheus tools replay`.", location="any"
    )
    pretrained_filename: str | None = option(
        None,
        "Folder of fingerprints for the replay, as for `morpheus tools replay`.",
        location="any",
    )
    techniques: str | None = option(
        None,
        "Folder of attack techniques to replay. By default the shipped techniques.",
        location="local",
    )
    num_threads: int | None = option(
        None,
        "Maximum number of parallel workers. Does not affect results.",
        min=1,
        default_display="the number of cores",
    )


class TuningSources(msgspec.Struct, frozen=True):
    """What proposals are made of, besides verdicts.

    Attributes:
        files: Files of past alerts.
        user_column: User column of past alerts and logs; empty for the first known one.
        timezone: Time zone of the days of incidents.
        replay: How attacks are replayed; None to replay none.
        log: Description of the log; None for what the columns of past alerts tell.
    """

    files: Sequence[Path]
    user_column: str = ""
    timezone: str = "UTC"
    replay: ReplayConfig | None = None
    log: LogDescription | None = None

    @classmethod
    def from_options(cls, options: SuppressOptions) -> TuningSources:
        """Read the options of `morpheus tools suppress`."""
        log = choose_kind(options.source).log_format.describe() if options.source else None
        files = tuple(file for name in options.preview for file in _list_files(Path(name)))
        if options.replay_glob is None:
            return cls(files, options.userid_column_name, log=log)
        replay = ReplayConfig(
            input_glob=options.replay_glob,
            train_data_glob=options.train_data_glob,
            pretrained_filename=options.pretrained_filename,
            userid_column_name=options.userid_column_name or ReplayConfig.userid_column_name,
            techniques=options.techniques,
            num_threads=options.num_threads,
        )
        return cls(files, options.userid_column_name, replay=replay, log=log)

    def read_past(self) -> PastAlerts:
        """Read the past alerts."""
        results = ResultFiles.find(self.files, self.user_column)
        if results is None:
            return PastAlerts.empty(self.log or find_log("", ()))
        frames = [self._identify(rows, user) for user, rows in results.iter_by_user()]
        rows = pl.concat(frames, how="diagonal_relaxed")
        return PastAlerts.from_rows(rows, self.log or results.log)

    def _identify(self, rows: pl.DataFrame, user: str | None) -> pl.DataFrame:
        """Add the user, and the id of the incident if the rows have none."""
        rows = rows.with_columns(pl.lit(user, pl.String).alias(POPULATION_USER))
        if INCIDENT_ID in rows.columns:
            return rows
        days = number_days(rows[TIME], self.timezone).tolist()
        ids = {day: incident_id(user, format_day(day)) for day in set(days)}
        return rows.with_columns(pl.Series(INCIDENT_ID, [ids[day] for day in days], pl.String))

    def propose(self, verdicts: Verdicts, days: int, past: PastAlerts) -> Proposals:
        """Propose suppressions that hide no replayed attack."""
        maker = ProposalMaker(verdicts, days, past)
        users = {verdict.user for verdict in verdicts.benign if verdict.user}
        if self.replay is None or not users:
            return maker.make()
        replay = self._replay_as(users)
        batches, _ = run_replay(replay, Suppressions(), columns=_list_columns(past, verdicts))
        return structs.replace(maker, attacks=list_found_events(batches, past.thresholds)).make()

    def find_hidden_attacks(
        self, rules: Sequence[Suppression], past: PastAlerts
    ) -> Mapping[str, list[str]] | None:
        """Return the replayed attacks that suppressions hide, by label; None without a replay.

        A suppression is missing if no attack was replayed as one of its users.
        """
        if self.replay is None:
            return None
        suppressions = Suppressions(tuple(rules))
        users = {user for rule in rules for user in rule.users}
        replay = self.replay if any(rule.roles for rule in rules) else self._replay_as(users)
        if not rules:
            return {}
        batches, _ = run_replay(replay, suppressions)
        report = evaluate(batches, thresholds=past.thresholds)
        tried = report.tried_users
        attacks: dict[str, list[str]] = {
            label: []
            for rule, label in zip(rules, suppressions.labels, strict=True)
            if any(rule.roles or user in rule.all_spellings for user in tried)
        }
        hidden = report.trials.filter(pl.col(SUPPRESSED_BY).is_not_null())
        columns = hidden.select(SUPPRESSED_BY, "technique", "user").unique(maintain_order=True)
        for label, technique, user in columns.iter_rows():
            attacks.setdefault(label, []).append(f"{technique} (as {user})")
        return attacks

    def _replay_as(self, users: Iterable[str]) -> ReplayConfig:
        """Replay as some users only, if fingerprints are known: training needs all users."""
        if self.replay is None:
            raise ValueError("there is no replay")
        if self.replay.pretrained_filename is None:
            return self.replay
        return replace(self.replay, userid_filter=tuple(sorted(users)))


def _list_files(path: Path) -> Sequence[Path]:
    """Return the files of a folder of results, or the file itself."""
    return open_folder(ReportRequest(), [path])[1] if path.is_dir() else [path]


def _list_columns(past: PastAlerts, verdicts: Verdicts) -> list[str]:
    """Return the columns that suppressions may use."""
    given = [
        *past.events.columns,
        *(cell.column for verdict in verdicts.verdicts for cell in verdict.columns),
        *(name for verdict in verdicts.verdicts for row in verdict.rows for name in row.values),
    ]
    names = dict.fromkeys(given)
    return [name for name in names if name not in {POPULATION_USER, INCIDENT_ID, TIME}]


def _run_suppress(options: SuppressOptions, files: Sequence[str]) -> None:
    are_suppressions = [name.endswith(TOML_SUFFIX) for name in files]
    if any(are_suppressions) and not all(are_suppressions):
        raise UsageError("VERDICTS: give files of verdicts, or of suppressions, not both.")
    with interruptible():
        if all(are_suppressions):
            _preview_only(files, options)
        else:
            _write_proposals(files, options)


VERDICTS_ARGUMENT = click.Argument(["verdicts"], nargs=-1, required=True)
suppress = command_from_dataclass("suppress", SuppressOptions, _run_suppress, VERDICTS_ARGUMENT)


def _preview_only(files: Sequence[str], options: SuppressOptions) -> None:
    """Preview suppressions of existing files."""
    rules = Suppressions.read(*files, option="VERDICTS").rules
    sources = TuningSources.from_options(options)
    past = sources.read_past()
    _warn_missing(rules, past)
    previews = preview_rules(rules, past, sources.find_hidden_attacks(rules, past))
    print_table(*to_table(previews))
    for preview in previews:
        _print_details(preview.rule.label, preview)
        _print_warnings(preview.rule.label, [*preview.conflicts, *preview.warnings])


TOML_SUFFIX = ".toml"


def _write_proposals(files: Sequence[str], options: SuppressOptions) -> None:
    """Create suppressions, write them, and print what they would hide."""
    path = Path(options.filename)
    name, suffixes = "morpheus tools suppress", (TOML_SUFFIX,) if path.suffix else ()
    validate_output(options.filename, overwrite=True, stage_name=name, suffixes=suffixes)
    if path.exists() and not options.overwrite:
        raise UsageError(
            f"--filename: `{path}` already exists, and may have been edited. Give `--overwrite`, "
            "or another --filename; `filter` accepts several files."
        )
    sources = TuningSources.from_options(options)
    proposals, previews = make_proposals(sources, Verdicts.read(files), options.days)
    with atomic_write(path) as file:
        file.write(render_suppressions(proposals, files).encode())
    print_table(*to_table(previews))
    for preview in previews:
        _print_details(preview.rule.label, preview)
    _print_proposals(proposals, path, options)
    if any(proposal.conflicts for proposal in proposals.proposals):
        raise Exit(EXIT_FAILURE)


def make_proposals(
    sources: TuningSources, verdicts: Verdicts, days: int
) -> tuple[Proposals, list[RulePreview]]:
    """Propose suppressions, and find what each would hide.

    Args:
        sources: Past alerts, and logs to replay attacks in.
        verdicts: The verdicts.
        days: Days from the export to the end of the suppressions.

    Returns:
        The proposals, with conflicts and warnings, and a preview of each.

    Raises:
        MorpheusError: A file cannot be read, or an option is wrong.
    """
    past = sources.read_past()
    proposals = sources.propose(verdicts, days, past)
    rules = [each.rule for each in proposals.proposals]
    _warn_missing(rules, past)
    known = past.add_verdicts(verdicts.verdicts)
    # What is rejected already hides nothing.
    usable = proposals.rules.rules
    attacks = sources.find_hidden_attacks(usable, past)
    previews = preview_rules(rules, known, attacks, proposals)
    return proposals.with_objections([(x.conflicts, x.warnings) for x in previews]), previews


def _warn_missing(rules: Sequence[Suppression], past: PastAlerts) -> None:
    """Warn about columns that past alerts do not have."""
    used = frozenset().union(*(rule.columns for rule in rules))
    if past.events.height and (missing := sorted(used - set(past.events.columns))):
        names = ", ".join(map(quote_backtick, missing))
        echo(f"Warning: the past alerts do not have {names}, which suppressions use.", fg="yellow")


def _print_details(label: str, preview: RulePreview) -> None:
    """Print the incidents that a suppression would hide."""
    past = preview.past_alerts
    if past is not None and past.hidden:
        echo(f"Hides {', '.join(past.hidden)}: {label}")


def _print_proposals(proposals: Proposals, path: Path, options: SuppressOptions) -> None:
    """Print what was written and what was not."""
    rejected = [proposal for proposal in proposals.proposals if proposal.conflicts]
    for proposal in proposals.proposals:
        _print_warnings(proposal.rule.label, proposal.warnings)
    hint = "" if options.source else " If the log has a schema of your own, give it as --source."
    for verdict in proposals.unactionable:
        echo(
            f"No suppression for incident {verdict.incident}: it has no user, or no value by which "
            f"others like it could be found.{hint}",
            fg="yellow",
        )
    for verdict in proposals.accepted:
        echo(f"No suppression for incident {verdict.incident}: its events are for training.")
    for proposal in rejected:
        echo(f"Rejected: {proposal.rule.label}: {'; '.join(proposal.conflicts)}.", fg="red")
    written = format_count(len(proposals.proposals) - len(rejected), "suppression")
    echo(f"{written} in {path}. Review them, then use: filter --suppressions={path}")


def _print_warnings(label: str, warnings: Sequence[str]) -> None:
    for warning in warnings:
        echo(f"Warning: {label}: {warning}.", fg="yellow")


# Previews.

PREVIEW_HEADER = ("SUPPRESSION", "PAST INCIDENTS", "ATTACKS")
NOT_AVAILABLE = "-"


class RulePreview(msgspec.Struct, frozen=True):
    """What one suppression would hide.

    Attributes:
        rule: The suppression.
        past_alerts: Past alerts that it would have suppressed; None if none were given.
        hidden_attacks: Replayed attacks that it would hide, with their users; None if none were
            replayed as one of its users.
        was_asked: Whether a person has asked for this suppression.
        was_skipped: Whether attacks were replayed, but not as one of its users.
    """

    rule: Suppression
    past_alerts: SuppressionPreview | None
    hidden_attacks: Sequence[str] | None
    was_asked: bool = True
    was_skipped: bool = False

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Why the suppression must be rejected."""
        dangerous: Sequence[Verdict] = self.past_alerts.dangerous if self.past_alerts else ()
        conflicts = [
            f"it would hide incident {verdict.incident}, judged {verdict.verdict}"
            for verdict in dangerous
        ]
        if self.hidden_attacks and not self.was_asked:
            conflicts.append(describe_attacks(self.hidden_attacks))
        return tuple(conflicts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should check."""
        warnings = []
        if self.hidden_attacks and self.was_asked:
            warnings.append(describe_attacks(self.hidden_attacks))
        if self.was_skipped:
            warnings.append(
                "no attack was replayed as one of its users, so it is not known whether it would "
                "hide one; `morpheus tools replay` says why"
            )
        past = self.past_alerts
        if past and past.unjudged:
            unjudged = format_count(len(past.unjudged), "past incident")
            ids = ", ".join(past.unjudged)
            warnings.append(f"it would hide {unjudged} without a verdict: {ids}")
        if past and past.events.is_empty():
            warnings.append("it would hide none of the past alerts")
        if past and past.id_columns:
            columns = " or ".join(map(display_value, past.id_columns))
            warnings.append(
                f"no two past alerts have the same {columns}, so it will hardly match again: "
                "remove that column"
            )
        return tuple(warnings)


def preview_rules(
    rules: Sequence[Suppression],
    past: PastAlerts,
    attacks: Mapping[str, Sequence[str]] | None,
    proposals: Proposals | None = None,
) -> list[RulePreview]:
    """Return what each suppression would hide of past alerts and of replayed attacks.

    Args:
        rules: The suppressions.
        past: Past alerts.
        attacks: Hidden attacks, by the label of the suppression; None if none were replayed.
        proposals: The proposals that the rules come from, with their verdicts.
    """
    sources = [each.verdicts for each in proposals.proposals] if proposals else [()] * len(rules)
    benign = [verdict for verdicts in sources for verdict in verdicts]
    benign += (*proposals.accepted, *proposals.unactionable) if proposals else ()
    dangerous = proposals.dangerous if proposals else ()
    hidden = list_hidden(rules, past)
    previews = []
    labels = Suppressions(tuple(rules)).labels
    for rule, label, verdicts in zip(rules, labels, sources, strict=True):
        found = preview_rule(rule, past.events, benign, dangerous, hidden)
        if proposals is None:
            found = structs.replace(found, unjudged=())
        previews.append(
            RulePreview(
                rule,
                found if past.events.height else None,
                None if attacks is None else attacks.get(label),
                was_asked=not verdicts or any(each.tuning is not None for each in verdicts),
                was_skipped=attacks is not None and label not in attacks,
            )
        )
    return previews


def to_table(previews: Sequence[RulePreview]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the header and the rows of the table of previews."""
    rows = [[x.rule.label, _describe_alerts(x), _describe_attacks(x)] for x in previews]
    return PREVIEW_HEADER, rows


def _describe_alerts(preview: RulePreview) -> str:
    past = preview.past_alerts
    if past is None:
        return NOT_AVAILABLE
    counts = {"hidden": past.hidden, "in part": past.partly}
    return ", ".join(f"{len(ids):,} {what}" for what, ids in counts.items() if ids) or "none"


def _describe_attacks(preview: RulePreview) -> str:
    if preview.hidden_attacks is None:
        return NOT_AVAILABLE
    return f"{len(preview.hidden_attacks):,} hidden" if preview.hidden_attacks else "none"
