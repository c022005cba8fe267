"""The arithmetic of the benchmarks."""

import importlib
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from jobs import busy
from morpheus.models.batched_training import train_batched

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
