from dataclasses import replace

import msgspec
import pytest

from morpheus.core.batch import AlertBudgetReport, ReadStats, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.models.calibration import AlertForecast
from morpheus.report.view import AlertCounts
from morpheus.stages.filter import Filter
from morpheus.status import Status, StatusFile
from test_pipeline import columns, run, scoring  # noqa: F401 - a fixture, and what goes with it


def read_status(path):
    return msgspec.json.decode(path.read_bytes(), type=Status)


def test_the_status_of_an_ended_run_counts_its_events(columns, tmp_path):  # noqa: F811 - the fixture
    path = tmp_path / "out" / "status.json"
    options = replace(columns, status_file=str(path))
    metrics, _ = run({"ann": 50, "bob": 7}, options, train_data_glob="x")
    status = read_status(path)
    assert (status.running, status.filtered, status.source) == (False, False, "from-people")
    assert status.account.read == 57 == metrics.input.read
    assert status.account.scored == 57


def test_a_running_run_writes_its_status_once_per_second(tmp_path):
    times = iter([0.0, 0.0, 0.0, 0.5, 1.5, 1.5])
    path = tmp_path / "status.json"
    file = StatusFile(path, PipelineOptions(source="x"), [], clock=lambda: next(times))
    for read_so_far in (1, 2, 3):
        file.write(RunMetrics(input=ReadStats(read=read_so_far)), running=True)
        assert read_status(path).account.read == {1: 1, 2: 1, 3: 3}[read_so_far]


def test_a_run_goes_on_and_ends_if_its_status_cannot_be_written(tmp_path, caplog):
    folder = tmp_path / "folder"
    file = StatusFile(folder / "status.json", PipelineOptions(source="x"), [])
    folder.write_text("a file in place of the folder")
    file.update(RunMetrics())
    assert "--status_file: Cannot write" in caplog.text
    file.update(RunMetrics(), running=False)
    assert "It does not show the end of the run." in caplog.text
    folder.unlink()
    file.write(RunMetrics(), running=False)
    assert not read_status(folder / "status.json").running


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"alerts_per_day": 2.0}, 2.0),
        ({"max_alerts_per_day": 3.0}, 3.0),
        ({"alerts_per_day": 2.0, "max_alerts_per_day": 3.0}, 2.0),
        ({"alerts_per_day": 0.0}, 0.0),
        ({}, None),
    ],
)
def test_the_status_has_the_filter_and_its_budget(tmp_path, budget, expected):
    path = tmp_path / "status.json"
    stages = [Filter(options=PipelineOptions(source="x")), Filter(**budget)]
    StatusFile.from_stages(str(path), stages).write(RunMetrics(), running=False)
    assert (read_status(path).filtered, read_status(path).alerts_per_day) == (True, expected)


def test_filtered_events_without_a_score_do_not_count_as_scored(tmp_path):
    path = tmp_path / "status.json"
    metrics = RunMetrics(scored=2, filtered=5, unscored_reasons={"ann": "no fingerprint"})
    metrics.unscored_filtered["ann"] = 3
    StatusFile(path, PipelineOptions(source="x"), []).write(metrics, running=False)
    account = read_status(path).account
    assert (account.scored, account.unscored) == (4, {"no fingerprint": 3})


def test_the_status_has_the_alerts_of_a_budget(tmp_path):
    path = tmp_path / "status.json"
    forecast = AlertForecast(13.5, 6.0, 24.0)
    report = AlertBudgetReport(
        forecast, 11, 1, wanted=14.0, capped=2, next_pvalue=0.01, reason="learning"
    )
    metrics = RunMetrics(budget_report=report)
    StatusFile(path, PipelineOptions(source="x"), []).write(metrics, running=False)
    account = read_status(path).account
    assert account.forecast == (13.5, 6.0, 24.0)
    alerts = AlertCounts(11, 1, wanted=14.0, capped=2, next_pvalue=0.01, reason="learning")
    assert account.alerts == alerts
