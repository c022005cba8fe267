"""The stage protocol: transforms and sinks, their options, and what they ask of the runtime.

A stage is declared once: a frozen dataclass whose fields are its Python arguments, its command-line
options and its help. The runtime calls `open` once for each user, `process` with each batch, and
`flush` at the end; it owns the state and passes it back with each call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from morpheus.columns import ACTOR_OPTION, SCORE

if TYPE_CHECKING:
    from morpheus.storage.spill import SpillDir

StageT = TypeVar("StageT", bound="Stage")


def option(  # noqa: PLR0913 - one argument for each thing an option can be
    default: object,
    help: str,
    *,
    names: Sequence[str] = (),
    choices: Sequence[str] = (),
    min: float | None = None,
    max: float | None = None,
    flag: bool = False,
    required: bool = False,
    command: str = "",
    default_display: str = "",
    path: bool = False,
) -> Any:  # noqa: ANN401 - the type is the annotation of the field that this value is put in
    """Declare a field that is also an option on the command line.

    Args:
        default: Value when the option is absent; a tuple makes the option repeatable.
        help: Help, a sentence or two.
        names: Spellings, `--userid_filter`; by default the field's own name behind two dashes.
        choices: Allowed values, compared without regard to case.
        min: Smallest number allowed.
        max: Largest number allowed.
        flag: For a boolean: the option takes no value.
        required: The option must be given.
        command: For `PipelineOptions`: the command that owns the option.
        path: The value is a path, which a cluster needs as an absolute one.
        default_display: What help says of a default that differs from machine to machine.
    """
    about = {
        "text": help,
        "names": tuple(names),
        "choices": tuple(choices),
        "low": min,
        "high": max,
        "flag": flag,
        "required": required,
        "command": command,
        "shown": default_display,
        "path": path,
    }
    return field(default=default, metadata=about)


COMPAT_RELEASES = ("22.08", "22.11")
"""Releases of NVIDIA Morpheus whose score columns can be had."""


@dataclass(frozen=True)
class PipelineOptions:
    """What holds for the whole chain: the options of `run` and of `pipeline-ae`.

    The fields that are no options are filled by the pipeline: the feature columns, and the kinds of
    those whose values are not to tell; the names of the score columns; whether the input may go on
    for ever; the source's word; and whether a stage wants to meet everybody,
    or to know of events that were left out.
    """

    num_threads: int = option(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "Maximum number of parallel workers. Does not affect results.",
        min=1,
        command="run",
        default_display="the number of cores",
    )
    pipeline_batch_size: int = option(
        256,
        "Minimum number of events of one user in a batch. Batches may be merged for speed. Does "
        "not affect results.",
        min=1,
        command="run",
    )
    model_max_batch_size: int = option(
        8,
        "Minimum number of events in one pass through the network. Passes may be merged for speed. "
        "Does not affect results.",
        min=1,
        command="run",
    )
    engine: str = option(
        "local",
        "Where users are trained and scored: in worker processes of this machine, or on a Dask "
        "cluster. Does not affect results.",
        choices=("local", "dask"),
        command="run",
    )
    scheduler: str | None = option(
        None,
        "Dask cluster for --engine=dask: the address of a scheduler, `tcp://host:8786`. Or a "
        "cluster to start with --num_threads workers: `kubernetes`, `slurm`, `pbs`, `yarn`, "
        "`gateway`, `fargate`, `ec2`, or a cluster class `package.module:Class`. By default "
        "workers start on this machine.",
        command="run",
    )
    edge_buffer_size: int = option(
        128,
        "Accepted for old command lines. Stages pull from each other, so there is no buffer.",
        min=2,
        command="run",
    )
    use_cpp: bool = option(
        True,
        "Accepted for old command lines. There is only one implementation.",
        command="run",
    )
    manual_seed: int | None = option(
        None,
        "Random seed for stages without a seed of their own.",
        min=1,
        command="run",
    )
    status_file: str | None = option(
        None,
        "JSON file for the progress of the run, written every second. `morpheus serve` expects it "
        "as `status.json` in the output folder.",
        command="run",
    )
    state: str | None = option(
        None,
        "File that keeps the state of each user between runs. Consecutive runs then give the same "
        "output as one run over all their input. It is created if it does not exist.",
        command="pipeline-ae",
    )
    shared_files: bool = option(
        False,
        "Make output and model files readable by the group, as far as the umask allows. By default "
        "only you can read them.",
        flag=True,
        command="run",
    )
    columns_file: str | None = option(
        None,
        "Feature list: a file of column names, one per line. By default the list shipped for the "
        "source. For `from-file`, a schema (`.toml`).",
        command="pipeline-ae",
    )
    labels_file: str | None = option(
        None,
        f"File of names of score columns, one per line. By default `{SCORE}`, or as for --compat.",
        command="pipeline-ae",
    )
    compat: str = option(
        COMPAT_RELEASES[0],
        "Write the score columns of this release of NVIDIA Morpheus. 22.04 to 22.08 write "
        f"`{SCORE}`. 22.09 and later write `reconstruct_loss`, `zscore`, `<column>_z_loss`, "
        "`max_abs_z` and `mean_abs_z`, of which both high and low values are unusual.",
        choices=COMPAT_RELEASES,
        command="pipeline-ae",
    )
    userid_column_name: str = option(
        "",
        f"User column. `{ACTOR_OPTION}` finds the actor of each event, by the rules of the log "
        "format.",
        command="pipeline-ae",
        default_display="`userIdentityaccountId`, `userPrincipalName` or `username`, depending on "
        "the source",
    )
    userid_filter: str | None = option(
        None,
        "Keep only the events of this user.",
        command="pipeline-ae",
    )
    feature_scaler: str = option(
        "standard",
        "Scaling of number columns. Category columns are not scaled.",
        choices=("none", "standard", "gauss_rank", "gaussrank"),
        command="pipeline-ae",
    )
    timestamp_column_name: str = option(
        "",
        "Time column, for logs with an unusual one.",
        command="pipeline-ae",
        default_display="`eventTime`, `createdDateTime` or `isotimestamp`, depending on the source",
    )
    use_generic_model: bool = option(
        False,
        "For users with too little history, use the global model only, without data of similar "
        "users.",
        flag=True,
        command="pipeline-ae",
    )
    viz_file: str | None = option(
        None,
        "File for a diagram of the pipeline: an image (`.svg`), or a text for Graphviz (`.dot`, "
        "`.gv`) or Mermaid (`.mmd`).",
        command="pipeline-ae",
    )
    viz_direction: str = option(
        "LR",
        "Direction of the diagram. BT is bottom to top, RL is right to left.",
        choices=("BT", "LR", "RL", "TB"),
        command="pipeline-ae",
    )
    columns: tuple[str, ...] = ()
    column_types: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    unbounded: bool = False
    needs_population: bool = False
    keeps_dropped_stats: bool = False
    source: str = ""


@dataclass(frozen=True)
class Requirements:
    """What a stage asks of the runtime.

    Attributes:
        model: It reads `batch.fingerprint` or `batch.encoded`. Where no later stage does, both are
            released.
        rows: It reads the rows; otherwise it only counts them.
        cpu_bound: A user's events cost more than handing them to a worker process.
        population: `open` gets a sample of all users' histories.
        users_per_bundle: How many users it prefers to prepare together; see `PreparesUsers`.
        dropped_stats: It reads what the events were like that `filter` has dropped.
        per_run: It sees one run as a whole, so its state is not kept between runs.
        training_input: Glob of the files whose events the first batch of each user carries as
            history; None for none.
        resources: What a task with this stage takes of the resources that cluster workers declare.
    """

    model: bool = False
    rows: bool = True
    cpu_bound: bool = False
    population: bool = False
    users_per_bundle: int = 1
    dropped_stats: bool = False
    per_run: bool = False
    training_input: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What the runtime tells a stage when it is opened.

    Attributes:
        user: The user whose state is opened; None for stages that see all users.
        unbounded: The input has no end, so users come again and again.
        population: A sample of all users' histories, if `Requirements.population` asks for it: a
            frame of `POPULATION_USER`, `TIME` and the feature columns. None if there is none.
        cache: Values that a stage computes once for all users of a process, by the stage's name.
        resources: Closes what a sink opens, also when the run fails.
    """

    user: str | None = None
    unbounded: bool = False
    population: Any = None
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    resources: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)


