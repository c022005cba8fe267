"""An alert as a document of the Elastic Common Schema (ECS) 8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morpheus.sinks.alert import PRODUCT, VENDOR, VERSION, Alert
from morpheus.sinks.traits import SIGN_INS

SCHEMA = "8.17.0"
COUNTRY_CODE = 2  # letters

_OUTCOMES = {True: "failure", False: "success", None: "unknown"}


def document(alert: Alert) -> dict[str, Any]:
    """Make the document of an alert; what is not known is left out."""
    told = alert.traits
    made = {
        "@timestamp": alert.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "message": alert.text,
        "ecs": {"version": SCHEMA},
        "event": _event(alert),
        "user": {"name": alert.user},
        "source": _source(alert),
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
        "labels": _labels(alert),
        "tags": list(alert.columns),
    }
    return _known(made)


def _event(alert: Alert) -> dict[str, Any]:
    told = alert.traits
    categories = ["intrusion_detection"]
    return {
        "id": alert.id,
        "kind": "alert",
        "category": [*categories, "authentication"] if alert.source in SIGN_INS else categories,
        "type": ["info"],
        "action": told.operation,
        "provider": told.service,
        "outcome": _OUTCOMES[told.failed],
        "module": PRODUCT,
        "dataset": f"{PRODUCT}.alert",
        "reason": alert.reason,
        "risk_score": alert.risk,
        "severity": alert.severity,
        "original": alert.original,
    }


def _source(alert: Alert) -> dict[str, Any]:
    told = alert.traits
    place = told.country or ""
    code = place.upper() if len(place) == COUNTRY_CODE and place.isalpha() else None
    return {
        "address": told.address,
        "ip": told.ip,
        "geo": {
            "country_iso_code": code,
            "country_name": None if code else told.country,
            "city_name": told.city,
        },
    }


def _labels(alert: Alert) -> dict[str, str]:
    """Words and numbers to look for, all as text: the type of every label."""
    rhythm = None if alert.rhythm is None else str(alert.rhythm).lower()
    words = {"rung": alert.rung, "event_id": alert.traits.event, "ts_anomaly": rhythm}
    scores = {label: str(value) for label, value in alert.scores.items()}
    return scores | {name: word for name, word in words.items() if word is not None}


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not there, at every depth."""
    kept = {
        name: _known(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}
