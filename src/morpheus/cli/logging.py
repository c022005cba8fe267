"""Logging configuration files, read without running anything that they say.

Python's own readers evaluate an ini file's `args` as code, and import and call whatever class a
JSON file names. Here a file may use the handlers below, and nothing else.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import logging.config
import logging.handlers
from collections.abc import Iterator
from configparser import Error as ParserError
from configparser import RawConfigParser, SectionProxy
from pathlib import Path
from typing import Any, NoReturn

from morpheus.cli.output import echo
from morpheus.errors import UsageError
from morpheus.text import escape_control

ALLOWED_HANDLERS: dict[str, type[logging.Handler]] = {
    "StreamHandler": logging.StreamHandler,
    "FileHandler": logging.FileHandler,
    "NullHandler": logging.NullHandler,
    "handlers.RotatingFileHandler": logging.handlers.RotatingFileHandler,
    "handlers.TimedRotatingFileHandler": logging.handlers.TimedRotatingFileHandler,
    "handlers.WatchedFileHandler": logging.handlers.WatchedFileHandler,
    "handlers.SysLogHandler": logging.handlers.SysLogHandler,
}
ALLOWED_STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
LoggingConfig = dict[str, Any]


def read_config(name: str) -> LoggingConfig:
    """Read a logging configuration, in the form that `dictConfig` takes.

    Args:
        name: A file that ends in `.json`, or one in ini format.

    Raises:
        UsageError: It is neither, or uses what is not allowed here.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
        config = json.loads(text) if name.lower().endswith(".json") else _parse_ini(text)
    except (OSError, ValueError, KeyError, ParserError, SyntaxError) as error:
        _reject_config(name, f"cannot be read: {_describe_error(error)}")
    if not isinstance(config, dict):
        _reject_config(name, "is no logging configuration: it should be a JSON object")
    _validate_config(name, config)
    return {"disable_existing_loggers": False, **config}


def _validate_config(name: str, config: LoggingConfig) -> None:
    """Refuse whatever would make `dictConfig` import or call what the file says."""
    for key, value in _iter_entries(config):
        if key in {"()", ".", "factory"}:
            _reject_config(name, f"the entry `{key}` would run code, which is not allowed")
        if isinstance(value, str) and "://" in value[:12] and value not in ALLOWED_STREAMS:
            _reject_config(
                name, f"`{value}`: only {' and '.join(sorted(ALLOWED_STREAMS))} are allowed"
            )
    for part, known in (("handlers", set(ALLOWED_HANDLERS)), ("formatters", {"Formatter"})):
        for one in _iter_children(config.get(part)):
            kind = one.get("class", "Formatter" if part == "formatters" else None)
            if str(kind).removeprefix("logging.") not in known:
                allowed = ", ".join(f"logging.{x}" for x in sorted(known))
                _reject_config(name, f"class `{kind}` is not allowed; these are: {allowed}")


def _iter_children(part: object) -> Iterator[LoggingConfig]:
    """The entries of one part of a configuration."""
    for one in part.values() if isinstance(part, dict) else ():
        if isinstance(one, dict):
            yield one