@dataclass(frozen=True)
class Stage:
    """A word of the pipeline: a source, a transform or a sink.

    A stage is a frozen dataclass whose fields are its Python arguments, its command-line options
    and its help.

    Attributes:
        name: The word on the command line.
        takes: Classes of the batches it accepts.
        gives: Class of the batches it returns; None for the class it was given.
        options: The options of the whole pipeline, filled in by the pipeline.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[type | None] = None

    options: PipelineOptions = field(default_factory=PipelineOptions, kw_only=True, repr=False)

    @property
    def needs(self) -> Requirements:
        """What this stage asks of the runtime."""
        return Requirements()

    def validate(self) -> None:
        """Reject options that cannot work, before any file is opened.

        Raises:
            UsageError: An option is wrong; says what to type.
        """


@dataclass(frozen=True)
class Transform(Stage):
    """A stage that maps batches to batches.

    It has no state of its own: `open` makes the state of one user, and the runtime passes it back
    with each batch of that user.

    Attributes:
        scope: `keyed` sees the batches of one user at a time; `global` sees all users and may be
            moved; `barrier` sees all users at its place in the pipeline.
    """

    scope: ClassVar[Literal["keyed", "global", "barrier"]] = "keyed"

    def open(self, context: StageContext) -> Any:  # noqa: ANN401, ARG002 - each stage has a state of its own
        """Return the state of a new user: a `State`, or None if nothing is remembered."""
        return None

    def process(self, batch: Any, state: Any) -> Iterable[Any]:  # noqa: ANN401 - each stage has its own
        """Map a batch; the state is changed in place."""
        raise NotImplementedError

    def flush(self, state: Any) -> Iterable[Any]:  # noqa: ANN401, ARG002 - each stage has its own
        """Return what was held back, at the end of a user's events or of the input."""
        return ()


