"""Who acted in a CloudTrail event, by type of identity."""

from __future__ import annotations

from morpheus.sources.actors import Rule

HIDDEN = "HIDDEN_DUE_TO_SECURITY_REASONS"
"""What AWS writes for a name that may be a mistyped password."""

_SESSION = "userIdentitysessionContext"
_ISSUER = f"{_SESSION}sessionIssueruserName"
_EMAIL = r"[^@:\s]+@[^@:\s]+\.[^@:\s]+"
_AFTER_COLON = r"^[^:]+:(.+)$"
_ACCOUNT = "{userIdentityaccountId/(.+)/}"
_RECIPIENT = "{recipientAccountId/(.+)/}"


def _of(kind: str, type_: str, name: str) -> Rule:
    """A rule for one `userIdentity.type`."""
    return Rule(kind, name, {"userIdentitytype": f"^{type_}$"})


RULES = (
    _of("service", "AWSService", "{userIdentityinvokedBy/(.+)/}"),
    Rule(
        "service",
        "{userIdentityinvokedBy}",
        {"userIdentityinvokedBy": r"\.amazonaws\.com$"},
    ),
    _of("service", "AWSService", "{eventSource/(.+)/}"),
    Rule("person", f"{{{_SESSION}sourceIdentity/(.+)/}}"),
    _of("root", "Root", f"root@{_ACCOUNT}"),
    Rule(
        "person",
        f"{{userIdentityprincipalId/{_AFTER_COLON}/}}",
        {"userIdentitytype": "^AssumedRole$", _ISSUER: "^AWSReservedSSO_"},
        lower=True,
    ),
    Rule(
        "person",
        f"{{userIdentityprincipalId/^[^:]+:({_EMAIL})$/}}",
        {"userIdentitytype": "^AssumedRole$"},
        lower=True,
    ),
    _of("role", "(?:Assumed)?Role", f"{{{_ISSUER}/(.+)/}}@{_ACCOUNT}"),
    _of("role", "AssumedRole", "{userIdentityarn/:assumed-role\\/([^\\/]+)/}@" + _ACCOUNT),
    _of("role", "Role", "{userIdentityarn/:role\\/(?:.+\\/)?([^\\/]+)$/}@" + _ACCOUNT),
    _of("role", "(?:Assumed)?Role", "{userIdentityprincipalId/^([^:]+)/}@" + _ACCOUNT),
    _of(
        "person",
        "FederatedUser",
        f"{{{_ISSUER}/^([^:]+)/}}:{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}",
    ),
    _of("person", "FederatedUser", f"{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}"),
    Rule(
        "person",
        "{userIdentityuserName}",
        {"userIdentitytype": "^(?:SAML|WebIdentity)User$", "userIdentityuserName": f"^{_EMAIL}$"},
        lower=True,
    ),
    _of(
        "person",
        "(?:SAML|WebIdentity)User",
        "{userIdentityuserName/(.+)/}@{userIdentityidentityProvider/(.+)/}",
    ),
    _of("person", "(?:SAML|WebIdentity)User", "{userIdentityuserName/(.+)/}"),
    _of("person", "IdentityCenterUser", "{additionalEventDataUserName/(.+)/}"),
    _of(
        "person",
        "IdentityCenterUser",
        "{userIdentityonBehalfOfuserId/(.+)/}@{userIdentityonBehalfOfidentityStoreArn/([^\\/]+)$/}",
    ),
    _of("person", "IdentityCenterUser", "{userIdentityonBehalfOfuserId/(.+)/}"),
    _of("person", "Directory", "{userIdentityuserName/(.+)/}"),
    _of("account", "AWSAccount", f"account:{_ACCOUNT}"),
    Rule(
        "user",
        f"{{userIdentityuserName/(.+)/}}@{_ACCOUNT}",
        {"userIdentitytype": "^IAMUser$"},
        unless={"userIdentityuserName": HIDDEN},
    ),
    _of("user", "IAMUser", "{userIdentityprincipalId/(.+)/}@" + _ACCOUNT),
    Rule("unknown", f"unknown@{_ACCOUNT}"),
    Rule("unknown", f"unknown@{_RECIPIENT}"),
    Rule("unknown", "unknown"),
)
"""Who acted, by type of identity; people by a name that they keep from role to role."""
