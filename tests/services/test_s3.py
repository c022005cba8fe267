"""Logs in S3, on a server that records its requests."""

from __future__ import annotations

import gzip
import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import polars as pl
import pytest

from lakes import Lake
from morpheus.columns import TIME
from morpheus.core.batch import RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from morpheus.sources.compression import as_local_file, read_blocks, read_bytes
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.ingest import FileIngest
from morpheus.sources.spill_sort import MemoryBudget
from morpheus.sources.time_range import TimeRange
from morpheus.stages.serialize import Serialize
from morpheus.storage import object_store
from morpheus.storage.object_store import (
    ObjectPath,
    delete_objects,
    head_object,
    list_recursive,
    put_if_match,
    read_object,
    write_object,
)
from services.forwarder import forwarding, silent
from services.listener import listening
from services.noida import free_port

REGIONS = ("eu-west-1", "us-east-1")
USERS = ("ann", "bob")


def event(day: int, hour: int, user: str, region: str) -> dict[str, object]:
    return {
        "eventTime": f"2024-05-{day:02}T{hour:02}:30:00Z",
        "eventName": "GetObject",
        "eventSource": "s3.amazonaws.com",
        "awsRegion": region,
        "userIdentity": {"type": "IAMUser", "userName": user, "accountId": "000000000001"},
    }


def month(lake: Lake, organisation: str = "") -> None:
    """May 2024 of one account in the layout of AWS: two objects per day and region."""
    objects = {"AWSLogs/000000000001/CloudTrail-Digest/us-east-1/2024/05/07/d.json.gz": b"{}"}
    for region, day, hour in product(REGIONS, range(1, 32), (9, 18)):
        events = [event(day, hour - 1, user, region) for user in USERS]
        folder = f"AWSLogs/{organisation}000000000001/CloudTrail/{region}/2024/05/{day:02}"
        name = f"000000000001_CloudTrail_{region}_202405{day:02}T{hour:02}00Z_x.json.gz"
        objects[f"{folder}/{name}"] = json.dumps({"Records": events}).encode()
    lake.put_all({key: gzip.compress(text, 1) for key, text in objects.items()})
    lake.forget()


def read(history: str | None = None, **options: object) -> tuple[pl.DataFrame, RunMetrics]:
    pipeline_options = PipelineOptions(userid_column_name="userIdentityuserName", num_threads=1)
    source = FromCloudtrail(options=pipeline_options, **options)  # type: ignore[arg-type] # options of several types
    source.validate()
    metrics = RunMetrics()
    batches = list(source.events(history, metrics))
    past = [batch.history for batch in batches if batch.history is not None]
    tables = past if history else [batch.table for batch in batches]
    return Table.concat(tables).to_frame(), metrics


@pytest.mark.parametrize(
    ("organisation", "pattern"),
    [
        ("", "AWSLogs/"),
        ("", "AWSLogs/**/*.json.gz"),
        ("", "AWSLogs/*/CloudTrail/*/*.json.gz"),
        ("", ""),
        ("o-abc123/", "AWSLogs/o-abc123/"),
        ("o-abc123/", "AWSLogs"),
    ],
)
def test_only_objects_in_the_time_range_are_fetched(
    lake: Lake, organisation: str, pattern: str
) -> None:
    month(lake, organisation)
    glob = f"s3://lake/{pattern}"
    frame, metrics = read(input_glob=glob, start_time="2024-05-07", duration="1d")
    assert len(lake.fetched) == 4
    assert all("/2024/05/07/" in key and "CloudTrail/" in key for key in lake.fetched)
    assert frame.height == 2 * 2 * 2
    assert frame[TIME].dt.date().cast(pl.String).unique().to_list() == ["2024-05-07"]
    assert metrics.input.outside_folders == 2 * 30
    skipped = "1 folder of another format: s3://lake/AWSLogs/000000000001/CloudTrail-Digest"
    if pattern == "AWSLogs/":
        assert metrics.input.not_read == [skipped]
    assert not any("05/08" in path or "05/06" in path for path in lake.listings)
    if pattern == "AWSLogs/":
        common, per_region = 3, ["years", "months of 2024", "days of May", "objects of the day"]
        assert len(lake.listings) == common + len(REGIONS) * len(per_region)


