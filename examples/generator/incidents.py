"""Incidents of nine kinds: what somebody does with a member's access who should not.

Each incident is an `Intruder` with steps drawn for the victim: the trade's usual moves, some of
them refused, mixed with calls that the victim makes too. Outsiders come from an address and with a
program of their own, or with those of the victim; insiders are the victim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from random import Random

from generator.events import Call, Error, Event, Origin, Tool, at
from generator.intruder import Intruder
from generator.office import AGENTS, CONSOLE_AGENT, DENIED, SERVICES, Habits, address, call, key

Steps = list[tuple[Call, Error | None]]

OPENING = 9.0
"""Hour at which a machine's office hours would begin."""
HOSTILE = (*AGENTS, "S3 Browser/11.7.5 (https://s3browser.com)", "python-requests/2.32.3")
KALI = "Linux/6.8.11-amd64"
SWEPT = (
    ("ec2", "DescribeInstances DescribeVpcs DescribeSubnets DescribeSnapshots DescribeKeyPairs"),
    ("iam", "ListUsers ListRoles ListPolicies ListGroups GetAccountAuthorizationDetails"),
    ("s3", "ListBuckets GetBucketAcl GetBucketPolicy GetBucketLocation"),
    ("rds", "DescribeDBInstances DescribeDBSnapshots DescribeDBClusters"),
    ("lambda", "ListFunctions20150331 ListLayers20181031 GetPolicy20150331v2"),
    ("secretsmanager", "ListSecrets DescribeSecret"),
    ("kms", "ListKeys ListAliases"),
    ("eks", "ListClusters DescribeCluster"),
    ("organizations", "DescribeOrganization ListAccounts"),
    ("guardduty", "ListDetectors GetFindings"),
    ("ses", "GetSendQuota ListIdentities GetAccount"),
    ("route53", "ListHostedZones ListDomains"),
)
UNUSUAL_REGIONS = ("sa-east-1", "ap-northeast-3", "eu-north-1", "me-south-1")
LARGE = ("p4d.24xlarge", "g5.48xlarge", "p3.16xlarge", "c6i.32xlarge")


@dataclass(frozen=True)
class Incident:
    """Something that happened to a member.

    Attributes:
        kind: One of `KINDS`.
        victim: The member's number.
        events: What the log says of it, in the order of time.
    """

    kind: str
    victim: int
    events: tuple[Event, ...]


def calls(service: str, names: str, region: str) -> list[Call]:
    """Calls to one service."""
    return [call(service, name, region) for name in names.split()]


def tried(wanted: Iterable[Call], refused: float, random: Random) -> Steps:
    """Steps, a share of which is refused."""
    return [(step, DENIED if random.random() < refused else None) for step in wanted]


def familiar(habits: Habits, count: int, random: Random) -> Steps:
    """Calls that the victim makes too."""
    return [(random.choice(habits.calls), None) for _ in range(count)]


def stolen_key(habits: Habits, random: Random) -> Steps:
    """Try out a key: who am I, what is there, and then what the victim does."""
    who = calls("sts", "GetCallerIdentity", habits.region)
    look = calls("s3", "ListBuckets GetBucketLocation ListObjects", habits.region)
    return [*tried(who, 0, random), *tried(look, 0.3, random), *familiar(habits, 8, random)]


def console_takeover(habits: Habits, random: Random) -> Steps:
    """Log in to the console, look around where the victim does, and keep the victim out."""
    login = calls("signin", "ConsoleLogin", "us-east-1")
    keep = calls("iam", "ListMFADevices DeactivateMFADevice ChangePassword", habits.region)
    return [
        *tried(login, 0, random),
        *familiar(habits, 10, random),
        *tried(keep, 0.2, random),
        *familiar(habits, 4, random),
    ]


def privilege_escalation(habits: Habits, random: Random) -> Steps:
    """Try one way after the other to be allowed more."""
    ways = calls(
        "iam",
        "GetUser ListAttachedUserPolicies AttachUserPolicy AttachRolePolicy PutRolePolicy "
        "CreatePolicyVersion SetDefaultPolicyVersion AddUserToGroup PassRole",
        habits.region,
    )
    chosen = [ways[0], *random.sample(ways[1:], 6)]
    return [*familiar(habits, 3, random), *tried(chosen, 0.5, random), *familiar(habits, 3, random)]


def discovery(habits: Habits, random: Random) -> Steps:
    """Ask every service what there is."""
    asked = [step for service, names in SWEPT for step in calls(service, names, habits.region)]
    random.shuffle(asked)
    return tried(asked[: random.randint(18, len(asked))], 0.35, random)


def exfiltration(habits: Habits, random: Random) -> Steps:
    """Fetch object after object, then share a snapshot with another account."""
    place = (("requestParametersbucketName", (f"finance-archive-{random.randint(1, 9)}",)),)
    fetch = call("s3", "GetObject", habits.region, place)
    listed = calls("s3", "ListBuckets ListObjects", habits.region)
    share = calls("ec2", "DescribeSnapshots CreateSnapshot ModifySnapshotAttribute", habits.region)
    many = [fetch] * random.randint(20, 60)
    return [*tried([*listed, *many], 0.05, random), *tried(share, 0.1, random)]


