"""Two users to act as: ann, in AWS's own JSON, and a role of the lessons, in flat CSV."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import polars as pl
import pytest

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.replay.injection import TargetUser
from morpheus.sources.cloudtrail import FromCloudtrail

EXAMPLES = Path(__file__).parents[2] / "examples"
ARN = "arn:aws:iam::999988887777:user/ann"
CALLS = [("s3", "ListBuckets"), ("s3", "GetBucketAcl"), ("ec2", "DescribeInstances")]
CLIENTS = [("203.0.113.5", "aws-cli/2.15.0"), ("203.0.113.6", "Boto3/1.34.0")]


def record(time: datetime, call: tuple[str, str], client: tuple[str, str]) -> dict[str, Any]:
    service, name = call
    address, agent = client
    return {
        "eventID": str(uuid5(NAMESPACE_URL, f"{time} {call} {client}")),
        "eventVersion": "1.09",
        "userIdentity": {
            "type": "IAMUser",
            "principalId": "AIDAANNANNANNANNANNA",
            "arn": ARN,
            "accountId": "999988887777",
            "accessKeyId": "AKIAANNANNANNANNANNA",
            "userName": "ann",
        },
        "eventTime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
        "eventSource": f"{service}.amazonaws.com",
        "eventName": name,
        "awsRegion": "ap-southeast-2",
        "sourceIPAddress": address,
        "userAgent": agent,
        "requestParameters": None,
        "recipientAccountId": "999988887777",
        "eventCategory": "Management",
    }


def days_of_ann(days: int, per_day: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    """Days from 9 to 5 with little variation."""
    rng = np.random.default_rng(seed)
    records = []
    for day in range(days):
        for second in sorted(rng.integers(9 * 3600, 17 * 3600, per_day)):
            time = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(days=day, seconds=int(second))
            call, client = rng.choice(3, p=[0.6, 0.3, 0.1]), rng.choice(2, p=[0.8, 0.2])
            records.append(record(time, CALLS[call], CLIENTS[client]))
    return records


def read(glob: str, user_column: str) -> pl.DataFrame:
    """All events, as `from-cloudtrail` outputs them."""
    columns = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")
    options = PipelineOptions(userid_column_name=user_column, columns=columns, num_threads=1)
    batches = FromCloudtrail(input_glob=glob, options=options).events(None, RunMetrics())
    return pl.concat([batch.table.to_frame() for batch in batches])


@pytest.fixture(scope="session")
def ann_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ann") / "ann.jsonl"
    path.write_text("\n".join(map(json.dumps, days_of_ann(28))))
    return path


@pytest.fixture(scope="session")
def ann(ann_log: Path) -> tuple[TargetUser, pl.DataFrame]:
    events = read(str(ann_log), "userIdentityarn")
    return TargetUser.from_events(ARN, "userIdentityarn", events), events


@pytest.fixture(scope="session")
def role_g() -> tuple[TargetUser, pl.DataFrame]:
    column = "userIdentitysessionContextsessionIssueruserName"
    events = read(str(EXAMPLES / "data" / "training-data" / "role-g.csv"), column)
    return TargetUser.from_events("role-g", column, events), events


@pytest.fixture(scope="session", params=["ann", "role_g"])
def victim_events(request: pytest.FixtureRequest) -> tuple[TargetUser, pl.DataFrame]:
    """A user, and the events to inject into."""
    pair: tuple[TargetUser, pl.DataFrame] = request.getfixturevalue(request.param)
    return pair
