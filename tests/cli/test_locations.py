"""Options that name files, users and columns: how often they may be given, and in what form."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.core.stage import PipelineOptions, read_lines, resolve_locations
from morpheus.errors import UsageError
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sinks.to_report import ToReport
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.storage.object_store import normalise_location

USER = "userIdentityuserName"
USERS = ("ann", "bob", "Eve")


def make_log(user: str, day: int = 1, events: int = 4) -> str:
    """CloudTrail events of one user, one an hour."""
    records = [
        {
            "eventID": f"{day:04}{n:04}-0000-4000-8000-{abs(hash(user)) % 10**12:012}",
            "eventTime": f"2024-05-{day:02}T{n:02}:30:00Z",
            "eventName": "Get",
            "userIdentity": {"userName": user},
        }
        for n in range(events)
    ]
    return json.dumps({"Records": records})


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a log of each user in `NAME/2024/05/01/`."""
    for user in USERS:
        folder = tmp_path / "trails" / user.lower() / "CloudTrail" / "2024" / "05" / "01"
        folder.mkdir(parents=True)
        (folder / "a.json").write_text(make_log(user))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SCORE = ("train-ae", "--train_min_history=2", "--train_epochs=1", "preprocess", "inf-pytorch")
WRITE = (*SCORE, "add-scores", "serialize", "to-file", "--filename=rows.csv", "--overwrite")


def run(
    *source: str, options: tuple[str, ...] = (), before: tuple[str, ...] = (), then=WRITE
) -> Result:
    start = ("run", "--num_threads=1", *before, "pipeline-ae", f"--userid_column_name={USER}")
    return CliRunner().invoke(morpheus, [*start, *options, "from-cloudtrail", *source, *then])


def written(name: str = "rows.csv") -> list[str]:
    """The users of the rows, in order of their first row."""
    header, *rows = Path(name).read_text().splitlines()
    at = header.split(",").index(USER)
    return list(dict.fromkeys(row.split(",")[at] for row in rows))


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--num_threads=1", "--num_threads=1", "pipeline-ae"),
        ("--log_level=INFO", "--log_level", "DEBUG", "run"),
        ("run", "pipeline-ae", "--state=a", "--state=b", "from-cloudtrail", "--input_glob=x"),
        ("run", "pipeline-ae", "from-cloudtrail", "--file_type=csv", "--file-type=json"),
        ("run", "pipeline-ae", "train-ae", "--seed", "1", "--seed", "1"),
        ("run", "pipeline-ae", "to-file", "--filename=a.csv", "--filename=b.csv"),
        ("report", "x.csv", "--filename=a.html", "--filename=b.html"),
        ("tools", "replay", "--input_glob=x", "--seed=1", "--seed=2"),
        ("tools", "suppress", "x.json", "--days=1", "--days=2"),
        ("tools", "autocomplete", "show", "--shell=bash", "--shell=zsh"),
    ],
)
def test_an_option_that_takes_one_value_is_rejected_when_given_twice(
    words: tuple[str, ...],
) -> None:
    done = CliRunner().invoke(morpheus, words)
    assert done.exit_code == 2
    assert "is given 2 times, but takes one value. Give it once." in done.stderr


def test_flags_and_repeatable_options_can_be_given_again_and_stages_have_options_of_their_own(
    logs: Path,
) -> None:
    assert logs
    labels = ("--label=risk", "--label=ae_anomaly_score", "serialize")
    files = ("to-file", "--filename=a.csv", "--overwrite", "--overwrite")
    done = run("--input_glob=trails", then=(*SCORE, "add-scores", *labels, *files, *WRITE[-3:]))
    assert done.exit_code == 0, done.output


def test_globs_of_input_and_training_repeat(logs: Path) -> None:
    done = run("--input_glob=trails/ann", f"--input_glob={logs}/trails/bob/**/*.json")
    assert done.exit_code == 0, done.output
    assert written() == ["ann", "bob"]
    train = ("--train_data_glob=trails/ann", "--train_data_glob=trails/eve")
    done = run("--input_glob=trails", then=("train-ae", *train, *SCORE[1:], *WRITE[len(SCORE) :]))
    assert done.exit_code == 0, done.output
    assert "Training  8 events in 2 files" in done.stderr


