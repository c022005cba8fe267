"""What is to be replayed, on whom, and what would do: the options of `morpheus tools replay`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, ip_address
from typing import Any, Self
from uuid import UUID

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, RISK, ROW, SCORE, TIME
from morpheus.core.stage import option
from morpheus.models.training import derive_user_seed
from morpheus.replay.techniques import Record, Technique
from morpheus.sources.cloudtrail import ACTOR_RULES, CLOUDTRAIL_FORMAT
from morpheus.sources.json_records import Flattener
from morpheus.sources.log_format import DerivedFeatures, collect_rule_columns, resolve_derived
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT

GRADES = ("recorded", "agent", "hours")
"""How well the intruder hides: behind the victim's credentials only; also on the victim's machine,
with the victim's programs; and then at the victim's hours."""
RECORDED, HOURS = GRADES[0], GRADES[-1]
RANKINGS = (RISK, SCORE, "zscore", "max_abs_z", "mean_abs_z")
"""Labels of which more is more unusual."""
FORMATS = ("table", "csv", "json")


@dataclass(frozen=True)
class Drill:
    r"""Would we have caught it? Replay attack techniques in the name of each user, and see.

    Learns each user as `train-ae` does, injects each technique into one of the user's later days,
    and scores it among the user's own events. A technique is caught when one of its events scores
    higher than the budget of alerts lets the user's own events of these days do. stdout has the
    share of techniques caught, or each trial with `--output_format`.

        morpheus tools replay --train_data_glob="may/*.json.gz" --input_glob="june/*.json.gz" \
            --userid_column_name=userIdentityarn --min_recall 0.8
    """

    input_glob: str = option(
        "",
        "CloudTrail files to inject into, read as `from-cloudtrail` does. They should hold no "
        "attack: a glob in quotes, a file or a folder.",
        required=True,
    )
    train_data_glob: str | None = option(
        None,
        "Files to learn from, earlier than the input. Without it, the last quarter of the "
        "input's days is injected into, and the rest learnt from.",
    )
    pretrained_filename: str | None = option(
        None, "Folder of fingerprints that `train-ae` saved; nothing is trained."
    )
    userid_column_name: str = option(
        "userIdentityaccountId",
        f"Column that says whose event it is; `{ACTOR_OPTION}` finds out who acted.",
    )
    userid_filter: str | None = option(None, "Try the techniques on this user only.")
    columns_file: str | None = option(
        None, "File of feature columns, one name a line. By default the list shipped."
    )
    train_min_history: int = option(
        300, "Events of history that a user needs; fewer are filled up as `train-ae` does.", min=1
    )
    bad_record: str = option(
        "fail",
        "What becomes of a record that cannot be read: the run fails, or it is left out.",
        choices=("fail", "skip"),
    )
    techniques: str | None = option(
        None,
        "Folder with a JSON file of CloudTrail records for each technique. By default those "
        "shipped.",
    )
    grade: tuple[str, ...] = option(
        (),
        "How well the intruder hides; repeat for more. `recorded`: behind the user's credentials; "
        "`agent`: with the user's agent and address besides; `hours`: and at the user's hours. By "
        "default all three.",
        choices=GRADES,
    )
    label: str = option(RISK, "Score of `add-scores` to go by.", choices=RANKINGS)
    alerts_per_day: float | None = option(
        None,
        "Alerts that one is ready to look at each day, shared evenly by the users tried.",
        min=0.0,
        default_display="one for each user and week",
    )
    min_recall: float | None = option(
        None,
        "End with exit code 1 if a smaller share of all trials is caught.",
        min=0.0,
        max=1.0,
    )
    suppressions: tuple[str, ...] = option(
        (),
        "File of suppressions, as of `filter`: a technique whose alerts they would all hold back "
        "is not caught; repeat for more.",
    )
    seed: int = option(0, "Seed of what is drawn, and of the training.", min=0)
    num_threads: int | None = option(
        None,
        "Users tried side by side, at most. No result depends on it.",
        min=1,
        default_display="the cores at hand",
    )
    output_format: str = option(
        "table",
        "What to write: a `table` of the shares caught, or each trial as `csv` or `json`.",
        choices=FORMATS,
    )
    filename: str | None = option(
        None,
        "File for each trial, `.csv` or `.json`; one of that name is replaced. stdout then has the "
        "table.",
    )

    @property
    def grades(self) -> tuple[str, ...]:
        """The grades to try, from the easiest to the hardest to catch."""
        wanted = {each.lower() for each in self.grade}
        return tuple(each for each in GRADES if not wanted or each in wanted)


NEUTRAL = "ops"
"""Stands where a name told on the recording."""
BROWSER = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/127.0.0.0 Safari/537.36"
)
SCRIPT = "aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.5 md/GOOS#linux md/GOARCH#amd64"
_RECORDERS = re.compile(
    r"stratus[-_ ]?red[-_ ]?team|stratus|red[-_ ]?team|terraform|hashicorp|grimoire|pulumi"
    r"|malicious|backdoor|attacker|evil",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"\([^)]*\)|\S+")
_NUMERIC = re.compile(r"[\d.]+|[0-9a-fA-F]*:[0-9a-fA-F:.]+")


def tells(text: str) -> bool:
    """Whether a text names a tool that records attacks, or calls itself an attack.

    >>> tells("arn:aws:iam::123456789012:user/Stratus-Red-Team-user"), tells("AttachUserPolicy")
    (True, False)
    """
    return _RECORDERS.search(text) is not None


def neutral(text: str) -> str:
    """Call what tells on the recording by another name.

    >>> neutral("stratus-red-team-get-usr-data-role")
    'ops-get-usr-data-role'
    """
    return _RECORDERS.sub(NEUTRAL, text)


def clean_agent(agent: str, *, browser: bool) -> str:
    """Take the recorder's products, and their comments, out of a user agent.

    What is left of it is what an intruder would have had; where nothing is left, a plain browser or
    program stands in.

    >>> clean_agent("APN/1.0 Terraform/1.1 (+https://terraform.io) aws-sdk-go/1", browser=False)
    'APN/1.0 aws-sdk-go/1'
    >>> clean_agent("stratus-red-team_1b9c", browser=True)[:11]
    'Mozilla/5.0'
    """
    left = " ".join(part for part in _PRODUCT.findall(agent) if not tells(part))
    return left or (BROWSER if browser else SCRIPT)


def is_numeric(address: str) -> bool:
    """Whether an address is a number, as opposed to the name of a service."""
    return _NUMERIC.fullmatch(address) is not None


def public(address: str, seed: int) -> str:
    """Give an address that some host can have: the same one unless it is reserved or malformed.

    >>> public("8.8.8.8", 0), public("AWS Internal", 0)
    ('8.8.8.8', 'AWS Internal')
    >>> public("203.0.113.9", 0) == public("203.0.113.9", 0) != public("253.0.0.07", 0)
    True
    """
    if not is_numeric(address) or is_public(address):
        return address
    rng = np.random.default_rng(derive_user_seed(seed, address))
    while True:
        drawn = str(IPv4Address(int(rng.integers(1 << 24, 224 << 24))))
        if is_public(drawn):
            return drawn


def is_public(address: str) -> bool:
    """Whether an address can be met on the internet.

    >>> is_public("8.8.8.8"), is_public("192.0.2.1"), is_public("035.249.253.232")
    (True, False, False)
    """
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def rewrite(value: Any, text: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON value
    """Rewrite every text in a JSON value; names of fields stay.

    >>> rewrite({"a": ["x", 1, {"b": "y"}]}, str.upper)
    {'a': ['X', 1, {'b': 'Y'}]}
    """
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [rewrite(one, text) for one in value]
    if isinstance(value, dict):
        return {name: rewrite(one, text) for name, one in value.items()}
    return value


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


STRANGER = "111122223333"
"""Account of a victim whose log names none."""
_KEPT = ("eventVersion", "eventTime", "eventSource", "eventName", "eventType", "userIdentity")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_KEY = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


@dataclass(frozen=True)
class Retelling:
    """How the records of a technique become those of a victim.

    Wherever the intruder's account, name, access key or region stand in a record, the victim's
    stand instead; every other key and UUID becomes a fresh one, always the same for the same.

    Attributes:
        technique: Whose records.
        victim: In whose name.
        persona: Who the victim is on that day; see `Victim.persona`.
        seed: Of the fresh ids.
    """

    technique: Technique
    victim: Victim
    persona: Values
    seed: int

    def records(self) -> Iterator[Record]:
        """The records, in order; times and identities, which others set, as they were."""
        for record in self.technique.records:
            told = {n: v if n in _KEPT else rewrite(v, self._text) for n, v in record.items()}
            yield told | self._client(record) | {"awsRegion": self._region(record)}

    def fresh(self, old: str) -> np.random.Generator:
        """What draws the stand-in of an id."""
        return np.random.default_rng(derive_user_seed(self.seed, f"{self.victim.user}\n{old}"))

    def _client(self, record: Record) -> Record:
        browser = record["eventSource"].startswith("signin.")
        agent, address = (str(record.get(n) or "") for n in ("userAgent", "sourceIPAddress"))
        return {
            "userAgent": clean_agent(agent, browser=browser),
            "sourceIPAddress": public(address, self.seed) or None,
        }

    def _region(self, record: Record) -> str:
        return self.victim.region_of(record["eventSource"])

    def _text(self, text: str) -> str:
        for region in self._regions:
            text = text.replace(region, self.victim.region)
        text = self._names.sub(lambda found: self._known[found[0]], text)
        return _UUID.sub(self._uuid, _KEY.sub(self._key, neutral(text)))

    def _key(self, found: re.Match[str]) -> str:
        if found[0] in {*self.persona.values()}:
            return found[0]
        letters = self.fresh(found[0]).integers(len(_LETTERS), size=16)
        return found[0][:4] + "".join(_LETTERS[at] for at in letters)

    def _uuid(self, found: re.Match[str]) -> str:
        return str(UUID(bytes=self.fresh(found[0]).bytes(16), version=4))

    @cached_property
    def _regions(self) -> list[str]:
        """The intruder's regions, longest first, so that none hides in another."""
        recorded = {str(one["awsRegion"]) for one in self.technique.records if "awsRegion" in one}
        return sorted(recorded, key=lambda region: (-len(region), region))

    @cached_property
    def _known(self) -> dict[str, str]:
        """What names the intruder -> what names the victim."""
        first = self.technique.records[0]["userIdentity"]
        account = account_of(self.persona) or STRANGER
        name = name_of(self.persona, self.victim.user)
        known: dict[str | None, str | None] = {first.get("userName"): name}
        for part in ("arn", "principalId", "accessKeyId"):
            known[first.get(part)] = self.persona.get(f"userIdentity{part}")
        for record in self.technique.records:
            known[record["userIdentity"].get("accountId")] = account
            known[record.get("recipientAccountId")] = account
        return {old: new for old, new in known.items() if old and new}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        longest = sorted(self._known, key=lambda name: (-len(name), name))
        any_of = "|".join(map(re.escape, longest)) or r"(?!)"
        return re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-])")


