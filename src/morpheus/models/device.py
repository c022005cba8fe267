"""Where networks are trained: on the processor one after the other, or side by side on a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from morpheus.errors import UsageError
from morpheus.models.training import Trainer, train_each

if TYPE_CHECKING:
    import torch

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Where there is none of these, `auto` need not ask torch, whose import takes a second."""
WORTH = 16
"""Users from which `auto` asks torch for a GPU: fewer are trained before that is imported."""


def may_be_gpu(name: str) -> bool:
    """Whether `auto`, `cpu` or `cuda` may mean a GPU here."""
    return name == "cuda" or (name == "auto" and any(map(Path.exists, GPU_DRIVERS)))


def device_of(name: str) -> torch.device:
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


def trainer_on(name: str, users: int) -> Trainer:
    """What trains the networks of so many users on `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: The device is not there.
    """
    if not may_be_gpu(name) or (name == "auto" and users < WORTH):
        return train_each
    device = device_of(name)
    if device.type == "cpu":
        return train_each
    from morpheus.models.stack import train_stacked  # noqa: PLC0415 - needs torch

    return partial(train_stacked, device=device)
