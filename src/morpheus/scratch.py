"""Room on disk for what a run lays aside: a temporary folder that goes when the run ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from morpheus.errors import TransientError


class SpillDir:
    """A temporary folder, made when it is first asked for, removed with all that is in it.

    Nobody else may read it.

    Args:
        beside: The folder that it lies in, hidden; by default where TMPDIR says.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._temp_dir: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temp_dir is not None:
            self._temp_dir.cleanup()

    @property
    def folder(self) -> Path:
        """Where it is.

        Raises:
            Unavailable: No folder can be made there.
        """
        if self._temp_dir is None:
            hidden = "." if self._parent else ""
            try:
                if self._parent is not None:
                    self._parent.mkdir(parents=True, exist_ok=True)
                self._temp_dir = tempfile.TemporaryDirectory(
                    prefix=f"{hidden}morpheus-", dir=self._parent, ignore_cleanup_errors=True
                )
            except OSError as error:
                raise _disk_full_error(self._parent or Path(tempfile.gettempdir()), error) from error
        return Path(self._temp_dir.name)


@contextmanager
def open_temp_file(folder: Path) -> Iterator[IO[bytes]]:
    """Make a file in a folder, which stays when it is written.

    Raises:
        Unavailable: The disk is full, or the folder is gone.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            yield file.file  # without what surrounds it, polars writes to it from its own code
    except OSError as error:
        raise _disk_full_error(folder, error) from error


def _disk_full_error(folder: Path, error: OSError) -> TransientError:
    return TransientError(
        f"{folder}: events cannot be laid aside there ({error.strerror or error}). "
        "Make room, some 200 MB for a million events, or name another folder: "
        "`TMPDIR=/folder morpheus ...`."
    )
