"""The commands beside `run`: `report`, `serve`, `lessons`, and those of `tools` without `suppress`.

`morpheus.cli.main` imports this module when one of them is used.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click
import polars as pl
from click.exceptions import Exit
from click.shell_completion import get_completion_class

from morpheus.cli.chain import command_from_dataclass, describe_stage
from morpheus.cli.main import CommandGroup
from morpheus.cli.output import (
    EXIT_FAILURE,
    NO_USER,
    align_columns,
    echo,
    echo_error,
    format_facts,
    interruptible,
    print_table,
    show_progress,
)
from morpheus.cli.reference import render_compatibility, render_reference
from morpheus.cli.state import ChangelogOptions
from morpheus.core.registry import distribution_of, stage_names
from morpheus.core.stage import option
from morpheus.errors import UsageError
from morpheus.models.store import read_key
from morpheus.models.versions import VersionedStore, has_models, open_models, split_location
from morpheus.replay.evaluation import ReplayReport, evaluate, run_replay
from morpheus.replay.injection import ReplayConfig
from morpheus.report_cli import ReportRequest, find_models, write_report
from morpheus.runtime.states import SqliteStateStore
from morpheus.seasonality.detector import parse_duration
from morpheus.sinks.formats import encode_csv_header, write_csv_rows, write_json_rows
from morpheus.sinks.to_file import validate_output
from morpheus.sources.pseudonyms import PseudonymKey, check_key_id, is_pseudonym
from morpheus.sources.spill_sort import HELD_EVENTS
from morpheus.sources.time_range import check_timezone
from morpheus.storage.atomic import TempFolder, atomic_write, create_file, sync_folder
from morpheus.text import describe_no_folder, format_count, quote_backtick, suggest, suggest_path

# `morpheus report`.


def _run_report(request: ReportRequest, files: Sequence[Path]) -> None:
    with interruptible():
        data = write_report(request, files)
    events = format_count(data.account.scored, "scored event")
    incidents = format_count(len(data.incidents), "incident")
    echo(f"{request.filename}: {incidents} in {events}")


FILES_ARGUMENT = click.Argument(["file"], nargs=-1, required=True, type=click.Path(path_type=Path))
report = command_from_dataclass("report", ReportRequest, _run_report, FILES_ARGUMENT)


# `morpheus serve`.


@dataclass(frozen=True)
class ServeOptions:
    r"""Serve a live report page for a folder that a run writes to.

    FOLDER is the folder of the output files, such as that of `morpheus detect`. The page shows rows
    as they arrive, in files that grow (`to-file --flush`) and in new files. Only this machine can
    open the page, and only with the token in its address, which is printed once. The page is
    read-only. Press Ctrl+C to stop.

        morpheus run --status_file=out/status.json pipeline-ae ... \
            to-file --filename=out/alerts.jsonl --flush
        morpheus serve out
    """

    port: int = option(8321, "Port on 127.0.0.1. 0 picks a free one.", min=0, max=65535)
    token: bool = option(
        True, "Require the token. Without it, anyone on this machine can read the page."
    )
    userid_column_name: str = option(
        "",
        "User column of the rows. `@actor` finds the actor of each event.",
        default_display="the column in the status of the run, or the first known one",
    )
    models: str | None = option(
        None,
        "Model store that the events were scored with. The page shows the models, and measures "
        "severity by them.",
        location="any",
        default_display="`models` in the folder, if it is there",
    )
    alerts_per_day: float | None = option(
        None,
        "Alert budget: alerts per day that you are ready to review.",
        min=0,
        default_display="the budget of `filter` in the run, or 5",
    )
    timezone: str = option(
        "UTC", "Time zone of the days of incidents, as for `pipeline-ae`. Times are shown in UTC."
    )


def _run_server(options: ServeOptions, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"FOLDER: {describe_no_folder(folder)} Give the output folder "
            "of `morpheus detect`, or the folder that `to-file` writes to."
        )
    try:
        from morpheus.serve.app import serve  # noqa: PLC0415 - `--help` serves nothing
        from morpheus.serve.live import LiveReport  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve: `{error.name}` is not installed. Type `pip install 'morpheus-dfp[serve]'`."
        ) from error
    check_timezone(options.timezone, "--timezone")
    models = options.models or find_models(folder)
    store = None if models is None else open_models(models)
    live = LiveReport(
        *(folder, options.userid_column_name, options.alerts_per_day, store),
        timezone=options.timezone,
    )
    live.check(models)
    serve(live, port=options.port, with_token=options.token, on_listening=_print_address)


def _print_address(address: str) -> None:
    echo(f"Serving at {address}")
    echo("Anyone on this machine who has this address can read the page. Press Ctrl+C to stop.")


FOLDER_ARGUMENT = click.Argument(["folder"], type=click.Path(path_type=Path))
serve = command_from_dataclass("serve", ServeOptions, _run_server, FOLDER_ARGUMENT)


# `morpheus lessons`.

LESSON_FOLDER = "morpheus-lessons"
LESSON_FILES = ("*.ipynb", "data/input-data/*.csv", "data/training-data/*.csv")
"""The files of the lessons, as globs."""
LESSON_PACKAGES = ("pandas", "matplotlib", "ipykernel")
"""Packages that the notebooks need."""
INSTALLED_LINE = 'INSTALLED = "{}"'
"""Line of the notebooks that gets the Python in which morpheus is installed."""


@dataclass(frozen=True)
class LessonOptions:
    r"""Copy the lessons, notebooks with their data, into a folder.

    DIR is a new or empty folder, by default `morpheus-lessons`. Open the notebooks in Jupyter or
    in an editor for notebooks. They find the command `morpheus` of this installation.

        morpheus lessons
        morpheus lessons courses/fingerprints
    """

    overwrite: bool = option(
        False,
        "Also write into a folder that is not empty. Files of the lessons in it are replaced, and "
        "other files stay.",
        flag=True,
    )


def _copy_lessons(options: LessonOptions, place: Path | tuple[()] = ()) -> None:
    folder, source = place or Path(LESSON_FOLDER), find_lessons()
    files = [path.relative_to(source) for glob in LESSON_FILES for path in source.glob(glob)]
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not folder.is_dir():
        raise UsageError(f"DIR: `{folder}` is a file. Give another name.")
    if not is_new and not options.overwrite:
        raise UsageError(
            f"DIR: `{folder}` is not empty. Give `morpheus lessons --overwrite {folder}` to "
            "replace the lessons in it, or another folder."
        )
    with interruptible():
        try:
            _write_lessons(source, sorted(files), folder, is_new=is_new)
        except OSError as error:
            raise UsageError(
                f"DIR: `{folder}` cannot be written: {error.strerror or error}. Give another "
                "folder."
            ) from error
    _print_lessons(folder, files)


def find_lessons() -> Path:
    """Return the folder of the lessons: in the package or, in a source tree, beside it.

    Raises:
        UsageError: This installation has none.
    """
    package = Path(str(resources.files("morpheus")))
    for folder in (package / "lessons", package.parents[1] / "examples"):
        if any(folder.glob(LESSON_FILES[0])):
            return folder
    raise UsageError(
        "lessons: this installation has no lessons. Type `pip install --force-reinstall "
        "morpheus-dfp`."
    )


def _write_lessons(source: Path, files: Sequence[Path], folder: Path, *, is_new: bool) -> None:
    """Write the files. A new folder appears when all of them are in it."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    if not is_new:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / file, private=False) as out:
                out.write(_read_lesson(source / file))
        return
    with TempFolder(folder.absolute().parent, folder.name, published=True) as temporary:
        for file in files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_bytes(_read_lesson(source / file))
        sync_folder(temporary)
        temporary.replace(folder)
        sync_folder(folder.absolute().parent)


