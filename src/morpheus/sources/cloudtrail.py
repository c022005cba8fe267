"""from-cloudtrail: reads AWS CloudTrail logs.

Also defines the CloudTrail log format: its fields, actor rules and derived columns.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from morpheus.columns import EventFields, EvidenceQuery
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
from morpheus.sources.envelopes import Envelope, OtherKind
from morpheus.sources.group_by_user import RecordOrder
from morpheus.sources.json_records import normalize_name
from morpheus.sources.log_format import ActorRule, LogFormat

HIDDEN_USER_NAME = "HIDDEN_DUE_TO_SECURITY_REASONS"
"""What AWS writes in place of a user name that may be a mistyped password."""

_SESSION = "userIdentitysessionContext"
_ISSUER = f"{_SESSION}sessionIssueruserName"
_EMAIL = r"[^@:\s]+@[^@:\s]+\.[^@:\s]+"
_AFTER_COLON = r"^[^:]+:(.+)$"
_ACCOUNT = "{userIdentityaccountId/(.+)/}"
_RECIPIENT = "{recipientAccountId/(.+)/}"
_ELASTIC_ISSUER = "aws.cloudtrail.user_identity.session_context.session_issuer"


def _make_rule(actor_type: str, identity_type: str, name_template: str) -> ActorRule:
    """Make a rule for one `userIdentity.type`."""
    return ActorRule(actor_type, name_template, {"userIdentitytype": f"^{identity_type}$"})


def _make_name_rule(column: str) -> ActorRule:
    """Make a rule for people of IAM Identity Center, whose type is often `Unknown`."""
    return ActorRule(
        "person",
        f"{{{column}/(.+)/}}",
        {"userIdentitytype": "^(?:Unknown|IdentityCenterUser)$"},
        exclude={column: HIDDEN_USER_NAME},
    )


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
    _make_name_rule("userIdentityuserName"),
    _make_name_rule("additionalEventDataUserName"),
    ActorRule(
        "person",
        f"{{userIdentityprincipalId/(.+)/}}@{_ACCOUNT}",
        {"userIdentitytype": "^Unknown$"},
        exclude={"userIdentityprincipalId": r"^(?:\d{12}|(?i:anonymous))$"},
    ),
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

IDENTITY_COLUMNS = (
    "userIdentityprincipalId",
    "userIdentityarn",
    "userIdentityaccessKeyId",
    "userIdentityuserName",
    "userIdentitycredentialId",
    "userIdentityonBehalfOfuserId",
    f"{_SESSION}sessionIssuerprincipalId",
    f"{_SESSION}sessionIssuerarn",
    _ISSUER,
    f"{_SESSION}sourceIdentity",
    "additionalEventDataUserName",
    # In other fields, who is named is often the user, or a role that acts as one.
    "errorMessage",
    "requestParametersroleArn",
    "requestParametersroleName",
    "requestParametersroleSessionName",
    "requestParametersuserName",
    "responseElementsassumedRoleUserarn",
    "responseElementsassumedRoleUserassumedRoleId",
    "resources",
)
"""Columns that identify users."""


VOLATILE_COLUMNS = (
    "requestID",
    "userIdentitycredentialId",
    f"{_SESSION}attributescreationDate",
    # They contain the name of the session.
    "userIdentityprincipalId",
    "userIdentityarn",
    "requestParametersroleSessionName",
    "responseElementsassumedRoleUserassumedRoleId",
    "responseElementsassumedRoleUserarn",
    "responseElementsrequestId",
    "responseElementsinstancesSetitems",
    "responseElementsreservationId",
)
"""Columns that have another value in each session or in each event."""


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


OTHER_KINDS = (
    OtherKind("CloudTrail Insights event", values={"eventCategory": "Insight"}),
    OtherKind("CloudTrail Insights event", values={"eventType": "AwsCloudTrailInsight"}),
    OtherKind("S3 notification", values={"eventSource": "aws:s3"}),
)
"""What looks like an event and is none."""


_SERVICE = r"/AWSLogs/(?:o-[a-z0-9]+/)?\d{12}/"
OTHER_FILES = (
    ("CloudTrail digest file", r"/CloudTrail-Digest/|_CloudTrail-Digest_"),
    ("CloudTrail Insights file", r"/CloudTrail-Insight/|_CloudTrail-Insight_"),
    ("AWS Config file", rf"{_SERVICE}Config/|\d{{12}}_Config_|/ConfigWritabilityCheckFile"),
    ("GuardDuty file", rf"{_SERVICE}GuardDuty/"),
    ("VPC flow log file", rf"{_SERVICE}vpcflowlogs/|\d{{12}}_vpcflowlogs_"),
    ("DNS query log file", rf"{_SERVICE}vpcdnsquerylogs/|_vpcdnsquerylogs_"),
    ("load balancer log file", rf"{_SERVICE}elasticloadbalancing/|\d{{12}}_elasticloadbalancing_"),
    ("firewall log file", rf"{_SERVICE}(?:WAFLogs|network-firewall)/|_waflogs_|/aws-waf-logs-"),
    ("S3 access log file", r"/\d{4}(?:-\d\d){5}-[0-9A-F]{16}$"),
)
"""What other services write to the same bucket, with patterns of the paths."""


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


EVENT_FIELDS = EventFields(
    event_id=("eventID",),
    action=("eventName",),
    service=("eventSource",),
    resource=(
        "requestParametersbucketName",
        "requestParameterssecretId",
        "requestParametersfunctionName",
        "requestParametersroleName",
        "requestParametersroleArn",
        "requestParametersuserName",
        "requestParametersgroupName",
        "requestParameterspolicyArn",
    ),
    source_address=(_SOURCE_ADDRESS,),
    user_agent=("userAgent",),
    account=("recipientAccountId", "userIdentityaccountId"),
    region=("awsRegion",),
    session=("userIdentityaccessKeyId",),
    error_code=("errorCode",),
    error_message=("errorMessage",),
    result=("responseElementsConsoleLogin",),
)
LABELS = {
    _ISSUER: "Role",
    "userIdentityarn": "Identity",
    "userIdentitytype": "Identity type",
    "userIdentityuserName": "User name",
    "userIdentityaccountId": "Account of the user",
    "userIdentityaccessKeyId": "Access key",
    "userIdentityinvokedBy": "Invoked by",
    f"{_SESSION}attributesmfaAuthenticated": "Multi-factor authentication",
    f"{_SESSION}attributescreationDate": "Start of the session",
    f"{_SESSION}sessionIssuertype": "Role type",
    f"{_SESSION}sessionIssuerprincipalId": "Role ID",
    f"{_SESSION}sessionIssuerarn": "Role ARN",
    f"{_SESSION}sessionIssueraccountId": "Account of the role",
    f"{_SESSION}webIdFederationDatafederatedProvider": "Federation provider",
    f"{_SESSION}sourceIdentity": "Source identity",
    f"{_SESSION}ec2RoleDelivery": "Instance metadata version",
    "userIdentityonBehalfOfuserId": "On behalf of",
    "userIdentityonBehalfOfidentityStoreArn": "Identity store",
    "requestParametersbucketName": "Bucket",
    "requestParameterskey": "Object key",
    "requestParameterssecretId": "Secret",
    "requestParametersfunctionName": "Function",
    "requestParametersroleName": "Target role",
    "requestParametersroleArn": "Requested role",
    "requestParametersroleSessionName": "Requested session name",
    "requestParametersdurationSeconds": "Requested session duration",
    "requestParametersuserName": "Target user",
    "requestParametersgroupName": "Target group",
    "requestParameterspolicyArn": "Policy",
    "requestParametersownersSetitems": "Image owner",
    "requestParametersinstancesSetitems": "Requested instances",
    "requestParametersgroupSetitems": "Security groups",
    "requestParametersinstanceType": "Instance type",
    "requestParametersmonitoringenabled": "Instance monitoring",
    "requestParametersdisableApiTermination": "Termination protection",
    "requestParametersebsOptimized": "EBS-optimized",
    "requestParametersmaxResults": "Maximum results",
    "requestParametersmaxItems": "Maximum items",
    "responseElementsinstancesSetitems": "Instances in the response",
    "responseElementsassumedRoleUserarn": "Assumed role",
    "responseElementsassumedRoleUserassumedRoleId": "Assumed role ID",
    "responseElementsConsoleLogin": "Sign-in result",
    "responseElementsrequestId": "Request ID of the response",
    "additionalEventDataLoginTo": "Sign-in page",
    "additionalEventDataMobileVersion": "Mobile app",
    "additionalEventDataMFAUsed": "MFA used",
    "additionalEventDataUserName": "Sign-in name",
    "sessionCredentialFromConsole": "Console session",
    "tlsDetailsclientProvidedHostHeader": "Host",
    "eventType": "Event type",
    "eventCategory": "Event category",
    "managementEvent": "Management event",
    "readOnly": "Read-only",
    "vpcEndpointId": "VPC endpoint",
}

_STRUCT_FIELDS = ("userIdentity.", "tlsDetails.")
_TEXT_FIELDS = ("requestParameters.", "responseElements.", "additionalEventData.")
_NOT_IN_ATHENA = (
    "managementEvent",
    "userIdentity.identityProvider",
    "userIdentity.credentialId",
    "userIdentity.sessionContext.sourceIdentity",
)
"""Fields that are not in the table that AWS documents for Athena."""
_NOT_IN_LAKE = ("userIdentity.credentialId",)


def _name_sql_fields(json_value: str, absent: Collection[str]) -> dict[str, str]:
    """Name the fields in a table of CloudTrail records, by flat column.

    Args:
        json_value: Format of an expression for a value in a field that is no struct, with `field`
            and `key`.
        absent: Paths of fields that the table does not have.
    """
    names = {}
    for path in FIELD_PATHS:
        field, _, key = path.partition(".")
        if path.startswith(_TEXT_FIELDS) and "." not in key:
            names[path.replace(".", "")] = json_value.format(field=field, key=key)
        elif "." not in path or path.startswith(_STRUCT_FIELDS):
            names[path.replace(".", "")] = path
    return {name: field for name, field in names.items() if field not in absent}


ATHENA_QUERY = """
-- cloudtrail_logs is the table of the AWS documentation. If it is partitioned by day, add:
--   AND "timestamp" BETWEEN '{from_day}' AND '{to_day}'
SELECT eventTime, eventName, eventSource, awsRegion, sourceIPAddress, userAgent, errorCode,
       userIdentity.arn, requestParameters, eventID
