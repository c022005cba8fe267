"""Stage, option() and Settings: all that a link of a chain has to be.

A stage is a callable from iterator to iterator, declared once: a frozen dataclass whose fields are
its Python arguments, its options on the command line, and its help.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from morpheus.columns import ACTOR_OPTION, SCORE
from morpheus.storage.spill import SpillDir


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
        "Users trained and scored side by side, at most. No result depends on it.",
        min=1,
        command="run",
        default_display="the cores at hand",
    )
    pipeline_batch_size: int = option(
        256,
        "Events of one user that travel together, at least; batches are joined where that is "
        "faster. No result depends on it.",
        min=1,
        command="run",
    )
    model_max_batch_size: int = option(
        8,
        "Events in one pass through the network, at least; joined where that is faster. "
        "No result depends on it.",
        min=1,
        command="run",
    )
    engine: str = option(
        "local",
        "Where users are trained and scored: in processes of this machine, or by the workers of a "
        "Dask cluster. No result depends on it.",
        choices=("local", "dask"),
        command="run",
    )
    scheduler: str | None = option(
        None,
        "With --engine=dask: the scheduler's address, `tcp://host:8786`; or `kubernetes`, `slurm`, "
        "`pbs`, `yarn`, `gateway`, `fargate`, `ec2`, or a cluster class, `package.module:Class`, "
        "which is started with --num_threads workers. By default workers are started here.",
        command="run",
    )
    edge_buffer_size: int = option(
        128,
        "Accepted for old command lines. Stages pull from each other here, so nothing is buffered.",
        min=2,
        command="run",
    )
    use_cpp: bool = option(
        True,
        "Accepted for old command lines. There is one implementation here.",
        command="run",
    )
    manual_seed: int | None = option(
        None,
        "Seed of everything random, where a stage is given none of its own.",
        min=1,
        command="run",
    )
    status_file: str | None = option(
        None,
        "JSON file that says every second how far the run is. For `morpheus serve`, "
        "`status.json` in the folder of the output.",
        command="run",
    )
    shared_files: bool = option(
        False,
        "Make output and model files readable for the group, as the umask allows. By default only "
        "you can read them.",
        flag=True,
        command="run",
    )
    columns_file: str | None = option(
        None,
        "File of feature columns, one name a line, by default the list shipped for the source; for "
        "`from-file`, a schema (`.toml`).",
        command="pipeline-ae",
    )
    labels_file: str | None = option(
        None,
        f"File of score columns, one name a line. By default `{SCORE}`, or what --compat says.",
        command="pipeline-ae",
    )
    compat: str = option(
        COMPAT_RELEASES[0],
        "Score columns as this release of NVIDIA Morpheus gave them. 22.04 to 22.08 gave "
        f"`{SCORE}`; 22.11, as from 22.09 on, gives `reconstruct_loss`, `zscore`, "
        "`<column>_z_loss`, `max_abs_z` and `mean_abs_z`, all of which count both ways.",
        choices=COMPAT_RELEASES,
        command="pipeline-ae",
    )
    userid_column_name: str = option(
        "",
        f"Column that says whose event it is; `{ACTOR_OPTION}` finds out who acted, by rules for "
        "each kind of log.",
        command="pipeline-ae",
        default_display="`userIdentityaccountId`, `userPrincipalName` or `username`, by the source",
    )
    userid_filter: str | None = option(
        None,
        "Keep the events of this user only.",
        command="pipeline-ae",
    )
    feature_scaler: str = option(
        "standard",
        "How number columns are scaled. Category columns need none.",
        choices=("none", "standard", "gauss_rank", "gaussrank"),
        command="pipeline-ae",
    )
    timestamp_column_name: str = option(
        "",
        "Column of the time of an event, for logs in which it is another than usual.",
        command="pipeline-ae",
        default_display="`eventTime`, `createdDateTime` or `isotimestamp`, by the source",
    )
    use_generic_model: bool = option(
        False,
        "Learn users of too little history from everyone's alone, not from their peers' and their "
        "own.",
        flag=True,
        command="pipeline-ae",
    )
    viz_file: str | None = option(
        None,
        "Draw the chain into this file: a picture (`.svg`), or for other tools to draw, in the "
        "language of Graphviz (`.dot`, `.gv`) or of Mermaid (`.mmd`).",
        command="pipeline-ae",
    )
    viz_direction: str = option(
        "LR",
        "Where the drawn chain runs to: BT is from bottom to top, RL from right to left.",
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
class Transform:
    """A link of the chain.

    `takes` and `gives` are the records of `morpheus.records` that it maps; `gives` None hands on
    what it took. A stage of scope `user` sees the batches of one user, in time order, and is called
    anew for the next user; one of scope `run` sees the whole stream, and changes nothing, so that
    it may be moved; one of scope `whole` sees the whole stream where it stands. Where no stage that
    needs fingerprints is left, they are let go of. A `sink` brings events out of the chain. The
    pipeline fills `settings` before the first call.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[type, ...]] = ()
    gives: ClassVar[type | None] = None
    scope: ClassVar[str] = "keyed"
    needs_model: ClassVar[bool] = True
    is_sink: ClassVar[bool] = False

    options: PipelineOptions = field(default_factory=PipelineOptions, kw_only=True, repr=False)

    def validate(self) -> None:
        """Refuse, before any file is opened, what cannot work.

        Raises:
            UsageError: An option asks for what cannot be.
        """

    def training_input(self) -> str | None:
        """Files whose events this stage wants to see before each user's own; None for none."""
        return None

    def expand(self) -> tuple[Transform, ...]:
        """The stages that do this one's work, one behind the other; most do it themselves."""
        return (self,)

    def is_cpu_bound(self) -> bool:
        """Whether a user's events cost this stage more than it costs to hand them to a process."""
        return False

    def needs_population(self) -> bool:
        """Whether this stage wants to `meet` everybody before the first user comes."""
        return False

    def with_population(self, population: Any) -> Self:  # noqa: ANN401, ARG002 - a frame, which this module does not import
        """Make the stage that knows everybody.

        Args:
            population: A sample of all users' histories, a frame of `POPULATION_USER`, `TIME` and the feature
                columns; None where the source took none.
        """
        return self

    def users_per_bundle(self) -> int:
        """How many users this stage would rather see at a time."""
        return 1

    def counts_only(self) -> bool:
        """Whether this stage looks at no more of a batch than how many events it has."""
        return False

    def encoder(self, first: Any, scratch: SpillDir) -> Transform | None:  # noqa: ANN401 - a record, which lies above
        """What a sink's work on batches like the first can be done before it, by any process.

        Args:
            first: The first batch that is to come.
            scratch: Where results can lie until this stage takes them over.

        Returns:
            A stage that sees some users' batches, all of these users, and gives what this one takes
            as well; None if there is nothing to be done.
        """

    def with_absolute_paths(self) -> Self:
        """Make the same stage for processes that run in other folders: with absolute paths."""
        return self

    def resources(self) -> Mapping[str, float]:
        """What a task with this stage takes of what the workers of a cluster have declared."""
        return {}

    def output_dir(self) -> Path | None:
        """The folder that this stage writes files into, wherever it runs; None for none."""
        return None

    def output_file(self) -> Path | None:
        """The file that this stage puts in the place of what is there; None for none."""
        return None

    def needs_dropped_stats(self) -> bool:
        """Whether this stage wants to know what events were like that `filter` has left out."""
        return False

    def commit(self, metrics: Any) -> None:  # noqa: ANN401 - a record, which lies above
        """Do what is left once every sink has its rows.

        Args:
            metrics: The `RunMetrics` of the run.
        """

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Map batches; flushing is the code after the loop."""
        raise NotImplementedError
