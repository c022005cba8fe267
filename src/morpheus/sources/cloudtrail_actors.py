"""Who acted in a CloudTrail event, by type of identity."""

from __future__ import annotations

from morpheus.sources.actors import ActorRule

HIDDEN_USER_NAME = "HIDDEN_DUE_TO_SECURITY_REASONS"
"""What AWS writes for a name that may be a mistyped password."""

_SESSION = "userIdentitysessionContext"
_ISSUER = f"{_SESSION}sessionIssueruserName"
_EMAIL = r"[^@:\s]+@[^@:\s]+\.[^@:\s]+"
_AFTER_COLON = r"^[^:]+:(.+)$"
_ACCOUNT = "{userIdentityaccountId/(.+)/}"
_RECIPIENT = "{recipientAccountId/(.+)/}"


def _make_rule(actor_type: str, identity_type: str, name_template: str) -> ActorRule:
    """A rule for one `userIdentity.type`."""
    return ActorRule(actor_type, name_template, {"userIdentitytype": f"^{identity_type}$"})


ACTOR_RULES = (
    _make_rule("service", "AWSService", "{userIdentityinvokedBy/(.+)/}"),
    ActorRule(
        "service",
        "{userIdentityinvokedBy}",
        {"userIdentityinvokedBy": r"\.amazonaws\.com$"},
    ),
    _make_rule("service", "AWSService", "{eventSource/(.+)/}"),
    ActorRule("person", f"{{{_SESSION}sourceIdentity/(.+)/}}"),
    _make_rule("root", "Root", f"root@{_ACCOUNT}"),
    ActorRule(
        "person",
        f"{{userIdentityprincipalId/{_AFTER_COLON}/}}",
        {"userIdentitytype": "^AssumedRole$", _ISSUER: "^AWSReservedSSO_"},
        lowercase=True,
    ),
    ActorRule(
        "person",
        f"{{userIdentityprincipalId/^[^:]+:({_EMAIL})$/}}",
        {"userIdentitytype": "^AssumedRole$"},
        lowercase=True,
    ),
    _make_rule("role", "(?:Assumed)?Role", f"{{{_ISSUER}/(.+)/}}@{_ACCOUNT}"),
    _make_rule("role", "AssumedRole", "{userIdentityarn/:assumed-role\\/([^\\/]+)/}@" + _ACCOUNT),
    _make_rule("role", "Role", "{userIdentityarn/:role\\/(?:.+\\/)?([^\\/]+)$/}@" + _ACCOUNT),
    _make_rule("role", "(?:Assumed)?Role", "{userIdentityprincipalId/^([^:]+)/}@" + _ACCOUNT),
    _make_rule(
        "person",
        "FederatedUser",
        f"{{{_ISSUER}/^([^:]+)/}}:{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}",
    ),
    _make_rule("person", "FederatedUser", f"{{userIdentityprincipalId/{_AFTER_COLON}/}}@{_ACCOUNT}"),
    ActorRule(
        "person",
        "{userIdentityuserName}",
        {"userIdentitytype": "^(?:SAML|WebIdentity)User$", "userIdentityuserName": f"^{_EMAIL}$"},
        lowercase=True,
    ),
    _make_rule(
        "person",
        "(?:SAML|WebIdentity)User",
        "{userIdentityuserName/(.+)/}@{userIdentityidentityProvider/(.+)/}",
    ),
    _make_rule("person", "(?:SAML|WebIdentity)User", "{userIdentityuserName/(.+)/}"),
    _make_rule("person", "IdentityCenterUser", "{additionalEventDataUserName/(.+)/}"),
    _make_rule(
        "person",
        "IdentityCenterUser",
        "{userIdentityonBehalfOfuserId/(.+)/}@{userIdentityonBehalfOfidentityStoreArn/([^\\/]+)$/}",
    ),
    _make_rule("person", "IdentityCenterUser", "{userIdentityonBehalfOfuserId/(.+)/}"),
    _make_rule("person", "Directory", "{userIdentityuserName/(.+)/}"),
    _make_rule("account", "AWSAccount", f"account:{_ACCOUNT}"),
    ActorRule(
        "user",
        f"{{userIdentityuserName/(.+)/}}@{_ACCOUNT}",
        {"userIdentitytype": "^IAMUser$"},
        exclude={"userIdentityuserName": HIDDEN_USER_NAME},
    ),
    _make_rule("user", "IAMUser", "{userIdentityprincipalId/(.+)/}@" + _ACCOUNT),
    ActorRule("unknown", f"unknown@{_ACCOUNT}"),
    ActorRule("unknown", f"unknown@{_RECIPIENT}"),
    ActorRule("unknown", "unknown"),
)
"""Who acted, by type of identity; people by a name that they keep from role to role."""
