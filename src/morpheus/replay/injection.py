"""Load attack techniques, and inject them into a user's log, as if that user had carried them out.

`load_techniques` reads the CloudTrail records that each leaves. `ReplayConfig` has the options of
`morpheus tools replay`. `TargetUser` describes what is typical of a user. `RecordRewriter` replaces
the intruder's identity in recorded records with the user's. `inject` adds the rewritten records to
the user's events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from importlib import resources
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, RISK, ROW, SCORE, TIME
from morpheus.core.stage import option
from morpheus.errors import RecordError, UsageError
from morpheus.models.training import derive_user_seed
from morpheus.sources.cloudtrail import ACTOR_RULES, CLOUDTRAIL_FORMAT
from morpheus.sources.compression import detect_file_type, read_bytes, to_utf8
from morpheus.sources.envelopes import split_records
from morpheus.sources.json_records import Flattener
from morpheus.sources.log_format import DerivedFeatures, collect_rule_columns, resolve_derived
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT, parse_times
from morpheus.text import describe_no_folder

CloudTrailRecord = dict[str, Any]
AWS_SERVICE = "AWSService"
"""Value of `userIdentity.type` for calls that AWS services make."""
_SHIPPED = "data/techniques"
_REQUIRED_FIELDS = ("eventTime", "eventName", "eventSource")
EVASION_LEVELS = ("recorded", "agent", "hours")
"""How well the intruder imitates the user, from the easiest to detect to the hardest: with the
user's credentials only; also with the user's address and agent; also at the user's hours."""
EVASION_RECORDED, EVASION_HOURS = EVASION_LEVELS[0], EVASION_LEVELS[-1]
SCORE_LABELS = (RISK, SCORE, "zscore", "max_abs_z", "mean_abs_z")
"""Labels whose higher values are more unusual."""
OUTPUT_FORMATS = ("table", "csv", "json")
INJECTED = "injected"
"""Boolean column that marks injected events."""
ONE_DAY = timedelta(days=1)

IDENTITY_PREFIX, USER_AGENT, SOURCE_IP = "userIdentity", "userAgent", "sourceIPAddress"
INVOKED_BY = "userIdentityinvokedBy"
HOST_HEADER = "tlsDetailsclientProvidedHostHeader"
CLIENT_COLUMNS = (USER_AGENT, SOURCE_IP, "vpcEndpointId", "vpcEndpointAccountId")
"""Columns that identify the client of a call."""
SERVICE_COLUMNS = ("apiVersion", HOST_HEADER)
"""Columns whose values depend on the service called, and on how the log is written."""
ACTION_PREFIXES = (
    "requestParameters",
    "responseElements",
    "additionalEventData",
    "error",
    "resources",
)
"""Prefixes of columns that describe an action. An injected event may fill them although no event of
the log has."""
GLOBAL_SERVICES = ("signin.amazonaws.com", "iam.amazonaws.com", "organizations.amazonaws.com")
"""Services whose events are all recorded in `GLOBAL_REGION`."""
GLOBAL_REGION = "us-east-1"
DEFAULT_ACCOUNT_ID = "111122223333"
"""Account of a user whose log does not contain one."""
NEUTRAL_NAME = "ops"
"""Replaces names that reveal a recorded attack."""
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
_ACCOUNT_ID = re.compile(r"\d{12}")
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
_KEY_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_UNCHANGED_FIELDS = (
    "eventVersion",
    "eventTime",
    "eventSource",
    "eventName",
    "eventType",
    "userIdentity",
)
_COUNT = "_many_"

ColumnValues = Mapping[str, str | None]


# Techniques: the CloudTrail records that each leaves, one file per technique.


class _TechniqueInfo(msgspec.Struct):
    """Optional fields of a technique's file, next to its `Records`."""

    title: str = ""
    mitre: tuple[str, ...] = ()


