"""from-azure: reads Entra ID (Azure AD) sign-in logs."""

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
