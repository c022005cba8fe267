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

from morpheus.columns import read_lines
from morpheus.core.batch import Batch, OutputRows, Partition, RunMetrics, StreamPartition
from morpheus.core.stage import PipelineOptions, Transform
from morpheus.errors import MorpheusError, UsageError
from morpheus.runtime.dask import DaskRunner
from morpheus.runtime.dask_cluster import Cluster, check_scheduler
from morpheus.runtime.local import DropModel, LocalRunner, chain_by_scope, chain_stages
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.signals import GracefulShutdown
from morpheus.sources.base import Source
from morpheus.status import StatusFile
from morpheus.storage.atomic import set_file_policy
from morpheus.storage.spill import SpillDir

logger = logging.getLogger(__name__)

DEFAULT_PRODUCER = {
    "Events": "a source such as `from-cloudtrail`",
    "WithModel": "`train-ae`",
    "Encoded": "`preprocess`",
    "Losses": "`inf-pytorch`",
    "Scored": "`add-scores`",
    "OutputRows": "`serialize`",
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
    head: tuple[Transform, ...]
    segment: tuple[Transform, ...]
    tail: tuple[Transform, ...]

    @classmethod
    def from_stages(cls, stages: Sequence[Transform]) -> Plan:
        """Divide a checked chain."""
        source, *rest = stages
        first = next((i for i, stage in enumerate(rest) if stage.scope == "keyed"), len(rest))
        ends = (i for i, stage in enumerate(rest) if i >= first and _ends_segment(stage))
        last = next(ends, len(rest))
        middle = rest[first:last]
        watchers = tuple(stage for stage in middle if stage.scope != "keyed")
        segment = tuple(stage for stage in middle if stage.scope == "keyed")
        tail = (*watchers, *rest[last:])
        if segment and not any(stage.needs_model for stage in tail):
            segment = (*segment, DropModel())
        assert isinstance(source, Source)  # noqa: S101 - check() has seen to it
        return cls(source, tuple(rest[:first]), segment, tail)

    def bind_population(self, metrics: RunMetrics) -> tuple[Transform, ...]:
        """The segment, once the source has looked at everybody."""
        if not self.source.options.needs_population:
            return self.segment
        return tuple(stage.with_population(metrics.population_sample) for stage in self.segment)

    def output_dir(self) -> Path | None:
        """Where the chain writes, which all machines share."""
        return next((folder for stage in self.tail if (folder := stage.output_dir())), None)

    def sink_encoder(self, first: Batch, scratch: SpillDir) -> Transform | None:
        """What the last stage lets others do, if those before it need not see the events."""
        if self.tail and all(stage.counts_only() for stage in self.tail[:-1]):
            return self.tail[-1].encoder(first, scratch)
        return None


def _ends_segment(stage: Transform) -> bool:
    """Whether a stage cannot be within the part that sees one user at a time."""
    return OutputRows in stage.takes or stage.scope == "barrier"


class Pipeline:
    """Stages in the order in which events pass them.

    Args:
        stages: A source, then stages, then usually a sink.
        options: What holds for all of them.
    """

    def __init__(self, stages: Sequence[Transform], options: PipelineOptions | None = None) -> None:
        self.stages = tuple(stages)
        self.options = options or PipelineOptions()
        self._validated = False

    def validate(self) -> None:
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
        settled = self._resolve_options()
        self.options = settled[0].options
        for stage in settled:
            stage.validate()
        _check_output_files(settled)
        self._validated = True

    def run(self, on_complete: Callable[[RunMetrics], None] | None = None) -> RunMetrics:
        """Run the chain to its end.

        Args:
            on_complete: Is given the summary once all events have passed, also where a sink then fails
                with what it had left to do.

        Raises:
            MorpheusError: What the person at the prompt can act on.
        """
        if not self._validated:
            self.validate()
        set_file_policy(shared=self.options.shared_files)
        stages = self._resolve_options()
        plan = Plan.from_stages([part for stage in stages for part in stage.expand()])
        summary = RunMetrics(has_sink=any(stage.is_sink for stage in stages))
        begin = time.perf_counter()
        history = _find_training_input(stages)
        path = self.options.status_file
        status = None if path is None else StatusFile.from_stages(path, stages)
        if status is not None:
            status.write(summary, running=True)
        # Closed at once, not when the garbage is collected: a sink then takes its draft away.
        with closing(self._execute(plan, history, summary)) as batches:
            for batch in batches:
                summary.add(batch)
                if status is not None:
                    status.write(summary, running=True)
        failures = list(_commit_all(stages, summary))
        if status is not None:
            status.write(summary, running=False)
        summary.seconds = time.perf_counter() - begin
        if on_complete is not None:
            on_complete(summary)
        _raise_first(failures)
        return summary

    def links(self) -> list[tuple[str, str]]:
        """The word of each stage, and the name of what it gives."""
        names = [kind.__name__ for kind in self._record_types()]
        return list(zip((stage.name for stage in self.stages), names, strict=True))

    def _execute(
        self, plan: Plan, training_input: str | None, metrics: RunMetrics
    ) -> Generator[Batch, None, None]:
        endless = plan.source.is_unbounded()
        with self._open_runner() as engine:
            run = self._run_unbounded if endless else self._run_bounded
            stream = run(plan, training_input, metrics, engine)
            yield from chain_by_scope(plan.tail, stream, unbounded=endless)

    @contextmanager
    def _open_runner(self) -> Iterator[LocalRunner | DaskRunner]:
        settings = self.options
        if settings.engine.lower() == "dask":
            with Cluster(settings.scheduler, settings.num_threads) as cluster:
                yield DaskRunner(cluster)
        else:
            with WorkerPool(settings.num_threads) as crew:
                yield LocalRunner(crew)

    def _run_unbounded(
        self,
        plan: Plan,
        training_input: str | None,
        metrics: RunMetrics,
        runner: LocalRunner | DaskRunner,
    ) -> Iterator[Batch]:
        events = GracefulShutdown(plan.source.events(training_input, metrics))
        stream = chain_stages(plan.head, iter(events))
        # Once the first user is there, everybody has been looked at.
        stream = chain(list(islice(stream, 1)), stream)
        yield from runner.run(plan.bind_population(metrics), stream, unbounded=True)
        metrics.interrupted = events.stopped

    def _run_bounded(
        self,
        plan: Plan,
        training_input: str | None,
        metrics: RunMetrics,
        runner: LocalRunner | DaskRunner,
    ) -> Iterator[Batch]:
        read = plan.source.partitions(training_input, metrics, runner.executor)
        shared = plan.output_dir() if isinstance(runner, DaskRunner) else None
        with SpillDir(shared) as scratch, read as portions:
            if isinstance(runner, DaskRunner) and shared is not None:
                runner.executor.check_shared_folder(scratch.folder)
            seen: Sequence[Partition] = portions
            if plan.head:
                events = chain.from_iterable(portion.events(metrics) for portion in portions)
                seen = [StreamPartition(chain_stages(plan.head, events))]
            beforehand = partial(plan.sink_encoder, scratch=scratch)
            yield from runner.run_partitions(
                plan.bind_population(metrics), seen, metrics, beforehand
            )

    def _resolve_options(self) -> tuple[Transform, ...]:
        source = self.stages[0]
        assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
        settings = source.with_defaults(self.options)
        labels = settings.labels
        if settings.labels_file is not None:
            labels = read_lines(settings.labels_file, option="--labels_file")
        settled = replace(
            settings,
            labels=labels,
            unbounded=source.is_unbounded(),
            needs_population=any(stage.needs_population() for stage in self.stages),
            keeps_dropped_stats=any(stage.needs_dropped_stats() for stage in self.stages),
            source=source.name,
        )
        return tuple(replace(stage, options=settled) for stage in self.stages)

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
        settings = self.options
        if settings.engine.lower() == "dask":
            self._check_bounded()
            check_scheduler(settings.scheduler)
        elif settings.scheduler is not None:
            raise UsageError(
                "--scheduler: only a cluster has one. Give `morpheus run --engine=dask "
                f"--scheduler={settings.scheduler} ...`, or leave it out."
            )

    def _check_bounded(self) -> None:
        source = self.stages[0]
        if isinstance(source, Source) and source.is_unbounded():
            raise UsageError(
                "--engine dask: this input never ends, and a cluster takes what is there. Leave "
                "--engine out, or --watch_directory."
            )

    def _check_links(self) -> None:
        kinds = self._record_types()
        for i, stage in enumerate(self.stages[1:], start=1):
            if not issubclass(kinds[i - 1], stage.takes):
                raise UsageError(_mismatch_message(i, self.stages[i - 1], kinds[i - 1], stage))

    def _record_types(self) -> list[type]:
        kinds: list[type] = []
        for stage in self.stages:
            kinds.append(stage.gives or kinds[-1])
        return kinds


def _check_output_files(stages: Sequence[Transform]) -> None:
    """Refuse to write a file twice, or into the place of a log."""
    source, *rest = stages
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    history = _find_training_input(rest)
    written: dict[Path, Transform] = {}
    for stage in rest:
        path = stage.output_file()
        if path is None:
            continue
        if source.overlaps_input(path, history):
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


def _find_training_input(stages: Sequence[Transform]) -> str | None:
    """The files that are learnt from, if any."""
    return next((glob for stage in stages if (glob := stage.training_input())), None)


def _commit_all(
    stages: Sequence[Transform], metrics: RunMetrics
) -> Iterator[MorpheusError | OSError]:
    """Let every stage do what it has left; gives why some could not."""
    for stage in stages:
        try:
            stage.commit(metrics)
        except (MorpheusError, OSError) as error:
            yield error


def _raise_first(failures: Sequence[MorpheusError | OSError]) -> None:
    """Raise the first failure; the others are logged."""
    for other in failures[1:]:
        logger.error("%s", other)
    if failures:
        raise failures[0]


def _mismatch_message(position: int, before: Transform, given_type: type, stage: Transform) -> str:
    wanted = [kind.__name__ for kind in stage.takes]
    order = list(DEFAULT_PRODUCER)
    said = (
        f"Stage {position + 1} `{stage.name}` takes {' or '.join(wanted)}, but stage {position} "
        f"`{before.name}` gives {given_type.__name__}. "
    )
    if order.index(given_type.__name__) > order.index(wanted[0]):
        return said + f"Put `{stage.name}` before `{before.name}`, or leave it out."
    return said + f"Put {DEFAULT_PRODUCER[wanted[0]]} between them."
