"""Letters that could not be delivered, in a file: to be read, and to be sent by the next run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from morpheus.bucket import is_s3_url
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.sinks.letters import OutboundEvent

_REPLAY_BATCH = 500  # letters sent together


class DeadLetter(msgspec.Struct, frozen=True):
    """A line of the file.

    Attributes:
        id: As in `OutboundEvent`.
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
class DeadLetterFile:
    """JSON lines, each on disk before the run goes on.

    While a file's letters are sent again it has another name, `.again` behind its own, so that new
    ones are not mixed with them; a run that breaks off leaves it, and the next one begins with it.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def add(self, events: Iterable[tuple[OutboundEvent, str]]) -> None:
        """Keep letters, each with the reason.

        Raises:
            Unavailable: The disk refuses.
        """
        lines = [
            msgspec.json.encode(
                DeadLetter(letter.id, letter.user, letter.time, reason, msgspec.Raw(letter.body))
            )
            for letter, reason in events
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TransientError(
                f"--dead_letters: cannot write `{self.path}`: {error.strerror or error}. Make room "
                "or mend the folder, or give another place."
            ) from error

    def replay(self) -> Iterator[list[OutboundEvent]]:
        """Letters from earlier runs, some at a time.

        Raises:
            BadRecord: A line is no letter.
        """
        begun = self.path.with_name(f"{self.path.name}.again")
        if begun.exists():
            yield from _drain(begun)
        if self.path.exists():
            self.path.replace(begun)
            yield from _drain(begun)


def validate_dlq_path(path: str | None) -> None:
    """Refuse a file of dead letters that is not on disk.

    Raises:
        UsageError: Says what to type.
    """
    if path is not None and (not path or is_s3_url(path) or Path(path).is_dir()):
        raise UsageError(
            f"--dead_letters: `{path}` names no file on disk. Give `--dead_letters letters.jsonl`."
        )


def open_dlq(path: str | None) -> DeadLetterFile | None:
    """The file that an option names; None where it names none."""
    return None if path is None else DeadLetterFile(Path(path))


def _drain(path: Path) -> Iterator[list[OutboundEvent]]:
    """The letters of a file, which goes when all are dealt with."""
    with path.open("rb") as file:
        letters = (_parse_dead_letter(line, path, number) for number, line in enumerate(file, start=1))
        while lot := list(islice(letters, _REPLAY_BATCH)):
            yield lot
    path.unlink()


def _parse_dead_letter(line: bytes, path: Path, number: int) -> OutboundEvent:
    try:
        kept = msgspec.json.decode(line, type=DeadLetter)
    except msgspec.MsgspecError as error:
        raise RecordError(
            f"this line is no letter of `--dead_letters` ({error}); take it out of the file, or "
            "move the file away",
            file=path,
            line=number,
        ) from error
    return OutboundEvent(kept.id, kept.user, kept.time, bytes(kept.body))
