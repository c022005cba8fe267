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

    Only what the hidden column had added to the first layer is taken away. All columns pass the
    layers behind it in one product each; sizes as in `autoencoder.Autoencoder`.

    Attributes:
        net: The network.
        codes: Code of each column, (B, C).
        numbers: Scaled numbers, (B, N).
        wide: The last layer but one, with each column hidden in turn, (C, B, H).
    """

    net: Autoencoder
    codes: NDArray[np.int64]
    numbers: NDArray[np.float32]
    wide: NDArray[np.float32]

    @classmethod
    def of(
        cls, net: Autoencoder, codes: NDArray[np.int64], numbers: NDArray[np.float32]
    ) -> Company:
        """Look at events."""
        part, words = net.part, net.part["look_up"]
        shown = words[(codes + net.offsets).T]  # (C, B, H)
        first = shown.sum(0) + part["hidden_bias"]  # (B, H)
        if net.number_columns:
            first += numbers @ part["read_numbers"]
        hidden = first - shown
        hidden += words[UNSEEN + net.offsets][:, None]
        for place, column in enumerate(net.number_columns):
            hidden[column] -= np.outer(numbers[:, place], part["read_numbers"][place])
        rows = np.maximum(hidden, 0, out=hidden).reshape(-1, net.shape.hidden)
        middle = rows @ part["squeeze"] + part["middle_bias"]
        wide = np.maximum(middle, 0, out=middle) @ part["widen"] + part["wide_bias"]
        return cls(net, codes, numbers, np.maximum(wide, 0, out=wide).reshape(hidden.shape))

    def chances(self, column: int) -> NDArray[np.float32]:
        """Probability of each code of a column, given the others, (B, codes)."""
        part, block = self.net.part, self._block(column)
        logits = self.wide[column] @ part["guess_codes"][:, block] + part["code_bias"][block]
        chances = np.exp(np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT))
        return np.asarray(chances / chances.sum(1, keepdims=True))

    def seen(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability of the codes that each event has, and how far its numbers are off, (B, C).

        The distance is in standard deviations; 0 where there is no number.
        """
        part = self.net.part
        logits = np.empty((len(self.codes), sum(self.net.shape.codes)), dtype=np.float32)
        for column, wide in enumerate(self.wide):
            block = self._block(column)
            np.matmul(wide, part["guess_codes"][:, block], out=logits[:, block])
        logits += part["code_bias"]
        chances = np.exp(np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT, out=logits), out=logits)
        picked = np.take_along_axis(chances, self.codes + self.net.offsets, axis=1)
        return picked / (chances @ self.net.column_of), self._off()

    def guessed(self, column: int) -> NDArray[np.float32]:
        """Number that a number column is guessed to have, in standard deviations, (B,)."""
        place = self.net.number_columns.index(column)
        part = self.net.part
        guessed = self.wide[column] @ part["guess_numbers"][:, place]
        return np.asarray(guessed + part["number_bias"][place])

    def _off(self) -> NDArray[np.float32]:
        off = np.zeros(self.codes.shape, dtype=np.float32)
        for place, column in enumerate(self.net.number_columns):
            there = self.codes[:, column] > UNSEEN
            off[:, column] = (self.guessed(column) - self.numbers[:, place]) * there
        return off

    def _block(self, column: int) -> slice:
        start = int(self.net.offsets[column])
        return slice(start, start + self.net.shape.codes[column])


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
        """Hide each column in turn."""
        chance, off = np.empty((2, *rows.codes.shape), dtype=np.float32)
        for block, codes, numbers in blocks(rows):
            there = len(chance[block])
            chance[block], off[block] = (p[:there] for p in Company.of(net, codes, numbers).seen())
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
