"""`inf-triton`: refused, with what to use instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from morpheus.errors import UsageError
from morpheus.records import Encoded, Losses
from morpheus.stage import Transform, option


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
