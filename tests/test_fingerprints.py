"""From Python: what the command line gives, on frames in memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import morpheus
from morpheus import Fingerprints, Pipeline
from morpheus.cli.main import morpheus as command
from morpheus.columns import SCORE, ExplanationColumns, read_lines
from morpheus.errors import ModelCorruptedError, RecordError, UsageError
from morpheus.sources.dataframe import FromFrame
from morpheus.stages.train_ae import TrainAe
from people import COLUMNS, day, times

DATA = Path(__file__).parents[1] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
SCORES = [SCORE, "risk", "pvalue", "rung", "own_share"]


def read(folder: str) -> pl.DataFrame:
    paths = sorted((DATA / folder).glob("*.csv"))
    frames = [pl.read_csv(path, infer_schema=False) for path in paths]
    return pl.concat(frames, how="diagonal").drop("")


def people(events: int = 400) -> pl.DataFrame:
    """Ann and Bob, whose events alternate, and one of nobody's."""
    both = [
        day(events, seed=seed).with_columns(who=pl.lit(who), at=times(events))
        for seed, who in enumerate(["ann", "bob"])
    ]
    nobody = both[0].head(1).with_columns(who=pl.lit(None, pl.String))
    return pl.concat([*both, nobody]).sort("at", maintain_order=True)


def learnt(frame: object = None, **options: object) -> Fingerprints:
    frame = people() if frame is None else frame
    options = {"columns": COLUMNS, "epochs": 3, **options}
    return Fingerprints.train(frame, user="who", time="at", **options)


