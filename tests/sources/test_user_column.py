"""A user column that splits actors into sessions, or joins many of them, is named with the fix."""

import json
import logging
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.from_file import FromAzure
from morpheus.sources.ingest import describe_user_column

ARN, ACCOUNT = "userIdentityarn", "userIdentityaccountId"
ADVICE = "`--userid_column_name=@actor` makes each person, role and service one user."


def role(name: str, session: str, account: str = "111122223333") -> dict[str, Any]:
    return {
        "type": "AssumedRole",
        "principalId": f"AROA{name}:{session}",
        "arn": f"arn:aws:sts::{account}:assumed-role/{name}/{session}",
        "accountId": account,
        "sessionContext": {"sessionIssuer": {"userName": name}},
    }


def person(name: str, account: str = "111122223333") -> dict[str, Any]:
    arn = f"arn:aws:iam::{account}:user/{name}"
    return {"type": "IAMUser", "userName": name, "arn": arn, "accountId": account}


def write(path: Path, identities: Iterable[dict[str, Any]], suffix: str = "jsonl") -> Path:
    records = [
        {
            "eventTime": f"2024-05-{1 + n % 28:02}T09:30:00Z",
            "eventName": "Ls",
            "userIdentity": identity,
        }
        for n, identity in enumerate(identities)
    ]
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        columns = {
            "eventTime": [record["eventTime"] for record in records],
            "eventName": ["Ls"] * len(records),
            **{
                f"userIdentity.{name}": [identity.get(name) for identity in identities]
                for name in ("type", "arn", "accountId", "userName", "principalId")
            },
        }
        pl.DataFrame(columns).write_csv(path)
    return path


def find_warnings(
    caplog: pytest.LogCaptureFixture, path: Path, user: str, source: type[FileSource], **more: Any
) -> list[str]:
    options = PipelineOptions(columns=("eventName",), userid_column_name=user, **more)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        list(source(input_glob=str(path), options=options).events(None, RunMetrics()))
    return [record.getMessage() for record in caplog.records if "@actor" in record.getMessage()]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_sessions_as_users_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    identities = [role("ci", f"run-{n // 2}") for n in range(60)]
    identities += [person("ann") for _ in range(20)]
    identities += [{"type": "AWSService", "invokedBy": "s3.amazonaws.com", "arn": "none"}] * 2
    path = write(tmp_path / f"x.{suffix}", identities, suffix)
    [warning] = find_warnings(caplog, path, ARN, FromCloudtrail)
    assert warning == (
        f"`{ARN}` splits 2 actors into 31 users, most with few events (median 2). Such users may "
        f"be sessions. {ADVICE}"
    )
    assert find_warnings(caplog, path, "@actor", FromCloudtrail) == []


@pytest.mark.parametrize("accounts", [1, 30])
def test_an_account_as_a_user_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, accounts: int
) -> None:
    identities = [person(f"u{n % 7}", f"{n % accounts:012}") for n in range(400)]
    path = write(tmp_path / "x.jsonl", identities)
    [warning] = find_warnings(caplog, path, ACCOUNT, FromCloudtrail)
    assert warning == f"`{ACCOUNT}` joins at least 7 actors in one user. {ADVICE}"


@pytest.mark.parametrize(("split", "warnings"), [("input", 1), ("history", 0)])
def test_the_actors_of_the_input_are_compared_not_those_of_the_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str, warnings: int
) -> None:
    people = [person(f"u{n}") for n in range(7)] * 20
    kinds = {"input": [person("ann")] * 140, "history": [person("ann")] * 140, split: people}
    paths = {name: write(tmp_path / f"{name}.jsonl", found) for name, found in kinds.items()}
    options = PipelineOptions(columns=("eventName",), userid_column_name=ACCOUNT)
    source = FromCloudtrail(input_glob=str(paths["input"]), options=options)
    with caplog.at_level(logging.WARNING):
        list(source.events(str(paths["history"]), RunMetrics()))
    assert sum("@actor" in record.getMessage() for record in caplog.records) == warnings


def test_a_chosen_user_needs_no_advice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.jsonl", [person(f"u{n}") for n in range(50)])
    chosen = {"userid_filter": "111122223333"}
    assert find_warnings(caplog, path, ACCOUNT, FromCloudtrail, **chosen) == []


def test_services_that_act_for_a_person_are_no_other_actors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    services = [{"invokedBy": f"s{n}.amazonaws.com"} for n in range(9)]
    identities = [person("ann") | service for service in [{}, *services]] * 20
    path = write(tmp_path / "x.jsonl", identities)
    assert find_warnings(caplog, path, ARN, FromCloudtrail) == []


def make_fleet(rng: random.Random) -> list[dict[str, Any]]:
    """Make identities of people and of roles that keep one session name, few events each."""
    people = [person(f"u{n}", f"{n % 3:012}") for n in range(rng.randint(1, 200))]
    roles = [role(f"r{n}", "worker") for n in range(rng.randint(0, 50))]
    return [rng.choice(people + roles) for _ in range(rng.randint(50, 1500))]


@pytest.mark.parametrize("seed", range(8))
def test_no_advice_for_benign_fleets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    path = write(tmp_path / "x.jsonl", make_fleet(random.Random(seed)))  # noqa: S311 - a test
    assert find_warnings(caplog, path, ARN, FromCloudtrail) == []


def test_no_advice_for_sign_ins_of_many_people(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        {
            "id": str(n),
            "createdDateTime": f"2026-10-{1 + n % 28:02}T08:03:00Z",
            "userPrincipalName": f"{'U' if n % 2 else 'u'}{n // 3}@example.org",
            "userId": f"id-{n // 3}",
            "appDisplayName": "Portal",
        }
        for n in range(300)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    settings = PipelineOptions(columns=("appDisplayName",), userid_column_name="userPrincipalName")
    with caplog.at_level(logging.WARNING):
        list(FromAzure(input_glob=str(path), options=settings).events(None, RunMetrics()))
    assert "@actor" not in caplog.text


def test_users_with_many_events_may_be_split_and_one_name_may_be_in_many_accounts() -> None:
    sessions = {(f"s{n}", "ci@1"): 9 for n in range(30)}
    assert describe_user_column("arn", pl.Series([5000] * 30), sessions) is None
    accounts = {("deploy", f"deploy@{n:012}"): 9 for n in range(30)}
    assert describe_user_column("role", pl.Series([270]), accounts) is None
    assert describe_user_column("arn", pl.Series([], dtype=pl.Int64), {}) is None
