"""The Python API gives the results of the command line, on frames in memory."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pandas as pd
import polars as pl
import pytest

import morpheus
from morpheus import Fingerprints, Pipeline
from morpheus.cli.main import morpheus as command
from morpheus.columns import SCORE, ExplanationColumns
from morpheus.core.stage import read_lines
from morpheus.errors import ModelCorruptedError, RecordError, UsageError
from morpheus.models.explanation import Explanation, decode_explanations
from morpheus.models.versions import find_models, open_models
from morpheus.sources.dataframe import FromFrame, as_polars
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
    """Alternating events of Ann and Bob, and an event without a user."""
    users = [
        day(events, seed=seed).with_columns(who=pl.lit(who), at=times(events))
        for seed, who in enumerate(["ann", "bob"])
    ]
    no_users = users[0].head(1).with_columns(who=pl.lit(None, pl.String))
    return pl.concat([*users, no_users]).sort("at", maintain_order=True)


def train(frame: object = None, **options: object) -> Fingerprints:
    frame = people() if frame is None else frame
    options = {"user": "who", "time": "at", "columns": COLUMNS, "epochs": 3, **options}
    return Fingerprints.train(frame, **options)


@pytest.fixture(scope="module")
def trained() -> Fingerprints:
    return train()


@pytest.fixture(scope="module")
def cli_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and models that the command line writes for the examples."""
    folder = tmp_path_factory.mktemp("cli_output")
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
    present = [name for name in columns if name in history.columns]
    return Fingerprints.train(
        history, user=USER, time="eventTime", columns=present, epochs=3, seed=42
    )


def by_event(rows: pl.DataFrame) -> pl.DataFrame:
    names = [USER, "eventTime", "eventID", *SCORES, *ExplanationColumns()]
    numbers = [name for name in SCORES if name != "rung"]
    return rows.select(names).with_columns(pl.col(numbers).fill_nan(None)).sort(names)


def test_a_frame_gets_the_scores_and_reasons_of_the_command_line(
    lesson: Fingerprints, cli_output: Path
) -> None:
    events = read("input-data")
    ours = events.hstack(lesson.score(events)).hstack(lesson.explain(events))
    assert by_event(ours).equals(by_event(pl.read_parquet(cli_output / "rows.parquet")))


def test_the_api_and_the_command_line_write_the_same_models(
    lesson: Fingerprints, cli_output: Path, tmp_path: Path
) -> None:
    lesson.save(tmp_path / "models")
    for path in (cli_output / "models").rglob("*"):
        if path.suffix == ".pack":
            assert (tmp_path / path.relative_to(cli_output)).read_bytes() == path.read_bytes()
    saved = open_models(str(cli_output / "models"))
    assert lesson.cards == saved.cards
    assert lesson.store.global_card == saved.global_card


def test_models_of_the_command_line_score_a_frame(lesson: Fingerprints, cli_output: Path) -> None:
    events = read("input-data")
    loaded = Fingerprints.load(cli_output / "models", user=USER, time="eventTime")
    assert loaded.score(events).equals(lesson.score(events))


def test_scores_are_in_the_order_of_the_frame(trained: Fingerprints) -> None:
    frame = people()
    shuffled = frame.with_row_index("position").sample(fraction=1, shuffle=True, seed=1)
    # Of equal times the order counts, and here no user has two events of one time.
    scores = trained.score(shuffled.drop("position"))
    assert (
        scores.hstack([shuffled["position"]])
        .sort("position")
        .drop("position")
        .equals(trained.score(frame))
    )


def test_events_without_a_user_have_no_score(trained: Fingerprints) -> None:
    scores = trained.score(people())
    assert scores.columns == SCORES
    without_user = people()["who"].is_null()
    assert scores.filter(without_user).null_count().row(0) == (1,) * 5
    assert scores.filter(~without_user).null_count().row(0) == (0,) * 5


def test_users_without_a_model_are_scored_by_the_global_model() -> None:
    frame = people()
    unknown = frame.with_columns(who=pl.lit("eve"))
    assert set(train(frame).score(unknown)["rung"]) == {"everyone"}


def test_a_frame_can_have_columns_with_the_names_of_results(trained: Fingerprints) -> None:
    frame = people()
    again = frame.hstack(trained.score(frame)).hstack(trained.explain(frame))
    assert trained.score(again).equals(trained.score(frame))
    assert trained.explain(again).equals(trained.explain(frame))


def test_an_empty_frame_gives_empty_results_with_all_columns(trained: Fingerprints) -> None:
    empty = people().clear()
    assert trained.score(empty).schema == trained.score(people()).schema
    assert trained.explain(empty).columns == list(ExplanationColumns())


def test_pandas_and_arrow_frames_get_the_scores_of_polars_frames(trained: Fingerprints) -> None:
    frame = people()
    pandas = pd.DataFrame(frame.to_dict(as_series=False))

    class Table:
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            return frame.__arrow_c_stream__(requested_schema)

    expected = trained.score(frame)
    assert as_polars(train(pandas).score(pandas)).equals(expected)
    assert trained.score(Table()).equals(expected)