class Technique(msgspec.Struct, frozen=True, dict=True):
    """An attack technique, as the log records it.

    Attributes:
        name: Name of the file, without suffix.
        records: CloudTrail records of the intruder, at least one, in time order.
        title: What the intruder does, in a few words.
        mitre: Ids of the technique in MITRE ATT&CK.
    """

    name: str
    records: tuple[CloudTrailRecord, ...]
    title: str = ""
    mitre: tuple[str, ...] = ()

    @cached_property
    def offsets(self) -> tuple[timedelta, ...]:
        """Time of each record after the first."""
        times = _parse_times(self.records)
        return tuple(time - times[0] for time in times)

    @property
    def duration(self) -> timedelta:
        """Time from the first record to the last."""
        return self.offsets[-1]


def load_techniques(folder: str | None = None) -> list[Technique]:
    """Load the techniques of a folder, by name. By default, the shipped ones.

    A file holds one technique: CloudTrail records in any JSON that `from-cloudtrail` reads, and
    optionally `title`, and `mitre`, a list of ids. Calls that AWS services made are left out,
    because they are in the services' logs and not in the user's.

    Raises:
        UsageError: There is no such folder, or it holds no technique.
        RecordError: A file does not hold CloudTrail records.

    >>> [technique.mitre for technique in load_techniques() if technique.name == "stop-trail"]
    [('T1562.008',)]
    """
    place = Path(str(resources.files("morpheus") / _SHIPPED))
    if folder is not None:
        place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(
            f"--techniques: {describe_no_folder(place)} Give a folder that "
            "has a JSON file of CloudTrail records for each technique, or omit the option for the "
            "shipped techniques."
        )
    files = sorted(
        path for path in place.iterdir() if path.is_file() and detect_file_type(path) == "json"
    )
    if not files:
        raise UsageError(
            f"--techniques: folder `{place}` has no `.json` or `.jsonl` file. Put the CloudTrail "
            "records of each technique into a file with the name of the technique."
        )
    return [read_technique(path) for path in files]


def read_technique(path: Path) -> Technique:
    """Read one technique.

    Raises:
        RecordError: The file does not hold CloudTrail records, or none of an intruder.
    """
    data = to_utf8(read_bytes(path))
    split = split_records(data, CLOUDTRAIL_FORMAT.record_finder)
    if split.errors:
        line, reason = split.errors[0]
        raise RecordError(reason, file=path, line=line)
    records = [
        _parse_record(text, path, line)
        for text, line in zip(split.raw_records, split.line_numbers, strict=True)
    ]
    own = [record for record in records if record["userIdentity"].get("type") != AWS_SERVICE]
    if not own:
        raise RecordError("the file has no record of an intruder; add one", file=path)
    name = path.name.partition(".json")[0]
    info = _decode_info(data)
    return Technique(name, tuple(_sort_by_time(own)), info.title, info.mitre)


def _parse_record(text: bytes | msgspec.Raw, path: Path, line: int) -> CloudTrailRecord:
    expected = "an object with `eventTime`, `eventName`, `eventSource` and `userIdentity`"
    try:
        record = msgspec.json.decode(text, type=CloudTrailRecord)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"{error}; a record is {expected}", file=path, line=line) from error
    complete = all(isinstance(record.get(name), str) for name in _REQUIRED_FIELDS)
    if not complete or not isinstance(record.get("userIdentity"), dict):
        raise RecordError(f"a CloudTrail record is {expected}", file=path, line=line)
    if parse_times(pl.Series([record["eventTime"]])).has_nulls():
        found = f"`eventTime` is {record['eventTime']!r}, which is not a time like"
        raise RecordError(f"{found} 2024-05-31T09:30:00Z", file=path, line=line)
    return record


def _decode_info(data: bytes) -> _TechniqueInfo:
    try:
        return msgspec.json.decode(data, type=_TechniqueInfo)
    except (msgspec.MsgspecError, RecursionError):  # a list of records, or JSON lines
        return _TechniqueInfo()


