"""What S3 refuses, said in words that help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from morpheus.bucket.address import S3Path
from morpheus.errors import MorpheusError, TransientError, UsageError

S3_INSTALL_HINT = "`pip install 'morpheus[s3]'`"
_DENIED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_OTHER_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}
_METADATA_PATH = "/latest/api/token"
"""Where a machine of AWS asks for its role: the last that is tried."""

_BUCKET_HINT = (
    "Give `s3://BUCKET/FOLDER/`; `aws s3 ls` lists yours, and AWS_ENDPOINT_URL names a server that "
    "is not AWS's."
)
_CREDENTIALS_HINT = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a "
    "role; for a public bucket set AWS_SKIP_SIGNATURE=true."
)
_SERVER_HINT = "Try again, or set AWS_ENDPOINT_URL to the server that has the bucket."


@contextmanager
def translate_s3_errors(path: S3Path, permission: str) -> Iterator[None]:
    """Turn what S3 refuses into an error that says what to do.

    Args:
        path: What is asked for.
        permission: What one must be allowed to do there, as AWS calls it.

    Raises:
        FileNotFoundError: There is no such object.
        NotSupportedError: The server cannot do that.
        UsageError: The extra is not installed, the bucket is not there, or not for us.
        Unavailable: S3 does not answer.
    """
    try:
        import obstore.exceptions  # noqa: PLC0415 - only who has an address needs the extra
    except ImportError as error:
        raise UsageError(f"{path}: S3 is read and written by an extra. {S3_INSTALL_HINT}.") from error
    excused = (
        obstore.exceptions.AlreadyExistsError,
        obstore.exceptions.PreconditionError,
        obstore.exceptions.NotSupportedError,
    )
    try:
        yield
    except excused:
        raise
    except (obstore.exceptions.BaseError, OSError) as error:
        if "status code: 501" in str(error):
            raise obstore.exceptions.NotSupportedError(str(path)) from error
        told = _to_morpheus_error(str(error), path, permission)
        if told is None:
            raise FileNotFoundError(2, "no such object", str(path)) from error
        raise told from error


def _to_morpheus_error(text: str, path: S3Path, permission: str) -> MorpheusError | None:
    """What to say of obstore's message; None where only the object is not there."""
    code = next(iter(re.findall(r"<Code>(\w+)</Code>", text)), "")
    server = next(iter(re.findall(r"https?://[^/\s?]+", text)), "the server")
    first = text.strip().split("\n", 1)[0]
    denied = code in _DENIED_CODES or re.search(r"status code: 40[13]|PermissionDenied|Unauth", text)
    reasons: list[tuple[object, MorpheusError | None]] = [
        (code == "NoSuchBucket", UsageError(f"{path}: there is no bucket `{path.bucket}`. {_BUCKET_HINT}")),
        (_METADATA_PATH in text, UsageError(f"{path}: no credentials were found. {_CREDENTIALS_HINT}")),
        (
            denied,
            UsageError(
                f"{path}: access denied ({code or 'status 403'}): the credentials need `{permission}` "
                f"there. {_CREDENTIALS_HINT}"
            ),
        ),
        (
            code in _OTHER_REGION_CODES or "redirect" in text,
            UsageError(
                f"{path}: the bucket lies in another region. Set AWS_REGION to it; "
                f"`aws s3api get-bucket-location --bucket {path.bucket}` tells."
            ),
        ),
        (code == "NoSuchKey" or "status code: 404" in text, None),
        ("HTTP error" in text, TransientError(f"{path}: {server} cannot be reached. {_SERVER_HINT}")),
        (True, TransientError(f"{path}: S3 answered with an error ({first}). Try again later.")),
    ]
    return next(told for fits, told in reasons if fits)
