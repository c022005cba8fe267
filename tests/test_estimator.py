"""`AutoencoderDetector` passes the checks of scikit-learn."""

from __future__ import annotations

import copy
import os
import pickle
import pickletools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from morpheus.errors import ModelCorruptedError
from morpheus.models.fit import fit_fingerprint
from people import COLUMNS, day, times

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

import joblib
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from morpheus.sklearn import AutoencoderDetector


@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks warn on purpose
def test_the_detector_passes_the_checks_of_scikit_learn() -> None:
    check_estimator(AutoencoderDetector(epochs=2))


def test_a_row_has_the_score_of_an_event() -> None:
    history, events = day(), day(50, seed=7)
    model = fit_fingerprint("", history, COLUMNS, times=times(history.height), epochs=3)
    encoded = model.encoder.encode(events)
    score = model.losses(encoded).astype(float).mean(axis=1).round(6)[encoded.inverse]
    detector = AutoencoderDetector(epochs=3).fit(history.to_numpy())
    assert np.array_equal(detector.score_samples(events.to_numpy()), -score)


def test_a_new_row_is_an_outlier_and_few_normal_rows_are() -> None:
    detector = AutoencoderDetector(contamination=0.01).fit(day().to_numpy())
    assert detector.predict([["delete", "moon", "curl", "root"]]).tolist() == [-1]
    assert (detector.predict(day(2000, seed=9).to_numpy()) == -1).mean() < 0.03


def test_rows_that_lack_a_column_of_the_training_cause_a_warning() -> None:
    detector = AutoencoderDetector(epochs=2).fit(day().to_numpy())
    rows = day(20, seed=7).to_numpy()
    rows[:, 2] = None
    with pytest.warns(UserWarning, match=r"columns 2 have no value, but had values in `fit`"):
        detector.predict(rows)


def test_the_example_in_the_docs_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    given = "from people import day\nhistory = day().to_numpy()\nrows = day(9, seed=1).to_numpy()\n"
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{given}{example}",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fitted() -> AutoencoderDetector:
    return AutoencoderDetector(epochs=2).fit(day().to_numpy())


@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy"])
def test_a_stored_detector_gives_the_same_scores(fitted, way, tmp_path) -> None:
    if way == "joblib":
        joblib.dump(fitted, tmp_path / "detector")
        again = joblib.load(tmp_path / "detector")
    else:
        again = (
            copy.deepcopy(fitted) if way == "deepcopy" else pickle.loads(pickle.dumps(fitted))  # noqa: S301 - made here
        )
    rows = day(50, seed=7).to_numpy()
    assert np.array_equal(again.score_samples(rows), fitted.score_samples(rows))
    assert again.fingerprint_.card == fitted.fingerprint_.card
    assert again.get_params() == fitted.get_params()


def test_a_pickle_names_no_class_of_the_package_but_the_detector(fitted) -> None:
    strings = [
        argument
        for _, argument, _ in pickletools.genops(pickle.dumps(fitted))
        if isinstance(argument, str)
    ]
    named = {text for text in strings if text.partition(" ")[0].startswith("morpheus")}
    assert named == {"morpheus.sklearn"}


def test_a_damaged_model_in_a_pickle_is_named(fitted) -> None:
    state = fitted.__getstate__()
    state["_model_file"] = state["_model_file"][:100]
    with pytest.raises(ModelCorruptedError, match=r"Detector is damaged .* Fit again"):
        AutoencoderDetector().__setstate__(state)


def test_a_detector_that_is_not_fitted_can_be_pickled_and_cloned(fitted) -> None:
    again = pickle.loads(pickle.dumps(AutoencoderDetector(epochs=3)))  # noqa: S301 - made here
    assert again.get_params()["epochs"] == 3
    assert not hasattr(again, "fingerprint_")
    assert not hasattr(clone(fitted), "fingerprint_")


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, pd.NaT], ids=str)
def test_a_missing_value_is_a_value(missing) -> None:
    history = day().to_numpy()
    history[::2, 2] = missing
    detector = AutoencoderDetector(epochs=3).fit(history)
    odd = pl.int_range(pl.len()) % 2 == 1
    gaps = day().with_columns(pl.when(odd).then("agent").alias("agent"))
    model = fit_fingerprint("", gaps, COLUMNS, times=times(400), epochs=3)
    encoded = model.encoder.encode(gaps)
    score = model.losses(encoded).astype(float).mean(axis=1).round(6)[encoded.inverse]
    assert np.array_equal(detector.score_samples(history), -score)


def test_a_gap_is_unusual_where_the_history_has_none() -> None:
    rng = np.random.default_rng(0)
    history = rng.normal(size=(400, 3))
    detector = AutoencoderDetector(epochs=5).fit(history)
    rows = rng.normal(size=(40, 3))
    normal = detector.score_samples(rows)
    rows[:20, 1] = np.nan
    gaps = detector.score_samples(rows)
    assert (gaps[:20] < normal[:20]).all()
    assert np.array_equal(gaps[20:], normal[20:])


def test_frames_of_pandas_with_any_types_can_be_fitted() -> None:
    frame = pd.DataFrame(day().to_dict(as_series=False))
    frame["whole"] = pd.array([1, None] * 200, dtype="Int64")
    frame["number"] = np.where(np.arange(400) % 3 == 0, np.nan, 1.5)
    frame["category"] = pd.Categorical(["a", None] * 200)
    frame["flag"] = pd.array([True, None] * 200, dtype="boolean")
    frame["mixed"] = pd.Series(["a", 1, 2.5, None] * 100, dtype=object)
    scores = AutoencoderDetector(epochs=2).fit(frame).score_samples(frame)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"contamination": 0.7}, r"contamination: 0.7 is not a share from 0 to 0.5"),
        ({"contamination": -0.1}, r"contamination: -0.1 is not"),
        ({"scaler": "foo"}, r"scaler: 'foo' is none of none, standard, gauss_rank"),
        ({"epochs": 0}, r"epochs: 0 is not a whole number of at least 1"),
        ({"contamination": "auto"}, r"contamination: 'auto' is not a share from 0 to 0.5"),
        ({"epochs": 2.5}, r"epochs: 2.5 is not a whole number"),
        ({"random_state": "x"}, r"random_state: 'x' is neither an integer nor"),
        ({"random_state": np.random.default_rng(1)}, r"random_state: Generator.* is neither"),
    ],
)
def test_a_parameter_with_an_impossible_value_is_rejected_by_fit(
    parameters: dict[str, Any], message: str
) -> None:
    detector = AutoencoderDetector(**parameters)
    with pytest.raises(ValueError, match=message):
        detector.fit(np.zeros((10, 2)))


def test_rows_without_any_value_are_rejected_by_fit() -> None:
    with pytest.raises(ValueError, match="X: no row has a value"):
        AutoencoderDetector(epochs=1).fit(np.full((60, 2), np.nan))


def test_equal_generators_give_equal_detectors() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    scores = [
        AutoencoderDetector(random_state=seed, epochs=2).fit(rows).score_samples(rows)
        for seed in (np.random.RandomState(3), np.random.RandomState(3), None, 0)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[2], scores[3])
    assert not np.array_equal(scores[0], scores[2])
