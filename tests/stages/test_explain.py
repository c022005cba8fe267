"""`explain`, on trained fingerprints."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from morpheus.columns import RISK, EventFields, ExplanationColumns, LogDescription
from morpheus.core.batch import Losses, Scored, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.explanation import MAX_REASON_LENGTH
from morpheus.models.fit import TrainingDataBackoff, UserHistory, fit_fingerprint, fit_fingerprints
from morpheus.models.population import Population
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.testing import DAY, make_events, make_scored, run_stage
from people import COLUMNS, day, fingerprint, times

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}
HOSTILE = st.text(max_size=100) | st.sampled_from(
    ["\x1b[2J", "a\nb\tc", "exe.\u202etxt", "`, p=.99`", "{}%s\\", "=1+1", "\u200b", "é" * 300]
)

DESCRIBED = PipelineOptions(
    columns=tuple(COLUMNS),
    log=LogDescription(event_fields=EventFields(action=("action",), source_address=("address",))),
)
"""Options of a log whose actions and addresses are known."""


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


def explain_rows(model, rows, *, seconds=None, added=(RISK,), **options):
    frame = make_events(
        range(len(rows)) if seconds is None else seconds,
        **{name: [row.get(name) for row in rows] for name in rows[0]},
    )
    return explain(model, [frame], added=added, **options)


def explain(model, frames, *, added=(RISK,), **options):
    """Return the output of `explain` after `add-scores`."""
    batches = [losses(model, frame) for frame in frames]
    stage = Explain(**options)
    stage.validate()
    return pl.concat(
        [
            out.table.to_frame()
            for out in run_stage(stage, run_stage(AddScores(label=added), batches))
        ]
    )


def losses(model, frame):
    """A batch of Ann's events with the losses of their columns."""
    rows = model.encoder.encode(frame)
    fields = {"user": "ann", "fingerprint": model, "card": model.card, "encoded": rows}
    return Losses(table=Table(frame), losses=model.losses(rows)[rows.inverse], **fields)


def parse_explanation(frame, position=-1):
    return json.loads(frame["explanation"][position], parse_float=Decimal)


@given(seed=st.integers(0, 99), most=st.integers(1, 6), all_columns=st.booleans())
@settings(max_examples=15, deadline=None)
def test_columns_add_up_to_the_surprisal_and_earlier_events_to_the_risk_in_decimals(
    ann, seed, most, all_columns
):
    rows = day(30, seed=seed).with_columns(agent=pl.lit("kali")).to_dicts()
    seconds = np.sort(np.random.default_rng(seed).uniform(0, 1e6, 30)).tolist()
    out = explain_rows(ann, rows, seconds=seconds, top=most, all_columns=all_columns)
    for position in range(out.height):
        explanation = parse_explanation(out, position)
        anomalies = [Decimal(column["strangeness"]) for column in explanation["columns"]]
        assert sum(anomalies) + Decimal(explanation["others"]) == Decimal(explanation["surprise"])
        contributions = [Decimal(column["loudest"]) for column in explanation["columns"]]
        assert contributions == sorted(contributions, reverse=True)
        assert len(anomalies) == len(COLUMNS) if all_columns else len(anomalies) <= most
        parts = {name: Decimal(value) for name, value in explanation["preceding"].items()}
        assert parts["own"] + parts["earlier"] == parts["risk"]
        assert min(parts["own"], parts["earlier"]) >= 0
        assert float(parts["risk"]) == out[RISK][position]
        risks = [Decimal(column["risk"]) for column in explanation["columns"]]
        assert sum(risks) + Decimal(explanation["others_risk"]) == parts["risk"]


@given(column=st.sampled_from(COLUMNS))
@settings(max_examples=4, deadline=None)
def test_column_with_a_new_value_is_the_first_reason(ann, column):
    out = explain_rows(ann, [USUAL | {column: "never"}])
    assert out["top_columns"][0].split(", ")[0] == column
    [first, *_] = parse_explanation(out)["columns"]
    assert (first["column"], first["value"], first["new"]) == (column, "never", True)
    assert f"{column} `never`, new in 1 day" in out["reason"][0].lower()


def test_known_value_in_a_rare_combination_is_shown_with_the_expected_value(ann):
    out = explain_rows(ann, [USUAL | {"agent": "cli"}])
    [first, *_] = (
        column for column in parse_explanation(out)["columns"] if column["column"] == "agent"
    )
    assert not first["new"]
    assert first["expected"][0]["value"] == "web"
    assert first["probability"] < Decimal("0.1") < first["expected"][0]["probability"]
    assert out["reason"][0].endswith(("unusual in this combination.", "unusual together."))