INJECTED = "injected"
"""Column that says which events were injected."""
DAY = timedelta(days=1)


def inject(
    events: pl.DataFrame, technique: Technique, victim: Victim, grade: str, seed: int = 0
) -> pl.DataFrame:
    """Inject a technique into one of the days that a victim's events cover.

    The day, and the time of the first record on it, are drawn from the seed and the names of victim
    and technique; order and spacing of the records stay. At every grade the calls are made with the
    victim's identity, in the victim's account and region, under fresh ids and without tell-tales.

    Args:
        events: Events of the victim, flat, in time order, at least one; those of a single day to
            choose the day.
        technique: What to inject.
        victim: What is usual of the user, from all that is known.
        grade: One of `GRADES`.
        seed: Of what is drawn.

    Returns:
        All events in time order, with the columns of `events` and the boolean `INJECTED`.

    Raises:
        ValueError: There is no such grade; or the technique lasts longer than the victim is ever
            active, so that no time is right for grade `hours`.
    """
    if grade not in GRADES:
        raise ValueError(f"there is no grade {grade!r}; use one of {', '.join(GRADES)}")
    start = starting(events, technique, victim, grade, seed)
    if start is None:
        raise ValueError(f"{technique.name} lasts longer than {victim.user!r} is ever active")
    return put(events, called(events, technique, victim, grade, start=start, seed=seed))


