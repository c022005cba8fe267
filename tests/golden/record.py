"""Record the golden outputs again: `cd tests && python -m golden.record`.

Do that only when an output is meant to change, and say so in the changelog. With a folder as
argument, the raw outputs are kept there.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

from golden.commands import COMMANDS, PREPARATIONS
from golden.results import (
    EXPECTED,
    INDEX,
    LARGEST,
    digest,
    input_digests,
    outputs_of,
    place_of,
    prepare,
    run,
    versions,
)


def record(folder: Path) -> None:
    """Run every command below a folder, and replace what is recorded."""
    prepared = folder / "inputs"
    prepare(prepared)
    if EXPECTED.exists():
        shutil.rmtree(EXPECTED)
    results: dict[str, dict[str, dict[str, object]]] = {}
    for command in (*PREPARATIONS, *COMMANDS):
        if not command.prepares:
            run(command, prepared, folder / command.name)
        for output, content in outputs_of(command, folder / command.name).items():
            packed = gzip.compress(content, mtime=0)
            kept = len(packed) < LARGEST
            about = {"sha256": digest(content), "bytes": len(content), "stored": kept}
            results.setdefault(command.name, {})[output] = about
            if kept:
                path = place_of(command.name, output)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed)
            said = "" if kept else ", too large to be stored"
            sys.stdout.write(f"{command.name}: {output}: {len(packed)} bytes packed{said}\n")
    index = {"versions": versions(), "inputs": input_digests(prepared), "results": results}
    INDEX.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        record(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            record(Path(scratch))
