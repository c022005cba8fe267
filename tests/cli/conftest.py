"""Fixtures: a plugin package on disk, and the real command that uses it.

A command runs in the process of the test, because most of the time of a short command is that of
its imports. `run_process` is for tests of processes and signals.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import invalidate_caches
from io import BytesIO, TextIOWrapper
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

import pytest

from morpheus.cli.main import main
from morpheus.core import registry

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[[str, str, Mapping[str, str]], None]

COMMAND = [sys.executable, "-c", "from morpheus.cli.main import main; main()"]
STAGES = '''
    """Stages for the tests of the command line."""

    import logging
    import os
    import signal
    import time
    import warnings
    from dataclasses import dataclass
    from datetime import UTC, datetime

    import polars as pl

    from morpheus.errors import RecordError, UsageError
    from morpheus.core.batch import Events, OutputRows, Table
    from morpheus.sources.base import Source
    from morpheus.core.stage import Transform, option


    @dataclass(frozen=True)
    class FromNames(Source):
        """Make an event for each name.

        Args:
            name: Not for the screen.
        """

        name = "from-names"
        who: tuple[str, ...] = option(("ann",), "Name of a user; give it again for another.")

        def events(self, history, summary):
            """Make events."""
            for who in self.who:
                summary.input.read += 1
                column = {self.options.userid_column_name: [who]}
                index = {"": [0], "_index_": [0]}
                time_ = {"event_dt": [datetime(2024, 1, 1, tzinfo=UTC)]}
                yield Events(user=who, table=Table(pl.DataFrame({**index, **column, **time_})))


    @dataclass(frozen=True)
    class Fail(Transform):
        """Fail in the way asked for."""

        name = "fail"
        takes = (Events,)
        gives = OutputRows
        how: str = option("not", "The way to fail.")

        def process(self, batch, state):
            """Fail."""
            if self.how == "usage":
                raise UsageError("The option `--how` is wrong.")
            if self.how == "record":
                raise RecordError("`eventTime` is \\x1b[2J", file="a.json", line=3)
            if self.how == "bug":
                raise KeyError("lost")
            if self.how == "disk":
                open("/nowhere/at/all")
            if self.how == "pipe":
                raise BrokenPipeError(32, "Broken pipe")
            if self.how == "noisy":
                logging.getLogger("urllib3.pool").error("try %s", "again")
                warnings.warn("old")
            if self.how in ("INT", "TERM"):
                os.kill(os.getpid(), getattr(signal, "SIG" + self.how))
                time.sleep(10)
            if self.how == "disguised":
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(10)
                except KeyboardInterrupt:
                    raise TypeError("no data type") from None
            if self.how == "twice":
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                finally:
                    os.kill(os.getpid(), signal.SIGINT)
            yield OutputRows(user=batch.user, table=batch.table)
'''


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Install a package of one module with stages."""

    def install(package: str, source: str, entry_points: Mapping[str, str]) -> None:
        site = tmp_path / "site"
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = (f"{word} = {place}" for word, place in entry_points.items())
        (info / "entry_points.txt").write_text("\n".join(["[morpheus.stages]", *lines]))

    return install


@contextmanager
def fresh_modules(*folders: Path) -> Iterator[None]:
    """Import modules of these folders, and forget them and their stages at the end."""
    path, loaded, plugins = sys.path[:], set(sys.modules), registry._PLUGINS[:]  # noqa: SLF001
    sys.path[:0] = map(str, folders)
    invalidate_caches()
    registry._entry_points_by_name.cache_clear()  # noqa: SLF001
    try:
        yield
    finally:
        for name in set(sys.modules) - loaded:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if any(folder in Path(file).parents for folder in folders):
                del sys.modules[name]
        sys.path[:] = path
        registry._PLUGINS[:] = plugins  # noqa: SLF001
        registry._entry_points_by_name.cache_clear()  # noqa: SLF001


def read_all(stream: TextIOWrapper) -> str:
    """Return all that was written to a stream."""
    stream.seek(0)
    return stream.read()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in the test's folder and process, with the installed packages."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        code: object = 0
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["morpheus", *words])
        with patch.dict(os.environ, environment), fresh_modules(tmp_path, tmp_path / "site"):
            stdout, stderr = (TextIOWrapper(BytesIO(), "utf-8") for _ in range(2))
            with redirect_stdout(stdout), redirect_stderr(stderr):
                try:
                    main()
                except SystemExit as end:
                    code = end.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(words, code, *map(read_all, (stdout, stderr)))

    return run


@pytest.fixture
def run_process(tmp_path: Path) -> Run:
    """Run the command in the test's folder and in a process of its own."""
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            timeout=60,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )

    return run


def install_stages(install: Install) -> None:
    """Install the stages of this file."""
    install(
        "own_package", STAGES, {"from-names": "own_package:FromNames", "fail": "own_package:Fail"}
    )


@pytest.fixture
def pipeline(install: Install, run: Run) -> Run:
    """Run the command with the stages of this file installed."""
    install_stages(install)
    return run


@pytest.fixture
def pipeline_process(install: Install, run_process: Run) -> Run:
    """Run the command in a process of its own, with the stages of this file installed."""
    install_stages(install)
    return run_process
