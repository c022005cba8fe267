"""Bad input to the whole command gives a clear message, an exit code, and no output file."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import polars as pl
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.cli.output import handle_errors

DATA = Path(__file__).parents[1] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the input of the lessons."""
    shutil.copytree(DATA / "input-data", tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build_arguments(  # noqa: PLR0913, PLR0917 - the parts of a command line
    glob="input/*.csv",
    source=(),
    train=("--train_epochs=1",),
    options=(),
    sink=(),
    filename="out/output.csv",
):
    return [
        *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}", *options),
        *("from-cloudtrail", f"--input_glob={glob}", *source),
        *("train-ae", *train, "preprocess", "inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={filename}", *sink),
    ]


def run(*args, **kwargs):
    return CliRunner().invoke(morpheus, build_arguments(*args, **kwargs))


def assert_fails(result, code, message):
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [*Path().glob("out/*"), *Path().glob("out/.*")] == []


def make_zip(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("log.json", content)
    return file.getvalue()


def record(number, **changes):
    return {
        "eventID": f"{number:08}-0000-4000-8000-000000000000",
        "eventTime": "2026-01-01T00:00:00Z",
        "eventName": "Get",
        "userIdentity": {"sessionContext": {"sessionIssuer": {"userName": "ann"}}},
    } | changes


def test_good_input_gives_an_output_file(folder):
    result = run()
    assert result.exit_code == 0, result.output
    assert (folder / "out" / "output.csv").exists()


@pytest.mark.usefixtures("folder")
def test_a_glob_without_files_is_rejected():
    assert_fails(run("nothing/*.csv"), 2, r"--input_glob: .*nothing")


def test_a_truncated_gzip_file_is_named(folder):
    compressed = gzip.compress(json.dumps({"Records": [record(n) for n in range(500)]}).encode())
    (folder / "cut.json.gz").write_bytes(compressed[: len(compressed) // 2])
    assert_fails(run("cut.json.gz"), 1, r"cut\.json\.gz.*(cut|ends|whole|truncated)")


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize(
    ("suffix", "pack", "name"),
    [(".bz2", bz2.compress, "bzip2"), (".xz", lzma.compress, "xz"), (".zip", make_zip, "zip")],
)
def test_a_file_that_is_packed_in_another_way_says_what_to_do(folder, suffix, pack, name, form):
    log = next((folder / "input").glob("*.csv")).read_bytes()
    if form == "json":
        log = "\n".join(json.dumps(record(n)) for n in range(9)).encode()
    (folder / f"log.{form}{suffix}").write_bytes(pack(log))
    result = run(f"log.*{suffix}")
    assert_fails(result, 2, r"have the suffixes .*, which are not read. Unpack them, or pack them")
    result = run(f"log.{form}{suffix}", source=[f"--file_type={form}"])
    assert_fails(
        result, 1, f"the file is packed with {name}, which is not read; unpack it, or pack"
    )
    (folder / f"b.{form}.gz").write_bytes(gzip.compress(pack(log)))
    assert_fails(run(f"b.{form}.gz"), 1, f"b.{form}.gz: the file is packed with {name}")


def test_a_truncated_document_is_named(folder):
    text = json.dumps({"Records": [record(n) for n in range(10)]}, indent=1)
    (folder / "half.json").write_text(text[: len(text) // 2])
    assert_fails(run("half.json"), 1, r"half\.json")


def test_a_table_without_the_user_column_is_rejected(folder):
    (folder / "a.csv").write_text("eventID,eventTime,eventName\n1,2026-01-01T00:00:00Z,Get\n")
    assert_fails(run("a.csv"), 2, rf"a\.csv.*`{USER}`.*--userid_column_name")


def test_a_record_without_a_time_is_rejected_with_its_line_or_skipped(folder):
    lines = [record(0), record(1) | {"eventTime": None}, record(2)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert_fails(run("a.jsonl"), 1, r"a\.jsonl:2: .*eventTime.*--bad_record skip")
    result = run("a.jsonl", source=["--bad_record=skip"])
    assert result.exit_code == 0
    assert "1 rejected" in result.stderr
    assert len((folder / "out" / "output.csv").read_text().splitlines()) == 3


def test_an_unknown_feature_column_is_a_warning(folder):
    (folder / "columns.txt").write_text("eventName\neventNam\n")
    result = run(options=["--columns_file=columns.txt"])
    assert result.exit_code == 0
    assert "`eventNam`" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_missing_gpu_is_an_error_before_reading():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_fails(run("nothing/*.csv", train=("--device=cuda",)), 2, "--device: no CUDA device is")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"train": ("--device=cuda", "--model=reference")}, "with --model=reference users are"),
        (
            {"train": ("--device=cuda",), "source": ("--watch_directory=true",)},
            "on an unbounded input",
        ),
    ],
)
def test_a_gpu_that_would_not_be_used_is_an_error(how, message):
    assert_fails(run(**how), 2, f"--device: {message}.*Leave the option out")


def test_an_existing_output_is_an_error_before_reading_and_stays(folder):
    (folder / "out").mkdir()
    (folder / "out" / "output.csv").write_text("precious")
    result = run("nothing/*.csv")
    assert result.exit_code == 2
    message = "--filename: there is a file `out/output.csv` already. Give `to-file --overwrite`"
    assert re.search(message, result.stderr)
    assert (folder / "out" / "output.csv").read_text() == "precious"


def test_a_failed_run_with_overwrite_keeps_the_old_output(folder):
    (folder / "out").mkdir()
    (folder / "out" / "output.csv").write_text("precious")
    (folder / "half.json").write_text('{"Records": [')
    assert run("half.json", sink=["--overwrite"]).exit_code == 1
    assert (folder / "out" / "output.csv").read_text() == "precious"


@pytest.mark.parametrize("how", ["input", "history"])
def test_an_input_file_is_never_overwritten(folder, how):
    log = next((folder / "input").glob("*.csv"))
    before = log.read_bytes()
    to_log = {"filename": log, "sink": ["--overwrite"]}
    Path("other").mkdir()
    (Path("other") / "a.csv").write_bytes(before)
    more = {"glob": "other/*.csv", "train": ("--train_data_glob=input",)}
    result = run(**to_log, **(more if how == "history" else {}))
    assert_fails(result, 2, r"to-file: .* is one of the input logs, and would be replaced")
    assert log.read_bytes() == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["store.json", "packs/o.csv", "fingerprints/o.csv"])
def test_a_file_of_a_model_store_that_the_run_uses_is_never_an_output(name):
    train = ("--train_data_glob=input", "--models_output_filename=models")
    assert run(filename="o.csv", train=train, sink=[]).exit_code == 0
    before = Path("models/store.json").read_bytes()
    (Path("models") / name).parent.mkdir(exist_ok=True)
    for used in ("--pretrained_filename=models@1", "--models_output_filename=models/"):
        result = run(filename=f"models/../models/{name}", train=(used,), sink=["--overwrite"])
        assert_fails(result, 2, f"to-file: .*{name}` belongs to the model store of `{used}`")
    assert Path("models/store.json").read_bytes() == before
    beside = run(filename="models/o.csv", train=("--pretrained_filename=models",), sink=[])
    assert beside.exit_code == 0, beside.output


@pytest.mark.usefixtures("folder")
def test_a_file_that_an_option_names_is_never_overwritten():
    Path("columns.txt").write_text("eventName\neventSource\n")
    Path("link.json").symlink_to("columns.txt")
    options = ("--columns_file=columns.txt",)
    result = run(options=options, filename="link.json", sink=["--overwrite"])
    assert_fails(result, 2, r"`link.json` is also read by `--columns_file=columns.txt`")
    assert Path("columns.txt").read_text() == "eventName\neventSource\n"


@pytest.mark.parametrize("replaced", ["input", ".", "input/.."])
def test_a_folder_that_is_no_data_set_is_never_replaced(folder, replaced):
    before = {path: path.read_bytes() for path in folder.rglob("*.csv")}
    result = run(sink=["to-parquet", f"--folder={replaced}", "--overwrite"])
    assert_fails(result, 2, r"--folder: .* has `.*`, which is not part of a data set")
    assert {path: path.read_bytes() for path in folder.rglob("*.csv")} == before


@pytest.mark.parametrize("how", ["input", "history"])
def test_a_data_set_that_is_read_is_never_replaced(folder, how):
    arguments = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"]
    arguments += ["from-cloudtrail", "--input_glob=input", "serialize", "to-parquet"]
    written = CliRunner().invoke(morpheus, [*arguments, "--folder=lake/a", "--partition_by=date"])
    assert written.exit_code == 0, written.stderr
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    more = {"glob": "lake"} if how == "input" else {"train": ("--train_data_glob=lake/a",)}
    result = run(sink=["to-parquet", "--folder=lake/a", "--overwrite"], **more)
    assert_fails(result, 2, r"the input log `lake/a/.*` is in `lake/a`, whose content would be")
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before
    again = [*arguments, "--folder=lake/a", "--partition_by=date", "--overwrite"]
    assert CliRunner().invoke(morpheus, again).exit_code == 0
    assert len(before) == len(list(folder.rglob("*.parquet"))) > 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sink": ["to-parquet", "--folder=sets/a"]}, "`sets/a` of `to-parquet` is in `sets/a`"),
        ({"filename": "sets/a/rows.csv"}, "`sets/a/rows.csv` of `to-file` is in `sets/a`"),
        (
            {"train": ["--models_output_filename=sets/a/models"]},
            "`sets/a/models` of `train-ae` is in `sets/a`",
        ),
        ({"run": ["--status_file=sets/a/status.json"]}, "`.*status.json` of --status_file is in"),
        ({"options": ["--state=sets/a/state.db"]}, "`.*state.db` of --state is in `sets/a`"),
    ],
)
def test_no_output_is_written_into_a_folder_that_is_replaced_at_the_end(other, message):
    before = other.pop("run", [])
    sink = ["to-parquet", "--folder=sets/a", *other.pop("sink", [])]
    arguments = build_arguments(sink=sink, **other)
    result = CliRunner().invoke(morpheus, [arguments[0], *before, *arguments[1:]])
    assert_fails(result, 2, f"to-parquet: {message}")