def _read_lesson(file: Path) -> bytes:
    """Return a file. A notebook gets the Python that runs this command."""
    content = file.read_bytes()
    if file.suffix != ".ipynb":
        return content
    python = json.dumps(sys.executable)[1:-1]
    before, after = (json.dumps(INSTALLED_LINE.format(each))[1:-1] for each in ("", python))
    return content.replace(before.encode(), after.encode())


def _print_lessons(folder: Path, files: Sequence[Path]) -> None:
    notebooks = [str(file) for file in sorted(files) if file.suffix == ".ipynb"]
    facts = {
        "Lessons": f"{folder}: {', '.join(notebooks)}, and their data",
        "Next": f"Open {folder / notebooks[0]} in Jupyter or in an editor for notebooks.",
    }
    missing = [name for name in LESSON_PACKAGES if find_spec(name) is None]
    if missing:
        facts["Needs"] = f"{', '.join(missing)}: type `pip install 'morpheus-dfp[notebooks]'`."
    echo("\n".join(format_facts(facts.items())))


DIR_ARGUMENT = click.Argument(["dir"], required=False, type=click.Path(path_type=Path))
lessons = command_from_dataclass("lessons", LessonOptions, _copy_lessons, DIR_ARGUMENT)


# `morpheus tools replay`.

