"""Registry of stages: from the word on the command line to the class.

A package registers stages in the entry-point group `morpheus.stages`, each as
`word = "module:Class"`. The stages of this package are registered in the same way. The module of a
stage is imported when its word is used. `register_plugin` adds the stages of a single module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from morpheus.core.stage import Stage
from morpheus.errors import UsageError
from morpheus.text import suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "morpheus.stages"
_PLUGINS: list[EntryPoint] = []


def stage_names() -> tuple[str, ...]:
    """Return the words of all stages, sorted.

    >>> "train-ae" in stage_names()
    True
    """
    return tuple(sorted(_entry_points_by_name()))


def register_plugin(source: str) -> None:
    """Add the stages of a module: each subclass of `Stage` in it with a name.

    Args:
        source: The dotted name of the module, or a file that ends in `.py`.

    Raises:
        UsageError: The module cannot be loaded, or has no stages.
    """
    from importlib.metadata import EntryPoint  # noqa: PLC0415 - slow, and not for `--help`

    module = _import_plugin(source)
    entries = [
        EntryPoint(stage.name, f"{module.__name__}:{stage.__qualname__}", ENTRY_POINT_GROUP)
        for stage in _find_stages(module)
    ]
    if not entries:
        raise UsageError(
            f"--plugin: `{source}` has no stages. Give a module with a subclass of "
            "`morpheus.core.stage.Stage` that has a `name`."
        )
    _PLUGINS.extend(entry for entry in entries if entry not in _PLUGINS)
    _entry_points_by_name.cache_clear()


def load_stage(word: str) -> type[Stage]:
    """Load the class of a stage.

    Raises:
        UsageError: No package has the word, several have it, or it cannot be loaded.

    >>> load_stage("train-a")
    Traceback (most recent call last):
    morpheus.errors.UsageError: There is no stage `train-a`. Did you mean `train-ae`?
    """
    entry = _find_entry_point(word)
    try:
        stage = entry.load()
    except Exception as error:  # a plugin may fail in any way
        raise UsageError(
            f"{_describe_origin(entry)} cannot be loaded: {type(error).__name__}: {error}. Repair "
            "the package, or uninstall it."
        ) from error
    if isinstance(stage, type) and issubclass(stage, Stage) and stage.name == word:
        return stage
    raise UsageError(
        f"{_describe_origin(entry)} is not a `morpheus.core.stage.Stage` with the name `{word}`. "
        "Repair the package, or uninstall it."
    )


def distribution_of(word: str) -> str:
    """Return the name of the package that has a word. Several names are joined by commas.

    >>> distribution_of("train-ae")
    'morpheus-dfp'
    """
    return ", ".join(_distribution_name(entry) for entry in _entry_points_by_name()[word])


def unknown_stage_message(word: str) -> str:
    """Return the error message for an unknown word, with similar words."""
    hint = suggest(word, stage_names()) or " `morpheus tools stages` lists them."
    return f"There is no stage `{word}`.{hint}"


def _find_entry_point(word: str) -> EntryPoint:
    entries = _entry_points_by_name().get(word)
    if entries is None:
        raise UsageError(unknown_stage_message(word))
    if len(entries) == 1:
        return entries[0]
    packages = " and ".join(f"`{_distribution_name(each)}` (`{each.value}`)" for each in entries)
    raise UsageError(
        f"stage `{word}`: several packages have it: {packages}. Uninstall all but one of them."
    )


@cache
def _entry_points_by_name() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of each word. The same class registered twice counts once."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and not for `--help`

    by_name: dict[str, list[EntryPoint]] = {}
    for entry in (*entry_points(group=ENTRY_POINT_GROUP), *_PLUGINS):
        by_name.setdefault(entry.name, []).append(entry)
    return {name: _deduplicate(entries) for name, entries in by_name.items()}


def _deduplicate(entries: Sequence[EntryPoint]) -> tuple[EntryPoint, ...]:
    """Return one entry point of each class, in the order of their distributions' names."""
    if len(entries) == 1:  # the name of a distribution is slow to read
        return tuple(entries)
    by_value: dict[str, EntryPoint] = {}
    for entry in sorted(entries, key=lambda entry: (_distribution_name(entry), entry.value)):
        by_value.setdefault(entry.value, entry)
    return tuple(by_value.values())


def _describe_origin(entry: EntryPoint) -> str:
    """Return where a stage comes from; begins the message of an error."""
    return f"stage `{entry.name}`: `{entry.value}` of package `{_distribution_name(entry)}`"


def _distribution_name(entry: EntryPoint) -> str:
    """Return the distribution of an entry point; for a plugin, its module."""
    return entry.dist.name if entry.dist is not None else f"plugin {entry.module}"


def _import_plugin(source: str) -> ModuleType:
    file = Path(source)
    if file.suffix == ".py":
        # Worker processes get the same path, so they can import the module, too.
        sys.path.append(str(file.resolve().parent))
    try:
        module = import_module(file.stem if file.suffix == ".py" else source)
    except Exception as error:  # a plugin may fail in any way
        raise UsageError(
            f"--plugin: `{source}` cannot be loaded: {type(error).__name__}: {error}. Give the "
            "name of an importable module, or the path of a `.py` file."
        ) from error
    if file.suffix == ".py" and Path(module.__file__ or "").resolve() != file.resolve():
        raise UsageError(
            f"--plugin: `{source}`: there is already a module `{file.stem}`, `{module.__file__}`. "
            "Rename the file."
        )
    return module


def _find_stages(module: ModuleType) -> Iterator[type[Stage]]:
    for value in vars(module).values():
        is_stage = isinstance(value, type) and issubclass(value, Stage)
        if is_stage and value.__module__ == module.__name__ and hasattr(value, "name"):
            yield value
