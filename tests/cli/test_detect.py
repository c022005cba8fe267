"""`morpheus detect`: from a folder of logs to a ranked list of incidents, with one command.

Run with `-s` to see the time, and how many of the planted incidents are found.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cli.conftest import Run
from morpheus.cli.detect import MAX_RECORDS_TRIED, recognise_kind
from morpheus.columns import ExplanationColumns
from morpheus.detection import MIN_INCIDENTS
from morpheus.errors import UsageError
from morpheus.models.versions import open_models
from morpheus.report_cli import ReportRequest, build_report
from morpheus.serve.live import LiveReport
from morpheus.sources.results import list_kinds

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "morpheus"]
OUT = "morpheus-results"
EXAMPLES = ROOT / "examples/data"
ROW = re.compile(
    r"^\d+ \w+ +(?P<user>\S+) +(?P<day>\d{4}-\d\d-\d\d) +(?P<events>[\d,]+) ", re.MULTILINE
)
FOUND = re.compile(r"^Found +([\d,]+) incidents? with ([\d,]+) events?, of ([\d,]+)", re.MULTILINE)


@dataclass(frozen=True)
class Detected:
    """A folder in which the command has run, what it printed, and the logs."""

    folder: Path
    done: subprocess.CompletedProcess[str]
    seconds: float

    @property
    def out(self) -> Path:
        return self.folder / OUT

    @property
    def rows(self) -> list[tuple[str, str, int]]:
        """User, day and number of events of each incident in the table."""
        found = ROW.finditer(self.done.stdout)
        return [(m["user"], m["day"], int(m["events"].replace(",", ""))) for m in found]

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of incidents, of their events, and of scored events, as printed."""
        found = FOUND.search(self.done.stderr)
        assert found is not None, self.done.stderr
        return tuple(int(number.replace(",", "")) for number in found.groups())

    @property
    def command(self) -> list[str]:
        """The words of the command line that it stands for."""
        found = re.search(r"^Same as +(morpheus run .*)$", self.done.stderr, re.MULTILINE)
        assert found is not None, self.done.stderr
        return shlex.split(found[1])


