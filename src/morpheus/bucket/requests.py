"""What can be asked of a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from morpheus.bucket.address import Object
from morpheus.bucket.connection import opened
from morpheus.bucket.refusals import reaching


def below(folder: Object) -> Iterator[Object]:
    """List all objects whose keys begin with a folder's, however deep.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with reaching(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for page in obstore.list(opened(folder), folder.key.rstrip("/") or None):
            yield from (_listed(folder, one) for one in page)


def level(folder: Object) -> tuple[list[Object], list[Object]]:
    """List a folder: the folders in it, and the objects in it itself.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with reaching(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        page = obstore.list_with_delimiter(opened(folder), folder.key.rstrip("/") or None)
    folders = [Object(folder.bucket, prefix) for prefix in page["common_prefixes"]]
    return folders, [_listed(folder, one) for one in page["objects"]]


def find(one: Object) -> Object | None:
    """Look for an object of exactly this name.

    Raises:
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    try:
        with reaching(one, "s3:GetObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            return _listed(one, obstore.head(opened(one), one.key))
    except FileNotFoundError:
        return None


def read(one: Object) -> bytes:
    """Read an object whole.

    Raises:
        FileNotFoundError: There is none of that name.
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    return read_marked(one)[0]


def read_marked(one: Object) -> tuple[bytes, str | None]:
    """Read an object whole, and the mark of this state of it; raises as `read` does."""
    with reaching(one, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        got = obstore.get(opened(one), one.key)
        return bytes(got.bytes()), got.meta["e_tag"]


def blocks(one: Object, size: int) -> Iterator[bytes]:
    """Read an object in blocks of some `size` bytes; raises as `read` does."""
    with reaching(one, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for block in obstore.get(opened(one), one.key).stream(min_chunk_size=size):
            yield bytes(block)


def write(one: Object, content: bytes | Path) -> None:
    """Write an object, which appears whole or not at all, in the place of one of that name.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    _put(one, content, "overwrite")


def replace_marked(one: Object, content: bytes, mark: str | None) -> bool:
    """Write an object unless another has done so since it was read, and say whether it is written.

    Where the server knows no such condition, it is written.

    Args:
        one: Which.
        content: What it is to hold.
        mark: That of the state which was read; None where there was none.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - only who has an address needs the extra

    try:
        _put(one, content, "create" if mark is None else {"e_tag": mark})
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write(one, content)
    return True


def remove(objects: Iterable[Object]) -> None:
    """Remove objects; those that are gone already are no error.

    Raises:
        UsageError: They must not be removed.
        Unavailable: S3 does not answer.
    """
    by_bucket: dict[str, list[Object]] = {}
    for one in objects:
        by_bucket.setdefault(one.bucket, []).append(one)
    for some in by_bucket.values():
        with reaching(some[0], "s3:DeleteObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            obstore.delete(opened(some[0]), [one.key for one in some])


def _put(one: Object, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with reaching(one, "s3:PutObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        obstore.put(opened(one), one.key, content, mode=mode)


def _listed(folder: Object, about: Mapping[str, Any]) -> Object:
    return Object(folder.bucket, about["path"], about["size"], about["last_modified"])
