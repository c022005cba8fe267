"""Many users known, few of them active: resident memory, and size of the state."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from figures.table import Table
from soak.events import USER_COLUMN
from soak.oracle import Tail
from soak.product import Product, fill_command

from stream.log import STRANGE_EVERY, Log, make_models, write_columns
from stream.rate import DAYS, THRESHOLD, Memory
from stream.scale import Scale

COMMAND = (
    f"morpheus run --num_threads=1 pipeline-ae --userid_column_name={USER_COLUMN} "
    "{columns} --state={state} from-cloudtrail --input_glob={input}/*.jsonl --watch_directory=true "
    "--batch_timeout=0.2 train-ae --pretrained_filename={models} "
    "preprocess inf-pytorch add-scores --label=risk filter --label=risk --threshold={threshold} "
    "serialize to-file --filename={output} --overwrite"
)
EVENTS_BEFORE, EVENTS_AFTER = 50, 10
"""Events of each active user, before and after the other users become known."""
BATCH = 5
"""Events of each user in a file. There is one file at a time, so users come again and again."""
PATIENCE = 600.0
"""Seconds without a new alert after which a measurement is given up."""
WANTED_MB, WANTED_KB = 1500, 16


def tables(scale: Scale) -> Iterator[Table]:
    """Give active users a state, add users that are only known, and go on."""
    folder = scale.scratch / "users"
    (folder / "input").mkdir(parents=True, exist_ok=True)
    models, state = make_models(folder, scale.active), folder / "state.db"
    output = folder / "alerts.jsonl"
    values = {"input": str(folder / "input"), "models": str(models), "state": str(state)}
    values["columns"] = write_columns(folder)
    words = fill_command(COMMAND, values | {"output": str(output), "threshold": THRESHOLD})
    product = Product(words, folder, {}, folder / "logs")
    span = scale.active * (EVENTS_BEFORE + EVENTS_AFTER)
    log = Log(scale.active, DAYS * 86_400 / span)
    try:
        end = scale.active * EVENTS_BEFORE
        few = process(product, log, folder, 0, end)
        sizes = user_sizes(state)
        add_known(state, scale.known)
        many = process(product, log, folder, end, span)
    finally:
        product.kill()
    kb = median(sizes) / 1024
    table = Table(
        f"{scale.known:,} users known, {scale.active:,} of them active",
        ["figure", "value", "wanted", "value / wanted"],
        note=f"Each active user has {EVENTS_BEFORE} events, and then {EVENTS_AFTER} more. The "
        "states of users that are only known are copies of those of active ones.",
    )
    table.add("peak memory with active users alone, MB", few, None, None)
    table.add("peak memory with all users known, MB", many, WANTED_MB, many / WANTED_MB)
    table.add("state of an active user, median, KB", kb, WANTED_KB, kb / WANTED_KB)
    table.add("state of an active user, largest, KB", max(sizes) / 1024, None, None)
    table.add("state file, MB", state.stat().st_size / 1e6, None, None)
    yield table


def process(product: Product, log: Log, folder: Path, first: int, end: int) -> float:
    """Start the product, give it events, stop it, and return its peak memory in MB.

    Raises:
        RuntimeError: The product ends, or no alerts come.
    """
    product.start()
    watch, tail = Memory(product.pid), Tail(folder / "alerts.jsonl")
    watch.start()
    for start in range(first, end, size := BATCH * log.users):
        last = min(start + size, end)
        hidden = folder / "writing"
        hidden.write_bytes(b"".join(log.line(number) for number in range(start, last)))
        hidden.rename(folder / "input" / f"{start:012}.jsonl")
    wanted = (end - 1) // STRANGE_EVERY * STRANGE_EVERY
    deadline, known = time.monotonic() + PATIENCE, 0
    while wanted not in (found := tail.update()):
        if len(found) > known:
            deadline, known = time.monotonic() + PATIENCE, len(found)
        if not product.wait_for(0.2) or time.monotonic() > deadline:
            raise RuntimeError(f"alerts are missing: {product.log()[-2000:]}")
    product.stop()
    watch.stop()
    return max(held for _, held in watch.samples)


def user_sizes(state: Path) -> list[int]:
    """Return the bytes of state of each user."""
    with closing(sqlite3.connect(state)) as database:
        rows = database.execute(
            "SELECT SUM(LENGTH(data)) FROM states WHERE user != '' GROUP BY user"
        )
        return [size for (size,) in rows]


def add_known(state: Path, users: int) -> None:
    """Copy the states of users to other names, until there are enough users.

    Names of one copy follow each other, so that the table grows at its end.
    """
    with closing(sqlite3.connect(state)) as database:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-200000"):
            database.execute(f"PRAGMA {setting}")
        query = "CREATE TEMP TABLE active AS SELECT * FROM states WHERE user != '' ORDER BY user"
        database.execute(query)
        [(active,)] = database.execute("SELECT COUNT(DISTINCT user) FROM active")
        for copy in range(1, users // active):
            database.execute(
                "INSERT INTO states SELECT stage, ? || user, data, saved FROM active",
                [f"=~{copy:06}"],
            )
        database.commit()