def test_a_file_that_two_globs_match_is_read_once(logs: Path) -> None:
    globs = ("trails", "./trails/ann", f"{logs}/trails/*/CloudTrail/", "trails/**/a.json")
    assert len(FileDiscovery(globs).require().paths) == len(USERS)


def test_each_glob_must_match(logs: Path) -> None:
    assert logs
    done = run("--input_glob=trails", "--input_glob=trials")
    assert done.exit_code == 2
    assert "--input_glob: no log file matches `trials`" in done.stderr


def test_globs_in_the_environment_have_a_line_each(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(logs / "trails" / "ann", logs / "my logs")
    name = "MORPHEUS_RUN_PIPELINE_AE_FROM_CLOUDTRAIL_INPUT_GLOB"
    monkeypatch.setenv(name, f"{logs}/my logs\n{logs}/trails/bob")
    assert run().exit_code == 0
    assert written() == ["ann", "bob"]


def test_users_can_be_chosen_and_left_out(logs: Path) -> None:
    assert logs
    assert run("--input_glob=trails", options=("--userid_filter=ann",)).exit_code == 0
    assert written() == ["ann"]
    two = ("--userid_filter=ann", "--userid_filter=bob")
    assert run("--input_glob=trails", options=two).exit_code == 0
    assert written() == ["ann", "bob"]
    done = run("--input_glob=trails", options=("--skip_user=ann", "--skip_user=bob"))
    assert written() == ["Eve"]
    assert "left out  8 of skipped users" in done.stderr


def test_a_user_who_is_left_out_is_not_trained_on(logs: Path) -> None:
    assert logs
    then = ("train-ae", "--train_data_glob=trails", *SCORE[1:], *WRITE[len(SCORE) :])
    done = run("--input_glob=trails", options=("--skip_user=ann",), then=then)
    assert done.stderr.count("left out  4 of skipped users") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--userid_filter=eve",), "--userid_filter: .*has `eve` as.*Did you mean `Eve`"),
        (("--userid_filter=ann", "--userid_filter=bo"), "has `bo` as .*"),
        (("--userid_filter=anne",), "has `anne` as .* Did you mean `ann`"),
        (("--skip_user=bobb",), "--skip_user: .*has `bobb` as .* Did you mean `bob`"),
    ],
)
def test_a_user_without_events_is_named_with_similar_users(
    logs: Path, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], message: str
) -> None:
    assert logs
    run("--input_glob=trails", options=options)
    assert any(re.search(message, text) for text in caplog.messages)


@pytest.mark.parametrize(
    ("source", "options", "stages", "reason"),
    [
        (("--start_time=2025-01-01",), (), (), "no file is in the period, by the dates"),
        (("--start_time=2024-05-01T12:00",), (), (), "no event is in the period"),
        ((), ("--userid_filter=nobody",), (), "no event is of a wanted user"),
        ((), (), ("filter", "--threshold=1e9"), "all 12 events were filtered"),
    ],
)
def test_a_run_without_events_says_so_and_its_outputs_have_columns(
    logs: Path,
    source: tuple[str, ...],
    options: tuple[str, ...],
    stages: tuple[str, ...],
    reason: str,
) -> None:
    outputs = ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet", "rows.csv.gz"]
    sinks = [word for name in outputs for word in ("to-file", f"--filename={name}")]
    then = (*SCORE, "add-scores", *stages, "to-ecs", "--filename=a.jsonl", "serialize", *sinks)
    before = ("--fail_on_empty",) if "--userid_filter=nobody" in options else ()
    done = run("--input_glob=trails", *source, options=options, before=before, then=then)
    assert done.exit_code == (1 if before else 0), done.output
    assert reason in done.stderr
    header = (logs / "rows.csv").read_text()
    assert header.startswith(",_index_,")
    assert header.count("\n") == 1
    assert USER in header
    assert "ae_anomaly_score" in header
    assert (logs / "rows.json").read_text() == "[]\n"
    assert (logs / "rows.jsonl").read_text() == (logs / "a.jsonl").read_text() == "\n"
    parquet = pl.read_parquet(logs / "rows.parquet")
    assert parquet.height == 0
    assert "ae_anomaly_score" in parquet.columns


