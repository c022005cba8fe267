"""Recognises events of earlier reads: a file, an object or a message can come twice.

`DedupWindow` has the events of all users, `SeenEvents` those of one. Only digests of their keys are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import chain

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.core.state import State, decode_state, encode_state

_MAX_SEEN_KEYS = 250_000
"""Maximum number of event keys remembered per user."""
_MAX_LIVE_KEYS = 128
"""Number of event keys of a user, the latest, that are not in parts."""
PART_KEYS = 128
"""Number of event keys in a part."""
_MAX_PARTS = (_MAX_SEEN_KEYS - _MAX_LIVE_KEYS) // PART_KEYS
_NO_TIME = np.int64(-(1 << 60))
_PART_SLACK = 60_000_000
"""Microseconds by which the times of two records of one event differ at most, for a part."""
DIGEST_SIZE = 16
_MAX_COMPARED = 1 << 12
"""Pairs of digests up to which all are compared, which is faster than sorting."""


class SeenPart(State):
    """Event keys that have come one after the other, and do not change any more.

    Attributes:
        times: Time of each event, in microseconds since 1970, (`PART_KEYS`,).
        digests: 16-byte digest of each event's key, (`PART_KEYS`, 16).
    """

    times: NDArray[np.int64]
    digests: NDArray[np.uint8]


LoadParts = Callable[[str | None, Sequence[int]], Iterable[bytes]]
"""Returns saved parts of a user, by their numbers."""


def no_parts() -> NDArray[np.int64]:
    """Return `SeenEvents.parts` of a user without parts."""
    return np.empty((0, 3), np.int64)


class SeenEvents(msgspec.Struct):
    """The events of one user that are recognised.

    The latest are at hand. The others are in parts, which are saved once: else each checkpoint
    would write all that a user has ever done. Records of one event have the same time, so most
    parts are never looked at.

    Attributes:
        times: Time of each event at hand, in microseconds since 1970, (events,).
        digests: Digest of the key of each event at hand, as two numbers, (2, events).
        parts: Number, and earliest and latest time, of each part, the oldest part first, (parts,
            3). The numbers go round, so that a new part takes the place of the oldest one.
        loaded: Encoded parts in memory, by number.
        unsaved: Numbers of the parts that are not saved yet.
        parts_end: Latest time in the parts; None until it is needed.
    """

    times: NDArray[np.int64]
    digests: NDArray[np.uint64]
    parts: NDArray[np.int64] = msgspec.field(default_factory=no_parts)
    loaded: dict[int, bytes] = msgspec.field(default_factory=dict)
    unsaved: set[int] = msgspec.field(default_factory=set)
    parts_end: np.int64 | None = None

    @classmethod
    def make_empty(cls) -> SeenEvents:
        """Return those of a user without events."""
        return cls(np.empty(0, np.int64), np.empty((2, 0), np.uint64))

    @classmethod
    def from_bytes(
        cls,
        times: NDArray[np.int64],
        digests: NDArray[np.uint8],
        parts: NDArray[np.int64],
        loaded: dict[int, bytes],
    ) -> SeenEvents:
        """Make them of times, of (events, 16) bytes, and of parts."""
        return cls(times, _to_numbers(digests), parts, loaded)

    def to_bytes(self) -> NDArray[np.uint8]:
        """Return the digests at hand as bytes, (events, 16)."""
        return _to_digests(self.digests)

    def find(
        self,
        digests: NDArray[np.uint64],
        times: NDArray[np.int64],
        user: str | None = None,
        load: LoadParts | None = None,
    ) -> NDArray[np.bool_]:
        """Return which digests are those of an event, (n,).

        Args:
            digests: The digests, (2, n).
            times: Times of their events, (n,).
            user: The user.
            load: Returns parts that are not in memory.
        """
        found = _find_digests(digests, self.digests)
        for data in self._find_parts(times, user, load):
            part = decode_state(SeenPart, data)
            found |= _find_digests(digests, _to_numbers(part.digests))
        return found

    def _find_parts(
        self, times: NDArray[np.int64], user: str | None, load: LoadParts | None
    ) -> Iterable[bytes]:
        """Return the parts that can have events of some times."""
        # Nearly all events come after those in parts, and this is the cheapest way to see it.
        if self.parts_end is None:
            self.parts_end = self.parts[:, 2].max(initial=_NO_TIME)
        if times.min() > self.parts_end + _PART_SLACK:
            return ()
        ordered = np.sort(times)
        before = np.searchsorted(ordered, self.parts[:, 1] - _PART_SLACK)
        after = np.searchsorted(ordered, self.parts[:, 2] + _PART_SLACK, side="right")
        numbers = self.parts[before < after, 0].tolist()
        missing = [number for number in numbers if number not in self.loaded]
        at_hand = [self.loaded[number] for number in numbers if number in self.loaded]
        return chain(at_hand, load(user, missing) if missing and load is not None else ())

    def add(self, times: NDArray[np.int64], digests: NDArray[np.uint64], limit: int | None) -> None:
        """Add events, and keep as many as the limit, the latest ones.

        Args:
            times: Their times, (n,).
            digests: Their digests, (2, n).
            limit: The number; None for no limit.
        """
        self.times = np.concatenate([self.times, times])
        self.digests = np.concatenate([self.digests, digests], axis=1)
        if limit is not None and len(self.times) > limit:
            # The order of digests as bytes is stable on every machine.
            order = np.lexsort((*self.digests.view(">u8")[::-1], self.times))[-limit:]
            self.times, self.digests = self.times[order], self.digests[:, order]

    def make_parts(self) -> None:
        """Move all but the latest events into parts."""
        end = (len(self.times) - _MAX_LIVE_KEYS) // PART_KEYS * PART_KEYS
        if end <= 0:
            return
        for start in range(0, end, PART_KEYS):
            rows = slice(start, start + PART_KEYS)
            times = self.times[rows]
            number = (int(self.parts[-1, 0]) + 1) % _MAX_PARTS if len(self.parts) else 0
            self.loaded[number] = encode_state(SeenPart(times, _to_digests(self.digests[:, rows])))
            self.unsaved.add(number)
            last = np.array([[number, times.min(), times.max()]])
            self.parts = np.concatenate([self.parts[1 - _MAX_PARTS :], last])
        self.parts_end = None
        # Copies: a view would keep all of them in memory.
        self.times, self.digests = self.times[end:].copy(), self.digests[:, end:].copy()

    def take_unsaved(self, *, keep: bool) -> dict[int, bytes]:
        """Return the parts that are not saved yet, by number; then they count as saved.

        Args:
            keep: Whether parts stay in memory, because they cannot be loaded.
        """
        unsaved = {number: self.loaded[number] for number in self.unsaved}
        self.unsaved = set()
        if not keep:
            self.loaded = {}
        return unsaved


def _to_numbers(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return (events, 16) bytes as two numbers for each event, (2, events)."""
    parts = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(parts.T)


