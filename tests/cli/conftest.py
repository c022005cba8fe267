"""Fixtures: a plugin package on disk, and the real command that uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[[str, str, Mapping[str, str]], None]

COMMAND = [sys.executable, "-c", "from morpheus.cli.main import main; main()"]
STAGES = '''
    """Stages for the tests of the command line."""

    import os
    import signal
    import time
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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command in the test's folder, with the installed packages."""
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


@pytest.fixture
def pipeline(install: Install, run: Run) -> Run:
    """Run the command with the stages of this file installed."""
    install(
        "own_package", STAGES, {"from-names": "own_package:FromNames", "fail": "own_package:Fail"}
    )
    return run
