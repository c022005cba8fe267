"""Growth of the cost with users and with events."""

from __future__ import annotations

from collections.abc import Iterator

from figures.table import Table

from speed import chain
from speed.logs import fleet
from speed.meter import Run
from speed.scale import Scale

RATE = 56.0
"""Events per user and day: a hundred users have about 100,000 in the scored days."""
HEAVY = 100 * RATE
"""Events per day of a single user with as many as those hundred."""


def tables(scale: Scale) -> Iterator[Table]:
    """Measure by users, then by events, then by the events of one user."""
    yield by_users(scale)
    yield by_events(scale)
    yield of_one_user(scale)


def by_users(scale: Scale) -> Table:
    """Train and score."""
    table = Table(
        "Training and scoring, by number of users (42 days of training, 18 days of scoring; "
        "two threads)",
        ["users", "events", "wall s", "CPU s", "CPU ms per user", "CPU µs per event", "peak MB"],
    )
    for users in (1, 20) if scale.quick else (1, 10, 100, 1000, 10_000)[: 4 + scale.full]:
        logs = fleet(scale.scratch, users)
        trained = [f"--train_data_glob={logs.folder / 'json/training'}"]
        source = str(logs.folder / "json/scored")
        run = chain.pipeline(source, trained, scale.scratch / "growth.csv", threads=2)
        events = logs.training + logs.scored
        each = (run.cpu / users * 1e3, run.cpu / events * 1e6)
        table.add(users, events, run.wall, run.cpu, *each, run.peak)
    return table


def by_events(scale: Scale) -> Table:
    """Score with loaded fingerprints."""
    users = 20 if scale.quick else 100
    table = Table(
        f"Scoring with {users} loaded fingerprints, by number of events (two threads, from "
        "`.json.gz`)",
        ["events", "wall s", "CPU s", "CPU µs per event", "peak MB"],
    )
    few = fleet(scale.scratch, users, rate=RATE, forms=("json",))
    models = scale.scratch / "models-growth"
    chain.learn(few, models)
    days = few.folder / "json/scored/AWSLogs/*/CloudTrail/*/2025/04/1[45]/*.json.gz"
    report(table, chain.score(days, models, threads=2))
    report(table, chain.score(few.folder / "json/scored", models, threads=2))
    for copies in () if scale.quick else (10, 100):
        logs = fleet(scale.scratch, users, rate=RATE, copies=copies, forms=("json",))
        report(table, chain.score(logs.folder / "json/scored", models, threads=2))
    return table


def of_one_user(scale: Scale) -> Table:
    """Score a user whose events do not fit in memory."""
    table = Table(
        "Scoring one user with a loaded fingerprint, by number of events (one thread, from "
        "`.json.gz`)",
        ["events", "wall s", "CPU s", "CPU µs per event", "peak MB"],
    )
    models = scale.scratch / "models-one"
    chain.learn(fleet(scale.scratch, 1, rate=RATE, forms=("json",)), models)
    for copies in (1,) if scale.quick else (1, 10):
        logs = fleet(scale.scratch, 1, rate=HEAVY, copies=copies, forms=("json",))
        report(table, chain.score(logs.folder / "json/scored", models, threads=1))
    return table


def report(table: Table, run: Run) -> None:
    """Add a run, with the number of events that it reports."""
    line = next(line for line in run.shown.splitlines() if line.startswith("Input"))
    events = int(line.split()[1].replace(",", ""))
    table.add(events, run.wall, run.cpu, run.cpu / events * 1e6, run.peak)
