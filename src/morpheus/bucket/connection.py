"""Connections to buckets: one for each, with what the environment says of credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morpheus.bucket.address import S3Path
from morpheus.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

_RETRY_CONFIG = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Where one of these is set, obstore finds the credentials by itself."""


def get_s3_store(path: S3Path) -> S3Store:
    """The connection to an object's bucket."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _cached_s3_store(path.bucket, tuple(sorted(settings.items())))


def storage_options() -> dict[str, str]:
    """What readers other than obstore, which find the credentials themselves, have to be told."""
    return {"AWS_ALLOW_HTTP": "true"} if _is_plain_http(os.environ) else {}


def _is_plain_http(env: Mapping[str, str]) -> bool:
    """Whether the server is reached without encryption, such as one on this machine."""
    return env.get("AWS_ENDPOINT_URL", env.get("AWS_ENDPOINT", "")).startswith("http://")


@lru_cache(maxsize=16)
def _cached_s3_store(bucket: str, settings: tuple[tuple[str, str], ...]) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415 - only who has an address needs the extra

    given = dict(settings)
    more: dict[str, Any] = _load_profile(given)
    return S3Store(
        bucket,
        client_options={
            "allow_http": _is_plain_http(given),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),
        },
        retry_config=_RETRY_CONFIG,  # type: ignore[arg-type] # a dict of the type that obstore has when types are checked
        **more,
    )


def _load_profile(env: Mapping[str, str]) -> dict[str, Any]:
    """The credentials and the region of a profile, where obstore finds none by itself."""
    name = env.get("AWS_PROFILE")
    file = Path(env.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if any(key in env for key in _CREDENTIAL_VARIABLES) or (name is None and not file.exists()):
        return {}
    try:
        import boto3  # noqa: PLC0415 - half a second, and only profiles need it
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - the same
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - the same
    except ImportError as error:
        raise UsageError(
            f"The credentials of profile `{name or 'default'}` are read by boto3, which is not "
            "installed. `pip install boto3`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    try:
        session = boto3.Session(profile_name=name)
        found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"AWS_PROFILE: profile `{name or 'default'}` has no credentials ({error}). "
            "`aws configure list-profiles` lists those that there are."
        ) from error
    if session.region_name and "AWS_REGION" not in env:
        found["region"] = session.region_name
    return found
