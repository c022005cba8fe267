"""Comparison of scorers: mean and standard deviation of each figure over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from figures.table import Table

from quality import scorers
from quality.judge import FIGURES, Verdict
from quality.scorers import Floats

LEAD = "ahead of the best rival"
Figures = Mapping[str, float]


@dataclass
class Comparison:
    """Figures of scorers, one row each.

    Attributes:
        title: The trial and its users.
        figures: Figures to show.
        ours: Number of our scorers, which are first. The first one is compared with the others.
        found: Figures of each scorer, by seed.
    """

    title: str
    figures: Sequence[str] = tuple(FIGURES)
    ours: int = 1
    found: dict[str, list[Figures]] = field(default_factory=dict)

    def add(self, judged: Sequence[tuple[Verdict, Mapping[str, Floats]]]) -> None:
        """Add a seed: trials of equal weight, with the scores of each scorer."""
        found = [scorers.judge(verdict, scores) for verdict, scores in judged]
        for name, first in found[0].items():
            mean = {
                figure: float(np.mean([one[name][figure] for one in found])) for figure in first
            }
            self.found.setdefault(name, []).append(mean)

    def table(self) -> Table:
        """Return one row per scorer with the best figures in bold, and the lead of ours."""
        table = Table(self.title, ["score", *self.figures])
        means = {name: self._values(name).mean(axis=0) for name in self.found}
        best = np.nanmax([mean.round(3) for mean in means.values()], axis=0)
        for name, mean in means.items():
            cells = [shown(*pair) for pair in zip(mean, spread(self._values(name)), strict=True)]
            tops = mean.round(3) == best
            table.add(name, *(f"**{c}**" if top else c for c, top in zip(cells, tops, strict=True)))
        if len(self.found) > self.ours:
            table.add(LEAD, *self._ahead())
        return table

    def _values(self, name: str) -> Floats:
        """Return a scorer's figures, shape (seeds, figures)."""
        return np.array([[one[figure] for figure in self.figures] for one in self.found[name]])

    def _ahead(self) -> list[str]:
        """Return each figure's difference to the best other detector, by seed."""
        first, *_ = names = list(self.found)
        rivals = np.array([self._values(name) for name in names[self.ours :]])
        best = rivals.mean(axis=1).argmax(axis=0)
        theirs = rivals[best, :, np.arange(len(self.figures))].T
        ahead = self._values(first) - theirs
        return [
            shown(mean, wide, "+")
            for mean, wide in zip(ahead.mean(axis=0), spread(ahead), strict=True)
        ]


def spread(values: Floats) -> Floats:
    """Return the standard deviation over seeds; 0 for one seed."""
    wide: Floats = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return wide


def shown(mean: float, wide: float, sign: str = "") -> str:
    """Format a figure with its standard deviation, unless that is 0; a dash for NaN.

    >>> shown(0.75, 0.0123), shown(0.75, 0.0), shown(0.01, 0.002, "+"), shown(np.nan, np.nan)
    ('.750 ± .012', '.750', '+.010 ± .002', '-')
    """
    if np.isnan(mean):
        return "-"
    text = f"{mean:{sign}.3f}".replace("0.", ".", 1)
    return text if wide < 0.0005 else f"{text} ± {wide:.3f}".replace("± 0.", "± .")  # noqa: PLR2004 - what three digits show
