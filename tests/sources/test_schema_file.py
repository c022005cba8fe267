"""Schemas describe a log; mistakes are reported with their line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import zstandard

from morpheus.cli.output import format_metrics
from morpheus.columns import ACTOR, EXCLUDED, TIME
from morpheus.core.batch import Events, RunMetrics, WithModel
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.pipeline import Pipeline
from morpheus.sources.from_file import FromAzure, FromFile
from morpheus.sources.schema_file import load_schema
from morpheus.stages.infer import Preprocess
from morpheus.stages.train_ae import TrainAe

SMALL = """
name = "door"
time = "at"
user = "who.name"
id = "number"
features = ["what", "who.card", "logcount"]
"""
RECORDS = [
    {"at": f"2024-05-31T09:{n:02}:00Z", "number": n, "who": {"name": "ann", "card": "c"}, "what": w}
    for n, w in enumerate(["in", "out", "in"])
]


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def lines(records: Any) -> str:
    return "\n".join(map(json.dumps, records))


def read(columns_file: str | None, path: Path | str, **settings: Any) -> list[Events]:
    defaults = FromFile(input_glob=str(path)).with_defaults(
        PipelineOptions(columns_file=columns_file, **settings)
    )
    source = FromFile(input_glob=str(path), options=defaults)
    source.validate()
    return list(source.events(None, RunMetrics()))


@pytest.mark.parametrize("extra", ["", 'fields = ["site"]\n', 'context = ["site"]\n'])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_events_of_other_accounts_are_no_duplicates_in_any_format(
    suffix: str, extra: str, tmp_path: Path
) -> None:
    door = written(tmp_path / "door.toml", f'account = "site"\n{extra}{SMALL}')
    rows = [
        {"at": "2024-05-31T09:00:00Z", "number": "1", "who.name": "ann", "site": site, "what": "in"}
        for site in ("a", "b", None, "a")
    ]
    path, frame = tmp_path / f"log.{suffix}", pl.DataFrame(rows)
    {"jsonl": frame.write_ndjson, "csv": frame.write_csv, "parquet": frame.write_parquet}[suffix](
        path
    )
    [batch] = read(door, path)
    sites = batch.table.to_frame()["site"].to_list()
    assert sorted(site or "" for site in sites) == ["", "a", "b"]


def test_a_schema_that_windows_wrote_is_read(tmp_path: Path) -> None:
    log = written(tmp_path / "a.csv", "at,number,who.name,Größe\n2024-05-31T09:00:00Z,1,ann,5\n")
    text = SMALL.replace('"what"', '"Größe"').replace("\n", "\r\n")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "door.toml").write_bytes(text.encode(encoding))
        [batch] = read(str(tmp_path / "door.toml"), log)
        assert batch.table.to_frame()["Größe"].to_list() == ["5"]


def test_schema_defines_features_and_user(tmp_path: Path) -> None:
    door = written(tmp_path / "door.toml", SMALL)
    [batch] = read(door, written(tmp_path / "a.jsonl", lines(RECORDS)))
    assert batch.user == "ann"
    assert batch.table.names[2:] == [
        "number",
        "at",
        "what",
        "whocard",
        "whoname",
        "logcount",
        TIME,
    ]
    assert batch.table["what"].to_list() == ["in", "out", "in"]
    assert batch.table["logcount"].to_list() == [0, 1, 2]


def test_every_form_of_a_log_gives_the_same_events(tmp_path: Path) -> None:
    door = written(tmp_path / "door.toml", SMALL + 'records = "doors"\n')
    [expected] = read(door, written(tmp_path / "a.jsonl", lines(RECORDS)))
    flat = [
        {
            "at": r["at"],
            "number": r["number"],
            "who.name": "ann",
            "who.card": "c",
            "what": r["what"],
        }
        for r in RECORDS
    ]
    csv = pl.DataFrame(flat).write_csv()
    forms = {
        "list.json": json.dumps(RECORDS),
        "pretty.json": json.dumps(RECORDS, indent=1),
        "inside.json": json.dumps({"doors": RECORDS}),
        "flat.jsonl": lines(flat),
        "a.csv": csv,
    }
    for name, text in forms.items():
        [batch] = read(door, written(tmp_path / name, text))
        assert (
            batch.table.to_frame().select(expected.table.names).equals(expected.table.to_frame())
        ), name
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines(RECORDS).encode()))
    (tmp_path / "a.csv.zst").write_bytes(zstandard.compress(csv.encode()))
    for name in ("a.json.gz", "a.csv.zst"):
        [batch] = read(door, tmp_path / name)
        assert (
            batch.table.to_frame().select(expected.table.names).equals(expected.table.to_frame())
        ), name


def test_event_delivered_twice_counts_once_with_any_id(tmp_path: Path) -> None:
    door = written(tmp_path / "door.toml", SMALL)
    [batch] = read(door, written(tmp_path / "a.jsonl", lines([*RECORDS, RECORDS[1]])))
    assert batch.table.height == 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ('"tags[0]"', "x"),
        ('"tags[1].deep"', "y"),
        ("\"notes['a.b/c']\"", "z"),
        ('["no.such", "who.card"]', "c"),
        ('[{ path = "place", part = "city" }]', "Cork"),
    ],
)
def test_column_is_read_from_its_path(tmp_path: Path, path: str, expected: str) -> None:
    about = SMALL.replace('"what"', '"found"') + f"[columns]\nfound.path = {path}\n"
    record = RECORDS[0] | {"tags": ["x", {"deep": "y"}], "notes": {"a.b/c": "z"}}
    record |= {"place": "Cork, Munster, IE"}
    [batch] = read(
        written(tmp_path / "door.toml", about), written(tmp_path / "a.jsonl", lines([record]))
    )
    assert batch.table["found"].to_list() == [expected]


def test_schema_defines_derived_columns(tmp_path: Path) -> None:
    about = (
        SMALL.replace('"what"', '"kind", "agent", "doors", "new:what"')
        + """
