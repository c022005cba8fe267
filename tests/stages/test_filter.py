from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import SCORE
from morpheus.core.batch import RunMetrics, Scored, Table, WithModel
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.stages.add_scores import AddScores
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.timeseries import Timeseries
from morpheus.testing import (
    check_stage,
    make_events,
    make_losses,
    make_scored,
    run_stage,
    split_frame,
)
from people import day, fingerprint

LOSSES = st.lists(st.floats(0, 10, width=32), min_size=1, max_size=9)


def run_filter(batch, **options):
    stage = Filter(**options)
    stage.validate()
    [out] = run_stage(stage, [batch])
    return out


def test_events_above_the_threshold_are_kept_with_their_losses():
    out = run_filter(make_losses(make_events(range(3)), [[1.0], [3.0], [2.0]]), threshold=2)
    assert out.table[""].to_list() == [1]
    assert out.losses.tolist() == [[3.0]]
    assert out.filtered == 2


@settings(deadline=None)
@given(LOSSES, st.floats(0, 10))
def test_every_dropped_event_is_counted(values, threshold):
    metrics = RunMetrics()
    batch = make_losses(make_events(range(len(values))), [[value] for value in values])
    metrics.add(run_filter(batch, threshold=threshold))
    assert metrics.users.total() + metrics.filtered == len(values)


def test_batch_without_remaining_events_carries_the_count():
    metrics = RunMetrics()
    metrics.add(run_filter(make_losses(make_events([0, 1]), [[1.0], [1.0]]), threshold=5))
    assert (metrics.filtered, metrics.users.total()) == (2, 0)


def test_events_without_a_score_are_dropped():
    out = run_filter(make_losses(make_events([0, 1])), threshold=0)
    assert (out.table.height, out.filtered) == (0, 2)


def test_counts_of_several_filters_add_up():
    batch = make_losses(make_events(range(3)), [[1.0], [2.0], [3.0]])
    assert run_filter(run_filter(batch, threshold=1), threshold=2).filtered == 2


def test_column_can_be_compared_instead_of_scores():
    batch = make_scored(make_events(range(3), probs=[0.1, float("nan"), 0.9]))
    out = run_filter(batch, filter_source="DATAFRAME")
    assert out.table["probs"].to_list() == [0.9]


def test_missing_column_is_rejected_with_the_existing_ones():
    batch = make_scored(make_events([0]))
    with pytest.raises(UsageError, match=f"no column `probs` here.*Number columns are {SCORE}"):
        run_filter(batch, filter_source="dataframe")


def test_unknown_label_is_rejected():
    with pytest.raises(UsageError, match=f"^filter: no --label is left.*--label {SCORE}"):
        Filter(label=("other",)).validate()


def test_timeseries_can_follow():
    batch = run_filter(make_losses(make_events(range(3)), [[1.0], [3.0], [2.0]]), threshold=1.5)
    [out] = run_stage(Timeseries(), [batch])
    assert out.user == "ann"
    assert (out.table.height, out.filtered) == (2, 1)


def test_class_of_the_batch_is_kept():
    batch = make_scored(make_events([0, 1]), [0.0, 1.0])
    out = run_filter(batch, options=PipelineOptions())
    assert isinstance(out, Scored)
    assert out.table[SCORE].to_list() == [1.0]
    assert out.losses.dtype == np.float32


def test_result_does_not_depend_on_the_division_into_batches():
    model, frame = fingerprint(), day(300, seed=1)
    frame = make_events(
        [60 * n for n in range(300)], **{name: frame[name] for name in frame.columns}
    )

    def run(*sizes):
        parts = (
            WithModel(user="ann", table=Table(part), fingerprint=model, card=model.card)
            for part in split_frame(frame, sizes)
        )
        filtered = run_stage(
            Filter(label=("risk",), threshold=0.1),
            run_stage(InfPytorch(), run_stage(Preprocess(), parts)),
        )
        scored = run_stage(AddScores(label=(SCORE, "risk")), filtered)
        return pl.concat([out.table.to_frame().select("", SCORE, "risk") for out in scored])

    whole = run()
    assert 0 < whole.height < 300
    assert run(7, 0, 100).equals(whole)


SUPPRESSIONS = """
format = "morpheus-suppressions"
version = 1
[[suppression]]
where.eventName = "Delete"
users = ["ann"]
until = {until}
reason = "asked"
"""
NAMES = ["Delete", "Get", "Delete", "Delete"]


@pytest.fixture
def suppressions(tmp_path):
    """Write a file of suppressions that expire on a day."""

    def suppressions(until="2021-10-10"):
        path = tmp_path / f"{until}.toml"
        path.write_text(SUPPRESSIONS.format(until=until))
        return str(path)

    return suppressions


def test_suppressed_events_are_dropped_and_counted_by_suppression(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    metrics, out = RunMetrics(), run_filter(batch, threshold=0.5, suppressions=(suppressions(),))
    metrics.add(out)
    assert out.table["eventName"].to_list() == ["Get"]
    assert out.losses.tolist() == [[3.0]]
    assert metrics.suppressed == {"eventName = `Delete`, of ann, until 2021-10-10": 2}, (
        "the fourth event is below the threshold"
    )
    assert (metrics.filtered, metrics.users.total()) == (3, 1)


def test_expired_suppression_drops_no_events_and_gives_a_warning(suppressions, caplog):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    metrics, out = (
        RunMetrics(),
        run_filter(batch, threshold=0.5, suppressions=(suppressions("2021-10-09"),)),
    )
    metrics.add(out)
    assert out.table.height == 3
    assert metrics.suppressed == {}
    assert metrics.expired == {"eventName = `Delete`, of ann, until 2021-10-09": 2}
    assert "of ann, until 2021-10-09, has expired: later events are kept" in caplog.text


def test_current_suppression_gives_no_warning(suppressions, caplog):
    Filter(suppressions=(suppressions("9999-01-01"),)).validate()
    assert caplog.text == ""


def test_suppression_counts_of_several_filters_add_up(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    early, late = suppressions("2021-10-09"), suppressions("2021-10-10")
    out = run_filter(run_filter(batch, threshold=0.5, suppressions=(early,)), suppressions=(late,))
    metrics = RunMetrics()
    metrics.add(out)
    assert (metrics.suppressed.total(), metrics.expired.total(), metrics.users.total()) == (2, 2, 1)


def test_filter_with_suppressions_obeys_the_laws_of_stages(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    check_stage(Filter(threshold=0.5, suppressions=(suppressions(),)), batch)


def test_expanded_filter_does_not_need_the_suppressions_file(suppressions):
    path = suppressions()
    [part] = Filter(threshold=0.5, suppressions=(path,)).expand()
    Path(path).unlink()
    [out] = run_stage(part, [make_losses(make_events([0], eventName=["Delete"]), [[1.0]])])
    assert out.table.height == 0