def test_an_output_folder_that_is_a_file_is_rejected(folder):
    (folder / "out").write_text("")
    assert_fails(run(), 2, r"`out` is a file, not a folder|`.*/out` is a file, not a folder")


def test_a_corrupted_fingerprint_is_rejected(folder):
    assert run(train=["--models_output_filename=models", "--train_epochs=1"]).exit_code == 0
    shutil.rmtree(folder / "out")
    for path in (folder / "models" / "packs").iterdir():
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), 1000):
            content[at] ^= 1
        path.write_bytes(bytes(content))
    message = r"models: fingerprint of .* of version 1 does not match its checksum.*train again"
    assert_fails(run(train=["--pretrained_filename=models"]), 1, message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Training AE model for user: 'role-g'", "Complete."])
@pytest.mark.usefixtures("folder")
def test_ctrl_c_during_training_and_scoring_leaves_no_files(number, moment):
    main = "from morpheus.cli.main import main; main()"
    training = f"--train_data_glob={DATA / 'training-data'}/*.csv"
    line = ["--log_level=DEBUG", *build_arguments(train=[training, "--train_epochs=400"])]
    with subprocess.Popen(
        [sys.executable, "-c", main, *line], stderr=subprocess.PIPE, text=True
    ) as process:
        for text in process.stderr:
            if moment in text:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == 130, rest
    assert "Stopping pipeline. Please wait..." in rest
    assert "Traceback" not in rest
    assert [*Path().glob("out/*"), *Path().glob("out/.*")] == []


def test_a_user_named_like_a_path_does_not_become_a_path(folder):
    name = "../../../x"
    lines = [
        record(n, userIdentity={"sessionContext": {"sessionIssuer": {"userName": name}}})
        for n in range(20)
    ]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = ["--models_output_filename=models", "--train_min_history=10", "--train_epochs=1"]
    assert run("a.jsonl", train=options).exit_code == 0
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "input"]
    assert sorted(path.parent.name for path in found) == [
        "indexes",
        "models",
        "models",
        "out",
        "packs",
        folder.name,
    ]


