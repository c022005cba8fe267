"""What suppressions would hide, for the screen: of past alerts, and of attacks replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import polars as pl

from morpheus.cli.screen import say
from morpheus.cli.summary import count
from morpheus.cli.suppress import Suppress
from morpheus.columns import POPULATION_USER, TIME
from morpheus.quoting import display_value, quote_backtick
from morpheus.replay.drill import Drill
from morpheus.replay.outcome import HIDDEN, judged
from morpheus.replay.trials import run
from morpheus.review.outputs import Outputs
from morpheus.suppressions.preview import SuppressionPreview, preview_rule
from morpheus.suppressions.rules import Suppression, Suppressions
from morpheus.suppressions.verdicts import Proposals, Verdict

SHOWN = 3
HEAD = ("SUPPRESSION", "PAST ALERTS", "ATTACKS")
UNKNOWN = "-"


@dataclass(frozen=True)
class Look:
    """What is known of one suppression.

    Attributes:
        rule: The suppression.
        past: What it would have held back of past alerts; None where none were given.
        attacks: Replayed attacks that it would hide, and their users; None where none were
            replayed.
    """

    rule: Suppression
    past: SuppressionPreview | None
    attacks: Sequence[str] | None

    @property
    def against(self) -> tuple[str, ...]:
        """Why it must not be."""
        dangerous: Sequence[Verdict] = self.past.dangerous if self.past else ()
        return tuple(
            f"it would hide incident {one.incident}, judged {one.verdict}" for one in dangerous
        )

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a person should look at."""
        doubts = []
        if self.attacks:
            more = f" and {len(self.attacks) - SHOWN:,} more" if len(self.attacks) > SHOWN else ""
            doubts.append(
                f"replayed attacks would be hidden: {', '.join(self.attacks[:SHOWN])}{more}"
            )
        if self.past and self.past.num_unjudged:
            doubts.append(
                f"{count(self.past.num_unjudged, 'past event')} would be hidden that nobody has judged"
            )
        if self.past and self.past.events.is_empty():
            doubts.append("none of the past alerts would be hidden")
        if self.past and self.past.id_columns:
            doubts.append(
                f"no two past alerts have the same {' or '.join(map(display_value, self.past.id_columns))}, so "
                "that it will hardly come again: better take it out"
            )
        return tuple(doubts)


def looks(
    rules: Sequence[Suppression], options: Suppress, proposals: Proposals | None = None
) -> list[Look]:
    """Look at what each suppression would hide.

    Raises:
        MorpheusError: What the person at the prompt can act on.
    """
    past = _past(rules, options) if options.preview else None
    attacks = _attacks(rules, options) if options.replay_glob is not None else None
    harmless = [one.verdicts for one in proposals.proposals] if proposals else [()] * len(rules)
    dangerous = proposals.dangerous if proposals else ()
    return [
        Look(
            rule,
            None if past is None else preview_rule(rule, past, verdicts, dangerous),
            None if attacks is None else attacks.get(rule.label, ()),
        )
        for rule, verdicts in zip(rules, harmless, strict=True)
    ]


def table(found: Sequence[Look]) -> tuple[Sequence[str], list[list[str]]]:
    """Head and rows."""
    return HEAD, [[look.rule.label, _alerts(look), _attacked(look)] for look in found]


def _alerts(look: Look) -> str:
    if look.past is None:
        return UNKNOWN
    parts = {"judged harmless": look.past.num_benign, "not judged": look.past.num_unjudged}
    told = [f"{number:,} {what}" for what, number in parts.items() if number]
    return ", ".join(told) or "none"


def _attacked(look: Look) -> str:
    if look.attacks is None:
        return UNKNOWN
    return f"{len(look.attacks):,} hidden" if look.attacks else "none"


def _past(rules: Sequence[Suppression], options: Suppress) -> pl.DataFrame:
    """Past alerts, with the columns that suppressions look at."""
    wanted: set[str] = reduce(or_, (set(rule.where) for rule in rules), set())
    files = [Path(name) for name in options.preview]
    frames = [
        rows.select(
            *(pl.col(name).cast(pl.String) for name in rows.columns if name in wanted - {TIME}),
            pl.lit(user, pl.String).alias(POPULATION_USER),
            TIME,
        )
        for user, rows in Outputs.of(files, options.userid_column_name).by_user()
    ]
    past = pl.concat(frames, how="diagonal")
    if missing := sorted(wanted - set(past.columns)):
        named = ", ".join(map(quote_backtick, missing))
        say(f"Warning: the past alerts lack {named}, by which suppressions go.", fg="yellow")
    return past


def _attacks(rules: Sequence[Suppression], options: Suppress) -> Mapping[str, list[str]]:
    """Attacks that are caught but for a suppression, by its title."""
    drill = Drill(
        input_glob=options.replay_glob or "",
        train_data_glob=options.train_data_glob,
        userid_column_name=options.userid_column_name or Drill.userid_column_name,
        techniques=options.techniques,
        num_threads=options.num_threads,
    )
    batches, _ = run(drill, Suppressions(tuple(rules)))
    trials = judged(batches).trials.filter(pl.col(HIDDEN).is_not_null())
    found: dict[str, list[str]] = {}
    for title, technique, user in (
        trials.select(HIDDEN, "technique", "user").unique(maintain_order=True).iter_rows()
    ):
        found.setdefault(title, []).append(f"{technique} (as {user})")
    return found
