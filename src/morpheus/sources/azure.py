"""from-azure: Entra ID (Azure AD) sign-ins in every form that one has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import polars as pl

from morpheus.features import derived
from morpheus.features.families import SIGN_IN_ERRORS, address_kind, address_network, agent_name
from morpheus.sources.actors import Rule
from morpheus.sources.documents import Undecoded
from morpheus.sources.file_source import FileSource
from morpheus.sources.flatten import flat
from morpheus.sources.log_format import LogFormat, plain
from morpheus.sources.places import city, country, state

DROPPED = "_.{}:,"
"""Left out of names, as upstream does."""

PATHS = (
    "id",
    "createdDateTime",
    "category",
    "tenantId",
    "userDisplayName",
    "userPrincipalName",
    "userId",
    "userType",
    "appId",
    "appDisplayName",
    "ipAddress",
    "userAgent",
    "clientAppUsed",
    "clientCredentialType",
    "correlationId",
    "originalRequestId",
    "uniqueTokenIdentifier",
    "sessionId",
    "isInteractive",
    "tokenIssuerName",
    "tokenIssuerType",
    "incomingTokenType",
    "authenticationProtocol",
    "authenticationRequirement",
    "conditionalAccessStatus",
    "crossTenantAccessType",
    "processingTimeInMilliseconds",
    "riskDetail",
    "riskLevelAggregated",
    "riskLevelDuringSignIn",
    "riskState",
    "riskEventTypes",
    "riskEventTypes_v2",
    "resourceDisplayName",
    "resourceId",
    "resourceTenantId",
    "homeTenantId",
    "autonomousSystemNumber",
    "flaggedForReview",
    "signInIdentifier",
    "servicePrincipalId",
    "servicePrincipalName",
    "managedServiceIdentity.msiType",
    "status.errorCode",
    "status.failureReason",
    "status.additionalDetails",
    "deviceDetail.deviceId",
    "deviceDetail.displayName",
    "deviceDetail.operatingSystem",
    "deviceDetail.browser",
    "deviceDetail.isCompliant",
    "deviceDetail.isManaged",
    "deviceDetail.trustType",
    "location.city",
    "location.state",
    "location.countryOrRegion",
    "location.geoCoordinates.latitude",
    "location.geoCoordinates.longitude",
    "mfaDetail.authMethod",
    "mfaDetail.authDetail",
    "activityDateTime",
    "activityDisplayName",
    "operationName",
    "identity",
    "initiatedBy.user.userPrincipalName",
    "initiatedBy.app.displayName",
    "initiatedBy.app.servicePrincipalId",
)

CONTEXT = (
    "category",
    "userDisplayName",
    "userId",
    "ipAddress",
    "userAgent",
    "locationcity",
    "locationstate",
    "locationcountryOrRegion",
    "resourceDisplayName",
    "statuserrorCode",
    "conditionalAccessStatus",
    "authenticationRequirement",
    "isInteractive",
    "riskLevelDuringSignIn",
    "autonomousSystemNumber",
    "correlationId",
)

_AROUND = {"time": "createdDateTime", "category": "category", "tenantId": "tenantId"}
_AROUND |= {"operationName": "operationName", "identity": "identity"}
"""What stands around `properties`, and the name that it has in a sign-in itself."""

PORTAL = {
    "date": "createdDateTime",
    "dateutc": "createdDateTime",
    "timegenerated": "createdDateTime",
    "timegeneratedutc": "createdDateTime",
    "requestid": "id",
    "user": "userDisplayName",
    "username": "userPrincipalName",
    "application": "appDisplayName",
    "applicationid": "appId",
    "resource": "resourceDisplayName",
    "clientapp": "clientAppUsed",
    "signinerrorcode": "statuserrorCode",
    "failurereason": "statusfailureReason",
    "deviceid": "deviceDetaildeviceId",
    "browser": "deviceDetailbrowser",
    "operatingsystem": "deviceDetailoperatingSystem",
    "compliant": "deviceDetailisCompliant",
    "managed": "deviceDetailisManaged",
    "jointype": "deviceDetailtrustType",
    "conditionalaccess": "conditionalAccessStatus",
}
"""Columns of the portal's CSV export that are called otherwise in a sign-in."""

_ADDRESS = "ipAddress"
_EMAIL = r"^([^@\s]+@[^@\s]+\.[^@\s]+)$"

