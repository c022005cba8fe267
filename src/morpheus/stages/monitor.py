"""`monitor`: how many events have passed, and how fast."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morpheus.core.batch import Batch
from morpheus.core.stage import Requirements, StageContext, Transform, option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TimeSource = Callable[[], float]


@dataclass(frozen=True)
class Monitor(Transform):
    """Show how many events pass here, and how fast.

    Takes and gives anything. The line is shown on a terminal only: in files and pipes it would be
    noise.

    Example: `monitor --description="Scoring rate" --unit=inf`
    """

    name = "monitor"
    takes = (Batch,)
    scope = "global"
    needs = Requirements(rows=False)

    description: str = option("Progress", "What the line begins with.")
    smoothing: float = option(
        0.05,
        "Weight of the latest batch in the speed shown: 0 for the average since the start, 1 for "
        "the latest batch alone.",
        min=0,
        max=1,
    )
    unit: str = option("messages", "What the events are called.")
    delayed_start: bool = option(
        False, "Start the clock with the first batch, not with the run.", flag=True
    )
    log_level: str = option(
        "INFO", "Accepted for old command lines. The line is shown at every level here."
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
        # Output of others to the same terminal is printed above the line.
        shared = sys.stdout.isatty()
        live = Live(meter, console=console, refresh_per_second=4, redirect_stdout=shared)
        context.resources.enter_context(live)
        return meter

    def process(self, batch: Batch, state: RateMeter | None) -> Iterator[Batch]:
        """Count the events of a batch."""
        if state is not None:
            state.add(batch.frame.height)
        yield batch

    def flush(self, state: RateMeter | None) -> Iterator[Batch]:
        """Mark the line as complete."""
        if state is not None:
            state.complete = True
        return iter(())


@dataclass
class RateMeter:
    """Counts events and tells their speed.

    >>> clock = iter([0.0, 2.0, 2.0]).__next__
    >>> meter = RateMeter("Rate", "inf", clock=clock)
    >>> meter.start()
    >>> meter.add(314)
    >>> meter.complete = True
    >>> meter.line()
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
    rate: float | None = field(default=None)

    def start(self) -> None:
        """Start the clock."""
        self.started_at = self.updated_at = self.clock()

    def add(self, events: int) -> None:
        """Count events that have just passed."""
        if self.started_at is None:
            self.start()
        now = self.clock()
        self.count += events
        if now > self.updated_at:
            speed = events / (now - self.updated_at)
            old = speed if self.rate is None else self.rate
            self.rate = old + self.smoothing * (speed - old)
        self.updated_at = now

    def render(self) -> str:
        """The line shown: control characters are written out, none reaches the terminal."""
        now = self.clock()
        elapsed = now - (now if self.started_at is None else self.started_at)
        average = self.count / elapsed if elapsed > 0 else 0.0
        smoothed = self.rate if self.smoothing and not self.complete else None
        done = "[Complete]" if self.complete else ""
        text = (
            f"{self.description}{done}: {self.count} {self.unit} "
            f"[{_format_duration(elapsed)}, {smoothed or average:.1f} {self.unit}/s]"
        )
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)

    def __rich__(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - as above

        return Text(self.render(), no_wrap=True, overflow="ellipsis")


def _format_duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> _format_duration(61), _format_duration(3661)
    ('01:01', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _stderr_console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(stderr=True)
