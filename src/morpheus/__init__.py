"""Learns how each user in audit logs behaves, and alerts when one behaves unusually."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morpheus.api import Fingerprints
    from morpheus.detection import Detection, detect
    from morpheus.pipeline import Pipeline

    __version__: str

__all__ = ["Detection", "Fingerprints", "Pipeline", "__version__", "detect"]

_DISTRIBUTION = "morpheus-dfp"
_LAZY_IMPORTS = {
    "Detection": "morpheus.detection",
    "Fingerprints": "morpheus.api",
    "Pipeline": "morpheus.pipeline",
    "detect": "morpheus.detection",
}


def __getattr__(name: str) -> object:
    # Names are loaded when they are used, so that `morpheus --help` does not load polars.
    if name == "__version__":
        return _find_version()
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _find_version() -> str:
    """Return the version of the installed distribution; `0+unknown` if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import

    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"
