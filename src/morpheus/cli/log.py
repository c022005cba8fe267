"""What is logged, and where: the screen, or as a configuration file says."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

from morpheus.cli.log_config import read_config
from morpheus.cli.screen import say
from morpheus.errors import UsageError
from morpheus.quoting import escape_control

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
        return escape_control(str(self.msg) % arguments if arguments else str(self.msg), keep="\n\t")


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
