"""Laws of explanations, on real fingerprints and through the stage."""

import json
import math
from decimal import Decimal
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from morpheus.columns import RISK, ExplanationColumns
from morpheus.core.batch import Losses, Scored
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.fit import TrainingDataBackoff, UserHistory, fit_fingerprint, fit_fingerprints
from morpheus.models.population import Population
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.testing import make_events, make_scored, run_stage
from people import COLUMNS, day, fingerprint, times

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
HOSTILE = st.text(max_size=100) | st.sampled_from(
    ["\x1b[2J", "a\nb\tc", "exe.\u202etxt", "`, p=.99`", "{}%s\\", "=1+1", "\u200b", "é" * 300]
)


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


def chain(known, rows, *, seconds=None, added=(RISK,), **options):
    frame = make_events(
        range(len(rows)) if seconds is None else seconds,
        **{name: [row.get(name) for row in rows] for name in rows[0]},
    )
    return explained(known, [frame], added=added, **options)


def explained(known, frames, *, added=(RISK,), **options):
    """The frames that the stage gives, behind `add-scores`."""
    batches = [losses(known, frame) for frame in frames]
    stage = Explain(**options)
    stage.validate()
    return pl.concat(
        [one.frame for one in run_stage(stage, run_stage(AddScores(label=added), batches))]
    )


def losses(known, frame):
    """A batch of Ann's events with the losses of their columns."""
    rows = known.encoder.encode(frame)
    about = {"user": "ann", "fingerprint": known, "card": known.card, "encoded": rows}
    return Losses(frame=frame, losses=known.losses(rows)[rows.inverse], **about)


def only(frame, place=-1):
    return json.loads(frame["explanation"][place], parse_float=Decimal)


@given(seed=st.integers(0, 99), most=st.integers(1, 6), every=st.booleans())
@settings(max_examples=15, deadline=None)
def test_columns_add_up_to_the_surprise_and_what_came_before_to_the_risk_in_decimals(
    ann, seed, most, every
):
    rows = day(30, seed=seed).with_columns(agent=pl.lit("kali")).to_dicts()
    seconds = np.sort(np.random.default_rng(seed).uniform(0, 1e6, 30)).tolist()
    out = chain(ann, rows, seconds=seconds, top=most, all_columns=every)
    for place in range(out.height):
        why = only(out, place)
        strangeness = [Decimal(fact["strangeness"]) for fact in why["columns"]]
        assert sum(strangeness) + Decimal(why["others"]) == Decimal(why["surprise"])
        loudest = [Decimal(fact["loudest"]) for fact in why["columns"]]
        assert loudest == sorted(loudest, reverse=True)
        assert len(strangeness) == len(COLUMNS) if every else len(strangeness) <= most
        past = {name: Decimal(value) for name, value in why["preceding"].items()}
        assert past["own"] + past["hour"] + past["month"] == past["risk"]
        assert float(past["risk"]) == out[RISK][place]
        risks = [Decimal(fact["risk"]) for fact in why["columns"]]
        assert sum(risks) + Decimal(why["others_risk"]) == past["risk"]


@given(column=st.sampled_from(COLUMNS))
@settings(max_examples=4, deadline=None)
def test_a_column_with_a_value_never_seen_is_the_first_reason(ann, column):
    out = chain(ann, [USUAL | {column: "never"}])
    assert out["top_columns"][0].split(", ")[0] == column
    [first, *_] = only(out)["columns"]
    assert (first["column"], first["value"], first["new"]) == (column, "never", True)
    assert out["reason"][0].startswith(f"{column}: saw `never`, p")


def test_a_usual_value_in_unusual_company_names_what_was_expected_in_its_place(ann):
    out = chain(ann, [USUAL | {"agent": "cli"}])
    [first, *_] = (fact for fact in only(out)["columns"] if fact["column"] == "agent")
    assert not first["new"]
    assert first["expected"][0]["value"] == "web"
    assert first["probability"] < Decimal("0.1") < first["expected"][0]["probability"]
    assert "agent: saw `cli`" in out["reason"][0]
    assert "expected `web` p" in out["reason"][0]


def test_bits_are_the_logarithm_of_the_probability(ann):
    out = chain(ann, [USUAL, USUAL | {"agent": "cli"}, USUAL | {"kind": None}], all_columns=True)
    for fact in (fact for place in range(3) for fact in only(out, place)["columns"]):
        bits = -math.log2(fact["probability"])
        assert float(fact["bits"]) == pytest.approx(bits, abs=0.01)


def test_what_is_likelier_is_likelier_than_what_was_seen(ann):
    out = chain(ann, day(60, seed=5).to_dicts(), all_columns=True)
    for fact in (fact for place in range(60) for fact in only(out, place)["columns"]):
        chances = [other["probability"] for other in fact["expected"]]
        assert chances == sorted(chances, reverse=True)
        assert all(chance >= fact["probability"] for chance in chances)


