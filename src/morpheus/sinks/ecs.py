"""An alert as a document of the Elastic Common Schema (ECS) 8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morpheus.sinks.alert import PRODUCT, VENDOR, VERSION, Alert
from morpheus.sinks.traits import SIGN_IN_SOURCES

ECS_VERSION = "8.17.0"
COUNTRY_CODE_LENGTH = 2  # letters

_ECS_OUTCOMES = {True: "failure", False: "success", None: "unknown"}


def make_ecs_document(alert: Alert) -> dict[str, Any]:
    """Make the document of an alert; what is not known is left out."""
    told = alert.fields
    made = {
        "@timestamp": alert.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "message": alert.message,
        "ecs": {"version": ECS_VERSION},
        "event": _make_ecs_event(alert),
        "user": {"name": alert.user},
        "source": _make_ecs_source(alert),
        "user_agent": {"original": told.agent},
        "cloud": {
            "provider": alert.provider,
            "account": {"id": told.account},
            "region": told.region,
        },
        "error": {"code": told.error, "message": told.message if told.failed else None},
        "rule": {"name": alert.title, "category": "behavioral anomaly"},
        "related": {"user": [alert.user] if alert.user else [], "ip": [told.ip] if told.ip else []},
        "observer": {
            "vendor": VENDOR,
            "product": PRODUCT,
            "version": VERSION,
            "type": "anomaly detection",
        },
        "labels": _make_ecs_labels(alert),
        "tags": list(alert.columns),
    }
    return _drop_empty(made)


def _make_ecs_event(alert: Alert) -> dict[str, Any]:
    told = alert.fields
    categories = ["intrusion_detection"]
    return {
        "id": alert.id,
        "kind": "alert",
        "category": [*categories, "authentication"] if alert.source in SIGN_IN_SOURCES else categories,
        "type": ["info"],
        "action": told.operation,
        "provider": told.service,
        "outcome": _ECS_OUTCOMES[told.failed],
        "module": PRODUCT,
        "dataset": f"{PRODUCT}.alert",
        "reason": alert.reason,
        "risk_score": alert.risk,
        "severity": alert.severity,
        "original": alert.raw_event,
    }


def _make_ecs_source(alert: Alert) -> dict[str, Any]:
    told = alert.fields
    place = told.country or ""
    code = place.upper() if len(place) == COUNTRY_CODE_LENGTH and place.isalpha() else None
    return {
        "address": told.address,
        "ip": told.ip,
        "geo": {
            "country_iso_code": code,
            "country_name": None if code else told.country,
            "city_name": told.city,
        },
    }


def _make_ecs_labels(alert: Alert) -> dict[str, str]:
    """Words and numbers to look for, all as text: the type of every label."""
    rhythm = None if alert.ts_anomaly is None else str(alert.ts_anomaly).lower()
    words = {"rung": alert.training_data_scope, "event_id": alert.fields.event, "ts_anomaly": rhythm}
    scores = {label: str(value) for label, value in alert.scores.items()}
    return scores | {name: word for name, word in words.items() if word is not None}


def _drop_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not there, at every depth."""
    kept = {
        name: _drop_empty(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}