def test_without_a_time_range_the_bucket_is_listed_once_and_read_completely(lake: Lake) -> None:
    month(lake)
    frame, metrics = read(input_glob="s3://lake/AWSLogs/")
    assert frame.height == 2 * 2 * 2 * 31
    assert metrics.input.skipped_files == 1, "the digest"
    assert len(lake.listings) == 1


def test_dates_in_the_given_prefix_are_not_filtered(lake: Lake) -> None:
    for day in ("30", "31"):
        lake.put(f"cases/2025-01-31/logs/2024/05/{day}/a.json", b"{}")
    for pattern in ("cases/2025-01-31/", "cases/2025-01-31/logs/2024/**/*"):
        time_range = TimeRange.from_options("2024-05-31", None, "1d", None)
        discovery = FileDiscovery(f"s3://lake/{pattern}", time_range=time_range).require()
        assert [path.parts[-2] for path in discovery.paths] == ["31"]


def test_dates_in_a_glob_limit_the_listing(lake: Lake) -> None:
    month(lake)
    frame, _ = read(input_glob="s3://lake/AWSLogs/*/CloudTrail/*/2024/05/07/*.json.gz")
    assert frame.height == 8
    assert len(lake.fetched) == 4
    assert not any("05/08" in path for path in lake.listings)


def test_bucket_gives_the_same_events_as_files_on_disk(lake: Lake, tmp_path: Path) -> None:
    month(lake)
    for key in lake.names("AWSLogs"):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lake.read(key))
    period = {"start_time": "2024-05-07T08:00:00Z", "end_time": "2024-05-08T09:00:00Z"}
    remote, remote_metrics = read(input_glob="s3://lake/AWSLogs/", **period)
    local, local_metrics = read(input_glob=str(tmp_path / "AWSLogs"), **period)
    assert remote.equals(local)
    assert remote.height == 12
    assert remote_metrics.input.outside_range == local_metrics.input.outside_range == 4
    assert (local_metrics.input.outside_files, local_metrics.input.outside_folders) == (
        2 * 2 * 29,
        0,
    )


def test_history_is_from_before_the_time_range(lake: Lake) -> None:
    month(lake)
    glob = "s3://lake/AWSLogs/"
    period = {"start_time": "2024-05-07", "duration": "1d", "train_duration": "3d"}
    frame, metrics = read(glob, input_glob=glob, **period)
    days = frame[TIME].dt.day().unique().sort().to_list()
    assert days == [4, 5, 6]
    assert (
        metrics.training.time_range == "from 2024-05-04T00:00:00Z until before 2024-05-07T00:00:00Z"
    )
    assert len(lake.fetched) == 4 * 4


def test_late_deliveries_are_fetched_within_the_delay(lake: Lake) -> None:
    month(lake)
    late = gzip.compress(json.dumps({"Records": [event(7, 23, "ann", "eu-west-1")]}).encode())
    folder = "AWSLogs/000000000001/CloudTrail/eu-west-1/2024/05/08"
    lake.put(f"{folder}/1_CloudTrail_eu-west-1_20240508T0005Z_y.json.gz", late)
    options = {"input_glob": "s3://lake/AWSLogs/", "start_time": "2024-05-07", "duration": "1d"}
    assert read(**options)[0].height == 8
    lake.forget()
    frame, metrics = read(**options, delivery_delay="15m")
    assert frame.height == 9
    assert len(lake.fetched) == 5, "of the next day, only the first 15 minutes"
    assert metrics.input.outside_range == 0