def _sort_by_time(records: list[CloudTrailRecord]) -> list[CloudTrailRecord]:
    """Sort records by time.

    LookupEvents lists the latest first. So a file that starts with its latest record is reversed,
    which also puts records of the same time in order.
    """
    times = _parse_times(records)
    if times[0] > times[-1]:
        records, times = records[::-1], times[::-1]
    order = sorted(range(len(records)), key=times.__getitem__)
    return [records[at] for at in order]


def _parse_times(records: Sequence[CloudTrailRecord]) -> list[datetime]:
    return parse_times(pl.Series([record["eventTime"] for record in records])).to_list()


# Injection.


@dataclass(frozen=True)
class ReplayConfig:
    r"""Replay attack techniques as each user, and count how many raise an alert.

    Trains a model for each user as `train-ae` does. Injects each technique into one of the user's
    later days, and scores it among the user's own events. A technique is caught if one of its
    events scores above the user's threshold. The threshold lets the user's own events of these days
    raise as many alerts as the alert budget allows. stdout has the share of techniques caught, or
    each trial with `--output_format`.

        morpheus tools replay --train_data_glob="may/*.json.gz" --input_glob="june/*.json.gz" \
            --userid_column_name=userIdentityarn --min_recall 0.8
    """

    input_glob: str | tuple[str, ...] = option(
        "",
        "CloudTrail files to inject into, without attacks: a quoted glob, a file or a folder, as "
        "for `from-cloudtrail`. Repeat for more.",
        required=True,
        location="any",
    )
    train_data_glob: str | tuple[str, ...] | None = option(
        None,
        "Training files, earlier than the input; repeat for more. By default, the last quarter of "
        "the input's days is injected into, and the days before are the training data.",
        location="any",
    )
    pretrained_filename: str | None = option(
        None, "Model store that `train-ae` wrote. Nothing is trained.", location="any"
    )
    userid_column_name: str = option(
        "userIdentityaccountId",
        f"User column. `{ACTOR_OPTION}` finds the actor of each event.",
    )
    userid_filter: str | tuple[str, ...] | None = option(
        None, "Replay as this user only; repeat for more users."
    )
    skip_user: tuple[str, ...] = option((), "Leave out this user; repeat for more users.")
    timezone: str = option(
        "UTC", "Time zone of the hours and days of derived columns, as for `pipeline-ae`."
    )
    columns_file: str | None = option(
        None,
        "Feature list: a file of column names, one per line. By default the shipped list.",
        location="local",
    )
    train_min_history: int = option(
        300,
        "Minimum number of training events of a user. Users with fewer are trained as by "
        "`train-ae`.",
        min=1,
    )
    bad_record: str = option(
        "fail",
        "If a record cannot be read: `fail` ends the run, `skip` skips the record.",
        choices=("fail", "skip"),
    )
    techniques: str | None = option(
        None,
        "Folder of techniques: a JSON file of CloudTrail records for each. By default the shipped "
        "techniques.",
        location="local",
    )
    grade: tuple[str, ...] = option(
        (),
        "Evasion level; repeat for several. `recorded`: the intruder has the user's credentials. "
        "`agent`: also the user's agent and address. `hours`: also the user's hours. By default "
        "all three.",
        choices=EVASION_LEVELS,
    )
    label: str = option(RISK, "Score to rank events by, as for `add-scores`.", choices=SCORE_LABELS)
    alerts_per_day: float | None = option(
        None,
        "Alert budget: alerts per day that you are ready to review, divided equally among users.",
        min=0.0,
        default_display="one per user and week",
    )
    min_recall: float | None = option(
        None,
        "Minimum share of trials caught. Below it, the exit code is 1.",
        min=0.0,
        max=1.0,
    )
    suppressions: tuple[str, ...] = option(
        (),
        "File of suppressions, as for `filter`; repeat for several. A technique is not caught if "
        "they suppress all of its alerts.",
        location="local",
    )
    seed: int = option(0, "Random seed of the injection and the training.", min=0)
    num_threads: int | None = option(
        None,
        "Maximum number of parallel workers. Does not affect results.",
        min=1,
        default_display="the number of cores",
    )
    output_format: str = option(
        "table",
        "What to write: a `table` of the shares caught, or each trial as `csv` or `json`.",
        choices=OUTPUT_FORMATS,
    )
    filename: str | None = option(
        None,
        "File for the trials, `.csv` or `.json`. An existing file is replaced. stdout then has the "
        "table.",
        location="local",
    )

    @property
    def evasion_levels(self) -> tuple[str, ...]:
        """The evasion levels to replay, from the easiest to detect to the hardest."""
        selected = {level.lower() for level in self.grade}
        return tuple(level for level in EVASION_LEVELS if not selected or level in selected)


