"""from-file: any log that has a user and a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from morpheus.errors import UsageError
from morpheus.sources import schema
from morpheus.sources.file_source import FileSource
from morpheus.sources.log_format import LogFormat
from morpheus.stage import Settings, option


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

    def settled(self, settings: Settings) -> Settings:
        """Take from the schema what the command line does not say."""
        name = settings.columns_file
        if not schema.is_schema(name):
            return super().settled(self._told(settings))
        described = schema.load(name or "")
        return replace(
            settings,
            columns=settings.columns or described.features,
            kinds=described.kinds,
            userid_column_name=settings.userid_column_name or described.format.user,
        )

    def read_as(self) -> LogFormat:
        """The format that the schema describes."""
        told = self.settings
        if schema.is_schema(told.columns_file):
            return schema.load(told.columns_file or "").format
        return schema.unlisted(told.columns, told.userid_column_name, told.timestamp_column_name)

    def _told(self, settings: Settings) -> Settings:
        """Refuse settings that leave open what a schema would say."""
        needed = {
            "--columns_file": settings.columns_file or settings.columns,
            "--userid_column_name": settings.userid_column_name,
            "--timestamp_column_name": settings.timestamp_column_name,
        }
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise UsageError(
                "from-file: nothing says what the log's columns are. Give --columns_file a schema, "
                f"your own or a shipped one ({', '.join(schema.names())}); or else give "
                f"{' and '.join(missing)}."
            )
        return settings
