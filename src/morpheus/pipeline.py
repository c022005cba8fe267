"""A chain of stages: check it before the first byte is read, then run it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from morpheus.cluster import scheduler
from morpheus.cluster.workers import Cluster
from morpheus.columns import read_lines
from morpheus.engines.dask import Dask
from morpheus.engines.fold import folded, folded_as_scoped
from morpheus.engines.light import Light
from morpheus.engines.local import Local
from morpheus.errors import MorpheusError, UsageError
from morpheus.interrupt import UntilStopped
from morpheus.processes import Crew
from morpheus.records import Batch, Portion, Rows, Stream, Summary
from morpheus.scratch import Scratch
from morpheus.sources.source import Source
from morpheus.stage import Settings, Stage
from morpheus.status import StatusFile

LOG = logging.getLogger(__name__)

HABITUAL = {
    "Events": "a source such as `from-cloudtrail`",
    "Fingerprinted": "`train-ae`",
    "Encoded": "`preprocess`",
    "Losses": "`inf-pytorch`",
    "Scored": "`add-scores`",
    "Rows": "`serialize`",
}
"""Who usually gives each kind of record: the fix for a chain that lacks one."""


@dataclass(frozen=True)
class Plan:
    """Where each stage of a chain runs.

    `head` and `tail` see the whole stream, `segment` the batches of one user: that part can run
    anywhere. A stage that watches the stream from within the segment moves to the tail's front; it
    changes nothing, and users come out whole.
    """

    source: Source
    head: tuple[Stage, ...]
    segment: tuple[Stage, ...]
    tail: tuple[Stage, ...]

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Plan:
        """Divide a checked chain."""
        source, *rest = stages
        first = next((i for i, stage in enumerate(rest) if stage.scope == "user"), len(rest))
        ends = (i for i, stage in enumerate(rest) if i >= first and _ends(stage))
        last = next(ends, len(rest))
        middle = rest[first:last]
        watchers = tuple(stage for stage in middle if stage.scope != "user")
        segment = tuple(stage for stage in middle if stage.scope == "user")
        tail = (*watchers, *rest[last:])
        if segment and not any(stage.needs_fingerprint for stage in tail):
            segment = (*segment, Light())
        assert isinstance(source, Source)  # noqa: S101 - check() has seen to it
        return cls(source, tuple(rest[:first]), segment, tail)

    def met(self, summary: Summary) -> tuple[Stage, ...]:
        """The segment, once the source has looked at everybody."""
        if not self.source.settings.survey:
            return self.segment
        return tuple(stage.meet(summary.everybody) for stage in self.segment)

    def folder(self) -> Path | None:
        """Where the chain writes, which all machines share."""
        return next((folder for stage in self.tail if (folder := stage.writes_into())), None)

    def beforehand(self, first: Batch, scratch: Scratch) -> Stage | None:
        """What the last stage lets others do, if those before it need not see the events."""
        if self.tail and all(stage.counts() for stage in self.tail[:-1]):
            return self.tail[-1].beforehand(first, scratch)
        return None


def _ends(stage: Stage) -> bool:
    """Whether a stage cannot be within the part that sees one user at a time."""
    return Rows in stage.takes or stage.scope == "whole"


class Pipeline:
    """Stages in the order in which events pass them.

    Args:
        stages: A source, then stages, then usually a sink.
        settings: What holds for all of them.
    """

    def __init__(self, stages: Sequence[Stage], settings: Settings | None = None) -> None:
        self.stages = tuple(stages)
        self.settings = settings or Settings()
        self._checked = False

    def check(self) -> None:
        """Refuse what cannot work, before any log is opened.

        Raises:
            UsageError: The chain, an option, or a columns file is wrong; says what to type.
        """
        if not self.stages:
            raise UsageError(
                "The chain is empty. Begin with a source: `from-cloudtrail --input_glob=...`."
            )
        self._check_source()
        self._check_links()
        self._check_engine()
        settled = self._settled()
        self.settings = settled[0].settings
        for stage in settled:
            stage.check()
        _check_files(settled)
        self._checked = True

    def run(self, tell: Callable[[Summary], None] | None = None) -> Summary:
        """Run the chain to its end.

        Args:
            tell: Is given the summary once all events have passed, also where a sink then fails
                with what it had left to do.

        Raises:
            MorpheusError: What the person at the prompt can act on.
        """
        if not self._checked:
            self.check()
        stages = self._settled()
        plan = Plan.of([part for stage in stages for part in stage.parts()])
        summary = Summary(to_sinks=any(stage.sink for stage in stages))
        begin = time.perf_counter()
        history = _history(stages)
        path = self.settings.status_file
        status = None if path is None else StatusFile.of(path, stages)
        if status is not None:
            status.tell(summary, running=True)
        # Closed at once, not when the garbage is collected: a sink then takes its draft away.
        with closing(self._passed(plan, history, summary)) as batches:
            for batch in batches:
                summary.add(batch)
                if status is not None:
                    status.tell(summary, running=True)
        failures = list(_finished(stages, summary))
        if status is not None:
            status.tell(summary, running=False)
        summary.seconds = time.perf_counter() - begin
        if tell is not None:
            tell(summary)
        _raise_first(failures)
        return summary

    def links(self) -> list[tuple[str, str]]:
        """The word of each stage, and the name of what it gives."""
        names = [kind.__name__ for kind in self._kinds()]
        return list(zip((stage.name for stage in self.stages), names, strict=True))

    def _passed(
        self, plan: Plan, history: str | None, summary: Summary
    ) -> Generator[Batch, None, None]:
        endless = plan.source.endless()
        with self._engine() as engine:
            run = self._followed if endless else self._divided
            stream = run(plan, history, summary, engine)
            yield from folded_as_scoped(plan.tail, stream, endless=endless)

    @contextmanager
    def _engine(self) -> Iterator[Local | Dask]:
        settings = self.settings
        if settings.engine.lower() == "dask":
            with Cluster(settings.scheduler, settings.num_threads) as cluster:
                yield Dask(cluster)
        else:
            with Crew(settings.num_threads) as crew:
                yield Local(crew)

    def _followed(
        self, plan: Plan, history: str | None, summary: Summary, engine: Local | Dask
    ) -> Iterator[Batch]:
        events = UntilStopped(plan.source.events(history, summary))
        stream = folded(plan.head, iter(events))
        # Once the first user is there, everybody has been looked at.
        stream = chain(list(islice(stream, 1)), stream)
        yield from engine.run(plan.met(summary), stream, endless=True)
        summary.stopped = events.stopped

    def _divided(
        self, plan: Plan, history: str | None, summary: Summary, engine: Local | Dask
    ) -> Iterator[Batch]:
        read = plan.source.portions(history, summary, engine.crew)
        shared = plan.folder() if isinstance(engine, Dask) else None
        with Scratch(shared) as scratch, read as portions:
            if isinstance(engine, Dask) and shared is not None:
                engine.crew.check_shared(scratch.folder)
            seen: Sequence[Portion] = portions
            if plan.head:
                events = chain.from_iterable(portion.events(summary) for portion in portions)
                seen = [Stream(folded(plan.head, events))]
            beforehand = partial(plan.beforehand, scratch=scratch)
            yield from engine.run_portions(plan.met(summary), seen, summary, beforehand)

    def _settled(self) -> tuple[Stage, ...]:
        source = self.stages[0]
        assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
        settings = source.settled(self.settings)
        labels = settings.labels
        if settings.labels_file is not None:
            labels = read_lines(settings.labels_file, option="--labels_file")
        settled = replace(
            settings,
            labels=labels,
            endless=source.endless(),
            survey=any(stage.curious() for stage in self.stages),
            pictured=any(stage.pictured() for stage in self.stages),
            source=source.name,
        )
        return tuple(replace(stage, settings=settled) for stage in self.stages)

    def _check_source(self) -> None:
        places = [i for i, stage in enumerate(self.stages) if isinstance(stage, Source)]
        first = self.stages[0].name
        if not places:
            raise UsageError(
                f"The chain begins with `{first}`, which reads no logs. Put a source such as "
                "`from-cloudtrail --input_glob=...` in front of it."
            )
        if len(places) > 1:
            names = " and ".join(f"`{self.stages[i].name}`" for i in places)
            raise UsageError(f"The chain has more than one source: {names}. Keep the first.")
        if places[0] != 0:
            raise UsageError(
                f"Stage 1 `{first}` stands before the source `{self.stages[places[0]].name}`. "
                "Put the source first."
            )

    def _check_engine(self) -> None:
        settings = self.settings
        if settings.engine.lower() == "dask":
            self._check_end()
            scheduler.check(settings.scheduler)
        elif settings.scheduler is not None:
            raise UsageError(
                "--scheduler: only a cluster has one. Give `morpheus run --engine=dask "
                f"--scheduler={settings.scheduler} ...`, or leave it out."
            )

    def _check_end(self) -> None:
        source = self.stages[0]
        if isinstance(source, Source) and source.endless():
            raise UsageError(
                "--engine dask: this input never ends, and a cluster takes what is there. Leave "
                "--engine out, or --watch_directory."
            )

    def _check_links(self) -> None:
        kinds = self._kinds()
        for i, stage in enumerate(self.stages[1:], start=1):
            if not issubclass(kinds[i - 1], stage.takes):
                raise UsageError(_mismatch(i, self.stages[i - 1], kinds[i - 1], stage))

    def _kinds(self) -> list[type]:
        kinds: list[type] = []
        for stage in self.stages:
            kinds.append(stage.gives or kinds[-1])
        return kinds


def _check_files(stages: Sequence[Stage]) -> None:
    """Refuse to write a file twice, or into the place of a log."""
    source, *rest = stages
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    history = _history(rest)
    written: dict[Path, Stage] = {}
    for stage in rest:
        path = stage.writes()
        if path is None:
            continue
        if source.reads(path, history):
            raise UsageError(
                f"{stage.name}: `{path}` is one of the logs that are read, and would be replaced. "
                "Give another --filename, or a glob that leaves it out."
            )
        other = written.setdefault(path.resolve(), stage)
        if other is not stage:
            raise UsageError(
                f"{stage.name}: `{path}` is written by `{other.name}` already. Give another "
                "--filename."
            )


def _history(stages: Sequence[Stage]) -> str | None:
    """The files that are learnt from, if any."""
    return next((glob for stage in stages if (glob := stage.history())), None)


def _finished(stages: Sequence[Stage], summary: Summary) -> Iterator[MorpheusError | OSError]:
    """Let every stage do what it has left; gives why some could not."""
    for stage in stages:
        try:
            stage.finish(summary)
        except (MorpheusError, OSError) as error:
            yield error


def _raise_first(failures: Sequence[MorpheusError | OSError]) -> None:
    """Raise the first failure; the others are logged."""
    for other in failures[1:]:
        LOG.error("%s", other)
    if failures:
        raise failures[0]


def _mismatch(position: int, before: Stage, given: type, stage: Stage) -> str:
    wanted = [kind.__name__ for kind in stage.takes]
    order = list(HABITUAL)
    said = (
        f"Stage {position + 1} `{stage.name}` takes {' or '.join(wanted)}, but stage {position} "
        f"`{before.name}` gives {given.__name__}. "
    )
    if order.index(given.__name__) > order.index(wanted[0]):
        return said + f"Put `{stage.name}` before `{before.name}`, or leave it out."
    return said + f"Put {HABITUAL[wanted[0]]} between them."
