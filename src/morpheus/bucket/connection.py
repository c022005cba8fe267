"""Connections to buckets: one for each, with what the environment says of credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morpheus.bucket.address import Object
from morpheus.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

_PATIENCE = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_OWN_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Where one of these is set, obstore finds the credentials by itself."""


def opened(one: Object) -> S3Store:
    """The connection to an object's bucket."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _store(one.bucket, tuple(sorted(settings.items())))


def for_others() -> dict[str, str]:
    """What readers other than obstore, which find the credentials themselves, have to be told."""
    return {"AWS_ALLOW_HTTP": "true"} if _is_plain(os.environ) else {}


def _is_plain(given: Mapping[str, str]) -> bool:
    """Whether the server is reached without encryption, such as one on this machine."""
    return given.get("AWS_ENDPOINT_URL", given.get("AWS_ENDPOINT", "")).startswith("http://")


@lru_cache(maxsize=16)
def _store(bucket: str, settings: tuple[tuple[str, str], ...]) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415 - only who has an address needs the extra

    given = dict(settings)
    more: dict[str, Any] = _profile(given)
    return S3Store(
        bucket,
        client_options={
            "allow_http": _is_plain(given),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),
        },
        retry_config=_PATIENCE,  # type: ignore[arg-type] # a dict of the type that obstore has when types are checked
        **more,
    )


def _profile(given: Mapping[str, str]) -> dict[str, Any]:
    """The credentials and the region of a profile, where obstore finds none by itself."""
    name = given.get("AWS_PROFILE")
    file = Path(given.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if any(key in given for key in _OWN_KEYS) or (name is None and not file.exists()):
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
    if session.region_name and "AWS_REGION" not in given:
        found["region"] = session.region_name
    return found
