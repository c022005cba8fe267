"""The parts of OCSF 1.8 that our findings are made of."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import polars as pl


class OcsfObject(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An object of OCSF; attributes that are None are left out."""


class Product(OcsfObject, frozen=True):
    """Who found it."""

    name: str
    vendor_name: str
    version: str


class Metadata(OcsfObject, frozen=True):
    """About the finding as a record."""

    version: str
    product: Product
    uid: str
    profiles: tuple[str, ...] = ()
    original_event_uid: str | None = None
    source: str | None = None


class Analytic(OcsfObject, frozen=True):
    """What found it."""

    name: str
    type: str
    type_id: int
    version: str


class RelatedEvent(OcsfObject, frozen=True):
    """The event in its own log."""

    uid: str


class FindingInfo(OcsfObject, frozen=True):
    """What was found."""

    uid: str
    title: str
    desc: str
    types: tuple[str, ...]
    analytic: Analytic
    first_seen_time: int
    last_seen_time: int
    related_events: tuple[RelatedEvent, ...] = ()


class Observation(OcsfObject, frozen=True):
    """A value."""

    value: str


class OcsfPattern(OcsfObject, frozen=True):
    """An anomaly, or the baseline that it departs from."""

    observation_parameter: str
    observation_type: str
    observed_pattern: str
    observations: tuple[Observation, ...]


class Target(OcsfObject, frozen=True):
    """Whose behaviour was looked at."""

    name: str
    type: str


class AnomalyAnalysis(OcsfObject, frozen=True):
    """What is unusual, and what would have been usual."""

    analysis_targets: tuple[Target, ...]
    anomalies: tuple[OcsfPattern, ...]
    baselines: tuple[OcsfPattern, ...] = ()


class User(OcsfObject, frozen=True):
    """A user, a role, a service."""

    name: str


class Actor(OcsfObject, frozen=True):
    """Who did it."""

    user: User


class Service(OcsfObject, frozen=True):
    """What was called."""

    name: str


class Response(OcsfObject, frozen=True):
    """What it answered."""

    error: str | None = None
    error_message: str | None = None


class Api(OcsfObject, frozen=True):
    """A call."""

    operation: str
    service: Service | None = None
    response: Response | None = None


class Location(OcsfObject, frozen=True):
    """A place."""

    city: str | None = None
    country: str | None = None


class Endpoint(OcsfObject, frozen=True):
    """Where it came from."""

    ip: str | None = None
    svc_name: str | None = None
    location: Location | None = None


class HttpRequest(OcsfObject, frozen=True):
    """How it was asked for."""

    user_agent: str


class Evidence(OcsfObject, frozen=True):
    """What the event says of itself."""

    actor: Actor | None = None
    api: Api | None = None
    src_endpoint: Endpoint | None = None
    http_request: HttpRequest | None = None


class Observable(OcsfObject, frozen=True):
    """A value to search for elsewhere."""

    name: str
    type_id: int
    value: str


class Account(OcsfObject, frozen=True):
    """An account in a cloud."""

    uid: str


class Cloud(OcsfObject, frozen=True):
    """Where in which cloud."""

    provider: str
    account: Account | None = None
    region: str | None = None


class Unmapped(OcsfObject, frozen=True):
    """Scores, for which the schema has no place."""

    ae_anomaly_score: float | None = None
    risk: float | None = None
    pvalue: float | None = None
    zscore: float | None = None


class DetectionFinding(OcsfObject, frozen=True):
    """An alert; times are milliseconds since 1970."""

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
    """Columns and types of a table of such objects, the same whatever they hold.

    >>> to_polars_schema(Endpoint)["location"]
    Struct({'city': String, 'country': String})
    """
    return pl.Schema({name: _to_polars_type(hint) for name, hint in get_type_hints(kind).items()})


def _to_polars_type(hint: Any) -> pl.DataType:  # noqa: ANN401 - a type or what stands for one
    if get_origin(hint) in {Union, UnionType}:
        return _to_polars_type(next(one for one in get_args(hint) if one is not NoneType))
    if get_origin(hint) is tuple:
        return pl.List(_to_polars_type(get_args(hint)[0]))
    if issubclass(hint, msgspec.Struct):
        return pl.Struct(dict(to_polars_schema(hint)))
    plain = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
    return plain[hint]
