"""`morpheus tools suppress`: suppressions from verdicts, and a preview of what they would hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import click
import polars as pl
from click.exceptions import Exit

from morpheus.cli.chain import command_from_dataclass
from morpheus.cli.output import EXIT_FAILURE, echo, interruptible, print_table
from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.replay.evaluation import SUPPRESSED_BY, evaluate, run_replay
from morpheus.replay.injection import ReplayConfig
from morpheus.report_cli import ResultFiles
from morpheus.sinks.to_file import validate_output
from morpheus.storage.atomic import atomic_write
from morpheus.suppressions.proposals import (
    Proposals,
    SuppressionPreview,
    Verdict,
    preview_rule,
    render_suppressions,
)
from morpheus.suppressions.rules import Suppression, Suppressions
from morpheus.text import display_value, format_count, quote_backtick


@dataclass(frozen=True)
class SuppressOptions:
    r"""Create suppressions from the verdicts that people gave in the report.

    VERDICTS are files that the report exported. Each incident judged `expected` or `benign-new`
    gives a suppression, by the values that made it unusual, for its users and for some days. Review
    the file, then use it by `filter --suppressions`. A suppression that would also hide an incident
    judged `suspicious` or `malicious` is rejected: it becomes a comment in the file, and the exit
    code is 1.

    stdout shows what each suppression would hide: past alerts (--preview), and attacks
    (--replay_glob). If you give suppressions in place of verdicts, they are only previewed.

        morpheus tools suppress verdicts.json --preview=alerts.csv \
            --replay_glob="june/*.json.gz" --userid_column_name=userIdentityarn
    """

    filename: str = option("suppressions.toml", "File to write, for you to edit.", location="local")
    overwrite: bool = option(False, "Replace an existing file.", flag=True)
    days: int = option(
        30, "Days until the suppressions end, from the day of the export.", min=1, max=366
    )
    preview: tuple[str, ...] = option(
        (),
        "Past alerts: a file that `to-file` wrote after `filter`; repeat for several.",
        location="local",
    )
    userid_column_name: str = option(
        "",
        "User column of the past alerts and of the logs. `@actor` finds the actor of each event.",
        default_display="the first known one",
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


def _run_suppress(options: SuppressOptions, files: Sequence[str]) -> None:
    are_suppressions = [name.endswith(".toml") for name in files]
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
    previews = preview_rules(Suppressions.read(*files).rules, options)
    print_table(*to_table(previews))
    for preview in previews:
        _print_warnings(preview.rule.label, preview.warnings)


TOML_SUFFIX = ".toml"


def _write_proposals(files: Sequence[str], options: SuppressOptions) -> None:
    """Create suppressions, write them, and print what they would hide."""
    path = Path(options.filename)
    if path.exists() and not options.overwrite:
        raise UsageError(
            f"--filename: `{path}` already exists, and may have been edited. Give `--overwrite`, "
            "or another --filename; `filter` accepts several files."
        )
    if path.suffix:
        name = "morpheus tools suppress"
        validate_output(options.filename, overwrite=True, stage_name=name, suffixes=(TOML_SUFFIX,))
    proposals = Proposals.from_files(files, options.days)
    previews = preview_rules([each.rule for each in proposals.proposals], options, proposals)
    proposals = proposals.with_objections([(x.conflicts, x.warnings) for x in previews])
    with atomic_write(path) as file:
        file.write(render_suppressions(proposals, files).encode())
    print_table(*to_table(previews))
    _print_proposals(proposals, path)


def _print_proposals(proposals: Proposals, path: Path) -> None:
    """Print what was written and what was not. Fail if a suppression was rejected."""
    rejected = [proposal for proposal in proposals.proposals if proposal.conflicts]
    for proposal in proposals.proposals:
        _print_warnings(proposal.rule.label, proposal.warnings)
    for verdict in proposals.unactionable:
        echo(
            f"No suppression for incident {verdict.incident}: it has no user, or no value.",
            fg="yellow",
        )
    for proposal in rejected:
        echo(f"Rejected: {proposal.rule.label}: {'; '.join(proposal.conflicts)}.", fg="red")
    written = format_count(len(proposals.proposals) - len(rejected), "suppression")
    echo(f"{written} in {path}. Review them, then use: filter --suppressions={path}")
    if rejected:
        raise Exit(EXIT_FAILURE)


def _print_warnings(label: str, warnings: Sequence[str]) -> None:
    for warning in warnings:
        echo(f"Warning: {label}: {warning}.", fg="yellow")


# Previews.

MAX_ATTACKS_SHOWN = 3
"""Maximum number of attacks that a warning names."""
PREVIEW_HEADER = ("SUPPRESSION", "PAST ALERTS", "ATTACKS")
NOT_AVAILABLE = "-"


@dataclass(frozen=True)
class RulePreview:
    """What one suppression would hide.

    Attributes:
        rule: The suppression.
        past_alerts: Past alerts that it would have suppressed; None if none were given.
        hidden_attacks: Replayed attacks that it would hide, with their users; None if none were
            replayed.
    """

    rule: Suppression
    past_alerts: SuppressionPreview | None
    hidden_attacks: Sequence[str] | None

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Why the suppression must be rejected."""
        dangerous: Sequence[Verdict] = self.past_alerts.dangerous if self.past_alerts else ()
        return tuple(
            f"it would hide incident {verdict.incident}, judged {verdict.verdict}"
            for verdict in dangerous
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should check."""
        warnings = []
        if self.hidden_attacks:
            shown = ", ".join(self.hidden_attacks[:MAX_ATTACKS_SHOWN])
            rest = len(self.hidden_attacks) - MAX_ATTACKS_SHOWN
            more = f" and {rest:,} more" if rest > 0 else ""
            warnings.append(f"it would hide replayed attacks: {shown}{more}")
        past = self.past_alerts
        if past and past.num_unjudged:
            unjudged = format_count(past.num_unjudged, "past event")
            warnings.append(f"it would hide {unjudged} without a verdict")
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
    rules: Sequence[Suppression], options: SuppressOptions, proposals: Proposals | None = None
) -> list[RulePreview]:
    """Return what each suppression would hide of past alerts and of replayed attacks.

    Args:
        rules: The suppressions.
        options: Where past alerts and logs are.
        proposals: The proposals that the rules come from, with their verdicts.

    Raises:
        MorpheusError: A file cannot be read, or an option is wrong.
    """
    past = _read_past_alerts(rules, options) if options.preview else None
    attacks = _find_hidden_attacks(rules, options) if options.replay_glob is not None else None
    benign = [each.verdicts for each in proposals.proposals] if proposals else [()] * len(rules)
    dangerous = proposals.dangerous if proposals else ()
    return [
        RulePreview(
            rule,
            None if past is None else preview_rule(rule, past, verdicts, dangerous),
            None if attacks is None else attacks.get(rule.label, ()),
        )
        for rule, verdicts in zip(rules, benign, strict=True)
    ]


def to_table(previews: Sequence[RulePreview]) -> tuple[Sequence[str], list[list[str]]]:
    """Return the header and the rows of the table of previews."""
    rows = [[x.rule.label, _describe_alerts(x), _describe_attacks(x)] for x in previews]
    return PREVIEW_HEADER, rows


def _describe_alerts(preview: RulePreview) -> str:
    past = preview.past_alerts
    if past is None:
        return NOT_AVAILABLE
    counts = {"judged harmless": past.num_benign, "not judged": past.num_unjudged}
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number) or "none"


def _describe_attacks(preview: RulePreview) -> str:
    if preview.hidden_attacks is None:
        return NOT_AVAILABLE
    return f"{len(preview.hidden_attacks):,} hidden" if preview.hidden_attacks else "none"


def _read_past_alerts(rules: Sequence[Suppression], options: SuppressOptions) -> pl.DataFrame:
    """Read past alerts: the columns that suppressions use, the user and the time."""
    used: set[str] = reduce(or_, (set(rule.where) for rule in rules), set())
    files = [Path(name) for name in options.preview]
    frames = [
        rows.select(
            *(pl.col(name).cast(pl.String) for name in rows.columns if name in used - {TIME}),
            pl.lit(user, pl.String).alias(POPULATION_USER),
            TIME,
        )
        for user, rows in ResultFiles.from_files(files, options.userid_column_name).iter_by_user()
    ]
    past = pl.concat(frames, how="diagonal")
    if missing := sorted(used - set(past.columns)):
        names = ", ".join(map(quote_backtick, missing))
        echo(f"Warning: the past alerts do not have {names}, which suppressions use.", fg="yellow")
    return past


def _find_hidden_attacks(
    rules: Sequence[Suppression], options: SuppressOptions
) -> Mapping[str, list[str]]:
    """Replay attacks. Return those missed only because of a suppression, by its label."""
    config = ReplayConfig(
        input_glob=options.replay_glob or "",
        train_data_glob=options.train_data_glob,
        userid_column_name=options.userid_column_name or ReplayConfig.userid_column_name,
        techniques=options.techniques,
        num_threads=options.num_threads,
    )
    batches, _ = run_replay(config, Suppressions(tuple(rules)))
    trials = evaluate(batches).trials.filter(pl.col(SUPPRESSED_BY).is_not_null())
    columns = trials.select(SUPPRESSED_BY, "technique", "user").unique(maintain_order=True)
    attacks: dict[str, list[str]] = {}
    for label, technique, user in columns.iter_rows():
        attacks.setdefault(label, []).append(f"{technique} (as {user})")
    return attacks
