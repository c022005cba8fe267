"""Laws of risks: what earlier days, other users and earlier events of a day add to them."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from morpheus.core.state import decode_state, encode_state
from morpheus.features.encoder import UNKNOWN
from morpheus.models import daily_usage
from morpheus.models.daily_usage import (
    MEMORY_LIMIT,
    DailyScorer,
    DailyScores,
    EventValues,
    RecentCounter,
    UsageState,
    hash_new_value,
)
from morpheus.models.fit import limit_by_day
from morpheus.models.population import Population
from morpheus.models.scoring import (
    MAX_NOVELTY,
    MIN_PVALUE,
    RISK_PER_NAT,
    BaselineStats,
    PValues,
    Usage,
    combine_columns,
    divide_evidence,
    number_sessions,
)
from morpheus.stages.add_scores import ScoreState
from people import COLUMNS, day, fingerprint, times

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
SIZES = [6, 8, 5]
VALUES = st.lists(
    st.tuples(st.integers(0, 3), *(st.integers(1, size + 2) for size in SIZES)),
    min_size=1,
    max_size=40,
)


def column_risks_of(model, **changes):
    rows = model.encoder.encode(pl.DataFrame([USUAL | changes]))
    return model.column_risks(rows)[rows.inverse][0]


def make_scorer(seed=0, days=20, maxima=()):
    """A user of three columns, whose history has `days` days of five events."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(2, size, days * 5) for size in SIZES], axis=1)
    usage = Usage.fit(
        codes.astype(np.int32),
        np.repeat(np.arange(days), 5),
        sizes=SIZES,
        others=np.concatenate([np.full(size, 1 / size) for size in SIZES]),
        novelty_prior=np.full(3, 0.01),
        leads=(0, 1, 2),
    )
    usual = BaselineStats(np.ones(3, np.float32), np.ones(3, np.float32))
    return DailyScorer(usage, usual, np.array(sorted(maxima), dtype=np.float64))


def make_values(scorer, events):
    """Events as (days since the last one, code by column); a code beyond the last is new."""
    days = 100 + np.cumsum([event[0] for event in events])
    codes = np.array([event[1:] for event in events], dtype=np.int64)
    keys = codes + scorer.usage.offsets
    for column, size in enumerate(SIZES):
        new = codes[:, column] >= size
        keys[new, column] = [hash_new_value(column, str(code)) for code in codes[new, column]]
    shape = keys.shape
    probability = np.where(keys < 0, 0, (codes % 5 + 1) / 7)
    unknown = scorer.usage.offsets + UNKNOWN
    rows = np.where(keys < 0, unknown, keys), probability, np.zeros(shape)
    return EventValues(keys, *rows, np.arange(len(keys)), days)


def test_a_value_of_an_unusual_day_is_not_shown_as_rarer_than_one_event():
    scorer, state = make_scorer(maxima=np.linspace(0, 1, 400)), UsageState()
    strange = [(0, 7, 9, 6)] * 3  # three new values, on a day that counts in part
    found = scorer.score(make_values(scorer, [*strange, (1, 7, 2, 2)]), state)
    share = found.frequency[-1, 0]
    assert not found.new[-1, 0]
    assert 1 / (scorer.usage.events + 3) <= share <= 3 / scorer.usage.events
    assert state.counts[state.keys < 0].max() < 1, "the day counts as usual"


@given(seed=st.integers(0, 50), column=st.sampled_from(COLUMNS))
@settings(max_examples=8, deadline=None)
def test_new_value_raises_the_risk_of_its_own_column_most(seed, column):
    found = column_risks_of(fingerprint(seed=seed), **{column: "never"})
    assert np.argmax(found) == COLUMNS.index(column)
    assert found.sum() > column_risks_of(fingerprint(seed=seed)).sum() + 10


