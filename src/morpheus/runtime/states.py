"""Stores that keep encoded states between runs: in memory, and in a SQLite file."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from zlib import crc32

from morpheus.core.state import StateKey
from morpheus.errors import TransientError, UsageError

logger = logging.getLogger(__name__)

SavedStates = Mapping[StateKey, bytes]
"""Encoded states by stage and user: the form in which stores keep them and workers get them."""

_FORMAT = 2
_CHUNK = 500  # SQLite allows 32,766 variables in a statement; short statements plan faster.
_CHECKSUM_SIZE = 4
_LOCK_SECONDS = 5.0
_SHOWN_VALUES = 3


class StateStore(Protocol):
    """Keeps encoded states between runs.

    Call `save` any number of times. Saved states become durable with `commit`, all at once.
    """

    def load(self, users: Iterable[str | None]) -> dict[StateKey, bytes]:
        """Return the saved states of some users, for all stages."""

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, for all users."""

    def save(self, states: SavedStates) -> None:
        """Save changed states until the next commit."""

    def commit(self) -> None:
        """Make all saved states durable, in one transaction."""

    def close(self) -> None:
        """Release the store. States that were not committed are dropped."""


@dataclass
class MemoryStateStore:
    """A store that lasts as long as the process, for tests and for the states of one worker task.

    Attributes:
        committed: States that were committed, by user and stage.
        pending: States that were saved after the last commit.
    """

    committed: dict[str | None, dict[str, bytes]] = field(default_factory=dict)
    pending: dict[str | None, dict[str, bytes]] = field(default_factory=dict)

    @classmethod
    def from_states(cls, states: SavedStates) -> MemoryStateStore:
        """Make a store that contains some states."""
        store = cls()
        store.save(states)
        store.commit()
        return store

    def load(self, users: Iterable[str | None]) -> dict[StateKey, bytes]:
        """Return the saved states of some users."""
        return {
            StateKey(stage, user): data
            for user in users
            for stage, data in (self.committed.get(user, {}) | self.pending.get(user, {})).items()
        }

    def save(self, states: SavedStates) -> None:
        """Save changed states until the next commit."""
        for key, data in states.items():
            self.pending.setdefault(key.user, {})[key.stage] = data

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, for all users."""
        states = self.load([*self.committed, *self.pending])
        return {key: data for key, data in states.items() if key.stage == stage}

    def changed(self) -> dict[StateKey, bytes]:
        """Return the states that were saved after the last commit."""
        return {
            StateKey(stage, user): data
            for user, states in self.pending.items()
            for stage, data in states.items()
        }

    def commit(self) -> None:
        """Move saved states to the committed ones."""
        for user, states in self.pending.items():
            self.committed.setdefault(user, {}).update(states)
        self.pending = {}

    def close(self) -> None:
        """Drop states that were not committed."""
        self.pending = {}


class SqliteStateStore:
    """A store in one SQLite file, in WAL mode, synced at each commit.

    The file is bound to the options that determine what states mean. A file with other values of
    these options is rejected.

    Args:
        path: The file. It is created with mode 0600 if it does not exist.
        config: Names and values of the options that determine what states mean.

    Raises:
        UsageError: The file is not a state file, or was written with other options.
        TransientError: The file is in use by another run, or cannot be opened.
    """

    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        self.path = path
        with self._translate_errors():
            # SQLite gives its own files beside it, `-wal` and `-shm`, the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, stat.S_IRUSR | stat.S_IWUSR))
            # An absolute path, because SQLite takes some names, such as `:memory:`, for no file.
            self._db = sqlite3.connect(path.absolute(), isolation_level=None, timeout=_LOCK_SECONDS)
            try:
                self._open(config)
            except BaseException:
                self._db.close()
                raise

    def load(self, users: Iterable[str | None]) -> dict[StateKey, bytes]:
        """Return the saved states of some users, for all stages."""
        states: dict[StateKey, bytes] = {}
        keys = [_user_key(user) for user in dict.fromkeys(users)]
        with self._translate_errors():
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                marks = ", ".join("?" * len(chunk))
                query = f"SELECT stage, user, data FROM states WHERE user IN ({marks})"  # noqa: S608 - only question marks are put in
                for stage, user, data in self._db.execute(query, chunk):
                    states[StateKey(stage, _parse_user(user))] = self._check(data)
        return states

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, for all users."""
        with self._translate_errors():
            rows = self._db.execute("SELECT user, data FROM states WHERE stage = ?", [stage])
            return {StateKey(stage, _parse_user(user)): self._check(data) for user, data in rows}

    def save(self, states: SavedStates) -> None:
        """Save changed states in the transaction of this run."""
        now = int(time.time())
        rows = (
            (key.stage, _user_key(key.user), _checksum(data) + data, now)
            for key, data in states.items()
        )
        with self._translate_errors():
            self._db.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", rows)

    def list_users(self) -> dict[str | None, datetime]:
        """Return the time of the latest save of each user, in UTC."""
        with self._translate_errors():
            rows = self._db.execute("SELECT user, MAX(saved) FROM states GROUP BY user")
            return {_parse_user(user): datetime.fromtimestamp(saved, UTC) for user, saved in rows}

    def remove(self, users: Iterable[str | None]) -> None:
        """Remove all states of some users at once, also from the free space of the file."""
        with self._translate_errors():
            keys = [(_user_key(user),) for user in users]
            self._db.executemany("DELETE FROM states WHERE user = ?", keys)
            self._db.execute("COMMIT")
            self._db.execute("VACUUM")
            self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make all saved states durable, and begin the next transaction."""
        with self._translate_errors():
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Release the file. States that were not committed are rolled back."""
        with self._translate_errors():
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    def _check(self, data: bytes) -> bytes:
        """Return a state without its checksum. SQLite itself would not notice changed bytes."""
        state = data[_CHECKSUM_SIZE:]
        if data[:_CHECKSUM_SIZE] != _checksum(state):
            raise UsageError(self._damaged_message("a state does not match its checksum"))
        return state

    def _damaged_message(self, reason: object) -> str:
        return (
            f"--state: `{self.path}` is not a state file of morpheus, or is damaged: {reason}. "
            "Give another file name. To start again from the first input, delete the file."
        )

    def _open(self, config: Mapping[str, object]) -> None:
        # Before anything is written: the file may be another program's.
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        if tables and not tables >= {"meta", "states"}:
            raise UsageError(self._damaged_message(f"it has the table `{min(tables)}`"))
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # One writer at a time: two runs that read the same state would both score the same events.
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS states "
            "(stage TEXT, user TEXT, data BLOB, saved INTEGER, PRIMARY KEY (user, stage)) "
            "WITHOUT ROWID"
        )
        wanted = {name: json.dumps(value) for name, value in config.items()}
        wanted["format"] = json.dumps(_FORMAT)
        stored = dict(self._db.execute("SELECT key, value FROM meta"))
        if stored:
            self._check_config(stored, wanted)
        else:
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", wanted.items())

    def _check_config(self, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        for name in sorted(wanted.keys() & stored.keys()):
            if stored[name] != wanted[name]:
                before, now = _describe_change(json.loads(stored[name]), json.loads(wanted[name]))
                raise UsageError(
                    f"--state: `{self.path}` was written with another {name}: {before} then, "
                    f"{now} now. Use the same options, or give another --state file."
                )
        new = {name: wanted[name] for name in wanted.keys() - stored.keys()}
        # Writing something, even the same, shows at once whether the file can be written.
        new["format"] = wanted["format"]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", new.items())

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise TransientError(
                    f"--state: `{self.path}` is in use by another run. Wait until it has ended."
                ) from error
            if isinstance(error, sqlite3.OperationalError):
                raise TransientError(
                    f"--state: `{self.path}`: {error}. Check that the file and its folder can be "
                    "written, and that the disk has space."
                ) from error
            raise UsageError(self._damaged_message(error)) from error
        except UnicodeDecodeError as error:
            raise UsageError(self._damaged_message("a name is not UTF-8 text")) from error
        except OSError as error:
            raise UsageError(
                f"--state: `{self.path}` cannot be opened: {error.strerror}. Give a file in a "
                "folder that exists and can be written."
            ) from error


def _checksum(data: bytes) -> bytes:
    return crc32(data).to_bytes(_CHECKSUM_SIZE, "big")


def _describe_change(before: object, now: object) -> tuple[str, str]:
    """Describe two values of an option; of two lists, what only one of them has."""
    if isinstance(before, list) and isinstance(now, list):
        parts = (
            [each for each in one if each not in other] or ["another order"]
            for one, other in ((before, now), (now, before))
        )
        first, second = (", ".join(map(str, part[:_SHOWN_VALUES])) for part in parts)
        return first, second
    return str(before) or "none", str(now) or "none"


def _user_key(user: str | None) -> str:
    """Return the key of a user. No user is the empty text, because NULL never equals itself."""
    return "" if user is None else f"={user}"


def _parse_user(key: str) -> str | None:
    return key[1:] if key else None
