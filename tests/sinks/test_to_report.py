"""`to-report`, after a pipeline that trains, scores and explains."""

from __future__ import annotations

import re
from base64 import b64decode
from gzip import decompress

import msgspec
import pytest

from morpheus.columns import RISK, TIME
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.pipeline import Pipeline
from morpheus.report.view import ReportData
from morpheus.sinks.to_report import ToReport
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from test_pipeline import FromPeople, columns  # noqa: F401 - a fixture

PEOPLE = {f"user{n}": 200 for n in range(5)} | {None: 3}


def run(path, settings, *between, **options):
    """Run a pipeline that ends with a report."""
    scores = AddScores(label=(RISK, "pvalue"))
    stages = [
        FromPeople(people=PEOPLE, intruders=("user1", "user3")),
        *(TrainAe(train_data_glob="x"), Preprocess(), InfPytorch(), scores),
        *between,
        *(Serialize(), ToReport(str(path), overwrite=True, **options.pop("sink", {}))),
    ]
    settings = PipelineOptions(columns_file=settings.columns_file, **options)
    return Pipeline(stages, settings).run()


def read_data(path) -> ReportData:
    """Data of a page."""
    packed = re.search(r'id="data">([^<]*)<', path.read_text(encoding="utf-8"))[1]
    return msgspec.json.decode(decompress(b64decode(packed)), type=ReportData)


@pytest.fixture
def full(columns, tmp_path):  # noqa: F811 - the fixture
    path = tmp_path / "report.html"
    stages = (Explain(), Timeseries(resolution="10m"), Filter(alerts_per_day=4.0))
    return run(path, columns, *stages), read_data(path)


def test_alerts_are_what_filter_keeps_and_all_events_are_in_the_lanes(full):
    summary, data = full
    written = summary.users.total()
    assert 0 < written < sum(PEOPLE.values())
    assert sum(entry.incident.count for entry in data.incidents) == written
    assert sum(entry.events for entry in data.people) == sum(PEOPLE.values())
    assert sum(sum(entry.lane.n) for entry in data.people) == sum(PEOPLE.values())
    assert data.rule == "Alerts are the events that filter kept."
    assert data.lacks == []


def test_counts_account_for_every_event(full):
    summary, data = full
    account = data.account
    assert account.read == summary.input.read == sum(PEOPLE.values())
    assert account.scored == account.read - PEOPLE[None]
    assert sum(account.unscored.values()) == PEOPLE[None]
    assert account.rungs == {"own": 5}
    report = summary.budget_report
    assert account.forecast == report.interval
    assert report.alerts > 0
    assert (account.alerts.alerts, account.alerts.wanted) == (report.alerts, report.wanted)
    assert account.alerts.reason == report.reason
    assert account.alerts.next_pvalue == report.next_pvalue


def test_scored_events_are_counted_when_there_is_no_alert(columns, tmp_path):  # noqa: F811 - the fixture
    summary = run(tmp_path / "r.html", columns, Explain(), Filter(alerts_per_day=0.0))
    data = read_data(tmp_path / "r.html")
    assert (data.account.alerts.alerts, summary.users.total()) == (0, 0)
    assert data.account.scored == sum(PEOPLE.values()) - PEOPLE[None]
    assert data.incidents == []


def test_scores_of_a_run_without_alerts_are_not_reported_as_missing(columns, tmp_path):  # noqa: F811 - the fixture
    path = tmp_path / "report.html"
    summary = run(path, columns, Explain(), Filter(alerts_per_day=0.0))
    data = read_data(path)
    assert (summary.users.total(), data.incidents) == (0, [])
    assert data.account.scored == sum(PEOPLE.values()) - PEOPLE[None]
    assert [entry.add for entry in data.lacks] == ["timeseries --resolution=10m"]


@pytest.mark.parametrize(("timezone", "days"), [("UTC", 1), ("Etc/GMT+2", 2)])
def test_incidents_are_days_of_the_time_zone_of_the_run(columns, tmp_path, timezone, days):  # noqa: F811 - the fixture
    path = tmp_path / "report.html"
    summary = run(path, columns, Filter(alerts_per_day=100.0), timezone=timezone)
    data = read_data(path)
    spans = [
        (view.incident.user, view.incident.since, view.incident.until) for view in data.incidents
    ]
    midnight = min(since for _, since, _ in spans) // 86400 * 86400 + 7200
    assert sum(view.incident.count for view in data.incidents) == summary.users.total()
    assert len(spans) == days * 5
    assert days == 1 or all(until < midnight or since >= midnight for _, since, until in spans)


def test_incident_details_show_the_explanation(full):
    _, data = full
    for view in data.incidents:
        worst = view.incident.events[view.incident.worst]
        assert isinstance(worst.why, Explanation)
        assert [column.column for column in view.incident.columns] == [
            reason.column for reason in worst.why.top_columns(3)
        ]


def test_user_view_shows_the_model(full):
    _, data = full
    person = next(entry for entry in data.people if entry.name == "user1")
    assert person.profile.events == sum(person.rhythm.hours)
    assert len(person.profile.curve) >= person.profile.epochs
    assert min(person.profile.curve) == person.profile.curve[person.profile.epochs - 1]
    assert person.profile.calibration.events == 200


def test_page_does_not_depend_on_threads_or_batch_size(columns, tmp_path):  # noqa: F811 - the fixture
    pages = []
    for threads, size in ((1, 256), (2, 7)):
        path = tmp_path / f"{threads}.html"
        stages = (Explain(), Filter(alerts_per_day=2.0))
        run(path, columns, *stages, num_threads=threads, pipeline_batch_size=size)
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_page_reports_missing_stages(columns, tmp_path):  # noqa: F811 - the fixture
    run(tmp_path / "r.html", columns, sink={"alerts_per_day": 1.0})
    data = read_data(tmp_path / "r.html")
    assert "1 highest incidents per day" in data.rule
    assert [entry.add for entry in data.lacks] == [
        "explain (after add-scores)",
        "timeseries --resolution=10m",
    ]


def test_without_the_time_the_run_fails_and_the_old_page_stays(columns, tmp_path):  # noqa: F811 - the fixture
    path = tmp_path / "r.html"
    path.write_text("old")
    hide = [Serialize(exclude=(f"^{TIME}$",))]
    with pytest.raises(UsageError, match=f"--include={TIME}"):
        run(path, columns, *hide)
    assert path.read_text() == "old"


def test_existing_page_is_replaced_only_with_overwrite(tmp_path):
    (tmp_path / "r.html").touch()
    with pytest.raises(UsageError, match="Give `to-report --overwrite`"):
        ToReport(str(tmp_path / "r.html")).validate()
