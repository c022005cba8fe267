"""Word on the command line -> stage class; built-ins and plugins come through the same door.

A package offers stages by the entry-point group `morpheus.stages`, each as `word = "module:Class"`.
A module is loaded when its word is used, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from morpheus.errors import UsageError
from morpheus.stage import Stage

GROUP = "morpheus.stages"


def words() -> tuple[str, ...]:
    """Every word that names a stage, sorted.

    >>> "train-ae" in words()
    True
    """
    return tuple(sorted(_offers()))


def load(word: str) -> type[Stage]:
    """Load the stage class that a word names.

    Raises:
        UsageError: No package offers the word, two do, or the one that does cannot be loaded.

    >>> load("train-a")
    Traceback (most recent call last):
    morpheus.errors.UsageError: There is no stage `train-a`. Did you mean `train-ae`?
    """
    offer = _offer(word)
    try:
        stage = offer.load()
    except Exception as error:  # a plugin may fail in any way, and only it is to blame
        raise UsageError(
            f"stage `{word}`: package `{_package(offer)}` brings it as `{offer.value}`, which "
            f"cannot be loaded: {type(error).__name__}: {error}. Repair that package, or "
            f"uninstall it."
        ) from error
    if isinstance(stage, type) and issubclass(stage, Stage) and stage.name == word:
        return stage
    raise UsageError(
        f"stage `{word}`: package `{_package(offer)}` brings it as `{offer.value}`, which is not a "
        f"`morpheus.stage.Stage` of the name `{word}`. Repair that package, or uninstall it."
    )


def package(word: str) -> str:
    """Name the package that offers a word, or those that do.

    >>> package("train-ae")
    'morpheus'
    """
    return ", ".join(_package(one) for one in _offers()[word])


def unknown(word: str) -> str:
    """Say that no stage has this name, and which are close to it."""
    close = " or ".join(f"`{one}`" for one in get_close_matches(word, words()))
    hint = f"Did you mean {close}?" if close else "`morpheus tools stages` lists them."
    return f"There is no stage `{word}`. {hint}"


def _offer(word: str) -> EntryPoint:
    """The one offer of a word."""
    offers = _offers().get(word)
    if offers is None:
        raise UsageError(unknown(word))
    first, *others = offers
    if not others:
        return first
    rivals = " and ".join(f"`{_package(one)}` (`{one.value}`)" for one in offers)
    raise UsageError(f"stage `{word}`: offered by {rivals}. Uninstall all but one of them.")


@cache
def _offers() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Offers by word; the same class offered twice is one offer."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for one in sorted(entry_points(group=GROUP), key=lambda one: (_package(one), one.value)):
        found.setdefault(one.name, {}).setdefault(one.value, one)
    return {word: tuple(offers.values()) for word, offers in found.items()}


def _package(offer: EntryPoint) -> str:
    """The distribution that an entry point is installed with."""
    return offer.dist.name if offer.dist is not None else "an unnamed package"
