import json

import pytest

from morpheus.columns import INDEX, SCORE
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.validate import Validate
from morpheus.testing import make_events, make_output_rows, make_scored, run_stage

KEYS = {
    "total_rows",
    "matching_rows",
    "diff_rows",
    "matching_cols",
    "extra_cols",
    "missing_cols",
    "diff_cols",
}


def batch(scores=(1.0, 2.0, 3.0), names=("a", None, "=c"), user="ann"):
    numbers = range(len(scores))
    return make_output_rows(
        make_scored(make_events(numbers, eventName=list(names)), scores).table.to_frame(), user=user
    )


def write(path, *batches):
    list(run_stage(ToFile(filename=str(path)), batches))
    return path


def outcome(tmp_path, file, *batches, **options):
    report = tmp_path / "report.json"
    stage = Validate(
        val_file_name=str(file), results_file_name=str(report), overwrite=True, **options
    )
    stage.validate()
    assert list(run_stage(stage, batches)) == list(batches)
    return json.loads(report.read_text())


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.jsonl", "a.parquet"])
def test_written_file_matches_in_every_format(tmp_path, name, caplog):
    caplog.set_level("INFO")
    report = outcome(
        tmp_path, write(tmp_path / name, batch(), batch(user="bob")), batch(), batch(user="bob")
    )
    assert report["matching_rows"] == report["total_rows"] == 6
    assert (report["diff_rows"], report["diff_cols"]) == (0, 0)
    assert set(report) == KEYS
    assert caplog.messages == ["Results match validation dataset"]


@pytest.mark.parametrize("times", ["iso", "epoch_ms"])
def test_the_same_time_matches_in_every_form(tmp_path, times):
    path = tmp_path / "a.jsonl"
    list(run_stage(ToFile(filename=str(path), json_times=times), [batch()]))
    assert outcome(tmp_path, path, batch())["diff_rows"] == 0


def test_an_input_log_is_matched_by_its_unnamed_first_column(tmp_path):
    file = write(tmp_path / "a.csv", batch())
    log = tmp_path / "log.csv"
    log.write_text("\n".join(line.partition(",")[2] for line in file.read_text().splitlines()))
    log.write_text(log.read_text().replace(INDEX, "", 1))
    assert outcome(tmp_path, log, batch(), index_col=INDEX)["diff_rows"] == 0


def test_altered_cell_is_reported_with_its_row(tmp_path, caplog):
    file = write(tmp_path / "a.csv", batch(), batch(user="bob"))
    report = outcome(tmp_path, file, batch(), batch(names=("a", "x\x1b", "=c")))
    assert (report["matching_rows"], report["diff_rows"]) == (5, 1)
    [message] = caplog.messages
    assert "Diff 1/6" in message
    assert message.endswith(r"  row 5 (event 1): eventName: None, not 'x\x1b'")


def test_scores_have_a_tolerance_and_text_has_none(tmp_path):
    file = write(tmp_path / "a.csv", batch(names=("100", "b", "c")))
    near = batch(scores=(1.0005, 2.05, 3.0), names=("100", "b", "c"))
    assert outcome(tmp_path, file, near)["diff_rows"] == 0
    assert outcome(tmp_path, file, near, abs_tol=0.0, rel_tol=0.001)["diff_rows"] == 1
    assert outcome(tmp_path, file, batch(names=("101", "b", "c")))["diff_rows"] == 1


def test_columns_can_be_excluded_and_extra_ones_are_reported(tmp_path):
    file = write(tmp_path / "a.csv", batch())
    fewer = make_output_rows(batch().table.to_frame().drop("eventName").rename({SCORE: "zscore"}))
    report = outcome(tmp_path, file, fewer, exclude=("event_dt",))
    assert report["matching_cols"] == ["_index_"]
    assert report["extra_cols"] == ["zscore"]
    assert report["missing_cols"] == ["eventName", SCORE]
    assert report["diff_cols"] == 3


def test_columns_and_rows_of_one_side_only_are_no_match(tmp_path, caplog):
    caplog.set_level("INFO")
    file = write(tmp_path / "a.csv", batch())
    outcome(tmp_path, file, batch(), batch(user="bob"))
    assert caplog.messages == ["Results do not match. The file lacks 3 rows of this run."]
    caplog.clear()
    renamed = make_output_rows(batch().table.to_frame().rename({SCORE: "zscore"}))
    outcome(tmp_path, file, renamed)
    [message] = caplog.messages
    assert message.startswith(f"Results do not match. They have no column `{SCORE}`.")


def test_rows_are_matched_by_the_index_column(tmp_path):
    file = write(tmp_path / "a.csv", batch(names=("a", "b", "c")))
    frame = batch(names=("a", "b", "c")).table.to_frame().reverse()
    assert outcome(tmp_path, file, make_output_rows(frame), index_col="eventName")["diff_rows"] == 0


def test_missing_row_is_reported(tmp_path, caplog):
    file = write(tmp_path / "a.csv", batch())
    report = outcome(tmp_path, file, make_output_rows(batch().table.to_frame()[:2]))
    assert report["diff_rows"] == 1
    assert caplog.messages[0].endswith("row 3 (event 2): not found")


def test_invalid_options_are_rejected_before_the_run(tmp_path):
    file = write(tmp_path / "a.csv", batch())
    with pytest.raises(UsageError, match=r"--val_file_name: there is no file `no\.csv`"):
        Validate(val_file_name="no.csv").validate()
    results = tmp_path / "a.json"
    results.touch()
    with pytest.raises(UsageError, match=r"there is a file `.*a\.json` already"):
        Validate(val_file_name=str(file), results_file_name=str(results)).validate()
    with pytest.raises(UsageError, match=r"a\.csv` has an unsupported extension. Use .json"):
        Validate(val_file_name=str(file), results_file_name=str(file)).validate()
    with pytest.raises(UsageError, match="not a regular expression"):
        Validate(val_file_name=str(file), include=("(",)).validate()
    with pytest.raises(UsageError, match="the input is unbounded"):
        Validate(val_file_name=str(file), options=PipelineOptions(unbounded=True)).validate()
    with pytest.raises(UsageError, match="--index_col: there is no column `x`"):
        outcome(tmp_path, file, batch(), index_col="x")


def test_unreadable_table_is_rejected_by_name(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UsageError, match=r"a\.parquet` cannot be read"):
        outcome(tmp_path, tmp_path / "a.parquet", batch())


def test_a_pattern_that_can_take_very_long_is_rejected(tmp_path):
    (tmp_path / "a.csv").write_text("a\n")
    stage = Validate(val_file_name=str(tmp_path / "a.csv"), exclude=("(?=(a+)+$)a",))
    with pytest.raises(UsageError, match=r"validate: .* can take very long to match"):
        stage.validate()
