"""The parts of the benchmark: their trials, users and tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

from figures.table import Table

from quality import (
    alerts,
    benign,
    bursts,
    commits,
    fleet,
    lessons,
    poison,
    protocol,
    reasons,
    scorers,
)
from quality.comparison import Comparison
from quality.judge import FIGURES, Verdict
from quality.scorers import Floats
from quality.sets import KINDS, find_generator
from quality.trial import Trial, half, merge_trials, of_part

Groups = Mapping[str, Collection[str]]
EVERYBODY = "all users"


@dataclass(frozen=True)
class Run:
    """Options of the benchmark.

    Attributes:
        data: Folder of the public logs.
        seeds: Number of seeds.
        quick: Few users, for a quick check.
        rivals: Keys of `scorers.RIVALS`.
        threads: Number of parallel workers.
        fleets: Number of generated benign fleets.
        sets: Kinds of data of the protocol.
    """

    data: Path
    seeds: int = 5
    quick: bool = False
    rivals: Sequence[str] = tuple(scorers.RIVALS)
    threads: int = 1
    fleets: int = 12
    sets: Sequence[str] = KINDS


def of_commits(run: Run) -> Iterator[Table]:
    """One trial, with separate figures for its halves."""
    trial = commits.trial(run.data / "commits" / "commits.jsonl.gz")
    if run.quick:
        few = [users[:3] for users in halves(trial).values()]
        trial = trial.only([user for users in few for user in users])
    groups = {f"half {name}": users for name, users in halves(trial).items()}
    yield from compared(run, repeat(trial), {**groups, EVERYBODY: tuple(trial.spans)})


def halves(trial: Trial) -> dict[str, list[str]]:
    """Return the users of each half."""
    return {name: [user for user in trial.spans if half(user) == name] for name in "AB"}


def of_fleet(run: Run) -> Iterator[Table]:
    """One company per seed."""
    small = partial(fleet.trial, users=8, days=20, training=14, attacked=1.0)
    trials = map(small if run.quick else fleet.trial, fleet.PRINTED)
    yield from compared(run, trials)


def of_lessons(run: Run) -> Iterator[Table]:
    """Two users."""
    yield from compared(run, repeat(lessons.trial()))


def of_console(run: Run) -> Iterator[Table]:
    """Rounds of a few techniques, days apart, with a table per evasion level.

    No day of a round is benign, so days are not ranked.

    Other detectors score single events, so they score the events of all rounds at once.
    """
    from quality import console  # noqa: PLC0415 - it needs `morpheus.replay`

    tables: dict[str, Comparison] = {}
    for seed in range(1, run.seeds + 1):
        scenes = console.scenes(run.data, seed, few=run.quick)
        whole = merge_trials([trial for rounds in scenes.values() for trial in rounds])
        known = scorers.theirs(whole, seed, run.rivals)
        for grade, rounds in scenes.items():
            judged = [
                (
                    Verdict(trial, tuple(trial.spans)),
                    scorers.ours(trial, seed, run.threads)
                    | scorers.shown(select_part(whole, known, trial)),
                )
                for trial in rounds
            ]
            empty = comparison(console.GRADES[grade], without=("AUC by day", "AP of days"))
            tables.setdefault(grade, empty).add(judged)
    for each in tables.values():
        yield each.table()


def select_part(whole: Trial, known: Mapping[str, Floats], part: Trial) -> dict[str, Floats]:
    """Select values of a part's rows from those of the whole."""
    return {word: of_part(whole, each, part) for word, each in known.items()}


def compared(
    run: Run, trials: Iterable[Trial], groups: Groups | None = None, title: str = EVERYBODY
) -> Iterator[Table]:
    """Score a trial with each seed, and compute the figures of each group of users."""
    titles = [title] if groups is None else list(groups)
    tables = {name: comparison(name) for name in titles}
    for seed, trial in zip(range(1, run.seeds + 1), trials, strict=False):
        known = scorers.theirs(trial, seed, run.rivals)
        scores = scorers.ours(trial, seed, run.threads) | scorers.shown(known)
        whose = {title: tuple(trial.spans)} if groups is None else groups
        for name, each in tables.items():
            each.add([(Verdict(trial, whose[name]), scores)])
    for each in tables.values():
        yield each.table()


