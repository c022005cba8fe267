"""Slow poisoners: another user's habits are blended into a user's events, from 0 to 100 %.

Each active day of a user is a block, and blocks are renumbered as consecutive days. The first ones
are the history. Then follow `STEPS` blocks in which the share of the other user's events rises by
the same amount each day, and a retraining every `BETWEEN` blocks, by each of the rules. Then blocks
of the other user alone and the user's own blocks are scored, each as the first day after that.

An event of the other user takes the place of an own one: its time, and in the companies its
identity columns, are the user's. The other user's events that are scored come after those that were
blended in. A block is flagged if its p-value is at most that of the guard's threshold.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from figures.table import Table
from generator.fleet import Fleet
from make_fleet import Writer

from morpheus.models.daily_usage import UsageState
from morpheus.models.drift import MAX_LEARNED_PVALUE
from morpheus.models.fit import UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.profile import Fingerprint
from morpheus.models.retraining import (
    Guard,
    UserEvents,
    UserReview,
    count_flagged,
    freeze,
    score_daily,
    update,
)
from quality import commits, fleet
from quality.trial import WHEN, half

HISTORY, STEPS, TESTED = 40, 60, 15
"""Number of blocks before the poisoning, during it, and of each kind to score afterwards."""
BETWEEN, WINDOW = 15, 60
"""Number of blocks between two retrainings, and that each of them looks back."""
LEAST_EVENTS = 300
"""Minimum number of events of the other user."""
MOST_SAMPLED = 400
"""Maximum number of events of a user in the population sample."""
LEAST_LEARNT = 50
"""Minimum number of events to train on; with fewer, the fingerprint stays."""
BLENDED = 0.6
"""Share of the other user's events that may be blended in. The rest is scored."""
START = datetime(2026, 1, 1, tzinfo=UTC)
FIXED, STATE, ALWAYS = "never", "never, with --state", "always"
RETRAIN, UPDATE = "morpheus retrain", "morpheus retrain --update"
RULES: Mapping[str, Guard | None] = {
    FIXED: None,
    STATE: None,
    ALWAYS: Guard(threshold=-1.0, trim=0.0, freeze=False, anchor=False),
    "threshold only": Guard(trim=0.0, freeze=False, anchor=False),
    UPDATE: Guard(),
    RETRAIN: Guard(),
}
"""The rules of updating."""


@dataclass(frozen=True)
class People:
    """The users of one log.

    Attributes:
        columns: Feature columns.
        kept: Those that say who the user is: the other user cannot change them.
        blocks: Events of each user, with the number of the block, and the time.
        victims: Users with enough blocks.
    """

    columns: tuple[str, ...]
    kept: tuple[str, ...]
    blocks: Mapping[str, pl.DataFrame]
    victims: tuple[str, ...]

    @classmethod
    def of(
        cls,
        users: Mapping[str, pl.DataFrame],
        columns: tuple[str, ...],
        kept: tuple[str, ...] = (),
        chosen: Callable[[str], bool] = bool,
    ) -> People:
        """Number the blocks of users. Only chosen users are victims."""
        blocks = {name: _number_blocks(events, columns) for name, events in users.items()}
        needed = HISTORY + STEPS + TESTED
        victims = [
            name
            for name, events in blocks.items()
            if events["block_"][-1] + 1 >= needed and chosen(name)
        ]
        return cls(columns, kept, blocks, tuple(sorted(victims)))

    def sample(self) -> Population:
        """Return the sample of all users at the end of the history."""
        parts = [
            _between(events, 0, HISTORY).tail(MOST_SAMPLED).with_columns(user_=pl.lit(name))
            for name, events in sorted(self.blocks.items())
        ]
        whole = pl.concat(parts)
        return Population(whole["user_"], whole["time_"], whole.select(self.columns))

    def draw_pairs(self, number: int, seed: int) -> list[tuple[str, str]]:
        """Draw victims, each with another user."""
        others = [name for name, each in self.blocks.items() if each.height >= LEAST_EVENTS]
        pairs = [(one, two) for one in self.victims for two in sorted(others) if one != two]
        return random.Random(seed).sample(pairs, min(number, len(pairs)))  # noqa: S311 - a benchmark, not secrets


