"""The alert budget, end to end: from history to the account in the summary."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from morpheus.columns import RISK
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.pipeline import Pipeline
from morpheus.stages.add_scores import AddScores
from morpheus.stages.filter import Filter
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from test_pipeline import Collect, FromPeople, columns  # noqa: F401 - a fixture

PEOPLE = {f"user{n}": 200 for n in range(12)} | {None: 3}


def run(settings, alerts, threads=1, **options):
    sink = []
    stages = [
        FromPeople(people=PEOPLE),
        *(TrainAe(train_data_glob="x"), Preprocess(), InfPytorch(), AddScores(label=(RISK,))),
        *(Filter(alerts_per_day=alerts, **options), Serialize(), Collect(rows=sink)),
    ]
    settings = PipelineOptions(
        columns_file=settings.columns_file, num_threads=threads, labels=(RISK,)
    )
    summary = Pipeline(stages, settings).run()
    frames = [batch.frame.with_columns(pl.lit(batch.user).alias("user")) for batch in sink]
    return summary, pl.concat(frames, how="diagonal_relaxed")


def test_every_event_is_an_alerts_or_counted_as_left_out(columns):  # noqa: F811 - the fixture
    summary, rows = run(columns, 1.0)
    assert rows.height + summary.filtered == sum(PEOPLE.values())
    assert summary.budget_report.forecast.low <= summary.budget_report.forecast.alerts


def test_more_to_spend_gives_the_same_alerts_and_more(columns):  # noqa: F811 - the fixture
    few, many = (run(columns, alerts)[1] for alerts in (0.5, 4.0))
    assert few.height < many.height
    assert set(few.rows()) < set(many.rows())


def test_alerts_do_not_depend_on_the_number_of_threads(columns):  # noqa: F811 - the fixture
    one, two = (run(columns, 2.0, threads)[1] for threads in (1, 2))
    assert_frame_equal(one, two)
    assert np.isfinite(one[RISK].to_numpy()).all()


def test_suppressions_hold_alerts_back_and_leave_all_others_as_they_were(columns, tmp_path):  # noqa: F811 - the fixture
    whole, all_ = run(columns, 4.0)
    user, action = all_.row(0, named=True)["user"], all_["action"][0]
    path = tmp_path / "suppressions.toml"
    path.write_text(
        'format = "morpheus-suppressions"\nversion = 1\n[[suppression]]\n'
        f'where.action = "{action}"\nusers = ["{user}"]\nuntil = 9999-01-01\nreason = "test"\n'
    )
    summary, rows = run(columns, 4.0, suppressions=(str(path),))
    theirs = (pl.col("user") == user) & (pl.col("action") == action)
    assert_frame_equal(rows, all_.filter(~theirs))
    assert summary.held.total() == all_.filter(theirs).height > 0
    assert summary.budget_report.forecast == whole.budget_report.forecast
    assert summary.budget_report.alerts + summary.budget_report.held == whole.budget_report.alerts
    assert rows.height + summary.filtered == sum(PEOPLE.values())


def test_a_budget_goes_by_risk_alone():
    with pytest.raises(UsageError, match="--alerts_per_day goes by `risk` alone"):
        Filter(alerts_per_day=1.0, label=("zscore",)).validate()


def test_a_budget_is_refused_where_the_input_never_ends():
    with pytest.raises(UsageError, match="this input never ends"):
        Filter(alerts_per_day=1.0, options=PipelineOptions(unbounded=True)).validate()
