"""from-azure: every format of a sign-in gives the same event."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.columns import POPULATION_USER, ROW, TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.errors import RecordError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.from_file import AZURE_FORMAT, FromAzure
from morpheus.sources.ingest import FileIngest
from morpheus.sources.spill_sort import MemoryBudget
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe

DATA = Path(__file__).parents[2] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")
FEATURES = read_lines(FromAzure.default_columns, option="--columns_file")


def sign_in(minute: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"00000000-0000-0000-0000-{minute:012}",
        "createdDateTime": f"2024-05-31T09:{minute:02}:00Z",
        "userPrincipalName": "ann@x.org",
        "appDisplayName": "Mail",
        "clientAppUsed": "Browser",
        "status": {"errorCode": 50126, "failureReason": "Invalid password."},
        "deviceDetail": {"browser": "Edge 99", "displayName": "PC", "operatingSystem": "Linux"},
        "location": {"city": "Cork", "state": "Munster", "countryOrRegion": "IE"},
        **fields,
    }


SIGN_INS = [
    sign_in(1),
    sign_in(2, appDisplayName="Chat"),
    sign_in(3, location={"city": "Iasi", "state": None, "countryOrRegion": "RO"}),
]


def diagnostic(record: dict[str, Any]) -> dict[str, Any]:
    around = {"time": "2024-05-31T10:00:00Z", "category": "SignInLogs", "correlationId": "other"}
    return {**around, "properties": record}


def read(
    pattern: Path, *, columns: Any = FEATURES, **options: Any
) -> tuple[list[Events], RunMetrics]:
    metrics = RunMetrics()
    source = FromAzure(input_glob=str(pattern), options=PipelineOptions(columns=columns), **options)
    source.validate()
    return list(source.events(None, metrics)), metrics


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(records: Any) -> str:
    return "\n".join(map(json.dumps, records))


def test_columns_are_the_features_and_the_context(tmp_path: Path) -> None:
    [batch], _ = read(written(tmp_path / "a.json", json.dumps(SIGN_INS)))
    assert set(FEATURES) | set(AZURE_FORMAT.context_columns) < set(batch.table.names)
    assert batch.table.names[-4:] == ["appincrement", "locincrement", "logcount", TIME]
    counts = batch.table.to_frame().select("logcount", "locincrement", "appincrement").rows()
    assert counts == [(0, 1, 1), (1, 1, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    "text",
    [
        lines(SIGN_INS),
        json.dumps({"@odata.context": "https://graph", "value": SIGN_INS}, indent=2),
        json.dumps({"value": SIGN_INS}),
    ],
    ids=["lines", "graph", "value"],
)
def test_every_form_of_json_gives_the_same_events(tmp_path: Path, text: str) -> None:
    [expected], _ = read(written(tmp_path / "a.json", json.dumps(SIGN_INS)))
    [batch], _ = read(written(tmp_path / "b.json", text))
    assert batch.user == "ann@x.org"
    assert batch.table.to_frame().equals(expected.table.to_frame())


@pytest.mark.parametrize(
    "text",
    [
        lines(map(diagnostic, SIGN_INS)),
        json.dumps({"records": list(map(diagnostic, SIGN_INS))}),
        lines(diagnostic({}) | {"properties": json.dumps(each)} for each in SIGN_INS),
    ],
    ids=["diagnostic settings", "event hub", "properties as text"],
)
def test_properties_take_precedence_over_their_envelope(tmp_path: Path, text: str) -> None:
    [expected], _ = read(written(tmp_path / "a.json", json.dumps(SIGN_INS)))
    [batch], _ = read(written(tmp_path / "b.json", text))
    assert (
        batch.table.to_frame().drop("category").equals(expected.table.to_frame().drop("category"))
    )
    assert batch.table["category"].to_list() == ["SignInLogs"] * 3


def flatten(record: dict[str, Any], separator: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        inner = flatten(value, separator) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}{separator if below else ''}{below}": v for below, v in inner.items()}
    return flat


@pytest.mark.parametrize("separator", [".", "_"])
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_flattened_records_of_diagnostic_settings_give_the_same_events(
    tmp_path: Path, suffix: str, separator: str
) -> None:
    [expected], _ = read(written(tmp_path / "a.json", json.dumps(SIGN_INS)))
    flat = [flatten(diagnostic(each), separator) for each in SIGN_INS]
    text = lines(flat) if suffix == "json" else pl.DataFrame(flat).write_csv()
    [batch], _ = read(written(tmp_path / f"b.{suffix}", text))
    same = [*FEATURES, "id", "locationcity", "locationstate", TIME]
    assert batch.table.to_frame().select(same).equals(expected.table.to_frame().select(same))


@pytest.mark.parametrize("separator", [".", "_"])
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_fields_of_a_flattened_record_take_precedence_over_its_envelope(
    tmp_path: Path, suffix: str, separator: str
) -> None:
    records = [sign_in(1, correlationId="own"), sign_in(2), sign_in(3, correlationId="")]
    flat = [flatten(diagnostic(each), separator) for each in records]
    table = pl.DataFrame(flat, infer_schema_length=None)
    text = lines(flat) if suffix == "json" else table.write_csv()
    [batch], _ = read(written(tmp_path / f"b.{suffix}", text))
    assert batch.table["correlationId"].to_list() == ["own", "other", "other"]


def test_a_record_with_other_names_keeps_them_beside_an_object_with_the_log_s_own_name(
    tmp_path: Path,
) -> None:
    row = {
        "TimeGenerated": "2024-05-31T09:01:00Z",
        "Id": "1",
        "UserPrincipalName": "Ann@x.org",
        "LocationDetails": {"city": "Cork"},
    }
    [batch], _ = read(written(tmp_path / "a.json", lines([row])))
    assert batch.user == "ann@x.org"
    assert batch.table["locationcity"].to_list() == ["Cork"]


def test_sign_in_without_a_time_uses_the_time_of_its_record(tmp_path: Path) -> None:
    record = {name: value for name, value in sign_in(1).items() if name != "createdDateTime"}
    [batch], _ = read(written(tmp_path / "a.json", lines([diagnostic(record)])))
    assert batch.table["createdDateTime"].to_list() == ["2024-05-31T10:00:00Z"]


def test_csv_of_the_portal_has_the_columns_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Date (UTC),Request ID,User,Username,Application,Client app,Failure reason,"
        "Sign-in error code,Browser,Operating System,Location,Status\n"
        "2024-05-31T09:01:00Z,1,Ann,ann@x.org,Mail,Browser,Invalid password.,50126,Edge 99,"
        'Linux,"Cork, Munster, IE",Failure\n'
        '2024-05-31T09:02:00Z,2,Ann,ann@x.org,Chat,Browser,,0,Edge 99,Linux,"Iasi, RO",Success\n'
    )
    [expected], _ = read(written(tmp_path / "a.json", json.dumps(SIGN_INS)))
    [batch], _ = read(tmp_path / "a.csv")
    assert batch.user == "ann@x.org"
    same = [n for n in FEATURES if n != "deviceDetaildisplayName"]
    assert batch.table[:1].select(same).equals(expected.table[:1].select(same))
    places = (
        batch.table.to_frame()
        .select("locationcity", "locationstate", "locationcountryOrRegion")
        .rows()
    )
    assert places == [("Cork", "Munster", "IE"), ("Iasi", None, "RO")]
    assert batch.table["Status"].to_list() == ["Failure", "Success"]
    assert not {"Location", "Date (UTC)"} & set(batch.table.names)


def test_flat_csv_has_the_names_of_upstream(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        ",createdDateTime,userPrincipalName,appDisplayName,deviceDetail.browser,location.city\n"
        "0,2024-05-31 09:01:00,ann@x.org,Mail,Edge 99,Cork\n"
    )
    [batch], _ = read(tmp_path / "a.csv")
    assert batch.table.to_frame().row(0, named=True)["deviceDetailbrowser"] == "Edge 99"
    assert batch.table.to_frame().row(0, named=True)["locincrement"] == 1


def test_derived_columns_can_be_features(tmp_path: Path) -> None:
    columns = ("hourofweek", "hourkind", "agentfamily", "addresskind", "errorclass", "new:appId")
    record = sign_in(1, userAgent="python-requests/2.31", ipAddress="10.0.0.1")
    [batch], _ = read(written(tmp_path / "a.json", lines([record])), columns=columns)
    values = batch.table.to_frame().select(columns).row(0)
    assert values == ("Fri 09", "weekday 09", "python", "private", "password", None)


def test_derived_column_without_inputs_is_reported(tmp_path: Path, caplog: Any) -> None:
    read(written(tmp_path / "a.json", lines([sign_in(1)])), columns=("new:appName",))
    [message] = caplog.messages
    assert (
        message == "--columns_file: no event has a column `appName`. Did you mean `appDisplayName`?"
    )


def test_record_of_another_log_is_rejected_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", lines([sign_in(1), {"properties": {"id": "1"}}]))
    with pytest.raises(RecordError, match=r"a\.json:2: the record has no `createdDateTime`"):
        read(file)
    _, metrics = read(file, bad_record="skip")
    assert (metrics.input.accepted, metrics.input.refused) == (1, 1)


def test_wrong_user_column_gets_a_suggestion(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", lines([sign_in(1)]))
    source = FromAzure(input_glob=str(file), options=PipelineOptions(userid_column_name="userName"))
    with pytest.raises(UsageError, match=r"no user column `userName`.*`userPrincipalName`"):
        list(source.events(None, RunMetrics()))


@real
def test_derived_columns_of_real_sign_ins_equal_a_plain_recomputation() -> None:
    batches, metrics = read(DATA / "azure-signins")
    assert (len(batches), metrics.input.accepted) == (17, 323)
    for batch in batches:
        for row, expected in zip(
            batch.table.to_frame().to_dicts(), plainly(batch.table.to_frame()), strict=True
        ):
            assert (row["logcount"], row["locincrement"], row["appincrement"]) == expected


def plainly(frame: pl.DataFrame) -> list[tuple[int, int, int]]:
    """Upstream's three columns, by a loop over events."""
    counts: list[tuple[int, int, int]] = []
    days: dict[Any, tuple[list[Any], set[Any], set[Any]]] = {}
    place = ("locationcity", "locationstate", "locationcountryOrRegion")
    for row in frame.to_dicts():
        passed, places, apps = days.setdefault(row[TIME].date(), ([], set(), set()))
        places.add(tuple(row[name] for name in place))
        apps.update({row["appDisplayName"]} - {None})
        counts.append((len(passed), len(places), len(apps)))
        passed.append(row)
    return counts


