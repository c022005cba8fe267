"""Quality of a ranking: are marked events ranked first? Equal scores count as one step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]


def curve(scores: Floats, marked: Marks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count benign and marked events at or above each score, from the highest, starting at 0."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = marked[order].cumsum()[ends]
    return np.append(0, ends + 1 - hits), np.append(0, hits)


def area(scores: Floats, marked: Marks) -> float:
    """Return the ROC AUC; NaN if all events are of one kind.

    >>> area(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False]))
    0.875
    """
    false, true = curve(scores, marked)
    pairs = false[-1] * true[-1]
    return float(np.trapezoid(true, false) / pairs) if pairs else float("nan")


def average_precision(scores: Floats, marked: Marks) -> float:
    """Return the average precision.

    >>> average_precision(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False]))
    0.8333333333333333
    """
    false, true = curve(scores, marked)
    gained = np.diff(true) / true[-1]
    return float((gained * true[1:] / (true + false)[1:]).sum())


def recall(scores: Floats, marked: Marks, alarms: float) -> float:
    """Return the recall at a false-positive rate.

    Within equal scores, the recall grows linearly with the false positives.

    >>> recall(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False]), 0.25)
    0.75
    """
    false, true = curve(scores, marked)
    allowed = alarms * false[-1]
    here = int(np.searchsorted(false, allowed, side="right")) - 1
    if here == len(false) - 1:
        return 1.0
    part = (allowed - false[here]) / (false[here + 1] - false[here])
    return float((true[here] + part * (true[here + 1] - true[here])) / true[-1])
