"""Derived columns: classes of values, and counters over a user's events.

A class, such as the family of a user agent, is frequent even if each single value is rare. The
classifiers cover AWS, Entra ID and Duo logs; log formats select them by name in their schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec
import polars as pl

from morpheus.columns import TIME

USER = "_user_"
"""Column of the user in the frames that columns are derived from."""
NOVELTY_PREFIX = "new:"
"""Prefix of columns that say whether a value is new to its user, as in `new:userAgent`."""
PREVIOUS_PREFIX = "previous:"
"""Prefix of columns with the value of the user's previous event, as in `previous:eventName`."""
NOVELTY_TTL = timedelta(days=90)
"""A value that a user has not had for this time is new again."""
NOVELTY_WARMUP = timedelta(days=7)
"""Time after a user's first event in which no value is new, because all of them would be."""
DERIVED_VERSION = 1
"""Version of the derived columns. Raise it when events of a log get other values than before:
fingerprints that were trained on the old values no longer fit."""

_DAY = pl.col(TIME).dt.date()
_SATURDAY = 6


class DerivedColumn(msgspec.Struct, frozen=True):
    """A column that is computed from other columns.

    Attributes:
        inputs: Columns that it is computed from.
        compute: Computes it from a frame of events in time order.
        per_value: Whether it only depends on the values of its inputs in the same event.
    """

    inputs: tuple[str, ...]
    compute: Callable[[pl.DataFrame], pl.Series]
    per_value: bool = False


def log_count() -> DerivedColumn:
    """Count the user's events of that day before each event."""
    return DerivedColumn((), _log_count)


def distinct_count_today(*columns: str, joined: bool = False) -> DerivedColumn:
    """Count the different values that the user has had that day, up to each event.

    Args:
        columns: One column, whose missing values do not count; or with `joined` several columns
            that are one value together, which counts even if all of them are missing.
        joined: Whether the columns are one value.
    """
    return DerivedColumn(columns, partial(_distinct_count_today, columns=columns, joined=joined))


def hour_of_week() -> DerivedColumn:
    """Weekday and hour, such as `Mon 09`: one of 168 values."""
    return DerivedColumn((), _hour_of_week)


def hour_kind() -> DerivedColumn:
    """Hour of a weekday or of the weekend, such as `weekend 23`: one of 48 values."""
    return DerivedColumn((), _hour_kind)


def map_values(function: Callable[..., str | None], *columns: str) -> DerivedColumn:
    """Apply a function to the values of some columns, once for equal values."""
    compute = partial(_map_values, columns=columns, function=function)
    return DerivedColumn(columns, compute, per_value=True)


def map_families(classifier: RegexClassifier, column: str) -> DerivedColumn:
    """Classify the values of a column by patterns that a user has written, in linear time."""
    compute = partial(_map_families, column=column, classifier=classifier)
    return DerivedColumn((column,), compute, per_value=True)


def is_new_value(column: str) -> DerivedColumn:
    """Return whether a value is new to its user: "True" or "False", null for a missing value.

    A value is new if the user has not had it for `NOVELTY_TTL`; see also `NOVELTY_WARMUP`.
    """
    return DerivedColumn((column,), partial(_is_new_value, column=column))


def previous_value(column: str) -> DerivedColumn:
    """Return the value that the user's previous event of the same day had; else null."""
    return DerivedColumn((column,), partial(_previous_value, column=column))


PREFIX_FUNCTIONS: Mapping[str, Callable[[str], DerivedColumn]] = {
    NOVELTY_PREFIX: is_new_value,
    PREVIOUS_PREFIX: previous_value,
}
"""Functions that derive a column from any other one, by the prefix of the derived column."""


def _log_count(frame: pl.DataFrame) -> pl.Series:
    return frame.select(pl.int_range(pl.len(), dtype=pl.Int64).over(USER, _DAY)).to_series()


def _distinct_count_today(
    frame: pl.DataFrame, columns: tuple[str, ...], *, joined: bool
) -> pl.Series:
    known = pl.lit(joined) | pl.col(columns[0]).is_not_null()
    value = pl.concat_str([pl.col(name).fill_null("nan") for name in columns], separator=", ")
    first = pl.struct(USER, _DAY, value.alias("value")).is_first_distinct() & known
    return frame.select(first.cast(pl.Int64).cum_sum().over(USER, _DAY)).to_series()


