"""Which objects of a bucket a glob stands for, found without listing what cannot be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic

from morpheus import bucket
from morpheus.bucket import S3Path
from morpheus.sources.period import TimeRange, parse_interval

ANY_DEPTH = "**"
_MAX_CONCURRENCY = 16
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class GlobNode:
    """A folder of a bucket, and what is looked for in it: parts of a glob, the last for objects."""

    folder: S3Path
    pattern: tuple[str, ...]


@dataclass
class GlobResult:
    """What a walk has come by: objects, and how many folders it has passed by for their dates."""

    objects: list[S3Path] = field(default_factory=list)
    outside_folders: int = 0


@dataclass(frozen=True)
class S3Glob:
    """Finds the objects that match, folder by folder where something can be passed by.

    A folder's dates may say that it holds nothing of the period; then it is never listed. As soon
    as nothing more can be passed by, all that is below a folder is listed in one go.

    Attributes:
        pattern: A glob that begins with `s3://`, a folder, or an object.
        recursive: Also match, in every subfolder, what the last part of the glob matches.
        skip_dirs: Folders that are passed by.
        time_range: The period whose events are wanted; None for all.
    """

    pattern: str
    recursive: bool = True
    skip_dirs: tuple[str, ...] = ()
    time_range: TimeRange | None = None

    def find_objects(self) -> GlobResult:
        """Find the objects.

        Raises:
            UsageError: There is no such bucket, or it must not be listed.
            Unavailable: S3 does not answer.
        """
        exact = None if self.pattern.endswith("/") else self._find_exact()
        if exact is not None:
            return GlobResult([exact])
        done, start = GlobResult(), self.get_root_node()
        places, ignored = [start], self._base_depth(start.folder)
        with ThreadPoolExecutor(_MAX_CONCURRENCY) as pool:
            while places:
                following: list[GlobNode] = []
                for deeper, objects in pool.map(partial(self._expand_node, ignored), places):
                    done.objects += objects
                    wanted = [place for place in deeper if self._may_overlap(place.folder, ignored)]
                    done.outside_folders += len(deeper) - len(wanted)
                    following += wanted
                places = following
        return done

    def _find_exact(self) -> S3Path | None:
        whole = S3Path.parse(self.pattern)
        return None if has_magic(whole.key) or not whole.key else bucket.head_object(whole)

    def get_root_node(self) -> GlobNode:
        """The folder above the first wildcard, and what is looked for in it."""
        whole = S3Path.parse(self.pattern)
        parts = [part for part in whole.key.split("/") if part]
        first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
        rest = parts[first:] or [ANY_DEPTH, "*"]
        if self.recursive and rest[-1] != ANY_DEPTH and rest[-2:-1] != [ANY_DEPTH]:
            rest = [*rest[:-1], ANY_DEPTH, rest[-1]]
        if rest[-1] == ANY_DEPTH:
            rest.append("*")
        return GlobNode(S3Path(whole.bucket, "/".join(parts[:first])), tuple(rest))

    def _base_depth(self, base: S3Path) -> int:
        return 0 if self.time_range is None else self.time_range.base_depth(base.parts)

    def _expand_node(self, base_depth: int, node: GlobNode) -> tuple[list[GlobNode], list[S3Path]]:
        """The places in a place, and the objects in it."""
        head, *rest = node.pattern
        if rest and head != ANY_DEPTH and not has_magic(head):
            return [GlobNode(node.folder / head, tuple(rest))], []
        if head == ANY_DEPTH and not self._can_prune(node.folder, base_depth):
            return [], [one for one in bucket.list_recursive(node.folder) if self._matches_below(node, one)]
        folders, objects = bucket.list_dir(node.folder)
        deeper = [next_ for folder in folders for next_ in self._iter_child_nodes(node, folder)]
        return deeper, [one for one in objects if matches_glob([one.name], node.pattern)]

    def _iter_child_nodes(self, node: GlobNode, folder: S3Path) -> Iterator[GlobNode]:
        head, *rest = node.pattern
        if folder.name in self.skip_dirs:
            return
        if head == ANY_DEPTH and not folder.name.startswith("."):
            yield GlobNode(folder, node.pattern)
        elif rest and head != ANY_DEPTH and fnmatchcase(folder.name, head):
            yield GlobNode(folder, tuple(rest))

    def _can_prune(self, folder: S3Path, base_depth: int) -> bool:
        """Whether folders below one may be passed by for their dates."""
        span = None if self.time_range is None else parse_interval(folder.parts[base_depth:])
        whole_day = span is not None and (span.end - span.start).total_seconds() <= _SECONDS_PER_DAY
        return self.time_range is not None and not whole_day

    def _may_overlap(self, folder: S3Path, base_depth: int) -> bool:
        return self.time_range is None or self.time_range.may_overlap_dir(folder.parts[base_depth:])

    def _matches_below(self, node: GlobNode, path: S3Path) -> bool:
        return matches_glob(path.parts[len(node.folder.parts) :], node.pattern)


def matches_glob(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a glob; `**` is any number of folders, or none.

    >>> matches_glob(["2024", "05", "a.json"], ["**", "*.json"]), matches_glob([".git", "a"], ["**", "*"])
    (True, False)
    """
    if not pattern:
        return not parts
    if pattern[0] == ANY_DEPTH:
        here = matches_glob(parts, pattern[1:])
        return here or (_matches_part(parts[:1]) and matches_glob(parts[1:], pattern))
    return _matches_part(parts[:1], pattern[0]) and matches_glob(parts[1:], pattern[1:])


def _matches_part(part: Sequence[str], pattern: str = "*") -> bool:
    """Whether a part is there and matches; hidden ones match only what begins with a dot."""
    hidden = bool(part) and part[0].startswith(".") and not pattern.startswith(".")
    return bool(part) and not hidden and fnmatchcase(part[0], pattern)