class TargetUser(msgspec.Struct, frozen=True):
    """The user that an intruder acts as.

    Attributes:
        user: The user.
        user_column: Name of the user column.
        filled_columns: Columns with any value in the user's log.
        active_hours: Hours of the day, in UTC, in which the user was active.
        region: The user's most frequent region.
        service_values: By column of `SERVICE_COLUMNS`: the most frequent value for each service.
    """

    user: str
    user_column: str
    filled_columns: frozenset[str]
    active_hours: frozenset[int]
    region: str
    service_values: Mapping[str, ColumnValues]

    @classmethod
    def from_events(cls, user: str, user_column: str, events: pl.DataFrame) -> Self:
        """Describe a user.

        Args:
            user: The user.
            user_column: Name of the user column.
            events: All events of the user, flattened.
        """
        texts = [name for name in events.columns if events.schema[name] == pl.String]
        filled = frozenset(name for name in texts if events[name].null_count() < events.height)
        hours = frozenset(events[TIME].dt.hour().to_list())
        service_values = {
            name: _find_modal_by_service(name, events)
            for name in SERVICE_COLUMNS
            if {name, "eventSource"} <= filled
        }
        return cls(user, user_column, filled, hours, _infer_region(events), service_values)

    def select_identity_columns(self, names: Sequence[str]) -> list[str]:
        """Return the columns that identify the caller."""
        identity = {"recipientAccountId", self.user_column}
        if self.user_column == ACTOR:
            identity |= {*collect_rule_columns(ACTOR_RULES)} - {"eventSource"}
        return [name for name in names if name.startswith(IDENTITY_PREFIX) or name in identity]

    def infer_identity(self, day: pl.DataFrame) -> dict[str, str | None]:
        """Return the user's most frequent identity and client on one day, by column."""
        client = [name for name in CLIENT_COLUMNS if name in day.columns]
        names = [*self.select_identity_columns(day.columns), *client]
        modal = find_modal_values(select_interactive_calls(day), names)
        return {**modal, self.user_column: self.user}

    def find_region(self, service: str) -> str:
        """Return the region in which calls of a service are recorded."""
        return GLOBAL_REGION if service in GLOBAL_SERVICES else self.region


def select_interactive_calls(events: pl.DataFrame) -> pl.DataFrame:
    """Drop calls that AWS services made for the user, unless there are no others."""
    by_user = pl.lit(value=True)
    if INVOKED_BY in events.columns:
        by_user &= pl.col(INVOKED_BY).is_null()
    if SOURCE_IP in events.columns:
        by_service = pl.col(SOURCE_IP).str.contains(r"amazonaws\.com$|^AWS Internal$")
        by_user &= ~by_service.fill_null(value=False)
    calls = events.filter(by_user)
    return calls if calls.height else events


def find_modal_values(events: pl.DataFrame, names: Sequence[str]) -> dict[str, str | None]:
    """Return the most frequent combination of values, the first in text order if several are.

    >>> day = pl.DataFrame({"agent": ["cli", "web", "web"], "from": ["a", "b", "b"]})
    >>> find_modal_values(day, ["agent", "from", "region"])
    {'agent': 'web', 'from': 'b'}
    """
    present = [name for name in names if name in events.columns]
    if not present or not events.height:
        return {}
    counts = (
        events.group_by(present)
        .len(_COUNT)
        .sort(_COUNT, *present, descending=[True] + [False] * len(present))
    )
    return counts.drop(_COUNT).row(0, named=True)


