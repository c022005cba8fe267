"""Actor rules of each log format."""

import json
from pathlib import Path

import polars as pl
import pytest

from morpheus.columns import FieldCondition, Identity
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from morpheus.sources.from_file import AZURE_FORMAT, DUO_FORMAT
from morpheus.sources.log_format import (
    MAX_IDENTITY_CHARS,
    MAX_IDENTITY_VALUES,
    ActorRule,
    collect_rule_columns,
    find_identity,
    resolve_actor_types,
    resolve_actors,
)

DATA = Path(__file__).parents[2] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")
SESSION = "userIdentitysessionContext"
ISSUER = f"{SESSION}sessionIssueruserName"
TYPE, ACCOUNT = "userIdentitytype", "userIdentityaccountId"
NAME, PRINCIPAL, ARN = "userIdentityuserName", "userIdentityprincipalId", "userIdentityarn"
SSO = "AWSReservedSSO_Admin_0123456789abcdef"


def called(log, event):
    cells = {"nothing": ["x"], **{name: [value] for name, value in event.items()}}
    frame = pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))
    return resolve_actors(frame, log.actor_rules).item(), resolve_actor_types(
        frame, log.actor_rules
    ).item()


@pytest.mark.parametrize(
    ("event", "actor", "kind"),
    [
        ({TYPE: "Root", ACCOUNT: "012"}, "root@012", "root"),
        ({TYPE: "IAMUser", ACCOUNT: "012", NAME: "ann", PRINCIPAL: "AIDA1"}, "ann@012", "user"),
        ({TYPE: "IAMUser", ACCOUNT: "012", PRINCIPAL: "AIDA1"}, "AIDA1@012", "user"),
        (
            {TYPE: "IAMUser", ACCOUNT: "012", NAME: "HIDDEN_DUE_TO_SECURITY_REASONS"},
            "unknown@012",
            "unknown",
        ),
        (
            {TYPE: "AssumedRole", ACCOUNT: "012", ISSUER: "ec2", PRINCIPAL: "AROA1:i-0ab"},
            "ec2@012",
            "role",
        ),
        (
            {TYPE: "AssumedRole", ACCOUNT: "012", ARN: "arn:aws:sts::012:assumed-role/ci/run-7"},
            "ci@012",
            "role",
        ),
        (
            {TYPE: "AssumedRole", ACCOUNT: "012", ISSUER: SSO, PRINCIPAL: "AROA1:Ann"},
            "ann",
            "person",
        ),
        (
            {TYPE: "AssumedRole", ACCOUNT: "012", ISSUER: "admin", PRINCIPAL: "AROA1:Ann@X.org"},
            "ann@x.org",
            "person",
        ),
        (
            {TYPE: "AssumedRole", ACCOUNT: "012", ISSUER: "a", f"{SESSION}sourceIdentity": "bob"},
            "bob",
            "person",
        ),
        ({TYPE: "Role", ACCOUNT: "012", ARN: "arn:aws:iam::012:role/x/y/ci"}, "ci@012", "role"),
        (
            {TYPE: "FederatedUser", ACCOUNT: "012", ISSUER: "vend", PRINCIPAL: "012:bob"},
            "vend:bob@012",
            "person",
        ),
        ({TYPE: "FederatedUser", ACCOUNT: "012", PRINCIPAL: "012:bob"}, "bob@012", "person"),
        ({TYPE: "SAMLUser", NAME: "Ann@X.org"}, "ann@x.org", "person"),
        (
            {TYPE: "WebIdentityUser", NAME: "repo:a/b", "userIdentityidentityProvider": "gh"},
            "repo:a/b@gh",
            "person",
        ),
        ({TYPE: "SAMLUser", NAME: "ann"}, "ann", "person"),
        (
            {
                TYPE: "IdentityCenterUser",
                "userIdentityonBehalfOfuserId": "u-1",
                "userIdentityonBehalfOfidentityStoreArn": "arn:aws:identitystore::012:x/d-9",
            },
            "u-1@d-9",
            "person",
        ),
        ({TYPE: "IdentityCenterUser", "additionalEventDataUserName": "ann"}, "ann", "person"),
        ({TYPE: "Directory", NAME: "ann"}, "ann", "person"),
        ({TYPE: "AWSAccount", ACCOUNT: "345", PRINCIPAL: "AIDA1"}, "account:345", "account"),
        (
            {TYPE: "AWSService", "userIdentityinvokedBy": "ec2.amazonaws.com"},
            "ec2.amazonaws.com",
            "service",
        ),
        ({TYPE: "AWSService", "eventSource": "kms.amazonaws.com"}, "kms.amazonaws.com", "service"),
        (
            {TYPE: "IAMUser", NAME: "ann", "userIdentityinvokedBy": "rds.amazonaws.com"},
            "rds.amazonaws.com",
            "service",
        ),
        (
            {TYPE: "IAMUser", ACCOUNT: "012", NAME: "ann", "userIdentityinvokedBy": "AWS Internal"},
            "ann@012",
            "user",
        ),
        ({TYPE: "Unknown", "recipientAccountId": "012"}, "unknown@012", "unknown"),
        ({TYPE: "Unknown", ACCOUNT: "012", NAME: "Ann@X.org"}, "ann@x.org", "person"),
        ({TYPE: "Unknown", ACCOUNT: "012", NAME: "Ann"}, "Ann", "person"),
        (
            {TYPE: "Unknown", ACCOUNT: "012", "additionalEventDataUserName": "Ann@x.org"},
            "ann@x.org",
            "person",
        ),
        (
            {TYPE: "IdentityCenterUser", ACCOUNT: "012", NAME: "ANN@x.org"},
            "ann@x.org",
            "person",
        ),
        (
            {TYPE: "Unknown", ACCOUNT: "012", NAME: "HIDDEN_DUE_TO_SECURITY_REASONS"},
            "unknown@012",
            "unknown",
        ),
        ({TYPE: "Unknown", ACCOUNT: "012", PRINCIPAL: "906-b1"}, "906-b1@012", "person"),
        (
            {TYPE: "Unknown", ACCOUNT: "111122223333", PRINCIPAL: "111122223333"},
            "unknown@111122223333",
            "unknown",
        ),
        ({}, "unknown", "unknown"),
    ],
)
def test_every_type_of_cloudtrail_identity_has_an_actor(event, actor, kind):
    assert called(CLOUDTRAIL_FORMAT, event) == (actor, kind)


