"""What is known of a kind of log stands in its format, and all outputs follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from morpheus.columns import EventFields, EvidenceQuery, LogDescription
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.pipeline import Pipeline
from morpheus.report.view import Origin, build_log_view, label_columns
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.to_console import ToConsole
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.from_file import FromFile
from morpheus.sources.log_format import LogFormat
from morpheus.sources.ocsf import OCSF_FORMAT
from morpheus.sources.results import complete_log, find_log, find_user_column, known_logs
from morpheus.sources.schema_file import list_builtin_schemas, load_builtin_schema, load_schema
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe

PACKAGE = Path(__file__).parents[2] / "src" / "morpheus"
FORMATS = {
    "from-cloudtrail": CLOUDTRAIL_FORMAT,
    "from-ocsf": OCSF_FORMAT,
    **{name: load_builtin_schema(name).log_format for name in list_builtin_schemas()},
}
DOORS = """
name = "doors"
time = "at"
user = "who"
id = "number"
features = ["what", "door"]
context = ["area", "address", "outcome"]
cloud_provider = "aws"
sign_ins = true

[event_fields]
action = "what"
service = ["area", "door"]
source_address = "address"
result = "outcome"

[labels]
who = "Holder of the card"

[[evidence]]
name = "Door log"
language = "kusto"
columns = { who = "holder" }
template = "doors | where {user_column} == {user}"
"""
DOOR_EVENTS = [
    {
        "at": f"2024-05-31T{n // 60:02}:{n % 60:02}:00Z",
        "number": n,
        "who": "ann",
        "what": ["in", "out"][n % 2],
        "door": f"gate{n % 3}",
        "address": "203.0.113.7",
        "outcome": "denied",
    }
    for n in range(400)
]


@pytest.fixture
def doors(tmp_path: Path) -> Path:
    """A schema of a log that morpheus does not know, with its log and the folder of both."""
    (tmp_path / "doors.toml").write_text(DOORS)
    (tmp_path / "doors.jsonl").write_text("\n".join(map(json.dumps, DOOR_EVENTS)))
    return tmp_path


def run(folder: Path, *sinks: Any) -> None:
    source = FromFile(input_glob=str(folder / "doors.jsonl"))
    score = [TrainAe(train_epochs=1), Preprocess(), InfPytorch(), AddScores(), Serialize()]
    options = PipelineOptions(columns_file=str(folder / "doors.toml"), num_threads=1)
    Pipeline([source, *score, *sinks], options).run()


@pytest.mark.parametrize("name", FORMATS)
def test_every_described_column_is_a_column_of_the_log(name: str) -> None:
    form = FORMATS[name]
    known = {*form.columns, *form.derived_columns}
    described = form.describe()
    used = {*described.event_fields.columns, *described.labels, *described.user_columns}
    used |= {column for query in described.evidence for column in query.columns}
    assert used - known == set()


@pytest.mark.parametrize("name", FORMATS)
def test_each_column_has_a_label_of_words_that_no_other_column_has(name: str) -> None:
    form = FORMATS[name]
    columns = {*form.columns, *form.derived_columns, "risk", "requestParametersnotListed"}
    labels = form.describe().label_columns(sorted(columns))
    assert labels.keys() == columns
    assert len({label.casefold() for label in labels.values()}) == len(columns)
    for column, label in labels.items():
        assert not label[0].islower(), column
        # `userIdentityarn` is a name, and no word.
        assert len(column) < 24 or max(map(len, label.split())) < 24, label


def test_a_field_that_a_log_does_not_list_is_named_without_its_group() -> None:
    log = CLOUDTRAIL_FORMAT.describe()
    column = "userIdentitysessionContextsessionIssuernotListed"
    assert log.label_columns([column]) == {column: "Not listed"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_log_says_where_action_and_source_are(name: str) -> None:
    described = FORMATS[name].describe()
    assert described.event_fields.event_id
    assert described.event_fields.action
    assert described.event_fields.source_address
    assert described.labels
    assert described.evidence


@pytest.mark.parametrize("folder", ["sinks", "report", "serve", "report_cli.py"])
def test_no_output_names_a_column_of_a_log(folder: str) -> None:
    """Else a new log would have to be added there, too."""
    columns = {c for form in FORMATS.values() for c in form.describe().event_fields.columns}
    # Names of one word, such as `action` and `Id`, are also words of the language.
    columns = {c for c in columns if not c.isalpha() or not c[1:].islower()}
    root = PACKAGE / folder
    files = [root] if root.is_file() else [*root.rglob("*.py"), *root.rglob("*.js")]
    found = {(file.name, column) for file in files for column in columns if column in _words(file)}
    # Names of the formats that alerts are written in, which some logs use as well.
    assert {column for _, column in found} <= {"user_agent", "activity_name", "status_detail"}


def _words(file: Path) -> set[str]:
    text = file.read_text(encoding="utf-8")
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


@pytest.mark.parametrize("name", FORMATS)
def test_the_log_of_saved_results_is_recognised_by_its_columns(name: str) -> None:
    form = FORMATS[name]
    columns = {*form.leading_columns, form.user_column, *form.context_columns, "event_dt", "risk"}
    assert find_log("", columns).name == form.name
    assert find_user_column(columns) in form.describe().user_columns


def test_a_source_tells_its_log_whatever_the_columns() -> None:
    assert find_log("from-duo", ["eventName", "eventTime", "userAgent"]).name == "Duo"


def test_a_log_of_unknown_kind_is_not_taken_for_a_known_one() -> None:
    unknown = find_log("", ["event_dt", "id", "status", "risk"])
    assert (unknown.name, unknown.cloud_provider) == ("log", None)
    assert not unknown.unique_event_ids
    assert "status" not in unknown.event_fields.error_code


def test_what_a_description_leaves_open_is_found_by_the_columns() -> None:
    silent = LogDescription(name="mine", event_fields=EventFields(event_id=("number",)))
    found = complete_log(silent, "from-file", ["eventName", "eventTime", "userAgent"])
    assert (found.name, found.event_fields.event_id) == ("mine", ("number",))
    assert found.event_fields.action == ("eventName",)
    known = LogDescription(name="mine", event_fields=EventFields(action=("what",)))
    assert complete_log(known, "from-file", ["eventName", "eventTime", "userAgent"]) is known


def test_alerts_of_a_new_log_need_nothing_but_its_schema(doors: Path) -> None:
    ocsf, ecs = doors / "ocsf.jsonl", doors / "ecs.jsonl"
    run(doors, ToOcsf(filename=str(ocsf)), ToEcs(filename=str(ecs)))
    finding = json.loads(ocsf.read_text().splitlines()[0])
    evidence, related = finding["evidences"][0], finding["finding_info"]["related_events"][0]
    event = DOOR_EVENTS[int(related["uid"])]
    assert evidence["api"]["operation"] == event["what"]
    assert evidence["api"]["service"] == {"name": event["door"]}
    assert evidence["src_endpoint"] == {"ip": "203.0.113.7"}
    assert finding["cloud"]["provider"] == "AWS"
    assert finding["metadata"]["original_event_uid"] in {str(n) for n in range(400)}
    document = json.loads(ecs.read_text().splitlines()[0])
    assert document["event"]["category"] == ["intrusion_detection", "authentication"]
    assert document["event"]["outcome"] == "failure"


def test_the_console_shows_what_was_done_in_a_new_log(
    doors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(doors, ToConsole())
    first = capsys.readouterr().out.splitlines()[0].split("\t")
    assert first[:2] == ["2024-05-31 00:00:00", "ann"]
    assert "gate0" in first


def test_an_alert_keeps_its_id_whatever_columns_are_written(doors: Path) -> None:
    ids = []
    for exclude in ((), ("address",)):
        path = doors / f"{len(ids)}.jsonl"
        sinks = [Serialize(exclude=exclude), ToOcsf(filename=str(path))]
        run(doors, *sinks)
        lines = path.read_text().splitlines()
        infos = [json.loads(line)["finding_info"] for line in lines]
        ids.append([[event["uid"] for event in info["related_events"]] for info in infos])
    assert ids[0] == ids[1]


def test_a_page_gets_the_queries_of_a_new_log(doors: Path) -> None:
    log = load_schema(str(doors / "doors.toml")).log_format.describe()
    view = build_log_view(Origin("from-file", "who", log))
    assert [query.name for query in view.queries] == ["Door log", "Splunk"]
    assert [query.fields["who"] for query in view.queries] == [["holder"], ["who"]]
    assert view.actions == ["area", "door", "what"]
    labels = label_columns(log, ["who", "address", "area"])
    assert labels["who"] == "Holder of the card"
    assert labels["address"] == "Source address"
    assert labels["area"] == "Service"


def test_no_query_asks_for_the_computed_actor() -> None:
    view = build_log_view(Origin("from-cloudtrail", "actor", CLOUDTRAIL_FORMAT.describe()))
    assert all("actor" not in query.fields for query in view.queries)


def test_a_query_names_a_nested_field_as_the_tool_does() -> None:
    origin = Origin("from-cloudtrail", "userIdentityarn", CLOUDTRAIL_FORMAT.describe())
    queries = build_log_view(origin).queries
    assert {query.name: query.fields["userIdentityarn"] for query in queries} == {
        "Athena": ["userIdentity.arn"],
        "CloudTrail Lake": ["userIdentity.arn"],
        "Splunk": ["userIdentity.arn"],
        "KQL": ["UserIdentityArn"],
        "Elastic": ["aws.cloudtrail.user_identity.arn"],
    }


def test_every_source_with_files_is_known() -> None:
    assert {"from-azure", "from-cloudtrail", "from-duo", "from-ocsf"} <= set(known_logs())
    assert set(list_builtin_schemas()) <= set(known_logs())


def test_a_format_without_description_has_an_event_id_and_a_query() -> None:
    form = LogFormat(
        name="bare",
        paths=("at", "who", "number"),
        leading_columns=("at",),
        context_columns=(),
        time_column="at",
        id_column="number",
        user_column="who",
    )
    described = form.describe()
    assert described.event_fields == EventFields(event_id=("number",))
    assert described.user_columns == ("who",)
    assert [type(query) for query in described.evidence] == [EvidenceQuery]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("action = ", "acton = ", r":12: there is no key `acton`\. Did you mean `action`\?"),
        ('action = "what"', "action = 5", r":12: `event_fields\.action` must be text"),
        ('"what"\nservice', '"wat"\nservice', r":12: `event_fields\.action`: .* mean `what`\?"),
        ("who = ", "whom = ", r":18: `labels\.whom`: there is no `whom`\. Did you mean `who`\?"),
        ('"kusto"', '"kql"', r":22: `evidence\.0\.language`: there is no `kql`"),
        ('"Door log"', '"Door log"\ntime_format = "iso8601"', r"there is no `iso8601`"),
        ('template = "', '# template = "', r": `template` is missing"),
        ("sign_ins = true", 'sign_ins = "yes"', r":9: `sign_ins` must be true or false"),
    ],
)
def test_a_mistake_in_a_description_is_reported_with_its_line(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = tmp_path / "doors.toml"
    path.write_text(DOORS.replace(old, new))
    with pytest.raises(UsageError, match=expected):
        load_schema(str(path))
