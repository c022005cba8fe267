"""Commands of this version and of an earlier one, which run in turns.

`--old TREE` names the tree of the earlier version. Both are installed as wheels into environments
of their own, which share this environment's other packages.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

from figures.table import Table

from speed import chain
from speed.cold import copy_lesson, lesson_words
from speed.logs import Logs, fleet
from speed.meter import Run, run
from speed.scale import Scale

ROOT = Path(__file__).parents[2]
PIP = "-m", "pip", "--quiet", "--disable-pip-version-check"
THIS, BEFORE = "this version", "earlier version"
OWN = ("morpheus", "_editable_impl_morpheus")
"""What the names of our own files in an environment begin with."""
STEPS = {
    "reading, grouping by user and writing": (),
    "`preprocess` and `inf-pytorch`": ("preprocess", "inf-pytorch"),
    "`add-scores`": ("preprocess", "inf-pytorch", "add-scores"),
}
"""Stages between `train-ae` and `serialize`. Each pipeline has those of the one before."""
Cost = Callable[[Run], float]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Version:
    """An installed version.

    Attributes:
        command: The command `morpheus`.
        models: Folder of the fingerprints that it has trained.
    """

    command: Sequence[str]
    models: Path


def tables(scale: Scale) -> Iterator[Table]:
    """Compare scoring, then its stages, then training and cold starts."""
    trees = {BEFORE: scale.old, THIS: ROOT}
    versions = {
        name: install(tree, scale.scratch / f"version-{number}")
        for number, (name, tree) in enumerate(trees.items())
        if tree is not None
    }
    logs = fleet(scale.scratch, scale.users, copies=scale.copies)
    yield learning(versions, logs, scale)
    yield scoring(versions, logs, scale)
    yield stages(versions, logs, scale)
    yield cold(versions, scale)


def install(tree: Path, folder: Path) -> Version:
    """Install the wheel of a tree into an environment with this environment's other packages."""
    environment = folder / "environment"
    venv.create(environment)
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = environment / "lib" / python / "site-packages"
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(OWN):
            (packages / path.name).symlink_to(path)
    wheels = folder / "wheels"
    run([sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(tree)])
    [wheel] = wheels.glob("*.whl")
    own_python = str(environment / "bin" / "python")
    run([sys.executable, *PIP, "--python", own_python, "install", "--no-deps", str(wheel)])
    # With -E, PYTHONPATH does not put another version in front.
    command = (own_python, "-E", str(environment / "bin" / "morpheus"))
    return Version(command, folder / "models")


def in_turns(jobs: Mapping[Key, Callable[[], Run]], times: int) -> dict[Key, list[Run]]:
    """Run each job once, then each a second time, and so on."""
    runs: dict[Key, list[Run]] = {name: [] for name in jobs}
    for _ in range(times):
        for name, job in jobs.items():
            runs[name].append(job())
    return runs


def compare(
    table: Table, what: Sequence[str | int], runs: Mapping[str, Sequence[Run]], per: Cost
) -> None:
    """Add a row: the CPU of each version, the ratio, the wall seconds and the memory.

    Args:
        table: The table.
        what: First cells of the row.
        runs: The runs of each version, in turns.
        per: What is reported of a run's CPU, such as its share of an event.
    """
    old, new = runs.get(BEFORE), runs[THIS]
    ratio = None if old is None else median_ratio(new, old)
    before = (None, None, None) if old is None else medians(old, per)
    now = medians(new, per)
    cells = zip(before, now, strict=True)
    cpu, wall, peak = cells
    table.add(*what, *cpu, ratio, *wall, *peak)


HEADER = (
    *("CPU, earlier", "CPU, this version", "ratio"),
    *("wall s, earlier", "wall s, this version", "peak MB, earlier", "peak MB, this version"),
)


def medians(runs: Sequence[Run], per: Cost) -> tuple[float, float, float]:
    """Return the medians of CPU, in the table's unit, of wall seconds and of memory."""
    return median(map(per, runs)), median(r.wall for r in runs), median(r.peak for r in runs)