def test_a_cell_of_two_megabytes_is_written(folder):
    (folder / "a.jsonl").write_text(json.dumps(record(0, eventName="x" * 2_000_000)))
    assert run("a.jsonl").exit_code == 0
    assert len((folder / "out" / "output.csv").read_text()) > 2_000_000


def test_an_empty_file_has_no_events(folder):
    (folder / "a.jsonl").touch()
    result = run("a.jsonl")
    assert result.exit_code == 0
    assert "0 events in 1 file" in result.stderr


def test_a_panic_and_a_lack_of_memory_end_with_a_message(capsys):
    with pytest.raises(click.exceptions.Exit) as ended, handle_errors():
        raise MemoryError
    assert ended.value.exit_code == 1
    assert "There is not enough memory. Use fewer workers" in capsys.readouterr().err
    with pytest.raises(click.exceptions.Exit) as ended, handle_errors():
        raise pl.exceptions.PanicException("index out of bounds")
    assert ended.value.exit_code == 1
    assert "Polars failed: index out of bounds." in capsys.readouterr().err


@pytest.mark.parametrize("sink", ["to-console", "to-file --filename=-"])
@pytest.mark.usefixtures("folder")
def test_a_closed_stdout_is_an_error_only_for_what_writes_there(sink):
    command = f"{sys.executable} -m morpheus run --num_threads=1 pipeline-ae from-cloudtrail"
    command += f" --input_glob='input/*.csv' serialize {sink} >&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "stdout is closed. Redirect it to a file" in done.stderr


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (build_arguments(), 0),
        (build_arguments("nothing/*.csv"), 2),
        (["run", "--unknown"], 2),
        (["--unknown"], 2),
        (["report", "input/absent.csv"], 2),
    ],
)
def test_a_stderr_that_is_full_or_closed_changes_no_exit_code(folder, words, code, stderr):
    if "full" in stderr and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    command = f'"$@" {stderr}'
    words = [sys.executable, "-m", "morpheus", *words]
    done = subprocess.run(["/bin/sh", "-c", command, "sh", *words], check=False)
    assert done.returncode == code
    assert (folder / "out" / "output.csv").exists() == (not code)


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_record_that_is_nested_too_deeply_is_rejected_with_its_line(folder, line, end):
    deep = json.dumps(record(0))[:-1] + ', "deep": ' + "[" * 5000 + "]" * 5000 + "}"
    rows = [json.dumps(record(number)) for number in (1, 2)]
    rows.insert(line - 1, deep)
    (folder / "deep.jsonl").write_text("\n".join(rows) + end)
    message = rf"deep\.jsonl:{line}: the record is nested too deeply; use `--bad_record skip`"
    assert_fails(run("deep.jsonl"), 1, message)


