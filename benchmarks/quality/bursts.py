"""Bursts of events: how many `timeseries` finds, and how often it flags a benign day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from figures.table import Table
from numpy.typing import NDArray

from morpheus.columns import TS_ANOMALY
from morpheus.stages.timeseries import Timeseries
from quality import chain, generated
from quality.trial import BENIGN, Trial, times

Flags = NDArray[np.bool_]

KIND = "burst"
DETECTORS: Mapping[str, Timeseries] = {
    "`--resolution=10m`, z 8": Timeseries(resolution="10m", zscore_threshold=8.0),
    "`--resolution=10m --causal`, z 8": Timeseries(
        resolution="10m", zscore_threshold=8.0, causal=True
    ),
    "`--detector=rate`, a quarter a week": Timeseries(detector="rate", flags_per_week=0.25),
    "`--detector=rate`, one a week": Timeseries(detector="rate", flags_per_week=1.0),
}
"""The stages that are compared; the first one is the recipe of README.md."""
FLEETS: Mapping[str, generated.Plan] = {
    "33 events a day, 1 % of incidents": generated.Plan(
        seed=0, history=1000, scored=1000, scored_days=30, anomalies=0.01
    ),
    "33 events a day, 3 %": generated.Plan(
        seed=0, history=1000, scored=1000, scored_days=30, anomalies=0.03
    ),
    "10 events a day, 3 %": generated.Plan(
        seed=0, history=300, scored=300, scored_days=30, anomalies=0.03
    ),
    "133 events a day, 2 %": generated.Plan(
        seed=0, history=4000, scored=4000, scored_days=30, anomalies=0.02
    ),
}
"""Fleets by their name in the table, with the share of events that belong to incidents."""


@dataclass
class Found:
    """What a detector has found in some fleets.

    Attributes:
        bursts: Number of bursts.
        found: Number of bursts with a flagged event.
        weeks: Number of weeks of all users.
        benign_days: Number of flagged days of users without an event of an incident.
        benign: Number of benign events.
        flagged: Number of flagged ones.
    """

    bursts: int = 0
    found: int = 0
    weeks: float = 0.0
    benign_days: int = 0
    benign: int = 0
    flagged: int = 0

    def add(self, trial: Trial, flags: Flags) -> None:
        """Add the flags of a fleet's events, shape (rows of `trial.scored`,)."""
        bursts = [number for number, kind in trial.kinds.items() if kind == KIND]
        self.bursts += len(bursts)
        self.found += len(np.intersect1d(trial.incident[flags], bursts))
        benign = trial.incident == BENIGN
        self.benign += int(benign.sum())
        self.flagged += int((benign & flags).sum())
        days = times(trial.scored).dt.date().to_physical().to_numpy()
        for span in trial.spans.values():
            its = days[span]
            self.weeks += (its[-1] - its[0] + 1) / 7
            attacked = np.unique(its[~benign[span]])
            self.benign_days += len(np.setdiff1d(its[flags[span]], attacked))


def table(path: Path, seeds: int, *, quick: bool = False) -> Table:
    """Measure all detectors on all fleets.

    Args:
        path: File of the generator.
        seeds: Number of fleets of each kind.
        quick: Few users, and one kind of fleets.
    """
    result = Table(
        "Bursts on generated fleets",
        ["fleets", "`timeseries`", "bursts", "found", "benign days flagged", "benign events"],
        note=(
            f"{seeds} fleets of 15 users for each kind. A burst is up to 29 events, four a second. "
            "Benign days are per user and week, without days that have an event of an incident. "
            "The last column is the share of benign events that are flagged. The constants of the "
            "rate detector were fitted to other fleets of this generator."
        ),
    )
    for name, plan in list(FLEETS.items())[: 1 if quick else None]:
        users = 4 if quick else plan.users
        for detector, found in measure(replace(plan, users=users), path, seeds):
            result.add(
                *(name, detector, found.bursts, f"{found.found / max(found.bursts, 1):.0%}"),
                f"{found.benign_days / found.weeks:.2f}",
                f"{found.flagged / found.benign:.2%}",
            )
    return result


def measure(plan: generated.Plan, path: Path, seeds: int) -> Iterator[tuple[str, Found]]:
    """Yield what each detector finds in the fleets of a plan."""
    trials = [generated.trial(replace(plan, seed=seed), path) for seed in range(1, seeds + 1)]
    for detector, stage in DETECTORS.items():
        found = Found()
        for trial in trials:
            output = chain.output(trial, ("ae_anomaly_score",), behind=(stage,), train_epochs=1)
            found.add(trial, output[TS_ANOMALY].to_numpy().astype(bool))
        yield detector, found
