"""`morpheus state`: what a state file has, and removing some of it.

`morpheus.cli.main` imports this module when it is used.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from morpheus.cli.chain import command_from_dataclass
from morpheus.cli.main import CommandGroup
from morpheus.cli.output import NO_USER, echo, format_facts, interruptible, print_table
from morpheus.core.stage import option
from morpheus.core.state import PARTS, SOURCE, StateKey, decode_plain
from morpheus.errors import MorpheusError, UsageError
from morpheus.runtime.states import (
    CHANGELOG_FACT,
    SavedState,
    SqliteStateStore,
    StateReader,
)
from morpheus.sinks.to_file import validate_output
from morpheus.storage.atomic import atomic_write
from morpheus.text import display_value, format_count, quote_backtick, suggest, suggest_path

if TYPE_CHECKING:
    from morpheus.runtime.changelog import KafkaChangelog, StoredState

MAX_SHOWN = 4
"""Maximum number of values of a field to show."""
MAX_TEXT = 60
"""Maximum length of a value, in characters."""
MAX_EXPORTED_TEXT = 1000
"""Maximum length of an exported text, in characters."""
MIN_EXPORTED_FIELDS = 100
"""Number of fields of a state that are exported, whatever the limit of values is."""
MAX_PARTITIONS = 20
"""Maximum number of partitions of the source to show."""
PLAUSIBLE_TIMES = (946_684_800_000_000, 4_102_444_800_000_000)
"""The years 2000 to 2099, in microseconds since 1970."""


@dataclass(frozen=True)
class ShowOptions:
    r"""Show what a state file has.

    FILE is the file that `pipeline-ae --state` wrote. A run may have it open. Without --user, the
    output has what the file is bound to, the number of users, the size of their states, the offsets
    of the source, and the rows that wait for a sink. With --user, it has the states of that user.

        morpheus state show state.db
        morpheus state show state.db --user=ann
    """

    user: tuple[str, ...] = option((), "Show the states of this user; repeat for more users.")


@dataclass(frozen=True)
class ExportOptions:
    r"""Write the states as JSON lines, one for each stage and user.

    FILE is the file that `pipeline-ae --state` wrote. A run may have it open. A line has the stage,
    the user, the time of the latest save, the size in bytes, the version and the fields.

        morpheus state export state.db --user=ann --filename=ann.jsonl
    """

    user: tuple[str, ...] = option((), "Only states of this user; repeat for more users.")
    stage: tuple[str, ...] = option((), "Only states of this stage; repeat for more stages.")
    max_values: int = option(
        1000,
        "Maximum number of values of an array or a list. A longer one ends with `...` and its "
        "length. Texts have at most 1,000 characters.",
        min=1,
    )
    filename: str | None = option(None, "Output file. Default: stdout.", location="local")


@dataclass(frozen=True)
class ChangelogOptions:
    """The changelog topic from which a command removes states, if there is one."""

    changelog_topic: str | None = option(
        None, "Topic of `from-kafka --changelog_topic`. Needs --bootstrap_servers."
    )
    bootstrap_servers: str = option(
        "", "Brokers of the topic, `host:port`, separated by commas; as for `from-kafka`."
    )
    kafka_config_file: str | None = option(
        None, "File of settings of the Kafka client, as for `from-kafka`.", location="local"
    )

    def check_topic(self) -> None:
        """Reject a topic without brokers, and brokers without a topic.

        Raises:
            UsageError: Only one of the two is given.
        """
        if (self.changelog_topic is None) != (not self.bootstrap_servers):
            raise UsageError("Give --changelog_topic and --bootstrap_servers together, or neither.")

    def open_topic(self, command: str) -> KafkaChangelog | None:
        """Return the topic; None if there is none.

        Args:
            command: The command, for messages.

        Raises:
            UsageError: The client is not installed, or the options are wrong.
            TransientError: No broker answers.
        """
        if self.changelog_topic is None:
            return None
        from morpheus.sources.from_kafka import open_changelog  # noqa: PLC0415 - an extra

        topic, servers = self.changelog_topic, self.bootstrap_servers
        return open_changelog(topic, servers, self.kafka_config_file, command)


@dataclass(frozen=True)
class ResetOptions(ChangelogOptions):
    r"""List the states of a user or a stage; with --delete, remove them.

    FILE is the file that `pipeline-ae --state` wrote. No run may have it open. The next run then
    starts without these states, as for a new user. The user's earlier events are no longer known:
    they are read again if they are in the input. With `from-kafka --changelog_topic`, the states of
    users are in that topic, and the next run reads them there: give the topic, too, and stop all
    processes that use it.

        morpheus state reset state.db --user=ann --delete
        morpheus state reset state.db --stage=explain --changelog_topic=trail-states \
            --bootstrap_servers=localhost:9092 --delete
    """

    user: tuple[str, ...] = option((), "User whose states to remove; repeat for more users.")
    stage: tuple[str, ...] = option(
        (), "Stage whose states to remove, such as `explain`; repeat for more stages."
    )
    delete: bool = option(
        False, "Remove what is listed. Without it, nothing is removed.", flag=True
    )


def _run_show(options: ShowOptions, file: Path) -> None:
    with interruptible(), _open(file) as reader:
        if options.user:
            _show_users(reader, options.user)
        else:
            _show_file(reader)


def _run_export(options: ExportOptions, file: Path) -> None:
    if options.filename is not None:
        validate_output(options.filename, overwrite=True, stage_name="morpheus state export")
    with interruptible(), _open(file) as reader:
        if options.filename is not None:
            _check_not_state_file(Path(options.filename), file)
        _check_stages((key for key, _, _ in reader.read_sizes()), options.stage)
        states = reader.iter_states(_check_users(reader, options.user))
        chosen = (state for state in states if _is_of_stage(state.key, options.stage))
        writer = nullcontext() if options.filename is None else atomic_write(Path(options.filename))
        with writer as output:
            count = _write_lines(chosen, output or sys.stdout.buffer, options.max_values)
    echo(f"{options.filename or 'stdout'}: {format_count(count, 'state')}")


def _check_not_state_file(output: Path, file: Path) -> None:
    """Reject an output that would replace the state file, or what SQLite keeps beside it."""
    names = {f"{file.resolve()}{suffix}" for suffix in ("", "-journal", "-wal", "-shm")}
    if str(output.resolve()) in names or (output.exists() and output.samefile(file)):
        raise UsageError(
            f"--filename: `{output}` is the state file itself, and would be replaced. Give "
            "another file."
        )


def _run_reset(options: ResetOptions, file: Path) -> None:
    if not options.user and not options.stage:
        raise UsageError(
            "Give --user, --stage or both: whose states to remove. To remove all states, delete "
            "the file."
        )
    options.check_topic()
    with _open(file) as reader:
        stored = [key for key, _, _ in reader.read_sizes()]
        topic = reader.read_config().get(CHANGELOG_FACT)
    with interruptible():
        changelog = options.open_topic("state reset")
        in_topic = [] if changelog is None else changelog.find_states()
        keys = [key for key in stored if _is_chosen(key, options)]
        chosen = [each for each in in_topic if _is_chosen(each.key, options)]
        if isinstance(topic, str) and changelog is None:
            _check_topic(topic, keys, delete=options.delete)
        everywhere = [*stored, *(each.key for each in in_topic)]
        _check_known(everywhere, options.user)
        _check_stages(everywhere, options.stage)
        if options.delete and changelog is not None and chosen:
            changelog.erase(chosen)  # first: the next run would read them again
        if options.delete and keys:
            with closing(SqliteStateStore(file, {})) as store:
                store.remove_states(keys)
    _print_reset(keys, chosen, options)


def _is_chosen(key: StateKey, options: ResetOptions) -> bool:
    return (not options.user or key.user in options.user) and _is_of_stage(key, options.stage)


def _check_topic(topic: str, keys: Sequence[StateKey], *, delete: bool) -> None:
    """Reject, or with nothing to delete warn, that the states of users are in a topic, too."""
    if keys and all(key.user is None for key in keys):
        return  # what is of all users together is in the file alone
    message = (
        f"the states of users are in the topic `{topic}`, too, and the next run reads them there. "
        f"Give --changelog_topic={topic} and --bootstrap_servers."
    )
    if delete:
        raise UsageError(f"FILE: {message}")
    echo(f"Warning: FILE: {message}", fg="yellow")


def _print_reset(
    keys: Sequence[StateKey], in_topic: Sequence[StoredState], options: ResetOptions
) -> None:
    """Print the states that were found, and what has happened to them."""
    places = [("the file", key) for key in sorted_keys(keys)]
    places += [("the topic", key) for key in sorted_keys(each.key for each in in_topic)]
    header = ["STAGE", "USER"]
    rows = [[key.stage, _name(key.user)] for _, key in places]
    if options.changelog_topic is not None:
        header.append("PLACE")
        rows = [[*row, place] for row, (place, _) in zip(rows, places, strict=True)]
    if places:
        print_table(header, rows)
    number = format_count(len(places), "state")
    if not options.delete:
        echo(f"Found {number}. Nothing was removed. Add --delete to remove them.")
        return
    echo(f"Removed {number}.")
    if in_topic:
        topic = options.changelog_topic
        echo(f"Kafka removes the old records of `{topic}` when it compacts the topic.")


def sorted_keys(keys: Iterable[StateKey]) -> list[StateKey]:
    """Sort keys by user, then stage."""
    return sorted(keys, key=lambda key: (key.user or "", key.stage))


@contextmanager
def _open(file: Path) -> Iterator[StateReader]:
    if file.is_dir():
        raise UsageError(
            f"FILE: `{file}` is a folder. Give the file that `pipeline-ae --state` wrote."
        )
    if not file.is_file():
        raise UsageError(
            f"FILE: there is no file `{file}`.{suggest_path(file)} Give the file that "
            "`pipeline-ae --state` wrote."
        )
    with closing(StateReader(file)) as reader:
        yield reader


def _check_users(reader: StateReader, users: Sequence[str]) -> tuple[str, ...]:
    """Return users that have states in a file; raise for one that has none."""
    return _check_known((key for key, _, _ in reader.read_sizes()), users) if users else ()


def _check_known(keys: Iterable[StateKey], users: Sequence[str]) -> tuple[str, ...]:
    """Return users that have one of some states; raise for one that has none."""
    known = {key.user for key in keys if key.user is not None}
    for user in users:
        if user not in known:
            raise UsageError(
                f"--user: the file has no state of {quote_backtick(user)}.{suggest(user, known)}"
            )
    return tuple(users)


def _check_stages(keys: Iterable[StateKey], names: Sequence[str]) -> None:
    """Reject a stage that has none of some states."""
    stages = {key.stage for key in keys}
    unknown = [name for name in names if not any(_is_named(each, name) for each in stages)]
    if unknown:
        raise UsageError(
            f"--stage: {quote_backtick(unknown[0])} has no state.{suggest(unknown[0], stages)} "
            f"There are states of {', '.join(sorted(stages)) or 'no stage'}."
        )


def _is_of_stage(key: StateKey, stages: Sequence[str]) -> bool:
    return not stages or any(_is_named(key.stage, name) for name in stages)


def _is_named(stage: str, name: str) -> bool:
    """Return whether a name is that of a stage, with or without its number."""
    return name in {stage, stage.partition("#")[0]}


def _name(user: str | None) -> str:
    return NO_USER if user is None else user


# `show`.


def _show_file(reader: StateReader) -> None:
    config, sizes = reader.read_config(), reader.read_sizes()
    by_user, by_state = defaultdict[str | None, int](int), defaultdict[StateKey, int](int)
    for key, size, _ in sizes:
        by_user[key.user] += size
        by_state[StateKey(_whole_stage(key.stage), key.user)] += size
    by_stage = defaultdict[str, list[int]](list)
    for key, size in by_state.items():
        by_stage[key.stage].append(size)
    users = {user: size for user, size in by_user.items() if user is not None}
    entries, waiting = reader.measure_outbox()
    offsets = reader.read_offsets()
    facts = {
        "File": f"{reader.path}, {reader.size:,} bytes, format {config.pop('format', '?')}",
        "In use": "by a run" if reader.in_use else "no",
        "Users": f"{len(users):,}",
    }
    if sizes:
        saved = [time for _, _, time in sizes]
        facts["Saved"] = f"{min(saved):%Y-%m-%d %H:%M} to {max(saved):%Y-%m-%d %H:%M} UTC"
    if users:
        facts["Bytes of a user"] = _describe_sizes(users)
    if isinstance(topic := config.pop(CHANGELOG_FACT, None), str):
        facts["Changelog"] = f"topic {topic}, from which a run reads the states of users"
    facts["Offsets"] = format_count(len(offsets), "partition")
    facts["Outbox"] = f"{_count_entries(entries)}, {waiting:,} bytes"
    click.echo("\n".join(format_facts(facts.items())))
    _show_config(config)
    if by_stage:
        click.echo()
        rows = [_describe_stage(name, found) for name, found in sorted(by_stage.items())]
        print_table(("STAGE", "STATES", "BYTES", "MEDIAN", "LARGEST"), rows)
    if offsets:
        click.echo()
        _show_offsets(offsets)


def _whole_stage(name: str) -> str:
    """Return the stage of a state, or of a part of one."""
    return SOURCE if name.startswith(PARTS) else name


def _show_config(config: Mapping[str, object]) -> None:
    """Show the options that the file is bound to; those without a value are left out."""
    bound = {name: value for name, value in sorted(config.items()) if value not in ("", [], None)}
    if bound:
        click.echo("\nBound to")
        lines = format_facts((f"  {name}", _describe_option(each)) for name, each in bound.items())
        click.echo("\n".join(lines))


def _show_offsets(offsets: Mapping[str, bytes]) -> None:
    shown = list(offsets.items())[:MAX_PARTITIONS]
    print_table(("PARTITION", "OFFSET"), [(name, _describe_offset(each)) for name, each in shown])
    if len(offsets) > len(shown):
        click.echo(f"and {format_count(len(offsets) - len(shown), 'more partition')}")


def _count_entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _describe_sizes(users: Mapping[str, int]) -> str:
    sizes = np.array(list(users.values()))
    largest = max(users, key=lambda user: (users[user], user))
    return (
        f"median {np.median(sizes):,.0f}, 99th percentile {np.percentile(sizes, 99):,.0f}, "
        f"largest {users[largest]:,} ({display_value(largest)})"
    )


def _describe_stage(name: str, sizes: Sequence[int]) -> list[str]:
    numbers = (len(sizes), sum(sizes), round(float(np.median(sizes))), max(sizes))
    return [name, *(f"{number:,}" for number in numbers)]


def _describe_option(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    more = [f"{len(value) - MAX_SHOWN:,} more"] if len(value) > MAX_SHOWN else []
    return ", ".join([*map(str, value[:MAX_SHOWN]), *more])


def _describe_offset(data: bytes) -> str:
    """Return an offset as text. Each source encodes it in its own way."""
    if data.isascii() and (text := data.decode()).isprintable():
        return _shorten(text)
    try:
        value = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError:
        return f"{len(data):,} bytes"
    return _shorten(json.dumps(_to_plain(value, MAX_TEXT), ensure_ascii=False))


def _show_users(reader: StateReader, users: Sequence[str]) -> None:
    for number, user in enumerate(_check_users(reader, users)):
        click.echo(f"{'' if not number else chr(10)}{display_value(user)}")
        parts = []
        for state in reader.iter_states([user]):
            if state.key.stage.startswith(PARTS):
                parts.append(state.size)
                continue
            version, fields = _decode(state)
            click.echo(
                f"\n{state.key.stage}: {state.size:,} bytes, version {version}, saved "
                f"{state.saved:%Y-%m-%d %H:%M} UTC"
            )
            shown = [(f"  {name}", _describe_value(value)) for name, value in fields.items()]
            click.echo("\n".join(format_facts(shown)))
        if parts:
            known = format_count(len(parts), "part")
            click.echo(f"\n{SOURCE}: {known} with earlier events, {sum(parts):,} bytes")


def _decode(state: SavedState) -> tuple[object, dict[str, Any]]:
    """Return the version and the fields of a state; of a damaged one, the problem."""
    try:
        if state.data is not None:
            return decode_plain(state.data)
    except (MorpheusError, ValueError, TypeError):
        pass
    return "?", {"damaged": "the state does not match its checksum, or cannot be decoded"}


def _describe_value(value: object) -> str:
    """Return a value of a state in a few words."""
    match value:
        case np.ndarray():
            return _describe_array(value)
        case dict():
            shown = list(islice(value.items(), MAX_SHOWN))
            names = [f"{name}: {_describe_part(each)}" for name, each in shown]
            return _join(names, len(value), "entries")
        case list():
            return _join(
                [_describe_value(each) for each in value[:MAX_SHOWN]], len(value), "values"
            )
        case bytes():
            return f"{len(value):,} bytes"
        case None:
            return "none"
        case _:
            return _shorten(display_value(str(value)))


def _describe_part(value: object) -> str:
    """Return a value inside another one, in braces if it has several parts."""
    text = _describe_value(value)
    return f"{{{text}}}" if isinstance(value, dict | list) and value else text


def _describe_array(array: np.ndarray[Any, Any]) -> str:
    shape = " x ".join(f"{size:,}" for size in array.shape)
    what = f"{shape} of {array.dtype}"
    if not array.size or not np.issubdtype(array.dtype, np.number):
        return what
    low, high = array.min(), array.max()
    if array.dtype == np.int64 and low >= PLAUSIBLE_TIMES[0] and high < PLAUSIBLE_TIMES[1]:
        first, last = (datetime.fromtimestamp(each / 1e6, UTC) for each in (low, high))
        return f"{shape} times, {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S}"
    if array.size <= MAX_SHOWN:
        return ", ".join(f"{each:.6g}" for each in array.ravel().tolist())
    return f"{what}, {low:.6g} to {high:.6g}"


def _join(shown: Sequence[str], count: int, what: str) -> str:
    if not count:
        return f"no {what}"
    more = f", ... ({count:,} {what})" if count > MAX_SHOWN else ""
    return ", ".join(shown[:MAX_SHOWN]) + more


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text):,} characters)"


# `export`.


def _write_lines(states: Iterable[SavedState], output: IO[bytes], max_values: int) -> int:
    """Write states as JSON lines, and return their number."""
    count = 0
    for state in states:
        version, fields = _decode(state)
        line = {
            "stage": state.key.stage,
            "user": state.key.user,
            "saved": f"{state.saved:%Y-%m-%dT%H:%M:%SZ}",
            "bytes": state.size,
            "version": version,
            "state": _to_plain(fields, max_values),
        }
        output.write(msgspec.json.encode(line) + b"\n")
        count += 1
    output.flush()
    return count


def _to_plain(value: object, max_values: int) -> object:
    """Return a value as JSON has it: arrays as lists, bytes as hexadecimal text, and bounded."""
    match value:
        case np.ndarray():
            rows = np.atleast_1d(value)
            return _to_plain_list(rows[:max_values].tolist(), len(rows), max_values)
        case dict():
            limit = max(max_values, MIN_EXPORTED_FIELDS)
            items = islice(value.items(), limit)
            plain = {str(name): _to_plain(each, max_values) for name, each in items}
            return plain | ({"...": len(value)} if len(value) > limit else {})
        case list() | tuple():
            return _to_plain_list(value[:max_values], len(value), max_values)
        case bytes() | str():
            text = value.hex() if isinstance(value, bytes) else value
            is_long = len(text) > MAX_EXPORTED_TEXT
            more = f"... ({len(text):,} characters)" if is_long else ""
            return text[:MAX_EXPORTED_TEXT] + more
        case _:
            # JSON has no NaN and no infinity.
            return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _to_plain_list(rows: Sequence[object], count: int, max_values: int) -> list[object]:
    more = [f"... ({count:,} values)"] if count > max_values else []
    return [*(_to_plain(each, max_values) for each in rows), *more]


@click.group(cls=CommandGroup)
def state() -> None:
    """Show, export or reset what `pipeline-ae --state` keeps about users."""


def _file_argument() -> click.Argument:
    return click.Argument(["file"], type=click.Path(path_type=Path))


state.add_command(command_from_dataclass("show", ShowOptions, _run_show, _file_argument()))
state.add_command(command_from_dataclass("export", ExportOptions, _run_export, _file_argument()))
state.add_command(command_from_dataclass("reset", ResetOptions, _run_reset, _file_argument()))
