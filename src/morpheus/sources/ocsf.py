"""from-ocsf: reads events in the Open Cybersecurity Schema Framework (OCSF).

Amazon Security Lake stores this format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import polars as pl
from msgspec.structs import replace

from morpheus.columns import SPLUNK_QUERY, EventFields, EvidenceQuery
from morpheus.core.stage import option
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
from morpheus.sources.log_format import ActorRule, LogFormat

CLASS_COLUMN = "class_uid"
DEFAULT_CLASSES = ("3001", "3002", "3003", "3004", "3005", "3006", "6003")
"""Event classes that describe user activity: account changes, authentications, changes of
entities, privileges and groups, and API calls."""

FIELD_PATHS = (
    "metadata.uid",
    "time",
    "time_dt",
    "class_uid",
    "class_name",
    "category_uid",
    "type_uid",
    "activity_id",
    "activity_name",
    "severity_id",
    "severity",
    "status",
    "status_id",
    "status_code",
    "status_detail",
    "message",
    "metadata.version",
    "metadata.event_code",
    "metadata.log_name",
    "metadata.product.name",
    "metadata.product.vendor_name",
    "metadata.product.feature.name",
    "api.operation",
    "api.version",
    "api.service.name",
    "api.request.uid",
    "api.request.data",
    "api.response.error",
    "api.response.message",
    "api.response.code",
    "actor.user.type",
    "actor.user.type_id",
    "actor.user.name",
    "actor.user.uid",
    "actor.user.uid_alt",
    "actor.user.email_addr",
    "actor.user.credential_uid",
    "actor.user.account.uid",
    "actor.user.account_uid",
    "actor.session.uid",
    "actor.session.issuer",
    "actor.session.is_mfa",
    "actor.session.mfa",
    "actor.session.created_time",
    "actor.session.credential_uid",
    "actor.invoked_by",
    "actor.idp.name",
    "actor.app_name",
    "user.type",
    "user.name",
    "user.uid",
    "user.uid_alt",
    "user.email_addr",
    "user.account.uid",
    "src_endpoint.ip",
    "src_endpoint.domain",
    "src_endpoint.uid",
    "src_endpoint.svc_name",
    "src_endpoint.location.country",
    "src_endpoint.location.city",
    "dst_endpoint.svc_name",
    "dst_endpoint.hostname",
    "http_request.user_agent",
    "http_request.http_method",
    "http_request.url.path",
    "service.name",
    "is_mfa",
    "is_remote",
    "is_new_logon",
    "auth_protocol",
    "logon_type",
    "session.issuer",
    "session.uid",
    "cloud.provider",
    "cloud.region",
    "cloud.account.uid",
    "resources",
    "policy.name",
    "group.name",
)

CONTEXT_COLUMNS = (
    "category_uid",
    "type_uid",
    "severity",
    "status_detail",
    "apirequestuid",
    "apiresponsemessage",
    "src_endpointlocationcountry",
    "resources",
    "metadataproductvendor_name",
    "metadataproductfeaturename",
)

_USER_FIELDS = ("name", "uid", "uid_alt", "email_addr")
IDENTITY_COLUMNS = (
    *(f"{who}{name}" for who in ("actoruser", "user") for name in _USER_FIELDS),
    "actorusercredential_uid",
    "actorsessionuid",
    "actorsessionissuer",
    "actorsessioncredential_uid",
    "sessionissuer",
    "sessionuid",
    "status_detail",
    "message",
    "apiresponsemessage",
    "apirequestdata",
    "resources",
)
"""Columns that identify users."""

_ACCOUNT = "{actoruseraccountuid/(.+)/}"
_EMAIL = r"[^@:\s]+@[^@:\s]+\.[^@:\s]+"
_ASSUMED_ROLE = {"actorusertype": "^AssumedRole$"}

ACTOR_RULES = (
    ActorRule("service", "{actorinvoked_by}", {"actorinvoked_by": r"\.amazonaws\.com$"}),
    ActorRule("service", "{actorinvoked_by/(.+)/}", {"actorusertype": "^AWSService$"}),
    ActorRule("root", f"root@{_ACCOUNT}", {"actorusertype": "^Root$"}),
    ActorRule("person", f"{{actoruseruid_alt/^[^:]+:({_EMAIL})$/}}", _ASSUMED_ROLE, lowercase=True),
    ActorRule(
        "person",
        "{actoruseruid_alt/^[^:]+:(.+)$/}",
        _ASSUMED_ROLE | {"actorsessionissuer": r"/AWSReservedSSO_"},
        lowercase=True,
    ),
    ActorRule(
        "role", "{actorsessionissuer/:role\\/(?:.+\\/)?([^\\/]+)$/}@" + _ACCOUNT, _ASSUMED_ROLE
    ),
    ActorRule("role", "{actoruseruid/:assumed-role\\/([^\\/]+)/}@" + _ACCOUNT, _ASSUMED_ROLE),
    ActorRule("user", f"{{actorusername/(.+)/}}@{_ACCOUNT}", {"actorusertype": "^IAMUser$"}),
    ActorRule("person", f"{{actoruseremail_addr/^({_EMAIL})$/}}", lowercase=True),
    ActorRule("person", f"{{actorusername/^({_EMAIL})$/}}", lowercase=True),
    ActorRule("user", "{actorusername/(.+)/}"),
    ActorRule("user", "{actoruseruid/(.+)/}"),
    ActorRule("person", f"{{useremail_addr/^({_EMAIL})$/}}", lowercase=True),
    ActorRule("user", "{username/(.+)/}"),
    ActorRule("user", "{useruid/(.+)/}"),
    ActorRule("unknown", "unknown@{cloudaccountuid/(.+)/}"),
    ActorRule("unknown", "unknown"),
)
"""Rules that name the actor. An authentication without an actor is by its user."""


def classify_error(code: str | None, status: str | None) -> str | None:
    """Return the class of an error; None if there is no error.

    >>> classify_error("AccessDenied", None), classify_error(None, "Failure")
    ('denied', 'failure')
    >>> classify_error(None, "Success") is None
    True
    """
    return AWS_ERROR_CLASSIFIER(code) or ("failure" if status == "Failure" else None)


_SOURCE_ADDRESS = "src_endpointip"
DERIVED_COLUMNS = {
    "logcount": log_count(),
    "locincrement": distinct_count_today(_SOURCE_ADDRESS),
    "appincrement": distinct_count_today("apiservicename"),
    "hourofweek": hour_of_week(),
    "hourkind": hour_kind(),
    "agentfamily": map_values(classify_user_agent, "http_requestuser_agent"),
    "addresskind": map_values(classify_address, _SOURCE_ADDRESS),
    "addressnetwork": map_values(address_to_network, _SOURCE_ADDRESS),
    "errorclass": map_values(classify_error, "apiresponseerror", "status"),
    "verbclass": map_values(ACTION_CLASSIFIER, "apioperation"),
}


EVENT_FIELDS = EventFields(
    event_id=("metadatauid",),
    action=("apioperation", "activity_name"),
    service=("apiservicename", "servicename", "dst_endpointsvc_name"),
    resource=("resources", "groupname", "policyname"),
    source_address=(_SOURCE_ADDRESS, "src_endpointsvc_name", "src_endpointdomain"),
    country=("src_endpointlocationcountry",),
    city=("src_endpointlocationcity",),
    user_agent=("http_requestuser_agent",),
    account=("cloudaccountuid", "actoruseraccountuid"),
    region=("cloudregion",),
    session=("actorusercredential_uid", "actorsessionuid", "sessionuid"),
    error_code=("apiresponseerror",),
    error_message=("apiresponsemessage", "status_detail"),
    result=("status",),
)
LABELS = {
    "actoruseruid": "Identity",
    "actorusername": "User name",
    "actorusertype": "Identity type",
    "actorsessionissuer": "Role",
    "actorinvoked_by": "Invoked by",
    "actorsessionis_mfa": "Multi-factor authentication",
    "apiresponsecode": "Response code",
    "status_detail": "Status detail",
    "actorusertype_id": "Identity type number",
    "actoruseruid_alt": "Alternative identity",
    "actoruseremail_addr": "E-mail address",
    "actorusercredential_uid": "Access key",
    "actoruseraccountuid": "Account of the user",
    "actorsessioncredential_uid": "Session credential",
    "actorsessioncreated_time": "Start of the session",
    "actoridpname": "Identity provider",
    "actorapp_name": "Application",
    "usertype": "Target user type",
    "username": "Target user",
    "useruid": "Target user ID",
    "useruid_alt": "Alternative ID of the target user",
    "useremail_addr": "E-mail address of the target user",
    "useraccountuid": "Account of the target user",
    "src_endpointuid": "Source ID",
    "src_endpointdomain": "Source domain",
    "src_endpointsvc_name": "Source service",
    "dst_endpointsvc_name": "Destination service",
    "dst_endpointhostname": "Destination host",
    "http_requesthttp_method": "HTTP method",
    "activity_name": "Activity",
    "groupname": "Group",
    "policyname": "Policy",
    "cloudprovider": "Cloud provider",
    "class_name": "Event class",
    "auth_protocol": "Authentication protocol",
    "logon_type": "Logon type",
}

ATHENA_QUERY = """
-- This table has management events of CloudTrail in us-east-1. Replace it by yours.
SELECT time_dt, api.operation, api.service.name, cloud.region, src_endpoint.ip,
       http_request.user_agent, api.response.error, actor.user.uid AS actor, metadata.uid
