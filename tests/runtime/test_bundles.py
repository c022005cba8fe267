"""A micro-batch of many users is scored as the users are one by one, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from operator import attrgetter

import numpy as np
import polars as pl
import pytest

from morpheus.core.batch import Batch, Table, WithModel
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.runtime.chain import Segment
from morpheus.runtime.local import Bundle, run_bundle, run_by_user
from morpheus.runtime.states import MemoryStateStore
from morpheus.stages.add_scores import AddClass, AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import CandidateFilter, Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.testing import make_events, split_batch
from people import COLUMNS, PEOPLE, day, times

LABELS = ("ae_anomaly_score", "risk", "pvalue", "incident_score", "severity", "zscore", "rung")
FRONT = (Preprocess(), InfPytorch(), AddScores(label=LABELS))
CHAINS = {
    "scores": (*FRONT, Serialize()),
    "alerts": (
        *FRONT,
        Explain(threshold=5.0),
        Filter(label=("risk",), threshold=5.0),
        Timeseries(causal=True, resolution="10m", min_window="2h", zscore_threshold=2.0),
        Serialize(),
    ),
    "classes": (
        *FRONT,
        AddClass(label=("risk", "zscore"), threshold=2.0, prefix="is_"),
        Serialize(),
    ),
    "candidates": (*FRONT, CandidateFilter(), Serialize()),
    "explained alerts": (*FRONT, Filter(label=("risk",), threshold=1.0), Explain(), Serialize()),
}


@cache
def learned(user: str) -> Fingerprint:
    """The fingerprint of a user; that of `dan` has a number column."""
    frame = day(seed=ord(user[0]))
    columns = COLUMNS if user == "dan" else COLUMNS[: 3 + len(user) % 2]
    if user == "dan":
        frame = frame.with_columns(kind=pl.int_range(frame.height).cast(pl.String))
    return fit_fingerprint(user, frame, columns, times=times(frame.height), epochs=2)


def events(user: str | None, number: int, seed: int) -> WithModel:
    """Events of a user over four days, with values that the history does not have."""
    rng = np.random.default_rng([seed, *(user or "").encode()])
    frame = make_events(
        np.sort(rng.uniform(0, 4 * 86_400, number)).tolist(),
        action=rng.choice([*PEOPLE, "drop", "stop"], number).tolist(),
        address=rng.choice(["home", "office", "cafe", None], number).tolist(),
        agent=rng.choice(["web", "cli", *map(str, range(50))], number).tolist(),
        kind=rng.choice(["user", "7"], number).tolist(),
    )
    known = None if user is None else learned(user)
    card = None if known is None else known.card
    return WithModel(user=user, table=Table(frame), fingerprint=known, card=card)


def micro_batches(seed: int) -> list[list[Batch]]:
    """Micro-batches of up to five users, whose tables are slices of one."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=8).tolist()
    users = ("ann", "bob", "carla", "dan", None)
    parts = [list(split_batch(events(user, 30, seed), sizes)) for user in users]
    rounds = []
    for number in range(len(parts[0])):
        batches = [each[number] for each in parts if rng.random() < 0.8]
        if batches:
            table = Table.concat(batch.table for batch in batches)
            tables = table.split(batch.table.height for batch in batches)
            rounds.append([replace(b, table=t) for b, t in zip(batches, tables, strict=True)])
    return rounds


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CHAINS)
def test_many_users_are_scored_as_one_by_one(name: str, seed: int) -> None:
    segment = replace(Segment.from_stages(CHAINS[name], unbounded=True), saves=True)
    bundled, alone = segment.open(), segment.open()
    for batches in micro_batches(seed):
        found = bundled.push_many(batches)
        wanted = [output for batch in batches for output in alone.push(batch)]
        assert_same(found, wanted)
    bundled.flush()
    alone.flush()
    assert bundled.changed == alone.changed


def test_networks_of_many_users_are_computed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = micro_batches(0)[0]
    asked: list[int] = []
    single = Autoencoder.losses
    monkeypatch.setattr(
        Autoencoder,
        "losses",
        lambda net, codes, numbers: asked.append(len(codes)) or single(net, codes, numbers),
    )
    Segment.from_stages(FRONT, unbounded=True).open().push_many(batches)
    assert len(asked) <= 1  # the user with a number column
    asked.clear()
    list(run_by_user(Segment.from_stages(FRONT), batches, None))
    assert len(asked) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_users_of_one_shared_fingerprint_are_scored_as_one_by_one(seed: int) -> None:
    shared = learned("bob")
    segment = replace(Segment.from_stages(FRONT, unbounded=True), saves=True)
    bundled, alone = segment.open(), segment.open()
    for number in range(2):
        given = [events(user, 24, seed + number) for user in ("ann", "bob", "carla")]
        batches = [replace(each, fingerprint=shared, card=shared.card) for each in given]
        wanted = [output for batch in batches for output in alone.push(batch)]
        assert_same(bundled.push_many(batches), wanted)


TWO_SIDED = Timeseries(resolution="10m", min_window="2h", zscore_threshold=2.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("front", [*CHAINS, "two-sided"])
def test_small_users_of_a_run_with_an_end_are_processed_as_one_by_one(
    front: str, seed: int
) -> None:
    chain = CHAINS.get(front, (*FRONT, TWO_SIDED, Serialize()))
    segment = replace(Segment.from_stages(chain), saves=front != "two-sided")
    batches: list[Batch] = []
    for user, number in (("ann", 3), ("bob", 20), ("carla", 140), ("dan", 7), (None, 2)):
        batches.append(events(user, number, seed))
    batches[1:2] = split_batch(batches[1], [12, 8])  # a user with two batches
    batches.append(events("eve", 5, seed))
    wanted, states = list[Batch](), MemoryStateStore()
    for user, group in groupby(batches, key=attrgetter("user")):
        alone = segment.open(states.load([user]))
        wanted += [output for batch in group for output in alone.push(batch)]
        wanted += alone.flush()
        states.save(alone.changed)
    store = MemoryStateStore()
    assert_same(list(run_by_user(segment, batches, store)), wanted)
    assert store.changed() == states.changed()
    groups = [list(group) for _, group in groupby(batches, key=attrgetter("user"))]
    result = run_bundle(segment, Bundle(groups))
    assert_same(result.batches, wanted)
    assert result.changed == states.changed()


def assert_same(found: Sequence[Batch], wanted: Sequence[Batch]) -> None:
    assert [each.user for each in found] == [each.user for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.table.to_frame().write_csv() == other.table.to_frame().write_csv()
        assert one.table.schema == other.table.schema
        assert (one.filtered, one.scores, one.card) == (other.filtered, other.scores, other.card)
        assert candidates_of(one) == candidates_of(other)


def candidates_of(batch: Batch) -> str:
    """The candidates for alerts, each value in full."""
    with np.printoptions(threshold=10_000, floatmode="unique"):
        return repr(batch.candidates)


def test_the_chains_have_something_to_find() -> None:
    chain = Segment.from_stages(CHAINS["alerts"], unbounded=True).open()
    rows = [out for batches in micro_batches(0) for out in chain.push_many(batches)]
    assert sum(each.table.height for each in rows)
    assert sum(each.filtered for each in rows)