def test_workers_do_not_change_the_events(lake: Lake) -> None:
    month(lake)
    time_range = TimeRange.from_options("2024-05-07", None, "1d", None)
    files = FileDiscovery(
        "s3://lake/AWSLogs/", time_range=time_range, skip_dirs=CLOUDTRAIL_FORMAT.skip_dirs
    )
    frames = []
    for workers, budget in (
        (1, MemoryBudget()),
        (2, MemoryBudget(serial_threshold_bytes=1, min_task_bytes=2000)),
    ):
        pipeline_options = PipelineOptions(
            userid_column_name="userIdentityuserName", num_threads=workers
        )
        ingest = FileIngest(CLOUDTRAIL_FORMAT, files, pipeline_options, memory_budget=budget)
        lake.forget()
        frames.append(
            pl.concat(batch.table.to_frame() for batch in ingest.events(None, RunMetrics()))
        )
        assert len(lake.fetched) == 4
    assert frames[0].equals(frames[1])


def test_one_object_can_be_read_whole_in_blocks_or_as_a_file(lake: Lake) -> None:
    text = json.dumps(event(1, 9, "ann", "x")).encode() + b"\n"
    lake.put("a b/é.json", text * 1000)
    frame, _ = read(input_glob="s3://lake/a b/é.json")
    assert frame.height == 1000
    [path] = FileDiscovery("s3://lake/a b/").require().paths
    assert b"".join(read_blocks(path, 5000)) == read_bytes(path) == text * 1000
    with as_local_file(path) as copy:
        assert copy.read_bytes() == text * 1000
    assert not copy.exists()


