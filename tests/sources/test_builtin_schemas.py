"""Built-in schemas and those of examples/ read the logs that they describe."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.columns import ACTOR
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sources.from_file import FromAzure, FromDuo, FromFile
from morpheus.sources.json_records import flatten_name
from morpheus.sources.schema_file import list_builtin_schemas, load_schema
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")
EXAMPLES = sorted((ROOT / "examples" / "schemas").glob("*.toml"))
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/123.0.0.0 Safari/537.36"


def make_source(schema: str, path: Path, **settings: Any) -> FromFile:
    options = FromFile(input_glob=str(path)).with_defaults(
        PipelineOptions(columns_file=schema, **settings)
    )
    return FromFile(input_glob=str(path), options=options, bad_record="skip")


def only(schema: str, folder: Path, record: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The one event that a record becomes."""
    (folder / "a.json").write_text(json.dumps(record))
    [batch] = make_source(schema, folder / "a.json", **settings).events(None, RunMetrics())
    return batch.table.to_frame().row(0, named=True)


def has(event: dict[str, Any], **expected: Any) -> bool:
    found = {name: event.get(name) for name in expected}
    assert found == expected
    return True


@pytest.mark.parametrize("schema", [*list_builtin_schemas(), *map(str, EXAMPLES)])
def test_every_feature_is_a_log_or_derived_column(schema: str) -> None:
    about = load_schema(schema)
    known = {
        *about.log_format.columns,
        *about.log_format.derived_columns,
        *about.log_format.fallbacks,
    }
    bare = {name.removeprefix("new:") for name in about.features}
    needs = {need for one in about.log_format.derived_columns.values() for need in one.inputs}
    rules = {name for rule in about.log_format.actor_rules for name in rule.columns}
    assert bare | needs | rules | set(about.log_format.context_columns) <= known
    assert {about.log_format.time_column, about.log_format.user_column} <= known


@pytest.mark.parametrize("schema", [*list_builtin_schemas(), *map(str, EXAMPLES)])
def test_records_are_decoded_by_the_compiled_type(schema: str) -> None:
    about, form = load_schema(schema), load_schema(schema).log_format
    for user in (form.user_column, ACTOR):
        decoded = form.columns_to_decode(form.columns_to_read(about.features, user), user)
        assert set(decoded) <= {flatten_name(path, form.drop_characters) for path in form.paths}


def test_schemas_of_azure_and_duo_equal_their_sources(tmp_path: Path) -> None:
    assert load_schema("azure.toml").log_format is FromAzure.log_format
    assert load_schema("duo.toml").log_format is FromDuo.log_format
    event = {"isotimestamp": "2024-05-31T09:00:00Z", "user": {"name": "ann"}, "result": "denied"}
    assert has(only("duo.toml", tmp_path, event), username="ann", logcount=0)


def test_okta_event_is_read(tmp_path: Path) -> None:
    record = {
        "uuid": "44aeb388-08b4-11ef-9cec-73ffcb6f9fdd",
        "published": "2024-05-02T18:46:21.121Z",
        "eventType": "user.session.start",
        "actor": {"alternateId": "Ann@X.org", "displayName": "Ann", "id": "00u1", "type": "User"},
        "client": {
            "device": "Computer",
            "ipAddress": "203.0.113.9",
            "zone": "null",
            "userAgent": {"browser": "CHROME", "os": "Linux", "rawUserAgent": CHROME},
            "geographicalContext": {"city": "Cork", "state": "Munster", "country": "Ireland"},
        },
        "outcome": {"result": "FAILURE", "reason": "INVALID_CREDENTIALS"},
        "target": [{"type": "AppInstance", "displayName": "Mail", "id": "0oa1"}],
    }
    event = only("okta.toml", tmp_path, {"events": [record]}, userid_column_name="@actor")
    assert has(
        event,
        actor="ann@x.org",
        result="FAILURE",
        reasonclass="password",
        country="Ireland",
        network="203.0.113.0/24",
        agentfamily="chrome",
        targettype="AppInstance",
        application="Mail",
        hourkind="weekday 18",
        placesaday=1,
    )


def test_google_cloud_entry_is_read(tmp_path: Path) -> None:
    payload = {
        "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
        "serviceName": "iam.googleapis.com",
        "methodName": "google.iam.admin.v1.CreateServiceAccountKey",
        "resourceName": "projects/-/serviceAccounts/1",
        "authenticationInfo": {"principalEmail": "Ann@x.org"},
        "authorizationInfo": [{"permission": "iam.serviceAccountKeys.create", "granted": True}],
        "requestMetadata": {"callerIp": "198.51.100.7", "callerSuppliedUserAgent": "curl/8.1"},
        "status": {"code": 7, "message": "PERMISSION_DENIED"},
    }
    entry = {
        "insertId": "1abc",
        "timestamp": "2024-05-31T09:00:00.123456789Z",
        "logName": "projects/p/logs/cloudaudit.googleapis.com%2Factivity",
        "resource": {"type": "service_account", "labels": {"project_id": "p"}},
        "severity": "ERROR",
        "protoPayload": payload,
    }
    for record in (entry, [entry], {"entries": [entry]}, {"specversion": "1.0", "data": entry}):
        event = only("gcp.toml", tmp_path, record, userid_column_name="@actor")
        assert has(
            event,
            actor="ann@x.org",
            service="iam.googleapis.com",
            verbclass="permit",
            permission="iam.serviceAccountKeys.create",
            granted="true",
            status="7",
            project="p",
            agentfamily="curl",
            addresskind="public",
        )


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("storage.objects.get", "read"),
        ("v1.compute.instances.insert", "create"),
        ("google.iam.admin.v1.SetIAMPolicy", "permit"),
        ("google.cloud.secretmanager.v1.SecretManagerService.AccessSecretVersion", "secret"),
        ("google.logging.v2.ConfigServiceV2.DeleteSink", "delete"),
        ("beta.compute.instances.stop", "stop"),
        ("google.pubsub.v1.Publisher.UpdateTopic", "change"),
    ],
)
def test_google_cloud_method_has_a_verb(tmp_path: Path, method: str, verb: str) -> None:
    record = {"timestamp": "2024-05-31T09:00:00Z", "protoPayload": {"methodName": method}}
    assert has(only("gcp.toml", tmp_path, record), verbclass=verb)


