"""Keyed state: the live states of one process, and the stores that keep them between runs."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from morpheus.core.state import State, StateKey, decode_state
from morpheus.errors import TransientError, UsageError

logger = logging.getLogger(__name__)

SavedStates = Mapping[StateKey, bytes]
"""Encoded states by stage and user: what crosses to worker processes and what stores keep."""

_FORMAT = 1
_CHUNK = 500  # SQLite allows 32,766 variables in a statement; short statements plan faster.


class StateStore(Protocol):
    """Keeps encoded states between runs.

    `save` may be called many times; nothing is durable before `commit`, and everything is after.
    """

    def load(self, users: Iterable[str | None]) -> dict[StateKey, bytes]:
        """Return the saved states of some users, of all stages."""

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, of all users."""

    def save(self, states: SavedStates) -> None:
        """Take changed states over."""

    def commit(self) -> None:
        """Make what was saved durable, all of it or nothing."""

    def close(self) -> None:
        """Release the store; what was not committed is dropped."""


@dataclass
class MemoryStateStore:
    """A store that lasts as long as the process: for tests, and for the states of one job.

    Attributes:
        committed: States that were committed, by user and stage.
        pending: States that were saved since.
    """

    committed: dict[str | None, dict[str, bytes]] = field(default_factory=dict)
    pending: dict[str | None, dict[str, bytes]] = field(default_factory=dict)

    @classmethod
    def from_states(cls, states: SavedStates) -> MemoryStateStore:
        """Make a store that holds some states."""
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
        """Take changed states over."""
        for key, data in states.items():
            self.pending.setdefault(key.user, {})[key.stage] = data

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, of all users."""
        states = self.load([*self.committed, *self.pending])
        return {key: data for key, data in states.items() if key.stage == stage}

    def changed(self) -> dict[StateKey, bytes]:
        """Return what was saved since the last commit."""
        return {
            StateKey(stage, user): data
            for user, states in self.pending.items()
            for stage, data in states.items()
        }

    def commit(self) -> None:
        """Keep what was saved."""
        for user, states in self.pending.items():
            self.committed.setdefault(user, {}).update(states)
        self.pending = {}

    def close(self) -> None:
        """Drop what was not committed."""
        self.pending = {}


class SqliteStateStore:
    """A store in one SQLite file, in WAL mode, synced at each commit.

    The file is bound to a configuration: the options that shape what states mean. A file of another
    configuration is refused.

    Args:
        path: The file; it is created, readable by its owner only.
        config: Names and values of the options that shape states.

    Raises:
        UsageError: The file is no state file, or belongs to another configuration.
        TransientError: The file is in use by another run, or cannot be opened.
    """

    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        self.path = path
        with self._translate_errors():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, stat.S_IRUSR | stat.S_IWUSR))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            try:
                self._open(config)
            except BaseException:
                self._db.close()
                raise

    def load(self, users: Iterable[str | None]) -> dict[StateKey, bytes]:
        """Return the saved states of some users, of all stages."""
        found: dict[StateKey, bytes] = {}
        keys = [_user_key(user) for user in dict.fromkeys(users)]
        with self._translate_errors():
            for start in range(0, len(keys), _CHUNK):
                part = keys[start : start + _CHUNK]
                marks = ", ".join("?" * len(part))
                query = f"SELECT stage, user, data FROM states WHERE user IN ({marks})"  # noqa: S608 - only question marks are put in
                for stage, user, data in self._db.execute(query, part):
                    found[StateKey(stage, _parse_user(user))] = data
        return found

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, of all users."""
        with self._translate_errors():
            rows = self._db.execute("SELECT user, data FROM states WHERE stage = ?", [stage])
            return {StateKey(stage, _parse_user(user)): data for user, data in rows}

    def save(self, states: SavedStates) -> None:
        """Take changed states over, within the transaction of this run."""
        rows = [(key.stage, _user_key(key.user), data) for key, data in states.items()]
        with self._translate_errors():
            self._db.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", rows)

    def commit(self) -> None:
        """Make what was saved durable, and begin the next transaction."""
        with self._translate_errors():
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Release the file; what was not committed is rolled back."""
        with self._translate_errors():
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    def _open(self, config: Mapping[str, object]) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # One writer at a time: two runs that read the same state would both score the same events.
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS states "
            "(stage TEXT, user TEXT, data BLOB, PRIMARY KEY (user, stage)) WITHOUT ROWID"
        )
        wanted = {name: json.dumps(value) for name, value in config.items()}
        wanted["format"] = json.dumps(_FORMAT)
        known = dict(self._db.execute("SELECT key, value FROM meta"))
        if known:
            self._check_config(known, wanted)
        else:
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", wanted.items())

    def _check_config(self, known: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        for name in sorted(wanted.keys() & known.keys()):
            if known[name] != wanted[name]:
                raise UsageError(
                    f"--state: `{self.path}` was written with another {name}: {known[name]} then, "
                    f"{wanted[name]} now. Use the same options, or give another --state file."
                )
        new = {name: wanted[name] for name in wanted.keys() - known.keys()}
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", new.items())

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
                raise TransientError(f"--state: `{self.path}`: {error}.") from error
            raise UsageError(
                f"--state: `{self.path}` is not a state file of morpheus: {error}. Give another "
                "file name, or delete the file to begin anew."
            ) from error
        except OSError as error:
            raise UsageError(
                f"--state: `{self.path}` cannot be opened: {error.strerror}. Give a file in a "
                "folder that exists and can be written."
            ) from error


def _user_key(user: str | None) -> str:
    """Spell a user as a key: SQLite's NULL never equals itself, so no user is the empty text."""
    return "" if user is None else f"={user}"


def _parse_user(key: str) -> str | None:
    return key[1:] if key else None


@dataclass
class KeyedStates:
    """The live states of one process.

    Attributes:
        saved: Encoded states to restore from.
        live: States in use, by user and stage.
    """

    saved: SavedStates = field(default_factory=dict)
    live: dict[str | None, dict[str, Any]] = field(default_factory=dict)

    def get(self, key: StateKey, open_state: Callable[[], Any]) -> Any:  # noqa: ANN401 - each stage has its own
        """Return the state of a key: the live one, the saved one, or a new one.

        Args:
            key: Stage and user.
            open_state: Makes the state of a new user. The class of what it returns says how a saved
                state is decoded.
        """
        states = self.live.setdefault(key.user, {})
        if key.stage not in states:
            state = open_state()
            data = self.saved.get(key)
            if data is not None and isinstance(state, State):
                state = decode_state(type(state), data)
            states[key.stage] = state
        return states[key.stage]

    def has(self, key: StateKey) -> bool:
        """Return whether a key has a live state."""
        return key.stage in self.live.get(key.user, {})

    def pop(self, key: StateKey) -> Any:  # noqa: ANN401 - each stage has its own
        """Remove a live state and return it."""
        states = self.live.get(key.user, {})
        state = states.pop(key.stage, None)
        if not states:
            self.live.pop(key.user, None)
        return state

    def users(self, stage: str) -> list[str | None]:
        """Users with a live state of a stage, in the order in which they came."""
        return [user for user, states in self.live.items() if stage in states]
