"""Letters that could not be delivered, in a file: to be read, and to be sent by the next run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from morpheus.bucket import is_address
from morpheus.errors import BadRecord, Unavailable, UsageError
from morpheus.sinks.letters import Letter

_LOT = 500  # letters sent together


class Kept(msgspec.Struct, frozen=True):
    """A line of the file.

    Attributes:
        id: As in `Letter`.
        user: The same.
        time: The same.
        reason: Why it was not taken.
        body: The event, as it would have been sent.
    """

    id: str
    user: str | None
    time: float | None
    reason: str
    body: msgspec.Raw


@dataclass(frozen=True)
class DeadLetters:
    """JSON lines, each on disk before the run goes on.

    While a file's letters are sent again it has another name, `.again` behind its own, so that new
    ones are not mixed with them; a run that breaks off leaves it, and the next one begins with it.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def add(self, letters: Iterable[tuple[Letter, str]]) -> None:
        """Keep letters, each with the reason.

        Raises:
            Unavailable: The disk refuses.
        """
        lines = [
            msgspec.json.encode(
                Kept(letter.id, letter.user, letter.time, reason, msgspec.Raw(letter.body))
            )
            for letter, reason in letters
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(
                f"--dead_letters: cannot write `{self.path}`: {error.strerror or error}. Make room "
                "or mend the folder, or give another place."
            ) from error

    def waiting(self) -> Iterator[list[Letter]]:
        """Letters from earlier runs, some at a time.

        Raises:
            BadRecord: A line is no letter.
        """
        begun = self.path.with_name(f"{self.path.name}.again")
        if begun.exists():
            yield from _taken_out(begun)
        if self.path.exists():
            self.path.replace(begun)
            yield from _taken_out(begun)


def check_place(path: str | None) -> None:
    """Refuse a file of dead letters that is not on disk.

    Raises:
        UsageError: Says what to type.
    """
    if path is not None and (not path or is_address(path) or Path(path).is_dir()):
        raise UsageError(
            f"--dead_letters: `{path}` names no file on disk. Give `--dead_letters letters.jsonl`."
        )


def refuge_at(path: str | None) -> DeadLetters | None:
    """The file that an option names; None where it names none."""
    return None if path is None else DeadLetters(Path(path))


def _taken_out(path: Path) -> Iterator[list[Letter]]:
    """The letters of a file, which goes when all are dealt with."""
    with path.open("rb") as file:
        letters = (_letter(line, path, number) for number, line in enumerate(file, start=1))
        while lot := list(islice(letters, _LOT)):
            yield lot
    path.unlink()


def _letter(line: bytes, path: Path, number: int) -> Letter:
    try:
        kept = msgspec.json.decode(line, type=Kept)
    except msgspec.MsgspecError as error:
        raise BadRecord(
            f"this line is no letter of `--dead_letters` ({error}); take it out of the file, or "
            "move the file away",
            file=path,
            line=number,
        ) from error
    return Letter(kept.id, kept.user, kept.time, bytes(kept.body))
