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
from morpheus.processes import WorkerPool
from morpheus.records import Events, Partition, StreamPartition, RunMetrics
from morpheus.stage import PipelineOptions, Transform


@dataclass(frozen=True)
class Source(Transform):
    """The first link of a chain: bytes -> Events.

    `default_columns` names the shipped list of feature columns that fits this kind of log,
    `default_user` the column that says whose event it is.
    """

    gives = Events
    scope = "global"
    default_columns: ClassVar[str] = "columns_ae.txt"
    default_user: ClassVar[str] = "userIdentityaccountId"

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Settings, with what is usual of this kind of log where they leave it open.

        Raises:
            UsageError: A columns file is not there, or not for this source.
        """
        named = options.columns_file or self.default_columns
        if named.lower().endswith(".toml"):
            raise UsageError(
                f"--columns_file: `{named}` describes a log, for `from-file`. `{self.name}` knows "
                "its log: give a text file of feature columns, one name a line."
            )
        return replace(
            options,
            columns=options.columns or read_lines(named, option="--columns_file"),
            userid_column_name=options.userid_column_name or self.default_user,
        )

    def is_unbounded(self) -> bool:
        """Whether the input may go on for ever, so that no user's events are ever all there."""
        return False

    def overlaps_input(self, path: Path, training_input: str | None) -> bool:  # noqa: ARG002 - for sources of files
        """Whether a file is one of those to be read, or with `history` to be learnt from."""
        return False

    def events(self, training_input: str | None, metrics: RunMetrics) -> Iterator[Events]:
        """Read the input, user after user, each in time order.

        The order of users is that of their first events, and nothing in the result depends on the
        order in which files are found.

        Args:
            training_input: Glob of the files to learn from, read as the input is. The first batch of each
                user carries that user's; users with history and no events come last, by name, as
                batches of no rows. None for no history.
            metrics: Counted into as files are read.

        Raises:
            UsageError: No file matches, or none has the user column.
            BadRecord: A record cannot be read, and is not to be left out.
        """
        raise NotImplementedError

    def partitions(
        self,
        training_input: str | None,
        metrics: RunMetrics,
        pool: WorkerPool | Cluster,  # noqa: ARG002 - for sources that let others read too
    ) -> AbstractContextManager[Sequence[Partition]]:
        """Give the same events in portions, which stay readable until the `with` block ends.

        Users come in the portions' order. By default it is one portion, read by this process.

        Args:
            training_input: As in `events`.
            metrics: As in `events`; portions count into the one that they are given.
            pool: Processes that may help to read, or the workers that are to.
        """
        events = self.events(training_input, metrics)
        # Once the first user is there, everybody has been looked at.
        return nullcontext([StreamPartition(chain(list(islice(events, 1)), events))])