def persistence(habits: Habits, random: Random) -> Steps:
    """Leave doors open: a new user, a new key, a role that trusts a stranger."""
    doors = calls(
        "iam",
        "CreateUser CreateAccessKey CreateLoginProfile AttachUserPolicy UpdateAssumeRolePolicy "
        "CreateRole",
        habits.region,
    )
    hooks = calls("lambda", "CreateFunction20150331 AddPermission20150331v2", habits.region)
    return [*familiar(habits, 4, random), *tried([*doors, *hooks], 0.15, random)]


def defence_evasion(habits: Habits, random: Random) -> Steps:
    """Switch off what watches."""
    trail = calls(
        "cloudtrail", "DescribeTrails GetTrailStatus PutEventSelectors StopLogging", habits.region
    )
    more = [
        *calls("cloudtrail", "DeleteTrail", habits.region),
        *calls("ec2", "DeleteFlowLogs", habits.region),
        *calls("guardduty", "ListDetectors UpdateDetector DeleteDetector", habits.region),
        *calls("config", "StopConfigurationRecorder", habits.region),
    ]
    chosen = random.sample(more, 4)
    return [*tried(trail, 0.1, random), *tried(chosen, 0.3, random), *familiar(habits, 3, random)]


def crypto_mining(habits: Habits, random: Random) -> Steps:
    """Start the largest computers there are, where nobody looks."""
    del habits
    region, size = random.choice(UNUSUAL_REGIONS), random.choice(LARGE)
    ask = (("requestParametersinstanceType", (size,)),)
    got = (
        ("responseElementsinstancesSetitems", ("i-0{new}",)),
        ("responseElementsreservationId", ("r-0{new}",)),
    )
    look = calls("ec2", "DescribeInstanceTypeOfferings DescribeImages CreateKeyPair", region)
    quota = calls("servicequotas", "RequestServiceQuotaIncrease", region)
    start = call("ec2", "RunInstances", region, (*ask, *got))
    refused = [(call("ec2", "RunInstances", region, ask), DENIED)] * random.randint(0, 3)
    return [*tried([*look, *quota], 0.1, random), *refused, *[(start, None)] * random.randint(3, 9)]


def insider(habits: Habits, random: Random) -> Steps:
    """Read, at night, what belongs to others."""
    others = [service for service in SERVICES if service not in habits.services]
    chosen = random.sample(others, 3)
    read = [
        call(service, random.choice(SERVICES[service].split()), habits.region)
        for service in random.choices(chosen, k=12)
    ]
    place = (("requestParametersbucketName", (f"payroll-{random.randint(1, 9)}",)),)
    fetch = [call("s3", "GetObject", habits.region, place)] * random.randint(5, 15)
    return tried([*read, *fetch], 0.15, random)


KINDS: dict[str, Callable[[Habits, Random], Steps]] = {
    "stolen-key": stolen_key,
    "console-takeover": console_takeover,
    "privilege-escalation": privilege_escalation,
    "discovery": discovery,
    "exfiltration": exfiltration,
    "persistence": persistence,
    "defence-evasion": defence_evasion,
    "crypto-mining": crypto_mining,
    "insider": insider,
}
AT_THEIR_HOURS = frozenset({"console-takeover", "privilege-escalation"})
FROM_OUTSIDE = {"stolen-key": 1.0, "console-takeover": 1.0, "insider": 0.0}
"""Share of incidents that come from an address and a program of their own; others: half."""


def happen(kind: str, victim: int, habits: Habits, day: date, random: Random) -> Incident:
    """Let an incident of a kind happen to a member on a day."""
    outside = random.random() < FROM_OUTSIDE.get(kind, 0.5)
    steps = KINDS[kind](habits, random)
    origin = foreign(kind, habits, random) if outside else own(habits, random)
    acting = Intruder(steps, origin, random.choice((2.0, 10.0, 40.0)))
    events = acting.events(start(kind, habits, day, random), random)
    return Incident(kind, victim, tuple(events))


def own(habits: Habits, random: Random) -> Origin:
    """The victim's own place and program."""
    tool = random.choice(habits.tools)
    return Origin(random.choice(habits.addresses), tool, habits.session)


def foreign(kind: str, habits: Habits, random: Random) -> Origin:
    """A place and a program that the victim never had, with the victim's key or a new one."""
    if kind == "console-takeover":
        agent = CONSOLE_AGENT.format(
            system="Windows NT 10.0; Win64; x64", version=random.randint(119, 134)
        )
        return Origin(address(random), Tool(agent, key(random)), habits.session)
    stolen: Sequence[str] = [tool.key for tool in habits.tools]
    agent = random.choice(HOSTILE).format(system=KALI)
    return Origin(address(random), Tool(agent, random.choice(stolen)), habits.session)


def start(kind: str, habits: Habits, day: date, random: Random) -> datetime:
    """When it begins: at the victim's hours, at night for insiders, or at any time."""
    opens = OPENING if habits.opens is None else habits.opens
    if kind in AT_THEIR_HOURS:
        return at(day, opens + random.uniform(0.5, 7.5))
    if kind == "insider":
        return at(day, (opens + random.uniform(13, 20)) % 23)
    return at(day, random.uniform(0, 22.5))
