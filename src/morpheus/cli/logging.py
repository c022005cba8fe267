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

from morpheus.cli.output import say
from morpheus.errors import UsageError
from morpheus.text import escape_control

HANDLERS: dict[str, type[logging.Handler]] = {
    "StreamHandler": logging.StreamHandler,
    "FileHandler": logging.FileHandler,
    "NullHandler": logging.NullHandler,
    "handlers.RotatingFileHandler": logging.handlers.RotatingFileHandler,
    "handlers.TimedRotatingFileHandler": logging.handlers.TimedRotatingFileHandler,
    "handlers.WatchedFileHandler": logging.handlers.WatchedFileHandler,
    "handlers.SysLogHandler": logging.handlers.SysLogHandler,
}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
Config = dict[str, Any]


def read_config(name: str) -> Config:
    """Read a logging configuration, in the form that `dictConfig` takes.

    Args:
        name: A file that ends in `.json`, or one in ini format.

    Raises:
        UsageError: It is neither, or uses what is not allowed here.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
        config = json.loads(text) if name.lower().endswith(".json") else _from_ini(text)
    except (OSError, ValueError, KeyError, ParserError, SyntaxError) as error:
        _refuse(name, f"cannot be read: {_reason(error)}")
    if not isinstance(config, dict):
        _refuse(name, "is no logging configuration: it should be a JSON object")
    _check(name, config)
    return {"disable_existing_loggers": False, **config}


def _check(name: str, config: Config) -> None:
    """Refuse whatever would make `dictConfig` import or call what the file says."""
    for key, value in _entries(config):
        if key in {"()", ".", "factory"}:
            _refuse(name, f"the entry `{key}` would run code, which is not allowed")
        if isinstance(value, str) and "://" in value[:12] and value not in STREAMS:
            _refuse(name, f"`{value}`: only {' and '.join(sorted(STREAMS))} are allowed")
    for part, known in (("handlers", set(HANDLERS)), ("formatters", {"Formatter"})):
        for one in _children(config.get(part)):
            kind = one.get("class", "Formatter" if part == "formatters" else None)
            if str(kind).removeprefix("logging.") not in known:
                allowed = ", ".join(f"logging.{x}" for x in sorted(known))
                _refuse(name, f"class `{kind}` is not allowed; these are: {allowed}")


def _children(part: object) -> Iterator[Config]:
    """The entries of one part of a configuration."""
    for one in part.values() if isinstance(part, dict) else ():
        if isinstance(one, dict):
            yield one


def _entries(config: object) -> Iterator[tuple[str, object]]:
    """Every key and value, however deep; the items of a list have no key."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(config, list):
        for value in config:
            yield "", value
            yield from _entries(value)


def _from_ini(text: str) -> Config:
    """The same configuration as a dict."""
    parser = RawConfigParser()
    parser.read_string(text)
    loggers = {one: _logger(parser[f"logger_{one}"]) for one in _keys(parser, "loggers")}
    return {
        "version": 1,
        "root": loggers.pop("root", {}),
        "loggers": {parser[f"logger_{one}"]["qualname"]: made for one, made in loggers.items()},
        "handlers": {one: _handler(parser[f"handler_{one}"]) for one in _keys(parser, "handlers")},
        "formatters": {
            one: dict(parser[f"formatter_{one}"]) for one in _keys(parser, "formatters")
        },
    }


def _keys(parser: RawConfigParser, section: str) -> list[str]:
    """The names listed in a section."""
    listed = parser[section].get("keys", "") if section in parser else ""
    return _names(listed)


def _names(listed: str) -> list[str]:
    """Names between commas."""
    return [one.strip() for one in listed.split(",") if one.strip()]


def _logger(section: SectionProxy) -> Config:
    """One logger."""
    made: Config = {"handlers": _names(section.get("handlers", ""))}
    if "level" in section:
        made["level"] = section["level"]
    if "propagate" in section:
        made["propagate"] = section.getboolean("propagate")
    return made


def _handler(section: SectionProxy) -> Config:
    """One handler: its positional arguments get their names."""
    kind = section["class"].removeprefix("logging.")
    made: Config = {"class": f"logging.{kind}"}
    made |= {key: section[key] for key in ("level", "formatter") if section.get(key)}
    positional = _literal(section.get("args", "()"))
    if not isinstance(positional, tuple):
        raise ValueError(f"args = {section['args']}: should be a tuple, as in ('file.log', 'a')")  # noqa: TRY004 - it is the file's value that is wrong
    named = _literal(section.get("kwargs", "{}"))
    if kind in HANDLERS:
        try:
            made |= inspect.signature(HANDLERS[kind]).bind(*positional, **named).arguments
        except TypeError as error:
            raise ValueError(f"{kind}: {error}") from error
    return made


def _literal(text: str) -> Any:  # noqa: ANN401 - whatever a literal can be
    """The value of a Python literal; `sys.stdout` and `sys.stderr` are literals too."""
    return ast.literal_eval(_Streams().visit(ast.parse(text.strip(), mode="eval")))


class _Streams(ast.NodeTransformer):
    """Replaces `sys.stdout` and `sys.stderr` by the names that `dictConfig` knows."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        stream = f"ext://{ast.unparse(node)}"
        return ast.Constant(stream) if stream in STREAMS else node


def _reason(error: Exception) -> str:
    """What a reader found wrong."""
    missing = f"there is no section or entry {error}" if isinstance(error, KeyError) else ""
    return missing or str(error)


def _refuse(name: str, reason: str) -> NoReturn:
    """Refuse the file."""
    raise UsageError(f"--log_config_file: {name}: {reason}.")


STYLES: dict[str, dict[str, Any]] = {
    "CRITICAL": {"fg": "red", "bold": True},
    "ERROR": {"fg": "red"},
    "WARNING": {"fg": "yellow"},
    "DEBUG": {"dim": True},
}


class Record(logging.LogRecord):
    """A log record whose arguments, which may come out of a log, stay on their line."""

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        """The message, with control characters as escapes."""
        arguments = self.args
        if isinstance(arguments, tuple):
            arguments = tuple(escape_control(x) if isinstance(x, str) else x for x in arguments)
        return escape_control(
            str(self.msg) % arguments if arguments else str(self.msg), keep="\n\t"
        )


class Screen(logging.Handler):
    """Shows messages on stderr, and nothing but the message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message in the colour of its level."""
        say(self.format(record), **STYLES.get(record.levelname, {}))


def configure(level: str, file: str | None) -> None:
    """Log from here on to the screen, or as the file says.

    Args:
        level: Least level of what the screen shows; a file has its own.
        file: Configuration in JSON or ini; None for the screen.

    Raises:
        UsageError: The file is no logging configuration, or asks for code to be run.
    """
    logging.setLogRecordFactory(Record)
    if file is None:
        root = logging.getLogger("morpheus")
        root.handlers = [Screen()]
        root.setLevel(level.upper())
        return
    try:
        # Python's default silences whoever has a logger already: this package.
        logging.config.dictConfig({"disable_existing_loggers": False} | read_config(file))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # dictConfig's own message is mostly "Unable to configure handler"; its cause says why.
        raise UsageError(f"--log_config_file: {file}: {error.__cause__ or error}.") from error
