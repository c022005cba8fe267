"""Several records of one event count once: shared events, stages of requests, missing accounts."""

import json
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.runtime.local import encode_source, restore_source
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.from_file import FromFile
from morpheus.sources.schema_file import load_schema
from morpheus.sources.source_state import PartitionState

STAGES = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]


def request(number: int, stage: str, user: str = "ann") -> dict[str, Any]:
    done = {"responseStatus": {"code": 403}} if stage == "ResponseComplete" else {}
    return {
        "auditID": str(uuid.UUID(int=number)),
        "stage": stage,
        "verb": "get",
        "user": {"username": user},
        "requestReceivedTimestamp": f"2026-10-01T08:00:{number:02}.123456Z",
        **done,
    }


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def read(source: Any, state: PartitionState | None = None) -> tuple[pl.DataFrame, RunMetrics]:
    metrics = RunMetrics()
    frames = [batch.table.to_frame() for batch in source.events(None, metrics, state)]
    assert sum(frame.height for frame in frames) == metrics.input.accepted
    return (pl.concat(frames) if frames else pl.DataFrame()), metrics


def kubernetes(pattern: Path) -> FromFile:
    source = FromFile(input_glob=str(pattern))
    options = PipelineOptions(columns_file="kubernetes.toml")
    configured = FromFile(input_glob=str(pattern), options=options)
    return FromFile(input_glob=source.input_glob, options=configured.with_defaults(options))


@pytest.mark.parametrize("stages", [STAGES[:3], STAGES[2::-1], ["ResponseComplete", *STAGES[:2]]])
def test_stages_of_a_request_are_one_event_with_the_outcome(
    tmp_path: Path, stages: list[str]
) -> None:
    records = [request(n, stage) for n in range(3) for stage in stages]
    frame, metrics = read(kubernetes(write(tmp_path / "a.jsonl", records)))
    assert frame.select("stage", "status").rows() == [("ResponseComplete", "403")] * 3
    assert metrics.input.duplicates == 6


def test_stages_of_a_request_are_one_event_across_files(tmp_path: Path) -> None:
    for stage in STAGES[:3]:
        write(tmp_path / f"{stage}.jsonl", [request(n, stage) for n in range(3)])
    frame, metrics = read(kubernetes(tmp_path))
    assert frame["stage"].to_list() == ["ResponseComplete"] * 3
    assert metrics.input.duplicates == 6


def test_a_panic_is_the_outcome_of_a_request(tmp_path: Path) -> None:
    records = [request(0, "Panic"), request(0, "ResponseComplete")]
    frame, _ = read(kubernetes(write(tmp_path / "a.jsonl", records)))
    assert frame["stage"].to_list() == ["Panic"]


def test_a_request_without_outcome_is_an_event(tmp_path: Path) -> None:
    frame, _ = read(kubernetes(write(tmp_path / "a.jsonl", [request(0, "RequestReceived")])))
    assert frame["stage"].to_list() == ["RequestReceived"]


def test_a_later_run_takes_an_outcome_that_is_new_and_no_stage_twice(tmp_path: Path) -> None:
    state = PartitionState.restore({})
    runs = [
        [request(0, "RequestReceived"), request(0, "ResponseComplete"), request(1, STAGES[0])],
        [request(0, "RequestReceived"), request(0, "ResponseStarted"), request(1, STAGES[2])],
        [request(n, stage) for n in range(2) for stage in STAGES[:3]],
    ]
    found = []
    for number, records in enumerate(runs):
        frame, _ = read(kubernetes(write(tmp_path / f"{number}.jsonl", records)), state)
        found.append(frame.select("auditID", "stage").rows() if frame.height else [])
        state = restore_source(encode_source(state, ["ann"]))
    ids = [str(uuid.UUID(int=n)) for n in range(2)]
    assert found == [
        [(ids[0], "ResponseComplete"), (ids[1], "RequestReceived")],
        [(ids[1], "ResponseComplete")],
        [],
    ]


def test_the_order_of_records_needs_an_id(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        'time = "at"\nuser = "who"\nfeatures = ["a"]\n'
        '[duplicates]\ncolumn = "stage"\norder = ["begin", "end"]\n'
    )
    with pytest.raises(UsageError, match="`duplicates`: records of one event have one id"):
        load_schema(str(path))


def test_columns_that_ignore_case_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('time = "at"\nuser = "who"\nfeatures = ["a"]\nignore_case = ["whom"]\n')
    with pytest.raises(UsageError, match=r"`ignore_case`: there is no `whom`\. Did you mean `who`"):
        load_schema(str(path))


ARN = "userIdentityarn"
OWN_VIEW = {"type": "IAMUser", "userName": "ann", "accountId": "111122223333"}