[columns]
kind = { of = "what", families = [["^in", "inward"], ["^out", ""]], otherwise = "odd" }
agent = { derive = "agent", of = "who.agent" }
doors = { derive = "distinct", of = ["what", "who.card"] }
"""
    )
    records = [{**r, "who": {**r["who"], "agent": "curl/8"}} for r in RECORDS]
    records[2] = {**records[2], "what": "up"}
    [batch] = read(
        written(tmp_path / "door.toml", about), written(tmp_path / "a.jsonl", lines(records))
    )
    assert batch.table.to_frame().select("kind", "agent", "doors", "new:what").rows() == [
        ("inward", "curl", 1, "False"),
        (None, "curl", 2, "False"),
        ("odd", "curl", 3, "False"),
    ]


def test_schema_names_previous_values_by_path_and_keeps_their_type(tmp_path: Path) -> None:
    features = '"previous:who.card", "previous:new:what", "previous:code", "new:code"'
    about = SMALL.replace('"what"', features) + "[columns]\ncode = { kind = 'category' }\n"
    door = written(tmp_path / "door.toml", about)
    records = [{**record, "code": n} for n, record in enumerate(RECORDS)]
    [batch] = read(door, written(tmp_path / "a.jsonl", lines(records)))
    names = ("previous:whocard", "previous:new:what", "previous:code")
    assert batch.table.to_frame().select(names).rows() == [
        (None, None, None),
        ("c", "False", "0"),
        ("c", "False", "1"),
    ]
    types = load_schema(str(door)).column_types
    assert types == {"code": "category", "previous:code": "category"}


def test_schema_defines_actor_rules(tmp_path: Path) -> None:
    about = (
        SMALL
        + """
[[actors]]
name = '{who.name/^x-(.+)$/}'
when."who.card" = "^c"
lower = true
"""
    )
    door = written(tmp_path / "door.toml", about)
    records = [
        r | {"who": {"name": n, "card": "c"}}
        for r, n in zip(RECORDS, ["x-Ann", "x-ANN", "y"], strict=True)
    ]
    batches = read(door, written(tmp_path / "a.jsonl", lines(records)), userid_column_name="@actor")
    assert {batch.user: batch.table[ACTOR].len() for batch in batches} == {"ann": 2, None: 1}


def test_actor_is_the_user_without_rules(tmp_path: Path) -> None:
    door = written(tmp_path / "door.toml", SMALL)
    file = written(tmp_path / "a.jsonl", lines(RECORDS))
    [batch] = read(door, file, userid_column_name="@actor")
    assert batch.user == "ann"


@pytest.mark.parametrize(
    ("time", "written_as"),
    [
        ("31.05.2024 09:30", "%d.%m.%Y %H:%M"),
        ("31/May/2024:11:30:00 +0200", "%d/%b/%Y:%H:%M:%S %z"),
        ("2024-05-31T09:30:00Z", "%d.%m.%Y %H:%M"),
        (1717147800, ""),
        (1717147800000, ""),
        (1717147800000000, ""),
    ],
)
def test_time_format_of_the_schema_or_the_default_is_used(
    tmp_path: Path, time: Any, written_as: str
) -> None:
    door = written(tmp_path / "door.toml", f'time_format = "{written_as}"\n{SMALL}')
    [batch] = read(door, written(tmp_path / "a.jsonl", lines([RECORDS[0] | {"at": time}])))
    assert str(batch.table[TIME][0]) == "2024-05-31 09:30:00+00:00"


def test_kind_overrides_the_type_of_the_values(tmp_path: Path) -> None:
    about = (
        SMALL.replace('"what"', '"port", "size"')
        + """