@real
def test_model_of_two_days_scores_the_third(tmp_path: Path) -> None:
    records = (DATA / "azure-signins/signins.jsonl").read_text().splitlines()
    days = sorted({json.loads(line)["properties"]["createdDateTime"][:10] for line in records})
    for line in records:
        day = json.loads(line)["properties"]["createdDateTime"][:10]
        name = "input.json" if day == days[-1] else "training.json"
        with (tmp_path / name).open("a") as file:
            file.write(line + "\n")
    training = str(tmp_path / "training.json")
    chain = [
        FromAzure(input_glob=str(tmp_path / "input.json")),
        TrainAe(train_data_glob=training, train_min_history=10),
        Preprocess(),
        InfPytorch(),
        AddScores(label=("ae_anomaly_score", "risk")),
    ]
    metrics = Pipeline(chain, PipelineOptions(num_threads=1)).run()
    assert metrics.input.accepted + metrics.training.accepted == 323
    assert metrics.scored > 0
    own = [card for card in metrics.cards.values() if card.last]
    assert own
    assert {card.last[:10] for card in own} <= set(days[:-1])


def test_population_sample_has_derived_columns_in_memory_and_on_disk(tmp_path: Path) -> None:
    records = [sign_in(n, userPrincipalName=f"user{n % 3}@x.org") for n in range(60)]
    chosen = PipelineOptions(
        columns=("appDisplayName", "logcount", "new:appDisplayName"), needs_population=True
    )
    files = FileDiscovery(str(written(tmp_path / "a.json", lines(records))))
    surveys = []
    for budget in (
        MemoryBudget(),
        MemoryBudget(max_cells_in_memory=100, partition_cells=100, spill_table_cells=50),
    ):
        metrics = RunMetrics()
        assert list(
            FileIngest(AZURE_FORMAT, files, chosen, memory_budget=budget).events(None, metrics)
        )
        surveys.append(metrics.population_sample)
    [held, spilled] = surveys
    assert held is not None
    assert held.columns == [POPULATION_USER, TIME, *chosen.columns]
    assert held["logcount"].to_list() == list(range(20)) * 3
    assert held.equals(spilled)


@real
@pytest.mark.parametrize("name", ["Azure.Audit.jsonl", "Azure.MonitorActivity.jsonl"])
def test_rule_tests_are_read_and_rejected_records_are_reported(tmp_path: Path, name: str) -> None:
    lines_ = (DATA / "rule-tests" / name).read_text().splitlines()
    file = written(tmp_path / "a.jsonl", lines([json.loads(line)["log"] for line in lines_]))
    batches, metrics = read(file, bad_record="skip")
    assert metrics.input.read == len(lines_)
    assert sum(batch.table.height for batch in batches) == metrics.input.accepted
    assert bool(metrics.input.refused) == bool(metrics.input.refusals)


def test_every_context_column_is_a_column_of_the_log() -> None:
    assert set(AZURE_FORMAT.context_columns) <= set(AZURE_FORMAT.columns)
    assert ROW not in AZURE_FORMAT.columns