def median_ratio(new: Sequence[Run], old: Sequence[Run]) -> float:
    """Return the median over the turns of the CPU of the new version, relative to the old one."""
    return median(a.cpu / b.cpu for a, b in zip(new, old, strict=True))


def learning(versions: Mapping[str, Version], logs: Logs, scale: Scale) -> Table:
    """Train all users of the fleet, and keep the fingerprints for the other tables."""
    table = Table(
        f"Training {scale.users:,} users ({logs.training / scale.users:,.0f} events each) from "
        "`.json.gz`, CPU ms per user",
        ["threads", *HEADER],
        note=describe_turns(scale),
    )
    for threads in (1, 2):
        jobs = {
            name: partial(learn_again, version, logs, threads) for name, version in versions.items()
        }
        runs = in_turns(jobs, scale.turns)
        compare(table, [threads], runs, lambda r: r.cpu / scale.users * 1e3)
    return table


def learn_again(version: Version, logs: Logs, threads: int) -> Run:
    """Train into an empty folder."""
    shutil.rmtree(version.models, ignore_errors=True)
    return chain.learn(logs, version.models, threads=threads, command=version.command)


def scoring(versions: Mapping[str, Version], logs: Logs, scale: Scale) -> Table:
    """Score with the fingerprints that each version has trained."""
    table = Table(
        f"Scoring {logs.scored:,} events of {scale.users:,} users with loaded fingerprints, CPU µs "
        "per event",
        ["format", "threads, cores", *HEADER],
        note=describe_turns(scale),
    )
    for form in ("json", "parquet"):
        for threads in (1, 2):
            jobs = {
                name: partial(score, version, logs, form, threads)
                for name, version in versions.items()
            }
            runs = in_turns(jobs, scale.turns)
            compare(table, [form, threads], runs, lambda r: r.cpu / logs.scored * 1e6)
    return table


def score(
    version: Version, logs: Logs, form: str, threads: int, stages: Sequence[str] = chain.SCORED
) -> Run:
    """Score all events, from files to CSV."""
    source = logs.folder / form / "scored"
    return chain.score(
        source, version.models, threads=threads, command=version.command, stages=stages
    )


def stages(versions: Mapping[str, Version], logs: Logs, scale: Scale) -> Table:
    """Measure pipelines with more and more stages. The differences are the costs of stages."""
    table = Table(
        "Scoring from Parquet, by stage: CPU µs per event, one thread",
        ["stages", "earlier", "this version", "dearer by"],
        note="The cost of a stage is the difference between two pipelines, with and without it; "
        "the start of the process counts as reading. "
        "Dearer by: what scoring costs more than in the earlier version, because stages do more. "
        + describe_turns(scale),
    )
    jobs = {
        (step, name): partial(score, version, logs, "parquet", 1, words)
        for step, words in STEPS.items()
        for name, version in versions.items()
    }
    runs = in_turns(jobs, scale.turns)
    cost = {key: median(r.cpu for r in each) / logs.scored * 1e6 for key, each in runs.items()}
    last = dict.fromkeys(versions, 0.0)
    for step in STEPS:
        each = {name: cost[step, name] - last[name] for name in versions}
        last = {name: cost[step, name] for name in versions}
        before = each.get(BEFORE)
        table.add(step, before, each[THIS], None if before is None else each[THIS] - before)
    return table


def cold(versions: Mapping[str, Version], scale: Scale) -> Table:
    """Start new processes: the first lesson, and the help."""
    folder = copy_lesson(scale)
    table = Table("Cold processes, CPU seconds", ["process", *HEADER], note=describe_turns(scale))
    for name, words in {"lesson 000": lesson_words(), "morpheus --help": ["--help"]}.items():
        jobs = {
            each: partial(run, [*version.command, *words], folder=folder)
            for each, version in versions.items()
        }
        in_turns(jobs, 1)  # writes the compiled files, and fills the page cache
        compare(table, [name], in_turns(jobs, scale.turns), lambda r: r.cpu)
    return table


def describe_turns(scale: Scale) -> str:
    """Return how the runs of a table alternate."""
    return (
        f"Medians of {scale.turns} cold processes, including their start. The versions take "
        "turns. Ratio: median over the turns."
    )
