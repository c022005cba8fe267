"""An alert as a Detection Finding of the Open Cybersecurity Schema Framework (OCSF) 1.8."""

from __future__ import annotations

from morpheus.columns import SCORE
from morpheus.models.explanation import ColumnReason, ExpectedValue
from morpheus.sinks.alert import PRODUCT, VENDOR, VERSION, Alert
from morpheus.sinks.detection_finding import (
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
"""Probability below which a known value is called rare."""

_SEVERITY_NAMES = ("Unknown", "Informational", "Low", "Medium", "High")
_CONFIDENCE_IDS = {"own": 2, "peers": 1, "everyone": 1}
_PROVIDER_NAMES = {"aws": "AWS", "azure": "Azure"}
_OBSERVABLE_IP, _OBSERVABLE_USER_NAME, _OBSERVABLE_COUNTRY, _OBSERVABLE_USER_AGENT = 2, 4, 14, 16  # types of observables
_ANALYTIC_LEARNING = 4  # type of analytic


def make_detection_finding(alert: Alert) -> DetectionFinding:
    """Make the finding of an alert: that it was found is all its life so far."""
    moment, cloud, evidence = int(alert.time.timestamp() * 1000), _make_cloud(alert), _make_evidence(alert)
    return DetectionFinding(
        activity_id=ACTIVITY_CREATE,
        activity_name="Create",
        category_uid=CATEGORY_UID,
        category_name="Findings",
        class_uid=CLASS_UID,
        class_name="Detection Finding",
        type_uid=CLASS_UID * 100 + ACTIVITY_CREATE,
        type_name="Detection Finding: Create",
        time=moment,
        start_time=moment,
        end_time=moment,
        severity_id=alert.severity,
        severity=_SEVERITY_NAMES[alert.severity],
        status_id=1,
        status="New",
        is_alert=True,
        message=alert.message,
        metadata=_make_metadata(alert, cloud),
        finding_info=_make_finding_info(alert, moment),
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
        original_event_uid=alert.fields.event,
        source=alert.source.removeprefix("from-") or None,
    )


def _make_finding_info(alert: Alert, moment: int) -> FindingInfo:
    event = alert.fields.event
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
        first_seen_time=moment,
        last_seen_time=moment,
        related_events=(RelatedEvent(uid=event),) if event else (),
    )


def _make_analysis(alert: Alert) -> AnomalyAnalysis:
    """Each column that is strange, with the values that were likelier."""
    named = set(alert.columns)
    facts = [fact for fact in (alert.explanation.columns if alert.explanation else ()) if fact.column in named]
    anomalies = [_make_anomaly(fact) for fact in facts]
    if alert.ts_anomaly:
        anomalies.append(_make_pattern("events over time", "Time Pattern Analysis", "SURGE", "true"))
    if not anomalies:
        label = "risk" if alert.risk is not None else next(iter(alert.scores), SCORE)
        value = str(alert.scores.get(label, "none"))
        anomalies.append(_make_pattern(label, "Deviation Analysis", "UNUSUAL", value))
    return AnomalyAnalysis(
        analysis_targets=(Target(name=alert.user or "no user", type="User"),),
        anomalies=tuple(anomalies),
        baselines=tuple(_make_baseline(fact) for fact in facts if fact.expected),
    )


def _make_anomaly(reason: ColumnReason) -> OcsfPattern:
    if reason.distance is not None:
        return _make_pattern(reason.column, "Deviation Analysis", "UNUSUAL", _format_value(reason.value))
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
    told = alert.fields
    response = Response(error=told.error, error_message=told.message)
    service = None if told.service is None else Service(name=told.service)
    api = None
    if told.operation is not None:
        failed = response if told.failed else None
        api = Api(operation=told.operation, service=service, response=failed)
    return Evidence(
        actor=None if alert.user is None else Actor(user=User(name=alert.user)),
        api=api,
        src_endpoint=_make_endpoint_object(alert),
        http_request=None if told.agent is None else HttpRequest(user_agent=told.agent),
    )


def _make_endpoint_object(alert: Alert) -> Endpoint | None:
    told = alert.fields
    if told.address is None:
        return None
    place = Location(city=told.city, country=told.country)
    return Endpoint(
        ip=told.ip,
        svc_name=None if told.ip else told.address,
        location=place if place != Location() else None,
    )


def _make_observables(alert: Alert) -> tuple[Observable, ...]:
    told, place = alert.fields, "evidences[0]."
    found = (
        ("actor.user.name", _OBSERVABLE_USER_NAME, alert.user),
        ("src_endpoint.ip", _OBSERVABLE_IP, told.ip),
        ("src_endpoint.location.country", _OBSERVABLE_COUNTRY, told.country if told.address else None),
        ("http_request.user_agent", _OBSERVABLE_USER_AGENT, told.agent),
    )
    return tuple(
        Observable(name=place + name, type_id=kind, value=value)
        for name, kind, value in found
        if value is not None
    )


def _make_unmapped(alert: Alert) -> Unmapped | None:
    scores = Unmapped(**{name: alert.scores.get(name) for name in Unmapped.__struct_fields__})
    return scores if scores != Unmapped() else None


def _make_cloud(alert: Alert) -> Cloud | None:
    told, provider = alert.fields, alert.provider
    if provider is None:
        return None
    account = None if told.account is None else Account(uid=told.account)
    return Cloud(provider=_PROVIDER_NAMES[provider], account=account, region=told.region)
