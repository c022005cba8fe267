"""Data frames: what comes in, how its values are read, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus import Fingerprints
from morpheus.cli.main import morpheus as command
from morpheus.columns import SCORE
from morpheus.errors import UsageError
from morpheus.sources.dataframe import as_polars, recognise_frame, return_like
from morpheus.sources.tabular import cell_to_text, to_text_columns, unnest_objects
from people import COLUMNS, day, times


def people(events: int = 400) -> pl.DataFrame:
    """Alternating events of Ann and Bob."""
    users = [
        day(events, seed=seed).with_columns(who=pl.lit(who), at=times(events))
        for seed, who in enumerate(["ann", "bob"])
    ]
    return pl.concat(users).sort("at", maintain_order=True)


def to_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(frame.to_dict(as_series=False))


def train(frame: Any = None, **options: Any) -> Fingerprints:
    frame = people() if frame is None else frame
    return Fingerprints.train(
        frame, **{"user": "who", "time": "at", "columns": COLUMNS, "epochs": 2, **options}
    )


@pytest.fixture(scope="module")
def trained() -> Fingerprints:
    return train()


class Stream:
    """A frame of a library that only has Arrow's interface."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.frame.__arrow_c_stream__(requested_schema)


# What comes out.


def test_pandas_gives_pandas_with_its_index(trained: Fingerprints) -> None:
    frame = to_pandas(people()).set_index(pd.Index([f"e{n}" for n in range(800)], name="event"))
    shuffled = frame.sample(frac=1, random_state=3)
    for results in (trained.score(shuffled), trained.explain(shuffled)):
        assert isinstance(results, pd.DataFrame)
        assert results.index.equals(shuffled.index)
    expected = trained.score(people())[SCORE].to_list()
    assert trained.score(shuffled).loc[frame.index, SCORE].tolist() == expected
    joined = frame.join(trained.score(frame))
    assert joined[SCORE].tolist() == expected


def test_polars_gives_polars_and_so_does_any_other_library(trained: Fingerprints) -> None:
    frame = people()
    for given_frame in (frame, Stream(frame)):
        assert type(trained.score(given_frame)) is pl.DataFrame
        assert type(trained.explain(given_frame)) is pl.DataFrame


def test_pyarrow_gives_pyarrow(trained: Fingerprints) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    frame = people()
    scores = trained.score(frame.to_arrow())
    assert isinstance(scores, pa.Table)
    assert pl.DataFrame(scores).equals(trained.score(frame))


def test_all_types_of_results_survive_the_way_to_pandas_and_back() -> None:
    result = pl.DataFrame(
        {
            "text": ["a", None],
            "whole": [1, None],
            "full": [1, 2],
            "number": [0.5, None],
            "flag": [True, None],
            "yes": [True, False],
            "at": [datetime(2026, 1, 1, tzinfo=UTC), None],
            "naive": [datetime(2026, 1, 1), None],  # noqa: DTZ001 - on purpose
            "names": [["a", "b"], []],
            "why": [{"column": "a", "values": [1.5]}, None],
        }
    )
    pandas = return_like(pd.DataFrame({"x": [1, 2]}, index=[7, 9]), result, pl.Series([1, 0]))
    assert pandas.index.tolist() == [9, 7]
    assert as_polars(pandas).drop("names", "why").equals(result.drop("names", "why"))
    assert pandas["why"].tolist()[0] == {"column": "a", "values": [1.5]}
    assert pandas["names"].tolist() == [["a", "b"], []]


# How values are read.


