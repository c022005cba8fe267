"""`buffer`: nothing, for old command lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from morpheus.records import Batch
from morpheus.stage import Stage, option

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Buffer(Stage):
    """Do nothing: it was there to hold events back until there are some.

    Takes and gives anything, with a warning. Leave it out.

    Example: `buffer --count=1000`
    """

    name = "buffer"
    takes = (Batch,)

    count: int = option(1000, "Accepted for old command lines. Nothing is buffered here.", low=1)

    def check(self) -> None:
        """Warn that the stage does nothing."""
        logger.warning(
            "The '%s' stage ('%s') is no longer required to manage backpressure and has been "
            "deprecated. It has no effect and acts as a pass through stage.",
            self.name,
            self.name,
        )

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on."""
        yield from batches
