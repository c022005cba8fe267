"""`@actor` as the user column, in every command and in the Python API; names that ignore case."""

import json
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from morpheus import Fingerprints
from morpheus.cli.main import morpheus as command
from morpheus.columns import TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.report_cli import ResultFiles
from morpheus.serve.live import LiveReport
from morpheus.sources.from_file import FromAzure
from morpheus.sources.results import find_users

PEOPLE = ["Ann@Example.org", "ann@example.org", "bob@example.org"]
ACTORS = {"ann@example.org", "bob@example.org"}


def identity(name: str) -> dict[str, Any]:
    return {
        "type": "AssumedRole",
        "principalId": f"AROA:{name}",
        "arn": f"arn:aws:sts::111122223333:assumed-role/admin/{name}",
        "accountId": "111122223333",
        "sessionContext": {"sessionIssuer": {"userName": "admin"}},
    }


def write_log(path: Path, events: int = 90) -> Path:
    """Write events of two people who share a role, one of them in two spellings."""
    records = [
        {
            "eventID": str(uuid.UUID(int=n)),
            "eventTime": f"2026-10-{1 + n // 24:02}T{n % 24:02}:00:00Z",
            "eventName": ["ListBuckets", "GetObject"][n % 2],
            "eventSource": "s3.amazonaws.com",
            "sourceIPAddress": "198.51.100.10",
            "userIdentity": identity(PEOPLE[n % 3]),
        }
        for n in range(events)
    ]
    path.write_text(json.dumps({"Records": records}))
    return path


def run(*words: object) -> str:
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def score(log: Path, output: Path, user: str) -> Path:
    options = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={user}"]
    stages = ["train-ae", "--train_epochs=1", "preprocess", "inf-pytorch", "add-scores"]
    source = ["from-cloudtrail", f"--input_glob={log}"]
    run(*options, *source, *stages, "serialize", "to-file", f"--filename={output}", "--overwrite")
    return output


def users_of(path: Path) -> set[str | None]:
    return {user for user, _ in ResultFiles.from_files([path], "@actor").iter_by_user()}


@pytest.mark.parametrize("user", ["@actor", "userIdentityaccountId"])
@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_report_knows_the_actors_of_any_run(tmp_path: Path, user: str, suffix: str) -> None:
    log = write_log(tmp_path / "log.json")
    output = score(log, tmp_path / f"out.{suffix}", user)
    assert users_of(output) == ACTORS
    page = tmp_path / "page.html"
    run("report", output, "--userid_column_name=@actor", f"--filename={page}")
    assert page.stat().st_size


