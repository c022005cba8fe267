"""Column scores: how likely the network finds each value of an event, given the other values.

Sizes in shapes: D distinct rows, B rows in a batch, C columns, N number columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import LINEAR_Z, UNKNOWN, EncodedRows
from morpheus.models.autoencoder import MAX_LOGIT, Autoencoder
from morpheus.models.training import iter_fixed_batches

STD_FLOOR = 0.05
"""Minimum standard deviation, so that a column that never changed does not divide by zero."""
CONDITIONAL_STD_FLOOR = 1.0
"""Standard deviation, in nats, added to that of the conditional surprise."""


@dataclass(frozen=True)
class BaselineStats:
    """Normal values of a quantity that each column of an event has.

    Attributes:
        mean: Mean over events, (C,).
        std: Standard deviation, (C,).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def fit(
        cls, values: NDArray[np.floating], counts: NDArray[np.int64] | None = None
    ) -> BaselineStats:
        """Measure distinct rows, (D, C), with their numbers of events, (D,); None for 1 each."""
        counts = np.ones(len(values), dtype=np.int64) if counts is None else counts
        share = (counts / counts.sum())[:, None]
        mean = (share * values).sum(0)
        std = np.sqrt((share * (values - mean) ** 2).sum(0))
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def zscore(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distance from the mean in standard deviations, (rows, C)."""
        std = np.maximum(self.std, STD_FLOOR)
        return np.asarray((values - self.mean) / std, dtype=np.float32)

    def excess_z(self, values: NDArray[np.float64], std_floor: float) -> NDArray[np.float64]:
        """Return the distance above the mean in standard deviations, 0 below the mean, (rows, C).

        The square of `std_floor` is added to the variance.
        """
        std = np.hypot(self.std.astype(np.float64), std_floor)
        return np.asarray(np.maximum(values - self.mean, 0) / std)


def compute_offsets(code_counts: Sequence[int]) -> NDArray[np.int64]:
    """Return the first code of each column when all columns share one vocabulary, (C,).

    >>> compute_offsets([3, 5, 3]).tolist()
    [0, 3, 8]
    """
    sizes = np.array(code_counts, dtype=np.int64)
    return np.asarray(sizes.cumsum() - sizes)


@dataclass(frozen=True)
class MaskedPredictor:
    """Predicts each column of some events from their other columns.

    One column at a time is hidden from the network. Only its contribution to the first layer is
    removed, and the later layers process all columns in one matrix product each.

    Attributes:
        net: The network.
        codes: Code of each column, (B, C).
        numbers: Scaled numbers, (B, N).
        decoder_hidden: Last hidden layer with each column hidden in turn, (C, B, H).
    """

    net: Autoencoder
    codes: NDArray[np.int64]
    numbers: NDArray[np.float32]
    decoder_hidden: NDArray[np.float32]

    @classmethod
    def from_codes(
        cls, net: Autoencoder, codes: NDArray[np.int64], numbers: NDArray[np.float32]
    ) -> MaskedPredictor:
        """Run the network on some events."""
        part, look_up = net.parameters, net.parameters["look_up"]
        shown_numbers = numbers.clip(-LINEAR_Z, LINEAR_Z)
        embedded = look_up[(codes + net.offsets).T]  # (C, B, H)
        first = embedded.sum(0) + part["hidden_bias"]  # (B, H)
        if net.number_columns:
            first += net.product(shown_numbers, part["read_numbers"])
        # Replace each column in turn by UNKNOWN.
        hidden = first - embedded
        hidden += look_up[UNKNOWN + net.offsets][:, None]
        for n, column in enumerate(net.number_columns):
            hidden[column] -= np.outer(shown_numbers[:, n], part["read_numbers"][n])
        rows = np.maximum(hidden, 0, out=hidden).reshape(-1, net.config.hidden)
        middle = net.product(rows, part["squeeze"]) + part["middle_bias"]
        wide = net.product(np.maximum(middle, 0, out=middle), part["widen"]) + part["wide_bias"]
        return cls(net, codes, numbers, np.maximum(wide, 0, out=wide).reshape(hidden.shape))

    def predict_probabilities(self, column: int) -> NDArray[np.float32]:
        """Return the probability of each code of a column, given the other columns, (B, codes)."""
        part, block = self.net.parameters, self._code_slice(column)
        logits = (
            self.net.product(self.decoder_hidden[column], part["guess_codes"][:, block])
            + part["code_bias"][block]
        )
        exponentials = np.exp(np.clip(logits, -MAX_LOGIT, MAX_LOGIT))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))

    def score_observed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compare the predictions with the events.

        Returns:
            Probability of each observed code, and the error of each number in standard deviations,
            0 without a number, (B, C) each.
        """
        part = self.net.parameters
        logits = np.empty((len(self.codes), sum(self.net.config.code_counts)), dtype=np.float32)
        for column, hidden in enumerate(self.decoder_hidden):
            block = self._code_slice(column)
            logits[:, block] = self.net.product(hidden, part["guess_codes"][:, block])
        logits += part["code_bias"]
        exponentials = np.exp(np.clip(logits, -MAX_LOGIT, MAX_LOGIT, out=logits), out=logits)
        observed = np.take_along_axis(exponentials, self.codes + self.net.offsets, axis=1)
        return observed / self.net.product(
            exponentials, self.net.column_one_hot
        ), self._number_errors()

    def predict_numbers(self, column: int) -> NDArray[np.float32]:
        """Return the predicted number of a number column, in standard deviations, (B,)."""
        n = self.net.number_columns.index(column)
        part = self.net.parameters
        guessed = self.net.product(self.decoder_hidden[column], part["guess_numbers"][:, n])
        return np.asarray(guessed + part["number_bias"][n])

    def _number_errors(self) -> NDArray[np.float32]:
        errors = np.zeros(self.codes.shape, dtype=np.float32)
        for n, column in enumerate(self.net.number_columns):
            present = self.codes[:, column] > UNKNOWN
            errors[:, column] = (self.predict_numbers(column) - self.numbers[:, n]) * present
        return errors

    def _code_slice(self, column: int) -> slice:
        start = int(self.net.offsets[column])
        return slice(start, start + self.net.config.code_counts[column])


@dataclass(frozen=True)
class MaskedPredictions:
    """Predictions of each column of some events from their other columns.

    Attributes:
        probability: Probability of the observed code, (D, C).
        number_error: Error of the number in standard deviations; 0 without a number, (D, C).
    """

    probability: NDArray[np.float32]
    number_error: NDArray[np.float32]

    @classmethod
    def predict(cls, net: Autoencoder, rows: EncodedRows) -> MaskedPredictions:
        """Hide each column in turn from a network."""
        probability, number_error = np.empty((2, *rows.codes.shape), dtype=np.float32)
        for block, codes, numbers in iter_fixed_batches(rows):
            size = len(probability[block])
            probability[block], number_error[block] = (
                part[:size]
                for part in MaskedPredictor.from_codes(net, codes, numbers).score_observed()
            )
        return cls(probability, number_error)


def mixture_probability(
    codes: NDArray[np.integer[Any]],
    probability: NDArray[np.float32],
    oov_rates: NDArray[np.float32],
    population_prior: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the probability of codes given the event's other values.

    All arguments have one shape, or are broadcast to it.

    Args:
        codes: The codes.
        probability: Their probability by the network, which does not know new values.
        oov_rates: Rate of new values of their column.
        population_prior: Their probability through the population.
    """
    return np.asarray(
        np.where(codes == UNKNOWN, 0, (1 - oov_rates) * probability) + population_prior
    )