def test_an_empty_run_is_a_failure_on_request(logs: Path) -> None:
    source = ("--input_glob=trails", "--start_time=2025-01-01")
    done = run(*source, before=("--fail_on_empty",))
    assert done.exit_code == 1
    assert "Error: No event was written: no file is in the period" in done.stderr
    assert (logs / "rows.csv").read_text().count("\n") == 1
    assert run("--input_glob=trails", before=("--fail_on_empty",)).exit_code == 0


def test_an_empty_data_set_has_its_columns(logs: Path) -> None:
    assert logs
    sink = ("serialize", "to-parquet", "--folder=set", "--partition_by=date")
    done = run("--input_glob=trails", "--start_time=2025-01-01", then=(*SCORE, "add-scores", *sink))
    assert done.exit_code == 0, done.output
    frame = pl.read_parquet("set/part-00000.parquet")
    assert frame.height == 0
    assert {USER, "date", "ae_anomaly_score"} <= set(frame.columns)


@pytest.mark.parametrize(
    "pattern",
    ["trails/*/CloudTrail/", "trails/*/CloudTrail", "trails/*/Cloud*", "trails/an*", "trails/b*/"],
)
def test_a_folder_behind_a_wildcard_is_read_whole(logs: Path, pattern: str) -> None:
    assert logs
    wanted = {"trails/an*": 1, "trails/b*/": 1}.get(pattern, len(USERS))
    assert len(FileDiscovery(pattern).require().paths) == wanted


def test_without_recursion_only_a_slash_opens_a_folder(logs: Path) -> None:
    shutil.copy(logs / "trails/ann/CloudTrail/2024/05/01/a.json", logs / "trails/ann/a.json")
    flat = FileDiscovery("trails/*/", recursive=False)
    assert [path.name for path in flat.require().paths] == ["a.json"]
    assert FileDiscovery("trails/*", recursive=False).find().paths == []


