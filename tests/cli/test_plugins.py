"""Plugins, options from the environment, and flags as in other releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

AE = ("run", "--num_threads=1", "pipeline-ae")
OWN = """
from dataclasses import dataclass
from morpheus.core.batch import Events, OutputRows
from morpheus.core.stage import Requirements, Transform, option

@dataclass(frozen=True)
class Shout(Transform):
    "Make rows, and print the user's name."

    name = "shout"
    takes = (Events,)
    gives = OutputRows
    loud: bool = option(False, "With an exclamation mark.", flag=True)
    seed: int = option(0, "A number.")

    needs = Requirements(cpu_bound=True)

    def process(self, batch, state):
        sign = "!" if self.loud else "."
        print(f"{batch.user}{sign}{self.options.num_threads}{self.options.userid_filter}")
        yield batch.evolve(OutputRows)
"""


@pytest.fixture
def own(pipeline: Run, tmp_path: Path) -> Run:
    """The command, in a folder with a file of stages that is not installed."""
    (tmp_path / "own_stages.py").write_text(OWN)
    return pipeline


@pytest.fixture
def own_process(pipeline_process: Run, tmp_path: Path) -> Run:
    """The same, in a process of its own."""
    (tmp_path / "own_stages.py").write_text(OWN)
    return pipeline_process


@pytest.mark.parametrize("source", ["own_stages.py", "./own_stages.py", "own_package"])
def test_a_plugin_adds_its_stages(own_process: Run, source: str) -> None:
    word = "fail" if source == "own_package" else "shout"
    done = own_process(f"--plugin={source}", *AE, "from-names", word)
    assert done.returncode == 0, done.stderr


def test_a_plugin_in_any_folder_works_in_worker_processes(own_process: Run, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/away.py").write_text(OWN)
    users = [f"--who=user{n}" for n in range(9)]
    many = ("run", "--num_threads=2", "pipeline-ae", "from-names", *users, "shout")
    done = own_process("--plugin=far/away.py", *many)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"user{n}.2None" for n in range(9)]


def test_the_environment_adds_plugins(own: Run) -> None:
    done = own(*AE, "from-names", "shout", MORPHEUS_PLUGINS=" own_stages.py , own_package")
    assert done.stdout == "ann.1None\n", done.stderr
    listed = own("tools", "stages", MORPHEUS_PLUGINS="own_stages.py")
    assert "plugin own_stages" in listed.stdout


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no_such_module", "`no_such_module` cannot be loaded: ModuleNotFoundError"),
        ("missing.py", "`missing.py` cannot be loaded"),
        (
            "json",
            "`json` has no stages. Give a module with a subclass of `morpheus.core.stage.Stage`",
        ),
        ("bad/json.py", "there is already a module `json`"),
    ],
)
def test_a_source_that_is_not_a_plugin_is_rejected(
    own: Run, tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/json.py").write_text(OWN)
    done = own("--plugin", source, *AE, "from-names", "shout")
    assert done.returncode == 2
    assert reason in done.stderr


def test_every_option_is_read_from_the_environment(own_process: Run) -> None:
    environment = {
        "MORPHEUS_PLUGIN": "own_stages.py",
        "MORPHEUS_RUN_NUM_THREADS": "3",
        "MORPHEUS_RUN_PIPELINE_AE_USERID_FILTER": "ann",
        "MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOUD": "true",
    }
    done = own_process("run", "pipeline-ae", "from-names", "shout", **environment)
    assert done.stdout == "ann!3ann\n", done.stderr
    done = own_process(
        "run", "--num_threads=2", "pipeline-ae", "from-names", "shout", **environment
    )
    assert done.stdout == "ann!2ann\n", done.stderr


def test_an_unknown_variable_is_a_warning(own: Run) -> None:
    done = own(
        "--plugin=own_stages.py",
        *AE,
        "from-names",
        "shout",
        MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOD="true",
        MORPHEUS_RUN_NUM_THREADS="1",
        MORPHEUS_TEST_SERVER="of tests",
    )
    [message] = [line for line in done.stderr.splitlines() if "MORPHEUS_" in line]
    assert message == (
        "Warning: MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOD is set, but it is not an option. "
        "Did you mean `MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOUD`?"
    )


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("MORPHEUS_RUN_NUM_THREADS", ("run", "pipeline-ae", "from-duo")),
        ("MORPHEUS_RUN_PIPELINE_AE_TRAIN_AE_SEED", (*AE, "from-duo", "--input_glob=a", "train-ae")),
        ("MORPHEUS_TOOLS_REPLAY_SEED", ("tools", "replay", "--input_glob=a")),
    ],
)
def test_the_error_of_a_wrong_value_names_its_variable(
    run: Run, variable: str, words: tuple[str, ...]
) -> None:
    done = run(*words, **{variable: "many"})
    assert done.returncode == 2
    assert f"The value comes from the environment, {variable}." in done.stderr


@pytest.mark.parametrize(
    ("flag", "sign"),
    [
        (("--loud",), "!"),
        (("--loud=True",), "!"),
        (("--loud", "yes"), "!"),
        (("--loud=no",), "."),
        (("--loud", "False"), "."),
        (("--seed", "1", "--loud=on"), "!"),
    ],
)
def test_a_flag_may_have_a_boolean_value_as_in_some_releases(
    own: Run, flag: tuple[str, ...], sign: str
) -> None:
    done = own("--plugin=own_stages.py", *AE, "from-names", "shout", *flag, "monitor")
    assert done.stdout == f"ann{sign}1None\n", done.stderr


def test_a_flag_with_another_value_is_rejected(own: Run) -> None:
    done = own("--plugin=own_stages.py", *AE, "from-names", "shout", "--loud=very")
    assert done.returncode == 2
    assert "Option '--loud': 'very' is not a boolean." in done.stderr
