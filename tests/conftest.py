"""Settings of all tests, and what several of them use: a browser, a warm command, benchmarks."""

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from warm_command import warm_command

# Machines are shared: how long an example takes says nothing of the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# What a shell starts in the background ignores Ctrl+C, and so does all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("morpheus")
    # A fixture of a module or session runs before this one, and may have run the command.
    ours.handlers, ours.propagate = [], True
    ours.setLevel(logging.NOTSET)
    logging.setLogRecordFactory(logging.LogRecord)
    before = [(one, one.handlers[:], one.level, one.propagate) for one in (root, ours)]
    yield
    for one, handlers, level, propagate in before:
        for handler in set(one.handlers) - set(handlers):
            handler.close()
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
    logging.setLogRecordFactory(logging.LogRecord)


@pytest.fixture(scope="session")
def warm_morpheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A script like `morpheus`, for tests of what many commands do, not of how one starts."""
    with warm_command(tmp_path_factory.mktemp("warm"), os.environ) as script:
        yield script


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox"],  # tests may run as root
        )
        yield chromium
        chromium.close()


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module
