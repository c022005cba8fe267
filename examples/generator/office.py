"""The members of a made-up company: people of several trades, build roles, services, schedulers.

Each member has a separate random generator, so you can add one without changing the others. A
member's *habits* are tools, addresses, hours and services. Incidents deviate from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from random import Random

from generator.events import Call, Error, Event, Task, Tool, at
from generator.machine import Host, Job, Machine
from generator.person import Errand, Person, Stay, Work

REGIONS = ("us-east-1", "eu-west-1", "ap-south-1")
OFFSETS = {"us-east-1": (-5.0, -8.0), "eu-west-1": (0.0, 1.0), "ap-south-1": (5.5,)}
"""UTC offsets, in hours, of the people in each region."""
HOLIDAYS = {
    "us-east-1": frozenset({date(2025, 5, 26), date(2025, 6, 19), date(2025, 7, 4)}),
    "eu-west-1": frozenset({date(2025, 4, 18), date(2025, 4, 21), date(2025, 5, 1)}),
    "ap-south-1": frozenset({date(2025, 3, 14), date(2025, 4, 14), date(2025, 8, 15)}),
}
CALLS_OF_A_TASK = 2.5
"""Mean number of calls of a task with 1 to 4 calls."""

DENIED = Error("AccessDenied", "User: {arn} is not authorized to perform: {action}")
THROTTLED = Error("ThrottlingException", "Rate exceeded")
MISSING = Error("ResourceNotFoundException", "The requested resource does not exist")

VERSIONS = {
    "ec2": "2016-11-15",
    "iam": "2010-05-08",
    "sts": "2011-06-15",
    "cloudformation": "2010-05-15",
    "monitoring": "2010-08-01",
}
SERVICES = {
    "ec2": "DescribeInstances DescribeInstanceStatus DescribeSecurityGroups DescribeVolumes "
    "DescribeImages StartInstances StopInstances CreateTags RunInstances",
    "cloudformation": "DescribeStacks DescribeStackEvents CreateChangeSet ExecuteChangeSet",
    "lambda": "ListFunctions20150331 GetFunction20150331v2 UpdateFunctionCode20150331v2 Invoke",
    "logs": "FilterLogEvents DescribeLogGroups DescribeLogStreams StartQuery GetQueryResults",
    "athena": "StartQueryExecution GetQueryExecution GetQueryResults ListWorkGroups",
    "glue": "GetTables GetDatabases GetPartitions StartJobRun GetJobRun",
    "s3": "ListObjects GetObject PutObject ListBuckets GetBucketLocation DeleteObject",
    "iam": "ListUsers ListRoles GetRole ListAttachedRolePolicies GetUser ListPolicies",
    "ecs": "DescribeServices DescribeTasks UpdateService RegisterTaskDefinition ListTasks",
    "rds": "DescribeDBInstances DescribeDBClusters DescribeDBSnapshots CreateDBSnapshot",
    "dynamodb": "DescribeTable ListTables UpdateTable DescribeContinuousBackups",
    "secretsmanager": "GetSecretValue DescribeSecret ListSecrets",
    "ssm": "GetParameter GetParameters DescribeParameters StartSession SendCommand",
    "kms": "Decrypt GenerateDataKey DescribeKey ListAliases",
    "sqs": "GetQueueAttributes ListQueues SendMessage ReceiveMessage",
    "monitoring": "DescribeAlarms GetMetricData ListMetrics PutMetricAlarm",
    "ecr": "GetAuthorizationToken BatchGetImage DescribeRepositories PutImage",
    "ce": "GetCostAndUsage GetCostForecast GetDimensionValues",
    "support": "DescribeCases DescribeTrustedAdvisorChecks AddCommunicationToCase",
    "cloudtrail": "LookupEvents DescribeTrails GetTrailStatus",
}
TRADES = {
    "developer": ("lambda", "logs", "cloudformation", "s3", "ecs", "sqs", "dynamodb", "ssm"),
    "analyst": ("athena", "glue", "s3", "logs", "monitoring"),
    "operator": ("ec2", "monitoring", "ssm", "rds", "ecs", "logs", "secretsmanager"),
    "auditor": ("iam", "cloudtrail", "kms", "s3", "ce"),
    "supporter": ("support", "ec2", "monitoring", "logs"),
}
MACHINES = {
    "build": ("ecr", "ecs", "cloudformation", "lambda", "s3"),
    "service": ("sqs", "kms", "secretsmanager", "s3", "dynamodb", "ssm"),
    "scheduler": ("glue", "athena", "rds", "ec2", "s3"),
}
KINDS = ("person",) * 12 + ("build",) * 3 + ("service",) * 3 + ("scheduler",) * 2

DARWIN = ("Darwin/23.6.0", "Darwin/24.3.0")
AGENTS = (
    "aws-cli/2.15.30 Python/3.11.8 {system} source/x86_64",
    "aws-cli/2.22.7 md/awscrt#0.22.0 ua/2.0 os/{system} lang/python#3.12.6",
    "Boto3/1.34.69 Python/3.11.8 {system} Botocore/1.34.69",
    "Boto3/1.35.81 md/Botocore#1.35.81 ua/2.0 os/{system} lang/python#3.12.3",
    "aws-sdk-js/3.622.0 ua/2.1 os/{system} lang/js md/nodejs#20.16.0",
)
PROGRAMS = (
    "aws-sdk-go/1.55.5 (go1.22.5; linux; amd64)",
    "aws-sdk-java/2.27.4 Linux/5.10.220 OpenJDK_64-Bit_Server_VM/21.0.4",
    "Boto3/1.34.11 Python/3.10.13 Linux/5.15.0 Botocore/1.34.11",
    "APN/1.0 HashiCorp/1.0 Terraform/1.9.2 aws-sdk-go-v2/1.30.3",
)
CONSOLE_AGENT = "Mozilla/5.0 ({system}) AppleWebKit/537.36 Chrome/{version}.0.0.0 Safari/537.36"
SIZES = ("t3.micro", "t3.medium", "m5.large", "c6i.xlarge")


@dataclass(frozen=True)
class Habits:
    """The observable habits of a member.

    Attributes:
        region: The region of their work.
        opens: Hour of the day (UTC) at which a person starts; None for a machine.
        tools: Programs and keys.
        addresses: Usual addresses.
        services: Services in use.
        calls: Usual calls.
        session: Session name.
    """

    region: str
    opens: float | None
    tools: tuple[Tool, ...]
    addresses: tuple[str, ...]
    services: tuple[str, ...]
    calls: tuple[Call, ...]
    session: str


@dataclass(frozen=True)
class Member:
    """One user of the account.

    Attributes:
        name: Name of the role, which identifies the member in the log.
        kind: `person`, `build`, `service` or `scheduler`.
        life: The behaviour model.
        habits: The observable habits.
        lease: Days until keys are replaced; None if they never are.
    """

    name: str
    kind: str
    life: Person | Machine
    habits: Habits
    lease: int | None

    def day(self, day: date, random: Random) -> Iterator[Event]:
        """Generate the events of one day."""
        if isinstance(self.life, Machine):
            yield from self.life.events(day, 1, random)
            return
        yield from self.life.day(day, random)
        for errand in self.life.errands:
            if errand.start.date() == day:
                yield from self.life.run(errand, random)


@dataclass(frozen=True)
class Span:
    """A range of days."""

    first: date
    days: int

    def some(self, random: Random, since: float = 0.0) -> date:
        """Draw a day from the part after `since`, given as a share of the range."""
        return self.first + timedelta(days=int(random.uniform(since, 1) * self.days))


@cache
def call(service: str, name: str, region: str, details: tuple = (), fails: float = 0.0) -> Call:  # type: ignore[type-arg]  # columns and values, as in `Call`
    """Return a call to a service in a region. Equal calls are the same object."""
    host = f"{service}.{region}.amazonaws.com"
    error = DENIED if fails >= 1 else MISSING if name.startswith("Get") else THROTTLED
    return Call(service, name, VERSIONS.get(service, ""), host, details, error, fails)


def task(service: str, region: str, own: Mapping[str, tuple[str, ...]], random: Random) -> Task:
    """Draw a task: calls to one service with weights and error rates."""
    names = SERVICES[service].split()
    chosen = random.sample(names, random.randint(2, len(names)))
    calls: dict[Call, float] = {}
    for name in chosen:
        details = tuple((column, own[column]) for column in detail_columns(service, name))
        fails = random.choice((0.0, 0.0, 0.0, 0.03, 0.15))
        calls[call(service, name, region, details, fails)] = random.lognormvariate(0, 1)
    return Task(calls, pause=random.choice((20.0, 60.0, 150.0)), retry=chance(0.5, random))


def detail_columns(service: str, name: str) -> Sequence[str]:
    """Return the request and response columns of a call."""
    if name == "RunInstances":
        return (
            "requestParametersinstanceType",
            "responseElementsinstancesSetitems",
            "responseElementsreservationId",
        )
    if service == "s3":
        return ("requestParametersbucketName",) if "Object" in name else ()
    if service == "lambda" and not name.startswith("List"):
        return ("requestParametersfunctionName",)
    if service == "ec2" and name.endswith(("Instances", "Status", "Tags")):
        return ("requestParametersinstancesSetitems",)
    if name == "DescribeImages":
        return ("requestParametersownersSetitems",)
    return ("requestParametersmaxResults",) if name.startswith(("Describe", "List")) else ()


def draw_resources(name: str, random: Random) -> dict[str, tuple[str, ...]]:
    """Draw the resources of a member, by column."""
    instances = (f"i-0{random.getrandbits(64):016x}" for _ in range(random.randint(1, 8)))
    few = random.randint(1, 3)
    return {
        "requestParametersbucketName": tuple(f"{name}-data-{n}" for n in range(few)),
        "requestParametersfunctionName": tuple(f"{name}-job-{n}" for n in range(few)),
        "requestParametersinstancesSetitems": tuple(instances),
        "requestParametersinstanceType": tuple(random.sample(SIZES, few)),
        "requestParametersownersSetitems": ("self",),
        "requestParametersmaxResults": tuple(random.sample(("20", "50", "100", "1000"), few)),
        "responseElementsinstancesSetitems": ("i-0{new}",),
        "responseElementsreservationId": ("r-0{new}",),
    }


def chance(share: float, random: Random) -> bool:
    """Return True with this probability."""
    return random.random() < share


def key(random: Random) -> str:
    """Draw an access key id."""
    return "ASIA" + "".join(random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=16))


def address(random: Random, block: str = "") -> str:
    """Draw an IP address, within `block` if given."""
    block = block or f"{random.randint(11, 223)}.{random.randint(0, 255)}"
    return f"{block}.{random.randint(0, 255)}.{random.randint(1, 254)}"


def member(number: int, span: Span, rate: float, seed: int, kind: str = "") -> Member:
    """Draw the member with this number.

    Args:
        number: Number of the member, from 0. With `seed`, it determines the member.
        span: All days.
        rate: Mean number of events per day, over all members and days.
        seed: Random seed of the company.
        kind: One of `KINDS`; empty to draw it. The first member is always a person.
    """
    random = Random(f"{seed} member {number}")  # noqa: S311 - made-up logs, not secrets
    kind = kind or ("person" if number == 0 else random.choice(KINDS))
    name = f"{kind}-{number:05d}"
    region = random.choice(REGIONS)
    lease = random.choice((None, None, 1, 7))
    if kind == "person":
        rate *= random.lognormvariate(-0.18, 0.6)
        return person(name, region=region, span=span, rate=rate, lease=lease, random=random)
    rate *= random.lognormvariate(-1.1, 1.5)
    return machine(name, kind=kind, region=region, rate=rate, lease=lease, random=random)


def person(  # noqa: PLR0913 - what tells one person from another
    name: str, *, region: str, span: Span, rate: float, lease: int | None, random: Random
) -> Member:
    """Draw a person with a trade, a laptop, an office and days off."""
    trade = random.choice(list(TRADES))
    services = random.sample(TRADES[trade], random.randint(3, len(TRADES[trade])))
    opens = random.gauss(8.8, 0.7) - random.choice(OFFSETS[region])
    office = f"203.0.{113 + REGIONS.index(region)}.{random.randint(1, 30)}"
    home, trip = address(random), address(random)
    console, laptop, newer = laptop_tools(random)
    work = draw_work(
        services, (console, laptop, newer), span=span, random=random, name=name, region=region
    )
    life = Person(
        session=f"{name}@example.com",
        work=work,
        addresses={office: random.uniform(1, 6), home: random.uniform(1, 4)},
        late_address=home,
        hours=(opens, opens + random.gauss(8.5, 0.6)),
        lunch=opens + 3.5,
        goes=max(rate * 7 / 5 / CALLS_OF_A_TASK, 1.0),
        stays=travels(span, trip, address(random), random),
        errands=errands(span, (opens, home), laptop, region, random),
        off=days_off(span, region, random),
        late=random.choice((0.0, 0.05, 0.15, 0.3)),
    )
    known = Habits(
        region,
        opens,
        (console, laptop),
        (office, home),
        tuple(services),
        all_calls(work),
        life.session,
    )
    return Member(name, "person", life, known, lease)


def all_calls(work: Sequence[Work | Job]) -> tuple[Call, ...]:
    """Return the calls of all tasks."""
    return tuple(call for item in work for call in item.task.calls)


def laptop_tools(random: Random) -> tuple[Tool, Tool, Tool]:
    """Draw a browser, a program on the laptop, and a program on the next laptop."""
    system, agent = random.choice(DARWIN), random.choice(AGENTS)
    browser = CONSOLE_AGENT.format(
        system="Macintosh; Intel Mac OS X 10_15_7", version=random.randint(119, 134)
    )
    newer = random.choice(AGENTS).format(system="Linux/6.8.0")
    return (
        Tool(browser, key(random)),
        Tool(agent.format(system=system), key(random)),
        Tool(newer, key(random)),
    )


def draw_work(  # noqa: PLR0913 - properties of a person's work
    services: Sequence[str],
    tools: tuple[Tool, Tool, Tool],
    *,
    span: Span,
    random: Random,
    name: str,
    region: str,
) -> tuple[Work, ...]:
    """Draw a person's work, with a temporary project and perhaps a new laptop."""
    console, laptop, newer = tools
    own = draw_resources(name, random)
    replaced = span.some(random) if chance(0.25, random) else date.max
    work = []
    for service in services:
        todo, weight = task(service, region, own, random), random.lognormvariate(0, 0.8)
        work.append(Work(todo, console, weight * random.random()))
        work.append(Work(todo, laptop, weight, last=replaced))
        work.append(Work(todo, newer, weight, first=replaced))
    project = random.choice(list(SERVICES))
    begins = span.some(random, 0.2)
    todo = task(project, region, draw_resources(f"{name}-new", random), random)
    ends = begins + timedelta(days=random.randint(5, 40))
    work.append(Work(todo, laptop, random.uniform(0.1, 1.0), first=begins, last=ends))
    return tuple(work)