def _hour_of_week(frame: pl.DataFrame) -> pl.Series:
    return frame[TIME].dt.strftime("%a %H")


def _hour_kind(frame: pl.DataFrame) -> pl.Series:
    weekend = pl.col(TIME).dt.weekday() >= _SATURDAY
    kind = pl.when(weekend).then(pl.lit("weekend ")).otherwise(pl.lit("weekday "))
    return frame.select(kind + pl.col(TIME).dt.strftime("%H")).to_series()


def _map_values(
    frame: pl.DataFrame, columns: tuple[str, ...], function: Callable[..., str | None]
) -> pl.Series:
    distinct = frame.select(columns).unique(maintain_order=True)
    mapped = pl.Series("mapped", [function(*row) for row in distinct.iter_rows()], dtype=pl.String)
    return _join_distinct(frame, distinct, mapped)


def _map_families(frame: pl.DataFrame, column: str, classifier: RegexClassifier) -> pl.Series:
    distinct = frame.select(column).unique(maintain_order=True)
    mapped = distinct.select(_classify(classifier, pl.col(column)).alias("mapped")).to_series()
    return _join_distinct(frame, distinct, mapped)


def _classify(classifier: RegexClassifier, value: pl.Expr) -> pl.Expr:
    """Do what the classifier does, with the engine of Polars."""
    label: pl.Expr = pl.lit(classifier.default, pl.String)
    for pattern, family in reversed(list(classifier.patterns)):
        found = value.str.contains(f"(?i){pattern}")
        label = pl.when(found).then(pl.lit(family, pl.String)).otherwise(label)
    return pl.when(value.is_null() | (value == "")).then(pl.lit(None, pl.String)).otherwise(label)


def _join_distinct(frame: pl.DataFrame, distinct: pl.DataFrame, mapped: pl.Series) -> pl.Series:
    columns = distinct.columns
    joined = frame.select(columns).join(
        distinct.with_columns(mapped),
        on=columns,
        nulls_equal=True,
        how="left",
        maintain_order="left",
    )
    return joined["mapped"]


def _is_new_value(frame: pl.DataFrame, column: str) -> pl.Series:
    last_seen = pl.col(TIME).shift().over(USER, column)
    forgotten = (pl.col(TIME) - last_seen > NOVELTY_TTL).fill_null(value=True)
    warmed_up = pl.col(TIME) - pl.col(TIME).first().over(USER) > NOVELTY_WARMUP
    new = (forgotten & warmed_up).cast(pl.String).str.to_titlecase()
    return frame.select(pl.when(pl.col(column).is_not_null()).then(new)).to_series()


def _previous_value(frame: pl.DataFrame, column: str) -> pl.Series:
    return frame.select(pl.col(column).shift().over(USER, _DAY)).to_series()


class RegexClassifier(msgspec.Struct, frozen=True):
    """Maps a value to the class of the first pattern that occurs in it, ignoring case.

    Attributes:
        patterns: Patterns with their classes, in order; the class is None if the value has no
            meaning.
        default: Class of all other values.
    """

    patterns: tuple[tuple[str, str | None], ...]
    default: str | None = "other"

    def __call__(self, value: str | None) -> str | None:
        """Return the class of a value; None for an empty one.

        >>> RegexClassifier((("^get|^list", "read"),))("ListUsers")
        'read'
        """
        if not value:
            return None
        for pattern, label in self.patterns:
            if re.search(pattern, value, re.IGNORECASE):
                return label
        return self.default


