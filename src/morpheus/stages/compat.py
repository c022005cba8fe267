"""Stages of old command lines: they pass batches through, or fail and say what to use instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from morpheus.core.batch import Batch, Encoded, Losses
from morpheus.core.stage import Requirements, Transform, option
from morpheus.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassThrough(Transform):
    """A stage without effect.

    Attributes:
        warning: Warning at the start, in which `%s` is the word of the stage.
    """

    takes = (Batch,)
    needs = Requirements(rows=False)
    warning: ClassVar[str] = (
        "The '%s' stage ('%s') is no longer required to manage backpressure and has been "
        "deprecated. It has no effect and acts as a pass through stage."
    )

    def validate(self) -> None:
        """Warn that the stage has no effect."""
        logger.warning(self.warning.replace("%s", self.name))

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Return the batch as it is."""
        yield batch


@dataclass(frozen=True)
class Buffer(PassThrough):
    """Deprecated; no effect. It collected events before passing them on.

    Passes batches through with a warning. Leave it out.

    Example: `buffer --count=1000`
    """

    name = "buffer"

    count: int = option(
        1000, "Accepted for old command lines; no effect. There is no buffer.", min=1
    )


@dataclass(frozen=True)
class Delay(PassThrough):
    """Deprecated; no effect. It delayed events.

    Passes batches through with a warning. Leave it out.

    Example: `delay --duration=5s`
    """

    name = "delay"

    duration: str = option("", "Accepted for old command lines; no effect. There is no delay.")


@dataclass(frozen=True)
class Trigger(PassThrough):
    """Deprecated; no effect. It delayed all events until the source had finished.

    Passes batches through with a warning. Each stage waits by itself for the events that it needs.
    Leave it out.

    Example: `trigger`
    """

    name = "trigger"
    warning: ClassVar[str] = (
        "The '%s' stage has no effect and acts as a pass through stage: every stage here waits by "
        "itself for the events that it needs."
    )


@dataclass(frozen=True)
class GenViz(Transform):
    """Removed. Use `to-file` for scores, and `--viz_file` for a diagram of the pipeline.

    It wrote frames of network packets for a viewer that no longer exists.

    Example: `to-file --filename=scores.csv`
    """

    name = "gen-viz"
    takes = (Batch,)

    out_dir: str = option("./viz_frames", "Folder for the frames.")
    overwrite: bool = option(False, "Overwrite existing frames.", flag=True)

    def validate(self) -> NoReturn:
        """Fail, and say what to use instead."""
        raise UsageError(
            "gen-viz: removed, because its viewer of network packets no longer exists. Leave the "
            "stage out. `to-file --filename=scores.csv` writes the scores, and `pipeline-ae "
            "--viz_file=pipeline.svg` draws the pipeline."
        )


@dataclass(frozen=True)
class InfTriton(Transform):
    """Removed. Use `inf-pytorch`: no inference server has the networks of all users.

    NVIDIA Morpheus had the stage in this pipeline, but no model for it.

    Example: `inf-pytorch`
    """

    name = "inf-triton"
    takes = (Encoded,)
    gives = Losses

    model_name: str = option("", "Name of the model.", required=True)
    server_url: str = option("", "Address of the server.", required=True)
    force_convert_inputs: bool = option(False, "Convert inputs to the model's types.")
    use_shared_memory: bool = option(False, "Pass inputs in shared memory.", flag=True)

    def validate(self) -> NoReturn:
        """Fail, and say what to use instead."""
        raise UsageError(
            "inf-triton: not supported. Each user has a network of their own, and no server has "
            "them. Use `inf-pytorch`, without options."
        )
