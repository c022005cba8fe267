"""What suppressions would hide, for the screen: of past alerts, and of attacks replayed."""

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
from morpheus.cli.output import EXIT_FAILURE, echo, format_count, interruptible, print_table
from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.replay.evaluation import SUPPRESSED_BY, evaluate, run_replay
from morpheus.replay.injection import ReplayConfig
from morpheus.report_cli import ResultFiles
from morpheus.suppressions.proposals import Proposals, SuppressionPreview, Verdict, preview_rule
from morpheus.suppressions.rules import Suppression, Suppressions
from morpheus.text import display_value, quote_backtick


@dataclass(frozen=True)
class SuppressOptions:
    r"""Make suppressions of verdicts, for people to read and `filter --suppressions` to apply.

    VERDICTS are files that the report exported. What was judged `expected` or `benign-new` is
    proposed, by the values that made it strange, for the users concerned and for some days; what
    would also hide something judged `suspicious` or `malicious` is refused: it stands in the file
    as a comment, and the exit code is 1. stdout has what each would have hidden, of --preview and
    of the attacks replayed with --replay_glob. A file of suppressions in place of verdicts is only
    previewed; nothing is written.

        morpheus tools suppress verdicts.json --preview=alerts.csv \
            --replay_glob="june/*.json.gz" --userid_column_name=userIdentityarn
    """

    filename: str = option("suppressions.toml", "File to write; it is there for you to change.")
    overwrite: bool = option(False, "Replace a file of that name.", flag=True)
    days: int = option(
        30, "How long they hold, from the day when the verdicts were exported.", min=1, max=366
    )
    preview: tuple[str, ...] = option(
        (), "Past alerts to look at: a file that `to-file` wrote behind `filter`; repeat for more."
    )
    userid_column_name: str = option(
        "",
        "Column of the past alerts and of the logs that says whose event it is.",
        default_display="the first that is known to",
    )
    replay_glob: str | None = option(
        None,
        "CloudTrail files to replay attacks in, as `morpheus tools replay --input_glob` does; "
        "that takes a while.",
    )
    train_data_glob: str | None = option(
        None, "Files to learn from before attacks are replayed; see `morpheus tools replay`."
    )
    techniques: str | None = option(
        None, "Folder of attack techniques to replay. By default those shipped."
    )
    num_threads: int | None = option(
        None,
        "Users tried side by side, at most. No result depends on it.",
        min=1,
        default_display="the cores at hand",
    )


def _run_suppress(options: SuppressOptions, files: Sequence[str]) -> None:
    ready = [name.endswith(".toml") for name in files]
    if any(ready) and not all(ready):
        raise UsageError("VERDICTS: give files of verdicts, or of suppressions, not both.")
    with interruptible():
        if all(ready):
            _preview_only(files, options)
        else:
            _write_proposals(files, options)


VERDICTS_ARGUMENT = click.Argument(["verdicts"], nargs=-1, required=True)
suppress = command_from_dataclass("suppress", SuppressOptions, _run_suppress, VERDICTS_ARGUMENT)


def _preview_only(files: Sequence[str], options: SuppressOptions) -> None:
    """Preview suppressions that are there already."""
    from morpheus.suppressions.rules import Suppressions  # noqa: PLC0415 - the same

    found = preview_rules(Suppressions.read(*files).rules, options)
    print_table(*to_table(found))
    for look in found:
        _print_warnings(look.rule.label, look.warnings)


def _write_proposals(files: Sequence[str], options: SuppressOptions) -> None:
    """Make suppressions, write them, and say what they would hide."""
    from morpheus.storage.atomic import atomic_write  # noqa: PLC0415 - `--help` writes nothing
    from morpheus.suppressions.proposals import (
        Proposals,  # noqa: PLC0415 - the same
        render_suppressions,  # noqa: PLC0415 - the same
    )

    path = Path(options.filename)
    if path.exists() and not options.overwrite:
        raise UsageError(
            f"--filename: there is a file `{path}` already, which somebody may have changed. Give "
            "`--overwrite`, or another --filename; `filter` takes more than one."
        )
    proposals = Proposals.from_files(files, options.days)
    found = preview_rules([one.rule for one in proposals.proposals], options, proposals)
    proposals = proposals.with_objections([(look.conflicts, look.warnings) for look in found])
    with atomic_write(path) as file:
        file.write(render_suppressions(proposals, files).encode())
    print_table(*to_table(found))
    _print_proposals(proposals, path)


def _print_proposals(proposals: Proposals, path: Path) -> None:
    """Say what was written and what was not; refusals are a failure."""
    refused = [one for one in proposals.proposals if one.conflicts]
    for one in proposals.proposals:
        _print_warnings(one.rule.label, one.warnings)
    for verdict in proposals.unactionable:
        echo(
            f"No suppression for incident {verdict.incident}: it names no user, or no value.",
            fg="yellow",
        )
    for one in refused:
        echo(f"Refused: {one.rule.label}: {'; '.join(one.conflicts)}.", fg="red")
    written = format_count(len(proposals.proposals) - len(refused), "suppression")
    echo(f"{written} in {path}. Read them, then: filter --suppressions={path}")
    if refused:
        raise Exit(EXIT_FAILURE)


def _print_warnings(label: str, warnings: Sequence[str]) -> None:
    for doubt in warnings:
        echo(f"Warning: {label}: {doubt}.", fg="yellow")