def test_bits_are_the_negative_logarithm_of_the_probability(ann):
    out = explain_rows(
        ann, [USUAL, USUAL | {"agent": "cli"}, USUAL | {"kind": None}], all_columns=True
    )
    for column in (
        column for position in range(3) for column in parse_explanation(out, position)["columns"]
    ):
        bits = -math.log2(column["probability"])
        assert float(column["bits"]) == pytest.approx(bits, abs=0.01)


def test_expected_values_are_more_likely_than_the_observed_one(ann):
    out = explain_rows(ann, day(60, seed=5).to_dicts(), all_columns=True)
    for column in (
        column for position in range(60) for column in parse_explanation(out, position)["columns"]
    ):
        likelier = [value["probability"] for value in column["expected"]]
        assert likelier == sorted(likelier, reverse=True)
        assert all(probability >= column["probability"] for probability in likelier)


def test_missing_value_is_explained_like_a_value(ann):
    out = explain_rows(ann, [USUAL | {"kind": None}])
    assert out["reason"][0] == "Without kind, rare for this user."


def test_new_value_is_expected_in_a_column_of_new_values():
    frame = day().with_columns(kind=pl.Series([f"request-{n}" for n in range(400)]))
    model = fingerprint(frame)
    out = explain_rows(model, [USUAL | {"kind": "request-400"}], all_columns=True)
    [kind] = (column for column in parse_explanation(out)["columns"] if column["column"] == "kind")
    [expected] = kind["expected"]
    assert kind["new"]
    assert (expected["value"], expected["new"]) == (None, True)
    assert float(expected["probability"]) == pytest.approx(model.oov_rates[3], abs=0.01)


def events_with_numbers(events=300):
    rng = np.random.default_rng(1)
    sizes = rng.normal(500, 10, events).round(1)
    return pl.DataFrame({"action": ["get"] * events, "size": sizes})


def test_number_is_explained_in_its_own_units():
    model = fit_fingerprint("ann", events_with_numbers(), ["action", "size"], times=times(300))
    out = explain_rows(model, [{"action": "get", "size": 900.0}])
    [first, *_] = parse_explanation(out)["columns"]
    assert (first["column"], first["value"], first["probability"]) == ("size", "900.0", None)
    assert float(first["expected"][0]["value"]) == pytest.approx(500, abs=10)
    assert float(first["distance"]) == pytest.approx(40, abs=5)
    assert out["reason"][0] == "With unusually high size `900.0`."


def test_reason_names_the_earlier_events_if_most_of_the_risk_comes_from_them(ann):
    out = explain_rows(ann, [*[USUAL | {"agent": f"kali {n}"} for n in range(14)], USUAL])
    assert out["reason"][-1] == "After unusual `kali 13` and `kali 12` (unusual agent)."
    assert "fter" not in out["reason"][0]
    parts = parse_explanation(out)["preceding"]
    assert (parts["own"], parts["strange_in_hour"], parts["strange_in_day"]) == (0, 14, 14)


def test_new_values_of_the_day_before_are_counted_and_add_no_risk(ann):
    strange = [USUAL | {"agent": f"kali {n}"} for n in range(3)]
    out = explain_rows(ann, [*strange, USUAL], seconds=[-7200, -7100, -7000, 0])
    parts = parse_explanation(out)["preceding"]
    assert (parts["risk"], parts["earlier"], parts["strange_in_day"]) == (0, 0, 3)
    assert out["reason"][-1] == "Nothing unusual."


def test_what_earlier_days_add_to_the_risk_is_not_divided_among_columns(ann):
    rare = USUAL | {"action": "copy", "address": "home", "agent": "cli"}
    rows = [*[rare] * 8, USUAL | {"agent": "kali 1"}, USUAL | {"agent": "kali 2"}]
    seconds = [*range(0, 8 * 86400, 86400), 8 * 86400, 8 * 86400 + 1]
    out = explain_rows(ann, rows, seconds=seconds, all_columns=True)
    first, second = (parse_explanation(out, row) for row in (8, 9))
    of_days = first["preceding"]["earlier"]
    assert first["others_risk"] == of_days > 0
    assert second["others_risk"] == of_days < second["preceding"]["earlier"]


def test_a_value_that_occurs_again_on_the_day_adds_to_the_risk_of_later_events_once(ann):
    once = explain_rows(ann, [USUAL | {"agent": "kali"}] * 2)
    again = explain_rows(ann, [USUAL | {"agent": "kali"}] * 9)
    first, *later = (parse_explanation(again, n)["preceding"]["earlier"] for n in range(9))
    assert first == 0
    assert later[0] == parse_explanation(once)["preceding"]["earlier"] > 0
    assert later == sorted(later, reverse=True)


