"""Queries for other tools: the page's own program writes them, and the raw log answers them."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from morpheus.columns import ACTOR_OPTION
from morpheus.core.stage import PipelineOptions
from morpheus.report.view import Origin
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from raw_logs import CloudTrailTools, Record
from report_pages import open_report, read_alerts

ROOT = Path(__file__).parents[2]
TOOLS = ("Athena", "CloudTrail Lake", "Splunk", "KQL", "Elastic")
WRITE = """() => data.incidents.map((incident) => ({
  user: incident.user, day: incident.day, count: incident.count,
  evidence: incident.evidence,
  queries: Object.fromEntries(data.log.queries.map((query) =>
    [query.name, writeQuery(query, incident)])),
}))"""


@pytest.fixture(scope="module")
def fleet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `logs` of a small company and `out`, what `morpheus detect` found there."""
    folder = tmp_path_factory.mktemp("fleet")
    script, size = ROOT / "examples/make_fleet.py", ("--users", "20", "--days", "28")
    made = [sys.executable, script, "--into", folder / "made", *size, "--form", "json"]
    command = [sys.executable, "-m", "morpheus", "detect", folder / "made/json"]
    for words in (made, [*command, "--out", folder / "out"]):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def raw_records(fleet_run: Path) -> list[Record]:
    files = sorted((fleet_run / "made/json").rglob("*.json.gz"))
    return [
        one for file in files for one in json.loads(gzip.decompress(file.read_bytes()))["Records"]
    ]


@pytest.fixture(scope="module")
def incidents(fleet_run: Path, browser: Any) -> list[dict[str, Any]]:
    """The incidents of the run's page with their queries, as its program writes them."""
    view = browser.new_page()
    view.goto((fleet_run / "out/report.html").as_uri())
    view.wait_for_selector("body[data-ready]")
    found = view.evaluate(WRITE)
    view.close()
    assert len(found) > 5
    return found


@pytest.fixture(scope="module")
def alerts(fleet_run: Path) -> dict[tuple[str, str], set[str]]:
    """Event ids of the alerts of the run, by user and day."""
    found = defaultdict(set)
    for line in (fleet_run / "out/alerts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["actor"], row["event_dt"][:10]].add(row["eventID"])
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_the_query_finds_exactly_the_events_of_the_incident(
    tool: str,
    incidents: list[dict[str, Any]],
    alerts: dict[tuple[str, str], set[str]],
    raw_records: list[Record],
    tmp_path: Path,
) -> None:
    tools = CloudTrailTools(raw_records, tmp_path)
    for incident in incidents:
        expected = alerts[incident["user"], incident["day"]]
        assert len(expected) == incident["count"]
        found = tools.run(tool, incident["queries"][tool])
        assert sorted(found) == sorted(expected), incident["queries"][tool]


ACCOUNT = "123456789012"
SESSION_NAMES = ("run-7", "run-8", "i-0abc")


def assumed(role: str, session: str, key: str, **context: Any) -> dict[str, Any]:
    """An identity of an assumed role."""
    role_id = f"AROA{role.upper()}"
    issuer = {
        "type": "Role",
        "principalId": role_id,
        "arn": f"arn:aws:iam::{ACCOUNT}:role/{role}",
        "accountId": ACCOUNT,
        "userName": role,
    }
    return {
        "type": "AssumedRole",
        "principalId": f"{role_id}:{session}",
        "arn": f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}",
        "accountId": ACCOUNT,
        "accessKeyId": key,
        "sessionContext": {"sessionIssuer": issuer, **context},
    }


def without_session(identity: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in identity.items() if k not in {"sessionContext", *names}}


