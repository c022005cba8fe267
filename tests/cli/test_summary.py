from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.cli.output import format_metrics, format_results
from morpheus.core.batch import AlertBudgetReport, OutputRows, ReadStats, RunMetrics, Scored, Table
from morpheus.core.registry import load_stage, stage_names
from morpheus.core.stage import PipelineOptions, Stage
from morpheus.models.calibration import AlertForecast
from morpheus.models.profile import ModelCard
from morpheus.models.store import SavedModels
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_http import ToHttp
from morpheus.sinks.to_kafka import ToKafka
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sinks.to_report import ToReport
from morpheus.sinks.validate import Validate
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.filter import mask_batch

from .conftest import Run

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
USERS = st.one_of(st.none(), st.text(max_size=5))


def metrics_of(**changes: object) -> RunMetrics:
    """Metrics of a run over one file with 10 events of ann."""
    defaults = {"input": ReadStats(files=1, read=10), "users": Counter({"ann": 10}), "scored": 10}
    return RunMetrics(**(defaults | changes))  # type: ignore[arg-type]  # a builder of any field


def test_the_summary_has_one_fact_per_line() -> None:
    assert format_metrics(metrics_of(seconds=1.25, flagged=1)) == [
        "Input    10 events in 1 file",
        "Written  10 events of 1 user",
        "Scored   10 events, with 0 models",
        "Flagged  1 event",
        "Seconds  1.2",
    ]


def test_events_left_out_are_counted_by_reason() -> None:
    stats = ReadStats(files=2, skipped_files=1, read=20, duplicates=3, other_users=4, no_user=5)
    stats.refuse("a.json:7: no time")
    text = "\n".join(format_metrics(metrics_of(input=stats)))
    assert "1 rejected, 3 duplicate, 4 of other users, 5 without a user, 1 file of" in text
    assert "rejected  a.json:7: no time" in text


def test_the_first_users_without_a_score_are_named_and_the_rest_are_counted() -> None:
    users = Counter({None: 9, "ann": 1, "bob": 2, "cy": 3, "dee": 4})
    lines = format_metrics(
        metrics_of(users=users, unscored_reasons=dict.fromkeys(users, "no history"), scored=0)
    )
    assert "Not scored  19 events of 4 users: no history ((no user), dee, cy, 2 more)" in lines


def test_events_with_a_score_and_flags_are_counted_also_if_they_are_filtered() -> None:
    metrics = RunMetrics()
    table = Table(pl.DataFrame({"x": [1, 2, 3], "ts_anomaly": [True, False, True]}))
    ann = Scored(user="ann", table=table, scores=("risk",), losses=np.zeros((3, 1), np.float32))
    bob = replace(ann, user="bob", scores=(), unscored_reason="no fingerprint")
    metrics.add(mask_batch(ann, np.array([True, False, False])))
    metrics.add(mask_batch(ann, np.zeros(3, np.bool_)))
    metrics.add(mask_batch(bob, np.zeros(3, np.bool_)))
    lines = format_metrics(metrics)
    assert "Scored      6 events, with 0 models" in lines
    assert "Not scored  3 events of 1 user: no fingerprint (bob)" in lines
    assert "Filtered    8 events" in lines
    assert "Flagged     6 events" in lines


def test_events_without_a_score_are_counted_also_if_they_are_filtered() -> None:
    metrics = RunMetrics()
    table = Table(pl.DataFrame({"x": [1, 2, 3]}))
    ann = OutputRows(user="ann", table=table, unscored_reason="no fingerprint")
    metrics.add(ann)
    metrics.add(replace(ann, table=table.clear(), filtered=4))
    metrics.add(OutputRows(user="bob", table=table.clear(), scores=("risk",), filtered=5))
    metrics.add(OutputRows(user="cy", table=table.clear(), unscored_reason="x", filtered=6))
    lines = format_metrics(metrics)
    assert [line for line in lines if line.startswith("Not scored")] == [
        "Not scored  7 events of 1 user: no fingerprint (ann)",
        "Not scored  6 events of 1 user: x (cy)",
    ]


def test_models_are_counted_by_the_scope_of_their_training_data() -> None:
    cards = {
        user: ModelCard(user, 10, 5, "", "", 3, 0, scope)
        for user, scope in {"ann": "own", "bob": "peers", "eve": "everyone"}.items()
    }
    lines = format_metrics(metrics_of(cards=cards))
    assert "  models  1 trained on own history, 1 with data of similar users, 1 global" in lines


