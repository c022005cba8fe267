"""Ablation of `risk`: the same trials with parts of its formula changed or left out.

Uses companies and generated fleets of seeds for choosing settings. The trials that are compared
with other detectors are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
from figures.table import Table
from numpy.typing import NDArray

from morpheus.models import daily_usage, scoring
from morpheus.models.population import Population
from morpheus.models.scoring import BaselineStats
from quality import chain
from quality.judge import Verdict
from quality.trial import Trial

Floats = NDArray[np.float64]
FIGURES = ("AP", "AP of all", "caught")
Change = Callable[[], AbstractContextManager[None]]


@contextmanager
def changed(owner: object, name: str, value: object) -> Iterator[None]:
    """Give a module or a class another attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def constant(name: str, value: float) -> Change:
    """Return a change of a constant of the formula."""
    module = daily_usage if hasattr(daily_usage, name) else scoring
    return partial(changed, module, name, value)


def without_network() -> AbstractContextManager[None]:
    """Leave out the conditional surprise."""

    def nothing(self: BaselineStats, values: Floats, std_floor: float) -> Floats:  # noqa: ARG001 - as the method
        return np.zeros(values.shape)

    return changed(BaselineStats, "excess_z", nothing)


def without_others() -> AbstractContextManager[None]:
    """Compare with values that are all alike in place of other users."""
    method = Population.others

    def alike(self: Population, name: str, vocabulary: Sequence[str] | None, user: str) -> Floats:
        return np.full(len(method(self, name, vocabulary, user)), 0.1)

    return changed(Population, "others", alike)


VARIANTS: Mapping[str, Change] = {
    "`risk`": nullcontext,
    "without earlier events and days": constant("MEMORY_LIMIT", 1e-9),
    "at most 16 nats from earlier events": constant("MEMORY_LIMIT", 16.0),
    "largest column only": constant("COLUMN_EXPONENT", 8.0),
    "mean of the columns' logarithms": constant("COLUMN_EXPONENT", 0.001),
    "exponent 1 over columns": constant("COLUMN_EXPONENT", 1.0),
    "without the network": without_network,
    "without other users": without_others,
    "new values: half-life of 28 days": constant("NOVELTY_DECAY", 2 ** (-1 / 28)),
    "population's rate of new values: 8 days": constant("PRIOR_DAYS", 8.0),
    "all days are learned at full weight": constant("FULL_WEIGHT_PVALUE", 1e-9),
}
"""Name of each variant, and what changes."""


def table(trials: Mapping[str, Sequence[Trial]]) -> Table:
    """Return a row per variant, with means over the trials of each kind."""
    header = ["variant", *(f"{kind}: {figure}" for kind in trials for figure in FIGURES)]
    found = Table("Parts of `risk`", header)
    for name, change in VARIANTS.items():
        cells: list[str] = []
        for each in trials.values():
            with change():
                figures = [_measure(trial) for trial in each]
            cells += [f"{value:.3f}" for value in np.mean(figures, axis=0)]
        found.add(name, *cells)
    return found


def _measure(trial: Trial) -> list[float]:
    scores = chain.output(trial, ["risk"], seed=1)["risk"].cast(float).to_numpy()
    figures = Verdict(trial, tuple(trial.spans)).figures(scores)
    return [figures[name] for name in FIGURES]
