"""The model store: publishing, promoting, rolling back, opening, and a damaged fingerprint."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
from figures.table import Table
from msgspec import structs
from speed.logs import COLUMNS, USER, fleet
from speed.meter import run

from morpheus.columns import TIME
from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.models.versions import CHAMPION, ModelVersion, NewVersion, VersionedStore
from stream.scale import Scale

OPEN = """
import sys, time
from pathlib import Path
from morpheus.models.versions import open_models
used = time.process_time()
begin = time.perf_counter()
store = open_models(sys.argv[1])
opened = time.perf_counter()
used = time.process_time() - used
store.load(sys.argv[2])
loaded = time.perf_counter()
status = Path("/proc/self/status").read_text()
print(opened - begin, used, loaded - opened, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""
CHANGED_USERS, LARGE_STORE_USERS = 100, 100_000
CHANGED_SHARE = 20
"""One user in this number is trained again."""


def tables(scale: Scale) -> Iterator[Table]:
    """Return seconds of each operation, then of opening a store."""
    some = _fingerprints(scale)
    folder, users = scale.scratch / "store", scale.users
    store = VersionedStore.open(folder)
    yield _operations(store, some, users)
    yield _damaged(store, users)
    yield _opened(scale, folder, some, users)


def _fingerprints(scale: Scale) -> list[Fingerprint]:
    """Train the fingerprints of a few users."""
    logs = fleet(scale.scratch, 12, rate=3, forms=("parquet",))
    frames = [rows for _, rows in logs.history.group_by(USER, maintain_order=True)]
    frames = sorted(frames, key=lambda rows: -rows.height)[:6]
    return [
        fit_fingerprint(rows[USER][0], rows.drop(TIME), COLUMNS, times=rows[TIME], seed=1)
        for rows in map(_text, frames)
    ]


def _text(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.exclude(TIME).cast(pl.String))


def _name(number: int) -> str:
    return f"user-{number:06d}"


def _under_many_names(
    some: list[Fingerprint], users: int, seed: int, every: int = 1
) -> Iterator[Fingerprint]:
    """Yield the fingerprints of many users: a few, under many names."""
    for number in range(0, users, every):
        model = some[number % len(some)]
        yield replace(model, card=structs.replace(model.card, user=_name(number), seed=seed))


def _operations(store: VersionedStore, some: list[Fingerprint], users: int) -> Table:
    table = Table(
        f"Versions of {users:,} users, in a folder",
        ["operation", "seconds", "written, MB"],
        note="A few fingerprints under many names. Writing is synced; one process, one disk.",
    )
    before = 0.0

    def measure(name: str, do: Callable[[], object]) -> None:
        nonlocal before
        begin = time.perf_counter()
        do()
        seconds, size = time.perf_counter() - begin, _size(Path(str(store.folder)))
        table.add(name, seconds, size - before)
        before = size

    few = [_name(number) for number in range(0, users, max(1, users // CHANGED_USERS))]
    measure("publish all", lambda: store.publish(_under_many_names(some, users, 1)))
    measure(
        f"publish 1 user in {CHANGED_SHARE}",
        lambda: store.publish(_under_many_names(some, users, 2, CHANGED_SHARE), alias=CHAMPION),
    )
    measure("publish all as candidate", lambda: store.publish(_under_many_names(some, users, 3)))
    measure("promote", store.promote)
    measure("roll back", store.rollback)
    measure(f"promote {len(few)} users", lambda: store.promote(few))
    measure(f"roll back {len(few)} users", lambda: store.rollback(few))
    measure("open, load one user", lambda: store.load(_name(1)))
    return table


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _damaged(store: VersionedStore, users: int) -> Table:
    """Damage the newest fingerprint of one user, and load those of all."""
    number = store.promote()
    version = store.open_version(number)
    user = _name(users // 2)
    placed = version.placed[user]
    pack = Path(str(store.folder)) / "packs" / f"{placed.pack}.pack"
    with pack.open("r+b") as file:
        file.seek(placed.start + 100)
        file.write(b"\xff\xff\xff\xff")
    logging.disable(logging.WARNING)
    begin = time.perf_counter()
    loaded = _load_all(store.open_version(), users)
    seconds = time.perf_counter() - begin
    logging.disable(logging.NOTSET)
    table = Table(
        f"Loading all users of version {number}, one of them damaged",
        ["users", "loaded", "of the version before", "seconds"],
    )
    table.add(users, *loaded, seconds)
    return table


def _load_all(version: ModelVersion, users: int) -> tuple[int, int]:
    """Return how many users were loaded, and how many of them from the version before."""
    found = [version.load(_name(number)) for number in range(users)]
    return sum(each is not None for each in found), len(version.replaced)


def _opened(scale: Scale, folder: Path, some: list[Fingerprint], users: int) -> Table:
    table = Table(
        "Opening a store in a new process",
        ["users", "indexes, MB", "open, s", "CPU, s", "first fingerprint, ms", "peak MB"],
        note="Without imports. The larger store has the cards of all users, and few fingerprints.",
    )
    many = 10 * users if scale.quick else LARGE_STORE_USERS
    large = scale.scratch / "large"
    _publish_cards(VersionedStore.open(large), some, many)
    for place, count in ((folder, users), (large, many)):
        shown = run([sys.executable, "-c", OPEN, str(place), _name(0)]).shown
        seconds, cpu, first, peak = map(float, shown.split())
        table.add(count, _size(place / "indexes"), seconds, cpu, first * 1e3, peak)
    return table


def _publish_cards(store: VersionedStore, some: list[Fingerprint], users: int) -> None:
    """Publish the cards of many users, with the fingerprints of a few of them."""
    store.publish(_under_many_names(some, len(some), 1))
    few = list(store.open_version().placed.values())
    placed = [
        structs.replace(each, card=structs.replace(each.card, user=_name(number)))
        for number, each in ((number, few[number % len(few)]) for number in range(users))
    ]
    store.publish_placed(NewVersion(placed, relabels=True), CHAMPION)