def test_a_pipeline_that_does_not_score_says_so() -> None:
    assert "Not scored  10 events: no stage of this pipeline scores" in format_metrics(
        metrics_of(scored=0)
    )


def test_control_characters_in_names_are_escaped() -> None:
    name = "\x1b[2Jann\nScored 0"
    lines = format_metrics(
        metrics_of(users=Counter({name: 1}), unscored_reasons={name: "no\tmodel"}, scored=0)
    )
    assert r"Not scored  1 event of 1 user: no\tmodel (\x1b[2Jann\nScored 0)" in lines


@given(st.dictionaries(USERS, st.tuples(st.integers(1, 99), st.text(max_size=4))))
def test_every_written_event_is_counted_as_scored_or_not_scored(
    users: dict[str | None, tuple[int, str]],
) -> None:
    lines = format_metrics(
        RunMetrics(
            users=Counter({user: number for user, (number, _) in users.items()}),
            unscored_reasons={user: reason for user, (_, reason) in users.items()},
        )
    )
    counted = [int(x.split()[2]) for x in lines if x.startswith("Not scored")]
    assert sum(counted) == sum(number for number, _ in users.values())
    assert all(line.isprintable() for line in lines)


def test_suppressed_and_expired_events_are_counted_by_suppression() -> None:
    suppressed, expired = Counter({"a rule": 1200, "another": 1}), Counter({"an old rule": 2})
    report = AlertBudgetReport(AlertForecast(5.0, 1.0, 9.0), 3, suppressed=2)
    lines = format_metrics(
        metrics_of(filtered=1300, suppressed=suppressed, expired=expired, budget_report=report)
    )
    assert lines[1:6] == [
        "Filtered      1,300 events",
        "  suppressed  1,200 events by a rule",
        "  suppressed  1 event by another",
        "  expired     2 events no longer suppressed: an old rule",
        "Alerts        3, plus 2 suppressed, 5 expected (1 to 9)",
    ]


def test_alerts_are_shown_with_what_was_wanted_and_what_came_next() -> None:
    report = AlertBudgetReport(
        AlertForecast(13.6, 6.0, 24.0),
        11,
        wanted=14.0,
        days=1000,
        capped=2,
        next_pvalue=1 / 812,
        reason="extrapolated: one in 5,000 days is asked for, 800 were seen",
    )
    lines = format_metrics(metrics_of(budget_report=report))
    assert lines[1:5] == [
        "Alerts       11, 14 wanted, 14 expected (6 to 24)",
        "  uncertain  extrapolated: one in 5,000 days is asked for, 800 were seen",
        "  capped     2 user-days by --max_alerts_per_day",
        "  next       the most unusual other user-day, which is one in 812 days",
    ]


@given(st.floats(0, 1e-300) | st.floats(1e-3, 1e4))
def test_an_expected_number_of_alerts_is_never_without_an_interval(rate: float) -> None:
    report = AlertBudgetReport(AlertForecast.from_rates(np.array([rate])), 0, wanted=rate)
    [line] = [x for x in format_metrics(metrics_of(budget_report=report)) if "expected" in x]
    assert "(0 to 0)" not in line
    assert rate < 1e-300 or not re.search(r" 0 (wanted|expected)", line)


def make_results(*stages: Stage, **options: object) -> dict[str, str]:
    """The last lines of the summary of a run with these sinks, which has scored 10 events."""
    metrics = metrics_of(columns=("eventName", "userIdentityarn"))
    wanted = PipelineOptions(log=FromCloudtrail.log_format.describe(), **options)  # type: ignore[arg-type]  # a builder of any field
    source = FromCloudtrail(input_glob="x", options=wanted)
    return format_results([source, *(replace(stage, options=wanted) for stage in stages)], metrics)