MAX_USERS_SHOWN = 3
"""Maximum number of skipped users to name."""
TOTAL_LABEL = "all"


def _run_replay_command(config: ReplayConfig) -> None:
    kind = _choose_trial_format(config)
    if config.filename is not None:
        validate_output(config.filename, overwrite=True, stage_name="morpheus tools replay")
    with interruptible(), show_progress() as on_step:
        batches, metrics = run_replay(config, on_step=on_step)
    result = evaluate(batches, config.alerts_per_day)
    if config.filename is not None:
        with atomic_write(Path(config.filename)) as file:
            file.write(_encode_trials(result.trials, kind))
    if config.filename is not None or kind == "table":
        _print_shares(result, config)
    else:
        click.echo(_encode_trials(result.trials, kind), nl=False)
    _print_facts(result, metrics.seconds)
    if result.recall is None:
        echo_error(result.explain_no_trial(config, metrics))
        raise Exit(EXIT_FAILURE)
    _check_recall(result.recall, config.min_recall)


replay = command_from_dataclass("replay", ReplayConfig, _run_replay_command)


def _choose_trial_format(config: ReplayConfig) -> str:
    """Return the format of the trials: the one asked for, or that of the file's extension."""
    asked = config.output_format.lower()
    if config.filename is None or asked != "table":
        return asked
    kind = Path(config.filename).suffix.lower().removeprefix(".")
    if kind not in {"csv", "json"}:
        raise UsageError(
            f"--filename: `{config.filename}` must end in `.csv` or `.json`. Rename it, or give "
            "`--output_format` csv or json."
        )
    return kind


def _encode_trials(trials: pl.DataFrame, kind: str) -> bytes:
    """Return the trials as CSV or as JSON lines."""
    text = io.BytesIO()
    if kind == "csv":
        text.write(encode_csv_header(trials.columns))
    (write_csv_rows if kind == "csv" else write_json_rows)(trials, text)
    return text.getvalue()


def _print_shares(result: ReplayReport, config: ReplayConfig) -> None:
    """Print the share caught, by technique and evasion level, and by user and evasion level."""
    for by in ("technique", "user"):
        if result.trials.height:
            header = (by.upper(), *(level.upper() for level in config.evasion_levels))
            print_table(header, _build_share_rows(result, by, config.evasion_levels))
            click.echo()


def _build_share_rows(result: ReplayReport, by: str, levels: tuple[str, ...]) -> list[list[str]]:
    """Return a row for each value of a column, with a cell for each level, and a total."""
    counts = result.count_caught(by, "grade").iter_rows()
    cells = {(name, level): f"{caught}/{tried}" for name, level, caught, tried in counts}
    names = result.trials[by].unique(maintain_order=True).to_list()
    rows = [[name, *(cells.get((name, level), "") for level in levels)] for name in names]
    total = {
        level: f"{caught}/{tried}"
        for level, caught, tried in result.count_caught("grade").iter_rows()
    }
    return [*rows, [TOTAL_LABEL, *(total.get(level, "") for level in levels)]]


