"""Masked prediction: each column guessed from the others, its own value hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import UNKNOWN
from morpheus.features.encoder import EncodedRows
from morpheus.models.autoencoder import MAX_LOGIT, Autoencoder
from morpheus.models.blocks import iter_fixed_batches
from morpheus.models.evidence import Likelihoods


@dataclass(frozen=True)
class MaskedPredictor:
    """Some events, of which one column at a time is hidden from a network.

    Only what the hidden column had added to the first layer is taken away. All columns pass the
    layers behind it in one product each; sizes as in `autoencoder.Autoencoder`.

    Attributes:
        net: The network.
        codes: Code of each column, (B, C).
        numbers: Scaled numbers, (B, N).
        decoder_hidden: The last layer but one, with each column hidden in turn, (C, B, H).
    """

    net: Autoencoder
    codes: NDArray[np.int64]
    numbers: NDArray[np.float32]
    decoder_hidden: NDArray[np.float32]

    @classmethod
    def from_codes(
        cls, net: Autoencoder, codes: NDArray[np.int64], numbers: NDArray[np.float32]
    ) -> MaskedPredictor:
        """Look at events."""
        part, words = net.parameters, net.parameters["look_up"]
        shown = words[(codes + net.offsets).T]  # (C, B, H)
        first = shown.sum(0) + part["hidden_bias"]  # (B, H)
        if net.number_columns:
            first += numbers @ part["read_numbers"]
        hidden = first - shown
        hidden += words[UNKNOWN + net.offsets][:, None]
        for place, column in enumerate(net.number_columns):
            hidden[column] -= np.outer(numbers[:, place], part["read_numbers"][place])
        rows = np.maximum(hidden, 0, out=hidden).reshape(-1, net.config.hidden)
        middle = rows @ part["squeeze"] + part["middle_bias"]
        wide = np.maximum(middle, 0, out=middle) @ part["widen"] + part["wide_bias"]
        return cls(net, codes, numbers, np.maximum(wide, 0, out=wide).reshape(hidden.shape))

    def predict_probabilities(self, column: int) -> NDArray[np.float32]:
        """Probability of each code of a column, given the others, (B, codes)."""
        part, block = self.net.parameters, self._code_slice(column)
        logits = self.decoder_hidden[column] @ part["guess_codes"][:, block] + part["code_bias"][block]
        chances = np.exp(np.clip(logits, -MAX_LOGIT, MAX_LOGIT))
        return np.asarray(chances / chances.sum(1, keepdims=True))

    def score_observed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability of the codes that each event has, and how far its numbers are off, (B, C).

        The distance is in standard deviations; 0 where there is no number.
        """
        part = self.net.parameters
        logits = np.empty((len(self.codes), sum(self.net.config.code_counts)), dtype=np.float32)
        for column, wide in enumerate(self.decoder_hidden):
            block = self._code_slice(column)
            np.matmul(wide, part["guess_codes"][:, block], out=logits[:, block])
        logits += part["code_bias"]
        chances = np.exp(np.clip(logits, -MAX_LOGIT, MAX_LOGIT, out=logits), out=logits)
        picked = np.take_along_axis(chances, self.codes + self.net.offsets, axis=1)
        return picked / (chances @ self.net.column_one_hot), self._number_errors()

    def predict_numbers(self, column: int) -> NDArray[np.float32]:
        """Number that a number column is guessed to have, in standard deviations, (B,)."""
        place = self.net.number_columns.index(column)
        part = self.net.parameters
        guessed = self.decoder_hidden[column] @ part["guess_numbers"][:, place]
        return np.asarray(guessed + part["number_bias"][place])

    def _number_errors(self) -> NDArray[np.float32]:
        off = np.zeros(self.codes.shape, dtype=np.float32)
        for place, column in enumerate(self.net.number_columns):
            there = self.codes[:, column] > UNKNOWN
            off[:, column] = (self.predict_numbers(column) - self.numbers[:, place]) * there
        return off

    def _code_slice(self, column: int) -> slice:
        start = int(self.net.offsets[column])
        return slice(start, start + self.net.config.code_counts[column])


@dataclass(frozen=True)
class MaskedPredictions:
    """Each column of some events guessed from the others, by a network.

    Attributes:
        probability: Probability of the code that it has, (D, C).
        number_error: How far its number is off, in standard deviations; 0 where there is none, (D, C).
    """

    probability: NDArray[np.float32]
    number_error: NDArray[np.float32]

    @classmethod
    def predict(cls, net: Autoencoder, rows: EncodedRows) -> MaskedPredictions:
        """Hide each column in turn."""
        chance, off = np.empty((2, *rows.codes.shape), dtype=np.float32)
        for block, codes, numbers in iter_fixed_batches(rows):
            there = len(chance[block])
            chance[block], off[block] = (p[:there] for p in MaskedPredictor.from_codes(net, codes, numbers).score_observed())
        return cls(chance, off)

    def compute_surprise(
        self, likelihoods: Likelihoods, oov_rates: NDArray[np.float32], rows: EncodedRows
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Evidence of habit and of company of each column, each (D, C).

        Both in nats. Company is -ln of the chance of a value given the event's other values: the
        network knows it of one that is a habit, any may come by way of the population; in number
        columns the squared distance in standard deviations is added.

        Args:
            likelihoods: What counting says of each code.
            oov_rates: How often each column brings a new value, (C,).
            rows: The events, as they were guessed.
        """
        places = rows.codes + likelihoods.offsets
        chance = mixture_probability(rows.codes, self.probability, oov_rates, likelihoods.population_prior[places])
        return likelihoods.log_likelihood_ratio[places], np.asarray(self.number_error**2 - np.log(chance))


def mixture_probability(
    codes: NDArray[np.integer[Any]],
    probability: NDArray[np.float32],
    oov_rates: NDArray[np.float32],
    population_prior: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Probability of codes given the event's other values; of one shape, or made so by numpy.

    Args:
        codes: The codes.
        probability: What the network says of them; it knows nothing of new values.
        oov_rates: How often their column brings a new value.
        population_prior: Their probability by way of the population.
    """
    return np.asarray(np.where(codes == UNKNOWN, 0, (1 - oov_rates) * probability) + population_prior)
