"""Metrics of a run for Prometheus: an HTTP server in the process, and a file at the end.

`MetricsServer` serves `/metrics`, `/healthz` and `/readyz`. `write_metrics_file` writes a file for
the textfile collector of node_exporter. Both write Prometheus's text format, version 0.0.4.
Labels never name a user, and a label has a bounded number of values.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from morpheus.core.batch import ReadStats, RunMetrics, StreamStats
from morpheus.errors import UsageError
from morpheus.status import RunWatch
from morpheus.storage.atomic import atomic_write
from morpheus.text import elide_middle, escape_control

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL_VALUES = 200
"""Maximum number of values of a label. The others count as one, `OTHER_LABEL`."""
OTHER_LABEL = "other"
MAX_CONNECTIONS = 16
REQUEST_SECONDS = 10.0
"""Time for a whole request. Then the connection is closed."""

Kind = Literal["counter", "gauge", "summary"]
Labels = Mapping[str, str]


class Family(msgspec.Struct, frozen=True):
    """A metric: its name, and what it measures.

    Attributes:
        name: Name, as Prometheus shows it. That of a counter ends in `_total`.
        kind: A counter only grows.
        help: What it counts, and its unit.
    """

    name: str
    kind: Kind
    help: str

    def render(
        self, samples: Sequence[tuple[Labels, float]], suffixes: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yield the lines of the metric; none without samples.

        Args:
            samples: Labels and value of each.
            suffixes: What follows the name of each; nothing by default.
        """
        lines = [
            f"{self.name}{suffix}{_format_labels(labels)} {value:.15g}"
            for (labels, value), suffix in zip(
                samples, suffixes or [""] * len(samples), strict=True
            )
        ]
        if lines:
            yield f"# HELP {self.name} {self.help}"
            yield f"# TYPE {self.name} {self.kind}"
            yield from lines


