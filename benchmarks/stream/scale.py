"""Sizes: quick for a check, normal for the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        scratch: Folder for logs, models and state.
        quick: Small sizes.
        given_events: Number of events, if the command line says so.
        given_users: Number of users, if the command line says so.
        old: Another tree, which `bundles` measures too.
        given_known: Number of known users, if the command line says so.
    """

    scratch: Path
    quick: bool = False
    given_events: int | None = None
    given_users: int | None = None
    old: Path | None = None
    given_known: int | None = None

    @property
    def events(self) -> int:
        """Events of the stream."""
        return self.given_events or (100_000 if self.quick else 5_000_000)

    @property
    def users(self) -> int:
        """Users of the stream."""
        return self.given_users or (200 if self.quick else 10_000)

    @property
    def latency_seconds(self) -> float:
        """Seconds for which latency is measured."""
        return 10.0 if self.quick else 60.0

    @property
    def known(self) -> int:
        """Users with a state on disk."""
        return self.given_known or 50 * self.active

    @property
    def active(self) -> int:
        """Known users that have new events."""
        return self.given_users or (400 if self.quick else 20_000)
