"""Every stage obeys the laws of stages, and a stage that breaks a law is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from tempfile import mkdtemp
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import TIME, TS_ANOMALY
from morpheus.core.batch import Batch, Events, OutputRows, Scored, Table, WithModel
from morpheus.core.registry import load_stage, stage_names
from morpheus.core.stage import PipelineOptions, Sink, Stage, StageContext, Transform
from morpheus.core.state import State, StateKey
from morpheus.errors import UsageError
from morpheus.models.store import ModelIndex, commit_index, put_model
from morpheus.runtime.chain import Segment
from morpheus.stages.add_scores import AddClass, AddScores
from morpheus.stages.compat import Buffer, Delay, Trigger
from morpheus.stages.explain import Explain
from morpheus.stages.filter import CandidateFilter, Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from morpheus.testing import check_stage, make_events, make_scored, run_stage, split_batch
from people import COLUMNS, day, fingerprint, times

REMOVED = {"gen-viz", "inf-triton"}
"""Stages that only say what to use instead."""
USERS = ("ann", "bob", None)


@dataclass(frozen=True)
class Case:
    """A stage, and a batch that it takes."""

    stage: Transform
    batch: Batch


@cache
def cases() -> dict[str, Case]:
    """Every keyed stage with the events of a user, by a name that begins with the stage's word."""
    known = fingerprint()
    events = day(12, seed=3)
    frame = make_events([0] * 12, **{name: events[name] for name in COLUMNS})
    frame = frame.with_columns(times(12).alias(TIME))
    models = mkdtemp()
    commit_index(models, ModelIndex.from_cards({"ann": put_model(models, known)}))
    with_model = WithModel(user="ann", table=Table(frame), fingerprint=known, card=known.card)
    [encoded] = run_stage(Preprocess(), [with_model])
    [losses] = run_stage(InfPytorch(), [encoded])
    [scored] = run_stage(AddScores(label=("ae_anomaly_score", "risk")), [losses])
    new = Events(user="ann", table=Table(frame))
    columns = PipelineOptions(columns=tuple(COLUMNS))
    burst = make_scored(make_events([*range(0, 1800, 60), *range(1810, 1820), 1900]))
    days = make_scored(make_events([*range(0, 200_000, 20_000), *range(200_000, 200_009), 300_000]))
    return {
        "train-ae": Case(TrainAe(train_min_history=6, train_epochs=1, options=columns), new),
        "train-ae --pretrained_filename": Case(
            TrainAe(pretrained_filename=models, options=columns), new
        ),
        "preprocess": Case(Preprocess(), with_model),
        "inf-pytorch": Case(InfPytorch(), encoded),
        "add-scores": Case(AddScores(label=("ae_anomaly_score", "risk", "pvalue")), losses),
        "add-class": Case(AddClass(), scored),
        "filter": Case(Filter(threshold=1.0), scored),
        "filter --alerts_per_day": Case(CandidateFilter(), scored),
        "timeseries": Case(
            Timeseries(resolution="1m", min_window="6m", hot_start=True, zscore_threshold=2.0),
            burst,
        ),
        "timeseries --causal": Case(
            Timeseries(causal=True, resolution="1m", min_window="6m", zscore_threshold=2.0), burst
        ),
        "timeseries --detector=rate": Case(Timeseries(detector="rate", hot_start=True), days),
        "explain": Case(Explain(), scored),
        "serialize": Case(Serialize(), scored),
        "trigger": Case(Trigger(), scored),
        "buffer": Case(Buffer(), scored),
        "delay": Case(Delay(), scored),
    }


NAMES = (
    *("train-ae", "train-ae --pretrained_filename", "preprocess", "inf-pytorch", "add-scores"),
    *("add-class", "filter", "filter --alerts_per_day", "timeseries", "timeseries --causal"),
    *("timeseries --detector=rate", "explain", "serialize", "trigger", "buffer", "delay"),
)


def is_keyed(stage: type[Stage]) -> bool:
    return issubclass(stage, Transform) and not issubclass(stage, Sink) and stage.scope == "keyed"


def test_every_keyed_stage_has_a_case() -> None:
    keyed = {word for word in stage_names() if is_keyed(load_stage(word))}
    assert {name.split()[0] for name in cases()} == keyed - REMOVED
    assert tuple(cases()) == NAMES