USER_AGENT_CLASSIFIER = RegexClassifier(
    (
        (r"\.amazonaws\.com$|^aws internal", "aws service"),
        (r"aws-internal/|signin\.aws|console\.amazonaws|s3console|aws ?console", "aws console"),
        (r"terraform|hashicorp", "terraform"),
        (r"pulumi", "pulumi"),
        (r"ansible", "ansible"),
        (r"\bkali\b|\bpacu\b|sqlmap|\bnmap\b|stratus-red-team", "attack tool"),
        (r"steampipe|prowler|scoutsuite|cloudsploit|\bwiz\b|\borca\b|lacework", "scanner"),
        (r"exec-env/AWS_Lambda", "lambda"),
        (r"exec-env/CloudShell", "cloudshell"),
        (r"aws-cli|awscli", "aws-cli"),
        (r"boto", "boto"),
        (r"aws-sdk-go|eks|kubernetes|kube-", "aws-sdk-go"),
        (r"aws-sdk-java", "aws-sdk-java"),
        (r"aws-sdk-(?:js|nodejs)", "aws-sdk-js"),
        (r"aws-sdk-(\w+)", "aws-sdk other"),
        (r"powershell", "powershell"),
        (r"python|aiohttp|httpx", "python"),
        (r"^curl|^wget|libcurl", "curl"),
        (r"go-http-client", "go"),
        (r"okhttp|java/|apache-httpclient", "java"),
        (r"postman|insomnia", "api tool"),
        (r"headless|phantomjs|selenium|puppeteer", "headless browser"),
        (r"outlook|microsoft office|msoffice|teams|onedrive|skype", "microsoft office"),
        (r"bav2ropc|cbainprod|imap|pop3|smtp", "legacy mail"),
        (r"edg(?:e|a|ios)?/", "edge"),
        (r"opr/|opera", "opera"),
        (r"firefox|fxios", "firefox"),
        (r"chrome|crios|chromium", "chrome"),
        (r"safari|applewebkit", "safari"),
        (r"msie|trident", "internet explorer"),
        (r"dalvik|android", "android app"),
        (r"cfnetwork|darwin", "apple app"),
        (r"mozilla", "other browser"),
    )
)
"""Classes of user agents."""
ACTION_CLASSIFIER = RegexClassifier(
    (
        (
            r"^(?:console)?login|^assumerole|^getsessiontoken|^getfederationtoken|^switchrole",
            "login",
        ),
        (r"^getsigninToken|^signin|^checkmfa|^credential|^userauthentication", "login"),
        (
            r"^get(?:secretvalue|passworddata|parameter)|^(?:re|de|en)crypt|^batchgetsecret",
            "secret",
        ),
        (r"^(?:get|list|describe|head|lookup)", "read"),
        (
            r"^(?:attach|detach|put)\w*policy|^delete\w*policy|^\w*policyversion|^passrole|^leave",
            "permit",
        ),
        (r"^(?:authorize|revoke|grant|share|unshare)|^add(?:permission|user|role)|acl$", "permit"),
        (r"^create(?:accesskey|loginprofile|policy|role|user$)|^update(?:assume|login)", "permit"),
        (
            r"^(?:delete|terminate|remove|deregister|purge|destroy|disassociate|detach|release)",
            "delete",
        ),
        (r"^(?:stop|disable|cancel|deactivate|suspend|pause)", "stop"),
        (r"^(?:create|run|start|launch|allocate|register|import|copy|restore|issue)", "create"),
        (r"^(?:request|generate|build|clone|upload|publish|send|invoke|execute)", "create"),
        (r"^(?:query|scan|search|batchget|view|select)", "read"),
        (r"^(?:preview|check|validate|estimate|test|simulate|discover|download)", "read"),
        (
            r"^(?:update|modify|put|set|enable|change|tag|untag|reset|add|replace|associate)",
            "change",
        ),
        (r"^(?:activate|resume|apply|configure|rotate|renew|move|reboot|upgrade|attach)", "change"),
    )
)
"""Classes of actions, by their names in AWS."""
AWS_ERROR_CLASSIFIER = RegexClassifier(
    (
        (r"dryrun", "dry run"),
        (r"denied|unauthorized|notauthorized|forbidden|optinrequired", "denied"),
        (r"expired|invalidclienttoken|authfailure|authentication|signature", "credentials"),
        (r"throttl|requestlimit|toomanyrequests|slowdown|rateexceeded", "throttled"),
        (r"limitexceeded|quota|insufficient", "limit"),
        (r"nosuch|notfound|doesnotexist|unknown", "not there"),
        (r"exists|conflict|inuse|duplicate|incorrectstate|concurrent", "conflict"),
        (r"invalid|malformed|missing|validation|parameter|unsupported|badrequest", "invalid"),
        (r"internal|unavailable|server|timeout|failure", "failed"),
    )
)
"""Classes of `errorCode` in CloudTrail."""
SIGN_IN_ERROR_CLASSIFIER = RegexClassifier(
    (
        (r"^0$", None),
        (r"^(?:50126|50056|50064)$", "password"),
        (r"^50053$", "locked"),
        (r"^(?:50055|50144)$", "password expired"),
        (r"^(?:50034|50020|51004|90072)$", "no such user"),
        (r"^50057$", "disabled"),
        (r"^(?:50072|50074|50076|50078|50079|50158|500121|399218)$", "second factor"),
        (r"^(?:5300\d|53011|530\d{2,3}|50005|50131)$", "conditional access"),
        (r"^(?:6500[0-9]|650\d{2}|90094|90095)$", "consent"),
        (r"^(?:70001[1-6]|7000\d{3}|700\d{3}|50105|500011|650\d{3})$", "app"),
        (r"^(?:70043|70044|7008\d|70008|50089|50132|50133|50173|700082|700084)$", "expired"),
        (r"^(?:50058|50097|50125|50129|50140|50143|50199|51006|16000|16003|65001)$", "interrupted"),
    )
)
"""Classes of error codes of Entra ID sign-ins."""