@pytest.mark.parametrize(
    ("event", "actor", "kind"),
    [
        ({"userPrincipalName": "Ann@X.org", "userId": "1"}, "ann@x.org", "person"),
        (
            {"userPrincipalName": "ann_x.org#EXT#@y.onmicrosoft.com", "userId": "1"},
            "ann@x.org",
            "guest",
        ),
        (
            {"userPrincipalName": "ann_lee_x.org#EXT#@y.onmicrosoft.com"},
            "ann_lee@x.org",
            "guest",
        ),
        ({"userPrincipalName": "", "userId": "1-2"}, "1-2", "person"),
        ({"userPrincipalName": "Ann"}, "ann", "person"),
        (
            {"userPrincipalName": "ann@x.org", "servicePrincipalId": "", "appDisplayName": "Mail"},
            "ann@x.org",
            "person",
        ),
        ({"servicePrincipalName": "backup", "servicePrincipalId": "7"}, "app:backup", "service"),
        ({"servicePrincipalName": "", "servicePrincipalId": "7"}, "app:7", "service"),
        ({"initiatedByuseruserPrincipalName": "Ann@x.org"}, "ann@x.org", "person"),
        ({"initiatedByappdisplayName": "sync"}, "app:sync", "service"),
        ({"tenantId": "t"}, "unknown@t", "unknown"),
        ({}, "unknown", "unknown"),
    ],
)
def test_every_type_of_entra_identity_has_an_actor(event, actor, kind):
    assert called(AZURE_FORMAT, event) == (actor, kind)


