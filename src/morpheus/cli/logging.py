"""Logging of the command: to the console, or as a configuration file says.

Python's own readers of such files evaluate the `args` of an ini file as code, and import and call
any class that a JSON file names. Here a file may use only `ALLOWED_HANDLERS` and `ALLOWED_STREAMS`.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from configparser import Error as ParserError
from configparser import RawConfigParser, SectionProxy
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from morpheus.cli.output import LOG_FORMATS, echo, echo_json, set_log_format, writes_json
from morpheus.core.registry import stage_names
from morpheus.errors import UsageError, find_error_code
from morpheus.text import NOTICE_KEY, escape_control

ALLOWED_HANDLERS = {
    "StreamHandler",
    "FileHandler",
    "NullHandler",
    "handlers.RotatingFileHandler",
    "handlers.TimedRotatingFileHandler",
    "handlers.WatchedFileHandler",
    "handlers.SysLogHandler",
}
"""Names of classes in `logging`."""
ALLOWED_STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
LoggingConfig = dict[str, Any]


def read_config(name: str) -> LoggingConfig:
    """Read a logging configuration for `logging.config.dictConfig`.

    Args:
        name: A file that ends in `.json`, or one in ini format.

    Raises:
        UsageError: It is neither, or uses what is not allowed.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
        config = json.loads(text) if name.lower().endswith(".json") else _parse_ini(text)
    except (OSError, ValueError, KeyError, ParserError, SyntaxError) as error:
        _reject_config(name, f"cannot be read: {_describe_error(error)}")
    if not isinstance(config, dict):
        _reject_config(name, "is not a logging configuration: it must be a JSON object")
    _validate_config(name, config)
    return {"disable_existing_loggers": False, **config}


def _validate_config(name: str, config: LoggingConfig) -> None:
    """Reject entries by which `dictConfig` would import or call anything else."""
    for key, value in _iter_entries(config):
        if key in {"()", ".", "factory"}:
            _reject_config(name, f"the entry `{key}` would run code, which is not allowed")
        if isinstance(value, str) and "://" in value[:12] and value not in ALLOWED_STREAMS:
            _reject_config(
                name, f"`{value}`: only {' and '.join(sorted(ALLOWED_STREAMS))} are allowed"
            )
    for part, classes in (("handlers", ALLOWED_HANDLERS), ("formatters", {"Formatter"})):
        for entry in _iter_children(config.get(part)):
            kind = entry.get("class", "Formatter" if part == "formatters" else None)
            if str(kind).removeprefix("logging.") not in classes:
                allowed = ", ".join(f"logging.{x}" for x in sorted(classes))
                _reject_config(name, f"class `{kind}` is not allowed; these are: {allowed}")


def _iter_children(part: object) -> Iterator[LoggingConfig]:
    """Yield the entries of one part of a configuration."""
    for entry in part.values() if isinstance(part, dict) else ():
        if isinstance(entry, dict):
            yield entry


