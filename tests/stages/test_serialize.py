import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import OutputRows
from morpheus.errors import UsageError
from morpheus.stages.serialize import Serialize
from morpheus.testing import make_events, make_scored, run_stage
from morpheus.text import ColumnPattern


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


@pytest.mark.parametrize("stage", [Serialize(include=("no such",)), Serialize(exclude=(".*",))])
def test_patterns_that_leave_no_column_cause_a_warning(stage, caplog):
    frame = make_events([0], first=["x"])
    [out] = run_stage(stage, [make_scored(frame)])
    assert out.table.names == [ROW]
    [message] = caplog.messages
    assert message.endswith("leave no column, so rows are empty.")


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


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    "pattern", [r"(?=(a+)+$)a", r"(?!b)a*a*a*a*$", r"(a*)*\1$", "(?=b)" + "a?" * 30]
)
def test_a_pattern_that_can_take_very_long_is_refused(option, pattern):
    with pytest.raises(UsageError, match=rf"serialize: --{option} .* can take very long to match"):
        Serialize(**{option: (pattern,)}).validate()


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|aa)+$", "a*" * 20 + "$", r"(?!.*b$)a", r"(.)\1c"]
)
def test_no_name_of_a_column_takes_long_to_match(pattern):
    stage = Serialize(include=(pattern,), exclude=("ae_",))
    stage.validate()
    start = time.process_time()
    assert kept_columns(stage, "a" * 100_000 + "b", "aaa", "a" * 900 + "b") in (["aaa"], [])
    assert time.process_time() - start < 2


@given(
    st.from_regex(r"[ab.|]{0,3}(\(\?[:!=][ab]\))?[ab$^]{0,2}", fullmatch=True),
    st.lists(st.text("ab")),
)
def test_columns_are_those_that_python_matches(pattern, names):
    expected = {name for name in names if re.match(pattern, name)}
    assert ColumnPattern(pattern).match_all(names) == expected
