import gzip
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from morpheus.columns import INDEX, ROW, TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.errors import MorpheusError, RecordError, UsageError
from morpheus.sources.cloudtrail import CONTEXT_COLUMNS, FromCloudtrail, get_first_owner

FEATURES = read_lines(FromCloudtrail.default_columns, option="--columns_file")
ROLE = "userIdentitysessionContextsessionIssueruserName"
DATA = Path(__file__).parents[2] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")


def record(second: int, account: str | None = "001", **fields: Any) -> dict[str, Any]:
    return {
        "eventID": str(uuid.UUID(int=second)),
        "eventTime": f"2024-05-31T09:30:{second:02}Z",
        "eventName": "Ls",
        "userIdentity": {"arn": "arn:1", "accountId": account},
        **fields,
    }


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"Records": records}))
    return path


def read(
    pattern: Path | str,
    history: Path | str | None = None,
    *,
    settings: Any = None,
    **options: Any,
) -> tuple[list[Events], RunMetrics]:
    metrics = RunMetrics()
    chosen = PipelineOptions(columns=FEATURES, **(settings or {}))
    source = FromCloudtrail(input_glob=str(pattern), options=chosen, **options)
    source.validate()
    batches = list(source.events(None if history is None else str(history), metrics))
    assert sum(batch.table.height for batch in batches) == metrics.input.accepted
    return batches, metrics


def user(column: str) -> dict[str, str]:
    return {"userid_column_name": column}


def test_json_has_features_and_context_in_a_fixed_order(tmp_path: Path) -> None:
    [batch], _ = read(write(tmp_path / "a.json", record(1)))
    wanted = dict.fromkeys(["eventID", "eventTime", *FEATURES, *CONTEXT_COLUMNS])
    assert batch.table.names == [ROW, INDEX, *wanted, TIME]
    assert set(batch.table.to_frame().dtypes[2:-1]) == {pl.String}


def test_account_ids_keep_leading_zeros_and_have_a_prefix_in_csv(tmp_path: Path) -> None:
    write(tmp_path / "a.json", record(1))
    (tmp_path / "b.csv").write_text(
        "eventTime,userIdentityaccountId\n2024-05-31T09:31:00Z,001\n2024-05-31T09:32:00Z,x\n"
    )
    batches, _ = read(tmp_path)
    assert [batch.user for batch in batches] == ["001", "Account-001", "x"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.json", bytes), ("a.json.gz", gzip.compress), ("a.json.zst", zstandard.compress)],
)
def test_every_form_gives_the_same_events(tmp_path: Path, name: str, pack: Any) -> None:
    records = [record(1, readOnly=True), record(2, requestParameters={"maxResults": 5})]
    [expected], _ = read(write(tmp_path / "x/a.json", *records))
    forms = [
        json.dumps(records),
        "\n".join(map(json.dumps, records)),
        json.dumps({"Events": [{"CloudTrailEvent": json.dumps(r)} for r in records]}),
        json.dumps({"QueryResultRows": [[{"eventJson": json.dumps(r)}] for r in records]}),
    ]
    for form in forms:
        (tmp_path / name).write_bytes(pack(form.encode()))
        [batch], _ = read(tmp_path / name)
        assert batch.table.to_frame().equals(expected.table.to_frame())


def pack_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records in the format of a file's name."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix in {".csv", ".parquet"}:
        cells = pl.DataFrame({"eventJson": [json.dumps(each) for each in records]})
        (cells.write_csv if path.suffix == ".csv" else cells.write_parquet)(path)
    elif path.suffix == ".json":
        write(path, *records)
    else:
        lines = "".join(json.dumps(each) + "\n" for each in records).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_sample_has_the_first_records_of_each_file(tmp_path: Path, name: str) -> None:
    records = [record(second) for second in range(9)]
    whole = pack_records(tmp_path / name, records)
    short = pack_records(tmp_path / "short" / name, records[:4])
    [sample], metrics = read(whole, max_records=4)
    [expected], _ = read(short)
    assert metrics.input.read == 4
    assert sample.table.to_frame().equals(expected.table.to_frame())
    (tmp_path / "b").mkdir()
    pack_records(tmp_path / "b" / name, [record(second) for second in range(20, 29)])
    _, metrics = read(tmp_path, max_records=4)
    assert metrics.input.read == 12


