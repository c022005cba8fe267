"""Queries for the events of each kind of log: the records have the fields that they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from morpheus.columns import ACTOR_OPTION
from morpheus.core.stage import PipelineOptions
from morpheus.report.view import Origin
from morpheus.sources.base import FileSource
from morpheus.sources.from_file import FromAzure, FromDuo, FromFile
from morpheus.sources.ocsf import FromOcsf
from morpheus.sources.schema_file import list_builtin_schemas
from raw_logs import ATHENA_OCSF, Fields, Record, SqlTable, flatten, run_piped, to_seconds
from report_pages import open_report, read_alerts

TIME = "2024-05-31T09:30:0{}Z"


def make_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


@dataclass
class Tool:
    """A tool whose queries `query_languages` runs.

    Attributes:
        language: Language of the queries.
        key: Field of the event id.
        convert: Gives a record the field names of the tool.
    """

    language: str
    key: str
    convert: Callable[[Record], Record]

    def run(self, query: str, records: list[Record]) -> list[str]:
        """Return the ids of the events that a query selects."""
        return run_piped(self.language, query, records, self.convert, self.key)

    def list_ids(self, records: list[Record]) -> list[str]:
        """Return the ids of events."""
        return [str(self.convert(record)[self.key]) for record in records]


def to_splunk(record: Record, time: str, **more: Any) -> Record:
    found = flatten(record)
    return Fields(found | {"_time": to_seconds(str(found[time]))} | more)


def splunk(key: str, time: str) -> Tool:
    return Tool("splunk", key, partial(to_splunk, time=time))


@dataclass
class Log:
    """Records of a log, in the tools that have it.

    Attributes:
        make_source: Makes the source that reads a file.
        records: The events of two users: those with even numbers are of the first one.
        tools: The tools that have the log.
    """

    make_source: Callable[[str], FileSource]
    records: list[Record]
    tools: Mapping[str, Tool]


def schema(name: str) -> Callable[[str], FileSource]:
    options = PipelineOptions(columns_file=name, userid_column_name=ACTOR_OPTION)

    def make(path: str) -> FileSource:
        return FromFile(input_glob=path, options=FromFile(input_glob=path).with_defaults(options))

    return make


def source(stage: type[FileSource], feature: str) -> Callable[[str], FileSource]:
    options = PipelineOptions(columns=(feature,), userid_column_name=ACTOR_OPTION)
    return lambda path: stage(input_glob=path, options=options)


def four(make: Callable[[int, str], Record]) -> list[Record]:
    return [make(number, ("Ann@Example.org", "bob@example.org")[number % 2]) for number in range(4)]


def azure(number: int, user: str) -> Record:
    return {
        "id": make_id(number),
        "createdDateTime": TIME.format(number),
        "userPrincipalName": user,
        "userId": f"user-{user}",
        "userType": "Member",
        "appDisplayName": "Mail",
    }


def diagnostic(number: int, user: str) -> Record:
    return {
        "time": "2024-05-31T10:00:00Z",
        "category": "SignInLogs",
        "tenantId": "tenant",
        "properties": azure(number, user),
    }


def to_signin(record: Record) -> Record:
    """Fields of `SigninLogs` in Sentinel; `coalesce` has its result."""
    return {
        "TimeGenerated": "2024-05-31T10:00:00Z",
        "CreatedDateTime": record["createdDateTime"],
        "Id": record["id"],
        "UserPrincipalName": record["userPrincipalName"],
    }


def to_elastic_signin(record: Record) -> Record:
    prefix = "azure.signinlogs.properties"
    return {
        f"{prefix}.created_at": record["createdDateTime"],
        f"{prefix}.id": record["id"],
        f"{prefix}.user_principal_name": record["userPrincipalName"],
    }


AZURE_TOOLS = {
    "KQL": Tool("kusto", "Id", to_signin),
    "Elastic": Tool("esql", "azure.signinlogs.properties.id", to_elastic_signin),
    "Splunk": splunk("id", "createdDateTime"),
}


def duo(number: int, user: str) -> Record:
    return {
        "txid": make_id(number),
        "isotimestamp": TIME.format(number),
        "event_type": "authentication",
        "user": {"key": "DU", "name": user.partition("@")[0]},
        "email": user,
        "alias": user,
        "result": "success",
    }


def to_duo_table(record: Record) -> Record:
    return {
        "TimeGenerated": record["isotimestamp"],
        "isotimestamp_t": record["isotimestamp"],
        "txid_g": record["txid"],
        "user_name_s": record["user"]["name"],
    }


def to_elastic_duo(record: Record) -> Record:
    return {
        "@timestamp": record["isotimestamp"],
        "cisco_duo.auth.txid": record["txid"],
        "user.name": record["user"]["name"],
    }


def ocsf(number: int, user: str) -> Record:
    return {
        "metadata": {"uid": make_id(number), "product": {"name": "CloudTrail"}, "version": "1.1.0"},
        "time": 1717147800000 + 1000 * number,
        "time_dt": f"2024-05-31 09:30:0{number}",
        "class_uid": 6003,
        "activity_name": "Read",
        "actor": {
            "user": {
                "type": "AssumedRole",
                "uid": f"arn:aws:sts::123456789012:assumed-role/Admin/{user}",
                "uid_alt": f"AROA:{user}",
                "account": {"uid": "123456789012"},
            },
            "session": {"issuer": "arn:aws:iam::123456789012:role/Admin"},
        },
        "api": {"operation": "GetObject", "service": {"name": "s3.amazonaws.com"}},
        "cloud": {"region": "eu-west-1"},
    }


def to_elastic_ocsf(record: Record) -> Record:
    user = record["actor"]["user"]
    return {
        "@timestamp": record["time_dt"].replace(" ", "T") + "Z",
        "event.id": record["metadata"]["uid"],
        "ocsf.actor.user.type": user["type"],
        "ocsf.actor.user.uid_alt": user["uid_alt"],
    }


OCSF_TABLE = (
    "amazon_security_lake_glue_db_us_east_1"
    ".amazon_security_lake_table_us_east_1_cloud_trail_mgmt_2_0"
)


def gcp(number: int, user: str) -> Record:
    return {
        "insertId": f"-1a2b{number}",
        "timestamp": TIME.format(number),
        "logName": "projects/p/logs/cloudaudit.googleapis.com%2Factivity",
        "resource": {"type": "project", "labels": {"project_id": "p"}},
        "protoPayload": {"authenticationInfo": {"principalEmail": user}, "methodName": "get"},
    }


def to_elastic_gcp(record: Record) -> Record:
    return {
        "@timestamp": record["timestamp"],
        "event.id": record["insertId"],
        "client.user.email": record["protoPayload"]["authenticationInfo"]["principalEmail"],
        "client.user.id": None,
    }


def okta(number: int, user: str) -> Record:
    return {
        "uuid": make_id(number),
        "published": TIME.format(number),
        "eventType": "user.session.start",
        "actor": {
            "alternateId": user,
            "displayName": "A",
            "id": f"00u{number % 2}",
            "type": "User",
        },
    }


def to_elastic_okta(record: Record) -> Record:
    return {
        "@timestamp": record["published"],
        "okta.uuid": record["uuid"],
        "okta.actor.alternate_id": record["actor"]["alternateId"],
    }


def github(number: int, user: str) -> Record:
    return {
        "_document_id": f"document-{number}",
        "@timestamp": 1717147800000 + 1000 * number,
        "action": "repo.create",
        "actor": user.partition("@")[0],
        "org": "example",
    }


def workspace(number: int, user: str) -> Record:
    return {
        "id": {
            "time": TIME.format(number),
            "uniqueQualifier": f"-{number}",
            "applicationName": "login",
        },
        "actor": {"email": user, "profileId": f"1{number % 2}"},
        "events": [{"type": "login", "name": "login_success"}],
    }


def kubernetes(number: int, user: str) -> Record:
    return {
        "auditID": make_id(number),
        "requestReceivedTimestamp": TIME.format(number),
        "stage": "ResponseComplete",
        "verb": "get",
        "user": {"username": user},
    }


def microsoft365(number: int, user: str) -> Record:
    return {
        "Id": make_id(number),
        "CreationTime": TIME.format(number)[:-1],
        "Operation": "FileAccessed",
        "Workload": "SharePoint",
        "UserType": 0,
        "UserId": user,
        "OrganizationId": "o",
    }


def to_office_activity(record: Record) -> Record:
    return {
        "TimeGenerated": record["CreationTime"] + "Z",
        "OfficeId": record["Id"],
        "UserId": record["UserId"],
    }


def to_github_splunk(record: Record) -> Record:
    return Fields(record | {"_time": str(record["@timestamp"] / 1000)})


LOGS = {
    "azure.toml": Log(source(FromAzure, "appDisplayName"), four(azure), AZURE_TOOLS),
    "azure.toml, diagnostic settings": Log(
        source(FromAzure, "appDisplayName"),
        four(diagnostic),
        {"Splunk": splunk("properties.id", "time")},
    ),
    "duo.toml": Log(
        source(FromDuo, "result"),
        four(duo),
        {
            "KQL": Tool("kusto", "txid_g", to_duo_table),
            "Elastic": Tool("esql", "cisco_duo.auth.txid", to_elastic_duo),
            "Splunk": splunk("txid", "isotimestamp"),
        },
    ),
    "OCSF": Log(
        source(FromOcsf, "apioperation"),
        four(ocsf),
        {
            "Splunk": Tool(
                "splunk",
                "metadata.uid",
                lambda r: to_splunk(r, "time_dt", _time=str(r["time"] / 1000)),
            ),
            "Elastic": Tool("esql", "event.id", to_elastic_ocsf),
        },
    ),
    "gcp.toml": Log(
        schema("gcp.toml"),
        four(gcp),
        {
            "Cloud Logging": Tool("logging", "insertId", lambda r: Fields(flatten(r))),
            "Elastic": Tool("esql", "event.id", to_elastic_gcp),
            "Splunk": splunk("insertId", "timestamp"),
        },
    ),
    "okta.toml": Log(
        schema("okta.toml"),
        four(okta),
        {
            "Elastic": Tool("esql", "okta.uuid", to_elastic_okta),
            "Splunk": splunk("uuid", "published"),
        },
    ),
    "github.toml": Log(
        schema("github.toml"),
        four(github),
        {"Splunk": Tool("splunk", "_document_id", to_github_splunk)},
    ),
    "google_workspace.toml": Log(
        schema("google_workspace.toml"),
        four(workspace),
        {"Splunk": splunk("id.uniqueQualifier", "id.time")},
    ),
    "kubernetes.toml": Log(
        schema("kubernetes.toml"),
        four(kubernetes),
        {"Splunk": splunk("auditID", "requestReceivedTimestamp")},
    ),
    "microsoft365.toml": Log(
        schema("microsoft365.toml"),
        four(microsoft365),
        {
            "KQL": Tool("kusto", "OfficeId", to_office_activity),
            "Splunk": Tool(
                "splunk", "Id", lambda r: to_splunk(r | {"time": r["CreationTime"] + "Z"}, "time")
            ),
        },
    ),
}


def test_every_built_in_schema_is_tested() -> None:
    assert {name.partition(",")[0] for name in LOGS} >= set(list_builtin_schemas())


def write_queries(log: Log, folder: Path, browser: Any, *, by_user: bool) -> dict[str, str]:
    """The queries for the events of the first user, by tool."""
    file = folder / "a.json"
    file.write_text("\n".join(map(json.dumps, log.records)))
    stage = log.make_source(str(file))
    users = read_alerts(stage)
    assert len(users) == 2
    origin = Origin(stage.name, ACTOR_OPTION, stage.get_log_format().describe())
    view = open_report(browser, folder, users, origin)
    queries = view.evaluate(WRITE, by_user)
    view.close()
    return dict(queries)


WRITE = """(byUser) => {
  const incident = data.incidents.find(({ user }) => user.startsWith("ann"));
  if (byUser) incident.evidence.ids = [];
  return data.log.queries.map((query) => [query.name, writeQuery(query, incident)]);
}"""


@pytest.mark.parametrize("by_user", [False, True], ids=["by ids", "by user"])
@pytest.mark.parametrize("name", LOGS)
def test_queries_find_the_events_of_one_user(
    name: str, *, by_user: bool, tmp_path: Path, browser: Any
) -> None:
    log = LOGS[name]
    queries = write_queries(log, tmp_path, browser, by_user=by_user)
    for tool, it in log.tools.items():
        assert it.run(queries[tool], log.records) == it.list_ids(log.records[::2]), queries[tool]
    if name == "OCSF":
        table = SqlTable(OCSF_TABLE, ATHENA_OCSF, log.records, tmp_path)
        assert table.run(queries["Athena"]) == log.tools["Splunk"].list_ids(log.records[::2])


def test_a_tool_without_lists_of_values_gets_the_user_alone(tmp_path: Path, browser: Any) -> None:
    queries = write_queries(LOGS["github.toml"], tmp_path, browser, by_user=False)
    assert queries["GitHub audit log"].splitlines() == [
        "created:2024-05-31T09:29:00Z..2024-05-31T09:31:02Z",
        'actor:"Ann"',
    ]