def _print_facts(result: ReplayReport, seconds: float) -> None:
    """Print what the shares are based on, to stderr."""
    trials, recall = result.trials, result.recall
    caught, tried = int(trials["caught"].sum()), int(trials["caught"].count())
    facts = {"Caught": f"{caught:,} of {format_count(tried, 'trial')}"}
    if recall is not None:
        facts["Caught"] += f", recall {recall:.3f}"
    allowed = format_count(result.alerts_allowed, "alert")
    facts["Budget"] = f"{allowed} for the users' own events, which raise {result.alerts_raised:,}"
    if trials.height > tried:
        not_placed = format_count(trials.height - tried, "trial")
        facts["Not placed"] = f"{not_placed}, longer than the user's active hours"
    if result.skipped:
        skipped = format_count(len(result.skipped), "user")
        facts["Not tried"] = f"{skipped}: {_describe_skipped(result.skipped)}"
    if hidden := trials["hidden_by"].count():
        trials_hidden = format_count(hidden, "trial")
        facts["Hidden"] = f"{trials_hidden} missed only because of suppressions: see `hidden_by`"
    facts["Seconds"] = f"{seconds:.1f}"
    echo("\n".join(format_facts(facts.items())))


def _describe_skipped(skipped: Mapping[str | None, str]) -> str:
    """Return the first few skipped users, each with the reason, and the number of others."""
    users = sorted(skipped.items(), key=lambda pair: pair[0] or "")
    shown = [
        f"{NO_USER if user is None else user} ({reason})"
        for user, reason in users[:MAX_USERS_SHOWN]
    ]
    more = [f"{len(users) - MAX_USERS_SHOWN:,} more"] if len(users) > MAX_USERS_SHOWN else []
    return ", ".join([*shown, *more])


def _check_recall(recall: float, min_recall: float | None) -> None:
    """Fail if the recall is too low."""
    if min_recall is not None and recall < min_recall:
        echo_error(f"recall {recall:.3f} is below --min_recall {min_recall:g}.")
        raise Exit(EXIT_FAILURE)


# `morpheus tools pseudonym` and `morpheus tools pseudonym-key`.


@dataclass(frozen=True)
class PseudonymOptions:
    r"""Show the pseudonyms of names, or find the names behind pseudonyms.

    NAMES are names or pseudonyms. A pseudonym cannot be decoded, even with the key. It is compared
    with the pseudonyms of the names in --names_file. Write names as the log has them. Each name is
    also tried in lower case, because some columns ignore case.

        morpheus tools pseudonym --pseudonym_key_file=morpheus.key ann@example.com
        morpheus tools pseudonym --pseudonym_key_file=morpheus.key \
            --names_file=staff.txt ps-1f0c-k3v7q2mzx4w5b6n7
    """

    pseudonym_key_file: str = option("", "File with the secret key.", required=True)
    names_file: str | None = option(
        None,
        "Candidate names, one per line; `-` reads standard input. Without NAMES, all their "
        "pseudonyms are shown.",
    )


def _run_pseudonym(options: PseudonymOptions, words: Sequence[str] = ()) -> None:
    key = PseudonymKey.read(Path(options.pseudonym_key_file))
    candidates = _read_names(options.names_file)
    if not words and not candidates:
        raise UsageError("NAMES: no name given. Give names, pseudonyms, or --names_file.")
    names = {key.pseudonym(name): name for name in candidates}
    asked = [word for word in words if is_pseudonym(word)]
    for word in asked:
        check_key_id(word, key.id)
    typed = [word for word in words if word not in asked]
    given = {key.pseudonym(name): name for name in _with_lower_case(typed)}
    shown = given | ({each: names[each] for each in asked if each in names} if words else names)
    if shown:
        print_table(("NAME", "PSEUDONYM"), [(name, text) for text, name in shown.items()])
    unknown = [word for word in asked if word not in names]
    if unknown:
        hint = "Give more candidates with --names_file"
        echo_error(f"no candidate has the pseudonym {', '.join(unknown)}. {hint}.")
        raise Exit(EXIT_FAILURE)


