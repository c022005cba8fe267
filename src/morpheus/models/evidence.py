"""What the values of an event say against its user: two kinds of evidence, column by column.

Habit asks whose value this is: how much rather everybody's than this user's. Company asks how well
it goes with the event's other values. Each is measured against what was usual on held-out events,
and only what is unusually high counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import UNKNOWN
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.population import Population

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
        both = self.marginal_baseline.excess_z(marginal, MARGINAL_STD_FLOOR) + self.conditional_baseline.excess_z(conditional, CONDITIONAL_STD_FLOOR)
        return np.asarray(((both / 2) ** ANOMALY_EXPONENT).astype(np.float64).round(ANOMALY_DECIMALS))
