from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from morpheus.cli.chain import help_from_docstring
from morpheus.core.registry import distribution_of, load_stage, stage_names

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
VAGUE = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
ROOMS = {"sources", "stages", "sinks"}
DANGEROUS = {"eval", "exec", "__import__", "compile"}
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput"}
BUILT_IN = [word for word in stage_names() if distribution_of(word) == "morpheus-dfp"]


def loaded_by(*words: str) -> set[str]:
    """Top-level modules that a command loads."""
    code = (
        "import sys; from morpheus.cli.main import morpheus\n"
        "try: morpheus(sys.argv[1:], prog_name='morpheus')\n"
        "finally: print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_imports_go_down_only() -> None:
    # In a process of its own: import-linter silences every logger that is there already.
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports; lint_imports()"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "0 broken" in done.stdout, done.stdout + done.stderr


def test_help_loads_neither_torch_nor_polars() -> None:
    for words in (["--help"], ["run", "--help"], ["tools", "--help"]):
        assert not loaded_by(*words) & {"torch", "polars", "numpy", "rich"}


def test_help_of_the_chain_loads_no_torch() -> None:
    assert "torch" not in loaded_by("run", "pipeline-ae", "--help")


@pytest.mark.parametrize("word", BUILT_IN)
def test_a_stage_lies_in_the_file_of_its_word(word: str) -> None:
    module = load_stage(word).__module__
    _, room, file = module.split(".")
    assert room in ROOMS
    assert file in {word.replace("-", "_"), word.removeprefix("from-"), "compat"}


@pytest.mark.parametrize("word", BUILT_IN)
def test_a_stage_and_each_of_its_options_have_help(word: str) -> None:
    stage = load_stage(word)
    first = help_from_docstring(stage).partition("\n")[0]
    assert re.fullmatch(r"[A-Z].+[.:]", first), first
    for one in fields(stage):
        if one.metadata:
            assert one.metadata["text"].endswith((".", ")", "]")), one.name


@pytest.mark.parametrize("word", BUILT_IN)
def test_a_stages_help_has_an_example(word: str) -> None:
    text = help_from_docstring(load_stage(word))
    assert re.search(rf"^Example: `|^ +{word}", text, re.MULTILINE), text


@pytest.mark.parametrize("word", BUILT_IN)
def test_a_stage_declares_what_it_takes_and_gives(word: str) -> None:
    stage = load_stage(word)
    assert stage.name == word
    assert stage.takes or stage.gives


def test_no_file_has_a_name_that_says_nothing() -> None:
    names = {part for file in SOURCES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert not {name for name in names if set(name.split("_")) & VAGUE}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_nothing_can_run_what_a_file_says(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = {module, *(one.name for one in node.names)}
            assert not {name.split(".")[0] for name in names} & PICKLES
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in DANGEROUS | SHELLS | {"torch.load"}
            assert all(
                word.arg != "shell" and ast.unparse(word) != "allow_pickle=True"
                for word in node.keywords
            )