def travels(span: Span, trip: str, moved: str, random: Random) -> tuple[Stay, ...]:
    """Draw a business trip and perhaps a new home."""
    stays = []
    if chance(0.4, random):
        first = span.some(random)
        stays.append(Stay(first, first + timedelta(days=random.randint(1, 6)), trip))
    if chance(0.1, random):
        stays.append(Stay(span.some(random), date.max, moved))
    return tuple(stays)


def errands(
    span: Span, place: tuple[float, str], tool: Tool, region: str, random: Random
) -> tuple[Errand, ...]:
    """Draw tasks that are done once: a yearly review, an outage in the evening."""
    opens, home = place
    service = random.choice(list(SERVICES))
    once = task(service, region, draw_resources("shared", random), random)
    starts: list[datetime] = []
    if chance(0.5, random):
        starts.append(at(span.some(random), opens + random.uniform(0, 8)))
    if chance(0.2, random):
        starts.append(at(span.some(random), min(opens + random.uniform(12, 16), 23.5)))
    return tuple(Errand(start, once, tool, home) for start in starts)


def days_off(span: Span, region: str, random: Random) -> frozenset[date]:
    """Draw days off: the region's holidays and perhaps leave."""
    leave: frozenset[date] = frozenset()
    if chance(0.4, random):
        first = span.some(random)
        leave = frozenset(first + timedelta(days=n) for n in range(random.choice((3, 7, 14))))
    return HOLIDAYS[region] | leave


