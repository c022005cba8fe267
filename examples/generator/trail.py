"""CloudTrail's own form of a fleet's events, and the flat form of their feature columns.

A record is put together from pieces of JSON text that many records share: who, with what, and the
call. Only the time, the identifiers and a few details are an event's own.
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


class Who(NamedTuple):
    """A member with a key in force: the JSON text up to the time, and the flat cells."""

    json: bytes
    cells: Cells
    arn: str


class Record(NamedTuple):
    """A record in pieces: what a copy of it needs anew is the date and the two identifiers."""

    before: bytes
    clock: bytes
    between: bytes
    after: bytes
    region: str
    cells: Cells


def text(value: object) -> bytes:
    """JSON text."""
    return msgspec.json.encode(value)


def lease_of(somebody: Member, day: date) -> str:
    """What tells the keys of one lease from those of the next."""
    return "" if somebody.lease is None else f"{day.toordinal() // somebody.lease % 4096:03X}"


@lru_cache(1 << 16)
def who(somebody: int, name: str, session: str, tool: Tool, lease: str) -> Who:
    """Whoever acts, with their tool's key."""
    role = f"AROAU4X{somebody:014d}"
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
    return Who(json, cells, arn)


@cache
def what(call: int, asked: Call) -> tuple[bytes, bytes, str, str]:
    """A call: the JSON text behind the time, the end of the record, its source and its region."""
    del call  # equal calls are one object; its number is looked up faster than it is hashed
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
def where(address: str, agent: str) -> bytes:
    """A place and a program."""
    return b"," + text({"sourceIPAddress": address, "userAgent": agent})[1:-1]


def region_of(asked: Call) -> str:
    """The region that a call goes to."""
    return asked.host.split(".")[1]


def nested(details: Mapping[str, str], branch: str) -> bytes:
    """The details of one branch of the record, as CloudTrail nests them; null if none."""
    found = {}
    for column, value in details.items():
        if column.startswith(branch):
            name = column[len(branch) :]
            form = JSON_FORM.get(name)
            place = name.removesuffix("items") if form is not None else name
            found[place] = value if form is None else form(value)
    return text(found) if found else b"null"


def cell(details: Mapping[str, str], column: str) -> str | None:
    """A detail as it is when the record has been flattened."""
    value = details.get(column)
    if value is None or not column.endswith("instancesSetitems"):
        return value
    return text([{"instanceId": value}]).decode()


def refusal(error: Error | None, asked: Call, arn: str) -> tuple[bytes, str | None, str | None]:
    """An error as JSON text and as cells; nothing for success."""
    if error is None:
        return b"", None, None
    message = error.message.format(arn=arn, action=f"{asked.service}:{asked.name}")
    return (
        b"," + text({"errorCode": error.code, "errorMessage": message})[1:-1],
        error.code,
        message,
    )


def record(logged: Logged, members: Sequence[Member]) -> Record:
    """Put an event's record together."""
    when, number, event, _ = logged
    somebody, origin, asked = members[number], event.origin, event.call
    lease = lease_of(somebody, when.date())
    acts = who(number, somebody.name, origin.session, origin.tool, lease)
    begin, end, source, region = what(id(asked), asked)
    wrong, code, message = refusal(event.error, asked, acts.arn)
    details = event.details if event.error is None else asked_only(event.details)
    asks, gets = b"null", b"null"
    tail: Cells = (None,) * len(DETAILS)
    if details:
        asks, gets = nested(details, "requestParameters"), nested(details, RESPONSE)
        tail = tuple(cell(details, column) for column in DETAILS)
    place = where(origin.address, origin.tool.agent)
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


def asked_only(details: Mapping[str, str]) -> Mapping[str, str]:
    """What was asked for; a refused call gets nothing."""
    return {c: v for c, v in details.items() if not c.startswith(RESPONSE)} if details else EMPTY


def document(records: Sequence[Record], day: date, ids: Sequence[str]) -> bytes:
    """A log file's text: so many records of one day, with these identifiers, two for each."""
    dated = day.isoformat().encode()
    named = [one.encode() for one in ids]
    texts = [
        b"".join((
            one.before, dated, one.clock, one.between, named[2 * n + 1],
            b'","eventID":"', named[2 * n], one.after,
        ))
        for n, one in enumerate(records)
    ]  # fmt: skip
    return b'{"Records":[' + b",".join(texts) + b"]}"


def rows(records: Sequence[Record], day: date, ids: Sequence[str]) -> list[Cells]:
    """The flat rows of the same, in the order of `FEATURES`."""
    dated = day.isoformat()
    return [
        (ids[2 * n], f"{dated}{one.clock.decode()}Z", *one.cells) for n, one in enumerate(records)
    ]
