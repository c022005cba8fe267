"""The laws of stages hold for ours, and a stage that breaks one is found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.core.batch import Batch, Encoded, Losses, OutputRows, Scored, WithModel
from morpheus.core.stage import StageContext, Transform
from morpheus.core.state import State
from morpheus.stages.add_class import AddClass
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.testing import check_stage, make_events, make_scored, run_stage
from people import COLUMNS, day, fingerprint, times


def batches() -> list[WithModel | Encoded | Losses | Scored]:
    """Ann's events, behind each stage that says more of them."""
    known = fingerprint()
    events = day(12, seed=3)
    frame = make_events([0] * 12, **{name: events[name] for name in COLUMNS})
    frame = frame.with_columns(times(12).alias(TIME))
    batch = WithModel(user="ann", frame=frame, fingerprint=known, card=known.card)
    chain = [Preprocess(), InfPytorch(), AddScores(label=("ae_anomaly_score", "risk"))]
    made = [batch]
    for stage in chain:
        made += list(run_stage(stage, made[-1:]))
    return made


def test_our_stages_obey() -> None:
    known, encoded, losses, rated = batches()
    check_stage(Preprocess(), known)
    check_stage(InfPytorch(), encoded)
    check_stage(AddScores(label=("ae_anomaly_score", "risk", "pvalue")), losses)
    for stage in (AddClass(), Filter(threshold=1.0), Explain(), Serialize()):
        check_stage(stage, rated)


class Count(State):
    events: int = 0
    noise: str = ""


@dataclass(frozen=True)
class Odd(Transform):
    """Breaks the law that it is asked to."""

    name = "odd"
    takes = (Scored,)
    gives = Scored
    breaks: str = ""

    def open(self, context: StageContext) -> Count:
        return context.cache.setdefault("count", Count()) if self.breaks == "users" else Count()

    def process(self, batch: Scored, state: Count) -> Iterator[Batch]:
        frame = batch.frame
        numbers = range(state.events, state.events + frame.height)
        frame = frame.with_columns(pl.Series("number", numbers, dtype=pl.Int64))
        state.events += frame.height
        if self.breaks == "size":
            state.noise += "x" * state.max_bytes
        if self.breaks == "count":
            frame = frame.head(1)
        if self.breaks == "cut":
            frame = frame.with_columns(pl.lit(frame.height).alias("rows"))
        if self.breaks == "change":
            batch.frame.insert_column(0, pl.Series("new", range(frame.height)))
        if self.breaks == "gives":
            yield OutputRows(user=batch.user, frame=frame)
        else:
            yield replace(batch, frame=frame)


@pytest.mark.parametrize(
    ("breaks", "law"),
    [
        ("count", "loses no event"),
        ("cut", r"same rows for batches of \[1, 1, 1, 1\]"),
        ("change", "does not change the batch"),
        ("gives", "gives Scored"),
        ("users", "keeps users apart"),
        ("size", "has a state of bounded size"),
    ],
)
def test_a_broken_law_is_named(breaks: str, law: str) -> None:
    batch = make_scored(make_events(range(4)))
    check_stage(Odd(), batch)
    with pytest.raises(AssertionError, match=law):
        check_stage(Odd(breaks=breaks), batch)
