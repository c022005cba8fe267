"""Objects of OCSF 1.8 used in Detection Findings, and their Polars schema.

Names and types follow https://schema.ocsf.io/1.8.0/classes/detection_finding.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import polars as pl


class OcsfObject(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An object of OCSF. Attributes with default values are not written."""


class Product(OcsfObject, frozen=True):
    """The product that reports the finding."""

    name: str
    vendor_name: str
    version: str


class Metadata(OcsfObject, frozen=True):
    """Metadata of the finding as a record."""

    version: str
    product: Product
    uid: str
    profiles: tuple[str, ...] = ()
    original_event_uid: str | None = None
    source: str | None = None


class Analytic(OcsfObject, frozen=True):
    """The method that detected the finding."""

    name: str
    type: str
    type_id: int
    version: str


class RelatedEvent(OcsfObject, frozen=True):
    """An event of the finding in its log. Times are milliseconds since 1970."""

    uid: str
    title: str | None = None
    first_seen_time: int | None = None
    last_seen_time: int | None = None


class FindingInfo(OcsfObject, frozen=True):
    """Description of the finding."""

    uid: str
    title: str
    desc: str
    types: tuple[str, ...]
    analytic: Analytic
    first_seen_time: int
    last_seen_time: int
    related_events: tuple[RelatedEvent, ...] = ()


class Observation(OcsfObject, frozen=True):
    """An observed value."""

    value: str


class OcsfPattern(OcsfObject, frozen=True):
    """An anomaly, or the baseline that it deviates from."""

    observation_parameter: str
    observation_type: str
    observed_pattern: str
    observations: tuple[Observation, ...]


class Target(OcsfObject, frozen=True):
    """The user whose behaviour was analysed."""

    name: str
    type: str


class AnomalyAnalysis(OcsfObject, frozen=True):
    """Anomalies and the expected values."""

    analysis_targets: tuple[Target, ...]
    anomalies: tuple[OcsfPattern, ...]
    baselines: tuple[OcsfPattern, ...] = ()


class User(OcsfObject, frozen=True):
    """A user, role or service."""

    name: str


class Actor(OcsfObject, frozen=True):
    """The actor of the event."""

    user: User


class Service(OcsfObject, frozen=True):
    """The service that was called."""

    name: str


class Response(OcsfObject, frozen=True):
    """The response of the service."""

    error: str | None = None
    error_message: str | None = None


class Api(OcsfObject, frozen=True):
    """An API call."""

    operation: str
    service: Service | None = None
    response: Response | None = None


class Location(OcsfObject, frozen=True):
    """A geographic location."""

    city: str | None = None
    country: str | None = None


class Endpoint(OcsfObject, frozen=True):
    """The source of the event."""

    ip: str | None = None
    svc_name: str | None = None
    location: Location | None = None


class HttpRequest(OcsfObject, frozen=True):
    """The HTTP request of the event."""

    user_agent: str


class Evidence(OcsfObject, frozen=True):
    """The event itself."""

    actor: Actor | None = None
    api: Api | None = None
    src_endpoint: Endpoint | None = None
    http_request: HttpRequest | None = None


class Observable(OcsfObject, frozen=True):
    """A value to search for in other logs."""

    name: str
    type_id: int
    value: str


class Account(OcsfObject, frozen=True):
    """A cloud account."""

    uid: str


class Cloud(OcsfObject, frozen=True):
    """The cloud environment of the event."""

    provider: str
    account: Account | None = None
    region: str | None = None


class Unmapped(OcsfObject, frozen=True):
    """Scores, which have no attribute in the schema."""

    ae_anomaly_score: float | None = None
    risk: float | None = None
    incident_score: float | None = None
    pvalue: float | None = None
    severity: float | None = None
    zscore: float | None = None


class DetectionFinding(OcsfObject, frozen=True):
    """An incident. Times are milliseconds since 1970."""

    activity_id: int
    activity_name: str
    category_uid: int
    category_name: str
    class_uid: int
    class_name: str
    type_uid: int
    type_name: str
    time: int
    start_time: int
    end_time: int
    count: int
    severity_id: int
    severity: str
    status_id: int
    status: str
    is_alert: bool
    message: str
    metadata: Metadata
    finding_info: FindingInfo
    anomaly_analyses: tuple[AnomalyAnalysis, ...]
    confidence_id: int | None = None
    risk_score: int | None = None
    evidences: tuple[Evidence, ...] = ()
    observables: tuple[Observable, ...] = ()
    cloud: Cloud | None = None
    raw_data: str | None = None
    unmapped: Unmapped | None = None


def to_polars_schema(kind: type[msgspec.Struct]) -> pl.Schema:
    """Return the schema of a table of such objects. It does not depend on their values.

    >>> to_polars_schema(Endpoint)["location"]
    Struct({'city': String, 'country': String})
    """
    return pl.Schema({name: _to_polars_type(hint) for name, hint in get_type_hints(kind).items()})


def _to_polars_type(hint: Any) -> pl.DataType:  # noqa: ANN401 - a type or a type form
    if get_origin(hint) in {Union, UnionType}:
        return _to_polars_type(next(arm for arm in get_args(hint) if arm is not NoneType))
    if get_origin(hint) is tuple:
        return pl.List(_to_polars_type(get_args(hint)[0]))
    if issubclass(hint, msgspec.Struct):
        return pl.Struct(dict(to_polars_schema(hint)))
    plain = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
    return plain[hint]
