"""Formats of alerts: OCSF Detection Findings, Elastic Common Schema, CloudEvents, rows.

References: Open Cybersecurity Schema Framework 1.8, class Detection Finding; Elastic Common Schema
8.17; CloudEvents 1.0. See docs/decisions/006-ocsf.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from morpheus.columns import SCORE, TIME
from morpheus.core.batch import Batch
from morpheus.models.explanation import ColumnReason, ExpectedValue
from morpheus.sinks.alert import (
    PRODUCT,
    VENDOR,
    VERSION,
    Alert,
    Finding,
    FindingBuilder,
    stable_id,
)
from morpheus.sinks.delivery import OutboundEvent
from morpheus.sinks.formats import ISO_TIMES, write_json_rows
from morpheus.sinks.ocsf_schema import (
    Account,
    Actor,
    Analytic,
    AnomalyAnalysis,
    Api,
    Cloud,
    DetectionFinding,
    Endpoint,
    Evidence,
    FindingInfo,
    HttpRequest,
    Location,
    Metadata,
    Observable,
    Observation,
    OcsfPattern,
    Product,
    RelatedEvent,
    Response,
    Service,
    Target,
    Unmapped,
    User,
)

OCSF_VERSION = "1.8.0"
CLASS_UID, CATEGORY_UID, ACTIVITY_CREATE, ACTIVITY_UPDATE = 2004, 2, 1, 2
RARE_PROBABILITY = 0.01
"""Probability below which a known value counts as rare."""

_ACTIVITY_NAMES = {ACTIVITY_CREATE: "Create", ACTIVITY_UPDATE: "Update"}
_SEVERITY_NAMES = ("Unknown", "Informational", "Low", "Medium", "High", "Critical")
_SEVERITY_IDS = {"low": 2, "medium": 3, "high": 4, "critical": 5}
_CONFIDENCE_IDS = {"own": 2, "peers": 1, "everyone": 1}
_PROVIDER_NAMES = {"aws": "AWS", "azure": "Azure", "gcp": "GCP"}
# Types of observables, and a type of analytic, by their numbers in OCSF.
_OBSERVABLE_IP, _OBSERVABLE_USER_NAME = 2, 4
_OBSERVABLE_COUNTRY, _OBSERVABLE_USER_AGENT = 14, 16
_ANALYTIC_LEARNING = 4


def make_detection_finding(finding: Finding) -> DetectionFinding:
    """Return the Detection Finding of an incident, with its most severe events inside."""
    alert, severity_id = finding.worst, _find_severity_id(finding)
    activity = ACTIVITY_UPDATE if finding.is_update else ACTIVITY_CREATE
    cloud = _make_cloud(alert)
    evidences = {alert.id: _make_evidence(alert) for alert in finding.alerts}
    shown = [alert for alert in finding.alerts if evidences[alert.id] != Evidence()]
    return DetectionFinding(
        activity_id=activity,
        activity_name=_ACTIVITY_NAMES[activity],
        category_uid=CATEGORY_UID,
        category_name="Findings",
        class_uid=CLASS_UID,
        class_name="Detection Finding",
        type_uid=CLASS_UID * 100 + activity,
        type_name=f"Detection Finding: {_ACTIVITY_NAMES[activity]}",
        time=_to_milliseconds(finding.end),
        start_time=_to_milliseconds(finding.start),
        end_time=_to_milliseconds(finding.end),
        count=finding.counts.events,
        severity_id=severity_id,
        severity=_SEVERITY_NAMES[severity_id],
        status_id=1,
        status="New",
        is_alert=True,
        message=finding.message,
        metadata=_make_metadata(finding, cloud),
        finding_info=_make_finding_info(finding),
        anomaly_analyses=(_make_analysis(alert),),
        confidence_id=_CONFIDENCE_IDS.get(alert.training_data_scope or ""),
        risk_score=finding.severity,
        evidences=tuple(evidences[alert.id] for alert in shown),
        observables=_make_observables(shown),
        cloud=cloud,
        raw_data=alert.raw_event,
        unmapped=_make_unmapped(alert),
    )


def _find_severity_id(finding: Finding) -> int:
    """Return the severity as in OCSF: 5 critical to 2 low, 1 without scores, 0 unknown."""
    if finding.severity_name is not None:
        return _SEVERITY_IDS[finding.severity_name]
    return 0 if finding.worst.scores else 1


def _to_milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)


def _make_metadata(finding: Finding, cloud: Cloud | None) -> Metadata:
    alert = finding.worst
    return Metadata(
        version=OCSF_VERSION,
        product=Product(name=PRODUCT, vendor_name=VENDOR, version=VERSION),
        uid=finding.id,
        profiles=("cloud",) if cloud is not None else (),
        original_event_uid=alert.fields.event_id,
        source=alert.source.removeprefix("from-") or None,
    )


def _make_finding_info(finding: Finding) -> FindingInfo:
    return FindingInfo(
        uid=finding.incident,
        title=finding.worst.title,
        desc=finding.message,
        types=("Behavioral Anomaly",),
        analytic=Analytic(
            name=f"{PRODUCT} autoencoder",
            type="Learning (ML/DL)",
            type_id=_ANALYTIC_LEARNING,
            version=VERSION,
        ),
        first_seen_time=_to_milliseconds(finding.start),
        last_seen_time=_to_milliseconds(finding.end),
        related_events=tuple(map(_make_related_event, finding.alerts)),
    )


def _make_related_event(alert: Alert) -> RelatedEvent:
    time = _to_milliseconds(alert.time)
    return RelatedEvent(
        uid=alert.fields.event_id or alert.id,
        title=alert.message,
        first_seen_time=time,
        last_seen_time=time,
    )


def _make_analysis(alert: Alert) -> AnomalyAnalysis:
    """Return the unusual columns, with the values that were expected."""
    named = set(alert.columns)
    reasons = [
        reason
        for reason in (alert.explanation.columns if alert.explanation else ())
        if reason.column in named
    ]
    anomalies = [_make_anomaly(reason) for reason in reasons]
    if alert.ts_anomaly:
        anomalies.append(
            _make_pattern("events over time", "Time Pattern Analysis", "SURGE", "true")
        )
    if not anomalies:
        label = "risk" if alert.risk is not None else next(iter(alert.scores), SCORE)
        value = str(alert.scores.get(label, "none"))
        anomalies.append(_make_pattern(label, "Deviation Analysis", "UNUSUAL", value))
    return AnomalyAnalysis(
        analysis_targets=(Target(name=alert.user or "no user", type="User"),),
        anomalies=tuple(anomalies),
        baselines=tuple(_make_baseline(reason) for reason in reasons if reason.expected),
    )


def _make_anomaly(reason: ColumnReason) -> OcsfPattern:
    if reason.distance is not None:
        return _make_pattern(
            reason.column, "Deviation Analysis", "UNUSUAL", _format_value(reason.value)
        )
    rare = reason.probability is not None and reason.probability < RARE_PROBABILITY
    pattern = "UNSEEN" if reason.new else "RARE" if rare else "INFREQUENT"
    return _make_pattern(reason.column, "Frequency Analysis", pattern, _format_value(reason.value))


def _make_baseline(reason: ColumnReason) -> OcsfPattern:
    kind = "Frequency Analysis" if reason.distance is None else "Deviation Analysis"
    return _make_pattern(reason.column, kind, "FREQUENT", *map(_format_expected, reason.expected))


def _make_pattern(parameter: str, kind: str, pattern: str, *values: str) -> OcsfPattern:
    return OcsfPattern(
        observation_parameter=parameter,
        observation_type=kind,
        observed_pattern=pattern,
        observations=tuple(Observation(value=value) for value in values),
    )


def _format_expected(expected: ExpectedValue) -> str:
    return "a new value" if expected.new else _format_value(expected.value)


def _format_value(value: str | float | None) -> str:
    return "no value" if value is None else str(value)


def _make_evidence(alert: Alert) -> Evidence:
    fields = alert.fields
    response = Response(error=fields.error_code, error_message=fields.error_message)
    service = None if fields.service is None else Service(name=fields.service)
    api = None
    if fields.action is not None:
        failure = response if fields.failed else None
        api = Api(operation=fields.action, service=service, response=failure)
    return Evidence(
        actor=None if alert.user is None else Actor(user=User(name=alert.user)),
        api=api,
        src_endpoint=_make_endpoint_object(alert),
        http_request=None
        if fields.user_agent is None
        else HttpRequest(user_agent=fields.user_agent),
    )


def _make_endpoint_object(alert: Alert) -> Endpoint | None:
    fields = alert.fields
    if fields.source_address is None:
        return None
    location = Location(city=fields.city, country=fields.country)
    return Endpoint(
        ip=fields.ip,
        svc_name=None if fields.ip else fields.source_address,
        location=location if location != Location() else None,
    )


def _make_observables(alerts: Sequence[Alert]) -> tuple[Observable, ...]:
    """Return the values to search for in other logs, each once, with the evidence it is in."""
    found: dict[tuple[int, str], Observable] = {}
    for number, alert in enumerate(alerts):
        for name, kind, value in _list_observables(alert):
            if value is not None and (kind, value) not in found:
                path = f"evidences[{number}].{name}"
                found[kind, value] = Observable(name=path, type_id=kind, value=value)
    return tuple(found.values())


def _list_observables(alert: Alert) -> tuple[tuple[str, int, str | None], ...]:
    """Return path, type and value of the observables of one event."""
    fields = alert.fields
    return (
        ("actor.user.name", _OBSERVABLE_USER_NAME, alert.user),
        ("src_endpoint.ip", _OBSERVABLE_IP, fields.ip),
        (
            "src_endpoint.location.country",
            _OBSERVABLE_COUNTRY,
            fields.country if fields.source_address else None,
        ),
        ("http_request.user_agent", _OBSERVABLE_USER_AGENT, fields.user_agent),
    )


def _make_unmapped(alert: Alert) -> Unmapped | None:
    scores = Unmapped(**{name: alert.scores.get(name) for name in Unmapped.__struct_fields__})
    return scores if scores != Unmapped() else None


def _make_cloud(alert: Alert) -> Cloud | None:
    fields, provider = alert.fields, alert.provider
    if provider is None:
        return None
    account = None if fields.account is None else Account(uid=fields.account)
    return Cloud(
        provider=_PROVIDER_NAMES.get(provider, provider), account=account, region=fields.region
    )


ECS_VERSION = "8.17.0"
COUNTRY_CODE_LENGTH = 2  # letters

_ECS_OUTCOMES = {True: "failure", False: "success", None: "unknown"}


def make_ecs_document(finding: Finding) -> dict[str, Any]:
    """Return the ECS document of an incident, with its most severe events, without empty fields.

    Fields that describe one event are those of the most severe one.
    """
    alert = finding.worst
    fields = alert.fields
    document = {
        "@timestamp": _format_ecs_time(finding.end),
        "message": finding.message,
        "ecs": {"version": ECS_VERSION},
        "event": _make_ecs_event(finding),
        "user": {"name": finding.user},
        "source": _make_ecs_source(alert),
        "user_agent": {"original": fields.user_agent},
        "cloud": {
            "provider": alert.provider,
            "account": {"id": fields.account},
            "region": fields.region,
        },
        "error": {
            "code": fields.error_code,
            "message": fields.error_message if fields.failed else None,
        },
        "rule": {"name": alert.title, "category": "behavioral anomaly"},
        "related": {
            "user": [finding.user] if finding.user else [],
            "ip": list(dict.fromkeys(each.fields.ip for each in finding.alerts if each.fields.ip)),
        },
        "observer": {
            "vendor": VENDOR,
            "product": PRODUCT,
            "version": VERSION,
            "type": "anomaly detection",
        },
        "labels": _make_ecs_labels(alert),
        "tags": list(alert.columns),
        PRODUCT: {"incident": _make_ecs_incident(finding)},
    }
    return _drop_empty(document)


def _format_ecs_time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _make_ecs_event(finding: Finding) -> dict[str, Any]:
    alert, fields = finding.worst, finding.worst.fields
    categories = ["intrusion_detection"]
    return {
        "id": finding.incident,
        "kind": "alert",
        "category": [*categories, "authentication"] if alert.log.sign_ins else categories,
        "type": ["info"],
        "start": _format_ecs_time(finding.start),
        "end": _format_ecs_time(finding.end),
        "action": fields.action,
        "provider": fields.service,
        "outcome": _ECS_OUTCOMES[fields.failed],
        "module": PRODUCT,
        "dataset": f"{PRODUCT}.alert",
        "reason": alert.reason,
        "risk_score": alert.risk,
        "risk_score_norm": finding.severity,
        "severity": finding.severity,
        "original": alert.raw_event,
    }


def _make_ecs_incident(finding: Finding) -> dict[str, Any]:
    """Return what ECS has no field for: the name of the severity, and the events."""
    return {
        "severity_name": finding.severity_name,
        "count": finding.counts.events,
        "events": [_make_ecs_incident_event(alert) for alert in finding.alerts],
    }


def _make_ecs_incident_event(alert: Alert) -> dict[str, Any]:
    return {
        "id": alert.fields.event_id or alert.id,
        "time": _format_ecs_time(alert.time),
        "action": alert.fields.action,
        "source": alert.fields.source_address,
        "reason": alert.reason,
        "risk": alert.risk,
    }


def _make_ecs_source(alert: Alert) -> dict[str, Any]:
    fields = alert.fields
    country = fields.country or ""
    is_code = len(country) == COUNTRY_CODE_LENGTH and country.isalpha()
    return {
        "address": fields.source_address,
        "ip": fields.ip,
        "geo": {
            "country_iso_code": country.upper() if is_code else None,
            "country_name": None if is_code else fields.country,
            "city_name": fields.city,
        },
    }


def _make_ecs_labels(alert: Alert) -> dict[str, str]:
    """Return the labels, all as text: ECS allows keywords only."""
    ts_anomaly = None if alert.ts_anomaly is None else str(alert.ts_anomaly).lower()
    labels = {
        "rung": alert.training_data_scope,
        "event_id": alert.fields.event_id,
        "ts_anomaly": ts_anomaly,
    }
    scores = {label: str(value) for label, value in alert.scores.items()}
    return scores | {name: text for name, text in labels.items() if text is not None}


def _drop_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Drop empty fields at every depth."""
    kept = {
        name: _drop_empty(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}


ROW_FORMAT = "row"
CLOUDEVENTS = "cloudevents"


def encode_ocsf(finding: Finding) -> bytes:
    """Return an OCSF Detection Finding."""
    return msgspec.json.encode(make_detection_finding(finding))


def encode_ecs(finding: Finding) -> bytes:
    """Return a document of the Elastic Common Schema."""
    return msgspec.json.encode(make_ecs_document(finding))


def encode_cloudevents(finding: Finding) -> bytes:
    """Return a CloudEvent 1.0 in structured mode, with a Detection Finding in it."""
    envelope = {
        "specversion": "1.0",
        "id": finding.id,
        "source": f"urn:morpheus:{finding.worst.source or 'log'}",
        "type": "morpheus.alert",
        "time": finding.end.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": "https://schema.ocsf.io/1.8.0/classes/detection_finding",
        "data": make_detection_finding(finding),
    }
    return msgspec.json.encode(envelope | ({"subject": finding.user} if finding.user else {}))


SERIALIZERS: Mapping[str, Callable[[Finding], bytes]] = {
    "ocsf": encode_ocsf,
    "ecs": encode_ecs,
    CLOUDEVENTS: encode_cloudevents,
}
FORMATS = (ROW_FORMAT, *SERIALIZERS)
"""Values of `--content`."""


class AlertSerializer(msgspec.Struct):
    """Encodes rows, or the findings that their events are part of.

    Args:
        format: One of `FORMATS`.
        findings: Joins alerts to findings.
        times: Format of times in rows; one of `TIME_FORMATS`.
    """

    format: str
    findings: FindingBuilder
    times: str = ISO_TIMES

    def serialize(self, batch: Batch) -> Iterator[OutboundEvent]:
        """Encode the rows of a batch, or the findings that are complete or have grown."""
        if self.format == ROW_FORMAT:
            return _serialize_rows(batch, self.times)
        return self._encode(self.findings.build(batch))

    def flush(self) -> Iterator[OutboundEvent]:
        """Encode the last findings, at the end of the input."""
        return self._encode(self.findings.flush())

    def _encode(self, findings: Iterable[Finding]) -> Iterator[OutboundEvent]:
        for each in findings:
            body = SERIALIZERS[self.format](each)
            yield OutboundEvent(each.id, each.user, each.end.timestamp(), body)


def _serialize_rows(batch: Batch, times: str) -> Iterator[OutboundEvent]:
    """Encode rows as `to-file` writes them to JSON lines."""
    text = io.BytesIO()
    write_json_rows(batch.table.to_frame(), text, times=times)
    seconds = [None] * batch.table.height
    if TIME in batch.table:
        seconds = (batch.table[TIME].dt.epoch("us") / 1e6).to_list()
    for line, time in zip(text.getvalue().splitlines(), seconds, strict=True):
        yield OutboundEvent(stable_id(batch.user, line.decode()), batch.user, time, line)