def _read_names(file: str | None) -> list[str]:
    """Return the lines of a file, each also in lower case."""
    if file is None:
        return []
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"--names_file: `{file}` cannot be read: {reason}.{suggest_path(file)} Give a text "
            "file with one name per line."
        ) from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return _with_lower_case(names)


def _with_lower_case(names: Sequence[str]) -> list[str]:
    """Return names as they are written and in lower case, as columns that ignore case have them."""
    return list(dict.fromkeys(each for name in names for each in (name, name.lower())))


pseudonym = command_from_dataclass(
    "pseudonym", PseudonymOptions, _run_pseudonym, click.Argument(["names"], nargs=-1)
)


@click.command("pseudonym-key")
@click.argument("file", type=click.Path(path_type=Path))
def pseudonym_key(file: Path) -> None:
    """Create a key for `pipeline-ae --pseudonymize`: 256 random bits, in a file with mode 0600.

    Keep the file apart from the outputs, with a copy: without it, no pseudonym can be resolved.
    """
    try:
        with create_file(file) as out:
            out.write(f"{secrets.token_hex(32)}\n".encode())
    except FileExistsError:
        raise UsageError(
            f"FILE: `{file}` exists, and may be the only copy of a key. Give another name."
        ) from None
    except OSError as error:
        raise UsageError(
            f"FILE: `{file}` cannot be created: {error.strerror}. Give a file in a folder that "
            "exists and can be written."
        ) from error
    echo(f"{file}: key {PseudonymKey.read(file).id}")


# `morpheus tools prune` and `morpheus tools erase`.

DAY_FOLDER = re.compile(r"[\w-]+=(\d{4})-?(\d\d)-?(\d\d)")
"""Name of a folder with the rows of one day: `date=2026-01-05`, `eventDay=20260105`."""
OUTPUT_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet", ".html"}
"""Suffixes of files that `prune` removes, without that of a compression."""
_SQLITE_HEADER = b"SQLite format 3\0"


@dataclass(frozen=True)
class PruneOptions:
    r"""List old outputs and old state; with --delete, remove them.

    PATHS are output files, folders of outputs and state files. A file in the folder of a day, such
    as `date=2026-01-05` or `eventDay=20260105`, has the age of that day. Any other file has the age
    of its last change. The state of a user has the age of the last run that changed it.

    Of a folder, only CSV, JSON, Parquet and HTML files are listed. Links, hidden files, Delta
    tables and model stores are left alone.

        morpheus tools prune --older_than=90d out state.db
    """

    older_than: str = option("", "Minimum age, such as `90d`.", required=True)
    delete: bool = option(
        False, "Remove what is listed. Without it, nothing is removed.", flag=True
    )


@dataclass(frozen=True)
class EraseOptions(ChangelogOptions):
    r"""List what is stored about users; with --delete, remove it.

    USERS are names as the log has them, or pseudonyms. Output files are not changed: remove them,
    or the rows of these users. Fingerprints of similar users and the global model have learned from
    these users' events too, and forget them when they are trained again. Stop the processes that
    use a changelog topic first: they would write the states again.

        morpheus tools erase --state=state.db --models=models ann@example.com
    """

    state: str | None = option(None, "State file.")
    models: str | None = option(None, "Model store.")
    models_key_file: str | None = option(None, "Key that signs the model store.")
    pseudonym_key_file: str | None = option(
        None, "Key of the pseudonyms. Names are then also removed under their pseudonyms."
    )
    delete: bool = option(
        False, "Remove what is listed. Without it, nothing is removed.", flag=True
    )