def call(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "eventID": str(uuid.UUID(int=number)),
        "eventTime": "2026-10-06T08:03:00Z",
        "eventName": "AssumeRole",
        "userIdentity": OWN_VIEW,
        **fields,
    }


OTHER_VIEW = {"type": "AWSAccount", "accountId": "111122223333"}


def trail(pattern: Path, user: str = "userIdentityaccountId") -> FromCloudtrail:
    options = PipelineOptions(columns=("eventName", "userIdentitytype"), userid_column_name=user)
    return FromCloudtrail(input_glob=str(pattern), options=options)


@pytest.mark.parametrize("first", ["own", "other"])
def test_a_request_that_two_accounts_log_counts_once_as_the_caller_logs_it(
    tmp_path: Path, first: str
) -> None:
    own = call(1, sharedEventID="s1", recipientAccountId="111122223333")
    other = call(2, sharedEventID="s1", recipientAccountId="4444", userIdentity=OTHER_VIEW)
    names = {"own": own, "other": other}
    write(tmp_path / "a.jsonl", [names.pop(first)])
    write(tmp_path / "b.jsonl", list(names.values()))
    frame, metrics = read(trail(tmp_path))
    assert frame["userIdentitytype"].to_list() == ["IAMUser"]
    assert metrics.input.duplicates == 1


@pytest.mark.parametrize(("user", "name"), [("@actor", "ann@111122223333"), (ARN, "arn:ann")])
def test_the_other_accounts_record_makes_no_other_user(
    tmp_path: Path, user: str, name: str
) -> None:
    own = call(1, sharedEventID="s1") | {"userIdentity": OWN_VIEW | {"arn": "arn:ann"}}
    alone = call(4, sharedEventID="s2", userIdentity=OTHER_VIEW)
    write(tmp_path / "a.jsonl", [call(2, sharedEventID="s1", userIdentity=OTHER_VIEW), alone])
    write(tmp_path / "b.jsonl", [own])
    options = PipelineOptions(columns=("eventName", "userIdentitytype"), userid_column_name=user)
    metrics = RunMetrics()
    source = FromCloudtrail(input_glob=str(tmp_path), options=options)
    users = [batch.user for batch in source.events(None, metrics)]
    other = "account:111122223333" if user == "@actor" else None
    assert sorted(users, key=str) == sorted([other, name], key=str)
    assert (metrics.input.accepted, metrics.input.duplicates) == (2, 1)


def test_each_account_has_its_record_if_accounts_are_the_users(tmp_path: Path) -> None:
    own = call(1, sharedEventID="s1", recipientAccountId="1")
    other = call(2, sharedEventID="s1", recipientAccountId="4", userIdentity=OTHER_VIEW)
    path = write(tmp_path / "a.jsonl", [own, other])
    frame, metrics = read(trail(path, "recipientAccountId"))
    assert (frame.height, metrics.input.duplicates) == (2, 0)


def test_a_shared_request_counts_once_over_several_runs(tmp_path: Path) -> None:
    state = PartitionState.restore({})
    other = call(2, sharedEventID="s1", userIdentity=OTHER_VIEW)
    first, _ = read(trail(write(tmp_path / "a.jsonl", [other])), state)
    own = [call(1, sharedEventID="s1"), call(3)]
    second, _ = read(trail(write(tmp_path / "b.jsonl", own)), state)
    assert (first.height, second.height) == (1, 1)


def test_of_equal_records_the_one_with_the_most_values_counts(tmp_path: Path) -> None:
    records = [call(1, sharedEventID="s"), call(1, sharedEventID="s", recipientAccountId="1")]
    for number, ordered in enumerate([records, records[::-1]]):
        path = write(tmp_path / f"{number}.jsonl", ordered)
        assert read(trail(path))[0]["recipientAccountId"].to_list() == ["1"]


@pytest.mark.parametrize("user", ["userIdentityaccountId", "userIdentitytype", "@actor"])
def test_an_event_without_its_account_is_the_same_event(tmp_path: Path, user: str) -> None:
    with_account = call(1, recipientAccountId="111122223333")
    write(tmp_path / "a.jsonl", [with_account, call(2, sharedEventID="s2")])
    write(tmp_path / "b.jsonl", [call(1), call(2, sharedEventID="s2"), call(3)])
    frame, metrics = read(trail(tmp_path, user))
    assert (frame.height, metrics.input.duplicates) == (3, 2)


def test_events_with_neither_id_are_all_kept(tmp_path: Path) -> None:
    records = [call(1, eventID=None), call(1, eventID=None), call(1, eventID="", sharedEventID="")]
    frame, metrics = read(trail(write(tmp_path / "a.jsonl", records)))
    assert (frame.height, metrics.input.duplicates) == (3, 0)