def _number_blocks(events: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    """Number the active days, and move each to the day of its number."""
    day = pl.col("when_").dt.truncate("1d")
    numbered = events.sort("when_", maintain_order=True).with_columns(
        block_=day.rank("dense").cast(pl.Int64) - 1
    )
    moved = pl.lit(START) + pl.duration(days=pl.col("block_")) + (pl.col("when_") - day)
    return numbered.select("block_", moved.alias("time_"), *columns)


def _between(events: pl.DataFrame, first: int, end: int) -> pl.DataFrame:
    return events.filter(pl.col("block_").is_between(first, end - 1))


def of_commits(data: Path, part: str) -> People:
    """Return the committers; victims are those of one half."""
    frame = commits.read(data / "commits" / "commits.jsonl.gz").rename({WHEN: "when_"})
    users = {each["user"][0]: each for each in frame.partition_by("user", maintain_order=True)}
    return People.of(users, commits.COLUMNS, chosen=lambda name: half(name) == part)


def of_company(seed: int, users: int = 24, days: int = 175) -> People:
    """Return the members of a generated company without incidents."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        company = Fleet(users, days=days, training=days - 1, attacked=0.0, seed=seed)
        Writer(company, folder, ("parquet",)).write()
        frame = pl.concat(
            [fleet.read(folder / "parquet" / part) for part in ("training", "scored")],
            how="diagonal",
        )
    when = pl.col(WHEN).str.to_datetime(time_zone="UTC").alias("when_")
    frame = frame.with_columns(when).filter(pl.col(fleet.USER).is_not_null())
    columns = tuple(name for name in fleet.COLUMNS if name in frame.columns)
    kept = tuple(name for name in columns if name.startswith("userIdentity"))
    members = frame.partition_by(fleet.USER, maintain_order=True)
    return People.of({each[fleet.USER][0]: each for each in members}, columns, kept)


@dataclass(frozen=True)
class Blocks:
    """What happens to a victim.

    Attributes:
        run: The history and the blocks of the ramp.
        own: Own blocks afterwards.
        other: Blocks of the other user alone.
    """

    run: pl.DataFrame
    own: pl.DataFrame
    other: pl.DataFrame

    @classmethod
    def of(cls, people: People, victim: str, other: str, *, poisoned: bool, seed: int) -> Blocks:
        """Blend the other user's events in, if the victim is poisoned."""
        rng = np.random.default_rng(seed)
        own, theirs = people.blocks[victim], people.blocks[other]
        cut = int(theirs.height * BLENDED)
        end = HISTORY + STEPS
        run = _between(own, 0, end)
        if poisoned:
            shares = ((run["block_"].to_numpy() - HISTORY + 1) / STEPS).clip(0)
            run = _blend(run, theirs[:cut], rng.random(run.height) < shares, people)
        later = _between(own, end, end + TESTED)
        taken = np.ones(later.height, dtype=np.bool_)
        return cls(run, later, _blend(later, theirs[cut:], taken, people))


def _blend(
    own: pl.DataFrame, theirs: pl.DataFrame, taken: np.ndarray, people: People
) -> pl.DataFrame:
    """Replace events by those of the other user, in their order."""
    rows = pl.Series((np.cumsum(taken) - 1).clip(0) % theirs.height)
    chosen = pl.Series(taken)
    moved = [name for name in people.columns if name not in people.kept]
    return own.with_columns(
        pl.when(chosen).then(theirs[name].gather(rows)).otherwise(own[name]).alias(name)
        for name in moved
    )


@dataclass
class Learner:
    """A victim's fingerprint, as a rule renews it.

    Attributes:
        user: The victim.
        people: The users.
        population: Sample of them.
        first: The first fingerprint, which is the anchor.
        frozen: Whether the victim is frozen.
    """

    user: str
    people: People
    population: Population
    first: Fingerprint
    frozen: bool = False

    def events(self, frame: pl.DataFrame) -> UserEvents:
        """Return events as the guard takes them."""
        return UserEvents(self.user, frame.select(self.people.columns), frame["time_"])

    def learn(self, run: pl.DataFrame, guard: Guard, *, updates: bool) -> Fingerprint:
        """Retrain or update during a run, and return the last fingerprint."""
        champion = self.first
        for end in range(HISTORY + BETWEEN, HISTORY + STEPS + 1, BETWEEN):
            given = self.events(_between(run, end - WINDOW, end))
            none = np.zeros(len(given), dtype=np.bool_)
            review = UserReview(given, champion, self.first, guard, none, none)
            self.frozen |= review.rise is not None
            if self.frozen:
                return freeze(self.first, START.date())
            chosen = review.selection
            learned = chosen.learned[chosen.usable]
            if learned.sum() < LEAST_LEARNT:
                continue
            if updates:
                champion = update(champion, given, chosen)
            else:
                kept = given.take(chosen.usable)
                champion = train(
                    kept, self.people, self.population, None if learned.all() else learned
                )
        return champion

    def renew(self, rule: str, run: pl.DataFrame) -> Renewed:
        """Renew the fingerprint by a rule."""
        guard, state = RULES[rule], UsageState()
        self.frozen = False
        fingerprint = self.first
        if guard is not None:
            fingerprint = self.learn(run, guard, updates=rule == UPDATE)
        if rule == STATE:
            later = _between(run, HISTORY, HISTORY + STEPS)
            score_daily(fingerprint, self.events(later), state)
        return Renewed(fingerprint, state, self.frozen)

    def flag(self, renewed: Renewed, part: pl.DataFrame) -> float:
        """Return the share of blocks that are flagged."""
        flagged = count_flagged(
            renewed.fingerprint, self.events(part), MAX_LEARNED_PVALUE, renewed.state
        )
        return flagged / part["block_"].n_unique()


class Renewed(NamedTuple):
    """A fingerprint after the ramp, what is remembered of the ramp, and whether it is frozen."""

    fingerprint: Fingerprint
    state: UsageState
    frozen: bool


def train(
    given: UserEvents, people: People, population: Population, learned: np.ndarray | None = None
) -> Fingerprint:
    """Train a fingerprint as `train-ae` does."""
    history = UserHistory(given.user, given.events, given.times, learned=learned)
    return fit_fingerprints([history], people.columns, population=population)[0]


Result = dict[str, tuple[float, float, bool]]
"""For each rule: the share of the other user's blocks and of the own blocks that are flagged, and
whether the victim is frozen."""


def measure(
    people: People, population: Population, seed: int, job: tuple[str, Sequence[str]]
) -> list[tuple[Result, Result]]:
    """Measure all rules for a victim and some other users, poisoned and not."""
    victim, others = job
    history = _between(people.blocks[victim], 0, HISTORY)
    given = UserEvents(victim, history.select(people.columns), history["time_"])
    learner = Learner(victim, people, population, train(given, people, population))
    clean = Blocks.of(people, victim, others[0], poisoned=False, seed=seed)
    unspoilt = {rule: learner.renew(rule, clean.run) for rule in RULES}
    own = {rule: learner.flag(unspoilt[rule], clean.own) for rule in RULES}
    found = []
    for other in others:
        blocks = Blocks.of(people, victim, other, poisoned=True, seed=seed)
        poisoned: Result = {}
        usual: Result = {}
        for rule, before in unspoilt.items():
            usual[rule] = learner.flag(before, blocks.other), own[rule], before.frozen
            # The first fingerprint is the same, whatever happened afterwards.
            after = before if rule == FIXED else learner.renew(rule, blocks.run)
            flagged = [learner.flag(after, part) for part in (blocks.other, blocks.own)]
            poisoned[rule] = flagged[0], flagged[1], after.frozen
        found.append((poisoned, usual))
    return found


@dataclass
class Totals:
    """Results of the pairs of one kind of log.

    Attributes:
        poisoned: Of the poisoned victims.
        clean: Of the same victims without the poison, with the same other users afterwards.
    """

    poisoned: list[Result] = field(default_factory=list)
    clean: list[Result] = field(default_factory=list)

    def add(
        self, people: People, pairs: Sequence[tuple[str, str]], seed: int, threads: int
    ) -> None:
        """Measure some pairs."""
        run = partial(measure, people, people.sample(), seed)
        others: dict[str, list[str]] = {}
        for victim, other in pairs:
            others.setdefault(victim, []).append(other)
        # Polars does not survive a fork.
        with ProcessPoolExecutor(threads, get_context("spawn")) as pool:
            results = [each for found in pool.map(run, others.items()) for each in found]
        self.poisoned += [poisoned for poisoned, _ in results]
        self.clean += [clean for _, clean in results]

    def table(self, title: str) -> Table:
        """Return the table."""
        header = (
            "rule",
            "poisoned: other's blocks flagged",
            "own flagged",
            "frozen",
            "not poisoned: other's blocks flagged",
            "own flagged",
            "frozen",
            "detection kept",
        )
        table = Table(f"{title}, {len(self.poisoned)} pairs", header)
        for rule in RULES:
            poisoned, clean = (
                [float(np.mean([each[rule][at] for each in results])) for at in range(3)]
                for results in (self.poisoned, self.clean)
            )
            kept = f"{poisoned[0] / clean[0]:.0%}" if clean[0] else "-"
            table.add(rule, *(f"{x:.0%}" for x in (*poisoned, *clean)), kept)
        return table


def tables(
    data: Path, pairs: int, seeds: Sequence[int], part: str, threads: int
) -> Iterator[Table]:
    """Measure pairs of committers and of members of companies.

    Args:
        data: Folder of the public logs.
        pairs: Number of pairs of each kind.
        seeds: Seeds of the companies.
        part: Half of the committers that are victims.
        threads: Number of processes.
    """
    everything = Totals()
    sources: Mapping[str, Sequence[Callable[[], People]]] = {
        "commits": [partial(of_commits, data, part)],
        "companies": [partial(of_company, seed) for seed in seeds],
    }
    for title, makers in sources.items():
        totals = Totals()
        for number, make in enumerate(makers):
            people = make()
            drawn = people.draw_pairs(pairs // len(makers), number)
            totals.add(people, drawn, number, threads)
        everything.poisoned += totals.poisoned
        everything.clean += totals.clean
        yield totals.table(title)
    yield replace(everything.table("all"), note=NOTE)


NOTE = (
    "A block is flagged if its p-value is at most "
    f"{MAX_LEARNED_PVALUE:g}. `never`: each block as the day after the training. `detection kept`: "
    "the share of the other user's blocks that is flagged after the poisoning, as a part of the "
    "share without it, by the same rule."
)
