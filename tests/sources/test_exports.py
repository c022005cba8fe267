"""Tables that people export from consoles, queries and SIEMs give the same events as the JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, UsageError
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.from_file import FromAzure, FromFile

Rows = Sequence[dict[str, Any]]

EVENTS = [
    {
        "eventVersion": "1.08",
        "userIdentity": {
            "type": "AssumedRole",
            "principalId": "AROA1:ann@x.org",
            "arn": "arn:aws:sts::1:assumed-role/dev/ann@x.org",
            "accountId": "a111",
            "accessKeyId": "ASIA1",
            "sessionContext": {
                "sessionIssuer": {
                    "type": "Role",
                    "userName": "dev",
                    "arn": "arn:aws:iam::1:role/dev",
                },
                "attributes": {"mfaAuthenticated": "false", "creationDate": "2024-05-31T09:00:00Z"},
            },
        },
        "eventTime": f"2024-05-31T09:{n:02}:00Z",
        "eventSource": "iam.amazonaws.com",
        "eventName": "AssumeRole" if n % 2 else "ListUsers",
        "awsRegion": "eu-west-1",
        "sourceIPAddress": "198.51.100.7",
        "userAgent": "aws-cli/2.15, x=y",
        "requestParameters": {"roleArn": "arn:aws:iam::1:role/x"} if n % 2 else None,
        "eventID": f"00000000-0000-4000-8000-00000000000{n}",
        "readOnly": not n % 2,
        "recipientAccountId": "a111",
    }
    for n in range(4)
]
SIGN_INS = [
    {
        "id": f"s{n}",
        "createdDateTime": f"2024-05-31T09:{n:02}:00Z",
        "userPrincipalName": "ann@x.org",
        "appDisplayName": "Mail",
        "clientAppUsed": "Browser",
        "ipAddress": "198.51.100.7",
        "status": {"errorCode": 50126 if n else 0, "failureReason": "Bad; password"},
        "deviceDetail": {
            "displayName": "PC",
            "operatingSystem": "Windows 10",
            "browser": "Edge 120",
        },
        "location": {"city": "Cork", "state": "Munster", "countryOrRegion": "IE"},
    }
    for n in range(4)
]


def read(source: type[FileSource], path: Path, **options: Any) -> pl.DataFrame:
    defaults = source(input_glob=str(path)).with_defaults(PipelineOptions(**options))
    found = source(input_glob=str(path), options=defaults)
    found.validate()
    [batch] = found.events(None, RunMetrics())
    return batch.table.to_frame()


def write_csv(rows: Rows, delimiter: str = ",", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_struct(value: Any, begin: str = "{", separator: str = ", ", *, lower: bool = True) -> str:
    if not isinstance(value, dict):
        return "null" if value is None else str(value)
    pairs = (
        f"{key.lower() if lower else key}={write_struct(inner, begin, separator, lower=lower)}"
        for key, inner in value.items()
    )
    return begin + separator.join(pairs) + "}"


def to_athena(events: Rows) -> str:
    rows = [
        {
            name.lower(): write_struct(value) if name == "userIdentity" else write_cell(value)
            for name, value in event.items()
        }
        for event in events
    ]
    return write_csv(rows, quoting=csv.QUOTE_ALL)


def write_cell(value: Any) -> str:
    if value is None or isinstance(value, dict | bool):
        return json.dumps(value)
    return str(value)


def to_lake(events: Rows) -> str:
    rows = [
        {
            name: write_struct(value) if isinstance(value, dict) else value
            for name, value in event.items()
        }
        for event in events
    ]
    return write_csv(
        [row | {"eventTime": row["eventTime"][:-1].replace("T", " ") + ".000"} for row in rows]
    )


def to_sentinel(events: Rows) -> str:
    rows = []
    for event in events:
        who = event["userIdentity"]
        issuer = who["sessionContext"]["sessionIssuer"]
        rows.append(
            {
                "TimeGenerated [UTC]": event["eventTime"],
                "AwsEventId": event["eventID"],
                "EventName": event["eventName"],
                "EventSource": event["eventSource"],
                "EventVersion": event["eventVersion"],
                "UserIdentityType": who["type"],
                "UserIdentityPrincipalid": who["principalId"],
                "UserIdentityArn": who["arn"],
                "UserIdentityAccountId": who["accountId"],
                "UserIdentityAccessKeyId": who["accessKeyId"],
                "SessionIssuerUserName": issuer["userName"],
                "SessionIssuerType": issuer["type"],
                "SessionIssuerArn": issuer["arn"],
                "SessionMfaAuthenticated": "false",
                "SessionCreationDate": who["sessionContext"]["attributes"]["creationDate"],
                "SourceIpAddress": event["sourceIPAddress"],
                "UserAgent": event["userAgent"],
                "AWSRegion": event["awsRegion"],
                "RequestParameters": json.dumps(event["requestParameters"]),
                "ReadOnly": str(event["readOnly"]).lower(),
                "RecipientAccountId": event["recipientAccountId"],
            }
        )
    return write_csv(rows)


def to_splunk(events: Rows) -> str:
    rows = [
        {
            "_time": event["eventTime"],
            "host": "h",
            "eventName": event["eventName"],
            "_raw": json.dumps(event),
        }
        for event in events
    ]
    return write_csv(rows, quoting=csv.QUOTE_ALL)


def to_lookup_events(events: Rows) -> str:
    rows = [
        {
            "EventId": event["eventID"],
            "EventName": event["eventName"],
            "ReadOnly": str(event["readOnly"]).lower(),
            "EventTime": "5/31/2024 9:00:00 AM",
            "Username": "ann@x.org",
            "Resources": "System.Collections.Generic.List`1[Amazon.CloudTrail.Model.Resource]",
            "CloudTrailEvent": json.dumps(event),
        }
        for event in events
    ]
    return "#TYPE Amazon.CloudTrail.Model.Event\r\n" + write_csv(rows, quoting=csv.QUOTE_ALL)


def to_snake(events: Rows) -> str:
    def snake(name: str) -> str:
        return "".join(f"_{x.lower()}" if x.isupper() else x for x in name).removeprefix("_")

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, inner in value.items():
            inside = (
                flat(inner, f"{prefix}{snake(key)}.")
                if isinstance(inner, dict)
                else {prefix + snake(key): inner}
            )
            found |= inside
        return found

    rows = [flat(event) for event in events]
    names = dict.fromkeys(name for row in rows for name in row)
    return write_csv([{name: row.get(name) for name in names} for row in rows], delimiter=";")


def to_elastic(events: Rows) -> str:
    rows = [
        {
            "@timestamp": "May 31, 2024 @ " + event["eventTime"][11:19] + ".000",
            "event.action": event["eventName"],
            "event.provider": event["eventSource"],
            "event.id": event["eventID"],
            "source.address": event["sourceIPAddress"],
            "user_agent.original": event["userAgent"],
            "cloud.region": event["awsRegion"],
            "aws.cloudtrail.user_identity.arn": event["userIdentity"]["arn"],
        }
        for event in events
    ]
    return write_csv(rows, delimiter="\t")


def to_json_lines(rename: Callable[[str], str]) -> Callable[[Rows], str]:
    def write(events: Rows) -> str:
        rows = ({rename(key): value for key, value in event.items()} for event in events)
        return "\n".join(map(json.dumps, rows))

    return write


def pascal(name: str) -> str:
    return name[0].upper() + name[1:]


def to_log_analytics(events: Rows) -> str:
    rows = [
        {
            pascal(k): json.dumps(v) if isinstance(v, dict) else v
            for k, v in event.items()
            if k != "location"
        }
        | {"Location": "IE", "LocationDetails": json.dumps(event["location"]), "Type": "SigninLogs"}
        for event in events
    ]
    return write_csv(rows, quoting=csv.QUOTE_ALL)


def to_log_analytics_json(events: Rows) -> str:
    return "\n".join(
        json.dumps(row) for row in csv.DictReader(io.StringIO(to_log_analytics(events)))
    )


def to_log_analytics_api(events: Rows) -> str:
    names, rows = read_rows(to_log_analytics(events))
    columns = [{"name": name, "type": "string"} for name in names]
    return json.dumps({"tables": [{"name": "PrimaryResult", "columns": columns, "rows": rows}]})


def to_powershell(events: Rows) -> str:
    rows = [
        {
            k: write_struct(v, "@{", "; ", lower=False) if isinstance(v, dict) else v
            for k, v in event.items()
        }
        for event in events
    ]
    return "#TYPE Selected.SignIn\r\n" + write_csv(rows, delimiter=";", quoting=csv.QUOTE_ALL)


def to_powershell_json(events: Rows) -> str:
    moments = pl.Series([event["createdDateTime"] for event in events]).str.to_datetime(
        time_zone="UTC"
    )
    rows = [
        event | {"createdDateTime": f"/Date({moment})/"}
        for event, moment in zip(events, moments.dt.epoch("ms"), strict=True)
    ]
    return json.dumps(rows)


def to_python(events: Rows) -> str:
    return write_csv(events)


def read_rows(text: str) -> tuple[list[str], list[list[str]]]:
    names, *rows = csv.reader(io.StringIO(text))
    return names, rows


def to_athena_api(events: Rows) -> str:
    names, rows = read_rows(to_athena(events))
    cells = [
        {"Data": [{"VarCharValue": cell} if cell else {} for cell in row]} for row in [names, *rows]
    ]
    return json.dumps({"ResultSet": {"Rows": cells, "ResultSetMetadata": {}}})


def to_bigquery_api(events: Rows) -> str:
    names, rows = read_rows(to_athena(events))
    cells = [{"f": [{"v": cell or None} for cell in row]} for row in rows]
    return json.dumps({"schema": {"fields": [{"name": name} for name in names]}, "rows": cells})


CLOUDTRAIL_EXPORTS: dict[str, Callable[[Rows], str]] = {
    "athena.csv": to_athena,
    "lake.csv": to_lake,
    "sentinel.csv": to_sentinel,
    "splunk.csv": to_splunk,
    "lookup.csv": to_lookup_events,
    "snake.tsv": lambda events: to_snake(events).replace(";", "\t"),
    "snake.csv": to_snake,
    "python.csv": to_python,
    "lower.jsonl": to_json_lines(str.lower),
    "pascal.jsonl": to_json_lines(pascal),
    "athena.json": to_athena_api,
    "bigquery.json": to_bigquery_api,
}
SIGN_IN_EXPORTS: dict[str, Callable[[Rows], str]] = {
    "analytics.csv": to_log_analytics,
    "analytics.jsonl": to_log_analytics_json,
    "api.json": to_log_analytics_api,
    "powershell.csv": to_powershell,
    "powershell.json": to_powershell_json,
    "python.csv": to_python,
    "snake.csv": to_snake,
}


def compare(found: pl.DataFrame, expected: pl.DataFrame, time: str) -> None:
    """Compare all values except row numbers and the text of the times."""
    for name in expected.columns:
        if name not in {INDEX, ROW, time} and (
            found.get_column(name, default=None) is not None or expected[name].null_count() < 4
        ):
            assert found[name].to_list() == expected[name].to_list(), name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", CLOUDTRAIL_EXPORTS)
def test_exports_of_cloudtrail_give_the_events_of_the_json(
    name: str, encoding: str, tmp_path: Path
) -> None:
    options = {"userid_column_name": "userIdentityarn"}
    (tmp_path / "log.json").write_text(json.dumps({"Records": EVENTS}))
    expected = read(FromCloudtrail, tmp_path / "log.json", **options)
    (tmp_path / name).write_bytes(CLOUDTRAIL_EXPORTS[name](EVENTS).encode(encoding))
    compare(read(FromCloudtrail, tmp_path / name, **options), expected, "eventTime")


@pytest.mark.parametrize("name", SIGN_IN_EXPORTS)
def test_exports_of_sign_ins_give_the_events_of_the_json(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps({"value": SIGN_INS}))
    expected = read(FromAzure, tmp_path / "log.json")
    assert expected["locationcity"].to_list() == ["Cork"] * 4
    (tmp_path / name).write_text(SIGN_IN_EXPORTS[name](SIGN_INS))
    compare(read(FromAzure, tmp_path / name), expected, "createdDateTime")


def test_elastic_common_schema_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(to_elastic(EVENTS))
    found = read(FromCloudtrail, tmp_path / "log.csv", userid_column_name="userIdentityarn")
    (tmp_path / "log.json").write_text(json.dumps(EVENTS))
    expected = read(FromCloudtrail, tmp_path / "log.json", userid_column_name="userIdentityarn")
    for name in ("eventName", "eventSource", "eventID", "userAgent", "userIdentityarn", TIME):
        assert found[name].to_list() == expected[name].to_list(), name


def nest(row: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in row.items():
        *parents, last = path.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def test_documents_of_the_elastic_common_schema_are_read(tmp_path: Path) -> None:
    rows = csv.DictReader(io.StringIO(to_elastic(EVENTS)), delimiter="\t")
    hits = [{"_index": "logs", "_source": nest(row)} for row in rows]
    (tmp_path / "a.json").write_text(json.dumps({"hits": {"hits": hits}}))
    (tmp_path / "b.json").write_text("\n".join(json.dumps(hit["_source"]) for hit in hits))
    for name in ("a.json", "b.json"):
        found = read(FromCloudtrail, tmp_path / name, userid_column_name="userIdentityarn")
        assert found["eventName"].to_list() == [event["eventName"] for event in EVENTS]
        assert found["eventID"].to_list() == [event["eventID"] for event in EVENTS]
        assert found["userIdentityarn"].null_count() == 0


CONSOLE = """User name,AWS access key,Event time,Event source,Event name,AWS region,\
Source IP address,Error code,Resources,Request ID,Event ID,Read-only
ann,AKIA1,2024-05-31T09:00:00Z,iam.amazonaws.com,ListUsers,eu-west-1,198.51.100.7,,[],r,e,true
ann,AKIA1,"May 31, 2024, 09:01:00 (UTC+00:00)",iam.amazonaws.com,ListUsers,eu-west-1,\
198.51.100.7,,[],r,f,true
"""


def test_event_history_of_the_console_is_read(tmp_path: Path) -> None:
    (tmp_path / "event_history.csv").write_text(CONSOLE)
    [first, second] = read(
        FromCloudtrail, tmp_path / "event_history.csv", userid_column_name="userIdentityuserName"
    ).to_dicts()
    assert (first["userIdentityuserName"], first["userIdentityaccessKeyId"]) == ("ann", "AKIA1")
    assert (first["eventName"], first["readOnly"], first["eventID"]) == ("ListUsers", "True", "e")
    assert (second[TIME] - first[TIME]).total_seconds() == 60


def test_admin_csv_of_okta_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "timestamp,actor.alternate_id,client.ip_address,event_type,outcome.result,uuid,"
        "target0.type,target0.display_name\n"
        "2024-05-31T09:00:00.123Z,ann@x.org,198.51.100.7,user.session.start,SUCCESS,u,App,Mail\n"
    )
    [row] = read(FromFile, tmp_path / "log.csv", columns_file="okta.toml").to_dicts()
    assert (row["actoralternateId"], row["result"], row["eventType"]) == (
        "ann@x.org",
        "SUCCESS",
        "user.session.start",
    )
    assert (row["network"], row["targettype"], row["application"]) == (
        "198.51.100.0/24",
        "App",
        "Mail",
    )


def test_cut_off_object_refuses_its_row(tmp_path: Path) -> None:
    text = to_lake(EVENTS).splitlines()
    text[2] = text[2].replace("}}", "", 1)
    (tmp_path / "log.csv").write_text("\n".join(text))
    options = PipelineOptions(userid_column_name="userIdentityarn")
    source = FromCloudtrail(input_glob=str(tmp_path / "log.csv"))
    source = replace(source, options=source.with_defaults(options))
    with pytest.raises(RecordError, match=r"log\.csv:3: `userIdentity` is not a complete object"):
        list(source.events(None, RunMetrics()))
    metrics = RunMetrics()
    [batch] = replace(source, bad_record="skip").events(None, metrics)
    assert (batch.table.height, metrics.input.read, metrics.input.refused) == (3, 4, 1)


def test_objects_of_an_unknown_form_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [event | {"deviceDetail": "{Windows 10, Edge 120}"} for event in SIGN_INS]
    (tmp_path / "log.csv").write_text(write_csv(rows))
    assert read(FromAzure, tmp_path / "log.csv").height == 4
    assert "`deviceDetail` are not objects of a known form" in caplog.text


def test_type_names_of_powershell_are_no_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        event | {"deviceDetail": "Microsoft.Graph.PowerShell.Models.MicrosoftGraphDeviceDetail"}
        for event in SIGN_INS
    ]
    (tmp_path / "log.csv").write_text(write_csv(rows))
    found = read(FromAzure, tmp_path / "log.csv")
    assert (
        found["deviceDetailbrowser"].null_count() == 4
        if "deviceDetailbrowser" in found.columns
        else True
    )
    assert "`deviceDetail` only name the type of objects" in caplog.text


@pytest.mark.parametrize("name", ["athena.csv", "log.json"])
def test_object_as_user_column_is_refused(name: str, tmp_path: Path) -> None:
    write = CLOUDTRAIL_EXPORTS.get(name, to_json_lines(str))
    (tmp_path / name).write_text(write(EVENTS))
    with pytest.raises(UsageError, match=r"`userIdentity` is an object .* `userIdentityarn`"):
        read(FromCloudtrail, tmp_path / name, userid_column_name="userIdentity")


def lower_keys(value: Any) -> Any:
    return (
        {k.lower(): lower_keys(v) for k, v in value.items()} if isinstance(value, dict) else value
    )


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_parquet_of_queries_gives_the_events_of_the_json(
    as_text: bool,  # noqa: FBT001 - a parameter
    lower: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    rows = [lower_keys(event) if lower else event for event in EVENTS]
    name = "requestparameters" if lower else "requestParameters"
    rows = [row | {name: json.dumps(row[name]) if as_text else row[name]} for row in rows]
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.json").write_text(json.dumps({"Records": EVENTS}))
    options = {"userid_column_name": "userIdentityarn"}
    expected = read(FromCloudtrail, tmp_path / "log.json", **options)
    compare(read(FromCloudtrail, tmp_path / "log.parquet", **options), expected, "eventTime")


def test_damaged_parquet_counts_the_rows_that_it_held(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{n}",
            "createdDateTime": f"2024-05-31T09:{n % 60:02}:00Z",
            "userPrincipalName": "ann",
        }
        for n in range(90)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet", row_group_size=30)
    pl.DataFrame(rows[:5]).with_columns(id="b" + pl.col("id")).write_parquet(tmp_path / "b.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    lost = None
    for at in range(len(data) // 4, len(data) // 2):
        damaged = data.copy()
        damaged[at] ^= 0xFF
        (tmp_path / "a.parquet").write_bytes(damaged)
        source = FromAzure(input_glob=str(tmp_path / "*.parquet"), bad_record="skip")
        source = replace(source, options=source.with_defaults(PipelineOptions()))
        metrics = RunMetrics()
        events = sum(batch.table.height for batch in source.events(None, metrics))
        stats = metrics.input
        assert stats.read == 95
        assert stats.accepted == events
        if stats.refused:
            lost = stats.refused
            assert f"{lost} records are lost" in stats.refusals[0]
            break
    assert lost is not None
