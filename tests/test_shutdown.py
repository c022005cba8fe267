"""SIGTERM, as systemd and Kubernetes send it: a real process, its exit code, and its rows."""

from __future__ import annotations

import signal
import sqlite3
import threading
from pathlib import Path

import polars as pl

from test_metrics import running, until, write_events

FILES, EVENTS = 25, 20


def count_rows(folder: Path) -> int:
    path = folder / "out.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def read_rows(folder: Path) -> pl.DataFrame:
    """Return the rows of the output. Each is complete, or Polars raises an error."""
    assert (folder / "out.csv").read_bytes().endswith(b"\n")
    return pl.read_csv(folder / "out.csv")


def test_a_stream_that_is_told_to_end_saves_what_it_has_read_and_the_next_run_goes_on(
    tmp_path: Path,
) -> None:
    def write_all() -> None:
        for number in range(FILES):
            write_events(tmp_path / "in" / f"b{number:02}.jsonl", 3, EVENTS, day=number + 2)
            stopped.wait(0.1)

    stopped = threading.Event()
    writer = threading.Thread(target=write_all, daemon=True)
    with running(tmp_path) as (process, _):
        until(lambda: count_rows(tmp_path) >= 60)
        writer.start()
        until(lambda: count_rows(tmp_path) > 60)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=40)
    assert process.returncode == 130, message
    assert "Stopping pipeline. Please wait..." in message
    assert "Traceback" not in message
    first = read_rows(tmp_path)
    writer.join(30)
    with sqlite3.connect(tmp_path / "state.db") as state:
        [waiting] = state.execute("SELECT count(*) FROM outbox").fetchone()
    assert waiting == 0, "the sink has taken all rows"

    with running(tmp_path) as (process, _):
        until(lambda: count_rows(tmp_path) >= 60 + FILES * EVENTS)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=40)
    assert process.returncode == 130, message
    rows = read_rows(tmp_path)
    assert rows.height == 60 + FILES * EVENTS
    assert rows["row_id"].n_unique() == rows.height
    assert rows.head(first.height).equals(first), "what was written is not written again"


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as (process, _):
        until(lambda: count_rows(tmp_path) >= 60)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=40)
    assert process.returncode in {130, -signal.SIGTERM}
    assert "Traceback" not in message
