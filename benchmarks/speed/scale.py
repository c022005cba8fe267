"""How much is measured: quick to see that all runs, usual for the figures, full for the largest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        scratch: Folder for logs and models, gone afterwards.
        quick: Small sizes.
        full: The largest too.
    """

    scratch: Path
    quick: bool = False
    full: bool = False

    @property
    def runs(self) -> int:
        """Cold runs of a command; their median counts."""
        return 1 if self.quick else 3

    @property
    def users(self) -> int:
        """Users of the large fleet."""
        return 20 if self.quick else 1000

    @property
    def rich(self) -> float:
        """Events of a user and day where users have long histories."""
        return 60.0 if self.quick else 190.0

    @property
    def copies(self) -> int:
        """Copies of the large fleet's scored days: a million events, but for a quick run."""
        return 1 if self.quick else 3
