"""What a source has to be: the first link of a chain, which opens the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

from morpheus.cluster.workers import Cluster
from morpheus.columns import read_lines
from morpheus.errors import UsageError
from morpheus.processes import Crew
from morpheus.records import Events, Portion, Stream, Summary
from morpheus.stage import Settings, Stage


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

    def settled(self, settings: Settings) -> Settings:
        """Settings, with what is usual of this kind of log where they leave it open.

        Raises:
            UsageError: A columns file is not there, or not for this source.
        """
        named = settings.columns_file or self.default_columns
        if named.lower().endswith(".toml"):
            raise UsageError(
                f"--columns_file: `{named}` describes a log, for `from-file`. `{self.name}` knows "
                "its log: give a text file of feature columns, one name a line."
            )
        return replace(
            settings,
            columns=settings.columns or read_lines(named, option="--columns_file"),
            userid_column_name=settings.userid_column_name or self.default_user,
        )

    def endless(self) -> bool:
        """Whether the input may go on for ever, so that no user's events are ever all there."""
        return False

    def reads(self, path: Path, history: str | None) -> bool:  # noqa: ARG002 - for sources of files
        """Whether a file is one of those to be read, or with `history` to be learnt from."""
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

    def portions(
        self,
        history: str | None,
        summary: Summary,
        crew: Crew | Cluster,  # noqa: ARG002 - for sources that let others read too
    ) -> AbstractContextManager[Sequence[Portion]]:
        """Give the same events in portions, which stay readable until the `with` block ends.

        Users come in the portions' order. By default it is one portion, read by this process.

        Args:
            history: As in `events`.
            summary: As in `events`; portions count into the one that they are given.
            crew: Processes that may help to read, or the workers that are to.
        """
        events = self.events(history, summary)
        # Once the first user is there, everybody has been looked at.
        return nullcontext([Stream(chain(list(islice(events, 1)), events))])
