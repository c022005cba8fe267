"""What is sent of an alert: its row, or the alert in a form that others read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from morpheus.columns import TIME
from morpheus.records import Batch
from morpheus.sinks.alert import Alert, Alerts, digest
from morpheus.sinks.ecs import document
from morpheus.sinks.formats import json_rows
from morpheus.sinks.letters import Letter
from morpheus.sinks.ocsf import finding

ROW_CONTENT = "row"
CLOUDEVENTS = "cloudevents"


def ocsf(alert: Alert) -> bytes:
    """A Detection Finding of OCSF."""
    return msgspec.json.encode(finding(alert))


def ecs(alert: Alert) -> bytes:
    """A document of the Elastic Common Schema."""
    return msgspec.json.encode(document(alert))


def cloudevents(alert: Alert) -> bytes:
    """A CloudEvent (CNCF, version 1.0) in structured form, with a Detection Finding in it."""
    envelope = {
        "specversion": "1.0",
        "id": alert.id,
        "source": f"urn:morpheus:{alert.source or 'log'}",
        "type": "morpheus.alert",
        "time": alert.time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": "https://schema.ocsf.io/1.8.0/classes/detection_finding",
        "data": finding(alert),
    }
    return msgspec.json.encode(envelope | ({"subject": alert.user} if alert.user else {}))


FORMS: Mapping[str, Callable[[Alert], bytes]] = {
    "ocsf": ocsf,
    "ecs": ecs,
    CLOUDEVENTS: cloudevents,
}
CONTENTS = (ROW_CONTENT, *FORMS)
"""What `--content` can be."""


@dataclass
class Writer:
    """Writes a letter of each event.

    Args:
        content: One of `CONTENTS`.
        alerts: Makes alerts of events.
    """

    content: str
    alerts: Alerts

    def letters(self, batch: Batch) -> Iterator[Letter]:
        """Write the letters of a batch, in its order."""
        if self.content == ROW_CONTENT:
            yield from _row_letters(batch)
            return
        form = FORMS[self.content]
        for alert in self.alerts.of(batch):
            yield Letter(alert.id, alert.user, alert.time.timestamp(), form(alert))


def _row_letters(batch: Batch) -> Iterator[Letter]:
    """Rows as `to-file` writes them to JSON lines."""
    text = io.BytesIO()
    json_rows(batch.frame, text)
    seconds = [None] * batch.frame.height
    if TIME in batch.frame.columns:
        seconds = (batch.frame[TIME].dt.epoch("us") / 1e6).to_list()
    for line, time in zip(text.getvalue().splitlines(), seconds, strict=True):
        yield Letter(digest(batch.user, line.decode()), batch.user, time, line)