def test_large_and_small_parquet_objects_are_read(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [f"2024-05-01T00:{minute:02}:00Z" for minute in range(60)]
    file = io.BytesIO()
    rows = {"eventTime": times, "eventName": ["Ls"] * 60, "userIdentityuserName": ["ann"] * 60}
    pl.DataFrame(rows).write_parquet(file)
    lake.put("x.parquet", file.getvalue())
    small, _ = read(input_glob="s3://lake/*.parquet")
    monkeypatch.setattr("morpheus.sources.compression.STREAMING_THRESHOLD", 8)
    large, _ = read(input_glob="s3://lake/*.parquet")
    assert small.height == 60
    assert small.equals(large)


def test_missing_object_is_a_record_error(lake: Lake) -> None:
    lake.put("a.json", b"{}")
    [path] = FileDiscovery("s3://lake/").require().paths
    delete_objects([ObjectPath("lake", "a.json")])
    for read in (read_bytes, lambda path: list(read_blocks(path))):
        with pytest.raises(
            RecordError, match=r"s3://lake/a.json: the file was deleted during the run"
        ):
            read(path)


def test_missing_bucket_is_reported(lake: Lake) -> None:
    assert lake.address
    for pattern in ("s3://other/AWSLogs/", "s3://other/*.json"):
        with pytest.raises(UsageError, match=r"there is no bucket `other`.*`aws s3 ls`"):
            FileDiscovery(pattern).require()
    with pytest.raises(UsageError, match=r"`s3:///x` names no bucket. Give `s3://BUCKET/FOLDER/`"):
        FileDiscovery("s3:///x").require()


def test_a_bucket_with_a_name_that_cannot_be_requested_is_reported() -> None:
    with pytest.raises(UsageError, match=r"`s3://my logs/x`: no bucket has ' ' in its name"):
        FileDiscovery("s3://my logs/x").require()


def test_a_key_that_cannot_be_requested_is_reported_as_such(lake: Lake) -> None:
    s3 = boto3.client("s3", endpoint_url=lake.address)
    s3.put_object(Bucket="lake", Key="may//a.json", Body=b"{}")
    with pytest.raises(UsageError, match=r"the key of an object cannot be read .*may//a\.json"):
        FileDiscovery("s3://lake/may/").require()
    with pytest.raises(RecordError, match=r"s3://lake/may//a\.json: a key with an empty part"):
        FileDiscovery("s3://lake/may//a.json").require()


def test_no_match_reports_what_the_bucket_contains(lake: Lake) -> None:
    month(lake)
    with pytest.raises(UsageError, match=r"no log file matches .*`s3://lake/` contains `AWSLogs/`"):
        FileDiscovery("s3://lake/*.csv").require()
    with pytest.raises(UsageError, match=r"`s3://lake/june` is empty"):
        FileDiscovery("s3://lake/june/*.csv").require()
    time_range = TimeRange.from_options("2025-01-01", None, None, None)
    pattern = "s3://lake/AWSLogs/*/CloudTrail/*/2024/05/**/*"
    with pytest.raises(
        UsageError, match=r"The time range is from 2025-01-01.*2 folders are outside"
    ):
        FileDiscovery(pattern, time_range=time_range).require()


def test_folder_behind_a_wildcard_is_read_whole(lake: Lake) -> None:
    month(lake)
    whole = FileDiscovery("s3://lake/AWSLogs/").require().paths
    for pattern in ("s3://lake/AWSLogs/*/CloudTrail/", "s3://lake/AWSLogs/*/CloudTrail"):
        found = FileDiscovery(pattern).require().paths
        assert set(found) == {path for path in whole if "CloudTrail" in path.parts}
        day = TimeRange.from_options("2024-05-03", None, "1d", None)
        assert len(FileDiscovery(pattern, time_range=day).require().paths) == 2 * 2


def test_rejected_credentials_are_reported(guarded: Lake) -> None:
    assert guarded.address
    with pytest.raises(UsageError, match=r"access denied \(\w+\).*`s3:ListBucket`.*AWS_PROFILE"):
        FileDiscovery("s3://lake/AWSLogs/*").require()
    with pytest.raises(UsageError, match=r"s3://lake/a: access denied \(\w+\).*`s3:GetObject`"):
        read_bytes(ObjectPath("lake", "a"))


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ("403 AccessDenied", UsageError, r"the credentials need `kms:Decrypt` for its key"),
        ("403 RequestTimeTooSkewed", UsageError, r"the clock of this machine differs too much"),
        ("400 InvalidToken", UsageError, r"access denied \(InvalidToken\)"),
        ("400 KMS.DisabledException", UsageError, r"encrypts it cannot be used \(KMS\.Disabled"),
        ("400 InvalidRequest", RecordError, r"S3 refuses to give the object \(InvalidRequest: "),
        ("403 InvalidObjectState", RecordError, r"it is archived \(InvalidObjectState\); restore"),
        ("400 RequestTimeout", TransientError, r"S3 answered with an error"),
        ("400 KMS.ThrottlingException", TransientError, r"S3 answered with an error"),
        ("404 NoSuchKey", FileNotFoundError, r"no such object"),
    ],
)
@pytest.mark.usefixtures("lake")
def test_an_answer_in_place_of_an_object_says_what_to_do_whatever_the_key(
    answer: str, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, code = answer.split()
    about = f"<Code>{code}</Code><Message>It may not perform: kms:Decrypt on it</Message>"
    with listening(default=(int(status), f"<Error>{about}</Error>".encode())) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", listener.url)
        with pytest.raises(error, match=text):
            read_object(ObjectPath("lake", "redirect/Unauthorized/PermissionDenied.json"))


def test_public_bucket_needs_no_credentials(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    month(lake)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert len(FileDiscovery("s3://lake/AWSLogs/").require().paths) == 2 * 2 * 31 + 1


def test_credentials_come_from_a_profile(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    month(lake)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text("[soc]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "soc")
    assert len(FileDiscovery("s3://lake/AWSLogs/").require().paths) == 2 * 2 * 31 + 1
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match=r"AWS_PROFILE: profile `nobody` has no credentials"):
        FileDiscovery("s3://lake/AWSLogs/").require()


def test_missing_credentials_are_reported_with_what_to_do(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert lake.address
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"found no credentials. Set AWS_PROFILE, or AWS_ACC"):
        FileDiscovery("s3://lake/AWSLogs/").require()


def test_missing_extra_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"needs an extra. `pip install 'morpheus-dfp\[s3\]'`"):
        FileDiscovery("s3://lake/AWSLogs/").require()


def test_unreachable_server_is_reported(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lake.address
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        TransientError, match=r"http://127.0.0.1:9 cannot be reached.*AWS_ENDPOINT_URL"
    ):
        FileDiscovery("s3://lake/AWSLogs/").require()


@pytest.mark.parametrize(
    "request_of",
    [
        lambda path: list(list_recursive(path.parent)),
        read_object,
        lambda path: write_object(path, b"rows"),
        lambda path: put_if_match(path, b"versions", None),
        lambda path: delete_objects([path]),
    ],
    ids=["list", "read", "write", "write conditionally", "delete"],
)
def test_a_server_that_accepts_connections_and_never_answers_is_reported(
    request_of: Callable[[ObjectPath], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "READ_SECONDS", 0.2)
    monkeypatch.setattr(object_store, "WRITE_SECONDS", 0.4)
    monkeypatch.setitem(object_store.RETRY_CONFIG, "max_retries", 1)
    with silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        with pytest.raises(TransientError, match=rf"http://127.0.0.1:{port} does not answer\. Try"):
            request_of(ObjectPath("lake", "logs/a.json"))


def test_requests_to_a_server_that_never_answers_take_about_a_minute() -> None:
    patience = object_store.RETRY_CONFIG["retry_timeout"].total_seconds()
    for silence in (object_store.READ_SECONDS, object_store.WRITE_SECONDS):
        # A request that fails later than this is not tried again.
        assert math.ceil(patience / silence) * silence <= 60


@pytest.mark.parametrize(
    "request_of",
    [lambda path: list(list_recursive(path.parent)), head_object, read_object],
    ids=["list", "look", "read"],
)
@pytest.mark.usefixtures("lake")
def test_a_signal_interrupts_a_request_to_a_server_that_never_answers(
    request_of: Callable[[ObjectPath], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(object_store, "READ_SECONDS", 5)  # until the thread ends
    before = signal.signal(signal.SIGALRM, interrupt)
    with silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            request_of(ObjectPath("lake", "logs/a.json"))
        assert time.monotonic() - begin < 4
    signal.signal(signal.SIGALRM, before)


def test_a_request_that_goes_on_does_not_hold_up_the_end_of_a_process() -> None:
    program = """
import time
from morpheus.storage.object_store import RequestThreads
with RequestThreads(2) as threads:
    assert threads.map(abs, [-1, 2, -3]) == [1, 2, 3]
    running = [threads.submit(time.sleep, 60) for _ in range(3)]
assert running[2].cancelled()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_an_upload_over_a_slow_line_is_not_a_server_that_never_answers(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "READ_SECONDS", 0.2)
    port, target = free_port(), urlsplit(lake.address).port
    with forwarding(port, target, pause=0.02):  # 1 MB takes a second
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        path = ObjectPath("lake", "rows.csv")
        write_object(path, bytes(1 << 20))
    monkeypatch.setenv("AWS_ENDPOINT_URL", lake.address)
    assert head_object(path).size == 1 << 20


def test_runs_of_one_day_each_take_late_objects_and_fetch_no_object_twice(
    lake: Lake, tmp_path: Path
) -> None:
    def run(day: int) -> tuple[list[str], RunMetrics]:
        lake.forget()
        output = tmp_path / f"{day}.csv"
        stages = [
            FromCloudtrail(
                input_glob="s3://lake/AWSLogs/", start_time=f"2024-05-{day:02}", duration="1d"
            ),
            Serialize(),
            ToFile(filename=str(output)),
        ]
        options = PipelineOptions(
            userid_column_name="userIdentityuserName",
            state=str(tmp_path / "state.db"),
            num_threads=1,
        )
        metrics = Pipeline(stages, options).run()
        return pl.read_csv(output, infer_schema=False)["eventTime"].to_list(), metrics

    month(lake)
    first, _ = run(7)
    assert len(first) == 8
    late = event(7, 23, "ann", "eu-west-1")
    folder = "AWSLogs/000000000001/CloudTrail/eu-west-1/2024/05/08"
    name = "000000000001_CloudTrail_eu-west-1_20240508T0910Z_late.json.gz"
    body = gzip.compress(json.dumps({"Records": [late]}).encode(), 1)
    lake.put_all({f"{folder}/{name}": body})
    second, metrics = run(8)
    assert min(second) == late["eventTime"]
    assert len(second) == 9
    assert (metrics.input.late, metrics.input.taken_files) == (1, 4)
    fetched = [key for key in lake.fetched if key.endswith(".json.gz")]
    assert len(fetched) == len(set(fetched)) == 5