def _iter_entries(config: object) -> Iterator[tuple[str, object]]:
    """Yield every key and value at any depth. Items of a list have an empty key."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from _iter_entries(value)
    elif isinstance(config, list):
        for value in config:
            yield "", value
            yield from _iter_entries(value)


def _parse_ini(text: str) -> LoggingConfig:
    """Return the configuration of an ini file as for `dictConfig`."""
    parser = RawConfigParser()
    parser.read_string(text)
    loggers = {
        name: _parse_logger(parser[f"logger_{name}"]) for name in _read_keys(parser, "loggers")
    }
    return {
        "version": 1,
        "root": loggers.pop("root", {}),
        "loggers": {
            parser[f"logger_{name}"]["qualname"]: logger for name, logger in loggers.items()
        },
        "handlers": {
            name: _parse_handler(parser[f"handler_{name}"])
            for name in _read_keys(parser, "handlers")
        },
        "formatters": {
            name: dict(parser[f"formatter_{name}"]) for name in _read_keys(parser, "formatters")
        },
    }


def _read_keys(parser: RawConfigParser, section: str) -> list[str]:
    """Return the names that the `keys` of a section list."""
    listed = parser[section].get("keys", "") if section in parser else ""
    return _split_names(listed)


def _split_names(listed: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def _parse_logger(section: SectionProxy) -> LoggingConfig:
    logger: LoggingConfig = {"handlers": _split_names(section.get("handlers", ""))}
    if "level" in section:
        logger["level"] = section["level"]
    if "propagate" in section:
        logger["propagate"] = section.getboolean("propagate")
    return logger


def _parse_handler(section: SectionProxy) -> LoggingConfig:
    """Return a handler. Its positional arguments get the names that `dictConfig` needs."""
    kind = section["class"].removeprefix("logging.")
    handler: LoggingConfig = {"class": f"logging.{kind}"}
    handler |= {key: section[key] for key in ("level", "formatter") if section.get(key)}
    positional = _parse_literal(section.get("args", "()"))
    if not isinstance(positional, tuple):
        raise ValueError(f"args = {section['args']}: must be a tuple, as in ('file.log', 'a')")  # noqa: TRY004 - the file has a wrong value
    keywords = _parse_literal(section.get("kwargs", "{}"))
    if kind in ALLOWED_HANDLERS:
        from pkgutil import resolve_name  # noqa: PLC0415 - most runs have no such file

        handler_class = resolve_name(f"logging.{kind}")
        try:
            handler |= inspect.signature(handler_class).bind(*positional, **keywords).arguments
        except TypeError as error:
            raise ValueError(f"{kind}: {error}") from error
    return handler


def _parse_literal(text: str) -> Any:  # noqa: ANN401 - whatever a literal can be
    """Return the value of a Python literal. `sys.stdout` and `sys.stderr` count as literals."""
    return ast.literal_eval(_StreamTransformer().visit(ast.parse(text.strip(), mode="eval")))


class _StreamTransformer(ast.NodeTransformer):
    """Replaces `sys.stdout` and `sys.stderr` by their names in `dictConfig`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        stream = f"ext://{ast.unparse(node)}"
        return ast.Constant(stream) if stream in ALLOWED_STREAMS else node


def _describe_error(error: Exception) -> str:
    # The text of a KeyError is only the key.
    return f"there is no section or entry {error}" if isinstance(error, KeyError) else str(error)


def _reject_config(name: str, reason: str) -> NoReturn:
    raise UsageError(f"--log_config_file: {name}: {reason}.")


LEVEL_STYLES: dict[str, dict[str, Any]] = {
    "CRITICAL": {"fg": "red", "bold": True},
    "ERROR": {"fg": "red"},
    "WARNING": {"fg": "yellow"},
    "DEBUG": {"dim": True},
}


class SafeLogRecord(logging.LogRecord):
    """A record whose arguments, which may be text of a user's log, cannot break the line."""

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        """Return the message, with control characters as escapes."""
        arguments = self.args
        if isinstance(arguments, tuple):
            arguments = tuple(escape_control(x) if isinstance(x, str) else x for x in arguments)
        return escape_control(
            str(self.msg) % arguments if arguments else str(self.msg), keep="\n\t"
        )


REPEAT_SECONDS = 10.0
"""Warnings and errors of one kind are written once in this time."""
MAX_VARIANTS = 20
"""Maximum number of messages in this time that differ only in names, such as those of files."""
_MAX_KINDS = 1000
_NUMBER = re.compile(r"\d+")


class _Repeats(msgspec.Struct):
    """Messages of one kind since `started_at`.

    Attributes:
        started_at: Time of the one that was written.
        left_out: How many were not.
        variants: Different messages that were written, if the kind is that of a template.
    """

    started_at: float
    left_out: int = 0
    variants: int = 0


class RepeatFilter(logging.Filter):
    """Limits warnings and errors that repeat, such as those of a server that is down for an hour.

    Of messages that are equal except for numbers, one is written in `REPEAT_SECONDS`. The next one
    has the number of those that were left out, in `left_out`. Of messages that one line of code
    writes, at most `MAX_VARIANTS` are written in that time.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[object, _Repeats] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a message."""
        if record.levelno < logging.WARNING or getattr(record, NOTICE_KEY, False):
            return True
        now, template = self._clock(), (record.name, record.levelno, str(record.msg))
        all_variants = self._find(template, now)
        repeats = self._find((*template, _NUMBER.sub("0", record.getMessage())[:500]), now)
        if repeats.variants or all_variants.variants >= MAX_VARIANTS:
            repeats.left_out += 1
            return False
        repeats.variants = 1
        all_variants.variants += 1
        record.left_out = repeats.left_out
        repeats.left_out = 0
        return True

    def _find(self, kind: object, now: float) -> _Repeats:
        """Return the messages of a kind. What was left out in an earlier time is kept."""
        if len(self._kinds) > _MAX_KINDS:
            self._kinds = {
                each: repeats
                for each, repeats in self._kinds.items()
                if now - repeats.started_at < REPEAT_SECONDS
            }
        repeats = self._kinds.get(kind)
        if repeats is None or now - repeats.started_at >= REPEAT_SECONDS:
            repeats = _Repeats(now, 0 if repeats is None else repeats.left_out)
            self._kinds[kind] = repeats
        return repeats


