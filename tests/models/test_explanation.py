"""What a sentence says, and when."""

import pytest

from morpheus.models.explanation import (
    Baseline,
    ColumnReason,
    ContextContribution,
    ExpectedValue,
    Explanation,
    render_reason,
)

OWN = Baseline("own", 400, 400, 58)
ALONE = ContextContribution(1, 1, 0, 0, 0, 0)


def fact(**changes):
    about = {
        "column": "agent",
        "value": "kali",
        "new": False,
        "anomaly": 9.0,
        "risk": 9.0,
        "dominant_contribution": 9.0,
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
    return ColumnReason(**(about | changes))


def said(*facts, preceding=ALONE, background=OWN, most=3):
    return render_reason(Explanation.from_columns(9.0, facts, preceding, background), most)


def test_what_is_hardly_strange_is_left_out_and_nothing_is_nothing_unusual():
    assert said(fact(anomaly=0.4)) == "nothing unusual"
    assert said() == "nothing unusual"
    assert said(preceding=ContextContribution(0, 0, 0, 0, 0, 0)) == "nothing unusual"


def test_no_more_columns_are_named_than_asked_for():
    assert said(fact(), fact(column="address"), most=1) == "agent: saw `kali`, p=.25, 2.0 bits"


@pytest.mark.parametrize(
    ("bits", "words"),
    [(4.3, "20 times"), (30.0, "over 1,000 times"), (1e6, "over 1,000 times")],
)
def test_a_value_of_others_is_said_to_be_so(bits, words):
    assert f", {words} as likely with others" in said(
        fact(marginal_dominates=True, likelihood_ratio_bits=bits)
    )


def test_a_new_value_where_new_ones_are_usual_is_said_to_be_expected():
    usual = ExpectedValue(None, 0.94, new=True)
    assert said(fact(new=True, expected=(usual,))).endswith(
        "expected a new value p=.94, new in 58 days"
    )


@pytest.mark.parametrize(
    ("preceding", "words"),
    [
        (
            ContextContribution(10, 4, 4, 2, 14, 30),
            "mostly what came before: 14 strange events in the hour before; agent",
        ),
        (
            ContextContribution(10, 4, 1, 5, 0, 1),
            "mostly what came before: 1 strange event in the month before; agent",
        ),
        (
            ContextContribution(10, 7, 0, 3, 0, 1234),
            "bits; and 1,234 strange events in the month before",
        ),
        (
            ContextContribution(10, 7, 3, 0, 0, 0),
            "and events a little unusual all through the hour before",
        ),
    ],
)
def test_what_came_before_comes_first_where_it_is_most_of_the_risk(preceding, words):
    assert words in said(fact(), preceding=preceding)


def test_a_column_that_was_strange_before_is_said_to_have_been_so_although_it_is_usual_now():
    past = ContextContribution(11, 4, 1, 6, 0, 14)
    column = fact(anomaly=0.0, anomalous_before=14)
    assert said(column, preceding=past).endswith("strange in 14 events of the month before")


def test_what_came_before_is_not_said_where_it_is_little():
    assert "before" not in said(fact(), preceding=ContextContribution(10, 8, 1, 1, 1, 1))


def test_a_user_without_a_history_is_compared_with_everyone():
    nobody = Baseline("everyone", 0, 2000, None)
    assert said(fact(new=True), background=nobody).endswith(
        ", new; compared with everyone: 0 of 2,000 events are their own"
    )
