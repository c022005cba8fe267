"""What scores of an event are computed from: counts of values, and the network's predictions.

`Usage` counts the values of a history, and compares them with those of other users.
`MaskedPredictions` are the probabilities that the network gives each value, given the event's other
values. `combine_columns` makes one figure of the evidence of all columns, and `PValues` compares it
with the user's days. Formulas and measurements: docs/decisions/005-risk.md.

Sizes in shapes: D distinct rows, B rows in a batch, C columns, N number columns, V codes of all
columns, G days.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.encoder import LINEAR_Z, UNKNOWN, EncodedRows
from morpheus.models.autoencoder import MAX_LOGIT, Autoencoder
from morpheus.models.training import iter_fixed_batches

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STD_FLOOR = 0.05
"""Minimum standard deviation, so that a column that never changed does not divide by zero."""
CONDITIONAL_STD_FLOOR = 1.0
"""Standard deviation, in nats, added to that of the conditional surprise."""
RISK_PER_NAT = 10.0
"""A risk is a log-likelihood ratio in tenths of nats: 23 more means ten times as likely."""
EVIDENCE_DECIMALS = 4
"""Decimals of evidence in nats. The network computes in float32, and the last digits depend on how
matrix products were grouped; rounding hides that in all but very few events."""
RISK_DECIMALS = 6
"""Decimals of risks and of their parts, which add up to the last of them."""
COLUMN_EXPONENT = 0.5
"""Exponent of the power mean over columns: 0 is the mean of logarithms, infinity the maximum."""
MAX_EVIDENCE = 1000.0
"""Limit on the evidence of a column, in nats, so that its exponential stays finite."""
PRIOR_DAYS = 2.0
"""Days that the population's rate of new values counts as."""
NOVELTY_HALF_LIFE = 7.0
"""Days on which the user was active after which a day counts half for the rate of new values."""
MIN_NOVELTY, MAX_NOVELTY = 1e-4, 0.95
"""Range of the rate of new values of a column."""
TAIL_DECADE = 90.0
"""Risk at which a tenth as many user-days have an event, for lack of the user's own days."""
TAIL_DAYS = 50.0
"""Days that this rule counts as, beside the user's own days."""
MIN_PVALUE = 1e-6
"""Lowest p-value: no history tells more."""
NOVELTY_DECAY = 2 ** (-1 / NOVELTY_HALF_LIFE)


class BaselineStats(msgspec.Struct, frozen=True):
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


