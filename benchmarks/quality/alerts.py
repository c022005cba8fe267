"""Alert budgets of `filter --alerts_per_day`, compared with alerts on benign days."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from figures.table import Table

from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from quality import chain, scorers
from quality.false_alarms import LOW, share_low_days
from quality.judge import Verdict
from quality.trial import BENIGN, LEAST, Trial, times

WEEKLY = {"one": 1.0, "a quarter": 0.25}
"""Budgets in alerts per user and week."""
BINDING = 2.5
"""Maximum ratio of raised to wanted alerts that a budget should keep to."""


@dataclass(frozen=True)
class Spent:
    """A budget, what the summary of the run states, and what happened.

    Attributes:
        group: Kind of logs.
        logs: Name of the logs.
        budget: Key of `WEEKLY`.
        wanted: Number of alerts that the budget asks for.
        expected: Number of alerts that the summary states; None without a forecast.
        low: Lower end of its interval.
        high: Upper end of it.
        raised: Number of alerts.
        low_days: Share of days with a p-value of at most `LOW`; None without the label.
    """

    group: str
    logs: str
    budget: str
    wanted: float
    expected: float | None
    low: float | None
    high: float | None
    raised: int
    low_days: float | None

    @property
    def ratio(self) -> float:
        """Raised over wanted alerts."""
        return self.raised / self.wanted

    @property
    def inside(self) -> bool:
        """Whether the number of alerts is in the stated interval."""
        return (
            self.low is not None and self.high is not None and self.low <= self.raised <= self.high
        )


def spend(trial: Trial, seed: int, group: str) -> Iterator[Spent]:
    """Run the pipeline with each budget on the benign days of a trial.

    A day's budget is that of all users together, so it is smaller if users are active in different
    months.
    """
    trial = drop_incidents(trial)
    shares = measure_low_days(trial, seed)
    days = times(trial.scored).dt.date().n_unique()
    for budget, weekly in WEEKLY.items():
        asked = weekly * user_weeks(trial)
        stated = read_report(run_budget(trial, seed, asked / days))
        wanted = stated.pop("wanted", None) or asked
        yield Spent(group, trial.name, budget, wanted, low_days=shares, **stated)


def user_weeks(trial: Trial) -> float:
    """Return the number of weeks between the first and the last event, summed over users."""
    day = pl.DataFrame({"user": trial.scored[trial.user], "day": times(trial.scored).dt.date()})
    spans = day.group_by("user").agg((pl.col("day").max() - pl.col("day").min()).dt.total_days())
    return float((spans["day"] + 1).sum() / 7)


def read_report(report: object) -> dict[str, Any]:
    """Return the numbers of a budget report. Its fields differ between versions of the package."""
    forecast = getattr(report, "forecast", report)
    names = {"expected": ("expected", "alerts"), "low": ("low",), "high": ("high",)}
    found = {name: _first(forecast, fields) for name, fields in names.items()}
    return found | {
        "raised": _first(report, ("raised", "alerts")),
        "wanted": _first(report, ("wanted",)),
    }


def _first(report: object, fields: Iterable[str]) -> Any:  # noqa: ANN401 - a number or nothing
    return next((getattr(report, name) for name in fields if hasattr(report, name)), None)


def measure_low_days(trial: Trial, seed: int) -> float | None:
    """Return the share of days with a low p-value; None if there is no such label."""
    found = scorers.ours(trial, seed, 1, ("pvalue",)).get("`pvalue`")
    return None if found is None else share_low_days(Verdict(trial, tuple(trial.spans)), found)


def run_budget(trial: Trial, seed: int, alerts: float) -> object:
    """Run the pipeline with a budget in alerts per day, and return its budget report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chain.written(trial, folder)
        stages = [
            FromCloudtrail(input_glob=str(folder / "scored.parquet")),
            TrainAe(
                train_data_glob=str(folder / "history.parquet"), train_min_history=LEAST, seed=seed
            ),
            *(Preprocess(), InfPytorch(), Filter(alerts_per_day=alerts), Serialize()),
            ToFile(filename=str(folder / "output.parquet")),
        ]
        settings = PipelineOptions(
            num_threads=1,
            userid_column_name=trial.user,
            columns_file=str(folder / "columns.txt"),
        )
        report = Pipeline(stages, settings).run().budget_report
    assert report is not None  # noqa: S101 - the filter adds it
    return report


def drop_incidents(trial: Trial) -> Trial:
    """Return the benign events of users without an incident, and earlier events of the others."""
    if not trial.incidents:
        return trial
    first = {
        case.user: times(case.scored).filter(pl.Series(case.marked)).min()
        for case in trial.cases
        if case.marked.any()
    }
    when, owner = times(trial.scored), trial.scored[trial.user].to_list()
    early = [
        user not in first or moment < first[user] for user, moment in zip(owner, when, strict=True)
    ]
    kept = trial.scored.filter(pl.Series(early) & pl.Series(trial.incident == BENIGN))
    return Trial(trial.name, trial.user, trial.columns, trial.history, kept, {}, {})


def summary(found: list[Spent]) -> Table:
    """Return how well the budgets of each group of logs hold."""
    header = ["logs", "alerts per user and week", "number", "inside the interval"]
    header += [
        "mean ratio",
        "lowest",
        "highest",
        f"over {BINDING}",
        f"days with p <= {LOW}",
        "most",
    ]
    note = (
        "Ratio: raised over wanted alerts. The interval is the 95 % interval of the summary. The "
        f"last columns are the share of benign days with a `pvalue` of at most {LOW}: mean and "
        "maximum over the logs."
    )
    table = Table("Alert budgets on benign days", header, note=note)
    for group in dict.fromkeys(one.group for one in found):
        for budget in WEEKLY:
            its = [one for one in found if (one.group, one.budget) == (group, budget)]
            ratios = np.array([one.ratio for one in its])
            shares = [one.low_days for one in its if one.low_days is not None]
            table.add(
                *(group, budget, len(its), f"{np.mean([one.inside for one in its]):.0%}"),
                *(_short(ratios.mean()), _short(ratios.min()), _short(ratios.max())),
                int((ratios > BINDING).sum()),
                *((f"{np.mean(shares):.1%}", f"{max(shares):.1%}") if shares else (None, None)),
            )
    return table


def table(found: list[Spent]) -> Table:
    """Return a row for each run."""
    header = ["logs", "alerts per user and week", "wanted", "expected", "interval", "raised"]
    result = Table("Each run", [*header, "ratio", "inside", f"days with p <= {LOW}"])
    for one in found:
        interval = None if one.low is None else f"{one.low:.0f} to {one.high:.0f}"
        expected = None if one.expected is None else round(one.expected)
        share = None if one.low_days is None else f"{one.low_days:.1%}"
        result.add(
            *(one.logs, one.budget, round(one.wanted), expected, interval, one.raised),
            *(_short(one.ratio), "yes" if one.inside else "no", share),
        )
    return result


def _short(number: float) -> str:
    return f"{number:.2f}"
