"""Which objects of a bucket a glob stands for, found without listing what cannot be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic

from morpheus import bucket
from morpheus.bucket import Object
from morpheus.sources.period import Period, span_of

DEEP = "**"
_AT_ONCE = 16
_DAY = 86_400


@dataclass(frozen=True)
class Place:
    """A folder of a bucket, and what is looked for in it: parts of a glob, the last for objects."""

    folder: Object
    pattern: tuple[str, ...]


@dataclass
class Walked:
    """What a walk has come by: objects, and how many folders it has passed by for their dates."""

    objects: list[Object] = field(default_factory=list)
    outside: int = 0


@dataclass(frozen=True)
class Walk:
    """Finds the objects that match, folder by folder where something can be passed by.

    A folder's dates may say that it holds nothing of the period; then it is never listed. As soon
    as nothing more can be passed by, all that is below a folder is listed in one go.

    Attributes:
        pattern: A glob that begins with `s3://`, a folder, or an object.
        recursive: Also match, in every subfolder, what the last part of the glob matches.
        without: Folders that are passed by.
        period: The period whose events are wanted; None for all.
    """

    pattern: str
    recursive: bool = True
    without: tuple[str, ...] = ()
    period: Period | None = None

    def walked(self) -> Walked:
        """Find the objects.

        Raises:
            UsageError: There is no such bucket, or it must not be listed.
            Unavailable: S3 does not answer.
        """
        exact = None if self.pattern.endswith("/") else self._exact()
        if exact is not None:
            return Walked([exact])
        done, start = Walked(), self.start()
        places, ignored = [start], self._ignored(start.folder)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while places:
                following: list[Place] = []
                for deeper, objects in pool.map(partial(self._entered, ignored), places):
                    done.objects += objects
                    wanted = [place for place in deeper if self._reaches(place.folder, ignored)]
                    done.outside += len(deeper) - len(wanted)
                    following += wanted
                places = following
        return done

    def _exact(self) -> Object | None:
        whole = Object.named(self.pattern)
        return None if has_magic(whole.key) or not whole.key else bucket.find(whole)

    def start(self) -> Place:
        """The folder above the first wildcard, and what is looked for in it."""
        whole = Object.named(self.pattern)
        parts = [part for part in whole.key.split("/") if part]
        first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
        rest = parts[first:] or [DEEP, "*"]
        if self.recursive and rest[-1] != DEEP and rest[-2:-1] != [DEEP]:
            rest = [*rest[:-1], DEEP, rest[-1]]
        if rest[-1] == DEEP:
            rest.append("*")
        return Place(Object(whole.bucket, "/".join(parts[:first])), tuple(rest))

    def _ignored(self, base: Object) -> int:
        return 0 if self.period is None else self.period.ignored(base.parts)

    def _entered(self, ignored: int, place: Place) -> tuple[list[Place], list[Object]]:
        """The places in a place, and the objects in it."""
        head, *rest = place.pattern
        if rest and head != DEEP and not has_magic(head):
            return [Place(place.folder / head, tuple(rest))], []
        if head == DEEP and not self._choosy(place.folder, ignored):
            return [], [one for one in bucket.below(place.folder) if self._below(place, one)]
        folders, objects = bucket.level(place.folder)
        deeper = [next_ for folder in folders for next_ in self._deeper(place, folder)]
        return deeper, [one for one in objects if matches([one.name], place.pattern)]

    def _deeper(self, place: Place, folder: Object) -> Iterator[Place]:
        head, *rest = place.pattern
        if folder.name in self.without:
            return
        if head == DEEP and not folder.name.startswith("."):
            yield Place(folder, place.pattern)
        elif rest and head != DEEP and fnmatchcase(folder.name, head):
            yield Place(folder, tuple(rest))

    def _choosy(self, folder: Object, ignored: int) -> bool:
        """Whether folders below one may be passed by for their dates."""
        span = None if self.period is None else span_of(folder.parts[ignored:])
        whole_day = span is not None and (span.end - span.start).total_seconds() <= _DAY
        return self.period is not None and not whole_day

    def _reaches(self, folder: Object, ignored: int) -> bool:
        return self.period is None or self.period.reaches(folder.parts[ignored:])

    def _below(self, place: Place, one: Object) -> bool:
        return matches(one.parts[len(place.folder.parts) :], place.pattern)


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a glob; `**` is any number of folders, or none.

    >>> matches(["2024", "05", "a.json"], ["**", "*.json"]), matches([".git", "a"], ["**", "*"])
    (True, False)
    """
    if not pattern:
        return not parts
    if pattern[0] == DEEP:
        here = matches(parts, pattern[1:])
        return here or (_shown(parts[:1]) and matches(parts[1:], pattern))
    return _shown(parts[:1], pattern[0]) and matches(parts[1:], pattern[1:])


def _shown(part: Sequence[str], pattern: str = "*") -> bool:
    """Whether a part is there and matches; hidden ones match only what begins with a dot."""
    hidden = bool(part) and part[0].startswith(".") and not pattern.startswith(".")
    return bool(part) and not hidden and fnmatchcase(part[0], pattern)
