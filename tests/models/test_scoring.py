"""Laws of column scores and of temporal context, on trained fingerprints."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.state import decode_state, encode_state
from morpheus.models import temporal
from morpheus.models.attribution import HistoryState
from morpheus.models.population import Population
from morpheus.models.scoring import BaselineStats
from morpheus.models.temporal import (
    EventAnomaly,
    ExponentialMovingAverage,
    RecentCounter,
    TemporalContext,
)
from morpheus.stages.explain import ExplainState
from people import COLUMNS, day, fingerprint, times

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}


def column_anomaly_of(model, **changes):
    rows = model.encoder.encode(pl.DataFrame([USUAL | changes]))
    return model.column_anomaly(rows)[0][rows.inverse][0]


def contextual_risk(context, columns, seconds):
    halves = columns * (np.arange(columns.shape[1]) % 2 == 0)
    return context.compute_contributions(
        EventAnomaly.from_columns(columns), EventAnomaly.from_columns(halves), seconds, 0.5
    )


@given(seed=st.integers(0, 50), column=st.sampled_from(COLUMNS))
@settings(max_examples=8, deadline=None)
def test_new_value_is_anomalous_in_its_own_column(seed, column):
    found = column_anomaly_of(fingerprint(seed=seed), **{column: "never"})
    assert np.argmax(found) == COLUMNS.index(column)
    assert found.sum() > column_anomaly_of(fingerprint(seed=seed)).sum() + 1


@given(seed=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_unusual_combination_of_known_values_is_anomalous(seed):
    model = fingerprint(seed=seed)
    assert column_anomaly_of(model, agent="cli").sum() > column_anomaly_of(model).sum() + 1


def test_rare_value_is_more_surprising_if_other_users_have_it_often():
    rng = np.random.default_rng(3)
    frame = day().with_columns(
        kind=pl.Series(rng.choice(["a", "b", "c"], 400, p=[0.9, 0.05, 0.05]))
    )
    others = day(400, seed=7).with_columns(kind=pl.lit("b"))
    both = pl.concat([frame, others])
    owner = pl.Series(["ann"] * 400 + ["bob"] * 400)
    population = Population(owner, pl.concat([times(400), times(400)]), both)
    model = fingerprint(frame, population=population)
    place = COLUMNS.index("kind")
    log_ratios = model.surprise_model.likelihoods.log_likelihood_ratio
    vocabulary = model.encoder.columns[place].vocabulary
    start = sum(column.n_codes for column in model.encoder.columns[:place])
    nats = {value: log_ratios[start + 2 + at] for at, value in enumerate(vocabulary)}
    assert nats["b"] > nats["c"] + 1
    assert nats["c"] > nats["a"]


def test_seen_by_others_is_exact_for_known_values_and_a_rate_for_new_ones():
    frame = pl.DataFrame({"kind": ["a"] * 8 + ["b"] * 2 + ["a", "c", None, None]})
    owner = pl.Series(["ann"] * 10 + ["bob"] * 4)
    population = Population(owner, times(14), frame)
    missing, unknown, *known = population.seen_by_others("kind", ("a", "b", "c"), "ann").tolist()
    assert (missing, known) == (1, [1, 0, 1])
    assert unknown == pytest.approx((8 / 10 + 1 / 4) / 2)
    assert (
        Population.from_single_user("ann", frame, times(14))
        .seen_by_others("kind", ("a",), "ann")
        .sum()
        == 0
    )


def test_only_the_excess_over_the_baseline_counts():
    usual = BaselineStats.fit(np.array([[1.0], [3.0]], dtype=np.float32), np.array([1, 1]))
    assert usual.excess_z(np.array([[0.0], [2.0], [4.0]]), 0.0).ravel().tolist() == [0, 0, 2]
    assert usual.excess_z(np.array([[4.0]]), 3**0.5).item() == pytest.approx(1)
    assert usual.zscore(np.array([[0.0]])).item() == pytest.approx(-2)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1e6)), min_size=2, max_size=40),
    st.integers(1, 39),
    st.floats(0, 100),
)
def test_higher_anomaly_never_lowers_any_risk(events, at, more):
    surprise, steps = (np.array(part) for part in zip(*events, strict=True))
    seconds, at = np.cumsum(steps), min(at, len(steps) - 1)
    raised = surprise.copy()
    raised[at] += more
    before, after = (
        TemporalContext().compute_risk(one, one, seconds, 2.0) for one in (surprise, raised)
    )
    assert (after >= before - 1e-9).all()


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1e6)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_risk_does_not_depend_on_how_events_are_cut_into_batches(events, cut):
    surprise, steps = (np.array(part) for part in zip(*events, strict=True))
    seconds, context = np.cumsum(steps), TemporalContext()
    pieces = slice(cut), slice(cut, None)
    parts = [context.compute_risk(surprise[s], surprise[s] / 2, seconds[s], 1.0) for s in pieces]
    whole = TemporalContext().compute_risk(surprise, surprise / 2, seconds, 1.0)
    assert np.allclose(np.concatenate(parts), whole, rtol=1e-9, atol=1e-9)


def test_risk_fades_as_time_passes():
    seconds = np.array([0.0, 60.0, 7200.0, 900 * 86400.0])
    surprise = np.array([10.0, 0.0, 0.0, 0.0])
    risk = TemporalContext().compute_risk(surprise, surprise, seconds)
    assert (np.diff(risk) < 0).all()
    assert risk[-1] < 0.01


def test_short_average_below_its_baseline_adds_nothing():
    seconds, surprise = np.arange(20) * 60.0, np.full(20, 4.0)
    nothing = np.zeros(20)
    assert np.allclose(TemporalContext().compute_risk(surprise, nothing, seconds, 2.0), surprise)
    assert (TemporalContext().compute_risk(surprise, nothing, seconds, 1.9) > surprise).all()


def test_long_average_covers_only_values_that_others_have_too():
    surprise, seconds = np.array([9.0, 1.0]), np.array([0.0, 86400.0])
    alone = TemporalContext().compute_risk(surprise, np.zeros(2), seconds)
    shared = TemporalContext().compute_risk(surprise, surprise, seconds)
    assert shared[1] > alone[1] + 1
    assert alone[1] < shared[1] / 2


def test_risk_is_calibrated_on_events_after_the_baseline_events():
    model = fingerprint()
    assert model.calibration.events == len(model.calibration.risks) == 67
    assert (np.diff(model.calibration.risks) >= 0).all()
    assert model.calibration.days == 1


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1e5)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_context_is_the_risk_minus_the_risk_without_earlier_anomalies(events, at):
    surprise, steps = (np.array(part) for part in zip(*events, strict=True))
    seconds, at = np.cumsum(steps), min(at, len(steps) - 1)
    quiet = np.where(np.arange(len(steps)) < at, 0, surprise)
    contextual, alone = (
        contextual_risk(TemporalContext(), each[:, None], seconds) for each in (surprise, quiet)
    )
    before = contextual.contributions[1:, at].sum()
    assert before == pytest.approx(contextual.risk[at] - alone.risk[at], abs=1e-6)
    assert (contextual.contributions >= 0).all()


@given(st.integers(0, 99), st.integers(0, 40))
def test_contributions_of_columns_add_up_to_the_risk_for_any_batches(seed, cut):
    rng = np.random.default_rng(seed)
    columns = rng.exponential(size=(40, 3)) * rng.choice([0, 1], (40, 3))
    seconds = np.cumsum(rng.exponential(1e4, 40))
    whole, pieces = contextual_risk(TemporalContext(), columns, seconds), TemporalContext()
    assert whole.contributions.sum(0).sum(1) == pytest.approx(whole.risk)
    parts = [
        contextual_risk(pieces, columns[piece], seconds[piece]).contributions
        for piece in (slice(0, cut), slice(cut, 40))
    ]
    assert np.concatenate(parts, axis=1) == pytest.approx(whole.contributions)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1e5)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_counts_do_not_depend_on_how_events_are_cut_into_batches(events, cut):
    marked, steps = (np.array(part) for part in zip(*events, strict=True))
    seconds, recent = np.cumsum(steps), RecentCounter()
    parts = [recent.count_before(marked[s], seconds[s]) for s in (slice(cut), slice(cut, None))]
    spans = np.array([3600, 30 * 86400])[:, None]
    counted = [
        ((seconds[:at] >= seconds[at] - spans) & marked[:at]).sum(1) for at in range(len(steps))
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), np.transpose(counted))


@pytest.mark.parametrize("cut", [0, 3, 7, 12])
def test_counts_stop_at_the_maximum_wherever_events_are_cut(cut, monkeypatch):
    monkeypatch.setattr(temporal, "MAX_COUNTED", 5)
    marked, seconds, counter = np.ones(12, dtype=np.bool_), np.arange(12.0), RecentCounter()
    parts = [counter.count_before(marked[s], seconds[s]) for s in (slice(cut), slice(cut, None))]
    assert np.concatenate(parts, axis=1).tolist() == [[*range(5), *[5] * 7]] * 2
    assert len(counter.seconds) == 5


@pytest.mark.parametrize("cut", [0, 20, 40])
def test_saved_and_restored_history_gives_the_same_context(cut):
    rng = np.random.default_rng(1)
    anomaly = EventAnomaly.from_columns(rng.exponential(size=(40, 3)))
    shared = EventAnomaly.from_columns(anomaly.columns / 2)
    marked, seconds = rng.random(40) < 0.3, np.cumsum(rng.exponential(1e4, 40))
    whole = HistoryState().update(anomaly, shared, marked, seconds, 0.5)
    state = ExplainState()
    parts = []
    for rows in (np.arange(cut), np.arange(cut, 40)):
        state = decode_state(ExplainState, encode_state(state))
        part = anomaly.take(rows), shared.take(rows), marked[rows], seconds[rows]
        parts.append(state.history.update(*part, 0.5))
    risk = np.concatenate([part.contextual_risk.risk for part in parts])
    counts = np.concatenate([part.column_counts for part in parts], axis=1)
    assert risk == pytest.approx(whole.contextual_risk.risk)
    assert np.array_equal(counts, whole.column_counts)


def test_moving_average_halves_weights_after_a_half_life():
    rng = np.random.default_rng(5)
    values, seconds = rng.random(60), np.sort(rng.random(60) * 1000)
    found = ExponentialMovingAverage(7.0).update(values[:, None], seconds)[0][:, 0]
    for row, now in enumerate(seconds):
        weights = 0.5 ** ((now - seconds[: row + 1]) / 7)
        assert found[row] == pytest.approx((weights * values[: row + 1]).sum() / weights.sum())
