from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path

import pytest

from morpheus.cli.logging import configure_logging, read_config
from morpheus.errors import UsageError

INI = """
[loggers]
keys = root, m
[handlers]
keys = file, screen
[formatters]
keys = plain
[logger_root]
level = WARNING
handlers = screen
[logger_m]
qualname = morpheus
level = DEBUG
handlers = file
propagate = 0
[handler_file]
class = {kind}
formatter = plain
args = {args}
[handler_screen]
class = StreamHandler
args = (sys.stderr,)
[formatter_plain]
format = %(levelname)s %(message)s
"""


def ini_config(folder: Path, *, kind: str = "FileHandler", args: str) -> str:
    file = folder / "log.ini"
    file.write_text(INI.format(kind=kind, args=args))
    return str(file)


def json_config(folder: Path, **handler: object) -> str:
    file = folder / "log.JSON"
    root = {"handlers": ["h"]}
    file.write_text(json.dumps({"version": 1, "root": root, "handlers": {"h": handler}}))
    return str(file)


@pytest.mark.parametrize("kind", ["FileHandler", "logging.FileHandler"])
def test_an_ini_file_configures_logging(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "out.log"
    configure_logging("WARNING", ini_config(tmp_path, kind=kind, args=f"({str(log)!r}, 'a')"))
    logging.getLogger("morpheus.x").debug("user %s", "a\nb")
    assert log.read_text() == "DEBUG user a\\nb\n"


def test_arguments_in_an_ini_file_have_pythons_meaning(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    args = f"({str(log)!r}, 'a', 1000, 3)"
    configure_logging(
        "WARNING", ini_config(tmp_path, kind="handlers.RotatingFileHandler", args=args)
    )
    [handler] = logging.getLogger("morpheus").handlers
    assert isinstance(handler, logging.handlers.RotatingFileHandler)
    assert (handler.maxBytes, handler.backupCount) == (1000, 3)
    assert not logging.getLogger("morpheus").propagate


def test_a_json_file_configures_logging(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    configure_logging(
        "WARNING", json_config(tmp_path, **{"class": "logging.FileHandler", "filename": str(log)})
    )
    logging.getLogger("morpheus.x").warning("seen")
    assert log.read_text() == "seen\n"


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ({"class": "subprocess.Popen", "args": ["touch", "x"]}, "class `subprocess.Popen` is not"),
        ({"()": "os.system", "command": "true"}, r"entry `\(\)` would run code"),
        ({"class": "logging.StreamHandler", "stream": "ext://os.environ"}, "ext://os.environ"),
        ({"class": "logging.NullHandler", ".": {"name": "x"}}, r"entry `\.` would run code"),
        ({"class": "logging.NullHandler", "filters": ["cfg://x"]}, "cfg://x"),
        ({"class": ["logging.NullHandler"]}, "is not allowed"),
        ({}, "class `None` is not"),
    ],
)
def test_a_json_file_that_would_run_code_is_rejected(
    tmp_path: Path, handler: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        configure_logging("WARNING", json_config(tmp_path, **handler))


@pytest.mark.parametrize(
    "args", ["(__import__('os').getcwd(),)", "(open('x', 'w'),)", "(sys.modules,)", "(1 +", "'a'"]
)
def test_an_ini_file_with_code_as_arguments_is_rejected(tmp_path: Path, args: str) -> None:
    with pytest.raises(UsageError, match=r"log\.ini: cannot be read"):
        configure_logging("WARNING", ini_config(tmp_path, args=args))
    assert [path.name for path in tmp_path.iterdir()] == ["log.ini"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "cannot be read"),
        ("{}", "version"),
        ('{"version": 1, "root": {"handlers": ["gone"]}}', "gone"),
        (
            '{"version": 1, "handlers": {"h": {"class": "logging.FileHandler", "filename": "/"}}}',
            "/",
        ),
        ('{"version": 1, "formatters": {"f": {"class": "x.Y"}}}', "class `x.Y` is not allowed"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_rejected(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "log.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        configure_logging("WARNING", str(file))


def test_an_ini_file_without_a_listed_section_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "log.ini"
    file.write_text("[loggers]\nkeys = root\n")
    with pytest.raises(UsageError, match="no section or entry 'logger_root'"):
        read_config(str(file))
