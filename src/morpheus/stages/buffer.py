"""`buffer`: nothing, for old command lines."""

from __future__ import annotations

from dataclasses import dataclass

from morpheus.stage import option
from morpheus.stages.pass_through import PassThrough


@dataclass(frozen=True)
class Buffer(PassThrough):
    """Do nothing: it was there to hold events back until there are some.

    Takes and gives anything, with a warning. Leave it out.

    Example: `buffer --count=1000`
    """

    name = "buffer"

    count: int = option(1000, "Accepted for old command lines. Nothing is buffered here.", min=1)
