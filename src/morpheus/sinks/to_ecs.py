"""`to-ecs`: alerts as documents of the Elastic Common Schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Transform, option
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.alert_files import detect_format, open_json_lines, validate_alert_path
from morpheus.sinks.alert_formats import make_ecs_document


@dataclass(frozen=True)
class ToEcs(Transform):
    """Write alerts as documents of the Elastic Common Schema (ECS), one a line.

    Takes events with scores, or rows, and passes them on. It writes every event that reaches it, so
    put `filter` before it. `event.id` is the same for the same event in each run. Filebeat or
    Elastic Agent can ship such a file; `to-http --receiver=elasticsearch` sends the same documents.

    Example: `to-ecs --filename=alerts.jsonl`
    """

    name = "to-ecs"
    takes = (Scored, OutputRows)
    scope = "global"
    is_sink = True
    needs_model = False

    filename: str = option(
        "", "File to write: JSON lines, plain or compressed (`.gz`, `.zst`).", required=True
    )
    overwrite: bool = option(
        False, "Replace an existing file. It stays until the new one is complete.", flag=True
    )

    def validate(self) -> None:
        """Reject a file that cannot be written."""
        validate_alert_path(self.name, self.filename, overwrite=self.overwrite)
        detect_format(self.name, self.filename, "json")

    def output_file(self) -> Path | None:
        """The file."""
        return Path(self.filename)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Write the documents of each batch, and hand it on."""
        alerts = AlertBuilder(self.name, self.options.source)
        _, packing = detect_format(self.name, self.filename, "json")
        with open_json_lines(Path(self.filename), packing) as file:
            for batch in batches:
                for alert in alerts.build(batch):
                    file.write(msgspec.json.encode(make_ecs_document(alert)) + b"\n")
                yield batch