def test_a_missing_value_of_pandas_is_null(trained: Fingerprints) -> None:
    missing = pl.int_range(pl.len()) % 2 == 0
    frame = people().with_columns(pl.when(~missing).then("agent").alias("agent"))
    pandas = pd.DataFrame(frame.to_dict(as_series=False))
    pandas["agent"] = pandas["agent"].where(pandas["agent"].notna(), float("nan"))
    assert as_polars(trained.score(pandas)).equals(trained.score(frame))


def test_times_can_be_text_or_datetimes(trained: Fingerprints) -> None:
    frame = people()
    text = frame.with_columns(at=pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    naive = frame.with_columns(at=pl.col("at").dt.replace_time_zone(None))
    east = frame.with_columns(at=pl.col("at").dt.convert_time_zone("Asia/Tokyo"))
    for other in (text, naive, east):
        assert trained.score(other).equals(trained.score(frame))


def test_saved_and_loaded_models_give_the_same_scores(
    trained: Fingerprints, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    loaded = Fingerprints.load(tmp_path, user="who", time="at")
    assert loaded.score(people()).equals(trained.score(people()))
    assert loaded.cards == trained.cards


def test_a_column_can_have_any_name() -> None:
    names = dict(zip(COLUMNS, ["rank", "owner", "proportion", "user"], strict=True))
    cid = people().with_columns(who=pl.col("who").replace("ann", "cid"))
    plain = pl.concat([people(), cid, people(100).with_columns(who=pl.lit("eve"))])
    other = plain.rename(names)
    scores = train(other, columns=list(names.values())).score(other)
    assert scores.equals(train(plain).score(plain))
    assert set(scores["rung"].drop_nulls()) == {"own", "peers"}


def test_all_columns_but_user_and_time_are_features_by_default() -> None:
    frame = people().select("who", "at", *COLUMNS)
    assert train(frame, columns=None).score(frame).equals(train(frame).score(frame))


def test_the_number_of_threads_does_not_affect_results(trained: Fingerprints) -> None:
    assert train(threads=2).cards == trained.cards


def test_the_temporary_model_store_is_deleted_with_the_object() -> None:
    fingerprints = train()
    folder = Path(str(fingerprints.store.folder))
    assert folder.is_dir()
    del fingerprints
    gc.collect()
    assert not folder.exists()


def test_an_error_names_a_missing_column(trained: Fingerprints) -> None:
    with pytest.raises(UsageError, match=r"columns: .* no column `actoin`. Did you mean `action`"):
        train(columns=["actoin"])
    with pytest.raises(UsageError, match=r"user: the frame has no column `who`. Its columns are"):
        trained.score(people().drop("who"))
    with pytest.raises(UsageError, match="time: the frame has no column `at`"):
        trained.score(people().drop("at"))


def test_an_error_names_an_event_without_a_time(trained: Fingerprints) -> None:
    odd = people().with_columns(at=pl.lit("yesterday"))
    message = (
        r"frame:1: `at` is 'yesterday', which is not a time like 2024.*; correct or drop such rows"
    )
    with pytest.raises(RecordError, match=message):
        trained.score(odd)


def test_other_types_than_frames_are_rejected(trained: Fingerprints) -> None:
    with pytest.raises(UsageError, match="Polars, pandas or Arrow is required, not list"):
        trained.score([1])


def test_too_little_history_fails_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match=r"no user could be trained: 'ann' \(5 events of history"):
        train(people(5).filter(pl.col("who") == "ann"))
    with pytest.raises(
        UsageError, match="no user could be trained: the frame has no event of a user"
    ):
        train(people().clear())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_of_a_folder_is_not_the_current_folder(
    trained: Fingerprints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="save: the name of the folder is empty"):
        trained.save("")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="load: the name of the folder is empty"):
        Fingerprints.load("")


def test_a_model_changed_on_disk_is_not_saved(tmp_path: Path) -> None:
    fingerprints = train()
    for path in Path(str(fingerprints.store.folder)).rglob("*.pack"):
        path.write_bytes(b"")
    with pytest.raises(ModelCorruptedError, match="is cut off: 0 of"):
        fingerprints.save(tmp_path / "models")
    assert find_models(str(tmp_path / "models")) is None


def test_training_files_cannot_be_combined_with_a_frame() -> None:
    chain = Pipeline([FromFrame(people(), "at"), TrainAe(train_data_glob="*.csv")])
    chain.options = type(chain.options)(userid_column_name="who", columns=tuple(COLUMNS))
    with pytest.raises(UsageError, match=r"To train on a frame, use"):
        chain.run()


def test_importing_the_package_does_not_import_polars() -> None:
    code = "import sys, morpheus; print('Fingerprints' in dir(morpheus), 'polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    with pytest.raises(AttributeError, match="no attribute 'Fingerprint'"):
        _ = morpheus.Fingerprint


