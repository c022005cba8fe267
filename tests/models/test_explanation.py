"""Text of the reason."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from morpheus.columns import EventFields, LogDescription
from morpheus.models.explanation import (
    MAX_REASON_LENGTH,
    Baseline,
    ColumnReason,
    ContextContribution,
    EventFacts,
    Explanation,
    ReasonWriter,
)

OWN = Baseline("own", 400, 400, 58)
ALONE = ContextContribution(1, 1, 0, 0, 0)
MAINLY_BEFORE = ContextContribution(10, 4, 6, 14, 30)
PARTLY_BEFORE = ContextContribution(10, 7, 3, 0, 1)
FIELDS = EventFields(
    action=("action",), source_address=("address",), user_agent=("agent",), session=("key",)
)
LOG = LogDescription(
    event_fields=FIELDS,
    labels={"key": "Access key"},
    paths={"requestParametersmaxResults": "requestParameters.maxResults"},
)
GET = EventFacts(action="get", action_column="action")
HOSTILE = st.text(max_size=300) | st.sampled_from(
    ["\x1b[2J" * 20, "a\nb\tc", "exe.\u202etxt", "`, new in 9 days`", "\U000e0001" * 50, "é" * 300]
)


def make_reason(**changes):
    fields = {
        "column": "agent",
        "value": "kali",
        "new": False,
        "anomaly": 90.0,
        "risk": 9.0,
        "dominant_contribution": 90.0,
        "anomalous_before": 0,
        "redundant_columns": (),
        "probability": 0.25,
        "bits": 2.0,
        "typical_bits": 0.1,
        "likelihood_ratio_bits": 0.0,
        "marginal_dominates": False,
        "distance": None,
        "expected": (),
    }
    return ColumnReason(**(fields | changes))


def reason_for(*reasons, preceding=ALONE, background=OWN, max_columns=3, facts=GET, log=LOG):
    explanation = Explanation.from_columns(9.0, reasons, preceding, background)
    return ReasonWriter(log).write(explanation, max_columns, facts)


def test_small_anomaly_is_left_out_and_no_column_reads_nothing_unusual():
    assert reason_for(make_reason(anomaly=0.4)) == "`get`: nothing unusual."
    assert reason_for() == "`get`: nothing unusual."
    assert reason_for(facts=EventFacts()) == "Nothing unusual."


def test_reason_names_at_most_the_given_number_of_columns():
    columns = make_reason(new=True), make_reason(column="address", new=True)
    assert "address" not in reason_for(*columns, max_columns=1)
    assert "address" in reason_for(*columns)


def test_the_action_comes_first_then_source_agent_and_last_identifiers():
    names = ["key", "kind", "agent", "address", "action"]
    columns = [make_reason(column=name, value="x", new=True) for name in names]
    assert reason_for(*columns, max_columns=5) == (
        "`get`, new in 58 days, from new address `x`, with new agent `x`, with new kind `x`, "
        "with new access key `x`."
    )


def test_a_log_without_actions_begins_with_the_first_column():
    columns = make_reason(column="kind", value="root", new=True), make_reason(new=True)
    assert reason_for(*columns, facts=EventFacts()) == (
        "Agent `kali`, new in 58 days, with new kind `root`."
    )


def test_a_sign_in_begins_with_the_application():
    log = replace(LOG, sign_ins=True)
    assert reason_for(make_reason(new=True), log=log).startswith("Sign-in to `get` with agent")


@pytest.mark.parametrize(
    ("share", "dominates", "words"),
    [
        (0.004, False, "`get` with agent `kali`, rare for this user (1 in 250 events)."),
        (0.05, True, "`get` with agent `kali`, unusual for this user (1 in 20 events)."),
        (0.05, False, "`get` with agent `kali`, unusual together."),
    ],
)
def test_a_known_value_is_rare_with_how_often_or_unusual_together(share, dominates, words):
    facts = structs.replace(GET, frequency={"agent": share})
    assert reason_for(make_reason(marginal_dominates=dominates), facts=facts) == words


def test_a_usual_value_beside_a_new_one_is_called_neither_new_nor_rare():
    facts = structs.replace(GET, frequency={"agent": 0.4})
    columns = make_reason(column="action", value="get", new=True), make_reason()
    assert reason_for(*columns, facts=facts) == (
        "`get`, new in 58 days, unusually with agent `kali`."
    )


def test_an_action_that_is_unusual_only_with_its_other_values_says_so():
    facts = structs.replace(GET, frequency={"action": 0.3})
    assert reason_for(make_reason(column="action", value="get"), facts=facts) == (
        "`get`, unusual in this combination."
    )


def test_new_is_said_of_new_values_only():
    assert "new" not in reason_for(
        make_reason(), facts=structs.replace(GET, frequency={"agent": 0.004})
    )
    assert "new" in reason_for(make_reason(new=True))


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.3, "; common among others."), (0.0001, "; others rarely do this."), (0.01, "events).")],
)
def test_reason_says_whether_others_do_it(share, words):
    facts = structs.replace(GET, frequency={"agent": 0.004}, others={"agent": share})
    assert reason_for(make_reason(), facts=facts).endswith(words)


def test_a_new_value_is_not_compared_with_others_because_its_share_is_not_known():
    facts = structs.replace(GET, others={"agent": 0.0001})
    assert "others" not in reason_for(make_reason(new=True), facts=facts)


def test_a_number_is_not_compared_with_others_of_whom_only_its_presence_is_known():
    facts = structs.replace(GET, frequency={"size": 0.9}, others={"size": 0.9})
    size = make_reason(column="size", value="900", probability=None, distance=40.0)
    assert "others" not in reason_for(size, facts=facts)


def test_missing_value_and_technical_name_are_named_in_words():
    facts = structs.replace(GET, frequency={"requestParametersmaxResults": 0.004})
    column = make_reason(column="requestParametersmaxResults", value=None)
    assert reason_for(column, facts=facts) == (
        "`get` without max results, rare for this user (1 in 250 events)."
    )


def test_number_is_high_or_low():
    number = {"column": "size", "value": "900", "probability": None}
    assert "unusually high size `900`" in reason_for(make_reason(**number, distance=40.0))
    assert "unusually low size `900`" in reason_for(make_reason(**number, distance=-40.0))


def test_time_is_named_outside_of_the_usual_hours_or_for_an_hour_column():
    facts = structs.replace(GET, time="03:12 on a Saturday")
    agent = make_reason(new=True)
    assert "03:12" not in reason_for(agent, facts=facts)
    outside = structs.replace(facts, is_outside_hours=True)
    assert reason_for(agent, facts=outside).endswith(", at 03:12 on a Saturday.")
    hour = make_reason(column="hourofweek", value="Sat 03", new=True)
    assert reason_for(hour, facts=facts) == "`get`, at 03:12 on a Saturday."


@pytest.mark.parametrize(
    ("same_day", "words"), [(True, "`put` and `del`."), (False, "`put` and `del` on earlier days.")]
)
def test_earlier_events_are_named_if_they_are_the_main_reason(same_day, words):
    facts = structs.replace(GET, earlier=("put", "del"), is_same_day=same_day)
    assert reason_for(preceding=MAINLY_BEFORE, facts=facts) == f"`get` after unusual {words}"


def test_earlier_events_come_last_if_they_are_a_smaller_reason():
    facts = structs.replace(GET, earlier=("put",))
    assert reason_for(make_reason(new=True), preceding=PARTLY_BEFORE, facts=facts) == (
        "`get` with agent `kali`, new in 58 days, after unusual `put`."
    )


def test_column_with_anomalous_events_before_is_named_even_if_normal_now():
    column = make_reason(anomaly=0.0, anomalous_before=14)
    facts = structs.replace(GET, earlier=("put",))
    assert reason_for(column, preceding=MAINLY_BEFORE, facts=facts) == (
        "`get` after unusual `put` (unusual agent)."
    )


def test_small_context_is_left_out():
    context = ContextContribution(10, 8, 2, 1, 1)
    facts = structs.replace(GET, earlier=("put",))
    assert "after" not in reason_for(make_reason(new=True), preceding=context, facts=facts)


def test_user_without_history_is_compared_with_all_users():
    baseline = Baseline("everyone", 0, 2000, None)
    assert reason_for(make_reason(new=True), background=baseline).endswith(
        ", new to this user; compared with all users."
    )


COLUMN = st.builds(
    make_reason,
    column=st.sampled_from(["action", "address", "agent", "kind", "new:kind", "previous:kind"])
    | HOSTILE.filter(bool),
    value=HOSTILE | st.none(),
    new=st.booleans(),
    anomaly=st.sampled_from([0.0, 90.0]),
    dominant_contribution=st.sampled_from([9.0, 90.0]),
    anomalous_before=st.integers(0, 3),
    marginal_dominates=st.booleans(),
    distance=st.none() | st.sampled_from([-9.0, 9.0]),
)


@example(
    columns=[make_reason(column=name * 99, value="`" * 99, new=True) for name in "abc"],
    text="`" * 99,
    has_action=True,
    outside=True,
)
@given(
    columns=st.lists(COLUMN, max_size=6),
    text=HOSTILE,
    has_action=st.booleans(),
    outside=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_reason_is_one_printable_line_of_bounded_length(columns, text, has_action, outside):
    facts = EventFacts(
        action=text if has_action else None,
        action_column="action" if has_action else "",
        frequency={"action": 1e-9, "agent": 1e-9},
        time="03:12 on a Wednesday",
        is_outside_hours=outside,
        earlier=(text, text),
    )
    for preceding in (ALONE, PARTLY_BEFORE, MAINLY_BEFORE):
        for background in (OWN, Baseline("everyone", 0, 2000, None)):
            reason = reason_for(
                *columns, preceding=preceding, background=background, max_columns=6, facts=facts
            )
            assert len(reason) <= MAX_REASON_LENGTH
            assert reason.isprintable()
            assert reason.endswith(".")
            assert reason.count("`") % 2 == 0


@given(columns=st.lists(COLUMN, min_size=1, max_size=6), text=HOSTILE)
@settings(max_examples=200, deadline=None)
def test_reason_names_a_column_that_contributes(columns, text):
    facts = structs.replace(GET, action=text)
    explanation = Explanation.from_columns(9.0, tuple(columns), ALONE, OWN)
    reason = ReasonWriter(LOG).write(explanation, 6, facts)
    unusual = [each for each in explanation.top_columns(6) if each.anomaly >= 10]
    labels = [ReasonWriter(LOG).role(each.column.removeprefix("new:")).label for each in unusual]
    named = "right after" in reason or any(label in reason for label in labels)
    is_action = any(each.column == "action" for each in unusual)
    assert named or is_action or not unusual
