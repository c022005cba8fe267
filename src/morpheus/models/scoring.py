"""What the values of an event say against its user: two kinds of evidence, column by column.

Habit asks whose value this is: how much rather everybody's than this user's. Company asks how well
it goes with the event's other values. Each is measured against what was usual on held-out events,
and only what is unusually high counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import UNKNOWN, EncodedRows, Encoder, Number
from morpheus.models.autoencoder import MAX_LOGIT, Autoencoder
from morpheus.models.population import Population
from morpheus.models.training import iter_fixed_batches

STD_FLOOR = 0.05
"""Least spread, so that a column that never changed is not divided by zero."""
MARGINAL_STD_FLOOR, CONDITIONAL_STD_FLOOR = 0.5, 1.0
"""Nats that evidence of habit and of company is off by anyhow, whatever the held-out events say."""
ANOMALY_EXPONENT = 2 / 3
"""Keeps one wholly new identifier from drowning several columns that are half as strange each."""
ANOMALY_DECIMALS = 6
"""Of strangeness: they hide how the products in a network were grouped."""


@dataclass(frozen=True)
class BaselineStats:
    """What is usual of a quantity that each column of an event has.

    Attributes:
        mean: Mean over events, (C,).
        std: Standard deviation, (C,).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def fit(cls, values: NDArray[np.float32], counts: NDArray[np.int64]) -> BaselineStats:
        """Measure distinct rows, (D, C), each of which stands for some events, (D,)."""
        share = (counts / counts.sum())[:, None]
        mean = (share * values).sum(0)
        spread = np.sqrt((share * (values - mean) ** 2).sum(0))
        return cls(mean.astype(np.float32), spread.astype(np.float32))

    def zscore(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Spreads above the mean, negative below it, (rows, C)."""
        spread = np.maximum(self.std, STD_FLOOR)
        return np.asarray((values - self.mean) / spread, dtype=np.float32)

    def excess_z(self, values: NDArray[np.float32], std_floor: float) -> NDArray[np.float32]:
        """Spreads above the mean, 0 below it, (rows, C); `floor` squared adds to the variance."""
        spread = np.hypot(self.std, std_floor)
        return np.asarray(np.maximum(values - self.mean, 0) / spread, dtype=np.float32)


@dataclass(frozen=True)
class Likelihoods:
    """What counting says of each code of each column, all columns side by side, (V,).

    Attributes:
        log_likelihood_ratio: ln of how much likelier the code is among everybody than with this user.
        population_prior: Probability of the code with this user by way of the population alone: the rate of
            new values, times the population's share of this one.
        seen_by_others: Whether others have the code too, 0 or 1; of a new value, how likely that is.
        offsets: Where the codes of each column begin, (C,).
    """

    log_likelihood_ratio: NDArray[np.float32]
    population_prior: NDArray[np.float32]
    seen_by_others: NDArray[np.float32]
    offsets: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        rows: EncodedRows,
        oov_rates: NDArray[np.float32],
        population: Population,
        user: str,
    ) -> Likelihoods:
        """Count codes.

        The user's own share f of a value and the population's P are mixed by the column's rate n
        of new values: p = (1 - n) f + n P. A value that is no habit has no share of its own; which
        one it is makes no difference, for P is in both p and the comparison with it.

        Args:
            encoder: Of the user's columns.
            rows: The user's history, encoded.
            oov_rates: Rate of new values of each column, (C,).
            population: Everybody's history.
            user: Whose history; the others are the rest of the population.
        """
        counts, habit, others, shared = rows.counts, [], [], []
        for c, column in enumerate(encoder.columns):
            own = np.bincount(rows.codes[:, c], weights=counts, minlength=column.n_codes)
            own[UNKNOWN] = 0
            words = None if isinstance(column, Number) else column.vocabulary
            everybody = population.prior(column.name, words)
            backed = oov_rates[c] * everybody
            share = (1 - oov_rates[c]) * own / counts.sum()
            habit.append(np.log(everybody) - np.log(share + backed))
            others.append(backed)
            shared.append(population.seen_by_others(column.name, words, user))
        return cls(
            np.concatenate(habit).astype(np.float32),
            np.concatenate(others).astype(np.float32),
            np.concatenate(shared).astype(np.float32),
            compute_offsets([column.n_codes for column in encoder.columns]),
        )


def compute_offsets(code_counts: Sequence[int]) -> NDArray[np.int64]:
    """Where the codes of each column begin, when all lie side by side, (C,).

    >>> compute_offsets([3, 5, 3]).tolist()
    [0, 3, 8]
    """
    sizes = np.array(code_counts, dtype=np.int64)
    return np.asarray(sizes.cumsum() - sizes)


@dataclass(frozen=True)
class SurpriseModel:
    """What speaks against a user, and how much of it is usual.

    Attributes:
        likelihoods: What counting says of each code.
        marginal_baseline: What is usual of the evidence of habit.
        conditional_baseline: What is usual of the evidence of company.
    """

    likelihoods: Likelihoods
    marginal_baseline: BaselineStats
    conditional_baseline: BaselineStats

    def column_anomaly(
        self, marginal: NDArray[np.float32], conditional: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """How strange each column is, (rows, C), from its evidence in nats, each (rows, C).

        The mean of both, in spreads above the usual, to a power below one.
        """
        both = self.marginal_baseline.excess_z(
            marginal, MARGINAL_STD_FLOOR
        ) + self.conditional_baseline.excess_z(conditional, CONDITIONAL_STD_FLOOR)
        return np.asarray(
            ((both / 2) ** ANOMALY_EXPONENT).astype(np.float64).round(ANOMALY_DECIMALS)
        )


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
        logits = (
            self.decoder_hidden[column] @ part["guess_codes"][:, block] + part["code_bias"][block]
        )
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
            chance[block], off[block] = (
                p[:there] for p in MaskedPredictor.from_codes(net, codes, numbers).score_observed()
            )
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
        chance = mixture_probability(
            rows.codes, self.probability, oov_rates, likelihoods.population_prior[places]
        )
        return likelihoods.log_likelihood_ratio[places], np.asarray(
            self.number_error**2 - np.log(chance)
        )


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
    return np.asarray(
        np.where(codes == UNKNOWN, 0, (1 - oov_rates) * probability) + population_prior
    )
