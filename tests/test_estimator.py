"""`AutoencoderDetector` keeps to scikit-learn's conventions, as scikit-learn checks them."""

from __future__ import annotations

import numpy as np
import pytest

from morpheus.models.fit import fit_fingerprint
from people import COLUMNS, day, times

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

from sklearn.utils.estimator_checks import check_estimator

from morpheus.sklearn import AutoencoderDetector


@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks warn on purpose
def test_scikit_learn_finds_nothing_against_it() -> None:
    check_estimator(AutoencoderDetector(epochs=2))


def test_a_row_scores_as_an_event_does() -> None:
    history, events = day(), day(50, seed=7)
    known = fit_fingerprint("", history, COLUMNS, times=times(history.height), epochs=3)
    encoded = known.encoder.encode(events)
    score = known.losses(encoded).astype(float).mean(axis=1).round(6)[encoded.inverse]
    one = AutoencoderDetector(epochs=3).fit(history.to_numpy())
    assert np.array_equal(one.score_samples(events.to_numpy()), -score)


def test_what_is_new_is_an_outlier_and_few_usual_rows_are() -> None:
    one = AutoencoderDetector(contamination=0.01).fit(day().to_numpy())
    assert one.predict([["delete", "moon", "curl", "root"]]).tolist() == [-1]
    assert (one.predict(day(2000, seed=9).to_numpy()) == -1).mean() < 0.03