class StoredItem(NamedTuple):
    """Something that can be removed.

    Attributes:
        place: The file, or the model store.
        what: A file, or the state or the fingerprint of a user.
        dated: When it was last changed, or the day that it is about; None if that is not known.
    """

    place: str
    what: str
    dated: datetime | None = None


def _run_prune(options: PruneOptions, paths: Sequence[Path]) -> None:
    age = timedelta(seconds=parse_duration(options.older_than, option="--older_than"))
    cutoff = datetime.now(UTC) - age
    items: list[StoredItem] = []
    for path in paths:
        if "://" in os.fspath(path) or not path.exists():
            raise UsageError(
                f"PATHS: there is no `{path}` on this machine.{suggest_path(path)} Give files and "
                "folders. For an object store, set up its own lifecycle rules."
            )
        if path.is_file() and _is_state_file(path):
            items += _prune_state(path, cutoff, delete=options.delete)
            continue
        found = list(_find_old_files(path, cutoff))
        items += [StoredItem(str(file), "file", dated) for file, dated in found]
        if options.delete:
            _remove_files(file for file, _ in found)
    _report_items(items, delete=options.delete)


def _is_state_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER


def _prune_state(path: Path, cutoff: datetime, *, delete: bool) -> list[StoredItem]:
    with closing(SqliteStateStore(path, {})) as store:
        old = {user: time for user, time in store.list_users().items() if time < cutoff}
        if delete and old:
            store.remove(old)
    return [StoredItem(str(path), _describe_state_of(user), time) for user, time in old.items()]


def _describe_state_of(user: str | None) -> str:
    return f"state of {NO_USER if user is None else user}"


def _find_old_files(path: Path, cutoff: datetime) -> Iterator[tuple[Path, datetime]]:
    """Yield output files that are older than a time, each with its day or its last change."""
    one_file = [(str(path.parent), list[str](), [path.name])]
    for place, folders, names in os.walk(path) if path.is_dir() else one_file:
        special = "_delta_log" in folders or has_models(Path(place))
        if special:
            kind = "Delta table" if "_delta_log" in folders else "model store"
            echo(f"{place}: this {kind} is left alone.")
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            if file.is_symlink() or not file.is_file() or not _is_output(file):
                continue
            end, dated = _find_age(file)
            if end < cutoff:
                yield file, dated


def _is_output(file: Path) -> bool:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    plain = [suffix for suffix in suffixes if suffix not in {".gz", ".zst"}]
    return bool(plain) and plain[-1] in OUTPUT_SUFFIXES


def _find_age(file: Path) -> tuple[datetime, datetime]:
    """Return until when a file can have been about something, and the date to show."""
    for part in reversed(file.absolute().parent.parts):
        if found := DAY_FOLDER.fullmatch(part):
            with suppress(ValueError):
                year, month, number = map(int, found.groups())
                day = datetime(year, month, number, tzinfo=UTC)
                return day + timedelta(days=1), day
    changed = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    return changed, changed


def _remove_files(files: Iterable[Path]) -> None:
    """Remove files, and folders of partitions that become empty."""
    for file in files:
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if "=" not in folder.name or any(folder.iterdir()):
                break
            folder.rmdir()


def _run_erase(options: EraseOptions, users: Sequence[str]) -> None:
    if options.state is None and options.models is None and options.changelog_topic is None:
        raise UsageError(
            "Give --state, --models or --changelog_topic: where to remove the users from."
        )
    options.check_topic()
    names = set(users)
    if options.pseudonym_key_file is not None:
        key = PseudonymKey.read(Path(options.pseudonym_key_file))
        names |= {key.pseudonym(user) for user in users if not is_pseudonym(user)}
    items: list[StoredItem] = []
    known = set[str]()
    if options.state is not None:
        items += _erase_states(options.state, names, known, delete=options.delete)
    items += _erase_from_topic(options, names, known)
    if options.models is not None:
        store_key = read_key(options.models_key_file)
        folder, _ = split_location(options.models, "--models", "store")
        open_models(options.models, store_key)  # says what to do if there is none
        models = VersionedStore.open(folder, store_key)
        known |= set(models.find_users())
        items += _erase_models(models, names, delete=options.delete)
    _report_items(items, delete=options.delete)
    for user in users:
        if user not in known and (hint := suggest(user, known)):
            echo(f"Nothing is stored about {quote_backtick(user)}.{hint}")


