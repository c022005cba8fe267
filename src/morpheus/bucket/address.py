"""What an object is called: `s3://bucket/key`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Self

from morpheus.errors import UsageError

S3_SCHEME = "s3://"


@dataclass(frozen=True, order=True)
class S3Path:
    """An object, or what names of objects begin with.

    Attributes:
        bucket: Where it lies.
        key: Its name there.
        size: Bytes, where it was listed.
        modified: When it was written, where it was listed.
    """

    bucket: str
    key: str
    size: int = field(default=0, compare=False)
    modified: datetime | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Take an address apart.

        Raises:
            UsageError: It names no bucket.

        >>> S3Path.named("s3://logs/AWSLogs/").key
        'AWSLogs/'
        """
        bucket, _, key = address.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"`{address}` names no bucket. Give `s3://BUCKET/FOLDER/`.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self._path.name

    @property
    def parent(self) -> S3Path:
        """The folder that it lies in."""
        above = str(self._path.parent)
        return S3Path(self.bucket, "" if above == "." else above)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its key."""
        return self._path.parts

    @property
    def suffix(self) -> str:
        """The last suffix of its name, with the dot."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of its name."""
        return self._path.suffixes

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.key)


def is_s3_url(text: str) -> bool:
    """Whether a text names something in S3.

    >>> is_s3_url("s3://logs/may"), is_s3_url("logs/may")
    (True, False)
    """
    return text.startswith(S3_SCHEME)
