"""Pipelines: validate all stages before anything is opened, then run them.

`Pipeline.run` divides the stages with `Plan`. The keyed part runs where a runner puts it: in this
process, in worker processes, or on a cluster. The rest sees the whole stream in this process.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Union

import polars as pl
from msgspec import structs

from morpheus.columns import INDEX, POPULATION_USER, ROW, TIME
from morpheus.core.batch import (
    Batch,
    MicroBatch,
    OutputRows,
    Partition,
    RunMetrics,
    Scored,
    Step,
    StreamPartition,
    Table,
    WithModel,
)
from morpheus.core.stage import (
    ChecksInput,
    Expands,
    Outputs,
    PipelineOptions,
    PreparesFor,
    Requirements,
    SelectsByRisk,
    Sink,
    Stage,
    StageContext,
    Transform,
    Values,
    WritesOutputs,
    check_values,
    find_output_folders,
    iter_locations,
    list_values,
    make_paths_absolute,
    read_lines,
    resolve_locations,
)
from morpheus.errors import EmptyRunError, MorpheusError, TransientError, UsageError
from morpheus.models.input_check import InputProfile
from morpheus.runtime.chain import (
    Chain,
    GracefulShutdown,
    Segment,
    add_features,
    find_feature_stages,
    name_stages,
)
from morpheus.runtime.local import LocalRunner, read_partitions, resume_source, save_memory
from morpheus.runtime.pool import WorkerPool
from morpheus.seasonality.detector import parse_duration
from morpheus.sinks.to_file import validate_output
from morpheus.sources.base import Source
from morpheus.sources.spill_sort import LatenessBuffer
from morpheus.sources.time_range import parse_allowance
from morpheus.storage.atomic import set_file_policy, start_cleanup
from morpheus.storage.object_store import ObjectPath, is_in_folder, is_remote
from morpheus.storage.spill import SpillDir
from morpheus.text import quote_backtick

if TYPE_CHECKING:
    from morpheus.runtime.dask import DaskRunner
    from morpheus.runtime.outbox import Outbox, SinkWorker
    from morpheus.runtime.states import SavedStates, SqliteStateStore, StateStore
    from morpheus.runtime.stream import StreamSettings
    from morpheus.status import StatusFile

logger = logging.getLogger(__name__)

DEFAULT_PRODUCER = {
    "Events": "a source such as `from-cloudtrail`",
    "WithModel": "`train-ae`",
    "Encoded": "`preprocess`",
    "Losses": "`inf-pytorch`",
    "Scored": "`add-scores`",
    "OutputRows": "`serialize`",
}
"""The stage that usually gives each class of batch, for messages about a missing stage."""

Runner = Union[LocalRunner, "DaskRunner"]


@dataclass(frozen=True)
class Plan:
    """Where each stage of a pipeline runs.

    A global stage between keyed stages moves to the front of the tail. This does not change its
    results, and lets each user pass the whole segment at once.

    Attributes:
        source: Reads the events.
        head: Stages in front of the first keyed stage; they see the whole stream.
        segment: Keyed stages; they see one user at a time, so they can run anywhere.
        tail: Stages after the segment; they see the whole stream.
    """

    source: Source
    head: tuple[Transform, ...]
    segment: tuple[Transform, ...]
    tail: tuple[Transform, ...]

    @classmethod
    def from_stages(cls, stages: Sequence[Stage]) -> Plan:
        """Divide a validated pipeline."""
        source = stages[0]
        rest = [stage for stage in stages[1:] if isinstance(stage, Transform)]
        first = next((i for i, stage in enumerate(rest) if stage.scope == "keyed"), len(rest))
        ends = (i for i, stage in enumerate(rest) if i >= first and _ends_segment(stage))
        last = next(ends, len(rest))
        middle = rest[first:last]
        moved = tuple(stage for stage in middle if stage.scope != "keyed")
        segment = tuple(stage for stage in middle if stage.scope == "keyed")
        assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
        return cls(source, tuple(rest[:first]), segment, (*moved, *rest[last:]))

    def make_segment(self, metrics: RunMetrics, *, saves: bool) -> Segment:
        """Return the keyed stages as a value for the runner, with the population sample.

        Args:
            metrics: Has the population sample, if the source has drawn one.
            saves: Encode changed states, so that they can be saved.
        """
        options = self.source.options
        return Segment(
            self.segment,
            name_stages((*self.head, *self.segment))[len(self.head) :],
            population=metrics.population_sample if options.needs_population else None,
            unbounded=options.unbounded,
            drops_model=not any(stage.needs.model for stage in self.tail),
            saves=saves,
        )

    def open_stream(
        self, metrics: RunMetrics, shared: SavedStates, wait: Callable[[float], None]
    ) -> tuple[Chain, Chain]:
        """Open the stages before the tail for an endless run.

        Args:
            metrics: See `make_segment`.
            shared: States of stages that see all users.
            wait: See `StageContext`.
        """
        head = Segment(self.head, name_stages(self.head), unbounded=True)
        keyed = self.make_segment(metrics, saves=False)
        return head.open(shared), keyed.open(shared, wait=wait)

    def make_columns(self, metrics: RunMetrics) -> Iterator[Batch]:
        """Yield a batch without events, as it leaves the keyed stages: it has the columns."""
        empty = self.source.make_empty_batch(metrics.columns)
        if empty is not None:
            yield from self.make_segment(metrics, saves=False).open().run(iter([empty]))

    def make_tail(self, *, saves: bool) -> Segment:
        """Return the stages after the segment."""
        before = (*self.head, *self.segment)
        names = name_stages((*before, *self.tail))[len(before) :]
        return Segment(self.tail, names, unbounded=self.source.options.unbounded, saves=saves)

    def output_dir(self) -> Path | None:
        """Return a folder that the pipeline writes into, which the machines of a cluster share."""
        return next(iter(find_output_folders(self.tail)), None)

    def make_encoder(self, first: Batch, spill_dir: SpillDir) -> Segment | None:
        """Return the encoder of the last sink, if no stage in front of the sink reads the rows.

        Args:
            first: The first batch that leaves the segment.
            spill_dir: Folder for formatted rows.
        """
        if not self.tail or any(stage.needs.rows for stage in self.tail[:-1]):
            return None
        sink = self.tail[-1]
        encoder = sink.encoder(first, spill_dir) if isinstance(sink, Sink) else None
        return None if encoder is None else Segment.from_stages([encoder])


def _ends_segment(stage: Transform) -> bool:
    """Return whether a stage, though not the first one, cannot be part of the segment."""
    return OutputRows in stage.takes or stage.scope == "barrier"


MIN_STREAM_EVENTS = 1000
"""Number of events after which an endless run looks at new values."""


@dataclass
class RunProgress:
    """Counts what has passed the stages of a run, and begins its steps.

    Attributes:
        plan: The stages.
        metrics: Says which step begins.
        num_users: Number of users of the input and the history; None if it is not known.
        users: Number of users whose events have passed the segment.
        events: Number of events that have passed it.
        outputs: Number of outputs that are finished.
        has_checked_values: Whether new values were looked at.
    """

    plan: Plan
    metrics: RunMetrics
    num_users: int | None = None
    users: int = 0
    events: int = 0
    outputs: int = 0
    has_checked_values: bool = False

    def check_input(self, stages: Sequence[Stage], profile: InputProfile) -> None:
        """Count the users, and let stages check what the source has read."""
        self.metrics.begin(Step("Preparing", lambda: (0, 0)))
        _check_input(stages, self.metrics, profile)
        training = [] if profile.training is None else profile.training.events_by_user
        self.num_users = len({*profile.events.users["user"], *training})

    def warn_new_values(self, least: int = 0) -> None:
        """Warn once if nearly all values of a feature are new.

        Args:
            least: Minimum number of events to look at.
        """
        new_values = self.metrics.new_values
        if new_values is None or self.has_checked_values or new_values.events < least:
            return
        self.has_checked_values = True
        new_values.warn(self.metrics.log_features)

    def count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Count and yield batches; if there are none, one without events, which has the columns."""
        unbounded = self.plan.source.options.unbounded
        total = None if unbounded else self.num_users
        unit = "" if total is None else "user"
        name = "Watching for new files" if unbounded else self._name_step()
        counts = lambda: (self.users, self.events)  # noqa: E731 - as short as its use
        step = Step(name, counts, unit, total, prints=True, detail=self._describe_stream)
        self.metrics.begin(step)
        last: object = self
        for batch in batches:
            self.events += batch.table.height + batch.filtered
            self.users += batch.user != last
            last = batch.user
            yield batch
        if unbounded:
            return
        if not self.users:
            yield from self.plan.make_columns(self.metrics)
        self.metrics.begin(Step("Ranking events", lambda: (0, 0), prints=True))

    def count_outputs(self, stages: Sequence[Stage]) -> Iterator[WritesOutputs]:
        """Yield the stages that write outputs. Each is finished when the next one is asked for."""
        writers = [stage for stage in stages if isinstance(stage, WritesOutputs)]

        def count() -> tuple[int, int]:
            return self.outputs, self.metrics.users.total()

        if writers:
            self.metrics.begin(Step("Writing", count, "output", len(writers), prints=True))
        for writer in writers:
            yield writer
            self.outputs += 1

    def _describe_stream(self) -> str:
        stream = self.metrics.stream
        return "" if stream is None else stream.describe()

    def _name_step(self) -> str:
        stages = self.plan.segment
        if not any(stage.gives is Scored for stage in stages):
            return "Processing"
        trains = any(stage.gives is WithModel and stage.needs.cpu_bound for stage in stages)
        return "Training and scoring" if trains else "Scoring"