def test_cases_have_something_to_find() -> None:
    for name in ("timeseries", "timeseries --causal", "timeseries --detector=rate"):
        flags = join(run_stage(cases()[name].stage, [cases()[name].batch]))[TS_ANOMALY]
        assert 0 < flags.sum() < len(flags), name


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_obeys_the_laws(name: str) -> None:
    case = cases()[name]
    check_stage(case.stage, case.batch)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_users_cuts_and_restarts_do_not_matter(name: str, data: st.DataObject) -> None:
    case = cases()[name]
    queues = []
    for user in USERS:
        sizes = data.draw(st.lists(st.integers(0, 5), max_size=5))
        queues.append(list(split_batch(replace(case.batch, user=user), sizes)))
    turns = [number for number, queue in enumerate(queues) for _ in queue]
    batches = [queues[number].pop(0) for number in data.draw(st.permutations(turns))]
    ends = data.draw(st.sets(st.integers(1, max(1, len(batches) - 1)), max_size=3))
    if case.stage.needs.per_run:
        ends = set()
    out = run_in_parts(case.stage, batches, sorted(ends))
    for user in USERS:
        alone = run_stage(case.stage, [replace(case.batch, user=user)])
        assert join([each for each in out if each.user == user]).equals(join(alone))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_batches_of_many_users_pushed_together_are_as_one_by_one(
    name: str, data: st.DataObject
) -> None:
    case = cases()[name]
    cuts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    parts = {user: list(split_batch(replace(case.batch, user=user), cuts)) for user in USERS}
    segment = replace(Segment.from_stages([case.stage], unbounded=True), saves=True)
    joined, alone = segment.open(), segment.open()
    for number in range(len(parts["ann"])):
        bundle = share_columns([parts[user][number] for user in USERS])
        if data.draw(st.booleans()):
            bundle *= 2  # the same user twice
        found = joined.push_many(bundle)
        wanted = [output for batch in bundle for output in alone.push(batch)]
        assert_equal(found, wanted)
    assert_equal(joined.flush(), alone.flush())
    assert joined.changed == alone.changed


def share_columns(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches, with tables that are slices of one, as sources give them."""
    tables = Table.concat(batch.table for batch in batches).split(b.table.height for b in batches)
    return [replace(each, table=table) for each, table in zip(batches, tables, strict=True)]


def assert_equal(found: Sequence[Batch], wanted: Sequence[Batch]) -> None:
    assert [each.user for each in found] == [each.user for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.table.equals(other.table)
        assert (one.filtered, one.scores) == (other.filtered, other.scores)
        for name in ("losses", "encoded"):
            pair = [getattr(each, name, None) for each in (one, other)]
            losses = [
                each if name == "losses" else each and each.codes[each.inverse] for each in pair
            ]
            assert (
                np.array_equal(*losses, equal_nan=True) if losses[0] is not None else not losses[1]
            )


def run_in_parts(stage: Transform, batches: Sequence[Batch], ends: Sequence[int]) -> list[Batch]:
    """Run batches in consecutive runs, each with the states that the runs before have saved."""
    segment = replace(Segment.from_stages([stage], unbounded=True), saves=True)
    saved: dict[StateKey, bytes] = {}
    out: list[Batch] = []
    for start, end in zip([0, *ends], [*ends, None], strict=True):
        opened = segment.open(saved)
        out += opened.run(batches[start:end])
        saved |= opened.changed
    return out


def join(batches: Sequence[Batch]) -> pl.DataFrame:
    """All rows of some batches."""
    frames = [batch.table.to_frame() for batch in batches]
    return pl.concat([frame for frame in frames if frame.height] or frames[:1])


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
        frame = batch.table.to_frame()
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
            batch.table.to_frame().insert_column(0, pl.Series("new", range(frame.height)))
        if self.breaks == "losses":
            batch.losses[:] = 0
        if self.breaks == "nothing":
            return
        if self.breaks == "cut losses":
            yield replace(batch, table=Table(frame), losses=batch.losses * frame.height)
        elif self.breaks == "gives":
            yield OutputRows(user=batch.user, table=Table(frame))
        else:
            yield replace(batch, table=Table(frame))


@pytest.mark.parametrize(
    ("breaks", "law"),
    [
        ("count", "loses no event"),
        ("cut", r"same rows for batches of \[1, 1, 1, 1\]"),
        ("change", "does not change the batch"),
        ("losses", "does not change the batch"),
        ("nothing", "loses no event"),
        ("cut losses", r"same rows for batches of \[1, 1, 1, 1\]"),
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


@dataclass(frozen=True)
class Unreturned(Transform):
    """Gives what is no batch from the method that it is asked to."""

    name = "unreturned"
    takes = (Scored,)
    gives = Scored
    scope: ClassVar[Literal["keyed", "global", "barrier"]] = "keyed"
    method: str = "process"
    value: object = None

    def process(self, batch: Scored, state: None) -> Any:
        return self.value if self.method == "process" else [batch]

    def flush(self, state: None) -> Any:
        return self.value if self.method == "flush" else []


@dataclass(frozen=True)
class UnreturnedForAll(Unreturned):
    """The same for a stage with one state."""

    scope = "global"


@pytest.mark.parametrize("kind", [Unreturned, UnreturnedForAll])
@pytest.mark.parametrize("method", ["process", "flush"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "returns None, not batches"),
        (make_scored(make_events([0])), "returns Scored, not batches"),
        ([None], "gives an object that is no batch, NoneType"),
        (make_events([0]), "gives an object that is no batch, Series"),
    ],
)
def test_a_method_that_gives_no_batches_is_named_with_what_it_must_do(
    kind: type[Unreturned], method: str, value: object, found: str
) -> None:
    stage = kind(method=method, value=value)
    text = rf"stage `unreturned`: `{kind.__name__}\.{method}` {found}.* It must yield each batch"
    batch = make_scored(make_events(range(4)))
    with pytest.raises(AssertionError, match=text):
        check_stage(stage, batch)
    for unbounded in (False, True):
        with pytest.raises(UsageError, match=text):
            run_stage(stage, [batch], unbounded=unbounded)
