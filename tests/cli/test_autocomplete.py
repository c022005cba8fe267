"""Shell completion of commands, stages and options."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from morpheus.cli.commands import BLOCK_BEGIN, BLOCK_END, SHELL_FILES, insert_block

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("shell", SHELL_FILES)
def test_show_prints_only_the_script_to_stdout(run: Run, shell: str) -> None:
    done = run("tools", "autocomplete", "show", "--shell", shell)
    assert done.stdout.startswith(BLOCK_BEGIN)
    assert done.stdout.endswith(f"{BLOCK_END}\n")
    assert "_MORPHEUS_COMPLETE" in done.stdout
    assert f"To add {shell} completion" in done.stderr
    assert SHELL_FILES[shell] in done.stderr


@pytest.mark.parametrize("shell", SHELL_FILES)
def test_installing_again_replaces_the_script_and_keeps_the_rest_of_the_file(
    run: Run, tmp_path: Path, shell: str
) -> None:
    file = tmp_path / "home" / Path(SHELL_FILES[shell]).relative_to("~")
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for _ in range(2):
        done = run(
            "tools", "autocomplete", "install", SHELL=f"/bin/{shell}", HOME=str(tmp_path / "home")
        )
        assert done.returncode == 0, done.stderr
        assert f"{shell} completion installed in {file}" in done.stderr
    text = file.read_text()
    assert text.startswith(f"mine\n{BLOCK_BEGIN}\n")
    assert text.count(BLOCK_BEGIN) == text.count(BLOCK_END) == 1


def test_an_old_block_is_replaced_in_its_place() -> None:
    old, new = f"{BLOCK_BEGIN}\nold \\1\n{BLOCK_END}\n", f"{BLOCK_BEGIN}\nnew \\1\n{BLOCK_END}\n"
    assert insert_block(f"a\n{old}b\n", new) == f"a\n{new}b\n"


def test_an_unknown_shell_is_treated_as_bash(run: Run) -> None:
    done = run("tools", "autocomplete", "show", SHELL="/bin/dash")
    assert "To add bash completion" in done.stderr


def test_a_file_that_is_not_text_is_rejected(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    done = run("tools", "autocomplete", "install", "--path=a")
    assert done.returncode == 2
    assert "--path: cannot read `a`" in done.stderr
    assert (tmp_path / "a").read_bytes() == b"\xff"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("morpheus run pipeline-ae from-a", "from-azure"),
        ("morpheus run pipeline-ae from-duo --input_glob=x tr", "train-ae"),
        ("morpheus run pipeline-ae train-ae --see", "--seed"),
        ("morpheus run --num", "--num_threads"),
        ("morpheus run pipeline-ae --feature_scaler ", "gauss_rank"),
    ],
)
def test_stages_and_options_are_completed(run: Run, line: str, expected: str) -> None:
    done = run(
        _MORPHEUS_COMPLETE="bash_complete",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split(" ")) - 1),
    )
    assert f"plain,{expected}" in done.stdout.splitlines()
