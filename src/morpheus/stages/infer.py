"""`preprocess` and `inf-pytorch`: encode events, and compute their reconstruction losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.core.batch import Encoded, EqualRows, Losses, Table, WithModel
from morpheus.core.stage import Requirements, Transform
from morpheus.features.encoder import EncodedRows, EncodedSlice, encode_users
from morpheus.models.input_check import NewValues, count_new_values

MAX_ROWS = 128
"""Events of one user up to which they are encoded one by one, with those of other users."""

MAX_CHECKED_USERS = 64
"""Users of a bundle whose new values are counted on an endless input: a sample, because it takes
time."""


@dataclass(frozen=True)
class Preprocess(Transform):
    """Encode each event as numbers, with the encoder of its user's fingerprint.

    Takes the output of `train-ae`. Put `inf-pytorch` after it.

    Example: `preprocess`
    """

    name = "preprocess"
    takes = (WithModel,)
    gives = Encoded
    needs = Requirements(model=True)

    def process(self, batch: WithModel, state: None) -> Iterator[Encoded]:  # noqa: ARG002 - no state
        """Encode a batch, if its user has a fingerprint."""
        fingerprint, frame, codes = batch.fingerprint, batch.table.to_frame(), batch.dict_codes
        encoded, table, new_values = None, batch.table, None
        if fingerprint is not None:
            names = fingerprint.encoder.names
            if codes is None or not codes.serves(frame, names):
                codes = EncodedSlice.from_frame(frame, names)
            encoded = fingerprint.encoder.encode(frame, codes)
            table = table.with_equal_rows(_find_equal_rows(codes))
            new_values = _count_new_values([batch], [encoded]) if table.height else None
        yield batch.evolve(
            Encoded, encoded=encoded, dict_codes=None, table=table, new_values=new_values
        )

    def process_users(
        self,
        batches: Sequence[WithModel],
        states: Sequence[None],  # noqa: ARG002 - no state
    ) -> Iterator[list[Encoded]]:
        """Encode batches of several users."""
        found: dict[int, EncodedRows] = {}
        new_values: dict[int, NewValues] = {}
        if Table.have_same_columns([batch.table for batch in batches]):
            users = [i for i, batch in enumerate(batches) if _can_be_bundled(batch)]
            encoders = [batches[i].fingerprint.encoder for i in users]  # type: ignore[union-attr]  # they have one
            tables = [batches[i].table for i in users]
            heights = [table.height for table in tables]
            if users:
                rows = encode_users(encoders, Table.concat(tables).to_frame(), heights)
                found = dict(zip(users, rows, strict=True))
                checked = users[:MAX_CHECKED_USERS] if self.options.unbounded else users
                new_values[users[0]] = _count_new_values(
                    [batches[i] for i in checked], rows[: len(checked)]
                )
        for i, batch in enumerate(batches):
            if i in found:
                novelty = new_values.get(i)
                yield [batch.evolve(Encoded, encoded=found[i], dict_codes=None, new_values=novelty)]
            else:
                yield list(self.process(_leave_large_table(batch), None))


@dataclass(frozen=True)
class InfPytorch(Transform):
    """Reconstruct each event with its user's autoencoder and measure the loss of each column.

    Takes the output of `preprocess`. Put `add-scores` after it.

    Example: `inf-pytorch`
    """

    name = "inf-pytorch"
    takes = (Encoded,)
    gives = Losses
    needs = Requirements(model=True)

    def process(self, batch: Encoded, state: None) -> Iterator[Losses]:  # noqa: ARG002 - no state
        """Compute the losses of a batch. Each distinct row passes through the network once."""
        yield batch.evolve(Losses, losses=_compute_losses(batch))

    def process_users(
        self,
        batches: Sequence[Encoded],
        states: Sequence[None],  # noqa: ARG002 - no state
    ) -> Iterator[list[Losses]]:
        """Compute the losses of batches of several users."""
        from morpheus.models.bundles import compute_losses  # noqa: PLC0415 - for streams only

        losses = compute_losses(
            [batch.fingerprint for batch in batches], [batch.encoded for batch in batches]
        )
        for batch, found in zip(batches, losses, strict=True):
            if found is None or batch.encoded is None:
                yield list(self.process(batch, None))
            else:
                yield [batch.evolve(Losses, losses=found[batch.encoded.inverse])]


def _count_new_values(batches: Sequence[WithModel], rows: Sequence[EncodedRows]) -> NewValues:
    """Count the values that are new to users with a fingerprint."""

    def read_value(user: int, name: str, event: int) -> str | None:
        value = batches[user].table[name].slice(event, 1).cast(pl.String).item()
        return None if value is None else str(value)

    fingerprints = [batch.fingerprint for batch in batches if batch.fingerprint is not None]
    return count_new_values(fingerprints, rows, read_value)


def _can_be_bundled(batch: WithModel) -> bool:
    """Return whether the events can be encoded together with those of other users."""
    fingerprint, rows = batch.fingerprint, batch.table.height
    return fingerprint is not None and 0 < rows <= MAX_ROWS and not fingerprint.encoder.has_numbers


def _find_equal_rows(codes: EncodedSlice) -> EqualRows:
    """Return which rows of a batch are equal in all encoded columns, for the sinks."""
    unique, dictionary = codes.unique_rows, codes.dictionary
    names = frozenset(dictionary.names).intersection(dictionary.frame.columns)
    return EqualRows(names, ((dictionary.frame, codes.start + unique.first_index),), unique.inverse)


def _leave_large_table(batch: WithModel) -> WithModel:
    """Encode a few events among many by themselves: few users of the table are encoded here."""
    codes = batch.dict_codes
    if codes is None or codes.dictionary.frame.height <= MAX_ROWS * batch.table.height:
        return batch
    return batch.change(dict_codes=None)


def _compute_losses(batch: Encoded) -> NDArray[np.float32]:
    """Return the losses, shape (rows, columns); one column of NaN without a fingerprint."""
    if batch.fingerprint is None or batch.encoded is None:
        return np.full((batch.table.height, 1), np.nan, dtype=np.float32)
    return batch.fingerprint.losses(batch.encoded)[batch.encoded.inverse]
