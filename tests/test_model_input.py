"""Fingerprints fit the log that they were trained on: what differs is refused, with what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from morpheus import Fingerprints
from morpheus.cli.main import morpheus as command
from morpheus.errors import ModelCorruptedError, UsageError
from morpheus.models.profile import FeatureSpec, InputSpec
from morpheus.models.store import (
    KEY_VARIABLE,
    ModelIndex,
    ModelStore,
    commit_index,
    put_model,
    read_key,
)
from morpheus.models.versions import open_models
from morpheus.stages.train_ae import ModelProvider, TrainAe
from people import day, fingerprint, times

HABITS = {"ann": ["GetObject", "ListObjects"], "bob": ["RunJob", "PushImage"], "cyd": ["GetJob"]}
FEATURES = ["eventName", "sourceIPAddress", "userAgent"]
START = datetime(2026, 1, 5, tzinfo=UTC)


def events(user: str, count: int, start: datetime = START, **changes: str | None) -> list[dict]:
    rng = np.random.default_rng(len(user) + count)
    return [
        {
            "eventID": str(uuid5(NAMESPACE_URL, f"{user} {start} {n}")),
            "eventTime": (start + timedelta(minutes=5 * n)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "eventSource": "s3.amazonaws.com",
            "eventName": str(rng.choice(HABITS.get(user, ["GetObject"]))),
            "sourceIPAddress": f"10.0.0.{len(user)}",
            "userAgent": f"tool of {user}",
            "userIdentity": {"userName": user, "arn": f"arn:{user}", "type": "IAMUser"},
            **changes,
        }
        for n in range(count)
    ]


def write(name: str, *parts: list[dict]) -> None:
    rows = [row for part in parts for row in part]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with histories of three users, and a few newer events."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    write("history.json", *(events(user, 60) for user in HABITS))
    write("now.json", *(events(user, 20, START + timedelta(days=7)) for user in HABITS))
    Path("columns.txt").write_text("\n".join(FEATURES))
    return tmp_path


@dataclass(frozen=True)
class Done:
    """What a command has returned and shown."""

    exit_code: int
    output: str


def list_words(  # noqa: PLR0913 - the parts of a command line
    *train: str,
    user: str = "userIdentityuserName",
    columns: str | None = "columns.txt",
    source: tuple[str, ...] = ("from-cloudtrail", "--input_glob=now.json"),
    options: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    middle: tuple[str, ...] = (),
    threads: str = "1",
) -> list[str]:
    listed = () if columns is None else (f"--columns_file={columns}",)
    return [
        *(*before, "run", f"--num_threads={threads}"),
        *("pipeline-ae", f"--userid_column_name={user}", *listed, *options, *source, *middle),
        *("train-ae", "--train_min_history=40", "--train_epochs=2", *train),
        *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "--label=rung"),
        *("serialize", "to-file", "--filename=out.csv", "--overwrite"),
    ]


def run(*train: str, before: tuple[str, ...] = (), **changes: Any) -> Done:
    line = list_words(*train, before=before, **changes)
    if not before:
        result = CliRunner().invoke(command, line)
        return Done(result.exit_code, result.output)
    # A plugin stays registered in its process.
    words = [sys.executable, "-m", "morpheus", *line]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout + done.stderr)


def train(*more: str, **changes: Any) -> Done:
    result = run(*TRAIN, *more, **changes)
    assert result.exit_code == 0, result.output
    return result


TRAIN = ("--train_data_glob=history.json", "--models_output_filename=models")


def refused(result: Done, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for part in parts:
        assert re.search(part, result.output), result.output


LOAD = "--pretrained_filename=models"


# What differs is refused.


def test_models_that_name_users_by_another_column_are_refused() -> None:
    train()
    Path("out.csv").unlink()
    refused(
        run(LOAD, user="userIdentityarn"),
        "the models in `models` do not fit this run",
        "They name users by `userIdentityuserName`, not by `userIdentityarn`",
        "give `--userid_column_name=userIdentityuserName`",
    )
    assert not Path("out.csv").exists()


def test_the_actor_is_given_back_as_the_option_that_a_person_types() -> None:
    train(user="@actor")
    refused(run(LOAD), "give `--userid_column_name=@actor`")
    assert run(LOAD, user="@actor").exit_code == 0


def test_models_of_another_feature_list_are_refused() -> None:
    train()
    Path("fewer.txt").write_text("eventName\nawsRegion\n")
    refused(
        run(LOAD, columns="fewer.txt"),
        "They were trained on 3 feature columns of `columns.txt`",
        "this run does not read 2 of them: `sourceIPAddress`, `userAgent`",
        "this run reads 1 others: `awsRegion`",
        "give `--columns_file=columns.txt`",
    )
    refused(run(LOAD, columns=None), "give `--columns_file=columns.txt`")


def test_a_feature_list_in_another_order_is_the_same_list() -> None:
    train()
    Path("turned.txt").write_text("\n".join(reversed(FEATURES)))
    assert run(LOAD, columns="turned.txt").exit_code == 0


def test_models_of_another_log_format_are_refused() -> None:
    train()
    names = ("--timestamp_column_name=eventTime",)
    source = ("from-file", "--input_glob=now.json")
    refused(
        run(LOAD, source=source, options=names),
        "They were trained on CloudTrail events of `from-cloudtrail`, not on log events",
        "start with `from-cloudtrail`",
    )


def test_models_of_another_time_zone_are_refused_if_a_feature_depends_on_it() -> None:
    Path("columns.txt").write_text("eventName\nhourkind\n")
    train()
    refused(
        run(LOAD, options=("--timezone=Europe/Berlin",)),
        "Their derived columns have the time zone `UTC`, not `Europe/Berlin`",
        "give `--timezone=UTC`",
    )


def spec(**changes: Any) -> InputSpec:
    columns = tuple(map(FeatureSpec, FEATURES))
    return msgspec.structs.replace(
        InputSpec("Okta", "actor", columns, source="from-file"), **changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": (FeatureSpec("eventName", "number"), *map(FeatureSpec, FEATURES[1:]))},
            "type",
        ),
        ({"pseudonyms": ("actor",)}, "--pseudonymize"),
        ({"pseudonym_key_id": "ab12"}, "--pseudonym_key_file"),
    ],
)
def test_other_kinds_of_columns_and_other_pseudonyms_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    difference, *_ = spec().find_differences(spec(**changes))
    assert message in difference
    assert spec().find_differences(spec(columns_file="other.txt", source="x")) == []


def test_the_version_of_derived_columns_counts_only_if_there_are_any() -> None:
    assert spec().find_differences(spec(derived_version=7, timezone="Asia/Tokyo")) == []
    derived = spec(features=(FeatureSpec("hourkind", "derived"),))
    newer = msgspec.structs.replace(derived, derived_version=7)
    assert "Another version of morpheus" in derived.find_differences(newer)[0]


def test_an_index_of_an_older_version_says_what_to_do() -> None:
    commit_index("models", ModelIndex.from_cards({"ann": put_model("models", fingerprint())}))
    index = Path("models/index.json")
    index.write_bytes(index.read_bytes().replace(b'"version":5', b'"version":4'))
    result = run(LOAD)
    assert result.exit_code == 1
    assert "an older version of morpheus wrote it (format 4" in result.output
    assert "Train again into a new folder" in result.output
    refused(
        run(*TRAIN),
        "give another folder or remove this one",
    )


# Features without a value.


def test_an_input_that_lacks_a_feature_of_the_models_fails_the_run() -> None:
    train()
    Path("out.csv").unlink()
    now = [events(user, 20, START + timedelta(days=7), userAgent=None) for user in HABITS]
    write("now.json", *now)
    refused(
        run(LOAD),
        "no event of the input has a value in `userAgent`, but nearly all training events",
        "`--missing_features=warn` continues",
    )
    assert not Path("out.csv").exists()
    warned = run(LOAD, options=("--missing_features=warn",))
    assert warned.exit_code == 0
    assert "no event of the input has a value in `userAgent`" in warned.output


@pytest.mark.parametrize("lacking", ["now.json", "history.json"])
def test_training_and_input_must_have_the_same_features(lacking: str) -> None:
    for name, count, start in (("history.json", 60, START), ("now.json", 20, START)):
        agent = {"userAgent": None} if name == lacking else {}
        write(name, *(events(user, count, start, **agent) for user in HABITS))
    what = "no event of the input has" if lacking == "now.json" else "no training event had"
    refused(run("--train_data_glob=history.json"), f"{what} a value in `userAgent`")


def test_a_feature_that_the_users_of_the_input_never_had_is_no_error() -> None:
    quiet = events("cyd", 60, userAgent=None)
    write("history.json", events("ann", 60), events("bob", 60), quiet)
    write("now.json", events("cyd", 20, START + timedelta(days=7), userAgent=None))
    train()
    for result in (run(LOAD), run("--train_data_glob=history.json")):
        assert result.exit_code == 0, result.output
        line = "^  empty +no event of the input has a value in 1 of 3 features: `userAgent`$"
        assert re.search(line, result.output, re.MULTILINE)
        assert "--columns_file: no" not in result.output


def test_a_count_of_a_column_that_is_always_empty_is_no_error() -> None:
    Path("columns.txt").write_text("eventName\nuserAgent\nlocincrement")
    write("history.json", *(events(user, 60, sourceIPAddress=None) for user in HABITS))
    later = START + timedelta(days=7)
    write("now.json", *(events(user, 20, later, sourceIPAddress=None) for user in HABITS))
    train()
    for result in (run(LOAD), run("--train_data_glob=history.json")):
        assert result.exit_code == 0, result.output


def test_a_few_events_without_a_feature_are_scored() -> None:
    train()
    write("now.json", events("ann", 5, START + timedelta(days=7), userAgent=None))
    result = run(LOAD)
    assert result.exit_code == 0, result.output
    assert "no event of the input has a value in 1 of 3 features: `userAgent`" in result.output


def test_a_new_value_in_a_few_events_is_scored_also_if_the_column_was_always_empty() -> None:
    write("history.json", *(events(user, 60, userAgent=None) for user in HABITS))
    now = [events(user, 20, START + timedelta(days=7), userAgent=None) for user in HABITS]
    now[0][3]["userAgent"] = "kali"
    write("now.json", *now)
    train()
    assert run(LOAD).exit_code == 0


def change_agents(values: list[str], users: tuple[str, ...] = tuple(HABITS)) -> None:
    """Write the input with other user agents for some users."""
    now = [events(user, 20, START + timedelta(days=7)) for user in HABITS]
    for row in (row for part in now for row in part if row["userIdentity"]["userName"] in users):
        row["userAgent"] = values[0] if len(values) == 1 else values[len(row["eventName"]) % 2]
    write("now.json", *now)


ALL_NEW = "preprocess: nearly all values of the input are new to their users"


@pytest.mark.parametrize(
    ("workers", "values"),
    [("1", ["TOOL OF ANN"]), ("2", ["['tool of ann']", "['tool of bob']"])],
)
def test_a_feature_whose_values_all_have_another_form_is_warned_about(
    workers: str, values: list[str]
) -> None:
    train()
    change_agents(values)
    for line in (LOAD, "--train_data_glob=history.json"):
        result = run(line, threads=workers)
        assert result.exit_code == 0, result.output
        assert re.search(ALL_NEW, result.output), result.output
        new = "|".join(re.escape(value) for value in values)
        expected = rf"`userAgent` \(`({new})`; in training `tool of ann`\)\. "
        assert re.search(expected, result.output), result.output


def test_a_column_of_numbers_that_has_text_now_is_warned_about() -> None:
    """The values are there, so that no event lacks the feature."""
    rows = [events(user, 200) for user in HABITS]
    for n, row in enumerate(row for part in rows for row in part):
        row["userAgent"] = str(100 + n)
    write("history.json", *rows)
    train()
    assert (
        "nearly all"
        not in run(LOAD, source=("from-cloudtrail", "--input_glob=history.json")).output
    )
    change_agents(["12,5 %", "13,5 %"])
    assert re.search(r"`userAgent` \(`1[23],5 %`; in training a number\)", run(LOAD).output)


def test_new_values_of_one_user_or_of_an_identifier_are_no_warning() -> None:
    train()
    change_agents(["other tool"], users=("ann",))
    assert "nearly all values" not in run(LOAD).output
    many = events("ann", 400, START + timedelta(days=7), userAgent="other tool")
    write("now.json", many, events("bob", 5), events("cyd", 5))
    assert "nearly all values" not in run(LOAD).output
    for name, count in (("history.json", 60), ("now.json", 20)):
        rows = [events(user, count) for user in HABITS]
        for n, row in enumerate(row for part in rows for row in part):
            row["userAgent"] = f"{name} {n}"
        write(name, *rows)
    assert "nearly all values" not in run("--train_data_glob=history.json").output


def test_one_user_whose_values_are_all_new_but_look_as_before_is_no_warning() -> None:
    """An attacker with another address all day is for the alerts."""
    history = [
        row | {"sourceIPAddress": f"10.0.0.{n % 3}"} for n, row in enumerate(events("ann", 200))
    ]
    write("history.json", history)
    Path("columns.txt").write_text("\n".join([*FEATURES, "sourceIPAddress"]))
    train()
    later = START + timedelta(days=7)
    for address, warns in (("192.168.7.1", False), ("[10.0.0.1]", True)):
        write("now.json", events("ann", 40, later, sourceIPAddress=address))
        output = run(LOAD).output
        assert (f"`sourceIPAddress` (`{address}`; in training `10.0.0." in output) == warns, output


def fill_agents(rows: list[dict], agents: list[str], every: int) -> list[dict]:
    """Give only some events a user agent."""
    for n, row in enumerate(rows):
        row["userAgent"] = agents[n // every % len(agents)] if n % every == 0 else None
    return rows


def test_a_feature_of_few_events_whose_values_all_have_another_form_is_warned_about() -> None:
    """Values are compared with values: most events have none, in training and now."""
    agents = ["tool one", "tool two"]
    write("history.json", *(fill_agents(events(user, 200), agents, 4) for user in HABITS))
    train()
    later = START + timedelta(days=7)
    for words, warns in ((agents, False), ([text.upper() for text in agents], True)):
        write("now.json", *(fill_agents(events(user, 40, later), words, 4) for user in HABITS))
        assert ("`userAgent` (`TOOL ONE`; in training `tool " in run(LOAD).output) == warns


def test_a_feature_of_few_events_whose_values_are_always_new_is_no_warning() -> None:
    for name, count, start in (
        ("history.json", 200, START),
        ("now.json", 40, START + timedelta(days=7)),
    ):
        names = [f"{name} {n}" for n in range(count)]
        write(name, *(fill_agents(events(user, count, start), names, 4) for user in HABITS))
    assert "nearly all values" not in run("--train_data_glob=history.json").output


def test_hours_that_the_training_never_had_are_no_warning() -> None:
    Path("columns.txt").write_text("\n".join([*FEATURES, "hour"]))
    train()
    later = START + timedelta(days=7, hours=15)
    write("now.json", *(events(user, 12, later) for user in HABITS))
    assert "nearly all values" not in run(LOAD).output


def test_an_endless_run_warns_about_values_of_another_form_before_it_ends() -> None:
    train()
    now = [events(user, 400, START + timedelta(days=7), userAgent="TOOL") for user in HABITS]
    write("now.json", *now)
    follow = ("from-cloudtrail", "--input_glob=now.json", "--watch_directory=true")
    words = [sys.executable, "-m", "morpheus", *list_words(LOAD, source=follow)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        warned = next((line for line in process.stderr if "nearly all values" in line), "")
        process.terminate()
    assert "`userAgent` (`TOOL`; in training `tool of ann`)" in warned


def test_a_log_without_any_feature_fails_the_run() -> None:
    other = [
        {"eventID": str(n), "eventTime": f"2026-01-05T08:{n:02}:00Z", "note": "x", "who": "ann"}
        for n in range(50)
    ]
    write("now.json", other)
    refused(
        run(user="who", options=("--timestamp_column_name=eventTime",)),
        "no event of the input has a value in any of the 3 features",
        "Is it another kind of log",
    )
    bare = dict.fromkeys(FEATURES)
    write("history.json", *(events(user, 60, **bare) for user in HABITS))
    write("now.json", events("ann", 20))
    refused(
        run("--train_data_glob=history.json"),
        "no training event has a value in any of the 3 features",
    )


def test_columns_with_similar_names_are_suggested() -> None:
    rows = [
        {
            "eventTime": row["eventTime"],
            "eventName": row["eventName"],
            "User-Agents": "x",
            "who": "a",
        }
        for row in events("ann", 50)
    ]
    pl.DataFrame(rows).write_csv("now.csv")
    result = run(user="who", source=("from-cloudtrail", "--input_glob=now.csv"))
    assert result.exit_code == 0, result.output
    assert "has a value in 2 of 3 features: `sourceIPAddress`, `userAgent`" in result.output
    assert "`userAgent`: Did you mean `User-Agents`?" in result.output


@pytest.mark.parametrize("count", [5, 20])
def test_a_watched_directory_is_checked_once_there_are_enough_events(count: int) -> None:
    train()
    later = START + timedelta(days=7)
    Path("new").mkdir()
    parts = [events(user, count, later, userAgent=None) for user in ("ann",)]
    write("new/a.json", *parts)
    follow = ("from-cloudtrail", "--input_glob=new/*.json", "--watch_directory=true")
    source = (*follow, "--max_files=1", "--batch_timeout=0.1")
    result = run(LOAD, source=source)
    if count < 10:
        assert result.exit_code == 0, result.output
        assert "has a value" not in result.output
    else:
        refused(result, "no event of the input has a value in `userAgent`")


# Users and age.


def test_an_input_without_one_known_user_is_said() -> None:
    train()
    write("now.json", events("dan", 20, START + timedelta(days=7)))
    result = run(LOAD)
    assert "none of the 1 users of the input is among the 3 users of the models" in result.output
    assert "`dan`" in result.output
    assert "`ann`, `bob`, `cyd`" in result.output
    assert (
        "among the 3 users of the training events" in run("--train_data_glob=history.json").output
    )
    write("now.json", events("dan", 20), events("ann", 20))
    assert "not one of" not in run(LOAD).output


@pytest.mark.parametrize(("days", "warned"), [(0, False), (30, False), (365, True)])
def test_the_age_of_models_is_said_and_old_ones_are_warned_about(days: int, warned: bool) -> None:  # noqa: FBT001 - a case
    train()
    write("now.json", *(events(user, 20, START + timedelta(days=days, hours=5)) for user in HABITS))
    result = run(LOAD)
    assert result.exit_code == 0, result.output
    before = f", {days} days before the first event" if days else ""
    assert re.search(rf"models end +2026-01-05{before}\n", result.output), result.output
    assert ("more than 60 days before the events" in result.output) == warned
    beside = run("--train_data_glob=history.json").output
    assert ("models end" in beside) == bool(days)
    assert ("more than 60 days before the events" in beside) == warned


# Stores are renewed in place.


def cards(name: str = "models") -> dict[str, Any]:
    """Return the cards of the champion, without the numbers of versions."""
    cards = open_models(name).cards
    return {user: msgspec.structs.replace(cards[user], version=0) for user in cards}


RENEW = ("--pretrained_filename=models", "--train_data_glob=newer.json")


def newer(*users: str, count: int = 80) -> None:
    write("newer.json", *(events(user, count, START + timedelta(days=3)) for user in users))


@pytest.mark.parametrize("target", ["models", "renewed"])
def test_renewing_some_users_keeps_the_others(target: str) -> None:
    train()
    before = cards()
    newer("ann", "dan")
    result = run(*RENEW, f"--models_output_filename={target}")
    assert result.exit_code == 0, result.output
    after = cards(target)
    assert set(after) == {"ann", "bob", "cyd", "dan"}
    assert (after["bob"], after["cyd"]) == (before["bob"], before["cyd"])
    assert after["ann"].events == 80
    assert re.search(rf"Saved +2 new models, 2 older kept, in {target}", result.output)
    assert cards() == (after if target == "models" else before)
    assert run(f"--pretrained_filename={target}").exit_code == 0


def test_training_into_an_existing_store_keeps_its_other_users() -> None:
    train()
    before = cards()
    write("now.json", events("ann", 20, START + timedelta(days=7)))
    newer("ann")
    run("--train_data_glob=newer.json", "--models_output_filename=models")
    after = cards()
    assert set(after) == {"ann", "bob", "cyd"}
    assert after["bob"] == before["bob"]
    assert after["ann"].events == 80


def test_users_with_little_new_history_keep_their_fingerprints() -> None:
    train()
    before = cards()
    newer("ann", count=10)
    result = run(*RENEW, "--models_output_filename=models")
    assert result.exit_code == 0, result.output
    assert cards() == before
    assert re.search(r"Saved +0 new models, 3 older kept, in models", result.output)
    assert "1 of 1 users of the training files have fewer than 40 events there" in result.output


def test_the_global_model_of_few_users_does_not_replace_that_of_many() -> None:
    train()
    before = open_models("models").global_card
    assert before is not None
    newer("ann")
    run(*RENEW, "--models_output_filename=models")
    assert open_models("models").global_card == before
    newer(*HABITS)
    run(*RENEW, "--models_output_filename=models")
    assert open_models("models").global_card != before


def test_a_store_of_another_kind_is_not_renewed() -> None:
    train()
    refused(
        run(*TRAIN, columns=None),
        "`models` has models already, which are kept",
        "Or give another folder",
    )


def test_training_files_beside_a_store_are_ignored_with_a_warning() -> None:
    train()
    result = run(LOAD, "--train_data_glob=history.json")
    assert result.exit_code == 0
    assert "--train_data_glob is ignored, because --pretrained_filename is given" in result.output
    assert "add --models_output_filename" in result.output


def test_a_store_has_one_kind_of_network() -> None:
    train()
    pytest.importorskip("torch")
    refused(run(*TRAIN, "--model=reference"), "were trained with --model=compact")


# What is trained.


def scopes() -> set[str | None]:
    return set(pl.read_csv("out.csv")["rung"])


def test_the_global_model_alone_is_trained_on_request() -> None:
    train("--train_users=generic")
    store = open_models("models")
    assert (dict(store.cards), store.global_card is None) == ({}, False)
    assert scopes() == {"everyone"}
    first = Path("out.csv").read_bytes()
    assert run(LOAD).exit_code == 0
    assert Path("out.csv").read_bytes() == first


def test_the_global_model_can_be_trained_on_the_input_of_one_user() -> None:
    write("now.json", events("ann", 60))
    assert run("--train_users=generic").exit_code == 0
    assert scopes() == {"everyone"}


def test_individual_fingerprints_alone_are_trained_on_request() -> None:
    write("history.json", events("ann", 60), events("bob", 60), events("cyd", 5))
    result = train("--train_users=individual")
    store = open_models("models")
    assert (set(store.cards), store.global_card) == ({"ann", "bob"}, None)
    assert "5 events of history, 40 needed (cyd)" in result.output


def test_nothing_is_trained_on_request() -> None:
    train()
    result = run(LOAD, "--train_data_glob=history.json", "--train_users=none")
    assert result.exit_code == 0
    assert scopes() == {"own"}
    refused(run("--train_users=none"), "Give --pretrained_filename")
    refused(run("--train_users=generic", "--model=reference"), "--model=compact|needs torch|torch")


def test_users_of_the_global_model_share_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    short = [events(f"user{n}", 5, START) for n in range(6)]
    write("history.json", *(events(user, 60) for user in HABITS), *short)
    later = [events(f"user{n}", 5, START + timedelta(days=7)) for n in range(8)]
    write("now.json", *later)
    trained: list[str] = []
    known = ModelProvider.train

    def counted(self: ModelProvider, histories: Any) -> Any:
        trained.extend(history.user for history in histories)
        return known(self, histories)

    monkeypatch.setattr(ModelProvider, "train", counted)
    train()
    assert sorted(trained) == ["", *sorted(HABITS)]
    assert scopes() == {"everyone"}
    trained.clear()
    assert run("--train_data_glob=history.json").exit_code == 0
    assert trained == [""], "before workers start"


PLUGIN = """
from dataclasses import dataclass, replace
import polars as pl
from morpheus.core.batch import Events
from morpheus.core.stage import Transform

