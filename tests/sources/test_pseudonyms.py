"""Pseudonyms: after the source, no name of a user is left anywhere, and results stay comparable."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import pickle
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from msgspec import structs

from morpheus.core.batch import Batch
from morpheus.core.stage import PipelineOptions, Stage
from morpheus.errors import UsageError
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sinks.to_report import ToReport
from morpheus.sources.base import Source
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from morpheus.sources.dataframe import FromFrame
from morpheus.sources.log_format import JoinedColumn, LogFormat
from morpheus.sources.ocsf import OCSF_FORMAT
from morpheus.sources.pseudonyms import (
    PSEUDONYM,
    Pseudonymizer,
    PseudonymKey,
    is_pseudonym,
    list_identity_columns,
)
from morpheus.sources.schema_file import list_builtin_schemas, load_builtin_schema
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from morpheus.suppressions.rules import Suppression, Suppressions

USERS = {"ann.miller": "203.0.113.5", "bob.stone": "198.51.100.7"}
ARN = "arn:aws:iam::111122223333:user/"
START = datetime(2026, 1, 1, tzinfo=UTC)
FEATURES = ("eventName", "userAgent", "sourceIPAddress", "addressnetwork", "new:addressnetwork")
KEY, OTHER_KEY = "k" * 32, "o" * 32


def make_record(number: int, user: str, address: str, minutes: int) -> dict[str, object]:
    """A record that names its user in eight fields."""
    return {
        "eventID": f"{number:08x}-0000-4000-8000-000000000000",
        "eventTime": f"{START + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}",
        "eventName": ("GetObject", "ListUsers", "PutObject")[number % 3],
        "eventSource": "s3.amazonaws.com",
        "sourceIPAddress": address,
        "userAgent": "aws-cli/2.1",
        "errorMessage": f"User: {ARN}{user} is not authorized" if number % 20 == 0 else None,
        "requestParameters": {"userName": user},
        "userIdentity": {
            "type": "IAMUser",
            "userName": user,
            "arn": f"{ARN}{user}",
            "principalId": f"AIDA{user.upper()}",
            "accessKeyId": f"AKIA{user.upper()}",
            "accountId": "111122223333",
        },
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days of two users in `train.json`, two days in `input.json`, and two keys."""
    folder = tmp_path_factory.mktemp("logs")
    rng = random.Random(3)  # noqa: S311 - no secret
    records = [
        make_record(n, user, rng.choice([home, home, home, f"192.0.{n % 99}.1"]), n * 30)
        for n in range(12 * 48)
        for user, home in USERS.items()
    ]
    cut = len(records) * 10 // 12
    for name, part in {"train": records[:cut], "input": records[cut:]}.items():
        (folder / f"{name}.json").write_text(json.dumps({"Records": part}))
    for name, key in {"key": KEY, "other": OTHER_KEY}.items():
        (folder / name).write_text(key + "\n")
        (folder / name).chmod(0o600)
    return folder


def make_options(logs: Path, *columns: str, **others: object) -> PipelineOptions:
    options = PipelineOptions(
        num_threads=1,
        columns=FEATURES,
        userid_column_name="userIdentityarn",
        pseudonymize=columns,
        pseudonym_key_file=str(logs / "key") if columns else None,
    )
    return replace(options, **others)


def read(logs: Path, options: PipelineOptions, source: Source | None = None) -> list[Batch]:
    """The events of the input, as the stage after the source gets them."""
    source = source or FromCloudtrail(input_glob=str(logs / "input.json"))
    sink = CollectSink()
    stages: Sequence[Stage] = [source, TrainAe(), Preprocess(), InfPytorch(), AddScores(), sink]
    Pipeline(stages, options).run()
    return sink.batches


def join(batches: Sequence[Batch]) -> pl.DataFrame:
    frames = [batch.table.to_frame() for batch in batches if batch.table.height]
    return pl.concat(frames, how="diagonal").sort("eventID")