def test_results_of_an_unknown_log_have_no_actors(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("who,event_dt,ae_anomaly_score\nann,2026-10-01T00:00:00Z,1\n")
    with pytest.raises(UsageError, match=r"has no column `@actor`\. Give one of its columns"):
        ResultFiles.from_files([path], "@actor")


def test_live_page_knows_the_actors(tmp_path: Path) -> None:
    rows = [
        {
            "eventTime": f"2026-10-01T0{n}:00:00Z",
            "eventName": "StopLogging",
            "userIdentitytype": "AssumedRole",
            "userIdentityprincipalId": f"AROA:{PEOPLE[n]}",
            "userIdentityaccountId": "111122223333",
            TIME: f"2026-10-01T0{n}:00:00Z",
            "risk": 9.0,
        }
        for n in range(3)
    ]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    live = LiveReport(tmp_path, "@actor")
    live.refresh()
    page = json.loads(live.encode_data())
    assert {view["incident"]["user"] for view in page["incidents"]} == ACTORS


def test_replay_acts_as_each_actor(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.json")
    techniques = tmp_path / "techniques"
    techniques.mkdir()
    trail = {
        "eventTime": "2024-01-01T00:00:00Z",
        "eventName": "StopLogging",
        "eventSource": "cloudtrail.amazonaws.com",
        "userIdentity": identity("mallory"),
    }
    (techniques / "stop-logging.json").write_text(json.dumps({"Records": [trail]}))
    output = run(
        *("tools", "replay", f"--input_glob={log}", f"--train_data_glob={log}"),
        *("--userid_column_name=@actor", f"--techniques={techniques}", "--num_threads=1"),
        "--train_min_history=20",
    )
    for actor in ACTORS:
        assert actor in output


def test_python_api_knows_the_actors_of_a_known_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.json")
    output = score(log, tmp_path / "out.csv", "userIdentityaccountId")
    frame = pl.read_csv(output, infer_schema=False)
    models = Fingerprints.train(
        frame, user="@actor", time=TIME, columns=["eventName"], epochs=1, min_history=10
    )
    assert set(models.cards) == ACTORS
    assert models.score(frame)["risk"].null_count() == 0


def test_python_api_refuses_actors_of_an_unknown_log() -> None:
    frame = pl.DataFrame({"at": ["2026-10-01T00:00:00Z"], "a": ["x"]})
    with pytest.raises(UsageError, match="user: `@actor` needs the flat columns of a known log"):
        Fingerprints.train(frame, user="@actor", time="at")


def test_actors_are_found_in_flat_columns_with_empty_text() -> None:
    rows = pl.DataFrame(
        {
            "eventTime": ["2026-10-01T00:00:00Z"] * 2,
            "eventName": ["Ls", "Ls"],
            "userIdentitytype": ["Unknown", "Unknown"],
            "userIdentityuserName": [" ", "Bob@Example.org"],
            "userIdentityaccountId": ["1", "1"],
        }
    )
    users = find_users(rows, "@actor")
    assert users is not None
    assert users.to_list() == ["unknown@1", "bob@example.org"]


def write_sign_ins(path: Path) -> Path:
    records = [
        {
            "id": str(uuid.UUID(int=n)),
            "createdDateTime": f"2026-10-01T08:{n:02}:00Z",
            "userPrincipalName": PEOPLE[n % 3],
            "userId": f"id-{n % 3 // 2}",
            "appDisplayName": "Portal",
            "ipAddress": "198.51.100.10",
        }
        for n in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("user", ["userPrincipalName", "@actor"])
@pytest.mark.parametrize("chosen", [None, "ANN@example.org"])
def test_principal_names_ignore_case(tmp_path: Path, user: str, chosen: str | None) -> None:
    options = PipelineOptions(
        columns=("appDisplayName",), userid_column_name=user, userid_filter=chosen
    )
    source = FromAzure(input_glob=str(write_sign_ins(tmp_path / "x.jsonl")), options=options)
    users = {batch.user for batch in source.events(None, RunMetrics())}
    assert users == (ACTORS if chosen is None else {"ann@example.org"})


def test_principal_names_ignore_case_in_the_python_api() -> None:
    count = 60
    frame = pl.DataFrame(
        {
            "createdDateTime": [f"2026-10-01T08:{n:02}:00Z" for n in range(count)],
            "userPrincipalName": [PEOPLE[n % 3] for n in range(count)],
            "appDisplayName": [["Portal", "Mail"][n % 2] for n in range(count)],
            "ipAddress": ["198.51.100.10"] * count,
        }
    )
    models = Fingerprints.train(
        frame, user="userPrincipalName", time="createdDateTime", epochs=1, min_history=10
    )
    assert set(models.cards) == ACTORS


def write_badges(folder: Path, schema: str) -> list[str]:
    """Write a log with a column `actor`, as JSON lines and as CSV, and a schema of it."""
    rows = pl.DataFrame(
        {
            "when": [f"2026-10-{1 + n // 24:02}T{n % 24:02}:00:00Z" for n in range(60)],
            "who": [["d1", "d2"][n % 2] for n in range(60)],
            "actor": [["ann", "bob", "cy"][n % 3] for n in range(60)],
            "act": ["open"] * 60,
        }
    )
    rows.write_ndjson(folder / "log.jsonl")
    rows.write_csv(folder / "log.csv")
    (folder / "log.toml").write_text(f'name = "badges"\ntime = "when"\n{schema}')
    return ["run", "pipeline-ae", f"--columns_file={folder / 'log.toml'}"]


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_the_user_column_of_a_log_can_be_named_actor(name: str, tmp_path: Path) -> None:
    words = write_badges(tmp_path, 'user = "actor"\nfeatures = ["act"]\n')
    for user in ("actor", "@actor"):
        output = tmp_path / f"{user}.csv"
        source = ["from-file", f"--input_glob={tmp_path / name}"]
        run(*words, f"--userid_column_name={user}", *source, "serialize", *write_to(output))
        assert set(pl.read_csv(output)["actor"]) == {"ann", "bob", "cy"}


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_actors_replace_no_column_of_the_log(name: str, tmp_path: Path) -> None:
    source = ["from-file", f"--input_glob={tmp_path / name}"]
    words = write_badges(tmp_path, 'user = "who"\nfeatures = ["act"]\ncontext = ["actor"]\n')
    refused = CliRunner().invoke(
        command, [*words, "--userid_column_name=@actor", *source, "serialize"]
    )
    assert refused.exit_code == 2
    assert "has a column `actor`, which is the name of" in refused.output
    renamed = 'user = "who"\nfeatures = ["act", "login"]\n[columns]\nlogin = "actor"\n'
    words, output = write_badges(tmp_path, renamed), tmp_path / "output.csv"
    run(*words, "--userid_column_name=@actor", *source, "serialize", *write_to(output))
    rows = pl.read_csv(output)
    assert (set(rows["login"]), set(rows["actor"])) == ({"ann", "bob", "cy"}, {"d1", "d2"})


def write_to(output: Path) -> list[str]:
    return ["to-file", f"--filename={output}"]
