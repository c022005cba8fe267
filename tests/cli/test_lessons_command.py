"""`morpheus lessons`: the notebooks and their data, in a folder of your own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import Run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
DATA = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.glob("data/*-data/*.csv"))


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("words", [(), ("my courses/first",)])
def test_the_lessons_are_copied_and_the_next_step_is_shown(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = run("lessons", *words)
    folder = tmp_path / (words[0] if words else "morpheus-lessons")
    assert done.returncode == 0, done.stderr
    assert list_files(folder) == sorted([*NOTEBOOKS, *map(str, DATA)])
    for file in DATA:
        assert (folder / file).read_bytes() == (EXAMPLES / file).read_bytes()
    first = folder.relative_to(tmp_path) / NOTEBOOKS[0]
    assert f"Next     Open {first} in Jupyter or in an editor for notebooks." in done.stderr


def test_a_copy_of_a_notebook_knows_the_python_of_this_installation(
    run: Run, tmp_path: Path
) -> None:
    run("lessons", "copy")
    for name in NOTEBOOKS[:2]:
        copied, original = (
            json.loads((f / name).read_text()) for f in (tmp_path / "copy", EXAMPLES)
        )
        lines = ["".join(cell["source"]) for cell in copied["cells"]]
        [line] = re.findall(r"^INSTALLED = (\S+)", "\n".join(lines), re.MULTILINE)
        assert json.loads(line) == sys.executable
        plain = [text.replace(f"INSTALLED = {line}", 'INSTALLED = ""') for text in lines]
        assert plain == ["".join(cell["source"]) for cell in original["cells"]]


def test_a_folder_with_files_is_kept_and_overwrite_replaces_only_the_lessons(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / NOTEBOOKS[0]).write_text("{}")
    rejected = run("lessons", "mine")
    assert rejected.returncode == 2
    assert (
        "Give `morpheus lessons --overwrite mine` to replace the lessons in it" in rejected.stderr
    )
    assert list_files(folder) == [NOTEBOOKS[0], "notes.txt"]
    assert run("lessons", "mine", "--overwrite").returncode == 0
    assert list_files(folder) == sorted([*NOTEBOOKS, *map(str, DATA), "notes.txt"])
    assert (folder / "notes.txt").read_text() == "mine"
    assert len((folder / NOTEBOOKS[0]).read_text()) > 1000
    (tmp_path / "file").touch()
    assert "`file` is a file. Give another name." in run("lessons", "file").stderr


def test_a_new_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    limited = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from morpheus.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", limited, "lessons", "new"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "DIR: `new` cannot be written: File too large. Give another folder." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_gets_every_notebook_and_its_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    wanted = {f"examples/{name}" for name in (*NOTEBOOKS, *(file.parent for file in DATA))}
    assert set(included) == wanted
    assert all(
        place == source.replace("examples/", "morpheus/lessons/")
        for source, place in included.items()
    )
