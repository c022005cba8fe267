import json
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from morpheus.columns import ACTOR, INDEX, ROW, TIME
from morpheus.replay.injection import (
    EVASION_LEVELS,
    INJECTED,
    TargetUser,
    select_day,
    recompute_derived,
    inject,
    is_ip_literal,
    is_public_ip,
    has_artefacts,
)
from morpheus.replay.injection import EVASION_RECORDED as RECORDED_GRADE
from morpheus.replay.techniques import Technique, load_techniques
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.log_format import DerivedFeatures, resolve_actors, resolve_derived

RECORDED = Path(__file__).parents[2] / "../shared/data/cloudtrail-techniques"
TECHNIQUES = [*load_techniques()[::3], *(load_techniques(str(RECORDED)) if RECORDED.is_dir() else [])]
AGENT, ADDRESS = "userAgent", "sourceIPAddress"


MADE = {}


def whole(victim_events, technique, grade, seed=0):
    """A victim's log with a technique in it, made once for all tests."""
    victim, events = victim_events
    key = victim.user, technique.name, grade, seed
    if key not in MADE:
        MADE[key] = inject(events, technique, victim, grade, seed)
    return MADE[key]


def injected(victim_events, technique, grade, seed=0):
    return whole(victim_events, technique, grade, seed).filter(INJECTED).drop(INJECTED)


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
def test_the_victims_own_events_stay_as_they_were(victim_events, grade):
    _, events = victim_events
    for each in TECHNIQUES:
        both = whole(victim_events, each, grade)
        assert both.filter(~pl.col(INJECTED)).drop(INJECTED, ROW).equals(events.drop(ROW))
        assert both.filter(INJECTED).height == len(each.records)
        assert both[TIME].is_sorted()
        assert both[ROW].to_list() == list(range(both.height))


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_no_tell_tale_survives(victim_events, grade):
    own = set(texts(victim_events[1]))
    for each in TECHNIQUES:
        events = injected(victim_events, each, grade)
        assert [text for text in texts(events) if has_artefacts(text)] == []
        foreign = set(events[ADDRESS].drop_nulls()) - own
        assert [one for one in foreign if is_ip_literal(one) and not is_public_ip(one)] == []
        assert "christophe" not in json.dumps(texts(events))


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_an_injected_event_is_the_victims_in_every_identity_column(victim_events, grade):
    victim, own = victim_events
    names = [name for name in own.columns if name.startswith("userIdentity")]
    persons = set(own.select(names).iter_rows())
    accounts = {account for each in TECHNIQUES for account in recorded_accounts(each)}
    for each in TECHNIQUES:
        events = injected(victim_events, each, grade)
        assert set(events[victim.column]) == {victim.user}
        assert set(events.select(names).iter_rows()) <= persons
        assert not [text for text in texts(events) for account in accounts if account in text]


def recorded_accounts(each):
    return {record["userIdentity"]["accountId"] for record in each.records}


def test_an_intruder_at_grade_recorded_keeps_its_own_agents_and_addresses(victim_events):
    own = victim_events[1]
    for each in TECHNIQUES:
        events = injected(victim_events, each, "recorded")
        for name in (AGENT, ADDRESS):
            assert not set(events[name]) & set(own[name])


@pytest.mark.parametrize("grade", ["agent", "hours"])
def test_better_grades_use_only_agents_and_addresses_of_the_victim(victim_events, grade):
    own = victim_events[1]
    clients = set(own.select(AGENT, ADDRESS).iter_rows())
    for each in TECHNIQUES:
        events = injected(victim_events, each, grade)
        assert set(events.select(AGENT, ADDRESS).iter_rows()) <= clients


def test_grade_hours_uses_only_hours_the_victim_is_active_in(victim_events):
    own = victim_events[1]
    hours = set(own[TIME].dt.hour())
    for each in TECHNIQUES[::3]:
        for seed in range(3):
            events = injected(victim_events, each, "hours", seed)
            assert set(events[TIME].dt.hour()) <= hours


