"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from morpheus.errors import TransientError


class AtomicWriter:
    """Written beside its place under a hidden name, and put there once it is whole.

    Leaving the `with` block without an exception puts it there; any exception, `GeneratorExit` and
    `KeyboardInterrupt` among them, removes it. What stood there before stays until then.

    Args:
        path: Where the file is to appear; its folder is made if there is none.
        refusals: What else than `OSError` means that the disk refused.

    Attributes:
        temp_path: Where it lies until then.
        file: To write to.

    Raises:
        Unavailable: The folder or the file cannot be made, or the disk is full.
    """

    file: BinaryIO

    def __init__(self, path: Path, *extra_errors: type[Exception]) -> None:
        # Through a symbolic link, so that the link stays and its target is replaced.
        self.path = Path(os.path.realpath(path))
        # File names end at 255 bytes; a long one is cut to make room.
        name = os.fsdecode(os.fsencode(self.path.name)[:200])
        self.temp_path = self.path.with_name(f".{name}.{secrets.token_hex(4)}.part")
        self._committed = False
        self._io_errors: tuple[type[Exception], ...] = (OSError, *extra_errors)

    def __enter__(self) -> Self:
        with self.guard_io():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.temp_path.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._sync_and_commit()
        finally:
            self.file.close()
            if not self._committed:
                self.temp_path.unlink(missing_ok=True)

    def commit(self) -> None:
        """Put the file in its place; what is written from now on appears there at once."""
        self.temp_path.replace(self.path)
        self._committed = True

    @property
    def committed(self) -> bool:
        """Whether the file is in its place already."""
        return self._committed

    @contextmanager
    def guard_io(self) -> Iterator[None]:
        """Turn what the disk refuses into an error that says what to do."""
        try:
            yield
        except self._io_errors as error:
            reason = getattr(error, "strerror", None) or str(error)
            left = "What was written stays" if self._committed else "Nothing is left behind"
            raise TransientError(
                f"Cannot write `{self.path}`: {reason}. {left}. "
                f"Make room or mend the folder, or give another place."
            ) from error

    def _sync_and_commit(self) -> None:
        with self.guard_io():
            self.file.flush()
            os.fsync(self.file.fileno())
            if not self._committed:
                self.commit()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file in one go; see `AtomicWriter`.

    Raises:
        Unavailable: The folder or the file cannot be made, or the disk is full.
    """
    with AtomicWriter(path) as draft, draft.guard_io():
        yield draft.file
