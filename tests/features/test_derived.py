"""Derived columns equal a slow, plain computation."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import TIME
from morpheus.features.derived import (
    ACTION_CLASSIFIER,
    AWS_ERROR_CLASSIFIER,
    NOVELTY_TTL,
    NOVELTY_WARMUP,
    SIGN_IN_ERROR_CLASSIFIER,
    USER,
    RegexClassifier,
    address_to_network,
    classify_address,
    classify_duo_error,
    classify_user_agent,
    distinct_count_today,
    hour_kind,
    hour_of_week,
    is_new_value,
    log_count,
    map_families,
    map_values,
)

START = datetime(2024, 5, 31, 20, tzinfo=UTC)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["ann", "bob", None]),
        st.sampled_from(["x", "y", "z", None]),
        st.sampled_from(["IE", "RO", None]),
    ),
    min_size=1,
    max_size=30,
)


def frame(rows):
    """Events of (hours after `START`, user, city, country), in time order."""
    rows = sorted(rows, key=lambda row: row[0])
    names = [USER, "city", "country"]
    cells = {name: [row[n] for row in rows] for n, name in enumerate(names, 1)}
    times = pl.Series(TIME, [START + timedelta(hours=row[0]) for row in rows])
    schema = dict.fromkeys(names, pl.String)
    return pl.DataFrame(cells, schema=schema).with_columns(times.dt.cast_time_unit("us"))


def events_of_the_day(rows, at):
    """The events of the same user and day up to a row, that row included."""
    own = [row for row in rows[: at + 1] if row[USER] == rows[at][USER]]
    return [row for row in own if row[TIME].date() == rows[at][TIME].date()]


@settings(deadline=None)
@given(EVENTS)
def test_daily_counts_equal_those_of_a_plain_loop(events):
    rows = frame(events).to_dicts()
    earlier = [events_of_the_day(rows, at) for at in range(len(rows))]
    places = [{f"{row['city'] or 'nan'}, {row['country'] or 'nan'}" for row in p} for p in earlier]
    cities = [{row["city"] for row in day_rows} - {None} for day_rows in earlier]
    count = log_count().compute(frame(events))
    place = distinct_count_today("city", "country", joined=True).compute(frame(events))
    city = distinct_count_today("city").compute(frame(events))
    assert count.to_list() == [len(day_rows) - 1 for day_rows in earlier]
    assert place.to_list() == list(map(len, places))
    assert city.to_list() == list(map(len, cities))
    assert {count.dtype, place.dtype, city.dtype} == {pl.Int64}


def test_value_is_new_the_first_time_and_after_its_time_to_live():
    young, month = NOVELTY_WARMUP // timedelta(hours=1), 24 * 30
    forgotten = NOVELTY_TTL // timedelta(hours=1)
    hours = [0, 1, young + 1, young + 2, month, month + forgotten, month + forgotten + 1]
    cities = ["x", "y", "z", "z", None, "z", "x"]
    events = frame([(h, "ann", c, None) for h, c in zip(hours, cities, strict=True)])
    new = is_new_value("city").compute(events)
    assert new.to_list() == ["False", "False", "True", "False", None, "True", "True"]


def test_known_value_of_one_user_is_new_for_another():
    later = NOVELTY_WARMUP // timedelta(hours=1) + 1
    events = [(0, "ann", "x", None), (0, "bob", "y", None), (later, "bob", "x", None)]
    assert is_new_value("city").compute(frame(events)).to_list()[-1] == "True"


def test_hours_are_text_and_not_numbers():
    events = frame([(0, "ann", None, None), (5, "ann", None, None)])
    assert hour_of_week().compute(events).to_list() == ["Fri 20", "Sat 01"]
    assert hour_kind().compute(events).to_list() == ["weekday 20", "weekend 01"]


def test_function_is_called_once_per_distinct_value():
    calls = []

    def upper(city):
        calls.append(city)
        return city and city.upper()

    events = frame([(n, "ann", city, None) for n, city in enumerate(["x", None, "x", "y"])])
    assert map_values(upper, "city").compute(events).to_list() == ["X", None, "X", "Y"]
    assert calls == ["x", None, "y"]


@pytest.mark.parametrize(
    ("classify", "value", "label"),
    [
        (classify_user_agent, "Boto3/1.26 Python/3.10.6 Linux/5.19 Botocore/1.29", "boto"),
        (classify_user_agent, "aws-sdk-go-v2/1.17.0 os/linux lang/go/1.18.10", "aws-sdk-go"),
        (classify_user_agent, "APN/1.0 HashiCorp/1.0 Terraform/1.1.2", "terraform"),
        (classify_user_agent, "cloudformation.amazonaws.com", "aws service"),
        (classify_user_agent, "AWS Internal", "aws service"),
        (classify_user_agent, "[S3Console/0.4, aws-internal/3 aws-sdk-java/1.12]", "aws console"),
        (classify_user_agent, "Mozilla/5.0 (X11) Gecko/20100101 Firefox/109.0", "firefox"),
        (classify_user_agent, "Mozilla/5.0 AppleWebKit/537 Chrome/120 Safari/537 Edg/120", "edge"),
        (classify_user_agent, "Mozilla/5.0 AppleWebKit/537 Chrome/120 Safari/537", "chrome"),
        (classify_user_agent, "<script>", "other"),
        (classify_address, "10.0.0.1", "private"),
        (classify_address, "fe80::1%eth0", "private"),
        (classify_address, "8.8.8.8", "public"),
        (classify_address, "ec2.amazonaws.com", "service"),
        (classify_address, "somewhere", "name"),
        (classify_address, "", None),
        (address_to_network, "8.8.8.8", "8.8.8.0/24"),
        (address_to_network, "somewhere", "somewhere"),
        (AWS_ERROR_CLASSIFIER, "Client.UnauthorizedOperation", "denied"),
        (AWS_ERROR_CLASSIFIER, "NoSuchBucketPolicy", "not there"),
        (AWS_ERROR_CLASSIFIER, "ThrottlingException", "throttled"),
        (AWS_ERROR_CLASSIFIER, "InsightNotEnabledException", "other"),
        (SIGN_IN_ERROR_CLASSIFIER, "0", None),
        (SIGN_IN_ERROR_CLASSIFIER, "50126", "password"),
        (SIGN_IN_ERROR_CLASSIFIER, "50053", "locked"),
        (SIGN_IN_ERROR_CLASSIFIER, "50074", "second factor"),
        (SIGN_IN_ERROR_CLASSIFIER, "53003", "conditional access"),
        (SIGN_IN_ERROR_CLASSIFIER, "65001", "consent"),
        (SIGN_IN_ERROR_CLASSIFIER, "700016", "app"),
        (ACTION_CLASSIFIER, "GetBucketAcl", "read"),
        (ACTION_CLASSIFIER, "GetSecretValue", "secret"),
        (ACTION_CLASSIFIER, "AssumeRoleWithSAML", "login"),
        (ACTION_CLASSIFIER, "CreateAccessKey", "permit"),
        (ACTION_CLASSIFIER, "PutBucketPolicy", "permit"),
        (ACTION_CLASSIFIER, "RunInstances", "create"),
        (ACTION_CLASSIFIER, "DeleteTrail", "delete"),
        (ACTION_CLASSIFIER, "StopLogging", "stop"),
        (ACTION_CLASSIFIER, "ModifyInstanceAttribute", "change"),
    ],
)
def test_value_has_its_class(classify, value, label):
    assert classify(value) == label


@pytest.mark.parametrize(
    ("result", "reason", "label"),
    [
        ("success", "user_approved", None),
        ("SUCCESS", None, None),
        ("fraud", "user_marked_fraud", "fraud"),
        ("denied", "no_response", "no answer"),
        ("denied", "out_of_date", "policy"),
        ("denied", "anonymous_ip", "denied"),
        (None, None, None),
    ],
)
def test_duo_failure_has_its_class(result, reason, label):
    assert classify_duo_error(result, reason) == label


def test_families_of_a_schema_are_those_of_the_classifier_and_need_linear_time() -> None:
    families = RegexClassifier((("^get|^list", "read"), ("^none$", None), ("É", "accent")), "rest")
    values = ["GetUser", "x-list", "none", "café", "", None, "ListUsers"]
    frame = pl.DataFrame({"what": values})
    found = map_families(families, "what").compute(frame)
    assert found.to_list() == list(map(families, values))
    hostile = map_families(RegexClassifier((("^(a+)+$", "slow"),)), "what")
    text = pl.DataFrame({"what": ["a" * 50_000 + "b"]})
    assert hostile.compute(text).to_list() == ["other"]