def _format_labels(labels: Labels) -> str:
    r"""Return labels as Prometheus reads them.

    >>> _format_labels({"reason": 'a "b"'})
    '{reason="a \\"b\\""}'
    """
    pairs = [f'{name}="{_escape_label(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escape_label(value: str) -> str:
    # The value may be the name of a file or of a topic, which others choose.
    text = escape_control(elide_middle(value, 128))
    return text.replace("\\", "\\\\").replace('"', '\\"')


COUNTS: Mapping[str, tuple[str, Callable[[RunMetrics], int]]] = {
    "read": ("Records read from the input.", lambda run: run.input.read),
    "scored": ("Events that got a score.", lambda run: run.num_scored),
    "unscored": (
        "Events without a score, such as those of users without a model.",
        lambda run: run.num_unscored,
    ),
    "filtered": ("Events that filter dropped.", lambda run: run.filtered),
    "suppressed": (
        "Events that suppressions dropped; also counted as filtered.",
        lambda run: run.suppressed.total(),
    ),
    "written": ("Events that left the pipeline.", lambda run: run.users.total()),
    "refused": ("Records that could not be read.", lambda run: run.input.refused),
    "duplicate": ("Records that were read before.", lambda run: run.input.duplicates),
    "late": (
        "Events that came later than is allowed; also counted as scored or unscored.",
        lambda run: run.input.late,
    ),
}
"""What is counted: the name, its help, and how to get it."""
LEFT_OUT: Mapping[str, Callable[[ReadStats], int]] = {
    "outside_period": lambda stats: stats.outside_range,
    "taken_by_earlier_run": lambda stats: stats.taken,
    "implausible_time": lambda stats: stats.implausible,
    "excluded_by_schema": lambda stats: stats.unwanted_rows,
    "other_record": lambda stats: stats.other_records,
    "other_event_class": lambda stats: stats.other_classes,
    "other_user": lambda stats: stats.other_users,
    "skipped_user": lambda stats: stats.skipped_users,
}
"""Why records are left out that are neither refused nor duplicates, and how to get the number."""


def _build_info() -> Labels:
    try:
        version = metadata.version("morpheus-dfp")
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    return {"version": version, "python": platform.python_version()}


BUILD_INFO = Family("morpheus_build_info", "gauge", "Version of morpheus and of Python. Always 1.")
LEFT_OUT_TOTAL = Family(
    "morpheus_events_left_out_total", "counter", "Records that were left out, by reason."
)
IDLE = Family(
    "morpheus_progress_idle_seconds", "gauge", "Seconds since the run last made progress."
)
DEAD_LETTERS = Family(
    "morpheus_dead_letters_total",
    "counter",
    "Messages put aside because they cannot be read, in a dead-letter topic or a quarantine.",
)
MICRO_BATCHES = Family(
    "morpheus_micro_batches_total", "counter", "Micro-batches with events that were processed."
)
CHECKPOINTS = Family("morpheus_checkpoints_total", "counter", "Checkpoints.")
CHECKPOINT_SECONDS = Family(
    "morpheus_checkpoint_seconds", "summary", "Seconds that checkpoints took."
)
OUTBOX_ENTRIES = Family(
    "morpheus_outbox_entries", "gauge", "Entries in the outbox, which wait for a sink."
)
OUTBOX_BYTES = Family("morpheus_outbox_bytes", "gauge", "Size of these entries.")
PAUSED = Family(
    "morpheus_reading_paused",
    "gauge",
    "1 while reading pauses: the outbox is full, or the models cannot be read.",
)
LIVE_USERS = Family("morpheus_live_users", "gauge", "Users whose state is in memory.")
SINK_LAG = Family(
    "morpheus_sink_lag_seconds", "gauge", "Seconds for which a sink has not had all rows."
)
SINK_ERRORS = Family(
    "morpheus_sink_errors_total", "counter", "Attempts to give rows to a sink that failed."
)
SINK_FAILING = Family(
    "morpheus_sink_failing", "gauge", "1 while a sink takes no rows, with the code of the error."
)
SOURCE_LAG = Family(
    "morpheus_source_lag_seconds",
    "gauge",
    "Seconds from the event time that a partition of the source has reached until now.",
)
WATERMARK = Family(
    "morpheus_watermark_timestamp_seconds",
    "gauge",
    "Event time that a partition of the source has reached, in seconds since 1970.",
)
GAPS = Family(
    "morpheus_input_gaps",
    "gauge",
    "Gaps in parts of the input that have events in nearly all hours, of the last 14 days.",
)
MODELS = Family("morpheus_models", "gauge", "Models that scored events.")
START = Family("process_start_time_seconds", "gauge", "Start of the run, in seconds since 1970.")
MEMORY = Family("process_resident_memory_bytes", "gauge", "Resident memory of the process.")
CPU = Family("process_cpu_seconds_total", "counter", "CPU time of the process.")
OPEN_FILES = Family("process_open_fds", "gauge", "Open file descriptors of the process.")


class MetricsRenderer(msgspec.Struct):
    """Renders the metrics of a run. A counter never decreases, whatever the run does meanwhile.

    Attributes:
        watch: Has the metrics of the run.
    """

    watch: RunWatch
    _highest: dict[str, float] = msgspec.field(default_factory=dict)
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def render(self) -> str:
        """Return all metrics in Prometheus's text format."""
        with self._lock:
            lines = [line for part in self._iter_families() for line in part]
        return "\n".join([*lines, ""])

    def _iter_families(self) -> Iterator[Iterable[str]]:
        run = self.watch.metrics
        yield BUILD_INFO.render([(_build_info(), 1)])
        for name, (text, count) in COUNTS.items():
            family = Family(f"morpheus_events_{name}_total", "counter", text)
            yield family.render([({}, self._keep_highest(name, count(run)))])
        reasons = [
            ({"reason": reason}, self._keep_highest(reason, count(run.input)))
            for reason, count in LEFT_OUT.items()
        ]
        yield LEFT_OUT_TOTAL.render(reasons)
        yield DEAD_LETTERS.render([({}, run.input.dead_letters)])
        if run.stream is not None:
            yield from _iter_stream(run.stream)
        yield MODELS.render([({}, len(run.cards))])
        yield GAPS.render([({}, len(run.input.gaps))])
        yield IDLE.render([({}, self.watch.find_idle_seconds())])
        yield from self._iter_process()

    def _iter_process(self) -> Iterator[Iterable[str]]:
        yield START.render([({}, self.watch.started_at)])
        yield CPU.render([({}, time.process_time())])
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            yield MEMORY.render([({}, pages * os.sysconf("SC_PAGE_SIZE"))])
            yield OPEN_FILES.render([({}, len(list(Path("/proc/self/fd").iterdir())))])

    def _keep_highest(self, name: str, value: float) -> float:
        # Some counts are sums of several. The run may change one of them while they are added.
        # Prometheus would take a lower value for a restart, and count all events twice.
        self._highest[name] = max(value, self._highest.get(name, 0))
        return self._highest[name]


def _iter_stream(stream: StreamStats) -> Iterator[Iterable[str]]:
    """Yield the metrics of an endless run."""
    yield MICRO_BATCHES.render([({}, stream.micro_batches)])
    yield CHECKPOINTS.render([({}, stream.checkpoints)])
    totals = {"_sum": stream.checkpoint_seconds, "_count": stream.checkpoints}
    yield CHECKPOINT_SECONDS.render([({}, value) for value in totals.values()], [*totals])
    yield OUTBOX_ENTRIES.render([({}, stream.outbox_entries)])
    yield OUTBOX_BYTES.render([({}, stream.outbox_bytes)])
    yield PAUSED.render([({}, stream.paused)])
    yield LIVE_USERS.render([({}, stream.live_users)])
    sinks = {name.partition(" ")[0]: sink for name, sink in stream.sinks.items()}
    lags = {name.partition(" ")[0]: lag for name, lag in stream.find_sink_lags().items()}
    yield SINK_LAG.render([({"sink": name}, lag) for name, lag in lags.items()])
    yield SINK_ERRORS.render([({"sink": name}, sink.errors) for name, sink in sinks.items()])
    yield SINK_FAILING.render(
        [
            ({"sink": name, "code": sink.last_error}, bool(sink.last_error))
            for name, sink in sinks.items()
        ]
    )
    now = time.time()
    marks = limit_labels(stream.watermarks)
    yield WATERMARK.render([({"partition": name}, at) for name, at in marks.items()])
    yield SOURCE_LAG.render([({"partition": name}, max(now - at, 0)) for name, at in marks.items()])


def limit_labels(values: Mapping[str, float]) -> dict[str, float]:
    """Return at most `MAX_LABEL_VALUES` values by label. The others count as one, the lowest."""
    values = dict(values)  # the run may change them meanwhile
    names = sorted(values)
    kept = {name: values[name] for name in names[:MAX_LABEL_VALUES]}
    if others := names[MAX_LABEL_VALUES:]:
        kept[OTHER_LABEL] = min(values[name] for name in others)
    return kept


class MetricsServer(ThreadingHTTPServer):
    """Serves the metrics and the health of a run.

    It reads nothing but the path of a request, and serves no file.

    Args:
        watch: Watches the run.
        host: Address to listen on.
        port: Port. 0 picks a free one.
        ready_seconds: The run is ready if it has made progress within this time.

    Raises:
        UsageError: It cannot listen there.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, watch: RunWatch, host: str, port: int, ready_seconds: float) -> None:
        self.watch, self.ready_seconds = watch, ready_seconds
        self.renderer = MetricsRenderer(watch)
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family = found[0][0]
            super().__init__((host, port), MetricsHandler)
        except OSError as error:
            raise UsageError(
                f"--metrics_port: cannot listen on {host}:{port}: {error.strerror}. Give another "
                "port, or 0 for any free port, or another --metrics_host."
            ) from error

    @property
    def url(self) -> str:
        """Address of the server."""
        host, port = self.server_address[:2]
        name = str(host, "ascii") if isinstance(host, bytes | bytearray) else str(host)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def server_bind(self) -> None:
        """Bind the socket, without the name look-up of `http.server`, which can take seconds."""
        # Connections to the process before this one keep the port in use for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def service_actions(self) -> None:
        """Look at the progress, twice a second."""
        self.watch.poll()

    def process_request(self, request: object, client_address: object) -> None:
        """Respond in a thread. Connections above `MAX_CONNECTIONS` are closed at once."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]  # it is a socket
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]  # the same

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Respond, in the thread."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # the same
        finally:
            self._connections.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that has gone away."""


class MetricsHandler(BaseHTTPRequestHandler):
    """Responds to one request."""

    server: MetricsServer
    server_version = "morpheus"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def handle(self) -> None:
        """Respond. A slow client is cut off, so that it cannot keep its connection."""
        timer = threading.Timer(REQUEST_SECONDS, self._cut_off)
        timer.daemon = True
        timer.start()
        try:
            super().handle()
        finally:
            timer.cancel()

    def do_GET(self) -> None:
        """Respond to GET."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._respond(HTTPStatus.OK, self.server.renderer.render())
        elif path == "/healthz":
            self._respond(HTTPStatus.OK, "alive\n")
        elif path == "/readyz":
            self._respond_ready()
        else:
            self._respond(HTTPStatus.NOT_FOUND, "There are /metrics, /healthz and /readyz.\n")

    do_HEAD = do_GET  # noqa: N815 - as above

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as `http.server` declares it
        """Log nothing: requests arrive every few seconds."""

    def _respond_ready(self) -> None:
        idle, limit = self.server.watch.find_idle_seconds(), self.server.ready_seconds
        status = HTTPStatus.OK if idle <= limit else HTTPStatus.SERVICE_UNAVAILABLE
        word = "ready" if idle <= limit else "not ready"
        self._respond(status, f"{word}: progress {idle:.0f} s ago, {limit:g} s allowed\n")

    def _respond(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut_off(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve_metrics(
    watch: RunWatch, host: str, port: int, ready_seconds: float
) -> Iterator[MetricsServer]:
    """Serve the metrics of a run while the block runs.

    Args:
        watch: As for `MetricsServer`, and so are the others.
        host: The same.
        port: The same.
        ready_seconds: The same.
    """
    with MetricsServer(watch, host, port, ready_seconds) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# The file for node_exporter.

RUN_EXIT_CODE = Family("morpheus_run_exit_code", "gauge", "Exit code of the last run.")
RUN_START = Family(
    "morpheus_run_start_timestamp_seconds",
    "gauge",
    "Start of the last run, in seconds since 1970.",
)
RUN_END = Family(
    "morpheus_run_end_timestamp_seconds", "gauge", "End of the last run, in seconds since 1970."
)
RUN_SUCCESS = Family(
    "morpheus_run_last_success_timestamp_seconds",
    "gauge",
    "End of the last run with exit code 0, in seconds since 1970.",
)
RUN_SECONDS = Family("morpheus_run_duration_seconds", "gauge", "Duration of the last run.")


def write_metrics_file(path: Path, watch: RunWatch, exit_code: int) -> None:
    """Write what a run did, for the textfile collector of node_exporter. It is written atomically.

    The file is readable by everyone on this machine, because node_exporter is another user.

    Args:
        path: The file. Its name without suffix becomes the label `run`.
        watch: Has watched the run.
        exit_code: Exit code of the run.

    Raises:
        TransientError: It cannot be written.
    """
    labels, now, run = {"run": path.stem}, time.time(), watch.metrics
    success = now if exit_code == 0 else _read_last_success(path)
    values = {
        RUN_EXIT_CODE: float(exit_code),
        RUN_START: watch.started_at,
        RUN_END: now,
        RUN_SUCCESS: success,
        RUN_SECONDS: now - watch.started_at,
    }
    for name, (text, count) in COUNTS.items():
        values[Family(f"morpheus_run_events_{name}", "gauge", f"{text} Of the last run.")] = count(
            run
        )
    lines = [
        line
        for family, value in values.items()
        if value is not None
        for line in family.render([(labels, value)])
    ]
    with atomic_write(path, private=False) as file:
        file.write("\n".join([*lines, ""]).encode())


def _read_last_success(path: Path) -> float | None:
    """Return the time of the last success that the file of the run before has."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(rf"^{RUN_SUCCESS.name}\{{[^\n]*\}} ([\d.e+]+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])
