"""Fingerprints on disk: size, and time to open a large model store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from figures.table import Table
from msgspec import structs

from morpheus.columns import TIME
from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelIndex, commit_index, put_model
from speed.logs import COLUMNS, USER, fleet
from speed.meter import run
from speed.scale import Scale
from speed.training import histories

OPEN = """
import sys, time
from pathlib import Path
from morpheus.models.store import ModelStore
begin = time.perf_counter()
store = ModelStore.open(Path(sys.argv[1]))
opened = time.perf_counter()
store.load(sys.argv[2])
loaded = time.perf_counter()
status = Path("/proc/self/status").read_text()
print(opened - begin, loaded - opened, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def tables(scale: Scale) -> Iterator[Table]:
    """Return bytes, then seconds."""
    logs = fleet(scale.scratch, 12, rate=scale.rich, forms=("parquet",))
    sizes = Table("Size of a fingerprint", ["rows", "users", "median bytes", "largest, bytes"])
    folder = scale.scratch / "store"
    cards: list[ModelCard] = []
    for rows in (300,) if scale.quick else (300, 1000, 5000):
        users = histories(logs, rows)
        learnt = [
            fit_fingerprint(user[USER][0], user, COLUMNS, times=user[TIME], seed=1)
            for user in users
        ]
        last = learnt[-1]
        cards = [put_model(folder, each) for each in learnt]
        written = [card.size for card in cards]
        sizes.add(rows, len(users), int(median(written)), max(written))
    yield sizes
    opened = Table(
        "Opening a model store in a new process",
        ["users", "index, MB", "open, s", "first fingerprint, ms", "peak MB"],
        note="A few fingerprints under many names, without imports. Medians.",
    )
    for many in (1_000, 100_000):
        names = [f"user-{number:06d}" for number in range(many)]
        known = {
            name: structs.replace(cards[n % len(cards)], user=name) for n, name in enumerate(names)
        }
        # The file that is read must have the name of its user.
        own = replace(last, card=structs.replace(last.card, user=names[-1]))
        known[names[-1]] = put_model(folder, own)
        commit_index(folder, ModelIndex.from_cards(known))
        index = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
        shown = [
            run([sys.executable, "-c", OPEN, str(folder), names[-1]]).shown
            for _ in range(scale.runs)
        ]
        seconds, first, peak = (
            median(column) for column in zip(*[map(float, s.split()) for s in shown], strict=True)
        )
        opened.add(many, index, seconds, first * 1e3, peak)
    yield opened
