"""`morpheus models`: the versions of a model store.

`morpheus.cli.main` imports this module when it is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
import msgspec
import numpy as np
import polars as pl

from morpheus.cli.chain import command_from_dataclass
from morpheus.cli.main import CommandGroup
from morpheus.cli.output import echo, format_facts, interruptible, print_table, show_progress
from morpheus.columns import ACTOR, ACTOR_OPTION, RISK, SEVERITY, TIME, ExplanationColumns
from morpheus.core.batch import Batch
from morpheus.core.stage import PipelineOptions, Stage, list_values, option
from morpheus.errors import UsageError
from morpheus.models.profile import Fingerprint, InputSpec, ModelCard
from morpheus.models.scoring import number_days
from morpheus.models.store import KEY_VARIABLE, read_key
from morpheus.models.versions import (
    CANDIDATE,
    CHAMPION,
    KEPT_VERSIONS,
    Manifest,
    ModelVersion,
    StoredVersion,
    VersionedStore,
    split_location,
)
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.report.incidents import find_lead, format_day
from morpheus.sources.base import FileSource
from morpheus.sources.results import LogKind
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import ANOMALY_QUANTILE, Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe
from morpheus.text import display_value, format_count, quote_backtick, suggest

GLOBAL_NAME = "(global model)"
"""Name of the global model in tables."""
HIGH_SEVERITY = 50.0
"""Severity from which a user's day is an alert, by default: `high`."""
MAX_USERS = 50
"""Number of users that tables show by default."""

_KEY_HELP = f"File with the key of a signed store. [default: ${KEY_VARIABLE}]"


def _key_option() -> Any:  # noqa: ANN401 - a field of a dataclass
    return option(None, _KEY_HELP, location="local")


def _json_option() -> Any:  # noqa: ANN401 - as above
    return option(False, "Write JSON to stdout, in place of tables.", flag=True)


def _user_option(text: str) -> Any:  # noqa: ANN401 - as above
    return option((), f"{text}; repeat for more users. Default: all users.")


@dataclass(frozen=True)
class ListOptions:
    """List the versions of a model store.

    STORE is the folder that `train-ae --models_output_filename` wrote, on disk or in an object
    store.

    Example: `morpheus models list models`
    """

    json: bool = _json_option()
    models_key_file: str | None = _key_option()


@dataclass(frozen=True)
class ShowOptions:
    """Show a version of a model store, and the cards of its users.

    STORE is a store, and `@` with an alias or a number. By default the champion is shown.

    Example: `morpheus models show models@candidate --user=ann`
    """

    user: tuple[str, ...] = _user_option("Show this user only")
    max_users: int = option(MAX_USERS, "Maximum number of users to list.", min=0)
    json: bool = _json_option()
    models_key_file: str | None = _key_option()


@dataclass(frozen=True)
class DiffOptions:
    """Compare two versions of a model store, user by user.

    OLD and NEW are aliases or numbers. By default the champion is compared with the candidate. For
    each user with another fingerprint, the table has the version that published it, the training
    period, the number of training events, the threshold (the risk that 1 % of the validation events
    exceed), the typical score, and the feature columns.

    Example: `morpheus models diff models 3 4`
    """

    max_users: int = option(MAX_USERS, "Maximum number of users to list.", min=0)
    json: bool = _json_option()
    models_key_file: str | None = _key_option()


@dataclass(frozen=True)
class AliasOptions:
    """Options of `promote` and of `rollback`."""

    user: tuple[str, ...] = _user_option("Change the fingerprint of this user only")
    note: str = option("", "Note of the new version, if --user makes one.")
    dry_run: bool = option(False, "Only show what would change.", flag=True)
    input_glob: str | tuple[str, ...] | None = option(
        None,
        "Logs of a period to score with both versions, to show which alerts appear and which "
        "vanish. Repeat for more.",
        names=("--input_glob", "--replay_glob"),
        location="any",
    )
    start_time: str | None = option(None, "Start of the period, as for the source of a pipeline.")
    duration: str | None = option(None, "Length of the period, such as `7d`.")
    source: str | None = option(
        None, "Word of the source that reads the logs.", default_display="the one of the training"
    )
    columns_file: str | None = option(
        None,
        "Feature list or schema.",
        default_display="the one of the training",
        location="local",
    )
    pseudonym_key_file: str | None = option(
        None, "File with the key of the pseudonyms, if users are pseudonyms.", location="local"
    )
    alerts_per_day: float | None = option(
        None, "Alert budget, in place of --min_severity, as for `filter --alerts_per_day`.", min=0
    )
    min_severity: float | None = option(
        None,
        "Severity from which a user's day is an alert.",
        min=0,
        default_display=f"{HIGH_SEVERITY:.0f}",
    )
    json: bool = _json_option()
    models_key_file: str | None = _key_option()


