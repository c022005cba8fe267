"""`from-azure` and `from-duo`: read sign-in logs of Entra ID and of Duo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morpheus.sources.base import FileSource
from morpheus.sources.log_format import LogFormat
from morpheus.sources.schema_file import load_builtin_schema

AZURE_FORMAT = load_builtin_schema("azure.toml").log_format


@dataclass(frozen=True)
class FromAzure(FileSource):
    """Read Entra ID (Azure AD) sign-ins.

    Reads JSON lines of diagnostic settings, Microsoft Graph's `signIns`, CSV and JSON from the
    portal, flat CSV and Parquet. Nested names are joined: `deviceDetail.browser` becomes
    `deviceDetailbrowser`. The default user column is `userPrincipalName`.

    Example: `from-azure --input_glob='signins/*.json'`
    """

    name = "from-azure"
    default_columns: ClassVar[str] = "columns_ae_azure.txt"
    default_user: ClassVar[str] = AZURE_FORMAT.user_column
    log_format: ClassVar[LogFormat] = AZURE_FORMAT


DUO_FORMAT = load_builtin_schema("duo.toml").log_format


@dataclass(frozen=True)
class FromDuo(FileSource):
    """Read Duo authentication logs.

    Reads responses of the Admin API (versions 1 and 2, as lists or lines), CSV of the admin
    panel, flat CSV and Parquet. Nested names are joined: `access_device.browser` becomes
    `accessdevicebrowser`. The default user column is `username`.

    Example: `from-duo --input_glob='authentications/*.json'`
    """

    name = "from-duo"
    default_columns: ClassVar[str] = "columns_ae_duo.txt"
    default_user: ClassVar[str] = DUO_FORMAT.user_column
    log_format: ClassVar[LogFormat] = DUO_FORMAT