FROM cloudtrail_logs
WHERE eventTime BETWEEN '{from}' AND '{to}'
  AND {event_ids}
  AND {identity}
ORDER BY eventTime;
"""
LAKE_QUERY = """
-- Replace $EDS_ID by the id of your event data store.
SELECT eventTime, eventName, eventSource, awsRegion, sourceIPAddress, userAgent, errorCode,
       userIdentity.arn, requestParameters, eventID
FROM $EDS_ID
WHERE eventTime >= '{from}' AND eventTime <= '{to}'
  AND {event_ids}
  AND {identity}
ORDER BY eventTime
"""
SPLUNK_QUERY = """
search index=* earliest={from} latest={to}
  {event_ids}
| where {identity}
| sort 0 _time
| table _time eventName eventSource awsRegion sourceIPAddress userAgent errorCode
    userIdentity.arn eventID
"""
KUSTO_QUERY = """
AWSCloudTrail
| where TimeGenerated between (datetime({from}) .. datetime({to}))
| where {event_ids}
| where {identity}
| project TimeGenerated, EventName, EventSource, AWSRegion, SourceIpAddress, UserAgent, ErrorCode,
    UserIdentityArn, RequestParameters, AwsEventId
| order by TimeGenerated asc
"""
SENTINEL_COLUMNS = {
    "eventID": "AwsEventId",
    "eventSource": "EventSource",
    "recipientAccountId": "RecipientAccountId",
    "userIdentitytype": "UserIdentityType",
    "userIdentityprincipalId": "UserIdentityPrincipalid",
    "userIdentityarn": "UserIdentityArn",
    "userIdentityaccountId": "UserIdentityAccountId",
    "userIdentityuserName": "UserIdentityUserName",
    "userIdentityinvokedBy": "UserIdentityInvokedBy",
    f"{_SESSION}sessionIssuertype": "SessionIssuerType",
    f"{_SESSION}sessionIssuerprincipalId": "SessionIssuerPrincipalId",
    f"{_SESSION}sessionIssuerarn": "SessionIssuerArn",
    f"{_SESSION}sessionIssueraccountId": "SessionIssuerAccountId",
    _ISSUER: "SessionIssuerUserName",
    "additionalEventDataUserName": "tostring(parse_json(AdditionalEventData).UserName)",
}
"""Names of columns in the table `AWSCloudTrail` of Microsoft Sentinel."""
ELASTIC_QUERY = """
// Discover must show a time range that includes this one.
FROM logs-aws.cloudtrail-*
| WHERE @timestamp >= "{from}" AND @timestamp <= "{to}"
| WHERE {event_ids}
| WHERE {identity}
| SORT @timestamp
| KEEP @timestamp, event.action, event.provider, cloud.region, source.address, user_agent.original,
    aws.cloudtrail.error_code, aws.cloudtrail.user_identity.arn, event.id
