"""Where tasks are given to workers: a scheduler that runs already, or one that is started here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from morpheus.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from distributed import Client

KNOWN = {
    "kubernetes": ("dask_kubernetes.operator:KubeCluster", "dask-kubernetes"),
    "slurm": ("dask_jobqueue:SLURMCluster", "dask-jobqueue"),
    "pbs": ("dask_jobqueue:PBSCluster", "dask-jobqueue"),
    "yarn": ("dask_yarn:YarnCluster", "dask-yarn"),
    "gateway": ("dask_gateway:GatewayCluster", "dask-gateway"),
    "fargate": ("dask_cloudprovider.aws:FargateCluster", "dask-cloudprovider[aws]"),
    "ec2": ("dask_cloudprovider.aws:EC2Cluster", "dask-cloudprovider[aws]"),
}
"""Words for cluster classes, and the package that brings each."""
SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
PATIENCE = 30
"""Seconds in which a scheduler must answer, and the first worker be there."""
_OURS = {
    # What stages know of everybody, some 25 MB, goes with the graph, once; Dask warns from 10 on.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # It looks at each task a hundred times a second, for a page that nobody opens here.
    "distributed.worker.profile.enabled": False,
}
"""How Dask is to be here; workers of others have settings of their own."""
GRACE = 10
"""Seconds that workers of our own have to end."""
_TYPE = (
    "Give an address such as `--scheduler=tcp://10.0.0.7:8786`, one of "
    f"{', '.join(f'`{word}`' for word in KNOWN)}, or a cluster class by its name, such as "
    "`--scheduler=dask_jobqueue:SGECluster`. Without --scheduler, workers are started here."
)


def check(scheduler: str | None) -> None:
    """Refuse what cannot be a scheduler, before anything is started.

    Raises:
        UsageError: Dask or the package of a cluster class is missing, or it is no such name.
    """
    try:
        import_module("distributed")
    except ImportError as error:
        raise UsageError(
            "--engine dask: Dask is not installed. Type `pip install 'morpheus[dask]'`, on every "
            "machine of the cluster."
        ) from error
    if scheduler is not None and not is_address(scheduler):
        cluster_class(scheduler)


def is_address(scheduler: str | None) -> bool:
    """Whether it is the address of a scheduler that runs already."""
    return scheduler is not None and scheduler.startswith(SCHEMES)


@contextmanager
def connected(scheduler: str | None, workers: int) -> Iterator[Client]:
    """Connect to a scheduler; what was started for it ends with the `with` block.

    Args:
        scheduler: Its address; or a cluster class, by name or by a word, which is started with
            what Dask's own configuration says; None for workers on this machine.
        workers: How many workers are started, but where the scheduler has its own.

    Raises:
        UsageError: It is none of these.
        Unavailable: Nobody answers, no worker comes, or a worker has not this morpheus.
    """
    import dask  # noqa: PLC0415 - slow, and an extra
    import distributed  # noqa: PLC0415 - as above

    _quieten()
    with dask.config.set(_OURS), _place(scheduler, workers) as place:
        try:
            client = distributed.Client(place, timeout=PATIENCE, set_as_default=True)
        except (OSError, TimeoutError, ValueError) as error:
            raise Unavailable(
                f"--scheduler: nobody answers at `{scheduler}` ({error or 'no answer'}). "
                f"Is it running? `dask scheduler` starts one, and says where. {_TYPE}"
            ) from error
        with client:
            _meet_workers(client, scheduler)
            yield client


def cluster_class(name: str) -> Callable[..., Any]:
    """Find a cluster class by a word or as `package.module:Class`.

    >>> cluster_class("distributed:LocalCluster").__name__
    'LocalCluster'

    Raises:
        UsageError: There is none; says what to install, or what would do.
    """
    path, package = KNOWN.get(name.lower(), (name, name.partition(":")[0].partition(".")[0]))
    module, colon, called = path.partition(":")
    if not colon:
        module, _, called = path.rpartition(".")
    if not module or not called.isidentifier():
        raise UsageError(f"--scheduler: `{name}` is no scheduler. {_TYPE}")
    try:
        found = getattr(import_module(module), called, None)
    except ImportError as error:
        raise UsageError(
            f"--scheduler: `{name}` needs the package `{package}`, which is not installed "
            f"({error}). Type `pip install '{package}'`."
        ) from error
    if not callable(found):
        raise UsageError(f"--scheduler: `{module}` has no class `{called}`. {_TYPE}")
    made: Callable[..., Any] = found
    return made


@contextmanager
def _place(scheduler: str | None, workers: int) -> Iterator[Any]:
    if is_address(scheduler):
        yield scheduler
        return
    cluster = _local(workers) if scheduler is None else _started(scheduler, workers)
    try:
        yield cluster
    finally:
        # Processes that have not ended by then end with this one.
        with suppress(TimeoutError):
            cluster.close(timeout=GRACE)


def _local(workers: int) -> Any:  # noqa: ANN401 - Dask's own
    import distributed  # noqa: PLC0415 - as above

    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        preload=["morpheus.cluster.task"],
        # Read by polars when it is imported: one worker, one thread.
        env={"POLARS_MAX_THREADS": "1"},
    )


def _started(scheduler: str, workers: int) -> Any:  # noqa: ANN401 - the same
    try:
        cluster = cluster_class(scheduler)()
        cluster.scale(workers)
    except UsageError:
        raise
    except Exception as error:
        raise Unavailable(
            f"--scheduler: `{scheduler}` could not be started ({type(error).__name__}: {error}). "
            "Its settings are those of Dask's own configuration files."
        ) from error
    return cluster


def _meet_workers(client: Client, scheduler: str | None) -> None:
    """Wait for the first worker, and see that all have this morpheus."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
        theirs = client.run(version)
    except TimeoutError as error:
        raise Unavailable(
            f"--scheduler: `{scheduler}` has no workers. Start some: "
            f"`dask worker {scheduler}`, in an environment that has morpheus."
        ) from error
    except (ImportError, AttributeError) as error:
        raise Unavailable(
            f"--scheduler: a worker of `{scheduler}` has no morpheus ({error}). "
            "Type `pip install 'morpheus[dask]'` on every machine of the cluster."
        ) from error
    for worker, found in theirs.items():
        if found != version():
            raise Unavailable(
                f"--scheduler: worker {worker} has morpheus {found}, but this is {version()}. "
                "Results depend on the version: install the same one everywhere."
            )


def version() -> str:
    """The version of morpheus that is installed here."""
    try:
        return version_of("morpheus")
    except PackageNotFoundError:
        return "not installed"


def _quieten() -> None:
    """What Dask logs of workers that come and go is told by the summary; `--debug` shows it."""
    if logging.getLogger("morpheus").getEffectiveLevel() > logging.DEBUG:
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
