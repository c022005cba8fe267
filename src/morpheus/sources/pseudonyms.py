"""Replaces user names and other chosen values by pseudonyms while logs are read.

A pseudonym is a keyed hash (HMAC-SHA256) of a value: `ps-1f0c-k3v7q2mzx4w5b6n7`. Equal values have
equal pseudonyms under the same key. Nobody without the key can compute or check one.
"""

from __future__ import annotations

import hmac
import logging
import re
import stat
from base64 import b32encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import msgspec
import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, IDENTITY_OPTION, INDEX, TIME
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.features.derived import DerivedColumn
from morpheus.sources.json_records import flatten_name, normalize_name
from morpheus.sources.log_format import LogFormat, resolve_derived, split_prefix
from morpheus.text import quote_backtick, suggest, suggest_path

logger = logging.getLogger(__name__)

MIN_KEY_BYTES = 32
"""Minimum length of a key file: 128 random bits as hexadecimal digits."""
PSEUDONYM = re.compile(r"ps-([0-9a-f]{4})-[a-z2-7]{16}")
"""A pseudonym; the group is the key id."""

_DIGEST_BYTES = 10  # 80 bits: a million values collide with a probability of 4e-13
_VALUE, _KEY_ID = b"value\0", b"key id\0"  # a value is never hashed as a key id, or the reverse


