"""Where events lie from when they were read until they are handed out: memory, and the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import polars as pl

from morpheus.processes import Crew
from morpheus.records import Portion, Reading
from morpheus.scratch import Scratch
from morpheus.sources.by_user import Identity
from morpheus.sources.census import FIRST, PART, ROWS, plan
from morpheus.sources.deriving import Deriving
from morpheus.sources.files import Log
from morpheus.sources.gathering import Gathered, Gathering, Room, Where
from morpheus.sources.portion import GatheredPortion
from morpheus.sources.survey import Known, Survey
from morpheus.sources.work import Work, read_into

Heap = TypeVar("Heap", bound=Known)
Given = TypeVar("Given", bound=Portion)


class Ground(Protocol[Heap, Given]):
    """Where events lie from when they were read until they are handed out."""

    def read(self, work: Work, paths: Sequence[Log], reading: Reading) -> Heap:
        """Read files, and see who is in them."""

    def divided(self, events: Heap, learnt: Heap | None, *, endless: bool) -> list[Given]:
        """Rank the users, and divide them into portions.

        Args:
            events: What is to be scored.
            learnt: What is to be learnt from; None for nothing.
            endless: Whether it is to be learnt from again with other events.
        """

    def sample(self, known: Heap, columns: Sequence[str], *, past: bool) -> pl.DataFrame:
        """Take a sample of everybody; see `Survey`.

        Args:
            known: Of which events.
            columns: The feature columns.
            past: Whether these are to be learnt from, not to be scored.
        """


@dataclass(frozen=True)
class Recipe:
    """What portions have in common; see `GatheredPortion`."""

    identity: Identity
    deriving: Deriving
    rows: int
    features: tuple[str, ...]

    def of(
        self, users: pl.DataFrame, present: Where, past: Where | None, piece: int | None = None
    ) -> GatheredPortion:
        """A portion of some users."""
        rows, features = self.rows, self.features
        return GatheredPortion(
            users, present, past, self.identity, self.deriving, rows, piece, features
        )


def derived(portion: GatheredPortion) -> Iterator[pl.DataFrame]:
    """All events of a portion, with their derived columns."""
    known = portion.afresh()
    for piece in portion.pieces(Reading(), known):
        yield known.deriving.add(piece.frame)


@dataclass
class Disk:
    """This machine: few events stay in memory, many are laid aside on disk.

    Attributes:
        recipe: What portions have in common.
        room: How much is held.
        survey: How large a sample of everybody is.
        scratch: Where the rest is laid aside.
        crew: Processes that help.
    """

    recipe: Recipe
    room: Room
    survey: Survey
    scratch: Scratch
    crew: Crew

    def read(self, work: Work, paths: Sequence[Log], reading: Reading) -> Gathered:
        """Read files, and lay aside what does not fit."""
        gathering = Gathering(work.user, self.room, self.scratch)
        read_into(gathering, work, paths, reading, self.crew)
        return gathering.gathered(work.wanted if work.everything else ())

    def divided(
        self, events: Gathered, learnt: Gathered | None, *, endless: bool
    ) -> list[GatheredPortion]:
        """Rank and divide the users, and lay what is on disk down accordingly."""
        past = None if learnt is None else learnt.census
        room = self._cells(events, learnt)
        users = plan(events.census, past, room, last=not endless)
        self._divide(events, users)
        if learnt is not None:
            whole = plan(learnt.census, None, self._cells(learnt), last=True) if endless else users
            self._divide(learnt, whole)
        return [
            self._portion(some, events, learnt, None if endless else room)
            for some in users.partition_by(PART, maintain_order=True)
        ]

    def sample(self, known: Gathered, columns: Sequence[str], *, past: bool) -> pl.DataFrame:  # noqa: ARG002 - they lie apart here
        """Draw it of all events, wherever they lie."""
        names = self.recipe.deriving.derived
        frames = self._derived(known) if names else None
        return self.survey.of(known, columns, derived=names, frames=frames)

    def _derived(self, gathered: Gathered) -> Iterator[pl.DataFrame]:
        """All events with their derived columns, some users after the others."""
        room = self._cells(gathered)
        users = plan(gathered.census, None, room, last=True)
        for some in users.partition_by(PART, maintain_order=True):
            yield from derived(self._portion(some, gathered, None, room))

    def _portion(
        self, users: pl.DataFrame, events: Gathered, learnt: Gathered | None, room: int | None
    ) -> GatheredPortion:
        """Some users; one who is larger than half the room comes in pieces of that size.

        Pieces as large as parts would take more memory, and no less time: `benchmarks/speed --only
        growth`.
        """
        piece = None if room is None else max(1, room // (2 * (events.census.width or 1)))
        if piece is not None and (users.height > 1 or users[ROWS].sum() <= piece):
            piece = None
        past = None if learnt is None else learnt.where(users)
        return self.recipe.of(users, events.where(users), past, piece)

    def _divide(self, gathered: Gathered, users: pl.DataFrame) -> None:
        if gathered.blobs:
            gathered.divide(users, self.crew, self.room, self.scratch.folder)

    def _cells(self, *gathered: Gathered | None) -> int:
        """Cells of a part; all of them where they fit."""
        cells = sum(one.cells for one in gathered if one is not None)
        return FIRST * (cells + 1) if cells <= self.room.held else self.room.part