[columns]
port.kind = "category"
size.kind = "number"
"""
    )
    records = [
        {**RECORDS[0], "number": n, "at": f"2024-05-31T{n // 60:02}:{n % 60:02}:00Z"}
        | {"port": 1000 + n % 50, "size": n % 5}
        for n in range(400)
    ]
    source = FromFile(input_glob=written(tmp_path / "a.jsonl", lines(records)))
    chain = [source, TrainAe(train_epochs=1), CaptureEncoder()]
    Pipeline(
        chain, PipelineOptions(columns_file=written(tmp_path / "d.toml", about), num_threads=1)
    ).run()
    kinds = {column.name: type(column).__name__ for column in CaptureEncoder.encoder.columns}
    assert kinds == {
        "port": "Category",
        "size": "Number",
        "whocard": "Category",
        "logcount": "Number",
    }


def test_feature_list_is_enough_with_user_and_time(tmp_path: Path) -> None:
    listed = written(tmp_path / "columns.txt", "what\nlogcount\n")
    file = written(tmp_path / "a.csv", "at,name,what\n2024-05-31T09:00:00Z,ann,in\n")
    [batch] = read(listed, file, userid_column_name="name", timestamp_column_name="at")
    assert (batch.user, batch.table["what"].to_list()) == ("ann", ["in"])


def test_missing_options_are_reported() -> None:
    with pytest.raises(UsageError, match=r"a built-in one \(azure\.toml.*or give --columns_file"):
        FromFile(input_glob="a").with_defaults(PipelineOptions())
    message = r"or give --userid_column_name and --timestamp_column_name\."
    with pytest.raises(UsageError, match=message):
        FromFile(input_glob="a").with_defaults(PipelineOptions(columns_file="a.txt"))


def test_schema_is_only_accepted_by_from_file() -> None:
    with pytest.raises(UsageError, match=r"`okta\.toml` is a schema, which only `from-file` reads"):
        FromAzure(input_glob="a").with_defaults(PipelineOptions(columns_file="okta.toml"))


def test_missing_schema_is_reported_with_the_built_in_ones() -> None:
    with pytest.raises(UsageError, match=r"no file `otka\.toml`.*okta\.toml"):
        load_schema("otka.toml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('time = "at"', 'time = "at', r":3: not TOML: "),
        ('time = "at"', "time = " + "9" * 5000, r": not TOML: Exceeds the limit .* 5000 digits\.$"),
        ('time = "at"', "time = " + "[" * 3000 + "]" * 3000, r": values are nested too deeply\.$"),
        ('time = "at"', "", r": `time` is missing\."),
        ('user = "who', 'usr = "who', r":4: there is no key `usr`\. Did you mean `user`\?"),
        ('time = "at"', "time = 5", r":3: `time` must be text in quotes or a list, not a number\."),
        (
            'features = ["what", ',
            'features = [5, "what", ',
            r":6: `features` must be text in quotes",
        ),
        (
            'features = ["what", "who.card", "logcount"]',
            "features = []",
            ":6: `features`: give at least one column",
        ),
        ('["what", ', '["tags[0]", ', r":6: `features`: `tags\[0\]` is inside a column"),
        (
            "$",
            "[columns]\nsize.kind = 'numbr'",
            r":8: `columns.size.kind`: there is no `numbr`\. Did you mean `number`\?",
        ),
        (
            "$",
            "[columns.size]\nkid = 'number'",
            r":8: there is no key `kid`\. Did you mean `kind`\?",
        ),
        (
            "$",
            "[columns]\nx = { derive = 'agnt', of = 'what' }",
            r":8: .*no `agnt`\. Did you mean `agent`\?",
        ),
        (
            "$",
            "[columns]\nx = { derive = 'agent' }",
            r":8: `columns\.x\.of`: give one column",
        ),
        (
            "$",
            "[columns]\nx = { derive = 'agent', of = 'what', path = 'y' }",
            ":8: .*a derived column cannot have a `path`",
        ),
        (
            "$",
            "[columns]\nx = { of = 'what', families = [['(', 'y']] }",
            r":8: .*\( is not a valid regular exp",
        ),
        (
            "$",
            "[columns]\nx = { of = 'what', families = [['a(?=b)', 'y']] }",
            r":8: .*a\(\?=b\) is not a valid regular exp.*look-around",
        ),
        (
            "$",
            "[columns]\ntags.path = 'tags[0]'",
            r":8: `columns\.tags`: it comes from a column `tags`",
        ),
        ("$", "[columns]\nx.path = [{ path = 'y', part = 'town' }]", ":8: .*no `town`"),
        (
            "$",
            "[[actors]]\nname = '{what/(/}'",
            r":7: `actors\.0`: a pattern is not a valid regular expression",
        ),
        ("$", "[[actors]]\nname = 'a'\n[[actors]]\nnme = 'b'", r":10: there is no key `nme`"),
        (
            "$",
            "[columns]\nplace = { join = ['what', 'wat'] }",
            r":8: `columns\.place\.join`: .* `wat`\. Did you mean `what`\? If .* under `fields`",
        ),
        ("$", "[columns]\nplace = { join = ['what'] }", r":8: .*give two columns or more"),
        (
            "$",
            "[columns]\na = { join = ['what', 'number'] }\nb = { join = ['a', 'what'] }",
            r":9: `columns\.b\.join`: its columns cannot be joined columns",
        ),
        (
            "$",
            "[columns]\na = { join = ['what', 'number'], path = 'b' }",
            r":8: .*a joined column has no `path`",
        ),
        (
            "$",
            "[columns]\nkind = { derive = 'verb', of = 'what' }\n[rows.when]\nkind = 'read'",
            r":10: `rows\.when`: there is no column `kind`",
        ),
        (
            "$",
            "[rows.unless]\nwhta = 'x'",
            r":8: `rows\.unless`: there is no column `whta`\. Did you mean `what`\?",
        ),
        (
            "$",
            "[rows.when]\nwhat = '('",
            r":7: `rows`: a pattern is not a valid regular expression",
        ),
        ("$", "[rows]\nwen = {}", r":8: there is no key `wen`\. Did you mean `when`\?"),
        (
            "$",
            "[rename]\nDoor = 'door'\n[columns]\ndoor = 'x'",
            r":8: `rename\.Door`: there is a column `door` already",
        ),
    ],
)
def test_mistake_is_reported_with_its_line_and_fix(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    text = SMALL + new if old == "$" else SMALL.replace(old, new, 1)
    assert text != SMALL
    with pytest.raises(UsageError, match=rf"--columns_file: .*bad\.toml{expected}"):
        load_schema(written(tmp_path / "bad.toml", text))


CHOOSING = """
name = "door"
time = "at"
user = "person"
id = "number"
features = ["place", "action", "logcount"]
context = ["city"]
fields = ["site.floor", "who.name", "who.card"]