def test_records_embedded_in_csv_are_read_like_json(tmp_path: Path) -> None:
    [expected], _ = read(write(tmp_path / "a.json", record(1), record(2)))
    cells = pl.DataFrame({"eventJson": [json.dumps(record(s)) for s in (1, 2)]})
    cells.write_csv(tmp_path / "lake.csv")
    cells.write_parquet(tmp_path / "lake.parquet")
    for name in ("lake.csv", "lake.parquet"):
        [batch], _ = read(tmp_path / name)
        assert batch.table.to_frame().equals(expected.table.to_frame())


def test_dotted_csv_has_the_same_names_as_json(tmp_path: Path) -> None:
    (tmp_path / "lake.csv").write_text(
        "eventTime,userIdentity.accountId\n2023-07-10 11:42:36.000,x\n"
    )
    [batch], _ = read(tmp_path / "lake.csv")
    assert batch.user == "x"
    assert batch.table[TIME].dt.to_string("%F %T").to_list() == ["2023-07-10 11:42:36"]


def test_csv_keeps_its_row_numbers_and_column_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        ",eventID,eventTime,userIdentityaccountId,zeta,alpha\n"
        "5,1,2024-05-31T09:30:01Z,x,,q\n4,1,2024-05-31T09:30:01Z,x,p,\n"
    )
    [batch], metrics = read(tmp_path / "a.csv")
    names = ["eventID", "eventTime", "userIdentityaccountId", "zeta", "alpha"]
    assert batch.table.names == [ROW, INDEX, *names, TIME]
    assert batch.table[INDEX].to_list() == [4, 5]
    assert batch.table["zeta"].to_list() == ["p", None]
    assert metrics.input.duplicates == 0


def test_all_columns_keeps_all_columns(tmp_path: Path) -> None:
    [batch], _ = read(write(tmp_path / "a.json", record(1, odd={"b": [1]})), all_columns=True)
    assert batch.table["oddb"].to_list() == ["[1]"]


def test_names_and_number_of_files_do_not_matter(tmp_path: Path) -> None:
    records = [record(s, account=f"{s % 3}", odd=s) for s in range(40)]
    for n, part in enumerate((records[:20], records[20:])):
        write(tmp_path / f"one/{n}.json", *part)
        write(tmp_path / f"two/{1 - n}.json", *part)
    one, two = (
        read(tmp_path / name, settings={"pipeline_batch_size": 64})[0] for name in ("one", "two")
    )
    assert [batch.user for batch in one] == [batch.user for batch in two] == ["0", "1", "2"]
    assert all(a.table.equals(b.table) for a, b in zip(one, two, strict=True))


def test_digests_and_insights_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "AWSLogs/1/CloudTrail/us/a.json", record(1))
    write(tmp_path / "AWSLogs/1/CloudTrail-Digest/us/d.json")
    write(tmp_path / "AWSLogs/1/CloudTrail-Insight/us/i.json")
    _, metrics = read(tmp_path / "AWSLogs")
    assert (metrics.input.files, metrics.input.skipped_files, metrics.input.read) == (1, 2, 1)


def test_repetitions_are_shifted_by_the_span_and_are_no_duplicates(tmp_path: Path) -> None:
    [batch], metrics = read(write(tmp_path / "a.json", record(0), record(10)), repeat=3)
    seconds = batch.table[TIME].dt.second().to_list()
    assert seconds == [0, 10, 10, 20, 20, 30]
    assert batch.table["eventTime"].to_list()[-1] == "2024-05-31T09:30:30Z"
    assert (metrics.input.read, metrics.input.duplicates) == (6, 0)


def test_history_is_read_like_the_input_but_not_repeated(tmp_path: Path) -> None:
    write(tmp_path / "old/a.json", record(0), record(1, account="2"), record(2, account=None))
    new = write(tmp_path / "new.json", record(9))
    batches, metrics = read(new, tmp_path / "old/*.json", repeat=2)
    assert [
        (b.user, b.table.height, b.history is not None and b.history.height) for b in batches
    ] == [("001", 2, 1), ("2", 0, 1)]
    assert (metrics.training.read, metrics.training.no_user) == (3, 1)


