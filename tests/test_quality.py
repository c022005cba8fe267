"""The arithmetic of the detection benchmark."""

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from labelled import days

SHARED = Path(__file__).parents[2] / "shared/data"
COMMITS = SHARED / "commits/commits.jsonl.gz"
CONSOLE = SHARED / "cloudtrail-console"


@pytest.fixture
def ranking(part):
    return part("figures.ranking")


def drawn(seed, levels):
    random = np.random.default_rng(seed)
    return random.integers(0, levels, 60).astype(float), random.random(60) < 0.3


@pytest.mark.parametrize(
    "name",
    ["figures.ranking", "figures.table"]
    + [f"quality.{name}" for name in ("trial", "comparison", "generated")],
)
def test_doctests_of_the_benchmark_pass(part, name):
    tried = doctest.testmod(part(name))
    assert tried.attempted > 0
    assert tried.failed == 0


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(ranking, levels):
    scores, marked = drawn(levels, levels)
    pairs = scores[marked][:, None] - scores[~marked][None, :]
    assert ranking.area(scores, marked) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


@pytest.mark.parametrize("measure", ["area", "average_precision"])
def test_a_figure_depends_only_on_the_order(ranking, measure):
    scores, marked = drawn(1, 7)
    figure = getattr(ranking, measure)
    turned = np.random.default_rng(2).permutation(60)
    assert figure(np.exp(scores)[turned], marked[turned]) == pytest.approx(figure(scores, marked))


def test_recall_grows_with_the_number_of_alarms(ranking):
    scores, marked = drawn(3, 1000)
    found = [ranking.recall(scores, marked, alarms) for alarms in (0, 0.01, 0.1, 0.5, 1)]
    assert found == sorted(found)
    assert found[0] == (scores[marked] > scores[~marked].max()).mean()
    assert found[-1] == 1


def test_a_constant_score_has_the_recall_of_its_share_of_alarms(ranking):
    _, marked = drawn(4, 2)
    assert ranking.area(np.zeros(60), marked) == 0.5
    assert ranking.recall(np.zeros(60), marked, 0.01) == pytest.approx(0.01)


def test_an_area_needs_events_of_both_classes(ranking):
    assert np.isnan(ranking.area(np.arange(3.0), np.ones(3, dtype=bool)))


def judged(part, trial, top, users=("u0", "u1")):
    scores = np.zeros(trial.scored.height)
    for place, name in enumerate(reversed(top)):
        scores[trial.scored["eventID"].to_list().index(name)] = place + 1
    return part("quality.judge").Verdict(trial, users).figures(scores)


def test_the_budget_is_one_alert_per_user_and_week(part):
    verdict = part("quality.judge").Verdict
    trial = days(part, users=2, weeks=2)
    assert verdict(trial, ("u0", "u1")).budget == 4
    assert verdict(trial, ("u0",)).budget == 2


def test_an_incident_is_caught_only_if_it_ranks_within_the_budget(part):
    trial = days(part)
    first = ["u1-0", "u1-1", "u1-2"]
    assert judged(part, trial, [*first, "u0-3"])["caught"] == 1
    assert judged(part, trial, [*first, "u1-4", "u0-3"])["caught"] == 0


def test_an_equal_score_does_not_catch(part):
    assert judged(part, days(part), [])["caught"] == 0


def test_alerts_of_one_day_count_once(part):
    trial = days(part, hours=(3, 9), incidents={"u0-6": 0})
    above = [f"u1-{n}" for n in range(6)]  # two events on each of three days
    assert judged(part, trial, [*above, "u0-6"])["caught"] == 1
    assert judged(part, trial, [*above, "u1-6", "u0-6"])["caught"] == 0


def test_a_day_ranks_by_its_highest_event(part):
    trial = days(part, hours=(3, 9), incidents={"u0-6": 0})
    assert judged(part, trial, ["u0-7"])["AP of days"] == 1
    assert judged(part, trial, ["u0-7"])["AP of all"] < 0.1
    assert judged(part, trial, ["u1-2", "u1-3", "u0-7"])["AP of days"] == 0.5


