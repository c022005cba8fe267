"""The stage protocol: transforms and sinks, their options, and their requirements.

A stage is a frozen dataclass whose fields are its Python arguments, its command-line options and
their help. The runtime calls `open` once for each user, `process` with each batch, and `flush` at
the end. It owns the state and passes it back with each call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    get_type_hints,
    runtime_checkable,
)

from morpheus.columns import ACTOR, ACTOR_OPTION, IDENTITY_OPTION, SCORE, LogDescription
from morpheus.errors import UsageError
from morpheus.storage.object_store import ObjectPath, is_remote, normalise_location
from morpheus.text import quote_backtick, suggest, suggest_path

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from morpheus.storage.spill import SpillDir

StageT = TypeVar("StageT", bound="Stage")
DeclaredT = TypeVar("DeclaredT")

Values = str | tuple[str, ...]
"""Value of an option that may be given several times: one text, or all of them."""


def list_values(value: Values | None) -> tuple[str, ...]:
    """Return all values of an option that may be given several times.

    >>> list_values("a"), list_values(("a", "b")), list_values(None)
    (('a',), ('a', 'b'), ())
    """
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(dict.fromkeys(value or ()))


def option(  # noqa: PLR0913 - one argument for each thing an option can be
    default: object,
    help: str,  # noqa: A002 - click's name
    *,
    names: Sequence[str] = (),
    choices: Sequence[str] = (),
    min: float | None = None,  # noqa: A002 - click's name
    max: float | None = None,  # noqa: A002 - click's name
    flag: bool = False,
    required: bool = False,
    command: str = "",
    default_display: str = "",
    path: bool = False,
    location: Literal["", "local", "any"] = "",
) -> Any:  # noqa: ANN401 - the type is the annotation of the field that this value is put in
    """Declare a field that is also a command-line option.

    Args:
        default: Value when the option is absent. The option is repeatable if the type of the field
            is a tuple or `Values`.
        help: Help text, one or two sentences.
        names: Names such as `--userid_filter`; by default the name of the field after two dashes.
        choices: Allowed values; case does not matter.
        min: Minimum value.
        max: Maximum value.
        flag: The option is a boolean without a value.
        required: The option must be given.
        command: The command that has the option; for `PipelineOptions` only.
        path: The value is a path; it is made absolute for a cluster.
        default_display: Text in the help for a default that depends on the machine.
        location: The value is a path or a URL: of this machine (`local`), or also of an object
            store (`any`). See `resolve_locations`.
    """
    metadata = {
        "help": help,
        "names": tuple(names),
        "choices": tuple(choices),
        "min": min,
        "max": max,
        "flag": flag,
        "required": required,
        "command": command,
        "default_display": default_display,
        "path": path,
        "location": location,
    }
    return field(default=default, metadata=metadata)


COMPAT_RELEASES = ("22.08", "22.11")
"""Values of `--compat`: releases of NVIDIA Morpheus, one for each set of score columns."""


def to_user_column(name: str) -> str:
    """Return the column of the users that an option names.

    >>> to_user_column("@actor"), to_user_column("userIdentityarn")
    ('actor', 'userIdentityarn')
    """
    return ACTOR if name == ACTOR_OPTION else name


@dataclass(frozen=True)
class PipelineOptions:
    """Options of the whole pipeline: those of `run` and of `pipeline-ae`.

    The pipeline fills the fields that are not options.

    Attributes:
        columns: Names of the feature columns.
        column_types: Types of feature columns whose values do not show their type, by name.
        labels: Names of the score columns.
        unbounded: The input has no end.
        needs_population: A stage needs a sample of all users' histories.
        keeps_dropped_stats: A stage needs statistics of the events that `filter` drops.
        source: Word of the source.
        log: What outputs need to know about the log; None if the source does not say.
        inputs: What fingerprints must fit; None for a stage outside of a pipeline.
        feature_stages: Stages between the source and `train-ae` may add feature columns.
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
        location="local",
    )
    state: str | None = option(
        None,
        "File that keeps the state of each user between runs. Consecutive runs then give the same "
        "output as one run over all their input. It is created if it does not exist.",
        command="pipeline-ae",
        location="local",
    )
    state_max_age: str | None = option(
        None,
        "Remove the state of a user when no run has changed it for so long, such as `90d`. The "
        "user is then new. Default: keep it.",
        command="pipeline-ae",
    )
    allowed_lateness: str = option(
        "0s",
        "On an endless input with --state: how much earlier than the latest event an event may be "
        "and is still put in order, such as `10m`. Events wait that long. Later ones are scored, "
        "too. Adds the column `late`.",
        command="pipeline-ae",
    )
    checkpoint_interval: float = option(
        1.0,
        "On an endless input with --state: seconds between two checkpoints. Rows reach the outputs "
        "after a checkpoint; with from-kafka, at once. They become rarer where they would take "
        "more than a tenth of the time.",
        min=0,
        command="pipeline-ae",
    )
    max_outbox: int = option(
        10_000,
        "On an endless input with --state: megabytes of rows that may wait in the state file for "
        "an output that is down. Then reading pauses.",
        min=1,
        command="pipeline-ae",
    )
    max_live_users: int = option(
        20_000,
        "On an endless input with --state: users whose state is kept in memory. That of others is "
        "read from the state file when they come back.",
        min=1,
        command="pipeline-ae",
    )
    shared_files: bool = option(
        False,
        "Make output and model files readable by the group, as far as the umask allows. By default "
        "only you can read them.",
        flag=True,
        command="run",
    )
    fail_on_empty: bool = option(
        False,
        "Fail, with exit code 1, if no event is written: none in the period, none of the wanted "
        "users, or none that passes the filters.",
        flag=True,
        command="run",
    )
    columns_file: str | None = option(
        None,
        "Feature list: a file of column names, one per line. By default the list shipped for the "
        "source. For `from-file`, a schema (`.toml`).",
        command="pipeline-ae",
        location="local",
    )
    labels_file: str | None = option(
        None,
        f"File of names of score columns, one per line. By default `{SCORE}`, or as for --compat.",
        command="pipeline-ae",
        location="local",
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
        default_display="the user column of the log format, such as `userIdentityaccountId`",
    )
    userid_filter: str | tuple[str, ...] | None = option(
        None,
        "Keep only the events of this user; repeat for more users.",
        command="pipeline-ae",
    )
    skip_user: tuple[str, ...] = option(
        (),
        "Leave out the events of this user, in training files too; repeat for more users.",
        command="pipeline-ae",
    )
    pseudonymize: tuple[str, ...] = option(
        (),
        "Columns whose values are replaced by pseudonyms, separated by commas. "
        f"`{IDENTITY_OPTION}` stands for all columns of the log format that identify users. The "
        "user column is always replaced. Needs --pseudonym_key_file.",
        command="pipeline-ae",
    )
    pseudonym_key_file: str | None = option(
        None,
        "File with the secret key of the pseudonyms. `morpheus tools pseudonym-key` creates one.",
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
        default_display="the time column of the log format, such as `eventTime`",
    )
    timezone: str = option(
        "UTC",
        "Time zone of the hours and days of derived columns, such as `Europe/Berlin`. Clock "
        "changes are taken into account. Outputs and all other options stay in UTC.",
        command="pipeline-ae",
    )
    use_generic_model: bool = option(
        False,
        "For users with too little history, use the global model only, without data of similar "
        "users.",
        flag=True,
        command="pipeline-ae",
    )
    missing_features: str = option(
        "fail",
        "What to do if features that fingerprints depend on have no value in any event of the "
        "input: fail the run, or warn and score the events without them.",
        choices=("fail", "warn"),
        command="pipeline-ae",
    )
    viz_file: str | None = option(
        None,
        "File for a diagram of the pipeline: an image (`.svg`), or a text for Graphviz (`.dot`, "
        "`.gv`) or Mermaid (`.mmd`).",
        command="pipeline-ae",
        location="local",
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
    log: LogDescription | None = None
    inputs: Any = None
    feature_stages: bool = False

    @property
    def durable(self) -> bool:
        """Whether an endless run goes on after a crash: it has a state file."""
        return self.unbounded and self.state is not None


def read_lines(name: str, *, option: str) -> tuple[str, ...]:
    """Read a file with one entry per line. Empty lines and repeated entries are dropped.

    Args:
        name: A path, or the name of a list shipped with the package: alone, or in a folder of
            NVIDIA Morpheus's repository (`data/`, `morpheus/data/`, `models/data/`).
        option: The option that names the file, for the error message.

    Raises:
        UsageError: The file does not exist, or is not UTF-8.

    >>> read_lines("data/columns_ae_azure.txt", option="--columns_file")[:2]
    ('appDisplayName', 'clientAppUsed')
    """
    from importlib import resources  # noqa: PLC0415 - `--help` reads no list

    shipped = resources.files("morpheus") / "data"
    places = [Path(name), *(shipped / each for each in [_shipped_name(name)] if each)]
    for place in places:
        if place.is_file():
            lines = _decode_text(place.read_bytes(), name, option).splitlines()
            return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    lists = (each.name for each in shipped.iterdir() if each.name.endswith(".txt"))
    raise UsageError(
        f"{option}: there is no file `{name}`."
        f"{suggest_path(name) or suggest(Path(name).name, lists)} Give a text file with one name "
        "per line."
    )


def _decode_text(content: bytes, name: str, option: str) -> str:
    try:
        return content.decode("utf-8-sig")  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{option}: `{name}`, line {line}: the text is not UTF-8. Save the file as UTF-8."
        ) from error


