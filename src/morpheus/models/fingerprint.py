"""What was learnt of one user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Describes a fingerprint to people: what it was learnt from, and when."""

    user: str
    rows: int
    distinct: int
    first: str
    last: str
    epochs: int
    seed: int
