"""Where networks are trained: on the processor one after the other, or side by side on a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from morpheus.errors import UsageError
from morpheus.models.training import Trainer, train_sequentially

if TYPE_CHECKING:
    import torch

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Where there is none of these, `auto` need not ask torch, whose import takes a second."""
MIN_USERS_FOR_GPU = 16
"""Users from which `auto` asks torch for a GPU: fewer are trained before that is imported."""


def gpu_possible(name: str) -> bool:
    """Whether `auto`, `cpu` or `cuda` may mean a GPU here."""
    return name == "cuda" or (name == "auto" and any(map(Path.exists, GPU_DRIVERS)))


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        UsageError: It is not there.
    """
    import torch  # noqa: PLC0415 - takes a second to import

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError(
            "--device: no CUDA device is at hand, or torch is its CPU build. Leave the option out, "
            "or install torch for CUDA: `make setup TORCH_INDEX=...`, see the README."
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def select_trainer(name: str, n_users: int) -> Trainer:
    """What trains the networks of so many users on `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: The device is not there.
    """
    if not gpu_possible(name) or (name == "auto" and n_users < MIN_USERS_FOR_GPU):
        return train_sequentially
    device = resolve_device(name)
    if device.type == "cpu":
        return train_sequentially
    from morpheus.models.stack import train_batched  # noqa: PLC0415 - needs torch

    return partial(train_batched, device=device)
