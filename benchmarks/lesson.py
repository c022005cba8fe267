"""Time lesson 000's command as a person meets it: a cold process, training included.

    python benchmarks/lesson.py [--runs 5]

Beside it stands what upstream published for this job: 3.36 s on a Quadro RTX 8000, with the
user filter on (their tests/benchmarks, 22.11 to 24.06). Ours runs on the cores at hand, and trains
both users.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
PUBLISHED = 3.36
COMMAND = """
run pipeline-ae --userid_column_name=userIdentitysessionContextsessionIssueruserName
from-cloudtrail --input_glob=data/input-data/*.csv
train-ae --train_data_glob=data/training-data/*.csv --seed 42
preprocess inf-pytorch add-scores timeseries --resolution=10m --zscore_threshold=8.0
serialize to-file --filename=data/output/output.csv --overwrite
"""


def run(folder: Path) -> tuple[float, float]:
    """Run the command once; wall and CPU seconds."""
    morpheus = Path(sys.executable).with_name("morpheus")
    before, begin = _children(), time.perf_counter()
    subprocess.run([morpheus, *COMMAND.split()], cwd=folder, check=True, capture_output=True)  # noqa: S603 - our own command
    return time.perf_counter() - begin, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "examples"
        shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("output"))
        times = [run(folder) for _ in range(runs)]
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"cores {os.cpu_count()}, cold processes {runs}, medians")
    print(f"{'':24}{'wall s':>8}{'CPU s':>8}{'ratio':>8}")
    print(f"{'upstream, published':24}{PUBLISHED:8.2f}{'':8}{1:8.2f}")
    print(f"{'morpheus':24}{wall:8.2f}{cpu:8.2f}{wall / PUBLISHED:8.2f}")


if __name__ == "__main__":
    main()
