import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from people import COLUMNS, day, fingerprint


def scores(model, **changes):
    usual = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
    rows = model.encoder.encode(pl.DataFrame([usual | changes]))
    return float(model.losses(rows)[rows.inverse].mean())


@given(seed=st.integers(0, 50), column=st.sampled_from(COLUMNS))
@settings(max_examples=8, deadline=None)
def test_new_value_raises_the_score_in_every_column(seed, column):
    model = fingerprint(seed=seed)
    assert scores(model, **{column: "never"}) > scores(model) + 0.3


@given(seed=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_unusual_combination_of_known_values_raises_the_score(seed):
    model = fingerprint(seed=seed)
    assert scores(model, agent="cli") > scores(model) + 0.1


def test_fingerprint_does_not_depend_on_the_number_of_threads():
    with threadpool_limits(2):
        first = fingerprint(seed=3)
    with threadpool_limits(1):
        second = fingerprint(seed=3)
    assert np.array_equal(first.net.weights, second.net.weights)
    assert first.card == second.card


def test_seeds_give_different_networks():
    assert not np.array_equal(fingerprint(seed=1).net.weights, fingerprint(seed=2).net.weights)


@pytest.mark.parametrize("by_column", [False, True])
def test_score_of_a_row_does_not_depend_on_other_rows(by_column):
    model, frame = fingerprint(), day(700, seed=9)

    def score_rows(events):
        rows = model.encoder.encode(events)
        return (model.column_risks(rows) if by_column else model.losses(rows))[rows.inverse]

    whole = score_rows(frame)
    for start in range(0, 700, 100):
        assert np.array_equal(score_rows(frame[start : start + 100]), whole[start : start + 100])


def test_missing_column_is_scored_as_a_missing_value():
    model = fingerprint()
    rows = model.encoder.encode(day().drop("agent"))
    assert np.isfinite(model.losses(rows)).all()


def test_oov_rate_is_the_share_of_validation_events_with_a_new_value():
    frame = day(400).with_columns(kind=pl.Series([f"request-{n}" for n in range(400)]))
    model = fingerprint(frame)
    assert model.oov_rates[3] == pytest.approx(1, abs=0.01)
    assert model.oov_rates[1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("events", [1, 2, 3, 7])
def test_tiny_history_can_be_trained_on(events):
    model = fingerprint(day(events))
    rows = model.encoder.encode(day())
    assert np.isfinite(model.losses(rows)).all()