@dataclass(frozen=True)
class PromoteOptions(AliasOptions):
    r"""Make a version the champion, for all users or for some.

    STORE is a store, and `@` with an alias or a number. By default the candidate is promoted. With
    --user, a new version is published: the champion with the fingerprints of these users. A running
    stream uses the champion from the next batch of each user on.

        morpheus models promote models
        morpheus models promote models@7 --user=ann --input_glob="logs/*.json.gz"
    """


@dataclass(frozen=True)
class RollbackOptions(AliasOptions):
    r"""Make the champion before this one the champion again, for all users or for some.

    With --input_glob, the logs of a period are scored with both versions. The output shows which
    alerts appear and which vanish. Then the alias moves, unless --dry_run is given. With --user, a
    new version is published: the champion with the earlier fingerprints of these users.

        morpheus models rollback models --input_glob="logs/2026-11-*.json.gz" --dry_run
        morpheus models rollback models
    """


@dataclass(frozen=True)
class PruneOptions:
    """List the versions that nobody needs; with --delete, remove them.

    Kept are the versions that an alias names, the champion before, the latest --keep versions, the
    latest former champion that is at least 60 days old (the anchor), and since then one former
    champion of each 30 days, and the versions in which a person accepted a user's behaviour. Files
    that only removed versions need are removed with them.

    Example: `morpheus models prune models --keep=5 --delete`
    """

    keep: int = option(KEPT_VERSIONS, "Number of latest versions to keep.", min=0)
    delete: bool = option(
        False, "Remove what is listed. Without it, nothing is removed.", flag=True
    )
    json: bool = _json_option()
    models_key_file: str | None = _key_option()


@dataclass(frozen=True)
class ExportOptions:
    """Copy a version into a new store, which then has this version alone.

    STORE is a store, and `@` with an alias or a number. By default the champion is copied. FOLDER
    is the new store, on disk or in an object store.

    Example: `morpheus models export models@3 s3://bucket/models`
    """

    models_key_file: str | None = _key_option()


def _open(
    location: str, key_file: str | None, takes: Literal["version", "store"] = "version"
) -> tuple[VersionedStore, str]:
    """Return a store that has versions, and the alias or number of the location."""
    folder, which = split_location(location, "STORE", takes)
    store = VersionedStore.open(folder, read_key(key_file))
    if not which:
        store.resolve(CHAMPION)  # says what to do if there is no version
    return store, which


def _open_whole(location: str, key_file: str | None, command: str) -> VersionedStore:
    """Return a store for a command that is not about one version."""
    folder, which = split_location(location, "STORE", "store")
    if which:
        raise UsageError(
            f"STORE: `{location}` names a version, but `{command}` takes the whole store. Give "
            f"`morpheus models {command} {folder}`."
        )
    return _open(location, key_file)[0]


def _print_json(value: object) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    click.echo(text.decode())


# `list` and `show`.


def _run_list(options: ListOptions, location: str) -> None:
    store = _open_whole(location, options.models_key_file, "list")
    manifest = store.read_manifest()
    if options.json:
        _print_json([_describe_version(manifest, each) for each in manifest.versions])
        return
    rows = [
        (
            str(each.number),
            each.created[:16].replace("T", " "),
            f"{each.users:,}",
            f"{each.changed:,}",
            _format_period(each.period),
            ", ".join(_list_aliases(manifest, each.number)),
            each.note,
        )
        for each in manifest.versions
    ]
    print_table(("VERSION", "PUBLISHED", "USERS", "CHANGED", "TRAINED ON", "ALIAS", "NOTE"), rows)


def _describe_version(manifest: Manifest, version: StoredVersion) -> dict[str, Any]:
    facts = msgspec.to_builtins(version)
    facts.pop("indexes")
    defaults = {"parent": None, "note": "", "period": ["", ""], "is_rollback": False}
    return {**defaults, **facts, "aliases": _list_aliases(manifest, version.number)}