def test_columns_with_usual_values_are_not_named_beside_an_unusual_one(ann):
    out = explain_rows(ann, [USUAL | {"agent": "kali"}], top=4)
    assert out["top_columns"].to_list() == ["agent"]


def test_column_that_was_anomalous_in_earlier_events_is_named_first(ann):
    strange = [USUAL | {"address": f"host {n}"} for n in range(14)]
    out = explain_rows(ann, [*strange, USUAL | {"agent": "cli"}])
    assert parse_explanation(out)["columns"][0]["column"] == "address"
    assert "fter unusual `host 13` and `host 12`" in out["reason"][-1]
    assert out["top_columns"][-1].startswith("address")


def test_redundant_columns_are_one_reason():
    frame = day(400).with_columns(host=pl.col("action") + "-host")
    model = fit_fingerprint("ann", frame, [*COLUMNS, "host"], times=times(400))
    normal = USUAL | {"host": "get-host"}
    out = explain_rows(model, [normal | {"action": "new", "host": "new", "agent": "kali"}])
    [shown] = (
        column
        for column in parse_explanation(out)["columns"]
        if column["column"] in {"action", "host"}
    )
    assert shown["twins"] == ["host" if shown["column"] == "action" else "action"]
    assert f"{shown['column']} `new`" in out["reason"][0].lower()
    assert shown["twins"][0] not in out["reason"][0].lower()
    assert shown["twins"][0] not in out["top_columns"][0].split(", ")


def test_reason_says_that_training_data_of_similar_users_was_used():
    events = pl.concat([day(200, seed=1), day(200, seed=2)])
    users = pl.Series(["bob"] * 200 + ["eve"] * 200)
    population = Population(users, pl.concat([times(200), times(200)]), events)
    history = TrainingDataBackoff(population, 300).resolve(UserHistory("ann", day(40), times(40)))
    [model] = fit_fingerprints([history], COLUMNS, population=population)
    out = explain_rows(model, [USUAL | {"agent": "kali"}])
    assert out["reason"][0].endswith("new to this user; compared with similar users.")
    assert parse_explanation(out)["background"] == {
        "rung": "peers",
        "own_events": 40,
        "events": 300,
        "days": 1,
    }


def test_reason_says_how_long_the_history_is(ann):
    assert ann.card.training_data_scope == "own"
    assert "new in 1 day" in explain_rows(ann, [USUAL | {"agent": "kali"}])["reason"][0]


@given(st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=10, deadline=None)
def test_explanation_does_not_depend_on_the_division_into_batches(ann, cuts):
    frame = make_events(range(0, 40 * 1800, 1800), **day(40, seed=8).to_dict(as_series=False))
    frame = frame.with_columns(agent=pl.Series(["kali", "web", "web", "cli"] * 10))
    bounds = [0, *sorted(cuts), 40]
    parts = [frame[start:end] for start, end in pairwise(bounds)]
    whole, divided = (explain(ann, frames, options=DESCRIBED) for frames in ([frame], parts))
    assert whole["reason"].str.contains(" after unusual ").any()
    exact = ["reason", "top_columns", RISK]
    assert divided.select(exact).equals(whole.select(exact))
    # In a float32 matrix product of a fixed size, the last digit of a row depends on its position
    # in the batch (OpenBLAS on Haswell). It shows in the numbers of `explanation`, so these are
    # compared to five digits.
    for before, after in zip(whole["explanation"], divided["explanation"], strict=True):
        assert_close(json.loads(before), json.loads(after))


