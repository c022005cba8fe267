"""An event that someone should look at, as every form of alert needs it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec

from morpheus.columns import RHYTHM, RISK, TIME, Explained
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.quoting import legible
from morpheus.records import Batch
from morpheus.sinks.traits import LOGS_WITH_IDS, PROVIDERS, Traits

VENDOR = PRODUCT = "morpheus"
VERSION = version(PRODUCT)
HIGH, MEDIUM = 0.02, 0.1
"""Share of a user's held-out events at least as risky, up to which an alert is so severe."""

_ID = 32  # hexadecimal digits of an id: 128 bits
_LONG = 128  # signs of a user's name in a title


@dataclass(frozen=True)
class Alert:
    """One event, why it is strange, and who caused it.

    Attributes:
        id: The same for the same event in each run, whatever the fingerprint says of it.
        user: Whose event it is; None where the log names nobody.
        time: When it happened.
        source: Word of the source it was read by.
        event: Its own columns, as text, without those that are empty.
        scores: What `add-scores` says of it, by label, without what is no number.
        reason: Why it is strange, in one sentence; None without `explain`.
        columns: The columns named in it.
        why: All that `explain` says.
        rhythm: Whether it breaks its user's rhythm; None where nothing looked at it.
        rung: Whose history it is compared with; None without a fingerprint.
    """

    id: str
    user: str | None
    time: datetime
    source: str
    event: Mapping[str, str]
    scores: Mapping[str, float]
    reason: str | None = None
    columns: tuple[str, ...] = ()
    why: Explanation | None = None
    rhythm: bool | None = None
    rung: str | None = None

    @cached_property
    def traits(self) -> Traits:
        """What the event says of itself."""
        return Traits.of(self.event)

    @property
    def provider(self) -> str | None:
        """Whose cloud it happened in, `aws` or `azure`; None outside."""
        return PROVIDERS.get(self.source)

    @property
    def title(self) -> str:
        """A line that names the user and the columns, fit to be shown."""
        who = legible(self.user, _LONG) if self.user is not None else "no user"
        if self.columns:
            return f"{who}: unusual {', '.join(legible(name) for name in self.columns)}"
        return f"{who}: {'break of rhythm' if self.rhythm else 'unusual event'}"

    @property
    def text(self) -> str:
        """The reason, or else the title."""
        return self.reason or self.title

    @property
    def risk(self) -> float | None:
        """Its risk; None where it has none."""
        return self.scores.get(RISK)

    @property
    def severity(self) -> int:
        """4 high, 3 medium, 2 low, 1 without a score, 0 where scores do not say.

        It goes by `pvalue`; the numbers are those of OCSF.
        """
        if not self.scores:
            return 1
        chance = self.scores.get("pvalue")
        if chance is None:
            return 0
        return 4 if chance <= HIGH else 3 if chance <= MEDIUM else 2

    @property
    def original(self) -> str:
        """The event's own columns, as JSON text."""
        return msgspec.json.encode(self.event).decode()


@dataclass
class Alerts:
    """Makes alerts of events, and tells apart events that are alike.

    Args:
        stage: The word of the sink, for messages.
        source: The word of the source.
    """

    stage: str
    source: str
    _moment: tuple[str | None, datetime] | None = None
    _seen: Counter[str] = field(default_factory=Counter)

    def of(self, batch: Batch) -> Iterator[Alert]:
        """Make an alert of each event.

        Raises:
            UsageError: `serialize` has left out the time.
        """
        frame = batch.frame
        if TIME not in frame.columns:
            raise UsageError(
                f"{self.stage}: events have no column `{TIME}` here: `serialize` left it out. Put "
                f"`{self.stage}` before `serialize`, or choose the column too: "
                f"`serialize --include={TIME}`."
            )
        words = Explained.among(frame.columns)
        for row in frame.iter_rows(named=True):
            event = {name: str(row[name]) for name in batch.own if row[name] is not None}
            yield Alert(
                id=self._id(batch.user, row[TIME], event),
                user=batch.user,
                time=row[TIME],
                source=self.source,
                event=event,
                scores=_scores(batch.scores, row),
                rhythm=row.get(RHYTHM),
                rung=batch.card.rung if batch.card is not None else None,
                **_explained(row, words),
            )

    def _id(self, user: str | None, time: datetime, event: Mapping[str, str]) -> str:
        """A digest of who, when and what; of events alike in all of it, their number as well."""
        known = Traits.of(event).event if self.source in LOGS_WITH_IDS else None
        if self._moment != (user, time):
            self._moment = user, time
            self._seen.clear()
        what = digest(self.source, user, time.isoformat(), known or sorted(event.items()))
        self._seen[what] += 1
        return what if self._seen[what] == 1 else digest(what, self._seen[what])


def digest(*parts: object) -> str:
    """A short checksum of anything that is JSON.

    >>> digest("ann", 1) == digest("ann", 1) != digest("ann", 2)
    True
    """
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_ID]


def _scores(labels: Sequence[str], row: Mapping[str, Any]) -> dict[str, float]:
    found = {label: row.get(label) for label in labels}
    return {
        label: value
        for label, value in found.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def _explained(row: Mapping[str, Any], words: Explained | None) -> dict[str, Any]:
    if words is None:
        return {}
    named, why = row.get(words.top_columns), row.get(words.explanation)
    return {
        "reason": row.get(words.reason),
        "columns": tuple(named.split(", ")) if named else (),
        "why": msgspec.json.decode(why, type=Explanation) if why else None,
    }