def read_page_data(page: str) -> str:
    """The data in a report page, which is compressed."""
    embedded = re.findall(r"H4sI[A-Za-z0-9+/=]+", page)
    return "".join(gzip.decompress(base64.b64decode(text)).decode() for text in embedded)


def find_names(text: str) -> list[str]:
    """The names of users in a text."""
    return [name for name in USERS if name in text.lower()]


def test_equal_values_have_equal_pseudonyms_under_one_key_only() -> None:
    key, other = PseudonymKey(KEY.encode()), PseudonymKey(OTHER_KEY.encode())
    assert key.pseudonym("ann") == key.pseudonym("ann") != key.pseudonym("bob")
    assert key.pseudonym("ann") != other.pseudonym("ann")
    found = PSEUDONYM.fullmatch(key.pseudonym("ann"))
    assert found is not None
    assert found[1] == key.id != other.id
    assert not is_pseudonym("ann")
    assert not is_pseudonym(None)
    assert KEY not in repr(key)


def test_no_output_state_model_or_message_names_a_user(
    logs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = make_options(
        logs,
        "@identity",
        state=str(tmp_path / "state.db"),
        status_file=str(tmp_path / "status.json"),
    )
    stages: Sequence[Stage] = [
        FromCloudtrail(input_glob=str(logs / "input.json"), all_columns=True),
        TrainAe(
            train_data_glob=str(logs / "train.json"),
            models_output_filename=str(tmp_path / "models"),
        ),
        Preprocess(),
        InfPytorch(),
        AddScores(label=("ae_anomaly_score", "risk")),
        Filter(threshold=-1e9, label=("risk",)),
        Explain(),
        ToOcsf(filename=str(tmp_path / "alerts.jsonl")),
        ToEcs(filename=str(tmp_path / "ecs.jsonl")),
        Serialize(),
        ToReport(filename=str(tmp_path / "page.html")),
        ToParquet(folder=str(tmp_path / "rows")),
        ToFile(filename=str(tmp_path / "rows.csv")),
    ]
    metrics = Pipeline(stages, options).run()

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".csv", ".html", ".parquet", ".pack", ".json", ".db"}
    for path in files:
        text = path.read_bytes().decode(errors="replace")
        if path.suffix == ".parquet":
            text = pl.read_parquet(path).write_csv()
        if path.suffix == ".html":
            text += read_page_data(text)
            assert "GetObject" in text
        assert not find_names(text), path
        assert KEY not in text, path
    assert not find_names(caplog.text)
    assert len(metrics.users) == len(USERS)
    assert all(is_pseudonym(user) for user in metrics.users)


def test_derived_columns_are_computed_from_original_values(logs: Path) -> None:
    features = (*FEATURES, "addresskind", "locincrement")
    plain = join(read(logs, make_options(logs, columns=features)))
    hidden = join(read(logs, make_options(logs, "@identity,sourceIPAddress", columns=features)))
    derived = ["addressnetwork", "new:addressnetwork", "addresskind", "locincrement"]
    assert plain["addressnetwork"].n_unique() > 2
    assert hidden.select(derived).equals(plain.select(derived))
    assert all(map(is_pseudonym, hidden["sourceIPAddress"]))
    assert hidden["sourceIPAddress"].n_unique() == plain["sourceIPAddress"].n_unique()


def test_previous_values_of_a_replaced_column_are_pseudonyms(logs: Path) -> None:
    replaced = ("sourceIPAddress", "addressnetwork")
    features = (*FEATURES, *(f"previous:{name}" for name in replaced))
    hidden = join(read(logs, make_options(logs, ",".join(replaced), columns=features)))
    for name in replaced:
        values = hidden[f"previous:{name}"].drop_nulls()
        assert len(values) > len(hidden) // 2
        assert all(map(is_pseudonym, values))
        assert set(values) <= set(hidden[name])