@dataclass(frozen=True)
class PseudonymKey:
    """A secret key.

    Attributes:
        secret: The key.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> PseudonymKey:
        """Read a key file, without white space around the key.

        Raises:
            UsageError: The file cannot be read, or the key is too short.
        """
        try:
            secret, mode = path.read_bytes().strip(), path.stat().st_mode
        except OSError as error:
            raise UsageError(
                f"--pseudonym_key_file: `{path}` cannot be read: {error.strerror}."
                f"{suggest_path(path)} Create a key with `morpheus tools pseudonym-key FILE`."
            ) from error
        if len(secret) < MIN_KEY_BYTES:
            raise UsageError(
                f"--pseudonym_key_file: `{path}` has {len(secret)} bytes; a key has at least "
                f"{MIN_KEY_BYTES}. Create one with `morpheus tools pseudonym-key FILE`."
            )
        if mode & stat.S_IROTH:
            logger.warning(
                "--pseudonym_key_file: every user of this machine can read `%s`. Type "
                "`chmod 600 %s`.",
                path,
                path,
            )
        return cls(secret)

    @cached_property
    def id(self) -> str:
        """Four hexadecimal digits that tell keys apart. They do not help to guess the key."""
        return self._digest(_KEY_ID)[:2].hex()

    def pseudonym(self, value: str) -> str:
        """Return the pseudonym of a value.

        >>> PseudonymKey(b"0" * 32).pseudonym("ann")
        'ps-08d6-xsktso2sam3gn6kg'
        """
        digest = self._digest(_VALUE + value.encode("utf-8", "surrogatepass"))[:_DIGEST_BYTES]
        return f"ps-{self.id}-{b32encode(digest).decode().lower()}"

    def _digest(self, message: bytes) -> bytes:
        return hmac.digest(self.secret, message, "sha256")


@lru_cache(maxsize=4)
def _read_key(path: Path) -> PseudonymKey:
    return PseudonymKey.read(path)


def is_pseudonym(value: str | None) -> bool:
    """Return whether a value has the form of a pseudonym."""
    return value is not None and PSEUDONYM.fullmatch(value) is not None


def check_key_id(pseudonym: str, key_id: str) -> None:
    """Reject a pseudonym that was made with another key.

    Raises:
        UsageError: Names both keys.
    """
    found = PSEUDONYM.fullmatch(pseudonym)
    if found is not None and found[1] != key_id:
        raise UsageError(
            f"`{pseudonym}` was made with key {found[1]}, but --pseudonym_key_file has key "
            f"{key_id}. Give the file of key {found[1]}."
        )


class Pseudonymizer(msgspec.Struct, frozen=True):
    """Replaces the values of some columns by pseudonyms.

    Attributes:
        key_file: File of the key. Each process reads it, so that the key is sent nowhere.
        key_id: Id of the key.
        columns: The columns, the user column first.
        derived_columns: Derived columns to compute from the original values, each after its inputs.
        other_names: Names of the same columns in other exports, without case and punctuation.
    """

    key_file: Path
    key_id: str
    columns: tuple[str, ...]
    derived_columns: Mapping[str, DerivedColumn] = msgspec.field(default_factory=dict)
    other_names: frozenset[str] = frozenset()

    @classmethod
    def from_options(
        cls, options: PipelineOptions, log_format: LogFormat, user: str
    ) -> Pseudonymizer | None:
        """Make the pseudonymizer of the options; None without `--pseudonymize`.

        Args:
            options: Options of the pipeline.
            log_format: Format of the log.
            user: Name of the user column.

        Raises:
            UsageError: An option is wrong, or the key file is not a key.
        """
        if not options.pseudonymize or options.pseudonym_key_file is None:
            check_options(options)
            return None
        columns = _resolve_columns(options.pseudonymize, log_format, user)
        path = Path(options.pseudonym_key_file).absolute()
        derived = resolve_derived(options.columns, log_format.derived_columns)
        aliases = log_format.column_aliases.items()
        other_names = [
            *map(normalize_name, columns),
            *(alias for alias, name in aliases if name in columns),
        ]
        return cls(
            path,
            _read_key(path).id,
            columns,
            _select_derived(derived, columns),
            frozenset(other_names),
        )

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the derived columns that need original values, then replace the values.

        Args:
            frame: Events with text columns.
        """
        for name, column in self.derived_columns.items():
            names = frame.columns
            absent = [pl.lit(None, pl.String).alias(n) for n in column.inputs if n not in names]
            if name not in names or len(absent) < len(column.inputs):
                values = column.compute(frame.with_columns(absent)).alias(name)
                frame = frame.with_columns(values)
        frame = frame.with_columns(self.replace(frame[name]) for name in self._find_columns(frame))
        # Columns of the log are those in front of the time.
        return frame.select(*(name for name in frame.columns if name != TIME), TIME)

    def replace(self, column: pl.Series) -> pl.Series:
        """Return a column of pseudonyms. Missing values stay missing.

        Raises:
            UsageError: The key file has changed.
        """
        key = self._get_key()
        values = column.cast(pl.String)
        distinct = values.unique().drop_nulls()
        pseudonyms = [key.pseudonym(value) for value in distinct.to_list()]
        return values.replace_strict(
            distinct, pl.Series(pseudonyms, dtype=pl.String), default=None, return_dtype=pl.String
        ).alias(column.name)

    def find_copies(self, frame: pl.DataFrame) -> frozenset[str]:
        """Return other columns of a log whose values are mostly those of replaced columns.

        Args:
            frame: Events with original values.
        """
        replaced = self._find_columns(frame)
        if not replaced:
            return frozenset()
        texts = [frame[name].cast(pl.String).unique().alias("value") for name in replaced]
        originals = pl.concat(texts).drop_nulls().unique()
        ignored = {*replaced, *self.derived_columns, INDEX, TIME}
        copies = set()
        for column in frame:
            if column.name in ignored or column.dtype != pl.String:
                continue
            values = column.drop_nulls().unique()
            if len(values) and 2 * values.is_in(originals.implode()).sum() >= len(values):
                copies.add(column.name)
        return frozenset(copies)

    def translate(self, value: str) -> str:
        """Return the pseudonym of a value; a pseudonym of this key stays what it is."""
        if is_pseudonym(value):
            check_key_id(value, self.key_id)
            return value
        return self._get_key().pseudonym(value)

    def check_columns(
        self, existing: Collection[str], copies: Collection[str], log_format: LogFormat
    ) -> None:
        """Check the columns against those of the log.

        Warns about columns that identify users and are not replaced.

        Args:
            existing: Columns with values.
            copies: Columns with values of replaced columns; see `find_copies`.
            log_format: Format of the log.

        Raises:
            UsageError: A column is in no event and unknown to the log format. If it is misspelt,
                values would stay readable.
        """
        known = {*existing, *log_format.columns, *log_format.derived_columns, ACTOR}
        for name in self.columns:
            if existing and name not in known:
                hint = suggest(name, known - {INDEX, TIME}) or " Check the name."
                raise UsageError(
                    f"--pseudonymize: no event has a column {quote_backtick(name)}.{hint}"
                )
        identifying = dict.fromkeys([*list_identity_columns(log_format), *sorted(copies)])
        readable = [name for name in identifying if name in existing and name not in self.columns]
        if readable:
            logger.warning(
                "--pseudonymize: columns that can identify users stay readable: %s. Add them to "
                "--pseudonymize, separated by commas.",
                ", ".join(map(quote_backtick, readable)),
            )

    def _find_columns(self, frame: pl.DataFrame) -> list[str]:
        return [
            name
            for name in frame.columns
            if name in self.columns
            or (name not in {INDEX, TIME} and normalize_name(name) in self.other_names)
        ]

    def _get_key(self) -> PseudonymKey:
        key = _read_key(self.key_file)
        if key.id != self.key_id:
            raise UsageError(
                f"--pseudonym_key_file: `{self.key_file}` has key {key.id}, but the run began "
                f"with key {self.key_id}. Use the same file on all machines."
            )
        return key


