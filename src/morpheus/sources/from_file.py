"""`from-file`, `from-azure` and `from-duo`: read logs that a schema describes.

`from-file` takes the schema as an option. `from-azure` and `from-duo` read the sign-in logs of
Entra ID and of Duo by built-in schemas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from msgspec import structs

from morpheus.core.stage import PipelineOptions, option
from morpheus.errors import UsageError
from morpheus.sources.base import INPUT_HELP, FileSource
from morpheus.sources.log_format import LogFormat
from morpheus.sources.schema_file import (
    is_schema_file,
    list_builtin_schemas,
    load_builtin_schema,
    load_schema,
    make_minimal_format,
)


@dataclass(frozen=True)
class FromFile(FileSource):
    """Read any log that has a user and a time: JSON lines, JSON lists, CSV or Parquet.

    A schema describes the columns, the user and the time of the log. It is a TOML file, given to
    `pipeline-ae` as --columns_file: your own, or a built-in one such as `okta.toml`, `gcp.toml`,
    `github.toml`, `kubernetes.toml`, `microsoft365.toml` and `google_workspace.toml`. With
    --userid_column_name and --timestamp_column_name, a plain feature list is enough.

    Example: `from-file --input_glob='okta/*.json.gz'` after `pipeline-ae --columns_file=okta.toml`
    """

    name = "from-file"
    default_user: ClassVar[str] = ""

    input_glob: str | tuple[str, ...] = option(
        "",
        f"{INPUT_HELP} Repeat for more.",
        names=("--input_glob", "--filename"),
        required=True,
        location="any",
    )

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Fill options that are not given from the schema; see `Source.with_defaults`."""
        name = options.columns_file
        if not is_schema_file(name):
            return super().with_defaults(self._require_columns(options))
        schema = load_schema(name or "")
        return replace(
            options,
            columns=options.columns or schema.features,
            column_types=schema.column_types,
            userid_column_name=options.userid_column_name or schema.log_format.user_column,
        )

    def get_log_format(self) -> LogFormat:
        """Return the format that the schema describes."""
        options = self.options
        if is_schema_file(options.columns_file):
            return load_schema(options.columns_file or "").log_format
        form = make_minimal_format(
            options.columns, options.userid_column_name, options.timestamp_column_name
        )
        # The names of a frame's columns are those that the caller knows.
        return form if self.frames is None else structs.replace(form, drop_characters="")

    def _require_columns(self, options: PipelineOptions) -> PipelineOptions:
        """Reject options that lack what a schema would provide."""
        needed = {
            "--columns_file": options.columns_file or options.columns,
            "--userid_column_name": options.userid_column_name,
            "--timestamp_column_name": options.timestamp_column_name,
        }
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise UsageError(
                "from-file: the columns of the log are not known. Give a schema as --columns_file, "
                f"your own or a built-in one ({', '.join(list_builtin_schemas())}); or give "
                f"{' and '.join(missing)}."
            )
        return options


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
