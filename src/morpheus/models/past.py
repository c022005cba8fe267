"""What is remembered of a user's events, and what it adds to the risk of the next ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from morpheus.models.context import Context, Recent, Strange, Values, Weighed
from morpheus.models.evidence import DECIMALS
from morpheus.models.explanation import WORTH, Preceding, decimals
from morpheus.models.twins import told_apart


@dataclass
class Past:
    """What is remembered of a user's earlier events; fed in time order, in pieces of any size."""

    context: Context = field(default_factory=Context)
    recent: Recent = field(default_factory=Recent)
    columns: defaultdict[int, Recent] = field(default_factory=lambda: defaultdict(Recent))

    def before(
        self,
        strange: Strange,
        shared: Strange,
        marked: NDArray[np.bool_],
        seconds: Values,
        usual_hour: float,
    ) -> Before:
        """Look back from some events.

        Args:
            strange: How strange they are.
            shared: The same, by way of values that others have too.
            marked: Which of them are strange enough to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).
            usual_hour: As in `Context.weighed`.
        """
        columns = marked[:, None] & (strange.columns >= WORTH)
        each = [self.columns[c].before(column, seconds) for c, column in enumerate(columns.T)]
        weighed = self.context.weighed(strange, shared, seconds, usual_hour)
        return Before(weighed, self.recent.before(marked, seconds), np.stack(each, axis=-1))


@dataclass(frozen=True)
class Part:
    """What a column adds to the risk of an event; as in `explanation.Fact`.

    Attributes:
        column: Its place.
        risk: Its part of the event's risk.
        loudest: Its part of the largest of own, hour and month.
        strange_before: Strange events before in which it was strange.
        twins: Columns that say the same.
    """

    column: int
    risk: float
    loudest: float
    strange_before: int
    twins: tuple[int, ...]


@dataclass(frozen=True)
class Before:
    """What came before each of some events.

    Attributes:
        weighed: The risk, and what each column, now and before, adds to it.
        strange: Strange events in the hour and in the month before, (2, rows).
        columns: Those in which each column was strange, (2, rows, C).
    """

    weighed: Weighed
    strange: NDArray[np.int64]
    columns: NDArray[np.int64]

    def of_event(self, event: int) -> Preceding:
        """The same of one event; what it is made of adds up in decimals."""
        risk = decimals(self.weighed.risk[event])
        hour, month = (decimals(part.sum()) for part in self.weighed.parts[1:, event])
        own, strange = decimals(risk - (hour + month)), self.strange[:, event].tolist()
        return Preceding(risk, own, hour, month, *strange)

    def parts(self, event: int, twins: Sequence[int], most: int | None) -> list[Part]:
        """What the columns add to an event, the largest part first.

        Args:
            event: Its place.
            twins: For each column the first one that says the same.
            most: So many columns, as far as they add anything and leaving out those that say the
                same as one before; None for all columns.
        """
        loudest = self.of_event(event).loudest
        parts = self.weighed.parts[:, event].round(DECIMALS)
        order = np.argsort(-parts[loudest], kind="stable").tolist()
        leads = dict(told_apart([c for c in order if parts[loudest, c] > 0], twins))
        risks = self.weighed.parts[:, event].sum(0)
        return [
            Part(
                column=c,
                risk=decimals(risks[c]),
                loudest=float(parts[loudest, c]),
                strange_before=int(self.columns[loudest - 1, event, c]) if loudest else 0,
                twins=tuple(leads.get(c, ())),
            )
            for c in (order if most is None else islice(leads, most))
        ]
