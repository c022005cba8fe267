"""What a source has to be: the first link of a chain, which opens the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from morpheus.records import Events, Summary
from morpheus.stage import Stage


@dataclass(frozen=True)
class Source(Stage):
    """The first link of a chain: bytes -> Events.

    `default_columns` names the shipped list of feature columns that fits this kind of log,
    `default_user` the column that says whose event it is.
    """

    gives = Events
    scope = "run"
    default_columns: ClassVar[str] = "columns_ae.txt"
    default_user: ClassVar[str] = "userIdentityaccountId"

    def endless(self) -> bool:
        """Whether the input may go on for ever, so that no user's events are ever all there."""
        return False

    def events(self, history: str | None, summary: Summary) -> Iterator[Events]:
        """Read the input, user after user, each in time order.

        The order of users is that of their first events, and nothing in the result depends on the
        order in which files are found.

        Args:
            history: Glob of the files to learn from, read as the input is. The first batch of each
                user carries that user's; users with history and no events come last, by name, as
                batches of no rows. None for no history.
            summary: Counted into as files are read.

        Raises:
            UsageError: No file matches, or none has the user column.
            BadRecord: A record cannot be read, and is not to be left out.
        """
        raise NotImplementedError
