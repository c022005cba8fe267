"""Pages are true: the reference is what the command prints, and what a page shows to run, runs.

In README.md and under docs/, the lines of a block ```console that begin with `$ ` are run by bash,
and a block ```python by Python, in one copy of examples/ for each page, from top to bottom. Blocks
of any other language are for the eye.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from morpheus.cli.main import morpheus
from morpheus.cli.reference import render_compatibility as page_of
from morpheus.cli.reference import render_reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def blocks(text: str) -> list[tuple[list[str], str]]:
    """What a page has to run: an interpreter, and its program.

    >>> blocks("```console\\n$ ls \\\\\\n    -l\\ntotal 0\\n$ pwd\\n```\\n")
    [(['bash', '-euo', 'pipefail'], 'ls \\\\\\n    -l\\npwd')]
    """
    found = []
    for _, language, body in _BLOCK.findall(text):
        if language == "python":
            found.append(([sys.executable, "-"], body))
        else:
            typed = re.findall(r"^\s*\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE)
            found.append((["bash", "-euo", "pipefail"], "\n".join(typed)))
    return found


def with_blocks() -> list[Path]:
    """The pages that have something to run."""
    return [page for page in PAGES if page.exists() and blocks(page.read_text(encoding="utf-8"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_what_a_page_has_to_run_is_found() -> None:
    typed = "```console\n$ a \\\n    b\nout\n$ c | d\n```\n"
    page = f"```sh\nmake\n```\n\n{typed}\n```python\nx = 1\n```\n"
    assert [program for _, program in blocks(page)] == ["a \\\n    b\nc | d", "x = 1\n"]


@pytest.mark.parametrize("page", with_blocks(), ids=name_of)
def test_what_a_page_shows_to_run_runs(page: Path, tmp_path: Path) -> None:
    place = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", place, ignore=shutil.ignore_patterns("output"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for interpreter, program in blocks(page.read_text(encoding="utf-8")):
        done = subprocess.run(
            interpreter,
            input=program,
            cwd=place,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{program}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=name_of)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    gone = [
        link
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert gone == []


def test_the_reference_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render_reference(morpheus, "morpheus") + "\n", "run `make docs`"


def test_the_table_of_compatibility_is_what_the_command_prints() -> None:
    written = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert written == page_of(morpheus) + "\n", "run `make docs`"


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert "## Unreleased" in text or f"## {version[1]}" in text