PANDAS_COLUMNS = {
    "category": pd.Categorical(["x", None, "y", "x"]),
    "category of numbers": pd.Categorical([1, None, 2, 1]),
    "whole with a gap": pd.array([1, None, 2, 1], dtype="Int64"),
    "text of pandas": pd.array(["x", None, "y", " "], dtype="string"),
    "flag with a gap": pd.array([True, None, False, True], dtype="boolean"),
    "number with a gap": [1.0, float("nan"), 2.0, 1.0],
    "halves": [1.5, 2.0, float("nan"), 0.25],
    "mixed": pd.Series(["x", 1, None, 2.0], dtype=object),
    "flags in objects": pd.Series([True, float("nan"), False, True], dtype=object),
    "time": pd.to_datetime(["2026-01-01T10:00:00", None, "2026-01-02T10:00:01", None]),
    "time in Tokyo": pd.to_datetime(
        ["2026-01-01T10:00:00", None, "2026-01-02T10:00:00", None]
    ).tz_localize("Asia/Tokyo"),
    "duration": pd.to_timedelta(["1h", None, "2s", None]),
    "bytes": pd.Series([b"x", None, b"\xff", b"x"], dtype=object),
    "exact": pd.Series([Decimal("1.10"), None, Decimal(2), Decimal(0)], dtype=object),
    "days": pd.Series([date(2026, 1, 1), None, pd.NaT, date(2026, 1, 2)], dtype=object),
    "lists": pd.Series([[1, "a"], None, [], (2,)], dtype=object),
    "huge": pd.Series([2**80, None, 1, 2], dtype=object),
    "nothing": pd.Series([None, float("nan"), pd.NA, pd.NaT], dtype=object),
    "lone surrogate": pd.Series(["\ud800", None, "x", "x"], dtype=object),
}
TEXTS = {
    "category": ["x", None, "y", "x"],
    "category of numbers": ["1", None, "2", "1"],
    "whole with a gap": ["1", None, "2", "1"],
    "text of pandas": ["x", None, "y", " "],
    "flag with a gap": ["True", None, "False", "True"],
    "number with a gap": ["1", None, "2", "1"],
    "halves": ["1.5", "2", None, "0.25"],
    "mixed": ["x", "1", None, "2"],
    "flags in objects": ["True", None, "False", "True"],
    "time": ["2026-01-01T10:00:00Z", None, "2026-01-02T10:00:01Z", None],
    "time in Tokyo": ["2026-01-01T01:00:00Z", None, "2026-01-02T01:00:00Z", None],
    "duration": ["PT1H", None, "PT2S", None],
    "bytes": ["x", None, '"/w=="', "x"],
    "exact": ["1.10", None, "2", "0"],
    "days": ["2026-01-01", None, None, "2026-01-02"],
    "lists": ['[1,"a"]', None, "[]", "[2]"],
    "huge": [str(2**80), None, "1", "2"],
    "nothing": [None] * 4,
    "lone surrogate": ["\ufffd", None, "x", "x"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_column_of_pandas_has_the_texts_of_a_log(name: str) -> None:
    frame = pd.DataFrame({name: PANDAS_COLUMNS[name]})
    [texts] = to_text_columns(as_polars(frame))
    assert texts.to_list() == TEXTS[name]


def test_a_column_of_polars_of_any_type_has_the_texts_of_a_log() -> None:
    columns: dict[str, tuple[pl.Series, str]] = {
        "category": (pl.Series(["x", None], dtype=pl.Categorical), "x"),
        "enum": (pl.Series(["x", None], dtype=pl.Enum(["x"])), "x"),
        "exact": (pl.Series(["1.10", None]).cast(pl.Decimal(10, 2)), "1.10"),
        "duration": (pl.Series([3_600_000_000, None]).cast(pl.Duration("us")), "PT1H"),
        "clock": (pl.Series([1_000_000_000, None]).cast(pl.Time), "00:00:01"),
        "bytes": (pl.Series([b"x", None]), "x"),
        "list": (pl.Series([[1], None]), "[1]"),
        "array": (pl.Series([[1, 2], None], dtype=pl.Array(pl.Int64, 2)), "[1,2]"),
        "objects": (pl.Series([[{"b": 1, "a": "x"}], None]), '[{"a":"x","b":1}]'),
        "float": (pl.Series([1.5, None], dtype=pl.Float32), "1.5"),
        "large": (pl.Series([2**63, None], dtype=pl.UInt64), str(2**63)),
        "day": (pl.Series([date(2026, 1, 1), None]), "2026-01-01"),
    }
    for name, (column, text) in columns.items():
        [found] = to_text_columns(column.alias(name).to_frame())
        assert found.to_list() == [text, None], name


def test_columns_of_pandas_that_arrow_holds_have_the_texts_of_a_log() -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    inner = pa.struct([("a", pa.int64())])
    columns: dict[str, tuple[list[object], object, list[str | None]]] = {
        "text": (["x", None], pa.string(), ["x", None]),
        "whole": ([1, None], pa.int64(), ["1", None]),
        "number": ([200.0, None], pa.float64(), ["200", None]),
        "flag": ([True, None], pa.bool_(), ["True", None]),
        "day": ([date(2026, 1, 1), None], pa.date32(), ["2026-01-01", None]),
        "exact": ([Decimal("1.10"), None], pa.decimal128(5, 2), ["1.10", None]),
        "list": ([[1], None], pa.list_(pa.int64()), ["[1]", None]),
        "object": ([{"a": 1}, None], inner, ["1", None]),
        "time": (
            [datetime(2026, 1, 1, tzinfo=UTC), None],
            pa.timestamp("us", "Asia/Tokyo"),
            ["2026-01-01T00:00:00Z", None],
        ),
    }
    for name, (cells, kind, texts) in columns.items():
        frame = pd.DataFrame({name: pd.array(cells, dtype=pd.ArrowDtype(kind))})
        [found] = to_text_columns(as_polars(frame))
        assert found.to_list() == texts, name


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.integers(-(2**53) + 1, 2**53 - 1),
            st.floats(allow_infinity=False),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.booleans(),
        )
    )
)
def test_a_cell_has_one_text_whatever_its_column_holds_else(cells: list[object]) -> None:
    """So that a row has the same values alone and among others."""
    frame = pd.DataFrame({"a": pd.Series(cells, dtype=object)})
    [texts] = to_text_columns(as_polars(frame))
    assert texts.to_list() == [cell_to_text(cell) for cell in cells]