SHIPPED_FOLDERS = ("morpheus/data", "models/data")
"""Folders with feature lists in NVIDIA Morpheus's repository, at any place."""


def _shipped_name(name: str) -> str:
    """Return the name of a shipped list that a path may mean; empty for other paths."""
    folder, _, file = name.replace(os.sep, "/").removeprefix("./").rpartition("/")
    known = folder in {"", "data"} or f"/{folder}".endswith(
        tuple(f"/{each}" for each in SHIPPED_FOLDERS)
    )
    return file if known else ""


@dataclass(frozen=True)
class Requirements:
    """What a stage needs from the runtime.

    Attributes:
        model: The stage reads `batch.fingerprint` or `batch.encoded`. They are released after the
            last stage that does.
        rows: The stage reads the rows. If not, it only counts them.
        cpu_bound: A user's events cost more than passing them to a worker process.
        population: `open` needs a sample of all users' histories.
        users_per_bundle: How many users the stage prefers to prepare together; see `PreparesUsers`.
        dropped_stats: The stage reads the statistics of events that `filter` has dropped.
        per_run: Why its results depend on how the input is divided into runs, and what to use
            instead, for a warning with `--state`; empty if they do not. Its state is not saved.
        holds_events: Events wait in its state for later ones. With `per_run`, an endless run with
            `--state` would lose them at its end, and is rejected.
        training_input: Globs of the training files. The first batch of each user then has the
            user's events in them as history. None for no training files.
        resources: Amounts of the resources that cluster workers declare, for a task with this
            stage.
        card: The sink reads `batch.card`.
        reopens: A state that is no `State` can be dropped, and opened again when the user comes
            back, without an effect on results.
        state_options: The options that determine what the stage's states mean, with their values.
            A state file that was written with another value of one of them is rejected.
    """

    model: bool = False
    rows: bool = True
    cpu_bound: bool = False
    population: bool = False
    users_per_bundle: int = 1
    dropped_stats: bool = False
    per_run: str = ""
    holds_events: bool = False
    training_input: Values | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    card: bool = False
    reopens: bool = False
    state_options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets when a state is opened.

    Attributes:
        user: The user of the state; None for stages that see all users.
        unbounded: The input has no end, so a user's batches can arrive at any time.
        population: Sample of all users' histories, if `Requirements.population`: a frame of
            `POPULATION_USER`, `TIME` and the feature columns. None if there is none.
        cache: Values that stages compute once for all users of a process, by name of the stage.
        resources: Closes what a sink has opened, also after an error.
        position: Where a sink goes on, on an endless run with --state: what `Sink.sync` has
            returned, put together; empty until it was opened once. None on other runs.
        wait: Waits some seconds for a service to come back. On an endless run, reading pauses
            meanwhile, and a signal ends the wait and the run.
    """

    user: str | None = None
    unbounded: bool = False
    population: Any = None
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    resources: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)
    position: Mapping[str, bytes] | None = None
    wait: Callable[[float], None] = field(default=time.sleep, compare=False, repr=False)


def get_fields(instance: DataclassInstance) -> dict[str, object]:
    """Return the fields of a dataclass, without what its properties have cached."""
    return {each.name: getattr(instance, each.name) for each in fields(instance)}


@dataclass(frozen=True)
class Stage:
    """A word of the pipeline: a source, a transform or a sink.

    A stage is a frozen dataclass whose fields are its Python arguments, its command-line options
    and their help. The docstring is the help of the command.

    Attributes:
        name: The word on the command line.
        takes: Classes of batches that it accepts.
        gives: Class of batches that it returns; None for the class that it gets.
        options: Options of the whole pipeline; the pipeline fills them in.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[type | None] = None

    options: PipelineOptions = field(default_factory=PipelineOptions, kw_only=True, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """Return what goes to another process: the fields, without what properties have cached."""
        return get_fields(self)

    @property
    def needs(self) -> Requirements:
        """What this stage needs from the runtime."""
        return Requirements()

    def validate(self) -> None:
        """Check the options, before any file is opened.

        Raises:
            UsageError: An option is wrong. The message says what to type.
        """


@dataclass(frozen=True)
class Transform(Stage):
    """A stage that maps batches to batches.

    A transform has no state of its own. `open` returns the state of one user, and the runtime
    passes it back with each batch of that user.

    Attributes:
        scope: A `keyed` transform sees the batches of one user at a time. A `global` one sees all
            users, and can be moved behind keyed ones. A `barrier` sees all users at its place.
    """

    scope: ClassVar[Literal["keyed", "global", "barrier"]] = "keyed"

    def open(self, context: StageContext) -> Any:  # noqa: ANN401, ARG002 - each stage has a state of its own
        """Return the state of a new user: a `State`, or None for a stage without state."""
        return None

    def process(self, batch: Any, state: Any) -> Iterable[Any]:  # noqa: ANN401 - each stage has its own
        """Return the output for a batch. The state is changed in place."""
        raise NotImplementedError

    def flush(self, state: Any) -> Iterable[Any]:  # noqa: ANN401, ARG002 - each stage has its own
        """Return the remaining batches, at the end of a user's events or of the input."""
        return ()


@dataclass(frozen=True)
class Outputs:
    """Files and folders that a stage writes. They are checked before the run.

    Attributes:
        files: Files that it replaces, on disk or in an object store.
        folders: Folders that it writes files into; the machines of a cluster share them.
        data_sets: Folders whose content it replaces.
        stdout: It writes to stdout.
        destinations: Other places that it sends rows to, in words.
        dead_letters: Files that it adds to, and reads again, if a place does not take rows.
    """

    files: tuple[Path | ObjectPath, ...] = ()
    folders: tuple[Path, ...] = ()
    data_sets: tuple[Path | ObjectPath, ...] = ()
    stdout: bool = False
    destinations: tuple[str, ...] = ()
    dead_letters: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Sink(Transform):
    """A stage that writes rows. It returns the batches, so that they are counted."""

    scope: ClassVar[Literal["keyed", "global", "barrier"]] = "global"

    def outputs(self) -> Outputs:
        """Return the files and folders that it writes."""
        return Outputs()

    def encoder(self, first: Any, spill: SpillDir) -> Transform | None:  # noqa: ANN401, ARG002 - a batch, of a higher layer
        """Return a stage that formats rows where they are scored; None if there is none.

        Args:
            first: The first batch.
            spill: Folder for formatted rows, until this sink takes them over.
        """
        return None

    def sync(self, state: Any) -> Mapping[str, bytes] | None:  # noqa: ANN401, ARG002 - each sink has a state of its own
        """Make all rows that were processed safe: on disk, or with the receiver.

        Endless runs call it after each part of the rows.

        Returns:
            The parts of the position that have changed, for `StageContext.position`; empty bytes
            remove one. None if rows are not safe yet: it is then called again later.
        """
        return {}

    def commit(self, metrics: Any) -> None:  # noqa: ANN401 - `RunMetrics`, of a higher layer
        """Finish the output, after all sinks have all rows."""


@runtime_checkable
class WritesOutputs(Protocol):
    """A stage that writes files, and finishes them at the end of the run. Every sink is one."""

    def outputs(self) -> Outputs:
        """Return the files and folders that it writes."""

    def commit(self, metrics: Any) -> None:  # noqa: ANN401 - `RunMetrics`, of a higher layer
        """Finish the output, after all sinks have all rows."""


@runtime_checkable
class Expands(Protocol):
    """A word that stands for several consecutive stages."""

    def expand(self) -> tuple[Transform, ...]:
        """Return the stages."""


@runtime_checkable
class SelectsByRisk(Protocol):
    """A stage that drops events, and can say which ones without a state."""

    def select(self, batch: Any, risk: NDArray[np.float64]) -> NDArray[np.bool_]:  # noqa: ANN401 - `Scored`, of a higher layer
        """Return which events may be kept, given the `risk` of each, (rows,).

        All others are dropped, whatever the stage remembers.
        """


@runtime_checkable
class PreparesFor(Protocol):
    """A stage that need not work on events that the next stage drops."""

    def prepare_for(self, following: SelectsByRisk) -> Transform:
        """Return the stage for its place in front of another one."""


@runtime_checkable
class ChecksInput(Protocol):
    """A stage that checks what the source has read, before the first event."""

    def check_input(self, profile: Any, metrics: Any) -> None:  # noqa: ANN401 - `InputProfile` and `RunMetrics`, of a higher layer
        """Check the input.

        Raises:
            MorpheusError: The events do not fit; says what to do.
        """


@runtime_checkable
class PreparesUsers(Protocol):
    """A stage that is faster for several users together, such as training on a GPU."""

    def prepare(self, users: Sequence[tuple[Any, Sequence[Any]]]) -> None:
        """Do the work of several users before their batches are processed.

        Args:
            users: State and batches of each user.
        """


@runtime_checkable
class ProcessesUsers(Protocol):
    """A stage that is faster for several users together, because each has few events."""

    def process_users(
        self, batches: Sequence[Any], states: Sequence[Any]
    ) -> Iterable[Iterable[Any]]:
        """Return what `process` returns for each batch and its state, in the same order.

        Args:
            batches: Batches of different users.
            states: State of each of these users; changed in place.
        """


def find_output_folders(stages: Iterable[Stage]) -> list[Path]:
    """Return the folders that stages write into."""
    return [
        folder
        for stage in stages
        if isinstance(stage, WritesOutputs)
        for folder in stage.outputs().folders
    ]


def check_values(declared: DeclaredT) -> DeclaredT:
    """Return options, or a stage, whose values are among those that the command line accepts.

    A text, or a list, for an option that can be given several times becomes a tuple. A path becomes
    a text. Choices get their usual case.

    Raises:
        UsageError: A value has a wrong type, or is not one of the choices, or not in the range.
    """
    declared_type: type = type(declared)
    types, changes = _list_option_types(declared_type), dict[str, Any]()
    for each in fields(declared):  # type: ignore[arg-type]  # callers pass dataclasses
        if "choices" not in each.metadata:
            continue
        given = getattr(declared, each.name)
        word = getattr(declared, "name", "") or each.metadata["command"]
        where = f"{word}: " * bool(word) + (each.metadata["names"] or (f"--{each.name}",))[0]
        value = _to_declared_type(where, given, types.get(each.name, ()), each.default)
        choices = {choice.lower(): choice for choice in each.metadata["choices"]}
        if choices and isinstance(value, str):
            value = _find_choice(where, value, choices)
        elif isinstance(value, int | float):
            _check_range(where, value, each.metadata["min"], each.metadata["max"])
        if value is not given:
            changes[each.name] = value
    return replace(declared, **changes) if changes else declared  # type: ignore[type-var]


_TYPE_WORDS = {
    str: "a text",
    Path: "a path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
}
"""The types of one value of an option, in words for messages."""


@lru_cache(maxsize=256)
def _list_option_types(declared: type) -> dict[str, tuple[type, ...]]:
    """Return the types that a value of each field may have; `tuple` is one of a repeatable option.

    Nothing is known if an annotation has names that only type checkers import.
    """
    try:
        hints = get_type_hints(declared)
    except NameError:
        return {}
    return {name: tuple(_iter_types(hint)) for name, hint in hints.items()}


def _iter_types(hint: Any) -> Iterator[type]:  # noqa: ANN401 - an annotation
    """Yield the types in an annotation, such as `tuple`, `str` and `NoneType`."""
    if hint is tuple or getattr(hint, "__origin__", None) is tuple:
        yield tuple
    arguments = get_args(hint)
    if not arguments and isinstance(hint, type):
        yield hint
    for each in arguments:
        yield from _iter_types(each)


def _to_declared_type(where: str, value: Any, types: Sequence[type], default: object) -> Any:  # noqa: ANN401 - a value of any option
    """Return the value of an option with one of its types."""
    is_repeatable = tuple in types or isinstance(default, tuple)
    kinds = [kind for kind in types if kind in _TYPE_WORDS]
    if value is None and (default is None or NoneType in types):
        return None
    if not is_repeatable:
        return _to_type(where, value, kinds[0]) if kinds else value
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return text if str in types and isinstance(default, str | None) else (text,)
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: {_describe_value(value)}. Give a text, or a list of texts.")
    values = [_to_type(where, each, kinds[0]) for each in value] if kinds else value
    return value if list(value) == values and isinstance(value, tuple) else tuple(values)


def _to_type(where: str, value: Any, kind: type) -> Any:  # noqa: ANN401 - as above
    """Return one value with a type of the command line.

    Numbers of NumPy become those of Python. A boolean is no number, and a text is no boolean.
    """
    if kind in {str, Path} and isinstance(value, os.PathLike):
        return kind(os.fspath(value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, bool) == (kind is bool):
        if isinstance(value, kind):
            return value
        if kind is int and isinstance(value, Integral):
            return int(value)
        if kind is float and isinstance(value, Real):
            return value if isinstance(value, int) else float(value)
    raise UsageError(f"{where}: {_describe_value(value)}. Give {_TYPE_WORDS[kind]}.")


def _describe_value(value: object) -> str:
    return f"{quote_backtick(repr(value))} has the type `{type(value).__name__}`"


def _find_choice(where: str, value: str, choices: Mapping[str, str]) -> str:
    found = choices.get(value.lower())
    if found is None:
        listed = ", ".join(f"`{choice}`" for choice in choices.values())
        raise UsageError(
            f"{where}: there is no choice {quote_backtick(value)}."
            f"{suggest(value, choices.values())} Give one of {listed}."
        )
    return found


def _check_range(where: str, value: float, low: float | None, high: float | None) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise UsageError(f"{where}: {value} is not a finite number. Give one such as 3.5.")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = (("at least", low), ("at most", high))
        limits = [f"{words} {bound:,}" for words, bound in bounds if bound is not None]
        raise UsageError(f"{where}: {value} is not {' and '.join(limits)}.")


def resolve_locations(declared: DeclaredT) -> DeclaredT:
    """Return options, or a stage, with every path and URL in its usual form.

    `file:` URLs become paths. It is the one place where a location that an option cannot use is
    rejected, so that no URL is ever taken for a local path.

    Raises:
        UsageError: An option names a location that it cannot use.
    """
    changes: dict[str, Any] = {}
    for each in fields(declared):  # type: ignore[arg-type]  # callers pass dataclasses
        kind, value = each.metadata.get("location"), getattr(declared, each.name)
        if not kind or not value:
            continue
        name = (each.metadata["names"] or (f"--{each.name}",))[0]
        texts = [
            normalise_location(text, name, local_only=kind == "local")
            for text in list_values(value)
        ]
        resolved = texts[0] if isinstance(value, str) else tuple(texts)
        if resolved != value:
            changes[each.name] = resolved
    return replace(declared, **changes) if changes else declared  # type: ignore[type-var]


def iter_locations(declared: DeclaredT) -> Iterator[tuple[str, str]]:
    """Yield the files, folders and URLs that options or a stage name, each with its option."""
    for each in fields(declared):  # type: ignore[arg-type]  # callers pass dataclasses
        value = getattr(declared, each.name)
        if each.metadata.get("location") and value:
            name = (each.metadata["names"] or (f"--{each.name}",))[0]
            yield from ((name, text) for text in list_values(value))


def make_paths_absolute(stage: StageT) -> StageT:
    """Return the stage for processes that run in other folders.

    Options declared with `option(path=True)` are paths. URLs such as `s3://` do not change.
    """
    changes: dict[str, Any] = {}
    for each in fields(stage):
        value = getattr(stage, each.name)
        if each.metadata.get("path") and value and not is_remote(value):
            slash = "/" if value.endswith("/") else ""  # it can tell a folder from a version
            changes[each.name] = f"{Path(value).absolute()}{slash}"
    return replace(stage, **changes)