def _iter_entries(config: object) -> Iterator[tuple[str, object]]:
    """Every key and value, however deep; the items of a list have no key."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from _iter_entries(value)
    elif isinstance(config, list):
        for value in config:
            yield "", value
            yield from _iter_entries(value)


def _parse_ini(text: str) -> LoggingConfig:
    """The same configuration as a dict."""
    parser = RawConfigParser()
    parser.read_string(text)
    loggers = {one: _parse_logger(parser[f"logger_{one}"]) for one in _read_keys(parser, "loggers")}
    return {
        "version": 1,
        "root": loggers.pop("root", {}),
        "loggers": {parser[f"logger_{one}"]["qualname"]: made for one, made in loggers.items()},
        "handlers": {
            one: _parse_handler(parser[f"handler_{one}"]) for one in _read_keys(parser, "handlers")
        },
        "formatters": {
            one: dict(parser[f"formatter_{one}"]) for one in _read_keys(parser, "formatters")
        },
    }


def _read_keys(parser: RawConfigParser, section: str) -> list[str]:
    """The names listed in a section."""
    listed = parser[section].get("keys", "") if section in parser else ""
    return _split_names(listed)


def _split_names(listed: str) -> list[str]:
    """Names between commas."""
    return [one.strip() for one in listed.split(",") if one.strip()]


def _parse_logger(section: SectionProxy) -> LoggingConfig:
    """One logger."""
    made: LoggingConfig = {"handlers": _split_names(section.get("handlers", ""))}
    if "level" in section:
        made["level"] = section["level"]
    if "propagate" in section:
        made["propagate"] = section.getboolean("propagate")
    return made


def _parse_handler(section: SectionProxy) -> LoggingConfig:
    """One handler: its positional arguments get their names."""
    kind = section["class"].removeprefix("logging.")
    made: LoggingConfig = {"class": f"logging.{kind}"}
    made |= {key: section[key] for key in ("level", "formatter") if section.get(key)}
    positional = _parse_literal(section.get("args", "()"))
    if not isinstance(positional, tuple):
        raise ValueError(f"args = {section['args']}: should be a tuple, as in ('file.log', 'a')")  # noqa: TRY004 - it is the file's value that is wrong
    named = _parse_literal(section.get("kwargs", "{}"))
    if kind in ALLOWED_HANDLERS:
        try:
            made |= inspect.signature(ALLOWED_HANDLERS[kind]).bind(*positional, **named).arguments
        except TypeError as error:
            raise ValueError(f"{kind}: {error}") from error
    return made


def _parse_literal(text: str) -> Any:  # noqa: ANN401 - whatever a literal can be
    """The value of a Python literal; `sys.stdout` and `sys.stderr` are literals too."""
    return ast.literal_eval(_StreamTransformer().visit(ast.parse(text.strip(), mode="eval")))


class _StreamTransformer(ast.NodeTransformer):
    """Replaces `sys.stdout` and `sys.stderr` by the names that `dictConfig` knows."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        stream = f"ext://{ast.unparse(node)}"
        return ast.Constant(stream) if stream in ALLOWED_STREAMS else node


def _describe_error(error: Exception) -> str:
    """What a reader found wrong."""
    missing = f"there is no section or entry {error}" if isinstance(error, KeyError) else ""
    return missing or str(error)


def _reject_config(name: str, reason: str) -> NoReturn:
    """Refuse the file."""
    raise UsageError(f"--log_config_file: {name}: {reason}.")


LEVEL_STYLES: dict[str, dict[str, Any]] = {
    "CRITICAL": {"fg": "red", "bold": True},
    "ERROR": {"fg": "red"},
    "WARNING": {"fg": "yellow"},
    "DEBUG": {"dim": True},
}


class SafeLogRecord(logging.LogRecord):
    """A log record whose arguments, which may come out of a log, stay on their line."""

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        """The message, with control characters as escapes."""
        arguments = self.args
        if isinstance(arguments, tuple):
            arguments = tuple(escape_control(x) if isinstance(x, str) else x for x in arguments)
        return escape_control(
            str(self.msg) % arguments if arguments else str(self.msg), keep="\n\t"
        )


class ConsoleHandler(logging.Handler):
    """Shows messages on stderr, and nothing but the message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message in the colour of its level."""
        echo(self.format(record), **LEVEL_STYLES.get(record.levelname, {}))


def configure_logging(level: str, config_file: str | None) -> None:
    """Log from here on to the screen, or as the file says.

    Args:
        level: Least level of what the screen shows; a file has its own.
        config_file: Configuration in JSON or ini; None for the screen.

    Raises:
        UsageError: The file is no logging configuration, or asks for code to be run.
    """
    logging.setLogRecordFactory(SafeLogRecord)
    if config_file is None:
        root = logging.getLogger("morpheus")
        root.handlers = [ConsoleHandler()]
        root.setLevel(level.upper())
        return
    try:
        # Python's default silences whoever has a logger already: this package.
        logging.config.dictConfig({"disable_existing_loggers": False} | read_config(config_file))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # dictConfig's own message is mostly "Unable to configure handler"; its cause says why.
        raise UsageError(
            f"--log_config_file: {config_file}: {error.__cause__ or error}."
        ) from error
