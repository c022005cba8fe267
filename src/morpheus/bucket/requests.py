"""What can be asked of a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from morpheus.bucket.address import S3Path
from morpheus.bucket.connection import get_s3_store
from morpheus.bucket.refusals import translate_s3_errors


def list_recursive(folder: S3Path) -> Iterator[S3Path]:
    """List all objects whose keys begin with a folder's, however deep.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with translate_s3_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for page in obstore.list(get_s3_store(folder), folder.key.rstrip("/") or None):
            yield from (_from_listing(folder, one) for one in page)


def list_dir(folder: S3Path) -> tuple[list[S3Path], list[S3Path]]:
    """List a folder: the folders in it, and the objects in it itself.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with translate_s3_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        page = obstore.list_with_delimiter(get_s3_store(folder), folder.key.rstrip("/") or None)
    folders = [S3Path(folder.bucket, prefix) for prefix in page["common_prefixes"]]
    return folders, [_from_listing(folder, one) for one in page["objects"]]


def head_object(path: S3Path) -> S3Path | None:
    """Look for an object of exactly this name.

    Raises:
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    try:
        with translate_s3_errors(path, "s3:GetObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            return _from_listing(path, obstore.head(get_s3_store(path), path.key))
    except FileNotFoundError:
        return None


def read_object(path: S3Path) -> bytes:
    """Read an object whole.

    Raises:
        FileNotFoundError: There is none of that name.
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    return get_with_etag(path)[0]


def get_with_etag(path: S3Path) -> tuple[bytes, str | None]:
    """Read an object whole, and the mark of this state of it; raises as `read_object` does."""
    with translate_s3_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        got = obstore.get(get_s3_store(path), path.key)
        return bytes(got.bytes()), got.meta["e_tag"]


def stream_object(path: S3Path, size: int) -> Iterator[bytes]:
    """Read an object in blocks of some `size` bytes; raises as `read_object` does."""
    with translate_s3_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for block in obstore.get(get_s3_store(path), path.key).stream(min_chunk_size=size):
            yield bytes(block)


def write_object(path: S3Path, content: bytes | Path) -> None:
    """Write an object, which appears whole or not at all, in the place of one of that name.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    _put(path, content, "overwrite")


def put_if_match(path: S3Path, content: bytes, etag: str | None) -> bool:
    """Write an object unless another has done so since it was read, and say whether it is written.

    Where the server knows no such condition, it is written.

    Args:
        path: Which.
        content: What it is to hold.
        etag: That of the state which was read; None where there was none.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - only who has an address needs the extra

    try:
        _put(path, content, "create" if etag is None else {"e_tag": etag})
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write_object(path, content)
    return True


def delete_objects(paths: Iterable[S3Path]) -> None:
    """Remove objects; those that are gone already are no error.

    Raises:
        UsageError: They must not be removed.
        Unavailable: S3 does not answer.
    """
    by_bucket: dict[str, list[S3Path]] = {}
    for one in paths:
        by_bucket.setdefault(one.bucket, []).append(one)
    for some in by_bucket.values():
        with translate_s3_errors(some[0], "s3:DeleteObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            obstore.delete(get_s3_store(some[0]), [one.key for one in some])


def _put(path: S3Path, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with translate_s3_errors(path, "s3:PutObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        obstore.put(get_s3_store(path), path.key, content, mode=mode)


def _from_listing(folder: S3Path, entry: Mapping[str, Any]) -> S3Path:
    return S3Path(folder.bucket, entry["path"], entry["size"], entry["last_modified"])
