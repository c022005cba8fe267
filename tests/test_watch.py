"""A watched directory: new files are scored, and Ctrl+C keeps the output."""

import json
import signal
import subprocess
import sys
import time

import polars as pl


def write(path, start, count):
    lines = [
        {
            "eventTime": f"2026-01-01T{start:02}:{n % 60:02}:00Z",
            "eventName": "Get" if n % 3 else "List",
            "userIdentityuserName": "ann",
        }
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))


def rows_in(path):
    return pl.read_csv(path).height if path.exists() else 0


def test_watched_directory_scores_new_files_and_first_ctrl_c_keeps_the_output(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", 1, 60)
    words = [
        *("run", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *("from-cloudtrail", f"--input_glob={tmp_path}/in/*.jsonl", "--watch_directory=true"),
        *("--batch_timeout=0.1", "train-ae", "--train_min_history=10", "preprocess"),
        *("inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={tmp_path}/out.csv", "--flush"),
    ]
    main = "from morpheus.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", main, *words], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: rows_in(tmp_path / "out.csv") > 0)
            write(tmp_path / "in" / "b.jsonl", 2, 40)
            until(lambda: rows_in(tmp_path / "out.csv") > 60)
        finally:
            process.send_signal(signal.SIGINT)
            message = process.communicate(timeout=20)[1]
    assert process.returncode == 130, message
    assert "100 events of 1 user" in message
    assert "Stopping pipeline. Please wait..." in message
    assert "Traceback" not in message
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame[""].to_list() == list(range(100)), "numbers of a user's events go on"
    assert frame["ae_anomaly_score"].is_not_nan().all()


def until(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_error_in_lines_that_were_added_names_the_file_and_the_place(tmp_path):
    (tmp_path / "in").mkdir()
    log = tmp_path / "in" / "a.jsonl"
    write(log, 1, 60)
    log.write_text(log.read_text() + "\n")
    size = log.stat().st_size
    words = [
        *("run", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *("from-cloudtrail", f"--input_glob={tmp_path}/in/*.jsonl", "--watch_directory=true"),
        *("--batch_timeout=0.1", "train-ae", "--train_min_history=10", "preprocess"),
        *("inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={tmp_path}/out.csv", "--flush"),
    ]
    main = "from morpheus.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", main, *words], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: rows_in(tmp_path / "out.csv") > 0)
            with log.open("a") as file:
                file.write('{"eventTime": "2026-01-01\n')
            message = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    assert f"Error: {log}, from byte {size:,}" in message
