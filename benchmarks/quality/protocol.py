"""A protocol against tuning: every scorer on every set, with several seeds, ranked.

A scorer that was tuned on some sets leads there and falls behind on others. So the mean rank over
all sets decides, and a setting is chosen on sets other than the one that it is judged on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from figures.table import Table

from quality import false_alarms, ranks, scorers
from quality.false_alarms import LOW
from quality.judge import Verdict
from quality.scorers import Floats
from quality.sets import KINDS, SOURCES, Part, Source
from quality.trial import Trial, merge_trials, of_part

SLOW = ("dfencoder", "forest", "ecod")
"""Rivals in a separate environment. Each start takes seconds, and they score single events."""
PVALUE = "`pvalue`"
NAMES = (
    "`generated N`: fleets with N events of history of each user",
    "`no ids`: without eight columns of session identifiers",
    "`newcomers`: a third of the users have 0 or 10 to 100 events of history",
)


class Found(NamedTuple):
    """What was measured on one set with one seed.

    Attributes:
        name: Name of the set.
        kind: Whose data it is.
        figures: Figures of each scorer.
        low_days: Share of benign days with a p-value of at most `LOW`; None without the label.
        alarms: False alarms over time of each scorer, on sets with drift.
    """

    name: str
    kind: str
    figures: Mapping[str, Mapping[str, float]]
    low_days: float | None
    alarms: Mapping[str, false_alarms.Rates]


@dataclass
class Protocol:
    """Measures the sets.

    Attributes:
        data: Folder of the public logs.
        rivals: Keys of `scorers.RIVALS`.
        threads: Number of parallel workers.
        few: Few users, for a quick check.
        kinds: Kinds of data to measure.
        skipped: Kinds of data that are not there.
    """

    data: Path
    rivals: Sequence[str]
    threads: int = 1
    few: bool = False
    kinds: Sequence[str] = KINDS
    skipped: dict[str, None] = field(default_factory=dict)

    def measure(self, seeds: int, sources: Sequence[Source] = SOURCES) -> Iterator[Found]:
        """Yield what each set shows with each seed. Sources without data are left out."""
        for seed in range(1, seeds + 1):
            for source in (one for one in sources if one.kind in self.kinds):
                try:
                    yield from self._measure(source, seed)
                except FileNotFoundError as error:
                    self.skipped[source.kind] = None
                    print(f"left out: {error}", file=sys.stderr)

    def _measure(self, source: Source, seed: int) -> Iterator[Found]:
        sets = source.make(self.data, seed, self.few)
        trials = {id(part.trial): part.trial for parts in sets.values() for part in parts}
        scores = dict(zip(trials, self._scores(source, [*trials.values()], seed), strict=True))
        for name, parts in sets.items():
            yield judge_set(name, source, [(part, scores[id(part.trial)]) for part in parts])

    def _scores(
        self, source: Source, trials: Sequence[Trial], seed: int
    ) -> Iterator[dict[str, Floats]]:
        """Yield the scores of each trial, by scorer."""
        slow = [word for word in self.rivals if word in SLOW]
        fast = [word for word in self.rivals if word not in SLOW]
        whole = merge_trials(trials) if source.shares_history else None
        known = {} if whole is None else scorers.theirs(whole, seed, slow)
        for trial in trials:
            part = (
                scorers.theirs(trial, seed, slow)
                if whole is None
                else {word: of_part(whole, each, trial) for word, each in known.items()}
            )
            others = scorers.theirs(trial, seed, fast) | part
            mine = scorers.ours(trial, seed, self.threads, (PVALUE.strip("`"),))
            yield mine | {word: others[word] for word in self.rivals}


def judge_set(
    name: str, source: Source, parts: Sequence[tuple[Part, Mapping[str, Floats]]]
) -> Found:
    """Return the figures of a set, whose parts have equal weight."""
    each, alarms, low = [], [], []
    for part, scores in parts:
        verdict = Verdict(part.trial, part.users)
        pvalues = scores.get(PVALUE)
        named = {word: score for word, score in scores.items() if word != PVALUE}
        each.append(scorers.judge(verdict, named))
        share = None if pvalues is None else false_alarms.share_low_days(verdict, pvalues)
        low += [] if share is None else [share]
        alarms += [false_alarms.compare_thirds(verdict, named)] if source.drifts else []
    figures = {
        word: {figure: float(np.mean([one[word][figure] for one in each])) for figure in of_word}
        for word, of_word in each[0].items()
    }
    mean_low = float(np.mean(low)) if low else None
    return Found(name, source.kind, figures, mean_low, alarms[0] if alarms else {})


def tables(protocol: Protocol, seeds: int) -> Iterator[Table]:
    """Measure all sets, and return the tables."""
    results = list(protocol.measure(seeds))
    ours = [f"`{label}`" for label in scorers.labels()]
    board = ranks.Board.of([(one.name, one.kind, one.figures) for one in results])
    notes = [*NAMES, *(f"`{word}` is {scorers.RIVALS[word][0]}" for word in protocol.rivals)]
    note = "; ".join([*notes, *(f"no data of {kind} here" for kind in protocol.skipped)])
    for number, figure in enumerate(ranks.FIGURES):
        yield board.values(figure, "" if number else f"{note}.")
    yield board.ranks()
    yield board.leads(ours, protocol.rivals)
    yield board.choices(families(ours, protocol.rivals))
    if drifting := [(one.name, one.alarms) for one in results if one.alarms]:
        yield false_alarms.table(drifting)
    if any(one.low_days is not None for one in results):
        yield low_table(results)


def families(ours: Sequence[str], rivals: Sequence[str]) -> dict[str, list[str]]:
    """Return the scorers among which one has a choice, with at least two alternatives."""
    groups = {
        "our label": list(ours),
        "column frequencies": [word for word in rivals if word.startswith("frequencies")],
        "naive Bayes": [word for word in rivals if word in {"bayes", "bayes-session", "bigrams"}],
    }
    return {name: words for name, words in groups.items() if len(words) > 1}


def low_table(results: Sequence[Found]) -> Table:
    """Return the share of benign days with a low p-value."""
    table = Table(f"Benign days with a `pvalue` of at most {LOW}", ["set", "mean", "highest seed"])
    for name in dict.fromkeys(one.name for one in results):
        shares = [one.low_days for one in results if one.name == name and one.low_days is not None]
        if shares:
            table.add(name, f"{np.mean(shares):.1%}", f"{max(shares):.1%}")
    return table