def test_a_derived_column_can_itself_be_replaced(logs: Path) -> None:
    hidden = join(read(logs, make_options(logs, "addressnetwork")))
    plain = join(read(logs, make_options(logs)))
    assert all(map(is_pseudonym, hidden["addressnetwork"]))
    assert hidden["addressnetwork"].n_unique() == plain["addressnetwork"].n_unique()
    assert hidden["new:addressnetwork"].equals(plain["new:addressnetwork"])
    assert hidden["sourceIPAddress"].equals(plain["sourceIPAddress"])


def test_columns_that_copy_a_column_are_replaced_with_it(logs: Path) -> None:
    okta = load_builtin_schema("okta.toml").log_format
    options = make_options(logs, "client.geographicalContext.city,target")
    made = Pseudonymizer.from_options(options, okta, "actoralternateId")
    assert made is not None
    assert set(made.columns) == {
        *("actoralternateId", "clientgeographicalContextcity", "city"),
        *("target", "targettype", "application"),
    }


def test_a_column_joined_from_a_replaced_one_is_replaced(logs: Path) -> None:
    joined = {"who": JoinedColumn(("userIdentityarn", "awsRegion"))}
    log_format = structs.replace(CLOUDTRAIL_FORMAT, joined_columns=joined)
    made = Pseudonymizer.from_options(
        make_options(logs, "@identity"), log_format, "userIdentityaccountId"
    )
    assert made is not None
    assert "who" in made.columns


def test_the_user_column_is_always_replaced_and_missing_values_stay_missing(logs: Path) -> None:
    features = (*FEATURES, "errorMessage")
    frame = join(read(logs, make_options(logs, "errorMessage", columns=features)))
    assert all(map(is_pseudonym, frame["userIdentityarn"]))
    assert 0 < frame["errorMessage"].null_count() < frame.height


def test_actors_are_named_before_they_are_replaced(logs: Path) -> None:
    options = make_options(logs, "@actor", userid_column_name="@actor")
    key = PseudonymKey(KEY.encode())
    users = {batch.user for batch in read(logs, options)}
    assert users == {key.pseudonym(f"{user}@111122223333") for user in USERS}


@pytest.mark.parametrize("given", ["original", "pseudonym"])
def test_a_user_is_chosen_by_name_or_by_pseudonym(logs: Path, given: str) -> None:
    name = f"{ARN}ann.miller"
    pseudonym = PseudonymKey(KEY.encode()).pseudonym(name)
    chosen = name if given == "original" else pseudonym
    batches = read(logs, make_options(logs, "@identity", userid_filter=chosen))
    assert {batch.user for batch in batches if batch.table.height} == {pseudonym}


def test_a_frame_is_replaced_like_a_file(logs: Path) -> None:
    records = json.loads((logs / "input.json").read_text())["Records"]
    frame = pl.DataFrame(
        {
            "who": [record["userIdentity"]["userName"] for record in records],
            "eventName": [record["eventName"] for record in records],
            "when": [record["eventTime"] for record in records],
            "eventID": [record["eventID"] for record in records],
        }
    )
    options = make_options(logs, "who", columns=("eventName",), userid_column_name="who")
    users = {batch.user for batch in read(logs, options, FromFrame(frame, time="when"))}
    assert users == {PseudonymKey(KEY.encode()).pseudonym(user) for user in USERS}


def test_workers_get_the_path_of_the_key_and_not_the_key(logs: Path) -> None:
    sent = pickle.dumps(make_pseudonymizer(logs))
    assert KEY.encode() not in sent
    received = pickle.loads(sent)  # noqa: S301 - what this process wrote
    pseudonym = PseudonymKey(KEY.encode()).pseudonym("ann")
    assert received.replace(pl.Series("a", ["ann", None])).to_list() == [pseudonym, None]


def make_pseudonymizer(logs: Path) -> Pseudonymizer:
    made = Pseudonymizer.from_options(make_options(logs, "a"), CLOUDTRAIL_FORMAT, "a")
    assert made is not None
    return made


