"""Ranks of scorers over sets and seeds, and choices that do not see the set they are judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from figures.table import Table

from quality.comparison import shown

FIGURES = {
    "AP": "event AP",
    "AP of all": "AP of all",
    "AP of days": "AP of days",
    "caught": "caught",
}
"""Figures that are ranked: name in `judge.FIGURES` -> title."""
DIGITS = 3
"""Figures that are equal when rounded have the same rank."""
SetFigures = tuple[str, str, Mapping[str, Mapping[str, float]]]
"""Name of a set, its kind of data, and the figures of each scorer."""


@dataclass(frozen=True)
class Board:
    """Figures of every scorer.

    Attributes:
        frame: Columns `set`, `kind`, `seed`, `scorer`, `figure`, `value`, and `rank`: 1 for the
            best scorer of a set, seed and figure; equal ones share the mean of their ranks.
        scorers: Names of the scorers.
        sets: Names of the sets.
    """

    frame: pl.DataFrame
    scorers: Sequence[str]
    sets: Sequence[str]

    @classmethod
    def of(cls, measured: Sequence[SetFigures]) -> Board:
        """Collect figures. The n-th appearance of a set is its n-th seed."""
        seen: dict[str, int] = {}
        rows = []
        for name, kind, figures in measured:
            seen[name] = seed = seen.get(name, 0) + 1
            rows += [
                (name, kind, seed, scorer, figure, values[figure])
                for scorer, values in figures.items()
                for figure in FIGURES
            ]
        columns = ("set", "kind", "seed", "scorer", "figure", "value")
        frame = pl.DataFrame(rows, schema=list(columns), orient="row")
        scorers, sets = (frame[name].unique(maintain_order=True) for name in ("scorer", "set"))
        place = pl.col("value").round(DIGITS).rank("average", descending=True)
        ranked = frame.drop_nans("value").with_columns(rank=place.over("set", "seed", "figure"))
        return cls(ranked, scorers.to_list(), sets.to_list())

    def values(self, figure: str, note: str = "") -> Table:
        """Return a figure of each set and scorer: mean and deviation over seeds, best in bold."""
        table = Table(FIGURES[figure], ["set", *self.scorers], note=note)
        for name in self.sets:
            its = self._select(figure=figure, set=name)
            seeds = {word: _column(its, "value", scorer=word) for word in self.scorers}
            means = {word: _mean(values) for word, values in seeds.items()}
            best = np.nanmax([*means.values(), -np.inf])
            cells = [
                _bold(shown(mean, _deviation(seeds[word])), top=round(mean - best, DIGITS) == 0)
                for word, mean in means.items()
            ]
            table.add(name, *cells)
        return table

    def ranks(self) -> Table:
        """Return the mean rank over sets of each scorer, and its deviation over seeds."""
        header = ["scorer", *FIGURES.values(), "all four", "all four, kinds of data weigh the same"]
        number = len(self.scorers)
        note = (
            f"1 is the best of {number} scorers, {(number + 1) / 2:g} is the mean. ± is over seeds."
        )
        table = Table("Mean rank over all sets", header, note=note)
        for word in self.scorers:
            its = self._select(scorer=word)
            each = [its.filter(pl.col("figure") == figure) for figure in FIGURES]
            by_kind = its.group_by("seed", "kind").agg(pl.col("rank").mean())
            table.add(word, *(_rank(one) for one in [*each, its, by_kind]))
        return table

    def leads(self, ours: Sequence[str], rivals: Sequence[str]) -> Table:
        """Return how far each score of ours is ahead of the best rival of each set."""
        header = ["scorer", "figure", "mean over sets", "lowest", "set", "sets behind by over .05"]
        table = Table("Ours minus the best rival of each set, means over seeds", header)
        means = self.frame.group_by("set", "scorer", "figure").agg(pl.col("value").mean())
        best = means.filter(pl.col("scorer").is_in(rivals))
        best = best.group_by("set", "figure").agg(pl.col("value").max().alias("best"))
        both = means.join(best, on=["set", "figure"]).with_columns(
            lead=pl.col("value") - pl.col("best")
        )
        for word in ours:
            for figure, title in FIGURES.items():
                its = both.filter(scorer=word, figure=figure).sort("lead", "set")
                if its.height:
                    behind = int((its["lead"] < -0.05).sum())  # noqa: PLR2004 - as the header says
                    numbers = (_signed(_mean(its["lead"])), _signed(its["lead"][0]))
                    table.add(word, title, *numbers, its["set"][0], behind)
        return table

    def choices(self, families: Mapping[str, Sequence[str]]) -> Table:
        """Return how a choice among alternatives does on sets that it was not made on."""
        header = ["choice", "figure", "of the other sets", "of the other kinds of data"]
        header += ["of all sets", "the best on each set", "sets it is chosen for"]
        note = (
            "Mean over sets of a figure of the alternative that has the highest mean on the sets "
            "named at the top: the other sets, all sets of other kinds of data, or all sets."
        )
        table = Table("Settings chosen on other sets", header, note=note)
        for title, words in families.items():
            for figure, name in FIGURES.items():
                table.add(title, name, *self._choice(figure, words))
        return table

    def _choice(self, figure: str, words: Sequence[str]) -> list[str]:
        means = self._select(figure=figure).filter(pl.col("scorer").is_in(words))
        means = means.group_by("set", "kind", "scorer").agg(pl.col("value").mean())
        sets = means.group_by("set", "kind").agg(pl.col("value").max().alias("best")).sort("set")
        unseen: tuple[Callable[[str, str], pl.Expr], ...] = (
            lambda name, _: pl.col("set") != name,
            lambda _, kind: pl.col("kind") != kind,
            lambda *_: pl.lit(value=True),
        )
        chosen = [
            [_best(means.filter(learn(name, kind)), words) for name, kind, _ in sets.iter_rows()]
            for learn in unseen
        ]
        value = {(row["set"], row["scorer"]): row["value"] for row in means.iter_rows(named=True)}
        found = [
            np.mean([value[name, word] for name, word in zip(sets["set"], each, strict=True)])
            for each in chosen
        ]
        counts = {word: chosen[0].count(word) for word in words if word in chosen[0]}
        names = ", ".join(f"{word}: {count}" for word, count in counts.items())
        return [*(shown(float(mean), 0) for mean in [*found, _mean(sets["best"])]), names]

    def _select(self, **wanted: str) -> pl.DataFrame:
        return self.frame.filter(**wanted)


def _best(means: pl.DataFrame, words: Sequence[str]) -> str:
    """Return the alternative with the highest mean over sets; the first of equal ones."""
    found = means.group_by("scorer").agg(pl.col("value").mean())
    mean = dict(found.iter_rows())
    return max(words, key=lambda word: round(mean.get(word, -np.inf), 6))


def _column(frame: pl.DataFrame, name: str, **wanted: str) -> pl.Series:
    return frame.filter(**wanted)[name]


def _mean(values: pl.Series) -> float:
    return float(values.to_numpy().mean()) if len(values) else float("nan")


def _deviation(values: pl.Series) -> float:
    return float(values.to_numpy().std(ddof=1)) if len(values) > 1 else 0.0


def _rank(rows: pl.DataFrame) -> str:
    """Return the mean rank, and the deviation over seeds of the mean over sets."""
    seeds = rows.group_by("seed").agg(pl.col("rank").mean())["rank"]
    return (
        f"{_mean(seeds):.2f} ± {_deviation(seeds):.2f}" if len(seeds) > 1 else f"{_mean(seeds):.2f}"
    )


def _bold(text: str, *, top: bool) -> str:
    return f"**{text}**" if top else text


def _signed(value: float) -> str:
    return shown(value, 0, "+")