def execute(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def detect(folder: Path, *words: str) -> Detected:
    start = time.perf_counter()
    done = execute(folder, "detect", *words)
    assert done.returncode == 0, done.stderr
    return Detected(folder, done, time.perf_counter() - start)


def make_fleet(folder: Path, *options: str) -> None:
    script = ROOT / "examples" / "make_fleet.py"
    words = [sys.executable, str(script), "--into", str(folder / "bucket"), "--form=json", *options]
    subprocess.run(words, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Detected:
    """A company of twelve, whose logs are one folder."""
    folder = tmp_path_factory.mktemp("small")
    make_fleet(folder, "--users", "12", "--days", "28", "--training", "14")
    return detect(folder, "bucket/json")


def read_alerts(folder: Path) -> pl.DataFrame:
    return pl.read_ndjson(folder / OUT / "alerts.jsonl", infer_schema_length=None)


def count_alerts(folder: Path) -> Counter[tuple[str, str]]:
    """Number of events of each user and day in the alerts file."""
    alerts = read_alerts(folder)
    days = alerts["eventTime"].str.slice(0, 10)
    return Counter(zip(alerts["actor"], days, strict=True))


# A privilege escalation and an exfiltration rank below usual days of other users. docs/detect.md
# has the figures of more fleets.
def test_the_top_fifteen_hold_eight_of_ten_planted_incidents(tmp_path: Path) -> None:
    make_fleet(tmp_path, "--users", "50", "--seed", "42")
    detected = detect(tmp_path, "bucket/json")
    with (tmp_path / "bucket" / "labels.csv").open(newline="") as file:
        incidents = {row["eventID"]: row["incident"] for row in csv.DictReader(file)}
    alerts = read_alerts(tmp_path)
    days = alerts["eventTime"].str.slice(0, 10)
    shown = {(user, day) for user, day, _ in detected.rows}
    keys = zip(alerts["actor"], days, alerts["eventID"], strict=True)
    found = {incidents[id_] for user, day, id_ in keys if (user, day) in shown and id_ in incidents}
    planted = set(incidents.values())
    sys.stdout.write(
        f"\n{len(found)} of {len(planted)} planted incidents among the top "
        f"{len(detected.rows)} of {detected.counts[0]}, in {detected.seconds:.1f} s\n"
    )
    assert len(planted) == 10
    assert len(detected.rows) == MIN_INCIDENTS
    assert len(found) >= 8


def test_the_terminal_the_alerts_the_report_and_the_live_page_count_the_same(
    small: Detected,
) -> None:
    alerts = count_alerts(small.folder)
    counts = len(alerts), alerts.total()
    assert small.counts[:2] == counts
    assert counts[0] > 0
    assert {(user, day): events for user, day, events in small.rows}.items() <= alerts.items()

    data = build_report(ReportRequest(), [small.out])
    live = LiveReport(small.out, store=open_models(str(small.out / "models")))
    live.refresh()
    page = json.loads(live.encode_data())
    for incidents, account in (
        ([view.incident for view in data.incidents], data.account.scored),
        ([to_namespace(view["incident"]) for view in page["incidents"]], page["account"]["scored"]),
    ):
        assert (len(incidents), sum(incident.count for incident in incidents)) == counts
        assert account == small.counts[2]
        shown = [(one.user, one.start[:10], one.count) for one in incidents[:MIN_INCIDENTS]]
        assert shown == small.rows


def to_namespace(fields: dict[str, Any]) -> Any:
    return type("Incident", (), fields)


def test_report_and_serve_read_the_folder_without_options(small: Detected) -> None:
    done = execute(small.folder, "report", OUT, "--overwrite")
    incidents, _, scored = small.counts
    assert (done.returncode, done.stderr) == (
        0,
        f"report.html: {incidents} incidents in {scored:,} scored events\n",
    )


def test_a_report_counts_what_was_scored_not_what_was_read(tmp_path: Path) -> None:
    for name in ("input-data", "training-data"):
        shutil.copytree(EXAMPLES / name, tmp_path / "logs" / name)
    detected = execute(tmp_path, "detect", "logs")
    assert "of 1,178 that were scored" in detected.stderr
    reported = execute(tmp_path, "report", OUT)
    assert reported.stderr == "report.html: 1 incident in 1,178 scored events\n"


def test_the_printed_command_gives_the_same_results(small: Detected, tmp_path: Path) -> None:
    shutil.copytree(small.folder / "bucket", tmp_path / "bucket")
    done = execute(tmp_path, *small.command[1:])
    assert done.returncode == 0, done.stderr
    for name in ("alerts.jsonl", "report.html", "status.json"):
        assert (tmp_path / OUT / name).read_bytes() == (small.out / name).read_bytes()


def test_a_second_run_uses_the_fingerprints_and_finds_the_same(small: Detected) -> None:
    before = read_alerts(small.folder)
    again = detect(small.folder, "bucket/json")
    assert "--pretrained_filename" in " ".join(again.command)
    assert "train_data_glob" not in " ".join(again.command)
    assert again.rows == small.rows
    assert read_alerts(small.folder).equals(before)


def test_a_run_with_too_few_events_does_not_keep_the_next_one_from_training(
    tmp_path: Path,
) -> None:
    lines = (EXAMPLES / "input-data" / "role-g.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:40]), encoding="utf-8")
    few = detect(tmp_path, "few.csv")
    assert "no event has a score" in few.done.stderr
    both = detect(tmp_path, str(EXAMPLES / "training-data"))
    assert "Trained on  2024-03-13 to " in both.done.stderr
    assert both.counts[2] > 0


def test_history_is_for_training_and_all_logs_are_scored(small: Detected) -> None:
    folder, out = small.folder, "with-history"
    parts = ["bucket/json/scored", "--history=bucket/json/training", f"--out={out}"]
    detected = detect(folder, *parts)
    status = json.loads((folder / out / "status.json").read_bytes())
    records = {
        part: sum(
            len(json.loads(gzip.decompress(path.read_bytes()))["Records"])
            for path in (folder / "bucket/json" / part).rglob("*.gz")
        )
        for part in ("scored", "training")
    }
    assert records == {part: status["account"][part] for part in records}
    assert "the logs of --history: bucket/json/training" in detected.done.stderr


def test_no_incident_is_no_failure_and_has_a_reason(small: Detected) -> None:
    none = detect(small.folder, "bucket/json", "--alerts_per_day=0", "--out=none")
    assert none.rows == []
    assert none.counts[0] == 0
    assert "Why none    no day of a user is unusual enough for this budget." in none.done.stderr
    assert (small.folder / "none" / "report.html").exists()


# The kinds of logs.

_CLOUDTRAIL = {
    "eventVersion": "1.08",
    "eventTime": "2024-05-31T09:00:00Z",
    "eventID": "1",
    "eventSource": "s3.amazonaws.com",
    "eventName": "GetObject",
    "awsRegion": "eu-west-1",
    "sourceIPAddress": "203.0.113.9",
    "userAgent": "curl/8.1",
    "userIdentity": {"type": "IAMUser", "userName": "ann", "accountId": "123456789012"},
}
_OCSF = {
    "time": 1717147800000,
    "class_uid": 6003,
    "activity_name": "Read",
    "status": "Success",
    "metadata": {"uid": "1", "product": {"name": "CloudTrail"}, "version": "1.1.0"},
    "actor": {"user": {"type": "IAMUser", "uid": "arn:x", "name": "ann"}},
    "api": {"operation": "GetObject", "service": {"name": "s3.amazonaws.com"}},
    "src_endpoint": {"ip": "198.51.100.7"},
    "cloud": {"region": "eu-west-1", "provider": "AWS"},
}
_AZURE = {
    "id": "1",
    "createdDateTime": "2024-05-31T09:00:00Z",
    "userPrincipalName": "ann@x.org",
    "appDisplayName": "Mail",
    "clientAppUsed": "Browser",
    "deviceDetail": {"browser": "Edge 99", "displayName": "PC", "operatingSystem": "Linux"},
    "location": {"city": "Cork", "state": "Munster", "countryOrRegion": "IE"},
}
_DUO = {
    "txid": "1",
    "isotimestamp": "2020-02-13T18:00:00+00:00",
    "timestamp": 1581616820,
    "event_type": "authentication",
    "user": {"key": "DU", "name": "ann"},
    "application": {"key": "DI", "name": "VPN"},
    "factor": "duo_push",
    "result": "success",
    "reason": "user_approved",
    "access_device": {"browser": "Chrome", "os": "Mac OS X", "ip": "203.0.113.9"},
}
_OKTA = {
    "uuid": "1",
    "published": "2024-05-02T18:46:21.121Z",
    "eventType": "user.session.start",
    "actor": {"alternateId": "ann@x.org", "displayName": "Ann", "id": "00u1", "type": "User"},
    "client": {
        "device": "Computer",
        "ipAddress": "203.0.113.9",
        "geographicalContext": {"city": "Cork", "state": "Munster", "country": "Ireland"},
    },
    "outcome": {"result": "FAILURE", "reason": "INVALID_CREDENTIALS"},
}
_GCP = {
    "insertId": "1",
    "timestamp": "2024-05-31T09:00:00Z",
    "logName": "projects/p/logs/cloudaudit.googleapis.com%2Factivity",
    "resource": {"type": "service_account", "labels": {"project_id": "p"}},
    "protoPayload": {
        "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
        "serviceName": "iam.googleapis.com",
        "methodName": "google.iam.admin.v1.CreateServiceAccountKey",
        "resourceName": "projects/-/serviceAccounts/1",
        "authenticationInfo": {"principalEmail": "ann@x.org"},
        "requestMetadata": {"callerIp": "198.51.100.7", "callerSuppliedUserAgent": "curl/8.1"},
    },
}
_GITHUB = {
    "@timestamp": 1717146000123,
    "_document_id": "1",
    "action": "protected_branch.destroy",
    "actor": "ann",
    "actor_ip": "203.0.113.9",
    "org": "acme",
    "repo": "acme/site",
    "user_agent": "curl/8.1",
}
_MICROSOFT365 = {
    "CreationTime": "2024-05-31T09:00:00",
    "Id": "1",
    "Operation": "UserLoggedIn",
    "RecordType": 15,
    "ResultStatus": "Success",
    "Workload": "AzureActiveDirectory",
    "ClientIP": "203.0.113.9:50123",
    "UserId": "ann@x.org",
}
_WORKSPACE = {
    "kind": "admin#reports#activity",
    "id": {"time": "2024-05-31T09:00:00Z", "uniqueQualifier": "1", "applicationName": "login"},
    "actor": {"callerType": "USER", "email": "ann@x.org", "profileId": "1"},
    "ipAddress": "203.0.113.9",
    "events": [{"type": "login", "name": "login_success"}],
}
_KUBERNETES = {
    "kind": "Event",
    "auditID": "1",
    "stage": "ResponseComplete",
    "requestReceivedTimestamp": "2024-05-31T09:00:00.123456Z",
    "requestURI": "/api/v1/namespaces/web/secrets/key",
    "verb": "get",
    "user": {"username": "ann"},
    "sourceIPs": ["10.0.0.9"],
    "userAgent": "kubectl/v1.29",
    "objectRef": {"resource": "secrets", "namespace": "web", "name": "key"},
}
RECORDS: dict[str, dict[str, Any]] = {
    "cloudtrail": _CLOUDTRAIL,
    "ocsf": _OCSF,
    "azure": _AZURE,
    "duo": _DUO,
    "okta": _OKTA,
    "gcp": _GCP,
    "github": _GITHUB,
    "microsoft365": _MICROSOFT365,
    "google_workspace": _WORKSPACE,
    "kubernetes": _KUBERNETES,
}


def write_records(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_there_is_a_record_of_every_kind() -> None:
    assert {kind.name for kind in list_kinds()} == RECORDS.keys()


@pytest.mark.parametrize("kind", RECORDS)
def test_the_kind_of_log_is_recognised_by_its_contents(kind: str, tmp_path: Path) -> None:
    path = write_records(tmp_path / "log.jsonl", RECORDS[kind])
    assert recognise_kind([path]).name == kind


def test_of_a_large_file_only_the_first_records_are_read_to_recognise_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_records(path, *[_CLOUDTRAIL] * MAX_RECORDS_TRIED, *[_OKTA] * (9 * MAX_RECORDS_TRIED))
    assert recognise_kind([str(path)]).name == "cloudtrail"


def test_a_delta_table_is_recognised(tmp_path: Path) -> None:
    row = {name: [str(value)] for name, value in _AZURE.items() if isinstance(value, str)}
    pl.DataFrame(row).write_delta(tmp_path / "table")
    assert recognise_kind([str(tmp_path / "table")]).name == "azure"


def test_an_unknown_log_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_records(tmp_path / "log.jsonl", {"when": "2024-05-31", "who": "ann"})
    with pytest.raises(UsageError, match=r"not recognised: `.*log.jsonl`.*Give --source.*schema"):
        recognise_kind([path])


def test_logs_of_two_kinds_are_refused_with_an_example_of_each(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", _OKTA)
    write_records(tmp_path / "b.jsonl", _CLOUDTRAIL)
    with pytest.raises(UsageError, match=r"several kinds: .*(okta|cloudtrail).* and .*--source="):
        recognise_kind([str(tmp_path)])
    assert recognise_kind([str(tmp_path)], "okta").name == "okta"


def test_a_log_of_another_kind_is_found_though_the_smallest_files_are_all_alike(
    tmp_path: Path,
) -> None:
    for number in range(8):
        write_records(tmp_path / f"{number}.jsonl", _OKTA)
    write_records(tmp_path / "8.jsonl", *[_CLOUDTRAIL] * 9)
    with pytest.raises(UsageError, match=r"several kinds: .*okta and `.*8.jsonl` is cloudtrail"):
        recognise_kind([str(tmp_path)])


def test_what_is_left_out_of_logs_is_printed_with_its_reason(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    records = repeat_record("okta", 60)
    write_records(logs / "a.jsonl", *records, records[0], {"a": 1}, {**records[9], "published": ""})
    late = {**records[9], "published": "2099-01-01T00:00:00Z", "uuid": "x"}
    write_records(logs / "b.jsonl", late)
    (logs / "c.txt").write_text("notes")
    done = detect(tmp_path, "logs", "--source=okta").done
    assert "2 rejected, 1 with an implausible time, 1 duplicate" in done.stderr
    assert re.search(r"Not read +1 file with another suffix: logs/c.txt", done.stderr)
    assert re.search(r"Rejected +logs/a.jsonl:62: ", done.stderr)
    assert re.search(r"Implausible +logs/b.jsonl:1: ", done.stderr)


TIMES_AND_IDS = {
    "cloudtrail": (["eventTime"], ["eventID"]),
    "ocsf": (["time"], ["metadata", "uid"]),
    "azure": (["createdDateTime"], ["id"]),
    "duo": (["isotimestamp"], ["txid"]),
    "okta": (["published"], ["uuid"]),
    "gcp": (["timestamp"], ["insertId"]),
    "github": (["@timestamp"], ["_document_id"]),
    "microsoft365": (["CreationTime"], ["Id"]),
    "google_workspace": (["id", "time"], ["id", "uniqueQualifier"]),
    "kubernetes": (["requestReceivedTimestamp"], ["auditID"]),
}
"""Path of the time and of the id in a record of each kind."""


def repeat_record(kind: str, number: int) -> list[dict[str, Any]]:
    """Copies of the record of a kind, three hours apart. The last ones do something else."""
    start, copies = datetime(2024, 5, 1, 9, tzinfo=UTC), []
    usual = json.dumps(RECORDS[kind])
    unusual = re.sub(
        r"GetObject|Edge 99|Chrome|session.start|Create|destroy|UserL|login_|get", "New", usual
    )
    assert unusual != usual
    for n in range(number):
        copies.append(json.loads(usual if n < number - 4 else unusual))
        time = f"{start + timedelta(hours=3 * n):%FT%TZ}"
        for path, value in zip(TIMES_AND_IDS[kind], (time, str(n)), strict=True):
            place = copies[-1]
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value
    return copies


@pytest.mark.parametrize("kind", RECORDS)
def test_each_kind_of_log_gives_alerts_with_reasons_and_keeps_its_own_columns(
    kind: str, tmp_path: Path
) -> None:
    write_records(tmp_path / "log.jsonl", *repeat_record(kind, 8 * 60))
    detected = detect(tmp_path, "log.jsonl", "--alerts_per_day=20")
    assert "Warning" not in detected.done.stderr
    schema = next(each.columns_file for each in list_kinds() if each.name == kind)
    assert (f"--columns_file={schema}" in detected.command) == bool(schema)
    assert (detected.out / "report.html").exists()
    assert f"Log         {kind}: 480 events of 1 user in 1 file" in detected.done.stderr
    alerts = read_alerts(tmp_path)
    explained = ExplanationColumns.find_in(alerts.columns)
    assert explained is not None
    assert alerts[explained.reason].null_count() == 0
    if "reason" in RECORDS[kind]:
        assert set(alerts["reason"]) == {RECORDS[kind]["reason"]}


def test_the_printed_command_and_the_report_work_for_a_log_that_has_reasons(
    tmp_path: Path,
) -> None:
    write_records(tmp_path / "log.jsonl", *repeat_record("duo", 8 * 60))
    detected = detect(tmp_path, "log.jsonl", "--alerts_per_day=20")
    before = read_alerts(tmp_path).drop("model_version")
    assert execute(tmp_path, *detected.command[1:]).returncode == 0
    assert read_alerts(tmp_path).drop("model_version").equals(before)
    assert execute(tmp_path, "report", OUT).returncode == 0


def test_a_table_with_a_column_named_like_one_of_explain_keeps_it(tmp_path: Path) -> None:
    names = ("userIdentity", "eventVersion")
    rows = [
        {k: v for k, v in each.items() if k not in names}
        | {"userIdentityuserName": "ann", "explanation": "ours", "why_reason": "ours"}
        for each in repeat_record("cloudtrail", 8 * 60)
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv")
    detect(tmp_path, "log.csv", "--alerts_per_day=20")
    alerts = read_alerts(tmp_path)
    assert set(alerts["explanation"]) == set(alerts["why_reason"]) == {"ours"}
    explained = ExplanationColumns.find_in(alerts.columns)
    assert explained == ExplanationColumns().with_prefix("why_why_")


DOORS = """
name = "Doors"
time = "at"
user = "badge"
id = "number"
features = ["door", "reader", "hourkind", "logcount"]
"""
"""A schema of a log that the package does not know."""


def write_doors(folder: Path) -> None:
    """Ten people use doors for forty days; an intruder with one badge is followed by its owner."""
    rng = random.Random(7)  # noqa: S311 - not for secrets
    start = datetime(2026, 3, 2, 8, tzinfo=UTC)
    opened = [
        (
            start + timedelta(days=day, minutes=rng.randrange(600)),
            f"badge-{person}",
            f"door-{rng.randrange(3)}",
            "old",
        )
        for day in range(40)
        for person in range(10)
        for _ in range(rng.randrange(2, 9))
    ]
    night = start + timedelta(days=38, hours=-5)
    opened += [
        (night + timedelta(seconds=20 * n), "badge-3", "vault", "skimmer") for n in range(30)
    ]
    records = [
        {"number": number, "at": at.isoformat(), "badge": badge, "door": door, "reader": reader}
        for number, (at, badge, door, reader) in enumerate(sorted(opened))
    ]
    write_records(folder / "doors.jsonl", *records)
    (folder / "doors.toml").write_text(DOORS)


def test_a_log_that_a_schema_of_ones_own_describes_is_detected(tmp_path: Path) -> None:
    write_doors(tmp_path)
    detected = detect(tmp_path, "doors.jsonl", "--source=doors.toml")
    assert re.search(r"^Log +Doors: ", detected.done.stderr, re.MULTILINE)
    assert "Warning" not in detected.done.stderr
    assert "--columns_file=doors.toml" in detected.command
    assert detected.rows[0][:2] == ("badge-3", "2026-04-09")
    again = detect(tmp_path, "doors.jsonl", "--source=doors.toml")
    assert "the fingerprints in" in again.done.stderr


def test_an_incident_is_described_by_its_cause_not_by_the_counts_of_later_events(
    tmp_path: Path,
) -> None:
    write_doors(tmp_path)
    detected = detect(tmp_path, "doors.jsonl", "--source=doors.toml")
    lines = (detected.out / "alerts.jsonl").read_text().splitlines()
    alerts = [each for each in map(json.loads, lines) if each["actor"] == "badge-3"]
    highest = max(alerts, key=lambda each: float(each["risk"]))
    assert highest["top_columns"].startswith("logcount"), "the case does not arise"
    first = next(line for line in detected.done.stdout.splitlines() if "badge-3" in line)
    assert "vault" in first
    assert "skimmer" in first


# What cannot be done.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "LOGS: no log file is found in `nothing`"),
        (["log.jsonl"], "LOGS: all events are of one day, 2024-05-31"),
        (
            ["log.jsonl", "--source=oktaa"],
            "--source: there is no kind of log `oktaa`. Did you",
        ),
        (["log.jsonl", "--source=gone.toml"], "--source: there is no file `gone.toml`"),
        (["log.jsonl", "--history=gone"], "--history: no log file is found in `gone`"),
        (["log.jsonl", "--out=log.jsonl"], "--out: `log.jsonl` is not a folder"),
        ([".", "--out=results"], "--out: `results` is in the folder of logs `.`"),
        (["log.jsonl", "--out=s3://bucket/x"], "--out: `s3://bucket/x`"),
    ],
)
def test_a_wrong_command_says_what_to_do_and_writes_nothing(
    words: list[str], message: str, tmp_path: Path, run: Run
) -> None:
    write_records(tmp_path / "log.jsonl", _CLOUDTRAIL)
    done = run("detect", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_damaged_or_empty_file_is_not_called_a_log_of_an_unknown_kind(
    tmp_path: Path, run: Run
) -> None:
    packed = gzip.compress(json.dumps(_CLOUDTRAIL).encode() * 50)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    for name, content, message in (
        ("cut.json.gz", packed[: len(packed) // 2], "the compressed file is truncated or damaged"),
        ("flipped.json.gz", bytes(flipped), "the compressed file is truncated or damaged"),
        ("empty.json", b"", "LOGS: `empty.json` is empty."),
    ):
        (tmp_path / name).write_bytes(content)
        done = run("detect", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert "not recognised" not in done.stderr
        assert not (tmp_path / OUT).exists()


def test_a_run_that_fails_leaves_the_folder_as_it_was(small: Detected, tmp_path: Path) -> None:
    logs = str(small.folder / "bucket/json/scored")
    broken = write_records(tmp_path / "history.jsonl", {"when": 1})
    done = execute(tmp_path, "detect", logs, f"--history={broken}")
    assert done.returncode != 0, done.stderr
    assert "history.jsonl" in done.stderr
    assert not (tmp_path / OUT).exists()


def test_fingerprints_of_another_log_are_refused(small: Detected, tmp_path: Path) -> None:
    shutil.copytree(small.out, tmp_path / OUT)
    records = [_OKTA | {"uuid": str(n), "published": f"2024-05-0{n}T09:00:00Z"} for n in (1, 2, 3)]
    write_records(tmp_path / "log.jsonl", *records)
    done = execute(tmp_path, "detect", "log.jsonl")
    assert done.returncode == 2
    assert f"--out: the fingerprints in `{OUT}/models` do not fit these logs." in done.stderr
    assert (tmp_path / OUT / "alerts.jsonl").read_bytes() == (
        small.out / "alerts.jsonl"
    ).read_bytes()


def test_a_folder_without_results_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    done = run("report", "empty")
    assert done.returncode == 2
    assert "`empty` has no results" in done.stderr


def test_results_of_an_earlier_run_are_not_logs(tmp_path: Path, run: Run) -> None:
    log = pl.read_csv(EXAMPLES / "input-data/user123.csv", infer_schema=False)
    (tmp_path / "logs").mkdir()
    results = log.with_columns(ae_anomaly_score=pl.lit("1.2"), ts_anomaly=pl.lit("False"))
    results.write_csv(tmp_path / "logs/output.csv")
    done = run("detect", "logs")
    assert done.returncode == 2
    assert "results of an earlier run" in done.stderr
    assert not (tmp_path / OUT).exists()
    # `morpheus run` reads such a file as any other log.
    words = ("from-cloudtrail", "--input_glob=logs", "serialize", "to-file", "--filename=b.csv")
    done = run("run", "pipeline-ae", *words)
    assert done.returncode == 0, done.stderr
