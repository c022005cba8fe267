"""role-g, a role that programs use."""

from __future__ import annotations

from generator.calls import LAUNCH, THROTTLED, WEB, assume, ec2, regional, s3
from generator.events import Task, Tool
from generator.machine import Host, Job, Machine

WORKER = Tool("Boto3/1.34.11 Python/3.10.13 Linux/5.15.0 Botocore/1.34.11", "ASIAU4XWORKER0000001")
BACKUP = Tool("aws-cli/2.13.5 Python/3.11.4 Linux/5.15.0 exe/x86_64", "ASIAU4XBACKUP0000001")
PIPELINE = Tool("aws-sdk-go/1.44.300 (go1.20.6; linux; amd64)", "ASIAU4XPIPELINE00001")

HOSTS = {
    Host("192.0.2.11", "scheduler"): 4,
    Host("192.0.2.12", "scheduler"): 4,
    Host("192.0.2.37", "scheduler"): 3,
}
POLL = Task(
    {
        ec2("DescribeInstanceStatus", requestParametersinstancesSetitems=WEB): 5,
        regional("sqs", "GetQueueAttributes"): 5,
        regional("ssm", "GetParameter"): 4,
        s3("ListObjects"): 3,
        assume("inventory"): 2,
        LAUNCH: 2,
    },
    length=(1, 1),
)
FETCH = Task(
    {regional("ssm", "GetParameter").failing(THROTTLED, 0.3): 1, s3("GetObject"): 1},
    length=(1, 1),
    retry=True,
    pause=700,
)
SNAPSHOT = Task(
    {ec2("CreateSnapshot"): 2, ec2("DescribeSnapshots"): 2},
    length=(1, 2),
    pause=600,
)
ROLL_OUT = Task(
    {
        regional("ecs", "DescribeServices"): 3,
        regional("ecs", "RegisterTaskDefinition"): 1,
        regional("ecs", "UpdateService"): 2,
    },
    length=(1, 3),
    pause=900,
)
ROLE_G = Machine(
    jobs=(
        Job(POLL, WORKER, range(24), minute=2, jitter=1600, missed=0.03),
        Job(FETCH, WORKER, range(1, 24, 4), minute=33, jitter=1500),
        Job(SNAPSHOT, BACKUP, (2,), minute=15, jitter=900),
        Job(ROLL_OUT, PIPELINE, (16,), minute=20, jitter=3000, weekdays=frozenset(range(5))),
    ),
    hosts=HOSTS,
)
