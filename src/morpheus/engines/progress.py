"""How far a cluster has come, for whoever waits at the prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import nlargest
from typing import TYPE_CHECKING

from morpheus.quoting import escape_control

if TYPE_CHECKING:
    from rich.text import Text

MAX_SLOWEST = 3
Clock = Callable[[], float]


@dataclass
class Progress:
    """How far a cluster has come.

    Attributes:
        tasks: How many there are.
        retries: Tells how often one had to be begun again.
        clock: Tells the time.
        tasks_done: How many tasks are done.
        users: How many users are done.
        events: How many events of theirs came out.
        slowest_users: Users who took longest, and their seconds.

    >>> clock = iter([0.0, 2.0]).__next__
    >>> progress = Progress(3, lambda: 1, clock)
    >>> progress.add({"ann": 0.25, "bob": 1.5}, events=300)
    >>> progress.line()
    '1 of 3 tasks, 2 users, 150 events/s, 1 begun again; slowest: bob 1.5 s, ann 0.2 s'
    """

    tasks: int
    retries: Callable[[], int]
    clock: Clock = time.monotonic
    tasks_done: int = 0
    users: int = 0
    events: int = 0
    slowest_users: list[tuple[str | None, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, seconds: Mapping[str | None, float], events: int) -> None:
        """Count a task's users and events."""
        self.tasks_done += 1
        self.users += len(seconds)
        self.events += events
        known = [*self.slowest_users, *seconds.items()]
        self.slowest_users = nlargest(MAX_SLOWEST, known, key=lambda one: (one[1], one[0] or ""))

    def status_line(self) -> str:
        """The line shown: control characters are written out, none reaches the terminal."""
        elapsed = self.clock() - self.started
        pace = self.events / elapsed if elapsed else 0.0
        again = f", {self.retries():,} begun again" if self.retries() else ""
        text = f"{self.tasks_done:,} of {self.tasks:,} tasks, {self.users:,} users, {pace:,.0f} events/s"
        names = ", ".join(f"{user or '(no user)'} {took:.1f} s" for user, took in self.slowest_users)
        return escape_control(f"{text}{again}" + (f"; slowest: {names}" if names else ""))

    def __rich__(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - only a terminal needs it

        return Text(self.status_line(), no_wrap=True, overflow="ellipsis")

    @contextmanager
    def display(self) -> Iterator[None]:
        """Show the line on a terminal, and nowhere else, until the block ends."""
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.live import Live  # noqa: PLC0415 - as above

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        with Live(self, console=console, refresh_per_second=4, transient=True):
            yield