def starting(
    events: pl.DataFrame, technique: Technique, victim: Victim, grade: str, seed: int = 0
) -> datetime | None:
    """Draw the time of the first injected event; None where no time is right. See `inject`."""
    rng = np.random.default_rng(derive_user_seed(seed, f"{victim.user}\n{technique.name}"))
    days = events[TIME].dt.truncate("1d").unique().sort().to_list()
    day = days[int(rng.integers(len(days)))]
    if grade == HOURS:
        return _at_its_hours(events, day, technique, victim, rng)
    room = max(1, int((DAY - technique.lasts).total_seconds()))
    start: datetime = day + timedelta(seconds=int(rng.integers(room)))
    return start


def called(  # noqa: PLR0913 - what injected events depend on, and nothing else
    events: pl.DataFrame,
    technique: Technique,
    victim: Victim,
    grade: str,
    *,
    start: datetime,
    seed: int = 0,
) -> pl.DataFrame:
    """Retell a technique as events of the victim, from `start` on. See `inject`."""
    day = day_of(events, start)
    persona = victim.persona(day if day.height else events)
    own = victim.identity(events.columns) + ([] if grade == RECORDED else list(CLIENT))
    retelling = Retelling(
        technique, victim, persona, derive_user_seed(seed, f"{technique.name}\n{start}")
    )
    frame = _flattened(retelling, events)
    times = pl.Series(TIME, [start + offset for offset in technique.offsets], events.schema[TIME])
    written = {
        **_as_written(frame, victim),
        **{name: pl.repeat(persona.get(name), frame.height, eager=True) for name in own},
        "eventTime": times.dt.strftime(DEFAULT_TIME_FORMAT),
        TIME: times,
        ROW: pl.repeat(0, frame.height, eager=True),
        INDEX: pl.repeat(-1, frame.height, eager=True),
    }
    types = events.schema.items()
    return pl.DataFrame({name: written[name].cast(kind) for name, kind in types})