@pytest.mark.parametrize(
    ("event", "actor", "kind"),
    [
        ({"username": "Ann"}, "ann", "person"),
        ({"username": "CORP\\Ann"}, "ann", "person"),
        ({"username": "", "email": "Ann@X.org"}, "ann@x.org", "person"),
        ({"username": None, "alias": "ann"}, "ann", "person"),
        ({"username": "System"}, "System", "service"),
        ({"username": "AD Sync: corp"}, "AD Sync: corp", "service"),
        ({}, "unknown", "unknown"),
    ],
)
def test_every_type_of_duo_identity_has_an_actor(event, actor, kind):
    assert called(DUO_FORMAT, event) == (actor, kind)


@pytest.mark.parametrize(
    "log", [CLOUDTRAIL_FORMAT, AZURE_FORMAT, DUO_FORMAT], ids=lambda log: log.name
)
def test_rules_only_use_columns_of_the_log(log):
    assert set(collect_rule_columns(log.actor_rules)) <= set(log.columns)


@pytest.mark.parametrize("columns", [{"other": ["x"] * 2}, {"name": ["", None]}, {"name": []}])
def test_no_rule_applies_without_values_of_its_columns(columns):
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    rules = [ActorRule("user", "{name/(.+)/}"), ActorRule("root", "root", {"kind": "^Root$"})]
    for resolve in (resolve_actors, resolve_actor_types):
        found = resolve(frame, rules)
        assert (found.dtype, found.to_list()) == (pl.String, [None] * frame.height)


def test_a_rule_that_only_excludes_values_applies_where_there_are_none():
    frame = pl.DataFrame({"name": ["ann", "bob"], "kind": pl.Series([None] * 2, dtype=pl.String)})
    rules = [ActorRule("user", "{name}", exclude={"kind": "^Root$"}), ActorRule("any", "any")]
    assert resolve_actors(frame, rules).to_list() == ["ann", "bob"]
    assert resolve_actors(frame.select("kind"), rules).to_list() == ["any", "any"]


def of_files(pattern, **options):
    settings = PipelineOptions(userid_column_name="@actor", columns=(TYPE,), **options)
    source = FromCloudtrail(input_glob=str(pattern), bad_record="skip", options=settings)
    return {batch.user: batch.table.to_frame() for batch in source.events(None, RunMetrics())}


@real
@pytest.mark.parametrize(
    ("actor", "kind", "events"),
    [
        ("bert-jan@123837392027", "IAMUser", 2553),
        ("rds.amazonaws.com", "AWSService", 14),
        ("stratus-red-team-get-usr-data-role@123837392027", "AssumedRole", 15),
    ],
)
def test_real_identities_have_their_actors(actor, kind, events):
    frame = of_files(DATA / "cloudtrail-attack", userid_filter=actor)[actor]
    assert frame.height == events
    assert kind in frame[TYPE].to_list()


@real
def test_all_events_of_the_rule_tests_have_an_actor(tmp_path):
    lines = (DATA / "rule-tests/AWS.CloudTrail.jsonl").read_text().splitlines()
    logs = [json.loads(line)["log"] for line in lines]
    whole = [log for log in logs if "eventTime" in log]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, whole)))
    found = of_files(tmp_path)
    assert None not in found
    assert {kind for user in found for kind in found[user][TYPE].to_list()} >= {
        "AWSAccount",
        "AWSService",
        "AssumedRole",
        "IAMUser",
        "Root",
    }


def test_the_actor_can_be_the_user(tmp_path):
    (tmp_path / "a.csv").write_text(
        "eventTime,userIdentitytype,userIdentityaccountId,userIdentityuserName\n"
        "2024-05-31T09:30:00Z,IAMUser,12,ann\n2024-05-31T09:31:00Z,Root,12,\n"
    )
    assert list(of_files(tmp_path)) == ["ann@Account-12", "root@Account-12"]
    assert list(of_files(tmp_path, userid_filter="root@Account-12")) == ["root@Account-12"]


