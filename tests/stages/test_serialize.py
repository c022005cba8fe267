import pytest

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import OutputRows
from morpheus.errors import UsageError
from morpheus.stages.serialize import Serialize
from morpheus.testing import make_events, make_scored, run_stage


def columns(stage, *names):
    frame = make_events([0], **{name: ["x"] for name in names})
    [out] = run_stage(stage, [make_scored(frame)])
    return [name for name in out.frame.columns if name not in {ROW, INDEX, TIME}]


def test_all_columns_are_kept_but_upstreams_own():
    assert columns(Serialize(), "a", "ID", "IDs", "_ts_start") == ["a", "IDs", "ae_anomaly_score"]


def test_includes_are_a_union_matched_from_the_beginning_in_the_frames_order():
    stage = Serialize(include=("event", "ae_"))
    assert columns(stage, "eventName", "recentevent", "eventID") == [
        "eventName",
        "eventID",
        "ae_anomaly_score",
    ]


def test_excludes_take_from_what_is_included():
    assert columns(
        Serialize(include=("event",), exclude=("eventID$",)), "eventName", "eventID"
    ) == ["eventName"]


def test_the_row_number_stays_and_the_index_is_a_column_like_others():
    [out] = run_stage(Serialize(include=("a$",)), [make_scored(make_events([0], a=["x"]))])
    assert out.frame.columns == [ROW, "a"]


def test_rows_in_are_rows_out_without_the_fingerprint():
    batches = [make_scored(make_events(range(n))) for n in (3, 0, 2)]
    out = list(run_stage(Serialize(), batches))
    assert [batch.frame.height for batch in out] == [3, 0, 2]
    assert all(type(batch) is OutputRows and batch.fingerprint is None for batch in out)
    assert all(batch.scores == ("ae_anomaly_score",) for batch in out)


def test_the_first_events_decide_the_columns(caplog):
    first, later = make_events([0], a=["x"]), make_events([1, 2], b=["y", "z"])
    out = list(run_stage(Serialize(), [make_scored(first), make_scored(later), make_scored(later)]))
    assert out[1].frame.columns == out[0].frame.columns
    assert out[1].frame["a"].to_list() == [None, None]
    [message] = caplog.messages
    assert message.startswith("serialize: column 'b' came after the first events and is dropped.")


def test_columns_follow_each_batch_when_they_are_not_fixed():
    first, later = make_events([0], a=["x"]), make_events([1], b=["y"])
    out = list(run_stage(Serialize(fixed_columns=False), [make_scored(first), make_scored(later)]))
    assert "b" in out[1].frame.columns
    assert "a" not in out[1].frame.columns


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_bad_pattern_is_refused_by_name(option):
    with pytest.raises(UsageError, match=rf"--{option} 'a\(' is not a regular expression"):
        Serialize(**{option: ("a(",)}).validate()
