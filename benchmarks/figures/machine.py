"""The machine and the versions that figures depend on, without host names or paths."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "polars", "msgspec", "numpy", "isal", "pandas")


def described() -> str:
    """Return one line."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} {'core' if cores == 1 else 'cores'} of {processor()}, {pages:.0f} GB; "
        f"Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """Return the processor's model."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