def test_no_value_is_a_value(ann):
    out = chain(ann, [USUAL | {"kind": None}])
    assert "kind: saw no value, p" in out["reason"][0]
    assert "expected `user` p>.99" in out["reason"][0]


def test_a_new_value_where_all_are_new_is_said_to_be_expected():
    frame = day().with_columns(kind=pl.Series([f"request-{n}" for n in range(400)]))
    known = fingerprint(frame)
    out = chain(known, [USUAL | {"kind": "request-400"}], all_columns=True)
    [kind] = (fact for fact in only(out)["columns"] if fact["column"] == "kind")
    [expected] = kind["expected"]
    assert kind["new"]
    assert (expected["value"], expected["new"]) == (None, True)
    assert float(expected["probability"]) == pytest.approx(known.oov_rates[3], abs=0.01)


def numbers(events=300):
    dice = np.random.default_rng(1)
    sizes = dice.normal(500, 10, events).round(1)
    return pl.DataFrame({"action": ["get"] * events, "size": sizes})


def test_a_number_is_told_in_its_own_units():
    known = fit_fingerprint("ann", numbers(), ["action", "size"], times=times(300))
    out = chain(known, [{"action": "get", "size": 900.0}])
    [first, *_] = only(out)["columns"]
    assert (first["column"], first["value"], first["probability"]) == ("size", "900.0", None)
    assert float(first["expected"][0]["value"]) == pytest.approx(500, abs=10)
    assert float(first["distance"]) == pytest.approx(40, abs=5)
    assert "size: saw `900.0`, expected about" in out["reason"][0]
    assert "standard deviations off" in out["reason"][0]


def test_the_sentence_says_when_the_risk_comes_from_what_came_before(ann):
    out = chain(ann, [*[USUAL | {"agent": "kali"}] * 14, USUAL])
    assert out["reason"][-1].startswith("mostly what came before: 14 strange events in the ")
    assert "before" not in out["reason"][0]


def test_a_column_strange_in_the_events_before_is_named_first_although_it_is_usual_now(ann):
    out = chain(ann, [*[USUAL | {"address": "kali"}] * 14, USUAL | {"agent": "never"}])
    assert only(out)["columns"][0]["column"] == "address"
    assert "address: saw `office`" in out["reason"][-1]
    assert "strange in 14 events of the " in out["reason"][-1]
    assert out["top_columns"][-1].startswith("address")


def test_columns_that_always_said_the_same_are_one_reason():
    frame = day(400).with_columns(host=pl.col("action") + "-host")
    known = fit_fingerprint("ann", frame, [*COLUMNS, "host"], times=times(400))
    usual = USUAL | {"host": "get-host"}
    out = chain(known, [usual | {"action": "new", "host": "new", "agent": "kali"}])
    [twin] = (fact for fact in only(out)["columns"] if fact["column"] in {"action", "host"})
    assert twin["twins"] == ["host" if twin["column"] == "action" else "action"]
    assert f"{twin['column']} (with it {twin['twins'][0]}): saw `new`" in out["reason"][0]
    assert twin["twins"][0] not in out["top_columns"][0].split(", ")


def test_the_sentence_says_that_a_user_is_compared_with_peers():
    others = pl.concat([day(200, seed=1), day(200, seed=2)])
    owner = pl.Series(["bob"] * 200 + ["eve"] * 200)
    everybody = Population(owner, pl.concat([times(200), times(200)]), others)
    history = TrainingDataBackoff(everybody, 300).resolve(UserHistory("ann", day(40), times(40)))
    [known] = fit_fingerprints([history], COLUMNS, population=everybody)
    out = chain(known, [USUAL | {"agent": "kali"}])
    assert out["reason"][0].endswith("compared with peers: 40 of 300 events are their own")
    assert only(out)["background"] == {
        "rung": "peers",
        "own_events": 40,
        "events": 300,
        "days": 1,
    }


def test_the_sentence_says_how_long_the_history_is(ann):
    assert ann.card.training_data_scope == "own"
    assert "new in 1 day" in chain(ann, [USUAL | {"agent": "kali"}])["reason"][0]


@given(st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=10, deadline=None)
def test_an_explanation_does_not_depend_on_how_events_are_cut_into_batches(ann, cuts):
    frame = make_events(range(0, 40 * 1800, 1800), **day(40, seed=8).to_dict(as_series=False))
    frame = frame.with_columns(agent=pl.Series(["kali", "web", "web", "cli"] * 10))
    places = [0, *sorted(cuts), 40]
    parts = [frame[a:b] for a, b in pairwise(places)]
    whole = explained(ann, [frame])
    assert (
        explained(ann, parts)
        .select(ExplanationColumns())
        .equals(whole.select(ExplanationColumns()))
    )


def test_only_events_whose_label_reaches_the_threshold_are_explained_and_as_if_all_were(ann):
    rows = [USUAL, USUAL | {"agent": "kali"}, USUAL]
    whole = chain(ann, rows)
    limit = whole[RISK][1]
    some = chain(ann, rows, threshold=limit)
    expected = [text if risk >= limit else None for text, risk in whole["reason", RISK].iter_rows()]
    assert some["reason"].to_list() == expected
    assert some["reason"][0] is None
    assert some["reason"][1] is not None


