"""What kind of thing a value is: its family, where the value itself is too rare to be a habit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import polars as pl

from morpheus.columns import TIME


@dataclass(frozen=True)
class RegexClassifier:
    """A family for each value, by the first pattern that is found in it, whatever its case.

    Attributes:
        patterns: Pattern and family, in order; no family for values of which nothing is to be said.
        default: Family of all other values.
    """

    patterns: tuple[tuple[str, str | None], ...]
    default: str | None = "other"

    def __call__(self, value: str | None) -> str | None:
        """Name a value's family.

        >>> RegexClassifier((("^get|^list", "read"),))("ListUsers")
        'read'
        """
        if not value:
            return None
        for pattern, family in self.patterns:
            if re.search(pattern, value, re.IGNORECASE):
                return family
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
"""By user agent."""
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
"""By the name of an action, as AWS forms them."""
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
"""By `errorCode` of CloudTrail."""
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
"""By the error code of an Entra ID sign-in."""


def classify_duo_error(result: str | None, reason: str | None) -> str | None:
    """Class of a Duo authentication's failure; None for success.

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
    """Family of a user agent; of an unknown one its first word.

    >>> classify_user_agent("aws-cli/2.13.5 Python/3.11.4"), classify_user_agent("s5cmd/2.0"), classify_user_agent(None)
    ('aws-cli', 's5cmd', None)
    """
    family = USER_AGENT_CLASSIFIER(agent)
    if family != "other" or agent is None:
        return family
    word = re.match(r"\s*\[?([A-Za-z][\w.-]{0,30})", agent)
    return word[1].lower() if word else "other"


def classify_address(address: str | None) -> str | None:
    """Kind of an address: private, public (of which version), of a service, or a name.

    >>> [classify_address(a) for a in ("10.1.2.3", "203.0.113.9", "2a00::1", "ec2.amazonaws.com")]
    ['private', 'public', 'public v6', 'service']
    """
    number = _parse_address(address)
    if number is None:
        service = r"\.amazonaws\.com$|^aws internal"
        kind = "service" if re.search(service, address or "", re.IGNORECASE) else "name"
        return kind if address else None
    if number.is_private and number not in _DOCUMENTATION_NETWORKS:
        return "private"
    return "public" if number.version == 4 else "public v6"  # noqa: PLR2004 - of the protocol


def address_to_network(address: str | None) -> str | None:
    """The network of an address, /24 or /48; what is no address stays as it is.

    >>> address_to_network("203.0.113.9"), address_to_network("2a00:1:2:3::9")
    ('203.0.113.0/24', '2a00:1:2::/48')
    """
    number = _parse_address(address)
    if number is None:
        return address or None
    width = 24 if number.version == 4 else 48  # noqa: PLR2004 - of the protocol
    return str(ip_network(f"{number}/{width}", strict=False))


class _DocumentationNetworks:
    """Addresses for examples, which the standard library calls private; logs are full of them."""

    networks = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))

    def __contains__(self, number: IPv4Address | IPv6Address) -> bool:
        return any(number in net for net in self.networks)


_DOCUMENTATION_NETWORKS = _DocumentationNetworks()


def _parse_address(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address((text or "").strip().partition("%")[0])
    except ValueError:
        return None


USER = "_user_"
"""Column of the user, in the frames that are derived from."""
NOVELTY_PREFIX = "new:"
"""`new:userAgent` says whether an event's `userAgent` is new to its user."""
NOVELTY_TTL = timedelta(days=90)
"""A value that a user has not had for so long is new again."""
NOVELTY_WARMUP = timedelta(days=7)
"""So long after a user's first event nothing is called new: all of it would be."""

_DAY = pl.col(TIME).dt.date()
_SATURDAY = 6


@dataclass(frozen=True)
class DerivedColumn:
    """A column that no log holds.

    Attributes:
        inputs: Columns that it is made of.
        compute: Makes it of events in time order.
    """

    inputs: tuple[str, ...]
    compute: Callable[[pl.DataFrame], pl.Series]


def log_count() -> DerivedColumn:
    """How many events the user has had that day, before this one."""
    return DerivedColumn((), _log_count)


def distinct_count_today(*columns: str, joined: bool = False) -> DerivedColumn:
    """How many different values the user has had that day, this one included.

    Args:
        columns: One column, whose missing values do not count; or, `joined`, several that are one
            value together, and count even if all are missing.
        joined: Whether they are.
    """
    return DerivedColumn(columns, partial(_distinct_count_today, columns=columns, joined=joined))


def hour_of_week() -> DerivedColumn:
    """Day and hour, `Mon 09`: one of 168."""
    return DerivedColumn((), _hour_of_week)


def hour_kind() -> DerivedColumn:
    """Hour of a weekday or of the weekend, `weekend 23`: one of 48."""
    return DerivedColumn((), _hour_kind)


def map_values(function: Callable[..., str | None], *columns: str) -> DerivedColumn:
    """What a function says of the values of some columns, called once for equal ones."""
    return DerivedColumn(columns, partial(_map_values, columns=columns, function=function))


def is_new_value(column: str) -> DerivedColumn:
    """Whether a value is new to its user: "True" or "False", nothing where there is no value.

    New is what the user has not had for `NOVELTY_TTL`; see `NOVELTY_WARMUP` too.
    """
    return DerivedColumn((column,), partial(_is_new_value, column=column))


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
    told = pl.Series("told", [function(*row) for row in distinct.iter_rows()], dtype=pl.String)
    both = frame.select(columns).join(
        distinct.with_columns(told), on=columns, nulls_equal=True, how="left", maintain_order="left"
    )
    return both["told"]


def _is_new_value(frame: pl.DataFrame, column: str) -> pl.Series:
    before = pl.col(TIME).shift().over(USER, column)
    forgotten = (pl.col(TIME) - before > NOVELTY_TTL).fill_null(value=True)
    old = pl.col(TIME) - pl.col(TIME).first().over(USER) > NOVELTY_WARMUP
    new = (forgotten & old).cast(pl.String).str.to_titlecase()
    return frame.select(pl.when(pl.col(column).is_not_null()).then(new)).to_series()
