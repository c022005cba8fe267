"""Masked prediction: each column guessed from the others, its own value hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import UNSEEN
from morpheus.features.encoder import EncodedRows
from morpheus.models.autoencoder import LARGEST_LOGIT, Autoencoder
from morpheus.models.blocks import blocks
from morpheus.models.evidence import Chances


@dataclass(frozen=True)
class Company:
    """Some events, of which one column at a time is hidden from a network.

    Only what the hidden column had added to the first layer is taken away; sizes as in
    `autoencoder.Autoencoder`.

    Attributes:
        net: The network.
        codes: Code of each column, (B, C).
        numbers: Scaled numbers, (B, N).
        first: The first layer's sums with nothing hidden, (B, H).
    """

    net: Autoencoder
    codes: NDArray[np.int64]
    numbers: NDArray[np.float32]
    first: NDArray[np.float32]

    @classmethod
    def of(
        cls, net: Autoencoder, codes: NDArray[np.int64], numbers: NDArray[np.float32]
    ) -> Company:
        """Look at events."""
        first = net.part["look_up"][codes + net.offsets].sum(1) + net.part["hidden_bias"]
        if net.number_columns:
            first += numbers @ net.part["read_numbers"]
        return cls(net, codes, numbers, first)

    def chances(self, column: int) -> NDArray[np.float32]:
        """Probability of each code of a column, given the others, (B, codes)."""
        return self._chances(self._wide(column), column)

    def seen(self, column: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability of the code that each event has, and how far its number is off, each (B,).

        The distance is in standard deviations; 0 where there is no number.
        """
        wide = self._wide(column)
        chance = self._chances(wide, column)[np.arange(len(wide)), self.codes[:, column]]
        return chance, self._off(wide, column)

    def guessed(self, column: int) -> NDArray[np.float32]:
        """Number that a number column is guessed to have, in standard deviations, (B,)."""
        return self._guessed(self._wide(column), column)

    def _chances(self, wide: NDArray[np.float32], column: int) -> NDArray[np.float32]:
        part, start = self.net.part, int(self.net.offsets[column])
        block = slice(start, start + self.net.shape.codes[column])
        logits = wide @ part["guess_codes"][:, block] + part["code_bias"][block]
        chances = np.exp(np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT))
        return np.asarray(chances / chances.sum(1, keepdims=True))

    def _off(self, wide: NDArray[np.float32], column: int) -> NDArray[np.float32]:
        if column not in self.net.number_columns:
            return np.zeros(len(wide), dtype=np.float32)
        number = self.numbers[:, self.net.number_columns.index(column)]
        there = self.codes[:, column] > UNSEEN
        return np.asarray((self._guessed(wide, column) - number) * there)

    def _guessed(self, wide: NDArray[np.float32], column: int) -> NDArray[np.float32]:
        place = self.net.number_columns.index(column)
        part = self.net.part
        return np.asarray(wide @ part["guess_numbers"][:, place] + part["number_bias"][place])

    def _wide(self, column: int) -> NDArray[np.float32]:
        """The last layer but one when a column is hidden, (B, H)."""
        net, start = self.net, self.net.offsets[column]
        words = net.part["look_up"]
        hidden = self.first - words[self.codes[:, column] + start] + words[UNSEEN + start]
        if column in net.number_columns:
            place = net.number_columns.index(column)
            hidden -= np.outer(self.numbers[:, place], net.part["read_numbers"][place])
        middle = np.maximum(hidden, 0) @ net.part["squeeze"] + net.part["middle_bias"]
        wide = np.maximum(middle, 0) @ net.part["widen"] + net.part["wide_bias"]
        return np.asarray(np.maximum(wide, 0))


@dataclass(frozen=True)
class Guesses:
    """Each column of some events guessed from the others, by a network.

    Attributes:
        chance: Probability of the code that it has, (D, C).
        off: How far its number is off, in standard deviations; 0 where there is none, (D, C).
    """

    chance: NDArray[np.float32]
    off: NDArray[np.float32]

    @classmethod
    def of(cls, net: Autoencoder, rows: EncodedRows) -> Guesses:
        """Hide one column after the other."""
        chance, off = np.empty((2, *rows.codes.shape), dtype=np.float32)
        for block, codes, numbers in blocks(rows):
            company, there = Company.of(net, codes, numbers), len(chance[block])
            for c in range(codes.shape[1]):
                found = company.seen(c)
                chance[block, c], off[block, c] = (part[:there] for part in found)
        return cls(chance, off)

    def evidence(
        self, chances: Chances, novelty: NDArray[np.float32], rows: EncodedRows
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Evidence of habit and of company of each column, each (D, C).

        Both in nats. Company is -ln of the chance of a value given the event's other values: the
        network knows it of one that is a habit, any may come by way of the population; in number
        columns the squared distance in standard deviations is added.

        Args:
            chances: What counting says of each code.
            novelty: How often each column brings a new value, (C,).
            rows: The events, as they were guessed.
        """
        places = rows.codes + chances.offsets
        chance = mixed(rows.codes, self.chance, novelty, chances.others[places])
        return chances.habit[places], np.asarray(self.off**2 - np.log(chance))


def mixed(
    codes: NDArray[np.integer[Any]],
    chance: NDArray[np.float32],
    novelty: NDArray[np.float32],
    others: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Probability of codes given the event's other values; of one shape, or made so by numpy.

    Args:
        codes: The codes.
        chance: What the network says of them; it knows nothing of new values.
        novelty: How often their column brings a new value.
        others: Their probability by way of the population.
    """
    return np.asarray(np.where(codes == UNSEEN, 0, (1 - novelty) * chance) + others)
