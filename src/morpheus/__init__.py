"""Learns what each user in your logs usually does, and tells when one stops being themselves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morpheus.api import Fingerprints
    from morpheus.pipeline import Pipeline

__all__ = ["Fingerprints", "Pipeline"]

_LAZY_IMPORTS = {"Fingerprints": "morpheus.api", "Pipeline": "morpheus.pipeline"}


def __getattr__(name: str) -> object:
    # Polars is loaded when it is needed: `morpheus --help` does without.
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
