"""A raw log in the tools that queries are written for: runs a query, and returns event ids.

SQL is translated to DuckDB and executed on a table with the documented schema. The other languages
are run by `query_languages` on records with the tools' field names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from query_languages import run

Record = dict[str, Any]
ISSUER = "aws.cloudtrail.user_identity.session_context.session_issuer"


def make_cloudtrail_schema(*, session: str, identity: str, data: str, time: str) -> dict[str, str]:
    """Columns of a table of CloudTrail records, as far as queries use them."""
    issuer = "type VARCHAR, principalid VARCHAR, arn VARCHAR, accountid VARCHAR, username VARCHAR"
    user = (
        "type VARCHAR, principalid VARCHAR, arn VARCHAR, accountid VARCHAR, invokedby VARCHAR,"
        "accesskeyid VARCHAR, username VARCHAR,"
        "onbehalfof STRUCT(userid VARCHAR, identitystorearn VARCHAR),"
        f"sessioncontext STRUCT(sessionissuer STRUCT({issuer}) {session}) {identity}"
    )
    texts = (
        "eventsource eventname awsregion sourceipaddress useragent errorcode eventid"
        " recipientaccountid"
    )
    return {
        "useridentity": f"STRUCT({user})",
        "eventtime": time,
        **dict.fromkeys(texts.split(), "VARCHAR"),
        "requestparameters": data,
        "additionaleventdata": data,
    }


ATHENA_CLOUDTRAIL = make_cloudtrail_schema(session="", identity="", data="VARCHAR", time="VARCHAR")
"""https://docs.aws.amazon.com/athena/latest/ug/create-cloudtrail-table.html"""
LAKE_CLOUDTRAIL = make_cloudtrail_schema(
    session=", sourceidentity VARCHAR",
    identity=", identityprovider VARCHAR",
    data="MAP(VARCHAR, VARCHAR)",
    time="TIMESTAMP",
)
"""https://docs.aws.amazon.com/awscloudtrail/latest/userguide/query-supported-event-schemas.html"""
ATHENA_OCSF = {
    "metadata": "STRUCT(uid VARCHAR)",
    "time_dt": "TIMESTAMP",
    "api": (
        "STRUCT(operation VARCHAR, service STRUCT(name VARCHAR), response STRUCT(error VARCHAR))"
    ),
    "cloud": "STRUCT(region VARCHAR)",
    "src_endpoint": "STRUCT(ip VARCHAR)",
    "http_request": "STRUCT(user_agent VARCHAR)",
    "actor": (
        'STRUCT("user" STRUCT(type VARCHAR, name VARCHAR, uid VARCHAR, uid_alt VARCHAR,'
        "account STRUCT(uid VARCHAR)), session STRUCT(issuer VARCHAR), invoked_by VARCHAR)"
    ),
}
"""The tables of Amazon Security Lake for CloudTrail, source version 2."""


def lower_names(value: Any) -> Any:
    """Write the names of nested fields in lower case, as Hive tables do."""
    if isinstance(value, dict):
        return {name.lower(): lower_names(inner) for name, inner in value.items()}
    return value


def to_row(record: Record, schema: Mapping[str, str]) -> Record:
    """Convert a record as the reader of a table does."""
    row = {}
    for name, kind in schema.items():
        value = next((record[key] for key in record if key.lower() == name), None)
        if kind == "VARCHAR" and isinstance(value, dict):
            value = json.dumps(value)
        elif kind.startswith("MAP") and value is not None:
            value = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
        else:
            value = lower_names(value)
        row[name] = value
    return row


@dataclass
class SqlTable:
    """A table that is queried in Trino's SQL, as Athena and CloudTrail Lake are."""

    name: str
    schema: Mapping[str, str]
    records: Sequence[Record]
    folder: Path

    @cached_property
    def connection(self) -> Any:
        """A database with the table."""
        duckdb = pytest.importorskip("duckdb")
        file = self.folder / "records.json"
        file.write_text("\n".join(json.dumps(to_row(one, self.schema)) for one in self.records))
        columns = ", ".join(f"'{name}': '{kind}'" for name, kind in self.schema.items())
        connection = duckdb.connect()
        for part in self.name.split(".")[:-1]:
            connection.execute(f"CREATE SCHEMA {part}")
        connection.execute(
            f"CREATE TABLE {self.name} AS FROM read_json(?, columns={{{columns}}},"
            " format='newline_delimited')",
            [str(file)],
        )
        return connection

    def run(self, query: str) -> list[str]:
        """Return the event ids, the last column, that a query selects."""
        sqlglot = pytest.importorskip("sqlglot")
        [translated] = sqlglot.transpile(query, read="athena", write="duckdb")
        return [row[-1] for row in self.connection.execute(translated).fetchall()]


