"""The labelled sets of the protocol: trials, and the users whose figures count.

A source makes the sets that share data: a set is a row of the protocol's tables. Each seed makes
other fleets and other start times of techniques. The commits and the lessons' data are the same for
each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from quality import changes, commits, fleet, generated, lessons
from quality.generated import Plan
from quality.trial import Trial, half

FIRST_SEED = 101
"""Seed of the first generated fleet of the protocol. Lower ones are for choosing settings."""
ALONE = 8
"""Number of users who are scored alone."""
GENERATED = "generated"


@dataclass(frozen=True)
class Part:
    """A trial, and the users whose figures count."""

    trial: Trial
    users: tuple[str, ...]

    @classmethod
    def of(cls, trial: Trial) -> Part:
        """Count all users."""
        return cls(trial, tuple(trial.spans))


Sets = Mapping[str, Sequence[Part]]
"""Name of each set -> its parts, which have equal weight."""


@dataclass(frozen=True)
class Source:
    """Makes some sets.

    Attributes:
        kind: Whose data they are. Sets of one kind are not independent.
        make: Returns the sets for a folder of public logs, a seed, and whether to use few users.
        shares_history: Whether all trials have the same history.
        drifts: Whether benign users change in a lasting way.
    """

    kind: str
    make: Callable[[Path, int, bool], Sets]
    shares_history: bool = False
    drifts: bool = False


def of_commits(data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """Commits, by all users."""
    del seed
    trial = commits.trial(require(data / "commits" / "commits.jsonl.gz"))
    users = [user for part in "AB" for user in [u for u in trial.spans if half(u) == part][:3]]
    return {"commits": [Part.of(trial.only(users) if few else trial)]}


def of_console(data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """Console sessions, in rounds with a technique on every second day."""
    from quality import console  # noqa: PLC0415 - it needs `morpheus.replay`

    require(data / "cloudtrail-console")
    scenes = console.scenes(data, seed, few=few, every=2)
    return {f"console, {grade}": [*map(Part.of, rounds)] for grade, rounds in scenes.items()}


def of_companies(data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """A made-up company for each seed."""
    del data
    small = {"users": 8, "days": 20, "training": 14, "attacked": 1.0} if few else {}
    number = fleet.PRINTED[0] - 1 + seed
    return {"companies": [Part.of(fleet.trial(number, **small))]}  # type: ignore[arg-type]  # numbers of users and days are integers


def of_lessons(data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """The two users of the notebooks."""
    del data, seed, few
    return {"lessons": [Part.of(lessons.trial())]}


def require(path: Path) -> Path:
    """Return a path of public logs.

    Raises:
        FileNotFoundError: If there is nothing. The message says what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there are no such logs. `--data` names their folder")
    return path


def generate(plan: Plan, data: Path, seed: int, *, few: bool) -> Trial:
    """Generate the fleet of a plan for a seed of the protocol."""
    plan = replace(plan, seed=FIRST_SEED - 1 + seed, users=5 if few else plan.users)
    return generated.trial(plan, find_generator(data))


def find_generator(data: Path) -> Path:
    """Return the file of the generator, which is beside the public logs."""
    return data.parent / "tools" / "gen_cloudtrail.py"


def of_fleet(plan: Plan, data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """One generated fleet."""
    trial = generate(plan, data, seed, few=few)
    return {trial.name: [Part.of(trial)]}


def of_drift(plan: Plan, data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """One generated fleet whose users change."""
    trial = changes.add_drift(generate(plan, data, seed, few=few), seed)
    return {trial.name: [Part.of(trial)]}


def of_newcomers(plan: Plan, data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """One generated fleet in which a third of the users are new: all users, and the new ones."""
    trial = changes.cut_histories(generate(plan, data, seed, few=few), seed)
    new = Part(trial, tuple(changes.list_newcomers(trial)))
    return {trial.name: [Part.of(trial)], f"{trial.name} only": [new]}


def of_single_users(plan: Plan, data: Path, seed: int, few: bool) -> Sets:  # noqa: FBT001 - as `Source.make` says
    """Users of one generated fleet, each without the others."""
    trials = list(
        changes.iter_single_users(generate(plan, data, seed, few=few), 2 if few else ALONE)
    )
    return {trials[0].name: [*map(Part.of, trials)]}


def _generated() -> list[Source]:
    plans = [
        Plan(0, history=history, identifiers=kept)
        for kept in (True, False)
        for history in generated.HISTORIES
    ]
    middle = [plan for plan in plans if plan.history == generated.HISTORIES[1]]
    return [
        *(Source(GENERATED, partial(of_fleet, plan)) for plan in plans),
        *(Source(GENERATED, partial(of_drift, plan), drifts=True) for plan in [*middle, plans[-1]]),
        *(Source(GENERATED, partial(of_newcomers, plan)) for plan in middle),
        *(Source(GENERATED, partial(of_single_users, plan)) for plan in middle),
    ]


SOURCES: Sequence[Source] = (
    Source("commits", of_commits),
    Source("console", of_console, shares_history=True),
    Source("companies", of_companies),
    Source("lessons", of_lessons),
    *_generated(),
)
KINDS = tuple(dict.fromkeys(source.kind for source in SOURCES))
"""Kinds of data."""
