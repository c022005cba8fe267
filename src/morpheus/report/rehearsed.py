"""What replayed attacks have shown of a user's fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMED = 6
"""Techniques that are named, at most."""


@dataclass(frozen=True)
class Rehearsed:
    """What came of techniques replayed in the name of one user.

    Attributes:
        tried: How many techniques could be placed.
        missed: By technique, the grades of disguise at which it would have raised no alert.
    """

    tried: int
    missed: Mapping[str, tuple[str, ...]]

    def told(self) -> str:
        """Say what was not caught; those missed at most grades come first.

        >>> missed = {"stop-trail": ("hours",), "role-chain": ("agent", "hours")}
        >>> Rehearsed(28, missed).told().partition(": ")[2]
        'role-chain (agent, hours), stop-trail (hours).'
        """
        ordered = sorted(self.missed.items(), key=lambda one: (-len(one[1]), one[0]))
        names = [f"{technique} ({', '.join(grades)})" for technique, grades in ordered[:NAMED]]
        more = [f"{len(ordered) - NAMED} more"] if len(ordered) > NAMED else []
        return (
            f"Of {self.tried} attack techniques replayed, {len(ordered)} would have raised no "
            f"alert behind some disguise: {', '.join([*names, *more])}."
        )
