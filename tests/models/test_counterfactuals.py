"""The smallest change that makes an event normal."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from morpheus.models.attribution import MAX_CHANGED_COLUMNS, ColumnAttribution, find_counterfactuals
from people import COLUMNS, day, fingerprint

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


def change(ann, limit=None, **unusual):
    """The change for one event, its values, and the anomaly after it."""
    rows = ann.encoder.encode(pl.DataFrame([USUAL | unusual]).select(COLUMNS))
    limit = float(np.quantile(ann.calibration.risks, 0.99)) if limit is None else limit
    [counterfactual] = find_counterfactuals(ann, rows, limit)
    values = {replaced.column: replaced.value for replaced in counterfactual.columns}
    changed_rows = ann.encoder.encode(pl.DataFrame([USUAL | unusual | values]).select(COLUMNS))
    return (
        counterfactual,
        values,
        float(ColumnAttribution.from_fingerprint(ann, changed_rows).event_anomaly[0]),
    )


def test_normal_event_needs_no_change(ann):
    counterfactual, values, _ = change(ann)
    assert values == {}
    assert counterfactual.before == counterfactual.after <= counterfactual.limit


def test_anomalous_value_becomes_the_most_likely_one(ann):
    counterfactual, values, surprise = change(ann, agent="kali")
    assert values == {"agent": "web"}
    assert counterfactual.after == pytest.approx(surprise, abs=1e-3)
    assert counterfactual.after <= counterfactual.limit < counterfactual.before


def test_two_anomalous_values_are_both_replaced(ann):
    counterfactual, values, _ = change(ann, agent="kali", address="elsewhere")
    assert set(values) == {"agent", "address"}
    assert counterfactual.after <= counterfactual.limit


def test_part_of_the_change_is_not_enough(ann):
    unusual = {"agent": "kali", "address": "elsewhere", "action": "destroy"}
    counterfactual, values, _ = change(ann, **unusual)
    for column in values:
        part = {name: value for name, value in values.items() if name != column}
        rows = ann.encoder.encode(pl.DataFrame([USUAL | unusual | part]).select(COLUMNS))
        assert (
            float(ColumnAttribution.from_fingerprint(ann, rows).event_anomaly[0])
            > counterfactual.limit
        )


def test_unreachable_limit_is_reported(ann):
    counterfactual, values, _ = change(ann, limit=-1.0, agent="kali")
    assert counterfactual.after > counterfactual.limit
    assert len(values) == min(MAX_CHANGED_COLUMNS, len(COLUMNS))


def test_change_of_a_row_does_not_depend_on_other_rows(ann):
    frame = pl.concat([day(200, seed=5), pl.DataFrame([USUAL | {"agent": "kali"}]).select(COLUMNS)])
    rows = ann.encoder.encode(frame)
    many = list(find_counterfactuals(ann, rows, 5.0))[int(rows.inverse[-1])]
    assert many == change(ann, limit=5.0, agent="kali")[0]
