"""`morpheus models`, and streams that take new versions while they run."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.cli.output import print_table
from morpheus.core.stage import PipelineOptions
from morpheus.models.store import ModelIndex, commit_index, put_model
from morpheus.models.versions import CHAMPION, VersionedStore
from morpheus.pipeline import Pipeline
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.train_ae import TrainAe
from people import day, fingerprint
from test_watch import until, write

DATA = Path(__file__).parents[1] / "examples" / "data"
LESSON_USER = "userIdentitysessionContextsessionIssueruserName"


def models(*words):
    return CliRunner().invoke(morpheus, ["models", *map(str, words)], prog_name="morpheus")


def failed(result, code, *texts):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for text in texts:
        assert text in result.output


def named(user, model):
    return replace(model, card=msgspec.structs.replace(model.card, user=user))


@pytest.fixture(scope="module")
def two():
    return fingerprint(), fingerprint(day(500, seed=1))


@pytest.fixture
def store(tmp_path, two):
    """A store whose champion has two users, and whose candidate changes one and adds one."""
    folder = tmp_path / "models"
    opened = VersionedStore.open(folder)
    opened.publish([named(user, two[0]) for user in ("ann", "bob")], note="first")
    opened.publish([named(user, two[1]) for user in ("ann", "eve")], note="second")
    return folder


def test_list_has_a_line_for_each_version(store):
    lines = models("list", store).output.splitlines()
    assert lines[0].split()[:4] == ["VERSION", "PUBLISHED", "USERS", "CHANGED"]
    assert "2026-01-01  champion   first" in lines[1]
    assert lines[2].split()[0] == "2"
    assert "candidate  second" in lines[2]
    first, second = json.loads(models("list", store, "--json").output)
    assert (first["number"], first["aliases"], first["users"]) == (1, ["champion"], 2)
    assert (second["parent"], second["changed"], second["note"]) == (1, 2, "second")


def test_show_has_the_facts_and_the_cards(store):
    output = models("show", f"{store}@candidate").output
    assert "Version        2, candidate" in output
    assert "Users          3, of which 2 changed" in output
    assert [line.split()[:3] for line in output.splitlines()[-3:]] == [
        ["ann", "2", "500"],
        ["bob", "1", "400"],
        ["eve", "2", "500"],
    ]
    assert "and 2 more users (--max_users)" in models("show", f"{store}@2", "--max_users=1").output
    assert json.loads(models("show", store, "--json").output)["cards"][0]["user"] == "ann"
    failed(models("show", store, "--user=mallory"), 2, "version 1 has no fingerprint of `mallory`")


def test_a_misspelt_alias_is_an_error_of_usage_wherever_a_store_is_named(store, tmp_path):
    bad, logs = f"{store}@CHAMP", str(DATA / "input-data")
    run = ["run", "pipeline-ae", "from-cloudtrail", f"--input_glob={logs}/*.csv", "train-ae"]
    guess = "Did you mean `champion`?"
    for command, *texts in (
        *((["models", word, bad], guess, f"Give `{store}@c") for word in ("show", "promote")),
        (["models", "export", bad, str(tmp_path / "new")], guess, f"or `{store}@1`."),
        (["report", logs, f"--models={bad}"], guess, f"or `{store}@1`."),
        (["tools", "erase", "ann", f"--models={bad}"], f"Give `{store}`: all"),
        ([*run, f"--pretrained_filename={bad}"], guess, f"or `{store}@1`."),
        ([*run, f"--models_output_filename={bad}"], guess, f"Give `{store}` or `{store}@candi"),
        *((["models", word, bad], f"Give `{store}`: ") for word in ("list", "diff", "rollback")),
        (["models", "prune", bad], f"Give `{store}`: all versions of it are meant."),
        (["models", "export", str(store), bad], f"Give `{store}`: "),
        (["retrain", bad, logs], f"Give `{store}`: "),
    ):
        result = CliRunner().invoke(morpheus, command, prog_name="morpheus")
        failed(result, 2, "names no version of a model store: `CHAMP` is n", *texts)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_new_alias_that_resembles_a_usual_one_is_named(work):
    for alias, warns in (("candidat", True), ("candidat", False), ("europe", False)):
        result = CliRunner().invoke(
            morpheus,
            [
                *("run", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
                *("from-cloudtrail", f"--input_glob={work}/in/a.jsonl", "train-ae"),
                f"--models_output_filename={work / 'models'}@{alias}",
            ],
        )
        assert result.exit_code == 0, result.output
        assert ("is new. The version of this run gets it. Did you" in result.output) == warns


def test_a_long_name_of_a_user_widens_no_table_and_is_whole_in_json(store, two, tmp_path):
    user = "n" * 300
    VersionedStore.open(store).publish([named(user, two[1])])
    for words in (
        ("models", "show", f"{store}@candidate"),
        ("models", "diff", store, "1", "3"),
        ("tools", "erase", user, f"--models={store}"),
    ):
        result = CliRunner().invoke(morpheus, [*map(str, words)], prog_name="morpheus")
        assert result.exit_code == 0, result.output
        [line] = [line for line in result.stdout.splitlines() if "nnn" in line]
        assert line.count("n") < 130
        assert len(line) < 200 + len(str(tmp_path))
    assert user in models("show", f"{store}@candidate", "--json").output


def test_tables_shorten_names_of_users_and_no_other_text(capsys):
    print_table(("SEVERITY", "USER", "REASON"), [("9", "u" * 300, "r" * 300)])
    line = capsys.readouterr().out.splitlines()[1]
    assert (line.count("u"), line.count("r")) == (63, 300)


def test_diff_compares_user_by_user(store):
    output = models("diff", store).output
    assert "Version 1 to 2: 2 fingerprints changed, 1 equal" in output
    ann, eve = output.splitlines()[-2:]
    assert ann.split()[:7] == ["ann", "1", "->", "2", "400", "->", "500"]
    assert eve.split()[:4] == ["eve", "none", "->", "2"]
    users = json.loads(models("diff", store, 1, 2, "--json").output)["users"]
    assert users["eve"]["old"] is None
    assert users["ann"]["new"]["threshold"] > 0
    assert "0 fingerprints changed, 2 equal" in models("diff", store, 1, CHAMPION).output


def test_promote_and_rollback_move_the_champion(store):
    dry = models("promote", store, "--dry_run")
    assert "Champion: version 1 -> version 2" in dry.output
    opened = VersionedStore.open(store)
    assert opened.resolve() == 1
    assert "version 2 is the champion" in models("promote", store).output
    assert opened.resolve() == 2
    assert "version 1 is the champion" in models("rollback", store).output
    assert opened.resolve() == 1
    failed(models("rollback", store), 2, "no other version was champion before")
    failed(models("rollback", f"{store}@2"), 2, "`morpheus models promote")


def test_promote_and_rollback_for_one_user_make_a_version(store):
    assert "version 3 is the champion" in models("promote", store, "--user=ann").output
    opened = VersionedStore.open(store)
    cards = opened.open_version().cards
    assert {user: cards[user].events for user in cards} == {"ann": 500, "bob": 400}
    result = models("rollback", store, "--user=ann", "--note=too noisy")
    assert "Champion: version 3 -> version 1 for 1 user" in result.output
    assert opened.load("ann").card.events == 400
    assert opened.versions()[-1].note == "too noisy"
    text = "version 2 has no fingerprint of `bobby`. Did you mean `bob`?"
    failed(models("promote", store, "--user=bobby"), 2, text)
    failed(models("show", f"{store}@2", "--user=bobby"), 2, text)


def test_promoting_what_the_champion_has_makes_no_version(store):
    for users in (("--user=bob",), ("--user=ann", "--user=bob")):
        result = models("promote", f"{store}@1", *users)
        assert "version 1 is the champion" in result.output
    assert [each.number for each in VersionedStore.open(store).versions()] == [1, 2]


def test_prune_removes_only_with_delete(store, two):
    opened = VersionedStore.open(store)
    for _ in range(3):
        opened.publish([named("joe", two[0])], base=None)
    listed = models("prune", store, "--keep=1")
    assert "kept: champion" in listed.output
    assert "Nothing was removed. Add --delete to remove them." in listed.output
    assert len(opened.versions()) == 5
    removed = json.loads(models("prune", store, "--keep=1", "--delete", "--json").output)
    assert removed["removed"] == [2, 3, 4][3 - len(removed["removed"]) :]
    assert {each.number for each in opened.versions()} == {1, 2, 3, 4, 5} - set(removed["removed"])


def test_export_copies_a_version(store, tmp_path):
    assert "version 2 of" in models("export", f"{store}@candidate", tmp_path / "copy").output
    assert VersionedStore.open(tmp_path / "copy").resolve() == 2
    failed(models("export", store, tmp_path / "copy"), 2, "has versions already")


def test_a_folder_without_versions_is_listed_as_version_1(tmp_path, two):
    folder = tmp_path / "old"
    commit_index(folder, ModelIndex.from_cards({"ann": put_model(folder, two[0])}))
    assert "1  " in models("list", folder).output
    assert "Version        1, champion" in models("show", folder).output


@pytest.mark.parametrize("command", ["list", "show", "diff", "promote", "rollback", "prune"])
def test_a_missing_store_says_how_to_make_one(tmp_path, command):
    result = models(command, tmp_path / "none")
    failed(result, 2, "has no versions. Publish one with `train-ae")
    assert not (tmp_path / "none").exists()


def test_a_wrong_version_is_named(store):
    failed(models("show", f"{store}@7"), 2, "there is no version 7")
    failed(models("diff", store, "champoin"), 2, "Did you mean `champion`?")


def train(folder, *globs):
    words = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={LESSON_USER}"]
    words += ["from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv", "train-ae"]
    words += [f"--train_data_glob={DATA}/{glob}/*.csv" for glob in globs]
    words += [f"--models_output_filename={folder}", "--train_epochs=2"]
    assert CliRunner().invoke(morpheus, words).exit_code == 0


@pytest.mark.parametrize("command", ["list", "diff", "prune"])
def test_a_version_is_rejected_where_a_command_takes_the_whole_store(store, command):
    failed(models(command, f"{store}@1"), 2, f"Give `morpheus models {command} {store}`")


def test_a_copy_has_no_alias_and_a_store_is_no_file(store, tmp_path):
    copy = tmp_path / "copy"
    failed(models("export", store, f"{copy}@candidate"), 2, f"Give `{copy}`")
    (tmp_path / "file").write_text("")
    failed(models("list", tmp_path / "file"), 2, "is a file, not a model store")
    failed(models("export", store, tmp_path / "file"), 2, "is a file, not a model store")


def test_rollback_shows_which_alerts_appear_and_which_vanish(tmp_path):
    folder, logs = tmp_path / "models", f"--input_glob={DATA}/input-data/*.csv"
    train(folder, "training-data")
    train(folder, "training-data", "input-data")  # the attack is usual behaviour now
    result = models("rollback", folder, logs, "--dry_run")
    assert result.exit_code == 0, result.output
    assert "Champion: version 2 -> version 1" in result.output
    assert "1 alert would appear, 0 would vanish" in result.output
    assert "appears  user123" in result.output
    assert VersionedStore.open(folder).resolve() == 2
    result = models("rollback", folder, logs, "--json", "--user=user123")
    facts = json.loads(result.stdout)
    assert {alert["user"] for alert in facts["appear"]} == {"user123"}
    assert facts["targets"] == {"1": ["user123"]}
    assert VersionedStore.open(folder).resolve() == 3
    failed(models("rollback", folder, "--input_glob=none/*.csv"), 2, "--input_glob", "none/*.csv")


def test_a_comparison_of_no_events_is_an_error_and_changes_nothing(tmp_path):
    folder, logs = tmp_path / "models", DATA / "training-data" / "*.csv"
    words = ["run", "pipeline-ae", f"--userid_column_name={LESSON_USER}", "from-cloudtrail"]
    words += [f"--input_glob={logs}", "train-ae", f"--models_output_filename={folder}"]
    for seed in (1, 2):
        assert CliRunner().invoke(morpheus, [*words, f"--seed={seed}"]).exit_code == 0
    none = [f"--input_glob={logs}", "--start_time=2030-01-01"]
    failed(models("rollback", folder, *none), 2, "no event of this period was scored")
    failed(models("rollback", folder, "--start_time=2030-01-01"), 2, "--start_time: no logs")
    for option in ("--min_severity=30", "--pseudonym_key_file=key"):
        words = f"{option.partition('=')[0]}: no logs are scored"
        failed(models("promote", f"{folder}@1", option), 2, words)
    assert VersionedStore.open(folder).resolve(CHAMPION) == 2


def test_a_user_of_an_earlier_version_is_erased_too(store, two):
    opened = VersionedStore.open(store)
    opened.publish([named("joe", two[0])], base=None, alias=CHAMPION)
    words = ["tools", "erase", f"--models={store}", "bob", "--delete"]
    result = CliRunner().invoke(morpheus, words)
    assert "fingerprint of bob" in result.output, result.output
    assert "Removed 1 item." in result.output
    assert "bob" not in opened.find_users()
    assert all(b"bob" not in path.read_bytes() for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "words",
    [
        *(["list"], ["show"], ["diff"], ["promote"], ["rollback"], ["prune"], ["export"]),
        ["export", "models"],
    ],
)
def test_a_command_without_its_store_says_what_is_missing(words):
    missing = "FOLDER" if len(words) > 1 else "STORE"
    failed(models(*words), 2, f"Missing argument '{missing}'")


# Runs at the same time.


def run_words(folder, *options, store="models"):
    return [
        *("run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *("from-cloudtrail", f"--input_glob={folder}/in/a.jsonl", "train-ae", "--train_epochs=2"),
        *("--train_min_history=10", f"--models_output_filename={folder / store}", *options),
    ]


def start(words, max_file=None):
    """A process that runs the command; the size of the files that it writes can be limited."""
    main = "from morpheus.cli.main import main; main()"
    if max_file is not None:
        # Python's cached modules would be cut off, too.
        main = f"import sys; sys.dont_write_bytecode = True; {main}"
        main = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({max_file}, -1)); {main}"
    return subprocess.Popen([sys.executable, "-c", main, *words], stderr=subprocess.PIPE, text=True)


def test_runs_that_train_the_same_at_the_same_time_all_publish(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", 1, 60)
    rest = ["preprocess", "inf-pytorch", "add-scores", "serialize", "to-file"]
    outputs = [tmp_path / f"{number}.csv" for number in range(3)]
    processes = [start([*run_words(tmp_path), *rest, f"--filename={out}"]) for out in outputs]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    numbers = [set(pl.read_csv(out)["model_version"]) for out in outputs]
    assert sorted(numbers, key=min) == [{1}, {2}, {3}], "each run's rows have its own version"
    store = VersionedStore.open(tmp_path / "models")
    assert [each.number for each in store.versions()] == [1, 2, 3]
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert names == {".store.json.lock", "indexes", "packs", "store.json"}


@pytest.mark.parametrize("name", ["models", "new"])
def test_a_run_that_fails_leaves_no_files_of_fingerprints(work, name):
    text = (work / "in" / "a.jsonl").read_text()
    (work / "in" / "a.jsonl").write_text(text + text.replace('"ann"', '"bob"'))
    before = {path for path in work.rglob("*") if path.is_file()}
    [card] = VersionedStore.open(work / "models").open_version(1).cards.values()
    limit = card.size * 3 // 2  # a pack of two is too large, a fingerprint is not
    process = start(run_words(work, "--seed=7", store=name), limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "Cannot write" in errors
    assert {path for path in work.rglob("*") if path.is_file()} == before


def test_renewing_users_keeps_what_another_run_has_published_meanwhile(work, two):
    store, log = VersionedStore.open(work / "models"), f"{work}/in/a.jsonl"

    def publish_meanwhile(*_):
        if len(store.versions()) == 1:
            store.publish([named("bob", two[0])], alias=CHAMPION)

    folder = str(work / "models")
    training = TrainAe(
        *(folder, log), models_output_filename=folder, train_min_history=10, train_epochs=2, seed=9
    )
    stages = [FromCloudtrail(input_glob=log), training]
    options = PipelineOptions(userid_column_name="userIdentityuserName", num_threads=1)
    Pipeline(stages, options).run(on_step=publish_meanwhile)
    champion = store.open_version(CHAMPION)
    assert {user: card.version for user, card in champion.cards.items()} == {"ann": 3, "bob": 2}


def test_the_report_of_rows_of_a_candidate_gets_the_candidate(work):
    glob, output = f"--train_data_glob={work}/in/a.jsonl", f"{work / 'models'}@candidate"
    options = (glob, "--train_min_history=10", f"--models_output_filename={output}")
    assert f"--models={output}" in score(work, "new.csv", *options)
    assert f"--models={work / 'models'}`" in score(
        work, "again.csv", *options[:2], options[2].removesuffix("@candidate")
    )


# Streams.


@contextmanager
def stream(folder, store, *options):
    """A process that scores the files of a work directory with a store."""
    words = [
        *("--log_level=INFO", "run", "--num_threads=1", "pipeline-ae"),
        *("--userid_column_name=userIdentityuserName", "--missing_features=warn"),
        *("from-cloudtrail", f"--input_glob={folder}/in/*.jsonl", "--watch_directory=true"),
        *("--batch_timeout=0.1", "train-ae", f"--pretrained_filename={store}", *options),
        *("preprocess", "inf-pytorch", "add-scores", "--label=ae_anomaly_score", "--label=risk"),
        *("serialize", "to-file", f"--filename={folder}/out.csv", "--flush"),
    ]
    main = "from morpheus.cli.main import main; main()"
    log = folder / "log.txt"
    with (
        log.open("w") as file,
        subprocess.Popen([sys.executable, "-c", main, *words], stderr=file, text=True) as process,
    ):
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    assert process.returncode == 130, log.read_text()
    assert "Traceback" not in log.read_text()


def rows(folder):
    path = folder / "out.csv"
    return pl.read_csv(path) if path.exists() else pl.DataFrame({"model_version": []})


@pytest.fixture
def work(tmp_path):
    """A store of one version of the user `ann`, and a folder with a first file."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", 1, 60)
    train_ann(tmp_path, "models", 1)
    return tmp_path


