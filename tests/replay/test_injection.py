import json
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from morpheus.columns import ACTOR, INDEX, ROW, TIME
from morpheus.replay.injection import (
    EVASION_LEVELS,
    EVASION_RECORDED,
    INJECTED,
    TargetUser,
    Technique,
    has_artefacts,
    inject,
    is_ip_literal,
    is_public_ip,
    load_techniques,
    recompute_derived,
    select_day,
)
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.log_format import DerivedFeatures, resolve_actors, resolve_derived

RECORDED = Path(__file__).parents[2] / "../shared/data/cloudtrail-techniques"
TECHNIQUES = [
    *load_techniques()[::3],
    *(load_techniques(str(RECORDED)) if RECORDED.is_dir() else []),
]
AGENT, ADDRESS = "userAgent", "sourceIPAddress"


CACHE = {}


def with_technique(victim_events, technique, grade, seed=0):
    """A user's log with a technique in it, cached for all tests."""
    victim, events = victim_events
    key = victim.user, technique.name, grade, seed
    if key not in CACHE:
        CACHE[key] = inject(events, technique, victim, grade, seed)
    return CACHE[key]


def injected(victim_events, technique, grade, seed=0):
    return with_technique(victim_events, technique, grade, seed).filter(INJECTED).drop(INJECTED)


def texts(frame):
    return [c for column in frame.select(pl.col(pl.String)) for c in column.drop_nulls()]


def technique(*records, name="made"):
    base = {
        "eventTime": "2024-05-31T09:30:00Z",
        "eventSource": "iam.amazonaws.com",
        "eventName": "ListUsers",
        "awsRegion": "eu-west-9",
        "sourceIPAddress": "253.0.0.07",
        "userAgent": "stratus-red-team_1234",
        "userIdentity": {
            "type": "IAMUser",
            "arn": "arn:aws:iam::123123123123:user/eve",
            "accountId": "123123123123",
            "userName": "eve",
        },
    }
    return Technique(name, tuple(base | record for record in records))


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_the_users_own_events_do_not_change(victim_events, grade):
    _, events = victim_events
    for attack in TECHNIQUES:
        merged = with_technique(victim_events, attack, grade)
        assert merged.filter(~pl.col(INJECTED)).drop(INJECTED, ROW).equals(events.drop(ROW))
        assert merged.filter(INJECTED).height == len(attack.records)
        assert merged[TIME].is_sorted()
        assert merged[ROW].to_list() == list(range(merged.height))


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_no_simulation_artefact_remains(victim_events, grade):
    own = set(texts(victim_events[1]))
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, grade)
        assert [text for text in texts(events) if has_artefacts(text)] == []
        foreign = set(events[ADDRESS].drop_nulls()) - own
        assert [ip for ip in foreign if is_ip_literal(ip) and not is_public_ip(ip)] == []
        assert "christophe" not in json.dumps(texts(events))


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_injected_events_have_the_users_identity_in_every_column(victim_events, grade):
    victim, own = victim_events
    names = [name for name in own.columns if name.startswith("userIdentity")]
    persons = set(own.select(names).iter_rows())
    accounts = {account for attack in TECHNIQUES for account in recorded_accounts(attack)}
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, grade)
        assert set(events[victim.user_column]) == {victim.user}
        assert set(events.select(names).iter_rows()) <= persons
        assert not [text for text in texts(events) for account in accounts if account in text]


def recorded_accounts(attack):
    return {record["userIdentity"]["accountId"] for record in attack.records}


def test_level_recorded_keeps_the_intruders_agents_and_addresses(victim_events):
    own = victim_events[1]
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, "recorded")
        for name in (AGENT, ADDRESS):
            assert not set(events[name]) & set(own[name])


@pytest.mark.parametrize("grade", ["agent", "hours"])
def test_higher_levels_use_only_agents_and_addresses_of_the_user(victim_events, grade):
    own = victim_events[1]
    clients = set(own.select(AGENT, ADDRESS).iter_rows())
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, grade)
        assert set(events.select(AGENT, ADDRESS).iter_rows()) <= clients


def test_level_hours_uses_only_hours_in_which_the_user_is_active(victim_events):
    own = victim_events[1]
    hours = set(own[TIME].dt.hour())
    for attack in TECHNIQUES[::3]:
        for seed in range(3):
            events = injected(victim_events, attack, "hours", seed)
            assert set(events[TIME].dt.hour()) <= hours


