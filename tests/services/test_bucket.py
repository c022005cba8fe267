"""A bucket that is listed again and again: each object once, whatever the layout of its keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto.backends import get_backend

from lakes import Lake
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, UsageError
from morpheus.sources.bucket import (
    BucketLister,
    GroupResult,
    ObjectGroup,
    ObjectStream,
    check_binding,
)
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.ingest import FileIngest
from morpheus.sources.time_range import TimeRange
from morpheus.storage.object_store import delete_objects
from services.buckets import serve_buckets
from services.queues import ACCOUNT, REGION, Run, close, events

NOW = datetime.now(UTC)
TODAY, YESTERDAY = f"{NOW:%Y/%m/%d}", f"{NOW - timedelta(days=1):%Y/%m/%d}"
CLOUDTRAIL = "AWSLogs/{account:012}/CloudTrail/{region}/{day}/{name}.json.gz"
LAYOUTS = {
    "CloudTrail": CLOUDTRAIL,
    "organisation": "AWSLogs/o-abc123/{account:012}/CloudTrail/{region}/{day}/{name}.json.gz",
    "partitions": "AWSLogs/region={region}/accountId={account}/eventDay={date}/{name}.json.gz",
    "date first": "AWSLogs/{date}/{region}/{name}-{account}.json.gz",
    "date at the end": "AWSLogs/{account}-{name}-{region}-{date}.json.gz",
    "flat": "AWSLogs/{name}-{region}-{account}.json.gz",
    "folders": "AWSLogs/{region}/{account}/{name}.json.gz",
}


def key(name: str, *, layout: str = CLOUDTRAIL, account: int = 1, day: str = TODAY) -> str:
    date = day.replace("/", "-")
    return layout.format(name=name, account=account, region="eu-west-1", day=day, date=date)


def put(lake: Lake, key: str, content: bytes = b"{}", *, age: float = 0) -> str:
    """Put an object that was modified some seconds ago."""
    lake.put(key, content)
    found = get_backend("s3")[ACCOUNT]["aws"].buckets["lake"].keys[key]
    found.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=age)
    return key


class Poller:
    """Lists a bucket, and finishes each group as `ObjectStream` does.

    Attributes:
        offsets: The offsets of all groups so far.
        now: The time of the clock.
        groups: The keys of each group of the last listing.
    """

    def __init__(
        self,
        pattern: str = "s3://lake/AWSLogs/",
        offsets: dict[str, bytes] | None = None,
        look_back: float = 3600,
        start: str | None = None,
    ) -> None:
        files = FileDiscovery(
            pattern,
            time_range=TimeRange.from_options(start, None, None, None),
            skip_dirs=CLOUDTRAIL_FORMAT.skip_dirs,
            other_files=CLOUDTRAIL_FORMAT.other_files,
        )
        self.now, self.slept, self.offsets = NOW.timestamp(), 0.0, offsets or {}
        self.groups: list[list[str]] = []
        self.lister = BucketLister(
            files, timedelta(seconds=look_back), 1.0, self.sleep, lambda: self.now
        )
        self.metrics = RunMetrics()
        self.lister.open(self.offsets, self.metrics)
        self.found: Iterator[ObjectGroup | None] = self.lister.groups()

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def poll(self, seconds: float = 60.0, *, max_groups: int | None = None) -> list[str]:
        """List the bucket once, some seconds later; return the keys of new objects."""
        self.now, self.slept, self.groups = self.now + seconds, 0.0, []
        for group in self.found:
            if group is not None:
                self.groups.append([path.key for path in group.paths])
                done = self.lister.finish(GroupResult({path: path for path in group.paths}))
                self.offsets = {n: d for n, d in (self.offsets | dict(done.offsets)).items() if d}
                if max_groups == len(self.groups):
                    break
            if self.slept:
                break
        return [key for group in self.groups for key in group]

    def restart(self) -> Poller:
        pattern = str(self.lister.files.pattern)
        return Poller(pattern, dict(self.offsets), self.lister.look_back.total_seconds())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_object_is_found_once_in_any_layout(lake: Lake, layout: str) -> None:
    old = [
        put(lake, key(f"a{n}", layout=layout, account=account, day=day), age=600)
        for n in range(3)
        for account in (1, 2)
        for day in (YESTERDAY, TODAY)
    ]
    poller = Poller()
    assert sorted(poller.poll()) == sorted(set(old))
    assert poller.poll() == []
    new = [put(lake, key(name, layout=layout)) for name in ("0", "a1b", "z")]
    assert sorted(poller.poll()) == sorted(new), "also those before the last key"
    again = poller.restart()
    assert again.poll() == []
    later = put(lake, key("x", layout=layout, account=2))
    assert again.poll() == [later]


def test_an_object_that_becomes_visible_late_is_found(lake: Lake) -> None:
    put(lake, key("a"))
    poller = Poller(look_back=3600)
    poller.poll()
    late = put(lake, key("b"), age=3000)
    assert poller.poll() == [late], "though a newer object was found before"
    assert poller.restart().poll() == []


def test_an_object_in_the_folder_of_yesterday_is_found_within_the_look_back(lake: Lake) -> None:
    put(lake, key("a"))
    poller = Poller(look_back=26 * 3600)
    poller.poll()
    late = put(lake, key("b", day=YESTERDAY))
    assert poller.poll() == [late]


def test_only_the_days_of_the_look_back_are_listed(lake: Lake) -> None:
    old = f"{NOW - timedelta(days=40):%Y/%m/%d}"
    for account in (1, 2):
        for day in (old, YESTERDAY, TODAY):
            put(lake, key("a", account=account, day=day), age=90_000 if day != TODAY else 0)
    poller = Poller(look_back=600)
    assert len(poller.poll()) == 6
    lake.forget()
    assert poller.poll() == []
    assert len(lake.listings) == 2, "one request for each account and region"
    day = f"{datetime.now(UTC) - timedelta(seconds=600):%Y/%m/%d}"
    for account, listing in enumerate(sorted(lake.listings), 1):
        folder = f"AWSLogs/{account:012}/CloudTrail/eu-west-1"
        assert f"start-after={folder}/{day}" in listing


@pytest.mark.parametrize("layout", ["CloudTrail", "date first", "flat"])
def test_the_first_listing_begins_at_the_start_of_the_time_range(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr("morpheus.storage.object_store.PAGE_SIZE", 1)
    place = LAYOUTS[layout]
    for n in range(20):
        put(lake, key(f"{n:02}", layout=place, day="2024/05/07"), age=10_000_000)
    new = [
        put(lake, key(f"x{n}", layout=place, day=day)) for n, day in enumerate([YESTERDAY, TODAY])
    ]
    poller = Poller(start=YESTERDAY.replace("/", "-"))
    lake.forget()
    found = poller.poll()
    dated = layout != "flat"
    assert sorted(found)[-2:] == sorted(new)
    assert len(found) == (2 if dated else 22)
    starts = [each.partition("start-after=")[2] for each in lake.listings]
    assert not any("2024" in each for each in starts)
    later = put(lake, key("y", layout=place))
    assert poller.poll(seconds=4000) == [later]
    assert poller.restart().poll() == []


def test_an_object_in_the_folder_of_a_day_long_over_is_found_twice_in_the_look_back(
    lake: Lake,
) -> None:
    put(lake, key("a"))
    poller = Poller(look_back=3600)
    poller.poll()
    late = put(lake, key("b", day="2024/01/01"))
    assert poller.poll() == []
    restarted = poller.restart()
    restarted.now += 120
    assert restarted.poll() == [], "a restart lists no more than it must"
    assert poller.poll(seconds=1800) == [late]


def test_folders_whose_dates_are_not_those_of_delivery_are_listed_as_a_whole(lake: Lake) -> None:
    put(lake, key("a", day="2024/03/01"))
    poller = Poller()
    poller.poll()
    new = put(lake, key("b", day="2024/01/01"))
    assert poller.poll() == [new]


def test_new_accounts_and_regions_are_found(lake: Lake) -> None:
    put(lake, key("a"))
    poller = Poller()
    poller.poll()
    new = put(lake, key("a", account=2))
    assert poller.poll(seconds=60) == [], "the folders are not looked up each time"
    assert poller.poll(seconds=600) == [new]
    assert poller.restart().poll() == []


def test_a_clock_that_is_set_back_stops_nothing(lake: Lake) -> None:
    put(lake, key("a"))
    poller = Poller(look_back=3600)
    poller.now += 365 * 86_400
    poller.poll()
    poller.now -= 365 * 86_400
    late = put(lake, key("b", day="2024/01/01"))
    other = put(lake, key("a", account=2))
    assert sorted(poller.poll()) == sorted([late, other])
    assert poller.poll() == []


def test_a_folder_that_gets_subfolders_is_read_once(lake: Lake) -> None:
    first = put(lake, "AWSLogs/a.json.gz")
    poller = Poller()
    assert poller.poll() == [first]
    second = put(lake, "AWSLogs/b/c.json.gz")
    assert poller.poll(seconds=1000) == [second]
    third = put(lake, key("d"))
    assert poller.poll(seconds=1000) == [third]
    fourth = put(lake, "AWSLogs/e.json.gz")
    assert poller.poll(seconds=1000) == [fourth]
    assert poller.restart().poll() == []


def test_a_folder_with_objects_and_subfolders_is_read_once(lake: Lake) -> None:
    old = [put(lake, "AWSLogs/a.json.gz"), put(lake, key("a"))]
    poller = Poller()
    assert sorted(poller.poll()) == sorted(old)
    new = [put(lake, "AWSLogs/0.json.gz"), put(lake, key("b")), put(lake, "AWSLogs/z.json.gz")]
    assert sorted(poller.poll()) == sorted(new)
    late = put(lake, "AWSLogs/000000000001/2024/01/01/x.json.gz")
    assert poller.poll(seconds=1000) == [late], "a date above folders that are listed already"
    assert poller.poll(seconds=1000) == []
    assert poller.restart().poll() == []


def test_a_first_listing_that_was_interrupted_goes_on_where_it_was(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket.MAX_OBJECTS", 5)
    keys = {
        put(lake, key(f"{n:02}", account=account), age=90_000)
        for n in range(12)
        for account in (1, 2)
    }
    keys |= {put(lake, key("0", account=account)) for account in (1, 2)}  # the others are old
    found = set[str]()
    poller = Poller()
    poller.lister.max_objects = 5
    for _ in range(10):
        part = set(poller.poll(max_groups=1))
        assert not part & found
        assert len(part) <= 5
        found |= part
        poller = poller.restart()
        poller.lister.max_objects = 5
    assert found == keys


def test_an_object_that_arrives_during_a_long_first_listing_is_found(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket.MAX_OBJECTS", 2)
    old = [put(lake, key(f"b{n}"), age=90_000) for n in range(6)]
    poller = Poller(look_back=60)
    poller.lister.max_objects = 2
    found = poller.poll(max_groups=1)
    early = put(lake, key("a"))
    put(lake, key("c"), age=-5000)  # the listing takes longer than the look-back
    found += poller.poll() + poller.poll()
    assert sorted(found) == sorted([*old, early, key("c")])


def test_memory_and_state_are_bounded_by_the_look_back(lake: Lake) -> None:
    for n in range(100):
        put(lake, key(f"{n:03}"), age=90_000)
    put(lake, key("new"))
    poller = Poller(look_back=3600)
    assert len(poller.poll()) == 101
    [branch] = poller.lister.branches.values()
    assert len(branch.recent) == 1, "the others are older than the look-back"
    assert max(map(len, poller.offsets.values())) < 200


def test_more_objects_than_can_be_remembered_shorten_the_look_back(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket.MAX_RECENT", 20)
    for n in range(50):
        put(lake, key(f"{n:03}"), age=100 - n)
    poller = Poller()
    assert len(poller.poll()) == 50
    [branch] = poller.lister.branches.values()
    assert len(branch.recent) <= 20
    assert poller.poll() == []
    assert poller.restart().poll() == []
    assert "more than 20 objects are newer than --look_back" in caplog.text
    new = put(lake, key("new"))
    assert poller.poll() == [new]


def test_many_keys_in_the_order_of_time_are_listed_from_the_recent_ones(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket._ORDERED_KEYS", 10)
    monkeypatch.setattr("morpheus.storage.object_store.PAGE_SIZE", 5)
    for n in range(30):
        put(lake, f"AWSLogs/{n:03}.json.gz", age=90_000 - n)
    put(lake, "AWSLogs/100.json.gz")
    poller = Poller(look_back=3600)
    assert len(poller.poll()) == 31
    lake.forget()
    new = put(lake, "AWSLogs/101.json.gz")
    assert poller.poll() == [new]
    [listing] = lake.listings
    assert "start-after=AWSLogs/029.json.gz" in listing
    out_of_order = put(lake, "AWSLogs/000a.json.gz")
    assert poller.poll() == []
    assert poller.poll(seconds=1800) == [out_of_order], "all keys, twice in the look-back"


def test_keys_that_are_not_in_the_order_of_time_are_all_listed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket._ORDERED_KEYS", 10)
    monkeypatch.setattr("morpheus.storage.object_store.PAGE_SIZE", 5)
    for n in range(30):
        put(lake, f"AWSLogs/{n * 7 % 30:03}.json.gz", age=900_000 - n * 9000)
    poller = Poller(look_back=3600)
    poller.poll()
    new = put(lake, "AWSLogs/000a.json.gz")
    assert poller.poll() == [new]


def test_other_files_are_left_out_and_counted_once(lake: Lake) -> None:
    put(lake, "AWSLogs/000000000001/CloudTrail-Digest/eu-west-1/2024/05/07/d.json.gz")
    put(lake, "AWSLogs/000000000001/Config/eu-west-1/2024/05/07/c.json.gz")
    put(lake, f"AWSLogs/000000000001/CloudTrail/eu-west-1/{TODAY}/notes.txt")
    put(lake, f"AWSLogs/000000000001/CloudTrail/eu-west-1/{TODAY}/x_Config_y.json.gz")
    put(lake, f"AWSLogs/000000000001/CloudTrail/eu-west-1/{TODAY}/111111111111_Config_y.json.gz")
    first = put(lake, key("a"))
    poller = Poller()
    assert first in poller.poll()
    poller.poll()
    kinds = poller.metrics.input.file_kinds
    assert kinds == {"unsupported file": 1, "AWS Config file": 1}


def test_objects_outside_the_glob_are_left_out(lake: Lake) -> None:
    put(lake, key("a"))
    put(lake, key("b").replace("CloudTrail", "Other"))
    wanted = put(lake, key("b"))
    assert Poller("s3://lake/AWSLogs/*/CloudTrail/*/b.json.gz").poll() == [wanted]


def test_a_state_of_another_bucket_is_rejected_with_what_to_do() -> None:
    mine, other = FileDiscovery("s3://lake/AWSLogs/"), FileDiscovery("s3://other/AWSLogs/")
    bound = check_binding({}, mine)
    assert check_binding(bound, mine) == {}
    with pytest.raises(
        UsageError,
        match=r"--state: the state was saved while reading s3://lake, and --input_glob is in "
        r"s3://other. Give another file as --state, or the former --input_glob.",
    ):
        check_binding(bound, other)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("morpheus.sources.bucket.TICK_SECONDS", 0.05)
    return Run(options={"watch_directory": True, "watch_interval": 1.0})


def test_a_watched_bucket_is_read_and_goes_on_where_it_stopped(lake: Lake, run: Run) -> None:
    for n in range(3):
        lake.put(key(f"{n}"), events(n, n + 10))
    assert run.read(3) == [0, 1, 2, 10, 11, 12]
    assert len(run.rows) == 1, "small objects are read together"
    lake.put(key("x"), events(5))
    again = Run(run.offsets, run.options)
    assert again.read(1) == [5]
    assert again.metrics.input.files == 1


class LateLister(BucketLister):
    """An object is deleted after it was listed."""

    def groups(self) -> Iterator[ObjectGroup | None]:
        for group in super().groups():
            if group is not None and group.paths:
                delete_objects([group.paths[0]])
            yield group


def test_a_deleted_object_is_counted_and_not_tried_again(lake: Lake, run: Run) -> None:
    lake.put(key("a"), events(1))
    lake.put(key("b"), events(2))
    files = FileDiscovery("s3://lake/AWSLogs/")
    options = PipelineOptions(userid_column_name="userIdentityuserName", unbounded=True)
    feed = LateLister(files, timedelta(hours=1), 0.1)
    stream = ObjectStream(FileIngest(CLOUDTRAIL_FORMAT, files, options), feed, run.metrics)
    batches = stream.micro_batches(None, {})
    deadline = time.monotonic() + 60
    while (not run.numbers or not run.kinds) and time.monotonic() < deadline:
        run.take(next(batches))
    close(batches)
    assert run.numbers == [2]
    assert run.kinds == {"deleted object": 1}


def test_an_object_that_cannot_be_read_ends_the_run_unless_it_is_skipped(
    lake: Lake, run: Run
) -> None:
    lake.put(key("bad"), events(1)[:40])
    lake.put(key("good"), events(2))
    with pytest.raises(RecordError, match=r"bad.json.gz: .*truncated or damaged"):
        run.read(2)
    assert run.numbers == []
    assert run.read(2, bad_record="skip") == [2]
    assert run.metrics.input.refused == 1


def archive(key: str, content: bytes) -> None:
    """Put an object into the bucket as the rule of a lifecycle does."""
    boto3.client("s3", region_name=REGION).put_object(
        Bucket="lake", Key=key, Body=content, StorageClass="GLACIER"
    )


def test_an_archived_object_ends_the_run_unless_it_is_skipped(lake: Lake, run: Run) -> None:
    archive(key("a"), events(1))
    lake.put(key("b"), events(2))
    with pytest.raises(RecordError, match=r"a.json.gz: it is archived .*`--bad_record skip`"):
        run.read(1)
    assert run.read(1, bad_record="skip") == [2]
    stats = run.metrics.input
    assert (stats.read, stats.accepted, stats.refused) == (2, 1, 1)
    assert "it is archived" in stats.refusals[0]


class ReplacingLister(BucketLister):
    """Objects are replaced after they were listed."""

    def groups(self) -> Iterator[ObjectGroup | None]:
        for group in super().groups():
            for path in [] if group is None else group.paths:
                boto3.client("s3", region_name=REGION).put_object(
                    Bucket="lake", Key=path.key, Body=events(2)
                )
            yield group


def test_an_object_that_is_replaced_after_it_was_listed_is_read_once(lake: Lake, run: Run) -> None:
    lake.put(key("a"), events(1))
    files = FileDiscovery("s3://lake/AWSLogs/")
    options = PipelineOptions(userid_column_name="userIdentityuserName", unbounded=True)
    feed = ReplacingLister(files, timedelta(hours=1), 0.1)
    stream = ObjectStream(FileIngest(CLOUDTRAIL_FORMAT, files, options), feed, run.metrics)
    batches = stream.micro_batches(None, {})
    while not run.numbers:
        run.take(next(batches))
    lake.forget()
    while len(lake.listings) < 4:  # two more listings
        run.take(next(batches))
    close(batches)
    assert (run.numbers, run.metrics.input.files) == ([2], 1)
    assert run.kinds == {"replaced object": 1}


def test_a_watched_bucket_in_another_cloud_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_buckets("gs") as buckets:
        monkeypatch.setenv("GOOGLE_BASE_URL", buckets.address)
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        buckets.objects["lake/logs/a.json.gz"] = events(1)
        assert run.read(1, input_glob="gs://lake/logs/") == [1]


def test_options_that_contradict_each_other_are_rejected(tmp_path: Path) -> None:
    both = ("s3://lake/AWSLogs/", str(tmp_path))
    with pytest.raises(UsageError, match=r"some are in an object store. Start one run for each"):
        FromCloudtrail(input_glob=both, watch_directory=True).validate()
    with pytest.raises(UsageError, match=r"--look_back: 'x' is not a duration"):
        FromCloudtrail(
            input_glob="s3://lake/AWSLogs/", watch_directory=True, look_back="x"
        ).validate()


def test_a_bucket_that_cannot_be_reached_at_the_start_is_waited_for(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lake.put(key("a"), events(1, 2))
    run = Run()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("morpheus.sources.bucket.TICK_SECONDS", 0.05)
    options = {"watch_directory": True, "watch_interval": 0.5}
    batches = run.start(**options, max_files=1)
    for _ in range(3):
        assert run.take(next(batches)).height == 0
    assert "127.0.0.1:9 cannot be reached" in caplog.text
    assert "It is tried again with the next listing" in caplog.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", lake.address)
    for batch in batches:
        run.take(batch)
    assert run.numbers == [1, 2]


def test_a_delta_table_is_rejected_also_if_its_server_comes_later(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.put("AWSLogs/_delta_log/00000000000000000000.json", b"{}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    poller = Poller()
    assert poller.poll() == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", lake.address)
    with pytest.raises(UsageError, match="is a Delta table, whose files may be rewritten"):
        poller.poll()
