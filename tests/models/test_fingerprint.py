import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from people import COLUMNS, day, fingerprint


def scores(known, **changes):
    usual = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
    rows = known.encoder.encode(pl.DataFrame([usual | changes]))
    return float(known.losses(rows)[rows.inverse].mean())


@given(seed=st.integers(0, 50), column=st.sampled_from(COLUMNS))
@settings(max_examples=8, deadline=None)
def test_a_value_never_seen_raises_the_score_in_every_column_also_in_a_constant_one(seed, column):
    known = fingerprint(seed=seed)
    assert scores(known, **{column: "never"}) > scores(known) + 0.3


@given(seed=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_a_usual_value_in_unusual_company_raises_the_score(seed):
    known = fingerprint(seed=seed)
    assert scores(known, agent="cli") > scores(known) + 0.1


def test_same_history_and_seed_give_the_same_fingerprint_whatever_the_threads():
    with threadpool_limits(2):
        one = fingerprint(seed=3)
    with threadpool_limits(1):
        other = fingerprint(seed=3)
    assert np.array_equal(one.net.weights, other.net.weights)
    assert one.card == other.card


def test_another_seed_gives_another_network():
    assert not np.array_equal(fingerprint(seed=1).net.weights, fingerprint(seed=2).net.weights)


@pytest.mark.parametrize("strange", [False, True])
def test_what_is_said_of_a_row_does_not_depend_on_the_rows_beside_it(strange):
    known, frame = fingerprint(), day(700, seed=9)

    def each(events):
        rows = known.encoder.encode(events)
        return (known.column_anomaly(rows)[0] if strange else known.losses(rows))[rows.inverse]

    whole = each(frame)
    for start in range(0, 700, 100):
        assert np.array_equal(each(frame[start : start + 100]), whole[start : start + 100])


def test_a_missing_column_is_a_value_and_no_crash():
    known = fingerprint()
    rows = known.encoder.encode(day().drop("agent"))
    assert np.isfinite(known.losses(rows)).all()


def test_novelty_is_the_share_of_later_events_with_a_new_value():
    frame = day(400).with_columns(kind=pl.Series([f"request-{n}" for n in range(400)]))
    known = fingerprint(frame)
    assert known.oov_rates[3] == pytest.approx(1, abs=0.01)
    assert known.oov_rates[1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("events", [1, 2, 3, 7])
def test_a_tiny_history_is_learnt_without_a_crash(events):
    known = fingerprint(day(events))
    rows = known.encoder.encode(day())
    assert np.isfinite(known.losses(rows)).all()
