"""from-duo: every format of an authentication gives the same event."""

import json
from pathlib import Path
from typing import Any

import pytest

from morpheus.columns import TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.errors import RecordError
from morpheus.sources.from_file import DUO_FORMAT, FromDuo

DATA = Path(__file__).parents[2] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")
FEATURES = read_lines(FromDuo.default_columns, option="--columns_file")
PLACE = ("accessdevicelocationcity", "accessdevicelocationstate", "accessdevicelocationcountry")


def second(minute: int, city: str = "Cork", **fields: Any) -> dict[str, Any]:
    """A record as version 2 of the Admin API has it."""
    return {
        "txid": f"00000000-0000-0000-0000-{minute:012}",
        "isotimestamp": f"2020-02-13T18:{minute:02}:20.351346+00:00",
        "timestamp": 1581616820 + 60 * minute,
        "event_type": "authentication",
        "user": {"key": "DU", "name": "ann", "groups": ["a"]},
        "application": {"key": "DI", "name": "VPN"},
        "factor": "duo_push",
        "result": "success",
        "reason": "user_approved",
        "access_device": {
            "browser": "Chrome",
            "os": "Mac OS X",
            "ip": "203.0.113.9",
            "location": {"city": city, "state": "Munster", "country": "IE"},
        },
        "auth_device": {"name": "phone", "ip": "198.51.100.3"},
        **fields,
    }


def first(minute: int, city: str = "Cork") -> dict[str, Any]:
    """The same record as version 1 has it."""
    record = second(minute, city)
    del record["isotimestamp"], record["event_type"], record["application"], record["auth_device"]
    del record["access_device"]["location"], record["access_device"]["ip"]
    return {
        **record,
        "user": None,
        "username": "ann",
        "eventtype": "authentication",
        "integration": "VPN",
        "device": "phone",
        "ip": "203.0.113.9",
        "location": {"city": city, "state": "Munster", "country": "IE"},
    }


SECOND = [second(1), second(2), second(3, "Iasi")]
FIRST = [first(1), first(2), first(3, "Iasi")]


def read(
    pattern: Path, *, columns: Any = FEATURES, **options: Any
) -> tuple[list[Events], RunMetrics]:
    metrics = RunMetrics()
    source = FromDuo(input_glob=str(pattern), options=PipelineOptions(columns=columns), **options)
    source.validate()
    return list(source.events(None, metrics)), metrics


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(records: Any) -> str:
    return "\n".join(map(json.dumps, records))


def answer(records: Any, version: int) -> str:
    logs = {"authlogs": records, "metadata": {"next_offset": ["1", "x"], "total_objects": 3}}
    return json.dumps({"stat": "OK", "response": logs if version == 2 else records})


@pytest.mark.parametrize(
    "text",
    [json.dumps(SECOND), json.dumps(SECOND, indent=1), lines(SECOND), answer(SECOND, 2)],
    ids=["list", "pretty list", "lines", "answer"],
)
def test_every_form_of_version_2_gives_the_same_events(tmp_path: Path, text: str) -> None:
    [batch], _ = read(written(tmp_path / "a.json", text))
    assert batch.user == "ann"
    features = batch.table.to_frame().select(FEATURES).rows(named=True)[2]
    assert features == {
        "accessdevicebrowser": "Chrome",
        "accessdeviceos": "Mac OS X",
        "authdevicename": "phone",
        "reason": "user_approved",
        "result": "success",
        "locincrement": 2,
        "logcount": 2,
    }
    assert set(DUO_FORMAT.context_columns) < set(batch.table.names)


@pytest.mark.parametrize(
    "text",
    [json.dumps(FIRST), lines(FIRST), answer(FIRST, 1)],
    ids=["list", "lines", "answer"],
)
def test_version_1_gives_the_same_events_as_version_2(tmp_path: Path, text: str) -> None:
    [expected], _ = read(written(tmp_path / "a.json", json.dumps(SECOND)))
    [batch], _ = read(written(tmp_path / "b.json", text))
    same = ["txid", *FEATURES, "username", "applicationname", "accessdeviceip", *PLACE, "eventtype"]
    assert batch.table.to_frame().select(same).equals(expected.table.to_frame().select(same))
    assert batch.table.names == expected.table.names


def test_both_versions_can_be_in_one_file(tmp_path: Path) -> None:
    [batch], _ = read(written(tmp_path / "a.json", lines([first(1), second(2), first(3)])))
    assert batch.table["username"].to_list() == ["ann"] * 3
    assert batch.table["accessdevicelocationcity"].to_list() == ["Cork"] * 3


def test_time_can_be_seconds_or_milliseconds(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", lines([first(1), {**first(2), "timestamp": 1581616940500}]))
    [batch], _ = read(file)
    times = batch.table[TIME].dt.strftime("%F %T%.3f").to_list()
    assert times == ["2020-02-13 18:01:20.000", "2020-02-13 18:02:20.500"]


def test_csv_of_the_admin_panel_has_the_columns_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Timestamp (UTC),User,Application,Result,Reason,Factor,Browser,Operating System,"
        "Auth Device Name,Access Device IP,Location\n"
        "2020-02-13 18:01:20 UTC,ann,VPN,success,user_approved,duo_push,Chrome,Mac OS X,phone,"
        '203.0.113.9,"Cork, Munster, IE"\n'
    )
    [expected], _ = read(written(tmp_path / "a.json", lines(SECOND[:1])))
    [batch], _ = read(tmp_path / "a.csv")
    same = [*FEATURES, "username", "applicationname", "accessdeviceip", *PLACE]
    assert batch.table.to_frame().select(same).equals(expected.table.to_frame().select(same))


@pytest.mark.parametrize("name", ["authlogs", "items"])
def test_a_response_without_events_is_no_event(tmp_path: Path, name: str) -> None:
    empty = {"stat": "OK", "response": {name: [], "metadata": {"total_objects": 0}}}
    written(tmp_path / "a.json", json.dumps(empty))
    written(tmp_path / "b.json", lines([second(1)]))
    batches, metrics = read(tmp_path / "*.json")
    assert [batch.table.height for batch in batches] == [1]
    assert (metrics.input.read, metrics.input.empty_files) == (1, 1)


def test_derived_columns_can_be_features(tmp_path: Path) -> None:
    columns = ("hourofweek", "addressnetwork", "errorclass", "appincrement", "new:factor")
    record = second(1, result="denied", reason="no_response")
    [batch], _ = read(written(tmp_path / "a.json", lines([record])), columns=columns)
    values = batch.table.to_frame().select(columns).row(0)
    assert values == ("Thu 18", "203.0.113.0/24", "no answer", 1, "False")


@real
def test_rule_tests_are_read_and_rejected_records_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    admin, other = (
        [json.loads(line)["log"] for line in (DATA / "rule-tests" / name).read_text().splitlines()]
        for name in ("Duo.Administrator.jsonl", "Duo.Authentication.jsonl")
    )
    batches, metrics = read(written(file, lines([*admin, *other])), bad_record="skip")
    assert metrics.input.read == len(admin) + len(other)
    assert sum(batch.table.height for batch in batches) == metrics.input.accepted == len(admin)
    assert metrics.input.refused == len(other)
    assert all("has no `isotimestamp`" in reason for reason in metrics.input.refusals)
    with pytest.raises(RecordError, match=rf"all {len(other)} records were rejected"):
        read(written(file, lines(other)), bad_record="skip")


def test_every_context_column_is_a_column_of_the_log() -> None:
    assert set(DUO_FORMAT.context_columns) <= set(DUO_FORMAT.columns)
