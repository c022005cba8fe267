"""Losses and daily scores of many users at once, of whom each has few events.

On a stream, a micro-batch has few events of many users. Then the cost is that of the calls, not of
the numbers, so the arrays of the users are put one after the other. Every function here gives bit
for bit what the modules for one user give: `profile`, `scoring` and `daily_usage`. What does not
fit, such as number columns, is computed there.

Sizes in shapes: U users, N events, D distinct rows, C columns, V codes of all columns of one user,
H and M units of the network, W codes and new values of all users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.features.encoder import UNKNOWN, EncodedRows, number_within
from morpheus.models.autoencoder import (
    MAX_KNOWN_ROWS,
    MAX_LOGIT,
    ROWS_PER_PRODUCT,
    Autoencoder,
    KnownRows,
)
from morpheus.models.daily_usage import (
    MAX_OWN_DAYS,
    MEMORY_LIMIT,
    MIN_CHANGING_NOVELTY,
    DailyScores,
    DayRecord,
    EventValues,
    UsageState,
    find_frequency,
    hash_new_value,
)
from morpheus.models.profile import Fingerprint, ScoringParts, apply_oov_penalty
from morpheus.models.scoring import (
    COLUMN_EXPONENT,
    CONDITIONAL_STD_FLOOR,
    EVIDENCE_DECIMALS,
    MAX_EVIDENCE,
    MIN_PVALUE,
    RISK_DECIMALS,
    RISK_PER_NAT,
    TAIL_DAYS,
    TAIL_DECADE,
    FloatArray,
    IntArray,
    MaskedPredictions,
    compare_with_others,
    estimate_novelty,
)
from morpheus.models.training import single_thread

MAX_BUNDLE_ROWS = 128
"""Distinct rows that are computed at once, so that their arrays stay in the processor's cache."""
Float32Array = NDArray[np.float32]