[rename]
what = "action"

[columns]
city = "site.city"
person = { join = ["who.name", "who.card"], separator = "/" }
place = { join = ["city", "site.floor"], separator = ", " }

[rows.when]
action = "^(?:in|out)$"

[rows.unless]
city = "^Test"
"""
VISITS = [
    {"at": f"2024-05-31T09:{n:02}:00Z", "number": n, "who": {"name": "ann", "card": "c"}, **rest}
    for n, rest in enumerate(
        [
            {"what": "in", "site": {"city": "Cork", "floor": "2"}},
            {"what": "out", "site": {"city": "Cork"}},
            {"what": "in", "site": {"city": "Testing"}},
            {"what": "heartbeat", "site": {"city": "Cork"}},
            {"what": "in"},
        ]
    )
]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_schema_joins_and_renames_columns_and_chooses_rows(form: str, tmp_path: Path) -> None:
    door = written(tmp_path / "door.toml", CHOOSING)
    # An excluded record need not have a time.
    records = [*VISITS, VISITS[3] | {"at": "never", "number": 9}]
    if form == "json":
        written(tmp_path / "a.json", lines(records))
    else:
        rows = pl.json_normalize(records, separator=".", infer_schema_length=None)
        rows.write_csv(tmp_path / "a.csv")
    defaults = FromFile(input_glob=str(tmp_path / f"a.{form}")).with_defaults(
        PipelineOptions(columns_file=door)
    )
    metrics = RunMetrics()
    [batch] = FromFile(input_glob=str(tmp_path / f"a.{form}"), options=defaults).events(
        None, metrics
    )
    found = batch.table.to_frame()
    assert batch.user == "ann/c"
    assert found["place"].to_list() == ["Cork, 2", "Cork", None]
    assert found["action"].to_list() == ["in", "out", "in"]
    assert found["logcount"].to_list() == [0, 1, 2]
    assert (metrics.input.read, metrics.input.unwanted_rows, metrics.input.accepted) == (6, 3, 3)
    assert EXCLUDED not in found.columns
    assert "3 excluded by the schema" in "\n".join(format_metrics(metrics))


class CaptureEncoder(Preprocess):
    """Keeps the encoder of the last batch."""

    name = "capture-encoder"
    gives = WithModel
    encoder: ClassVar[Any] = None

    def process(self, batch: Any, state: None) -> Any:
        CaptureEncoder.encoder = batch.fingerprint.encoder
        yield batch
