"""from-file: any log that has a user and a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from morpheus.core.stage import PipelineOptions, option
from morpheus.errors import UsageError
from morpheus.sources.base import FileSource
from morpheus.sources.log_format import LogFormat
from morpheus.sources.schema_file import (
    is_schema_file,
    list_builtin_schemas,
    load_schema,
    make_minimal_format,
)


@dataclass(frozen=True)
class FromFile(FileSource):
    """Read any log that has a user and a time: JSON lines, JSON lists, CSV or Parquet.

    What its columns, users and times are is said by a schema, a TOML file that `pipeline-ae` is
    given as --columns_file: one of your own, or one of those shipped, such as `okta.toml`,
    `gcp.toml`, `github.toml` and `kubernetes.toml`. A plain list of feature columns will do where
    --userid_column_name and --timestamp_column_name are given too.

    Example: `from-file --input_glob='okta/*.json.gz'` after `pipeline-ae --columns_file=okta.toml`
    """

    name = "from-file"
    default_user: ClassVar[str] = ""

    input_glob: str = option(
        "",
        "Files to read: a glob in quotes, a file or a folder; in S3, `s3://bucket/...`.",
        names=("--input_glob", "--filename"),
        required=True,
    )

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Take from the schema what the command line does not say."""
        name = options.columns_file
        if not is_schema_file(name):
            return super().with_defaults(self._require_columns(options))
        described = load_schema(name or "")
        return replace(
            options,
            columns=options.columns or described.features,
            column_types=described.column_types,
            userid_column_name=options.userid_column_name or described.log_format.user_column,
        )

    def get_log_format(self) -> LogFormat:
        """The format that the schema describes."""
        told = self.options
        if is_schema_file(told.columns_file):
            return load_schema(told.columns_file or "").log_format
        return make_minimal_format(
            told.columns, told.userid_column_name, told.timestamp_column_name
        )

    def _require_columns(self, options: PipelineOptions) -> PipelineOptions:
        """Refuse settings that leave open what a schema would say."""
        needed = {
            "--columns_file": options.columns_file or options.columns,
            "--userid_column_name": options.userid_column_name,
            "--timestamp_column_name": options.timestamp_column_name,
        }
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise UsageError(
                "from-file: nothing says what the log's columns are. Give --columns_file a schema, "
                f"your own or a shipped one ({', '.join(list_builtin_schemas())}); or else give "
                f"{' and '.join(missing)}."
            )
        return options
