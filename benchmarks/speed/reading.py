"""Reading JSON: records that are cut, beside records that are decoded whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import median

import msgspec
from figures.table import Table
from isal import igzip

from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.json_records import Flattener
from speed.logs import COLUMNS, USER, fleet
from speed.meter import cpu_seconds
from speed.scale import Scale

USERS, MAX_FILES = 300, 60
CALL = 1 << 14
"""Records of a call, about those of 16 MB."""
TURNS = 5

Records = Sequence[msgspec.Raw]


def tables(scale: Scale) -> Iterator[Table]:
    """Measure the steps from compressed bytes to a table, for records that repeat in part."""
    logs = fleet(scale.scratch, 20 if scale.quick else USERS, forms=("json",))
    files = sorted((logs.folder / "json/scored").rglob("*.json.gz"))[:MAX_FILES]
    packed = [path.read_bytes() for path in files]
    inflate: Callable[[bytes], bytes] = igzip.decompress
    decode = msgspec.json.Decoder(dict[str, list[msgspec.Raw]]).decode
    texts = [inflate(data) for data in packed]
    records = [record for text in texts for record in decode(text)["Records"]]
    flattener = make_flattener()
    cut(make_flattener(), records)
    steps: dict[str, Callable[[], object]] = {
        "inflate (isal)": lambda: [inflate(data) for data in packed],
        "split into records (msgspec)": lambda: [decode(text) for text in texts],
        "records to columns, decoded whole": lambda: whole(flattener, records),
        "records to columns, cut": lambda: cut(make_flattener(), records),
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            spent[name].append(cpu_seconds(step))
    table = Table(
        "Reading JSON, CPU of one process",
        ["step", "µs per event", "share of decoding whole"],
        note=f"Medians of {TURNS} runs in turns. {len(files)} files, {len(records):,} events of "
        f"{sum(map(len, texts)) / len(records):,.0f} bytes, {CALL:,} a call. Cutting begins with "
        "no known parts in each run.",
    )
    base = median(spent["records to columns, decoded whole"])
    for name, times in spent.items():
        each = median(times)
        table.add(name, each / len(records) * 1e6, each / base)
    yield table


def make_flattener() -> Flattener:
    """Make a flattener of CloudTrail records that knows no parts."""
    log = CLOUDTRAIL_FORMAT
    wanted = log.columns_to_decode(log.columns_to_read(COLUMNS, USER), USER)
    return Flattener(wanted, log.paths, log.json_converters, log.drop_characters)


def calls(records: Records) -> list[Records]:
    """Divide records into calls."""
    ends = [*range(0, len(records), CALL), len(records)]
    return [records[start:end] for start, end in pairwise(ends)]


def whole(flattener: Flattener, records: Records) -> None:
    """Flatten records that are decoded whole."""
    for part in calls(records):
        flattener.flatten_whole(part)


def cut(flattener: Flattener, records: Records) -> None:
    """Flatten records that are cut."""
    for part in calls(records):
        flattener.flatten(part)
