"""Stores that keep encoded states between runs: in memory, and in a SQLite file.

The file also has what only endless runs keep: the offsets of the source, the outbox of rows that
sinks have not taken yet, and how far each sink has come. One transaction changes all of it.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import msgspec

from morpheus.core.state import PARTS, StateKey, part_key
from morpheus.errors import TransientError, UsageError

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock has to do
    _FCNTL: ModuleType | None = None
else:
    _FCNTL = fcntl

logger = logging.getLogger(__name__)

SavedStates = Mapping[StateKey, bytes]
"""Encoded states by stage and user: the form in which stores keep them and workers get them."""

_FORMAT = 3
_READ_FORMATS = (2, _FORMAT)
"""Formats of files that are read. A file becomes one of the latest format with the first commit, so
that a release that knows no parts of states rejects it, and does not score late copies again."""
_CHUNK = 500  # SQLite allows 32,766 variables in a statement; short statements plan faster.
_CHECKSUM_SIZE = 4
_LOCK_SECONDS = 5.0
_SHOWN_VALUES = 3
_PAGE_BYTES = 1 << 14
"""Size of the pages of a new file. A state takes some kilobytes; with SQLite's 4,096 bytes, most
states have a page of their own, and a checkpoint writes twice as much."""


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

    def remove_older(self, age: timedelta) -> list[str]:
        """Remove the states of users that no run has changed for some time; return the users."""

    def commit(self) -> None:
        """Make all saved states durable, in one transaction."""

    def close(self) -> None:
        """Release the store. States that were not committed are dropped."""


class MemoryStateStore(msgspec.Struct):
    """A store that lasts as long as the process, for tests and for the states of one worker task.

    Attributes:
        committed: States that were committed, by user and stage.
        pending: States that were saved after the last commit.
    """

    committed: dict[str | None, dict[str, bytes]] = msgspec.field(default_factory=dict)
    pending: dict[str | None, dict[str, bytes]] = msgspec.field(default_factory=dict)

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

    def remove_older(self, age: timedelta) -> list[str]:  # noqa: ARG002 - the states have no times
        """Return no user."""
        return []

    def commit(self) -> None:
        """Move saved states to the committed ones."""
        for user, states in self.pending.items():
            self.committed.setdefault(user, {}).update(states)
        self.pending = {}

    def close(self) -> None:
        """Drop states that were not committed."""
        self.pending = {}


class OutboxEntry(NamedTuple):
    """Rows on their way to the sinks at one place of the pipeline.

    Attributes:
        number: Its number; later entries have higher ones.
        data: The rows, encoded.
    """

    number: int
    data: bytes


class SinkProgress(msgspec.Struct):
    """How far a sink has come in the outbox.

    Attributes:
        delivered: Number of the last entry that it has taken.
        position: What it needs in order to go on there; see `Sink.sync`.
        places: Where it writes to, with the full paths; None in a state of earlier versions.
    """

    delivered: int = 0
    position: dict[str, bytes] = msgspec.field(default_factory=dict)
    places: list[str] | None = None


_WRITES_TO = "@writes_to"
"""Name under which the places of a sink are saved with its position."""


CHANGELOG_FACT = "changelog_topic"
"""Fact of a file: the topic that the states of users are in, too. It binds the file to nothing."""
_STATE_TABLES = _STATES, _PARTS = "states", "parts"
"""Tables of states. Parts of states do not change, so they are not between those that do: a
checkpoint writes whole pages."""
_TABLES = (
    "meta (key TEXT PRIMARY KEY, value TEXT)",
    *(
        f"""{name} (stage TEXT, user TEXT, data BLOB, saved INTEGER, PRIMARY KEY (user, stage))
        WITHOUT ROWID"""
        for name in _STATE_TABLES
    ),
    "offsets (name TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID",
    "outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT, data BLOB)",
    "sinks (sink TEXT PRIMARY KEY, place TEXT, delivered INTEGER) WITHOUT ROWID",
    "positions (sink TEXT, name TEXT, data BLOB, PRIMARY KEY (sink, name)) WITHOUT ROWID",
    "journal (number INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB)",
)


class SqliteStateStore:
    """A store in one SQLite file, in WAL mode, synced at each commit.

    Only one process at a time can have it open; `OutboxReader` reads beside it. The file is bound
    to the options that determine what states mean. A file with other values of these options is
    rejected.

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
            self._file = os.open(path, os.O_CREAT | os.O_RDWR, stat.S_IRUSR | stat.S_IWUSR)
            try:
                self._lock()
                # Absolute, because SQLite takes some names, such as `:memory:`, for no file.
                self._db = sqlite3.connect(
                    path.absolute(), isolation_level=None, timeout=_LOCK_SECONDS
                )
            except BaseException:
                os.close(self._file)
                raise
            try:
                self._open(config)
            except BaseException:
                self._db.close()
                os.close(self._file)
                raise

    def load(
        self, users: Iterable[str | None], *, with_parts: bool = True
    ) -> dict[StateKey, bytes]:
        """Return the saved states of some users, for all stages.

        Args:
            users: The users.
            with_parts: Also return the parts of the states of the source.
        """
        states: dict[StateKey, bytes] = {}
        keys = [_user_key(user) for user in dict.fromkeys(users)]
        with self._translate_errors():
            for table in _STATE_TABLES if with_parts else (_STATES,):
                for start in range(0, len(keys), _CHUNK):
                    chunk = keys[start : start + _CHUNK]
                    marks = ", ".join("?" * len(chunk))
                    query = f"SELECT stage, user, data FROM {table} WHERE user IN ({marks})"  # noqa: S608 - a constant and question marks are put in
                    for stage, user, data in self._db.execute(query, chunk):
                        states[StateKey(stage, _parse_user(user))] = self._check(data)
        return states

    def load_parts(self, user: str | None, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield parts of the state of the source for a user."""
        query = "SELECT data FROM parts WHERE user = ? AND stage = ?"
        for number in numbers:
            with self._translate_errors():
                row = self._db.execute(query, (_user_key(user), part_key(user, number).stage))
                found = row.fetchone()
            if found is not None:
                yield self._check(found[0])

    def load_stage(self, stage: str) -> dict[StateKey, bytes]:
        """Return the saved states of a stage, for all users."""
        with self._translate_errors():
            rows = self._db.execute("SELECT user, data FROM states WHERE stage = ?", [stage])
            return {StateKey(stage, _parse_user(user)): self._check(data) for user, data in rows}

    def save(self, states: SavedStates) -> None:
        """Save changed states in the transaction of this run."""
        now = int(time.time())
        # In the order of the table, rows of neighbouring users are in the same pages.
        keys = sorted((_user_key(key.user), key.stage, key) for key in states)
        parts = [each for each in keys if each[1].startswith(PARTS)]
        whole = [each for each in keys if not each[1].startswith(PARTS)] if parts else keys
        with self._translate_errors():
            for table, chosen in ((_STATES, whole), (_PARTS, parts)):
                rows = (
                    (stage, user, _checksum(data := states[key]) + data, now)
                    for user, stage, key in chosen
                )
                # A state that has not changed keeps its time.
                self._db.executemany(
                    f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (user, stage) DO UPDATE "  # noqa: S608 - a constant is put in
                    "SET data = excluded.data, saved = excluded.saved "
                    "WHERE data IS NOT excluded.data",
                    rows,
                )

    def load_offsets(self) -> dict[str, bytes]:
        """Return the offsets of the source, by its partition."""
        with self._translate_errors():
            rows = self._db.execute("SELECT name, data FROM offsets")
            return {name: self._check(data) for name, data in rows}

    def save_offsets(self, offsets: Mapping[str, bytes]) -> None:
        """Save changed offsets; empty bytes remove one."""
        self._save_parts("offsets (name, data)", "offsets WHERE name = ?", (), offsets)

    def add_to_outbox(self, place: str, data: bytes) -> int:
        """Keep rows until every sink of a place of the pipeline has taken them.

        Returns:
            The number of the entry.
        """
        with self._translate_errors():
            row = (place, _checksum(data) + data)
            return int(
                self._db.execute("INSERT INTO outbox (place, data) VALUES (?, ?)", row).lastrowid
                or 0
            )

    def list_newest(self) -> dict[str, int]:
        """Return the number of the latest entry of the outbox, by place."""
        with self._translate_errors():
            return dict(self._db.execute("SELECT place, MAX(number) FROM outbox GROUP BY place"))

    def measure_outbox(self) -> tuple[int, int]:
        """Return the number of entries in the outbox, and their bytes."""
        with self._translate_errors():
            query = "SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0) FROM outbox"
            entries, size = self._db.execute(query).fetchone()
            return int(entries), int(size)

    def add_to_journal(self, data: bytes) -> None:
        """Keep a micro-batch whose rows are in the outbox, but not its states."""
        with self._translate_errors():
            self._db.execute("INSERT INTO journal (data) VALUES (?)", [_checksum(data) + data])

    def load_journal(self) -> list[bytes]:
        """Return the micro-batches since the states were saved, in order."""
        with self._translate_errors():
            rows = self._db.execute("SELECT data FROM journal ORDER BY number")
            return [self._check(data) for (data,) in rows]

    def clear_journal(self) -> None:
        """Forget the micro-batches, because their states are saved too."""
        with self._translate_errors():
            self._db.execute("DELETE FROM journal")

    def load_sinks(self) -> dict[str, SinkProgress]:
        """Return how far each sink has come."""
        with self._translate_errors():
            rows = self._db.execute("SELECT sink, delivered FROM sinks")
            sinks = {sink: SinkProgress(delivered) for sink, delivered in rows}
            for sink, name, data in self._db.execute("SELECT sink, name, data FROM positions"):
                if sink in sinks and name == _WRITES_TO:
                    sinks[sink].places = msgspec.json.decode(self._check(data), type=list[str])
                elif sink in sinks:
                    sinks[sink].position[name] = self._check(data)
            return sinks

    def save_sink(self, sink: str, place: str, progress: SinkProgress) -> None:
        """Save how far a sink has come; of its position and its places, only what has changed."""
        with self._translate_errors():
            row = (sink, place, progress.delivered)
            self._db.execute("INSERT OR REPLACE INTO sinks VALUES (?, ?, ?)", row)
        self._save_parts(
            "positions (sink, name, data)",
            "positions WHERE sink = ? AND name = ?",
            (sink,),
            progress.position
            | (
                {}
                if progress.places is None
                else {_WRITES_TO: msgspec.json.encode(progress.places)}
            ),
        )

    def remove_sink(self, sink: str) -> None:
        """Forget a sink that the pipeline does not have any more."""
        with self._translate_errors():
            self._db.execute("DELETE FROM sinks WHERE sink = ?", [sink])
            self._db.execute("DELETE FROM positions WHERE sink = ?", [sink])

    def count_undelivered(self, sink: str) -> int:
        """Return the number of entries that a sink has not taken."""
        query = (
            "SELECT COUNT(*) FROM outbox JOIN sinks USING (place) WHERE sink = ? AND "
            "number > delivered"
        )
        with self._translate_errors():
            return int(self._db.execute(query, [sink]).fetchone()[0])

    def trim_outbox(self) -> None:
        """Remove the entries that every sink of their place has taken."""
        with self._translate_errors():
            self._db.execute(
                "DELETE FROM outbox WHERE number <= COALESCE((SELECT MIN(delivered) FROM sinks "
                "WHERE sinks.place = outbox.place), number)"
            )

    def open_reader(self) -> OutboxReader:
        """Open a connection that reads the committed entries of the outbox, in another thread."""
        return OutboxReader(self.path)

    def _save_parts(
        self, columns: str, where: str, key: tuple[str, ...], parts: Mapping[str, bytes]
    ) -> None:
        marks = ", ".join("?" * (len(key) + 2))
        gone = [(*key, name) for name, data in parts.items() if not data]
        rows = [(*key, name, _checksum(data) + data) for name, data in parts.items() if data]
        with self._translate_errors():
            self._db.executemany(f"INSERT OR REPLACE INTO {columns} VALUES ({marks})", rows)  # noqa: S608 - constants of this module
            self._db.executemany(f"DELETE FROM {where}", gone)  # noqa: S608 - constants of this module

    def list_users(self) -> dict[str | None, datetime]:
        """Return the time of the latest save of each user, in UTC."""
        with self._translate_errors():
            rows = self._db.execute("SELECT user, MAX(saved) FROM states GROUP BY user")
            return {_parse_user(user): datetime.fromtimestamp(saved, UTC) for user, saved in rows}

    def remove(self, users: Iterable[str | None]) -> None:
        """Remove all states of some users at once, also from the free space of the file."""
        with self._translate_errors():
            self._delete_users(map(_user_key, users))
            self._overwrite_removed()

    def drop_users(self, users: Iterable[str | None] | None = None) -> None:
        """Remove all states of some users with the next commit; None for all who have a name."""
        with self._translate_errors():
            if users is None:
                for table in _STATE_TABLES:
                    self._db.execute(f"DELETE FROM {table} WHERE user != ''")  # noqa: S608 - a constant is put in
                return
            self._delete_users(map(_user_key, users))

    def _delete_users(self, keys: Iterable[str]) -> None:
        rows = [(key,) for key in keys]
        for table in _STATE_TABLES:
            self._db.executemany(f"DELETE FROM {table} WHERE user = ?", rows)  # noqa: S608 - a constant is put in

    def note_changelog(self, topic: str | None) -> None:
        """Keep the name of the topic that the states of users are in, too; None for none."""
        with self._translate_errors():
            self._db.execute("DELETE FROM meta WHERE key = ?", [CHANGELOG_FACT])
            if topic is not None:
                values = CHANGELOG_FACT, json.dumps(topic)
                self._db.execute("INSERT INTO meta VALUES (?, ?)", values)

    def _overwrite_removed(self) -> None:
        """Commit, and overwrite what was removed, in the file itself.

        Raises:
            TransientError: Another process reads the file, so that parts of it have to stay.
        """
        self._db.execute("COMMIT")
        self._db.execute("VACUUM")
        is_read, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_read:
            raise TransientError(
                f"--state: `{self.path}` is being read by another process, so what was removed is "
                "not overwritten yet. Run the command again when that has ended."
            )
        self._db.execute("BEGIN IMMEDIATE")

    def remove_older(self, age: timedelta) -> list[str]:
        """Remove the states of users that no run has changed for some time.

        Returns:
            The users.
        """
        query = (
            "SELECT user FROM states WHERE user != '' GROUP BY user HAVING MAX(saved) < ? "
            "ORDER BY user"
        )
        with self._translate_errors():
            cutoff = time.time() - age.total_seconds()
            keys = [key for (key,) in self._db.execute(query, [cutoff])]
            if keys:
                # What is removed is overwritten, also where the file does not get smaller.
                self._db.execute("PRAGMA secure_delete=ON")
                self._delete_users(keys)
                self._db.execute("PRAGMA secure_delete=OFF")
        return [key[1:] for key in keys]

    def remove_states(self, keys: Iterable[StateKey]) -> None:
        """Remove some states at once, also from the free space of the file.

        A stage without a state is no longer bound to its options.
        """
        rows = [(key.stage, _user_key(key.user)) for key in keys]
        with self._translate_errors():
            for table in _STATE_TABLES:
                self._db.executemany(f"DELETE FROM {table} WHERE stage = ? AND user = ?", rows)  # noqa: S608 - a constant is put in
            left = {stage for (stage,) in self._db.execute("SELECT DISTINCT stage FROM states")}
            for stage in {stage for stage, _ in rows} - left:
                prefix = f"{stage.removesuffix('#1')} --"
                query = "DELETE FROM meta WHERE SUBSTR(key, 1, ?) = ?"
                self._db.execute(query, [len(prefix), prefix])
            self._overwrite_removed()

    def commit(self) -> None:
        """Make all saved states durable, and begin the next transaction."""
        with self._translate_errors():
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")
            self._warn_if_gone()

    def _warn_if_gone(self) -> None:
        """Warn if the path leads to another file by now, or to none: no run will find this one."""
        try:
            is_there = os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            logger.warning(
                "--state: `%s` was moved, removed or replaced while this run has it open. What the "
                "run remembers is lost when it ends. Move the file back, or stop the run and "
                "restore the file from a copy.",
                self.path,
            )

    def close(self) -> None:
        """Release the file. States that were not committed are rolled back."""
        with self._translate_errors():
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._empty_log()
            self._db.close()
            # Last, for a process that closes a file gives up SQLite's locks on it.
            os.close(self._file)

    def _empty_log(self) -> None:
        """Move what is committed from SQLite's log into the file. It is durable also without."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            logger.warning(
                "--state: `%s` cannot grow: %s. All that was saved is in it and in `%s-wal`: keep "
                "both files together. The next run joins them, if the disk has space.",
                *(self.path, error, self.path.name),
            )

    def _lock(self) -> None:
        """Keep other runs away, also between two transactions.

        Raises:
            TransientError: Another run has the file open.
        """
        if _FCNTL is None:
            return
        try:
            _FCNTL.flock(self._file, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        except BlockingIOError as error:
            raise TransientError(self._in_use_message()) from error
        except OSError:
            return  # a file system without such locks

    def _in_use_message(self) -> str:
        return f"--state: `{self.path}` is in use by another run. Wait until it has ended."

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
        self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        # One writer at a time: two runs that read the same state would both score the same events.
        self._db.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        wanted = {name: json.dumps(value) for name, value in config.items()}
        stored = dict(self._db.execute("SELECT key, value FROM meta"))
        self._check_format(stored)
        self._check_config(stored, wanted)
        if stored.get("format") == json.dumps(_READ_FORMATS[0]):
            self._move_parts()
        new = {name: wanted[name] for name in wanted.keys() - stored.keys()}
        # Writing something, even the same, shows at once whether the file can be written.
        new["format"] = json.dumps(_FORMAT)
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", new.items())

    def _move_parts(self) -> None:
        """Give the parts of a file of format 2 their own table: some releases had none for them."""
        chosen, values = "WHERE SUBSTR(stage, 1, ?) = ?", (len(PARTS), PARTS)
        self._db.execute(f"INSERT OR REPLACE INTO parts SELECT * FROM states {chosen}", values)  # noqa: S608 - a constant is put in
        self._db.execute(f"DELETE FROM states {chosen}", values)  # noqa: S608 - the same

    def _check_format(self, stored: Mapping[str, str]) -> None:
        found = stored.get("format", json.dumps(_FORMAT))
        if found not in map(json.dumps, _READ_FORMATS):
            raise UsageError(
                f"--state: `{self.path}` has format {found}, and this release reads "
                f"{' and '.join(map(str, _READ_FORMATS))}. Use the release that wrote the file, or "
                "give another --state file."
            )

    def _check_config(self, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        for name in sorted(wanted.keys() & stored.keys()):
            if stored[name] != wanted[name]:
                before, now = _describe_change(json.loads(stored[name]), json.loads(wanted[name]))
                raise UsageError(
                    f"--state: `{self.path}` was written with another {name}: {before} then, "
                    f"{now} now. Use the same options, or give another --state file."
                )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise TransientError(self._in_use_message()) from error
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


class OutboxReader:
    """Reads the committed entries of an outbox while a run writes others.

    Args:
        path: The state file.
    """

    def __init__(self, path: Path) -> None:
        location = f"{path.absolute().as_uri()}?mode=ro"
        self._db = sqlite3.connect(location, uri=True, timeout=_LOCK_SECONDS)

    def next(self, place: str, number: int) -> OutboxEntry | None:
        """Return the first entry of a place of the pipeline after a number; None if there is none.

        Raises:
            TransientError: The file cannot be read.
        """
        query = (
            "SELECT number, data FROM outbox WHERE place = ? AND number > ? ORDER BY number LIMIT 1"
        )
        try:
            row = self._db.execute(query, [place, number]).fetchone()
        except sqlite3.Error as error:
            raise TransientError(f"--state: the outbox cannot be read: {error}.") from error
        if row is None:
            return None
        data = row[1][_CHECKSUM_SIZE:]
        if row[1][:_CHECKSUM_SIZE] != _checksum(data):
            raise TransientError(
                "--state: rows that wait for a sink do not match their checksum. The disk may be "
                "damaged."
            )
        return OutboxEntry(row[0], data)

    def close(self) -> None:
        """Close the connection."""
        with suppress(sqlite3.Error):
            self._db.close()


class SavedState(NamedTuple):
    """A saved state, as `StateReader` finds it.

    Attributes:
        key: Stage and user.
        data: The encoded state; None if it is damaged.
        size: Size in bytes.
        saved: When it was saved, in UTC.
    """

    key: StateKey
    data: bytes | None
    size: int
    saved: datetime


class StateReader:
    """Reads a state file, also while a run has it open. It changes nothing.

    Args:
        path: The file.

    Attributes:
        size: Size of the file in bytes.
        in_use: Whether a run has it open.
        tables: Names of its tables.

    Raises:
        UsageError: There is no such file, or it is not a state file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            # Before SQLite opens it: a process that closes a file gives up SQLite's locks on it.
            self.in_use = _is_locked(path)
            # Without a WAL, nothing changes it, and SQLite would leave new files beside it.
            is_still = not self.in_use and not path.with_name(f"{path.name}-wal").exists()
            mode = "immutable=1" if is_still else "mode=ro"
            location = f"{path.absolute().as_uri()}?{mode}"
            self._db = sqlite3.connect(location, uri=True, timeout=_LOCK_SECONDS)
            self.tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        except (sqlite3.Error, OSError) as error:
            raise self._make_error(error) from error
        if not self.tables:
            raise UsageError(f"`{path}` has no states: no run with it has begun to read.")
        if not self.tables >= {"meta", "states"}:
            raise self._make_error("it has no states")

    def read_config(self) -> dict[str, object]:
        """Return what the file is bound to: names and values of options, and `format`."""
        rows = self._query("SELECT key, value FROM meta")
        return {name: json.loads(value) for name, value in rows}

    def read_sizes(self) -> list[tuple[StateKey, int, datetime]]:
        """Return the size in bytes and the time of the latest save of each state."""
        rows = self._query(self._select("stage, user, LENGTH(data), saved"))
        return [
            (StateKey(stage, _parse_user(user)), size - _CHECKSUM_SIZE, _to_time(saved))
            for stage, user, size, saved in rows
        ]

    def iter_states(self, users: Collection[str | None] = ()) -> Iterator[SavedState]:
        """Yield the states, by user and stage: of some users, or of all."""
        query = f"SELECT * FROM ({self._select('stage, user, data, saved')})"  # noqa: S608 - constants are put in
        keys = [_user_key(user) for user in users]
        query += f" WHERE user IN ({', '.join('?' * len(keys))})" if keys else ""
        for stage, user, stored, saved in self._query(f"{query} ORDER BY user, stage", keys):
            data = stored[_CHECKSUM_SIZE:]
            is_intact = stored[:_CHECKSUM_SIZE] == _checksum(data)
            key = StateKey(stage, _parse_user(user))
            yield SavedState(key, data if is_intact else None, len(data), _to_time(saved))

    def _select(self, columns: str) -> str:
        """Return the query of all states. A file of an earlier version has no parts."""
        tables = [name for name in _STATE_TABLES if name in self.tables]
        return " UNION ALL ".join(f"SELECT {columns} FROM {name}" for name in tables)  # noqa: S608 - constants are put in

    def read_offsets(self) -> dict[str, bytes]:
        """Return the offsets of the source, by its partition."""
        if "offsets" not in self.tables:
            return {}
        rows = self._query("SELECT name, data FROM offsets ORDER BY name")
        return {name: data[_CHECKSUM_SIZE:] for name, data in rows}

    def measure_outbox(self) -> tuple[int, int]:
        """Return the number of entries in the outbox, and their bytes."""
        if "outbox" not in self.tables:
            return 0, 0
        query = "SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0) FROM outbox"
        [(entries, size)] = self._query(query)
        return int(entries), int(size)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _query(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            # Not `yield from`, which closes the cursor, perhaps after the file.
            for row in self._db.execute(query, values):  # noqa: UP028
                yield row
        except sqlite3.Error as error:
            raise self._make_error(error) from error

    def _make_error(self, reason: object) -> UsageError:
        if not self.path.exists():
            reason = "there is no such file"
        return UsageError(f"`{self.path}` is not a state file of morpheus: {reason}.")


def _is_locked(path: Path) -> bool:
    """Return whether a run has a state file open."""
    if _FCNTL is None:
        return False
    with path.open("rb") as file:
        try:
            _FCNTL.flock(file.fileno(), _FCNTL.LOCK_SH | _FCNTL.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without such locks
            return False
    return False


def _to_time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


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