def judged_by_days(part, trial, high):
    own = trial.scored["eventID"].is_in(high).cast(float).to_numpy()
    verdict = part("quality.judge").Verdict(trial, ("u0", "u1"))
    return verdict.figures(np.zeros(trial.scored.height), own)


def test_a_score_of_days_replaces_the_highest_event(part):
    trial = days(part, hours=(3, 9), incidents={"u0-6": 0})
    figures = judged_by_days(part, trial, ["u0-6", "u0-7"])
    assert (figures["AP of days"], figures["caught"]) == (1, 1)
    assert figures["AUC"] == 0.5


def test_a_score_of_days_is_compared_with_days_without_incidents(part):
    incidents = {f"u{user}-{2 * n}": 7 * user + n for user in (0, 1) for n in range(4)}
    trial = days(part, hours=(3, 9), incidents=incidents)
    whole = [f"u{user}-{n}" for user in (0, 1) for n in range(8)]
    assert judged_by_days(part, trial, whole)["caught"] == 1


def test_days_are_not_ranked_without_a_benign_one(part):
    trial = days(part, hours=(3, 9), incidents={f"u0-{n}": 0 for n in range(0, 28, 2)})
    verdict = part("quality.judge").Verdict(trial, ("u0",))
    scores = np.arange(trial.scored.height, dtype=float)
    figures = verdict.figures(scores, scores)
    assert np.isnan(figures["AP of days"])
    assert np.isnan(figures["caught"])


def test_incidents_do_not_share_alerts(part):
    others = {f"u1-{n}": 1 for n in range(6)}
    trial = days(part, incidents={"u0-3": 0, **others})
    assert judged(part, trial, [*others, "u0-3"])["caught"] == 1


def test_an_alert_after_a_week_does_not_count(part):
    trial = days(part, incidents={"u0-1": 0, "u0-9": 0})
    assert judged(part, trial, ["u0-9"])["caught"] == 0
    assert judged(part, trial, ["u0-1"])["caught"] == 1


def test_with_equal_scores_an_incident_has_its_share_of_the_alert(part):
    assert judged(part, days(part), [])["caught by user"] == pytest.approx(1 / 7)


def test_an_event_without_a_score_ranks_last(part):
    trial = days(part)
    scores = np.arange(trial.scored.height, dtype=float)
    scores[3] = np.nan
    assert part("quality.judge").Verdict(trial, ("u0", "u1")).figures(scores)["AUC"] == 0


def test_a_group_without_an_incident_is_rejected(part):
    with pytest.raises(ValueError, match="none of 1 users has an incident"):
        judged(part, days(part), [], users=("u1",))


def test_each_group_is_evaluated_with_its_own_users(part):
    trial = days(part, incidents={"u0-3": 0, "u1-3": 1})
    assert judged(part, trial, ["u0-3"], users=("u0",))["AUC"] == 1
    assert judged(part, trial, ["u0-3"], users=("u1",))["AUC"] == 0.5


def test_ours_is_compared_with_the_best_rival_seed_by_seed(part):
    comparison = part("quality.comparison").Comparison("t", ("AP",), ours=1)
    comparison.found = {
        "`risk`": [{"AP": 0.6}, {"AP": 0.8}],
        "worse": [{"AP": 0.1}, {"AP": 0.9}],
        "better": [{"AP": 0.5}, {"AP": 0.7}],
    }
    assert comparison.table().rows[-1] == ("ahead of the best rival", "+.100")


def test_halves_are_disjoint_and_cover_all_users(part):
    trial = days(part, users=9)
    halves = part("quality.parts").halves(trial)
    assert sorted(user for users in halves.values() for user in users) == sorted(trial.spans)


@pytest.mark.skipif(not COMMITS.exists(), reason="the commits are not here (shared/data/commits)")
def test_a_swap_starts_after_the_users_own_events_at_the_same_hour_and_weekday(part):
    trial = part("quality.commits").trial(COMMITS)
    frame = part("quality.commits").read(COMMITS)
    [taken] = set(trial.kinds.values())
    assert (taken, len(trial.cases), len(trial.kinds)) == ("swap", 45, 44)
    real = set(frame["eventTime"].dt.strftime("%a %H:%M:%S"))
    for case in trial.cases:
        when = part("quality.trial").times(case.scored)
        assert when.is_sorted()
        assert (np.diff(case.marked.astype(int)) >= 0).all()
        assert set(when.dt.strftime("%a %H:%M:%S")) <= real
        assert case.history["eventTime"].max() <= case.scored["eventTime"].min()


