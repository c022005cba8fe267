"""What a fingerprint says of single columns: how strange they are, and what would be likelier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_WORD, MISSING, UNSEEN
from morpheus.features.encoder import Column, EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.blocks import blocks
from morpheus.models.company import Company, Guesses, mixed
from morpheus.models.evidence import COMPANY_FLOOR, DECIMALS, HABIT_FLOOR, Evidence
from morpheus.models.explanation import WORTH, Fact, Likelier
from morpheus.models.fingerprint import Fingerprint
from morpheus.quoting import legible

LIKELIER = 3
"""Likelier values that are named, at most."""
BIT = log(2)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Witness:
    """What a fingerprint says of the columns of some distinct rows.

    Attributes:
        encoder: How columns became codes.
        net: The network.
        novelty: Share of events that bring a new value, for each column, (C,).
        evidence: What is usual.
        rows: The distinct rows.
        habit: Evidence of habit, in nats, (D, C).
        company: Evidence of company, in nats, (D, C).
    """

    encoder: Encoder
    net: Autoencoder
    novelty: Floats
    evidence: Evidence
    rows: EncodedRows
    habit: Floats
    company: Floats

    @classmethod
    def of(cls, known: Fingerprint, rows: EncodedRows) -> Witness:
        """Ask a fingerprint.

        Raises:
            ValueError: It was learnt with the reference network.
        """
        net, novelty, evidence = known.net, known.novelty, known.evidence
        if evidence is None or novelty is None or not isinstance(net, Autoencoder):
            raise ValueError("the reference network says nothing of columns")
        found = Guesses.of(net, rows).evidence(evidence.chances, novelty, rows)
        return cls(known.encoder, net, novelty, evidence, rows, *found)

    @property
    def surprise(self) -> NDArray[np.float64]:
        """Strangeness of all columns together, (D,)."""
        return np.asarray(self.strangeness.sum(1))

    def usual(self, row: int) -> tuple[str, ...]:
        """Columns of a row that have a value, which is nothing strange."""
        calm = (self.strangeness[row] < WORTH) & (self.rows.codes[row] != MISSING)
        return tuple(self.encoder.names[c] for c in np.flatnonzero(calm))

    @cached_property
    def strangeness(self) -> NDArray[np.float64]:
        """How strange each column is, with six decimals, (D, C)."""
        return self.evidence.strangeness(self.habit, self.company)

    @property
    def shared(self) -> NDArray[np.float64]:
        """The same, by way of values that others have too, (D, C)."""
        chances = self.evidence.chances
        return np.asarray(self.strangeness * chances.shared[self.rows.codes + chances.offsets])

    def facts(self, shown: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], Fact]]:
        """Say what there is to say of some columns, (D, C), by row and column.

        The values seen are left out, for events with different new values are one distinct row;
        and so is what came before, in which these events differ.
        """
        for row, c, guess, place in self._guesses(shown):
            yield (row, c), self._fact(row, c, guess, place)

    def likeliest(self, shown: NDArray[np.bool_]) -> Iterator[tuple[int, int, Ordinary]]:
        """Say what is likeliest in some columns, (D, C), by row and column."""
        for row, c, guess, place in self._guesses(shown):
            yield row, c, guess.ordinary(place)

    def _guesses(self, shown: NDArray[np.bool_]) -> Iterator[tuple[int, int, Guess, int]]:
        """Of each place that is shown: row, column, the guess at it, and which of its rows."""
        rows = np.flatnonzero(shown.any(1))
        some = EncodedRows(self.rows.codes[rows], self.rows.numbers[rows], np.arange(len(rows)))
        for block, codes, numbers in blocks(some):
            here, company = rows[block], Company.of(self.net, codes, numbers)
            for c in np.flatnonzero(shown[here].any(0)).tolist():
                guess = self._guess(company, c)
                for place in np.flatnonzero(shown[here, c]).tolist():
                    yield int(here[place]), c, guess, place

    def _guess(self, company: Company, c: int) -> Guess:
        start, size = int(self.net.offsets[c]), self.net.shape.codes[c]
        others = self.evidence.chances.others[start : start + size]
        chances = mixed(np.arange(size), company.chances(c), self.novelty[c], others)
        chances[:, UNSEEN] = 0
        chances[:, UNSEEN] = np.maximum(1 - chances.sum(1), 0)
        numbers = company.guessed(c) if c in self.net.number_columns else None
        return Guess(self.encoder.columns[c], chances, numbers)

    def _fact(self, row: int, c: int, guess: Guess, place: int) -> Fact:
        code, chance = int(self.rows.codes[row, c]), exp(-self.company[row, c])
        distance = None
        if guess.numbers is not None and code == FIRST_WORD:
            number = self.rows.numbers[row, self.net.number_columns.index(c)]
            distance = float(number - guess.numbers[place])
        return Fact(
            column=self.encoder.columns[c].name,
            value=None,
            risk=0,
            loudest=0,
            strange_before=0,
            twins=(),
            new=code == UNSEEN,
            strangeness=float(self.strangeness[row, c]),
            probability=significant(chance) if distance is None else None,
            bits=_bits(self.company[row, c]),
            usual_bits=_bits(self.evidence.company.mean[c]),
            habit_bits=_bits(self.habit[row, c]),
            habit=bool(self._louder[row, c]),
            distance=None if distance is None else round(distance, 2),
            expected=guess.likelier(place, code),
        )

    @cached_property
    def _louder(self) -> NDArray[np.bool_]:
        """Where habit speaks louder than company, (D, C)."""
        habit, company = self.evidence.habit, self.evidence.company
        said = habit.above(self.habit, HABIT_FLOOR), company.above(self.company, COMPANY_FLOOR)
        return said[0] > said[1]


@dataclass(frozen=True)
class Ordinary:
    """The likeliest of the known values of a column.

    Attributes:
        code: Its code.
        number: In a column of numbers, the number, in standard deviations.
        value: The same for people; None where that is no value.
    """

    code: int
    number: float
    value: str | float | None


@dataclass(frozen=True)
class Guess:
    """One column of a block of rows, guessed from the others.

    Attributes:
        column: The column.
        chances: Probability of each code, (B, codes); at UNSEEN, of all new values together. They
            add up to one.
        numbers: The number guessed, in standard deviations, (B,); None in a column of categories.
    """

    column: Column
    chances: Floats
    numbers: Floats | None

    def likelier(self, place: int, code: int) -> tuple[Likelier, ...]:
        """Name what is likelier than a code.

        For a number that is the one expected. A new value is measured by the chance of all new
        ones together; where that is the highest, it is named.
        """
        if self.numbers is not None and code == FIRST_WORD:
            return (self._named(place, code),)
        likeliest = self._likeliest[place].tolist()
        if code == likeliest[0] == UNSEEN:
            return (self._named(place, code),)
        chance = self.chances[place, code]
        better = [one for one in likeliest if self.chances[place, one] > chance]
        return tuple(self._named(place, one) for one in better)

    def ordinary(self, place: int) -> Ordinary:
        """The likeliest of the values that are known."""
        chances = self.chances[place].round(DECIMALS)
        chances[UNSEEN] = -1
        code = int(chances.argmax())
        number = 0.0 if self.numbers is None else float(self.numbers[place])
        return Ordinary(code, number, self._named(place, code).value)

    @cached_property
    def _likeliest(self) -> NDArray[np.intp]:
        """The likeliest codes, (B, LIKELIER)."""
        order = np.argsort(-self.chances.round(DECIMALS), axis=1, kind="stable")
        return order[:, :LIKELIER]

    def _named(self, place: int, code: int) -> Likelier:
        chance = significant(float(self.chances[place, code]))
        if code in {MISSING, UNSEEN}:
            return Likelier(None, chance, new=code == UNSEEN)
        if isinstance(self.column, Number):
            assert self.numbers is not None  # noqa: S101 - number columns have one
            return Likelier(significant(self.column.unscaled(float(self.numbers[place]))), chance)
        return Likelier(legible(self.column.words[code - FIRST_WORD]), chance)


def significant(value: float) -> float:
    """Round to four digits, which hide how products were grouped.

    >>> significant(0.00123456)
    0.001235
    """
    return float(f"{value:.4g}")


def _bits(nats: np.float32) -> float:
    return round(float(nats) / BIT, 2) + 0.0
