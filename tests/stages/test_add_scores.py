import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from morpheus.columns import SCORE
from morpheus.core.batch import RunMetrics, Table, WithModel
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.testing import make_events, make_losses, run_stage
from people import COLUMNS, day, fingerprint

FINITE = st.floats(0, 1e4, width=32)


def test_score_is_the_mean_of_the_column_losses():
    [out] = run_stage(AddScores(), [make_losses(make_events([0, 1]), [[1.0, 3.0], [0.5, 0.0]])])
    assert out.table[SCORE].to_list() == [2.0, 0.25]
    assert out.table.names[-1] == SCORE


def test_scores_have_six_decimals():
    [out] = run_stage(AddScores(), [make_losses(make_events([0]), [[0.1, 0.2, 0.7]])])
    assert out.table[SCORE].to_list() == [0.333333]


@given(arrays.arrays(np.float32, (7, 33), elements=FINITE), st.integers(1, 6))
def test_score_depends_only_on_its_own_event(values, cut):
    frame = make_events(range(7))
    stage = AddScores()
    [whole] = run_stage(stage, [make_losses(frame, values)])
    parts = run_stage(
        stage, [make_losses(frame[:cut], values[:cut]), make_losses(frame[cut:], values[cut:])]
    )
    assert [score for out in parts for score in out.table[SCORE]] == whole.table[SCORE].to_list()


def test_users_without_a_fingerprint_get_nan_and_are_counted_as_unscored():
    batch, metrics = make_losses(make_events([0, 1])), RunMetrics()
    [out] = run_stage(AddScores(), [batch])
    metrics.add(out)
    assert all(math.isnan(score) for score in out.table[SCORE])
    assert (metrics.scored, metrics.unscored_reasons) == (0, {"ann": "no fingerprint"})


def test_scored_events_are_counted_for_any_column_name():
    metrics = RunMetrics()
    [out] = run_stage(AddScores(prefix="dfp_"), [make_losses(make_events([0, 1]), [[1.0], [2.0]])])
    metrics.add(out)
    assert f"dfp_{SCORE}" in out.table
    assert metrics.scored == 2


def test_column_of_the_same_name_is_replaced_in_its_place():
    frame = make_events([0], **{SCORE: ["old"]})
    [out] = run_stage(AddScores(), [make_losses(frame, [[4.0]])])
    assert out.table.names == frame.columns
    assert out.table[SCORE].to_list() == [4.0]
    assert frame[SCORE].to_list() == ["old"]


def test_single_label_renames_the_single_output():
    stage = AddScores(options=PipelineOptions(labels=("surprise",)))
    stage.validate()
    [out] = run_stage(stage, [make_losses(make_events([0]), [[4.0]])])
    assert out.table["surprise"].to_list() == [4.0]


def test_unknown_label_is_ignored_with_a_warning(caplog):
    AddScores(label=("other", SCORE)).validate()
    assert caplog.messages == ["add-scores: there is no score `other`, so this --label is ignored."]


def test_only_unknown_labels_are_rejected():
    with pytest.raises(UsageError, match=f"no --label is left.*--label {SCORE}"):
        AddScores(label=("other",)).validate()


def test_more_labels_than_outputs_are_rejected():
    stage = AddScores(options=PipelineOptions(labels=("one", "other")))
    with pytest.raises(UsageError, match=r"there are 2 labels .* the model has 1 output"):
        stage.validate()


def losses_of_ann(count=12):
    """Ann's events with her fingerprint and their losses."""
    model, events = fingerprint(), day(count, seed=3)
    frame = make_events(range(count), **{name: events[name] for name in COLUMNS})
    batch = WithModel(user="ann", table=Table(frame), fingerprint=model, card=model.card)
    [encoded] = run_stage(Preprocess(), [batch])
    return list(run_stage(InfPytorch(), [encoded]))


def test_compat_22_11_adds_its_columns_in_its_order():
    options = PipelineOptions(compat="22.11", columns=("action", "agent", "absent"))
    [out] = run_stage(AddScores(options=options), losses_of_ann())
    added = ["action_z_loss", "agent_z_loss", "absent_z_loss", "max_abs_z", "mean_abs_z"]
    assert out.table.names[-7:] == [*added, "reconstruct_loss", "zscore"]
    assert out.table["absent_z_loss"].is_nan().all()


def test_compat_22_11_scores_have_no_sign():
    labels = ("action_z_loss", "zscore", "abs_zscore")
    stages = [
        AddScores(label=labels, options=PipelineOptions(compat=release, columns=("action",)))
        for release in ("22.08", "22.11")
    ]
    earlier, later = (
        out.table.to_frame() for stage in stages for out in run_stage(stage, losses_of_ann())
    )
    assert earlier["action_z_loss"].min() < 0
    assert later["action_z_loss"].to_list() == earlier["action_z_loss"].abs().to_list()
    assert earlier["zscore"].min() == 0 < later["zscore"].min()
    assert later["zscore"].to_list() == later["abs_zscore"].to_list()


def test_compat_does_not_change_requested_labels():
    [expected] = run_stage(AddScores(), losses_of_ann())
    [out] = run_stage(
        AddScores(label=(SCORE,), options=PipelineOptions(compat="22.11")), losses_of_ann()
    )
    assert out.table[SCORE].to_list() == expected.table[SCORE].to_list()


def test_two_labels_rename_the_two_outputs_of_22_11():
    stage = AddScores(options=PipelineOptions(labels=("one", "other"), compat="22.11"))
    stage.validate()
    [out] = run_stage(stage, losses_of_ann())
    [expected] = run_stage(AddScores(options=PipelineOptions(compat="22.11")), losses_of_ann())
    assert out.table["other"].to_list() == expected.table["zscore"].to_list()