@dataclass(frozen=True)
class Outputs:
    """What a stage writes: checked before the run, and shared by the machines of a cluster.

    Attributes:
        files: Files that are replaced.
        folders: Folders that files are written into.
    """

    files: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Sink(Transform):
    """The end of a pipeline: brings rows out, and returns them for the count."""

    scope: ClassVar[Literal["keyed", "global", "barrier"]] = "global"

    def outputs(self) -> Outputs:
        """Files and folders that it writes."""
        return Outputs()

    def encoder(self, first: Any, spill: SpillDir) -> Transform | None:  # noqa: ANN401, ARG002 - a batch, which lies above
        """Return a stage that formats rows where they are scored; None if there is none.

        Args:
            first: The first batch that is to come.
            spill: Where formatted rows are kept until this sink takes them over.
        """
        return None

    def commit(self, metrics: Any) -> None:  # noqa: ANN401 - `RunMetrics`, which lies above
        """Do what is left once every sink has its rows."""


@runtime_checkable
class WritesOutputs(Protocol):
    """A stage that writes files, and finishes them at the end of the run; every sink is one."""

    def outputs(self) -> Outputs:
        """Files and folders that it writes."""

    def commit(self, metrics: Any) -> None:  # noqa: ANN401 - `RunMetrics`, which lies above
        """Do what is left once every sink has its rows."""


@runtime_checkable
class Expands(Protocol):
    """A word that stands for several stages, one after the other."""

    def expand(self) -> tuple[Transform, ...]:
        """Return the stages."""


@runtime_checkable
class PreparesUsers(Protocol):
    """A stage that works faster on several users at a time, as training on a GPU does."""

    def prepare(self, users: Sequence[tuple[Any, Sequence[Any]]]) -> None:
        """Do the work of some users before their batches are processed.

        Args:
            users: State and batches of each.
        """


def find_output_folders(stages: Iterable[Stage]) -> list[Path]:
    """Return the folders that stages write into."""
    outputs = [stage.outputs() for stage in stages if isinstance(stage, WritesOutputs)]
    return [folder for each in outputs for folder in each.folders]


def make_paths_absolute(stage: StageT) -> StageT:
    """Return the same stage for processes that run in other folders.

    Only options declared with `option(path=True)` are paths; addresses such as `s3://` stay.
    """
    changes: dict[str, Any] = {}
    for each in fields(stage):
        value = getattr(stage, each.name)
        if each.metadata.get("path") and value and "://" not in value:
            changes[each.name] = str(Path(value).absolute())
    return replace(stage, **changes)
