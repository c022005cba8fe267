"""The docs are correct: their commands run, their links exist, and generated pages are current.

In README.md and under docs/, bash runs the lines of ```console blocks that begin with `$ `, and
Python runs ```python blocks: from top to bottom, in one copy of examples/ per page. Blocks of other
languages are not run. Commands of README.md, of a cluster and in the background get processes of
their own; see `warm_command` for the others.
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
from morpheus.cli.reference import render_compatibility, render_reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def find_programs(text: str) -> list[tuple[list[str], str]]:
    """Return the programs of a page, each with its interpreter.

    >>> find_programs("```console\\n$ ls \\\\\\n    -l\\ntotal 0\\n$ pwd\\n```\\n")
    [(['bash', '-euo', 'pipefail'], 'ls \\\\\\n    -l\\npwd')]
    """
    programs = []
    for _, language, body in _BLOCK.findall(text):
        if language == "python":
            programs.append(([sys.executable, "-"], body))
        else:
            commands = re.findall(r"^\s*\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE)
            programs.append((["bash", "-euo", "pipefail"], "\n".join(commands)))
    return programs


def pages_with_programs() -> list[Path]:
    """Return the pages with programs."""
    return [
        page for page in PAGES if page.exists() and find_programs(page.read_text(encoding="utf-8"))
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_programs_of_a_page_are_found() -> None:
    console = "```console\n$ a \\\n    b\nout\n$ c | d\n```\n"
    page = f"```sh\nmake\n```\n\n{console}\n```python\nx = 1\n```\n"
    assert [program for _, program in find_programs(page)] == ["a \\\n    b\nc | d", "x = 1\n"]


@pytest.mark.parametrize("page", pages_with_programs(), ids=name_of)
def test_the_programs_of_a_page_run(page: Path, tmp_path: Path, warm_morpheus: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("output"))
    text = page.read_text(encoding="utf-8")
    own_processes = page.name == "README.md" or "--engine=dask" in text or " & " in text
    script = Path(sys.executable) if own_processes else warm_morpheus
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    for interpreter, program in find_programs(text):
        done = subprocess.run(
            interpreter,
            input=program,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{program}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=name_of)
def test_links_between_pages_exist(page: Path) -> None:
    broken = [
        link
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_reference_is_current() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render_reference(morpheus, "morpheus") + "\n", "run `make docs`"


def test_the_table_of_compatibility_is_current() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert page == render_compatibility(morpheus) + "\n", "run `make docs`"


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert "## Unreleased" in text or f"## {version[1]}" in text