def find_account_id(identity: ColumnValues) -> str | None:
    """Return the digits of the account id.

    >>> find_account_id({"userIdentityaccountId": "Account-123456789012"})
    '123456789012'
    """
    for name in ("userIdentityaccountId", "recipientAccountId", "userIdentityarn"):
        match = _ACCOUNT_ID.search(identity.get(name) or "")
        if match:
            return match[0]
    return None


def find_user_name(identity: ColumnValues, user: str) -> str:
    """Return the user's name as a request would contain it.

    >>> find_user_name({"userIdentityarn": "arn:aws:iam::123456789012:user/team/ann"}, "Account-1")
    'ann'
    """
    for name in ("userIdentityuserName", "userIdentitysessionContextsessionIssueruserName"):
        if value := identity.get(name):
            return value
    arn = identity.get("userIdentityarn")
    return arn.rpartition("/")[2] if arn and "/" in arn else user


def _infer_region(events: pl.DataFrame) -> str:
    """Return the most frequent region. Without a region column, host names contain it."""
    if region := find_modal_values(events, ["awsRegion"]).get("awsRegion"):
        return region
    if HOST_HEADER not in events.columns:
        return GLOBAL_REGION
    pattern = r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws"
    regions = events.select(pl.col(HOST_HEADER).str.extract(pattern)).drop_nulls()
    return find_modal_values(regions, [HOST_HEADER]).get(HOST_HEADER) or GLOBAL_REGION


def _find_modal_by_service(name: str, events: pl.DataFrame) -> ColumnValues:
    """Return the most frequent value of a column for each service."""
    counts = events.group_by("eventSource", name).len()
    # The dictionary keeps the last value of a service: the most frequent one.
    ascending = counts.sort("len", name, descending=[False, True])
    return dict(ascending.select("eventSource", name).iter_rows())


def has_artefacts(text: str) -> bool:
    """Return whether a text names a tool that simulates attacks, or says that it is an attack.

    >>> has_artefacts("arn:aws:iam::123456789012:user/Stratus-Red-Team-user")
    True
    >>> has_artefacts("AttachUserPolicy")
    False
    """
    return _TOOL_NAMES.search(text) is not None


def strip_artefacts(text: str) -> str:
    """Replace names that reveal a simulation.

    >>> strip_artefacts("stratus-red-team-get-usr-data-role")
    'ops-get-usr-data-role'
    """
    return _TOOL_NAMES.sub(NEUTRAL_NAME, text)


def normalise_user_agent(agent: str, *, browser: bool) -> str:
    """Remove simulation tools, and their comments, from a user agent.

    An intruder would have the remaining agent. If nothing remains, the result is the agent of a
    common browser or program.

    >>> agent = "APN/1.0 Terraform/1.1 (+https://terraform.io) aws-sdk-go/1"
    >>> normalise_user_agent(agent, browser=False)
    'APN/1.0 aws-sdk-go/1'
    >>> normalise_user_agent("stratus-red-team_1b9c", browser=True)[:11]
    'Mozilla/5.0'
    """
    products = _AGENT_PRODUCT.findall(agent)
    remaining = " ".join(product for product in products if not has_artefacts(product))
    return remaining or (BROWSER_AGENT if browser else SDK_AGENT)


def is_ip_literal(address: str) -> bool:
    """Return whether an address is an IP address, and not the name of a service."""
    return _IP_LITERAL.fullmatch(address) is not None


def to_public_ip(address: str, seed: int) -> str:
    """Replace a reserved or malformed IP address with a public one. Other addresses stay.

    >>> to_public_ip("8.8.8.8", 0), to_public_ip("AWS Internal", 0)
    ('8.8.8.8', 'AWS Internal')
    >>> to_public_ip("203.0.113.9", 0) == to_public_ip("203.0.113.9", 0)
    True
    >>> to_public_ip("203.0.113.9", 0) == to_public_ip("253.0.0.07", 0)
    False
    """
    if not is_ip_literal(address) or is_public_ip(address):
        return address
    rng = np.random.default_rng(derive_user_seed(seed, address))
    while True:
        drawn = str(IPv4Address(int(rng.integers(1 << 24, 224 << 24))))
        if is_public_ip(drawn):
            return drawn