def test_a_key_that_differs_between_machines_is_rejected(logs: Path) -> None:
    moved = structs.replace(make_pseudonymizer(logs), key_file=logs / "other")
    with pytest.raises(UsageError, match="Use the same file on all machines"):
        moved.replace(pl.Series("a", ["ann"]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("userIdentityuserNam", "Did you mean `userIdentityuserName`"),
        ("eventTime", "`eventTime` is the time and cannot be replaced"),
        ("event_dt", "`event_dt` is the time and cannot be replaced"),
        ("eventID", "by which copies are recognised"),
        ("logcount", "computed from many events"),
        ("new:addressnetwork", "computed from many events"),
        ("previous:addressnetwork", "computed from many events"),
    ],
)
def test_a_column_that_cannot_be_replaced_is_rejected(
    logs: Path, columns: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(logs, make_options(logs, columns))


def test_each_of_the_two_options_needs_the_other(logs: Path) -> None:
    with pytest.raises(UsageError, match="--pseudonymize needs a key"):
        read(logs, make_options(logs, "@identity", pseudonym_key_file=None))
    with pytest.raises(UsageError, match="--pseudonym_key_file needs the columns"):
        read(logs, make_options(logs, pseudonym_key_file=str(logs / "key")))


def test_a_missing_or_short_key_is_rejected(logs: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("secret\n")
    for path, message in {short: "has 6 bytes", tmp_path / "none": "cannot be read"}.items():
        with pytest.raises(UsageError, match=message):
            read(logs, make_options(logs, "@identity", pseudonym_key_file=str(path)))


def test_a_key_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "open"
    path.write_text(KEY)
    path.chmod(0o644)
    PseudonymKey.read(path)
    assert "every user of this machine can read" in caplog.text


def test_columns_that_still_identify_users_are_named(
    logs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = (*FEATURES, "userIdentityprincipalId")
    read(logs, make_options(logs, "userIdentityuserName", columns=features))
    assert "stay readable: `userIdentityprincipalId`." in caplog.text
    caplog.clear()
    read(logs, make_options(logs, "@identity", columns=features))
    assert "stay readable" not in caplog.text


def test_suppressions_of_named_users_are_warned_of_without_their_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = datetime(2100, 1, 1, tzinfo=UTC)
    where = {"eventName": ("GetObject",)}
    key = PseudonymKey(KEY.encode())
    rules = [Suppression(where, (name,), end, "asked") for name in ("ann", key.pseudonym("ann"))]
    stage = Filter(rules=Suppressions(tuple(rules)))
    stage.validate()
    assert caplog.text == ""
    replace(stage, options=PipelineOptions(pseudonymize=("@identity",))).validate()
    assert "1 of 2 suppressions match no event" in caplog.text
    assert "ann" not in caplog.messages[0]


def test_the_same_column_under_another_name_is_replaced_too(logs: Path) -> None:
    frame = pl.DataFrame({"userPrincipalName": ["a@b.c"], "UserPrincipalName": ["a@b.c"]})
    azure = load_builtin_schema("azure.toml").log_format
    options = make_options(logs, "@identity")
    made = Pseudonymizer.from_options(options, azure, "userPrincipalName")
    assert made is not None
    times = pl.Series("event_dt", [START])
    assert all(map(is_pseudonym, made.apply(frame.with_columns(times)).row(0)[:2]))


def test_columns_with_values_of_replaced_columns_are_named(
    logs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = json.loads((logs / "input.json").read_text())["Records"]
    for record in records:
        record["owner"] = record["userIdentity"]["userName"]
    (tmp_path / "owners.json").write_text(json.dumps({"Records": records}))
    source = FromCloudtrail(input_glob=str(tmp_path / "owners.json"), all_columns=True)
    read(logs, make_options(logs, "@identity"), source)
    assert "stay readable: `owner`." in caplog.text
    assert not find_names(caplog.text)


@pytest.mark.parametrize(
    ("option", "warned"), [({"skip_user": (f"{ARN}ann.miller",)}, 0), ({"skip_user": ("eve",)}, 1)]
)
def test_a_user_who_is_left_out_is_looked_up_by_pseudonym(
    logs: Path, caplog: pytest.LogCaptureFixture, option: dict[str, object], warned: int
) -> None:
    batches = read(logs, make_options(logs, "@identity", **option))
    users = {batch.user for batch in batches if batch.table.height}
    assert len(users) == len(USERS) - 1 + warned
    assert caplog.text.count("--skip_user: no event") == warned
    assert "Did you mean" not in caplog.text


def test_a_source_that_cannot_replace_values_is_rejected(logs: Path) -> None:
    class FromElsewhere(Source):
        name = "from-elsewhere"

    with pytest.raises(UsageError, match="`from-elsewhere` cannot replace values"):
        Pipeline([FromElsewhere()], make_options(logs, "@identity")).validate()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pseudonym_key_file": "other"}, "--pseudonym_key_file"),
        ({"pseudonymize": ("@identity,sourceIPAddress",)}, "--pseudonymize"),
        ({"pseudonymize": (), "pseudonym_key_file": None}, "--pseudonym"),
    ],
)
def test_a_state_file_does_not_mix_pseudonyms(
    logs: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    options = make_options(logs, "@identity", state=str(tmp_path / "state.db"))
    read(logs, options)
    if isinstance(changed.get("pseudonym_key_file"), str):
        changed = {**changed, "pseudonym_key_file": str(logs / "other")}
    with pytest.raises(UsageError, match=f"was written with another {message}"):
        read(logs, replace(options, **changed))


@pytest.mark.parametrize("given", ["another key", "other columns", "no pseudonyms"])
def test_fingerprints_reject_events_with_other_pseudonyms(
    logs: Path, tmp_path: Path, given: str
) -> None:
    def make_stages(trainer: TrainAe) -> list[Stage]:
        source = FromCloudtrail(input_glob=str(logs / "input.json"))
        return [source, trainer, Preprocess(), InfPytorch(), AddScores(), CollectSink()]

    options = make_options(logs, "@identity")
    store = str(tmp_path / "models")
    learn = TrainAe(train_data_glob=str(logs / "train.json"), models_output_filename=store)
    Pipeline(make_stages(learn), options).run()
    load = TrainAe(pretrained_filename=store)
    metrics = Pipeline(make_stages(load), options).run()
    assert metrics.scored == metrics.input.read
    changed = {
        "another key": replace(options, pseudonym_key_file=str(logs / "other")),
        "other columns": replace(options, pseudonymize=("@identity,sourceIPAddress",)),
        "no pseudonyms": make_options(logs),
    }[given]
    with pytest.raises(UsageError, match="pseudonyms"):
        Pipeline(make_stages(load), changed).run()


FORMATS = {
    "cloudtrail": CLOUDTRAIL_FORMAT,
    "ocsf": OCSF_FORMAT,
    **{name: load_builtin_schema(name).log_format for name in list_builtin_schemas()},
}


@pytest.mark.parametrize("log_format", FORMATS.values(), ids=FORMATS)
def test_every_log_format_names_the_columns_that_identify_users(log_format: LogFormat) -> None:
    assert log_format.identity_columns
    assert set(log_format.identity_columns) <= set(log_format.columns)
    if log_format is not CLOUDTRAIL_FORMAT:  # its user column is an account
        assert log_format.user_column in log_format.identity_columns


def test_a_log_format_without_a_list_takes_the_columns_of_its_actors() -> None:
    log_format = structs.replace(CLOUDTRAIL_FORMAT, identity_columns=())
    assert {"userIdentityarn", "userIdentityuserName"} <= set(list_identity_columns(log_format))
