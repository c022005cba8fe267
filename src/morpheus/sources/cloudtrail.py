"""from-cloudtrail: AWS CloudTrail in every form that one has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import polars as pl

from morpheus.features import derived
from morpheus.features.families import (
    AWS_ERRORS,
    VERBS,
    address_kind,
    address_network,
    agent_name,
)
from morpheus.sources.cloudtrail_actors import RULES
from morpheus.sources.documents import Undecoded, encode
from morpheus.sources.file_source import FileSource
from morpheus.sources.log_format import LogFormat

EMBEDDED = ("eventJson", "CloudTrailEvent")
"""Where CloudTrail Lake and LookupEvents keep the whole record, as text."""

PATHS = (
    "eventVersion",
    "userIdentity.type",
    "userIdentity.principalId",
    "userIdentity.arn",
    "userIdentity.accountId",
    "userIdentity.accessKeyId",
    "userIdentity.userName",
    "userIdentity.invokedBy",
    "userIdentity.identityProvider",
    "userIdentity.onBehalfOf.userId",
    "userIdentity.onBehalfOf.identityStoreArn",
    "userIdentity.credentialId",
    "userIdentity.sessionContext.sessionIssuer.type",
    "userIdentity.sessionContext.sessionIssuer.principalId",
    "userIdentity.sessionContext.sessionIssuer.arn",
    "userIdentity.sessionContext.sessionIssuer.accountId",
    "userIdentity.sessionContext.sessionIssuer.userName",
    "userIdentity.sessionContext.webIdFederationData.federatedProvider",
    "userIdentity.sessionContext.attributes.creationDate",
    "userIdentity.sessionContext.attributes.mfaAuthenticated",
    "userIdentity.sessionContext.sourceIdentity",
    "userIdentity.sessionContext.ec2RoleDelivery",
    "eventTime",
    "eventSource",
    "eventName",
    "awsRegion",
    "sourceIPAddress",
    "userAgent",
    "errorCode",
    "errorMessage",
    "requestParameters.roleArn",
    "requestParameters.roleSessionName",
    "requestParameters.durationSeconds",
    "requestParameters.ownersSet.items",
    "requestParameters.maxResults",
    "requestParameters.instancesSet.items",
    "requestParameters.maxItems",
    "requestParameters.groupSet.items",
    "requestParameters.instanceType",
    "requestParameters.monitoring.enabled",
    "requestParameters.disableApiTermination",
    "requestParameters.ebsOptimized",
    "requestParameters.groupName",
    "requestParameters.userName",
    "requestParameters.policyArn",
    "requestParameters.policyName",
    "requestParameters.roleName",
    "requestParameters.bucketName",
    "requestParameters.key",
    "requestParameters.functionName",
    "requestParameters.secretId",
    "responseElements.assumedRoleUser.assumedRoleId",
    "responseElements.assumedRoleUser.arn",
    "responseElements.requestId",
    "responseElements.instancesSet.items",
    "responseElements.reservationId",
    "responseElements.ConsoleLogin",
    "additionalEventData.LoginTo",
    "additionalEventData.MobileVersion",
    "additionalEventData.MFAUsed",
    "additionalEventData.UserName",
    "requestID",
    "eventID",
    "readOnly",
    "resources",
    "eventType",
    "apiVersion",
    "managementEvent",
    "recipientAccountId",
    "sharedEventID",
    "vpcEndpointId",
    "vpcEndpointAccountId",
    "eventCategory",
    "sessionCredentialFromConsole",
    "tlsDetails.tlsVersion",
    "tlsDetails.cipherSuite",
    "tlsDetails.clientProvidedHostHeader",
)

CONTEXT = (
    "awsRegion",
    "recipientAccountId",
    "userIdentityuserName",
    "userIdentityinvokedBy",
    "userIdentitysessionContextsessionIssuerarn",
    "userIdentitysessionContextattributesmfaAuthenticated",
    "eventType",
    "eventCategory",
    "managementEvent",
    "readOnly",
    "vpcEndpointId",
    "responseElementsConsoleLogin",
    "additionalEventDataMFAUsed",
    "requestID",
    "sharedEventID",
)


def aws_error(code: str | None, login: str | None) -> str | None:
    """Class of an error; None for none.

    >>> aws_error("AccessDenied", None), aws_error(None, "Failure"), aws_error(None, "Success")
    ('denied', 'login', None)
    """
    return AWS_ERRORS(code) or ("login" if login == "Failure" else None)


_ADDRESS = "sourceIPAddress"
DERIVED = {
    "logcount": derived.log_count(),
    "locincrement": derived.increment(_ADDRESS),
    "appincrement": derived.increment("eventSource"),
    "hourofweek": derived.hour_of_week(),
    "hourkind": derived.hour_kind(),
    "agentfamily": derived.each(agent_name, "userAgent"),
    "addresskind": derived.each(address_kind, _ADDRESS),
    "addressnetwork": derived.each(address_network, _ADDRESS),
    "errorclass": derived.each(aws_error, "errorCode", "responseElementsConsoleLogin"),
    "verbclass": derived.each(VERBS, "eventName"),
}


def unwrap(fields: dict[str, msgspec.Raw]) -> Sequence[Undecoded] | None:
    """The records in what AWS hands out: log files, LookupEvents, CloudTrail Lake.

    >>> [bytes(record) for record in unwrap({"Records": msgspec.Raw(b'[{"eventName":"Ls"}]')})]
    [b'{"eventName":"Ls"}']
    """
    for name in ("Records", "Events"):
        if name in fields:
            return msgspec.json.decode(fields[name], type=list[msgspec.Raw])
    if "QueryResultRows" in fields:
        rows = msgspec.json.decode(fields["QueryResultRows"], type=list[list[dict[str, Any]]])
        return [encode({name: cell for pair in row for name, cell in pair.items()}) for row in rows]
    for name in EMBEDDED:
        if name in fields:
            return [_embedded(fields[name])]
    return None


def _embedded(value: msgspec.Raw) -> Undecoded:
    text = msgspec.json.decode(value)
    return text.encode() if isinstance(text, str) else value


def first_owner(owners: object) -> object:
    """Of a list of owners the first value of the first one, as the lessons have it.

    >>> first_owner([{"owner": "amazon"}, {"owner": "self"}])
    'amazon'
    """
    if not isinstance(owners, list):
        return owners
    if owners and isinstance(owners[0], dict):
        return next(iter(owners[0].values()), None)
    return owners or None


def account(cell: pl.Expr) -> pl.Expr:
    """Name an account whose number stands in a CSV cell as the lessons name it."""
    return pl.when(cell.str.contains("^[0-9]+$")).then("Account-" + cell).otherwise(cell)


CLOUDTRAIL = LogFormat(
    name="CloudTrail",
    unwrap=unwrap,
    paths=PATHS,
    leading=("eventID", "eventTime"),
    context=CONTEXT,
    time="eventTime",
    id="eventID",
    user="userIdentityaccountId",
    accounts=("recipientAccountId", "userIdentityaccountId"),
    leaves={"requestParametersownersSetitems": first_owner},
    cells={"userIdentityaccountId": account},
    embedded=EMBEDDED,
    without=("CloudTrail-Digest", "CloudTrail-Insight"),
    rules=RULES,
    derived=DERIVED,
)


@dataclass(frozen=True)
class FromCloudtrail(FileSource):
    """Read AWS CloudTrail logs.

    Any form is read: AWS's own files and folders, plain, gzip or zstd; JSON lines; LookupEvents and
    CloudTrail Lake exports; flat CSV and Parquet. Nested names are joined: `userIdentity.arn` is
    `userIdentityarn`. Digests and Insights are left out.

    Example: `from-cloudtrail --input_glob='AWSLogs/**/*.json.gz'`
    """

    name = "from-cloudtrail"
    default_columns: ClassVar[str] = "columns_ae_cloudtrail.txt"
    default_user: ClassVar[str] = CLOUDTRAIL.user
    log_format: ClassVar[LogFormat] = CLOUDTRAIL
