"""A newcomer's path: five pages, from README.md to a daily job, each linking to the next.

All commands of the pages run one after the other, in the folder where the reader then is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from pages import DOCS, ROOT, copy_examples, find_blocks, find_programs, run_programs

PATH = [
    "README.md",
    "docs/getting-started.md",
    "docs/detect.md",
    "docs/report.md",
    "docs/how-to/cron.md",
]
CRON_PAGE = DOCS / "how-to" / "cron.md"
CRON_FOLDER = "/srv/morpheus"
_NEXT = re.compile(r"^\*\*(?:Next:\*\* \[.*\]|\[Getting started\])\((\S+?)\)", re.MULTILINE)
_FIELD = r"(?:\*|\d+)"
_CRON_LINE = re.compile(rf"(?:{_FIELD} ){{5}}cd {CRON_FOLDER} && (.+)")


def cron_commands() -> list[str]:
    """The commands of the lines for cron, without the change of folder."""
    blocks = find_blocks(CRON_PAGE.read_text(encoding="utf-8"))
    lines = [body.strip() for language, body, _ in blocks if language == "cron"]
    matches = [_CRON_LINE.fullmatch(line) for line in lines]
    assert None not in matches, lines
    return [match[1] for match in matches if match]


def start_from_cron(command: str, folder: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of a line for cron, with `morpheus` on the path."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_each_page_of_the_path_links_to_the_next() -> None:
    page, visited = ROOT / PATH[0], [PATH[0]]
    while found := _NEXT.search(page.read_text(encoding="utf-8")):
        page = (page.parent / found[1]).resolve()
        visited.append(page.relative_to(ROOT).as_posix())
    assert visited == PATH


def test_the_commands_of_the_path_run_one_after_the_other(
    tmp_path: Path, warm_morpheus: Path
) -> None:
    pages = [find_programs((ROOT / name).read_text(encoding="utf-8")) for name in PATH]
    assert all(pages)
    programs = [program for page in pages for program in page]
    outputs = run_programs(programs, copy_examples(tmp_path), warm_morpheus, os.environ)
    assert len(list(outputs)) == len(programs)
    # Getting started copies the lessons, and goes there.
    folder = tmp_path / "examples" / "morpheus-lessons"
    for command in cron_commands():
        done = start_from_cron(command, folder, warm_morpheus)
        logs = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.log"))
        assert done.returncode == 0, f"{command}\n{done.stderr}{logs}"


def test_cron_sends_a_mail_only_if_there_is_an_incident(
    tmp_path: Path, warm_morpheus: Path
) -> None:
    folder = copy_examples(tmp_path)
    [command, _] = cron_commands()
    assert "user123" in start_from_cron(command, folder, warm_morpheus).stdout
    for part in ("input-data", "training-data"):
        (folder / "data" / part / "user123.csv").unlink()
    shutil.rmtree(folder / "results")
    done = start_from_cron(command, folder, warm_morpheus)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Found       0 incidents" in (folder / "detect.log").read_text(encoding="utf-8")
