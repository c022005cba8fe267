"""A chain of stages: check it before the first byte is read, then run it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from morpheus.columns import read_lines
from morpheus.core.batch import Batch, OutputRows, Partition, RunMetrics, StreamPartition
from morpheus.core.stage import (
    Expands,
    PipelineOptions,
    Requirements,
    Sink,
    Stage,
    Transform,
    WritesOutputs,
    find_output_folders,
    make_paths_absolute,
)
from morpheus.errors import MorpheusError, UsageError
from morpheus.runtime.chain import Segment, name_stages
from morpheus.runtime.dask import DaskRunner
from morpheus.runtime.dask_cluster import Cluster, check_scheduler
from morpheus.runtime.local import (
    SOURCE,
    LocalRunner,
    read_partitions,
    restore_source,
    run_chain,
    save_source,
)
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.signals import GracefulShutdown
from morpheus.runtime.states import SqliteStateStore, StateStore
from morpheus.sources.base import Source
from morpheus.sources.source_state import PartitionState
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
    """Where each stage of a pipeline runs.

    `head` and `tail` see the whole stream; `segment` sees the batches of one user at a time, so it
    can run anywhere. A global stage within the segment moves to the front of the tail: it changes
    nothing, and users come out whole.
    """

    source: Source
    head: tuple[Transform, ...]
    segment: tuple[Transform, ...]
    tail: tuple[Transform, ...]

    @classmethod
    def from_stages(cls, stages: Sequence[Stage]) -> Plan:
        """Divide a validated pipeline."""
        source, *others = stages
        rest = [stage for stage in others if isinstance(stage, Transform)]
        first = next((i for i, stage in enumerate(rest) if stage.scope == "keyed"), len(rest))
        ends = (i for i, stage in enumerate(rest) if i >= first and _ends_segment(stage))
        last = next(ends, len(rest))
        middle = rest[first:last]
        watchers = tuple(stage for stage in middle if stage.scope != "keyed")
        segment = tuple(stage for stage in middle if stage.scope == "keyed")
        assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
        return cls(source, tuple(rest[:first]), segment, (*watchers, *rest[last:]))

    def make_segment(self, metrics: RunMetrics, *, saves: bool) -> Segment:
        """Return the keyed stages as a value for the runner, with the population sample."""
        options = self.source.options
        return Segment(
            self.segment,
            name_stages((*self.head, *self.segment))[len(self.head) :],
            population=metrics.population_sample if options.needs_population else None,
            unbounded=options.unbounded,
            drops_model=not any(stage.needs.model for stage in self.tail),
            saves=saves,
        )

    def make_tail(self, *, saves: bool) -> Segment:
        """Return the stages that see the whole stream of what comes out of the segment."""
        before = (*self.head, *self.segment)
        names = name_stages((*before, *self.tail))[len(before) :]
        return Segment(self.tail, names, unbounded=self.source.options.unbounded, saves=saves)

    def output_dir(self) -> Path | None:
        """Return the folder that the pipeline writes into, which all machines share."""
        return next(iter(find_output_folders(self.tail)), None)

    def make_encoder(self, first: Batch, spill_dir: SpillDir) -> Segment | None:
        """Return what formats rows for the last sink, if no stage before it reads them."""
        if not self.tail or any(stage.needs.rows for stage in self.tail[:-1]):
            return None
        sink = self.tail[-1]
        encoder = sink.encoder(first, spill_dir) if isinstance(sink, Sink) else None
        return None if encoder is None else Segment.from_stages([encoder])


def _ends_segment(stage: Transform) -> bool:
    """Whether a stage cannot be within the part that sees one user at a time."""
    return OutputRows in stage.takes or stage.scope == "barrier"


class Pipeline:
    """Stages in the order in which events pass them.

    Args:
        stages: A source, then stages, then usually a sink.
        options: What holds for all of them.
    """

    def __init__(self, stages: Sequence[Stage], options: PipelineOptions | None = None) -> None:
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
        plan = Plan.from_stages(_expand(stages))
        metrics = RunMetrics(has_sink=any(isinstance(stage, Sink) for stage in stages))
        begin = time.perf_counter()
        path = self.options.status_file
        status = None if path is None else StatusFile.from_stages(path, stages)
        if status is not None:
            status.write(metrics, running=True)
        with self._open_store(plan) as store, self._open_runner(store) as runner:
            # Closed at once, not when the garbage is collected: sinks then remove their drafts.
            with closing(self._execute(plan, metrics, runner, store)) as batches:
                for batch in batches:
                    metrics.add(batch)
                    if status is not None:
                        status.write(metrics, running=True)
            failures = list(_commit_all(stages, metrics))
            if store is not None and not failures:
                store.commit()
        if status is not None:
            status.write(metrics, running=False)
        metrics.seconds = time.perf_counter() - begin
        if on_complete is not None:
            on_complete(metrics)
        _raise_first(failures)
        return metrics

    def links(self) -> list[tuple[str, str]]:
        """The word of each stage, and the name of what it gives."""
        names = [kind.__name__ for kind in self._record_types()]
        return list(zip((stage.name for stage in self.stages), names, strict=True))

    def _execute(
        self,
        plan: Plan,
        metrics: RunMetrics,
        runner: LocalRunner | DaskRunner,
        store: StateStore | None,
    ) -> Generator[Batch, None, None]:
        """Run the head, the segment and the tail."""
        run = self._run_unbounded if plan.source.is_unbounded() else self._run_bounded
        with ExitStack() as resources:
            tail = plan.make_tail(saves=store is not None).open(resources=resources)
            yield from run_chain(tail, run(plan, metrics, runner, store), store)

    @contextmanager
    def _open_runner(self, store: StateStore | None) -> Iterator[LocalRunner | DaskRunner]:
        options = self.options
        if options.engine.lower() == "dask":
            with Cluster(options.scheduler, options.num_threads) as cluster:
                yield DaskRunner(cluster, store)
        else:
            with WorkerPool(options.num_threads) as pool:
                yield LocalRunner(pool, store)

    @contextmanager
    def _open_store(self, plan: Plan) -> Iterator[StateStore | None]:
        """Open the state file, if there is one; what a failed run has changed is dropped."""
        if self.options.state is None:
            yield None
            return
        store = SqliteStateStore(Path(self.options.state), _describe_state(plan))
        try:
            yield store
        finally:
            store.close()

    def _run_unbounded(
        self,
        plan: Plan,
        metrics: RunMetrics,
        runner: LocalRunner | DaskRunner,
        store: StateStore | None,
    ) -> Iterator[Batch]:
        training_input = _find_training_input(plan.segment)
        state = PartitionState.restore({})
        if store is not None:
            state = restore_source(store.load_stage(SOURCE))
        events = GracefulShutdown(plan.source.events(training_input, metrics, state))
        stream = Segment.from_stages(plan.head, unbounded=True).open().run(iter(events))
        # Once the first batch is there, the population has been sampled.
        stream = chain(list(islice(stream, 1)), stream)
        yield from runner.run(plan.make_segment(metrics, saves=store is not None), stream)
        metrics.interrupted = events.stopped
        if store is not None:
            save_source(store, state, list(state.row_offsets))

    def _run_bounded(
        self,
        plan: Plan,
        metrics: RunMetrics,
        runner: LocalRunner | DaskRunner,
        store: StateStore | None,
    ) -> Iterator[Batch]:
        training_input = _find_training_input(plan.segment)
        read = plan.source.partitions(training_input, metrics, runner.executor)
        shared = plan.output_dir() if isinstance(runner, DaskRunner) else None
        with SpillDir(shared) as spill_dir, read as partitions:
            if isinstance(runner, DaskRunner) and shared is not None:
                runner.executor.check_shared_folder(spill_dir.folder)
            parts: Sequence[Partition] = partitions
            if plan.head:
                events = read_partitions(partitions, metrics, store)
                parts = [StreamPartition(Segment.from_stages(plan.head).open().run(events))]
            make_encoder = partial(plan.make_encoder, spill_dir=spill_dir)
            segment = plan.make_segment(metrics, saves=store is not None)
            yield from runner.run_partitions(segment, parts, metrics, make_encoder)

    def _resolve_options(self) -> tuple[Stage, ...]:
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
            source=source.name,
        )
        # What stages need may depend on the options, so they get them first.
        stages = [replace(stage, options=settled) for stage in self.stages]
        settled = replace(
            settled,
            needs_population=any(needs.population for needs in _list_requirements(stages)),
            keeps_dropped_stats=any(needs.dropped_stats for needs in _list_requirements(stages)),
        )
        if settled.engine.lower() == "dask":
            stages = [make_paths_absolute(stage) for stage in stages]
        return tuple(replace(stage, options=settled) for stage in stages)

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


def _check_output_files(stages: Sequence[Stage]) -> None:
    """Refuse to write a file twice, or into the place of a log."""
    source, *rest = stages
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    history = _find_training_input(rest)
    written: dict[Path, Stage] = {}
    files = [
        (stage, path)
        for stage in rest
        if isinstance(stage, WritesOutputs)
        for path in stage.outputs().files
    ]
    for stage, path in files:
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


def _find_training_input(stages: Sequence[Stage]) -> str | None:
    """The files that are learnt from, if any."""
    return next(
        (glob for needs in _list_requirements(stages) if (glob := needs.training_input)), None
    )


def _list_requirements(stages: Sequence[Stage]) -> list[Requirements]:
    return [stage.needs for stage in stages if isinstance(stage, Transform)]


def _expand(stages: Sequence[Stage]) -> list[Stage]:
    """Replace words that stand for several stages."""
    parts = [stage.expand() if isinstance(stage, Expands) else (stage,) for stage in stages]
    return [part for expanded in parts for part in expanded]


def _describe_state(plan: Plan) -> dict[str, object]:
    """Return the options that shape states: a state file of others is rejected."""
    options = plan.source.options
    return {
        "source": plan.source.name,
        "--userid_column_name": options.userid_column_name,
        "--timestamp_column_name": options.timestamp_column_name,
        "--columns_file": list(options.columns),
    }


def _commit_all(stages: Sequence[Stage], metrics: RunMetrics) -> Iterator[MorpheusError | OSError]:
    """Let every stage do what it has left; gives why some could not."""
    for stage in stages:
        if not isinstance(stage, WritesOutputs):
            continue
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


def _mismatch_message(position: int, before: Stage, given_type: type, stage: Stage) -> str:
    wanted = [kind.__name__ for kind in stage.takes]
    order = list(DEFAULT_PRODUCER)
    said = (
        f"Stage {position + 1} `{stage.name}` takes {' or '.join(wanted)}, but stage {position} "
        f"`{before.name}` gives {given_type.__name__}. "
    )
    if order.index(given_type.__name__) > order.index(wanted[0]):
        return said + f"Put `{stage.name}` before `{before.name}`, or leave it out."
    return said + f"Put {DEFAULT_PRODUCER[wanted[0]]} between them."