def test_other_levels_use_any_hour(victim_events):
    [attack, *_] = TECHNIQUES
    found = {
        hour
        for seed in range(40)
        for hour in injected(victim_events, attack, "agent", seed)[TIME].dt.hour()
    }
    assert len(found) > 12


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_order_and_intervals_of_records_do_not_change(victim_events, grade):
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, grade)
        assert events["eventName"].to_list() == [record["eventName"] for record in attack.records]
        assert (events[TIME] - events[TIME][0]).to_list() == list(attack.offsets)
        written = events["eventTime"].str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
        assert written.to_list() == events[TIME].to_list()


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_equal_seeds_give_equal_events_and_different_seeds_different_ones(victim_events, grade):
    attack = TECHNIQUES[-1]
    first, again, other = (injected(victim_events, attack, grade, seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert first[TIME].to_list() != other[TIME].to_list()
    assert not set(first["eventID"]) & set(other["eventID"])


def test_a_technique_is_injected_on_a_day_of_the_users_log(victim_events):
    own = set(victim_events[1][TIME].dt.date())
    for attack in TECHNIQUES:
        assert injected(victim_events, attack, "recorded")[TIME][0].date() in own


def test_levels_recorded_and_agent_differ_only_in_agents_and_addresses(victim_events):
    for attack in TECHNIQUES:
        recorded, agent = (injected(victim_events, attack, grade) for grade in EVASION_LEVELS[:2])
        rest = [name for name in recorded.columns if name not in {AGENT, ADDRESS}]
        rest = [name for name in rest if not name.startswith("vpcEndpoint")]
        assert recorded.select(rest).equals(agent.select(rest))


def test_ids_are_new_and_equal_for_equal_ids(victim_events):
    old = "12345678-1234-4234-8234-123456789abc"
    attack = technique(
        {"eventID": old, "requestParameters": {"roleSessionName": f"of {old}"}},
        {"eventID": old.replace("1", "2")},
    )
    events = injected(victim_events, attack, "recorded")
    first, second = events["eventID"]
    assert events["requestParametersroleSessionName"][0] == f"of {first}"
    assert len({old, first, second}) == 3


def test_the_users_name_account_and_region_replace_the_intruders(ann):
    victim, events = ann
    message = "User: arn:aws:iam::123123123123:user/eve is not allowed in eu-west-9; eve is evelyn"
    role = "arn:aws:iam::123123123123:role/stratus-red-team-role"
    attack = technique(
        {"errorMessage": message, "requestParameters": {"roleArn": role}},
        {"eventSource": "sts.amazonaws.com"},
    )
    found = inject(events, attack, victim, "recorded").filter(INJECTED)
    assert (
        found["errorMessage"][0]
        == f"User: {victim.user} is not allowed in ap-southeast-2; ann is evelyn"
    )
    assert found["requestParametersroleArn"][0] == "arn:aws:iam::999988887777:role/ops-role"
    assert found["awsRegion"].to_list() == ["us-east-1", "ap-southeast-2"]


def test_columns_that_the_log_never_fills_stay_null_unless_they_describe_actions(victim_events):
    _, own = victim_events
    empty = {name for name in own.columns if own[name].null_count() == own.height}
    for attack in TECHNIQUES:
        events = injected(victim_events, attack, "recorded")
        filled = {name for name in events.columns if events[name].null_count() < events.height}
        actions = ("requestParameters", "responseElements", "additionalEventData", "error")
        assert {name for name in filled & empty if not name.startswith(actions)} == set()


def test_a_technique_longer_than_the_user_is_ever_active_fits_no_hour(ann):
    victim, events = ann
    times = [f"2024-05-31T{hour:02}:30:00Z" for hour in range(24)]
    attack = technique(*({"eventTime": time} for time in times))
    assert inject(events, attack, victim, "agent").filter(INJECTED).height == 24
    with pytest.raises(ValueError, match=r"made lasts longer than .*ann' is ever active"):
        inject(events, attack, victim, "hours")


def test_an_unknown_evasion_level_is_rejected(victim_events):
    victim, events = victim_events
    with pytest.raises(
        ValueError, match="no evasion level 'best'; use one of recorded, agent, hours"
    ):
        inject(events, TECHNIQUES[0], victim, "best")


def test_events_without_row_numbers_and_with_extra_columns_are_accepted(victim_events):
    victim, events = victim_events
    events = events.drop(ROW, INDEX).with_columns(
        label=pl.lit(value=False), weight=pl.lit(1.5), since=pl.lit(timedelta(1))
    )
    merged = inject(events, TECHNIQUES[0], victim, "agent")
    assert merged.columns == [*events.columns, INJECTED]
    assert merged.filter(INJECTED)["label"].null_count() == len(TECHNIQUES[0].records)


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_injected_events_have_the_users_actor(ann, grade):
    _, events = ann
    named = events.with_columns(resolve_actors(events, CLOUDTRAIL_FORMAT.actor_rules).alias(ACTOR))
    [user] = named[ACTOR].unique().to_list()
    victim = TargetUser.from_events(user, ACTOR, named)
    for attack in TECHNIQUES[:6]:
        injected_events = inject(named, attack, victim, grade).filter(INJECTED)
        assert (
            set(injected_events[ACTOR])
            == {user}
            == set(resolve_actors(injected_events, CLOUDTRAIL_FORMAT.actor_rules))
        )


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata"])
def test_derived_columns_of_injected_events_are_computed_like_the_others(ann, timezone):
    victim, events = ann
    names = ("logcount", "hourofweek", "verbclass", "new:eventName")
    derived = resolve_derived(names, CLOUDTRAIL_FORMAT.derived_columns)
    features = DerivedFeatures(victim.user_column, derived, timezone)
    known = features.add(events)
    day = select_day(known, known[TIME][-1])
    window = inject(day, load_techniques()[0], victim, EVASION_RECORDED)
    assert window.filter(INJECTED)["hourofweek"].null_count() > 0
    recomputed = recompute_derived(window, known, victim.user_column, timezone)
    assert recomputed.columns == window.columns
    if timezone == "UTC":
        assert recomputed["logcount"].to_list() == list(range(recomputed.height))
    expected = features.add(
        pl.concat([known.filter(pl.col(TIME) < day[TIME][0]), window.drop(INJECTED)])
    )
    assert recomputed.select(names).equals(expected.tail(window.height).select(names))
    assert set(recomputed.filter(INJECTED)["new:eventName"]) == {"True"}