def train_ann(folder, store, seed):
    train_on(folder / "in" / "a.jsonl", folder / store, seed)


def train_on(log, store, seed):
    words = ["run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"]
    words += ["from-cloudtrail", f"--input_glob={log}", "train-ae"]
    words += [f"--models_output_filename={store}", f"--seed={seed}", "--train_epochs=2"]
    words += ["--train_min_history=10"]
    assert CliRunner().invoke(morpheus, words).exit_code == 0


def test_a_stream_takes_a_new_champion_without_a_restart(work):
    with stream(work, work / "models", "--model_refresh=0.1"):
        until(lambda: rows(work).height == 60)
        train_ann(work, "models@candidate", 2)
        write(work / "in" / "b.jsonl", 2, 30)
        until(lambda: rows(work).height == 90)
        VersionedStore.open(work / "models").promote()
        write(work / "in" / "c.jsonl", 3, 30)
        until(lambda: rows(work).height == 120)
    frame = rows(work)
    assert frame["model_version"].to_list() == [1] * 90 + [2] * 30, "a candidate is not used"
    assert frame["risk"].null_count() == 0
    alone = work / "alone.csv"
    words = ["run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"]
    words += ["--missing_features=warn", "from-cloudtrail", f"--input_glob={work}/in/c.jsonl"]
    words += ["train-ae", f"--pretrained_filename={work / 'models'}@2", "preprocess"]
    words += ["inf-pytorch", "add-scores", "--label=ae_anomaly_score", "--label=risk"]
    words += ["serialize", "to-file", f"--filename={alone}"]
    assert CliRunner().invoke(morpheus, words).exit_code == 0
    columns = ["ae_anomaly_score", "risk"]
    fresh = pl.read_csv(alone).select(columns)
    assert frame.select(columns).tail(30).equals(fresh), "the days since the training begin again"