def test_the_benchmark_scores_a_small_company_by_pipeline_and_by_counts(part):
    scorers = part("quality.scorers")
    trial = part("quality.fleet").trial(1, users=4, days=16, training=12, attacked=0.5)
    ours, theirs = (
        scorers.ours(trial, 1, 1),
        scorers.shown(scorers.theirs(trial, 1, ["frequencies-z"])),
    )
    comparison = part("quality.comparison").Comparison("t", ours=len(ours))
    comparison.add([(part("quality.judge").Verdict(trial, tuple(trial.spans)), ours | theirs)])
    assert all(len(each) == trial.scored.height for each in (ours | theirs).values())
    assert "column frequencies, largest held-out z" in comparison.table().markdown()


def test_scores_of_all_events_are_assigned_to_the_events_of_each_part(part):
    module, trial = part("quality.trial"), days(part)
    parts = [trial.only(["u1"]), trial.only(["u0"])]
    whole = module.merge_trials(parts)
    scores = np.arange(whole.scored.height, dtype=float)
    for each in parts:
        found = module.of_part(whole, scores, each).astype(int).tolist()
        assert whole.scored["eventID"][found].equals(each.scored["eventID"])


def test_scores_of_a_rival_are_cached_by_their_inputs(part):
    rivals, trial = part("quality.rivals"), days(part)
    other = trial.cases[0].history.with_columns(action=pl.lit("write"))
    places = {
        rivals.place(case, ("action",), rival, seed)
        for case in (trial.cases[0], replace(trial.cases[0], history=other))
        for rival in ("forest", "dfencoder")
        for seed in (1, 2)
    }
    assert len(places) == 8


def test_a_package_from_another_checkout_is_rejected(part, tmp_path):
    main = part("quality.__main__")
    assert main.foreign(main.ROOT / "src" / "morpheus") is None
    assert "not of this checkout" in main.foreign(tmp_path / "src" / "morpheus")


@pytest.mark.skipif(not CONSOLE.exists(), reason="the sessions are not here (shared/data)")
def test_techniques_are_days_apart_and_do_not_change_the_users_events(part):
    pytest.importorskip("morpheus.replay")
    scenes = part("quality.console").scenes(CONSOLE.parent, 1, few=True)
    assert list(scenes) == ["recorded", "agent", "hours"]
    own = None
    for [trial] in scenes.values():
        days = trial.scored["eventTime"].str.slice(0, 10)
        starts = [days.filter(pl.Series(trial.incident == n))[0] for n in trial.kinds]
        kept = trial.scored.filter(pl.Series(trial.incident < 0))
        assert len(set(starts)) == len(trial.kinds) == 7
        assert trial.history["eventTime"].max() < trial.scored["eventTime"].min()
        assert own is None or own.equals(kept)
        own = kept


@pytest.fixture
def explained(part):
    """A user whose second and third events come from elsewhere, and how they were explained."""
    history = pl.DataFrame(
        {"user": ["ann"] * 100, "address": ["home"] * 100, "agent": ["cli", "web"] * 50}
    )
    scored = pl.DataFrame(
        {
            "user": ["ann"] * 4,
            "eventID": ["1", "2", "3", "4"],
            "address": ["home", "away", "away", "home"],
            "agent": ["cli", "web", "kali", "web"],
        }
    )
    incidents, columns = {"2": 0, "3": 0}, ("address", "agent")
    trial = part("quality.trial").Trial(
        "one", "user", columns, history, scored, incidents, {0: "theft"}
    )
    output = scored.with_columns(
        risk=pl.Series([0.0, 5.0, 9.0, 1.0]),
        top_columns=pl.Series([None, "address", "agent, address, more", None]),
    )
    return part("quality.reasons").Explained(trial, output)


def test_an_incident_changes_columns_to_values_rare_for_the_user(explained):
    assert explained.changes(0) == {"address": 1.0, "agent": 0.5}


