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
from morpheus.replay.techniques import CloudTrailRecord, Technique
from morpheus.sources.cloudtrail import ACTOR_RULES, CLOUDTRAIL_FORMAT
from morpheus.sources.json_records import Flattener
from morpheus.sources.log_format import DerivedFeatures, collect_rule_columns, resolve_derived
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT

EVASION_LEVELS = ("recorded", "agent", "hours")
"""How well the intruder hides: behind the victim's credentials only; also on the victim's machine,
with the victim's programs; and then at the victim's hours."""
EVASION_RECORDED, EVASION_HOURS = EVASION_LEVELS[0], EVASION_LEVELS[-1]
SCORE_LABELS = (RISK, SCORE, "zscore", "max_abs_z", "mean_abs_z")
"""Labels of which more is more unusual."""
OUTPUT_FORMATS = ("table", "csv", "json")


@dataclass(frozen=True)
class ReplayConfig:
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
        choices=EVASION_LEVELS,
    )
    label: str = option(RISK, "Score of `add-scores` to go by.", choices=SCORE_LABELS)
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
        choices=OUTPUT_FORMATS,
    )
    filename: str | None = option(
        None,
        "File for each trial, `.csv` or `.json`; one of that name is replaced. stdout then has the "
        "table.",
    )

    @property
    def evasion_levels(self) -> tuple[str, ...]:
        """The grades to try, from the easiest to the hardest to catch."""
        wanted = {each.lower() for each in self.grade}
        return tuple(each for each in EVASION_LEVELS if not wanted or each in wanted)


NEUTRAL_NAME = "ops"
"""Stands where a name told on the recording."""
BROWSER_AGENT = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/127.0.0.0 Safari/537.36"
)
SDK_AGENT = "aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.5 md/GOOS#linux md/GOARCH#amd64"
_TOOL_NAMES = re.compile(
    r"stratus[-_ ]?red[-_ ]?team|stratus|red[-_ ]?team|terraform|hashicorp|grimoire|pulumi"
    r"|malicious|backdoor|attacker|evil",
    re.IGNORECASE,
)
_AGENT_PRODUCT = re.compile(r"\([^)]*\)|\S+")
_IP_LITERAL = re.compile(r"[\d.]+|[0-9a-fA-F]*:[0-9a-fA-F:.]+")


def has_artefacts(text: str) -> bool:
    """Whether a text names a tool that records attacks, or calls itself an attack.

    >>> has_artefacts("arn:aws:iam::123456789012:user/Stratus-Red-Team-user"), has_artefacts("AttachUserPolicy")
    (True, False)
    """
    return _TOOL_NAMES.search(text) is not None


def strip_artefacts(text: str) -> str:
    """Call what tells on the recording by another name.

    >>> strip_artefacts("stratus-red-team-get-usr-data-role")
    'ops-get-usr-data-role'
    """
    return _TOOL_NAMES.sub(NEUTRAL_NAME, text)


def normalise_user_agent(agent: str, *, browser: bool) -> str:
    """Take the recorder's products, and their comments, out of a user agent.

    What is left of it is what an intruder would have had; where nothing is left, a plain browser or
    program stands in.

    >>> normalise_user_agent("APN/1.0 Terraform/1.1 (+https://terraform.io) aws-sdk-go/1", browser=False)
    'APN/1.0 aws-sdk-go/1'
    >>> normalise_user_agent("stratus-red-team_1b9c", browser=True)[:11]
    'Mozilla/5.0'
    """
    left = " ".join(part for part in _AGENT_PRODUCT.findall(agent) if not has_artefacts(part))
    return left or (BROWSER_AGENT if browser else SDK_AGENT)


def is_ip_literal(address: str) -> bool:
    """Whether an address is a number, as opposed to the name of a service."""
    return _IP_LITERAL.fullmatch(address) is not None


def to_public_ip(address: str, seed: int) -> str:
    """Give an address that some host can have: the same one unless it is reserved or malformed.

    >>> to_public_ip("8.8.8.8", 0), to_public_ip("AWS Internal", 0)
    ('8.8.8.8', 'AWS Internal')
    >>> to_public_ip("203.0.113.9", 0) == to_public_ip("203.0.113.9", 0) != to_public_ip("253.0.0.07", 0)
    True
    """
    if not is_ip_literal(address) or is_public_ip(address):
        return address
    rng = np.random.default_rng(derive_user_seed(seed, address))
    while True:
        drawn = str(IPv4Address(int(rng.integers(1 << 24, 224 << 24))))
        if is_public_ip(drawn):
            return drawn