def machine(  # noqa: PLR0913 - what tells one machine from another
    name: str, *, kind: str, region: str, rate: float, lease: int | None, random: Random
) -> Member:
    """Draw a role that programs use: builds on working days, services all day, jobs at night."""
    services = random.sample(MACHINES[kind], random.randint(2, 4))
    own, block = draw_resources(name, random), f"10.{random.randint(0, 255)}"
    tools = tuple(Tool(agent, key(random)) for agent in random.sample(PROGRAMS, 2))
    shares = [random.lognormvariate(0, 1) for _ in services]
    jobs = []
    for service, share in zip(services, shares, strict=True):
        runs = max(rate * share / sum(shares) / CALLS_OF_A_TASK, 0.5)
        todo = task(service, region, own, random)
        jobs.append(timetable(kind, todo, random.choice(tools), runs, random))
    hosts = [Host(address(random, block), f"{kind}-{n}") for n in range(random.randint(1, 5))]
    life = Machine(jobs, {host: random.uniform(1, 4) for host in hosts})
    addresses = tuple(host.address for host in hosts)
    known = Habits(
        region, None, tools, addresses, tuple(services), all_calls(jobs), hosts[0].session
    )
    return Member(name, kind, life, known, lease)


def timetable(kind: str, todo: Task, tool: Tool, runs: float, random: Random) -> Job:
    """Return the schedule of a task with a mean of `runs` runs per day."""
    often = max(round(runs), 1)
    missed = max(0.0, 1 - runs / often) * 0.9
    if kind == "build":
        hours = [8 + 12 * (n + 0.5) / often for n in range(often)]
        return Job(todo, tool, hours, 0, 5400.0, frozenset(range(5)), missed)
    if kind == "service":
        hours = [24 * n / often for n in range(often)]
        return Job(todo, tool, hours, 0, 86400 / often, missed=missed)
    first = random.randint(0, 6)
    hours = [first + n * 3 / often for n in range(often)]
    return Job(todo, tool, hours, random.randint(0, 59), 20.0, missed=missed)