def assert_close(expected, found):
    """Compare JSON values: numbers to five digits, everything else exactly."""
    if isinstance(expected, dict):
        assert list(expected) == list(found)
        for name, value in expected.items():
            assert_close(value, found[name])
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for value, other in zip(expected, found, strict=True):
            assert_close(value, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert expected == found


def test_threshold_selects_events_without_changing_their_explanation(ann):
    rows = [USUAL, USUAL | {"agent": "kali"}, USUAL]
    whole = explain_rows(ann, rows)
    limit = whole[RISK][1]
    selected = explain_rows(ann, rows, threshold=limit)
    expected = [text if risk >= limit else None for text, risk in whole["reason", RISK].iter_rows()]
    assert selected["reason"].to_list() == expected
    assert selected["reason"][0] is None
    assert selected["reason"][1] is not None


def test_threshold_on_a_column_that_is_not_a_number_score_is_rejected(ann):
    with pytest.raises(UsageError, match=r"needs numbers in `risk`.*added `zscore`.*--label risk"):
        explain_rows(ann, [USUAL], added=("zscore",), threshold=1.0)
    with pytest.raises(UsageError, match="needs numbers in `rung`"):
        explain_rows(ann, [USUAL], added=("rung",), label="rung", threshold=1.0)


def test_column_of_the_log_is_not_replaced_and_a_prefix_avoids_the_clash(ann):
    rows = [USUAL | {"reason": "user_approved"}]
    with pytest.raises(
        UsageError,
        match=r"explain: the log has a column `reason`, which would be replaced. "
        r"Use `explain --prefix=why_`.",
    ):
        explain_rows(ann, rows)
    out = explain_rows(ann, rows, prefix="why_")
    assert out["reason"].to_list() == ["user_approved"]
    assert out["why_reason"][0]
    assert not {"top_columns", "explanation"} & set(out.columns)


def test_feature_column_of_the_same_name_is_rejected_before_any_log_is_opened():
    duo = PipelineOptions(columns=("username", "reason"))
    with pytest.raises(UsageError, match=r"a column `reason`, which.*--prefix=why_"):
        Explain(options=duo).validate()
    Explain(options=duo, prefix="why_").validate()


def test_second_explain_replaces_the_columns_of_the_first(ann):
    first = run_stage(
        Explain(),
        run_stage(
            AddScores(label=(RISK,)),
            [losses(ann, make_events([0], **{name: [value] for name, value in USUAL.items()}))],
        ),
    )
    [second] = run_stage(Explain(top=1), first)
    assert ", " not in second.table["top_columns"][0]


def test_users_without_a_fingerprint_get_nulls():
    batch = make_scored(make_events([0, 1]), [math.nan, math.nan])
    [out] = run_stage(Explain(), [batch])
    assert out.table.to_frame().select(ExplanationColumns()).null_count().row(0) == (2, 2, 2)
    assert out.table.to_frame().select(ExplanationColumns()).dtypes == [pl.String] * 3


def test_fingerprint_of_the_reference_network_is_rejected():
    reference = pytest.importorskip("morpheus.models.reference", reason="torch is not installed")
    [model] = reference.fit_dfencoder_fingerprints(
        [UserHistory("ann", day(60), times(60))], COLUMNS, epochs=1
    )
    frame = make_events(range(3), **day(3).to_dict(as_series=False))
    rows = model.encoder.encode(frame)
    fields = {"fingerprint": model, "card": model.card, "encoded": rows}
    batch = Scored(
        user="ann", table=Table(frame), losses=model.losses(rows)[rows.inverse], **fields
    )
    with pytest.raises(
        UsageError, match=r"explain: fingerprints of `train-ae --model=reference`.*compact"
    ):
        list(run_stage(Explain(), [batch]))


def test_empty_batch_stays_empty(ann):
    out = explain(ann, [make_events([], **{name: [] for name in COLUMNS})])
    assert out.height == 0
    assert set(ExplanationColumns()) <= set(out.columns)


@example("a`b")
@example("exe.\u202etxt")
@given(value=HOSTILE)
@settings(max_examples=40, deadline=None)
def test_value_of_the_log_is_one_printable_quotation(ann, value):
    out = explain_rows(ann, [USUAL | {"agent": value}], all_columns=True)
    reason = out["reason"][0]
    assert reason.isprintable()
    assert all(text.isprintable() for text in out.select(ExplanationColumns()).row(0))
    assert reason.count("`") % 2 == 0
    assert len(reason) <= MAX_REASON_LENGTH
    if value not in {"web", "cli"}:
        assert reason.split("`")[2].startswith(", new in 1 day")


def test_long_value_is_shortened(ann):
    out = explain_rows(ann, [USUAL | {"agent": "x" * 500_000 + "\u202e" * 500_000}])
    assert len(out["reason"][0]) <= MAX_REASON_LENGTH
    assert len(out["explanation"][0]) < 3000
    assert "…" in out["reason"][0]


def test_reason_begins_with_the_action_that_the_log_describes(ann):
    out = explain_rows(ann, [USUAL | {"agent": "kali"}], options=DESCRIBED)
    assert out["reason"][0] == "`get` with agent `kali`, new in 1 day."
    out = explain_rows(ann, [USUAL | {"action": "delete", "address": "moon"}], options=DESCRIBED)
    assert out["reason"][0].startswith("`delete`, new in 1 day, from new address `moon`")


def test_actions_of_the_latest_earlier_events_of_the_day_are_named(ann):
    rows = [USUAL | {"action": f"delete {n}"} for n in range(5)]
    today = explain_rows(ann, [*rows, USUAL], options=DESCRIBED)
    assert today["reason"][-1].startswith("`get` after unusual `delete 4` and `delete 3`")
    again = explain_rows(ann, [*rows, rows[3], USUAL], options=DESCRIBED)
    assert again["reason"][-1].startswith("`get` after unusual `delete 3` and `delete 4`")


def test_events_that_do_not_add_to_the_risk_are_not_named_as_earlier_ones(ann):
    rows = [USUAL | {"action": "delete"}, USUAL, USUAL, USUAL | {"agent": "kali"}]
    out = explain_rows(ann, rows, options=DESCRIBED)
    assert "`get`" not in out["reason"][-1].partition(" after ")[2]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("hourkind", "weekend 18", "after unusual events"),
        ("hourofweek", "Saturday 18", "after unusual events"),
        ("new:agent", "True", "after unusual events"),
        ("address", None, "after unusual events"),
        ("address", "404", "after unusual events"),
        ("address", "moon", "after unusual `moon`"),
    ],
)
def test_earlier_events_without_an_action_are_named_by_values_that_need_no_column_name(
    column, value, words
):
    frame = day().select("agent", "kind", pl.col("address").alias(column))
    model = fit_fingerprint("ann", frame, frame.columns, times=times(frame.height))
    usual = {"agent": "web", "kind": "user", column: "office"}
    out = explain_rows(model, [*[usual | {column: value}] * 3, usual])
    reason = out["reason"][-1]
    assert "fter " in reason, reason
    assert words in reason.lower()
    assert "`moon`" in reason or "`" not in reason, reason
    assert "no value" not in reason