def is_public_ip(address: str) -> bool:
    """Whether an address can be met on the internet.

    >>> is_public_ip("8.8.8.8"), is_public_ip("192.0.2.1"), is_public_ip("035.249.253.232")
    (True, False, False)
    """
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def rewrite_texts(value: Any, transform: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON value
    """Rewrite every text in a JSON value; names of fields stay.

    >>> rewrite_texts({"a": ["x", 1, {"b": "y"}]}, str.upper)
    {'a': ['X', 1, {'b': 'Y'}]}
    """
    if isinstance(value, str):
        return transform(value)
    if isinstance(value, list):
        return [rewrite_texts(one, transform) for one in value]
    if isinstance(value, dict):
        return {name: rewrite_texts(one, transform) for name, one in value.items()}
    return value


IDENTITY_PREFIX, USER_AGENT, SOURCE_IP = "userIdentity", "userAgent", "sourceIPAddress"
INVOKED_BY = "userIdentityinvokedBy"
CLIENT_COLUMNS = (USER_AGENT, SOURCE_IP, "vpcEndpointId", "vpcEndpointAccountId")
"""What says from where, and with what, a call is made."""
ACTION_PREFIXES = (
    "requestParameters",
    "responseElements",
    "additionalEventData",
    "error",
    "resources",
)
"""How the columns begin that tell what is done; a log without any value there may get its first."""
GLOBAL_SERVICES = ("signin.amazonaws.com", "iam.amazonaws.com", "organizations.amazonaws.com")
"""Services whose events all lie in one region, whatever the user's own is."""
GLOBAL_REGION = "us-east-1"
HOST_HEADER = "tlsDetailsclientProvidedHostHeader"
SERVICE_COLUMNS = ("apiVersion", HOST_HEADER)
"""Columns that hang on the service called, and on how the log is written."""
_ACCOUNT_ID = re.compile(r"\d{12}")

ColumnValues = Mapping[str, str | None]


@dataclass(frozen=True)
class TargetUser:
    """A user in whose name techniques are replayed.

    Attributes:
        user: Whose name.
        user_column: Column of the user.
        filled_columns: Columns in which the user's log has any value.
        active_hours: Hours of the day, in UTC, in which the user has been active.
        region: The user's usual region.
        service_values: By column of `SERVICE_COLUMNS`, its usual value for each service that the user has called.
    """

    user: str
    user_column: str
    filled_columns: frozenset[str]
    active_hours: frozenset[int]
    region: str
    service_values: Mapping[str, ColumnValues]

    @classmethod
    def from_events(cls, user: str, user_column: str, events: pl.DataFrame) -> Self:
        """Learn what is usual from all that is known of a user.

        Args:
            user: Whose events.
            user_column: Column that names the user.
            events: History and held-out events, flat.
        """
        texts = [name for name in events.columns if events.schema[name] == pl.String]
        filled = frozenset(name for name in texts if events[name].null_count() < events.height)
        hours = frozenset(events[TIME].dt.hour().to_list())
        forms = {
            name: _find_modal_by_service(name, events)
            for name in SERVICE_COLUMNS
            if {name, "eventSource"} <= filled
        }
        return cls(user, user_column, filled, hours, _infer_region(events), forms)

    def select_identity_columns(self, names: Sequence[str]) -> list[str]:
        """Those columns that say who calls."""
        own = {"recipientAccountId", self.user_column}
        if self.user_column == ACTOR:
            own |= {*collect_rule_columns(ACTOR_RULES)} - {"eventSource"}
        return [name for name in names if name.startswith(IDENTITY_PREFIX) or name in own]

    def infer_identity(self, day: pl.DataFrame) -> dict[str, str | None]:
        """Who the user was, from where and with what, in most of a day's events."""
        client = [name for name in CLIENT_COLUMNS if name in day.columns]
        usual = find_modal_values(
            select_interactive_calls(day), [*self.select_identity_columns(day.columns), *client]
        )
        return {**usual, self.user_column: self.user}

    def find_region(self, service: str) -> str:
        """Where calls of a service are recorded."""
        return GLOBAL_REGION if service in GLOBAL_SERVICES else self.region


def select_interactive_calls(events: pl.DataFrame) -> pl.DataFrame:
    """Leave out what services did in the user's name; keep everything where that is all."""
    made = pl.lit(value=True)
    if INVOKED_BY in events.columns:
        made &= pl.col(INVOKED_BY).is_null()
    if SOURCE_IP in events.columns:
        service = pl.col(SOURCE_IP).str.contains(r"amazonaws\.com$|^AWS Internal$")
        made &= ~service.fill_null(value=False)
    own = events.filter(made)
    return own if own.height else events


def find_modal_values(events: pl.DataFrame, names: Sequence[str]) -> dict[str, str | None]:
    """The combination of values that the most events have; of equals, the first in order of text.

    >>> day = pl.DataFrame({"agent": ["cli", "web", "web"], "from": ["a", "b", "b"]})
    >>> find_modal_values(day, ["agent", "from", "region"])
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


def find_account_id(identity: ColumnValues) -> str | None:
    """The account's digits, however the log writes it.

    >>> find_account_id({"userIdentityaccountId": "Account-123456789012"})
    '123456789012'
    """
    for name in ("userIdentityaccountId", "recipientAccountId", "userIdentityarn"):
        found = _ACCOUNT_ID.search(identity.get(name) or "")
        if found:
            return found[0]
    return None


def find_user_name(identity: ColumnValues, user: str) -> str:
    """The name that others would write into a request.

    >>> find_user_name({"userIdentityarn": "arn:aws:iam::123456789012:user/team/ann"}, "Account-1")
    'ann'
    """
    for name in ("userIdentityuserName", "userIdentitysessionContextsessionIssueruserName"):
        if value := identity.get(name):
            return value
    arn = identity.get("userIdentityarn")
    return arn.rpartition("/")[2] if arn and "/" in arn else user


def _infer_region(events: pl.DataFrame) -> str:
    """The usual region, which addresses of services tell where nothing else does."""
    if usual := find_modal_values(events, ["awsRegion"]).get("awsRegion"):
        return usual
    if HOST_HEADER not in events.columns:
        return GLOBAL_REGION
    told = events.select(pl.col(HOST_HEADER).str.extract(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws"))
    return find_modal_values(told.drop_nulls(), [HOST_HEADER]).get(HOST_HEADER) or GLOBAL_REGION


def _find_modal_by_service(name: str, events: pl.DataFrame) -> ColumnValues:
    """The usual value of a column for each service."""
    counted = events.group_by("eventSource", name).len()
    ordered = counted.sort("len", name, descending=[False, True])
    return dict(ordered.select("eventSource", name).iter_rows())


DEFAULT_ACCOUNT_ID = "111122223333"
"""Account of a victim whose log names none."""
_UNCHANGED_FIELDS = (
    "eventVersion",
    "eventTime",
    "eventSource",
    "eventName",
    "eventType",
    "userIdentity",
)
_KEY_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


@dataclass(frozen=True)
class RecordRewriter:
    """How the records of a technique become those of a victim.

    Wherever the intruder's account, name, access key or region stand in a record, the victim's
    stand instead; every other key and UUID becomes a fresh one, always the same for the same.

    Attributes:
        technique: Whose records.
        victim: In whose name.
        victim_identity: Who the victim is on that day; see `TargetUser.infer_identity`.
        seed: Of the fresh ids.
    """

    technique: Technique
    victim: TargetUser
    victim_identity: ColumnValues
    seed: int

    def rewrite_records(self) -> Iterator[CloudTrailRecord]:
        """The records, in order; times and identities, which others set, as they were."""
        for record in self.technique.records:
            told = {
                n: v if n in _UNCHANGED_FIELDS else rewrite_texts(v, self._rewrite_text)
                for n, v in record.items()
            }
            yield told | self._rewrite_client(record) | {"awsRegion": self._find_region(record)}

    def make_rng(self, old: str) -> np.random.Generator:
        """What draws the stand-in of an id."""
        return np.random.default_rng(derive_user_seed(self.seed, f"{self.victim.user}\n{old}"))

    def _rewrite_client(self, record: CloudTrailRecord) -> CloudTrailRecord:
        browser = record["eventSource"].startswith("signin.")
        agent, address = (str(record.get(n) or "") for n in ("userAgent", "sourceIPAddress"))
        return {
            "userAgent": normalise_user_agent(agent, browser=browser),
            "sourceIPAddress": to_public_ip(address, self.seed) or None,
        }

    def _find_region(self, record: CloudTrailRecord) -> str:
        return self.victim.find_region(record["eventSource"])

    def _rewrite_text(self, text: str) -> str:
        for region in self._recorded_regions:
            text = text.replace(region, self.victim.region)
        text = self._replacement_pattern.sub(lambda found: self._replacements[found[0]], text)
        return _UUID.sub(
            self._replace_uuid, _ACCESS_KEY.sub(self._replace_key, strip_artefacts(text))
        )

    def _replace_key(self, found: re.Match[str]) -> str:
        if found[0] in {*self.victim_identity.values()}:
            return found[0]
        letters = self.make_rng(found[0]).integers(len(_KEY_ALPHABET), size=16)
        return found[0][:4] + "".join(_KEY_ALPHABET[at] for at in letters)

    def _replace_uuid(self, found: re.Match[str]) -> str:
        return str(UUID(bytes=self.make_rng(found[0]).bytes(16), version=4))

    @cached_property
    def _recorded_regions(self) -> list[str]:
        """The intruder's regions, longest first, so that none hides in another."""
        recorded = {str(one["awsRegion"]) for one in self.technique.records if "awsRegion" in one}
        return sorted(recorded, key=lambda region: (-len(region), region))

    @cached_property
    def _replacements(self) -> dict[str, str]:
        """What names the intruder -> what names the victim."""
        first = self.technique.records[0]["userIdentity"]
        account = find_account_id(self.victim_identity) or DEFAULT_ACCOUNT_ID
        name = find_user_name(self.victim_identity, self.victim.user)
        known: dict[str | None, str | None] = {first.get("userName"): name}
        for part in ("arn", "principalId", "accessKeyId"):
            known[first.get(part)] = self.victim_identity.get(f"userIdentity{part}")
        for record in self.technique.records:
            known[record["userIdentity"].get("accountId")] = account
            known[record.get("recipientAccountId")] = account
        return {old: new for old, new in known.items() if old and new}

    @cached_property
    def _replacement_pattern(self) -> re.Pattern[str]:
        longest = sorted(self._replacements, key=lambda name: (-len(name), name))
        any_of = "|".join(map(re.escape, longest)) or r"(?!)"
        return re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-])")