class NetworkBundle(msgspec.Struct, frozen=True, dict=True):
    """The networks of some users, of one size and without number columns, and rows of each.

    Attributes:
        nets: The network of each user; see `Autoencoder.any_rows`.
        rows: Distinct rows of each user, at least one.
    """

    nets: Sequence[Autoencoder]
    rows: Sequence[EncodedRows]

    @cached_property
    def heights(self) -> NDArray[np.intp]:
        """Number of distinct rows of each user, (U,)."""
        return np.array([len(each.codes) for each in self.rows], dtype=np.intp)

    @cached_property
    def owner(self) -> NDArray[np.intp]:
        """User of each distinct row, (D,)."""
        return np.repeat(np.arange(len(self.rows)), self.heights)

    @cached_property
    def offsets(self) -> IntArray:
        """First code of each column of each user, (U, C)."""
        return np.array([net.offsets for net in self.nets])

    @cached_property
    def codes(self) -> IntArray:
        """Code of each distinct row among all columns of its user, (D, C)."""
        return np.concatenate([each.codes for each in self.rows]) + self.offsets[self.owner]

    @cached_property
    def vocabularies(self) -> NDArray[np.intp]:
        """Number of codes of each user, (U,)."""
        return np.array([len(net.column_one_hot) for net in self.nets], dtype=np.intp)

    def stack(self, name: str) -> Float32Array:
        """Return a parameter of all users whose size is that of the network, (U, ...)."""
        return np.array([net.parameters[name] for net in self.nets])

    def losses(self) -> Float32Array:
        """Return the raw losses of the distinct rows, (D, C); see `Autoencoder.losses`."""
        logits = _LogitBlocks.from_bundle(self)
        shown, positions = np.zeros_like(logits.values), logits.positions(self.codes)
        shown[positions] = 1
        hidden = self._product(logits.views(shown), "look_up", logits.rows)
        hidden = self._add_bias(hidden, "hidden_bias", logits.owner)
        middle = self._add_bias(
            self._product(logits.split(hidden), "squeeze", logits.rows),
            *("middle_bias", logits.owner),
        )
        wide = self._add_bias(
            self._product(logits.split(middle), "widen", logits.rows), "wide_bias", logits.owner
        )
        for net, rows, out in zip(
            self.nets, logits.split(wide), logits.views(logits.values), strict=True
        ):
            np.matmul(rows, net.parameters["guess_codes"], out=out)
        return logits.compare(positions)

    def _product(self, blocks: Iterable[Float32Array], name: str, rows: int) -> Float32Array:
        """Multiply the rows of each user by a parameter of the user, (rows, columns)."""
        parts = [
            np.matmul(block, net.parameters[name])
            for net, block in zip(self.nets, blocks, strict=True)
        ]
        return np.concatenate(parts).reshape(rows, -1)

    def _add_bias(self, product: Float32Array, name: str, owner: NDArray[np.intp]) -> Float32Array:
        """Add the bias of each row's user, and set what is below 0 to 0."""
        product += self.stack(name)[owner]
        return np.maximum(product, 0, out=product)

    def probabilities(self) -> Float32Array:
        """Return the probability of each value, given the event's others, (D, C).

        See `MaskedPredictor`. Here the rows of one product are an event with each of its columns
        hidden in turn.
        """
        columns, hidden = self.codes.shape[1], self.nets[0].config.hidden
        shape = len(self.codes), columns, hidden
        embedded, unknown = np.empty((2, *shape), dtype=np.float32)
        bounds = np.append(0, self.heights.cumsum()).tolist()
        for net, offsets, (start, end) in zip(
            self.nets, self.offsets, pairwise(bounds), strict=True
        ):
            look_up = net.parameters["look_up"]
            embedded[start:end] = look_up[self.codes[start:end]]
            unknown[start:end] = look_up[UNKNOWN + offsets]
        first = embedded.sum(1) + self.stack("hidden_bias")[self.owner]
        rows = first[:, None] - embedded
        rows += unknown
        np.maximum(rows, 0, out=rows)
        return self._guess(self._squeeze(rows).reshape(shape))

    def _squeeze(self, rows: Float32Array) -> Float32Array:
        """Pass rows, (D, C, H), through the middle layer, (D * C, H)."""
        columns, width = rows.shape[1:]
        lengths = self.heights * columns
        padded = -(-lengths // ROWS_PER_PRODUCT) * ROWS_PER_PRODUCT
        places = np.repeat(padded.cumsum() - padded, lengths) + number_within(lengths)
        buffer = np.zeros((int(padded.sum()), width), dtype=np.float32)
        buffer[places] = rows.reshape(-1, width)
        owner, cuts = np.repeat(np.arange(len(padded)), padded), padded.cumsum()[:-1].tolist()
        middle = self._add_bias(
            self._product(_split_rows(buffer, cuts), "squeeze", len(buffer)), "middle_bias", owner
        )
        wide = self._add_bias(
            self._product(_split_rows(middle, cuts), "widen", len(buffer)), "wide_bias", owner
        )
        return np.asarray(wide[places])

    def _guess(self, wide: Float32Array) -> Float32Array:
        """Return the probability of the values by the last hidden layer, (D, C, H)."""
        logits, width = _LogitBlocks.from_bundle(self), wide.shape[2]
        weights = np.concatenate([net.parameters["guess_codes"] for net in self.nets], axis=1)
        sizes = np.array([net.config.code_counts for net in self.nets])
        first = self.offsets + (self.vocabularies.cumsum() - self.vocabularies)[:, None]
        count = wide.shape[1]
        hidden = np.append(wide.reshape(-1, width), np.zeros((1, width), np.float32), axis=0)
        rows = np.full(logits.rows, len(wide))  # of blocks; the last row is zero
        rows[logits.places] = np.arange(len(wide))
        rows = rows.reshape(-1, ROWS_PER_PRODUCT) * count
        owner = logits.owner[::ROWS_PER_PRODUCT]
        cells = logits.positions_of_blocks()
        for size in np.unique(sizes).tolist():
            # Products of one size are computed in one call: most columns have few codes.
            block, column = np.nonzero(sizes[owner] == size)
            codes = first[owner[block], column][:, None] + np.arange(size)
            part = weights.take(codes.ravel(), axis=1).reshape(width, -1, size)
            shown = np.minimum(rows[block] + column[:, None], len(hidden) - 1)
            product = np.matmul(hidden.take(shown, axis=0), part.transpose(1, 0, 2))
            places = cells[block] + self.offsets[owner[block], column][:, None]
            logits.values[places[:, :, None] + np.arange(size)] = product
        return logits.share(logits.positions(self.codes))


class _LogitBlocks(msgspec.Struct, frozen=True, dict=True):
    """One number for each code and row, in blocks of `ROWS_PER_PRODUCT` rows of one user.

    Attributes:
        bundle: The networks and the rows.
        padded: Number of rows of each user, with those that fill its last block, (U,).
        values: The numbers of all users, one after the other; set to 0.
    """

    bundle: NetworkBundle
    padded: NDArray[np.intp]
    values: Float32Array

    @classmethod
    def from_bundle(cls, bundle: NetworkBundle) -> _LogitBlocks:
        padded = -(-bundle.heights // ROWS_PER_PRODUCT) * ROWS_PER_PRODUCT
        cells = int((padded * bundle.vocabularies).sum())
        return cls(bundle, padded, np.zeros(cells, dtype=np.float32))

    @property
    def rows(self) -> int:
        return int(self.padded.sum())

    @cached_property
    def owner(self) -> NDArray[np.intp]:
        """User of each row, (rows,)."""
        return np.repeat(np.arange(len(self.padded)), self.padded)

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Row of each distinct row, (D,)."""
        heights = self.bundle.heights
        return np.repeat(self.padded.cumsum() - self.padded, heights) + number_within(heights)

    def positions(self, codes: IntArray) -> IntArray:
        """Position of codes, (D, C), in `values`."""
        sizes = self.padded * self.bundle.vocabularies
        starts = (sizes.cumsum() - sizes)[self.bundle.owner]
        starts = (
            starts
            + number_within(self.bundle.heights) * self.bundle.vocabularies[self.bundle.owner]
        )
        return np.asarray(codes + starts[:, None])

    def positions_of_blocks(self) -> IntArray:
        """Position of the first code of each row of each block, (blocks, ROWS_PER_PRODUCT)."""
        sizes = self.padded * self.bundle.vocabularies
        starts = np.repeat(sizes.cumsum() - sizes, self.padded)
        starts += number_within(self.padded) * self.bundle.vocabularies[self.owner]
        return np.asarray(starts.reshape(-1, ROWS_PER_PRODUCT))

    def views(self, values: Float32Array) -> Iterator[Float32Array]:
        """Yield the numbers of each user, (blocks, ROWS_PER_PRODUCT, V)."""
        start = 0
        for rows, codes in zip(
            self.padded.tolist(), self.bundle.vocabularies.tolist(), strict=True
        ):
            end = start + rows * codes
            yield values[start:end].reshape(-1, ROWS_PER_PRODUCT, codes)
            start = end

    def split(self, rows: Float32Array) -> Iterator[Float32Array]:
        """Yield the rows of each user, (blocks, ROWS_PER_PRODUCT, columns)."""
        return _split_rows(rows, self.padded.cumsum()[:-1].tolist())

    def _exponentials(self) -> None:
        """Add the bias of each code to the numbers, and take their exponentials."""
        for net, view in zip(self.bundle.nets, self.views(self.values), strict=True):
            np.add(view, net.parameters["code_bias"], out=view)
        np.clip(self.values, -MAX_LOGIT, MAX_LOGIT, out=self.values)

    def _sum_columns(self) -> Float32Array:
        """Add up the exponentials of each column, (D, C)."""
        sums = [
            np.matmul(view, net.column_one_hot)
            for net, view in zip(self.bundle.nets, self.views(self.values), strict=True)
        ]
        return np.asarray(np.concatenate(sums).reshape(self.rows, -1)[self.places])

    def compare(self, positions: IntArray) -> Float32Array:
        """Return -ln of the probability of codes, (D, C)."""
        self._exponentials()
        observed = self.values[positions]
        np.exp(self.values, out=self.values)
        return np.asarray(np.log(self._sum_columns()) - observed)

    def share(self, positions: IntArray) -> Float32Array:
        """Return the probability of codes, (D, C)."""
        self._exponentials()
        np.exp(self.values, out=self.values)
        return np.asarray(self.values[positions] / self._sum_columns())


def _split_rows(rows: Float32Array, cuts: Sequence[int]) -> Iterator[Float32Array]:
    """Yield consecutive rows, each in blocks of `ROWS_PER_PRODUCT`."""
    for start, end in pairwise([0, *cuts, len(rows)]):
        yield rows[start:end].reshape(-1, ROWS_PER_PRODUCT, rows.shape[1])


def _find_bundles(
    nets: Sequence[Autoencoder | None], rows: Sequence[EncodedRows | None]
) -> Iterator[list[int]]:
    """Yield positions of users whose networks can be computed together."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for position, (net, row) in enumerate(zip(nets, rows, strict=True)):
        if net is not None and row is not None and len(row.codes):
            config = net.config
            key = len(config.code_counts), config.hidden, config.bottleneck
            groups.setdefault(key, []).append(position)
    for group in groups.values():
        bundle, size = list[int](), 0
        for position in group:
            bundle.append(position)
            size += len(rows[position].codes)  # type: ignore[union-attr]  # as above
            if size >= MAX_BUNDLE_ROWS:
                yield bundle
                bundle, size = [], 0
        if bundle:
            yield bundle


def _bundled_net(fingerprint: Fingerprint | None) -> Autoencoder | None:
    """Return the network that scores, if it can be computed with those of others."""
    if fingerprint is None or fingerprint.usage is None:
        return None
    net = fingerprint.scoring_parts.net
    return net if _can_be_bundled(net) else None


def _can_be_bundled(net: Autoencoder) -> bool:
    return net.any_rows and not net.number_columns


BundleFunction = Callable[[NetworkBundle, Sequence[int]], Iterable[Float32Array]]
"""Returns results of the rows of each user of a bundle; the users have these positions."""


def _compute_new(
    nets: Sequence[Autoencoder | None],
    rows: Sequence[EncodedRows | None],
    memories: Sequence[KnownRows | None],
    compute: BundleFunction,
) -> list[Float32Array | None]:
    """Compute results of distinct rows, or look them up if the user had the rows before.

    Args:
        nets: The network of each user; None to leave a user out.
        rows: Distinct rows of each; None to leave a user out.
        memories: The known results of each. Of users who share them, only the first uses them.
        compute: Computes the results of a bundle.
    """
    found: list[Float32Array | None] = [None] * len(nets)
    known, used = list[KnownRows | None](), set[int]()
    for net, row, memory in zip(nets, rows, memories, strict=True):
        few = net is not None and row is not None and 0 < len(row.codes) <= MAX_KNOWN_ROWS
        known.append(memory if few and id(memory) not in used else None)
        used.add(id(memory))
    wanted = [
        row if memory is None or row is None else _leave_out_known(row, memory)
        for memory, row in zip(known, rows, strict=True)
    ]
    with single_thread():
        for group in _find_bundles(nets, wanted):
            bundle = NetworkBundle([nets[i] for i in group], [wanted[i] for i in group])  # type: ignore[misc]  # no None
            for i, new, results in zip(group, bundle.rows, compute(bundle, group), strict=True):
                if (each := known[i]) is None:
                    found[i] = results
                else:
                    each.add(new.codes, results)
    for i, each in enumerate(known):
        if each is not None:
            found[i] = each.look_up(rows[i].codes)  # type: ignore[union-attr]  # it has rows
    return found


def _leave_out_known(rows: EncodedRows, memory: KnownRows) -> EncodedRows | None:
    """Return the rows without a result; None if all have one."""
    missing = memory.find_missing(rows.codes)
    if len(missing) == len(rows.codes):
        return rows
    return replace(rows, codes=rows.codes[missing]) if len(missing) else None


def compute_losses(
    fingerprints: Sequence[Fingerprint | None], rows: Sequence[EncodedRows | None]
) -> list[Float32Array | None]:
    """Compute what `Fingerprint.losses` returns for several users.

    Args:
        fingerprints: The fingerprint of each user.
        rows: Distinct rows of each; None to leave a user out.

    Returns:
        The losses of each user, (D, C); None for those left out.
    """
    nets = [_bundled_net(each) for each in fingerprints]

    def compute(bundle: NetworkBundle, group: Sequence[int]) -> Iterator[Float32Array]:
        raws = np.split(bundle.losses(), bundle.heights.cumsum()[:-1])
        for i, row, raw in zip(group, bundle.rows, raws, strict=True):
            rates = fingerprints[i].oov_rates  # type: ignore[union-attr]  # no None
            yield raw if rates is None else apply_oov_penalty(raw, rates, row)

    memories = [None if each is None else each.known_losses for each in fingerprints]
    found = _compute_new(nets, rows, memories, compute)
    for i, (fingerprint, net, row) in enumerate(zip(fingerprints, nets, rows, strict=True)):
        if fingerprint is not None and row is not None and net is None:
            found[i] = fingerprint.losses(row)
    return found


def predict_masked(
    nets: Sequence[Autoencoder], rows: Sequence[EncodedRows]
) -> list[MaskedPredictions]:
    """Compute what `MaskedPredictions.predict` returns for several users.

    Args:
        nets: The network of each user, for scoring.
        rows: Distinct rows of each.
    """
    fit = [
        net if _can_be_bundled(net) and len(row.codes) else None
        for net, row in zip(nets, rows, strict=True)
    ]

    def compute(bundle: NetworkBundle, group: Sequence[int]) -> list[Float32Array]:  # noqa: ARG001 - as `BundleFunction`
        return np.split(bundle.probabilities(), bundle.heights.cumsum()[:-1])

    found = _compute_new(fit, rows, [net.known_probabilities for net in nets], compute)
    return [
        MaskedPredictions.predict(net, row)
        if part is None
        else MaskedPredictions(part, np.zeros_like(part))
        for net, row, part in zip(nets, rows, found, strict=True)
    ]


class UserEvents(NamedTuple):
    """Events of one user, to be scored by the days before them.

    Attributes:
        parts: What the user's fingerprint says.
        rows: The events, encoded; at least one.
        usage: What is remembered of the user; updated.
    """

    parts: ScoringParts
    rows: EncodedRows
    usage: UsageState

    def take(self, rows: slice) -> UserEvents:
        """Return consecutive events."""
        if rows.start == 0 and rows.stop == len(self.rows.inverse):
            return self
        return self._replace(rows=replace(self.rows, inverse=self.rows.inverse[rows]))


BundleValues = Callable[[str, NDArray[np.intp]], Sequence[str | None]]
"""Returns the values of a column, by name, for some events of all users."""


class DayBundle(msgspec.Struct, frozen=True, dict=True):
    """Events of one day of each of several users: their latest, or one after it.

    A day before it has ended; see `DailyScorer.end_day`.

    Attributes:
        users: The users, with the same number of columns.
        keys: Code of each value among all columns of the user, or a negative key of
            `hash_new_value`, (N, C).
        predictions: What the network says about the distinct rows of each user.
        days: Number of the day of each user, (U,).
    """

    users: Sequence[UserEvents]
    keys: IntArray
    predictions: Sequence[MaskedPredictions]
    days: IntArray

    def score(self) -> DailyScores:
        """Score the events, and remember them; see `DailyScorer.score`."""
        by_history, steps = self._compare_with_history()
        own = self._divide(self.values.counts[self.places], self.events[self.owner])
        novelty, others = self.novelty[self.owner], self.others_of(self.keys, self.owner)
        marginal = compare_with_others(own, others, novelty)
        probability = self._gather_rows("probability")
        likely = np.where(probability > 0, probability, own)
        errors = self._gather_rows("number_error") ** 2
        conditional = errors - np.log((1 - novelty) * likely + novelty * others)
        columns = (marginal + self._excess(conditional, self.owner)).round(EVIDENCE_DECIMALS)
        evidence = self._combine(columns, self.owner)
        paid = np.where(self._find_repeated(marginal > 0), 0, marginal)
        step_columns = paid.round(EVIDENCE_DECIMALS)
        own_steps = self._combine(step_columns, self.owner)
        memory, last = self._accumulate(own_steps)
        risks = RISK_PER_NAT * np.maximum(evidence + memory + self.gather("carryover"), 0)
        risks = risks.round(RISK_DECIMALS)
        incident = self._running_maxima(risks)
        unknown = (self.keys < 0) | (self.keys - self.offsets[self.owner] == UNKNOWN)
        scores = DailyScores(
            risks,
            np.minimum((RISK_PER_NAT * np.maximum(evidence, 0)).round(RISK_DECIMALS), risks),
            self._rank(risks),
            incident,
            self._rank(incident),
            unknown & (own == 0),
            find_frequency(own, self.events[self.owner, None]),
            marginal,
            memory,
            columns,
            own_steps,
            step_columns,
            self.starts_day,
        )
        self._save(scores, last, by_history, steps)
        return scores

    @cached_property
    def heights(self) -> NDArray[np.intp]:
        """Number of events of each user, (U,)."""
        return np.array([len(each.rows.inverse) for each in self.users], dtype=np.intp)

    @cached_property
    def owner(self) -> NDArray[np.intp]:
        """User of each event, (N,)."""
        return np.repeat(np.arange(len(self.users)), self.heights)

    @cached_property
    def number(self) -> NDArray[np.intp]:
        """Number of each event among those of its user, (N,)."""
        return number_within(self.heights)

    @cached_property
    def last_rows(self) -> NDArray[np.intp]:
        """Position of the last event of each user, (U,)."""
        return np.asarray(self.heights.cumsum() - 1)

    @cached_property
    def distinct(self) -> NDArray[np.intp]:
        """Number of distinct rows of each user, (U,)."""
        return np.array([len(each.rows.codes) for each in self.users], dtype=np.intp)

    @cached_property
    def inverse(self) -> NDArray[np.intp]:
        """Distinct row of each event among those of all users, (N,)."""
        inverse = np.concatenate([each.rows.inverse for each in self.users])
        return np.asarray(inverse + (self.distinct.cumsum() - self.distinct)[self.owner])

    def _gather_rows(self, name: str) -> FloatArray:
        """Return a part of the predictions, for each event, (N, C)."""
        return np.asarray(self._predicted(name)[self.inverse])

    def _predicted(self, name: str) -> FloatArray:
        """Return a part of the predictions, (D, C)."""
        values = np.concatenate([getattr(each, name) for each in self.predictions])
        if name == "probability":
            values = np.where(self._distinct_codes == UNKNOWN, 0, values)
        return np.asarray(values.astype(np.float64))

    @cached_property
    def _distinct_codes(self) -> IntArray:
        """Code of each value of the distinct rows in its column, (D, C)."""
        return np.concatenate([each.rows.codes for each in self.users])

    def state(self, name: str) -> FloatArray:
        """Return a number of the states, (U,)."""
        return np.array([getattr(each.usage, name) for each in self.users], dtype=np.float64)

    def gather(self, name: str) -> FloatArray:
        """Return a number of the states, for each event, (N,)."""
        return np.asarray(self.state(name)[self.owner])

    @cached_property
    def begun(self) -> NDArray[np.bool_]:
        """Which users had events on the day before, (U,)."""
        return self.state("today_events") > 0

    @cached_property
    def starts_day(self) -> NDArray[np.bool_]:
        """Whether each event is the first of its day, (N,)."""
        return np.asarray((self.number == 0) & ~self.begun[self.owner])

    @cached_property
    def offsets(self) -> IntArray:
        """First code of each column of each user, (U, C)."""
        return np.array([each.parts.usage.offsets for each in self.users])

    @cached_property
    def leads(self) -> NDArray[np.intp]:
        """First column with the same information, for each column of each user, (U, C)."""
        return np.array([each.parts.usage.leads for each in self.users])

    @cached_property
    def novelty(self) -> FloatArray:
        """Rate of new values of each column on this day, (U, C)."""
        usages = [each.parts.usage for each in self.users]
        states = [each.usage for each in self.users]
        known = [state.new_share is not None for state in states]
        share = np.array(
            [
                usage.new_share if state.new_share is None else state.new_share
                for usage, state in zip(usages, states, strict=True)
            ]
        )
        days = np.array(
            [
                state.new_days if is_known else usage.new_days
                for usage, state, is_known in zip(usages, states, known, strict=True)
            ],
            dtype=np.float64,
        )
        prior = np.array([usage.novelty_prior for usage in usages])
        return estimate_novelty(share.astype(np.float64), days[:, None], prior)

    @cached_property
    def events(self) -> FloatArray:
        """Number of events of earlier days, (U,)."""
        history = np.array([each.parts.usage.events for each in self.users], dtype=np.int64)
        return np.asarray(history + self.state("events"))

    @staticmethod
    def _divide(counts: FloatArray, events: FloatArray) -> FloatArray:
        return np.asarray(counts / np.maximum(events, 1)[:, None])

    @cached_property
    def _others(self) -> tuple[Float32Array, NDArray[np.intp]]:
        """Share of each code among other users, of all users; and the first code of each user."""
        parts = [each.parts.usage.others for each in self.users]
        sizes = np.array([len(each) for each in parts], dtype=np.intp)
        return np.concatenate(parts), np.asarray(sizes.cumsum() - sizes)

    def others_of(self, keys: IntArray, owner: NDArray[np.intp]) -> FloatArray:
        """Return the share of values among other users, (rows, C).

        Args:
            keys: The values, (rows, C).
            owner: User of each row, (rows,).
        """
        others, first = self._others
        codes = np.where(keys < 0, self.offsets[owner] + UNKNOWN, keys)
        return np.asarray(others[codes + first[owner][:, None]], dtype=np.float64)

    def _excess(self, conditional: FloatArray, owner: NDArray[np.intp]) -> FloatArray:
        """Return the distance above the usual conditional surprise, (rows, C)."""
        usual = [each.parts.usual for each in self.users]
        std = np.hypot(
            np.array([each.std for each in usual]).astype(np.float64), CONDITIONAL_STD_FLOOR
        )
        mean = np.array([each.mean for each in usual])
        return np.asarray(np.maximum(conditional - mean[owner], 0) / std[owner])

    def _combine(self, evidence: FloatArray, owner: NDArray[np.intp]) -> FloatArray:
        """See `combine_columns`; the columns with the same information differ by user."""
        leads, columns = self.leads, evidence.shape[1]
        is_copy = (leads != np.arange(columns))[owner]
        grouped = evidence
        if is_copy.any():
            grouped = evidence.copy()
            for column in np.flatnonzero(is_copy.any(0)).tolist():
                rows = np.flatnonzero(is_copy[:, column])
                lead = leads[owner[rows], column]
                grouped[rows, lead] = np.maximum(grouped[rows, lead], evidence[rows, column])
            grouped[is_copy] = -np.inf
        powers = np.exp(COLUMN_EXPONENT * np.minimum(grouped, MAX_EVIDENCE))
        counts = np.count_nonzero(leads == np.arange(columns), axis=1)[owner]
        combined = np.log(powers.sum(1) / counts) / COLUMN_EXPONENT
        return np.asarray(combined.round(EVIDENCE_DECIMALS) + 0.0)

    def _compare_with_history(self) -> tuple[FloatArray, FloatArray]:
        """Return evidence and steps of each event by the history alone, (N,) each.

        See `DailyScorer._compare_with_history`.
        """
        usages = [each.parts.usage for each in self.users]
        owner = np.repeat(np.arange(len(usages)), self.distinct)
        codes = self._distinct_codes + self.offsets[owner]
        marginals = np.concatenate([usage.marginal for usage in usages])
        marginal = marginals[codes + self._others[1][owner][:, None]]
        others = self.others_of(codes, owner)
        novelty = np.array([usage.novelty for usage in usages])[owner]
        likely = (1 - novelty) * self._predicted("probability") + novelty * others
        conditional = self._predicted("number_error") ** 2 - np.log(likely)
        columns = marginal + self._excess(conditional, owner)
        known = np.where(self._distinct_codes == UNKNOWN, 0, marginal)
        evidence, steps = (
            self._combine(each.round(EVIDENCE_DECIMALS), owner)[self.inverse]
            for each in (columns, known)
        )
        return evidence, steps

    @cached_property
    def values(self) -> _BundleCounts:
        """Counts of all values of all users at the start of the day."""
        return _BundleCounts.from_bundle(self)

    @property
    def places(self) -> NDArray[np.intp]:
        """Place of each value of each event in `values`, (N, C)."""
        return self.values.places

    def _find_repeated(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the chosen values an earlier event of the day has too, (N, C)."""
        repeated = np.zeros(chosen.shape, dtype=np.bool_)
        places = self.places[chosen]
        order = np.arange(len(places))
        first = np.empty(len(self.values.counts), dtype=np.intp)
        first[places[::-1]] = order[::-1]  # the last one written is the first one here
        repeated[chosen] = (first[places] != order) | (self.values.carried[places] > 0)
        return repeated

    def _iter_turns(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the users with a first event, and these events; then those with a second, ..."""
        for turn in range(int(self.heights.max())):
            rows = np.flatnonzero(self.number == turn)
            yield self.owner[rows], rows

    def _accumulate(self, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the memory before each event, (N,), and after the last of each user, (U,)."""
        current = np.where(self.begun, self.state("memory"), 0.0)
        before = np.empty(len(steps))
        for users, rows in self._iter_turns():
            before[rows] = current[users]
            after = current[users] + steps[rows]
            after[after < 0] = 0.0
            after[after > MEMORY_LIMIT] = MEMORY_LIMIT
            current[users] = after
        return before, current

    def _running_maxima(self, risks: FloatArray) -> FloatArray:
        """Return the highest risk of the day up to each event, (N,)."""
        current = np.where(self.begun, self.state("today_maximum"), -np.inf)
        maxima = np.empty(len(risks))
        for users, rows in self._iter_turns():
            current[users] = maxima[rows] = np.maximum(risks[rows], current[users])
        return maxima

    def _rank(self, risks: FloatArray) -> FloatArray:
        """Return the p-value of risks among the earlier days of each user, (N,)."""
        maxima, weights, first, sizes = self._known_days
        of_event = sizes[self.owner]
        cells = np.repeat(first[self.owner], of_event) + number_within(of_event)
        event = np.repeat(np.arange(len(risks)), of_event)
        higher = maxima[cells] >= risks[event]
        # Weights are sixteenths, so their sum is exact in any order.
        own = np.bincount(event, weights[cells] * higher, len(risks))
        prior = TAIL_DAYS * 10 ** (-np.maximum(risks, 0) / TAIL_DECADE)
        users = np.repeat(np.arange(len(sizes)), sizes)
        total = np.bincount(users, weights, len(sizes))[self.owner]
        return np.asarray(np.maximum((own + prior) / (total + TAIL_DAYS), MIN_PVALUE))

    @cached_property
    def _known_days(
        self,
    ) -> tuple[FloatArray, FloatArray, NDArray[np.intp], NDArray[np.intp]]:
        """Highest risk and weight of each known day of all users; first and number by user."""
        own = [each.parts.calibration.day_maxima for each in self.users]
        later = [(each.usage.maxima, each.usage.weights) for each in self.users]
        maxima = [
            part for days, (risks, _) in zip(own, later, strict=True) for part in (days, risks)
        ]
        weights = [
            part
            for days, (_, given) in zip(own, later, strict=True)
            for part in (np.ones(len(days)), given)
        ]
        sizes = np.array([len(a) + len(b) for a, (b, _) in zip(own, later, strict=True)], np.intp)
        risks = np.concatenate(maxima).astype(np.float64)
        return risks, np.concatenate(weights), sizes.cumsum() - sizes, sizes

    def _save(
        self, scores: DailyScores, memory: FloatArray, by_history: FloatArray, steps: FloatArray
    ) -> None:
        """Put the day so far into the states."""
        unit, users = 10.0**EVIDENCE_DECIMALS, len(self.users)
        sums = np.bincount(self.owner, np.rint(steps * unit), users)
        first = np.zeros(users)
        np.maximum.at(first, self.owner, RISK_PER_NAT * np.maximum(by_history, 0))
        maxima = np.maximum(scores.incident_score[self.last_rows], 0.0)
        changes = zip(
            self.users,
            self.days.tolist(),
            self.heights.tolist(),
            maxima.tolist(),
            memory.tolist(),
            first.tolist(),
            sums.tolist(),
            self.values.iter_changes(),
            strict=True,
        )
        for user, day, events, maximum, after, by_start, added, values in changes:
            state = user.usage
            begun = state.today_events > 0
            state.today_maximum, state.memory, state.day = maximum, after, day
            state.today_first_maximum = max(by_start, state.today_first_maximum if begun else 0.0)
            state.today_steps = int(added) + (state.today_steps if begun else 0)
            state.today_events = events + (state.today_events if begun else 0)
            state.keys, state.counts, state.today, state.latest = values
            state.forget_oldest()


class _BundleCounts(msgspec.Struct, frozen=True):
    """Counts of the values of all users: of each user the new ones by key, then the codes.

    Attributes:
        bundle: The users and the events.
        keys: Key of each value, (W,).
        first: First value of each user, and the number of values, (U + 1,).
        places: Place of each value of each event, (N, C).
        saved: Place of each value of the states.
        history: Number of events of the history, (W,).
        counts: Number of events before the day, (W,).
        carried: Number of events of the day before these, (W,).
    """

    bundle: DayBundle
    keys: IntArray
    first: NDArray[np.intp]
    places: NDArray[np.intp]
    saved: NDArray[np.intp]
    history: FloatArray
    counts: FloatArray
    carried: IntArray

    @classmethod
    def from_bundle(cls, bundle: DayBundle) -> _BundleCounts:
        states, users = [each.usage for each in bundle.users], len(bundle.users)
        saved = np.concatenate([state.keys for state in states])
        saved_by = np.repeat(np.arange(users), [len(state.keys) for state in states])
        events = bundle.keys.ravel()
        events_by = np.repeat(bundle.owner, bundle.keys.shape[1])
        keys, owners = np.append(saved, events), np.append(saved_by, events_by)
        new = np.flatnonzero(keys < 0)
        new_keys, new_owners, numbers = _number_new(keys[new], owners[new])
        usages = [each.parts.usage for each in bundle.users]
        codes = np.array([len(usage.counts) for usage in usages], dtype=np.intp)
        n_new = np.bincount(new_owners, minlength=users)
        first = np.append(0, (codes + n_new).cumsum())
        # Of each user, the new values come before the codes.
        places = keys + (first[:-1] + n_new)[owners]
        of_new = first[new_owners] + number_within(n_new)
        places[new] = of_new[numbers]
        is_code = np.ones(first[-1], dtype=np.bool_)
        is_code[of_new] = False
        all_keys, history = np.empty(first[-1], dtype=np.int64), np.zeros(first[-1])
        all_keys[of_new], all_keys[is_code] = new_keys, number_within(codes)
        history[is_code] = np.concatenate([usage.counts for usage in usages])
        at_saved = places[: len(saved)]
        counts, carried = history.copy(), np.zeros(first[-1], dtype=np.int64)
        counts[at_saved] += np.concatenate([state.counts for state in states])
        forgotten = (bundle.offsets + UNKNOWN) + (first[:-1] + n_new)[:, None]
        counts[forgotten] = 0
        today = np.concatenate([state.today for state in states])
        carried[at_saved] = today * bundle.begun[saved_by]
        at_events = places[len(saved) :].reshape(bundle.keys.shape)
        return cls(bundle, all_keys, first, at_events, at_saved, history, counts, carried)

    def iter_changes(self) -> Iterator[tuple[IntArray, FloatArray, IntArray, IntArray]]:
        """Yield keys, counts, events of the day and latest days of each user, as states have them.

        Values are kept that the day has, and those with other counts than in the history.
        """
        states = [each.usage for each in self.bundle.users]
        size = len(self.keys)
        today = self.carried + np.bincount(self.places.ravel(), minlength=size)
        latest = np.zeros(size, dtype=np.int64)
        latest[self.saved] = np.concatenate([state.latest for state in states])
        days = np.repeat(self.bundle.days, np.diff(self.first))
        latest = np.maximum(latest, np.where(today > 0, days, 0))
        kept = np.flatnonzero((today > 0) | (self.counts != self.history))
        keys, counts, of_day = self.keys[kept], (self.counts - self.history)[kept], today[kept]
        last = latest[kept]
        bounds = np.searchsorted(kept, self.first).tolist()
        for start, end in pairwise(bounds):
            # Copies: a slice would keep the arrays of all users in memory.
            rows = slice(start, end)
            yield keys[rows].copy(), counts[rows].copy(), of_day[rows].copy(), last[rows].copy()


def _number_new(
    keys: IntArray, owners: NDArray[np.intp]
) -> tuple[IntArray, NDArray[np.intp], NDArray[np.intp]]:
    """Number different keys by user and key; return these, their users, and each key's number."""
    order = np.lexsort((keys, owners))
    keys, owners = keys[order], owners[order]
    changed = np.ones(len(keys), dtype=np.bool_)
    changed[1:] = (np.diff(keys) != 0) | (np.diff(owners) != 0)
    numbers = np.empty(len(keys), dtype=np.intp)
    numbers[order] = np.cumsum(changed) - 1
    return keys[changed], owners[changed], numbers


MAX_TURNS = 128
"""Events of one user up to which they are scored with those of other users."""
MAX_DAYS = 4
"""Days of one user's events up to which the same holds."""


def score_users(
    users: Sequence[UserEvents],
    names: Sequence[tuple[str, ...]],
    days: IntArray,
    values: BundleValues,
) -> list[DayRecord]:
    """Score the events of several users by the days before them; see `DailyScorer.score`.

    Args:
        users: The users.
        names: Names of the columns of each.
        days: Number of the day of each event, of one user after the other, (N,).
        values: Returns the values of a column for some events.
    """
    heights = np.array([len(each.rows.inverse) for each in users], dtype=np.intp)
    predictions = predict_masked([each.parts.net for each in users], [each.rows for each in users])
    keys = _encode_keys(users, names, heights, values)
    bounds = np.append(0, heights.cumsum()).tolist()
    for user in users:
        user.usage.start_history(user.parts.scorer.identity)
    latest = np.array([user.usage.day for user in users], dtype=np.int64)
    days = _running_days(np.maximum(days, np.repeat(latest, heights)), heights)
    cuts = _cut_days(days, heights)
    records, turns = dict[int, DayRecord](), list[list[_UserDay]]()
    for i, (user, (start, end)) in enumerate(zip(users, pairwise(bounds), strict=True)):
        if end - start > MAX_TURNS or len(cuts[i]) > MAX_DAYS or _is_full(user.usage):
            records[i] = _score_alone(user, keys[i], predictions[i], days[start:end])
            continue
        for number, rows in enumerate(cuts[i]):
            if number == len(turns):
                turns.append([])
            turns[number].append(_UserDay(i, rows, int(days[start + rows.start])))
    before = {each.user: copy(users[each.user].usage) for turn in turns[:1] for each in turn}
    scores: dict[int, list[tuple[DailyScores, slice]]] = {}
    for turn in turns:
        for i, found in _score_turn(users, names, keys, predictions, turn):
            scores.setdefault(i, []).append(found)
    for i, parts in scores.items():
        (whole, span), after = parts[0], copy(users[i].usage)
        if len(parts) > 1:
            whole, span = DailyScores.concat([each.take(rows) for each, rows in parts]), slice(None)
        records[i] = DayRecord(users[i].rows, before[i], after, predictions[i], whole, span)
    return [records[i] for i in range(len(users))]


def _is_full(usage: UsageState) -> bool:
    """Return whether the next days take the place of the first ones."""
    return len(usage.maxima) + MAX_DAYS > MAX_OWN_DAYS


class _UserDay(NamedTuple):
    """Consecutive events of a user on one day.

    Attributes:
        user: Position of the user.
        rows: Which of the user's events.
        day: Number of the day.
    """

    user: int
    rows: slice
    day: int


def _score_turn(
    users: Sequence[UserEvents],
    names: Sequence[tuple[str, ...]],
    keys: Sequence[IntArray],
    predictions: Sequence[MaskedPredictions],
    turn: Sequence[_UserDay],
) -> Iterator[tuple[int, tuple[DailyScores, slice]]]:
    """Score one day of some users; yield the position of each with the scores and their rows."""
    groups: dict[tuple[str, ...], list[_UserDay]] = {}
    for each in turn:
        user = users[each.user]
        if user.usage.today_events and each.day > user.usage.day:
            user.parts.scorer.end_day(user.usage)
        groups.setdefault(names[each.user], []).append(each)
    for group in groups.values():
        chosen = [users[each.user].take(each.rows) for each in group]
        bundle = DayBundle(
            chosen,
            np.concatenate([keys[each.user][each.rows] for each in group]),
            [predictions[each.user] for each in group],
            np.array([each.day for each in group], dtype=np.int64),
        )
        scores, ends = bundle.score(), bundle.heights.cumsum().tolist()
        for each, (start, end) in zip(group, pairwise([0, *ends]), strict=True):
            yield each.user, (scores, slice(start, end))


def _running_days(days: IntArray, heights: NDArray[np.intp]) -> IntArray:
    """Return the latest day up to each event of a user, (N,)."""
    # Users are set apart by more than their days differ.
    apart = np.repeat(np.arange(len(heights)), heights) * (1 << 33)
    return np.asarray(np.maximum.accumulate(days + apart) - apart)


def _cut_days(days: IntArray, heights: NDArray[np.intp]) -> list[list[slice]]:
    """Return the events of each day of each user. Days of a user ascend, (N,)."""
    owner, number = np.repeat(np.arange(len(heights)), heights), number_within(heights)
    starts = np.flatnonzero((number == 0) | (np.diff(days, prepend=days[:1]) != 0))
    first, of_user = number[starts].tolist(), owner[starts].tolist()
    cuts: list[list[slice]] = [[] for _ in heights]
    for i, start, after, user in zip(
        of_user, first, [*first[1:], 0], [*of_user[1:], -1], strict=True
    ):
        cuts[i].append(slice(start, after if user == i else int(heights[i])))
    return cuts


def _score_alone(
    user: UserEvents, keys: IntArray, predictions: MaskedPredictions, days: IntArray
) -> DayRecord:
    rows, parts, before = user.rows, user.parts, copy(user.usage)
    values = EventValues.from_predictions(parts.usage, keys, rows, predictions, days)
    scores = parts.scorer.score(values, user.usage)
    return DayRecord(rows, before, copy(user.usage), predictions, scores)


def _encode_keys(
    users: Sequence[UserEvents],
    names: Sequence[tuple[str, ...]],
    heights: NDArray[np.intp],
    values: BundleValues,
) -> list[IntArray]:
    """Return what `daily_usage.encode_keys` returns for each user."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, columns in enumerate(names):
        groups.setdefault(columns, []).append(i)
    keys, starts = dict[int, IntArray](), heights.cumsum() - heights
    for columns, group in groups.items():
        rows, usages = [users[i].rows for i in group], [users[i].parts.usage for i in group]
        sizes = heights[group]
        owner = np.repeat(np.arange(len(group)), sizes)
        distinct = np.array([len(each.codes) for each in rows], dtype=np.intp)
        inverse = np.concatenate([each.inverse for each in rows])
        codes = np.concatenate([each.codes for each in rows])[
            inverse + (distinct.cumsum() - distinct)[owner]
        ]
        of_group = codes + np.array([each.offsets for each in usages])[owner]
        changing = np.array([each.novelty for each in usages]) < MIN_CHANGING_NOVELTY
        event, column = np.nonzero((codes == UNKNOWN) & changing[owner])
        places = np.repeat(starts[group], sizes) + number_within(sizes)
        for number in np.unique(column).tolist():
            found = event[column == number]
            texts = values(columns[number], places[found])
            of_group[found, number] = [hash_new_value(number, text or "") for text in texts]
        keys |= zip(group, np.split(of_group, sizes.cumsum()[:-1]), strict=True)
    return [keys[i] for i in range(len(users))]
