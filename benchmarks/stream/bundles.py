"""Micro-batches with few events of many users: the cost of a user's batch, by pipeline.

`python benchmarks/stream --only bundles --old TREE` measures another tree too, such as a worktree
of an earlier commit. As a script, it measures the package that it imports, and prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import polars as pl

ROWS, ROUNDS, TAUGHT = 2, 5, 12
"""Events of a user in a micro-batch, micro-batches, and users that are trained."""
THRESHOLD = 30.0
"""Risk from which an event is an alert, and is explained."""
SCORED = ("preprocess", "inf-pytorch", "add-scores")
PIPELINES = {
    "add-scores": (*SCORED, "serialize"),
    "add-scores filter": (*SCORED, "filter", "serialize"),
    "add-scores timeseries --causal": (*SCORED, "timeseries", "serialize"),
    "add-scores explain filter": (*SCORED, "explain", "filter", "serialize"),
}
OPTIONS: dict[str, dict[str, object]] = {
    "add-scores": {"label": ("ae_anomaly_score", "risk")},
    "filter": {"label": ("risk",), "threshold": THRESHOLD},
    "explain": {"threshold": THRESHOLD},
    "timeseries": {"causal": True, "zscore_threshold": 3.0},
}


def tables(scale):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - `Scale` and `Table`, which the old tree does not need
    """Measure this tree, and the old one between its runs."""
    from figures.table import Table  # noqa: PLC0415 - as above
    from speed.logs import fleet  # noqa: PLC0415 - as above

    logs = fleet(scale.scratch, TAUGHT, forms=("parquet",))
    users = min(scale.users, 2_000)
    table = Table(
        f"CPU microseconds per user's batch of {ROWS} events, {users:,} users",
        ["pipeline", "one by one", "together", "ratio", "old tree", "together / old tree"],
        note="Loaded fingerprints; without reading and sinks. Together: `Chain.push_many`, as the "
        f"loop of an endless run calls it. Best of {ROUNDS - 1} micro-batches, one process each.",
    )
    costs = _measure_in(None, logs.folder, users)
    old = {} if scale.old is None else _measure_in(scale.old, logs.folder, users)
    for name, cost in costs.items():
        before = old.get(name, {}).get("single")
        ratio = None if before is None else cost["many"] / before
        table.add(name, cost["single"], cost["many"], cost["many"] / cost["single"], before, ratio)
    yield table


Costs = dict[str, dict[str, float]]
"""Microseconds per user's batch, by pipeline and by way to push batches."""


def _measure_in(tree: Path | None, logs: Path, users: int) -> Costs:
    """Measure the package of a tree in a process of its own; None for this one."""
    source = Path(__file__).parents[2] if tree is None else tree.absolute()
    environment = os.environ | {"PYTHONPATH": str(source / "src")}
    words = [sys.executable, __file__, str(logs), str(users)]
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this file
    costs: Costs = json.loads(done.stdout)
    return costs


def measure(logs: Path, users: int) -> Costs:
    """Measure each pipeline, in each way that the package has."""
    from morpheus.runtime.chain import Chain  # noqa: PLC0415 - of the tree to measure

    ways = {"single": lambda chain, batches: [out for b in batches for out in chain.push(b)]}
    if hasattr(Chain, "push_many"):
        ways["many"] = lambda chain, batches: chain.push_many(batches)
    rounds = _make_rounds(logs, users)
    costs: Costs = {name: {} for name in PIPELINES}
    for name, way in product(PIPELINES, ways):
        chain, spent = _open_chain(name), []
        for batches in rounds:
            start = time.process_time()
            ways[way](chain, batches)
            spent.append((time.process_time() - start) / len(batches) * 1e6)
        costs[name][way] = min(spent[1:])
    return costs


def _open_chain(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - `Chain`, of the tree to measure
    from morpheus.core.registry import load_stage  # noqa: PLC0415 - of the tree to measure
    from morpheus.core.stage import PipelineOptions  # noqa: PLC0415 - the same
    from morpheus.runtime.chain import Segment  # noqa: PLC0415 - the same

    options = PipelineOptions(columns=_columns(), source="from-cloudtrail")
    words = PIPELINES[name]
    stages = [load_stage(word)(**OPTIONS.get(word, {}), options=options) for word in words]
    return Segment.from_stages(stages, unbounded=True).open()  # type: ignore[arg-type]  # transforms


def _columns() -> tuple[str, ...]:
    from morpheus.core.stage import read_lines  # noqa: PLC0415 - of the tree to measure

    return read_lines("columns_ae_cloudtrail.txt", option="--columns_file")


def _make_rounds(logs: Path, users: int) -> list[list[object]]:
    """Return micro-batches, each with the events of all users, as a source gives them."""
    from morpheus.columns import INDEX, ROW, TIME  # noqa: PLC0415 - of the tree to measure
    from morpheus.core.batch import Table, WithModel  # noqa: PLC0415 - the same
    from morpheus.models.fit import fit_fingerprint  # noqa: PLC0415 - the same

    frames = {}
    for part in ("training", "scored"):
        frame = pl.read_parquet(logs / "parquet" / part / "*.parquet").sort("eventTime")
        times = pl.col("eventTime").str.to_datetime(time_zone="UTC", time_unit="us").alias(TIME)
        frames[part] = frame.with_columns(times)
    column = "userIdentitysessionContextsessionIssueruserName"
    known = []
    for (user,), events in frames["scored"].partition_by(column, as_dict=True).items():
        history = frames["training"].filter(pl.col(column) == user)
        if user is not None and history.height > 300 and events.height > 2 * ROWS * ROUNDS:  # noqa: PLR2004 - enough to learn from
            print_ = fit_fingerprint(str(user), history, _columns(), times=history[TIME], epochs=2)
            known.append((print_, events))
    rounds = []
    for number in range(ROUNDS):
        batches: list[object] = []
        for user in range(users):
            fingerprint, events = known[user % len(known)]
            rows = events.slice(number * ROWS + user % 7, ROWS)
            index = pl.int_range(number * ROWS, number * ROWS + ROWS, eager=True)
            rows = rows.drop(TIME).insert_column(0, index.alias(ROW))
            rows = rows.insert_column(1, index.alias(INDEX)).with_columns(
                events.slice(number * ROWS + user % 7, ROWS)[TIME]
            )
            batch = WithModel(
                user=f"{user}", table=Table(rows), fingerprint=fingerprint, card=fingerprint.card
            )
            batches.append(batch)
        rounds.append(_share(batches))
    return rounds


def _share(batches: Sequence[object]) -> list[object]:
    """Let the tables be slices of one, as those of a source are."""
    from morpheus.core.batch import Table  # noqa: PLC0415 - of the tree to measure

    whole = pl.concat([batch.table.to_frame() for batch in batches])  # type: ignore[attr-defined]  # batches
    slices = Table(whole)
    if hasattr(slices, "split"):
        tables: Iterator[object] = iter(slices.split([ROWS] * len(batches)))
    else:
        tables = (Table(whole.slice(i * ROWS, ROWS)) for i in range(len(batches)))
    return [replace(batch, table=table) for batch, table in zip(batches, tables, strict=True)]  # type: ignore[type-var]  # batches


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