def _list_aliases(manifest: Manifest, number: int) -> list[str]:
    return sorted(name for name, each in manifest.aliases.items() if each == number)


def _format_period(period: Sequence[str]) -> str:
    first, last = (text[:10] for text in period)
    return f"{first} to {last}" if first and last else last


def _run_show(options: ShowOptions, location: str) -> None:
    store, which = _open(location, options.models_key_file)
    version = store.open_version(which or CHAMPION)
    manifest = store.read_manifest()
    stored = manifest.find(version.number)
    assert stored is not None  # noqa: S101 - the version was opened
    chosen = [_find_card(version, user) for user in options.user]
    cards = chosen or [version.cards[user] for user in sorted(version.cards)]
    if options.json:
        facts = _describe_version(manifest, stored) | {
            "inputs": version.inputs,
            "trained_until": version.trained_until,
            "cards": cards if chosen else cards[: options.max_users],
        }
        _print_json(facts)
        return
    click.echo("\n".join(format_facts(_list_facts(manifest, stored, version).items())))
    shown = cards if chosen else cards[: options.max_users]
    if not chosen and version.global_card is not None:
        shown = [version.global_card, *shown]
    if shown:
        click.echo()
        header = ("USER", "VERSION", "EVENTS", "DISTINCT", "TRAINED ON", "DATA OF", "BYTES")
        print_table(header, [_card_row(card) for card in shown])
    if not chosen and len(cards) > options.max_users:
        echo(f"and {format_count(len(cards) - options.max_users, 'more user')} (--max_users)")


def _find_card(version: ModelVersion, user: str) -> ModelCard:
    card = version.cards.get(user)
    if card is None:
        raise UsageError(
            f"--user: version {version.number} has no fingerprint of {quote_backtick(user)}."
            f"{suggest(user, version.cards)}"
        )
    return card


def _list_facts(
    manifest: Manifest, stored: StoredVersion, version: ModelVersion
) -> Mapping[str, str]:
    inputs = version.inputs
    facts = {
        "Version": ", ".join([str(stored.number), *_list_aliases(manifest, stored.number)]),
        "Published": stored.created[:16].replace("T", " "),
        "Note": stored.note,
        "Started from": "" if stored.parent is None else f"version {stored.parent}",
        "Users": f"{stored.users:,}, of which {stored.changed:,} changed",
        "Trained on": _format_period(stored.period),
        "Trained until": version.trained_until[:16].replace("T", " "),
    }
    if inputs is not None:
        facts |= {
            "Log": inputs.log_format or "data frames",
            "User column": inputs.user_column,
            "Features": f"{len(inputs.features):,}",
        }
    return {name: text for name, text in facts.items() if text}


def _card_row(card: ModelCard) -> list[str]:
    numbers = [f"{number:,}" for number in (card.version, card.events, card.distinct)]
    period = _format_period((card.first, card.last))
    return [_name(card.user), *numbers, period, card.training_data_scope, f"{card.size:,}"]


def _name(user: str) -> str:
    return display_value(user) if user else GLOBAL_NAME


# `diff`.


class _Side(msgspec.Struct, frozen=True):
    """What one version knows of a user, to compare.

    Attributes:
        version: Number of the version that published the fingerprint.
        events: Number of own training events.
        period: First and last of them.
        threshold: Risk that 1 % of the validation events exceed; None for the reference network.
        typical_score: Typical score of the validation events.
        columns: Feature columns.
    """

    version: int
    events: int
    period: tuple[str, str]
    threshold: float
    typical_score: float
    columns: tuple[str, ...]

    @classmethod
    def from_fingerprint(cls, fingerprint: Fingerprint) -> _Side:
        """Read a fingerprint."""
        card, calibration = fingerprint.card, fingerprint.calibration
        threshold = float(np.quantile(calibration.risks, ANOMALY_QUANTILE))
        return cls(
            card.version,
            card.events,
            (card.first, card.last),
            round(threshold, 3),
            round(float(calibration.typical_score), 6),
            tuple(fingerprint.encoder.names),
        )


