"""What the columns of the logs we know mean, whatever each log calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

FIELD_MAP = {
    "event": ("eventID", "id", "txid"),
    "operation": ("eventName", "operationName", "eventtype"),
    "service": ("eventSource", "appDisplayName", "applicationname"),
    "address": ("sourceIPAddress", "ipAddress", "accessdeviceip"),
    "country": ("locationcountryOrRegion", "accessdevicelocationcountry"),
    "city": ("locationcity", "accessdevicelocationcity"),
    "agent": ("userAgent",),
    "account": ("recipientAccountId", "userIdentityaccountId"),
    "region": ("awsRegion",),
    "error": ("errorCode", "statuserrorCode"),
    "message": ("errorMessage", "statusfailureReason"),
    "result": ("result", "responseElementsConsoleLogin"),
}
"""Flat columns of CloudTrail, Entra ID and Duo that tell each trait; the first that does counts."""

CLOUD_PROVIDERS = {"from-cloudtrail": "aws", "from-azure": "azure"}
"""Whose cloud a source's logs are of."""
SOURCES_WITH_EVENT_IDS = {"from-cloudtrail", "from-azure", "from-duo"}
"""Sources of logs in which `event` tells events apart, at one moment and of one user."""
SIGN_IN_SOURCES = {"from-azure", "from-duo"}
"""Sources of logs of people signing in."""

_ACCOUNT_PREFIX = "Account-"  # how the lessons' tables, and our reading of CSV, begin an account's number
_NO_ERROR_CODES = {"0"}
_FAILURE_RESULTS = {"failure", "failed", "denied", "deny", "fraud", "error"}
_SUCCESS_RESULTS = {"success", "allow"}


@dataclass(frozen=True)
class NormalisedFields:
    """What an event says of itself; None where it does not.

    Attributes:
        event: Its id in its own log.
        operation: What was asked for.
        service: Of whom.
        address: From where: an IP address, or the name of a service.
        country: Where that is.
        city: The same.
        agent: With which program.
        account: In which account, by its number alone.
        region: In which region of a cloud.
        error: Code of an error.
        message: What the log says of the error.
        result: How it ended, in the log's own word.
    """

    event: str | None = None
    operation: str | None = None
    service: str | None = None
    address: str | None = None
    country: str | None = None
    city: str | None = None
    agent: str | None = None
    account: str | None = None
    region: str | None = None
    error: str | None = None
    message: str | None = None
    result: str | None = None

    @classmethod
    def from_event(cls, event: Mapping[str, str]) -> Self:
        """Find the traits in an event's columns.

        >>> NormalisedFields.of({"eventName": "GetUser", "errorCode": "AccessDenied"}).failed
        True
        """
        found = {
            trait: next((event[name] for name in names if event.get(name)), None)
            for trait, names in FIELD_MAP.items()
        }
        if found["error"] in _NO_ERROR_CODES:
            found |= {"error": None, "result": found["result"] or "success"}
        if found["account"]:
            found["account"] = found["account"].removeprefix(_ACCOUNT_PREFIX)
        return cls(**found)

    @property
    def ip(self) -> str | None:
        """The address, where it is one.

        >>> NormalisedFields(address="203.0.113.7").ip, NormalisedFields(address="s3.amazonaws.com").ip
        ('203.0.113.7', None)
        """
        try:
            return str(ip_address(self.address or ""))
        except ValueError:
            return None

    @property
    def failed(self) -> bool | None:
        """Whether what was asked for was refused; None where the event does not say."""
        if self.error or (self.result or "").lower() in _FAILURE_RESULTS:
            return True
        return False if (self.result or "").lower() in _SUCCESS_RESULTS else None
