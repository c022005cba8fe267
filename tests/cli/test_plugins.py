"""Stages of one's own, the environment, and the spellings of other releases."""

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
    "Make rows, and shout the user's name."

    name = "shout"
    takes = (Events,)
    gives = OutputRows
    loud: bool = option(False, "With a sign.", flag=True)
    seed: int = option(0, "A number.")

    needs = Requirements(cpu_bound=True)

    def process(self, batch, state):
        sign = "!" if self.loud else "."
        print(f"{batch.user}{sign}{self.options.num_threads}{self.options.userid_filter}")
        yield batch.evolve(OutputRows)
"""


@pytest.fixture
def own(chain: Run, tmp_path: Path) -> Run:
    """The command, with a file of stages beside it that nobody installed."""
    (tmp_path / "own_stages.py").write_text(OWN)
    return chain


@pytest.mark.parametrize("source", ["own_stages.py", "./own_stages.py", "shelf"])
def test_a_plugin_brings_its_stages(own: Run, source: str) -> None:
    word = "fail" if source == "shelf" else "shout"
    done = own(f"--plugin={source}", *AE, "from-names", word)
    assert done.returncode == 0, done.stderr


def test_a_plugin_lies_anywhere_and_works_in_worker_processes(own: Run, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/away.py").write_text(OWN)
    users = [f"--who=user{n}" for n in range(9)]
    many = ("run", "--num_threads=2", "pipeline-ae", "from-names", *users, "shout")
    done = own("--plugin=far/away.py", *many)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"user{n}.2None" for n in range(9)]


def test_plugins_are_named_by_the_environment_too(own: Run) -> None:
    done = own(*AE, "from-names", "shout", MORPHEUS_PLUGINS=" own_stages.py , shelf")
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
        ("bad/json.py", "there is another module `json` already"),
    ],
)
def test_what_is_no_plugin_is_refused(own: Run, tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/json.py").write_text(OWN)
    done = own("--plugin", source, *AE, "from-names", "shout")
    assert done.returncode == 2
    assert reason in done.stderr


def test_every_option_is_read_from_the_environment(own: Run) -> None:
    told = {
        "MORPHEUS_PLUGIN": "own_stages.py",
        "MORPHEUS_RUN_NUM_THREADS": "3",
        "MORPHEUS_RUN_PIPELINE_AE_USERID_FILTER": "ann",
        "MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOUD": "true",
    }
    done = own("run", "pipeline-ae", "from-names", "shout", **told)
    assert done.stdout == "ann!3ann\n", done.stderr
    done = own("run", "--num_threads=2", "pipeline-ae", "from-names", "shout", **told)
    assert done.stdout == "ann!2ann\n", done.stderr


def test_a_variable_that_no_option_is_read_from_is_told(own: Run) -> None:
    done = own(
        "--plugin=own_stages.py",
        *AE,
        "from-names",
        "shout",
        MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOD="true",
        MORPHEUS_RUN_NUM_THREADS="1",
        MORPHEUS_TEST_SERVER="not ours",
    )
    [told] = [line for line in done.stderr.splitlines() if "MORPHEUS_" in line]
    assert told == (
        "MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOD is set, but no option is read from it. "
        "Did you mean MORPHEUS_RUN_PIPELINE_AE_SHOUT_LOUD?"
    )


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("MORPHEUS_RUN_NUM_THREADS", ("run", "pipeline-ae", "from-duo")),
        ("MORPHEUS_RUN_PIPELINE_AE_TRAIN_AE_SEED", (*AE, "from-duo", "--input_glob=a", "train-ae")),
        ("MORPHEUS_TOOLS_REPLAY_SEED", ("tools", "replay", "--input_glob=a")),
    ],
)
def test_a_wrong_value_out_of_the_environment_is_told_with_its_variable(
    run: Run, variable: str, words: tuple[str, ...]
) -> None:
    done = run(*words, **{variable: "many"})
    assert done.returncode == 2
    assert f"It comes from the environment, {variable}." in done.stderr


@pytest.mark.parametrize(
    ("flag", "sign"),
    [
        (("--loud",), "!"),
        (("--loud=True",), "!"),
        (("--loud", "yes"), "!"),
        (("--loud=no",), "."),
        (("--loud", "False"), "."),
        (("--seed", "1", "--loud=on", "--seed=2"), "!"),
    ],
)
def test_a_flag_may_have_a_value_as_some_releases_wanted(
    own: Run, flag: tuple[str, ...], sign: str
) -> None:
    done = own("--plugin=own_stages.py", *AE, "from-names", "shout", *flag, "monitor")
    assert done.stdout == f"ann{sign}1None\n", done.stderr


def test_a_flag_with_another_value_is_refused(own: Run) -> None:
    done = own("--plugin=own_stages.py", *AE, "from-names", "shout", "--loud=very")
    assert done.returncode == 2
    assert "Option '--loud': 'very' is no true or false." in done.stderr