@dataclass(frozen=True)
class Verb(Transform):
    "Add the verb of each action."

    name = "verb"
    takes = (Events,)
    gives = Events

    def process(self, batch, state):
        verb = batch.table["eventName"].str.extract("^([A-Z][a-z]+)").alias("verb")
        yield batch.evolve(Events, table=batch.table.with_columns([verb]))
"""


def test_a_stage_that_adds_features_sees_the_training_events_too() -> None:
    Path("own.py").write_text(PLUGIN)
    Path("columns.txt").write_text("eventName\nverb\n")
    plugin = {"before": ("--plugin=own.py",), "middle": ("verb",)}
    result = train("--train_users=all", **plugin)
    assert "verb" not in result.output
    store = open_models("models")
    for known in (store.load("ann"), store.load_global()):
        assert known is not None
        [verb] = [column for column in known.encoder.columns if column.name == "verb"]
        assert set(verb.vocabulary) <= {"Get", "List", "Run", "Push"}
        assert verb.vocabulary
    first = Path("out.csv").read_bytes()
    assert run(LOAD, **plugin).exit_code == 0
    assert Path("out.csv").read_bytes() == first
    refused(run(LOAD), "no event of the input has a value in `verb`")


# Folders of models are hostile input.


@pytest.fixture(scope="module")
def known() -> Any:
    return fingerprint()


@pytest.fixture
def store(known: Any, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    others = {name: put_model(path, replaced(known, name)) for name in ("ann", "bob")}
    commit_index(path, ModelIndex.from_cards(others))
    return path


def replaced(known: Any, name: str) -> Any:
    return replace(known, card=msgspec.structs.replace(known.card, user=name))


def test_a_pipe_a_link_and_a_device_are_refused(store: Path, tmp_path: Path) -> None:
    index = store / "index.json"
    content = index.read_bytes()
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(ModelCorruptedError, match="a pipe or a device, not a file"):
        ModelStore.open(store)
    index.unlink()
    (tmp_path / "elsewhere.json").write_bytes(content)
    for target in (tmp_path / "elsewhere.json", Path("/dev/zero")):
        index.symlink_to(target)
        with pytest.raises(ModelCorruptedError, match="links are not followed"):
            ModelStore.open(store)
        index.unlink()
    index.write_bytes(content)
    files = store / "fingerprints"
    files.rename(tmp_path / "moved")
    files.symlink_to(tmp_path / "moved")
    with pytest.raises(ModelCorruptedError, match="links are not followed"):
        ModelStore.open(store).load("ann")


def test_nothing_is_written_through_a_link(store: Path, tmp_path: Path, known: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (store / "fingerprints").iterdir():
        path.unlink()
    (store / "fingerprints").rmdir()
    (store / "fingerprints").symlink_to(outside)
    with pytest.raises(UsageError, match="links are not followed"):
        put_model(store, known)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_a_broken_model(
    value: float, known: Any, tmp_path: Path
) -> None:
    weights = known.net.weights.copy()
    weights[7] = value
    broken = replace(known, net=type(known.net)(known.net.config, weights))
    commit_index(tmp_path / "m", ModelIndex.from_cards({"ann": put_model(tmp_path / "m", broken)}))
    with pytest.raises(ModelCorruptedError, match=r"a weight is not a number.*[Tt]rain again"):
        ModelStore.open(tmp_path / "m").load("ann")


@pytest.mark.parametrize("name", ["scores", "risks", "day_maxima"])
def test_a_fingerprint_without_calibration_is_a_broken_model(
    name: str, known: Any, tmp_path: Path
) -> None:
    calibration = msgspec.structs.replace(known.calibration, **{name: np.empty(0, np.float32)})
    broken = replace(known, calibration=calibration)
    commit_index(tmp_path / "m", ModelIndex.from_cards({"ann": put_model(tmp_path / "m", broken)}))
    with pytest.raises(ModelCorruptedError, match=r"has no values.*[Tt]rain again"):
        ModelStore.open(tmp_path / "m").load("ann")


def test_the_fingerprint_of_one_user_cannot_stand_for_another(store: Path) -> None:
    swapped = ModelStore.open(store).cards
    exchanged = {"ann": swapped["bob"], "bob": swapped["ann"]}
    renamed = {name: msgspec.structs.replace(card, user=name) for name, card in exchanged.items()}
    for wrong in (exchanged, renamed):
        commit_index(store, ModelIndex.from_cards(wrong))
        with pytest.raises(ModelCorruptedError, match="that of another user, 'bob'"):
            ModelStore.open(store).load("ann")
    commit_index(store, ModelIndex.from_cards({}, swapped["bob"]))
    with pytest.raises(ModelCorruptedError, match="that of another user"):
        ModelStore.open(store).load("eve")


def test_a_signed_store_needs_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("key").write_text("a secret of many letters\n")
    Path("other").write_text("another secret of letters\n")
    train("--models_key_file=key")
    refused(run(LOAD), "is signed, and no key was given", "--models_key_file")
    refused(run(LOAD, "--models_key_file=other"), "signed with another key, or has been changed")
    assert run(LOAD, "--models_key_file=key").exit_code == 0
    with pytest.raises(UsageError, match="is signed, and no key was given"):
        Fingerprints.load("models", user="userIdentityuserName", time="eventTime")
    Fingerprints.load("models", user="userIdentityuserName", time="eventTime", key_file="key")
    monkeypatch.setenv(KEY_VARIABLE, "a secret of many letters")
    assert run(LOAD).exit_code == 0
    index = Path("models/store.json")
    text = index.read_bytes()
    index.write_bytes(text.replace(b'"champion":1', b'"champion":2', 1))
    assert run(LOAD).exit_code == 1
    body = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    unsigned = {name: raw for name, raw in body.items() if name != "signature"}
    index.write_bytes(msgspec.json.encode(unsigned))
    refused(run(LOAD), "is not signed, but a key was given")


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_key_that_is_missing_or_short_is_rejected(content: str | None) -> None:
    if content is not None:
        Path("key").write_text(content)
    with pytest.raises(UsageError, match="at least 16"):
        read_key("key")


# The folder is checked before training begins.


@pytest.mark.parametrize("name", ["file", "file/models"])
def test_a_models_folder_that_is_a_file_is_refused_before_training(name: str) -> None:
    Path("file").write_text("")
    refused(run(f"--models_output_filename={name}"), "`.*file` is a file, not a folder")


def test_a_models_folder_that_cannot_be_written_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda place, _mode: "locked" not in str(place))
    refused(run("--models_output_filename=locked/models"), "you may not write into this folder")


# The same in Python.


def people(**changes: pl.Expr) -> pl.DataFrame:
    frames = [
        day(200, seed=seed).with_columns(who=pl.lit(who), at=times(200))
        for seed, who in enumerate(("ann", "bob"))
    ]
    return pl.concat(frames).with_columns(**changes)


@dataclass(frozen=True)
class Trained:
    """Models of a frame."""

    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("api") / "models"
    columns = ["action", "address", "agent"]
    Fingerprints.train(
        people(), user="who", time="at", columns=columns, epochs=2, min_history=100
    ).save(folder)
    return Trained(folder)


def test_python_refuses_models_that_name_users_by_another_column(trained: Trained) -> None:
    with pytest.raises(UsageError, match=r"name users by `who`, not by `user`: give `user=who`"):
        Fingerprints.load(trained.folder, user="user", time="at")


def test_python_refuses_frames_that_lack_a_column_of_the_models(trained: Trained) -> None:
    models = Fingerprints.load(trained.folder, user="who", time="at")
    empty = people(agent=pl.lit(None, pl.String))
    for frame in (empty, people().drop("agent")):
        with pytest.raises(UsageError, match=r"no event of the input has a value in `agent`"):
            models.score(frame)
        scores = models.score(frame, missing_features="warn")
        assert scores.height == frame.height
        with pytest.raises(UsageError, match="missing_features='warn'"):
            models.explain(frame)


def test_python_refuses_to_train_on_columns_without_values() -> None:
    empty = people(action=pl.lit(None, pl.String), agent=pl.lit(None, pl.String))
    with pytest.raises(UsageError, match="no event of the input has a value in any of the 2"):
        Fingerprints.train(empty, user="who", time="at", columns=["action", "agent"])


def test_models_of_a_frame_are_loaded_by_the_command_line(trained: Trained) -> None:
    stage = TrainAe(pretrained_filename=str(trained.folder))
    assert stage.model_store.inputs is not None
    assert stage.model_store.inputs.log_format == ""