FROM amazon_security_lake_glue_db_us_east_1
     .amazon_security_lake_table_us_east_1_cloud_trail_mgmt_2_0
WHERE time_dt BETWEEN TIMESTAMP '{from}' AND TIMESTAMP '{to}'
  AND {event_ids}
  AND {identity}
ORDER BY time_dt;
"""
_LAKE_FIELDS = (
    "metadata.uid",
    "actor.user.type",
    "actor.user.name",
    "actor.user.uid",
    "actor.user.uid_alt",
    "actor.user.account.uid",
    "actor.session.issuer",
    "actor.invoked_by",
)
"""Fields of CloudTrail's tables in Security Lake that identify events and users."""
_ELASTIC_FIELDS = (
    *_LAKE_FIELDS,
    "actor.user.email_addr",
    "user.name",
    "user.uid",
    "user.email_addr",
)
ELASTIC_QUERY = """
// Discover must show a time range that includes this one.
FROM logs-amazon_security_lake.*
| WHERE @timestamp >= "{from}" AND @timestamp <= "{to}"
| WHERE {event_ids}
| WHERE {identity}
| SORT @timestamp
| KEEP @timestamp, event.action, event.provider, cloud.region, source.ip, ocsf.actor.user.uid,
    event.id
| LIMIT 1000
"""
EVIDENCE = (
    EvidenceQuery(
        "Athena",
        ATHENA_QUERY,
        time_format="sql",
        columns={path.replace(".", ""): path for path in _LAKE_FIELDS},
        only_columns=True,
    ),
    SPLUNK_QUERY,
    EvidenceQuery(
        "Elastic",
        ELASTIC_QUERY,
        "esql",
        columns={path.replace(".", ""): f"ocsf.{path}" for path in _ELASTIC_FIELDS}
        | {"metadatauid": "event.id", "cloudaccountuid": "cloud.account.id"},
        only_columns=True,
    ),
)

