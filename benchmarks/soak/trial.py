"""One soak: events are sent while the product is killed and everything around it fails."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from figures.table import Table

from soak import oracle as judge
from soak.events import FIRST, Events, parse_id
from soak.feeds import Feed, FolderFeed
from soak.oracle import Law, Oracle, Row, Tail
from soak.product import (
    CLOCK_JUMPS,
    STOPPED,
    TRAIN,
    Clock,
    Product,
    Surroundings,
    disk_errors,
    fill_command,
)
from soak.proxy import Proxy
from soak.receiver import Receiver, receiving

BATCH_SECONDS = 0.1
"""Time between two batches of events that are sent."""
HISTORY = 80
"""Events of each user to train with."""
TERM_SHARE, DISK_SHARE = 0.1, 0.15
"""Share of lives that end by SIGTERM, and that have a broken disk."""
OUTAGE_SECONDS = 3.0
QUIET_SECONDS = 0.5, 4.0
"""Time between two faults that do not end a life."""
POLL_SECONDS = 0.2
FAULTS = ("kill", "term", "disk", "clock", "input", "receiver", "network")


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        seed: Seed of the events and of the faults.
        kills: Number of times that the product is killed.
        minutes: Time after which no more faults come; None for no limit.
        rate: Events per second.
        users: Number of users.
        faults: Kinds of faults.
        command: The product.
        longest_life: Seconds after which a life has ended; None to measure a start first.
        patience: Seconds to wait for events that have not arrived.
        ignored: Columns that may differ from those of an undisturbed run.
    """

    seed: int
    kills: int
    minutes: float | None
    rate: float
    users: int
    faults: Sequence[str]
    command: str
    longest_life: float | None = None
    patience: float = 120.0
    ignored: frozenset[str] = frozenset()


@dataclass
class Setting:
    """A source, the product that reads it, and where its rows go.

    Attributes:
        folder: Folder for all files.
        feed: The source.
        receiver: Receives rows.
        product: The product.
        has_file: The product writes the file.
        has_receiver: The product sends rows to the receiver.
        tail: The events in the file that it writes, in its present life.
    """

    folder: Path
    feed: Feed
    receiver: Receiver
    product: Product
    has_file: bool = True
    has_receiver: bool = True
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        """Read the file from its start."""
        self.tail = Tail(self.output)

    @classmethod
    def build(
        cls, folder: Path, feed: Feed, receiver: Receiver, plan: Plan, values: Mapping[str, str]
    ) -> Setting:
        """Prepare the command."""
        folder.mkdir(parents=True, exist_ok=True)
        temp = folder / "temp"
        temp.mkdir(exist_ok=True)
        own = {
            "folder": str(folder),
            "state": str(folder / "state.db"),
            "output": str(folder / "rows.jsonl"),
            "receiver": receiver.url,
        }
        words = fill_command(plan.command, {**own, **feed.values, **values})
        # A fault of the disk must not damage the files in which Python caches modules.
        environment = {"TMPDIR": str(temp), "PYTHONDONTWRITEBYTECODE": "1"}
        product = Product(words, folder, feed.environment | environment, folder / "logs")
        sinks = "{output}" in plan.command, "{receiver}" in plan.command
        return cls(folder, feed, receiver, product, *sinks)

    @property
    def output(self) -> Path:
        """The file that the product writes."""
        return self.folder / "rows.jsonl"

    def start(self, surroundings: Surroundings | None = None) -> None:
        """Begin a life of the product."""
        self.receiver.life += 1
        self.tail = Tail(self.output)
        self.product.start(surroundings)

    def missing(self, numbers: set[int]) -> set[int]:
        """Return the events that have not arrived at each sink."""
        missing = set[int]()
        if self.has_file:
            missing |= numbers - self.tail.update()
        if self.has_receiver:
            missing |= numbers - {parse_id(row.get("eventID")) for row in self.accepted()}
        return missing

    def accepted(self) -> list[dict[str, object]]:
        """Return the rows that the receiver has accepted."""
        return [receipt.row for receipt in self.receiver.receipts if receipt.accepted]

    def rows(self) -> list[Row]:
        """Return the rows of the file, or else of the receiver."""
        return [*judge.read_rows(self.output)] if self.has_file else [*self.accepted()]

    def has_rows(self) -> bool:
        """Return whether any row has come."""
        if not self.has_file:
            return bool(self.receiver.receipts)
        return self.output.exists() and self.output.stat().st_size > 0

    def wait_for(self, numbers: set[int], seconds: float) -> float | None:
        """Wait until events have arrived; return the seconds, None if they have not."""
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            if not self.missing(numbers):
                return time.monotonic() - begin
            if not self.product.wait_for(POLL_SECONDS):
                return None
        return None


