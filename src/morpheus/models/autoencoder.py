"""The network: an autoencoder over the columns of an event, with a narrow middle layer.

Sizes in shapes: B events, C columns, N number columns, V codes of all columns together, H hidden
and M bottleneck units.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import LINEAR_Z

Array = Any
"""A numpy array. In `BatchedAutoencoder`, a torch tensor, which has the same operations."""

MAX_LOGIT = 30.0
"""Bound on a logit, so that its exponential is finite without subtracting a maximum."""


MAX_KNOWN_ROWS = 32
"""Distinct rows of a user of which the results of the network are kept."""


class KnownRows:
    """Results of a network for distinct rows, which users repeat.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._places: dict[bytes, int] = {}
        self._results: NDArray[np.float32] | None = None

    def find_missing(self, codes: NDArray[np.int32]) -> list[int]:
        """Return which rows have no result. Too many new ones replace all others.

        Args:
            codes: At most `MAX_KNOWN_ROWS` distinct rows, (D, C).
        """
        keys = _list_row_keys(codes)
        missing = [at for at, row in enumerate(keys) if row not in self._places]
        if len(self._places) + len(missing) > MAX_KNOWN_ROWS:
            self._places = {}
            return list(range(len(keys)))
        return missing

    def add(self, codes: NDArray[np.int32], results: NDArray[np.float32]) -> None:
        """Keep the results of new rows, (D, C) each."""
        if self._results is None:
            self._results = np.empty((MAX_KNOWN_ROWS, self._columns), dtype=np.float32)
        first = len(self._places)
        self._results[first : first + len(codes)] = results
        self._places |= zip(_list_row_keys(codes), range(first, first + len(codes)), strict=True)

    def look_up(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the results of known rows, (D, C)."""
        assert self._results is not None  # noqa: S101 - there are known rows
        return self._results[[self._places[row] for row in _list_row_keys(codes)]]

    def __reduce__(self) -> tuple[type[KnownRows], tuple[int]]:
        """Pickle nothing of it: another process computes them again."""
        return KnownRows, (self._columns,)


def _list_row_keys(codes: NDArray[np.int32]) -> list[bytes]:
    data, width = codes.tobytes(), codes.shape[1] * codes.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network.

    Attributes:
        code_counts: Number of codes of each column, (C,).
        number_columns: Positions of the number columns, (N,).
        hidden: Width of the outer layers, H.
        bottleneck: Width of the middle layer, M.
    """

    code_counts: tuple[int, ...]
    number_columns: tuple[int, ...]
    hidden: int
    bottleneck: int

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter, in memory order."""
        vocabulary, count = sum(self.code_counts), len(self.number_columns)
        return {
            "look_up": (vocabulary, self.hidden),
            "read_numbers": (count, self.hidden),
            "hidden_bias": (self.hidden,),
            "squeeze": (self.hidden, self.bottleneck),
            "middle_bias": (self.bottleneck,),
            "widen": (self.bottleneck, self.hidden),
            "wide_bias": (self.hidden,),
            "guess_codes": (self.hidden, vocabulary),
            "code_bias": (vocabulary,),
            "guess_numbers": (self.hidden, count),
            "number_bias": (count,),
        }

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(size) for size in self.parameter_shapes.values())


class Autoencoder:
    """Reconstructs every column of an event through a narrow middle layer.

    The codes of all columns share one vocabulary, so that all predictions are one matrix product.
    All weights are one vector, so that a training step is few operations. Everything also works on
    a batch of users, with a dimension U before each of the shapes:
    `batched_training.BatchedAutoencoder`.

    Args:
        config: Sizes of the network.
        weights: All weights, (P,).

    Attributes:
        parameters: Views of the weights, by name.
        column_of: Column of each code, (V,).
        offsets: First code of each column in the vocabulary, (C,).
        known_probabilities: Probabilities of the values of some rows; see `models.bundles`.
        column_one_hot: Which column each code belongs to, (V, C).
        number_columns: Positions of the number columns, (N,).

    >>> config = NetworkConfig((3, 5, 3), number_columns=(2,), hidden=8, bottleneck=4)
    >>> net = Autoencoder(config, np.zeros(config.n_parameters, dtype=np.float32))
    >>> net.losses(np.zeros((7, 3), dtype=np.int64), np.zeros((7, 1))).shape    # 7 events
    (7, 3)
    """

    array_module: ModuleType = np
    """Module with the array functions: numpy, which is faster than torch at this size."""
    product: Callable[[Array, Array], Array] = staticmethod(operator.matmul)
    """Product of rows, (B, K), and weights, (K, N)."""

    def __init__(self, config: NetworkConfig, weights: Array) -> None:
        self.config, self.weights = config, weights
        self.parameters = unflatten(config, weights)
        sizes = np.array(config.code_counts)
        column = np.arange(len(sizes)).repeat(sizes)
        self.column_of: Array = column  # (V,)
        self.offsets: Array = sizes.cumsum() - sizes  # (C,)
        self.known_probabilities = KnownRows(len(sizes))
        self.column_one_hot: Array = np.equal.outer(column, np.arange(len(sizes))).astype(
            np.float32
        )
        self.number_columns = list(config.number_columns)  # (N,)

    def for_scoring(self) -> Autoencoder:
        """Return the same network with results that do not depend on other rows.

        Its products are those of `row_product`.
        """
        net = copy(self)
        net.product = row_product
        net.known_probabilities = KnownRows(len(self.offsets))
        return net

    @property
    def any_rows(self) -> bool:
        """Whether a row has the same result in a batch of any number of rows."""
        return self.product is row_product

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Compute the loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        In nats for the code. Number columns add the squared error in squared standard deviations if
        there is a number.
        """
        positions = self._flat_positions(codes)  # (B, C)
        *_, wide = self._forward(self._one_hot(positions), numbers)
        logits = self._logits(wide)  # (B, V)
        observed = logits.reshape(-1)[positions]  # (B, C)
        exponentials = self.array_module.exp(logits, out=logits)
        loss = (
            self.array_module.log(self.product(exponentials, self.column_one_hot)) - observed
        )  # (B, C)
        if self.number_columns:
            loss[..., self.number_columns] += self._number_errors(wide, codes, numbers) ** 2
        return loss

    def compute_gradient(
        self,
        inputs: tuple[Array, Array],
        target: tuple[Array, Array],
        sample_weight: Array,
        grad: Mapping[str, Array],
    ) -> None:
        """Compute the gradient of the summed losses of `target` given `inputs`.

        Args:
            inputs: Corrupted codes, (B, C), and numbers, (B, N).
            target: The original codes and numbers.
            sample_weight: Weight of each event, (B,).
            grad: Parts of a vector in the layout of the weights, which are overwritten; see
                `unflatten`.
        """
        xp, parameters = self.array_module, self.parameters
        codes, numbers = target
        shown = self._one_hot(self._flat_positions(inputs[0]))  # (B, V)
        hidden, middle, wide = self._forward(shown, inputs[1])
        guess = self._logits(wide)  # (B, V)
        # Softmax minus target, column by column; the logits are bounded, so exp is finite.
        xp.exp(guess, out=guess)
        sample_weight = sample_weight[..., None]  # (B, 1)
        guess *= self._spread(sample_weight / (guess @ self.column_one_hot))
        guess.reshape(-1)[self._flat_positions(codes)] -= sample_weight
        back = guess @ parameters["guess_codes"].mT  # (B, H)
        if self.number_columns:
            number_grad = self._number_errors(wide, codes, numbers) * (2 * sample_weight)  # (B, N)
            xp.matmul(wide.mT, number_grad, out=grad["guess_numbers"])
            self._sum_rows(number_grad, out=grad["number_bias"])
            back += number_grad @ parameters["guess_numbers"].mT

        xp.matmul(wide.mT, guess, out=grad["guess_codes"])
        self._sum_rows(guess, out=grad["code_bias"])
        back *= wide > 0
        xp.matmul(middle.mT, back, out=grad["widen"])
        self._sum_rows(back, out=grad["wide_bias"])
        back = back @ parameters["widen"].mT  # (B, M)
        back *= middle > 0
        xp.matmul(hidden.mT, back, out=grad["squeeze"])
        self._sum_rows(back, out=grad["middle_bias"])
        back = back @ parameters["squeeze"].mT  # (B, H)
        back *= hidden > 0
        xp.matmul(shown.mT, back, out=grad["look_up"])
        if self.number_columns:
            xp.matmul(inputs[1].mT, back, out=grad["read_numbers"])
        self._sum_rows(back, out=grad["hidden_bias"])

    def _flat_positions(self, codes: Array) -> Array:
        """Positions of codes in a flat (B, V) array, (B, C)."""
        starts = _row_starts(math.prod(codes.shape[:-1]), len(self.column_of))
        return codes + self.offsets + starts.reshape(*codes.shape[:-1], 1)

    def _spread(self, rows: Array) -> Array:
        """Repeat the value of each column for each of its codes, (B, C) to (B, V)."""
        return rows[..., self.column_of]

    def _sum_rows(self, rows: Array, out: Array) -> None:
        # `np.sum` takes longer to find this than this takes for a batch.
        np.add.reduce(rows, axis=-2, out=out)

    def _zeros(self, *shape: int) -> Array:
        return np.zeros(shape, dtype=self.weights.dtype)

    def _relu(self, rows: Array) -> Array:
        return np.maximum(rows, 0, out=rows)

    def _one_hot(self, positions: Array) -> Array:
        shown = self._zeros(*positions.shape[:-1], len(self.column_of))
        shown.reshape(-1)[positions] = 1
        return shown

    def _forward(self, shown: Array, numbers: Array) -> tuple[Array, Array, Array]:
        hidden = self._linear("hidden_bias", shown, "look_up")  # (B, H)
        if self.number_columns:
            shown_numbers = numbers.clip(-LINEAR_Z, LINEAR_Z)
            hidden += self.product(shown_numbers, self.parameters["read_numbers"])
        self._relu(hidden)
        middle = self._relu(self._linear("middle_bias", hidden, "squeeze"))  # (B, M)
        wide = self._relu(self._linear("wide_bias", middle, "widen"))  # (B, H)
        return hidden, middle, wide

    def _logits(self, wide: Array) -> Array:
        logits = self._linear("code_bias", wide, "guess_codes")  # (B, V)
        return self.array_module.clip(logits, -MAX_LOGIT, MAX_LOGIT, out=logits)

    def _number_errors(self, wide: Array, codes: Array, numbers: Array) -> Array:
        guessed = self._linear("number_bias", wide, "guess_numbers")  # (B, N)
        return (guessed - numbers) * (codes[..., self.number_columns] > 1)

    def _linear(self, bias: str, rows: Array, weights: str) -> Array:
        out = self.product(rows, self.parameters[weights])
        out += self.parameters[bias][..., None, :]
        return out


@lru_cache(maxsize=256)
def _row_starts(rows: int, width: int) -> NDArray[np.intp]:
    """Return the position of the first cell of each row of a flat array, (rows,)."""
    return np.arange(rows) * width


ROWS_PER_PRODUCT = 8
"""Rows of one matrix product in `row_product`: so few that BLAS treats all of them alike."""


def row_product(rows: Array, weights: Array) -> Array:
    """Multiply rows by weights, each row with the same result wherever it stands.

    BLAS cuts a product into tiles, and some kernels (OpenBLAS for AVX2) add up the rows of
    different tiles in different orders.

    Args:
        rows: The rows, (B, K).
        weights: The weights, (K, N) or (K,).

    >>> rows = np.tile(np.arange(3, dtype=np.float32) / 7, (32, 1))
    >>> row_product(rows, np.eye(3, dtype=np.float32)).shape
    (32, 3)
    """
    number, inner = rows.shape
    missing = -number % ROWS_PER_PRODUCT
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, inner), dtype=rows.dtype)])
    parts = rows.reshape(-1, ROWS_PER_PRODUCT, inner)
    product = np.matmul(parts, weights).reshape(len(rows), *weights.shape[1:])
    return product[:number] if missing else product


