"""The laws of stages hold for ours, and a stage that breaks one is found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.records import Encoded, Fingerprinted, Losses, Rows, Scored
from morpheus.stage import Stage
from morpheus.stages.add_class import AddClass
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.testing import check_laws, events_at, scored
from people import COLUMNS, day, fingerprint, times


def batches() -> list[Fingerprinted | Encoded | Losses | Scored]:
    """Ann's events, behind each stage that says more of them."""
    known = fingerprint()
    events = day(12, seed=3)
    frame = events_at([0] * 12, **{name: events[name] for name in COLUMNS})
    frame = frame.with_columns(times(12).alias(TIME))
    batch = Fingerprinted(user="ann", frame=frame, fingerprint=known, card=known.card)
    chain = [Preprocess(), InfPytorch(), AddScores(label=("ae_anomaly_score", "risk"))]
    made = [batch]
    for stage in chain:
        made += list(stage(iter(made[-1:])))
    return made


def test_our_stages_obey() -> None:
    known, encoded, losses, rated = batches()
    check_laws(Preprocess(), known)
    check_laws(InfPytorch(), encoded)
    check_laws(AddScores(label=("ae_anomaly_score", "risk", "pvalue")), losses)
    for stage in (AddClass(), Filter(threshold=1.0), Explain(), Serialize()):
        check_laws(stage, rated)


@dataclass(frozen=True)
class Odd(Stage):
    """Breaks the law that it is asked to."""

    takes = (Scored,)
    gives = Scored
    breaks: str = ""

    def __call__(self, batches: Iterator[Scored]) -> Iterator[Scored]:
        for batch in batches:
            frame = batch.frame
            if self.breaks == "count":
                frame = frame.head(1)
            if self.breaks == "cut":
                frame = frame.with_columns(pl.lit(frame.height).alias("rows"))
            if self.breaks == "change":
                frame.insert_column(0, pl.Series("new", range(frame.height)))
            if self.breaks == "gives":
                yield Rows(user=batch.user, frame=frame)
            else:
                yield replace(batch, frame=frame)


@pytest.mark.parametrize(
    ("breaks", "law"),
    [
        ("count", "loses no event"),
        ("cut", r"same rows for batches of \[1, 1, 1, 1\]"),
        ("change", "does not change the batch"),
        ("gives", "gives Scored"),
    ],
)
def test_a_broken_law_is_named(breaks: str, law: str) -> None:
    batch = scored(events_at(range(4)))
    check_laws(Odd(), batch)
    with pytest.raises(AssertionError, match=law):
        check_laws(Odd(breaks=breaks), batch)
