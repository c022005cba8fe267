"""`to-ecs`: alerts as documents of the Elastic Common Schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from morpheus.records import Batch, Rows, Scored
from morpheus.sinks.alert import Alerts
from morpheus.sinks.alert_files import check_file, format_of, json_lines
from morpheus.sinks.ecs import document
from morpheus.stage import Stage, option


@dataclass(frozen=True)
class ToEcs(Stage):
    """Write alerts as documents of the Elastic Common Schema (ECS), one a line.

    Takes events with scores, or rows, and hands them on; all that reach it are written, so put
    `filter` in front of it. `event.id` is the same for the same event in each run. Filebeat or
    Elastic Agent ship such a file; `to-http --receiver=elasticsearch` sends the same.

    Example: `to-ecs --filename=alerts.jsonl`
    """

    name = "to-ecs"
    takes = (Scored, Rows)
    scope = "run"
    sink = True
    needs_fingerprint = False

    filename: str = option("", "File to write: JSON lines, plain or packed.", required=True)
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )

    def check(self) -> None:
        """Refuse what cannot be written."""
        check_file(self.name, self.filename, overwrite=self.overwrite)
        format_of(self.name, self.filename, "json")

    def writes(self) -> Path | None:
        """The file."""
        return Path(self.filename)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Write the documents of each batch, and hand it on."""
        alerts = Alerts(self.name, self.settings.source)
        _, packing = format_of(self.name, self.filename, "json")
        with json_lines(Path(self.filename), packing) as file:
            for batch in batches:
                for alert in alerts.of(batch):
                    file.write(msgspec.json.encode(document(alert)) + b"\n")
                yield batch
