"""Sizes: quick for a check, normal for the figures, full for the largest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        scratch: Temporary folder for logs and models.
        quick: Small sizes.
        full: Include the largest size.
        old: A tree of an earlier version, which is compared.
        fleet_users: Number of users of the large fleet; None for the usual number.
    """

    scratch: Path
    quick: bool = False
    full: bool = False
    old: Path | None = None
    fleet_users: int | None = None

    @property
    def runs(self) -> int:
        """Runs of a command; the median is reported."""
        return 1 if self.quick else 3

    @property
    def turns(self) -> int:
        """Runs of a command of each version; the median is reported."""
        return 1 if self.quick else 5

    @property
    def users(self) -> int:
        """Number of users of the large fleet."""
        return self.fleet_users or (20 if self.quick else 1000)

    @property
    def rich(self) -> float:
        """Events per user and day, for users with long histories."""
        return 60.0 if self.quick else 190.0

    @property
    def copies(self) -> int:
        """Copies of the large fleet's scored days: a million events, except in a quick run."""
        return 1 if self.quick else 3