@pytest.fixture(scope="module")
def known() -> Fingerprints:
    return learnt()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line makes of the examples: its rows and its models."""
    folder = tmp_path_factory.mktemp("written")
    chain = ["run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"]
    chain += ["from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv"]
    chain += ["train-ae", f"--train_data_glob={DATA}/training-data/*.csv", "--seed=42"]
    chain += ["--train_epochs=3", f"--models_output_filename={folder}/models"]
    chain += ["preprocess", "inf-pytorch", "add-scores", *(f"--label={name}" for name in SCORES)]
    chain += ["explain", "serialize", "to-file", f"--filename={folder}/rows.parquet"]
    command(chain, standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def lesson() -> Fingerprints:
    columns = read_lines("columns_ae_cloudtrail.txt", option="")
    history = read("training-data")
    there = [name for name in columns if name in history.columns]
    return Fingerprints.train(
        history, user=USER, time="eventTime", columns=there, epochs=3, seed=42
    )


def by_event(rows: pl.DataFrame) -> pl.DataFrame:
    names = [USER, "eventTime", "eventID", *SCORES, *ExplanationColumns()]
    numbers = [name for name in SCORES if name != "rung"]
    return rows.select(names).with_columns(pl.col(numbers).fill_nan(None)).sort(names)


def test_a_frame_is_scored_and_explained_as_the_command_line_does(
    lesson: Fingerprints, written: Path
) -> None:
    events = read("input-data")
    ours = events.hstack(lesson.score(events)).hstack(lesson.explain(events))
    assert by_event(ours).equals(by_event(pl.read_parquet(written / "rows.parquet")))


def test_both_write_the_same_models(lesson: Fingerprints, written: Path, tmp_path: Path) -> None:
    lesson.save(tmp_path / "models")
    files = [path for path in (written / "models").rglob("*") if path.is_file()]
    assert len(files) == 1 + len(lesson.cards) + (lesson.store.global_card is not None)
    for path in files:
        assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_what_the_command_line_saved_scores_a_frame(lesson: Fingerprints, written: Path) -> None:
    events = read("input-data")
    loaded = Fingerprints.load(written / "models", user=USER, time="eventTime")
    assert loaded.score(events).equals(lesson.score(events))


def test_scores_stand_in_the_frames_own_order(known: Fingerprints) -> None:
    frame = people()
    shuffled = frame.with_row_index("place").sample(fraction=1, shuffle=True, seed=1)
    # Of equal times the order counts, and here no user has two events of one time.
    scores = known.score(shuffled.drop("place"))
    assert scores.hstack([shuffled["place"]]).sort("place").drop("place").equals(known.score(frame))


def test_a_score_has_its_columns_and_an_event_of_nobody_has_none(known: Fingerprints) -> None:
    scores = known.score(people())
    assert scores.columns == SCORES
    nobodys = people()["who"].is_null()
    assert scores.filter(nobodys).null_count().row(0) == (1,) * 5
    assert scores.filter(~nobodys).null_count().row(0) == (0,) * 5


def test_who_was_not_learnt_is_measured_against_everyone() -> None:
    frame = people()
    stranger = frame.with_columns(who=pl.lit("eve"))
    assert set(learnt(frame).score(stranger)["rung"]) == {"everyone"}


def test_a_frame_may_have_columns_of_the_names_that_are_given_back(known: Fingerprints) -> None:
    frame = people()
    again = frame.hstack(known.score(frame)).hstack(known.explain(frame))
    assert known.score(again).equals(known.score(frame))
    assert known.explain(again).equals(known.explain(frame))


def test_an_empty_frame_has_no_scores_and_their_columns(known: Fingerprints) -> None:
    nothing = people().clear()
    assert known.score(nothing).schema == known.score(people()).schema
    assert known.explain(nothing).columns == list(ExplanationColumns())


def test_pandas_and_arrow_frames_score_as_polars_frames_do(known: Fingerprints) -> None:
    frame = people()
    pandas = pd.DataFrame(frame.to_dict(as_series=False))

    class Table:
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            return frame.__arrow_c_stream__(requested_schema)

    expected = known.score(frame)
    assert learnt(pandas).score(pandas).equals(expected)
    assert known.score(Table()).equals(expected)


def test_a_missing_value_of_pandas_is_missing(known: Fingerprints) -> None:
    frame = people().with_columns(agent=pl.lit(None, pl.String))
    pandas = pd.DataFrame(frame.to_dict(as_series=False))
    pandas["agent"] = float("nan")
    assert known.score(pandas).equals(known.score(frame))


def test_times_are_read_from_text_as_from_datetimes(known: Fingerprints) -> None:
    frame = people()
    text = frame.with_columns(at=pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    naive = frame.with_columns(at=pl.col("at").dt.replace_time_zone(None))
    east = frame.with_columns(at=pl.col("at").dt.convert_time_zone("Asia/Tokyo"))
    for other in (text, naive, east):
        assert known.score(other).equals(known.score(frame))


def test_saved_and_loaded_fingerprints_score_alike(known: Fingerprints, tmp_path: Path) -> None:
    known.save(tmp_path)
    loaded = Fingerprints.load(tmp_path, user="who", time="at")
    assert loaded.score(people()).equals(known.score(people()))
    assert loaded.cards == known.cards


def test_any_name_may_be_a_columns() -> None:
    names = dict(zip(COLUMNS, ["rank", "owner", "proportion", "user"], strict=True))
    cid = people().with_columns(who=pl.col("who").replace("ann", "cid"))
    plain = pl.concat([people(), cid, people(100).with_columns(who=pl.lit("eve"))])
    other = plain.rename(names)
    scores = learnt(other, columns=list(names.values())).score(other)
    assert scores.equals(learnt(plain).score(plain))
    assert set(scores["rung"].drop_nulls()) == {"own", "peers"}


def test_columns_are_by_default_all_but_those_of_the_user_and_the_time() -> None:
    frame = people().select("who", "at", *COLUMNS)
    assert learnt(frame, columns=None).score(frame).equals(learnt(frame).score(frame))


def test_the_number_of_threads_changes_nothing(known: Fingerprints) -> None:
    assert learnt(threads=2).cards == known.cards


def test_what_was_learnt_lies_on_disk_until_nobody_needs_it() -> None:
    fingerprints = learnt()
    folder = Path(str(fingerprints.store.folder))
    assert folder.is_dir()
    del fingerprints
    gc.collect()
    assert not folder.exists()


def test_a_column_that_is_not_there_is_named(known: Fingerprints) -> None:
    with pytest.raises(UsageError, match=r"columns: .* no column `actoin`. Did you mean `action`"):
        learnt(columns=["actoin"])
    with pytest.raises(UsageError, match=r"user: the frame has no column `who`. Its columns are"):
        known.score(people().drop("who"))
    with pytest.raises(UsageError, match="time: the frame has no column `at`"):
        known.score(people().drop("at"))


def test_an_event_without_a_time_is_named(known: Fingerprints) -> None:
    odd = people().with_columns(at=pl.lit("yesterday"))
    with pytest.raises(RecordError, match=r"frame:1: `at` is 'yesterday', which is no time"):
        known.score(odd)


def test_what_is_no_frame_is_refused(known: Fingerprints) -> None:
    with pytest.raises(UsageError, match="Polars, pandas or Arrow is needed, not list"):
        known.score([1])


def test_too_little_history_is_said_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match=r"nobody could be learnt: 'ann' \(5 events of history"):
        learnt(people(5).filter(pl.col("who") == "ann"))
    with pytest.raises(
        UsageError, match="nobody could be learnt: the frame has no event of a user"
    ):
        learnt(people().clear())
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_changed_on_disk_is_not_saved(tmp_path: Path) -> None:
    fingerprints = learnt()
    for path in Path(str(fingerprints.store.folder)).rglob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ModelCorruptedError, match="does not match its checksum"):
        fingerprints.save(tmp_path / "models")
    assert not (tmp_path / "models" / "index.json").exists()


def test_files_to_learn_from_do_not_go_with_a_frame() -> None:
    chain = Pipeline([FromFrame(people(), "at"), TrainAe(train_data_glob="*.csv")])
    chain.options = type(chain.options)(userid_column_name="who", columns=tuple(COLUMNS))
    with pytest.raises(UsageError, match="Learn from a frame with"):
        chain.run()


def test_the_names_are_there_without_polars() -> None:
    code = "import sys, morpheus; print('Fingerprints' in dir(morpheus), 'polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    with pytest.raises(AttributeError, match="no attribute 'Fingerprint'"):
        _ = morpheus.Fingerprint