BAD_LINES = [
    ('{"eventTime": ', "Input data was truncated|Expecting"),
    ("[1]", "must be a JSON object"),
    ('{"eventName": "x"}', "has no `eventTime`; it has eventName"),
    (
        '{"eventTime": "2024-13-01T00:00:00Z"}',
        "`eventTime` is '2024-13-01T00:00:00Z', which is not",
    ),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
def test_bad_record_is_reported_with_file_line_and_fix(
    tmp_path: Path, line: str, expected: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(record(1))}\n\n{line}\n")
    with pytest.raises(RecordError, match=rf"a\.jsonl:3: .*({expected}).*`--bad_record skip`"):
        read(path)


def test_bad_records_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps(record(1)), *(line for line, _ in BAD_LINES), json.dumps(record(2))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.json").write_text(json.dumps({"Records": [record(3)] * 9})[:300])
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(b"[]" * 99)[:-4])
    (tmp_path / "d.csv").write_text("eventTime,userIdentityaccountId\n2024-05-31T09:30:09Z\n")
    (tmp_path / "e.csv").write_text("time,userIdentityaccountId\n1,x\n2,y\n")
    [batch], metrics = read(tmp_path, bad_record="skip")
    # The truncated document holds two events, one of which is complete.
    assert batch.table.height == 3
    assert (metrics.input.files, metrics.input.read, metrics.input.refused) == (5, 12, 9)
    assert metrics.input.refusals[0].startswith(f"{tmp_path / 'a.jsonl'}:2: ")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.json",
            '{"Records": [{"eventTime": "2024-05',
            r"a\.json: not complete JSON .*download it again",
        ),
        (
            "a.csv",
            "eventTime,x\n2024-05-31T09:30:01Z,1\n",
            r"a\.csv has no user column `userIdentityaccountId`",
        ),
        (
            "a.csv",
            "userIdentityaccountId,b\n",
            r"no column `eventTime`; it has userIdentityaccountId, b",
        ),
        ("a.csv", "eventTime,userIdentityaccountId\n1,2,3\n", r"a\.csv:2: the row has 3 cells"),
        ("a.csv", "", r"a\.csv: the file is empty"),
        ("a.parquet", "x", r"a\.parquet: not a complete Parquet file"),
        ("a.json", "eventTime,b,c\n1,2,3\n", r"a\.json: the file looks like CSV, and its .* JSON"),
        ("a.csv", '{"a": 1}\n', r"a\.csv: the file looks like JSON, .*`--file_type=json`"),
        ("a.parquet", '{"a": 1}\n', r"a\.parquet: the file looks like JSON, .*Parquet"),
        ("a.json", "PAR1\0PAR1", r"a\.json: the file looks like Parquet, and its suffix says"),
    ],
)
def test_bad_file_is_reported_with_the_reason(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MorpheusError, match=expected):
        read(tmp_path / name)


def test_mistyped_user_column_gets_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", record(1))
    with pytest.raises(
        UsageError, match=r"no user column `userIdentityArn`.*--userid_column_name=userIdentityarn"
    ):
        read(path, settings=user("userIdentityArn"))


def test_events_without_a_user_cause_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [batch], _ = read(write(tmp_path / "a.json", record(1, account=None)))
    assert batch.user is None
    assert "no event has a `userIdentityaccountId`" in caplog.text


def test_missing_feature_causes_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.json", record(1, odd={"x": 1}))
    source = FromCloudtrail(input_glob=str(path), options=PipelineOptions(columns=("oddx", "oddy")))
    [batch] = source.events(None, RunMetrics())
    assert batch.table["oddx"].to_list() == ["1"]
    message = "--columns_file: no event has a column `oddy`. Did you mean `oddx`?"
    assert caplog.messages == [message]


def test_features_that_are_all_missing_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", record(1))
    columns = ("x" * 100, "other")
    source = FromCloudtrail(input_glob=str(path), options=PipelineOptions(columns=columns))
    with pytest.raises(UsageError, match=r"no event has any of its 2 columns, such as `x+…x+`\. E"):
        list(source.events(None, RunMetrics()))


def test_user_filter_without_matches_causes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.json", record(1))
    batches, metrics = read(path, settings={"userid_filter": "nobody"})
    assert (batches, metrics.input.other_users) == ([], 1)
    [message] = caplog.messages
    assert message.startswith("--userid_filter: no event in ")
    assert message.endswith(" has `nobody` as its `userIdentityaccountId`.")


def test_only_the_filtered_user_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", record(1), record(2, account="2"))
    batches, metrics = read(path, path, settings={"userid_filter": "2"})
    assert [batch.user for batch in batches] == ["2"]
    assert metrics.input.other_users == metrics.training.other_users == 1


def test_number_of_events_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="morpheus"):
        read(write(tmp_path / "a.json", record(0), record(9)))
    assert "CloudTrail loading complete. Total rows: 2. Timespan: 0:00:09" in caplog.messages