def comparison(title: str, without: Sequence[str] = ()) -> Comparison:
    """Return an empty table."""
    figures = tuple(name for name in FIGURES if name not in without)
    return Comparison(title, figures, len(scorers.labels()))


def of_reference(run: Run) -> Iterator[Table]:
    """The detector as slow as the reference: half an hour per seed, once."""
    alone = replace(run, rivals=["dfencoder"])
    trial = commits.trial(run.data / "commits" / "commits.jsonl.gz")
    yield from compared(alone, repeat(trial), {"commits": tuple(trial.spans)})
    yield from compared(alone, map(fleet.trial, fleet.PRINTED), title="companies")
    yield from of_console(alone)
    yield from compared(alone, repeat(lessons.trial()), title="lessons")


def of_protocol(run: Run) -> Iterator[Table]:
    """Every scorer on every set, and their ranks."""
    plan = protocol.Protocol(run.data, run.rivals, run.threads, run.quick, run.sets)
    yield from protocol.tables(plan, run.seeds)


def of_alerts(run: Run) -> Iterator[Table]:
    """The alert budget on benign days."""
    number = 2 if run.quick else run.fleets
    logs = chain(benign.fleets(run.data, number), benign.others(run.data, run.seeds))
    found = [
        one
        for seed, (group, trial) in enumerate(logs, start=1)
        for one in alerts.spend(trial, seed, group)
    ]
    yield alerts.summary(found)
    yield alerts.table(found)


def of_bursts(run: Run) -> Iterator[Table]:
    """Bursts of events, which `timeseries` looks for."""
    yield bursts.table(find_generator(run.data), run.seeds, quick=run.quick)


def of_reasons(run: Run) -> Iterator[Table]:
    """Explanations of detected incidents."""
    from quality import console  # noqa: PLC0415 - it needs `morpheus.replay`

    table, texts = reasons.table(), reasons.texts_table()
    sets: dict[str, Iterable[Trial]] = {
        "companies": map(fleet.trial, list(fleet.PRINTED)[: run.seeds])
    }
    scenes = console.scenes(run.data, 1).items()
    sets |= {f"console: {console.GRADES[grade]}": rounds for grade, rounds in scenes}
    for name, trials in sets.items():
        explained = reasons.explain(trials)
        reasons.add(table, name, explained)
        reasons.add_texts(texts, name, explained)
    yield table
    yield texts


def of_risk(run: Run) -> Iterator[Table]:
    """The effect of each part of `risk`."""
    from quality import (  # noqa: PLC0415 - it changes the model, which other parts do not
        ablation,
        generated,
        sets,
    )

    few = {"users": 8, "days": 20, "training": 14, "attacked": 1.0} if run.quick else {}
    companies = [fleet.trial(seed, **few) for seed in list(fleet.CHOOSING)[: run.seeds]]  # type: ignore[arg-type]  # numbers of users and days are integers
    generator = sets.find_generator(run.data)
    plans = [generated.Plan(seed, users=5 if run.quick else 15) for seed in range(1, run.seeds + 1)]
    fleets = [generated.trial(plan, generator) for plan in plans]
    yield ablation.table({"companies": companies, "generated fleets": fleets})


def of_poison(run: Run) -> Iterator[Table]:
    """Slow poisoners, and rules of retraining. Rules were chosen on half A and other companies."""
    pairs = 6 if run.quick else 104
    seeds = fleet.PRINTED[: 1 if run.quick else 2]
    yield from poison.tables(run.data, pairs, seeds, "B", run.threads)


PARTS: Mapping[str, Callable[[Run], Iterator[Table]]] = {
    "commits": of_commits,
    "console": of_console,
    "fleet": of_fleet,
    "lessons": of_lessons,
    "reference": of_reference,
    "protocol": of_protocol,
    "alerts": of_alerts,
    "bursts": of_bursts,
    "reasons": of_reasons,
    "risk": of_risk,
    "poison": of_poison,
}
