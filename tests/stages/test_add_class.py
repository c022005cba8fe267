import pytest

from morpheus.columns import SCORE
from morpheus.core.batch import Losses
from morpheus.errors import UsageError
from morpheus.stages.add_scores import AddClass
from morpheus.testing import make_events, make_losses, make_scored, run_stage


def add_class(batch, **options):
    stage = AddClass(**options)
    stage.validate()
    [out] = run_stage(stage, [batch])
    return out


def test_class_is_true_for_a_score_above_the_threshold():
    batch = make_losses(make_events(range(3)), [[2.0], [2.5], [1.0]])
    out = add_class(batch, threshold=2)
    assert out.table[SCORE].to_list() == [False, True, False]
    assert isinstance(out, Losses)


def test_score_is_kept_with_a_prefix():
    out = add_class(make_scored(make_events([0, 1]), [0.25, 1.0]), prefix="is_")
    assert out.table[SCORE].to_list() == [0.25, 1.0]
    assert out.table.to_frame()[f"is_{SCORE}"].to_list() == [False, True]


def test_score_is_replaced_in_its_place_without_a_prefix():
    batch = make_scored(make_events([0, 1]), [0.25, 1.0])
    out = add_class(batch)
    assert out.table.names == batch.table.names
    assert out.table[SCORE].to_list() == [False, True]


def test_class_of_events_without_a_score_is_false():
    assert add_class(make_losses(make_events([0]))).table[SCORE].to_list() == [False]


def test_unknown_label_is_rejected():
    with pytest.raises(UsageError, match=f"^add-class: no --label is left.*--label {SCORE}"):
        AddClass(label=("other",)).validate()
