"""The protocol of the detection benchmark: its sets, its ranks and its choices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from labelled import days

SHARED = Path(__file__).parents[2] / "shared"
GENERATOR = SHARED / "tools/gen_cloudtrail.py"
needs_generator = pytest.mark.skipif(
    not GENERATOR.exists(), reason="the generator is not here (shared/tools)"
)


@pytest.fixture
def company(part):
    """A company of six users."""
    return part("quality.fleet").trial(1, users=6, days=16, training=12, attacked=0.5)


def board(part, *sets):
    """A board of sets; of each the kind, and a value of each scorer that all figures have."""
    ranks = part("quality.ranks")
    measured = [
        (f"set {n}", kind, {word: dict.fromkeys(ranks.FIGURES, x) for word, x in values.items()})
        for n, (kind, values) in enumerate(sets)
    ]
    return ranks.Board.of(measured)


def rows(table):
    return {row[0]: list(row[1:]) for row in table.rows}


def test_equal_figures_share_the_mean_of_their_ranks(part):
    found = board(
        part, ("k", {"a": 0.5, "b": 0.5, "c": 0.9}), ("k", {"a": 0.7, "b": 0.6, "c": 0.1})
    )
    ranks = {name: cells[0] for name, cells in rows(found.ranks()).items()}
    assert ranks == {"a": "1.75", "b": "2.25", "c": "2.00"}


def test_the_best_scorers_of_a_set_are_bold(part):
    found = board(part, ("k", {"a": 0.5, "b": 0.50001, "c": 0.1}))
    assert found.values("AP").rows == [("set 0", "**.500**", "**.500**", ".100")]


def test_kinds_of_data_weigh_the_same_in_the_last_column_of_ranks(part):
    mine = [("one", {"a": 0.9, "b": 0.1})] * 3
    found = board(part, *mine, ("two", {"a": 0.1, "b": 0.9}))
    assert rows(found.ranks())["a"][-2:] == ["1.25", "1.50"]


def test_a_scorer_without_a_figure_has_no_rank_in_it(part):
    found = board(part, ("k", {"a": np.nan, "b": 0.1}), ("k", {"a": 0.2, "b": 0.1}))
    assert rows(found.ranks()) == {"a": ["1.00"] * 6, "b": ["1.50"] * 6}
    assert found.values("AP").rows[0] == ("set 0", "-", "**.100**")


def test_the_spread_of_a_rank_is_over_seeds(part):
    ranks = part("quality.ranks")
    seeds = [{"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}]
    named = [{word: dict.fromkeys(ranks.FIGURES, x) for word, x in each.items()} for each in seeds]
    found = ranks.Board.of([("set", "k", named[0]), ("set", "k", named[1])])
    assert rows(found.ranks())["a"][0] == "1.50 ± 0.71"


def test_a_lead_is_over_the_best_rival_of_each_set(part):
    found = board(
        part,
        ("k", {"ours": 0.5, "x": 0.1, "y": 0.4}),
        ("k", {"ours": 0.5, "x": 0.9, "y": 0.4}),
    )
    [first, *_] = found.leads(["ours"], ["x", "y"]).rows
    assert first == ("ours", "event AP", "-.150", "-.400", "set 1", 1)


def test_a_setting_is_chosen_without_the_set_that_it_is_judged_on(part):
    sets = [("k", {"a": 0.6, "b": 0.5}), ("k", {"a": 0.6, "b": 0.5}), ("k", {"a": 0.2, "b": 0.9})]
    [first, *_] = board(part, *sets).choices({"setting": ["a", "b"]}).rows
    # Of the first two sets, b is the best of the others; of the last, a is.
    assert first[2] == f"{np.mean([0.5, 0.5, 0.2]):.3f}".removeprefix("0")
    assert first[-1] == "a: 1, b: 2"


def test_a_setting_is_chosen_without_the_kind_of_data_that_it_is_judged_on(part):
    sets = [("one", {"a": 0.6, "b": 0.5})] * 2 + [("two", {"a": 0.2, "b": 0.3})] * 3
    [first, *_] = board(part, *sets).choices({"setting": ["a", "b"]}).rows
    expected = np.mean([0.5, 0.5, 0.2, 0.2, 0.2])  # each kind gets the best of the other
    assert first[3] == f"{expected:.3f}".removeprefix("0")


def test_false_alarms_that_grow_are_seen_in_the_last_third(part):
    alarms, trial = part("quality.false_alarms"), days(part, users=20, weeks=30)
    verdict = part("quality.judge").Verdict(trial, tuple(trial.spans))
    random = np.random.default_rng(1).random(trial.scored.height)
    rising = random + np.tile(np.arange(210) >= 140, 20) * 0.5
    steady = alarms.compute_rates(verdict, random)
    assert steady.first == pytest.approx(0.01, abs=0.001)
    assert steady.last == pytest.approx(0.01, abs=0.01)
    assert alarms.compute_rates(verdict, rising).last == pytest.approx(0.5, abs=0.05)


def test_a_benign_day_with_a_low_pvalue_counts_once(part):
    trial = days(part, hours=(3, 9), incidents={"u0-0": 0})
    verdict = part("quality.judge").Verdict(trial, ("u0", "u1"))
    low = trial.scored["eventID"].is_in(["u0-0", "u0-2", "u0-3", "u1-4"])
    pvalues = np.where(low.to_numpy(), 0.01, 0.5)
    pvalues[trial.scored["eventID"].to_list().index("u1-27")] = np.nan
    assert part("quality.false_alarms").share_low_days(verdict, pvalues) == pytest.approx(2 / 27)


def test_users_with_few_events_learn_from_all(part):
    trial = days(part, users=3, weeks=10)
    few = trial.history.filter((pl.col("user") != "u1") | (pl.int_range(pl.len()) % 7 == 0))
    cut = replace(trial, history=few)
    heights = [case.history.height for case in cut.taught]
    assert heights == [70, 150, 70]
    assert [case.history.height for case in cut.cases] == [70, 10, 70]


def test_a_third_of_the_users_are_newcomers(part):
    changes, trial = part("quality.changes"), days(part, users=12, weeks=20)
    cut = changes.cut_histories(trial, 1)
    heights = {case.user: case.history.height for case in cut.cases}
    new = changes.list_newcomers(trial)
    assert len(new) == 4
    assert sorted(heights[user] for user in new)[:2] == [0, 0]
    assert all(10 <= heights[user] <= 100 for user in new if heights[user])
    assert {heights[user] for user in trial.spans if user not in new} == {140}
    known = changes.cut_histories(trial, 1, unknown=False)
    assert all(case.history.height >= 10 for case in known.cases)
    last = [case for case in cut.cases if 0 < case.history.height < 140]
    assert all(case.history["eventTime"][-1] == trial.history["eventTime"][-1] for case in last)


def test_users_who_are_alone_have_only_their_own_events(part, company):
    changes = part("quality.changes")
    trials = list(changes.iter_single_users(company, 2))
    assert [len(trial.spans) for trial in trials] == [1, 1]
    for trial in trials:
        assert set(trial.history[trial.user]) == set(trial.spans)
        assert (trial.incident >= 0).any()


def cloudtrail(part, users=6):
    """Users with an agent, an address and an action of their own."""
    trial = days(part, users=users, weeks=8, incidents={"u0-50": 0, "u1-51": 1})
    own = [pl.col("user").alias(name) for name in ("sourceIPAddress", "userAgent", "eventName")]
    none = [pl.lit(None, dtype=pl.String).alias(name) for name in ("errorCode", "errorMessage")]
    role = pl.lit(None, dtype=pl.String).alias("requestParametersroleArn")
    logs = trial.scored.with_columns(*own, *none, role)
    columns = tuple(name for name in logs.columns if name not in trial.scored.columns)
    return replace(trial, columns=columns, history=logs, scored=logs)


def test_drift_is_a_lasting_change_of_two_thirds_of_the_users(part):
    trial = cloudtrail(part)
    after = part("quality.changes").add_drift(trial, 1)
    assert after.history.equals(trial.history)
    kept = ["user", "eventID", "eventTime", "action"]
    assert after.scored.select(kept).equals(trial.scored.select(kept))
    names = ("sourceIPAddress", "userAgent", "eventName")
    found = [
        {name for name in names if (old[name] != new[name]).any()}
        for old, new in zip(
            (case.scored for case in trial.cases),
            (case.scored for case in after.cases),
            strict=True,
        )
    ]
    assert all(len(each) == 1 and "eventName" not in each for each in found[0::3])
    assert found[1::3] == [{"eventName"}] * 2
    assert found[2::3] == [set()] * 2


def test_drift_starts_once_and_leaves_incidents_alone(part):
    trial = cloudtrail(part)
    after = part("quality.changes").add_drift(trial, 1)
    for old, new in zip(trial.cases[:2], after.cases[:2], strict=True):
        names = ["sourceIPAddress", "userAgent", "eventName"]
        changed = (old.scored.select(names) != new.scored.select(names)).sum_horizontal() > 0
        assert not changed[: int(0.2 * len(changed))].any()
        assert not changed.filter(pl.Series(new.marked)).any()
    moved = (trial.cases[0].scored != after.cases[0].scored).sum_horizontal() > 0
    benign = moved.filter(pl.Series(~trial.cases[0].marked))
    assert benign.equals(benign.sort())  # from one event on, all are changed


@needs_generator
def test_a_generated_incident_is_a_run_of_events_of_one_kind(part):
    generated = part("quality.generated")
    plan = generated.Plan(1, users=4, history=300, scored=400)
    trial = generated.trial(plan, GENERATOR)
    assert set(trial.kinds.values()) <= {"newaction", "newip", "errors", "burst"}
    assert set(trial.incidents.values()) == set(trial.kinds)
    for case in trial.cases:
        assert case.history.height == 300
        assert case.history["eventTime"].max() < case.scored["eventTime"].min()
        assert part("quality.trial").times(case.scored).is_sorted()
        for number in np.unique(case.incident[case.marked]):
            places = np.flatnonzero(case.incident == number)
            assert np.ptp(places) == len(places) - 1


@needs_generator
def test_identifiers_are_dropped_from_the_columns_only(part):
    generated = part("quality.generated")
    plan = generated.Plan(1, users=2, history=300, scored=300, anomalies=0.0)
    with_ids = generated.trial(plan, GENERATOR)
    without = generated.trial(replace(plan, identifiers=False), GENERATOR)
    assert set(with_ids.columns) - set(without.columns) == generated.SESSION_COLUMNS
    assert without.scored.equals(with_ids.scored)
    assert not with_ids.incidents


def test_sets_without_data_are_left_out_with_a_message(part, tmp_path, capsys):
    kinds = ["commits", "generated"]
    protocol = part("quality.protocol").Protocol(tmp_path / "data", [], kinds=kinds)
    assert list(protocol.measure(1)) == []
    assert list(protocol.skipped) == kinds
    assert "no generator" in capsys.readouterr().err


def test_every_scorer_has_every_figure_of_a_set(part, company, tmp_path):
    protocol, sets = part("quality.protocol"), part("quality.sets")
    source = sets.Source("commits", lambda *_: {"one": [sets.Part.of(company)]}, drifts=True)
    rivals = ["frequencies-sum", "bayes-session"]
    [found] = protocol.Protocol(tmp_path, rivals).measure(1, [source])
    ours = [f"`{label}`" for label in part("quality.scorers").labels()]
    assert list(found.figures) == list(found.alarms) == ours + rivals
    assert all(set(part("quality.ranks").FIGURES) <= set(each) for each in found.figures.values())
    assert 0 <= found.low_days <= 1


def test_an_alert_budget_is_judged_on_benign_days_only(part, company):
    alerts = part("quality.alerts")
    benign = alerts.drop_incidents(company)
    assert 0 < benign.scored.height < company.scored.height
    assert not benign.scored["eventID"].is_in(list(company.incidents)).any()
    first = {
        case.user: case.scored["eventTime"].filter(case.marked).min() for case in company.cases
    }
    for case in benign.cases:
        assert first[case.user] is None or case.scored["eventTime"].max() < first[case.user]


def test_a_users_weeks_are_those_between_the_own_events(part):
    trial = days(part, users=2, weeks=4)
    apart = trial.scored.filter((pl.col("user") == "u0") | (pl.int_range(pl.len()) % 28 >= 21))
    assert part("quality.alerts").user_weeks(trial) == 8
    assert part("quality.alerts").user_weeks(replace(trial, scored=apart)) == 5


def test_a_budget_is_a_number_of_alerts_per_user_and_week(part, company):
    alerts = part("quality.alerts")
    found = list(alerts.spend(company, 1, "companies"))
    assert [one.budget for one in found] == ["one", "a quarter"]
    assert found[0].wanted == pytest.approx(4 * found[1].wanted)
    assert found[0].raised >= found[1].raised
    text = alerts.summary(found).markdown() + alerts.table(found).markdown()
    assert "companies" in text


def test_our_score_of_incidents_is_a_score_of_days(part):
    incidents = {f"u{user}-{2 * n}": 7 * user + n for user in (0, 1) for n in range(4)}
    trial = days(part, hours=(3, 9), incidents=incidents)
    high = [f"u{user}-{n}" for user in (0, 1) for n in range(8)]  # and the events beside incidents
    scores = trial.scored["eventID"].is_in(high).cast(float).to_numpy()
    verdict = part("quality.judge").Verdict(trial, ("u0", "u1"))
    found = part("quality.scorers").judge(
        verdict, dict.fromkeys(["`incident_score`", "`risk`"], scores)
    )
    assert {name: each["caught"] for name, each in found.items()} == {
        "`incident_score`": 1,
        "`risk`": 0,
    }


def test_naive_bayes_scores_a_day_by_the_mean_of_its_events(part):
    bayes, trial = part("quality.bayes"), days(part, hours=(3, 9))
    actions = pl.Series(["read", "write"] * 14 + ["write"] * 28)
    logs = trial.scored.with_columns(action=actions)
    trial = replace(trial, history=logs, scored=logs)
    of_days = bayes.days(trial)
    assert np.ptp(of_days[:28]) == 0
    assert of_days[0] == pytest.approx(bayes.events(trial)[:2].mean())
    scores = {"bayes": of_days, "bayes-session": of_days}
    assert set(part("quality.scorers").of_days(trial, scores)) == {"bayes-session"}


def test_more_techniques_than_days_are_rejected(part):
    pytest.importorskip("morpheus.replay")
    with pytest.raises(ValueError, match="2 techniques do not fit into 1 days"):
        part("quality.console").pair_with_days([1, 2], [1])


@pytest.mark.skipif(
    not (SHARED / "data/cloudtrail-console").exists(),
    reason="the sessions are not here (shared/data)",
)
def test_techniques_on_every_second_day_leave_benign_days(part):
    pytest.importorskip("morpheus.replay")
    scenes = part("quality.console").scenes(SHARED / "data", 1, few=True, every=2)
    for [trial] in scenes.values():
        all_days = trial.scored["eventTime"].str.slice(0, 10)
        attacked = all_days.filter(pl.Series(trial.incident >= 0)).unique().sort()
        places = all_days.unique().sort().index_of
        assert len(attacked) == len(trial.kinds) == 3
        assert (np.diff([places(day) for day in attacked]) >= 2).all()
