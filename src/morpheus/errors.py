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

EXIT_INTERRUPTED = 130
"""Exit code of a command stopped by Ctrl+C or SIGTERM."""
STOPPING_MESSAGE = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."
"""Message at the first Ctrl+C or SIGTERM."""


class MorpheusError(Exception):
    """An error that a person can fix. It is shown without a traceback."""

    exit_code = 1


class UsageError(MorpheusError):
    """The command line, a path or the pipeline is wrong."""

    exit_code = 2


class RecordError(MorpheusError):
    """A log record, or a whole log file, cannot be read.

    Args:
        reason: What was found and what to do, without the full stop at the end.
        file: The file: a path, or an object whose text is one.
        line: Line (JSON lines, CSV) or record number (JSON documents), from 1. None for the file.
        records: Number of records that are lost. None for an unknown number, such as the rest of
            the file.
    """

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


class ModelCorruptedError(MorpheusError):
    """A model file does not match the index of its store."""


class EmptyRunError(MorpheusError):
    """A run with `--fail_on_empty` has written no event. Its outputs are complete and empty."""


def _make_record_error(
    reason: str, file: str, line: int | None, records: int | None
) -> RecordError:
    # For pickle: workers send the error to the main process.
    return RecordError(reason, file=file, line=line, records=records)
