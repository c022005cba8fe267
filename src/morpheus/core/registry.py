"""Word on the command line -> stage class; built-ins and plugins come through the same door.

A package offers stages by the entry-point group `morpheus.stages`, each as `word = "module:Class"`.
A module is loaded when its word is used, not before. `register_plugin` adds the stages of a single module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from morpheus.core.stage import Stage
from morpheus.errors import UsageError

ENTRY_POINT_GROUP = "morpheus.stages"
_PLUGINS: list[EntryPoint] = []


def stage_names() -> tuple[str, ...]:
    """Every word that names a stage, sorted.

    >>> "train-ae" in stage_names()
    True
    """
    return tuple(sorted(_entry_points_by_name()))


def register_plugin(source: str) -> None:
    """Add the stages of a module: each subclass of `Transform` in it that has a name.

    Args:
        source: The module's dotted name, or a file that ends in `.py`.

    Raises:
        UsageError: It cannot be loaded, or has no stages.
    """
    module = _import_plugin(source)
    found = [
        EntryPoint(one.name, f"{module.__name__}:{one.__qualname__}", ENTRY_POINT_GROUP)
        for one in _find_stages(module)
    ]
    if not found:
        raise UsageError(
            f"--plugin: `{source}` has no stages. Give a module with a subclass of "
            "`morpheus.core.stage.Stage` that has a `name`."
        )
    _PLUGINS.extend(one for one in found if one not in _PLUGINS)
    _entry_points_by_name.cache_clear()


def load_stage(word: str) -> type[Stage]:
    """Load the stage class that a word names.

    Raises:
        UsageError: No package offers the word, two do, or the one that does cannot be loaded.

    >>> load_stage("train-a")
    Traceback (most recent call last):
    morpheus.errors.UsageError: There is no stage `train-a`. Did you mean `train-ae`?
    """
    offer = _find_entry_point(word)
    try:
        stage = offer.load()
    except Exception as error:  # a plugin may fail in any way, and only it is to blame
        raise UsageError(
            f"stage `{word}`: package `{_distribution_name(offer)}` brings it as `{offer.value}`, which "
            f"cannot be loaded: {type(error).__name__}: {error}. Repair that package, or "
            f"uninstall it."
        ) from error
    if isinstance(stage, type) and issubclass(stage, Stage) and stage.name == word:
        return stage
    raise UsageError(
        f"stage `{word}`: package `{_distribution_name(offer)}` brings it as `{offer.value}`, which is not a "
        f"`morpheus.core.stage.Stage` of the name `{word}`. Repair that package, or uninstall it."
    )


def distribution_of(word: str) -> str:
    """Name the package that offers a word, or those that do.

    >>> distribution_of("train-ae")
    'morpheus-dfp'
    """
    return ", ".join(_distribution_name(one) for one in _entry_points_by_name()[word])


def unknown_stage_message(word: str) -> str:
    """Say that no stage has this name, and which are close to it."""
    close = " or ".join(f"`{one}`" for one in get_close_matches(word, stage_names()))
    hint = f"Did you mean {close}?" if close else "`morpheus tools stages` lists them."
    return f"There is no stage `{word}`. {hint}"


def _find_entry_point(word: str) -> EntryPoint:
    """The one offer of a word."""
    offers = _entry_points_by_name().get(word)
    if offers is None:
        raise UsageError(unknown_stage_message(word))
    first, *others = offers
    if not others:
        return first
    rivals = " and ".join(f"`{_distribution_name(one)}` (`{one.value}`)" for one in offers)
    raise UsageError(f"stage `{word}`: offered by {rivals}. Uninstall all but one of them.")


@cache
def _entry_points_by_name() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Offers by word; the same class offered twice is one offer."""
    found: dict[str, dict[str, EntryPoint]] = {}
    offers = [*entry_points(group=ENTRY_POINT_GROUP), *_PLUGINS]
    for one in sorted(offers, key=lambda one: (_distribution_name(one), one.value)):
        found.setdefault(one.name, {}).setdefault(one.value, one)
    return {word: tuple(offers.values()) for word, offers in found.items()}


def _distribution_name(offer: EntryPoint) -> str:
    """The distribution that an entry point is installed with."""
    return offer.dist.name if offer.dist is not None else f"plugin {offer.module}"


def _import_plugin(source: str) -> ModuleType:
    file = Path(source)
    if file.suffix == ".py":
        # Worker processes find it there too: they get this path.
        sys.path.append(str(file.resolve().parent))
    try:
        module = import_module(file.stem if file.suffix == ".py" else source)
    except Exception as error:  # a plugin may fail in any way, and only it is to blame
        raise UsageError(
            f"--plugin: `{source}` cannot be loaded: {type(error).__name__}: {error}. Give the "
            "name of an importable module, or the path of a `.py` file."
        ) from error
    if file.suffix == ".py" and Path(module.__file__ or "").resolve() != file.resolve():
        raise UsageError(
            f"--plugin: `{source}`: there is another module `{file.stem}` already, "
            f"`{module.__file__}`. Give the file a name of its own."
        )
    return module


def _find_stages(module: ModuleType) -> Iterator[type[Stage]]:
    for one in vars(module).values():
        ours = isinstance(one, type) and issubclass(one, Stage)
        if ours and one.__module__ == module.__name__ and hasattr(one, "name"):
            yield one