def classify_duo_error(result: str | None, reason: str | None) -> str | None:
    """Return the class of a failed Duo authentication; None for a successful one.

    >>> classify_duo_error("denied", "No response"), classify_duo_error("SUCCESS", "User approved")
    ('no answer', None)
    """
    return _DUO_ERROR_CLASSIFIER(f"{result or ''}:{reason or ''}") if result or reason else None


_DUO_ERROR_CLASSIFIER = RegexClassifier(
    (
        (r"^(?:success|granted|allowed|true)\b", None),
        (r"fraud", "fraud"),
        (r"anomalous", "anomalous"),
        (r"no.?response|timed?.?out", "no answer"),
        (r"cancel", "cancelled"),
        (r"locked|disabled", "locked"),
        (r"passcode|password|credentials", "passcode"),
        (r"not.?enrolled|no.?(?:keys|web|disabled)|invalid.?device|could.?not", "device"),
        (r"out.?of.?date|browser|platform|version|endpoint|location|polic|network", "policy"),
    ),
    "denied",
)


def classify_user_agent(agent: str | None) -> str | None:
    """Return the class of a user agent; for an unknown agent its first word.

    >>> agents = ("aws-cli/2.13.5 Python/3.11.4", "s5cmd/2.0", None)
    >>> [classify_user_agent(agent) for agent in agents]
    ['aws-cli', 's5cmd', None]
    """
    label = USER_AGENT_CLASSIFIER(agent)
    if label != "other" or agent is None:
        return label
    word = re.match(r"\s*\[?([A-Za-z][\w.-]{0,30})", agent)
    return word[1].lower() if word else "other"


def classify_address(address: str | None) -> str | None:
    """Return the kind of an address: private, public, public v6, service, or name.

    >>> [classify_address(a) for a in ("10.1.2.3", "203.0.113.9", "2a00::1", "ec2.amazonaws.com")]
    ['private', 'public', 'public v6', 'service']
    """
    parsed = parse_address(address)
    if parsed is None:
        service = r"\.amazonaws\.com$|^aws internal"
        kind = "service" if re.search(service, address or "", re.IGNORECASE) else "name"
        return kind if address else None
    if parsed.is_private and parsed not in _DOCUMENTATION_NETWORKS:
        return "private"
    return "public" if parsed.version == 4 else "public v6"  # noqa: PLR2004 - IP version


def address_to_network(address: str | None) -> str | None:
    """Return the network of an address, /24 or /48. Other text is returned as it is.

    >>> address_to_network("203.0.113.9:443"), address_to_network("2a00:1:2:3::9")
    ('203.0.113.0/24', '2a00:1:2::/48')
    """
    parsed = parse_address(address)
    if parsed is None:
        return address or None
    width = 24 if parsed.version == 4 else 48  # noqa: PLR2004 - IP version
    return str(ip_network(f"{parsed}/{width}", strict=False))


class _DocumentationNetworks:
    """Networks for examples. Python calls them private, but logs use them as public ones."""

    networks = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.networks)


_DOCUMENTATION_NETWORKS = _DocumentationNetworks()


_ADDRESS_WITH_PORT = re.compile(r"^(?:(\d+(?:\.\d+){3}):\d+|\[([0-9a-fA-F:.]+)\](?::\d+)?)$")


def parse_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """Parse an address, also one with a port or a zone; None for other text."""
    stripped = (text or "").strip().partition("%")[0]
    found = _ADDRESS_WITH_PORT.match(stripped)
    try:
        return ip_address(stripped if found is None else found[1] or found[2])
    except ValueError:
        return None
