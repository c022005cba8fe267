"""What is logged, kept for whoever is to say it later."""

from __future__ import annotations

import logging
import threading


class BufferedLogHandler(logging.Handler):
    """Keeps what this thread logs: others may do other things.

    Attributes:
        records: What was logged, as text.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; what it was made of may be large, or stay behind in a process."""
        if record.thread != self._thread:
            return
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        self.records.append(record)
