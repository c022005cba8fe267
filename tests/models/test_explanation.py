"""Text of the reason."""

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
ALONE = ContextContribution(1, 1, 0, 0, 0)


def make_reason(**changes):
    fields = {
        "column": "agent",
        "value": "kali",
        "new": False,
        "anomaly": 90.0,
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
    return ColumnReason(**(fields | changes))


def reason_for(*reasons, preceding=ALONE, background=OWN, max_columns=3):
    return render_reason(Explanation.from_columns(9.0, reasons, preceding, background), max_columns)


def test_small_anomaly_is_left_out_and_no_column_reads_nothing_unusual():
    assert reason_for(make_reason(anomaly=0.4)) == "nothing unusual"
    assert reason_for() == "nothing unusual"
    assert reason_for(preceding=ContextContribution(0, 0, 0, 0, 0)) == "nothing unusual"


def test_reason_names_at_most_the_given_number_of_columns():
    assert (
        reason_for(make_reason(), make_reason(column="address"), max_columns=1)
        == "agent: saw `kali`, p=.25, 2.0 bits"
    )


@pytest.mark.parametrize(
    ("bits", "words"),
    [(4.3, "20 times"), (30.0, "over 1,000 times"), (1e6, "over 1,000 times")],
)
def test_reason_gives_the_likelihood_ratio_with_others(bits, words):
    assert f", {words} as likely with others" in reason_for(
        make_reason(marginal_dominates=True, likelihood_ratio_bits=bits)
    )


def test_expected_new_value_is_reported():
    usual = ExpectedValue(None, 0.94, new=True)
    assert reason_for(make_reason(new=True, expected=(usual,))).endswith(
        "expected a new value p=.94, new in 58 days"
    )


@pytest.mark.parametrize(
    ("preceding", "words"),
    [
        (
            ContextContribution(10, 4, 6, 14, 30),
            "mostly what came before: 14 strange events in the hour before; agent",
        ),
        (
            ContextContribution(10, 4, 6, 0, 1),
            "mostly what came before: 1 strange event in the 24 hours before; agent",
        ),
        (
            ContextContribution(10, 7, 3, 0, 1234),
            "bits; and 1,234 strange events in the 24 hours before",
        ),
        (
            ContextContribution(10, 7, 3, 0, 0),
            "bits; and earlier events, each a little unusual",
        ),
    ],
)
def test_dominant_context_comes_first(preceding, words):
    assert words in reason_for(make_reason(), preceding=preceding)


def test_column_with_anomalous_events_before_is_reported_even_if_normal_now():
    context = ContextContribution(11, 4, 7, 0, 14)
    column = make_reason(anomaly=0.0, anomalous_before=14)
    assert reason_for(column, preceding=context).endswith(
        "strange in 14 events of the 24 hours before"
    )


def test_small_context_is_left_out():
    assert "before" not in reason_for(make_reason(), preceding=ContextContribution(10, 8, 2, 1, 1))


def test_user_without_history_is_compared_with_all_users():
    baseline = Baseline("everyone", 0, 2000, None)
    assert reason_for(make_reason(new=True), background=baseline).endswith(
        ", new; compared with everyone: 0 of 2,000 events are their own"
    )
