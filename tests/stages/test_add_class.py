import pytest

from morpheus.columns import SCORE
from morpheus.core.batch import Losses
from morpheus.errors import UsageError
from morpheus.stages.add_class import AddClass
from morpheus.testing import make_events, make_losses, make_scored, run_stage


def passed(batch, **options):
    stage = AddClass(**options)
    stage.validate()
    [out] = run_stage(stage, [batch])
    return out


def test_a_class_is_whether_the_score_is_above_the_threshold():
    batch = make_losses(make_events(range(3)), [[2.0], [2.5], [1.0]])
    out = passed(batch, threshold=2)
    assert out.frame[SCORE].to_list() == [False, True, False]
    assert isinstance(out, Losses)


def test_with_a_prefix_the_score_stays():
    out = passed(make_scored(make_events([0, 1]), [0.25, 1.0]), prefix="is_")
    assert out.frame[SCORE].to_list() == [0.25, 1.0]
    assert out.frame[f"is_{SCORE}"].to_list() == [False, True]


def test_without_a_prefix_the_score_is_replaced_where_it_stands():
    batch = make_scored(make_events([0, 1]), [0.25, 1.0])
    out = passed(batch)
    assert out.frame.columns == batch.frame.columns
    assert out.frame[SCORE].to_list() == [False, True]


def test_events_without_a_score_are_of_no_class():
    assert passed(make_losses(make_events([0]))).frame[SCORE].to_list() == [False]


def test_a_label_that_nothing_computes_is_refused():
    with pytest.raises(UsageError, match=f"^add-class: no --label is left.*--label {SCORE}"):
        AddClass(label=("other",)).validate()
