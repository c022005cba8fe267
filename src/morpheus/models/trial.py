"""A network tried on events that it had not met: what these say is usual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.calibration import HeldOut
from morpheus.models.company import Guesses
from morpheus.models.context import HOUR, Context, Decayed
from morpheus.models.evidence import DECIMALS, Chances, Evidence, Usual
from morpheus.models.fingerprint import novelty_rates, plain_losses, priced
from morpheus.models.population import Population

FIRST = 1 / 3
"""Share of the held-out events, the first, that say what is usual of those that follow."""
OFTEN = 0.9
"""Share of the others whose last hour is as strange as it usually may be."""


@dataclass(frozen=True)
class Measured:
    """What some held-out events say is usual.

    Attributes:
        novelty: How often each column brings a new value, (C,).
        usual: Of the loss of each column.
        evidence: Of the evidence of each column.
    """

    novelty: NDArray[np.float32]
    usual: Usual
    evidence: Evidence


@dataclass(frozen=True)
class Trial:
    """Held-out events, as a network found them that had learnt the earlier ones.

    Attributes:
        encoder: Knows the earlier events.
        early: These, encoded.
        held_out: The later ones, encoded.
        seconds: When they happened, (events,); a step back in time is another user.
        population: With whom the user is compared.
        user: Who that is.
        losses: Plain loss of each column of each distinct row, (D, C).
        guesses: Each column of these guessed from the others.
    """

    encoder: Encoder
    early: EncodedRows
    held_out: EncodedRows
    seconds: NDArray[np.float64]
    population: Population
    user: str
    losses: NDArray[np.float32]
    guesses: Guesses

    @classmethod
    def of(  # noqa: PLR0913 - what a trial is, and nothing else
        cls,
        net: Autoencoder,
        encoder: Encoder,
        parts: tuple[EncodedRows, EncodedRows],
        seconds: NDArray[np.float64],
        population: Population,
        *,
        user: str,
    ) -> Trial:
        """Try a network; `parts` are the earlier and the later events, encoded."""
        early, later = parts
        found = plain_losses(net, later), Guesses.of(net, later)
        return cls(encoder, early, later, seconds, population, user, *found)

    def measured(self, events: NDArray[np.intp] | None = None) -> Measured:
        """What some of the held-out events, by number, or all say is usual."""
        rows = self.held_out
        row_of = rows.row_of if events is None else rows.row_of[events]
        counts = np.bincount(row_of, minlength=len(rows.codes))
        novelty = novelty_rates(rows.codes, counts)
        chances = Chances.of(self.encoder, self.early, novelty, self.population, self.user)
        habit, company = self.guesses.evidence(chances, novelty, rows)
        usual = Usual.of(priced(self.losses, novelty, rows), counts)
        evidence = Evidence(chances, Usual.of(habit, counts), Usual.of(company, counts))
        return Measured(novelty, usual, evidence)

    def calibrated(self) -> HeldOut:
        """What is usual of whole events: the first of them say what is usual of the others.

        What an hour usually is, is told to each half of these by the other half, as it will be told
        to events to come by events before them.
        """
        row_of = self.held_out.row_of
        first = np.arange(max(1, int(len(row_of) * FIRST)))
        start = len(first) if len(row_of) > len(first) else 0
        scores, surprise, shared = (part[row_of] for part in self._scored(self.measured(first)))
        events = [part[:, None] for part in (surprise, shared, self.seconds)]
        users = np.split(np.hstack(events), np.flatnonzero(np.diff(self.seconds) < 0) + 1)
        levels = np.concatenate([_hours(user[:, 0], user[:, 2]) for user in users])[start:]
        halves = levels[: len(levels) // 2], levels[len(levels) // 2 :]
        others = _often(halves[1]), _often(halves[0] if len(halves[0]) else halves[1])
        early, late = (np.concatenate([_risks(u, hour) for u in users])[start:] for hour in others)
        risks = np.concatenate([early[: len(halves[0])], late[len(halves[0]) :]])
        return HeldOut.of(scores[start:], risks, self.seconds[start:], _often(levels))

    def _scored(self, by: Measured) -> tuple[NDArray[np.float64], ...]:
        """Of each distinct row: mean loss, surprise, and surprise by shared values, each (D,)."""
        losses = priced(self.losses, by.novelty, self.held_out)
        chances = by.evidence.chances
        found = self.guesses.evidence(chances, by.novelty, self.held_out)
        strangeness = by.evidence.strangeness(*found)
        shared = strangeness * chances.shared[self.held_out.codes + chances.offsets]
        return losses.mean(1, dtype=np.float64), strangeness.sum(1), shared.sum(1)


def _hours(surprise: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean root of surprise in the last hour of each event of a user, (events,)."""
    means, _ = Decayed(HOUR).over(np.sqrt(surprise)[:, None], seconds)
    return np.asarray(means[:, 0])


def _often(levels: NDArray[np.float64]) -> float:
    """What levels stay below, most of the time."""
    return float(np.quantile(levels, OFTEN).round(DECIMALS))


def _risks(events: NDArray[np.float64], usual_hour: float) -> NDArray[np.float64]:
    """Risk of each event of a user, of columns surprise, shared and seconds, (events, 3)."""
    surprise, shared, seconds = events.T
    return Context().risk(surprise, shared, seconds, usual_hour)
