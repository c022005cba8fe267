"""`gen-viz`: refused, with what to use instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from morpheus.errors import UsageError
from morpheus.records import Batch
from morpheus.stage import Transform, option


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
