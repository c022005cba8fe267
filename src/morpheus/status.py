"""What a run tells other programs while it runs: a status file, and messages to systemd.

The runtime writes the file with `StatusFile`. Readers, such as `morpheus serve`, decode it as
`Status`. `RunWatch` notices whether a run makes progress. `ServiceNotifier` passes this on to
systemd, which restarts a service that makes none.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import msgspec

from morpheus.core.batch import RunMetrics, Step, StreamStats
from morpheus.core.stage import PipelineOptions, Stage
from morpheus.errors import TransientError
from morpheus.report.view import AlertCounts, RunCounts
from morpheus.storage.atomic import atomic_write
from morpheus.text import escape_control, format_count

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
"""Usual name of the file, in the folder of the outputs."""
WRITE_INTERVAL = 1.0
"""Minimum number of seconds between two writes."""
_MEGABYTE = 1_000_000
POLL_INTERVAL = 1.0
"""Maximum number of seconds between two looks at the progress of a run."""


class SinkStatus(msgspec.Struct, frozen=True):
    """How a sink of an endless run with a state file keeps up.

    Attributes:
        lag_seconds: For how long it has not had all rows; 0 if it has them.
        errors: Number of attempts that have failed.
        last_error: Code of the last error; empty while it takes rows.
    """

    lag_seconds: float
    errors: int = 0
    last_error: str = ""


class StreamStatus(msgspec.Struct, frozen=True):
    """How an endless run goes on.

    Attributes:
        micro_batches: Number of micro-batches with events.
        checkpoints: Number of checkpoints.
        checkpoint_seconds: Seconds that they took.
        outbox_entries: Number of entries that wait for sinks in the state file.
        outbox_bytes: Their size.
        paused: Reading pauses, because the outbox is full, or the models cannot be read.
        source_lag_seconds: Seconds from the event time up to which the source was read until now;
            of the partition that is furthest behind. None if it is not known.
        sinks: How each sink keeps up, by its name and place.
    """

    micro_batches: int
    checkpoints: int
    checkpoint_seconds: float
    outbox_entries: int
    outbox_bytes: int
    paused: bool
    source_lag_seconds: float | None = None
    sinks: dict[str, SinkStatus] = {}

    @classmethod
    def from_stats(cls, stats: StreamStats) -> Self:
        """Make the status of a stream."""
        lags = stats.find_sink_lags()
        return cls(
            stats.micro_batches,
            stats.checkpoints,
            round(stats.checkpoint_seconds, 3),
            stats.outbox_entries,
            stats.outbox_bytes,
            stats.paused,
            max(stats.find_source_lags().values(), default=None),
            {
                name: SinkStatus(round(lags[name], 3), sink.errors, sink.last_error)
                for name, sink in stats.sinks.items()
            },
        )

    def describe(self) -> str:
        """Return which sinks take no rows, and what waits for them; empty if nothing does.

        >>> sinks = {"to-http#1 host": SinkStatus(90.0, 7, "transient")}
        >>> StreamStatus(9, 8, 1.5, 2, 3_000_000, paused=False, sinks=sinks).describe()
        'to-http#1 takes no rows, 3 MB wait for sinks'
        """
        failing = [name.partition(" ")[0] for name, sink in self.sinks.items() if sink.last_error]
        parts = [f"{name} takes no rows" for name in failing]
        if self.outbox_bytes >= _MEGABYTE:
            parts.append(f"{self.outbox_bytes / _MEGABYTE:,.0f} MB wait for sinks")
        if self.paused:
            parts.append("reading pauses")
        return ", ".join(parts)


class Status(msgspec.Struct, frozen=True):
    """Progress of a run.

    Attributes:
        format: Name of the format.
        version: Version of the format.
        running: The run has not ended.
        source: Word of the source.
        user_column: The user column.
        filtered: The pipeline has a `filter`, so its output rows are alerts.
        alerts_per_day: The alert budget of the filter; None without one.
        account: Counts of events so far.
        held: Suppressed events by label of the suppression.
        stream: How an endless run goes on; None for one that ends.
    """

    format: Literal["morpheus-status"]
    version: Literal[1]
    running: bool
    source: str
    user_column: str
    filtered: bool
    alerts_per_day: float | None
    account: RunCounts
    held: dict[str, int] = {}
    stream: StreamStatus | None = None


def read_status(path: Path) -> Status | None:
    """Read a status file. None if there is none, or if it is incomplete or of another format."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None


@dataclass
class StatusFile:
    """Writes the status of a run to a file.

    Attributes:
        path: The file. It is replaced atomically.
        options: Options of the pipeline.
        filters: Its `filter` stages.
        clock: Returns the time in seconds.
    """

    path: Path
    options: PipelineOptions
    filters: Sequence[Stage]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._due = self.clock()

    @classmethod
    def from_stages(cls, path: str, stages: Sequence[Stage]) -> Self:
        """Make the status file of a pipeline whose stages have their options."""
        filters = [stage for stage in stages if stage.name == "filter"]
        return cls(Path(path), stages[0].options, filters)

    def update(self, metrics: RunMetrics, *, running: bool = True) -> None:
        """Write the status of a run that goes on or ends. If that fails, a warning is logged.

        It is no failure of the run: at its end, the state is saved and the outputs are complete.
        """
        try:
            self.write(metrics, running=running)
        except TransientError as error:
            self._due = self.clock() + WRITE_INTERVAL
            ending = "The run goes on." if running else "It does not show the end of the run."
            logger.warning("--status_file: %s %s", error, ending)

    def write(self, metrics: RunMetrics, *, running: bool) -> None:
        """Write the status. A running run writes at most every `WRITE_INTERVAL` seconds."""
        if running and self.clock() < self._due:
            return
        budgets = [
            budget
            for stage in self.filters
            if (budget := getattr(stage, "wanted", None)) is not None
        ]
        status = Status(
            "morpheus-status",
            1,
            running=running,
            source=self.options.source,
            user_column=self.options.userid_column_name,
            filtered=bool(self.filters),
            alerts_per_day=budgets[-1] if budgets else None,
            account=_count_run(metrics),
            held=dict(metrics.suppressed.most_common()),
            stream=None if metrics.stream is None else StreamStatus.from_stats(metrics.stream),
        )
        with atomic_write(self.path) as file:
            file.write(msgspec.json.encode(status))
        self._due = self.clock() + WRITE_INTERVAL