def unflatten(config: NetworkConfig, vector: Array) -> dict[str, Array]:
    """Return views of the named parameters of a weight vector, or of a batch of them."""
    views, start = {}, 0
    for name, size in config.parameter_shapes.items():
        end = start + math.prod(size)
        views[name] = vector[..., start:end].reshape(*vector.shape[:-1], *size)
        start = end
    return views


def init_weights(
    config: NetworkConfig, frequencies: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return initial weights, (P,), with which the network predicts the frequencies of each column.

    Args:
        config: Sizes of the network.
        frequencies: Count of each code, (V,).
        rng: Source of the small random numbers in all other parameters.
    """
    weights = rng.standard_normal(config.n_parameters, dtype=np.float32)
    parameters = unflatten(config, weights)
    for name in ("hidden_bias", "middle_bias", "wide_bias", "number_bias"):
        parameters[name][:] = 0
    parameters["look_up"] *= len(config.code_counts) ** -0.5
    parameters["read_numbers"] *= len(config.code_counts) ** -0.5
    parameters["squeeze"] *= (2 / config.hidden) ** 0.5
    parameters["widen"] *= (2 / config.bottleneck) ** 0.5
    parameters["guess_codes"] *= 0.01
    parameters["guess_numbers"] *= 0.01
    parameters["code_bias"][:] = log_shares(config, frequencies)
    return weights


def log_shares(config: NetworkConfig, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the share of each code in its column, (V,).

    Args:
        config: Sizes of the network.
        frequencies: Count of each code, (V,).
    """
    sizes = np.array(config.code_counts)
    smoothed = frequencies + 0.1
    sums = np.add.reduceat(smoothed, sizes.cumsum() - sizes) if len(sizes) else smoothed
    return np.asarray(np.log(smoothed / sums.repeat(sizes)))
