"""from-cloudtrail: reads AWS CloudTrail logs.

Also defines the CloudTrail log format: its fields, actor rules and derived columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import polars as pl

from morpheus.features.derived import (
    ACTION_CLASSIFIER,
    AWS_ERROR_CLASSIFIER,
    address_to_network,
    classify_address,
    classify_user_agent,
    distinct_count_today,
    hour_kind,
    hour_of_week,
    log_count,
    map_values,
)
from morpheus.sources.base import FileSource
from morpheus.sources.json_records import RawJson, encode_json
from morpheus.sources.log_format import ActorRule, LogFormat

HIDDEN_USER_NAME = "HIDDEN_DUE_TO_SECURITY_REASONS"
"""What AWS writes in place of a user name that may be a mistyped password."""

_SESSION = "userIdentitysessionContext"
_ISSUER = f"{_SESSION}sessionIssueruserName"
_EMAIL = r"[^@:\s]+@[^@:\s]+\.[^@:\s]+"
_AFTER_COLON = r"^[^:]+:(.+)$"
_ACCOUNT = "{userIdentityaccountId/(.+)/}"
_RECIPIENT = "{recipientAccountId/(.+)/}"


def _make_rule(actor_type: str, identity_type: str, name_template: str) -> ActorRule:
    """Make a rule for one `userIdentity.type`."""
    return ActorRule(actor_type, name_template, {"userIdentitytype": f"^{identity_type}$"})


ACTOR_RULES = (
    _make_rule("service", "AWSService", "{userIdentityinvokedBy/(.+)/}"),
    ActorRule(
        "service",
        "{userIdentityinvokedBy}",
        {"userIdentityinvokedBy": r"\.amazonaws\.com$"},
    ),
    _make_rule("service", "AWSService", "{eventSource/(.+)/}"),
    ActorRule("person", f"{{{_SESSION}sourceIdentity/(.+)/}}"),
    _make_rule("root", "Root", f"root@{_ACCOUNT}"),
    ActorRule(
        "person",
        f"{{userIdentityprincipalId/{_AFTER_COLON}/}}",
        {"userIdentitytype": "^AssumedRole$", _ISSUER: "^AWSReservedSSO_"},
        lowercase=True,
    ),
    ActorRule(
        "person",
        f"{{userIdentityprincipalId/^[^:]+:({_EMAIL})$/}}",
        {"userIdentitytype": "^AssumedRole$"},
        lowercase=True,
    ),
    _make_rule("role", "(?:Assumed)?Role", f"{{{_ISSUER}/(.+)/}}@{_ACCOUNT}"),
    _make_rule("role", "AssumedRole", "{userIdentityarn/:assumed-role\\/([^\\/]+)/}@" + _ACCOUNT),
    _make_rule("role", "Role", "{userIdentityarn/:role\\/(?:.+\\/)?([^\\/]+)$/}@" + _ACCOUNT),
    _make_rule("role", "(?:Assumed)?Role", "{userIdentityprincipalId/^([^:]+)/}@" + _ACCOUNT),
    _make_rule(
        "person",
        "FederatedUser",
        f"{{{_ISSUER}/^([^:]+)/}}:{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}",
    ),
    _make_rule(
        "person", "FederatedUser", f"{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}"
    ),
    ActorRule(
        "person",
        "{userIdentityuserName}",
        {"userIdentitytype": "^(?:SAML|WebIdentity)User$", "userIdentityuserName": f"^{_EMAIL}$"},
        lowercase=True,
    ),
    _make_rule(
        "person",
        "(?:SAML|WebIdentity)User",
        "{userIdentityuserName/(.+)/}@{userIdentityidentityProvider/(.+)/}",
    ),
    _make_rule("person", "(?:SAML|WebIdentity)User", "{userIdentityuserName/(.+)/}"),
    _make_rule("person", "IdentityCenterUser", "{additionalEventDataUserName/(.+)/}"),
    _make_rule(
        "person",
        "IdentityCenterUser",
        "{userIdentityonBehalfOfuserId/(.+)/}@{userIdentityonBehalfOfidentityStoreArn/([^\\/]+)$/}",
    ),
    _make_rule("person", "IdentityCenterUser", "{userIdentityonBehalfOfuserId/(.+)/}"),
    _make_rule("person", "Directory", "{userIdentityuserName/(.+)/}"),
    _make_rule("account", "AWSAccount", f"account:{_ACCOUNT}"),
    ActorRule(
        "user",
        f"{{userIdentityuserName/(.+)/}}@{_ACCOUNT}",
        {"userIdentitytype": "^IAMUser$"},
        exclude={"userIdentityuserName": HIDDEN_USER_NAME},
    ),
    _make_rule("user", "IAMUser", "{userIdentityprincipalId/(.+)/}@" + _ACCOUNT),
    ActorRule("unknown", f"unknown@{_ACCOUNT}"),
    ActorRule("unknown", f"unknown@{_RECIPIENT}"),
    ActorRule("unknown", "unknown"),
)
"""Rules that name the actor, by identity type. People keep one name across roles."""


EMBEDDED_JSON_COLUMNS = ("eventJson", "CloudTrailEvent")
"""Columns in which CloudTrail Lake and LookupEvents store the whole record as text."""

FIELD_PATHS = (
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

CONTEXT_COLUMNS = (
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


def classify_aws_error(code: str | None, login: str | None) -> str | None:
    """Return the class of an error; None if there is no error.

    Args:
        code: `errorCode`.
        login: `responseElements.ConsoleLogin`, which reports failed sign-ins.

    >>> classify_aws_error("AccessDenied", None), classify_aws_error(None, "Failure")
    ('denied', 'login')
    >>> classify_aws_error(None, "Success") is None
    True
    """
    return AWS_ERROR_CLASSIFIER(code) or ("login" if login == "Failure" else None)


_SOURCE_ADDRESS = "sourceIPAddress"
DERIVED_COLUMNS = {
    "logcount": log_count(),
    "locincrement": distinct_count_today(_SOURCE_ADDRESS),
    "appincrement": distinct_count_today("eventSource"),
    "hourofweek": hour_of_week(),
    "hourkind": hour_kind(),
    "agentfamily": map_values(classify_user_agent, "userAgent"),
    "addresskind": map_values(classify_address, _SOURCE_ADDRESS),
    "addressnetwork": map_values(address_to_network, _SOURCE_ADDRESS),
    "errorclass": map_values(classify_aws_error, "errorCode", "responseElementsConsoleLogin"),
    "verbclass": map_values(ACTION_CLASSIFIER, "eventName"),
}


def unwrap(fields: dict[str, msgspec.Raw]) -> Sequence[RawJson] | None:
    """Return the records of an object: a log file, LookupEvents or CloudTrail Lake.

    >>> [bytes(record) for record in unwrap({"Records": msgspec.Raw(b'[{"eventName":"Ls"}]')})]
    [b'{"eventName":"Ls"}']
    """
    for name in ("Records", "Events"):
        if name in fields:
            return msgspec.json.decode(fields[name], type=list[msgspec.Raw])
    if "QueryResultRows" in fields:
        rows = msgspec.json.decode(fields["QueryResultRows"], type=list[list[dict[str, Any]]])
        return [
            encode_json({name: cell for pair in row for name, cell in pair.items()}) for row in rows
        ]
    for name in EMBEDDED_JSON_COLUMNS:
        if name in fields:
            return [_parse_embedded(fields[name])]
    return None


def _parse_embedded(value: msgspec.Raw) -> RawJson:
    text = msgspec.json.decode(value)
    return text.encode() if isinstance(text, str) else value


def get_first_owner(owners: object) -> object:
    """Return the first value of the first owner in a list, as the lessons' data has it.

    >>> get_first_owner([{"owner": "amazon"}, {"owner": "self"}])
    'amazon'
    """
    if not isinstance(owners, list):
        return owners
    if owners and isinstance(owners[0], dict):
        return next(iter(owners[0].values()), None)
    return owners or None


def format_account(cell: pl.Expr) -> pl.Expr:
    """Prefix an account number in a CSV cell with `Account-`, as the lessons' data does."""
    return pl.when(cell.str.contains("^[0-9]+$")).then("Account-" + cell).otherwise(cell)


