"""What is sent of an alert: its row, or the alert in a form that others read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from morpheus.columns import TIME
from morpheus.records import Batch
from morpheus.sinks.alert import Alert, AlertBuilder, stable_id
from morpheus.sinks.ecs import make_ecs_document
from morpheus.sinks.formats import write_json_rows
from morpheus.sinks.letters import OutboundEvent
from morpheus.sinks.ocsf import make_detection_finding

ROW_FORMAT = "row"
CLOUDEVENTS = "cloudevents"


def encode_ocsf(alert: Alert) -> bytes:
    """A Detection Finding of OCSF."""
    return msgspec.json.encode(make_detection_finding(alert))


def encode_ecs(alert: Alert) -> bytes:
    """A document of the Elastic Common Schema."""
    return msgspec.json.encode(make_ecs_document(alert))


def encode_cloudevents(alert: Alert) -> bytes:
    """A CloudEvent (CNCF, version 1.0) in structured form, with a Detection Finding in it."""
    envelope = {
        "specversion": "1.0",
        "id": alert.id,
        "source": f"urn:morpheus:{alert.source or 'log'}",
        "type": "morpheus.alert",
        "time": alert.time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": "https://schema.ocsf.io/1.8.0/classes/detection_finding",
        "data": make_detection_finding(alert),
    }
    return msgspec.json.encode(envelope | ({"subject": alert.user} if alert.user else {}))


SERIALIZERS: Mapping[str, Callable[[Alert], bytes]] = {
    "ocsf": encode_ocsf,
    "ecs": encode_ecs,
    CLOUDEVENTS: encode_cloudevents,
}
FORMATS = (ROW_FORMAT, *SERIALIZERS)
"""What `--content` can be."""


@dataclass
class AlertSerializer:
    """Writes a letter of each event.

    Args:
        format: One of `FORMATS`.
        builder: Makes alerts of events.
    """

    format: str
    builder: AlertBuilder

    def serialize(self, batch: Batch) -> Iterator[OutboundEvent]:
        """Write the letters of a batch, in its order."""
        if self.format == ROW_FORMAT:
            yield from _serialize_rows(batch)
            return
        form = SERIALIZERS[self.format]
        for alert in self.builder.build(batch):
            yield OutboundEvent(alert.id, alert.user, alert.time.timestamp(), form(alert))


def _serialize_rows(batch: Batch) -> Iterator[OutboundEvent]:
    """Rows as `to-file` writes them to JSON lines."""
    text = io.BytesIO()
    write_json_rows(batch.frame, text)
    seconds = [None] * batch.frame.height
    if TIME in batch.frame.columns:
        seconds = (batch.frame[TIME].dt.epoch("us") / 1e6).to_list()
    for line, time in zip(text.getvalue().splitlines(), seconds, strict=True):
        yield OutboundEvent(stable_id(batch.user, line.decode()), batch.user, time, line)
