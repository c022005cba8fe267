"""The most similar normal events before an anomalous one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from morpheus.features.encoder import Encoder
from morpheus.models.attribution import MAX_NEAREST, MAX_NORMAL_EVENTS, NormalEventIndex
from people import COLUMNS, fingerprint

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


def query_last(ann, events, anomalous, pieces=None):
    """Query for the last of some events, which come in batches."""
    frame = pl.DataFrame([USUAL | event for event in events]).select(COLUMNS)
    flags, index, start = np.array(anomalous), NormalEventIndex(), 0
    seconds = np.arange(len(events), dtype=np.float64)
    for size in pieces or [len(events)]:
        part = slice(start, start + size)
        rows = ann.encoder.encode(frame[part])
        near = index.update(ann, rows, flags[part], seconds[part])
        start += size
    return near.query(size - 1, np.array([3.0, 1.0, 2.0, 0.0]))


def test_most_similar_event_comes_first_then_the_latest_without_duplicates(ann):
    events = [{}, {"address": "home"}, {}, {"action": "deploy", "agent": "cli"}, {"agent": "kali"}]
    found = query_last(ann, events, [False, False, False, False, True])
    assert [(near.seconds, near.same, near.columns) for near in found] == [
        (2.0, 3, 4),
        (3.0, 2, 4),
        (1.0, 2, 4),
    ]
    assert len(found) == MAX_NEAREST


def test_differences_are_sorted_by_anomaly_with_the_normal_values(ann):
    [near] = query_last(
        ann, [{"action": "list"}, {"agent": "kali", "action": "copy"}], [False, True]
    )
    assert [(each.column, each.value) for each in near.differs] == [
        ("action", "list"),
        ("agent", "web"),
    ]


def test_anomalous_and_later_events_are_never_returned(ann):
    assert query_last(ann, [{}, {"agent": "kali"}], [True, True]) == ()


def test_new_values_are_not_equal_to_each_other(ann):
    [near] = query_last(ann, [{"agent": "x"}, {"agent": "y"}], [False, True])
    assert near.same == 3
    assert [(each.column, each.value, each.new) for each in near.differs] == [("agent", None, True)]


@pytest.mark.parametrize("pieces", [[1] * 700, [300, 400], [699, 1]])
def test_result_does_not_depend_on_how_events_are_cut_into_batches(ann, pieces):
    rng = np.random.default_rng(3)
    names = rng.choice(["get", "list", "deploy", "copy"], 700).tolist()
    events = [{"action": name} for name in names]
    anomalous = [bool(mark) for mark in rng.random(700) < 0.2]
    anomalous[-1] = True
    assert query_last(ann, events, anomalous, pieces) == query_last(ann, events, anomalous)
    assert MAX_NORMAL_EVENTS < 700


def test_codes_of_another_encoder_are_forgotten(ann):
    index, seconds, normal = NormalEventIndex(), np.zeros(1), np.array([False])
    rows = ann.encoder.encode(pl.DataFrame([USUAL]).select(COLUMNS))
    index.update(ann, rows, normal, seconds)
    other = Encoder(ann.encoder.columns[::-1])
    index.update(replace(ann, encoder=Encoder(ann.encoder.columns)), rows, normal, seconds)
    assert len(index.codes) == 2
    index.update(replace(ann, encoder=other), rows, normal, seconds)
    assert len(index.codes) == 1