def flatten(value: Any, path: str = "") -> Record:
    """Return the fields of a record by path, as Splunk extracts them from JSON."""
    if not isinstance(value, dict):
        return {path: value}
    found: Record = {}
    for name, inner in value.items():
        found |= flatten(inner, f"{path}.{name}" if path else name)
    return found


def to_seconds(time: str) -> str:
    return str(datetime.fromisoformat(time).timestamp())


def to_sentinel(record: Record) -> Record:
    """Fields of `AWSCloudTrail`, as far as queries use them."""
    user = record.get("userIdentity") or {}
    issuer = (user.get("sessionContext") or {}).get("sessionIssuer") or {}
    return {
        "TimeGenerated": record["eventTime"],
        "AwsEventId": record["eventID"],
        "EventSource": record.get("eventSource"),
        "RecipientAccountId": record.get("recipientAccountId"),
        "AdditionalEventData": json.dumps(record.get("additionalEventData")),
        "UserIdentityType": user.get("type"),
        "UserIdentityPrincipalid": user.get("principalId"),
        "UserIdentityArn": user.get("arn"),
        "UserIdentityAccountId": user.get("accountId"),
        "UserIdentityUserName": user.get("userName"),
        "UserIdentityInvokedBy": user.get("invokedBy"),
        "SessionIssuerUserName": issuer.get("userName"),
    }


def to_elastic(record: Record) -> Record:
    """Fields of Elastic's AWS CloudTrail integration, as far as queries use them."""
    user = record.get("userIdentity") or {}
    issuer = (user.get("sessionContext") or {}).get("sessionIssuer") or {}
    return {
        "@timestamp": record["eventTime"],
        "event.id": record["eventID"],
        "event.provider": record.get("eventSource"),
        "aws.cloudtrail.recipient_account_id": record.get("recipientAccountId"),
        "aws.cloudtrail.user_identity.type": user.get("type"),
        "aws.cloudtrail.user_identity.arn": user.get("arn"),
        "aws.cloudtrail.user_identity.invoked_by": user.get("invokedBy"),
        "user.id": user.get("principalId"),
        "user.name": issuer.get("userName") or user.get("userName"),
        "cloud.account.id": user.get("accountId"),
    }


def to_splunk(record: Record) -> Record:
    """Fields of JSON in Splunk; a field that an event lacks has no value."""
    return Fields(flatten(record) | {"_time": to_seconds(record["eventTime"])})


class Fields(dict[str, Any]):
    """Fields of an event in Splunk, where any name is a field."""

    def __missing__(self, name: str) -> None:
        """Return no value."""


def run_piped(
    language: str,
    query: str,
    records: Sequence[Record],
    convert: Callable[[Record], Record],
    key: str,
) -> list[str]:
    """Return the event ids that a query of pipes selects."""
    return [str(found[key]) for found in run(language, query, [convert(one) for one in records])]


@dataclass
class CloudTrailTools:
    """CloudTrail records in Athena, CloudTrail Lake, Splunk, Sentinel and Elastic."""

    records: Sequence[Record]
    folder: Path

    @cached_property
    def tables(self) -> dict[str, SqlTable]:
        """The SQL tables, by tool."""
        return {
            "Athena": SqlTable("cloudtrail_logs", ATHENA_CLOUDTRAIL, self.records, self.folder),
            "CloudTrail Lake": SqlTable("store", LAKE_CLOUDTRAIL, self.records, self.folder),
        }

    def run(self, tool: str, query: str) -> list[str]:
        """Return the event ids that a query selects."""
        if tool in self.tables:
            return self.tables[tool].run(query.replace("$EDS_ID", "store"))
        language, convert, key = {
            "Splunk": ("splunk", to_splunk, "eventID"),
            "KQL": ("kusto", to_sentinel, "AwsEventId"),
            "Elastic": ("esql", to_elastic, "event.id"),
        }[tool]
        return run_piped(language, query, self.records, convert, key)