RULES = (
    Rule("service", "app:{servicePrincipalName/(.+)/}", unless={"userPrincipalName": "."}),
    Rule("service", "app:{servicePrincipalId/(.+)/}", unless={"userPrincipalName": "."}),
    Rule(
        "guest",
        "{userPrincipalName/^(.+)_[^_]+#EXT#/}@{userPrincipalName/^.+_([^_]+)#EXT#/}",
        lower=True,
    ),
    Rule("guest", "{userPrincipalName}", {"userPrincipalName": ".", "userType": "(?i)^guest$"}),
    Rule("person", f"{{userPrincipalName/{_EMAIL}/}}", lower=True),
    Rule("person", "{userId/(.+)/}"),
    Rule("person", "{userPrincipalName/(.+)/}", lower=True),
    Rule("person", "{initiatedByuseruserPrincipalName/(.+)/}", lower=True),
    Rule("service", "app:{initiatedByappdisplayName/(.+)/}"),
    Rule("service", "app:{initiatedByappservicePrincipalId/(.+)/}"),
    Rule("person", f"{{identity/{_EMAIL}/}}", lower=True),
    Rule("unknown", "unknown@{tenantId}"),
    Rule("unknown", "unknown"),
)
"""Who signed in: a service principal, a guest by the address at home, or a person."""


def unwrap(fields: dict[str, msgspec.Raw]) -> Sequence[Undecoded] | None:
    """The sign-ins in what Azure hands out: diagnostic settings, Event Hubs, Microsoft Graph.

    >>> line = {"time": msgspec.Raw(b'"2024-05-31"'), "properties": msgspec.Raw(b'{"id": "1"}')}
    >>> unwrap(line)
    [b'{"createdDateTime":"2024-05-31","id": "1"}']
    """
    if "properties" in fields:
        return [_signed_in(fields)]
    for name in ("value", "records"):
        if name in fields:
            return msgspec.json.decode(fields[name], type=list[msgspec.Raw])
    return None


def _signed_in(fields: dict[str, msgspec.Raw]) -> Undecoded:
    inner = fields["properties"]
    text = bytes(memoryview(inner)).lstrip()
    if text[:1] == b'"':
        text = msgspec.json.decode(inner, type=str).encode().lstrip()
    if text[:1] != b"{":
        return b"%s" % text
    around = b",".join(
        b'"%s":%s' % (name.encode(), memoryview(fields[outer]))
        for outer, name in _AROUND.items()
        if outer in fields
    )
    rest = text[1:].lstrip()
    # Of a name given twice JSON readers take the last: what a sign-in says of itself.
    return b"{" + around + (b"," if around and rest[:1] != b"}" else b"") + rest


AZURE = LogFormat(
    name="Azure",
    unwrap=unwrap,
    paths=PATHS,
    leading=("id", "createdDateTime"),
    context=CONTEXT,
    time="createdDateTime",
    id="id",
    user="userPrincipalName",
    dropped=DROPPED,
    spellings={plain(flat(path, DROPPED)): flat(path, DROPPED) for path in PATHS} | PORTAL,
    instead={
        "createdDateTime": (pl.col("activityDateTime"),),
        "locationcity": (city("Location"),),
        "locationstate": (state("Location"),),
        "locationcountryOrRegion": (country("Location"),),
    },
    rules=RULES,
    derived={
        "logcount": derived.log_count(),
        "locincrement": derived.increment(
            "locationcity", "locationstate", "locationcountryOrRegion", joined=True
        ),
        "appincrement": derived.increment("appDisplayName"),
        "hourofweek": derived.hour_of_week(),
        "hourkind": derived.hour_kind(),
        "agentfamily": derived.each(agent_name, "userAgent"),
        "addresskind": derived.each(address_kind, _ADDRESS),
        "addressnetwork": derived.each(address_network, _ADDRESS),
        "errorclass": derived.each(SIGN_IN_ERRORS, "statuserrorCode"),
    },
)


@dataclass(frozen=True)
class FromAzure(FileSource):
    """Read Entra ID (Azure AD) sign-ins.

    Any form is read: JSON lines of diagnostic settings, Microsoft Graph's `signIns`, the portal's
    CSV and JSON, flat CSV and Parquet. Nested names are joined: `deviceDetail.browser` is
    `deviceDetailbrowser`. Without --userid_column_name the user is `userPrincipalName`.

    Example: `from-azure --input_glob='signins/*.json'`
    """

    name = "from-azure"
    default_columns: ClassVar[str] = "columns_ae_azure.txt"
    default_user: ClassVar[str] = AZURE.user
    log_format: ClassVar[LogFormat] = AZURE