MAX_ATTACKS_SHOWN = 3
PREVIEW_HEADER = ("SUPPRESSION", "PAST ALERTS", "ATTACKS")
NOT_AVAILABLE = "-"


@dataclass(frozen=True)
class RulePreview:
    """What is known of one suppression.

    Attributes:
        rule: The suppression.
        past_alerts: What it would have held back of past alerts; None where none were given.
        hidden_attacks: Replayed attacks that it would hide, and their users; None where none were
            replayed.
    """

    rule: Suppression
    past_alerts: SuppressionPreview | None
    hidden_attacks: Sequence[str] | None

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Why it must not be."""
        dangerous: Sequence[Verdict] = self.past_alerts.dangerous if self.past_alerts else ()
        return tuple(
            f"it would hide incident {one.incident}, judged {one.verdict}" for one in dangerous
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at."""
        doubts = []
        if self.hidden_attacks:
            more = (
                f" and {len(self.hidden_attacks) - MAX_ATTACKS_SHOWN:,} more"
                if len(self.hidden_attacks) > MAX_ATTACKS_SHOWN
                else ""
            )
            doubts.append(
                f"replayed attacks would be hidden: {', '.join(self.hidden_attacks[:MAX_ATTACKS_SHOWN])}{more}"
            )
        if self.past_alerts and self.past_alerts.num_unjudged:
            doubts.append(
                f"{format_count(self.past_alerts.num_unjudged, 'past event')} would be hidden that nobody has judged"
            )
        if self.past_alerts and self.past_alerts.events.is_empty():
            doubts.append("none of the past alerts would be hidden")
        if self.past_alerts and self.past_alerts.id_columns:
            doubts.append(
                f"no two past alerts have the same {' or '.join(map(display_value, self.past_alerts.id_columns))}, so "
                "that it will hardly come again: better take it out"
            )
        return tuple(doubts)


def preview_rules(
    rules: Sequence[Suppression], options: SuppressOptions, proposals: Proposals | None = None
) -> list[RulePreview]:
    """Look at what each suppression would hide.

    Raises:
        MorpheusError: What the person at the prompt can act on.
    """
    past = _read_past_alerts(rules, options) if options.preview else None
    attacks = _find_hidden_attacks(rules, options) if options.replay_glob is not None else None
    harmless = [one.verdicts for one in proposals.proposals] if proposals else [()] * len(rules)
    dangerous = proposals.dangerous if proposals else ()
    return [
        RulePreview(
            rule,
            None if past is None else preview_rule(rule, past, verdicts, dangerous),
            None if attacks is None else attacks.get(rule.label, ()),
        )
        for rule, verdicts in zip(rules, harmless, strict=True)
    ]


def to_table(previews: Sequence[RulePreview]) -> tuple[Sequence[str], list[list[str]]]:
    """Head and rows."""
    return PREVIEW_HEADER, [
        [look.rule.label, _describe_alerts(look), _describe_attacks(look)] for look in previews
    ]


def _describe_alerts(preview: RulePreview) -> str:
    if preview.past_alerts is None:
        return NOT_AVAILABLE
    parts = {
        "judged harmless": preview.past_alerts.num_benign,
        "not judged": preview.past_alerts.num_unjudged,
    }
    told = [f"{number:,} {what}" for what, number in parts.items() if number]
    return ", ".join(told) or "none"


def _describe_attacks(preview: RulePreview) -> str:
    if preview.hidden_attacks is None:
        return NOT_AVAILABLE
    return f"{len(preview.hidden_attacks):,} hidden" if preview.hidden_attacks else "none"


def _read_past_alerts(rules: Sequence[Suppression], options: SuppressOptions) -> pl.DataFrame:
    """Past alerts, with the columns that suppressions look at."""
    wanted: set[str] = reduce(or_, (set(rule.where) for rule in rules), set())
    files = [Path(name) for name in options.preview]
    frames = [
        rows.select(
            *(pl.col(name).cast(pl.String) for name in rows.columns if name in wanted - {TIME}),
            pl.lit(user, pl.String).alias(POPULATION_USER),
            TIME,
        )
        for user, rows in ResultFiles.from_files(files, options.userid_column_name).iter_by_user()
    ]
    past = pl.concat(frames, how="diagonal")
    if missing := sorted(wanted - set(past.columns)):
        named = ", ".join(map(quote_backtick, missing))
        echo(f"Warning: the past alerts lack {named}, by which suppressions go.", fg="yellow")
    return past


def _find_hidden_attacks(
    rules: Sequence[Suppression], options: SuppressOptions
) -> Mapping[str, list[str]]:
    """Attacks that are caught but for a suppression, by its title."""
    drill = ReplayConfig(
        input_glob=options.replay_glob or "",
        train_data_glob=options.train_data_glob,
        userid_column_name=options.userid_column_name or ReplayConfig.userid_column_name,
        techniques=options.techniques,
        num_threads=options.num_threads,
    )
    batches, _ = run_replay(drill, Suppressions(tuple(rules)))
    trials = evaluate(batches).trials.filter(pl.col(SUPPRESSED_BY).is_not_null())
    found: dict[str, list[str]] = {}
    for title, technique, user in (
        trials.select(SUPPRESSED_BY, "technique", "user").unique(maintain_order=True).iter_rows()
    ):
        found.setdefault(title, []).append(f"{technique} (as {user})")
    return found
