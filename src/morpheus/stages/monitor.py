"""`monitor`: show how many events have passed, and how fast."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from morpheus.core.batch import Batch
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.text import format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TimeSource = Callable[[], float]


@dataclass(frozen=True)
class Monitor(Transform):
    """Show how many events pass here, and how fast.

    Takes and gives events at any point of the pipeline. The line is shown on a terminal only, not
    in files and pipes.

    Example: `monitor --description="Scoring rate" --unit=inf`
    """

    name = "monitor"
    takes = (Batch,)
    scope = "global"
    needs = Requirements(rows=False)

    description: str = option("Progress", "Text at the start of the line.")
    smoothing: float = option(
        0.05,
        "Weight of the latest batch in the rate: 0 is the average since the start, 1 is the latest "
        "batch only.",
        min=0,
        max=1,
    )
    unit: str = option("messages", "Name of the events.")
    delayed_start: bool = option(
        False, "Start the clock at the first batch, not at the start of the run.", flag=True
    )
    log_level: str = option(
        "INFO", "Accepted for old command lines; no effect. The line is shown at every log level."
    )

    def open(self, context: StageContext) -> RateMeter | None:
        """Show the line if standard error is a terminal."""
        console = _stderr_console()
        if not console.is_terminal:
            return None
        from rich.live import Live  # noqa: PLC0415 - 40 ms that only a terminal needs

        meter = RateMeter(self.description, self.unit, self.smoothing)
        if not self.delayed_start:
            meter.start()
        # Print other output to the same terminal above the line.
        shared = sys.stdout.isatty()
        live = Live(meter, console=console, refresh_per_second=4, redirect_stdout=shared)
        context.resources.enter_context(live)
        return meter

    def process(self, batch: Batch, state: RateMeter | None) -> Iterator[Batch]:
        """Count the events of a batch."""
        if state is not None:
            state.add(batch.table.height)
        yield batch

    def flush(self, state: RateMeter | None) -> Iterator[Batch]:
        """Mark the line as complete."""
        if state is not None:
            state.complete = True
        return iter(())


class RateMeter(msgspec.Struct):
    """Counts events and measures their rate.

    >>> clock = iter([0.0, 2.0, 2.0]).__next__
    >>> meter = RateMeter("Rate", "inf", clock=clock)
    >>> meter.start()
    >>> meter.add(314)
    >>> meter.complete = True
    >>> meter.render()
    'Rate[Complete]: 314 inf [00:02, 157.0 inf/s]'
    """

    description: str
    unit: str
    smoothing: float = 0.05
    clock: TimeSource = time.monotonic
    complete: bool = False
    count: int = 0
    started_at: float | None = None
    updated_at: float = 0.0
    rate: float | None = msgspec.field(default=None)

    def start(self) -> None:
        """Start the clock."""
        self.started_at = self.updated_at = self.clock()

    def add(self, events: int) -> None:
        """Count events that have passed since the last call."""
        if self.started_at is None:
            self.start()
        now = self.clock()
        self.count += events
        if now > self.updated_at:
            rate = events / (now - self.updated_at)
            old = rate if self.rate is None else self.rate
            self.rate = old + self.smoothing * (rate - old)
        self.updated_at = now

    def render(self) -> str:
        """Return the line, with control characters escaped."""
        now = self.clock()
        elapsed = now - (now if self.started_at is None else self.started_at)
        average = self.count / elapsed if elapsed > 0 else 0.0
        smoothed = self.rate if self.smoothing and not self.complete else None
        done = "[Complete]" if self.complete else ""
        text = (
            f"{self.description}{done}: {self.count} {self.unit} "
            f"[{format_duration(elapsed)}, {smoothed or average:.1f} {self.unit}/s]"
        )
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)

    def __rich__(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - as above

        return Text(self.render(), no_wrap=True, overflow="ellipsis")


def _stderr_console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(stderr=True)
