"""`AutoencoderDetector` passes the checks of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from morpheus.models.fit import fit_fingerprint
from people import COLUMNS, day, times

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

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
