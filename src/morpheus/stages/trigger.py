"""`trigger`: nothing, for old command lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morpheus.stages.pass_through import PassThrough


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
