"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from morpheus.errors import Unavailable


class Draft:
    """Written beside its place under a hidden name, and put there once it is whole.

    Leaving the `with` block without an exception puts it there; any exception, `GeneratorExit` and
    `KeyboardInterrupt` among them, removes it. What stood there before stays until then.

    Args:
        path: Where the file is to appear; its folder is made if there is none.
        refusals: What else than `OSError` means that the disk refused.

    Attributes:
        part: Where it lies until then.
        file: To write to.

    Raises:
        Unavailable: The folder or the file cannot be made, or the disk is full.
    """

    file: BinaryIO

    def __init__(self, path: Path, *refusals: type[Exception]) -> None:
        # Through a symbolic link, so that the link stays and its target is replaced.
        self.path = Path(os.path.realpath(path))
        # File names end at 255 bytes; a long one is cut to make room.
        name = os.fsdecode(os.fsencode(self.path.name)[:200])
        self.part = self.path.with_name(f".{name}.{secrets.token_hex(4)}.part")
        self._there = False
        self._refusals: tuple[type[Exception], ...] = (OSError, *refusals)

    def __enter__(self) -> Self:
        with self.writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.part.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self.file.close()
            if not self._there:
                self.part.unlink(missing_ok=True)

    def publish(self) -> None:
        """Put the file in its place; what is written from now on appears there at once."""
        self.part.replace(self.path)
        self._there = True

    @property
    def published(self) -> bool:
        """Whether the file is in its place already."""
        return self._there

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the disk refuses into an error that says what to do."""
        try:
            yield
        except self._refusals as error:
            reason = getattr(error, "strerror", None) or str(error)
            left = "What was written stays" if self._there else "Nothing is left behind"
            raise Unavailable(
                f"Cannot write `{self.path}`: {reason}. {left}. "
                f"Make room or mend the folder, or give another place."
            ) from error

    def _finish(self) -> None:
        with self.writing():
            self.file.flush()
            os.fsync(self.file.fileno())
            if not self._there:
                self.publish()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file in one go; see `Draft`.

    Raises:
        Unavailable: The folder or the file cannot be made, or the disk is full.
    """
    with Draft(path) as draft, draft.writing():
        yield draft.file
