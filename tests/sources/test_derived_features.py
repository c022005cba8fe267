"""Derived columns continue across files, history, input and batches."""

from datetime import UTC, datetime, timedelta

import polars as pl
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
NAMES = ("logcount", "locincrement", "new:family")
START = datetime(2024, 5, 31, tzinfo=UTC)
EVENTS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["ann", "bob"]), st.sampled_from("xyz")),
    min_size=1,
    max_size=40,
)


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
