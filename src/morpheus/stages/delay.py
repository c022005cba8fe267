"""`delay`: nothing, for old command lines."""

from __future__ import annotations

from dataclasses import dataclass

from morpheus.stage import option
from morpheus.stages.pass_through import PassThrough


@dataclass(frozen=True)
class Delay(PassThrough):
    """Do nothing: it was there to hold events back for a while.

    Takes and gives anything, with a warning. Leave it out.

    Example: `delay --duration=5s`
    """

    name = "delay"

    duration: str = option("", "Accepted for old command lines. Nothing is delayed here.")
