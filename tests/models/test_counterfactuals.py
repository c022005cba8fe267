"""The smallest change that would have made an event ordinary."""

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


def change(ann, limit=None, **odd):
    """What would have made one event ordinary, and the event as it would have been."""
    rows = ann.encoder.encode(pl.DataFrame([USUAL | odd]).select(COLUMNS))
    limit = float(np.quantile(ann.calibration.risks, 0.99)) if limit is None else limit
    [found] = find_counterfactuals(ann, rows, limit)
    values = {each.column: each.value for each in found.columns}
    mended = ann.encoder.encode(pl.DataFrame([USUAL | odd | values]).select(COLUMNS))
    return found, values, float(ColumnAttribution.from_fingerprint(ann, mended).event_anomaly[0])


def test_an_ordinary_event_needs_no_change(ann):
    found, values, _ = change(ann)
    assert values == {}
    assert found.before == found.after <= found.limit


def test_a_strange_value_becomes_the_likeliest_beside_the_others(ann):
    found, values, surprise = change(ann, agent="kali")
    assert values == {"agent": "web"}
    assert found.after == pytest.approx(surprise, abs=1e-3)
    assert found.after <= found.limit < found.before


def test_two_strange_values_become_two_others(ann):
    found, values, _ = change(ann, agent="kali", address="elsewhere")
    assert set(values) == {"agent", "address"}
    assert found.after <= found.limit


def test_no_part_of_the_change_would_do(ann):
    odd = {"agent": "kali", "address": "elsewhere", "action": "destroy"}
    found, values, _ = change(ann, **odd)
    for column in values:
        part = {name: value for name, value in values.items() if name != column}
        rows = ann.encoder.encode(pl.DataFrame([USUAL | odd | part]).select(COLUMNS))
        assert float(ColumnAttribution.from_fingerprint(ann, rows).event_anomaly[0]) > found.limit


def test_what_nothing_would_help_says_so(ann):
    found, values, _ = change(ann, limit=-1.0, agent="kali")
    assert found.after > found.limit
    assert len(values) == min(MAX_CHANGED_COLUMNS, len(COLUMNS))


def test_a_row_is_changed_alike_whatever_the_rows_beside_it(ann):
    frame = pl.concat([day(200, seed=5), pl.DataFrame([USUAL | {"agent": "kali"}]).select(COLUMNS)])
    rows = ann.encoder.encode(frame)
    many = list(find_counterfactuals(ann, rows, 5.0))[int(rows.inverse[-1])]
    assert many == change(ann, limit=5.0, agent="kali")[0]
