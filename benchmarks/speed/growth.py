"""Growth of the cost with users and with events.

With `--full`, up to 100,000 users, and up to 10^7 events from JSON and 10^8 from Parquet. That
takes hours and 20 GB of disk, mostly to make the logs. With `--keep FOLDER`, logs and fingerprints
stay in that folder, and a later run goes on with them.
"""

from __future__ import annotations

from collections.abc import Iterator

from figures.table import Table

from speed import chain
from speed.logs import Logs, fleet
from speed.meter import Run
from speed.scale import Scale

RATE = 56.0
"""Events per user and day: a hundred users have about 100,000 in the scored days."""
HEAVY = 100 * RATE
"""Events per day of a single user with as many as those hundred."""
USERS = {1: 22.0, 10: 22.0, 100: 22.0, 1000: 22.0, 10_000: 22.0, 100_000: 1.0}
"""Events per user and day, by number of users. The largest fleet has few, to fit on a disk."""
COPIES = {"json": (1, 10, 100), "parquet": (1, 10, 100, 1000)}
"""Copies of about 100,000 events each; the last ones with `--full` only."""


def tables(scale: Scale) -> Iterator[Table]:
    """Measure by users, then by events, then by the events of one user."""
    yield by_users(scale)
    yield from by_events(scale)
    yield of_one_user(scale)


def by_users(scale: Scale) -> Table:
    """Train and score."""
    table = Table(
        "Training and scoring, by number of users (42 days of training, 18 days of scoring; "
        "two threads)",
        ["users", "events", "wall s", "CPU s", "CPU ms per user", "CPU µs per event", "peak MB"],
    )
    for users in (1, 20) if scale.quick else list(USERS)[: 6 if scale.full else 4]:
        logs = fleet(scale.scratch, users, rate=USERS.get(users, 22.0), forms=("json",))
        trained = [f"--train_data_glob={logs.folder / 'json/training'}"]
        source = str(logs.folder / "json/scored")
        run = chain.pipeline(source, trained, scale.scratch / "growth.csv", threads=2)
        events = logs.training + logs.scored
        each = (run.cpu / users * 1e3, run.cpu / events * 1e6)
        table.add(users, events, run.wall, run.cpu, *each, run.peak)
    return table


def by_events(scale: Scale) -> Iterator[Table]:
    """Score with loaded fingerprints, from 10,000 events on, from JSON and from Parquet."""
    users = 20 if scale.quick else 100
    few = fleet(scale.scratch, users, rate=RATE, forms=("json", "parquet"))
    models = scale.scratch / f"models-growth-{users}"
    if not (models / "store.json").exists():
        chain.learn(few, models)
    for form, copies in COPIES.items():
        suffix = {"json": "json.gz"}.get(form, form)
        table = Table(
            f"Scoring with {users} loaded fingerprints, by number of events (two threads, from "
            f"`.{suffix}`)",
            ["events", "wall s", "CPU s", "CPU µs per event", "peak MB"],
        )
        report(table, chain.score(find_two_days(few, form), models, threads=2))
        for number in copies[:1] if scale.quick else copies[: None if scale.full else -1]:
            logs = make_copies(scale, users, number, form)
            report(table, chain.score(logs.folder / form / "scored", models, threads=2))
        yield table


def find_two_days(logs: Logs, form: str) -> str:
    """Return a glob for the logs of two days."""
    if form == "parquet":
        return str(logs.folder / "parquet/scored/2025-04-1[45].parquet")
    return str(logs.folder / "json/scored/AWSLogs/*/CloudTrail/*/2025/04/1[45]/*.json.gz")


def make_copies(scale: Scale, users: int, copies: int, form: str) -> Logs:
    """Write copies of the scored days.

    A thousand copies of 18 days would end decades later, so each of a hundred has ten times as many
    events.
    """
    many = copies > COPIES["json"][-1]
    rate, copies = (RATE * 10, copies // 10) if many else (RATE, copies)
    return fleet(scale.scratch, users, rate=rate, copies=copies, forms=(form,))


def of_one_user(scale: Scale) -> Table:
    """Score a user whose events do not fit in memory."""
    table = Table(
        "Scoring one user with a loaded fingerprint, by number of events (one thread, from "
        "`.json.gz`)",
        ["events", "wall s", "CPU s", "CPU µs per event", "peak MB"],
    )
    models = scale.scratch / "models-one"
    if not (models / "store.json").exists():
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
    print(table.markdown().splitlines()[-1], flush=True)  # a run may take an hour