def test_a_whole_number_is_the_same_value_with_and_without_gaps_in_its_column() -> None:
    frame = to_pandas(people()).assign(code=[200, 404] * 400)
    gaps = frame.copy()
    gaps.loc[5, "code"] = None
    assert gaps["code"].dtype == float
    models = train(frame, columns=[*COLUMNS, "code"])
    whole, floats = (models.score(each.drop(index=5))[SCORE] for each in (frame, gaps))
    assert floats.equals(whole)
    as_text = frame.assign(code=frame["code"].astype(str))
    assert models.score(as_text)[SCORE].equals(models.score(frame)[SCORE])


@pytest.mark.parametrize("kind", ["category", "string", "object"])
def test_any_kind_of_text_gets_the_same_scores(trained: Fingerprints, kind: str) -> None:
    frame = to_pandas(people())
    typed = frame.astype(dict.fromkeys([*COLUMNS, "who"], kind))
    assert trained.score(typed).equals(trained.score(frame))


def test_times_of_pandas_with_a_zone_without_one_and_as_text_are_the_same(
    trained: Fingerprints,
) -> None:
    frame = to_pandas(people())
    expected = trained.score(frame)
    naive = frame.assign(at=frame["at"].dt.tz_localize(None))
    text = frame.assign(at=frame["at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    tokyo = frame.assign(at=frame["at"].dt.tz_convert("Asia/Tokyo"))
    nanoseconds = frame.assign(at=naive["at"].astype("datetime64[ns]"))
    objects = frame.assign(at=frame["at"].astype(object))
    for other in (naive, text, tokyo, nanoseconds, objects):
        assert trained.score(other).equals(expected)


# Objects inside cells.


def make_records(count: int = 500) -> list[dict[str, Any]]:
    """CloudTrail records of one role, as AWS writes them."""
    rng = np.random.default_rng(0)
    records = []
    for n in range(count):
        name = ["ListBuckets", "RunInstances", "GetObject"][rng.integers(3)]
        request: dict[str, Any] | None = {"bucketName": f"b{n % 3}", "maxResults": n % 2}
        if name == "RunInstances":
            request = {"instanceType": "t3.micro", "monitoring": {"enabled": bool(n % 2)}}
            request["ownersSet"] = {"items": [{"owner": "self"}, {"owner": "amazon"}]}
        records.append(
            {
                "eventID": f"00000000-0000-4000-8000-{n:012}",
                "eventTime": f"2026-03-{1 + n // 48:02}T{n // 2 % 24:02}:{n % 60:02}:00Z",
                "eventSource": "s3.amazonaws.com",
                "eventName": name,
                "userAgent": "aws-cli/2.15",
                "sourceIPAddress": f"192.0.2.{n % 4}",
                "userIdentity": {
                    "type": "AssumedRole",
                    "arn": "arn:aws:sts::123456789012:assumed-role/ops/ann",
                    "accountId": "123456789012",
                    "sessionContext": {"sessionIssuer": {"userName": "ops"}},
                },
                "requestParameters": None if n % 7 == 0 else request,
                "resources": [{"ARN": f"arn:{n % 2}", "type": "AWS::S3::Object"}],
                "readOnly": bool(n % 2),
            }
        )
    return records


WAYS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "pandas with dictionaries": pd.DataFrame,
    "pandas.json_normalize": pd.json_normalize,
    "polars with structs": lambda records: pl.DataFrame(records, infer_schema_length=None),
    "polars.json_normalize": lambda records: pl.json_normalize(records, infer_schema_length=None),
    "polars.read_ndjson": lambda records: pl.read_ndjson(
        b"\n".join(json.dumps(record).encode() for record in records), infer_schema_length=None
    ),
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What the command line writes for the records."""
    folder = tmp_path_factory.mktemp("records")
    log = folder / "log.json"
    log.write_text(json.dumps({"Records": make_records()}))
    chain = ["run", "pipeline-ae", "--userid_column_name=@actor", "from-cloudtrail"]
    chain += [f"--input_glob={log}", "train-ae", "--train_epochs=2", "preprocess", "inf-pytorch"]
    chain += ["add-scores", f"--label={SCORE}", "--label=risk", "serialize", "to-file"]
    command([*chain, f"--filename={folder}/rows.parquet"], standalone_mode=False)
    return pl.read_parquet(folder / "rows.parquet").sort("eventID")


@pytest.mark.parametrize("way", WAYS)
def test_nested_records_in_a_frame_get_the_scores_of_the_command_line(
    way: str, output: pl.DataFrame
) -> None:
    frame = WAYS[way](make_records())
    fingerprints = Fingerprints.train(frame, epochs=2)
    scores = as_polars(fingerprints.score(frame))
    assert fingerprints.users == ["ops@123456789012"]
    assert scores.select(SCORE, "risk").equals(output.select(SCORE, "risk"))


def test_objects_in_a_log_of_unknown_kind_become_columns() -> None:
    cells = [{"a": n % 2, "b": {"c": [n % 2], "d": None}} if n % 5 else None for n in range(400)]
    frame = to_pandas(people(200)).assign(request=cells)
    fingerprints = train(frame, columns=None)
    assert fingerprints.columns == (*COLUMNS, "request.a", "request.b.c", "request.b.d")
    struct = people(200).with_columns(pl.Series("request", cells))
    assert as_polars(fingerprints.score(frame)).equals(fingerprints.score(struct))
    one = train(frame, columns=["action", "request.a"])
    assert one.columns == ("action", "request.a")


def test_objects_with_too_many_fields_are_refused_with_what_to_do() -> None:
    frame = to_pandas(people(600)).assign(tags=[{f"key{n}": 1} for n in range(1200)])
    with pytest.raises(UsageError, match=r"objects in `tags` have 1,200 different fields, more"):
        train(frame, columns=None)


def test_a_nested_dictionary_of_any_depth_is_read() -> None:
    cell: Any = 1
    for _ in range(5000):
        cell = {"a": cell}
    frame = pl.DataFrame([pl.Series("x", [cell], dtype=pl.Object)])
    [column] = unnest_objects(frame)
    assert column.to_list() == ["1"]


# What is refused.


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        ([1], "list"),
        ({"a": [1]}, "dict"),
        (None, "NoneType"),
        (people()["who"], "Series"),
        (to_pandas(people())["who"], "Series"),
        (people().lazy(), "LazyFrame"),
    ],
    ids=["list", "dict", "None", "polars.Series", "pandas.Series", "LazyFrame"],
)
def test_what_is_no_frame_is_refused(trained: Fingerprints, frame: Any, found: str) -> None:
    hint = r"Call its method `collect\(\)` first" if found == "LazyFrame" else "Create one with"
    message = rf"Polars, pandas or Arrow is required, not {found}. {hint}"
    with pytest.raises(UsageError, match=message):
        trained.score(frame)


def test_columns_of_one_name_are_refused(trained: Fingerprints) -> None:
    frame = to_pandas(people())
    frame.columns = ["action", "address", "agent", "agent", "who", "at"]
    with pytest.raises(UsageError, match=r"the frame has 2 columns `agent`. Give each column"):
        trained.score(frame)


def test_parts_of_a_multi_index_are_one_name() -> None:
    frame = to_pandas(people())
    frame.columns = pd.MultiIndex.from_tuples([("log", name) for name in frame.columns])
    models = train(frame, user="log.who", time="log.at", columns=["log.action", "log.agent"])
    assert models.users == ["ann", "bob"]


def test_a_frame_of_an_unknown_log_needs_user_and_time() -> None:
    with pytest.raises(UsageError, match=r"not recognised by its columns \(`action`, .*Give the"):
        Fingerprints.train(people(), columns=COLUMNS)
    with pytest.raises(UsageError, match=r"not recognised by its columns \(none\)"):
        Fingerprints.train(pl.DataFrame())


def test_a_table_whose_columns_have_common_names_is_no_known_log() -> None:
    frame = people().rename({"who": "user", "at": "time"})
    assert recognise_frame(frame.select("time", "user", "action")) is None
    assert recognise_frame(frame.with_columns(result=pl.col("agent"))) is None
    models = train(frame, user="user", time="time", columns=None)
    assert models.users == ["ann", "bob"]
    assert models.columns == tuple(COLUMNS)


def test_columns_of_a_known_log_can_be_named_by_their_headers() -> None:
    frame = people().rename({"who": "User", "at": "Timestamp"})
    frame = frame.with_columns(Result=pl.col("action"), Reason=pl.col("agent"))
    assert getattr(recognise_frame(frame), "name", "") == "duo"
    expected = train(frame, user="username", time="isotimestamp", columns=["result", "reason"])
    models = train(frame, user="User", time="Timestamp", columns=["Result", "Reason"])
    assert models.users == ["ann", "bob"]
    assert models.score(frame).equals(expected.score(frame))


def test_features_are_a_list_and_there_is_at_least_one() -> None:
    with pytest.raises(UsageError, match=r"columns: give a list of names, .*\['action'\]"):
        train(columns="action")
    frame = people().select("who", "at")
    with pytest.raises(UsageError, match="no columns besides the user and the time"):
        train(frame, columns=None)
    with pytest.raises(UsageError, match=r"user: .* no column `wo`. Did you mean `who`"):
        train(frame, user="wo", columns=None)
    assert train(frame, columns=["hourofweek"]).users == ["ann", "bob"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"epochs": 0}, "--train_epochs: 0 is not at least 1"), ({"threads": 0}, "--num_threads: 0")],
)
def test_an_option_of_python_has_the_limits_of_the_command_line(
    argument: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(**argument)


@pytest.mark.parametrize("kind", [pl.DataFrame, to_pandas], ids=["polars", "pandas"])
def test_an_empty_frame_has_no_history_and_gets_empty_results(
    trained: Fingerprints, kind: Callable[[pl.DataFrame], Any]
) -> None:
    empty = kind(people().clear())
    with pytest.raises(UsageError, match="no user could be trained: the frame has no event of"):
        train(empty)
    assert list(trained.score(empty).columns) == [SCORE, "risk", "pvalue", "rung", "own_share"]
    assert len(trained.score(empty)) == 0


def test_names_that_do_not_exist_are_answered_with_similar_ones(trained: Fingerprints) -> None:
    frame = people()
    with pytest.raises(UsageError, match=r"columns: .* no column `actoin`. Did you mean `action`"):
        train(frame, columns=["actoin"])
    with pytest.raises(UsageError, match=r"user: .* no column `wo`. Did you mean `who`"):
        train(frame, user="wo")
    with pytest.raises(UsageError, match=r"time: .* no column `ta`. Did you mean `at`|Its columns"):
        train(frame, time="ta")
    with pytest.raises(UsageError, match=r"missing_features: .* `fial`. Did you mean `fail`"):
        trained.score(frame, missing_features="fial")
    with pytest.raises(UsageError, match=r"scaler: .* `standrd`. Did you mean `standard`"):
        train(frame, scaler="standrd")
    with pytest.raises(UsageError, match=r"timezone: .*Europe/Berln"):
        train(frame, timezone="Europe/Berln")
    with pytest.raises(KeyError, match=r"no fingerprint of `anne`. Did you mean `ann`"):
        trained["anne"]


def test_a_name_with_dots_is_found_in_a_known_log() -> None:
    frame = pd.json_normalize(make_records())
    fingerprints = Fingerprints.train(
        frame, user="userIdentity.sessionContext.sessionIssuer.userName", epochs=1
    )
    assert fingerprints.users == ["ops"]
    message = r"user: .* no column `userIdentityarm`. Did you mean `userIdentityarn`"
    with pytest.raises(UsageError, match=message):
        Fingerprints.train(frame, user="userIdentity.arm")


def test_the_features_of_a_known_log_are_those_of_the_command_line(tmp_path: Path) -> None:
    frame = pd.json_normalize(make_records())
    frame["extra"] = range(len(frame))
    fingerprints = Fingerprints.train(frame, epochs=1)
    log = tmp_path / "log.json"
    log.write_text(json.dumps({"Records": make_records()}))
    chain = ["run", "pipeline-ae", "--userid_column_name=@actor", "from-cloudtrail"]
    chain += [f"--input_glob={log}", "train-ae", "--train_epochs=1"]
    chain += [f"--models_output_filename={tmp_path}/models"]
    command(chain, standalone_mode=False)
    loaded = Fingerprints.load(tmp_path / "models")
    assert fingerprints.columns == loaded.columns
    assert (loaded.user, loaded.time) == ("@actor", "eventTime")
    assert loaded.score(frame).equals(fingerprints.score(frame))