def _run_diff(options: DiffOptions, location: str, old: str, new: str) -> None:
    store = _open_whole(location, options.models_key_file, "diff")
    first, second = store.open_intact(old or CHAMPION), store.open_intact(new or CANDIDATE)
    users = sorted({*first.cards, *second.cards, ""})
    changed = [user for user in users if _digest(first, user) != _digest(second, user)]
    sides = {
        user: (_load_side(first, user), _load_side(second, user))
        for user in (changed if options.json else changed[: options.max_users])
    }
    if options.json:
        values = {user: {"old": sides[user][0], "new": sides[user][1]} for user in changed}
        _print_json({"old": first.number, "new": second.number, "users": values})
        return
    click.echo(
        f"Version {first.number} to {second.number}: {format_count(len(changed), 'fingerprint')} "
        f"changed, {len(users) - 1 - len([user for user in changed if user]):,} equal"
    )
    if sides:
        click.echo()
        header = ("USER", "VERSION", "EVENTS", "TRAINED ON", "THRESHOLD", "TYPICAL", "COLUMNS")
        print_table(header, [_diff_row(user, *pair) for user, pair in sides.items()])
    if len(changed) > len(sides):
        echo(f"and {format_count(len(changed) - len(sides), 'more user')} (--max_users)")


def _digest(version: ModelVersion, user: str) -> str:
    placed = version.find_placed(user)
    return "" if placed is None else placed.card.sha256


def _load_side(version: ModelVersion, user: str) -> _Side | None:
    if version.find_placed(user) is None:
        return None
    return _Side.from_fingerprint(version.load_own(user))


def _diff_row(user: str, old: _Side | None, new: _Side | None) -> list[str]:
    """Return the row of a user: `old -> new` where they differ."""

    def both(read: Callable[[_Side], str]) -> str:
        before, after = ("none" if side is None else read(side) for side in (old, new))
        return before if before == after else f"{before} -> {after}"

    return [
        _name(user),
        both(lambda side: str(side.version)),
        both(lambda side: f"{side.events:,}"),
        both(lambda side: _format_period(side.period)),
        both(lambda side: f"{side.threshold:.1f}"),
        both(lambda side: f"{side.typical_score:.3f}"),
        _compare_columns(old, new),
    ]


def _compare_columns(old: _Side | None, new: _Side | None) -> str:
    before = () if old is None else old.columns
    after = () if new is None else new.columns
    if old is None or new is None or before == after:
        return f"{len(after or before):,}"
    parts = [f"-{name}" for name in before if name not in after]
    parts += [f"+{name}" for name in after if name not in before]
    return " ".join(parts) or "another order"


# `promote` and `rollback`.


class _Alert(msgspec.Struct, frozen=True):
    """A user's day that is an alert.

    Attributes:
        user: The user; empty for events without one.
        day: The day.
        severity: Highest severity of its events.
        events: Number of its events.
        reason: Reason of the event that describes it; see `find_lead`.
    """

    user: str
    day: str
    severity: float
    events: int
    reason: str


def _run_promote(options: PromoteOptions, location: str) -> None:
    store, which = _open(location, options.models_key_file)
    source = store.resolve(which or CANDIDATE)
    users = sorted({*options.user}) or None
    version = store.open_intact(source)
    for user in users or ():
        _find_card(version, user)
    targets = {source: users}
    _show_change(options, store, targets)
    if options.dry_run:
        return
    number = store.promote(users, source=source, note=options.note)
    echo(f"{store.folder}: version {number} is the champion.")


def _run_rollback(options: RollbackOptions, location: str) -> None:
    store, which = _open(location, options.models_key_file, "store")
    if which not in {"", CHAMPION}:
        raise UsageError(
            f"STORE: `{location}`: `rollback` moves the alias `{CHAMPION}` to the version before. "
            f"To select version `{which}`, use `morpheus models promote {location}`."
        )
    users = sorted({*options.user}) or None
    targets: dict[int, list[str] | None] = {}
    if users is None:
        targets[store.find_former().number] = None
    else:
        by_number = defaultdict[int, list[str]](list)
        for user, version in store.find_former_of(users).items():
            by_number[version.number].append(user)
        targets |= by_number
    _show_change(options, store, targets)
    if options.dry_run:
        return
    number = store.rollback(users, note=options.note)
    echo(f"{store.folder}: version {number} is the champion.")


