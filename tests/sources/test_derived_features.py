"""Derived columns continue across files, history, input and batches."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import TIME
from morpheus.features.derived import distinct_count_today, log_count, map_values
from morpheus.sources.log_format import (
    DerivedFeatures,
    RecentRows,
    list_input_columns,
    resolve_derived,
)

KNOWN = {
    "logcount": log_count(),
    "locincrement": distinct_count_today("city"),
    "family": map_values(str.upper, "city"),
}
NAMES = ("logcount", "locincrement", "new:family", "previous:family", "previous:new:city")
FROM_OTHERS = ("new:previous:city", "new:locincrement", "previous:new:city", "previous:logcount")
START = datetime(2024, 5, 31, tzinfo=UTC)
EVENTS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["ann", "bob"]), st.sampled_from("xyz")),
    min_size=1,
    max_size=40,
)
FULL_DAYS = [
    (hour, "ann", city)
    for day in range(12)
    for hour, city in enumerate(
        "yvzxyy" if day == 0 else "wzyvww" if day > 9 else ("xyzxyy", "xxyzzx")[day % 2],
        start=24 * day,
    )
]
"""Twelve days of six events. City `v` is on the first and last days; `w` is new on the latter."""


def frame(events):
    """Events of (hours after `START`, user, city), by user, then time, as they are handed out."""
    events = sorted(events, key=lambda event: (event[1], event[0]))
    cells = {"who": [event[1] for event in events], "city": [event[2] for event in events]}
    times = [START + timedelta(hours=event[0]) for event in events]
    schema = {"who": pl.String, "city": pl.String, TIME: pl.Datetime("us", "UTC")}
    return pl.DataFrame({**cells, TIME: times}, schema=schema)


def make_derived_features(*, names=NAMES):
    return DerivedFeatures("who", resolve_derived(names, KNOWN))


def test_inputs_are_derived_before_a_derived_column():
    assert list(resolve_derived(["new:family"], KNOWN)) == ["family", "new:family"]
    assert list_input_columns(resolve_derived(NAMES, KNOWN)) == ("city",)


@settings(deadline=None)
@given(EVENTS, st.integers(0, 400))
def test_day_that_begins_in_the_history_continues_in_the_input(events, cut):
    whole = make_derived_features().add(frame(events))
    past, now = (
        frame([event for event in events if (event[0] < cut) == earlier])
        for earlier in (True, False)
    )
    late = whole.filter(pl.col(TIME) >= START + timedelta(hours=cut))
    assert make_derived_features().add(now, past).equals(late)
    # Files may be learnt from and scored: what is in both counts once.
    assert make_derived_features().add(frame(events), frame(events)).equals(whole)


@settings(deadline=None)
@given(EVENTS, st.integers(1, 399))
def test_batches_of_an_unbounded_input_give_the_same_columns_as_one(events, cut):
    whole, rounds, recent = (
        make_derived_features().add(frame(events)),
        make_derived_features(),
        RecentRows(),
    )
    parts = [frame([e for e in events if (e[0] < cut) == early]) for early in (True, False)]
    joined = pl.concat([rounds.add(part, frame([]), recent) for part in parts])
    assert joined.sort("who", TIME, maintain_order=True).equals(whole)


@pytest.mark.parametrize("width", [1, 4, 6, 15, 33])
def test_columns_computed_from_other_derived_columns_do_not_depend_on_batches(width):
    features = make_derived_features(names=FROM_OTHERS)
    whole, recent = features.add(frame(FULL_DAYS)), RecentRows()
    batches = [frame(FULL_DAYS[at : at + width]) for at in range(0, len(FULL_DAYS), width)]
    joined = pl.concat([features.add(batch, None, recent) for batch in batches])
    assert joined.equals(whole)
    for name in ("new:previous:city", "previous:new:city"):
        assert set(whole[name]) == {"True", "False", None}


def test_previous_value_is_that_of_the_users_last_event_of_the_day():
    events = frame(
        [
            *((0, "ann", "x"), (1, "bob", "y"), (2, "ann", None), (3, "ann", "z")),
            *((23, "ann", "y"), (24, "ann", "x"), (50, "ann", "y"), (51, "bob", "x")),
        ]
    )
    out = make_derived_features(names=("previous:city", "previous:logcount")).add(events)
    ann, bob = out.filter(who="ann"), out.filter(who="bob")
    assert ann["city"].to_list() == ["x", None, "z", "y", "x", "y"]
    assert ann["previous:city"].to_list() == [None, "x", None, "z", None, None]
    assert ann["previous:logcount"].to_list() == [None, 0, 1, 2, None, None]
    assert bob["previous:city"].to_list() == [None, None]


@settings(deadline=None)
@given(EVENTS, st.integers(0, 400))
def test_later_events_do_not_change_previous_values(events, cut):
    features = make_derived_features(names=("previous:city", *FROM_OTHERS))
    early = features.add(frame([event for event in events if event[0] < cut]))
    whole = features.add(frame(events)).filter(pl.col(TIME) < START + timedelta(hours=cut))
    assert early.equals(whole)


def test_column_of_the_log_can_have_a_prefix_if_its_derived_column_is_not_computed():
    events = frame([(0, "ann", "x"), (1, "ann", "y")]).drop("city")
    events = events.with_columns(pl.lit("here").alias("locincrement"))
    out = make_derived_features(names=("previous:locincrement", "new:locincrement")).add(events)
    assert out["previous:locincrement"].to_list() == [None, "here"]
    assert out["new:locincrement"].to_list() == ["False", "False"]


def test_derived_columns_come_before_the_time_and_replace_log_columns():
    events = frame([(0, "ann", "x"), (1, "ann", "y")])
    logged_already = events.with_columns(pl.lit("9").alias("logcount"))
    out = make_derived_features(names=("logcount",)).add(logged_already)
    assert out.columns == ["who", "city", "logcount", TIME]
    assert out["logcount"].to_list() == [0, 1]


def test_log_column_is_kept_if_its_inputs_are_missing():
    events = frame([(0, "ann", "x")]).drop("city").with_columns(pl.lit("9").alias("locincrement"))
    out = make_derived_features(names=("locincrement",)).add(events)
    assert out["locincrement"].to_list() == ["9"]


def test_events_without_derived_features_are_unchanged():
    events = frame([(0, "ann", "x")])
    assert make_derived_features(names=("city",)).add(events) is events