class Usage(msgspec.Struct, frozen=True, dict=True):
    """Counts of a user's values at the end of the history.

    Attributes:
        counts: Number of the user's events with each code; 0 for values without a code, (V,).
        new_share: Decayed sum over days of the share of events with a new value, (C,).
        new_days: Decayed number of these days.
        events: Number of events.
        others: Share of each code among other users, in the mean, (V,).
        novelty_prior: Rate of new values of each column in the population, (C,).
        offsets: First code of each column, (C,).
        leads: For each column the first column with the same information, (C,).
    """

    counts: NDArray[np.float32]
    new_share: FloatArray
    new_days: float
    events: int
    others: NDArray[np.float32]
    novelty_prior: NDArray[np.float32]
    offsets: NDArray[np.int64]
    leads: NDArray[np.intp]

    @classmethod
    def fit(  # noqa: PLR0913 - what usage depends on, and nothing else
        cls,
        codes: NDArray[np.int32],
        sessions: NDArray[np.intp],
        *,
        sizes: Sequence[int],
        others: NDArray[np.float64],
        novelty_prior: NDArray[np.float64],
        leads: Sequence[int],
    ) -> Usage:
        """Count the values of a history.

        Args:
            codes: Code of each column of each event, (n, C).
            sessions: Number of the day of each event, ascending from 0, (n,).
            sizes: Number of codes of each column, (C,).
            others: As above.
            novelty_prior: As above.
            leads: As above.
        """
        offsets, columns = compute_offsets(sizes), len(sizes)
        ids, days = codes + offsets, int(sessions.max(initial=-1)) + 1
        counts = np.bincount(ids.ravel(), minlength=int(sum(sizes)))
        cells, in_day = count_distinct(ids * days + sessions[:, None], len(counts) * days)
        value, day = np.divmod(cells, max(days, 1))
        unknown = offsets + UNKNOWN
        is_new = np.diff(value, prepend=-1).astype(np.bool_) | np.isin(value, unknown)
        column = np.repeat(np.arange(columns), sizes)[value]
        new = np.bincount((day * columns + column)[is_new], in_day[is_new], days * columns)
        shares = new.reshape(days, columns) / np.bincount(sessions, minlength=days)[:, None]
        # On the first day everything is new, which tells nothing.
        new_share, new_days = decay_shares(shares[1:], np.ones(max(days - 1, 0)))
        counts[unknown] = 0
        return cls(
            counts=counts.astype(np.float32),
            new_share=new_share[-1],
            new_days=float(new_days[-1]),
            events=len(codes),
            others=others.astype(np.float32),
            novelty_prior=novelty_prior.astype(np.float32),
            offsets=offsets,
            leads=np.asarray(leads, dtype=np.intp),
        )

    @cached_property
    def identity(self) -> int:
        """Checksum: what is counted on top of one history does not fit another."""
        checksum = crc32(self.offsets.tobytes())
        for part in (self.counts, self.others, self.leads):
            checksum = crc32(part.tobytes(), checksum)
        return checksum

    @cached_property
    def novelty(self) -> FloatArray:
        """Rate of new values of each column on the next day, (C,); see `estimate_novelty`."""
        return estimate_novelty(self.new_share, self.new_days, self.novelty_prior)

    @cached_property
    def column_of(self) -> NDArray[np.intp]:
        """Column of each code, (V,)."""
        sizes = np.diff(np.append(self.offsets, len(self.counts)))
        return np.repeat(np.arange(len(sizes)), sizes)

    def is_unknown(self, keys: IntArray) -> NDArray[np.bool_]:
        """Return which keys stand for a value without a code."""
        unknown = np.zeros(len(self.counts), dtype=np.bool_)
        unknown[self.offsets + UNKNOWN] = True
        return np.asarray((keys < 0) | unknown[np.maximum(keys, 0)])

    @cached_property
    def marginal(self) -> FloatArray:
        """Log-likelihood ratio of each code on the next day, (V,); see `compare_with_others`."""
        share = self.counts / max(self.events, 1)
        return compare_with_others(share, self.others, self.novelty[self.column_of])


_MAX_BINS = 8
"""Number of possible values for each value, up to which counting all is faster than sorting."""