def put(events: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """Put events among others, by time, behind those of the same time; `INJECTED` tells them."""
    parts = [
        each.with_columns(pl.lit(value=injected).alias(INJECTED))
        for each, injected in ((events, False), (more, True))
    ]
    both = pl.concat(parts).sort(TIME, maintain_order=True)
    if ROW not in both.columns:
        return both
    numbers = pl.int_range(both.height, eager=True) + events[ROW].min()
    return both.with_columns(numbers.cast(events.schema[ROW]).alias(ROW))


def day_of(events: pl.DataFrame, time: datetime) -> pl.DataFrame:
    """The events on the day of that time, in UTC."""
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return events.filter(pl.col(TIME).is_between(day, day + DAY, closed="left"))


def _at_its_hours(
    events: pl.DataFrame,
    day: datetime,
    technique: Technique,
    victim: Victim,
    rng: np.random.Generator,
) -> datetime | None:
    """The time of one of the user's own events, of that day if one is right."""
    for some in (day_of(events, day), events):
        times = some[TIME].to_list()
        for at in rng.permutation(len(times)):
            start: datetime = times[at].replace(microsecond=0)
            if {(start + offset).hour for offset in technique.offsets} <= victim.hours:
                return start
    return None


def _flattened(retelling: Retelling, events: pl.DataFrame) -> pl.DataFrame:
    """The records with the columns of events; those that no record has are empty."""
    added = {
        ROW,
        INDEX,
        TIME,
        ACTOR,
        *resolve_derived(events.columns, CLOUDTRAIL_FORMAT.derived_columns),
    }
    flattener = _flattener(tuple(name for name in events.columns if name not in added))
    frame, _ = flattener.flatten([msgspec.json.encode(one) for one in retelling.records()])
    return frame.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in events.schema.items() if name in added
    )


def derived_anew(window: pl.DataFrame, seen: pl.DataFrame, column: str) -> pl.DataFrame:
    """Derive the derived columns of some of a user's events, injected ones among them.

    Args:
        window: The events.
        seen: All that is known of the user; what lies before the window counts.
        column: Column of the user.
    """
    derived = resolve_derived(window.columns, CLOUDTRAIL_FORMAT.derived_columns)
    return DerivedFeatures(column, derived).add(window, seen).select(window.columns)


@lru_cache(maxsize=16)
def _flattener(wanted: tuple[str, ...]) -> Flattener:
    # Made once for the columns of a log: compiling its types takes longer than its work here.
    return Flattener(wanted, CLOUDTRAIL_FORMAT.paths, CLOUDTRAIL_FORMAT.json_converters)


def _as_written(frame: pl.DataFrame, victim: Victim) -> dict[str, pl.Series]:
    """Write events as the victim's log does.

    A column that this log never fills says nothing of a deed, unless deeds are what it is for.
    """
    there = {each.name: each for each in frame}
    nothing = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
    never = {n: nothing for n in there if n not in victim.filled and not n.startswith(ACTION)}
    forms = {name: _form(frame, name, usual) for name, usual in victim.forms.items()}
    return there | forms | never


def _form(frame: pl.DataFrame, name: str, usual: Values) -> pl.Series:
    """A column of `FORM`, as the log writes it for services that it knows."""
    cells = zip(frame["eventSource"], frame[name], strict=True)
    return pl.Series([usual.get(service, cell) for service, cell in cells], dtype=pl.String)