def test_the_reasons_for_an_incident_are_the_first_of_its_highest_event(explained):
    assert explained.reasons(0) == ["agent", "address"]
    assert explained.named(0) == (True, True, True, 1.0)


def test_reasons_that_miss_the_most_changed_column_do_not_count(explained):
    output = explained.output.with_columns(top_columns=pl.lit("agent, more, address"))
    assert replace(explained, output=output).named(0)[:3] == (False, False, True)


def test_a_reason_begins_well_with_its_own_action_or_with_source_or_agent(part):
    begins = part("quality.reasons").begins_well
    row = {"eventName": "GetUser"}
    assert begins(row | {"reason": "`GetUser` after unusual `ListUsers`."})
    assert begins(row | {"reason": "`Get…ser`, new in 9 days."})
    assert begins(row | {"reason": "Address `203.0.113.7`, new in 9 days."})
    assert not begins(row | {"reason": "Access key `ASIA`, new in 9 days."})
    assert not begins(row | {"reason": "`ListUsers` with agent `kali`."})


def with_actions(trial, *actions):
    """Give the users of a trial actions, each user some that repeat."""
    parts = zip(trial.history.partition_by("user", maintain_order=True), actions, strict=True)
    logs = pl.concat(
        part.with_columns(pl.Series("action", (each * part.height)[: part.height]))
        for part, each in parts
    )
    return replace(trial, history=logs, scored=logs)


def test_naive_bayes_compares_a_users_share_of_a_value_with_the_others_share(part):
    bayes = part("quality.bayes")
    trial = with_actions(days(part), ["read"], ["write"])
    foreign = trial.scored.with_columns(action=pl.lit("write"))[:1]
    # Two values and all unseen ones have half an event each, beside 14 events of each user.
    expected = np.log(14.5 / 15.5) - np.log(0.5 / 15.5)
    assert bayes.events(replace(trial, scored=foreign)) == pytest.approx([expected])
    assert bayes.events(trial) == pytest.approx([-expected] * 28)
    with_user = replace(trial, columns=("action", "user"))
    assert bayes.events(with_user) == pytest.approx([-2 * expected] * 28)


def test_the_mean_of_a_session_uses_its_earlier_events_only(part):
    bayes = part("quality.bayes")
    trial = with_actions(days(part), ["read"], ["write"])
    early = trial.scored[:2].with_columns(action=pl.Series(["read", "write"]))
    apart = replace(trial, scored=early)
    one_session = replace(trial, scored=early.with_columns(pl.col("eventTime").first()))
    usual, foreign = bayes.events(apart)
    assert bayes.sessions(apart) == pytest.approx([usual, foreign])
    assert bayes.sessions(one_session) == pytest.approx([usual, (usual + foreign) / 2])


def test_a_pair_of_actions_counts_even_if_both_actions_are_usual(part):
    bayes = part("quality.bayes")
    trial = with_actions(days(part), ["read", "write"], ["read", "read", "write", "write"])
    twice = trial.scored[:3].with_columns(action=pl.Series(["read", "read", "write"]))
    first, *pairs = bayes.bigrams(replace(trial, scored=twice))
    assert pairs[0] > 1  # only the other user reads twice
    assert abs(first) < pairs[0]
    assert pairs[1] < 0


def test_a_flagged_day_is_benign_if_none_of_its_events_is_of_an_incident(part):
    bursts = part("quality.bursts")
    trial = days(part, incidents={"u0-3": 0, "u0-5": 1, "u1-7": 2}, hours=(0, 12))
    trial = replace(trial, kinds={0: "burst", 1: "burst", 2: "newip"})
    names = trial.scored["eventID"]
    # u0-2 is on the day of u0-3; u0-8 and u0-9 are one day.
    flags = names.is_in(["u0-2", "u0-3", "u0-8", "u0-9", "u1-7", "u1-20"]).to_numpy()
    found = bursts.Found()
    found.add(trial, flags)
    assert (found.bursts, found.found, found.benign_days, found.weeks) == (2, 1, 2, 4)
    assert (found.benign, found.flagged) == (2 * 28 - 3, 4)
