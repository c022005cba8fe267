"""from-duo: reads Duo authentication logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morpheus.sources.base import FileSource
from morpheus.sources.log_format import LogFormat
from morpheus.sources.schema_file import load_builtin_schema

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
