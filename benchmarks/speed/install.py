"""Size and time of an installation with pip, of this tree and of another one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from figures.table import Table

from speed.meter import run
from speed.scale import Scale

ROOT = Path(__file__).parents[2]
PIP = "-m", "pip", "--quiet", "--disable-pip-version-check"


def tables(scale: Scale) -> Iterator[Table]:
    """Build a wheel of each tree, and install it into a fresh environment."""
    table = Table(
        "Installing the wheel into a fresh environment",
        [
            "wheel",
            "wheel, MB",
            "packages",
            "installed, MB",
            "pip install, wall s",
            "CPU s",
            "import morpheus, CPU s",
        ],
        note="Without pip and setuptools. The first installation fills pip's cache and is not "
        "timed. `import morpheus` is the median of 9 processes, Python's start included. "
        "Command: `python benchmarks/speed --only install --old TREE`, with 0.1's tree.",
    )
    for name, tree in {"this version": ROOT, "0.1": scale.old}.items():
        if tree is not None:
            table.add(name, *measure(tree, scale.scratch / f"install-{name.replace(' ', '-')}"))
    yield table


def measure(tree: Path, folder: Path) -> tuple[float, int, float, float, float, float]:
    """Return the size of the wheel, packages, installed size, and seconds of install and import."""
    run([sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(tree)])
    [wheel] = folder.glob("*.whl")
    for attempt in ("cold", "timed"):
        environment = folder / attempt
        run([sys.executable, "-m", "venv", str(environment)])
        python = str(environment / "bin" / "python")
        before, packages = size(environment), count(python)
        installed = run([python, *PIP, "install", str(wheel)])
    imported = median(run([python, "-c", "import morpheus"]).cpu for _ in range(9))
    return (
        wheel.stat().st_size / 1e6,
        count(python) - packages,
        size(environment) - before,
        installed.wall,
        installed.cpu,
        imported,
    )


def count(python: str) -> int:
    """Return the number of packages in an environment."""
    code = "from importlib.metadata import distributions; print(len(list(distributions())))"
    return int(run([python, "-c", code]).shown)


def size(folder: Path) -> float:
    """Return the size of the files in a folder, in MB."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6