def identify(*rows: dict[str, str], user: str) -> Identity:
    return find_identity(pl.DataFrame(list(rows)), user, CLOUDTRAIL_FORMAT.actor_rules)


def user_event(name: str, account: str = "012") -> dict[str, str]:
    return {TYPE: "IAMUser", NAME: name, ACCOUNT: account}


@pytest.mark.parametrize(
    ("log", "event", "column"),
    [
        (CLOUDTRAIL_FORMAT, {TYPE: "IAMUser", ACCOUNT: "012"}, NAME),
        (CLOUDTRAIL_FORMAT, {TYPE: "AssumedRole", ACCOUNT: "012"}, ISSUER),
        (AZURE_FORMAT, {}, "userPrincipalName"),
        (DUO_FORMAT, {}, "username"),
    ],
)
def test_names_that_differ_after_a_line_break_are_two_actors(log, event, column):
    names = ["ann\none", "ann\ntwo", "\nann", "ann"]
    actors = [called(log, event | {column: name})[0] for name in names]
    assert len(set(actors)) == len(names)
    assert all(name in actor for name, actor in zip(names, actors, strict=True))


def test_an_actor_with_a_line_break_is_identified_by_its_whole_name() -> None:
    rules = [ActorRule("user", "{name/(.+)/}")]
    events = pl.DataFrame({"name": ["ann\none"]})
    [[condition]] = find_identity(events, "ann\none", rules)
    assert condition == FieldCondition("name", ("ann\none",), ())


def test_an_actor_is_identified_by_what_its_name_was_made_of() -> None:
    person = {TYPE: "AssumedRole", ISSUER: "a", PRINCIPAL: "AROA1:Ann@X.org", ARN: "a/session"}
    other = person | {ISSUER: "b", PRINCIPAL: "AROA2:ann@x.org"}
    assert identify(person, other, user="ann@x.org") == (
        (
            FieldCondition(PRINCIPAL, ("AROA1:Ann@X.org", "AROA2:ann@x.org")),
            FieldCondition(TYPE, ("AssumedRole",)),
        ),
    )


def test_an_actor_named_by_several_rules_has_alternatives() -> None:
    assumed = {TYPE: "AssumedRole", ISSUER: "deploy", ACCOUNT: "012"}
    itself = {TYPE: "Role", ARN: "arn:aws:iam::012:role/deploy", ACCOUNT: "012"}
    found = identify(assumed, itself, user="deploy@012")
    assert [[condition.column for condition in each] for each in found] == [
        [ISSUER, ACCOUNT, TYPE],
        [ARN, ACCOUNT, TYPE],
    ]


def test_events_that_do_not_tell_the_actor_identify_no_actor() -> None:
    assert identify(user_event("ann"), {TYPE: "IAMUser"}, user="ann@012") == ()
    assert identify(user_event("ann"), user="bob@012") == ()


def test_an_identity_has_no_value_that_is_too_long_and_not_too_many_values() -> None:
    long = "x" * (MAX_IDENTITY_CHARS + 1)
    [conditions] = identify(user_event(long), user=f"{long}@012")
    assert conditions[0] == FieldCondition(NAME)
    assert conditions[1] == FieldCondition(ACCOUNT, ("012",))
    rows = [
        {TYPE: "AssumedRole", ISSUER: "a", PRINCIPAL: f"AROA{n}:ann@x.org"}
        for n in range(MAX_IDENTITY_VALUES + 1)
    ]
    [conditions] = identify(*rows, user="ann@x.org")
    assert conditions[0] == FieldCondition(PRINCIPAL)
    [conditions] = identify(*rows[1:], user="ann@x.org")
    assert len(conditions[0].values) == MAX_IDENTITY_VALUES