def test_a_stream_of_a_numbered_version_stays_with_it(work):
    with stream(work, f"{work / 'models'}@1", "--model_refresh=0.1"):
        until(lambda: rows(work).height == 60)
        train_ann(work, "models", 2)
        write(work / "in" / "b.jsonl", 2, 30)
        until(lambda: rows(work).height == 90)
    assert rows(work)["model_version"].to_list() == [1] * 90


def test_a_stream_goes_on_when_the_store_cannot_be_read(work):
    manifest = work / "models" / "store.json"
    with stream(work, work / "models", "--model_refresh=0.1"):
        until(lambda: rows(work).height == 60)
        manifest.write_bytes(manifest.read_bytes()[:-20])
        write(work / "in" / "b.jsonl", 2, 30)
        until(lambda: rows(work).height == 90)
    assert rows(work)["model_version"].to_list() == [1] * 90
    assert "no new version of the models can be used" in (work / "log.txt").read_text()


@pytest.fixture
def pair(work):
    """The same with the user `bob` in version 1, of whom the folder has no event yet."""
    text = (work / "in" / "a.jsonl").read_text()
    shutil.rmtree(work / "models")
    (work / "in" / "a.jsonl").write_text(text + text.replace('"ann"', '"bob"'))
    train_ann(work, "models", 1)
    (work / "in" / "a.jsonl").write_text(text)
    return work


