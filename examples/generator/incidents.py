"""Incidents of nine kinds: abuse of a member's access.

Each incident is an `Intruder` with steps drawn for the victim: typical steps of the kind, some of
them denied, mixed with calls that the victim makes, too. External intruders use an address and a
program of their own, or those of the victim. An insider is the victim.
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
"""Start of the office hours that are assumed for a machine."""
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
    """An incident of a member.

    Attributes:
        kind: One of `KINDS`.
        victim: The member's number.
        events: Its events, by time.
    """

    kind: str
    victim: int
    events: tuple[Event, ...]


def calls(service: str, names: str, region: str) -> list[Call]:
    """Return calls to one service."""
    return [call(service, name, region) for name in names.split()]


def attempts(wanted: Iterable[Call], denied: float, random: Random) -> Steps:
    """Return steps; a share of them is denied."""
    return [(step, DENIED if random.random() < denied else None) for step in wanted]


def victims_calls(habits: Habits, count: int, random: Random) -> Steps:
    """Return calls that the victim makes, too."""
    return [(random.choice(habits.calls), None) for _ in range(count)]


def stolen_key(habits: Habits, random: Random) -> Steps:
    """Test a key: get the identity, list resources, then call what the victim calls."""
    who = calls("sts", "GetCallerIdentity", habits.region)
    look = calls("s3", "ListBuckets GetBucketLocation ListObjects", habits.region)
    return [
        *attempts(who, 0, random),
        *attempts(look, 0.3, random),
        *victims_calls(habits, 8, random),
    ]


def console_takeover(habits: Habits, random: Random) -> Steps:
    """Log in to the console, use the victim's services, and lock the victim out."""
    login = calls("signin", "ConsoleLogin", "us-east-1")
    keep = calls("iam", "ListMFADevices DeactivateMFADevice ChangePassword", habits.region)
    return [
        *attempts(login, 0, random),
        *victims_calls(habits, 10, random),
        *attempts(keep, 0.2, random),
        *victims_calls(habits, 4, random),
    ]


def privilege_escalation(habits: Habits, random: Random) -> Steps:
    """Try several ways to get more permissions."""
    ways = calls(
        "iam",
        "GetUser ListAttachedUserPolicies AttachUserPolicy AttachRolePolicy PutRolePolicy "
        "CreatePolicyVersion SetDefaultPolicyVersion AddUserToGroup PassRole",
        habits.region,
    )
    chosen = [ways[0], *random.sample(ways[1:], 6)]
    return [
        *victims_calls(habits, 3, random),
        *attempts(chosen, 0.5, random),
        *victims_calls(habits, 3, random),
    ]


def discovery(habits: Habits, random: Random) -> Steps:
    """List the resources of every service."""
    asked = [step for service, names in SWEPT for step in calls(service, names, habits.region)]
    random.shuffle(asked)
    return attempts(asked[: random.randint(18, len(asked))], 0.35, random)


def exfiltration(habits: Habits, random: Random) -> Steps:
    """Download many objects, then share a snapshot with another account."""
    place = (("requestParametersbucketName", (f"finance-archive-{random.randint(1, 9)}",)),)
    fetch = call("s3", "GetObject", habits.region, place)
    list_calls = calls("s3", "ListBuckets ListObjects", habits.region)
    share = calls("ec2", "DescribeSnapshots CreateSnapshot ModifySnapshotAttribute", habits.region)
    many = [fetch] * random.randint(20, 60)
    return [*attempts([*list_calls, *many], 0.05, random), *attempts(share, 0.1, random)]


def persistence(habits: Habits, random: Random) -> Steps:
    """Create permanent access: a new user, a new key, a role that trusts an external account."""
    backdoors = calls(
        "iam",
        "CreateUser CreateAccessKey CreateLoginProfile AttachUserPolicy UpdateAssumeRolePolicy "
        "CreateRole",
        habits.region,
    )
    hooks = calls("lambda", "CreateFunction20150331 AddPermission20150331v2", habits.region)
    return [*victims_calls(habits, 4, random), *attempts([*backdoors, *hooks], 0.15, random)]


def defence_evasion(habits: Habits, random: Random) -> Steps:
    """Switch off monitoring."""
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
    return [
        *attempts(trail, 0.1, random),
        *attempts(chosen, 0.3, random),
        *victims_calls(habits, 3, random),
    ]


def crypto_mining(habits: Habits, random: Random) -> Steps:
    """Start the largest instances in an unused region."""
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
    return [
        *attempts([*look, *quota], 0.1, random),
        *refused,
        *[(start, None)] * random.randint(3, 9),
    ]


def insider(habits: Habits, random: Random) -> Steps:
    """Read data of others at night."""
    others = [service for service in SERVICES if service not in habits.services]
    chosen = random.sample(others, 3)
    read = [
        call(service, random.choice(SERVICES[service].split()), habits.region)
        for service in random.choices(chosen, k=12)
    ]
    place = (("requestParametersbucketName", (f"payroll-{random.randint(1, 9)}",)),)
    fetch = [call("s3", "GetObject", habits.region, place)] * random.randint(5, 15)
    return attempts([*read, *fetch], 0.15, random)


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
"""Share of incidents from an address and a program of the intruder's own. Other kinds: half."""


def happen(kind: str, victim: int, habits: Habits, day: date, random: Random) -> Incident:
    """Create an incident of a kind for a member on a day."""
    outside = random.random() < FROM_OUTSIDE.get(kind, 0.5)
    steps = KINDS[kind](habits, random)
    origin = foreign(kind, habits, random) if outside else own(habits, random)
    acting = Intruder(steps, origin, random.choice((2.0, 10.0, 40.0)))
    events = acting.events(start(kind, habits, day, random), random)
    return Incident(kind, victim, tuple(events))


def own(habits: Habits, random: Random) -> Origin:
    """Return the victim's own address and program."""
    tool = random.choice(habits.tools)
    return Origin(random.choice(habits.addresses), tool, habits.session)


def foreign(kind: str, habits: Habits, random: Random) -> Origin:
    """Return an address and a program that the victim never had, with the victim's or a new key."""
    if kind == "console-takeover":
        agent = CONSOLE_AGENT.format(
            system="Windows NT 10.0; Win64; x64", version=random.randint(119, 134)
        )
        return Origin(address(random), Tool(agent, key(random)), habits.session)
    stolen: Sequence[str] = [tool.key for tool in habits.tools]
    agent = random.choice(HOSTILE).format(system=KALI)
    return Origin(address(random), Tool(agent, random.choice(stolen)), habits.session)


def start(kind: str, habits: Habits, day: date, random: Random) -> datetime:
    """Draw the start: at the victim's hours, at night for insiders, or at any time."""
    opens = OPENING if habits.opens is None else habits.opens
    if kind in AT_THEIR_HOURS:
        return at(day, opens + random.uniform(0.5, 7.5))
    if kind == "insider":
        return at(day, (opens + random.uniform(13, 20)) % 23)
    return at(day, random.uniform(0, 22.5))