def test_a_list_in_a_cell_that_is_nested_too_deeply_is_text(folder):
    path = next((folder / "input").glob("*.csv"))
    frame = pl.read_csv(path, infer_schema=False)
    column = "requestParametersownersSetitems"
    frame.with_columns(pl.lit("[" * 5000 + "]" * 5000).alias(column)).write_csv(path)
    assert run(str(path)).exit_code == 0


def test_a_result_that_is_nested_too_deeply_cannot_be_reported(folder):
    run(filename="out/output.jsonl")
    with (folder / "out" / "output.jsonl").open("a") as file:
        file.write('{"eventID": ' + "[" * 5000 + "]" * 5000 + "}\n")
    result = CliRunner().invoke(morpheus, ["report", "out/output.jsonl"])
    assert result.exit_code == 2
    assert "`out/output.jsonl` cannot be read: a value is nested too deeply." in result.output


@pytest.mark.parametrize("option", ["--columns_file", "--labels_file"])
def test_a_list_that_is_not_utf_8_is_an_error_with_its_line(folder, option):
    (folder / "list.txt").write_bytes("eventName\nété\n".encode("latin-1"))
    assert_fails(
        run(options=[f"{option}=list.txt"]), 2, r"`list\.txt`, line 2: the text is not UTF-8"
    )


def test_a_list_with_a_byte_order_mark_is_read(folder):
    (folder / "list.txt").write_text("eventName\n", encoding="utf-8-sig")
    result = run(options=["--columns_file=list.txt"])
    assert (result.exit_code, "\\ufeff" in result.stderr) == (0, False)