class ConsoleHandler(logging.Handler):
    """Writes messages to stderr, without time.

    A message that asks for nothing is logged with `extra=NOTICE`. It has neither level nor colour.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, with its level from WARNING on, in the colour of the level."""
        if getattr(record, NOTICE_KEY, False):
            echo(self.format(record))
            return
        level = f"{record.levelname.title()}: " if record.levelno >= logging.WARNING else ""
        left_out = getattr(record, "left_out", 0)
        more = f" ({left_out:,} more like this were left out.)" if left_out else ""
        echo(f"{level}{self.format(record)}{more}", **LEVEL_STYLES.get(record.levelname, {}))


class JsonHandler(logging.Handler):
    """Writes messages to stderr, each as a JSON object in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message with its level, code, stage and logger."""
        error = record.exc_info[1] if record.exc_info else None
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = error or next((each for each in arguments if isinstance(each, BaseException)), None)
        code = None if error is None else find_error_code(error)
        is_notice = getattr(record, NOTICE_KEY, False)
        echo_json(
            "info" if is_notice else record.levelname.lower(),
            record.getMessage(),
            code=getattr(record, "code", code),
            stage=getattr(record, "stage", None) or find_stage(record.name),
            logger=record.name,
            left_out=getattr(record, "left_out", 0) or None,
            traceback=self._format_traceback(record),
        )

    def _format_traceback(self, record: logging.LogRecord) -> str | None:
        if not record.exc_info:
            return None
        text = (self.formatter or logging.Formatter()).formatException(record.exc_info)
        return escape_control(text, keep="\n\t")


def find_stage(logger: str) -> str | None:
    """Return the word of the stage whose module has a logger. None for other modules.

    >>> find_stage("morpheus.sinks.to_http"), find_stage("morpheus.sinks.delivery")
    ('to-http', None)
    """
    _, _, module = logger.rpartition(".")
    word = module.replace("_", "-")
    return next((each for each in (word, f"from-{word}") if each in stage_names()), None)


class LibraryHandler(logging.Handler):
    """Logs messages of libraries at level DEBUG, whatever their own level.

    Libraries warn of what they handle themselves, such as a request that they repeat. What fails
    reaches the user as an error of ours. The handler belongs to the root logger.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log a message, with the name of the library."""
        logger = logging.getLogger("morpheus")
        is_ours = record.name.partition(".")[0] == logger.name
        if not is_ours and logger.isEnabledFor(logging.DEBUG):
            text = f"{record.name}: {record.getMessage()}"
            logger.debug("%s", text, exc_info=record.exc_info)


def configure_logging(
    level: str, config_file: str | None, log_format: str = LOG_FORMATS[0]
) -> None:
    """Set up logging to the console, or as a file says.

    On the console, messages and warnings of libraries are shown at level DEBUG only.

    Args:
        level: Minimum level on the console. A file has its own.
        config_file: Configuration in JSON or ini; None for the console.
        log_format: One of `LOG_FORMATS`, for the console.

    Raises:
        UsageError: The file is not a logging configuration, or would run code. Or both a file and
            JSON are given.
    """
    set_log_format(log_format)
    if writes_json() and config_file is not None:
        raise UsageError(
            "--log_format: the format of a --log_config_file is in that file. Leave out one of the "
            "two."
        )
    logging.setLogRecordFactory(SafeLogRecord)
    if config_file is None:
        logger = logging.getLogger("morpheus")
        handler = JsonHandler() if writes_json() else ConsoleHandler()
        handler.addFilter(RepeatFilter())
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        others = (x for x in logging.root.handlers if not isinstance(x, LibraryHandler))
        logging.root.handlers = [*others, LibraryHandler()]
        logging.captureWarnings(capture=True)
        return
    from logging.config import dictConfig  # noqa: PLC0415 - most runs have no such file

    try:
        # Python's default disables the loggers that exist, which are those of this package.
        dictConfig({"disable_existing_loggers": False} | read_config(config_file))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # The message is mostly "Unable to configure handler". Its cause says why.
        raise UsageError(
            f"--log_config_file: {config_file}: {error.__cause__ or error}."
        ) from error