def test_history_without_matching_files_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", record(1))
    with pytest.raises(UsageError, match="--train_data_glob: no log file matches"):
        read(path, tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_files": 0}, "--max_files: 0 would read no files"),
        ({"input_glob": ""}, "--input_glob: no files given"),
        ({"watch_directory": True, "repeat": 2}, "Use only one"),
    ],
)
def test_contradicting_options_are_rejected(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        FromCloudtrail(**{"input_glob": "x.json", **options}).validate()


def test_watched_directory_continues_row_numbers(tmp_path: Path) -> None:
    source = FromCloudtrail(
        input_glob=str(tmp_path / "*.json"),
        watch_directory=True,
        batch_timeout=0.0,
        options=PipelineOptions(columns=FEATURES),
    )
    write(tmp_path / "a.json", record(1))
    events = source.events(None, RunMetrics())
    assert source.is_unbounded()
    assert next(events).table[ROW].to_list() == [0]
    write(tmp_path / "b.json", record(2), record(1))
    later = next(events).table.to_frame()
    assert later[ROW].to_list() == [1]
    assert later["eventTime"].to_list() == ["2024-05-31T09:30:02Z"]


def test_owners_are_the_first_value_of_the_first_owner() -> None:
    cells: list[Any] = [[{"owner": "a", "x": "b"}, {}], [], None, "self", [{}], ["a"]]
    assert [get_first_owner(cell) for cell in cells] == ["a", None, None, "self", None, ["a"]]


@real
@pytest.mark.parametrize("column", ["userIdentityaccountId", "userIdentityarn"])
def test_real_logs_in_the_folder_layout_of_aws_are_read(column: str) -> None:
    batches, metrics = read(DATA / "cloudtrail-attack", settings=user(column))
    assert (metrics.input.files, metrics.input.accepted) == (55, 2900)
    plain = [
        json.loads(gzip.decompress(p.read_bytes())) for p in DATA.glob("cloudtrail-attack/**/*.gz")
    ]
    events = {r["eventID"]: r for document in plain for r in document["Records"]}
    rows = [row for batch in batches for row in batch.table.to_frame().iter_rows(named=True)]
    for row in rows:
        identity = events[row["eventID"]].get("userIdentity", {})
        assert row["userIdentityarn"] == identity.get("arn")
        assert row["eventName"] == events[row["eventID"]]["eventName"]


@real
def test_real_console_sessions_have_56_duplicates() -> None:
    _, metrics = read(DATA / "cloudtrail-console", DATA / "cloudtrail-attack/*.json.gz")
    assert (metrics.input.read, metrics.input.duplicates, metrics.input.accepted) == (
        8226,
        56,
        8170,
    )


@real
def test_recorded_techniques_are_read_completely() -> None:
    _, metrics = read(DATA / "cloudtrail-techniques/*.json", settings=user("userIdentityarn"))
    assert (metrics.input.files, metrics.input.accepted) == (35, 310)


@real
def test_records_inside_other_objects_are_read_and_the_others_are_counted() -> None:
    path = DATA / "rule-tests/AWS.CloudTrail.jsonl"
    with pytest.raises(
        RecordError, match=r"jsonl:\d+: .*no `eventTime`; it has rule, test, hit, log"
    ):
        read(path)
    batches, metrics = read(path, bad_record="skip")
    stats = metrics.input
    assert stats.read == 463
    assert stats.refused > 0
    assert stats.accepted == sum(batch.table.height for batch in batches) > 300


@real
def test_csv_and_json_of_the_same_users_agree() -> None:
    csv, _ = read(DATA / "golden/validation/*.csv", settings=user(ROLE))
    native, _ = read(DATA / "golden/validation/*.json.gz", settings=user(ROLE))
    assert (
        [b.user for b in csv] == [b.user for b in native] == ["svc-0002", "role-0000", "role-0001"]
    )
    shared = ["eventTime", "eventName", "userAgent", "sourceIPAddress", "errorCode"]
    for one, other in zip(csv, native, strict=True):
        assert (
            one.table.to_frame()
            .select(shared)
            .sort(shared)
            .equals(other.table.to_frame().select(shared).sort(shared))
        )


def test_time_can_be_another_column(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", record(1, seen="2024-06-01T00:00:00Z"))
    for name, day in (("", "31"), ("event_dt", "31"), ("eventTime", "31"), ("seen", "01")):
        [batch], _ = read(file, settings={"timestamp_column_name": name})
        assert batch.table[TIME].dt.strftime("%d").to_list() == [day]
    with pytest.raises(RecordError, match="the record has no `saw`"):
        read(file, settings={"timestamp_column_name": "saw"})
