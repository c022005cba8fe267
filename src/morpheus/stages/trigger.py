"""`trigger`: nothing, for old command lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from morpheus.records import Batch
from morpheus.stage import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trigger(Stage):
    """Do nothing: it was there to hold every event back until the source had finished.

    Takes and gives anything, with a warning. Each stage waits by itself for what it needs: leave
    this one out.

    Example: `trigger`
    """

    name = "trigger"
    takes = (Batch,)

    def check(self) -> None:
        """Warn that the stage does nothing."""
        logger.warning(
            "The 'trigger' stage has no effect and acts as a pass through stage: every stage here "
            "waits by itself for the events that it needs."
        )

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on."""
        yield from batches