def count_distinct(
    values: NDArray[np.int64], n_possible: int
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return the distinct values, ascending, and how often each occurs, (distinct,).

    Args:
        values: Numbers from 0, of any shape.
        n_possible: A number that is greater than all of them.

    >>> [each.tolist() for each in count_distinct(np.array([[3, 1], [1, 0]]), 4)]
    [[0, 1, 3], [1, 2, 1]]
    """
    if n_possible > _MAX_BINS * values.size:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.ravel(), minlength=n_possible)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def decay_shares(
    shares: FloatArray, weights: FloatArray, start: tuple[FloatArray | float, float] = (0.0, 0.0)
) -> tuple[FloatArray, FloatArray]:
    """Add up the shares of days, of which each halves in `NOVELTY_HALF_LIFE` days.

    Args:
        shares: Share of new values of each day, (G, C).
        weights: Weight of each day, (G,); a day of weight 0 is left out.
        start: Sum and decayed number of days before them.

    Returns:
        The sums, (G + 1, C), and the decayed numbers of days, (G + 1,): before each day, and after
        the last one.
    """
    sums, days = np.empty((len(shares) + 1, shares.shape[1])), np.empty(len(shares) + 1)
    sums[0], days[0] = start
    for row, weight in enumerate(weights):
        decay = NOVELTY_DECAY if weight else 1.0
        sums[row + 1] = sums[row] * decay + weight * shares[row]
        days[row + 1] = days[row] * decay + weight
    return sums, days


def estimate_novelty(
    new_share: FloatArray, days: FloatArray | float, prior: NDArray[np.float32]
) -> FloatArray:
    """Return the rate of new values of each column on the next day.

    It is what was new on the latest days. So a value that often changes, such as the name of a
    session, has a high rate, and a new one tells little.

    Args:
        new_share: Decayed sum of shares of new values; see `decay_shares`.
        days: Decayed number of days.
        prior: Rate of the population, which counts as `PRIOR_DAYS` days.

    >>> estimate_novelty(np.array([8.0, 0.0]), 8.0, np.array([0.5, 0.0])).round(2).tolist()
    [0.9, 0.0]
    """
    rate = (new_share + PRIOR_DAYS * prior) / (days + PRIOR_DAYS)
    return np.clip(rate, MIN_NOVELTY, MAX_NOVELTY)


def compare_with_others(
    own: NDArray[np.floating], others: NDArray[np.floating], novelty: NDArray[np.floating]
) -> FloatArray:
    """Return ln of how much more likely values are for another user than for this one.

    The user's own share f of a value and the others' share P are mixed by the rate n of new values:
    ln P - ln((1 - n) f + n P).
    """
    others = np.asarray(others, dtype=np.float64)
    return np.asarray(np.log(others) - np.log((1 - novelty) * own + novelty * others))


def combine_columns(evidence: FloatArray, leads: NDArray[np.intp]) -> FloatArray:
    """Combine the evidence of columns by a power mean of likelihood ratios, in nats, (B,).

    One decisive column is enough, and several that agree add. Columns with the same information
    count once.

    Args:
        evidence: Log-likelihood ratio of each column, in nats, (B, C).
        leads: For each column the first column with the same information, (C,).
    """
    grouped = _group_columns(evidence, leads)
    powers = np.exp(COLUMN_EXPONENT * np.minimum(grouped, MAX_EVIDENCE))
    columns = np.count_nonzero(leads == np.arange(len(leads)))
    combined = np.log(powers.sum(1) / columns) / COLUMN_EXPONENT
    return np.asarray(combined.round(EVIDENCE_DECIMALS) + 0.0)


def divide_evidence(evidence: FloatArray, leads: NDArray[np.intp]) -> FloatArray:
    """Return the share of each column in the evidence of an event, (B, C).

    It is in proportion to the positive part of the column's evidence. Of columns with the same
    information the first has the share. Shares add up to 1; without positive evidence they are 0.

    Args:
        evidence: Log-likelihood ratio of each column, in nats, (B, C).
        leads: For each column the first column with the same information, (C,).

    >>> divide_evidence(np.array([[3.0, 3.0, 1.0, -2.0]]), np.array([0, 0, 2, 3])).tolist()
    [[0.75, 0.0, 0.25, 0.0]]
    """
    positive = np.maximum(_group_columns(evidence, leads), 0)
    total = positive.sum(1, keepdims=True)
    return np.asarray(positive / np.where(total > 0, total, 1))


def _group_columns(evidence: FloatArray, leads: NDArray[np.intp]) -> FloatArray:
    """Give the first of columns with the same information their maximum, the others -inf."""
    copies = np.flatnonzero(leads != np.arange(len(leads)))
    if not len(copies):
        return evidence
    grouped = evidence.copy()
    for column in copies:
        lead = grouped[:, leads[column]]
        np.maximum(lead, evidence[:, column], out=lead)
    grouped[:, copies] = -np.inf
    return grouped


class PValues(msgspec.Struct, frozen=True):
    """P-values of user-days by their highest risk.

    Attributes:
        maxima: Highest risk of each known day of the user, ascending, (days,).
        ranks: Weight of the days from each of them on, and 0, (days + 1,).
    """

    maxima: FloatArray
    ranks: FloatArray

    @classmethod
    def from_days(cls, maxima: FloatArray, weights: FloatArray) -> PValues:
        """Sort the highest risks of days, (days,), with their weights, (days,)."""
        order = np.argsort(maxima, kind="stable")
        return cls(maxima[order], np.append(weights[order][::-1].cumsum()[::-1], 0.0))

    def compute(
        self, risks: FloatArray, higher: FloatArray | float = 0.0, more: FloatArray | float = 0.0
    ) -> FloatArray:
        """Return the probability that a usual day of the user has an event with such a risk.

        Empirical Bayes: the user's own days, and a rule that was measured on many users and counts
        as `TAIL_DAYS` days: a tenth as many days for each `TAIL_DECADE`.

        Args:
            risks: The risks, (n,).
            higher: Weight of more days with at least this risk, (n,).
            more: Weight of more days, (n,).

        >>> PValues.from_days(np.array([0.0, 40.0]), np.ones(2)).compute(np.array([0.0, 90.0]))
        array([1.        , 0.09615385])
        """
        own = self.ranks[np.searchsorted(self.maxima, risks, side="left")] + higher
        prior = TAIL_DAYS * 10 ** (-np.maximum(risks, 0) / TAIL_DECADE)
        share = (own + prior) / (self.ranks[0] + more + TAIL_DAYS)
        return np.asarray(np.maximum(share, MIN_PVALUE))


_MICROSECONDS, _DAY = pl.Datetime("us", "UTC"), 86_400_000_000


def number_days(times: pl.Series, timezone: str = "UTC") -> IntArray:
    """Return the number of the day of each time, since 1970, in a time zone, (n,).

    >>> times = pl.Series(["2026-03-01T23:30"]).str.to_datetime(time_zone="UTC")
    >>> (number_days(times, "Europe/Berlin") - number_days(times)).tolist()
    [1]
    """
    if timezone == "UTC" and times.dtype == _MICROSECONDS:
        return np.asarray(times.to_numpy().view(np.int64) // _DAY)
    local = times if timezone == "UTC" else times.dt.convert_time_zone(timezone)
    return np.asarray(local.dt.date().to_physical().cast(pl.Int64).to_numpy())


def to_milliseconds(times: pl.Series) -> IntArray:
    """Return each time in milliseconds since 1970, (n,).

    >>> to_milliseconds(pl.Series(["1970-01-01T00:00:01.5"]).str.to_datetime(time_zone="UTC"))
    array([1500])
    """
    if times.dtype == _MICROSECONDS:  # much faster than an expression, for a few times
        return np.asarray(times.to_numpy().view(np.int64) // 1000)
    return np.asarray(times.dt.epoch("ms").to_numpy())


def number_sessions(
    days: IntArray, owners: NDArray[np.integer[Any]] | None = None
) -> NDArray[np.intp]:
    """Number the days of several users one after the other, from 0, (n,).

    Args:
        days: Number of the day of each event; a step back starts another user's events.
        owners: Number of the user of each event; None if it is not known.

    >>> number_sessions(np.array([3, 3, 5, 1, 5])).tolist()
    [0, 0, 1, 2, 3]
    """
    changed = np.diff(days, prepend=days[:1]) != 0
    if owners is not None:
        changed |= np.diff(owners, prepend=owners[:1]) != 0
    return np.asarray(np.cumsum(changed), dtype=np.intp)


class MaskedPredictor(msgspec.Struct, frozen=True):
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


class MaskedPredictions(msgspec.Struct, frozen=True):
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
        for block, codes, numbers in iter_fixed_batches(rows, pad=not net.any_rows):
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
