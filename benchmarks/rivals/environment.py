"""Other detectors in a separate environment, which is created when first needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1] / ".rivals" / "environment"
PYTHON = HOME / "bin" / "python"
WORKER = Path(__file__).with_name("worker.py")
PINS = (
    "dfencoder==0.0.42",
    "scikit-learn==1.7.2",
    "pyod==2.0.5",
    "numba==0.68.1",
    "llvmlite==0.50.0",
    "scipy>=1.13",
    "joblib>=1.4",
    "cloudpickle>=3",
    "threadpoolctl>=3",
    "narwhals>=1",
    "dill>=0.3.8",
    "tqdm>=4.66",
    "tensorboardX>=2.6",
    "protobuf>=5",
)


def ready() -> Path:
    """Return the Python of that environment. It shares torch and pandas with this one.

    Raises:
        RuntimeError: If the installation fails.
    """
    mark, wanted = HOME / ".ready", "\n".join(PINS)
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return PYTHON
    venv.create(HOME, with_pip=True, clear=True)
    library = HOME / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (library / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    done = subprocess.run(  # noqa: S603 - pip, with names of our own
        [PYTHON, "-m", "pip", "install", *quiet, *PINS], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"The rivals could not be installed: {done.stderr[-500:]}")
    mark.write_text(wanted, encoding="utf-8")
    return PYTHON


def answers(
    rival: str, users: Sequence[dict[str, Any]], *, seed: int = 1, epochs: int = 25
) -> Iterator[dict[str, Any]]:
    """Train and score each user with a detector, in one thread.

    Args:
        rival: One of `worker.RIVALS`.
        users: Paths of CSV files, `training` and `scored`; `warm` to do it once before the clock.
        seed: Random seed.
        epochs: Number of epochs, if the detector has any.

    Yields:
        CPU seconds of `training` and of `scoring`, and the `scores`, after each user.

    Raises:
        RuntimeError: If the detector fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch, "job.json")
        asked = {"rival": rival, "users": users, "seed": seed, "epochs": epochs}
        job.write_text(json.dumps(asked), encoding="utf-8")
        yield from _lines([str(ready()), "-E", str(WORKER), str(job)], Path(scratch, "shown"))


def _lines(command: Sequence[str], shown: Path) -> Iterator[dict[str, Any]]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (
        shown.open("w", encoding="utf-8") as errors,
        subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | one
        ) as process,
    ):
        for line in process.stdout or ():
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"{WORKER.name} failed:\n{shown.read_text(encoding='utf-8')[-2000:]}")