| LIMIT 1000
"""
ELASTIC_COLUMNS = {
    "eventID": "event.id",
    "eventSource": "event.provider",
    "recipientAccountId": "aws.cloudtrail.recipient_account_id",
    "userIdentitytype": "aws.cloudtrail.user_identity.type",
    "userIdentityprincipalId": "user.id",
    "userIdentityarn": "aws.cloudtrail.user_identity.arn",
    "userIdentityaccountId": "cloud.account.id",
    "userIdentityuserName": "user.name",
    "userIdentityinvokedBy": "aws.cloudtrail.user_identity.invoked_by",
    f"{_SESSION}sessionIssuertype": f"{_ELASTIC_ISSUER}.type",
    f"{_SESSION}sessionIssuerprincipalId": f"{_ELASTIC_ISSUER}.principal_id",
    f"{_SESSION}sessionIssuerarn": f"{_ELASTIC_ISSUER}.arn",
    f"{_SESSION}sessionIssueraccountId": f"{_ELASTIC_ISSUER}.account_id",
    _ISSUER: "user.name",  # the integration renames both, and no record has both
}
"""Names of fields in the integration `AWS CloudTrail` of Elastic."""
EVIDENCE = (
    EvidenceQuery(
        "Athena",
        ATHENA_QUERY,
        columns=_name_sql_fields("json_extract_scalar({field}, '$.{key}')", _NOT_IN_ATHENA),
        only_columns=True,
    ),
    EvidenceQuery(
        "CloudTrail Lake",
        LAKE_QUERY,
        time_format="sql",
        columns=_name_sql_fields("element_at({field}, '{key}')", _NOT_IN_LAKE),
        only_columns=True,
        max_length=10_000,
    ),
    EvidenceQuery("Splunk", SPLUNK_QUERY, "splunk", "epoch"),
    EvidenceQuery("KQL", KUSTO_QUERY, "kusto", columns=SENTINEL_COLUMNS, only_columns=True),
    EvidenceQuery("Elastic", ELASTIC_QUERY, "esql", columns=ELASTIC_COLUMNS, only_columns=True),
)

CONSOLE_NAMES = {
    "User name": "userIdentityuserName",
    "AWS access key": "userIdentityaccessKeyId",
    "Access key ID": "userIdentityaccessKeyId",
}
"""Columns of the console's event history, and of LookupEvents."""
SENTINEL_NAMES = {
    "AwsEventId": "eventID",
    "AwsRequestId": "requestID",
    "EventTypeName": "eventType",
    "SessionIssuerType": f"{_SESSION}sessionIssuertype",
    "SessionIssuerPrincipalId": f"{_SESSION}sessionIssuerprincipalId",
    "SessionIssuerArn": f"{_SESSION}sessionIssuerarn",
    "SessionIssuerAccountId": f"{_SESSION}sessionIssueraccountId",
    "SessionIssuerUserName": _ISSUER,
    "SessionMfaAuthenticated": f"{_SESSION}attributesmfaAuthenticated",
    "SessionCreationDate": f"{_SESSION}attributescreationDate",
    "EC2RoleDelivery": f"{_SESSION}ec2RoleDelivery",
    "TlsVersion": "tlsDetailstlsVersion",
    "CipherSuite": "tlsDetailscipherSuite",
    "ClientProvidedHostHeader": "tlsDetailsclientProvidedHostHeader",
    "TimeGenerated": "eventTime",
    "TimeGenerated [UTC]": "eventTime",
}
"""Columns of the table `AWSCloudTrail` of Microsoft Sentinel that have names of their own."""
ECS_NAMES = {
    "event.action": "eventName",
    "event.provider": "eventSource",
    "event.id": "eventID",
    "source.address": _SOURCE_ADDRESS,
    "source.ip": _SOURCE_ADDRESS,
    "user_agent.original": "userAgent",
    "cloud.region": "awsRegion",
    "cloud.account.id": "recipientAccountId",
    "@timestamp": "eventTime",
    "_time": "eventTime",
} | {f"aws.cloudtrail.{path}": path.replace(".", "") for path in FIELD_PATHS}
"""Columns of the Elastic Common Schema, and the time of Splunk."""
COLUMN_ALIASES = {
    normalize_name(name): column
    for names in (CONSOLE_NAMES, SENTINEL_NAMES, ECS_NAMES)
    for name, column in names.items()
}