def is_public_ip(address: str) -> bool:
    """Return whether an IP address can occur on the internet.

    >>> is_public_ip("8.8.8.8"), is_public_ip("192.0.2.1"), is_public_ip("035.249.253.232")
    (True, False, False)
    """
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def rewrite_texts(value: Any, transform: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON value
    """Apply a function to every text in a JSON value. Names of fields stay.

    >>> rewrite_texts({"a": ["x", 1, {"b": "y"}]}, str.upper)
    {'a': ['X', 1, {'b': 'Y'}]}
    """
    if isinstance(value, str):
        return transform(value)
    if isinstance(value, list):
        return [rewrite_texts(item, transform) for item in value]
    if isinstance(value, dict):
        return {name: rewrite_texts(item, transform) for name, item in value.items()}
    return value


class RecordRewriter(msgspec.Struct, frozen=True, dict=True):
    """Rewrites the records of a technique as records of a user.

    Replaces the intruder's account, name, access key and region with the user's. Replaces other
    access keys and UUIDs with new ones; equal values get equal replacements.

    Attributes:
        technique: The technique.
        victim: The user.
        victim_identity: The user's identity on the day; see `TargetUser.infer_identity`.
        seed: Random seed of the new keys and UUIDs.
    """

    technique: Technique
    victim: TargetUser
    victim_identity: ColumnValues
    seed: int

    def rewrite_records(self) -> Iterator[CloudTrailRecord]:
        """Rewrite the records, in order. `build_events` replaces times and identities."""
        for record in self.technique.records:
            rewritten = {
                name: value
                if name in _UNCHANGED_FIELDS
                else rewrite_texts(value, self._rewrite_text)
                for name, value in record.items()
            }
            region = self.victim.find_region(record["eventSource"])
            yield rewritten | self._rewrite_client(record) | {"awsRegion": region}

    def make_rng(self, old: str) -> np.random.Generator:
        """Return the generator for the replacement of an id."""
        return np.random.default_rng(derive_user_seed(self.seed, f"{self.victim.user}\n{old}"))

    def _rewrite_client(self, record: CloudTrailRecord) -> CloudTrailRecord:
        browser = record["eventSource"].startswith("signin.")
        agent, address = (str(record.get(name) or "") for name in (USER_AGENT, SOURCE_IP))
        return {
            USER_AGENT: normalise_user_agent(agent, browser=browser),
            SOURCE_IP: to_public_ip(address, self.seed) or None,
        }

    def _rewrite_text(self, text: str) -> str:
        for region in self._recorded_regions:
            text = text.replace(region, self.victim.region)
        text = self._replacement_pattern.sub(lambda match: self._replacements[match[0]], text)
        text = _ACCESS_KEY.sub(self._replace_key, strip_artefacts(text))
        return _UUID.sub(self._replace_uuid, text)

    def _replace_key(self, match: re.Match[str]) -> str:
        if match[0] in {*self.victim_identity.values()}:
            return match[0]
        letters = self.make_rng(match[0]).integers(len(_KEY_ALPHABET), size=16)
        return match[0][:4] + "".join(_KEY_ALPHABET[at] for at in letters)

    def _replace_uuid(self, match: re.Match[str]) -> str:
        return str(UUID(bytes=self.make_rng(match[0]).bytes(16), version=4))

    @cached_property
    def _recorded_regions(self) -> list[str]:
        """Regions in the records, longest first, because a region can contain another."""
        records = self.technique.records
        regions = {str(record["awsRegion"]) for record in records if "awsRegion" in record}
        return sorted(regions, key=lambda region: (-len(region), region))

    @cached_property
    def _replacements(self) -> dict[str, str]:
        """Values that identify the intruder, and those of the user that replace them."""
        first = self.technique.records[0]["userIdentity"]
        account = find_account_id(self.victim_identity) or DEFAULT_ACCOUNT_ID
        name = find_user_name(self.victim_identity, self.victim.user)
        replacements: dict[str | None, str | None] = {first.get("userName"): name}
        for part in ("arn", "principalId", "accessKeyId"):
            replacements[first.get(part)] = self.victim_identity.get(f"{IDENTITY_PREFIX}{part}")
        for record in self.technique.records:
            replacements[record["userIdentity"].get("accountId")] = account
            replacements[record.get("recipientAccountId")] = account
        return {old: new for old, new in replacements.items() if old and new}

    @cached_property
    def _replacement_pattern(self) -> re.Pattern[str]:
        longest = sorted(self._replacements, key=lambda name: (-len(name), name))
        alternatives = "|".join(map(re.escape, longest)) or r"(?!)"
        return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])")