SSO = "AWSReservedSSO_Admin_0123456789abcdef"
FEDERATED = {"type": "FederatedUser", "principalId": f"{ACCOUNT}:bob", "accountId": ACCOUNT}
CENTER = {"type": "IdentityCenterUser", "accountId": ACCOUNT}
STORE = f"arn:aws:identitystore::{ACCOUNT}:identitystore/d-"
ACTORS = {
    "role": [assumed("deploy", "run-7", "ASIA1"), assumed("deploy", "i-0abc", "ASIA2")],
    "another role": [assumed("deploy2", "run-7", "ASIA3")],
    "role told by its ARN": [
        without_session(assumed("ci", "run-7", "ASIA4"), "principalId"),
        without_session(assumed("ci", "run-8", "ASIA5"), "principalId"),
    ],
    "another role told by its ARN": [
        without_session(assumed("ci-test", "run-7", "ASIA4"), "principalId")
    ],
    "role told by its id": [
        without_session(assumed("old", "run-7", "ASIA6"), "arn"),
        without_session(assumed("old", "run-8", "ASIA7"), "arn"),
    ],
    "person of Identity Center": [assumed(SSO, "Ann", "ASIA8"), assumed(f"{SSO}0", "Ann", "ASIA9")],
    "person of a session": [assumed("admin", "Eve@Example.org", "ASIA10")],
    "another person of that role": [assumed("admin", "mal@example.org", "ASIA11")],
    "source identity": [
        assumed("admin", "run-7", "ASIA12", sourceIdentity="zoe"),
        assumed("deploy", "run-8", "ASIA13", sourceIdentity="zoe"),
    ],
    "IAM user": [
        {"type": "IAMUser", "userName": "ben", "accountId": ACCOUNT, "accessKeyId": f"AKIA{n}"}
        for n in range(2)
    ],
    "IAM user of another account": [
        {"type": "IAMUser", "userName": "ben", "accountId": "999999999999", "accessKeyId": "AKIA3"}
    ],
    "root": [{"type": "Root", "principalId": ACCOUNT, "accountId": ACCOUNT}],
    "service": [{"type": "AWSService", "invokedBy": "ec2.amazonaws.com"}],
    "service that acts for a user": [
        {
            "type": "IAMUser",
            "userName": "ben",
            "accountId": ACCOUNT,
            "invokedBy": "rds.amazonaws.com",
        }
    ],
    "federated user": [FEDERATED],
    "SAML user": [{"type": "SAMLUser", "userName": "cat@example.org"}],
    "web identity": [
        {"type": "WebIdentityUser", "userName": "repo:a/b", "identityProvider": "github"}
    ],
    "user of a directory of Identity Center": [
        CENTER | {"onBehalfOf": {"userId": "u-1", "identityStoreArn": f"{STORE}1"}}
    ],
    "another user of Identity Center": [
        CENTER | {"onBehalfOf": {"userId": "u-2", "identityStoreArn": f"{STORE}1"}}
    ],
    "user name beside the identity": [CENTER],
    "another account": [
        {"type": "AWSAccount", "principalId": "AIDA1", "accountId": "777777777777"}
    ],
}
"""Identities of each kind of actor, as CloudTrail writes them."""
UNNAMED = {
    "source identity": ("Athena", "KQL", "Elastic"),
    "web identity": ("Athena", "KQL", "Elastic"),
    "user of a directory of Identity Center": ("KQL", "Elastic"),
    "another user of Identity Center": ("KQL", "Elastic"),
    "user name beside the identity": ("Elastic",),
}
"""Tools without a field that names the actor."""
ALSO_SELECTED = {
    "role": ["source identity"],
    "IAM user": ["service that acts for a user"],
}
"""Actors whose events have the same fields, and one more that names them."""


def make_records() -> dict[str, list[Record]]:
    """Records of all actors, by kind."""
    numbers, found = itertools.count(), {}
    for kind, identities in ACTORS.items():
        found[kind] = [
            {
                "eventTime": f"2024-05-31T09:30:{n % 60:02}Z",
                "eventID": f"00000000-0000-4000-8000-{n:012}",
                "eventSource": "s3.amazonaws.com",
                "eventName": "GetObject",
                "userIdentity": identity,
                "recipientAccountId": ACCOUNT,
                "additionalEventData": {"UserName": "dan"}
                if kind.startswith("user name")
                else None,
            }
            for identity, n in zip(identities, numbers, strict=False)
        ]
    return found


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[Record]]:
    return make_records()


@pytest.fixture(scope="module")
def actors(
    kinds: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> Iterator[Any]:
    """The page of an incident of each actor."""
    folder = tmp_path_factory.mktemp("actors")
    records = [record for found in kinds.values() for record in found]
    (folder / "a.json").write_text("\n".join(map(json.dumps, records)))
    options = PipelineOptions(columns=("eventName",), userid_column_name=ACTOR_OPTION)
    users = read_alerts(FromCloudtrail(input_glob=str(folder / "a.json"), options=options))
    assert len(users) == len(kinds)
    log = CLOUDTRAIL_FORMAT.describe()
    view = open_report(browser, folder, users, Origin("from-cloudtrail", ACTOR_OPTION, log))
    yield view
    view.close()


@pytest.fixture(scope="module")
def actor_log(
    kinds: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> CloudTrailTools:
    records = [record for found in kinds.values() for record in found]
    return CloudTrailTools(records, tmp_path_factory.mktemp("log"))


BY_USER_ALONE = """([name, id]) => {
  const incident = data.incidents.find(({ evidence }) => evidence.ids.includes(id));
  const query = data.log.queries.find((query) => query.name === name);
  return writeQuery(query, { ...incident, evidence: { ...incident.evidence, ids: [] } });
}"""


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kind", ACTORS)
def test_the_fields_of_the_log_select_the_actor(
    tool: str, kind: str, kinds: dict[str, list[Record]], actors: Any, actor_log: CloudTrailTools
) -> None:
    own = [str(record["eventID"]) for record in kinds[kind]]
    query = actors.evaluate(BY_USER_ALONE, [tool, own[0]])
    found = actor_log.run(tool, query)
    also = [one["eventID"] for other in ALSO_SELECTED.get(kind, []) for one in kinds[other]]
    assert set(own) <= set(found)
    assert ("No condition on" in query) == (tool in UNNAMED.get(kind, ()))
    if tool not in UNNAMED.get(kind, ()):
        assert set(found) <= {*own, *also}, query
    assert not [key for key in ("ASIA", "AKIA", *SESSION_NAMES) if key in query]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_documentation_shows_what_the_page_writes(tool: str, actors: Any) -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    shown = re.search(rf"^### {tool}\n\n```\w+\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] == actors.evaluate(WRITE_ONE, [tool, "deploy@123456789012"])


WRITE_ONE = """([name, user]) => {
  const incident = data.incidents.find((incident) => incident.user === user);
  return writeQuery(data.log.queries.find((query) => query.name === name), incident);
}"""
