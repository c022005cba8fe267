"""How far a run is, in a file that others can read while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import msgspec

from morpheus.atomic import whole_file
from morpheus.records import Summary
from morpheus.report.account import Account
from morpheus.stage import Settings, Stage

EVERY = 1.0
"""Seconds between two writings, at least."""


class Status(msgspec.Struct, frozen=True):
    """How far a run is.

    Attributes:
        format: Says that it is this.
        version: Of the format.
        running: The run has not come to its end.
        source: Word of the source that reads the logs.
        user_column: Column that says whose event it is.
        filtered: A `filter` stands in the chain: what is written are alerts.
        alerts_per_day: Its budget, where it has one.
        account: What has become of the events so far.
        held: Events that each suppression has held back, by its title.
    """

    format: Literal["morpheus-status"]
    version: Literal[1]
    running: bool
    source: str
    user_column: str
    filtered: bool
    alerts_per_day: float | None
    account: Account
    held: dict[str, int] = {}


@dataclass
class StatusFile:
    """Writes the status of a run, now and then.

    Attributes:
        path: The file; it is replaced as a whole.
        settings: Those of the chain.
        filters: Its filters.
    """

    path: Path
    settings: Settings
    filters: Sequence[Stage]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._due = self.clock()

    @classmethod
    def of(cls, path: str, stages: Sequence[Stage]) -> Self:
        """Write the status of a chain, whose stages have their settings."""
        filters = [stage for stage in stages if stage.name == "filter"]
        return cls(Path(path), stages[0].settings, filters)

    def tell(self, summary: Summary, *, running: bool) -> None:
        """Write the status; while it runs, only if some time has passed."""
        if running and self.clock() < self._due:
            return
        budgets = [
            budget for one in self.filters if (budget := getattr(one, "alerts_per_day", None))
        ]
        status = Status(
            "morpheus-status",
            1,
            running=running,
            source=self.settings.source,
            user_column=self.settings.userid_column_name,
            filtered=bool(self.filters),
            alerts_per_day=budgets[-1] if budgets else None,
            account=_account(summary),
            held=dict(summary.held.most_common()),
        )
        with whole_file(self.path) as file:
            file.write(msgspec.json.encode(status))
        self._due = self.clock() + EVERY


def _account(summary: Summary) -> Account:
    reasons, stated = Counter[str](), None
    for user, reason in summary.unscored.items():
        reasons[reason] += summary.users[user]
    if summary.spending is not None:
        forecast = summary.spending.forecast
        stated = forecast.alerts, forecast.low, forecast.high
    return Account(
        read=summary.input.read,
        refused=summary.input.refused,
        duplicates=summary.input.duplicates,
        scored=summary.scored + summary.filtered,
        unscored=dict(reasons.most_common()),
        training=summary.training.read,
        rungs=dict(Counter(card.rung for card in summary.cards.values()).most_common()),
        forecast=stated,
        refusals=summary.input.refusals,
    )