@given(seed=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_unusual_combination_of_known_values_raises_the_risk(seed):
    model = fingerprint(seed=seed)
    assert column_risks_of(model, agent="cli").sum() > column_risks_of(model).sum() + 1


def test_rare_value_raises_the_risk_more_if_other_users_have_it_often():
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
    vocabulary = model.encoder.columns[place].vocabulary
    start = int(model.usage.offsets[place])
    nats = {value: model.usage.marginal[start + 2 + at] for at, value in enumerate(vocabulary)}
    assert nats["b"] > nats["c"] + 1
    assert nats["c"] > nats["a"]


def test_others_are_all_users_but_the_one_who_is_compared():
    frame = pl.DataFrame({"kind": ["a"] * 8 + ["b"] * 2 + ["a", "c", None, None]})
    population = Population(pl.Series(["ann"] * 10 + ["bob"] * 4), times(14), frame)
    of_ann = population.others("kind", ("a", "b", "c"), "ann")
    all_users = population.others("kind", ("a", "b", "c"), "cy")
    spread = 0.1 / 5
    assert of_ann == pytest.approx(0.9 * np.array([0.5, 0, 0.25, 0, 0.25]) + spread)
    assert all_users[2] == pytest.approx(0.9 * (0.8 + 0.25) / 2 + spread)
    alone = Population.from_single_user("ann", frame, times(14)).others("kind", ("a",), "ann")
    assert (alone == alone[0]).all()


@given(VALUES, st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_risks_of_calibration_are_those_of_scoring_whatever_follows(events, end, seed):
    scorer = make_scorer(seed, maxima=(5.0, 30.0))
    values = make_values(scorer, events)
    whole = scorer.score(values, UsageState()).risk
    assert np.array_equal(scorer.measure_risks(values), whole)
    assert np.array_equal(scorer.measure_risks(values.take(slice(end))), whole[:end])


@given(VALUES, st.lists(st.integers(0, 40), max_size=4), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_risks_do_not_depend_on_where_events_are_cut(events, cuts, seed, attribute):
    scorer = make_scorer(seed, maxima=(5.0, 30.0))
    values = make_values(scorer, events)
    whole = scorer.score(values, UsageState(), attribute=attribute)
    state, parts = ScoreState(), []
    bounds = sorted({0, len(events), *(min(cut, len(events)) for cut in cuts)})
    for start, end in pairwise(bounds):
        state = decode_state(ScoreState, encode_state(state))
        parts.append(scorer.score(values.take(slice(start, end)), state.usage, attribute=attribute))
    joined = DailyScores.concat(parts)
    for name in DailyScores.__struct_fields__:
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name


@given(VALUES, VALUES)
@settings(max_examples=30, deadline=None)
def test_risks_do_not_depend_on_later_events(events, later):
    scorer = make_scorer()
    alone = scorer.score(make_values(scorer, events), UsageState())
    both = scorer.score(make_values(scorer, events + later), UsageState())
    assert np.array_equal(both.risk[: len(events)], alone.risk)
    assert np.array_equal(both.pvalue[: len(events)], alone.pvalue)


def test_new_value_is_known_from_the_next_day_on():
    scorer = make_scorer()
    new = (2, SIZES[1] + 1, 2)
    events = [(0, *new), (0, *new), (1, *new)]
    scores = scorer.score(make_values(scorer, events), UsageState())
    assert scores.new[:, 1].tolist() == [True, True, False]
    assert scores.own[2] < scores.own[0]
    assert scores.own[1] == scores.own[0]


def test_same_unusual_value_adds_to_later_events_of_the_day_once():
    scorer = make_scorer()
    new, usual = (0, 2, SIZES[1] + 1, 2), (0, 2, 2, 2)
    once = scorer.score(make_values(scorer, [new, usual]), UsageState())
    often = scorer.score(make_values(scorer, [new, new, new, usual]), UsageState())
    assert once.memory[1] > 0
    assert often.memory[3] <= once.memory[1]


IGNORED = st.lists(st.booleans(), min_size=40, max_size=40)
LOWERED = [(0, 1, 1, 1), (0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 1, 1)]
"""The third event has a usual value, which lowers the risk of the fourth one."""


@given(VALUES, IGNORED)
@example(LOWERED, [number == 2 for number in range(40)])
@settings(max_examples=40, deadline=None)
def test_an_ignored_event_has_no_risk_and_adds_none_to_later_events(events, ignored):
    scorer = make_scorer()
    mask = np.array(ignored[: len(events)])
    values = make_values(scorer, events)
    every = scorer.score(values, UsageState())
    left = scorer.score(replace(values, ignored=mask), UsageState())
    assert not left.risk[mask].any()
    first = np.flatnonzero(values.days == values.days[0])
    # Usual values lower what earlier events add to later ones. Those of ignored events do not.
    lowered = -every.steps.clip(max=0.0) * mask
    most = every.risk + RISK_PER_NAT * (np.cumsum(lowered) - lowered)
    assert (left.risk[first] <= most[first] + 1e-6).all()
    assert left.own[first][~mask[first]].tolist() == every.own[first][~mask[first]].tolist()
    everything = scorer.score(replace(values, ignored=np.ones_like(mask)), UsageState())
    assert not everything.memory.any()


def test_the_risk_of_an_event_after_ignored_ones_is_that_of_the_event_alone():
    scorer = make_scorer()
    events = [(1, 7, 9, 6), (0, 7, 9, 6), (0, 8, 1, 1)]
    alone = scorer.score(make_values(scorer, [events[-1]]), UsageState())
    mask = np.array([True, True, False])
    after = scorer.score(make_values(scorer, events), UsageState())
    left = scorer.score(replace(make_values(scorer, events), ignored=mask), UsageState())
    assert left.risk[-1] == alone.risk[-1] < after.risk[-1]


@given(VALUES, IGNORED, st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_ignored_events_are_the_same_wherever_events_are_cut(events, ignored, cut):
    scorer = make_scorer()
    values = replace(make_values(scorer, events), ignored=np.array(ignored[: len(events)]))
    whole, state = scorer.score(values, UsageState()), UsageState()
    cuts = sorted({0, min(cut, len(events)), len(events)})
    parts = [scorer.score(values.take(slice(*ends)), state) for ends in pairwise(cuts)]
    assert np.concatenate([part.risk for part in parts]).tolist() == whole.risk.tolist()


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_memory_of_earlier_events_is_bounded(events):
    scorer = make_scorer()
    scores = scorer.score(make_values(scorer, events), UsageState())
    assert (scores.memory >= 0).all()
    assert (scores.memory <= MEMORY_LIMIT).all()


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_parts_of_columns_add_up_to_what_earlier_events_add(events):
    scorer = make_scorer()
    scores = scorer.score(make_values(scorer, events), UsageState(), attribute=True)
    assert scores.memory_parts.sum(1) == pytest.approx(scores.memory)
    assert (scores.memory_parts >= 0).all()
    assert scores.shares.sum(1)[scores.own > 0] == pytest.approx(1)


def test_column_that_changes_each_day_raises_no_alarm():
    days = np.repeat(np.arange(30), 4)
    codes = np.stack([np.ones(120), np.full(120, 2)], axis=1).astype(np.int32)
    sizes, others = [2, 3], np.array([0.5, 0.1, 0.2, 0.1, 0.7])
    fit = {"others": others, "novelty_prior": np.zeros(2), "leads": (0, 1)}
    changing = Usage.fit(codes, days, sizes=sizes, **fit)
    assert changing.novelty[0] == pytest.approx(MAX_NOVELTY, abs=0.2)
    assert changing.novelty[1] < 0.01
    assert changing.marginal[1] < 0.3


def test_strange_day_is_learned_at_a_lower_weight():
    scorer = make_scorer(maxima=np.zeros(200))
    new = tuple(size + 1 for size in SIZES)
    state = UsageState()
    scorer.score(make_values(scorer, [(0, *new)] * 3 + [(1, 2, 2, 2)]), state)
    learned = state.counts[state.keys < 0]
    assert len(learned) == 3
    assert (learned < 1).all()
    usual = UsageState()
    make_scorer().score(make_values(scorer, [(0, 2, 2, 2)] * 3 + [(1, 2, 2, 2)]), usual)
    assert usual.events == 3


def test_columns_with_the_same_information_count_once():
    evidence = np.array([[4.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    once = combine_columns(evidence, np.array([0, 0, 2]))
    alone = combine_columns(evidence[:, 1:], np.array([0, 1]))
    shares = divide_evidence(evidence, np.array([0, 0, 2]))
    assert once == pytest.approx(alone)
    assert shares[:, 1].tolist() == [0, 0]


def test_one_decisive_column_is_enough_and_agreement_adds():
    columns = np.zeros((3, 10))
    columns[1, 0], columns[2, :5] = 12, 12
    none, decisive, agreed = combine_columns(columns, np.arange(10))
    assert none == 0
    assert decisive > 12 - 2 * np.log(10)
    assert agreed > decisive + 2


@given(st.lists(st.floats(0, 300), max_size=30), st.lists(st.floats(0, 300), min_size=2))
def test_higher_risk_never_has_a_higher_pvalue(maxima, risks):
    known = PValues.from_days(np.array(maxima), np.ones(len(maxima)))
    pvalues = known.compute(np.sort(risks))
    assert (np.diff(pvalues) <= 0).all()
    assert (pvalues >= MIN_PVALUE).all()
    assert known.compute(np.zeros(1)).item() == pytest.approx(1)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1e9], [1.0, 2.0, 1e9, 2.0]])
def test_one_day_does_not_change_what_is_usual(values):
    days = np.arange(4)
    limited = limit_by_day(np.array(values)[:, None], days)
    assert limited.max() <= 2


def test_few_new_values_are_remembered_the_latest_first(monkeypatch):
    monkeypatch.setattr(daily_usage, "MAX_NEW_VALUES", 2)
    scorer, state = make_scorer(), UsageState()
    events = [(1, 2, SIZES[1] + n, 2) for n in range(4)]
    scorer.score(make_values(scorer, events), state)
    keys = sorted(hash_new_value(1, str(SIZES[1] + n)) for n in (2, 3))
    assert state.keys[state.keys < 0].tolist() == keys


def test_only_the_excess_over_the_baseline_counts():
    usual = BaselineStats.fit(np.array([[1.0], [3.0]], dtype=np.float32), np.array([1, 1]))
    assert usual.excess_z(np.array([[0.0], [2.0], [4.0]]), 0.0).ravel().tolist() == [0, 0, 2]
    assert usual.excess_z(np.array([[4.0]]), 3**0.5).item() == pytest.approx(1)
    assert usual.zscore(np.array([[0.0]])).item() == pytest.approx(-2)


def test_risk_is_in_tenths_of_nats_and_never_negative():
    scorer = make_scorer()
    scores = scorer.score(make_values(scorer, [(0, 2, 2, 2), (0, 9, 11, 8)]), UsageState())
    assert scores.risk[0] >= 0
    assert scores.risk[1] == pytest.approx(scores.own[1] + RISK_PER_NAT * scores.memory[1])


def test_days_of_several_users_are_numbered_apart():
    owners = np.array([0, 0, 1, 1])
    assert number_sessions(np.array([5, 5, 5, 6]), owners).tolist() == [0, 0, 1, 2]


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1e4)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_counts_do_not_depend_on_how_events_are_cut_into_batches(events, cut):
    marked, steps = (np.array(part) for part in zip(*events, strict=True))
    seconds, recent = np.cumsum(steps), RecentCounter()
    parts = [recent.count_before(marked[s], seconds[s]) for s in (slice(cut), slice(cut, None))]
    spans = np.array([3600, 86400])[:, None]
    counted = [
        ((seconds[:at] >= seconds[at] - spans) & marked[:at]).sum(1) for at in range(len(steps))
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), np.transpose(counted))


@pytest.mark.parametrize("cut", [0, 3, 7, 12])
def test_counts_stop_at_the_maximum_wherever_events_are_cut(cut, monkeypatch):
    monkeypatch.setattr(daily_usage, "MAX_COUNTED", 5)
    marked, seconds, counter = np.ones(12, dtype=np.bool_), np.arange(12.0), RecentCounter()
    parts = [counter.count_before(marked[s], seconds[s]) for s in (slice(cut), slice(cut, None))]
    assert np.concatenate(parts, axis=1).tolist() == [[*range(5), *[5] * 7]] * 2
    assert len(counter.seconds) == 5


def test_each_day_starts_without_memory_of_the_day_before():
    scorer = make_scorer()
    strange = tuple(size + 1 for size in SIZES)
    events = [(0, *strange), (0, 2, 2, 2), (1, 2, 2, 2)]
    scores = scorer.score(make_values(scorer, events), UsageState())
    assert scores.memory[1] > 0
    assert scores.memory[2] == 0


def test_days_that_speak_for_another_user_add_to_later_days_until_usual_days_take_it_away():
    rng = np.random.default_rng(1)
    codes = rng.choice([2, 3], (400, 1), p=[0.95, 0.05]).astype(np.int32)
    usage = Usage.fit(
        codes,
        np.repeat(np.arange(40), 10),
        sizes=[4],
        others=np.array([0.01, 0.01, 0.18, 0.8]),
        novelty_prior=np.zeros(1),
        leads=(0,),
    )
    usual = BaselineStats(np.zeros(1, np.float32), np.ones(1, np.float32))
    scorer, state = DailyScorer(usage, usual, np.empty(0)), UsageState()
    carryover = []
    for number in range(20):
        keys = np.full((5, 1), 3 if 5 <= number < 10 else 2)
        rows = keys, np.ones(keys.shape), np.zeros(keys.shape)
        values = EventValues(keys, *rows, np.arange(5), np.full(5, number))
        scorer.score(values, state)
        carryover.append(state.carryover)
    assert carryover[5] == 0
    assert carryover[10] > 4
    assert max(carryover) <= MEMORY_LIMIT
    assert carryover[19] == 0


def test_windows_of_few_rows_or_days_give_the_same(monkeypatch):
    scorer = make_scorer(maxima=(10.0,))
    rng = np.random.default_rng(4)
    events = [
        (int(rng.integers(0, 2)), *(int(rng.integers(2, size + 2)) for size in SIZES))
        for _ in range(40)
    ]
    values = make_values(scorer, events)
    whole = scorer.score(values, UsageState())
    for name, value in (("MAX_ROWS", 3), ("MAX_CELLS", 1)):
        monkeypatch.setattr(daily_usage, name, value)
        assert np.array_equal(scorer.score(values, UsageState()).risk, whole.risk)


def test_a_user_who_is_trained_again_starts_without_the_days_before():
    old, new = make_scorer(seed=1), make_scorer(seed=2)
    events = [(1, *(size + 1 for size in SIZES))] * 5
    state = UsageState()
    old.score(make_values(old, events), state)
    again = [(9, 2, 2, 2), (1, *(size + 1 for size in SIZES))]
    fresh = new.score(make_values(new, again), UsageState())
    assert np.array_equal(new.score(make_values(new, again), state).risk, fresh.risk)
