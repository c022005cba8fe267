"""Built-in schemas and those of examples/ read the logs that they describe."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
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
from morpheus.sources.log_format import resolve_derived, split_prefix
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
    bare = {split_prefix(name)[1] for name in about.features}
    needs = {need for one in about.log_format.derived_columns.values() for need in one.inputs}
    rules = {name for rule in about.log_format.actor_rules for name in rule.columns}
    assert bare | needs | rules | set(about.log_format.context_columns) <= known
    assert {about.log_format.time_column, about.log_format.user_column} <= known


@pytest.mark.parametrize("schema", [*list_builtin_schemas(), *map(str, EXAMPLES)])
def test_every_feature_has_a_previous_value(schema: str) -> None:
    about = load_schema(schema)
    form, user = about.log_format, about.log_format.user_column
    bare = tuple(split_prefix(name)[1] for name in about.features)
    previous = tuple(f"previous:{name}" for name in bare)
    assert set(resolve_derived(previous, form.derived_columns)) >= set(previous)
    wanted = set(form.columns_to_read(bare, user)) - set(form.derived_columns)
    assert set(form.columns_to_read(previous, user)) >= wanted


@pytest.mark.parametrize("schema", [*list_builtin_schemas(), *map(str, EXAMPLES)])
def test_records_are_decoded_by_the_compiled_type(schema: str) -> None:
    about, form = load_schema(schema), load_schema(schema).log_format
    for user in (form.user_column, ACTOR):
        decoded = form.columns_to_decode(form.columns_to_read(about.features, user), user)
        assert set(decoded) <= {flatten_name(path, form.drop_characters) for path in form.paths}


def test_schemas_of_azure_and_duo_equal_their_sources(tmp_path: Path) -> None:
    for name, source in (("azure.toml", FromAzure), ("duo.toml", FromDuo)):
        one, other = load_schema(name).log_format, source.log_format
        assert (one.name, one.paths) == (other.name, other.paths)
        assert one.column_aliases == other.column_aliases
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


def test_rows_of_a_bigquery_sink_are_read(tmp_path: Path) -> None:
    payload = {
        "serviceName": "iam.googleapis.com",
        "methodName": "google.iam.admin.v1.SetIAMPolicy",
        "authenticationInfo": {"principalEmail": "ann@x.org"},
        "authorizationInfo": [{"permission": "iam.setPolicy", "granted": True}],
        "requestMetadata": {"callerIp": "203.0.113.9"},
    }
    record = {
        "insertId": "a",
        "logName": "l",
        "timestamp": "2024-05-31 09:00:00.123456 UTC",
        "protopayload_auditlog": payload,
    }
    event = only("gcp.toml", tmp_path, record)
    assert has(event, principal="ann@x.org", verbclass="permit", granted="true")
    assert has(event, permission="iam.setPolicy", network="203.0.113.0/24")


def test_custom_tables_of_azure_monitor_are_read(tmp_path: Path) -> None:
    row = {
        "published_t": "2024-05-31T09:00:00.123Z",
        "actor_alternateId_s": "ann@x.org",
        "eventType_s": "user.session.start",
        "client_ipAddress_s": "203.0.113.9",
        "uuid_g": "u",
    }
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    [batch] = make_source("okta.toml", tmp_path / "a.csv").events(None, RunMetrics())
    for event in (batch.table.to_frame().row(0, named=True), only("okta.toml", tmp_path, row)):
        assert has(event, actoralternateId="ann@x.org", uuid="u", network="203.0.113.0/24")


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


UNIFIED_AUDIT_RECORD = {
    "CreationTime": "2024-05-31T09:00:00",
    "Id": "44aeb388-08b4-11ef-9cec-73ffcb6f9fdd",
    "Operation": "UserLoggedIn",
    "OrganizationId": "org",
    "RecordType": 15,
    "ResultStatus": "Success",
    "UserKey": "k",
    "UserType": 0,
    "Workload": "AzureActiveDirectory",
    "ClientIP": "203.0.113.9:50123",
    "UserId": "Ann@X.org",
    "ExtendedProperties": [
        {"Name": "ResultStatusDetail", "Value": "Success"},
        {"Name": "UserAgent", "Value": CHROME},
    ],
}


def write_audit_search(path: Path, headers: tuple[str, str, str], record: dict[str, Any]) -> None:
    """A row of the audit search, with the whole record in its last column."""
    with path.open("w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(headers)
        writer.writerow(["5/31/2024 9:00:00 AM", record["UserId"], json.dumps(record)])


@pytest.mark.parametrize(
    "form", ["lines", "value", "graph", "CreationDate,UserIds,AuditData", "Date,User,AuditData"]
)
def test_every_form_of_the_microsoft_365_audit_log_is_read(form: str, tmp_path: Path) -> None:
    record, settings = UNIFIED_AUDIT_RECORD, {"userid_column_name": "@actor"}
    if "," in form:
        first, second, third = form.split(",")
        write_audit_search(tmp_path / "a.csv", (first, second, third), record)
        source = make_source("microsoft365.toml", tmp_path / "a.csv", **settings)
        [batch] = source.events(None, RunMetrics())
        event = batch.table.to_frame().row(0, named=True)
    else:
        graph = {"id": "g", "createdDateTime": record["CreationTime"], "auditData": record}
        outer = {"lines": record, "value": {"value": [record]}, "graph": {"value": [graph]}}[form]
        event = only("microsoft365.toml", tmp_path, outer, **settings)
    assert has(
        event,
        actor="ann@x.org",
        Operation="UserLoggedIn",
        operationclass="login",
        recordtype="15",
        result="Success",
        agentfamily="chrome",
        network="203.0.113.0/24",
        hourkind="weekday 09",
    )


def test_office_activity_of_sentinel_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '"TimeGenerated [UTC]",OfficeId,Operation,OfficeWorkload,UserId,ClientIP,Logon_Type\n'
        '"5/31/2024, 9:00:00.000 AM",i,New-InboxRule,Exchange,Ann@x.org,203.0.113.9,0\n'
    )
    source = make_source("microsoft365.toml", tmp_path / "a.csv")
    source = replace(source, time_format="%m/%d/%Y, %I:%M:%S%.f %p")
    [batch] = source.events(None, RunMetrics())
    event = batch.table.to_frame().row(0, named=True)
    assert has(event, UserId="ann@x.org", operationclass="mail rule", Workload="Exchange", Id="i")
    assert has(event, logontype="0", network="203.0.113.0/24", hourkind="weekday 09")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("FileDownloaded", "download"),
        ("MailItemsAccessed", "read"),
        ("Add member to role.", "permit"),
        ("Consent to application.", "permit"),
        ("AnonymousLinkCreated", "permit"),
        ("HardDelete", "delete"),
        ("Set-AdminAuditLogConfig", "defence"),
        ("FileUploaded", "create"),
        ("FileModified", "change"),
    ],
)
def test_microsoft_365_operation_has_a_class(operation: str, kind: str, tmp_path: Path) -> None:
    record = UNIFIED_AUDIT_RECORD | {"Operation": operation}
    assert has(only("microsoft365.toml", tmp_path, record), operationclass=kind)


def test_google_workspace_activity_is_read(tmp_path: Path) -> None:
    parameters = [
        {"name": "login_type", "value": "google_password"},
        {"name": "login_challenge_status", "value": "passed"},
        {"name": "is_suspicious", "boolValue": True},
    ]
    activity = {
        "kind": "admin#reports#activity",
        "id": {
            "time": "2024-05-31T09:00:00.123Z",
            "uniqueQualifier": "-12",
            "applicationName": "login",
            "customerId": "C1",
        },
        "actor": {"callerType": "USER", "email": "Ann@X.org", "profileId": "1"},
        "ipAddress": "203.0.113.9",
        "events": [
            {"type": "login", "name": "login_success", "parameters": parameters},
            {"type": "login", "name": "login_verification"},
        ],
    }
    outer = {"kind": "admin#reports#activities", "items": [activity]}
    event = only("google_workspace.toml", tmp_path, outer, userid_column_name="@actor")
    assert has(
        event,
        actor="ann@x.org",
        eventname="login_success",
        eventclass="login",
        secondevent="login_verification",
        logintype="google_password",
        challenge="passed",
        suspicious="true",
        idapplicationName="login",
        network="203.0.113.0/24",
    )


def test_audit_csv_of_the_google_admin_console_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Date,Event,Description,Actor,IP address,Application\n"
        "2024-05-31T09:00:00+01:00,download,x,Ann@x.org,203.0.113.9,drive\n"
    )
    [batch] = make_source("google_workspace.toml", tmp_path / "a.csv").events(None, RunMetrics())
    event = batch.table.to_frame().row(0, named=True)
    assert has(event, actoremail="ann@x.org", eventclass="download", hourkind="weekday 08")


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