def inject(
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    seed: int = 0,
) -> pl.DataFrame:
    """Inject a technique into one of the days of a user's events.

    The day, and the time of the first record, are drawn from the seed and the names of user and
    technique. The order and the intervals of the records stay. At every evasion level the calls
    have the user's identity, account and region, new ids, and no simulation artefacts.

    Args:
        events: Events of the user, flattened, in time order, at least one. Pass the events of a
            single day to choose the day.
        technique: The technique.
        victim: The user.
        evasion_level: One of `EVASION_LEVELS`.
        seed: Random seed.

    Returns:
        All events in time order, with the columns of `events` and `INJECTED`.

    Raises:
        ValueError: There is no such evasion level; or, at level `hours`, the technique lasts longer
            than the user is ever active.
    """
    if evasion_level not in EVASION_LEVELS:
        raise ValueError(
            f"there is no evasion level {evasion_level!r}; use one of {', '.join(EVASION_LEVELS)}"
        )
    start = draw_start(events, technique, victim, evasion_level, seed)
    if start is None:
        raise ValueError(f"{technique.name} lasts longer than {victim.user!r} is ever active")
    injected = build_events(events, technique, victim, evasion_level, start=start, seed=seed)
    return merge_events(events, injected)


def draw_start(
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    seed: int = 0,
) -> datetime | None:
    """Draw the time of the first injected event. None if no time fits. See `inject`."""
    rng = np.random.default_rng(derive_user_seed(seed, f"{victim.user}\n{technique.name}"))
    days = events[TIME].dt.truncate("1d").unique().sort().to_list()
    day = days[int(rng.integers(len(days)))]
    if evasion_level == EVASION_HOURS:
        return _draw_active_start(events, day, technique, victim, rng)
    # Leaves time for the whole technique on the same day, if it is shorter than a day.
    num_seconds = max(1, int((ONE_DAY - technique.duration).total_seconds()))
    start: datetime = day + timedelta(seconds=int(rng.integers(num_seconds)))
    return start


def build_events(  # noqa: PLR0913 - all that injected events depend on
    events: pl.DataFrame,
    technique: Technique,
    victim: TargetUser,
    evasion_level: str,
    *,
    start: datetime,
    seed: int = 0,
) -> pl.DataFrame:
    """Build the events of a technique from `start` on, as events of the user. See `inject`."""
    day = select_day(events, start)
    identity = victim.infer_identity(day if day.height else events)
    replaced = victim.select_identity_columns(events.columns)
    if evasion_level != EVASION_RECORDED:
        replaced += CLIENT_COLUMNS
    rewriter = RecordRewriter(
        technique, victim, identity, derive_user_seed(seed, f"{technique.name}\n{start}")
    )
    frame = _flatten_records(rewriter, events)
    times = pl.Series(TIME, [start + offset for offset in technique.offsets], events.schema[TIME])
    columns = {
        **_match_log_style(frame, victim),
        **{name: pl.repeat(identity.get(name), frame.height, eager=True) for name in replaced},
        "eventTime": times.dt.strftime(DEFAULT_TIME_FORMAT),
        TIME: times,
        ROW: pl.repeat(0, frame.height, eager=True),
        INDEX: pl.repeat(-1, frame.height, eager=True),
    }
    return pl.DataFrame({name: columns[name].cast(kind) for name, kind in events.schema.items()})


