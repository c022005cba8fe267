"""The arithmetic of the benchmarks."""

import importlib
import json
import subprocess
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import busy
from morpheus.models.batched_training import train_batched

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
USER = "userIdentitysessionContextsessionIssueruserName"
WHEEL = "[tool.hatch.build.targets.wheel]\npackages = ['src/morpheus']\n"


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(f"speed.{name}")


def test_average_precision_is_one_if_all_incidents_rank_first(speed):
    rank = speed("training").average_precision
    assert rank(np.array([5.0, 4.0, 1.0]), np.array([True, True, False])) == 1


def test_average_precision_of_equal_scores_is_the_share_of_incidents(speed):
    rank = speed("training").average_precision
    assert rank(np.zeros(8), np.arange(8) < 2) == 0.25


def test_a_command_is_measured_with_its_child_processes(speed):
    busy = "s = bytearray(b'x') * 80_000_000; sum(range(20_000_000))"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}], check=True)"
    run = speed("meter").run([sys.executable, "-c", nested])
    assert run.cpu > 0.1
    assert run.peak > 80


@pytest.mark.usefixtures("speed")
def test_a_worker_in_turns_gets_at_most_its_share():
    turns = importlib.import_module("scale.turns")
    with get_context("spawn").Pool(1) as pool:
        with turns.in_turns(4):
            assert pool.apply(busy, (1.0,)) < 0.4
        assert pool.apply(busy, (0.1,)) > 0


def test_versions_take_turns(speed):
    order = []
    jobs = {name: partial(order.append, name) for name in ("old", "new")}
    speed("versions").in_turns(jobs, 3)
    assert order == ["old", "new"] * 3


def test_the_ratio_of_versions_is_the_median_over_the_turns(speed):
    versions, meter = speed("versions"), speed("meter")
    old, new = ([meter.Run(1, cpu, 1, "") for cpu in each] for each in ((1, 2, 8), (4, 2, 4)))
    assert versions.median_ratio(new, old) == 1


def test_an_environment_of_a_version_has_its_package_and_no_other_one(speed, tmp_path):
    # Any package can be installed for this; one that needs no build step is quick.
    versions, meter = speed("versions"), speed("meter")
    tree = tmp_path / "tree"
    (tree / "src" / "morpheus").mkdir(parents=True)
    (tree / "src" / "morpheus" / "__init__.py").write_text("def main(): print('earlier')\n")
    text = (BENCHMARKS.parent / "pyproject.toml").read_text()
    (tree / "README.md").touch()
    head = text.partition("[project.optional-dependencies]")[0]
    script = "[project.scripts]\nmorpheus = 'morpheus:main'\n"
    (tree / "pyproject.toml").write_text(head.replace('"LICENSE"', "") + script + WHEEL)
    version = versions.install(tree, tmp_path / "version")
    assert meter.run(version.command).shown == "earlier\n"


def test_logs_that_an_earlier_run_has_written_are_not_written_again(speed, tmp_path):
    logs = speed("logs")
    once = logs.fleet(tmp_path, 1, rate=2.0, forms=("parquet",))
    logs.fleet.cache_clear()  # of this process
    before = {path: path.stat().st_mtime_ns for path in once.folder.rglob("*")}
    assert logs.fleet(tmp_path, 1, rate=2.0, forms=("parquet",)) == once
    assert {path: path.stat().st_mtime_ns for path in once.folder.rglob("*")} == before
    assert once.scored


def test_a_detector_that_is_not_installed_is_named_and_skipped(speed, monkeypatch):
    alternatives = speed("alternatives")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    name = "counts, DuckDB "
    found, skipped = alternatives.ask(cases(alternatives), {name: alternatives.DETECTORS[name]})
    assert not found
    assert skipped == " Skipped: counts, DuckDB (duckdb is not installed)."


@pytest.mark.parametrize("name", ["half-space trees, River ", "counts, DuckDB "])
def test_other_detectors_rank_values_that_a_user_never_had_first(speed, name):
    alternatives = speed("alternatives")
    given = cases(alternatives)
    found, skipped = alternatives.ask(given, {name: alternatives.DETECTORS[name]})
    assert not skipped
    [[scores]] = [answer.scores.values() for answer in found.values()]
    for case, each in zip(given, scores, strict=True):
        assert case.marked[int(np.argmax(each))]


def cases(alternatives):
    """Two users with a new value in the third of their scored events."""
    users = ("ann", "bob")
    return [
        alternatives.Case(
            _events(user), _events(user)[:5].with_columns(_new_at(2)), np.arange(5) == 2
        )
        for user in users
    ]


def _events(user):
    names = ["GetObject", "PutObject"] * 200
    return pl.DataFrame({"eventName": names}).with_columns(pl.lit(user).alias(USER))


def _new_at(row):
    new = pl.lit("DeleteTrail")
    return (
        pl.when(pl.int_range(pl.len()) == row).then(new).otherwise("eventName").alias("eventName")
    )


def test_profiles_are_recorded_in_two_formats(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "flames",
        "--users=2",
        "--only=detect",
        "--into",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--cap-add" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    profile = json.loads((tmp_path / "detect.speedscope.json").read_text())
    names = {frame["name"] for frame in profile["shared"]["frames"]}
    assert any("run_detect" in name for name in names)
    assert (tmp_path / "detect.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.usefixtures("speed")
def test_a_profiler_that_may_not_trace_says_how_to_allow_it():
    flames = importlib.import_module("flames.__main__")
    assert "--cap-add=SYS_PTRACE" in flames.explain("Error: Permission Denied: Try again\n")
    assert "no such thing" in flames.explain("Error: no such thing")


def test_a_command_that_fails_is_not_measured(speed):
    with pytest.raises(RuntimeError, match="no such thing"):
        speed("meter").run([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_the_gpu_benchmark_runs_on_any_device(speed, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    gpu, scale = speed("gpu"), speed("scale").Scale(tmp_path, quick=True)
    tasks = gpu.trials(scale)[:3]
    on_processor = partial(train_batched, device=torch.device("cpu"))
    users, slow, fast, ratio, apart = gpu.beside(on_processor, tasks)
    assert users == len(tasks) > 0
    assert ratio == slow / fast
    assert apart < 0.02


def test_the_upstream_time_series_stage_flags_only_a_burst(speed):
    times = np.arange(0, 10 * 86_400, 600)
    burst = np.full(60, 5 * 86_400 + 30)
    assert speed("upstream_rhythm").flags(np.sort(np.append(times, burst)), 256) == 61


def test_parts_that_do_not_run_keep_their_section(speed, tmp_path):
    page = importlib.import_module("figures.page")
    results = page.Page(tmp_path / "page.md", "# Head\n", speed("__main__").PARTS)
    sections = {"training": "one\n\n**a**\n", "cold": "two\n"}
    results.write(sections)
    assert results.read() == sections


def test_a_part_that_runs_replaces_only_its_section(speed, tmp_path):
    page, table = (importlib.import_module(f"figures.{name}") for name in ("page", "table"))
    results = page.Page(tmp_path / "page.md", "# Head\n", speed("__main__").PARTS)
    results.write({"training": "one\n", "cold": "two\n"})
    results.measure("cold", lambda: [table.Table("t", ["a"], [["new"]])], "Run")
    assert results.read()["training"] == "one\n"
    assert "| new |" in results.read()["cold"]
    assert "two" not in results.read()["cold"]
