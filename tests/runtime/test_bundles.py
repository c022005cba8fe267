"""A micro-batch of many users is scored as the users are one by one, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest

from morpheus.core.batch import Batch, Table, WithModel
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.runtime.chain import Segment
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
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
    chain = Segment.from_stages(FRONT, unbounded=True).open()
    chain.push_many(batches)
    assert len(asked) <= 1  # the user with a number column


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


def assert_same(found: Sequence[Batch], wanted: Sequence[Batch]) -> None:
    assert [each.user for each in found] == [each.user for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.table.to_frame().write_csv() == other.table.to_frame().write_csv()
        assert one.table.schema == other.table.schema
        assert (one.filtered, one.scores, one.card) == (other.filtered, other.scores, other.card)


def test_the_chains_have_something_to_find() -> None:
    chain = Segment.from_stages(CHAINS["alerts"], unbounded=True).open()
    rows = [out for batches in micro_batches(0) for out in chain.push_many(batches)]
    assert sum(each.table.height for each in rows)
    assert sum(each.filtered for each in rows)