def test_file_urls_name_local_files(logs: Path) -> None:
    target = logs / "my rows.csv"
    words = WRITE[:-2]
    url = f"--filename=file://{logs}/my%20rows.csv"
    done = run(f"--input_glob=file://{logs}/trails/*/CloudTrail/", then=(*words, url))
    assert done.exit_code == 0, done.output
    assert target.exists()
    assert run(f"--input_glob=file:{logs}/trails").exit_code == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://server/logs", "names the machine `server`"),
        ("file://logs", "names the machine `logs`"),
        ("http://x/a.json", "`http://` is not supported here. Give a path"),
        ("hdfs://x/a.json", "`hdfs://` is not supported here"),
        ("s3:/lake/a.json", "two slashes are missing after `s3:`"),
        ("gs:lake", "two slashes are missing after `gs:`"),
    ],
)
def test_urls_that_cannot_be_used_are_rejected(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--input_glob: .*{message}"):
        resolve_locations(FromCloudtrail(input_glob=("logs", url)))
    with pytest.raises(UsageError, match=f"--filename: .*{message}"):
        resolve_locations(ToFile(filename=url))


def test_options_of_this_machine_reject_object_stores() -> None:
    for name in ("state", "status_file", "viz_file", "columns_file", "labels_file"):
        with pytest.raises(UsageError, match=f"--{name}: .*Give a path on this machine"):
            resolve_locations(PipelineOptions(**{name: "s3://lake/x"}))  # type: ignore[arg-type]  # each is a text
    assert normalise_location("S3A://lake/x") == "s3://lake/x"


@pytest.mark.parametrize("folder", ["", "data/", "./data/", "morpheus/data/", "models/data/"])
def test_shipped_lists_are_found_in_the_folders_of_nvidia_morpheus(folder: str) -> None:
    columns = read_lines("columns_ae_duo.txt", option="--columns_file")
    assert read_lines(f"{folder}columns_ae_duo.txt", option="--columns_file") == columns
    workspace = f"/workspace/{folder.removeprefix('./')}columns_ae_duo.txt"
    if folder.startswith("mo"):
        assert read_lines(workspace, option="--columns_file") == columns


def test_a_list_elsewhere_is_not_replaced_by_a_shipped_one(tmp_path: Path) -> None:
    message = "there is no file .* Did you mean `columns_ae_duo.txt`"
    for name in (f"{tmp_path}/columns_ae_duo.txt ", "my/data/columns_ae_duos.txt"):
        with pytest.raises(UsageError, match=message):
            read_lines(name, option="--columns_file")
    (tmp_path / "morpheus" / "data").mkdir(parents=True)
    own = tmp_path / "morpheus" / "data" / "columns_ae_duo.txt"
    own.write_text("mine\n")
    assert read_lines(str(own), option="--columns_file") == ("mine",)


def test_stdout_has_the_rows_and_nothing_else(logs: Path) -> None:
    assert logs
    words = (*SCORE, "add-scores", "serialize", "--include=eventName", "to-file", "--filename=-")
    done = run("--input_glob=trails/ann", then=words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [",eventName", *(f"{n},Get" for n in range(4))]
    done = run("--input_glob=trails/ann", then=(*words, "--file_type=json"))
    assert done.stdout == '{"eventName":"Get"}\n' * 4
    assert not Path("-").exists()
    done = run("--input_glob=trails/ann", then=(*words, "to-console"))
    assert done.exit_code == 2
    assert "`to-file` and `to-console` both write to stdout" in done.stderr


def test_a_failed_run_prints_no_rows(logs: Path) -> None:
    (logs / "trails" / "ann" / "b.json").write_text("{")
    words = (*SCORE, "add-scores", "serialize", "to-file", "--filename=-")
    done = run("--input_glob=trails/ann", then=words)
    assert (done.exit_code, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (ToReport(filename="x.pdf"), "x.pdf` has an unsupported extension. Use .html or .htm"),
        (ToReport(filename="-"), "unsupported extension"),
        (ToFile(filename="x.xlsx"), "the extension `.xlsx` of"),
        (ToParquet(folder="x.csv"), "is named like a file"),
    ],
)
def test_an_output_of_another_kind_is_rejected(stage: ToReport | ToFile, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage.validate()


@pytest.mark.parametrize(
    ("before", "options", "message"),
    [
        (("--status_file=taken/status.json",), (), "--status_file: .*taken` is a file"),
        ((), ("--state=folder",), "--state: `folder` is a folder"),
        ((), ("--viz_file=taken/a.svg",), "--viz_file: .*taken` is a file"),
        (("--status_file=status.csv",), (), "--status_file: .*Use .json"),
    ],
)
def test_files_of_options_are_checked_before_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[str, ...],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    # There are no logs: outputs are looked at first.
    done = run("--input_glob=none/*.json", before=before, options=options)
    assert done.exit_code == 2
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("add-scores", "--label=risc"), "Did you mean `risk`"),
        (("add-scores", "filter", "--label=Z-Score"), "Did you mean `zscore`"),
        (("add-scores", "add-class", "--label=p_value"), "Did you mean `pvalue`"),
        (
            ("add-scores", "filter", "--filter_source=DATAFRAME", "--field_name=anomaly_score"),
            "Did you mean `ae_anomaly_score`",
        ),
        (("add-scores", "serialize", "--include=eventname"), "Did you mean `eventName`"),
        (("add-scores", "serialize", "to-console", "--column=event_name"), "mean `eventName`"),
        (
            ("add-scores", "serialize", "to-parquet", "--folder=set", "--partition_by=eventname"),
            "Did you mean `eventName`",
        ),
    ],
)
def test_a_misspelt_label_or_column_is_answered_with_similar_ones(
    logs: Path, caplog: pytest.LogCaptureFixture, stages: tuple[str, ...], message: str
) -> None:
    assert logs
    done = run("--input_glob=trails", then=(*SCORE, *stages))
    assert message in done.stderr + caplog.text
