"""What stages have in common that do nothing, and are there for old command lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from morpheus.core.batch import Batch, Encoded, Losses
from morpheus.core.stage import Transform, option
from morpheus.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassThrough(Transform):
    """A stage that hands batches on, with a warning: `told`, in which `%s` is its word."""

    takes = (Batch,)
    warning: ClassVar[str] = (
        "The '%s' stage ('%s') is no longer required to manage backpressure and has been "
        "deprecated. It has no effect and acts as a pass through stage."
    )

    def validate(self) -> None:
        """Warn that the stage does nothing."""
        logger.warning(self.warning.replace("%s", self.name))

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Return the batch as it is."""
        yield batch


@dataclass(frozen=True)
class Buffer(PassThrough):
    """Do nothing: it was there to hold events back until there are some.

    Takes and gives anything, with a warning. Leave it out.

    Example: `buffer --count=1000`
    """

    name = "buffer"

    count: int = option(1000, "Accepted for old command lines. Nothing is buffered here.", min=1)


@dataclass(frozen=True)
class Delay(PassThrough):
    """Do nothing: it was there to hold events back for a while.

    Takes and gives anything, with a warning. Leave it out.

    Example: `delay --duration=5s`
    """

    name = "delay"

    duration: str = option("", "Accepted for old command lines. Nothing is delayed here.")


@dataclass(frozen=True)
class Trigger(PassThrough):
    """Do nothing: it was there to hold every event back until the source had finished.

    Takes and gives anything, with a warning. Each stage waits by itself for what it needs: leave
    this one out.

    Example: `trigger`
    """

    name = "trigger"
    warning: ClassVar[str] = (
        "The '%s' stage has no effect and acts as a pass through stage: every stage here waits by "
        "itself for the events that it needs."
    )


@dataclass(frozen=True)
class GenViz(Transform):
    """Refused: its viewer is gone. `to-file` writes the scores, `--viz_file` draws the chain.

    It wrote frames of network packets, and was never made for logs.

    Example: `to-file --filename=scores.csv`
    """

    name = "gen-viz"
    takes = (Batch,)

    out_dir: str = option("./viz_frames", "Folder of the frames.")
    overwrite: bool = option(False, "Replace frames that are there.", flag=True)

    def validate(self) -> NoReturn:
        """Refuse."""
        raise UsageError(
            "gen-viz: its viewer of network packets is no longer to be had, and was never made for "
            "logs. Leave the stage out: `to-file --filename=scores.csv` writes the scores, "
            "`pipeline-ae --viz_file=chain.svg` draws the chain."
        )


@dataclass(frozen=True)
class InfTriton(Transform):
    """Refused: no server holds a network for each user. Use `inf-pytorch`.

    Takes and gives what `inf-pytorch` does. NVIDIA Morpheus offered the stage without a model.

    Example: `inf-pytorch`
    """

    name = "inf-triton"
    takes = (Encoded,)
    gives = Losses

    model_name: str = option("", "Name of the model.", required=True)
    server_url: str = option("", "Address of the server.", required=True)
    force_convert_inputs: bool = option(False, "Convert inputs to the model's types.")
    use_shared_memory: bool = option(False, "Hand inputs over in shared memory.", flag=True)

    def validate(self) -> NoReturn:
        """Refuse."""
        raise UsageError(
            "inf-triton: there is one network for each user, and none of them is on a server. "
            "Write `inf-pytorch` in its place, without options."
        )
