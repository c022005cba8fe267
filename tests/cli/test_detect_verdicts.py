"""`morpheus detect --verdicts`: harmless incidents are hidden, accepted ones are trained with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cli.test_detect import OUT, Detected, detect, execute, make_fleet, read_alerts

BUDGET = "--alerts_per_day=2"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Detected:
    """A company of eight with a noisy user, after a first run."""
    folder = tmp_path_factory.mktemp("noisy")
    make_fleet(folder, "--users=8", "--days=42", "--training=21", "--noisy=1", "--seed=3")
    return detect(folder, "bucket/json", BUDGET)


@pytest.fixture
def again(noisy: Detected, tmp_path: Path) -> Path:
    """A copy of the folder, for another run."""
    (tmp_path / "bucket").symlink_to(noisy.folder / "bucket")
    shutil.copytree(noisy.out, tmp_path / OUT)
    return tmp_path


def list_incidents(folder: Path) -> pl.DataFrame:
    """Incidents of a run, the user's with most incidents first."""
    incidents = (
        read_alerts(folder)
        .group_by("incident_id", "actor")
        .agg(
            pl.col("eventTime").min().alias("start"),
            pl.col("eventTime").max().alias("end"),
            pl.len().alias("events"),
            pl.col("top_columns").sort_by("risk").last(),
        )
    )
    return incidents.sort(pl.len().over("actor"), "start", descending=[True, False])


def judge(row: dict[str, Any], judged: str = "expected", **more: object) -> dict[str, object]:
    names = ("start", "end", "events")
    columns = [{"column": name, "value": None} for name in row["top_columns"].split(", ")]
    about = {"incident": row["incident_id"], "user": row["actor"], "verdict": judged}
    return {**about, **{name: row[name] for name in names}, "columns": columns, **more}


def write_verdicts(folder: Path, *verdicts: dict[str, object]) -> str:
    file = {"format": "morpheus-verdicts", "version": 2, "made": "2030-01-01T00:00:00Z"}
    (folder / "verdicts.json").write_text(json.dumps({**file, "verdicts": verdicts}))
    return "--verdicts=verdicts.json"


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_judged_incidents_and_their_like_are_hidden_and_no_other_user_loses_one(
    noisy: Detected, again: Path
) -> None:
    before = list_incidents(noisy.folder)
    user = before["actor"][0]
    own = before.filter(pl.col("actor") == user)
    option = write_verdicts(again, *map(judge, own.head(6).to_dicts()))
    done = detect(again, "bucket/json", BUDGET, option)
    after = list_incidents(again)
    assert after.filter(pl.col("actor") == user).height < own.height
    judged = set(own["incident_id"].head(6))
    assert not judged & set(after["incident_id"])
    assert set(after["incident_id"]) <= set(before["incident_id"])
    others = before.filter(pl.col("actor") != user)["incident_id"]
    assert set(others) <= set(after["incident_id"])
    hidden = before.height - after.height
    assert f"Hidden      {hidden} incidents" in done.done.stderr
    assert "suppressions.toml" in " ".join(done.command)


def test_verdicts_and_reports_work_after_a_run_without_an_incident(again: Path) -> None:
    option = write_verdicts(again, judge(list_incidents(again).to_dicts()[0]))
    none = detect(again, "bucket/json", "--alerts_per_day=0")
    assert none.counts[0] == 0
    report = execute(again, "report", OUT)
    assert report.returncode == 0, report.stderr
    assert f"0 incidents in {none.counts[2]:,} scored events" in report.stderr
    detect(again, "bucket/json", "--alerts_per_day=0", option)
    suppress = execute(again, "tools", "suppress", "verdicts.json", f"--preview={OUT}")
    assert suppress.returncode == 0, suppress.stderr


def test_the_printed_command_gives_the_same_results_with_verdicts(again: Path) -> None:
    rows = list_incidents(again).to_dicts()
    option = write_verdicts(
        again,
        judge(rows[0]),
        judge(rows[1], tuning={"action": "accept"}),
        judge(rows[-1], "malicious"),
    )
    detected = detect(again, "bucket/json", BUDGET, option)
    alerts = (again / OUT / "alerts.jsonl").read_bytes()
    assert "accepted event" in detected.done.stderr
    done = execute(again, *detected.command[1:])
    assert done.returncode == 0, done.stderr
    # Training again has published the next version of the fingerprints.
    assert re.sub(rb'"model_version":\d+', b"", (again / OUT / "alerts.jsonl").read_bytes()) == (
        re.sub(rb'"model_version":\d+', b"", alerts)
    )


def test_accepted_incidents_are_trained_with_in_spite_of_fingerprints_in_the_folder(
    noisy: Detected, again: Path
) -> None:
    row = list_incidents(again).to_dicts()[0]
    option = write_verdicts(again, judge(row, tuning={"action": "accept"}))
    done = detect(again, "bucket/json", BUDGET, option).done
    assert "accepted events added" in done.stderr
    assert "the fingerprints in" not in done.stderr
    before, after = (read_alerts(folder) for folder in (noisy.folder, again))
    risks = [
        part.filter(incident_id=row["incident_id"])["risk"].max() or 0.0 for part in (before, after)
    ]
    assert risks[1] < risks[0]


def test_a_muted_user_has_no_incident(again: Path) -> None:
    row = list_incidents(again).to_dicts()[0]
    wish = {"tuning": {"action": "mute", "until": "2031-01-01"}}
    done = detect(again, "bucket/json", BUDGET, write_verdicts(again, judge(row, **wish))).done
    assert f"by everything, of {row['actor']}, until 2031-01-01" in done.stderr
    assert row["actor"] not in set(list_incidents(again)["actor"])


