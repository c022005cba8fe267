"""The events of a fleet as CloudTrail records, and as flattened feature columns.

A record is built from pieces of JSON text that many records share: the identity, the program and
the call. Only the time, the identifiers and a few details differ in each event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cache, lru_cache
from typing import NamedTuple

import msgspec

from generator.events import Call, Error, Tool
from generator.fleet import Logged
from generator.office import Member

ACCOUNT = "123456789012"
FEATURES = (
    "eventID",
    "eventTime",
    "eventSource",
    "eventName",
    "sourceIPAddress",
    "userAgent",
    "userIdentitytype",
    "apiVersion",
    "userIdentityprincipalId",
    "userIdentityarn",
    "userIdentityaccountId",
    "userIdentityaccessKeyId",
    "userIdentitysessionContextsessionIssuerprincipalId",
    "userIdentitysessionContextsessionIssueruserName",
    "tlsDetailsclientProvidedHostHeader",
    "errorCode",
    "errorMessage",
    "requestParametersownersSetitems",
    "requestParametersmaxResults",
    "requestParametersinstancesSetitems",
    "requestParametersinstanceType",
    "responseElementsinstancesSetitems",
    "responseElementsreservationId",
)
DETAILS = FEATURES[17:]
RESPONSE = "responseElements"
JSON_FORM: Mapping[str, Callable[[str], object]] = {
    "ownersSetitems": lambda owner: {"items": [{"owner": owner}]},
    "instancesSetitems": lambda instance: {"items": [{"instanceId": instance}]},
    "maxResults": int,
}
EMPTY: dict[str, str] = {}
Cells = tuple[str | None, ...]


class Identity(NamedTuple):
    """A member with a key: the JSON text before the time, and the flat cells."""

    json: bytes
    cells: Cells
    arn: str


class Record(NamedTuple):
    """A record in pieces. A copy only needs a new date and two new identifiers."""

    before: bytes
    clock: bytes
    between: bytes
    after: bytes
    region: str
    cells: Cells


def text(value: object) -> bytes:
    """Encode a value as JSON."""
    return msgspec.json.encode(value)


def key_suffix(member: Member, day: date) -> str:
    """Return the part of a key that changes when keys are replaced."""
    return "" if member.lease is None else f"{day.toordinal() // member.lease % 4096:03X}"


@lru_cache(1 << 16)
def identity_of(number: int, name: str, session: str, tool: Tool, lease: str) -> Identity:
    """Return the identity of a member with the key of a tool."""
    role = f"AROAU4X{number:014d}"
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/{session}"
    key = tool.key[: len(tool.key) - len(lease)] + lease
    issuer = {
        "type": "Role",
        "principalId": role,
        "arn": f"arn:aws:iam::{ACCOUNT}:role/{name}",
        "accountId": ACCOUNT,
        "userName": name,
    }
    identity = {
        "type": "AssumedRole",
        "principalId": f"{role}:{session}",
        "arn": arn,
        "accountId": ACCOUNT,
        "accessKeyId": key,
        "sessionContext": {"sessionIssuer": issuer, "attributes": {"mfaAuthenticated": "false"}},
    }
    json = b'{"eventVersion":"1.09","userIdentity":' + text(identity) + b',"eventTime":"'
    cells = (f"{role}:{session}", arn, ACCOUNT, key, role, name)
    return Identity(json, cells, arn)


@cache
def call_parts(call: int, asked: Call) -> tuple[bytes, bytes, str, str]:
    """Return the JSON text after the time, the end of the record, the source and the region."""
    del call  # equal calls are the same object, and its id is hashed faster
    source, region = f"{asked.service}.amazonaws.com", region_of(asked)
    begin = {"eventSource": source, "eventName": asked.name, "awsRegion": region}
    version = {"apiVersion": asked.version} if asked.version else {}
    end = {
        "readOnly": asked.name.startswith(("Describe", "List", "Get")),
        "eventType": "AwsApiCall",
        **version,
        "managementEvent": True,
        "recipientAccountId": ACCOUNT,
        "eventCategory": "Management",
        "tlsDetails": {
            "tlsVersion": "TLSv1.3",
            "cipherSuite": "TLS_AES_128_GCM_SHA256",
            "clientProvidedHostHeader": asked.host,
        },
    }
    return b'Z",' + text(begin)[1:-1], b'",' + text(end)[1:], source, region


@cache
def origin_part(address: str, agent: str) -> bytes:
    """Return the JSON text of an address and a program."""
    return b"," + text({"sourceIPAddress": address, "userAgent": agent})[1:-1]


def region_of(asked: Call) -> str:
    """Return the region of a call."""
    return asked.host.split(".")[1]


def nested(details: Mapping[str, str], branch: str) -> bytes:
    """Return the details of one branch as nested JSON, as in CloudTrail; null if there are none."""
    found = {}
    for column, value in details.items():
        if column.startswith(branch):
            name = column[len(branch) :]
            form = JSON_FORM.get(name)
            place = name.removesuffix("items") if form is not None else name
            found[place] = value if form is None else form(value)
    return text(found) if found else b"null"


def cell(details: Mapping[str, str], column: str) -> str | None:
    """Return a detail as in the flattened record."""
    value = details.get(column)
    if value is None or not column.endswith("instancesSetitems"):
        return value
    return text([{"instanceId": value}]).decode()


def error_parts(error: Error | None, asked: Call, arn: str) -> tuple[bytes, str | None, str | None]:
    """Return an error as JSON text and as cells; empty for success."""
    if error is None:
        return b"", None, None
    message = error.message.format(arn=arn, action=f"{asked.service}:{asked.name}")
    return (
        b"," + text({"errorCode": error.code, "errorMessage": message})[1:-1],
        error.code,
        message,
    )


def record(logged: Logged, members: Sequence[Member]) -> Record:
    """Build the record of an event."""
    when, number, event, _ = logged
    member, origin, asked = members[number], event.origin, event.call
    lease = key_suffix(member, when.date())
    acts = identity_of(number, member.name, origin.session, origin.tool, lease)
    begin, end, source, region = call_parts(id(asked), asked)
    wrong, code, message = error_parts(event.error, asked, acts.arn)
    details = event.details if event.error is None else request_only(event.details)
    asks, gets = b"null", b"null"
    tail: Cells = (None,) * len(DETAILS)
    if details:
        asks, gets = nested(details, "requestParameters"), nested(details, RESPONSE)
        tail = tuple(cell(details, column) for column in DETAILS)
    place = origin_part(origin.address, origin.tool.agent)
    between = b"".join((
        begin, place, wrong, b',"requestParameters":', asks, b',"responseElements":', gets,
        b',"requestID":"',
    ))  # fmt: skip
    clock = b"T%02d:%02d:%02d" % (when.hour, when.minute, when.second)
    principal, arn, account, key, role, name = acts.cells
    cells = (
        source, asked.name, origin.address, origin.tool.agent, "AssumedRole",
        asked.version or None, principal, arn, account, key, role, name, asked.host, code, message,
        *tail,
    )  # fmt: skip
    return Record(acts.json, clock, between, end, region, cells)


def request_only(details: Mapping[str, str]) -> Mapping[str, str]:
    """Keep the request only: a failed call has no response."""
    return {c: v for c, v in details.items() if not c.startswith(RESPONSE)} if details else EMPTY


def document(records: Sequence[Record], day: date, ids: Sequence[str]) -> bytes:
    """Return the text of a log file: records of one day, with two identifiers each."""
    dated = day.isoformat().encode()
    encoded = [id_.encode() for id_ in ids]
    texts = [
        b"".join((
            item.before, dated, item.clock, item.between, encoded[2 * n + 1],
            b'","eventID":"', encoded[2 * n], item.after,
        ))
        for n, item in enumerate(records)
    ]  # fmt: skip
    return b'{"Records":[' + b",".join(texts) + b"]}"


def rows(records: Sequence[Record], day: date, ids: Sequence[str]) -> list[Cells]:
    """Return the records as flat rows, in the order of `FEATURES`."""
    dated = day.isoformat()
    return [
        (ids[2 * n], f"{dated}{item.clock.decode()}Z", *item.cells)
        for n, item in enumerate(records)
    ]