def _to_digests(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(numbers.T).view(np.uint8).reshape(-1, DIGEST_SIZE)


def _find_digests(digests: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which digests, (2, n), are among the known ones, (2, m)."""
    number = digests.shape[1]
    if number * known.shape[1] > _MAX_COMPARED:
        # Few of the known ones have the first half of one of these.
        halves = np.sort(digests[0])
        places = np.searchsorted(halves, known[0])
        places[places == number] = 0
        known = known[:, halves[places] == known[0]]
    if number * known.shape[1] <= _MAX_COMPARED:
        same = known[0] == digests[0][:, None]
        if not same.any():
            return np.zeros(number, dtype=np.bool_)
        return np.asarray((same & (known[1] == digests[1][:, None])).any(1))
    whole, parts = (
        np.ascontiguousarray(each.T).view(f"V{DIGEST_SIZE}").ravel() for each in (digests, known)
    )
    return np.isin(whole, parts)


class DedupWindow(msgspec.Struct):
    """The events of earlier reads, by which a later delivery of one is recognised.

    It keeps 16-byte digests, not the keys themselves, so that it can be saved. The key of an event
    names its user, so each user's events are compared among themselves.

    Attributes:
        possible_duplicates: Hashes of the keys to remember, all of them; None to remember every
            key, at most the latest 250,000 of each user.
        seen_events: The events, by user.
        load: Returns parts of `SeenEvents` that are not in memory; None if all are.
    """

    possible_duplicates: pl.Series | None = None
    seen_events: dict[str | None, SeenEvents] = msgspec.field(default_factory=dict)
    load: LoadParts | None = None

    def update(
        self,
        users: pl.Series,
        times: pl.Series,
        keys: pl.Series,
        better_keys: Sequence[pl.Series] = (),
    ) -> pl.Series:
        """Find events of earlier calls, and remember the others.

        Args:
            users: The user of each event.
            times: The time of each event.
            keys: The key of each event; null for an event that has none.
            better_keys: More keys by which an earlier call can have had each event.

        Returns:
            Whether an earlier call had the event.
        """
        keyed = keys.is_not_null()
        if self.possible_duplicates is not None:
            hashes = keys.hash()
            keyed &= hashes.is_in(self.possible_duplicates.implode())
        rows = keyed.arg_true()
        names = users.gather(rows).to_list()
        microseconds = times.gather(rows).to_physical().to_numpy()
        digests, *better = (_compute_digests(each.gather(rows)) for each in (keys, *better_keys))
        seen, limit = np.zeros(len(names), dtype=np.bool_), None
        if self.possible_duplicates is None:
            limit = _MAX_SEEN_KEYS
        groups: dict[str | None, list[int]] = {}
        for position, name in enumerate(names):
            groups.setdefault(name, []).append(position)
        for name, positions in groups.items():
            known, new = self.seen_events.get(name), np.array(positions)
            if known is None:
                known = self.seen_events[name] = SeenEvents.make_empty()
            else:
                found = np.zeros(len(new), dtype=np.bool_)
                for each in (digests, *better):
                    found |= known.find(each[:, new], microseconds[new], name, self.load)
                if found.any():
                    seen[new], new = found, new[~found]
            new = new[_find_first(digests[:, new])]
            known.add(microseconds[new], digests[:, new], limit)
        marks = np.zeros(len(keys), dtype=np.bool_)
        marks[rows.to_numpy()] = seen
        return pl.Series(marks)


def _find_first(digests: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the position of each different digest among (2, n), ascending."""
    if digests.shape[1] == 1:
        return np.zeros(1, dtype=np.intp)
    first: dict[tuple[int, int], int] = {}
    for position, digest in enumerate(zip(*digests.tolist(), strict=True)):
        first.setdefault(digest, position)
    return np.array(list(first.values()), dtype=np.intp)


def _compute_digests(keys: pl.Series) -> NDArray[np.uint64]:
    """Return the digest of each key as two numbers, (2, keys); 0 for no key."""
    # Stable from release to release, which the hash of Polars is not.
    digests = [
        bytes(DIGEST_SIZE)
        if key is None
        else blake2b(key.encode(), digest_size=DIGEST_SIZE).digest()
        for key in keys
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2).T
