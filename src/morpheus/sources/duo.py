"""from-duo: Duo authentication logs in every form that one has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import polars as pl

from morpheus.features import derived
from morpheus.features.families import address_kind, address_network, duo_error
from morpheus.sources.actors import Rule
from morpheus.sources.documents import Undecoded
from morpheus.sources.file_source import FileSource
from morpheus.sources.flatten import flat
from morpheus.sources.log_format import LogFormat, plain
from morpheus.sources.places import city, country, state

DROPPED = "_.{}:,"
"""Left out of names, as upstream does."""

PATHS = (
    "txid",
    "isotimestamp",
    "timestamp",
    "event_type",
    "eventtype",
    "user.name",
    "user.key",
    "user.groups",
    "username",
    "alias",
    "email",
    "application.name",
    "application.key",
    "integration",
    "factor",
    "result",
    "reason",
    "access_device.browser",
    "access_device.browser_version",
    "access_device.os",
    "access_device.os_version",
    "access_device.ip",
    "access_device.hostname",
    "access_device.is_encryption_enabled",
    "access_device.is_firewall_enabled",
    "access_device.is_password_set",
    "access_device.location.city",
    "access_device.location.state",
    "access_device.location.country",
    "auth_device.name",
    "auth_device.ip",
    "auth_device.location.city",
    "auth_device.location.state",
    "auth_device.location.country",
    "trusted_endpoint_status",
    "ood_software",
    "new_enrollment",
    "adaptive_trust_assessments.remember_me.trust_level",
    "device",
    "ip",
    "location.city",
    "location.state",
    "location.country",
    "action",
    "object",
)

CONTEXT = (
    "eventtype",
    "factor",
    "applicationname",
    "accessdeviceip",
    "accessdevicelocationcity",
    "accessdevicelocationstate",
    "accessdevicelocationcountry",
    "authdeviceip",
    "authdevicelocationcountry",
    "trustedendpointstatus",
    "email",
    "alias",
)

PORTAL = {
    "time": "isotimestamp",
    "date": "isotimestamp",
    "timestamputc": "isotimestamp",
    "datetimeutc": "isotimestamp",
    "user": "username",
    "application": "applicationname",
    "authenticationdevice": "authdevicename",
    "authenticationmethod": "factor",
    "method": "factor",
    "accessip": "accessdeviceip",
    "ipaddress": "accessdeviceip",
    "browser": "accessdevicebrowser",
    "operatingsystem": "accessdeviceos",
    "os": "accessdeviceos",
    "accesscity": "accessdevicelocationcity",
    "city": "accessdevicelocationcity",
    "state": "accessdevicelocationstate",
    "country": "accessdevicelocationcountry",
}
"""Columns of the admin panel's CSV export that are called otherwise in a record."""

RULES = (
    Rule("service", "{username}", {"username": r"^(?:API|System|AD Sync: .+)$"}),
    Rule("person", r"{username/^[^\\]+\\(.+)$/}", lower=True),
    Rule("person", "{username/(.+)/}", lower=True),
    Rule("person", "{email/(.+)/}", lower=True),
    Rule("person", "{alias/(.+)/}", lower=True),
    Rule("unknown", "unknown"),
)
"""Who authenticated: the user's name, without its domain, in lower case."""


def unwrap(fields: dict[str, msgspec.Raw]) -> Sequence[Undecoded] | None:
    """The records in what Duo's Admin API answers, versions 1 and 2.

    >>> answer = {"response": msgspec.Raw(b'{"authlogs": [{"txid": "1"}], "metadata": {}}')}
    >>> [bytes(part) for part in unwrap(answer)]
    [b'{"authlogs": [{"txid": "1"}], "metadata": {}}']
    """
    if "response" in fields:
        response = fields["response"]
        if bytes(memoryview(response)[:64]).lstrip()[:1] == b"[":
            return msgspec.json.decode(response, type=list[msgspec.Raw])
        return [response]
    for name in ("authlogs", "items"):
        if name in fields:
            return msgspec.json.decode(fields[name], type=list[msgspec.Raw])
    return None


DUO = LogFormat(
    name="Duo",
    unwrap=unwrap,
    paths=PATHS,
    leading=("txid", "isotimestamp"),
    context=CONTEXT,
    time="isotimestamp",
    id="txid",
    user="username",
    dropped=DROPPED,
    spellings={plain(flat(path, DROPPED)): flat(path, DROPPED) for path in PATHS} | PORTAL,
    instead={
        "isotimestamp": (pl.col("timestamp"),),
        "applicationname": (pl.col("integration"),),
        "authdevicename": (pl.col("device"),),
        "accessdeviceip": (pl.col("ip"),),
        "accessdevicelocationcity": (pl.col("locationcity"), city("Location")),
        "accessdevicelocationstate": (pl.col("locationstate"), state("Location")),
        "accessdevicelocationcountry": (pl.col("locationcountry"), country("Location")),
    },
    rules=RULES,
    derived={
        "logcount": derived.log_count(),
        "locincrement": derived.increment(
            "accessdevicelocationcity",
            "accessdevicelocationstate",
            "accessdevicelocationcountry",
            joined=True,
        ),
        "appincrement": derived.increment("applicationname"),
        "hourofweek": derived.hour_of_week(),
        "hourkind": derived.hour_kind(),
        "addresskind": derived.each(address_kind, "accessdeviceip"),
        "addressnetwork": derived.each(address_network, "accessdeviceip"),
        "errorclass": derived.each(duo_error, "result", "reason"),
    },
)


@dataclass(frozen=True)
class FromDuo(FileSource):
    """Read Duo authentication logs.

    Any form is read: answers of the Admin API, versions 1 and 2, as lists or lines; the admin
    panel's CSV; flat CSV and Parquet. Nested names are joined: `access_device.browser` is
    `accessdevicebrowser`. Without --userid_column_name the user is `username`.

    Example: `from-duo --input_glob='authentications/*.json'`
    """

    name = "from-duo"
    default_columns: ClassVar[str] = "columns_ae_duo.txt"
    default_user: ClassVar[str] = DUO.user
    log_format: ClassVar[LogFormat] = DUO
