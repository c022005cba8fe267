"""Record flame graphs of the main jobs: `python benchmarks/flames [--users N] [--only JOB]`.

The jobs are learning, scoring from JSON with loaded fingerprints, and `morpheus detect`. py-spy
samples all their processes. Each job gives two files: `JOB.speedscope.json`, to drop on
<https://www.speedscope.app> or to open with `npx speedscope`, and `JOB.svg`, for any browser.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "benchmarks")

from speed import chain  # noqa: E402 - the line above finds it
from speed.logs import Logs, fleet  # noqa: E402 - the same
from speed.meter import MORPHEUS  # noqa: E402 - the same

FORMATS = {"speedscope": "speedscope.json", "flamegraph": "svg"}
"""Formats of py-spy, and the extensions of their files."""
FORBIDDEN = (
    "py-spy may not trace processes here. Allow it: as root, `sysctl kernel.yama.ptrace_scope=0`; "
    "for a container, `--cap-add=SYS_PTRACE`; on macOS, run `make profile` with sudo."
)
RATE = 200
"""Samples per second."""


def main() -> None:
    """Parse the command line, and record."""
    parser = argparse.ArgumentParser(description="Record flame graphs of the main jobs.")
    parser.add_argument("--only", choices=list_jobs(None), action="append", help="job to record")
    parser.add_argument("--users", type=int, default=100, help="users of the made-up company")
    parser.add_argument("--into", type=Path, default=ROOT / "profiles", help="folder of the files")
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        logs = fleet(Path(scratch), given.users, forms=("json",))
        for name, words in list_jobs(logs).items():
            if given.only and name not in given.only:
                continue
            if name == "score":
                chain.learn(logs, logs.folder / "models")
            for kind, extension in FORMATS.items():
                path = given.into / f"{name}.{extension}"
                record(path, kind, words)
                print(path)


def list_jobs(logs: Logs | None) -> Mapping[str, list[str]]:
    """Return the words after `morpheus` of each job; empty without logs."""
    if logs is None:
        return {"learn": [], "score": [], "detect": []}
    source = logs.folder / "json"
    few = str(min((source / "scored").rglob("*.json.gz")))
    learning = [
        f"--train_data_glob={source / 'training'}",
        f"--models_output_filename={logs.folder / 'new-models'}",
    ]
    loaded = [f"--pretrained_filename={logs.folder / 'models'}"]
    output = logs.folder / "output.csv"
    return {
        "learn": chain.words(few, learning, output, 2),
        "score": chain.words(str(source / "scored"), loaded, output, 2),
        "detect": [
            *("detect", str(source / "scored"), f"--history={source / 'training'}"),
            f"--out={logs.folder / 'results'}",
        ],
    }


def record(path: Path, kind: str, words: Sequence[str]) -> None:
    """Run `morpheus` under py-spy.

    Args:
        path: File to write.
        kind: One of `FORMATS`.
        words: The words after `morpheus`.

    Raises:
        SystemExit: py-spy is not installed, may not trace processes, or failed.
    """
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise SystemExit("py-spy is not installed. Type `make dev`, or `pip install py-spy`.")
    options = ["--format", kind, "--output", str(path), "--rate", str(RATE), "--subprocesses"]
    done = subprocess.run(  # noqa: S603 - our own command
        [found, "record", *options, "--", *MORPHEUS, *words],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode or not path.exists():
        raise SystemExit(explain(done.stdout))


def explain(shown: str) -> str:
    """Return why py-spy failed, from what it wrote.

    >>> explain("Error: Permission Denied: Try running again ...") == FORBIDDEN
    True
    """
    denied = any(text in shown.lower() for text in ("permission denied", "operation not permitted"))
    return FORBIDDEN if denied else f"py-spy failed:\n{shown[-2000:]}"


if __name__ == "__main__":
    main()
