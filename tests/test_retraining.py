"""Guarded retraining: what it learns, whom it freezes, and when the candidate is promoted."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from click.exceptions import Exit
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.cli.retrain import (
    RetrainOptions,
    UserDecision,
    _run_retrain,
    _to_row,
    retrain_models,
)
from morpheus.errors import UsageError
from morpheus.models.daily_usage import UsageState
from morpheus.models.drift import Selection, select_learnable
from morpheus.models.fit import UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.retraining import (
    Comparison,
    Guard,
    UserEvents,
    UserReview,
    freeze,
    score_by_history,
    score_daily,
    update,
)
from morpheus.models.versions import CHAMPION, ModelFacts, NewVersion, VersionedStore
from morpheus.report.incidents import incident_id

START = datetime(2026, 1, 5, tzinfo=UTC)
HISTORY, DAYS = 30, 80
HABITS = {
    "ann": ("s3", "GetObject PutObject ListObjects", "aws-cli/2.1", "198.51.100.7"),
    "bob": ("ec2", "DescribeInstances RunInstances StopInstances", "Boto3/1.3", "198.51.100.9"),
    "cid": ("iam", "ListUsers GetUser ListRoles", "console.amazonaws.com", "203.0.113.4"),
    "dan": ("lambda", "Invoke ListFunctions GetFunction", "Terraform/1.9", "203.0.113.8"),
}
POISONED = "dan"


def draw(habit: str, randomness: random.Random) -> dict[str, str]:
    """Draw an event of a user."""
    service, actions, agent, address = HABITS[habit]
    return {
        "eventSource": f"{service}.amazonaws.com",
        "eventName": randomness.choice(actions.split()),
        "userAgent": agent,
        "sourceIPAddress": address,
        "awsRegion": randomness.choice(["eu-central-1", "eu-west-1"]),
    }


def record(user: str, event: dict[str, str], time: datetime, number: int) -> dict[str, object]:
    """Return a CloudTrail record."""
    return {
        "eventVersion": "1.08",
        "eventTime": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventID": f"{user}-{number}",
        "eventType": "AwsApiCall",
        "userIdentity": {
            "type": "IAMUser",
            "userName": user,
            "arn": f"arn:aws:iam::123456789012:user/{user}",
            "accountId": "123456789012",
        },
        **event,
    }


def write_logs(folder: Path, poisoned: str = "") -> None:
    """Write a file for each day; the poisoned user turns into `ann` from the end of history on."""
    randomness = random.Random(3)  # noqa: S311 - made-up logs, not secrets
    folder.mkdir()
    for day in range(DAYS):
        records = []
        for user in HABITS:
            share = (day - HISTORY - 15) / 30 if user == poisoned else 0
            for number in range(12):
                whose = "ann" if randomness.random() < share else user
                time = START + timedelta(days=day, hours=8, minutes=10 * number)
                records.append(record(user, draw(whose, randomness), time, 100 * day + number))
        (folder / f"{day:02}.json").write_text(json.dumps({"Records": records}))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs in which `POISONED` slowly turns into another user, and the first fingerprints."""
    folder = tmp_path_factory.mktemp("retraining")
    write_logs(folder / "logs", POISONED)
    training = [folder / "logs" / f"{day:02}.json" for day in range(HISTORY)]
    globs = [f"--train_data_glob={file}" for file in training]
    done = call(
        *("run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *("from-cloudtrail", f"--input_glob={training[0]}"),
        *("train-ae", *globs, f"--models_output_filename={folder / 'first'}"),
        *("preprocess", "inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={folder / 'scores.csv'}"),
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def models(logs: Path, tmp_path: Path) -> str:
    """A copy of the first fingerprints."""
    from morpheus.models.store import ModelStore  # noqa: PLC0415 - as `train-ae` writes it

    try:
        ModelStore.open(str(logs / "first")).copy(str(tmp_path / "models"))
    except Exception:  # noqa: BLE001 - a store with versions
        VersionedStore.open(str(logs / "first")).export(str(tmp_path / "models"))
    return str(tmp_path / "models")


def call(*words: str) -> object:
    """Call the command."""
    return CliRunner().invoke(morpheus, ["--no-progress", *words])


def retrain(models: str, logs: Path, *words: str) -> object:
    """Call `morpheus retrain` with one thread and without replayed attacks."""
    fixed = ("--num_threads=1", "--replay_users=0")
    return call("retrain", models, str(logs / "logs"), *fixed, *words)


def decisions(done: object) -> dict[str, dict[str, object]]:
    """Return the decision about each user in JSON output."""
    return {each["user"]: each for each in json.loads(done.stdout)["users"]}


# The guard.


def events_of(habits: list[tuple[str, int]], user: str = "dan") -> UserEvents:
    """Return events of one user: of each habit for some days, 12 events each."""
    randomness = random.Random(5)  # noqa: S311 - made-up logs, not secrets
    rows, day = [], 0
    for habit, days in habits:
        for _ in range(days):
            for number in range(12):
                time = START + timedelta(days=day, hours=8, minutes=10 * number)
                rows.append({"time": time, **draw(habit, randomness)})
            day += 1
    table = pl.DataFrame(rows)
    return UserEvents(user, table.drop("time"), table["time"])


@pytest.fixture(scope="module")
def population() -> Population:
    parts = [events_of([(user, 10)], user) for user in HABITS]
    users = pl.Series([part.user for part in parts for _ in range(len(part))])
    times = pl.concat([part.times for part in parts])
    return Population(users, times, pl.concat([part.events for part in parts]))


def fit(given: UserEvents, population: Population, learned: np.ndarray | None = None):
    history = UserHistory(given.user, given.events, given.times, learned=learned)
    return fit_fingerprints([history], given.events.columns, population=population)[0]


def later(given: UserEvents, days: int) -> UserEvents:
    return msgspec.structs.replace(given, times=given.times.dt.offset_by(f"{days}d"))


def review(given: UserEvents, anchor, guard: Guard | None = None, **masks: np.ndarray):
    none = np.zeros(len(given), dtype=np.bool_)
    suspicious, accepted = masks.get("suspicious", none), masks.get("accepted", none)
    return UserReview(given, anchor, anchor, guard or Guard(), suspicious, accepted)


def test_what_is_not_learned_is_new_afterwards_and_yet_calibrates(population):
    given = events_of([("dan", 30)])
    odd = np.arange(len(given)) % 12 == 0
    agents = pl.when(pl.Series(odd)).then(pl.lit("curl/8")).otherwise(pl.col("userAgent"))
    events = given.events.with_columns(agents.alias("userAgent"))
    given = msgspec.structs.replace(given, events=events)
    all_of_it = fit(given, population)
    without = fit(given, population, ~odd)
    nothing = fit(given.take(~odd), population)
    risks = [score_by_history(each, given)[odd].mean() for each in (all_of_it, without)]
    assert risks[1] > risks[0] + 20
    # The calibration knows that such days are usual, so they are no alerts.
    assert without.calibration.day_maxima.min() > nothing.calibration.day_maxima.max()
    flagged = [score_daily(each, later(given, 30)).day_pvalue.min() for each in (without, nothing)]
    assert flagged[0] > flagged[1]


def test_a_frozen_user_does_not_get_used_to_anything(population):
    anchor = fit(events_of([("dan", 30)]), population)
    frozen = freeze(anchor, date(2026, 2, 10))
    foreign = later(events_of([("ann", 20)]), 30)
    risks = {}
    for name, each in {"usual": anchor, "frozen": frozen}.items():
        scored = score_daily(each, foreign, UsageState()).risk
        risks[name] = [scored[:12].mean(), scored[-12:].mean()]
    assert risks["usual"][1] < risks["usual"][0] - 20
    assert risks["frozen"][1] > risks["usual"][1] + 20


def test_freezing_forgets_what_the_state_has_learned(population):
    anchor = fit(events_of([("dan", 30)]), population)
    state = UsageState()
    score_daily(anchor, later(events_of([("ann", 20)]), 30), state)
    day = later(events_of([("ann", 1)]), 51)
    used_to = score_daily(anchor, day, state).risk.mean()
    afterwards = score_daily(freeze(anchor, date(2026, 2, 10)), day, state).risk.mean()
    assert afterwards > used_to + 20


def test_usual_days_are_no_rise_and_a_slow_change_is_one_with_its_cause(population):
    anchor = fit(events_of([("dan", 30)]), population)
    usual = review(later(events_of([("dan", 40)]), 30), anchor)
    assert usual.rise is None
    assert not usual.has_drifted
    changed = review(later(events_of([("dan", 20), ("ann", 20)]), 30), anchor)
    rise = changed.rise
    assert rise is not None
    assert changed.has_drifted
    assert abs((rise.since - (START + timedelta(days=50)).date()).days) <= 2
    assert rise.risen > rise.usual
    values = {cause.column: cause.value for cause in rise.causes}
    assert set(values) <= set(changed.given.events.columns)
    assert values.get("userAgent", "aws-cli/2.1") == "aws-cli/2.1"
    assert changed.score_shift.is_large
    assert changed.column_shifts["userAgent"].is_large


def test_what_is_unusual_for_the_anchor_alone_is_not_learned(population):
    anchor = fit(events_of([("dan", 30)]), population)
    champion = fit(events_of([("dan", 15), ("ann", 15)]), population)
    given = later(events_of([("dan", 10), ("ann", 10)]), 30)
    none = np.zeros(len(given), dtype=np.bool_)
    foreign = np.arange(len(given)) >= 120
    learned = [
        UserReview(given, champion, anchor, Guard(anchor=use, trim=0.5), none, none)
        .selection.learned[foreign]
        .mean()
        for use in (True, False)
    ]
    assert learned[0] < 0.1
    assert learned[1] > 0.3


def test_accepted_days_are_no_rise_and_are_learned(population):
    anchor = fit(events_of([("dan", 30)]), population)
    given = later(events_of([("dan", 20), ("ann", 20)]), 30)
    accepted = review(given, anchor, accepted=np.ones(len(given), dtype=np.bool_))
    assert accepted.rise is None
    assert accepted.selection.learned.all()


def test_an_update_keeps_the_network_and_learns_what_the_guard_lets_through(population):
    champion = fit(events_of([("dan", 30)]), population)
    given = later(events_of([("dan", 30)]), 30)
    suspicious = np.arange(len(given)) >= 240
    chosen = review(given, champion, suspicious=suspicious).selection
    renewed = update(champion, given, chosen)
    assert np.array_equal(renewed.net.weights, champion.net.weights)
    assert renewed.usage.events == chosen.learned.sum()
    assert not chosen.learned[suspicious].any()
    assert len(renewed.calibration.day_maxima) > len(champion.calibration.day_maxima)
    nothing = Selection(*(np.ones(len(given), dtype=np.bool_) for _ in range(3)))
    with pytest.raises(ValueError, match="no event may be learned"):
        update(champion, given, nothing)


def test_a_comparison_adds_up_users():
    one, two = Comparison(7, 1, 0, 20, 18, 19), Comparison(6, 0, 1, 20, 20, 12)
    assert one.add(two) == Comparison(13, 1, 1, 40, 38, 31)
    assert two.loses_recall
    assert not one.loses_recall


def test_the_threshold_leaves_out_events_and_the_trim_only_calibrates():
    pvalues = np.array([0.02, 0.5, 0.5, 0.5])
    chosen = select_learnable(
        pvalues, np.array([9.0, 1, 2, 3]), np.zeros(4, dtype=np.bool_), share=0.4
    )
    assert chosen.usable.tolist() == [False, True, True, True]
    assert chosen.learned.tolist() == [False, True, True, False]


# The command.


def test_a_poisoned_user_is_frozen_and_the_others_are_promoted(models, logs):
    done = retrain(models, logs, "--json")
    assert done.exit_code == 0, done.output
    found = decisions(done)
    assert {user: each["decision"] for user, each in found.items()} == {
        "ann": "retrained",
        "bob": "retrained",
        "cid": "retrained",
        POISONED: "frozen",
    }
    assert found[POISONED]["since"] > "2026-02-10"
    assert found[POISONED]["causes"]
    store = VersionedStore.open(models)
    assert store.resolve(CHAMPION) == json.loads(done.stdout)["candidate"] == 2
    version = store.open_version(CHAMPION)
    assert version.cards[POISONED].frozen_since == found[POISONED]["since"]
    assert version.cards[POISONED].last < "2026-02-05"
    assert version.cards["bob"].last > "2026-03-01"
    assert store.resolve("anchor") == 1


def test_a_frozen_user_stays_frozen_until_a_person_accepts(models, logs):
    assert retrain(models, logs).exit_code == 0
    again = retrain(models, logs, "--json")
    assert decisions(again)[POISONED]["decision"] == "frozen"
    listed = retrain(models, logs)
    assert f"Decide about {POISONED}" in listed.output
    assert f"--accept={POISONED}" in listed.output
    accepted = decisions(retrain(models, logs, "--json", f"--accept={POISONED}"))[POISONED]
    assert accepted["decision"] == "retrained"
    assert accepted["reason"] == "accepted"


def test_the_command_that_accepts_a_user_has_the_options_of_the_retraining(models, logs, tmp_path):
    verdicts = tmp_path / "my verdicts.json"
    about = {"format": "morpheus-verdicts", "version": 2, "made": "2026-03-01T00:00:00Z"}
    verdicts.write_text(json.dumps({**about, "verdicts": []}))
    done = retrain(models, logs, f"--verdicts={verdicts}", "--promote=never", "--update")
    [line] = [each for each in done.stderr.splitlines() if f"--accept={POISONED}" in each]
    _, _, command = line.partition("own work: ")
    words = shlex.split(command)
    assert words[:4] == ["morpheus", "retrain", models, str(logs / "logs")]
    assert {f"--verdicts={verdicts}", "--promote=never", "--update"} <= set(words)
    again = call(*words[1:])
    assert again.exit_code == 0, again.output
    assert f"{POISONED}  updated" in re.sub(" +", "  ", again.stdout)


def test_an_accepted_user_has_the_version_with_it_as_the_anchor(models, logs):
    options = RetrainOptions(accept=(POISONED,), replay_users=0, num_threads=1)
    first = retrain_models(models, [str(logs / "logs")], options)
    assert first.promoted, "though days of Ann are usual for this user now"
    then = replace(options, accept=(), until="2026-03-27")
    second = retrain_models(models, [str(logs / "logs")], then)
    found = {each.user: each for each in second.users}
    assert found[POISONED].decision != "frozen"
    assert found[POISONED].anchor == first.candidate
    assert found["ann"].anchor == 1


def test_a_candidate_that_finds_less_is_published_but_not_promoted(models, logs, capsys):
    accept, loss = (POISONED,), -1.0  # twice as many would have to be found
    options = RetrainOptions(accept=accept, max_recall_loss=loss, replay_users=0, num_threads=1)
    with pytest.raises(Exit) as done:
        _run_retrain(options, models, [str(logs / "logs")])
    assert done.value.exit_code == 1
    shown = capsys.readouterr().err
    assert "version 1 stays the champion: recall of other users' days" in shown
    store = VersionedStore.open(models)
    assert (store.resolve(CHAMPION), store.resolve("candidate")) == (1, 2)


def test_the_table_says_what_was_learned_and_shortens_names(models, logs):
    lines = retrain(models, logs).stdout.splitlines()
    [frozen] = [line.split() for line in lines if line.startswith(POISONED)]
    assert frozen[1:3] == ["frozen", "0"]
    assert int(frozen[3]) > 0
    long = UserDecision("x" * 3000, "kept", "")
    assert len(_to_row(long)[0]) < 100


def test_a_retraining_starts_from_the_champion_and_takes_no_other_version(models, logs):
    done = retrain(f"{models}@1", logs)
    assert (done.exit_code, f"Give `{models}`" in done.output) == (2, True), done.output


def test_a_user_is_frozen_also_if_the_candidate_is_rejected(models, logs):
    options = RetrainOptions(replay_users=0, num_threads=1, max_recall_loss=-1.0)
    report = retrain_models(models, [str(logs / "logs")], options)
    assert not report.holds
    version = VersionedStore.open(models).open_version(CHAMPION)
    assert version.number == report.candidate + 1
    assert version.cards[POISONED].frozen_since
    assert version.cards["bob"].last < "2026-02-05"


def test_a_champion_that_another_run_made_meanwhile_stays(models, logs):
    store = VersionedStore.open(models)

    def publish_meanwhile(*_: object) -> None:
        if len(store.versions()) == 1:
            placed = store.open_version(1).find_placed("bob")
            store.publish_placed(NewVersion([placed], CHAMPION, "meanwhile"), CHAMPION)

    options = RetrainOptions(replay_users=0, num_threads=1)
    report = retrain_models(models, [str(logs / "logs")], options, on_step=publish_meanwhile)
    assert (report.overtaken, report.promoted, report.holds) == (True, False, True)
    champion = store.open_version(CHAMPION)
    assert champion.number == report.candidate + 1, "with the fingerprint of the frozen user alone"
    assert champion.cards[POISONED].frozen_since
    assert champion.cards["ann"].version == 1


def test_a_damaged_champion_is_replaced_by_a_candidate_of_the_version_before(models, logs):
    store = VersionedStore.open(models)
    bob = store.load("bob")
    store.publish(
        [replace(bob, card=msgspec.structs.replace(bob.card, user="new"))], alias=CHAMPION
    )
    first, second = (set(each.indexes) for each in store.versions())
    [index] = second - first
    path = Path(models) / "indexes" / f"{index}.json"
    path.write_bytes(path.read_bytes()[:-9])
    done = retrain(models, logs, "--update", "--max_recall_loss=1", "--threshold=0.000001")
    assert done.exit_code == 0, done.output
    assert "does not match its checksum" in done.stderr
    assert "version 3 is published as `candidate`, and is the champion now" in done.stderr


def test_logs_before_the_window_are_not_read_to_find_their_last_day(models, tmp_path):
    now = datetime.now(UTC)
    for days in (3, 400, 800):
        time = now - timedelta(days=days)
        folder = tmp_path / f"AWSLogs/1/CloudTrail/eu-west-1/{time:%Y/%m/%d}"
        folder.mkdir(parents=True)
        path = folder / f"1_CloudTrail_eu-west-1_{time:%Y%m%dT%H%MZ}_a.json"
        records = [record("ann", draw("ann", random.Random(1)), time, days)]  # noqa: S311 - not secrets
        path.write_text(json.dumps({"Records": records}))
    steps = []
    options = RetrainOptions(num_threads=1, replay_users=0)
    report = retrain_models(models, [str(tmp_path / "AWSLogs")], options, on_step=steps.append)
    assert report.end == f"{now - timedelta(days=2):%Y-%m-%d}T00:00:00+00:00"
    assert [each.total for each in steps if each.unit == "file"] == [1, 1]


def test_what_of_the_logs_is_left_out_is_printed_and_is_in_the_json(models, logs, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "notes.txt").write_text("x")
    (odd / "bad.json").write_text('{"a": 1}')
    words = ("--update", "--promote=never", "--json")
    done = call(
        *("retrain", models, str(logs / "logs"), str(odd), "--num_threads=1", "--replay_users=0"),
        *words,
    )
    unread = dict(json.loads(done.stdout)["unread"])
    assert unread["not read"] == f"1 file with another suffix: {odd}/notes.txt"
    assert unread["rejected"].startswith(f"{odd}/bad.json:1: the record has no `eventTime`")


def test_promote_never_leaves_it_to_a_person(models, logs):
    done = retrain(models, logs, "--promote=never", "--window=300d")
    assert done.exit_code == 0
    assert "`morpheus models promote` makes it the champion" in done.output
    assert VersionedStore.open(models).resolve(CHAMPION) == 1
    first, last = VersionedStore.open(models).read_manifest().find(2).period
    assert first[:10] == "2026-01-05", "that of the events, not of the window"
    assert last[:10] == "2026-03-18"


def test_durations_of_centuries_mean_all_logs_and_the_first_version(models, logs):
    words = ("--window=146000d", "--anchor_age=146000d", "--update", "--promote=never", "--json")
    done = retrain(models, logs, *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["start"] == "1970-01-01T00:00:00+00:00"
    early = retrain(models, logs, "--until=0001-01-02")
    assert early.exit_code == 2
    assert "no event with a user" in early.stderr


def test_without_drift_nothing_is_trained(models, logs):
    done = retrain(models, logs, "--when=drift", "--until=2026-02-20", "--json")
    assert done.exit_code == 0
    assert {each["decision"] for each in decisions(done).values()} == {"kept"}
    assert json.loads(done.stdout)["candidate"] is None
    assert len(VersionedStore.open(models).versions()) == 1


def test_an_update_is_published_under_the_same_guard(models, logs):
    found = decisions(retrain(models, logs, "--update", "--json"))
    assert found["ann"]["decision"] == "updated"
    assert found[POISONED]["decision"] == "frozen"
    store = VersionedStore.open(models)
    networks = [store.load("ann", number).net.weights for number in (1, 2)]
    assert np.array_equal(*networks)


def test_open_incidents_are_not_learned_until_a_verdict_calls_them_harmless(models, logs, tmp_path):
    day = "2026-02-20"
    row = {"event_dt": f"{day}T09:00:00Z", "userIdentityuserName": "ann"}
    alerts = tmp_path / "alerts.jsonl"
    alerts.write_text(json.dumps({**row, "incident_id": "0123456789abcdef", "risk": 90.0}))
    found = decisions(retrain(models, logs, "--json", "--promote=never", f"--alerts={alerts}"))
    assert found["ann"]["suspicious"] == 12
    assert found["bob"]["suspicious"] == 0
    verdicts = tmp_path / "verdicts.json"
    times = {"start": f"{day}T00:00:00Z", "end": f"{day}T23:59:59Z"}
    verdict = {
        "incident": "0123456789abcdef",
        "user": "ann",
        "verdict": "expected",
        "events": 1,
        **times,
    }
    about = {"format": "morpheus-verdicts", "version": 2, "made": "2026-03-01T00:00:00Z"}
    for judged, expected in (("expected", 0), ("malicious", 12)):
        verdict |= {"verdict": judged, "note": "", "columns": []}
        verdicts.write_text(json.dumps({**about, "verdicts": [verdict]}))
        words = (f"--alerts={alerts}", f"--verdicts={verdicts}", "--promote=never", "--json")
        assert decisions(retrain(models, logs, *words))["ann"]["suspicious"] == expected


def test_a_verdict_closes_an_incident_of_alerts_without_ids_in_a_folder(models, logs, tmp_path):
    folder, day = tmp_path / "alerts", "2026-02-20"
    folder.mkdir()
    (folder / "2026-02-19.jsonl").write_text("\n")
    row = {"event_dt": f"{day}T09:00:00Z", "userIdentityuserName": "ann", "risk": 90.0}
    (folder / "2026-02-20.jsonl").write_text(json.dumps(row))
    verdict = {"incident": incident_id("ann", day), "user": "ann", "verdict": "expected"}
    verdict |= {"start": f"{day}T09:00:00Z", "end": f"{day}T09:00:00Z", "events": 1, "columns": []}
    about = {"format": "morpheus-verdicts", "version": 2, "made": "2026-03-01T00:00:00Z"}
    (tmp_path / "verdicts.json").write_text(json.dumps({**about, "verdicts": [verdict]}))
    words = ("--promote=never", "--update", "--json", f"--alerts={folder}")
    assert decisions(retrain(models, logs, *words))["ann"]["suspicious"] == 12
    judged = retrain(models, logs, *words, f"--verdicts={tmp_path}/verdicts.json")
    assert decisions(judged)["ann"]["suspicious"] == 0


def test_a_file_of_alerts_without_rows_leaves_nothing_open(models, logs, tmp_path):
    alerts = tmp_path / "alerts.jsonl"
    alerts.write_text("\n")  # what `to-file` writes if there is no alert
    found = decisions(retrain(models, logs, "--json", "--promote=never", f"--alerts={alerts}"))
    assert found["ann"]["suspicious"] == 0


def test_an_empty_folder_of_alerts_leaves_nothing_open_and_says_so(models, logs, tmp_path, caplog):
    (tmp_path / "alerts").mkdir()
    words = ("--json", "--promote=never", "--update", f"--alerts={tmp_path}/alerts")
    assert decisions(retrain(models, logs, *words))["ann"]["suspicious"] == 0
    assert f"--alerts: `{tmp_path}/alerts` is empty, so no day has an open alert." in caplog.text


def test_an_event_that_is_left_out_for_two_reasons_counts_once(models, logs, tmp_path):
    alerts = tmp_path / "alerts.jsonl"
    row = {"event_dt": "2026-03-10T09:00:00Z", "userIdentityuserName": POISONED}
    alerts.write_text(json.dumps(row))
    found = decisions(retrain(models, logs, "--promote=never", "--json", f"--alerts={alerts}"))[
        POISONED
    ]
    assert found["suspicious"] == 12
    kinds = [found[kind] for kind in ("unusual", "suspicious", "trimmed")]
    assert max(kinds) <= found["left_out"] < sum(kinds), "the events of that day are unusual, too"
    assert found["left_out"] + found["learned"] <= found["events"]


def test_threads_do_not_affect_results(models, logs):
    results = []
    for threads in (1, 2):
        options = RetrainOptions(replay_users=0, num_threads=threads, promote="never")
        report = retrain_models(models, [str(logs / "logs")], options)
        cards = [each.card for each in report.users]
        results.append((report.users, [msgspec.json.encode(card) for card in cards]))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--holdout=60d"], "leaves nothing of the window"),
        (["--window=soon"], "is not a duration"),
        (["--until=yesterday"], "--until: `yesterday` is not a time"),
        (["--until=2019-01-01"], "no event with a user between"),
        (["--accept=dam"], "has no fingerprint of `dam`. Did you mean `dan`?"),
        (["--alerts=nowhere.jsonl"], "there is no file `nowhere.jsonl`"),
        (["--promote=maybe"], "'maybe' is not one of"),
    ],
)
def test_wrong_use_is_explained_and_changes_nothing(models, logs, words, message):
    done = retrain(models, logs, *words)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert [each.number for each in VersionedStore.open(models).versions()] == [1]


def test_logs_that_do_not_exist_are_called_by_the_name_of_the_argument(models, tmp_path):
    result = CliRunner().invoke(morpheus, ["retrain", str(models), str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "Error: LOGS: no log file matches" in result.output


def test_signed_models_stay_signed_and_attacks_are_replayed(models, logs, tmp_path):
    key, signed = tmp_path / "key", tmp_path / "signed"
    key.write_text("0123456789abcdef" * 2)
    first = VersionedStore.open(models).open_version(CHAMPION)
    own = [first.load_own(user) for user in sorted(first.cards)]
    VersionedStore.open(str(signed), key.read_bytes()).publish(
        own, facts=ModelFacts.from_store(first)
    )
    words = ("--num_threads=1", "--replay_users=1", "--max_recall_loss=1", "--json")
    where = (str(signed), str(logs / "logs"))
    done = call("retrain", *where, f"--models_key_file={key}", *words)
    assert done.exit_code == 0, done.output
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert names[-1] == "recall of replayed attacks"
    assert VersionedStore.open(str(signed), key.read_bytes()).resolve(CHAMPION) == 2
    unsigned = retrain(str(signed), logs)
    assert unsigned.exit_code == 2
    assert "key" in unsigned.output


def test_models_and_logs_must_fit(models, logs, tmp_path):
    empty = call("retrain", str(tmp_path / "nothing"), str(logs / "logs"))
    assert empty.exit_code == 2
    assert "has no versions" in empty.output
    features = tmp_path / "columns.txt"
    features.write_text("eventName\n")
    with pytest.raises(UsageError, match="columns"):
        retrain_models(models, [str(logs / "logs")], RetrainOptions(columns_file=str(features)))