def _erase_states(
    file: str, names: Collection[str], known: set[str], *, delete: bool
) -> list[StoredItem]:
    """List the states of users in a state file, and remove them; add all users to `known`."""
    if not Path(file).is_file():
        raise UsageError(
            f"--state: there is no file `{file}`.{suggest_path(file)} Give the file that "
            "`pipeline-ae --state` wrote."
        )
    with closing(SqliteStateStore(Path(file), {})) as store:
        stored = store.list_users()
        known |= {user for user in stored if user is not None}
        found = {user: time for user, time in stored.items() if user in names}
        if delete:
            store.remove(found)  # also without users: rows that a sink has taken are overwritten
        if _has_waiting(store):
            echo(
                f"Warning: `{file}` also has rows that wait for a sink, or events that wait for "
                "earlier ones. They can be of these users, and are not removed. Run the pipeline "
                "until it has written them, and erase again.",
                fg="yellow",
            )
    return [StoredItem(file, _describe_state_of(user), time) for user, time in found.items()]


def _has_waiting(store: SqliteStateStore) -> bool:
    """Return whether a state file has rows or events as a whole."""
    if store.measure_outbox()[0] or store.load_journal():
        return True
    return any(name.startswith(HELD_EVENTS) for name in store.load_offsets())


def _erase_from_topic(
    options: EraseOptions, names: Collection[str], known: set[str]
) -> list[StoredItem]:
    """List the states of users in a changelog topic, and remove them; add all users to `known`."""
    changelog = options.open_topic("tools erase")
    if changelog is None:
        return []
    states = changelog.find_states()
    known |= {each.key.user for each in states if each.key.user is not None}
    chosen = [each for each in states if each.key.user in names]
    if options.delete and chosen:
        changelog.erase(chosen)
        echo(f"Kafka removes the old records of `{changelog.topic}` when it compacts the topic.")
    place = f"topic {changelog.topic}"
    users = dict.fromkeys(each.key.user for each in chosen)
    return [StoredItem(place, _describe_state_of(user)) for user in users]


def _erase_models(
    store: VersionedStore, names: Collection[str], *, delete: bool
) -> list[StoredItem]:
    """List the fingerprints of users in any version, and remove them."""
    folder, cards = str(store.folder), store.find_users()
    found = {user: cards[user] for user in sorted(names) if user in cards}
    if delete and found:
        store.erase(found)
    return [
        StoredItem(
            folder,
            f"fingerprint of {user}",
            datetime.fromisoformat(card.last) if card.last else None,
        )
        for user, card in found.items()
    ]


def _report_items(items: Sequence[StoredItem], *, delete: bool) -> None:
    if items:
        rows = [
            (item.place, item.what, "" if item.dated is None else f"{item.dated:%Y-%m-%d}")
            for item in items
        ]
        print_table(("PLACE", "WHAT", "DATE"), rows)
    number = format_count(len(items), "item")
    if not items:
        echo("Nothing found.")
    elif delete:
        echo(f"Removed {number}.")
    else:
        echo(f"Found {number}. Nothing was removed. Add --delete to remove them.")


PATHS_ARGUMENT = click.Argument(["paths"], nargs=-1, required=True, type=click.Path(path_type=Path))
prune = command_from_dataclass("prune", PruneOptions, _run_prune, PATHS_ARGUMENT)
USERS_ARGUMENT = click.Argument(["users"], nargs=-1, required=True)
erase = command_from_dataclass("erase", EraseOptions, _run_erase, USERS_ARGUMENT)


# `morpheus tools autocomplete`.

