"""Soak a stream: `python benchmarks/soak [--source folder|sqs|kafka] [--kills N] [--seed S]`.

Prints tables of laws, faults and figures. The exit code is 1 if a law is broken; the folder with
all files is then kept, and named.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from soak.events import FIRST, Events  # noqa: E402 - the line above finds it
from soak.feeds import (  # noqa: E402 - the same
    Feed,
    FolderFeed,
    KafkaFeed,
    SqsFeed,
    broker,
    object_store,
)
from soak.oracle import SHOWN, Law, Oracle  # noqa: E402 - the same
from soak.product import (  # noqa: E402 - the same
    FIU,
    SOURCES,
    STREAM,
    Clock,
    find_libraries,
)
from soak.proxy import Proxy, proxying  # noqa: E402 - the same
from soak.receiver import receiving  # noqa: E402 - the same
from soak.trial import FAULTS, Plan, Setting, Trial, run_calm, tabulate, train  # noqa: E402 - the same

OBJECT_EVENTS = 20
"""Events in an object of a bucket, all of one user."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Kill and disturb a stream; nothing may be lost.")
    parser.add_argument("--source", choices=SOURCES, default="folder", help="what is read")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--minutes", type=float, help="end the faults after this time")
    parser.add_argument("--seed", type=int, default=1, help="seed of events and faults")
    parser.add_argument("--rate", type=float, default=100.0, help="events per second")
    parser.add_argument("--users", type=int, default=20, help="number of users")
    parser.add_argument(
        "--faults", default=",".join(FAULTS), help=f"kinds of faults (default: {','.join(FAULTS)})"
    )
    parser.add_argument("--longest_life", type=float, help="seconds; default: measured")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to catch up")
    parser.add_argument("--command", help="command to test; see docs/soak.md")
    parser.add_argument("--brokers", help="Kafka brokers of your own; default: noida-db")
    parser.add_argument(
        "--ignore",
        default="_index_",
        help="columns that may differ from those of an undisturbed run (default: _index_, the "
        "position in what was read together)",
    )
    parser.add_argument(
        "--no_comparison", action="store_true", help="no undisturbed run to compare with"
    )
    parser.add_argument("--evidence", type=Path, help="folder to keep all files in")
    return parser.parse_args()


def make_plan(given: argparse.Namespace) -> Plan:
    """Return the plan, without faults whose library is missing."""
    faults = given.faults.split(",")
    if unknown := [name for name in faults if name not in FAULTS]:
        sys.exit(f"--faults: `{unknown[0]}` is unknown. Give some of {', '.join(FAULTS)}.")
    if "disk" in faults and not find_libraries(FIU):
        print("No fault `disk`: install Debian's package fiu-utils.", flush=True)
        faults.remove("disk")
    return Plan(
        seed=given.seed,
        kills=given.kills,
        minutes=given.minutes,
        rate=given.rate,
        users=given.users,
        faults=faults,
        command=given.command or STREAM.replace("{source}", SOURCES[given.source]),
        longest_life=given.longest_life,
        patience=given.patience,
        ignored=frozenset(filter(None, given.ignore.split(","))),
    )


@dataclass
class Sources:
    """The sources of the disturbed and of the undisturbed product, and a proxy to the former."""

    work: Feed
    calm: Feed
    proxy: Proxy | None = None


@contextmanager
def open_sources(given: argparse.Namespace, events: Events, folder: Path) -> Iterator[Sources]:
    """Open the sources."""
    if given.source == "folder":
        work, calm = (FolderFeed(events, folder / name / "input") for name in ("work", "calm"))
        yield Sources(work, calm)
        return
    with ExitStack() as stack:
        if given.source == "sqs":
            port = stack.enter_context(object_store(folder))
            proxy = stack.enter_context(proxying("127.0.0.1", port))
            queue = SqsFeed(events, port, "work", proxy.port)
            yield Sources(queue, SqsFeed(events, port, "calm", port), proxy)
            return
        address, pid = given.brokers, 0
        if address is None:
            address, pid = stack.enter_context(broker(folder / "broker"))
        topics = [f"soak-{given.seed}-{name}" for name in ("work", "calm")]
        first, second = (KafkaFeed(events, address, topic, pid) for topic in topics)
        yield Sources(first, second)


def soak(given: argparse.Namespace, folder: Path) -> list[Law]:
    """Run it, print the tables, and return the laws."""
    plan = make_plan(given)
    # A queue has no order. So each user is in one object, as far as there are users enough.
    turn = OBJECT_EVENTS if given.source == "sqs" else 1
    events = Events(plan.seed, plan.users, turn, bursts=turn == 1)
    values = {"models": str(train(folder, events))} if "{models}" in plan.command else {}
    with open_sources(given, events, folder) as sources, receiving() as receiver:
        clock = Clock.build(folder) if "clock" in plan.faults else None
        setting = Setting.build(folder / "work", sources.work, receiver, plan, values)
        if clock is not None:
            setting.product.environment.update(clock.environment)
        oracle = Oracle(events, FIRST, FIRST)
        trial = Trial(plan, oracle, setting, sources.proxy, clock, folder / "faults.jsonl")
        try:
            trial.disturb()
            laws = trial.drain()
        finally:
            setting.product.kill()
        compares = not given.no_comparison and has_one_order(plan.users, turn, len(oracle.owed))
        calm = run_calm(trial, folder / "calm", sources.calm, values) if compares else None
        laws += trial.judge(calm)
    title = f"{given.source}, seed {given.seed}"
    for table in tabulate(trial, laws, title):
        print(table.markdown(), flush=True)
    return laws


def has_one_order(users: int, turn: int, events: int) -> bool:
    """Return whether the events of each user arrive in one order; if not, say what to do.

    Args:
        users: Number of users.
        turn: Events of an object of a queue, which keeps no order of objects; 1 elsewhere.
        events: Number of events.
    """
    if turn == 1 or events <= users * turn:
        return True
    print(
        "Users have events in several objects, and a queue keeps no order: the rows are not "
        f"compared with those of an undisturbed run. Give --users={-(-events // turn)} or more, or "
        "a smaller --rate.",
        flush=True,
    )
    return False


def main() -> None:
    """Parse the command line, soak, and print."""
    given = parse()
    folder = given.evidence or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    laws = soak(given, folder)
    broken = [law for law in laws if law.broken]
    for law in broken:
        print(f"Broken: {law.name}")
        for example in law.broken[:SHOWN]:
            print(f"  {example[:1500]}")
    if broken:
        sys.exit(f"The evidence is in {folder}.")
    if given.evidence is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
