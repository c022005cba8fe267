"""Stages of old command lines that do nothing here, or that are refused."""

import pytest

from morpheus.errors import UsageError
from morpheus.stages.compat import Buffer, Delay, GenViz, InfTriton, Trigger
from morpheus.testing import make_events, make_output_rows, run_stage


@pytest.mark.parametrize("stage", [Buffer(count=3), Delay(duration="5s"), Trigger()])
def test_they_hand_on_what_they_get_and_say_so(stage, caplog):
    stage.validate()
    [told] = caplog.messages
    assert stage.name in told
    assert "pass through stage" in told
    batches = [make_output_rows(make_events([0])), make_output_rows(make_events([1]))]
    assert list(run_stage(stage, batches)) == batches


@pytest.mark.parametrize(
    ("stage", "instead"),
    [
        (GenViz(), r"to-file --filename=scores\.csv.*--viz_file=chain\.svg"),
        (InfTriton(model_name="ae", server_url="localhost:8001"), "Write `inf-pytorch`"),
    ],
)
def test_those_refused_say_what_to_use_instead(stage, instead):
    with pytest.raises(UsageError, match=instead):
        stage.validate()