def arrive(folder):
    """The first events of the user `bob`."""
    write(folder / "b.jsonl", 2, 30)
    text = (folder / "b.jsonl").read_text().replace('"ann"', '"bob"')
    (folder / "b.jsonl").unlink()
    (folder / "in" / "b.jsonl").write_text(text)


def log_of(folder):
    return (folder / "log.txt").read_text()


def waits(folder):
    return "The run waits until the models can be read" in log_of(folder)


def copy_slowly(store, target, is_read):
    """Copy a store as a program does that begins with the manifest, until it was read half-way."""
    shutil.copytree(store, target, ignore=lambda folder, names: names if "packs" in folder else ())
    [pack] = (store / "packs").iterdir()
    content, copy = pack.read_bytes(), target / "packs" / pack.name
    copy.write_bytes(content[: len(content) // 9])
    until(is_read)
    copy.write_bytes(content)


def test_a_stream_waits_for_a_store_that_is_away_and_gives_its_users_their_scores(pair):
    with stream(pair, pair / "models", "--model_refresh=0.1"):
        until(lambda: rows(pair).height == 60)
        (pair / "models").rename(pair / "away")
        arrive(pair)
        until(lambda: waits(pair))
        copy_slowly(pair / "away", pair / "models", lambda: "is cut off" in log_of(pair))
        until(lambda: rows(pair).height == 90)
    assert rows(pair)["risk"].null_count() == 0
    assert "has no versions any more" in (pair / "log.txt").read_text()


def test_a_stream_that_waits_for_its_store_can_be_stopped_and_says_what_has_no_rows(pair):
    with stream(pair, pair / "models", "--model_refresh=0.1"):
        until(lambda: rows(pair).height == 60)
        (pair / "models").rename(pair / "away")
        arrive(pair)
        until(lambda: waits(pair))
    assert "The latest events are not written" in (pair / "log.txt").read_text()
    assert rows(pair).height == 60


@pytest.mark.parametrize("is_erased", [True, False])
def test_a_stream_reads_a_version_again_that_was_changed_and_has_its_number(pair, is_erased):
    with stream(pair, pair / "models", "--model_refresh=0.1"):
        until(lambda: rows(pair).height == 60)
        if is_erased:
            VersionedStore.open(pair / "models").erase(["ann"])
        else:
            (pair / "models").rename(pair / "before")
            text = (pair / "in" / "a.jsonl").read_text()
            (pair / "bob.jsonl").write_text(text.replace('"ann"', '"bob"'))
            train_on(pair / "bob.jsonl", pair / "models", 7)
        arrive(pair)
        until(lambda: rows(pair).height == 90)
    assert rows(pair)["model_version"].to_list() == [1] * 90


def score(work, out, *options):
    words = ["run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"]
    words += ["from-cloudtrail", f"--input_glob={work}/in/a.jsonl", "train-ae", *options]
    words += ["preprocess", "inf-pytorch", "add-scores", "serialize", "to-file", "--overwrite"]
    result = CliRunner().invoke(morpheus, [*words, f"--filename={work / out}"])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_says_which_fingerprint_is_damaged_and_uses_the_one_before(work):
    train_ann(work, "models", 2)
    store = VersionedStore.open(work / "models")
    place = store.open_version(2).find_placed("ann")
    pack = work / "models" / "packs" / f"{place.pack}.pack"
    content = bytearray(pack.read_bytes())
    content[place.start + 1000] ^= 1
    pack.write_bytes(bytes(content))
    output = score(work, "out.csv", f"--pretrained_filename={work / 'models'}")
    assert re.search(r"Damaged +1 fingerprint of version 2; earlier ones are used", output)
    assert set(pl.read_csv(work / "out.csv")["model_version"]) == {1}


def test_rows_have_the_version_only_with_a_store_and_the_same_when_it_is_published(work):
    glob = f"--train_data_glob={work}/in/a.jsonl"
    score(work, "none.csv", glob, "--train_min_history=10")
    assert "model_version" not in pl.read_csv(work / "none.csv").columns
    output = f"--models_output_filename={work / 'models'}"
    score(work, "new.csv", glob, "--train_min_history=10", output)
    score(work, "again.csv", f"--pretrained_filename={work / 'models'}")
    assert set(pl.read_csv(work / "new.csv")["model_version"]) == {2}
    assert (work / "new.csv").read_bytes() == (work / "again.csv").read_bytes()