def _count_run(metrics: RunMetrics) -> RunCounts:
    reasons, report, unscored = Counter[str](), metrics.budget_report, metrics.unscored
    for user, reason in metrics.unscored_reasons.items():
        reasons[reason] += unscored[user]
    reasons.update(metrics.more_unscored)
    return RunCounts(
        read=metrics.input.read,
        refused=metrics.input.refused,
        duplicates=metrics.input.duplicates,
        scored=metrics.num_scored,
        unscored=dict(reasons.most_common()),
        training=metrics.training.read,
        rungs=dict(
            Counter(card.training_data_scope for card in metrics.cards.values()).most_common()
        ),
        forecast=None if report is None else report.interval,
        refusals=metrics.input.refusals,
        alerts=None if report is None else AlertCounts.from_report(report),
    )


class RunWatch:
    """Notices whether a run makes progress.

    Progress is whatever the run counts: events and units of the current step, records read, and
    the loop of a stream, which also turns while no events arrive. So a run that hangs makes none,
    even if its threads are alive. Any thread may use it.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_seen: object = None
        self._progressed_at = clock()
        self.started_at = time.time()
        self.metrics = RunMetrics()
        self.step: Step | None = None

    def start(self, metrics: RunMetrics) -> None:
        """Watch the run of these metrics."""
        self.metrics = metrics

    def follow_steps(self, on_step: Callable[[Step], None] | None) -> Callable[[Step], None]:
        """Return what to call with each step that begins. It calls `on_step` as well."""

        def begin(step: Step) -> None:
            self.step = step
            if on_step is not None:
                on_step(step)

        return begin

    def poll(self) -> float:
        """Look at the progress, and return the time of the last one that a look has seen."""
        with self._lock:
            seen = self._look()
            if seen != self._last_seen:
                self._last_seen, self._progressed_at = seen, self._clock()
            return self._progressed_at

    def find_idle_seconds(self) -> float:
        """Return the number of seconds since the last progress."""
        return max(self._clock() - self.poll(), 0.0)

    def describe(self) -> str:
        """Return the current step, and how many events have passed, in one line."""
        step = self.step
        if step is None:
            return "Starting"
        _, events = step.count()
        parts = [format_count(events, "event") if events else "", step.detail()]
        text = ", ".join(filter(None, parts))
        return f"{step.name}: {text}" if text else step.name

    def _look(self) -> object:
        step, metrics = self.step, self.metrics
        counts = None if step is None else step.count()
        loop = None if metrics.stream is None else metrics.stream.progress
        return id(step), counts, metrics.input.read, metrics.training.read, loop


@dataclass
class ServiceNotifier:
    """Tells systemd about a service, as `sd_notify` does: lines in a datagram.

    Attributes:
        address: Address of the socket. A null byte in front means an abstract one.
        watchdog_seconds: systemd restarts the service if it does not hear from it for so long. None
            without a watchdog.
    """

    address: str
    watchdog_seconds: float | None = None
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    _last_status: str = field(default="", repr=False)
    _last_progress: float = field(default=0.0, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Make the notifier of this process. None if systemd, or its like, has not started it."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return None
        seconds = None
        is_own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        with suppress(ValueError):
            seconds = int(environment.get("WATCHDOG_USEC", "")) / 1e6
        if not is_own or (seconds is not None and seconds <= 0):
            seconds = None
        return cls(address.replace("@", "\0", 1) if address[0] == "@" else address, seconds)

    def send(self, *lines: str) -> None:
        """Send lines such as `READY=1`. A service manager that is gone is no error of the run."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(map(escape_control, lines)).encode(), self.address)

    @contextmanager
    def follow(self, watch: RunWatch) -> Iterator[None]:
        """Report a run while the block runs: its start, its progress, and its end."""
        thread = threading.Thread(target=self._report, args=(watch,), daemon=True)
        self.send("READY=1", f"STATUS={watch.describe()}")
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(POLL_INTERVAL)
            self.send("STOPPING=1", "STATUS=Ending")

    def list_news(self, watch: RunWatch) -> list[str]:
        """Return the messages about a run since the last call.

        That is its status, if it has changed, and the watchdog's message, but only after progress.
        """
        lines, status, progress = [], f"STATUS={watch.describe()}", watch.poll()
        if progress != self._last_progress and self.watchdog_seconds is not None:
            lines.append("WATCHDOG=1")
        if status != self._last_status:
            lines.append(status)
        self._last_status, self._last_progress = status, progress
        return lines

    def _report(self, watch: RunWatch) -> None:
        interval = min(POLL_INTERVAL, (self.watchdog_seconds or 4 * POLL_INTERVAL) / 4)
        while not self._stopped.wait(interval):
            lines = self.list_news(watch)
            if lines:
                self.send(*lines)
