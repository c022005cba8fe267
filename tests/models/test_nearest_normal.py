"""Ordinary events before a strange one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from morpheus.models.attribution import MAX_NEAREST, MAX_NORMAL_EVENTS, NormalEventIndex
from people import COLUMNS, fingerprint

USUAL = {"action": "get", "address": "office", "agent": "web", "kind": "user"}


@pytest.fixture(scope="module")
def ann():
    return fingerprint()


def asked(ann, events, strange, pieces=None):
    """What is near the last of some events, which come in pieces."""
    frame = pl.DataFrame([USUAL | event for event in events]).select(COLUMNS)
    marks, familiar, at = np.array(strange), NormalEventIndex(), 0
    seconds = np.arange(len(events), dtype=np.float64)
    for size in pieces or [len(events)]:
        part = slice(at, at + size)
        rows = ann.encoder.encode(frame[part])
        near = familiar.update(ann, rows, marks[part], seconds[part])
        at += size
    return near.query(size - 1, np.array([3.0, 1.0, 2.0, 0.0]))


def test_the_likest_come_first_of_equals_the_latest_and_each_once(ann):
    events = [{}, {"address": "home"}, {}, {"action": "deploy", "agent": "cli"}, {"agent": "kali"}]
    found = asked(ann, events, [False, False, False, False, True])
    assert [(near.seconds, near.same, near.columns) for near in found] == [
        (2.0, 3, 4),
        (3.0, 2, 4),
        (1.0, 2, 4),
    ]
    assert len(found) == MAX_NEAREST


def test_where_they_differ_is_told_the_strangest_first_with_their_values(ann):
    [near] = asked(ann, [{"action": "list"}, {"agent": "kali", "action": "copy"}], [False, True])
    assert [(each.column, each.value) for each in near.differs] == [
        ("action", "list"),
        ("agent", "web"),
    ]


def test_strange_events_and_later_ones_are_not_near(ann):
    assert asked(ann, [{}, {"agent": "kali"}], [True, True]) == ()


def test_a_new_value_is_like_no_other_new_value(ann):
    [near] = asked(ann, [{"agent": "x"}, {"agent": "y"}], [False, True])
    assert near.same == 3
    assert [(each.column, each.value, each.new) for each in near.differs] == [("agent", None, True)]


@pytest.mark.parametrize("pieces", [[1] * 700, [300, 400], [699, 1]])
def test_it_makes_no_difference_in_which_pieces_events_come(ann, pieces):
    dice = np.random.default_rng(3)
    names = dice.choice(["get", "list", "deploy", "copy"], 700).tolist()
    events = [{"action": name} for name in names]
    strange = [bool(mark) for mark in dice.random(700) < 0.2]
    strange[-1] = True
    assert asked(ann, events, strange, pieces) == asked(ann, events, strange)
    assert MAX_NORMAL_EVENTS < 700
