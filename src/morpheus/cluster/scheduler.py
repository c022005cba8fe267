"""Where tasks are given to workers: a scheduler that runs already, or one that is started here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from morpheus.errors import TransientError, UsageError

if TYPE_CHECKING:
    from distributed import Client

CLUSTER_CLASSES = {
    "kubernetes": ("dask_kubernetes.operator:KubeCluster", "dask-kubernetes"),
    "slurm": ("dask_jobqueue:SLURMCluster", "dask-jobqueue"),
    "pbs": ("dask_jobqueue:PBSCluster", "dask-jobqueue"),
    "yarn": ("dask_yarn:YarnCluster", "dask-yarn"),
    "gateway": ("dask_gateway:GatewayCluster", "dask-gateway"),
    "fargate": ("dask_cloudprovider.aws:FargateCluster", "dask-cloudprovider[aws]"),
    "ec2": ("dask_cloudprovider.aws:EC2Cluster", "dask-cloudprovider[aws]"),
}
"""Words for cluster classes, and the package that brings each."""
SCHEDULER_SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
CONNECT_TIMEOUT = 30
"""Seconds in which a scheduler must answer, and the first worker be there."""
_DASK_CONFIG = {
    # What stages know of everybody, some 25 MB, goes with the graph, once; Dask warns from 10 on.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # It looks at each task a hundred times a second, for a page that nobody opens here.
    "distributed.worker.profile.enabled": False,
}
"""How Dask is to be here; workers of others have settings of their own."""
SHUTDOWN_TIMEOUT = 10
"""Seconds that workers of our own have to end."""
_SCHEDULER_HINT = (
    "Give an address such as `--scheduler=tcp://10.0.0.7:8786`, one of "
    f"{', '.join(f'`{word}`' for word in CLUSTER_CLASSES)}, or a cluster class by its name, such as "
    "`--scheduler=dask_jobqueue:SGECluster`. Without --scheduler, workers are started here."
)


def check_scheduler(scheduler: str | None) -> None:
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
    if scheduler is not None and not is_scheduler_address(scheduler):
        find_cluster_class(scheduler)


def is_scheduler_address(scheduler: str | None) -> bool:
    """Whether it is the address of a scheduler that runs already."""
    return scheduler is not None and scheduler.startswith(SCHEDULER_SCHEMES)


@contextmanager
def connect(scheduler: str | None, num_workers: int) -> Iterator[Client]:
    """Connect to a scheduler; what was started for it ends with the `with` block.

    Args:
        scheduler: Its address; or a cluster class, by name or by a word, which is started with
            what Dask's own configuration says; None for workers on this machine.
        num_workers: How many workers are started, but where the scheduler has its own.

    Raises:
        UsageError: It is none of these.
        Unavailable: Nobody answers, no worker comes, or a worker has not this morpheus.
    """
    import dask  # noqa: PLC0415 - slow, and an extra
    import distributed  # noqa: PLC0415 - as above

    _silence_logs()
    with dask.config.set(_DASK_CONFIG), _open_scheduler(scheduler, num_workers) as place:
        try:
            client = distributed.Client(place, timeout=CONNECT_TIMEOUT, set_as_default=True)
        except (OSError, TimeoutError, ValueError) as error:
            raise TransientError(
                f"--scheduler: nobody answers at `{scheduler}` ({error or 'no answer'}). "
                f"Is it running? `dask scheduler` starts one, and says where. {_SCHEDULER_HINT}"
            ) from error
        with client:
            _check_workers(client, scheduler)
            yield client


def find_cluster_class(name: str) -> Callable[..., Any]:
    """Find a cluster class by a word or as `package.module:Class`.

    >>> find_cluster_class("distributed:LocalCluster").__name__
    'LocalCluster'

    Raises:
        UsageError: There is none; says what to install, or what would do.
    """
    path, package = CLUSTER_CLASSES.get(name.lower(), (name, name.partition(":")[0].partition(".")[0]))
    module, colon, called = path.partition(":")
    if not colon:
        module, _, called = path.rpartition(".")
    if not module or not called.isidentifier():
        raise UsageError(f"--scheduler: `{name}` is no scheduler. {_SCHEDULER_HINT}")
    try:
        found = getattr(import_module(module), called, None)
    except ImportError as error:
        raise UsageError(
            f"--scheduler: `{name}` needs the package `{package}`, which is not installed "
            f"({error}). Type `pip install '{package}'`."
        ) from error
    if not callable(found):
        raise UsageError(f"--scheduler: `{module}` has no class `{called}`. {_SCHEDULER_HINT}")
    made: Callable[..., Any] = found
    return made


@contextmanager
def _open_scheduler(scheduler: str | None, num_workers: int) -> Iterator[Any]:
    if is_scheduler_address(scheduler):
        yield scheduler
        return
    cluster = _start_local_cluster(num_workers) if scheduler is None else _start_cluster(scheduler, num_workers)
    try:
        yield cluster
    finally:
        # Processes that have not ended by then end with this one.
        with suppress(TimeoutError):
            cluster.close(timeout=SHUTDOWN_TIMEOUT)


def _start_local_cluster(num_workers: int) -> Any:  # noqa: ANN401 - Dask's own
    import distributed  # noqa: PLC0415 - as above

    return distributed.LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        preload=["morpheus.cluster.task"],
        # Read by polars when it is imported: one worker, one thread.
        env={"POLARS_MAX_THREADS": "1"},
    )


def _start_cluster(scheduler: str, num_workers: int) -> Any:  # noqa: ANN401 - the same
    try:
        cluster = find_cluster_class(scheduler)()
        cluster.scale(num_workers)
    except UsageError:
        raise
    except Exception as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` could not be started ({type(error).__name__}: {error}). "
            "Its settings are those of Dask's own configuration files."
        ) from error
    return cluster


def _check_workers(client: Client, scheduler: str | None) -> None:
    """Wait for the first worker, and see that all have this morpheus."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT)
        theirs = client.run(installed_version)
    except TimeoutError as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` has no workers. Start some: "
            f"`dask worker {scheduler}`, in an environment that has morpheus."
        ) from error
    except (ImportError, AttributeError) as error:
        raise TransientError(
            f"--scheduler: a worker of `{scheduler}` has no morpheus ({error}). "
            "Type `pip install 'morpheus[dask]'` on every machine of the cluster."
        ) from error
    for worker, found in theirs.items():
        if found != installed_version():
            raise TransientError(
                f"--scheduler: worker {worker} has morpheus {found}, but this is {installed_version()}. "
                "Results depend on the version: install the same one everywhere."
            )


def installed_version() -> str:
    """The version of morpheus that is installed here."""
    try:
        return version_of("morpheus")
    except PackageNotFoundError:
        return "not installed"


def _silence_logs() -> None:
    """What Dask logs of workers that come and go is told by the summary; `--debug` shows it."""
    if logging.getLogger("morpheus").getEffectiveLevel() > logging.DEBUG:
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