def test_a_threshold_on_what_is_no_score_is_refused_with_those_there_are(ann):
    with pytest.raises(UsageError, match=r"needs numbers in `risk`.*added `zscore`.*--label risk"):
        chain(ann, [USUAL], added=("zscore",), threshold=1.0)
    with pytest.raises(UsageError, match="needs numbers in `rung`"):
        chain(ann, [USUAL], added=("rung",), label="rung", threshold=1.0)


def test_a_column_of_the_log_is_never_replaced_but_ours_get_a_prefix(ann):
    rows = [USUAL | {"reason": "user_approved"}]
    with pytest.raises(
        UsageError,
        match=r"explain: the log has a column `reason` of its own, which would be lost. "
        r"Give `explain --prefix=why_`.",
    ):
        chain(ann, rows)
    out = chain(ann, rows, prefix="why_")
    assert out["reason"].to_list() == ["user_approved"]
    assert out["why_reason"][0]
    assert not {"top_columns", "explanation"} & set(out.columns)


def test_a_feature_column_of_the_name_is_refused_before_any_log_is_opened():
    duo = PipelineOptions(columns=("username", "reason"))
    with pytest.raises(UsageError, match=r"a column `reason` of its own.*--prefix=why_"):
        Explain(options=duo).validate()
    Explain(options=duo, prefix="why_").validate()


def test_explained_twice_the_second_stands(ann):
    once = run_stage(
        Explain(),
        run_stage(
            AddScores(label=(RISK,)),
            [losses(ann, make_events([0], **{name: [value] for name, value in USUAL.items()}))],
        ),
    )
    [twice] = run_stage(Explain(top=1), once)
    assert ", " not in twice.frame["top_columns"][0]


def test_users_without_a_fingerprint_get_nulls():
    batch = make_scored(make_events([0, 1]), [math.nan, math.nan])
    [out] = run_stage(Explain(), [batch])
    assert out.frame.select(ExplanationColumns()).null_count().row(0) == (2, 2, 2)
    assert out.frame.select(ExplanationColumns()).dtypes == [pl.String] * 3


def test_what_the_reference_network_learnt_is_refused():
    reference = pytest.importorskip("morpheus.models.reference", reason="torch is not installed")
    [known] = reference.fit_dfencoder_fingerprints(
        [UserHistory("ann", day(60), times(60))], COLUMNS, epochs=1
    )
    frame = make_events(range(3), **day(3).to_dict(as_series=False))
    rows = known.encoder.encode(frame)
    about = {"fingerprint": known, "card": known.card, "encoded": rows}
    batch = Scored(user="ann", frame=frame, losses=known.losses(rows)[rows.inverse], **about)
    with pytest.raises(UsageError, match=r"explain: what `train-ae --model=reference`.*compact"):
        list(run_stage(Explain(), [batch]))


def test_a_batch_without_events_stays_without(ann):
    out = explained(ann, [make_events([], **{name: [] for name in COLUMNS})])
    assert out.height == 0
    assert set(ExplanationColumns()) <= set(out.columns)


@example("a`b")
@example("exe.\u202etxt")
@given(value=HOSTILE)
@settings(max_examples=40, deadline=None)
def test_whatever_a_log_says_stays_one_short_visible_quotation(ann, value):
    out = chain(ann, [USUAL | {"agent": value}], all_columns=True)
    reason = out["reason"][0]
    assert reason.isprintable()
    assert all(text.isprintable() for text in out.select(ExplanationColumns()).row(0))
    assert reason.count("`") % 2 == 0
    if value not in {"web", "cli"}:
        said = next(part for part in reason.split("; ") if part.startswith("agent: saw `"))
        assert said.split("`")[2].startswith(", p")


def test_a_megabyte_is_cut(ann):
    out = chain(ann, [USUAL | {"agent": "x" * 500_000 + "\u202e" * 500_000}])
    assert len(out["reason"][0]) < 1000
    assert len(out["explanation"][0]) < 3000
    assert "…" in out["reason"][0]


def test_an_explanation_says_what_would_have_been_ordinary_and_what_was(ann):
    why = only(chain(ann, [USUAL, USUAL | {"address": "home"}, USUAL | {"agent": "kali"}]))
    assert [(each["column"], each["value"]) for each in why["change"]["columns"]] == [
        ("agent", "web")
    ]
    assert why["change"]["after"] <= why["change"]["limit"] < why["change"]["before"]
    near = why["nearest"][0]
    assert (near["same"], near["columns"]) == (3, 4)
    assert near["differs"] == [{"column": "agent", "value": "web"}]
    assert {"address", "kind"} <= set(why["usual"])
    assert "agent" not in why["usual"]


def test_an_ordinary_event_needs_no_change(ann):
    why = only(chain(ann, [USUAL]))
    assert (why["change"]["columns"], why["nearest"]) == ([], [])
