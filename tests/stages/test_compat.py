"""Stages of old command lines: without effect, or removed."""

import pytest

from morpheus.errors import UsageError
from morpheus.stages.compat import Buffer, Delay, GenViz, InfTriton, Trigger
from morpheus.testing import make_events, make_output_rows, run_stage


@pytest.mark.parametrize("stage", [Buffer(count=3), Delay(duration="5s"), Trigger()])
def test_deprecated_stage_passes_batches_through_with_a_warning(stage, caplog):
    stage.validate()
    [message] = caplog.messages
    assert stage.name in message
    assert "pass through stage" in message
    batches = [make_output_rows(make_events([0])), make_output_rows(make_events([1]))]
    assert list(run_stage(stage, batches)) == batches


@pytest.mark.parametrize(
    ("stage", "replacement"),
    [
        (GenViz(), r"to-file --filename=scores\.csv.*--viz_file=pipeline\.svg"),
        (InfTriton(model_name="ae", server_url="localhost:8001"), "Use `inf-pytorch`"),
    ],
)
def test_removed_stage_says_what_to_use_instead(stage, replacement):
    with pytest.raises(UsageError, match=replacement):
        stage.validate()
