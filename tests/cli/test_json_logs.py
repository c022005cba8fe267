"""Logs as JSON, and the limit on messages that repeat."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from morpheus.cli.logging import MAX_VARIANTS, RepeatFilter, configure_logging
from morpheus.errors import TransientError, UsageError
from morpheus.text import NOTICE

from .conftest import Run

NAMES = ("run", "pipeline-ae", "--userid_column_name=user", "from-names")


def read_lines(text: str) -> list[dict[str, Any]]:
    """Return the objects of a log. Each of its lines is one."""
    assert text.isascii()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("how", "exit_code", "code"),
    [
        ("usage", 2, "usage"),
        ("record", 1, "record"),
        ("bug", 1, "bug"),
        ("disk", 1, "enoent"),
        ("pipe", 1, "epipe"),
    ],
)
def test_a_failure_is_one_line_with_a_code(
    pipeline: Run, how: str, exit_code: int, code: str
) -> None:
    done = pipeline("--log_format=json", *NAMES, "fail", f"--how={how}")
    last = read_lines(done.stderr)[-1]
    assert (done.returncode, last["level"], last["code"]) == (exit_code, "error", code)


def test_a_run_writes_nothing_but_json(pipeline: Run) -> None:
    done = pipeline("--log_format=json", "--debug", *NAMES, "fail", "--how=not")
    lines = read_lines(done.stderr)
    assert done.returncode == 0
    assert any("Scored" in line["message"] for line in lines), "the summary"
    assert {"debug", "info"} <= {line["level"] for line in lines}


@pytest.mark.parametrize(
    "words",
    [("--nope",), ("run", "--nope"), ("nope",), (*NAMES, "fail", "--nope"), ("run", "pipeline-ae")],
)
def test_a_wrong_command_line_is_json_after_the_option(pipeline: Run, words: tuple[str]) -> None:
    done = pipeline("--log_format=json", *words)
    assert done.returncode == 2
    if words != ("--nope",):  # click reads all options of a command before any of them counts
        assert read_lines(done.stderr)[-1]["code"] == "usage"


def test_text_of_a_log_cannot_break_a_line_or_command_a_terminal(pipeline: Run) -> None:
    done = pipeline("--log_format=json", *NAMES, "fail", "--how=record")
    [line] = [line for line in read_lines(done.stderr) if line["level"] == "error"]
    assert line["message"] == "a.json:3: `eventTime` is \\x1b[2J."
    assert "\\u001b" not in done.stderr


def test_a_traceback_is_in_the_line_of_its_message(pipeline: Run) -> None:
    done = pipeline("--log_format=json", "--debug", *NAMES, "fail", "--how=bug")
    [line] = [line for line in read_lines(done.stderr) if "traceback" in line]
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["level"] == "debug"


def test_a_message_has_the_stage_the_logger_and_the_code_of_its_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO", None, "json")
    error = TransientError("It does not respond.")
    logging.getLogger("morpheus.sinks.to_http").error("Try again: %s", error)
    logging.getLogger("morpheus.sources.cloudtrail").info("Read.")
    logging.getLogger("morpheus.pipeline").warning("Quiet.", extra=NOTICE)
    first, second, third = read_lines(capsys.readouterr().err)
    assert (first["stage"], first["code"]) == ("to-http", "transient")
    assert first["message"] == "Try again: It does not respond."
    assert (second["stage"], second["logger"]) == ("from-cloudtrail", "morpheus.sources.cloudtrail")
    assert "stage" not in third
    assert third["level"] == "info"


def test_json_and_a_configuration_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log_format: the format of a --log_config_file is in"):
        configure_logging("INFO", str(tmp_path / "log.ini"), "json")


def log(filter_: RepeatFilter, level: int, text: str, *args: object) -> logging.LogRecord | None:
    """Return the record of a message if the filter lets it pass."""
    record = logging.LogRecord("morpheus.sinks.to_http", level, "f", 1, text, args, None)
    return record if filter_.filter(record) else None


def test_an_error_that_repeats_is_written_every_ten_seconds_with_a_count() -> None:
    now = [0.0]
    limit = RepeatFilter(lambda: now[0])
    shown = []
    for second in range(3600):  # a server that is down for an hour
        now[0] = float(second)
        if record := log(limit, logging.ERROR, "%s: no answer, %d s", "http://a", second):
            shown.append((second, record.left_out))
    assert shown == [(0, 0), *((second, 9) for second in range(10, 3600, 10))]


def test_messages_that_differ_are_all_written_up_to_a_limit() -> None:
    limit = RepeatFilter(lambda: 0.0)
    files = [f"{'x' * n}.json" for n in range(100)]
    shown = [name for name in files if log(limit, logging.WARNING, "%s: cannot be read", name)]
    assert shown == files[:MAX_VARIANTS]
    assert log(limit, logging.WARNING, "Another message")


def test_what_is_no_warning_is_not_limited() -> None:
    limit = RepeatFilter(lambda: 0.0)
    assert all(log(limit, logging.INFO, "Read.") for _ in range(1000))


def test_the_limit_needs_bounded_memory() -> None:
    now = [0.0]
    limit = RepeatFilter(lambda: now[0])
    for second in range(20_000):
        now[0] = float(second)
        log(limit, logging.ERROR, "%s: damaged", "x" * (second % 5_000))
    assert len(limit._kinds) <= 1_100  # noqa: SLF001 - the law is about it


def test_on_a_console_the_count_follows_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING", None)
    [handler] = logging.getLogger("morpheus").handlers
    now = [0.0]
    handler.filters = [RepeatFilter(lambda: now[0])]
    for second in (0.0, 1.0, 2.0, 11.0):
        now[0] = second
        logging.getLogger("morpheus.x").error("It is down.")
    assert capsys.readouterr().err.splitlines() == [
        "Error: It is down.",
        "Error: It is down. (2 more like this were left out.)",
    ]
