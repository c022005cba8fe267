"""Writes the outputs of commands into pages of the docs, where the pages show others.

    cd tests && PYTHONPATH=$PWD/../src:$PWD python -m record_pages ../docs/getting-started.md

A stored output that is right stays as it is, with the lines that it leaves out. Read the changes
before you commit them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pages import copy_examples, find_missing, find_programs, run_programs


def record(page: Path) -> int:
    """Run the programs of a page in a copy of the examples, and correct its stored outputs.

    Returns:
        Number of outputs that were wrong.
    """
    text = page.read_text(encoding="utf-8")
    programs, wrong = find_programs(text), 0
    with tempfile.TemporaryDirectory() as folder:
        examples = copy_examples(Path(folder))
        outputs = run_programs(programs, examples, Path(sys.executable), os.environ)
        for program, output in zip(programs, outputs, strict=True):
            if find_missing(program.output, output):
                wrong += 1
                stored = "".join(f"{line}\n" for line in program.output)
                assert text.count(stored) == 1, f"{page}: correct this by hand:\n{stored}"
                text = text.replace(stored, output)
    page.write_text(text, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(f"{name}: {record(Path(name))} outputs were wrong\n")
