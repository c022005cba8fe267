import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.columns import ACTOR_OPTION, TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.sources.ocsf import OCSF_FORMAT, FromOcsf

FEATURES = read_lines("columns_ae_ocsf.txt", option="--columns_file")
ROLE = "arn:aws:iam::000000000001:role/Deploy"


def event(minute: int = 0, kind: int = 6003, **more: Any) -> dict[str, Any]:
    """A call by a role, as Security Lake writes it, with some parts replaced."""
    return {
        "metadata": {
            "uid": f"00000000-0000-0000-0000-{minute:012}",
            "product": {"name": "CloudTrail", "vendor_name": "AWS"},
            "version": "1.1.0",
        },
        "time": 1717147800000 + 60_000 * minute,
        "time_dt": None,
        "class_uid": kind,
        "class_name": {3001: "Account Change", 3002: "Authentication"}.get(kind, "API Activity"),
        "activity_name": "Read",
        "status": "Success",
        "actor": {
            "user": {
                "type": "AssumedRole",
                "uid": "arn:aws:sts::000000000001:assumed-role/Deploy/i-1",
                "uid_alt": "AROAEXAMPLE:i-1",
                "name": None,
                "account": {"uid": "000000000001"},
            },
            "session": {"issuer": ROLE, "is_mfa": False},
            "invoked_by": None,
        },
        "api": {"operation": "GetObject", "service": {"name": "s3.amazonaws.com"}},
        "src_endpoint": {"ip": "198.51.100.7"},
        "http_request": {"user_agent": "aws-cli/2.15.0"},
        "cloud": {"region": "eu-west-1", "provider": "AWS"},
        "unmapped": [{"key": "readOnly", "value": "true"}],
        **more,
    }


def user(**about: Any) -> dict[str, Any]:
    return {"user": {"account": {"uid": "000000000001"}, **about}}


def read(path: Path, **options: Any) -> tuple[pl.DataFrame, RunMetrics]:
    named = options.pop("user", OCSF_FORMAT.user_column)
    settings = PipelineOptions(userid_column_name=named, columns=FEATURES, num_threads=1)
    metrics = RunMetrics()
    source = FromOcsf(input_glob=str(path), options=settings, **options)
    return pl.concat(batch.table.to_frame() for batch in source.events(None, metrics)), metrics


def parquet(folder: Path, *events: dict[str, Any]) -> Path:
    place = folder / "region=eu-west-1" / "accountId=000000000001" / "eventDay=20240531"
    place.mkdir(parents=True)
    pl.DataFrame(list(events), infer_schema_length=None).write_parquet(place / "a.gz.parquet")
    return folder


def lines(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, events)))
    return path


def test_parquet_and_json_give_the_same_events(tmp_path: Path) -> None:
    events = [event(minute) for minute in range(5)]
    packed, _ = read(parquet(tmp_path / "lake", *events))
    plain, _ = read(lines(tmp_path / "a.json", *events))
    for name in ("metadatauid", "apioperation", "actoruseruid", "src_endpointip", TIME):
        assert packed[name].to_list() == plain[name].to_list()
    assert str(packed[TIME][0]) == "2024-05-31 09:30:00+00:00"
    assert packed["actorsessionis_mfa"].to_list() == plain["actorsessionis_mfa"].to_list()


def test_table_has_the_columns_of_json_and_its_partitions(tmp_path: Path) -> None:
    packed, _ = read(parquet(tmp_path / "lake", event()))
    plain, _ = read(lines(tmp_path / "a.json", event()))
    partitions = {"region", "accountId", "eventDay"}
    assert set(packed.columns) - partitions <= set(plain.columns)
    assert partitions <= set(packed.columns)
    assert "unmapped" not in packed.columns


def test_only_days_in_the_time_range_are_opened(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "lake", event())
    other = folder / "region=eu-west-1" / "accountId=000000000001" / "eventDay=20240530"
    other.mkdir()
    (other / "b.parquet").write_bytes(b"not opened")
    frame, metrics = read(folder, start_time="2024-05-31", duration="1d")
    assert frame.height == metrics.input.outside_files == 1


def test_other_classes_are_skipped_and_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.json", event(0), event(1, 4001), event(2, 3002), event(3, 3001))
    frame, metrics = read(path)
    assert frame["class_uid"].to_list() == ["6003", "3002", "3001"]
    assert (metrics.input.other_classes, metrics.input.accepted) == (1, 3)
    frame, metrics = read(path, class_uid=("3002",))
    assert (frame.height, metrics.input.other_classes) == (1, 3)


def test_first_schema_version_is_read_like_later_ones(tmp_path: Path) -> None:
    old = event(
        actor={
            "user": {
                "type": "IAMUser",
                "name": "ann",
                "uid": "AIDA1",
                "account_uid": "000000000001",
            },
            "session": {"mfa": True, "credential_uid": "AKIA1"},
        }
    )
    frame, _ = read(lines(tmp_path / "a.json", old))
    assert frame["actoruseraccountuid"].to_list() == ["000000000001"]
    assert frame["actorsessionis_mfa"].to_list() == ["True"]
    assert frame["actorusercredential_uid"].to_list() == ["AKIA1"]


def test_envelopes_are_unwrapped(tmp_path: Path) -> None:
    cloud = {"specversion": "1.0", "id": "1", "data": event(0)}
    bridge = {"detail-type": "Event", "source": "own", "detail": event(1)}
    frame, _ = read(lines(tmp_path / "a.json", cloud, bridge))
    assert frame.height == 2


def test_text_time_replaces_a_missing_time_in_milliseconds(tmp_path: Path) -> None:
    frame, _ = read(lines(tmp_path / "a.json", event(time=None, time_dt="2024-05-31T01:02:03.5Z")))
    assert str(frame[TIME][0]) == "2024-05-31 01:02:03.500000+00:00"


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({}, "Deploy@000000000001"),
        ({"actor": user(type="Root", uid="arn:aws:iam::000000000001:root")}, "root@000000000001"),
        ({"actor": user(type="IAMUser", name="ann", uid="x")}, "ann@000000000001"),
        ({"actor": user(type="AssumedRole", uid_alt="AROA1:Ann@Corp.com")}, "ann@corp.com"),
        (
            {"actor": user(type="AssumedRole", uid="arn:aws:sts::1:assumed-role/Ops/s")},
            "Ops@000000000001",
        ),
        ({"actor": {"invoked_by": "ec2.amazonaws.com"}}, "ec2.amazonaws.com"),
        ({"actor": user(email_addr="Bob@Corp.com", uid="00u1")}, "bob@corp.com"),
        ({"actor": {}, "user": {"name": "carl", "uid": "7"}}, "carl"),
        ({"actor": {}, "cloud": {"account": {"uid": "2"}}}, "unknown@2"),
    ],
)
def test_actor_is_resolved(tmp_path: Path, parts: dict[str, Any], name: str) -> None:
    path = lines(tmp_path / "a.json", event(**parts))
    assert read(path, user=ACTOR_OPTION)[0]["actor"].to_list() == [name]


def test_every_feature_is_a_known_field() -> None:
    assert set(FEATURES) <= {*OCSF_FORMAT.columns, *OCSF_FORMAT.derived_columns}
