"""An alert as a Detection Finding of the Open Cybersecurity Schema Framework (OCSF) 1.8."""

from __future__ import annotations

from morpheus.columns import SCORE
from morpheus.models.explanation import Fact, Likelier
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
    Pattern,
    Product,
    RelatedEvent,
    Response,
    Service,
    Target,
    Unmapped,
    User,
)

SCHEMA = "1.8.0"
CLASS, CATEGORY, CREATED = 2004, 2, 1
RARE = 0.01
"""Probability below which a known value is called rare."""

_SEVERITIES = ("Unknown", "Informational", "Low", "Medium", "High")
_CONFIDENCE = {"own": 2, "peers": 1, "everyone": 1}
_PROVIDERS = {"aws": "AWS", "azure": "Azure"}
_IP, _USER_NAME, _COUNTRY, _AGENT = 2, 4, 14, 16  # types of observables
_LEARNING = 4  # type of analytic


def finding(alert: Alert) -> DetectionFinding:
    """Make the finding of an alert: that it was found is all its life so far."""
    moment, cloud, evidence = int(alert.time.timestamp() * 1000), _cloud(alert), _evidence(alert)
    return DetectionFinding(
        activity_id=CREATED,
        activity_name="Create",
        category_uid=CATEGORY,
        category_name="Findings",
        class_uid=CLASS,
        class_name="Detection Finding",
        type_uid=CLASS * 100 + CREATED,
        type_name="Detection Finding: Create",
        time=moment,
        start_time=moment,
        end_time=moment,
        severity_id=alert.severity,
        severity=_SEVERITIES[alert.severity],
        status_id=1,
        status="New",
        is_alert=True,
        message=alert.text,
        metadata=_metadata(alert, cloud),
        finding_info=_info(alert, moment),
        anomaly_analyses=(_analysis(alert),),
        confidence_id=_CONFIDENCE.get(alert.rung or ""),
        risk_score=None if alert.risk is None else max(0, round(alert.risk)),
        evidences=(evidence,) if evidence != Evidence() else (),
        observables=_observables(alert),
        cloud=cloud,
        raw_data=alert.original,
        unmapped=_unmapped(alert),
    )


def _metadata(alert: Alert, cloud: Cloud | None) -> Metadata:
    return Metadata(
        version=SCHEMA,
        product=Product(name=PRODUCT, vendor_name=VENDOR, version=VERSION),
        uid=alert.id,
        profiles=("cloud",) if cloud is not None else (),
        original_event_uid=alert.traits.event,
        source=alert.source.removeprefix("from-") or None,
    )


def _info(alert: Alert, moment: int) -> FindingInfo:
    event = alert.traits.event
    return FindingInfo(
        uid=alert.id,
        title=alert.title,
        desc=alert.text,
        types=("Behavioral Anomaly",),
        analytic=Analytic(
            name=f"{PRODUCT} autoencoder",
            type="Learning (ML/DL)",
            type_id=_LEARNING,
            version=VERSION,
        ),
        first_seen_time=moment,
        last_seen_time=moment,
        related_events=(RelatedEvent(uid=event),) if event else (),
    )


def _analysis(alert: Alert) -> AnomalyAnalysis:
    """Each column that is strange, with the values that were likelier."""
    named = set(alert.columns)
    facts = [fact for fact in (alert.why.columns if alert.why else ()) if fact.column in named]
    anomalies = [_anomaly(fact) for fact in facts]
    if alert.rhythm:
        anomalies.append(_pattern("events over time", "Time Pattern Analysis", "SURGE", "true"))
    if not anomalies:
        label = "risk" if alert.risk is not None else next(iter(alert.scores), SCORE)
        value = str(alert.scores.get(label, "none"))
        anomalies.append(_pattern(label, "Deviation Analysis", "UNUSUAL", value))
    return AnomalyAnalysis(
        analysis_targets=(Target(name=alert.user or "no user", type="User"),),
        anomalies=tuple(anomalies),
        baselines=tuple(_baseline(fact) for fact in facts if fact.expected),
    )


def _anomaly(fact: Fact) -> Pattern:
    if fact.distance is not None:
        return _pattern(fact.column, "Deviation Analysis", "UNUSUAL", _text(fact.value))
    rare = fact.probability is not None and fact.probability < RARE
    pattern = "UNSEEN" if fact.new else "RARE" if rare else "INFREQUENT"
    return _pattern(fact.column, "Frequency Analysis", pattern, _text(fact.value))


def _baseline(fact: Fact) -> Pattern:
    kind = "Frequency Analysis" if fact.distance is None else "Deviation Analysis"
    return _pattern(fact.column, kind, "FREQUENT", *map(_likelier, fact.expected))


def _pattern(parameter: str, kind: str, pattern: str, *values: str) -> Pattern:
    return Pattern(
        observation_parameter=parameter,
        observation_type=kind,
        observed_pattern=pattern,
        observations=tuple(Observation(value=value) for value in values),
    )


def _likelier(one: Likelier) -> str:
    return "a new value" if one.new else _text(one.value)


def _text(value: str | float | None) -> str:
    return "no value" if value is None else str(value)


def _evidence(alert: Alert) -> Evidence:
    told = alert.traits
    response = Response(error=told.error, error_message=told.message)
    service = None if told.service is None else Service(name=told.service)
    api = None
    if told.operation is not None:
        failed = response if told.failed else None
        api = Api(operation=told.operation, service=service, response=failed)
    return Evidence(
        actor=None if alert.user is None else Actor(user=User(name=alert.user)),
        api=api,
        src_endpoint=_endpoint(alert),
        http_request=None if told.agent is None else HttpRequest(user_agent=told.agent),
    )


def _endpoint(alert: Alert) -> Endpoint | None:
    told = alert.traits
    if told.address is None:
        return None
    place = Location(city=told.city, country=told.country)
    return Endpoint(
        ip=told.ip,
        svc_name=None if told.ip else told.address,
        location=place if place != Location() else None,
    )


def _observables(alert: Alert) -> tuple[Observable, ...]:
    told, place = alert.traits, "evidences[0]."
    found = (
        ("actor.user.name", _USER_NAME, alert.user),
        ("src_endpoint.ip", _IP, told.ip),
        ("src_endpoint.location.country", _COUNTRY, told.country if told.address else None),
        ("http_request.user_agent", _AGENT, told.agent),
    )
    return tuple(
        Observable(name=place + name, type_id=kind, value=value)
        for name, kind, value in found
        if value is not None
    )


def _unmapped(alert: Alert) -> Unmapped | None:
    scores = Unmapped(**{name: alert.scores.get(name) for name in Unmapped.__struct_fields__})
    return scores if scores != Unmapped() else None


def _cloud(alert: Alert) -> Cloud | None:
    told, provider = alert.traits, alert.provider
    if provider is None:
        return None
    account = None if told.account is None else Account(uid=told.account)
    return Cloud(provider=_PROVIDERS[provider], account=account, region=told.region)