def test_events_without_a_score_are_counted_in_a_warning(
    trained: Fingerprints, caplog: pytest.LogCaptureFixture
) -> None:
    risks = trained.score(people())["risk"]
    assert risks.null_count() == 1
    assert "1 event not scored: no user (no value in `who`)" in caplog.messages


# Manners of a Python object.


def test_fingerprints_are_a_collection_of_users(trained: Fingerprints) -> None:
    assert trained.users == ["ann", "bob"]
    assert list(trained) == ["ann", "bob"]
    assert len(trained) == 2
    assert "ann" in trained
    assert "eve" not in trained
    assert trained["ann"] == trained.cards["ann"]
    with pytest.raises(UsageError, match=r"There is no fingerprint of `boob`. Did you mean `bob`"):
        trained["boob"]
    with pytest.raises(KeyError):
        trained["eve"]


def test_the_representation_is_one_short_line(trained: Fingerprints) -> None:
    expected = "<Fingerprints of 2 users by `who`, 4 columns, trained until 2026-01-01>"
    assert repr(trained) == expected


HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e\"'&"


def test_hostile_names_are_inert_in_a_notebook_and_a_terminal() -> None:
    frame = people().with_columns(who=pl.col("who").replace("ann", HOSTILE))
    fingerprints = train(frame.rename({"who": HOSTILE}), user=HOSTILE)
    page = fingerprints._repr_html_()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img" not in page
    assert page.isprintable()
    assert repr(fingerprints).isprintable()


def test_a_table_in_a_notebook_has_ten_users_at_most() -> None:
    frame = pl.concat(people(60).with_columns(who=pl.col("who") + str(n)) for n in range(8))
    fingerprints = train(frame)
    page = fingerprints._repr_html_()
    assert page.count("<tr>") == 11
    assert "<td>ann0</td><td>60</td>" in page


def test_explanations_can_be_structs_with_the_values_of_the_json(trained: Fingerprints) -> None:
    frame = people().with_columns(agent=pl.lit("curl"))
    texts = trained.explain(frame)["explanation"]
    structs = trained.explain(frame, structured=True)["explanation"]
    assert isinstance(structs.dtype, pl.Struct)
    assert structs.null_count() == texts.null_count() == 1
    for text, struct in zip(texts, structs, strict=True):
        if text is None:
            assert struct is None
            continue
        found = json.loads(text)
        assert struct["surprise"] == found["surprise"]
        assert [each["column"] for each in struct["columns"]] == [
            each["column"] for each in found["columns"]
        ]
        for one, other in zip(struct["columns"], found["columns"], strict=True):
            assert {n: v for n, v in one.items() if n != "expected"} == {
                n: v for n, v in other.items() if n != "expected"
            }
            assert [each["value"] for each in one["expected"]] == [
                each.get("value") for each in other["expected"]
            ]


def test_structured_explanations_of_pandas_are_dictionaries(trained: Fingerprints) -> None:
    frame = pd.DataFrame(people().to_dict(as_series=False))
    texts = trained.explain(frame)["explanation"]
    cells = trained.explain(frame, structured=True)["explanation"]
    event = next(n for n, text in enumerate(texts) if isinstance(text, str))
    assert cells[event]["surprise"] == json.loads(texts[event])["surprise"]


def test_a_struct_of_an_explanation_has_a_field_for_everything_in_the_json() -> None:
    kind = decode_explanations(pl.Series([None], dtype=pl.String)).dtype
    assert isinstance(kind, pl.Struct)
    names = {each.encode_name for each in msgspec.structs.fields(Explanation)}
    assert set(kind.to_schema()) == names


@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("saved", [False, True], ids=["trained", "loaded"])
def test_a_copy_scores_as_the_original_which_may_be_gone(tmp_path, way, saved):
    frame = people()
    models = train(epochs=1)
    if saved:
        models.save(tmp_path / "models")
        models = Fingerprints.load(tmp_path / "models", user="who", time="at")
    expected = models.score(frame)
    make = {"pickle": pickle.dumps, "copy": copy.copy, "deepcopy": copy.deepcopy}[way]
    made = make(models)
    del models
    gc.collect()
    again = pickle.loads(made) if way == "pickle" else made  # noqa: S301 - made here
    assert again.score(frame).equals(expected)
    assert again.users == ["ann", "bob"]
    second = pickle.loads(pickle.dumps(again))  # noqa: S301 - made here
    assert second.score(frame).equals(expected)


def test_a_pickle_names_its_store_whatever_the_folder_it_is_read_in(tmp_path, monkeypatch):
    train(epochs=1).save(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    made = pickle.dumps(Fingerprints.load("models", user="who", time="at"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(made)) == 2  # noqa: S301 - made here
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(UsageError, match=r"models: has no versions\."):
        pickle.loads(made)  # noqa: S301 - made here