INJECTED = "injected"
"""Column that says which events were injected."""
ONE_DAY = timedelta(days=1)


def inject(
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    seed: int = 0,
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
        evasion_level: One of `EVASION_LEVELS`.
        seed: Of what is drawn.

    Returns:
        All events in time order, with the columns of `events` and the boolean `INJECTED`.

    Raises:
        ValueError: There is no such grade; or the technique lasts longer than the victim is ever
            active, so that no time is right for grade `hours`.
    """
    if evasion_level not in EVASION_LEVELS:
        raise ValueError(
            f"there is no grade {evasion_level!r}; use one of {', '.join(EVASION_LEVELS)}"
        )
    start = draw_start(events, technique, victim, evasion_level, seed)
    if start is None:
        raise ValueError(f"{technique.name} lasts longer than {victim.user!r} is ever active")
    return merge_events(
        events, build_events(events, technique, victim, evasion_level, start=start, seed=seed)
    )


def draw_start(
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    seed: int = 0,
) -> datetime | None:
    """Draw the time of the first injected event; None where no time is right. See `inject`."""
    rng = np.random.default_rng(derive_user_seed(seed, f"{victim.user}\n{technique.name}"))
    days = events[TIME].dt.truncate("1d").unique().sort().to_list()
    day = days[int(rng.integers(len(days)))]
    if evasion_level == EVASION_HOURS:
        return _draw_active_start(events, day, technique, victim, rng)
    room = max(1, int((ONE_DAY - technique.duration).total_seconds()))
    start: datetime = day + timedelta(seconds=int(rng.integers(room)))
    return start


def build_events(  # noqa: PLR0913 - what injected events depend on, and nothing else
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    *,
    start: datetime,
    seed: int = 0,
) -> pl.DataFrame:
    """Retell a technique as events of the victim, from `start` on. See `inject`."""
    day = select_day(events, start)
    persona = victim.infer_identity(day if day.height else events)
    own = victim.select_identity_columns(events.columns) + (
        [] if evasion_level == EVASION_RECORDED else list(CLIENT_COLUMNS)
    )
    retelling = RecordRewriter(
        technique, victim, persona, derive_user_seed(seed, f"{technique.name}\n{start}")
    )
    frame = _flatten_records(retelling, events)
    times = pl.Series(TIME, [start + offset for offset in technique.offsets], events.schema[TIME])
    written = {
        **_match_log_style(frame, victim),
        **{name: pl.repeat(persona.get(name), frame.height, eager=True) for name in own},
        "eventTime": times.dt.strftime(DEFAULT_TIME_FORMAT),
        TIME: times,
        ROW: pl.repeat(0, frame.height, eager=True),
        INDEX: pl.repeat(-1, frame.height, eager=True),
    }
    types = events.schema.items()
    return pl.DataFrame({name: written[name].cast(kind) for name, kind in types})


def merge_events(events: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Put events among others, by time, behind those of the same time; `INJECTED` tells them."""
    parts = [
        each.with_columns(pl.lit(value=injected).alias(INJECTED))
        for each, injected in ((events, False), (added, True))
    ]
    both = pl.concat(parts).sort(TIME, maintain_order=True)
    if ROW not in both.columns:
        return both
    numbers = pl.int_range(both.height, eager=True) + events[ROW].min()
    return both.with_columns(numbers.cast(events.schema[ROW]).alias(ROW))


def select_day(events: pl.DataFrame, time: datetime) -> pl.DataFrame:
    """The events on the day of that time, in UTC."""
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return events.filter(pl.col(TIME).is_between(day, day + ONE_DAY, closed="left"))


def _draw_active_start(
    events: pl.DataFrame,
    day: datetime,
    technique: Technique,
    victim: TargetUser,
    rng: np.random.Generator,
) -> datetime | None:
    """The time of one of the user's own events, of that day if one is right."""
    for some in (select_day(events, day), events):
        times = some[TIME].to_list()
        for at in rng.permutation(len(times)):
            start: datetime = times[at].replace(microsecond=0)
            if {(start + offset).hour for offset in technique.offsets} <= victim.active_hours:
                return start
    return None


def _flatten_records(rewriter: RecordRewriter, events: pl.DataFrame) -> pl.DataFrame:
    """The records with the columns of events; those that no record has are empty."""
    added = {
        ROW,
        INDEX,
        TIME,
        ACTOR,
        *resolve_derived(events.columns, CLOUDTRAIL_FORMAT.derived_columns),
    }
    flattener = _cached_flattener(tuple(name for name in events.columns if name not in added))
    frame, _ = flattener.flatten([msgspec.json.encode(one) for one in rewriter.rewrite_records()])
    return frame.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in events.schema.items() if name in added
    )


