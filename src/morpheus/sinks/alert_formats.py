"""Formats of alerts: OCSF Detection Findings, Elastic Common Schema, CloudEvents, rows.

References: Open Cybersecurity Schema Framework 1.8, class Detection Finding; Elastic Common Schema
8.17; CloudEvents 1.0. See docs/decisions/006-ocsf.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    AlertBuilder,
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
CLASS_UID, CATEGORY_UID, ACTIVITY_CREATE = 2004, 2, 1
RARE_PROBABILITY = 0.01
"""Probability below which a known value counts as rare."""

_SEVERITY_NAMES = ("Unknown", "Informational", "Low", "Medium", "High")
_CONFIDENCE_IDS = {"own": 2, "peers": 1, "everyone": 1}
_PROVIDER_NAMES = {"aws": "AWS", "azure": "Azure", "gcp": "GCP"}
# Types of observables, and a type of analytic, by their numbers in OCSF.
_OBSERVABLE_IP, _OBSERVABLE_USER_NAME = 2, 4
_OBSERVABLE_COUNTRY, _OBSERVABLE_USER_AGENT = 14, 16
_ANALYTIC_LEARNING = 4


def make_detection_finding(alert: Alert) -> DetectionFinding:
    """Return the Detection Finding of an alert, as newly created."""
    milliseconds = int(alert.time.timestamp() * 1000)
    cloud, evidence = _make_cloud(alert), _make_evidence(alert)
    return DetectionFinding(
        activity_id=ACTIVITY_CREATE,
        activity_name="Create",
        category_uid=CATEGORY_UID,
        category_name="Findings",
        class_uid=CLASS_UID,
        class_name="Detection Finding",
        type_uid=CLASS_UID * 100 + ACTIVITY_CREATE,
        type_name="Detection Finding: Create",
        time=milliseconds,
        start_time=milliseconds,
        end_time=milliseconds,
        severity_id=alert.severity,
        severity=_SEVERITY_NAMES[alert.severity],
        status_id=1,
        status="New",
        is_alert=True,
        message=alert.message,
        metadata=_make_metadata(alert, cloud),
        finding_info=_make_finding_info(alert, milliseconds),
        anomaly_analyses=(_make_analysis(alert),),
        confidence_id=_CONFIDENCE_IDS.get(alert.training_data_scope or ""),
        risk_score=None if alert.risk is None else max(0, round(alert.risk)),
        evidences=(evidence,) if evidence != Evidence() else (),
        observables=_make_observables(alert),
        cloud=cloud,
        raw_data=alert.raw_event,
        unmapped=_make_unmapped(alert),
    )


def _make_metadata(alert: Alert, cloud: Cloud | None) -> Metadata:
    return Metadata(
        version=OCSF_VERSION,
        product=Product(name=PRODUCT, vendor_name=VENDOR, version=VERSION),
        uid=alert.id,
        profiles=("cloud",) if cloud is not None else (),
        original_event_uid=alert.fields.event_id,
        source=alert.source.removeprefix("from-") or None,
    )


def _make_finding_info(alert: Alert, milliseconds: int) -> FindingInfo:
    event = alert.fields.event_id
    return FindingInfo(
        uid=alert.id,
        title=alert.title,
        desc=alert.message,
        types=("Behavioral Anomaly",),
        analytic=Analytic(
            name=f"{PRODUCT} autoencoder",
            type="Learning (ML/DL)",
            type_id=_ANALYTIC_LEARNING,
            version=VERSION,
        ),
        first_seen_time=milliseconds,
        last_seen_time=milliseconds,
        related_events=(RelatedEvent(uid=event),) if event else (),
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


def _make_observables(alert: Alert) -> tuple[Observable, ...]:
    fields, prefix = alert.fields, "evidences[0]."
    observables = (
        ("actor.user.name", _OBSERVABLE_USER_NAME, alert.user),
        ("src_endpoint.ip", _OBSERVABLE_IP, fields.ip),
        (
            "src_endpoint.location.country",
            _OBSERVABLE_COUNTRY,
            fields.country if fields.source_address else None,
        ),
        ("http_request.user_agent", _OBSERVABLE_USER_AGENT, fields.user_agent),
    )
    return tuple(
        Observable(name=prefix + name, type_id=kind, value=value)
        for name, kind, value in observables
        if value is not None
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


def make_ecs_document(alert: Alert) -> dict[str, Any]:
    """Return the ECS document of an alert, without empty fields."""
    fields = alert.fields
    document = {
        "@timestamp": alert.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "message": alert.message,
        "ecs": {"version": ECS_VERSION},
        "event": _make_ecs_event(alert),
        "user": {"name": alert.user},
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
            "user": [alert.user] if alert.user else [],
            "ip": [fields.ip] if fields.ip else [],
        },
        "observer": {
            "vendor": VENDOR,
            "product": PRODUCT,
            "version": VERSION,
            "type": "anomaly detection",
        },
        "labels": _make_ecs_labels(alert),
        "tags": list(alert.columns),
    }
    return _drop_empty(document)


def _make_ecs_event(alert: Alert) -> dict[str, Any]:
    fields = alert.fields
    categories = ["intrusion_detection"]
    return {
        "id": alert.id,
        "kind": "alert",
        "category": [*categories, "authentication"] if alert.log.sign_ins else categories,
        "type": ["info"],
        "action": fields.action,
        "provider": fields.service,
        "outcome": _ECS_OUTCOMES[fields.failed],
        "module": PRODUCT,
        "dataset": f"{PRODUCT}.alert",
        "reason": alert.reason,
        "risk_score": alert.risk,
        "severity": alert.severity,
        "original": alert.raw_event,
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


def encode_ocsf(alert: Alert) -> bytes:
    """Return an OCSF Detection Finding."""
    return msgspec.json.encode(make_detection_finding(alert))


def encode_ecs(alert: Alert) -> bytes:
    """Return a document of the Elastic Common Schema."""
    return msgspec.json.encode(make_ecs_document(alert))


def encode_cloudevents(alert: Alert) -> bytes:
    """Return a CloudEvent 1.0 in structured mode, with a Detection Finding in it."""
    envelope = {
        "specversion": "1.0",
        "id": alert.id,
        "source": f"urn:morpheus:{alert.source or 'log'}",
        "type": "morpheus.alert",
        "time": alert.time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": "https://schema.ocsf.io/1.8.0/classes/detection_finding",
        "data": make_detection_finding(alert),
    }
    return msgspec.json.encode(envelope | ({"subject": alert.user} if alert.user else {}))


SERIALIZERS: Mapping[str, Callable[[Alert], bytes]] = {
    "ocsf": encode_ocsf,
    "ecs": encode_ecs,
    CLOUDEVENTS: encode_cloudevents,
}
FORMATS = (ROW_FORMAT, *SERIALIZERS)
"""Values of `--content`."""


@dataclass
class AlertSerializer:
    """Encodes the events of batches.

    Args:
        format: One of `FORMATS`.
        builder: Builds alerts from events.
        times: Format of times in rows; one of `TIME_FORMATS`.
    """

    format: str
    builder: AlertBuilder
    times: str = ISO_TIMES

    def serialize(self, batch: Batch) -> Iterator[OutboundEvent]:
        """Encode the events of a batch, in order."""
        if self.format == ROW_FORMAT:
            yield from _serialize_rows(batch, self.times)
            return
        encode = SERIALIZERS[self.format]
        for alert in self.builder.build(batch):
            yield OutboundEvent(alert.id, alert.user, alert.time.timestamp(), encode(alert))


def _serialize_rows(batch: Batch, times: str) -> Iterator[OutboundEvent]:
    """Encode rows as `to-file` writes them to JSON lines."""
    text = io.BytesIO()
    write_json_rows(batch.table.to_frame(), text, times=times)
    seconds = [None] * batch.table.height
    if TIME in batch.table:
        seconds = (batch.table[TIME].dt.epoch("us") / 1e6).to_list()
    for line, time in zip(text.getvalue().splitlines(), seconds, strict=True):
        yield OutboundEvent(stable_id(batch.user, line.decode()), batch.user, time, line)