def test_other_grades_come_at_any_hour(victim_events):
    [each, *_] = TECHNIQUES
    found = {
        hour
        for seed in range(40)
        for hour in injected(victim_events, each, "agent", seed)[TIME].dt.hour()
    }
    assert len(found) > 12


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_order_and_spacing_are_kept(victim_events, grade):
    for each in TECHNIQUES:
        events = injected(victim_events, each, grade)
        assert events["eventName"].to_list() == [one["eventName"] for one in each.records]
        assert (events[TIME] - events[TIME][0]).to_list() == list(each.offsets)
        written = events["eventTime"].str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
        assert written.to_list() == events[TIME].to_list()


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_equal_seeds_inject_equal_events_and_others_other_times_and_ids(victim_events, grade):
    each = TECHNIQUES[-1]
    first, again, other = (injected(victim_events, each, grade, seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert first[TIME].to_list() != other[TIME].to_list()
    assert not set(first["eventID"]) & set(other["eventID"])


def test_a_technique_is_injected_on_a_day_of_the_victim(victim_events):
    own = set(victim_events[1][TIME].dt.date())
    for each in TECHNIQUES:
        assert injected(victim_events, each, "recorded")[TIME][0].date() in own


def test_agents_and_addresses_are_the_only_difference_between_the_first_two_grades(victim_events):
    for each in TECHNIQUES:
        recorded, agent = (injected(victim_events, each, grade) for grade in EVASION_LEVELS[:2])
        rest = [name for name in recorded.columns if name not in {AGENT, ADDRESS}]
        rest = [name for name in rest if not name.startswith("vpcEndpoint")]
        assert recorded.select(rest).equals(agent.select(rest))


def test_ids_are_fresh_and_the_same_for_the_same(victim_events):
    old = "12345678-1234-4234-8234-123456789abc"
    each = technique(
        {"eventID": old, "requestParameters": {"roleSessionName": f"of {old}"}},
        {"eventID": old.replace("1", "2")},
    )
    events = injected(victim_events, each, "recorded")
    first, second = events["eventID"]
    assert events["requestParametersroleSessionName"][0] == f"of {first}"
    assert len({old, first, second}) == 3


def test_the_victims_name_account_and_region_stand_where_the_intruders_stood(ann):
    victim, events = ann
    message = "User: arn:aws:iam::123123123123:user/eve is not allowed in eu-west-9; eve is evelyn"
    role = "arn:aws:iam::123123123123:role/stratus-red-team-role"
    each = technique(
        {"errorMessage": message, "requestParameters": {"roleArn": role}},
        {"eventSource": "sts.amazonaws.com"},
    )
    found = inject(events, each, victim, "recorded").filter(INJECTED)
    assert (
        found["errorMessage"][0]
        == f"User: {victim.user} is not allowed in ap-southeast-2; ann is evelyn"
    )
    assert found["requestParametersroleArn"][0] == "arn:aws:iam::999988887777:role/ops-role"
    assert found["awsRegion"].to_list() == ["us-east-1", "ap-southeast-2"]


def test_columns_that_the_log_never_fills_stay_empty_unless_they_tell_of_deeds(victim_events):
    _, own = victim_events
    empty = {name for name in own.columns if own[name].null_count() == own.height}
    for each in TECHNIQUES:
        events = injected(victim_events, each, "recorded")
        filled = {name for name in events.columns if events[name].null_count() < events.height}
        deeds = ("requestParameters", "responseElements", "additionalEventData", "error")
        assert {name for name in filled & empty if not name.startswith(deeds)} == set()


def test_a_technique_longer_than_the_victim_is_ever_active_finds_no_hour(ann):
    victim, events = ann
    times = [f"2024-05-31T{hour:02}:30:00Z" for hour in range(24)]
    each = technique(*({"eventTime": time} for time in times))
    assert inject(events, each, victim, "agent").filter(INJECTED).height == 24
    with pytest.raises(ValueError, match=r"made lasts longer than .*ann' is ever active"):
        inject(events, each, victim, "hours")


def test_a_grade_that_there_is_none_of_is_refused(victim_events):
    victim, events = victim_events
    with pytest.raises(ValueError, match="no grade 'best'; use one of recorded, agent, hours"):
        inject(events, TECHNIQUES[0], victim, "best")


def test_a_frame_may_lack_numbers_and_have_columns_of_its_own(victim_events):
    victim, events = victim_events
    events = events.drop(ROW, INDEX).with_columns(
        label=pl.lit(value=False), weight=pl.lit(1.5), since=pl.lit(timedelta(1))
    )
    both = inject(events, TECHNIQUES[0], victim, "agent")
    assert both.columns == [*events.columns, INJECTED]
    assert both.filter(INJECTED)["label"].null_count() == len(TECHNIQUES[0].records)


@pytest.mark.parametrize("grade", EVASION_LEVELS)
def test_injected_events_name_the_actor_they_are_injected_for(ann, grade):
    _, events = ann
    named = events.with_columns(resolve_actors(events, CLOUDTRAIL_FORMAT.actor_rules).alias(ACTOR))
    [user] = named[ACTOR].unique().to_list()
    victim = TargetUser.from_events(user, ACTOR, named)
    for each in TECHNIQUES[:6]:
        told = inject(named, each, victim, grade).filter(INJECTED)
        assert (
            set(told[ACTOR]) == {user} == set(resolve_actors(told, CLOUDTRAIL_FORMAT.actor_rules))
        )


def test_derived_columns_of_injected_events_are_derived_like_the_others(ann):
    victim, events = ann
    names = ("logcount", "hourofweek", "verbclass", "new:eventName")
    derived = resolve_derived(names, CLOUDTRAIL_FORMAT.derived_columns)
    known = DerivedFeatures(victim.column, derived).add(events)
    day = select_day(known, known[TIME][-1])
    window = inject(day, load_techniques()[0], victim, RECORDED_GRADE)
    assert window.filter(INJECTED)["hourofweek"].null_count() > 0
    told = recompute_derived(window, known, victim.column)
    assert told.columns == window.columns
    assert told["logcount"].to_list() == list(range(told.height))
    expected = DerivedFeatures(victim.column, derived).add(
        pl.concat([known.filter(pl.col(TIME) < day[TIME][0]), window.drop(INJECTED)])
    )
    assert told.select(names).equals(expected.tail(window.height).select(names))
    assert set(told.filter(INJECTED)["new:eventName"]) == {"True"}