def test_the_summary_ends_with_the_results_and_the_next_command() -> None:
    rows, page = ToFile(filename="out/a.csv"), ToReport(filename="out/a.html")
    arn = {"userid_column_name": "userIdentityarn"}
    assert make_results(rows, **arn) == {
        "Results": "out/a.csv",
        "Next": "Type `morpheus report out/a.csv` to get a report page.",
    }
    assert make_results(rows, page, **arn) == {
        "Results": "out/a.csv, out/a.html",
        "Next": "Open out/a.html.",
    }
    status = {"status_file": "out/status.json"}
    assert make_results(rows, page, **arn, **status)["Next"] == (
        "Open out/a.html, or type `morpheus serve out`."
    )
    assert make_results(rows, **arn, **status)["Next"] == (
        "Type `morpheus report out` to get a report page."
    )
    assert make_results(ToFile(filename="-"), **arn) == {}
    sent = ToKafka(bootstrap_servers="kafka:9092", output_topic="alerts")
    assert make_results(sent, **arn) == {"Results": "`alerts` at `kafka:9092`"}
    posted = ToHttp(base_url="https://siem:8088")
    assert make_results(posted, **arn) == {"Results": "`https://siem:8088`"}


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        (ToFile(filename="a.csv"), "a.csv"),
        (ToFile(filename="s3://b/a.csv"), "s3://b/a.csv"),
        (ToParquet(folder="rows"), "rows"),
        (ToParquet(folder="s3://b/rows"), "s3://b/rows"),
        (ToReport(filename="a.html"), "a.html"),
        (ToOcsf(filename="a.jsonl"), "a.jsonl"),
        (ToOcsf(lake_folder="lake", region="eu-west-1"), "lake"),
        (ToOcsf(lake_folder="s3://b/lake", region="eu-west-1"), "s3://b/lake"),
        (ToEcs(filename="a.jsonl"), "a.jsonl"),
        (
            ToKafka(bootstrap_servers="kafka:9092", output_topic="alerts"),
            "`alerts` at `kafka:9092`",
        ),
        (ToHttp(base_url="https://siem:8088"), "`https://siem:8088`"),
        (Validate(val_file_name="a.csv", results_file_name="diff.json"), "diff.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_results_name_what_every_stage_writes(stage: Stage, place: str) -> None:
    assert make_results(stage)["Results"] == place


def test_every_stage_that_writes_is_in_the_test_of_results() -> None:
    known = {"to-file", "to-parquet", "to-report", "to-ocsf", "to-ecs", "to-kafka", "to-http"}
    known |= {"validate", "to-console", "train-ae"}  # the last two have no results to name
    assert {name for name in stage_names() if hasattr(load_stage(name), "commit")} == known


def test_the_next_command_has_the_options_that_these_results_need() -> None:
    rows = ToFile(filename="out/the alerts.jsonl")
    metrics = metrics_of(filtered=3, saved_models=SavedModels("models", 1, 0, version=2), scored=10)
    options = PipelineOptions(userid_column_name="host")
    stages = [replace(stage, options=options) for stage in (FromCloudtrail(input_glob="x"), rows)]
    assert format_results(stages, metrics)["Next"] == (
        "Type `morpheus report 'out/the alerts.jsonl' --userid_column_name=host --models=models "
        "--all_alerts` to get a report page."
    )


def test_a_run_without_results_names_no_command_for_them() -> None:
    stages = [FromCloudtrail(input_glob="x"), ToFile(filename="out.csv")]
    assert format_results(stages, metrics_of(failed_outputs=1)) == {}
    assert format_results(stages, metrics_of(scored=0)) == {"Results": "out.csv"}
    assert "serialize to-file" in format_results(stages[:1], metrics_of())["Next"]


def test_the_command_that_the_summary_names_works(tmp_path: Path, run: Run) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "data", ignore=shutil.ignore_patterns("output"))
    user = "userIdentitysessionContextsessionIssueruserName"
    chain = ("preprocess", "inf-pytorch", "add-scores", "--label=risk", "filter")
    done = run(
        *("run", "pipeline-ae", f"--userid_column_name={user}"),
        *("from-cloudtrail", "--input_glob=data/input-data/*.csv"),
        *("train-ae", "--train_data_glob=data/training-data/*.csv"),
        *("--models_output_filename=models", *chain, "--label=risk", "--threshold=20"),
        *("serialize", "to-file", "--filename=alerts.jsonl"),
    )
    assert done.returncode == 0, done.stderr
    [command] = re.findall(r"^Next +Type `morpheus (.*)` to get", done.stderr, re.MULTILINE)
    reported = run(*shlex.split(command))
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "report.html").is_file()