def test_a_mute_is_rejected_if_another_incident_of_the_user_is_malicious(again: Path) -> None:
    rows = list_incidents(again).to_dicts()[:2]
    wish = {"tuning": {"action": "mute", "until": "2031-01-01"}}
    option = write_verdicts(again, judge(rows[0], **wish), judge(rows[1], "malicious"))
    done = detect(again, "bucket/json", BUDGET, option).done
    refusal = f"it would hide incident {rows[1]['incident_id']}, judged malicious"
    assert (
        f"Rejected    everything, of {rows[0]['actor']}, until 2031-01-01: {refusal}" in done.stderr
    )
    assert {row["incident_id"] for row in rows} <= set(list_incidents(again)["incident_id"])


def test_suppressions_of_a_file_are_passed_on(again: Path) -> None:
    row = list_incidents(again).to_dicts()[0]
    (again / "own.toml").write_text(
        'format = "morpheus-suppressions"\nversion = 2\n[[suppression]]\nmute = true\n'
        f'users = ["{row["actor"]}"]\nuntil = 2031-01-01\nreason = "asked"\n'
    )
    done = detect(again, "bucket/json", BUDGET, "--suppressions=own.toml")
    assert "--suppressions=own.toml" in done.command
    assert row["actor"] not in set(list_incidents(again)["actor"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "--verdicts: `verdicts.json` cannot be read: Object missing required field"),
        (None, "--verdicts: `verdicts.json` cannot be read: No such file"),
    ],
)
def test_a_wrong_file_of_verdicts_leaves_the_folder_as_it_was(
    again: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (again / "verdicts.json").write_text(content)
    before = read_files(again / OUT)
    done = execute(again, "detect", "bucket/json", BUDGET, "--verdicts=verdicts.json")
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert before == {
        path: path.read_bytes() for path in (again / OUT).rglob("*") if path.is_file()
    }


def test_the_file_that_is_written_anew_is_not_read(again: Path) -> None:
    option = write_verdicts(again)
    own = f"--suppressions={OUT}/suppressions.toml"
    done = execute(again, "detect", "bucket/json", option, own)
    assert done.returncode == 2
    assert f"--suppressions: `{OUT}/suppressions.toml` is replaced with --verdicts" in done.stderr


DOORS = """
name = "doors"
time = "at"
user = "who"
id = "number"
features = ["what", "door", "size", "hourkind"]
"""
FIELDS = '[event_fields]\naction = "what"\n'


def write_doors(folder: Path, schema: str) -> None:
    """Write a log of eight users, each with one day that is unusual."""
    rng, rows = np.random.default_rng(5), list[dict[str, object]]()
    for day in range(30):
        for user in range(8):
            usual = [("abc"[a], "xy"[b], int(c)) for a, b, c in rng.integers(0, [3, 2, 4], (20, 3))]
            strange = [("DELETE", "cellar", 999)] * 5 if day == 22 + user else []
            for number, (what, door, size) in enumerate(usual + strange):
                at = f"2026-09-{day + 1:02}T08:{number:02}:00Z"
                event = {"at": at, "who": f"u{user}", "what": what, "door": door, "size": size}
                rows.append({**event, "number": f"{day}-{user}-{number}"})
    (folder / "doors.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "doors.toml").write_text(schema)


@pytest.mark.parametrize("is_described", [True, False])
def test_a_verdict_on_a_log_with_an_own_schema_hides_or_is_said_to_hide_nothing(
    is_described: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
) -> None:
    write_doors(tmp_path, DOORS + (FIELDS if is_described else ""))
    words = ("doors.jsonl", "--source=doors.toml")
    before = detect(tmp_path, *words)
    [row] = read_alerts(tmp_path).filter(pl.col("actor") == "u3").head(1).to_dicts()
    about = {"incident": row["incident_id"], "user": "u3", "verdict": "expected"}
    time = {"start": row["at"], "end": "2026-09-26T08:59:00Z", "events": 5}
    columns = [{"column": name, "value": None} for name in row["top_columns"].split(", ")]
    option = write_verdicts(tmp_path, {**about, **time, "columns": columns})
    after = detect(tmp_path, *words, option)
    if is_described:
        assert "Hidden      1 incident" in after.done.stderr
    else:
        assert f"Not hidden  incident {row['incident_id']}, expected: " in after.done.stderr
    assert after.counts[0] == before.counts[0] - is_described
    assert (row["incident_id"] in set(read_alerts(tmp_path)["incident_id"])) is not is_described


def test_tools_suppress_has_the_conditions_that_the_schema_of_the_log_names(tmp_path: Path) -> None:
    write_doors(tmp_path, DOORS + FIELDS)
    detect(tmp_path, "doors.jsonl", "--source=doors.toml")
    [row] = read_alerts(tmp_path).filter(pl.col("actor") == "u3").head(1).to_dicts()
    about = {"incident": row["incident_id"], "user": "u3", "verdict": "expected", "events": 5}
    time = {"start": row["at"], "end": "2026-09-26T08:59:00Z"}
    write_verdicts(tmp_path, {**about, **time, "columns": [{"column": "what", "value": "DELETE"}]})
    words = ("tools", "suppress", "verdicts.json", f"--preview={OUT}")
    without = execute(tmp_path, *words)
    assert "schema of your own, give it as --source" in without.stderr
    done = execute(tmp_path, *words, "--overwrite", "--source=doors.toml")
    assert done.returncode == 0, done.stderr
    assert "what = `DELETE`, of u3" in done.stdout
    assert "1 hidden" in done.stdout
