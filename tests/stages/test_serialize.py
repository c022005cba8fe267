import pytest

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import OutputRows
from morpheus.errors import UsageError
from morpheus.stages.serialize import Serialize
from morpheus.testing import make_events, make_scored, run_stage


def kept_columns(stage, *names):
    frame = make_events([0], **{name: ["x"] for name in names})
    [out] = run_stage(stage, [make_scored(frame)])
    return [name for name in out.table.names if name not in {ROW, INDEX, TIME}]


def test_default_keeps_all_columns_but_those_of_nvidia_morpheus():
    assert kept_columns(Serialize(), "a", "ID", "IDs", "_ts_start") == [
        "a",
        "IDs",
        "ae_anomaly_score",
    ]


def test_any_include_pattern_matches_at_the_start_and_the_order_of_the_frame_is_kept():
    stage = Serialize(include=("event", "ae_"))
    assert kept_columns(stage, "eventName", "recentevent", "eventID") == [
        "eventName",
        "eventID",
        "ae_anomaly_score",
    ]


def test_exclude_removes_included_columns():
    assert kept_columns(
        Serialize(include=("event",), exclude=("eventID$",)), "eventName", "eventID"
    ) == ["eventName"]


def test_row_number_is_always_kept_and_the_index_is_an_ordinary_column():
    [out] = run_stage(Serialize(include=("a$",)), [make_scored(make_events([0], a=["x"]))])
    assert out.table.names == [ROW, "a"]


def test_all_rows_are_kept_and_the_fingerprint_is_released():
    batches = [make_scored(make_events(range(n))) for n in (3, 0, 2)]
    out = list(run_stage(Serialize(), batches))
    assert [batch.table.height for batch in out] == [3, 0, 2]
    assert all(type(batch) is OutputRows and batch.fingerprint is None for batch in out)
    assert all(batch.scores == ("ae_anomaly_score",) for batch in out)


def test_first_events_determine_the_columns(caplog):
    first, later = make_events([0], a=["x"]), make_events([1, 2], b=["y", "z"])
    out = list(run_stage(Serialize(), [make_scored(first), make_scored(later), make_scored(later)]))
    assert out[1].table.names == out[0].table.names
    assert out[1].table["a"].to_list() == [None, None]
    [message] = caplog.messages
    assert message.startswith("serialize: column 'b' came after the first events and is dropped.")


def test_columns_follow_each_batch_without_fixed_columns():
    first, later = make_events([0], a=["x"]), make_events([1], b=["y"])
    out = list(run_stage(Serialize(fixed_columns=False), [make_scored(first), make_scored(later)]))
    assert "b" in out[1].table
    assert "a" not in out[1].table


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_invalid_pattern_is_rejected_with_its_option(option):
    with pytest.raises(UsageError, match=rf"--{option} 'a\(' is not a regular expression"):
        Serialize(**{option: ("a(",)}).validate()
