"""Bad input through the whole command: a clear message, an exit code, and no output file."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus

DATA = Path(__file__).parents[1] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to run in, with the lessons' input."""
    shutil.copytree(DATA / "input-data", tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(glob="input/*.csv", source=(), train=("--train_epochs=1",), settings=(), sink=()):
    return [
        *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}", *settings),
        *("from-cloudtrail", f"--input_glob={glob}", *source),
        *("train-ae", *train, "preprocess", "inf-pytorch", "add-scores", "serialize"),
        *("to-file", "--filename=out/output.csv", *sink),
    ]


def run(*args, **kwargs):
    return CliRunner().invoke(morpheus, words(*args, **kwargs))


def refused(result, code, message):
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [*Path().glob("out/*"), *Path().glob("out/.*")] == []


def record(number, **changes):
    return {
        "eventID": f"{number:08}-0000-4000-8000-000000000000",
        "eventTime": "2026-01-01T00:00:00Z",
        "eventName": "Get",
        "userIdentity": {"sessionContext": {"sessionIssuer": {"userName": "ann"}}},
    } | changes


def test_all_is_well_where_the_input_is(place):
    result = run()
    assert result.exit_code == 0, result.output
    assert (place / "out" / "output.csv").exists()


@pytest.mark.usefixtures("place")
def test_no_file_matches():
    refused(run("nothing/*.csv"), 2, r"--input_glob: .*nothing")


def test_a_truncated_gzip(place):
    packed = gzip.compress(json.dumps({"Records": [record(n) for n in range(500)]}).encode())
    (place / "cut.json.gz").write_bytes(packed[: len(packed) // 2])
    refused(run("cut.json.gz"), 1, r"cut\.json\.gz.*(cut|ends|whole|truncated)")


def test_a_document_cut_in_half(place):
    text = json.dumps({"Records": [record(n) for n in range(10)]}, indent=1)
    (place / "half.json").write_text(text[: len(text) // 2])
    refused(run("half.json"), 1, r"half\.json")


def test_a_table_without_the_users_column(place):
    (place / "a.csv").write_text("eventID,eventTime,eventName\n1,2026-01-01T00:00:00Z,Get\n")
    refused(run("a.csv"), 2, rf"a\.csv.*`{USER}`.*--userid_column_name")


def test_a_record_without_a_time_is_refused_with_its_line_and_can_be_left_out(place):
    lines = [record(0), record(1) | {"eventTime": None}, record(2)]
    (place / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    refused(run("a.jsonl"), 1, r"a\.jsonl:2: .*eventTime.*--bad_record skip")
    result = run("a.jsonl", source=["--bad_record=skip"])
    assert result.exit_code == 0
    assert "1 refused" in result.stderr
    assert len((place / "out" / "output.csv").read_text().splitlines()) == 3


def test_an_unknown_feature_column_is_a_warning(place):
    (place / "columns.txt").write_text("eventName\neventNam\n")
    result = run(settings=["--columns_file=columns.txt"])
    assert result.exit_code == 0
    assert "`eventNam`" in result.stderr


@pytest.mark.usefixtures("place")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused(run("nothing/*.csv", train=("--device=cuda",)), 2, "--device: no CUDA device is")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"train": ("--device=cuda", "--model=reference")}, "with `--model=reference` users are"),
        (
            {"train": ("--device=cuda",), "source": ("--watch_directory=true",)},
            "on an endless input",
        ),
    ],
)
def test_a_gpu_is_refused_where_it_would_not_be_used(how, message):
    refused(run(**how), 2, f"--device: {message}.*Leave the option out")


def test_an_existing_output_is_refused_before_anything_is_read_and_stays(place):
    (place / "out").mkdir()
    (place / "out" / "output.csv").write_text("precious")
    result = run("nothing/*.csv")
    assert result.exit_code == 2
    message = (
        r"Cannot output classifications to 'out/output.csv'. File exists and overwrite = False"
    )
    assert re.search(message, result.stderr)
    assert (place / "out" / "output.csv").read_text() == "precious"


def test_a_failing_run_with_overwrite_leaves_the_old_output(place):
    (place / "out").mkdir()
    (place / "out" / "output.csv").write_text("precious")
    (place / "half.json").write_text('{"Records": [')
    assert run("half.json", sink=["--overwrite"]).exit_code == 1
    assert (place / "out" / "output.csv").read_text() == "precious"


@pytest.mark.parametrize("how", ["input", "history"])
def test_a_log_is_never_the_file_that_is_written(place, how):
    log = next((place / "input").glob("*.csv"))
    before = log.read_bytes()
    sink = (f"--filename={log}", "--overwrite")
    Path("other").mkdir()
    (Path("other") / "a.csv").write_bytes(before)
    more = {"glob": "other/*.csv", "train": ("--train_data_glob=input",)}
    result = run(sink=sink, **(more if how == "history" else {}))
    refused(result, 2, r"to-file: .* is one of the logs that are read, and would be replaced")
    assert log.read_bytes() == before


def test_a_folder_that_is_a_file(place):
    (place / "out").write_text("")
    refused(run(), 2, r"`out` is a file, not a folder|`.*/out` is a file, not a folder")


def test_a_flipped_byte_in_a_fingerprint(place):
    assert run(train=["--models_output_filename=models", "--train_epochs=1"]).exit_code == 0
    shutil.rmtree(place / "out")
    path = next((place / "models" / "fingerprints").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    message = r"models/fingerprints/.*does not match its checksum.*train again"
    refused(run(train=["--pretrained_filename=models"]), 1, message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Training AE model for user: 'role-g'", "Complete."])
@pytest.mark.usefixtures("place")
def test_ctrl_c_in_training_and_in_scoring_leaves_nothing(number, moment):
    main = "from morpheus.cli.main import main; main()"
    training = f"--train_data_glob={DATA / 'training-data'}/*.csv"
    line = ["--log_level=DEBUG", *words(train=[training, "--train_epochs=400"])]
    with subprocess.Popen(
        [sys.executable, "-c", main, *line], stderr=subprocess.PIPE, text=True
    ) as process:
        for said in process.stderr:
            if moment in said:
                break
        time.sleep(0.05)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == 130, rest
    assert "Stopping pipeline. Please wait..." in rest
    assert "Traceback" not in rest
    assert [*Path().glob("out/*"), *Path().glob("out/.*")] == []


def test_a_user_named_like_a_path_stays_a_name(place):
    name = "../../../x"
    lines = [
        record(n, userIdentity={"sessionContext": {"sessionIssuer": {"userName": name}}})
        for n in range(20)
    ]
    (place / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = ["--models_output_filename=models", "--train_min_history=10", "--train_epochs=1"]
    assert run("a.jsonl", train=options).exit_code == 0
    found = [path for path in place.rglob("*") if path.is_file() and path.parent.name != "input"]
    assert sorted(path.parent.name for path in found) == [
        "fingerprints",
        "models",
        "out",
        place.name,
    ]


def test_a_cell_of_two_megabytes_passes_through(place):
    (place / "a.jsonl").write_text(json.dumps(record(0, eventName="x" * 2_000_000)))
    assert run("a.jsonl").exit_code == 0
    assert len((place / "out" / "output.csv").read_text()) > 2_000_000


def test_an_empty_file_holds_no_events(place):
    (place / "a.jsonl").touch()
    result = run("a.jsonl")
    assert result.exit_code == 0
    assert "0 events in 1 file" in result.stderr
