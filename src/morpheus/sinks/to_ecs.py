"""`to-ecs`: alerts as documents of the Elastic Common Schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Outputs, Sink, StageContext, option
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.alert_files import (
    LineWriter,
    detect_format,
    open_json_lines,
    validate_alert_path,
)
from morpheus.sinks.alert_formats import make_ecs_document


@dataclass(frozen=True)
class ToEcs(Sink):
    """Write alerts as documents of the Elastic Common Schema (ECS), one a line.

    Takes events with scores, or rows, and passes them on. It writes every event that reaches it, so
    put `filter` before it. `event.id` is the same for the same event in each run. Filebeat or
    Elastic Agent can ship such a file; `to-http --receiver=elasticsearch` sends the same documents.

    Example: `to-ecs --filename=alerts.jsonl`
    """

    name = "to-ecs"
    takes = (Scored, OutputRows)

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

    def outputs(self) -> Outputs:
        """The file."""
        return Outputs(files=(Path(self.filename),))

    def open(self, context: StageContext) -> tuple[AlertBuilder, LineWriter]:
        """Open the file."""
        _, packing = detect_format(self.name, self.filename, "json")
        file = context.resources.enter_context(open_json_lines(Path(self.filename), packing))
        return AlertBuilder(self.name, self.options.source), file

    def process(self, batch: Batch, state: tuple[AlertBuilder, LineWriter]) -> Iterator[Batch]:
        """Write one document for each alert of a batch."""
        alerts, file = state
        for alert in alerts.build(batch):
            file.write(msgspec.json.encode(make_ecs_document(alert)) + b"\n")
        yield batch
