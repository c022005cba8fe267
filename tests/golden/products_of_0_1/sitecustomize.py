"""Score with the matrix products of version 0.1, in this process and its workers.

Python imports this module at start when its folder is on PYTHONPATH. Version 0.1 scored rows with
products whose last digits, on some processors, depend on a row's position in its batch.
Scoring does so no longer (`Autoencoder.for_scoring`), so only with these products can the outputs
of 0.1 be compared byte for byte.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODULE = "morpheus.models.autoencoder"


class _ProductsOf01(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            module.Autoencoder.for_scoring = lambda net: net  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _ProductsOf01())
