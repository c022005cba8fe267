import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from morpheus.columns import SCORE
from morpheus.core.batch import RunMetrics, WithModel
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.stages.add_scores import AddScores
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.testing import make_events, make_losses, run_stage
from people import COLUMNS, day, fingerprint

FINITE = st.floats(0, 1e4, width=32)


def test_the_score_is_the_mean_of_the_column_losses():
    [out] = run_stage(AddScores(), [make_losses(make_events([0, 1]), [[1.0, 3.0], [0.5, 0.0]])])
    assert out.frame[SCORE].to_list() == [2.0, 0.25]
    assert out.frame.columns[-1] == SCORE


def test_scores_have_six_decimals():
    [out] = run_stage(AddScores(), [make_losses(make_events([0]), [[0.1, 0.2, 0.7]])])
    assert out.frame[SCORE].to_list() == [0.333333]


@given(arrays.arrays(np.float32, (7, 33), elements=FINITE), st.integers(1, 6))
def test_a_score_hangs_on_its_own_event_alone(values, at):
    frame = make_events(range(7))
    stage = AddScores()
    [whole] = run_stage(stage, [make_losses(frame, values)])
    parts = run_stage(
        stage, [make_losses(frame[:at], values[:at]), make_losses(frame[at:], values[at:])]
    )
    assert [v for out in parts for v in out.frame[SCORE]] == whole.frame[SCORE].to_list()


def test_users_without_a_fingerprint_pass_with_nan_and_are_counted_unscored():
    unknown, summary = make_losses(make_events([0, 1])), RunMetrics()
    [out] = run_stage(AddScores(), [unknown])
    summary.add(out)
    assert all(math.isnan(score) for score in out.frame[SCORE])
    assert (summary.scored, summary.unscored_reasons) == (0, {"ann": "no fingerprint"})


def test_scored_events_are_counted_whatever_the_column_is_called():
    summary = RunMetrics()
    [out] = run_stage(AddScores(prefix="dfp_"), [make_losses(make_events([0, 1]), [[1.0], [2.0]])])
    summary.add(out)
    assert f"dfp_{SCORE}" in out.frame.columns
    assert summary.scored == 2


def test_a_column_of_that_name_is_overwritten_in_its_place():
    frame = make_events([0], **{SCORE: ["old"]})
    [out] = run_stage(AddScores(), [make_losses(frame, [[4.0]])])
    assert out.frame.columns == frame.columns
    assert out.frame[SCORE].to_list() == [4.0]
    assert frame[SCORE].to_list() == ["old"]


def test_the_one_output_takes_the_name_of_the_one_label():
    stage = AddScores(options=PipelineOptions(labels=("surprise",)))
    stage.validate()
    [out] = run_stage(stage, [make_losses(make_events([0]), [[4.0]])])
    assert out.frame["surprise"].to_list() == [4.0]


def test_unknown_labels_are_warned_of(caplog):
    AddScores(label=("other", SCORE)).validate()
    assert caplog.messages == [
        "The label 'other' is not in Config.class_labels and will be ignored"
    ]


def test_no_label_left_is_refused():
    with pytest.raises(UsageError, match=f"no --label is left.*--label {SCORE}"):
        AddScores(label=("other",)).validate()


def test_more_labels_than_outputs_are_refused():
    stage = AddScores(options=PipelineOptions(labels=("one", "other")))
    with pytest.raises(UsageError, match=r"there are 2 labels .* the model has 1 output"):
        stage.validate()


def anns(count=12):
    """Ann's events with their losses, and what is known of her."""
    known, events = fingerprint(), day(count, seed=3)
    frame = make_events(range(count), **{name: events[name] for name in COLUMNS})
    batch = WithModel(user="ann", frame=frame, fingerprint=known, card=known.card)
    [encoded] = run_stage(Preprocess(), [batch])
    return list(run_stage(InfPytorch(), [encoded]))


def test_compat_gives_the_columns_of_22_11_in_its_order():
    later = PipelineOptions(compat="22.11", columns=("action", "agent", "absent"))
    [out] = run_stage(AddScores(options=later), anns())
    added = ["action_z_loss", "agent_z_loss", "absent_z_loss", "max_abs_z", "mean_abs_z"]
    assert out.frame.columns[-7:] == [*added, "reconstruct_loss", "zscore"]
    assert out.frame["absent_z_loss"].is_nan().all()


def test_compat_counts_both_ways():
    labels = ("action_z_loss", "zscore", "abs_zscore")
    both = [
        AddScores(label=labels, options=PipelineOptions(compat=release, columns=("action",)))
        for release in ("22.08", "22.11")
    ]
    earlier, later = (out.frame for stage in both for out in run_stage(stage, anns()))
    assert earlier["action_z_loss"].min() < 0
    assert later["action_z_loss"].to_list() == earlier["action_z_loss"].abs().to_list()
    assert earlier["zscore"].min() == 0 < later["zscore"].min()
    assert later["zscore"].to_list() == later["abs_zscore"].to_list()


def test_compat_leaves_what_is_asked_for_as_it_is():
    [plain] = run_stage(AddScores(), anns())
    [out] = run_stage(AddScores(label=(SCORE,), options=PipelineOptions(compat="22.11")), anns())
    assert out.frame[SCORE].to_list() == plain.frame[SCORE].to_list()


def test_two_labels_name_the_two_outputs_of_22_11():
    stage = AddScores(options=PipelineOptions(labels=("one", "other"), compat="22.11"))
    stage.validate()
    [out] = run_stage(stage, anns())
    [known] = run_stage(AddScores(options=PipelineOptions(compat="22.11")), anns())
    assert out.frame["other"].to_list() == known.frame["zscore"].to_list()