CLOUDTRAIL_FORMAT = LogFormat(
    name="CloudTrail",
    paths=FIELD_PATHS,
    leading_columns=("eventID", "eventTime"),
    context_columns=CONTEXT_COLUMNS,
    time_column="eventTime",
    id_column="eventID",
    user_column="userIdentityaccountId",
    shared_id_column="sharedEventID",
    # The account that owns the resource logs less about the caller.
    record_order=RecordOrder("userIdentitytype", ("AWSAccount",)),
    json_converters={"requestParametersownersSetitems": get_first_owner},
    number_prefixes={"userIdentityaccountId": "Account-"},
    embedded_json_columns=EMBEDDED_JSON_COLUMNS,
    column_aliases=COLUMN_ALIASES,
    boolean_columns=("readOnly", "managementEvent", "requestParametersmonitoringenabled"),
    envelopes=tuple(Envelope(name, is_declared=True) for name in EMBEDDED_JSON_COLUMNS),
    excluded_kinds=OTHER_KINDS,
    skip_dirs=("CloudTrail-Digest", "CloudTrail-Insight"),
    other_files=OTHER_FILES,
    actor_rules=ACTOR_RULES,
    derived_columns=DERIVED_COLUMNS,
    identity_columns=IDENTITY_COLUMNS,
    user_columns=(_ISSUER, "userIdentityarn", "userIdentityaccountId"),
    event_fields=EVENT_FIELDS,
    labels=LABELS,
    evidence=EVIDENCE,
    cloud_provider="aws",
    volatile_columns=VOLATILE_COLUMNS,
)


@dataclass(frozen=True)
class FromCloudtrail(FileSource):
    """Read AWS CloudTrail logs.

    Reads the files that CloudTrail delivers (plain, gzip or zstd), JSON lines, flat CSV and
    Parquet, and exports of LookupEvents, CloudTrail Lake, Athena, the console and SIEMs. Nested
    names are joined: `userIdentity.arn` becomes `userIdentityarn`. Digests and Insights are
    skipped.

    Example: `from-cloudtrail --input_glob='AWSLogs/**/*.json.gz'`
    """

    name = "from-cloudtrail"
    default_columns: ClassVar[str] = "columns_ae_cloudtrail.txt"
    default_user: ClassVar[str] = CLOUDTRAIL_FORMAT.user_column
    log_format: ClassVar[LogFormat] = CLOUDTRAIL_FORMAT
