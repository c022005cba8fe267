"""The generated company: reproducible, with labels of nine kinds of incidents."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--users", "20", "--days", "28", "--training", "14"]
NINE = {
    "stolen-key",
    "console-takeover",
    "privilege-escalation",
    "discovery",
    "exfiltration",
    "persistence",
    "defence-evasion",
    "crypto-mining",
    "insider",
}


def make_fleet(folder, *options):
    command = [sys.executable, EXAMPLES / "make_fleet.py", "--into", folder, *SMALL, *options]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return folder


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def records(folder, part):
    return [
        record
        for path in sorted((folder / "json" / part).rglob("*.json.gz"))
        for record in json.loads(gzip.decompress(path.read_bytes()))["Records"]
    ]


def user(record):
    return record["userIdentity"]["sessionContext"]["sessionIssuer"]["userName"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    forms = ("--form", "json", "--form", "csv", "--form", "parquet")
    return make_fleet(tmp_path_factory.mktemp("fleet"), *forms)


@pytest.fixture(scope="module")
def scored(fleet):
    return {record["eventID"]: record for record in records(fleet, "scored")}


@pytest.fixture(scope="module")
def training(fleet):
    return records(fleet, "training")


@pytest.fixture(scope="module")
def labels(fleet):
    with (fleet / "labels.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_same_arguments_write_the_same_bytes(tmp_path):
    forms = ("--form", "json", "--form", "csv", "--form", "parquet")
    once, again = (contents(make_fleet(tmp_path / name, *forms)) for name in "ab")
    assert once == again


def test_another_seed_writes_another_company(tmp_path, fleet):
    other = contents(make_fleet(tmp_path, "--seed", "7"))
    assert not set(other.values()) & set(contents(fleet).values())


def test_every_label_names_an_event_of_its_user(labels, scored):
    assert {row["eventID"]: row["user"] for row in labels} == {
        row["eventID"]: user(scored[row["eventID"]]) for row in labels
    }


def test_all_nine_kinds_occur(labels):
    assert {row["kind"] for row in labels} == NINE


def test_an_incident_has_one_kind_and_one_victim(labels):
    incidents = defaultdict(set)
    for row in labels:
        incidents[row["incident"]].add((row["kind"], row["user"]))
    assert all(len(pairs) == 1 for pairs in incidents.values())


def test_most_users_are_benign_and_have_no_label(labels, scored):
    users = {user(record) for record in scored.values()}
    assert len(users) == 20
    assert len(users - {row["user"] for row in labels}) == 16


def test_a_record_does_not_reveal_its_label(labels, scored):
    marked = [scored[row["eventID"]] for row in labels]
    benign = [
        record for name, record in scored.items() if name not in {r["eventID"] for r in labels}
    ]
    assert {key for record in marked for key in record} <= {
        key for record in benign for key in record
    }
    assert not any(kind in json.dumps(record) for record in marked for kind in NINE)


def test_event_ids_are_unique(training, scored, fleet):
    ids = [record["eventID"] for part in ("training", "scored") for record in records(fleet, part)]
    assert len(ids) == len(set(ids)) == len(training) + len(scored)


def test_training_ends_before_scoring_begins(training, scored):
    assert max(r["eventTime"] for r in training) < min(r["eventTime"] for r in scored.values())


def test_people_are_inactive_at_weekends_and_services_are_not(training):
    weekends = {"2025-03-08", "2025-03-15", "2025-03-09", "2025-03-16"}
    active = defaultdict(Counter)
    for record in training:
        kind = user(record).split("-")[0]
        active[kind][record["eventTime"][:10] in weekends] += 1
    assert active["person"][True] < 0.02 * active["person"][False]
    assert active["service"][True] > 0.1 * active["service"][False]


def test_volumes_differ_by_a_factor_of_ten(training):
    volumes = Counter(map(user, training)).values()
    assert max(volumes) > 10 * min(volumes)


def test_the_scored_data_has_new_benign_values(training, scored, labels):
    marked = {row["eventID"] for row in labels}
    addresses = {(user(r), r["sourceIPAddress"]) for r in training}
    names = {(user(r), r["eventName"]) for r in training}
    benign = [record for name, record in scored.items() if name not in marked]
    assert any((user(r), r["sourceIPAddress"]) not in addresses for r in benign)
    assert any((user(r), r["eventName"]) not in names for r in benign)


def test_csv_and_parquet_have_the_events_of_json(fleet, scored):
    tables = [
        pl.read_csv(fleet / "csv/scored/*.csv", infer_schema=False),
        pl.read_parquet(fleet / "parquet/scored/*.parquet"),
    ]
    for table in tables:
        assert dict(table.select("eventID", "eventName").iter_rows()) == {
            name: record["eventName"] for name, record in scored.items()
        }
    assert tables[0].equals(tables[1])


def test_a_copy_is_shifted_by_whole_weeks_and_has_new_ids(tmp_path, scored):
    twice = records(make_fleet(tmp_path, "--copies", "2"), "scored")
    assert len(twice) == 2 * len(scored)
    assert len({record["eventID"] for record in twice}) == len(twice)
    later = [record for record in twice if record["eventID"] not in scored]
    assert sorted(r["eventTime"][10:] for r in later) == sorted(
        r["eventTime"][10:] for r in scored.values()
    )
    assert min(r["eventTime"] for r in later) > max(r["eventTime"] for r in scored.values())


def test_a_smaller_company_is_a_prefix_of_a_larger_one(tmp_path, training):
    small = records(make_fleet(tmp_path, "--users", "5"), "training")
    prefix = [record for record in training if int(user(record)[-5:]) < 5]
    assert sorted((user(r), r["eventTime"], r["eventName"]) for r in small) == sorted(
        (user(r), r["eventTime"], r["eventName"]) for r in prefix
    )


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("noisy"), "--noisy", "1")


def test_a_noisy_user_changes_the_events_of_no_other_user(noisy, fleet):
    parts = [
        [record for record in records(folder, part) if not user(record).endswith("-00000")]
        for folder in (noisy, fleet)
        for part in ("training", "scored")
    ]
    without_ids = [
        [{k: v for k, v in record.items() if k not in {"eventID", "requestID"}} for record in part]
        for part in parts
    ]
    assert without_ids[:2] == without_ids[2:]


def test_a_noisy_user_is_usual_in_training_and_has_new_values_later(noisy, fleet):
    names = {
        (folder, part): {
            record["eventName"]
            for record in records(folder, part)
            if user(record) == "person-00000"
        }
        for folder in (noisy, fleet)
        for part in ("training", "scored")
    }
    assert names[noisy, "training"] == names[fleet, "training"]
    new = names[noisy, "scored"] - names[noisy, "training"]
    assert "AssumeRole" in new
    assert len(new) > len(names[noisy, "training"])


def test_a_noisy_user_has_an_incident_of_each_kind(noisy):
    with (noisy / "labels.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["user"] == "person-00000"]
    assert {row["kind"] for row in rows} == NINE
    assert len({row["incident"] for row in rows}) >= len(NINE)
