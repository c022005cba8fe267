"""Imports, names, safety and help of the package; test_structure.py has its sizes."""

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
RUNS_CODE = {"eval", "exec", "__import__", "compile", "torch.load"}
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput"}
BUILT_IN = [word for word in stage_names() if distribution_of(word) == "morpheus-dfp"]


def test_imports_obey_the_contracts() -> None:
    # In a process of its own, because import-linter disables all existing loggers.
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports; lint_imports()"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "0 broken" in done.stdout, done.stdout + done.stderr


def test_help_of_the_pipeline_does_not_load_torch() -> None:
    code = (
        "import sys; from morpheus.cli.main import morpheus\n"
        "morpheus(['run', 'pipeline-ae', '--help'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("word", BUILT_IN)
def test_stage_and_its_options_have_help(word: str) -> None:
    stage = load_stage(word)
    first = help_from_docstring(stage).partition("\n")[0]
    assert re.fullmatch(r"[A-Z].+[.:]", first), first
    for option in fields(stage):
        if option.metadata:
            assert option.metadata["help"].endswith((".", ")", "]")), option.name


@pytest.mark.parametrize("word", BUILT_IN)
def test_help_of_a_stage_has_an_example(word: str) -> None:
    text = help_from_docstring(load_stage(word))
    assert re.search(rf"^Example: `|^ +{word}", text, re.MULTILINE), text


@pytest.mark.parametrize("word", BUILT_IN)
def test_stage_declares_its_name_and_its_classes_of_batches(word: str) -> None:
    stage = load_stage(word)
    assert stage.name == word
    assert stage.takes or stage.gives


def test_no_module_has_a_vague_name() -> None:
    names = {part for file in SOURCES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert not {name for name in names if set(name.split("_")) & VAGUE}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_module_cannot_run_code_from_data(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = {module, *(alias.name for alias in node.names)}
            assert not {name.split(".")[0] for name in names} & PICKLES
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in RUNS_CODE | SHELLS
            assert all(
                keyword.arg != "shell" and ast.unparse(keyword) != "allow_pickle=True"
                for keyword in node.keywords
            )