def recompute_derived(
    window: pl.DataFrame, known_events: pl.DataFrame, user_column: str
) -> pl.DataFrame:
    """Derive the derived columns of some of a user's events, injected ones among them.

    Args:
        window: The events.
        known_events: All that is known of the user; what lies before the window counts.
        user_column: Column of the user.
    """
    derived = resolve_derived(window.columns, CLOUDTRAIL_FORMAT.derived_columns)
    return DerivedFeatures(user_column, derived).add(window, known_events).select(window.columns)


@lru_cache(maxsize=16)
def _cached_flattener(wanted: tuple[str, ...]) -> Flattener:
    # Made once for the columns of a log: compiling its types takes longer than its work here.
    return Flattener(wanted, CLOUDTRAIL_FORMAT.paths, CLOUDTRAIL_FORMAT.json_converters)


def _match_log_style(frame: pl.DataFrame, victim: TargetUser) -> dict[str, pl.Series]:
    """Write events as the victim's log does.

    A column that this log never fills says nothing of a deed, unless deeds are what it is for.
    """
    there = {each.name: each for each in frame}
    nothing = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
    never = {
        n: nothing
        for n in there
        if n not in victim.filled_columns and not n.startswith(ACTION_PREFIXES)
    }
    forms = {
        name: _match_service_values(frame, name, usual)
        for name, usual in victim.service_values.items()
    }
    return there | forms | never


def _match_service_values(frame: pl.DataFrame, name: str, usual_values: ColumnValues) -> pl.Series:
    """A column of `SERVICE_COLUMNS`, as the log writes it for services that it knows."""
    cells = zip(frame["eventSource"], frame[name], strict=True)
    return pl.Series([usual_values.get(service, cell) for service, cell in cells], dtype=pl.String)