def _show_change(
    options: AliasOptions, store: VersionedStore, targets: Mapping[int, list[str] | None]
) -> None:
    """Show which alerts appear and which vanish.

    Args:
        options: The options.
        store: The store.
        targets: Versions that become the champion, each with its users; None for all users.
    """
    _check_period(options)
    champion = store.resolve(CHAMPION)
    words = [
        f"version {number}" + ("" if users is None else f" for {format_count(len(users), 'user')}")
        for number, users in targets.items()
    ]
    echo(f"Champion: version {champion} -> {', '.join(words)}")
    if options.input_glob is None:
        if options.json:
            _print_json({"champion": champion, "targets": targets})
        return
    appear, vanish, same, scored = list[_Alert](), list[_Alert](), 0, 0
    with interruptible():
        for number, users in targets.items():
            (before, events), (after, later) = (
                _find_alerts(options, store, which, users) for which in (champion, number)
            )
            scored += events + later
            appear += [after[key] for key in sorted(after.keys() - before.keys())]
            vanish += [before[key] for key in sorted(before.keys() - after.keys())]
            same += len(after.keys() & before.keys())
    if not scored:
        raise UsageError(
            "--input_glob: no event of this period was scored, so there is nothing to compare. "
            "Give other logs, --start_time, --duration or --user."
        )
    if options.json:
        facts = {"champion": champion, "targets": targets, "same": same}
        _print_json({**facts, "appear": appear, "vanish": vanish})
        return
    click.echo(
        f"{format_count(len(appear), 'alert')} would appear, {len(vanish):,} would vanish, "
        f"{same:,} would stay"
    )
    if appear or vanish:
        click.echo()
        rows = [_alert_row("appears", each) for each in appear]
        rows += [_alert_row("vanishes", each) for each in vanish]
        print_table(("ALERT", "USER", "DAY", "SEVERITY", "EVENTS", "REASON"), rows)


_PERIOD_OPTIONS = (
    *("start_time", "duration", "source", "columns_file", "pseudonym_key_file"),
    *("alerts_per_day", "min_severity"),
)


def _check_period(options: AliasOptions) -> None:
    """Reject options of the comparison where nothing is compared."""
    if options.input_glob is None:
        for name in _PERIOD_OPTIONS:
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name}: no logs are scored. Give logs of a period with --input_glob, to "
                    "see which alerts appear and which vanish."
                )


def _alert_row(change: str, alert: _Alert) -> list[str]:
    severity = f"{alert.severity:.0f}"
    return [change, _name(alert.user), alert.day, severity, f"{alert.events:,}", alert.reason]


def _severity_limit(options: AliasOptions) -> float:
    return HIGH_SEVERITY if options.min_severity is None else options.min_severity


def _find_alerts(
    options: AliasOptions, store: VersionedStore, number: int, users: Collection[str] | None
) -> tuple[dict[tuple[str, str], _Alert], int]:
    """Score the period with a version; return its alerts by user and day, and how many events."""
    version = store.open_version(number)
    stages: list[Stage] = [
        _make_source(options, version.inputs),
        TrainAe(pretrained_filename=version.location, models_key_file=options.models_key_file),
        Preprocess(),
        InfPytorch(),
        AddScores(label=(RISK, SEVERITY)),
        Explain(prefix=_PREFIX),
        Filter(alerts_per_day=options.alerts_per_day)
        if options.alerts_per_day is not None
        else Filter(threshold=_severity_limit(options), label=(SEVERITY,)),
        sink := CollectSink(),
    ]
    pipeline_options = _make_options(options, version.inputs, users)
    with show_progress(stages) as on_step:
        metrics = Pipeline(stages, pipeline_options).run(on_step=on_step)
    alerts = {(each.user, each.day): each for each in _join_alerts(sink.batches, pipeline_options)}
    return alerts, metrics.num_scored


_PREFIX = "_models_"
"""Prefix of the columns of `explain`: logs can have a column of the same name."""


def _make_source(options: AliasOptions, inputs: InputSpec | None) -> FileSource:
    word = options.source or ("" if inputs is None else inputs.source)
    if not word:
        raise UsageError(
            "--source: the store does not say which source read its logs. Give its word, such as "
            "--source=from-cloudtrail."
        )
    times = {"start_time": options.start_time, "duration": options.duration}
    given = {name: text for name, text in times.items() if text is not None}
    return LogKind(word, word).make_source(list_values(options.input_glob), **given)