@dataclass
class Trial:
    """The run of a plan.

    Attributes:
        plan: The plan.
        oracle: What was claimed and is owed.
        setting: The disturbed product.
        proxy: Between the product and its source, if there is one.
        clock: The clock of the product, if it can jump.
        journal: File that notes each fault.
        counts: Number of faults by kind.
    """

    plan: Plan
    oracle: Oracle
    setting: Setting
    proxy: Proxy | None
    clock: Clock | None
    journal: Path
    counts: Counter[str] = field(default_factory=Counter)
    ends: Law = field(default_factory=lambda: Law("SIGTERM ends the product within 40 s"))
    errors: Law = field(default_factory=lambda: Law("no life ends with a traceback"))
    figures: dict[str, float | int | None] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _failed: list[BaseException] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Count a fault, and note it with the time."""
        if not what:
            return
        self.counts[what] += 1
        with self.journal.open("a", encoding="utf-8") as file:
            life = self.setting.product.lives
            file.write(json.dumps({"time": time.time(), "life": life, "what": what}) + "\n")

    def disturb(self) -> None:
        """Send events, and let the product live and die, until the plan is fulfilled."""
        threads = [
            threading.Thread(target=self._guard, args=(work,), daemon=True)
            for work in (self._send, self._break_things)
        ]
        for thread in threads:
            thread.start()
        rng = random.Random(f"{self.plan.seed} lives")  # noqa: S311 - a seed, no secret
        end = time.monotonic() + 60 * (self.plan.minutes or 1e6)
        longest = self.plan.longest_life or self._measure_start()
        try:
            while self.counts["killed"] < self.plan.kills and time.monotonic() < end:
                self._live(rng, longest)
                if self._failed:
                    break
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if self._failed:
            raise self._failed[0]
        missing = self.setting.missing(self.oracle.owed)
        self.figures["events that arrived while there were faults"] = len(self.oracle.owed) - len(
            missing
        )

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the thread is joined
            self._failed.append(error)

    def _send(self) -> None:
        turn = self.oracle.events.turn
        count = max(1, round(self.plan.rate * BATCH_SECONDS / turn)) * turn
        pause = count / self.plan.rate
        due = time.monotonic()
        while not self._over.is_set():
            numbers = self.oracle.claim(count)
            self.setting.feed.send(numbers)
            self.oracle.owe(numbers)
            due = max(due + pause, time.monotonic() - 1)
            self._over.wait(max(0.0, due - time.monotonic()))

    def _break_things(self) -> None:
        rng = random.Random(f"{self.plan.seed} faults")  # noqa: S311 - a seed, no secret
        ways: dict[str, Callable[[random.Random], str]] = {
            "input": self.setting.feed.disturb,
            "receiver": self._break_receiver,
        }
        if self.proxy is not None:
            ways["network"] = self._break_network
        if self.clock is not None:
            ways["clock"] = self._jump
        possible = [ways[name] for name in self.plan.faults if name in ways]
        while possible and not self._over.wait(rng.uniform(*QUIET_SECONDS)):
            self.note(rng.choice(possible)(rng))

    def _break_receiver(self, rng: random.Random) -> str:
        receiver, is_slow = self.setting.receiver, rng.random() < 0.5  # noqa: PLR2004 - as often as not
        receiver.delay, receiver.refuses = (0.5, False) if is_slow else (0.0, True)
        self._over.wait(rng.uniform(0.2, OUTAGE_SECONDS))
        receiver.delay, receiver.refuses = 0.0, False
        return "receiver slow" if is_slow else "receiver refuses"

    def _jump(self, rng: random.Random) -> str:
        assert self.clock is not None  # noqa: S101 - the caller has seen to it
        seconds = rng.choice(CLOCK_JUMPS)
        self.clock.set(seconds)
        return f"clock {seconds:+} s"

    def _break_network(self, rng: random.Random) -> str:
        assert self.proxy is not None  # noqa: S101 - the caller has seen to it
        mode = rng.choice(("slow", "gone"))
        self.proxy.set_mode(mode)
        self._over.wait(rng.uniform(0.2, OUTAGE_SECONDS))
        self.proxy.set_mode("open")
        return f"source {mode}"

    def _measure_start(self) -> float:
        """Return how long a life may be: twice the time from a start to the first row."""
        begin = time.monotonic()
        self.setting.start()
        while not self.setting.has_rows():
            if not self.setting.product.wait_for(0.05):
                raise RuntimeError(f"the product ends: {self.setting.product.log()[-2000:]}")
            if time.monotonic() > begin + self.plan.patience:
                raise RuntimeError(f"no rows come: {self.setting.product.log()[-2000:]}")
        took = time.monotonic() - begin
        self.figures["seconds from a start to the first row"] = took
        self._end_life(kills=True)
        return 2 * took + 1

    def _live(self, rng: random.Random, longest: float) -> None:
        """Start the product, and end it after a random time."""
        draw, surroundings = rng.random(), None
        if "disk" in self.plan.faults and draw < DISK_SHARE:
            surroundings = disk_errors(rng)
        if surroundings is not None:
            self.note(surroundings.name)
        self.setting.start(surroundings)
        lived = self.setting.product.wait_for(rng.uniform(0, longest))
        kills = "term" not in self.plan.faults or rng.random() > TERM_SHARE
        if lived:
            self._end_life(kills=kills or surroundings is not None)
        else:
            self.note("ended by itself" if surroundings else "ended by itself, without a fault")
        self.errors.check(
            holds="Traceback" not in self.setting.product.log(),
            what=f"life {self.setting.product.lives}: {self.setting.product.log()[-1000:]}",
        )

    def _end_life(self, *, kills: bool) -> None:
        product = self.setting.product
        if kills:
            product.kill()
            self.note("killed")
            return
        code = product.stop()
        self.note("terminated")
        self.ends.check(holds=code in STOPPED, what=f"life {product.lives}: exit code {code}")

    def drain(self) -> list[Law]:
        """Let the product catch up, send one more event, and end it."""
        caught_up = Law("without faults, the product catches up")
        fresh = Law("a fresh event gets through")
        if self.clock is not None:
            self.clock.set(0)
        self.setting.start()
        took = self.setting.wait_for(self.oracle.owed, self.plan.patience)
        self.figures["seconds to catch up"] = took
        caught_up.check(holds=took is not None, what=self._why())
        numbers = self.oracle.claim(self.oracle.events.turn)
        self.setting.feed.send(numbers)
        self.oracle.owe(numbers)
        took = self.setting.wait_for(set(numbers), self.plan.patience)
        self.figures["seconds of a fresh event to both sinks"] = took
        fresh.check(holds=took is not None, what=self._why())
        self._end_life(kills=False)
        return [caught_up, fresh]

    def _why(self) -> str:
        missing = sorted(self.setting.missing(self.oracle.owed))
        said = self.setting.product.log()[-1500:]
        return f"{len(missing)} events are missing, the first is {missing[:1]}: {said}"

    def judge(self, calm: Setting | None) -> list[Law]:
        """Check all laws; those of equality need an undisturbed run."""
        setting, laws = self.setting, [self.ends, self.errors]
        if setting.has_file:
            laws += self.oracle.judge_rows("file", setting.rows(), repeats=False)
        if setting.has_receiver:
            laws += self.oracle.judge_rows("http", setting.accepted(), repeats=True)
            laws.append(judge.judge_repeats(setting.receiver.receipts))
        if calm is not None:
            found, right = (self._by_id(each.rows()) for each in (setting, calm))
            laws.append(judge.judge_equal("rows are those of an undisturbed run", found, right))
            states = [judge.read_state(each.folder / "state.db") for each in (setting, calm)]
            laws.append(judge.judge_equal("state is that of an undisturbed run", *states))
        self.figures |= {
            "events": len(self.oracle.owed),
            "starts of the product": self.setting.product.lives,
            "events that http received again": judge.count_repeats(setting.receiver.receipts),
        }
        return laws

    def _by_id(self, rows: Sequence[Row]) -> dict[object, object]:
        kept = [
            {name: value for name, value in row.items() if name not in self.plan.ignored}
            for row in rows
        ]
        return judge.rows_by_id(kept)


def train(folder: Path, events: Events, command: str = TRAIN) -> Path:
    """Train fingerprints of all users, and return their folder.

    Raises:
        RuntimeError: The command fails.
    """
    # Each user has its turns, without bursts.
    plain = replace(events, bursts=False)
    history = FolderFeed(plain, folder / "history")
    history.send(range(FIRST - HISTORY * events.users, FIRST))
    models = folder / "models"
    values = {
        "history": str(history.current),
        "models": str(models),
        "output": str(folder / "trained.jsonl"),
    }
    done = subprocess.run(  # noqa: S603 - our own command
        fill_command(command, values), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"training fails: {done.stderr[-2000:]}")
    return models


def run_calm(trial: Trial, folder: Path, feed: Feed, values: Mapping[str, str]) -> Setting:
    """Give the same events to a product that nobody disturbs.

    Raises:
        RuntimeError: It does not process them.
    """
    with receiving() as receiver:
        calm = Setting.build(folder, feed, receiver, trial.plan, values)
        owed = sorted(trial.oracle.owed)
        for start in range(0, len(owed), 1000):
            feed.send(owed[start : start + 1000])
        calm.start()
        if calm.wait_for(set(owed), trial.plan.patience) is None:
            calm.product.kill()
            raise RuntimeError(f"an undisturbed run fails: {calm.product.log()[-2000:]}")
        calm.product.stop()
    return calm


def tabulate(trial: Trial, laws: Sequence[Law], title: str) -> list[Table]:
    """Return the tables to print."""
    verdicts = Table(f"{title}: laws", ["law", "checked", "broken"])
    for law in laws:
        verdicts.add(law.name, law.checked, len(law.broken))
    faults = Table(f"{title}: faults", ["fault", "times"])
    for name, count in sorted(trial.counts.items()):
        faults.add(name, count)
    figures = Table(f"{title}: figures", ["figure", "value"])
    for name, value in trial.figures.items():
        figures.add(name, value)
    return [verdicts, faults, figures]
