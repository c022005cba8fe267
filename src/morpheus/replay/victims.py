"""What is usual of a user, so that an intruder can be given the user's name and habits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import polars as pl

from morpheus.columns import ACTOR, TIME
from morpheus.sources.actors import collect_rule_columns
from morpheus.sources.cloudtrail_actors import ACTOR_RULES

IDENTITY, AGENT, ADDRESS = "userIdentity", "userAgent", "sourceIPAddress"
INVOKED = "userIdentityinvokedBy"
CLIENT = (AGENT, ADDRESS, "vpcEndpointId", "vpcEndpointAccountId")
"""What says from where, and with what, a call is made."""
ACTION = ("requestParameters", "responseElements", "additionalEventData", "error", "resources")
"""How the columns begin that tell what is done; a log without any value there may get its first."""
SERVICES = ("signin.amazonaws.com", "iam.amazonaws.com", "organizations.amazonaws.com")
"""Services whose events all lie in one region, whatever the user's own is."""
GLOBAL_REGION = "us-east-1"
HOST = "tlsDetailsclientProvidedHostHeader"
FORM = ("apiVersion", HOST)
"""Columns that hang on the service called, and on how the log is written."""
_DIGITS = re.compile(r"\d{12}")

Values = Mapping[str, str | None]


@dataclass(frozen=True)
class Victim:
    """A user in whose name techniques are replayed.

    Attributes:
        user: Whose name.
        column: Column of the user.
        filled: Columns in which the user's log has any value.
        hours: Hours of the day, in UTC, in which the user has been active.
        region: The user's usual region.
        forms: By column of `FORM`, its usual value for each service that the user has called.
    """

    user: str
    column: str
    filled: frozenset[str]
    hours: frozenset[int]
    region: str
    forms: Mapping[str, Values]

    @classmethod
    def of(cls, user: str, column: str, events: pl.DataFrame) -> Self:
        """Learn what is usual from all that is known of a user.

        Args:
            user: Whose events.
            column: Column that names the user.
            events: History and held-out events, flat.
        """
        texts = [name for name in events.columns if events.schema[name] == pl.String]
        filled = frozenset(name for name in texts if events[name].null_count() < events.height)
        hours = frozenset(events[TIME].dt.hour().to_list())
        forms = {
            name: _by_service(name, events) for name in FORM if {name, "eventSource"} <= filled
        }
        return cls(user, column, filled, hours, _region(events), forms)

    def identity(self, names: Sequence[str]) -> list[str]:
        """Those columns that say who calls."""
        own = {"recipientAccountId", self.column}
        if self.column == ACTOR:
            own |= {*collect_rule_columns(ACTOR_RULES)} - {"eventSource"}
        return [name for name in names if name.startswith(IDENTITY) or name in own]

    def persona(self, day: pl.DataFrame) -> dict[str, str | None]:
        """Who the user was, from where and with what, in most of a day's events."""
        client = [name for name in CLIENT if name in day.columns]
        usual = most_usual(own_calls(day), [*self.identity(day.columns), *client])
        return {**usual, self.column: self.user}

    def region_of(self, service: str) -> str:
        """Where calls of a service are recorded."""
        return GLOBAL_REGION if service in SERVICES else self.region


def own_calls(events: pl.DataFrame) -> pl.DataFrame:
    """Leave out what services did in the user's name; keep everything where that is all."""
    made = pl.lit(value=True)
    if INVOKED in events.columns:
        made &= pl.col(INVOKED).is_null()
    if ADDRESS in events.columns:
        service = pl.col(ADDRESS).str.contains(r"amazonaws\.com$|^AWS Internal$")
        made &= ~service.fill_null(value=False)
    own = events.filter(made)
    return own if own.height else events


def most_usual(events: pl.DataFrame, names: Sequence[str]) -> dict[str, str | None]:
    """The combination of values that the most events have; of equals, the first in order of text.

    >>> day = pl.DataFrame({"agent": ["cli", "web", "web"], "from": ["a", "b", "b"]})
    >>> most_usual(day, ["agent", "from", "region"])
    {'agent': 'web', 'from': 'b'}
    """
    there = [name for name in names if name in events.columns]
    if not there or not events.height:
        return {}
    counted = (
        events.group_by(there)
        .len("_many_")
        .sort("_many_", *there, descending=[True] + [False] * len(there))
    )
    return counted.drop("_many_").row(0, named=True)


def account_of(persona: Values) -> str | None:
    """The account's digits, however the log writes it.

    >>> account_of({"userIdentityaccountId": "Account-123456789012"})
    '123456789012'
    """
    for name in ("userIdentityaccountId", "recipientAccountId", "userIdentityarn"):
        found = _DIGITS.search(persona.get(name) or "")
        if found:
            return found[0]
    return None


def name_of(persona: Values, user: str) -> str:
    """The name that others would write into a request.

    >>> name_of({"userIdentityarn": "arn:aws:iam::123456789012:user/team/ann"}, "Account-1")
    'ann'
    """
    for name in ("userIdentityuserName", "userIdentitysessionContextsessionIssueruserName"):
        if value := persona.get(name):
            return value
    arn = persona.get("userIdentityarn")
    return arn.rpartition("/")[2] if arn and "/" in arn else user


def _region(events: pl.DataFrame) -> str:
    """The usual region, which addresses of services tell where nothing else does."""
    if usual := most_usual(events, ["awsRegion"]).get("awsRegion"):
        return usual
    if HOST not in events.columns:
        return GLOBAL_REGION
    told = events.select(pl.col(HOST).str.extract(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws"))
    return most_usual(told.drop_nulls(), [HOST]).get(HOST) or GLOBAL_REGION


def _by_service(name: str, events: pl.DataFrame) -> Values:
    """The usual value of a column for each service."""
    counted = events.group_by("eventSource", name).len()
    ordered = counted.sort("len", name, descending=[False, True])
    return dict(ordered.select("eventSource", name).iter_rows())
