import subprocess
import sys
from pathlib import Path

import pytest

from nodes import cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """Logs of a generated company: users with long and with short history."""
    folder = tmp_path_factory.mktemp("fleet")
    options = ["--users", "20", "--days", "28", "--training", "14"]
    make = [sys.executable, ROOT / "examples" / "make_fleet.py", "--into", folder, *options]
    subprocess.run(make, check=True, timeout=60, capture_output=True)
    return folder / "json"


@pytest.fixture(scope="session")
def nodes(tmp_path_factory):
    """Address of a scheduler with three nodes."""
    with cluster(tmp_path_factory.mktemp("nodes"), 3) as address:
        yield address
