"""The alert budget, from training to the report in the metrics."""

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
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from test_pipeline import Collect, FromPeople, columns  # noqa: F401 - a fixture

PEOPLE = {f"user{n}": 200 for n in range(12)} | {None: 3}


def run(base, alerts, threads=1, **options):
    sink = []
    stages = [
        FromPeople(people=PEOPLE),
        *(TrainAe(train_data_glob="x"), Preprocess(), InfPytorch(), AddScores(label=(RISK,))),
        *(Filter(alerts_per_day=alerts, **options), Serialize(), Collect(rows=sink)),
    ]
    options = PipelineOptions(columns_file=base.columns_file, num_threads=threads, labels=(RISK,))
    metrics = Pipeline(stages, options).run()
    frames = [
        batch.table.to_frame().with_columns(pl.lit(batch.user).alias("user")) for batch in sink
    ]
    return metrics, pl.concat(frames, how="diagonal_relaxed")


def test_every_event_is_part_of_an_alert_or_counted_as_dropped(columns):  # noqa: F811 - the fixture
    metrics, rows = run(columns, 1.0)
    assert rows.height + metrics.filtered == sum(PEOPLE.values())
    assert metrics.budget_report.forecast.low <= metrics.budget_report.forecast.alerts


def test_larger_budget_gives_the_same_alerts_and_more(columns):  # noqa: F811 - the fixture
    few, many = (run(columns, alerts)[1] for alerts in (0.5, 4.0))
    assert few.height < many.height
    assert set(few.rows()) < set(many.rows())


def test_alerts_do_not_depend_on_the_number_of_threads(columns):  # noqa: F811 - the fixture
    first, second = (run(columns, 2.0, threads)[1] for threads in (1, 2))
    assert_frame_equal(first, second)
    assert np.isfinite(first[RISK].to_numpy()).all()


def test_suppressions_drop_alerts_and_do_not_change_the_others(columns, tmp_path):  # noqa: F811 - the fixture
    expected, all_rows = run(columns, 4.0)
    user, action = all_rows.row(0, named=True)["user"], all_rows["action"][0]
    path = tmp_path / "suppressions.toml"
    path.write_text(
        'format = "morpheus-suppressions"\nversion = 1\n[[suppression]]\n'
        f'where.action = "{action}"\nusers = ["{user}"]\nuntil = 9999-01-01\nreason = "test"\n'
    )
    metrics, rows = run(columns, 4.0, suppressions=(str(path),))
    suppressed = (pl.col("user") == user) & (pl.col("action") == action)
    assert_frame_equal(rows, all_rows.filter(~suppressed))
    assert metrics.suppressed.total() == all_rows.filter(suppressed).height > 0
    report = metrics.budget_report
    assert report.forecast == expected.budget_report.forecast
    assert report.alerts + report.suppressed == expected.budget_report.alerts
    assert rows.height + metrics.filtered == sum(PEOPLE.values())


def test_budget_uses_risk_only():
    with pytest.raises(UsageError, match="--alerts_per_day uses `risk` only"):
        Filter(alerts_per_day=1.0, label=("zscore",)).validate()


def test_budget_is_rejected_on_unbounded_input():
    with pytest.raises(UsageError, match="this input has no end"):
        Filter(alerts_per_day=1.0, options=PipelineOptions(unbounded=True)).validate()
