"""What stages have in common that do nothing, and are there for old command lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from morpheus.records import Batch
from morpheus.stage import Transform

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassThrough(Transform):
    """A stage that hands batches on, with a warning: `told`, in which `%s` is its word."""

    takes = (Batch,)
    needs_model = False
    warning: ClassVar[str] = (
        "The '%s' stage ('%s') is no longer required to manage backpressure and has been "
        "deprecated. It has no effect and acts as a pass through stage."
    )

    def validate(self) -> None:
        """Warn that the stage does nothing."""
        logger.warning(self.warning.replace("%s", self.name))

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on."""
        yield from batches
