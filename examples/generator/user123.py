"""user123, an engineer who runs a photo service in California, and the intruder."""

from __future__ import annotations

from datetime import UTC, date, datetime

from generator.calls import (
    DENIED,
    ITEMS,
    LAUNCH,
    NO_KEY,
    NO_STACK,
    NOT_FOUND,
    PAGES,
    THROTTLED,
    WEB,
    assume,
    ec2,
    iam,
    instances,
    regional,
    s3,
)
from generator.events import Call, Origin, Task, Tool
from generator.intruder import Intruder
from generator.person import Errand, Person, Stay, Work

BREAK_IN = datetime(2024, 5, 18, 11, 52, tzinfo=UTC)
"""A Saturday. In California, where user123 lives, it is 04:52."""

CONSOLE = Tool("console.amazonaws.com", "ASIAU4XCONSOLE000001")
CLI = Tool("aws-cli/2.15.30 Python/3.11.8 Darwin/23.4.0 exe/x86_64", "ASIAU4XLAPTOP0000001")
NOTEBOOK = Tool("Boto3/1.34.69 Python/3.11.8 Linux/6.5.0 Botocore/1.34.69", "ASIAU4XNOTEBOOK00001")
OLD_SCRIPT = Tool("Boto3/1.17.49 Python/3.8.5 Linux/5.4.0 Botocore/1.20.49", "ASIAU4XBUILDBOX00001")

OFFICE, HOME, PHONE, TRAIN = "203.0.113.24", "198.51.100.77", "198.51.100.201", "192.0.2.146"

LOOK_AROUND = Task(
    {
        ec2("DescribeInstances", **PAGES): 5,
        ec2("DescribeInstanceStatus", requestParametersinstancesSetitems=instances(25)): 10,
        ec2("DescribeSecurityGroups", **PAGES): 4,
        ec2("DescribeVolumes", **PAGES): 2,
        ec2("DescribeImages", requestParametersownersSetitems=("self",)): 3,
        ec2("DescribeSubnets"): 0.5,
        regional("monitoring", "DescribeAlarms", "2010-08-01"): 4,
        s3("ListBuckets"): 2,
    },
    pause=240,
)
DEPLOY = Task(
    {
        regional("cloudformation", "DescribeStacks", "2010-05-15").failing(NO_STACK, 0.15): 6,
        regional("cloudformation", "CreateChangeSet", "2010-05-15"): 2,
        regional("cloudformation", "ExecuteChangeSet", "2010-05-15"): 2,
        s3("PutObject"): 3,
        regional("lambda", "UpdateFunctionCode20150331v2"): 3,
        regional("lambda", "GetFunction20150331v2"): 3,
    },
    retry=True,
    pause=240,
)
READ_LOGS = Task(
    {
        regional("logs", "FilterLogEvents").failing(THROTTLED, 0.1): 6,
        regional("logs", "DescribeLogGroups"): 2,
        regional("logs", "DescribeLogStreams"): 3,
        regional("ssm", "GetParameter"): 2,
    },
    retry=True,
    pause=240,
)
STUDY = Task(
    {
        s3("ListObjects"): 4,
        s3("GetObject").failing(NO_KEY, 0.12): 5,
        regional("athena", "StartQueryExecution"): 3,
        regional("athena", "GetQueryExecution"): 3,
    },
    pause=240,
)
REVIEW = Task(
    {
        iam("ListUsers", **ITEMS): 2,
        iam("ListRoles", **ITEMS): 4,
        iam("ListAttachedRolePolicies"): 3,
        iam("GetRole"): 2,
    },
    pause=240,
)
SHARE = Task({assume("data-exchange"): 1, s3("PutObject"): 1}, length=(1, 2), pause=240)
CHECK_KEYS = Task({iam("ListAccessKeys").failing(DENIED, 0.5): 1}, length=(1, 2), pause=240)
RESTART = Task(
    {
        ec2("StopInstances", requestParametersinstancesSetitems=WEB).failing(NOT_FOUND, 0.3): 2,
        ec2("StartInstances", requestParametersinstancesSetitems=WEB): 2,
        LAUNCH: 5,
    },
    pause=240,
)
MIGRATE = Task(
    {
        s3("ListObjects"): 3,
        s3("GetObject"): 3,
        s3("PutObject"): 4,
    },
    pause=240,
)

DETACH = iam("DetachRolePolicy")
LIST_POLICIES = iam("ListAttachedRolePolicies")
DELETE_ROLE = iam("DeleteRole")
SUBNETS = ec2("DescribeSubnets")
# The company's own tool to delete sandboxes logs to the same trail.
DELETE_EVERYTHING = Call("sandbox", "DeleteEverything")
CLEAN_UP = Task(
    {LIST_POLICIES: 1, DETACH: 1, DELETE_ROLE: 1, SUBNETS: 1, DELETE_EVERYTHING: 1},
    in_order=True,
    pause=120,
)
CLEAN_UP_REFUSED = Task(
    {call.failing(DENIED, 1.0): 1 for call in (DETACH, DELETE_ROLE, DELETE_EVERYTHING)},
    in_order=True,
    pause=120,
)

USER123 = Person(
    session="user123",
    addresses={OFFICE: 6, HOME: 4, PHONE: 2},
    late_address=HOME,
    hours=(15.5, 24.5),  # from 08:30 in California
    goes=25,
    work=(
        Work(LOOK_AROUND, CONSOLE, 4),
        Work(LOOK_AROUND, CLI, 3),
        Work(DEPLOY, CLI, 5),
        Work(READ_LOGS, CLI, 4),
        Work(READ_LOGS, CONSOLE, 2),
        Work(STUDY, NOTEBOOK, 3),
        Work(REVIEW, CONSOLE, 1.5),
        Work(CHECK_KEYS, CONSOLE, 1),
        Work(SHARE, NOTEBOOK, 5),
        Work(RESTART, CONSOLE, 3.5),
        Work(MIGRATE, OLD_SCRIPT, 1.2, date(2024, 4, 8), date(2024, 4, 19)),
        Work(MIGRATE, OLD_SCRIPT, 0.5, date(2024, 5, 6), date(2024, 6, 30)),
    ),
    stays=(
        Stay(date(2024, 4, 24), date(2024, 4, 24), TRAIN),
        Stay(date(2024, 5, 23), date(2024, 5, 23), TRAIN),
    ),
    errands=(
        Errand(datetime(2024, 4, 12, 21, 5, tzinfo=UTC), CLEAN_UP_REFUSED, CONSOLE, OFFICE),
        Errand(datetime(2024, 4, 12, 21, 30, tzinfo=UTC), CLEAN_UP, CONSOLE, OFFICE),
        Errand(datetime(2024, 5, 3, 20, 40, tzinfo=UTC), CLEAN_UP, CLI, HOME),
    ),
    off=frozenset({date(2024, 3, 29), date(2024, 4, 1), date(2024, 4, 22), date(2024, 5, 27)}),
)

INTRUDER = Intruder(
    steps=(
        (DETACH, DENIED),
        (DELETE_ROLE, DENIED),
        (SUBNETS, None),
        (LIST_POLICIES, None),
        (DELETE_EVERYTHING, DENIED),
        (DETACH, None),
        (DELETE_ROLE, None),
        (DELETE_EVERYTHING, DENIED),
    ),
    origin=Origin(TRAIN, OLD_SCRIPT, "user123"),
)