OCSF_FORMAT = LogFormat(
    name="OCSF",
    paths=FIELD_PATHS,
    leading_columns=("metadatauid", "time", CLASS_COLUMN),
    context_columns=CONTEXT_COLUMNS,
    time_column="time",
    id_column="metadatauid",
    user_column="actoruseruid",
    fallbacks={
        "time": (pl.col("time_dt"),),
        "actoruseraccountuid": (pl.col("actoruseraccount_uid"),),
        "actorsessionis_mfa": (pl.col("actorsessionmfa"),),
        "actorusercredential_uid": (pl.col("actorsessioncredential_uid"),),
    },
    event_class_filter=(CLASS_COLUMN, DEFAULT_CLASSES),
    actor_rules=ACTOR_RULES,
    derived_columns=DERIVED_COLUMNS,
    identity_columns=IDENTITY_COLUMNS,
    event_fields=EVENT_FIELDS,
    labels=LABELS,
    evidence=EVIDENCE,
)


@dataclass(frozen=True)
class FromOcsf(FileSource):
    """Read OCSF events, such as those of Amazon Security Lake.

    Reads Parquet and JSON of API Activity (6003), Authentication (3002), Account Change (3001) and
    the other classes of user activity. Other classes are skipped and counted. Nested names are
    joined: `actor.user.uid` becomes `actoruseruid`, which is the default user column. `@actor`
    names roles, people and services.

        from-ocsf --input_glob="s3://aws-security-data-lake-.../aws/CLOUD_TRAIL_MGMT/" --duration=1d
    """

    name = "from-ocsf"
    default_columns: ClassVar[str] = "columns_ae_ocsf.txt"
    default_user: ClassVar[str] = OCSF_FORMAT.user_column
    log_format: ClassVar[LogFormat] = OCSF_FORMAT

    class_uid: tuple[str, ...] = option(
        DEFAULT_CLASSES, "Event class to read, by number. Repeat the option for more classes."
    )

    def _configure_log_format(self) -> LogFormat:
        return replace(
            super()._configure_log_format(), event_class_filter=(CLASS_COLUMN, self.class_uid)
        )