def check_options(options: PipelineOptions) -> None:
    """Reject one of the two options without the other.

    Raises:
        UsageError: Says which one is missing.
    """
    if options.pseudonymize and options.pseudonym_key_file is None:
        raise UsageError(
            "--pseudonymize needs a key: give `--pseudonym_key_file=FILE`. Create one with "
            "`morpheus tools pseudonym-key FILE`."
        )
    if options.pseudonym_key_file is not None and not options.pseudonymize:
        raise UsageError(
            "--pseudonym_key_file needs the columns to replace: give "
            f"`--pseudonymize={IDENTITY_OPTION}`, or column names separated by commas."
        )


def list_identity_columns(log_format: LogFormat) -> tuple[str, ...]:
    """List the columns of a log that identify users: those it names, or those of its actors."""
    if log_format.identity_columns:
        return log_format.identity_columns
    named = (name for rule in log_format.actor_rules for name in rule.name_columns)
    return tuple(dict.fromkeys([log_format.user_column, *named]))


def _resolve_columns(given: Sequence[str], log_format: LogFormat, user: str) -> tuple[str, ...]:
    """Return flat column names for the values of `--pseudonymize`."""
    names = [user]
    for word in (word.strip() for text in given for word in text.split(",")):
        if word == IDENTITY_OPTION:
            names += list_identity_columns(log_format)
        elif word == ACTOR_OPTION:
            names.append(ACTOR)
        elif word:
            name = flatten_name(word, log_format.drop_characters)
            names += [name, *_list_copies(name, log_format)]
    joined = log_format.joined_columns.items()
    names += [name for name, each in joined if not set(names).isdisjoint(each.inputs)]
    _check_needed_columns(names[1:], log_format)
    return tuple(dict.fromkeys(names))


def _list_copies(name: str, log_format: LogFormat) -> Iterator[str]:
    """Yield the columns that get values of a column, or parts of them, while the log is read."""
    for copy, fallbacks in log_format.fallbacks.items():
        if any(name in fallback.meta.root_names() for fallback in fallbacks):
            yield copy


def _check_needed_columns(names: Iterable[str], log_format: LogFormat) -> None:
    needed = {INDEX: "the position of events", TIME: "the time"}
    needed[log_format.time_column] = "the time"
    needed[log_format.id_column] = "the id of events, by which copies are recognised"
    if log_format.event_class_filter is not None:
        needed[log_format.event_class_filter[0]] = "the class of events"
    for name, column in log_format.derived_columns.items():
        if not column.per_value:
            needed[name] = "computed from many events"
    for name in filter(None, names):
        why = "computed from many events" if split_prefix(name)[0] else needed.get(name)
        if why is not None:
            raise UsageError(
                f"--pseudonymize: `{name}` is {why} and cannot be replaced. Leave it out."
            )


def _select_derived(
    derived: Mapping[str, DerivedColumn], columns: Collection[str]
) -> dict[str, DerivedColumn]:
    """Select the derived columns that read or are replaced columns, each after its inputs."""
    selected = set[str]()
    for name, column in reversed(list(derived.items())):
        is_read = any(name in derived[other].inputs for other in selected)
        if column.per_value and (
            is_read or name in columns or not set(columns).isdisjoint(column.inputs)
        ):
            selected.add(name)
    return {name: column for name, column in derived.items() if name in selected}