def _make_options(
    options: AliasOptions, inputs: InputSpec | None, users: Collection[str] | None
) -> PipelineOptions:
    values: dict[str, Any] = {"num_threads": 1}
    if users is not None:
        values["userid_filter"] = tuple(users)
    if inputs is not None:
        is_actor = inputs.user_column == ACTOR
        values |= {
            "userid_column_name": ACTOR_OPTION if is_actor else inputs.user_column,
            "timezone": inputs.timezone,
            "pseudonymize": inputs.pseudonyms,
            "columns_file": options.columns_file or inputs.columns_file or None,
            "pseudonym_key_file": options.pseudonym_key_file,
        }
    return PipelineOptions(**values)


def _join_alerts(batches: Iterable[Batch], options: PipelineOptions) -> Iterator[_Alert]:
    """Return the alerts of some batches: one for each day of a user with an event."""
    frames = defaultdict[str, list[pl.DataFrame]](list)
    reason, top_columns, _ = ExplanationColumns().with_prefix(_PREFIX)
    for batch in batches:
        if batch.table.height:
            rows = batch.table.select([TIME, SEVERITY, reason, top_columns]).to_frame()
            frames[batch.user or ""].append(rows)
    for user, parts in sorted(frames.items()):
        rows = pl.concat(parts)
        days = pl.Series("day", number_days(rows[TIME], options.timezone))
        for (day,), events in rows.with_columns(days).group_by("day", maintain_order=True):
            severities = events[SEVERITY].fill_null(0.0).to_list()
            lead = events.row(find_lead(severities, events[top_columns].to_list()), named=True)
            yield _Alert(
                user,
                format_day(int(str(day))),
                max(severities),
                events.height,
                lead[reason] or "",
            )


# `prune` and `export`.


def _run_prune(options: PruneOptions, location: str) -> None:
    store = _open_whole(location, options.models_key_file, "prune")
    kept = store.find_kept(options.keep)
    versions = store.versions()
    if options.delete:
        store.prune(options.keep)
    removed = [each.number for each in versions if each.number not in kept]
    if options.json:
        _print_json({"removed" if options.delete else "unneeded": removed, "kept": kept})
        return
    rows = [
        (
            str(each.number),
            each.created[:16].replace("T", " "),
            f"kept: {kept[each.number]}" if each.number in kept else "not needed",
        )
        for each in versions
    ]
    print_table(("VERSION", "PUBLISHED", "WHY"), rows)
    number = format_count(len(removed), "version")
    if options.delete:
        echo(f"Removed {number}.")
    else:
        echo(f"{number} can be removed. Nothing was removed. Add --delete to remove them.")


def _run_export(options: ExportOptions, location: str, folder: str) -> None:
    store, which = _open(location, options.models_key_file)
    target, alias = split_location(folder, "FOLDER", "store")
    if alias:
        raise UsageError(
            f"FOLDER: `{folder}` names a version, but the new store has one version, its champion. "
            f"Give `{target}`."
        )
    number = store.export(folder, which or CHAMPION)
    echo(f"{folder}: version {number} of {store.folder}")


@click.group(cls=CommandGroup)
def models() -> None:
    """Versions of a model store: list, compare, promote, roll back, remove and copy them."""


def _argument(name: str, *, required: bool = True) -> click.Argument:
    return click.Argument([name]) if required else click.Argument([name], default="")


models.add_command(command_from_dataclass("list", ListOptions, _run_list, _argument("store")))
models.add_command(command_from_dataclass("show", ShowOptions, _run_show, _argument("store")))
models.add_command(
    command_from_dataclass(
        "diff",
        DiffOptions,
        _run_diff,
        _argument("store"),
        _argument("old", required=False),
        _argument("new", required=False),
    )
)
models.add_command(
    command_from_dataclass("promote", PromoteOptions, _run_promote, _argument("store"))
)
models.add_command(
    command_from_dataclass("rollback", RollbackOptions, _run_rollback, _argument("store"))
)
models.add_command(command_from_dataclass("prune", PruneOptions, _run_prune, _argument("store")))
models.add_command(
    command_from_dataclass(
        "export", ExportOptions, _run_export, _argument("store"), _argument("folder")
    )
)
