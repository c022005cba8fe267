"""Exceptions of the package, by who can fix the cause.

    MorpheusError
    ├── UsageError            the user: a wrong option, path or pipeline          exit code 2
    ├── RecordError           the owner of the log: not JSON, no time, truncated  exit code 1
    ├── TransientError        nobody, or the operator: try again later            exit code 1
    ├── ModelCorruptedError   the owner of the models: restore, or train again    exit code 1
    └── EmptyRunError         --fail_on_empty: no event was written               exit code 1

A message says what failed, where, what was found, and what to do.
"""

from __future__ import annotations

import errno
from typing import ClassVar

EXIT_INTERRUPTED = 130
"""Exit code of a command stopped by Ctrl+C or SIGTERM."""
STOPPING_MESSAGE = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."
"""Message at the first Ctrl+C or SIGTERM."""


class MorpheusError(Exception):
    """An error that a person can fix. It is shown without a traceback.

    Attributes:
        exit_code: Exit code of the command.
        code: Names the class in logs and metrics; see `find_error_code`.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failure"


class UsageError(MorpheusError):
    """The command line, a path or the pipeline is wrong."""

    exit_code = 2
    code = "usage"


class StageError(UsageError):
    """A stage breaks a rule of stages. It shows which one; its author can fix it."""


class RecordError(MorpheusError):
    """A log record, or a whole log file, cannot be read.

    Args:
        reason: What was found and what to do, without the full stop at the end.
        file: The file: a path, or an object whose text is one.
        line: Line (JSON lines, CSV) or record number (JSON documents), from 1. None for the file.
        records: Number of records that are lost. None for an unknown number, such as the rest of
            the file.
    """

    code = "record"

    def __init__(
        self, reason: str, *, file: object, line: int | None = None, records: int | None = 1
    ) -> None:
        self.reason, self.file, self.line, self.records = reason, str(file), line, records
        super().__init__(f"{self.location}: {reason}.")

    def __reduce__(self) -> tuple[object, ...]:
        return _make_record_error, (self.reason, self.file, self.line, self.records)

    @property
    def location(self) -> str:
        """`file` or `file:line`."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


class TransientError(MorpheusError):
    """A service or a disk did not respond. The same call may succeed later."""

    code = "transient"


class ModelCorruptedError(MorpheusError):
    """A model file does not match the index of its store."""

    code = "model_corrupted"


class EmptyRunError(MorpheusError):
    """A run with `--fail_on_empty` has written no event. Its outputs are complete and empty."""

    code = "empty_run"


def find_error_code(error: BaseException) -> str:
    """Return a short name of the kind of an error, for logs and metrics. There are few of them.

    >>> find_error_code(UsageError("There is no stage `fiter`.")), find_error_code(KeyError("x"))
    ('usage', 'bug')
    >>> find_error_code(OSError(28, "No space left on device"))
    'enospc'
    """
    if isinstance(error, MorpheusError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "os_error").lower()
    return "bug"


def _make_record_error(
    reason: str, file: str, line: int | None, records: int | None
) -> RecordError:
    # For pickle: workers send the error to the main process.
    return RecordError(reason, file=file, line=line, records=records)