def test_a_value_that_the_history_has_seldom_is_rare_with_how_often():
    frame = day().with_columns(agent=pl.Series(["curl"] * 2 + day()["agent"].to_list()[2:]))
    out = explain_rows(fingerprint(frame), [USUAL | {"agent": "curl"}], options=DESCRIBED)
    assert out["reason"][0] == "`get` with agent `curl`, rare for this user (1 in 200 events)."


def worker(weeks=4):
    """Ann at work: from Monday to Friday, 9 to 17 h UTC."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    hours = [
        start + timedelta(days=7 * week + weekday, hours=hour)
        for week in range(weeks)
        for weekday in range(5)
        for hour in range(9, 17)
    ]
    return fit_fingerprint("ann", day(len(hours)), COLUMNS, times=pl.Series(hours))


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (datetime(2026, 2, 9, 10, 30, tzinfo=UTC), None),  # a Monday
        (datetime(2026, 2, 9, 2, 30, tzinfo=UTC), "at 03:30 on a Monday."),
        (datetime(2026, 2, 8, 10, 30, tzinfo=UTC), "at 11:30 on a Sunday."),
    ],
)
def test_time_outside_of_the_usual_hours_is_named_in_the_time_zone(time, words):
    options = replace(DESCRIBED, timezone="Europe/Berlin")
    seconds = [(time - DAY).total_seconds()]
    out = explain_rows(worker(), [USUAL | {"agent": "kali"}], seconds=seconds, options=options)
    reason = out["reason"][0]
    assert reason.endswith(words) if words else " at " not in reason


def test_time_is_not_unusual_after_a_short_history():
    seconds = [(datetime(2026, 2, 8, 2, tzinfo=UTC) - DAY).total_seconds()]
    out = explain_rows(
        worker(weeks=1), [USUAL | {"agent": "kali"}], seconds=seconds, options=DESCRIBED
    )
    assert " at " not in out["reason"][0]


def test_explanation_has_a_counterfactual_and_the_nearest_normal_event(ann):
    explanation = parse_explanation(
        explain_rows(ann, [USUAL, USUAL | {"address": "home"}, USUAL | {"agent": "kali"}])
    )
    assert [(each["column"], each["value"]) for each in explanation["change"]["columns"]] == [
        ("agent", "web")
    ]
    assert (
        explanation["change"]["after"]
        <= explanation["change"]["limit"]
        < explanation["change"]["before"]
    )
    nearest = explanation["nearest"][0]
    assert (nearest["same"], nearest["columns"]) == (3, 4)
    assert nearest["differs"] == [{"column": "agent", "value": "web"}]
    assert {"address", "kind"} <= set(explanation["usual"])
    assert "agent" not in explanation["usual"]


def test_normal_event_needs_no_change(ann):
    explanation = parse_explanation(explain_rows(ann, [USUAL]))
    assert (explanation["change"]["columns"], explanation["nearest"]) == ([], [])