def test_github_event_is_read(tmp_path: Path) -> None:
    record = {
        "@timestamp": 1717146000123,
        "_document_id": "x-Y_z",
        "action": "protected_branch.destroy",
        "actor": "Ann",
        "actor_ip": "203.0.113.9",
        "actor_location": {"country_code": "IE"},
        "org": "acme",
        "repo": "acme/site",
        "user_agent": CHROME,
        "operation_type": "remove",
    }
    event = only("github.toml", tmp_path, record, userid_column_name="@actor")
    assert has(event, actor="ann", area="defence", country="IE", repo="acme/site", login="Ann")
    bot = only("github.toml", tmp_path, record | {"actor": "ci[bot]"}, userid_column_name="@actor")
    assert has(bot, actor="bot:ci")
    assert has(only("github.toml", tmp_path, record), login="Ann")


def test_kubernetes_event_is_read(tmp_path: Path) -> None:
    record = {
        "kind": "Event",
        "auditID": "44aeb388-08b4-11ef-9cec-73ffcb6f9fdd",
        "stage": "ResponseComplete",
        "requestReceivedTimestamp": "2024-05-31T09:00:00.123456Z",
        "requestURI": "/api/v1/namespaces/web/secrets/key",
        "verb": "get",
        "user": {"username": "system:serviceaccount:web:deployer", "groups": ["a", "b"]},
        "sourceIPs": ["10.0.0.9", "10.0.0.1"],
        "userAgent": "kubectl/v1.29 (linux/amd64) kubernetes/3f7a50f",
        "objectRef": {"resource": "secrets", "namespace": "web", "name": "key"},
        "responseStatus": {"code": 403},
        "annotations": {"authorization.k8s.io/decision": "forbid"},
    }
    items = {"kind": "EventList", "items": [record]}
    event = only("kubernetes.toml", tmp_path, items, userid_column_name="@actor")
    assert has(
        event,
        actor="web:deployer",
        resource="secrets",
        verbclass="read",
        decision="forbid",
        address="10.0.0.9",
        network="10.0.0.0/24",
        status="403",
    )


@real
def test_rule_tests_of_okta_are_read_and_rejected_records_are_reported(tmp_path: Path) -> None:
    tests = (DATA / "rule-tests/Okta.SystemLog.jsonl").read_text().splitlines()
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(json.loads(line)["log"]) for line in tests))
    metrics = RunMetrics()
    source = make_source("okta.toml", file, userid_column_name="@actor")
    batches: list[Events] = list(source.events(None, metrics))
    assert metrics.input.read == len(tests)
    assert sum(batch.table.height for batch in batches) == metrics.input.accepted > 0
    assert metrics.input.refused == 8
    assert all("published" in reason for reason in metrics.input.refusals)


@real
def test_commits_of_many_people_run_through_the_pipeline(tmp_path: Path) -> None:
    with gzip.open(DATA / "commits/commits.jsonl.gz", "rt") as packed:
        records = [line for line, _ in zip(packed, range(1000), strict=False)]
    file = tmp_path / "commits.jsonl"
    file.write_text("".join(records))
    chain = [
        FromFile(input_glob=str(file)),
        TrainAe(train_epochs=2),
        Preprocess(),
        InfPytorch(),
        AddScores(label=("ae_anomaly_score", "risk")),
    ]
    schema = str(ROOT / "examples/schemas/commits.toml")
    options = PipelineOptions(columns_file=schema, userid_column_name="@actor", num_threads=1)
    metrics = Pipeline(chain, options).run()
    assert metrics.scored == metrics.input.accepted == len(records)


def test_docs_page_shows_the_tested_schema() -> None:
    page = (ROOT / "docs/schemas.md").read_text()
    assert (ROOT / "examples/schemas/vpn.toml").read_text() in page
    assert all(f"`{name}`" in page for name in list_builtin_schemas())


def test_spreadsheet_of_sessions_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Session,Account,Connected at,Gateway,Source IP,Client OS,Duration (min),Reason\n"
        "1,CORP\\Ann,31.05.2024 09:30,gw1,203.0.113.9,Linux,31,User logout\n"
    )
    schema = str(ROOT / "examples/schemas/vpn.toml")
    source = make_source(schema, tmp_path / "a.csv", userid_column_name="@actor")
    [batch] = source.events(None, RunMetrics())
    event = batch.table.to_frame().row(0, named=True)
    assert has(
        event, actor="ann", os="Linux", minutes="31", ending="by the user", hourkind="weekday 09"
    )
    assert batch.table[ACTOR].dtype == pl.String
