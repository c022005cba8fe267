"""dfencoder 0.0.42, the rival, in an environment of its own that is made when first needed."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speed.meter import run

HOME = Path(__file__).parents[1] / ".rivals" / "dfencoder"
PYTHON = HOME / "bin" / "python"
WORKER = Path(__file__).with_name("dfencoder_worker.py")
PINS = (
    "dfencoder==0.0.42",
    "scikit-learn>=1.5",
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
    """The rival's Python; torch and pandas are borrowed from this one, so that both run the same.

    Raises:
        RuntimeError: It could not be installed.
    """
    mark = HOME / ".ready"
    if mark.exists():
        return PYTHON
    venv.create(HOME, with_pip=True, clear=True)
    library = HOME / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (library / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    done = subprocess.run(  # noqa: S603 - pip, with names of our own
        [PYTHON, "-m", "pip", "install", *quiet, *PINS], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"dfencoder 0.0.42 could not be installed: {done.stderr[-500:]}")
    mark.touch()
    return PYTHON


def answers(
    users: Sequence[dict[str, Any]], scratch: Path, *, epochs: int = 25, seed: int = 1
) -> list[dict[str, Any]]:
    """Train and score each user; CPU seconds of both, and the scores."""
    job = scratch / "job.json"
    job.write_text(json.dumps({"users": users, "epochs": epochs, "seed": seed}), encoding="utf-8")
    run([str(ready()), "-E", str(WORKER), str(job)], cores=1)
    answer: list[dict[str, Any]] = json.loads(
        job.with_suffix(".answer.json").read_text(encoding="utf-8")
    )
    return answer