def _check_objects(stages: Sequence[object], options: object) -> None:
    """Reject what is not a stage, or not the options of a pipeline.

    Raises:
        UsageError: There is such an object; says what to give.
    """
    for place, stage in enumerate(stages, 1):
        if isinstance(stage, type):
            raise UsageError(
                f"Stage {place} is the class `{stage.__name__}`. Give a stage: "
                f"`{stage.__name__}(...)`."
            )
        if not isinstance(stage, Stage):
            raise UsageError(
                f"Stage {place} has the type `{type(stage).__name__}`. Give a list of stages, such "
                "as `[FromCloudtrail(...), Serialize(), ToFile(...)]`."
            )
    if not isinstance(options, PipelineOptions):
        raise UsageError(
            f"The options have the type `{type(options).__name__}`. Give "
            "`PipelineOptions(num_threads=1)`, with the options that you need."
        )


class Pipeline:
    """A source, the stages after it, and the options that apply to all of them.

    Args:
        stages: The source and the stages, in order; usually the last one is a sink.
        options: Options of the whole pipeline.
    """

    def __init__(self, stages: Sequence[Stage], options: PipelineOptions | None = None) -> None:
        self.stages = tuple(stages)
        self.options = options or PipelineOptions()
        self._validated = False

    def check_written_file(self, option: str, path: Path) -> None:
        """Reject a file that another part of the program writes, if it is an input log.

        Args:
            option: The option that names the file.
            path: The file.

        Raises:
            UsageError: It is an input log, or would be read as one.
        """
        source, *rest = self._resolve_options()
        assert isinstance(source, Source)  # noqa: S101 - `validate` has seen to it
        _check_is_no_input(source, _find_training_input(rest), option, path, is_early=True)

    def validate(self) -> None:
        """Check the stages, their order and all options, before any log is opened.

        Raises:
            UsageError: The order, an option, or a feature list is wrong; says what to type.
        """
        if not self.stages:
            raise UsageError(
                "The pipeline is empty. Start with a source: `from-cloudtrail --input_glob=...`."
            )
        _check_objects(self.stages, self.options)
        self.stages = tuple(resolve_locations(check_values(stage)) for stage in self.stages)
        self.options = resolve_locations(check_values(self.options))
        self._check_source()
        self._check_links()
        self._check_engine()
        self._check_lateness()
        self._check_state_age()
        stages = self._resolve_options()
        self.options = stages[0].options
        for stage in stages:
            stage.validate()
        _check_pseudonyms(stages[0])
        _check_output_files(stages)
        _check_data_sets(stages)
        _check_option_files(self.options)
        _check_users(self.options)
        if self.options.state is not None:
            _check_per_run(_expand(stages), is_endless=self.options.unbounded)
        self._validated = True

    def run(
        self,
        on_complete: Callable[[RunMetrics], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_start: Callable[[RunMetrics], None] | None = None,
    ) -> RunMetrics:
        """Run the pipeline to the end of its input.

        Args:
            on_complete: Called with the metrics when all events have passed, even if a sink then
                fails to finish its output.
            on_step: Called with each step of the run when it begins; see `RunMetrics.on_step`.
            on_start: Called with the metrics before anything is read. They change during the run.

        Raises:
            MorpheusError: The input, an option or an output is at fault; says what to do.
        """
        if not self._validated:
            self.validate()
        set_file_policy(shared=self.options.shared_files)
        start_cleanup()
        stages = self._resolve_options()
        plan = Plan.from_stages(_expand(stages))
        metrics = RunMetrics(has_sink=any(isinstance(stage, Sink) for stage in stages))
        metrics.on_step = on_step
        if on_start is not None:
            on_start(metrics)
        progress = RunProgress(plan, metrics)
        metrics.on_input = partial(progress.check_input, _expand(stages))
        start = time.perf_counter()
        status = self._make_status_file(stages)
        if status is not None:
            status.write(metrics, running=True)
        with self._open_store(plan) as store, self._open_runner(store) as runner:
            with ExitStack() as resources:
                if status is not None:
                    metrics.on_tick = partial(status.update, metrics)
                for batch in self._open_batches(progress, runner, store, resources):
                    metrics.add(batch)
                    metrics.tick()
                    if metrics.stream is not None:
                        progress.warn_new_values(MIN_STREAM_EVENTS)
            progress.warn_new_values()
            failures = self._finish(progress.count_outputs(stages), metrics, store)
        if status is not None:
            status.update(metrics, running=False)
        metrics.failed_outputs = len(failures)
        metrics.seconds = time.perf_counter() - start
        if on_complete is not None:
            on_complete(metrics)
        _raise_first(failures)
        self._check_empty(metrics)
        return metrics

    def _make_status_file(self, stages: Sequence[Stage]) -> StatusFile | None:
        if self.options.status_file is None:
            return None
        from morpheus.status import StatusFile  # noqa: PLC0415 - imports the report

        return StatusFile.from_stages(self.options.status_file, stages)

    def _finish(
        self, writers: Iterable[WritesOutputs], metrics: RunMetrics, store: StateStore | None
    ) -> list[MorpheusError | OSError]:
        """Finish all outputs, then save the state; return the errors of outputs that failed."""
        failures = list(_commit_all(writers, metrics))
        if store is None:
            return failures
        if metrics.interrupted:
            failures = _drop_waiting(failures)
        if not failures:
            if self._state_max_age is not None:
                store.remove_older(self._state_max_age)
            store.commit()
        return failures

    def _check_empty(self, metrics: RunMetrics) -> None:
        if self.options.fail_on_empty and metrics.empty_reason:
            raise EmptyRunError(
                f"No event was written: {metrics.empty_reason}. Leave out --fail_on_empty to "
                "accept this."
            )

    def links(self) -> list[tuple[str, str]]:
        """Return the word of each stage, and the name of the class of batches it gives."""
        names = [kind.__name__ for kind in self._batch_types()]
        return list(zip((stage.name for stage in self.stages), names, strict=True))

    @contextmanager
    def _open_runner(self, store: StateStore | None) -> Iterator[Runner]:
        options = self.options
        if options.engine.lower() == "dask":
            from morpheus.runtime.dask import DaskRunner  # noqa: PLC0415 - for this engine only
            from morpheus.runtime.dask_cluster import Cluster  # noqa: PLC0415 - the same

            with Cluster(options.scheduler, options.num_threads) as cluster:
                yield DaskRunner(cluster, store)
        else:
            with WorkerPool(options.num_threads) as pool:
                yield LocalRunner(pool, store)

    @contextmanager
    def _open_store(self, plan: Plan) -> Iterator[StateStore | None]:
        """Open the state file, if there is one. The changes of a failed run are dropped."""
        if self.options.state is None:
            yield None
            return
        from morpheus.runtime.states import SqliteStateStore  # noqa: PLC0415 - for --state only

        store = SqliteStateStore(Path(self.options.state), _describe_state(plan))
        try:
            yield store
        finally:
            store.close()

    def _open_batches(
        self, progress: RunProgress, runner: Runner, store: StateStore | None, resources: ExitStack
    ) -> Iterator[Batch]:
        """Return the batches that leave the last stage, and open what they are read with."""
        plan = progress.plan
        if plan.source.is_unbounded():
            from morpheus.runtime.stream import collect_rarely  # noqa: PLC0415 - most inputs end

            resources.enter_context(collect_rarely())
            return self._open_stream(progress, store, resources)
        tail = plan.make_tail(saves=store is not None).open(resources=resources)
        # On exit, whatever reads the input is closed at once, also after an error.
        return tail.run(resources.enter_context(self._run_bounded(progress, runner, store)), store)

    def _open_stream(
        self, progress: RunProgress, store: StateStore | None, resources: ExitStack
    ) -> Iterator[Batch]:
        """Read an endless input, and run all stages."""
        from morpheus.runtime.states import SqliteStateStore  # noqa: PLC0415 - most inputs end
        from morpheus.runtime.stream import DurableStream, Stream  # noqa: PLC0415 - the same

        plan, metrics = progress.plan, progress.metrics
        durable = store if isinstance(store, SqliteStateStore) else None
        shared = {} if durable is None else durable.load([None])
        changelog = plan.source.get_changelog()
        if durable is not None:
            durable.note_changelog(None if changelog is None else changelog.topic)
        if durable is not None and changelog is not None:
            durable.drop_users()  # another process may have gone on since
        tail, outbox, workers = _add_outbox(plan.make_tail(saves=False), durable)
        last = tail.open(shared, resources)
        offsets, journal = ({}, []) if changelog is not None else _find_position(durable)
        source = self._read_micro_batches(plan.source.replay(journal), plan, metrics, offsets)
        resources.callback(_close, source)
        shutdown = GracefulShutdown(source)
        _start_workers(workers, durable, resources)
        micro_batches = iter(shutdown)
        resources.callback(_close, micro_batches)
        # The source draws the population sample before it returns the first micro-batch.
        micro_batches = chain(list(islice(micro_batches, 1)), micro_batches)
        wait = partial(_wait, shutdown, metrics)
        chains = (*plan.open_stream(metrics, shared, wait), last)
        stream = Stream(chains, metrics)
        if durable is not None and outbox is not None:
            stream = DurableStream(
                chains,
                metrics,
                store=durable,
                outbox=outbox,
                workers=workers,
                settings=self._make_stream_settings(),
                is_stopped=lambda: shutdown.stopped,
                changelog=changelog,
                replays=len(journal),
            )
        stream.make_columns = partial(plan.make_columns, metrics)
        yield from progress.count(stream.run(micro_batches))
        metrics.interrupted = shutdown.stopped

    def _read_micro_batches(
        self, source: Source, plan: Plan, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read an endless input; with an allowance for late events, in the order of time."""
        training_input = _find_training_input(plan.segment)
        text = self.options.allowed_lateness
        allowance = parse_allowance(text, option="--allowed_lateness")
        if not allowance and not LatenessBuffer.is_in(offsets):
            return source.micro_batches(training_input, metrics, offsets)
        metrics.lateness = LatenessBuffer(allowance)
        rest = metrics.lateness.restore(offsets)
        micro_batches = source.micro_batches(training_input, metrics, rest)
        return metrics.lateness.complete(micro_batches, metrics)

    def _make_stream_settings(self) -> StreamSettings:
        from morpheus.runtime.stream import StreamSettings  # noqa: PLC0415 - most inputs end

        options = self.options
        return StreamSettings(
            options.checkpoint_interval,
            options.max_outbox,
            options.max_live_users,
            self._state_max_age,
        )

    @property
    def _state_max_age(self) -> timedelta | None:
        """How long the state of a user is kept; None for no limit."""
        text = self.options.state_max_age
        if text is None:
            return None
        return timedelta(seconds=parse_duration(text, option="--state_max_age"))

    @contextmanager
    def _run_bounded(
        self, progress: RunProgress, runner: Runner, store: StateStore | None
    ) -> Iterator[Iterator[Batch]]:
        plan, metrics = progress.plan, progress.metrics
        training_input = _find_training_input(plan.segment)
        source = plan.source if store is None else resume_source(plan.source, store)
        read = source.partitions(training_input, metrics, runner.executor)
        executor = runner.executor
        shared = None if isinstance(executor, WorkerPool) else plan.output_dir()
        with SpillDir(shared) as spill_dir, read as partitions:
            if not isinstance(executor, WorkerPool) and shared is not None:
                executor.check_shared_folder(spill_dir.folder)
            parts: Sequence[Partition] = partitions
            if plan.head:
                events = read_partitions(partitions, metrics, store)
                parts = [StreamPartition(Segment.from_stages(plan.head).open().run(events))]
            make_encoder = partial(plan.make_encoder, spill_dir=spill_dir)
            segment = plan.make_segment(metrics, saves=store is not None)
            run = runner.run_partitions(segment, parts, metrics, make_encoder)
            with closing(run) as batches:
                yield progress.count(batches)
        if store is not None:
            save_memory(store, source, metrics)

    def _resolve_options(self) -> tuple[Stage, ...]:
        """Return the stages with the options of the whole pipeline filled in."""
        source = self.stages[0]
        assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
        options = source.with_defaults(self.options)
        labels = options.labels
        if options.labels_file is not None:
            labels = read_lines(options.labels_file, option="--labels_file")
        options = replace(
            options,
            labels=labels,
            unbounded=source.is_unbounded(),
            source=source.name,
            log=replace(source, options=options).describe_log(),
        )
        options = replace(options, inputs=replace(source, options=options).describe_input())
        # What a stage needs can depend on the options, so the stages get them first.
        needs = _list_requirements([replace(stage, options=options) for stage in self.stages])
        options = replace(
            options,
            needs_population=any(each.population for each in needs),
            keeps_dropped_stats=any(each.dropped_stats for each in needs),
            feature_stages=bool(find_feature_stages(_expand(self.stages))),
        )
        stages = self.stages
        if options.engine.lower() == "dask":
            stages = tuple(make_paths_absolute(stage) for stage in stages)
        return tuple(replace(stage, options=options) for stage in stages)

    def _check_source(self) -> None:
        positions = [i for i, stage in enumerate(self.stages) if isinstance(stage, Source)]
        first = self.stages[0].name
        if not positions:
            raise UsageError(
                f"The pipeline starts with `{first}`, which does not read logs. Put a source such "
                "as `from-cloudtrail --input_glob=...` in front of it."
            )
        if len(positions) > 1:
            names = " and ".join(f"`{self.stages[i].name}`" for i in positions)
            raise UsageError(f"The pipeline has more than one source: {names}. Keep the first.")
        if positions[0] != 0:
            raise UsageError(
                f"Stage 1 `{first}` is in front of the source `{self.stages[positions[0]].name}`. "
                "Put the source first."
            )

    @property
    def is_unbounded(self) -> bool:
        """Whether the input has no end."""
        return isinstance(self.stages[0], Source) and self.stages[0].is_unbounded()

    def _check_engine(self) -> None:
        options = self.options
        if options.engine.lower() == "dask":
            self._check_bounded()
            from morpheus.runtime.dask_cluster import check_scheduler  # noqa: PLC0415 - for this engine only

            check_scheduler(options.scheduler)
        elif options.scheduler is not None:
            raise UsageError(
                "--scheduler: needs --engine=dask. Type `morpheus run --engine=dask "
                f"--scheduler={options.scheduler} ...`, or leave --scheduler out."
            )

    def _check_state_age(self) -> None:
        if self._state_max_age is not None and self.options.state is None:
            raise UsageError(
                "--state_max_age: without --state, nothing is kept. Add --state=FILE, or leave out "
                "--state_max_age."
            )

    def _check_lateness(self) -> None:
        """Reject an allowance for late events where none can wait for others."""
        source, options = self.stages[0], self.options
        allowance = parse_allowance(options.allowed_lateness, option="--allowed_lateness")
        if not allowance:
            return
        if isinstance(source, Source) and not source.is_unbounded():
            raise UsageError(
                "--allowed_lateness: needs an input without end. Other inputs are put in order as "
                "a whole; for runs on a schedule, use `--lag` of the source."
            )
        if options.state is None:
            raise UsageError(
                "--allowed_lateness: needs a state file, which keeps the events that wait. Add "
                "--state=FILE."
            )

    def _check_bounded(self) -> None:
        source = self.stages[0]
        if isinstance(source, Source) and source.is_unbounded():
            raise UsageError(
                "--engine=dask: the input has no end, and a cluster needs all input at the start. "
                "Leave out --engine, or give an input with an end."
            )

    def _check_links(self) -> None:
        kinds = self._batch_types()
        for i, stage in enumerate(self.stages[1:], start=1):
            if not issubclass(kinds[i - 1], stage.takes):
                raise UsageError(_mismatch_message(i, self.stages[i - 1], kinds[i - 1], stage))

    def _batch_types(self) -> list[type]:
        """Return the class of the batches that each stage gives."""
        kinds: list[type] = []
        for stage in self.stages:
            kinds.append(stage.gives or kinds[-1])
        return kinds


def _add_outbox(
    tail: Segment, store: SqliteStateStore | None
) -> tuple[Segment, Outbox | None, list[SinkWorker]]:
    """Put an outbox in front of the sinks of a tail, if there is a state file."""
    from morpheus.runtime.stream import open_outbox_tail  # noqa: PLC0415 - most inputs end

    if store is None:
        return tail, None, []
    stages, outbox, workers = open_outbox_tail(tail.stages, tail.names, store)
    return replace(tail, stages=tuple(stages)), outbox, workers


def _wait(shutdown: GracefulShutdown[MicroBatch], metrics: RunMetrics, seconds: float) -> None:
    """Wait for what a stage needs. The run does not hang meanwhile; a signal ends it."""
    if metrics.stream is not None:
        metrics.stream.paused = True
    metrics.tick()
    shutdown.wait(seconds)


def _close(reader: Iterator[object]) -> None:
    """Close what reads the input at once, also after an error."""
    if isinstance(reader, Generator):
        reader.close()


def _check_pseudonyms(source: Stage) -> None:
    """Check the key and the columns of pseudonyms, if there are any."""
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    if source.get_pseudonymizer() is None and source.options.pseudonymize:
        raise UsageError(
            f"--pseudonymize: the source `{source.name}` cannot replace values. Leave the option "
            "out, or use another source."
        )


def _check_output_files(stages: Sequence[Stage]) -> None:
    """Reject an output file that is an input file, or that two stages write."""
    source, *rest = stages
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    training_input = _find_training_input(rest)
    outputs = [(stage, stage.outputs()) for stage in rest if isinstance(stage, WritesOutputs)]
    printers = [stage.name for stage, written in outputs if written.stdout]
    if len(printers) > 1:
        raise UsageError(
            f"`{printers[0]}` and `{printers[1]}` both write to stdout. Give one of them a file."
        )
    if printers and sys.stdout is None:  # the command was started with `>&-`
        raise UsageError(f"{printers[0]}: stdout is closed. Redirect it to a file, or open it.")
    writers: dict[Path | ObjectPath, str] = {}
    for writer, path, is_early in _list_written_files(source.options, outputs):
        _check_is_no_input(source, training_input, writer, path, is_early=is_early)
        if isinstance(path, Path):
            _check_is_not_named(stages, writer, path)
        place = path.resolve() if isinstance(path, Path) else path
        if place in writers:
            raise UsageError(
                f"{writer}: `{path}` is also written by `{writers[place]}`. Give another file."
            )
        writers[place] = writer


def _check_is_no_input(
    source: Source,
    training_input: str | tuple[str, ...] | None,
    writer: str,
    path: Path | ObjectPath,
    *,
    is_early: bool,
) -> None:
    """Reject a file that a run writes, if it is an input log or would be read as one.

    Args:
        source: The source.
        training_input: Globs of the training files.
        writer: The option or the stage that names the file.
        path: The file.
        is_early: Whether it can be there before the input is read; other files appear at the end.
    """
    if source.overlaps_input(path, training_input):
        raise UsageError(
            f"{writer}: `{path}` is one of the input logs, and would be replaced. Give another "
            "file, or a glob that does not match it."
        )
    if source.would_read(path, training_input):
        advice = "Give a file in another folder, or a glob that does not match it."
        if is_early:
            raise UsageError(
                f"{writer}: `{path}` is in the input, and would be read as a log. {advice}"
            )
        logger.warning(
            "%s: `%s` is in the input, and the next run would read it as a log. %s",
            *(writer, path, advice),
        )


_STORE_OPTIONS = ("--pretrained_filename", "--models_output_filename")


def _check_is_not_named(stages: Sequence[Stage], writer: str, path: Path) -> None:
    """Reject a file that a run writes, if it reads the file, too: one that an option names.

    Args:
        stages: The source and the stages.
        writer: The option or the stage that writes the file.
        path: The file.
    """
    options = stages[0].options
    written = {file for _, file in _list_option_files(options)}
    named = [(name, text) for name, text in iter_locations(options) if Path(text) not in written]
    for stage in stages:
        outputs = stage.outputs() if isinstance(stage, WritesOutputs) else Outputs()
        own = {*outputs.files, *outputs.dead_letters}
        named += [(name, text) for name, text in iter_locations(stage) if Path(text) not in own]
    for option, text in named:
        if is_remote(text):
            continue
        if option in _STORE_OPTIONS and _is_of_store(path, text):
            what = "belongs to the model store of"
        elif Path(text).is_file() and path.exists() and path.samefile(text):
            what = "is also read by"
        else:
            continue
        raise UsageError(
            f"{writer}: `{path}` {what} `{option}={text}`, and would be replaced. Give another "
            "file."
        )


def _is_of_store(path: Path, location: str) -> bool:
    """Return whether a path is one of those that a model store has for itself."""
    from morpheus.models.versions import STORE_NAMES, split_location  # noqa: PLC0415 - runs without a store do not need it

    folder = Path(split_location(location, "")[0]).resolve()
    place = path.resolve()
    return place.is_relative_to(folder) and place.relative_to(folder).parts[:1] in STORE_NAMES


def _list_written_files(
    options: PipelineOptions, outputs: Sequence[tuple[Stage, Outputs]]
) -> Iterator[tuple[str, Path | ObjectPath, bool]]:
    """Yield all files that a run writes, each with the option or the stage that names it.

    The third value is whether the file can be there before the input is read.
    """
    yield from ((name, path, True) for name, path in _list_option_files(options))
    for stage, written in outputs:
        grows = options.unbounded or getattr(stage, "flush_rows", False)
        yield from ((stage.name, path, grows) for path in written.files)
        yield from ((stage.name, path, True) for path in written.dead_letters)


def _list_option_files(options: PipelineOptions) -> list[tuple[str, Path]]:
    """Return the files that options name and a run writes, each with its option."""
    files = {
        "--status_file": options.status_file,
        "--state": options.state,
        "--viz_file": options.viz_file,
    }
    return [(name, Path(file)) for name, file in files.items() if file is not None]


def _check_data_sets(stages: Sequence[Stage]) -> None:
    """Reject a folder that is replaced as a whole, if it has logs or other outputs of the run."""
    source, *rest = stages
    assert isinstance(source, Source)  # noqa: S101 - _check_source has seen to it
    training_input = _find_training_input(rest)
    outputs = [(stage, stage.outputs()) for stage in rest if isinstance(stage, WritesOutputs)]
    for stage, folder in ((stage, folder) for stage, out in outputs for folder in out.data_sets):
        log = source.find_input_in(folder, training_input)
        if log is not None:
            raise UsageError(
                f"{stage.name}: the input log `{log}` is in `{folder}`, whose content would be "
                "replaced. Give another --folder."
            )
        if source.options.durable:
            continue  # the folder gets more files, and nothing else in it changes
        places: list[tuple[str, Path | ObjectPath]] = [*_list_option_files(source.options)]
        places += [
            (f"`{other.name}`", place)
            for other, out in outputs
            if other is not stage
            for place in (*out.files, *out.dead_letters, *out.folders, *out.data_sets)
        ]
        for name, place in places:
            if is_in_folder(place, folder):
                raise UsageError(
                    f"{stage.name}: `{place}` of {name} is in `{folder}`, whose content is "
                    "replaced at the end. Give another --folder."
                )


def _check_option_files(options: PipelineOptions) -> None:
    """Reject files of options that cannot be written."""
    files = {
        "--status_file": options.status_file,
        "--state": options.state,
        "--viz_file": options.viz_file,
    }
    for name, path in files.items():
        if path is not None:
            suffixes = (".json",) if name == "--status_file" else ()
            validate_output(path, overwrite=True, stage_name="run", option=name, suffixes=suffixes)


def _check_users(options: PipelineOptions) -> None:
    """Reject users that are both chosen and left out."""
    both = [user for user in list_values(options.userid_filter) if user in options.skip_user]
    if both:
        raise UsageError(
            f"--skip_user: {quote_backtick(both[0])} is also given as --userid_filter. Leave one "
            "of the two out."
        )


def _start_workers(
    workers: Sequence[SinkWorker], store: SqliteStateStore | None, resources: ExitStack
) -> None:
    """Start the sinks, and save that they were opened."""
    for worker in workers:
        resources.callback(worker.abandon)  # if reading fails, too
        worker.start()
        progress = worker.take_progress()
        if store is not None and progress is not None:
            store.save_sink(worker.key, worker.place, progress)
            store.commit()
    if store is not None:
        from morpheus.runtime.stream import drop_former_sinks  # noqa: PLC0415 - most inputs end

        drop_former_sinks(store, workers)


def _find_position(store: SqliteStateStore | None) -> tuple[dict[str, bytes], list[bytes]]:
    """Return the offsets from which a source goes on, and the journal that comes before."""
    return ({}, []) if store is None else (store.load_offsets(), store.load_journal())


def _find_training_input(stages: Sequence[Stage]) -> Values | None:
    """Return the globs of the training files, if there are any."""
    globs = (needs.training_input for needs in _list_requirements(stages))
    return next((glob for glob in globs if glob), None)


def _list_requirements(stages: Sequence[Stage]) -> list[Requirements]:
    return [stage.needs for stage in stages if isinstance(stage, Transform)]


def _expand(stages: Sequence[Stage]) -> list[Stage]:
    """Replace each word that stands for several stages by these stages, and let them prepare."""
    parts = [stage.expand() if isinstance(stage, Expands) else (stage,) for stage in stages]
    expanded = [part for each in parts for part in each]
    return [
        stage.prepare_for(following)
        if isinstance(stage, PreparesFor) and isinstance(following, SelectsByRisk)
        else stage
        for stage, following in zip_longest(expanded, expanded[1:])
    ]


def _check_per_run(stages: Sequence[Stage], *, is_endless: bool) -> None:
    """Warn about stages whose results depend on how the input is divided into runs.

    Raises:
        UsageError: An endless run would lose the events that such a stage holds when it ends.
    """
    for stage in stages:
        if not isinstance(stage, Transform) or not stage.needs.per_run:
            continue
        if is_endless and stage.needs.holds_events:
            raise UsageError(
                f"--state: on an input without end, `{stage.name}` would lose the events that wait "
                f"for later ones when the run stops: {stage.needs.per_run}"
            )
        logger.warning("--state: `%s` works per run: %s", stage.name, stage.needs.per_run)


def _describe_state(plan: Plan) -> dict[str, object]:
    """Return the options that determine what states mean; see `SqliteStateStore`."""
    options, pseudonymizer = plan.source.options, plan.source.get_pseudonymizer()
    return {
        "source": plan.source.name,
        "--userid_column_name": options.userid_column_name,
        "--timestamp_column_name": options.timestamp_column_name,
        "--columns_file": list(options.columns),
        "--pseudonymize": list(pseudonymizer.columns) if pseudonymizer else [],
        "--pseudonym_key_file": pseudonymizer.key_id if pseudonymizer else "",
        "--timezone": options.timezone,
        **_list_state_options(plan),
    }


def _list_state_options(plan: Plan) -> dict[str, object]:
    """Return the options of stages that determine what their states mean."""
    stages = (*plan.head, *plan.segment, *plan.tail)
    return {
        f"{name.removesuffix('#1')} {option}": value
        for name, stage in zip(name_stages(stages), stages, strict=True)
        for option, value in stage.needs.state_options.items()
    }


def _check_input(stages: Sequence[Stage], metrics: RunMetrics, profile: InputProfile) -> None:
    """Let stages check what the source has read, and add features to the population sample."""
    features, sample = find_feature_stages(stages), metrics.population_sample
    if features and sample is not None and profile.population is not None:
        columns = stages[0].options.columns
        metrics.population_sample = _add_features_to_sample(features, sample, columns)
        profile = structs.replace(profile, population=metrics.population_sample)
    for stage in stages:
        if isinstance(stage, ChecksInput):
            stage.check_input(profile, metrics)


def _add_features_to_sample(
    stages: Sequence[Transform], sample: pl.DataFrame, columns: Sequence[str]
) -> pl.DataFrame:
    """Pass the events of each user of a population sample through stages that add features.

    Returns:
        `POPULATION_USER`, `TIME` and those of the columns that exist.
    """
    tables = []
    for events in sample.partition_by(POPULATION_USER, maintain_order=True):
        numbers = pl.int_range(events.height, dtype=pl.Int64, eager=True)
        log = [name for name in events.columns if name not in {POPULATION_USER, ROW, INDEX, TIME}]
        table = Table(events.select(numbers.alias(ROW), numbers.alias(INDEX), *log, TIME))
        user = events[POPULATION_USER][0]
        frame = add_features(stages, user, table, StageContext()).to_frame()
        present = [name for name in columns if name in frame.columns]
        tables.append(frame.select(pl.lit(user).alias(POPULATION_USER), TIME, *present))
    return pl.concat(tables, how="diagonal") if tables else sample


def _commit_all(
    stages: Iterable[WritesOutputs], metrics: RunMetrics
) -> Iterator[MorpheusError | OSError]:
    """Let every stage finish its output, and yield the errors of those that fail."""
    for stage in stages:
        try:
            stage.commit(metrics)
        except (MorpheusError, OSError) as error:
            yield error


def _drop_waiting(failures: Sequence[MorpheusError | OSError]) -> list[MorpheusError | OSError]:
    """Return the failures without those of servers, for a run that was asked to stop.

    What a server has not taken waits in the state file, and the next run sends it. So the run has
    done all that it was asked to do.
    """
    for failure in failures:
        if isinstance(failure, TransientError):
            logger.warning("%s", failure)
    return [failure for failure in failures if not isinstance(failure, TransientError)]


def _raise_first(failures: Sequence[MorpheusError | OSError]) -> None:
    """Raise the first failure, and log the others."""
    for failure in failures[1:]:
        logger.error("%s", failure)
    if failures:
        raise failures[0]


def _mismatch_message(position: int, previous: Stage, given: type, stage: Stage) -> str:
    """Return the error for a stage that cannot take what the previous stage gives."""
    taken = [kind.__name__ for kind in stage.takes]
    order = list(DEFAULT_PRODUCER)
    problem = (
        f"Stage {position + 1} `{stage.name}` takes {' or '.join(taken)}, but stage {position} "
        f"`{previous.name}` gives {given.__name__}. "
    )
    if order.index(given.__name__) > order.index(taken[0]):
        return problem + f"Put `{stage.name}` before `{previous.name}`, or leave it out."
    return problem + f"Put {DEFAULT_PRODUCER[taken[0]]} between them."


@dataclass(frozen=True)
class CollectSink(Sink):
    """Keep all batches in `batches`, and pass them on."""

    name = "keep"
    takes = (Scored, OutputRows)
    needs = Requirements(model=True)

    batches: list[Batch] = field(default_factory=list)

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Keep a batch."""
        self.batches.append(batch)
        yield batch
