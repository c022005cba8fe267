from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import SCORE
from morpheus.core.batch import RunMetrics, Scored, WithModel
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.stages.add_scores import AddScores
from morpheus.stages.filter import Filter
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
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


def passed(batch, **options):
    stage = Filter(**options)
    stage.validate()
    [out] = run_stage(stage, [batch])
    return out


def test_only_events_above_the_threshold_stay_with_their_losses():
    out = passed(make_losses(make_events(range(3)), [[1.0], [3.0], [2.0]]), threshold=2)
    assert out.frame[""].to_list() == [1]
    assert out.losses.tolist() == [[3.0]]
    assert out.filtered == 2


@settings(deadline=None)
@given(LOSSES, st.floats(0, 10))
def test_no_event_is_lost_uncounted(values, threshold):
    summary = RunMetrics()
    batch = make_losses(make_events(range(len(values))), [[value] for value in values])
    summary.add(passed(batch, threshold=threshold))
    assert summary.users.total() + summary.filtered == len(values)


def test_a_batch_of_which_nothing_stays_still_carries_the_count():
    summary = RunMetrics()
    summary.add(passed(make_losses(make_events([0, 1]), [[1.0], [1.0]]), threshold=5))
    assert (summary.filtered, summary.users.total()) == (2, 0)


def test_events_without_a_score_go():
    out = passed(make_losses(make_events([0, 1])), threshold=0)
    assert (out.frame.height, out.filtered) == (0, 2)


def test_counts_of_several_filters_add_up():
    batch = make_losses(make_events(range(3)), [[1.0], [2.0], [3.0]])
    assert passed(passed(batch, threshold=1), threshold=2).filtered == 2


def test_a_column_can_be_looked_at_instead():
    batch = make_scored(make_events(range(3), probs=[0.1, float("nan"), 0.9]))
    out = passed(batch, filter_source="DATAFRAME")
    assert out.frame["probs"].to_list() == [0.9]


def test_a_column_that_is_not_there_is_answered_with_those_that_are():
    batch = make_scored(make_events([0]))
    with pytest.raises(UsageError, match=f"no column `probs` here.*numbers are {SCORE}"):
        passed(batch, filter_source="dataframe")


def test_a_label_that_nothing_computes_is_refused():
    with pytest.raises(UsageError, match=f"^filter: no --label is left.*--label {SCORE}"):
        Filter(label=("other",)).validate()


def test_timeseries_may_follow():
    batch = passed(make_losses(make_events(range(3)), [[1.0], [3.0], [2.0]]), threshold=1.5)
    [out] = run_stage(Timeseries(), [batch])
    assert out.user == "ann"
    assert (out.frame.height, out.filtered) == (2, 1)


def test_the_kind_of_record_stays():
    batch = make_scored(make_events([0, 1]), [0.0, 1.0])
    out = passed(batch, options=PipelineOptions())
    assert isinstance(out, Scored)
    assert out.frame[SCORE].to_list() == [1.0]
    assert out.losses.dtype == np.float32


def test_what_stays_does_not_hang_on_how_events_are_batched():
    known, frame = fingerprint(), day(300, seed=1)
    frame = make_events(
        [60 * n for n in range(300)], **{name: frame[name] for name in frame.columns}
    )

    def kept(*sizes):
        parts = (
            WithModel(user="ann", frame=part, fingerprint=known, card=known.card)
            for part in split_frame(frame, sizes)
        )
        passed = run_stage(
            Filter(label=("risk",), threshold=0.1),
            run_stage(InfPytorch(), run_stage(Preprocess(), parts)),
        )
        again = run_stage(AddScores(label=(SCORE, "risk")), passed)
        return pl.concat([out.frame.select("", SCORE, "risk") for out in again])

    whole = kept()
    assert 0 < whole.height < 300
    assert kept(7, 0, 100).equals(whole)


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
    """Write a file of suppressions that end on a day."""

    def suppressions(until="2021-10-10"):
        path = tmp_path / f"{until}.toml"
        path.write_text(SUPPRESSIONS.format(until=until))
        return str(path)

    return suppressions


def test_what_a_suppression_holds_back_is_left_out_and_counted_by_suppression(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    summary, out = RunMetrics(), passed(batch, threshold=0.5, suppressions=(suppressions(),))
    summary.add(out)
    assert out.frame["eventName"].to_list() == ["Get"]
    assert out.losses.tolist() == [[3.0]]
    assert summary.suppressed == {"eventName = `Delete`, of ann, until 2021-10-10": 2}, (
        "not the fourth"
    )
    assert (summary.filtered, summary.users.total()) == (3, 1)


def test_a_suppression_that_has_ended_holds_nothing_back_and_this_is_told(suppressions, caplog):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    summary, out = (
        RunMetrics(),
        passed(batch, threshold=0.5, suppressions=(suppressions("2021-10-09"),)),
    )
    summary.add(out)
    assert out.frame.height == 3
    assert summary.suppressed == {}
    assert summary.expired == {"eventName = `Delete`, of ann, until 2021-10-09": 2}
    assert "of ann, until 2021-10-09, has ended: later events stay" in caplog.text


def test_a_suppression_that_has_not_ended_is_no_reason_to_warn(suppressions, caplog):
    Filter(suppressions=(suppressions("9999-01-01"),)).validate()
    assert caplog.text == ""


def test_counts_of_suppressions_of_several_filters_add_up(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    early, late = suppressions("2021-10-09"), suppressions("2021-10-10")
    out = passed(passed(batch, threshold=0.5, suppressions=(early,)), suppressions=(late,))
    summary = RunMetrics()
    summary.add(out)
    assert (summary.suppressed.total(), summary.expired.total(), summary.users.total()) == (2, 2, 1)


def test_suppressions_keep_the_laws_of_stages(suppressions):
    batch = make_losses(make_events(range(4), eventName=NAMES), [[1.0], [3.0], [2.0], [0.0]])
    check_stage(Filter(threshold=0.5, suppressions=(suppressions(),)), batch)


def test_the_parts_of_a_filter_need_no_file_of_suppressions(suppressions):
    path = suppressions()
    [part] = Filter(threshold=0.5, suppressions=(path,)).expand()
    Path(path).unlink()
    [out] = run_stage(part, [make_losses(make_events([0], eventName=["Delete"]), [[1.0]])])
    assert out.frame.height == 0