def merge_events(events: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Merge events by time, added ones after others of the same time, and mark them `INJECTED`."""
    parts = [
        part.with_columns(pl.lit(value=injected).alias(INJECTED))
        for part, injected in ((events, False), (added, True))
    ]
    merged = pl.concat(parts).sort(TIME, maintain_order=True)
    if ROW not in merged.columns:
        return merged
    numbers = pl.int_range(merged.height, eager=True) + events[ROW].min()
    return merged.with_columns(numbers.cast(events.schema[ROW]).alias(ROW))


def select_day(events: pl.DataFrame, time: datetime) -> pl.DataFrame:
    """Return the events on the UTC day of a time."""
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return events.filter(pl.col(TIME).is_between(day, day + ONE_DAY, closed="left"))


def recompute_derived(
    window: pl.DataFrame, known_events: pl.DataFrame, user_column: str, timezone: str = "UTC"
) -> pl.DataFrame:
    """Compute the derived columns again, for events with injected ones among them.

    Args:
        window: The events.
        known_events: All events of the user. Those before the window affect the columns.
        user_column: Name of the user column.
        timezone: Time zone of their hours and days.
    """
    derived = resolve_derived(window.columns, CLOUDTRAIL_FORMAT.derived_columns)
    features = DerivedFeatures(user_column, derived, timezone).add(window, known_events)
    return features.select(window.columns)


def _draw_active_start(
    events: pl.DataFrame,
    day: datetime,
    technique: Technique,
    victim: TargetUser,
    rng: np.random.Generator,
) -> datetime | None:
    """Draw the time of one of the user's events, on that day if one fits."""
    for candidates in (select_day(events, day), events):
        times = candidates[TIME].to_list()
        for at in rng.permutation(len(times)):
            start: datetime = times[at].replace(microsecond=0)
            hours = {(start + offset).hour for offset in technique.offsets}
            if hours <= victim.active_hours:
                return start
    return None


def _flatten_records(rewriter: RecordRewriter, events: pl.DataFrame) -> pl.DataFrame:
    """Flatten the records into the columns of `events`. Columns that we add ourselves are null."""
    added = {
        ROW,
        INDEX,
        TIME,
        ACTOR,
        *resolve_derived(events.columns, CLOUDTRAIL_FORMAT.derived_columns),
    }
    flattener = _cached_flattener(tuple(name for name in events.columns if name not in added))
    records = [msgspec.json.encode(record) for record in rewriter.rewrite_records()]
    frame, _ = flattener.flatten(records)
    return frame.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in events.schema.items() if name in added
    )


@lru_cache(maxsize=16)
def _cached_flattener(columns: tuple[str, ...]) -> Flattener:
    # One per set of columns: compiling the types takes longer than flattening a technique.
    return Flattener(columns, CLOUDTRAIL_FORMAT.paths, CLOUDTRAIL_FORMAT.json_converters)


def _match_log_style(frame: pl.DataFrame, victim: TargetUser) -> dict[str, pl.Series]:
    """Fill the columns that the user's log fills.

    A value in a column that this log never fills would reveal the injection, not the action. So
    these columns are null, apart from those that describe actions.
    """
    columns = {column.name: column for column in frame}
    null = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
    unused = {
        name: null
        for name in columns
        if name not in victim.filled_columns and not name.startswith(ACTION_PREFIXES)
    }
    by_service = {
        name: _match_service_values(frame, name, usual_values)
        for name, usual_values in victim.service_values.items()
    }
    return columns | by_service | unused


def _match_service_values(frame: pl.DataFrame, name: str, usual_values: ColumnValues) -> pl.Series:
    """Return a column of `SERVICE_COLUMNS` with the log's values for the services it contains."""
    cells = zip(frame["eventSource"], frame[name], strict=True)
    return pl.Series([usual_values.get(service, cell) for service, cell in cells], dtype=pl.String)