CLOUDTRAIL_FORMAT = LogFormat(
    name="CloudTrail",
    unwrap=unwrap,
    paths=FIELD_PATHS,
    leading_columns=("eventID", "eventTime"),
    context_columns=CONTEXT_COLUMNS,
    time_column="eventTime",
    id_column="eventID",
    user_column="userIdentityaccountId",
    account_columns=("recipientAccountId", "userIdentityaccountId"),
    json_converters={"requestParametersownersSetitems": get_first_owner},
    csv_converters={"userIdentityaccountId": format_account},
    embedded_json_columns=EMBEDDED_JSON_COLUMNS,
    skip_dirs=("CloudTrail-Digest", "CloudTrail-Insight"),
    actor_rules=ACTOR_RULES,
    derived_columns=DERIVED_COLUMNS,
)


@dataclass(frozen=True)
class FromCloudtrail(FileSource):
    """Read AWS CloudTrail logs.

    Reads the files that CloudTrail delivers (plain, gzip or zstd), JSON lines, LookupEvents and
    CloudTrail Lake exports, flat CSV and Parquet. Nested names are joined: `userIdentity.arn`
    becomes `userIdentityarn`. Digests and Insights are skipped.

    Example: `from-cloudtrail --input_glob='AWSLogs/**/*.json.gz'`
    """

    name = "from-cloudtrail"
    default_columns: ClassVar[str] = "columns_ae_cloudtrail.txt"
    default_user: ClassVar[str] = CLOUDTRAIL_FORMAT.user_column
    log_format: ClassVar[LogFormat] = CLOUDTRAIL_FORMAT
