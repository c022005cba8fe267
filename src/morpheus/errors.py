"""Every exception, by who must act.

    MorpheusError
    ├── UsageError    the person at the prompt: a wrong option, path or chain    exit code 2
    ├── BadRecord     the owner of the log: not JSON, no time, cut in half       exit code 1
    ├── Unavailable   nobody, or the operator: try again later                   exit code 1
    └── BrokenModel   whoever keeps the models: restore the file, or retrain     exit code 1

A message says where, what was found, what would do, and what to type.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130
"""Exit code of a command that somebody has stopped, which is no error."""


class MorpheusError(Exception):
    """Something a person can act on; shown without a traceback."""

    exit_code = 1


class UsageError(MorpheusError):
    """The command line, a path or the chain is wrong."""

    exit_code = 2


class RecordError(MorpheusError):
    """A log record, or a whole log file, that cannot be read.

    Args:
        reason: What was found and what would do, in one sentence without a full stop.
        file: The file that holds it: a path, or what else names one by its text.
        line: Line (JSON lines, CSV) or record number (JSON documents), from 1; None for the file.
    """

    def __init__(self, reason: str, *, file: object, line: int | None = None) -> None:
        self.reason, self.file, self.line = reason, str(file), line
        super().__init__(f"{self.location}: {reason}.")

    def __reduce__(self) -> tuple[object, ...]:
        return _make_record_error, (self.reason, self.file, self.line)

    @property
    def location(self) -> str:
        """`file` or `file:line`."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


class TransientError(MorpheusError):
    """A service or a disk did not answer; the same call may succeed later."""


class ModelCorruptedError(MorpheusError):
    """A model file that is not what its index says it is."""


def _make_record_error(reason: str, file: str, line: int | None) -> RecordError:
    # Lets the error cross from a worker process to its parent.
    return RecordError(reason, file=file, line=line)