BLOCK_BEGIN, BLOCK_END = "# >>> morpheus completion >>>", "# <<< morpheus completion <<<"
SHELL_FILES = {
    "bash": "~/.bash_completion",
    "fish": "~/.config/fish/completions/morpheus.fish",
    "zsh": "~/.zshrc",
}
"""The file that each shell reads completions from."""

_SHELL_OPTION = click.option(
    "--shell",
    type=click.Choice(sorted(SHELL_FILES)),
    default=None,
    help="Shell to set up.",
    show_default="that of $SHELL, or bash",
)


@click.group(cls=CommandGroup)
def autocomplete() -> None:
    """Set up shell completion of commands, stages and options."""


@autocomplete.command("show")
@_SHELL_OPTION
@click.pass_context
def show_completion(context: click.Context, shell: str | None) -> None:
    """Print the completion script.

    Example: `morpheus tools autocomplete show --shell=zsh`
    """
    shell = shell or _detect_shell()
    file = SHELL_FILES[shell]
    echo(f"To add {shell} completion, write the following code to '{file}':")
    click.echo(render_completion(context.find_root().command, shell), nl=False)


@autocomplete.command()
@click.option(
    "--append/--overwrite",
    default=False,
    help="Accepted for old command lines. An earlier completion script in the file is replaced, "
    "and the rest of the file stays.",
)
@_SHELL_OPTION
@click.option(
    "--path",
    default=None,
    help="File to write to.",
    show_default="the file that the shell reads",
)
@click.pass_context
def install(context: click.Context, *, append: bool, shell: str | None, path: str | None) -> None:
    """Write the completion script to the shell's file, or replace an earlier one.

    Example: `morpheus tools autocomplete install`
    """
    del append
    shell = shell or _detect_shell()
    file = Path(path or SHELL_FILES[shell]).expanduser()
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--path: cannot read `{file}`: {error}. Give another file.") from error
    text = insert_block(text, render_completion(context.find_root().command, shell))
    # A start-up file of the shell, not a result of a run: the umask decides its mode.
    with atomic_write(file, private=False) as out:
        out.write(text.encode())
    echo(f"{shell} completion installed in {file}")


def render_completion(root: click.Command, shell: str) -> str:
    """Return the completion script of a shell, between two marker lines."""
    complete = get_completion_class(shell)
    assert complete is not None, shell  # noqa: S101 - click knows all of PATHS
    script = complete(root, {}, "morpheus", "_MORPHEUS_COMPLETE").source()
    return f"{BLOCK_BEGIN}\n{script.strip()}\n{BLOCK_END}\n"


def insert_block(text: str, block: str) -> str:
    """Return a file's text with the block in it once: in its old place, or at the end.

    >>> insert_block("alias l=ls", BLOCK_BEGIN).splitlines()
    ['alias l=ls', '# >>> morpheus completion >>>']
    """
    begin, end = re.escape(BLOCK_BEGIN), re.escape(BLOCK_END)
    old = re.compile(f"^{begin}$.*?^{end}$\n?", re.MULTILINE | re.DOTALL)
    if old.search(text):
        return old.sub(lambda _: block, text, count=1)
    return text + ("\n" if text and not text.endswith("\n") else "") + block


def _detect_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELL_FILES else "bash"


# The lists of `morpheus tools`.


@click.command()
def stages() -> None:
    """List the stages: what each accepts and outputs, and its package."""
    rows = [(word, distribution_of(word), *describe_stage(word)) for word in stage_names()]
    click.echo(align_columns(("STAGE", "PACKAGE", "FLOW", "MEANING"), rows))


@click.command()
@click.pass_context
def reference(context: click.Context) -> None:
    """Print the reference of the command line, in Markdown."""
    click.echo(render_reference(context.find_root().command, "morpheus"))


@click.command()
@click.pass_context
def compatibility(context: click.Context) -> None:
    """Print what is supported of each stage and option of NVIDIA Morpheus, in Markdown."""
    click.echo(render_compatibility(context.find_root().command))
