"""Re-implementation of upstream's time-series algorithm of 22.11, to measure its cost per message.

Each user has a table of events. Each message is appended, the table is sorted and all bins are
computed again. Then every message with a complete window is evaluated by Fourier analysis of the
counts in the window, and older rows are removed.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pandas as pd
from numpy.typing import NDArray

WIDTH, HALF = 600, 72
PERCENT, LIMIT = 90.0, 8.0
DAY = 86_400


def flags(times: NDArray[np.int64], rows: int) -> int:
    """Return the number of flagged events, with messages of `rows` rows."""
    start = int(times[0]) // DAY * DAY
    table = pd.DataFrame({"row": [], "time": []}, dtype="int64")
    waiting: deque[pd.DataFrame] = deque()
    warm, flagged = False, 0
    for first in range(0, len(times), rows):
        part = times[first : first + rows]
        message = pd.DataFrame({"row": np.arange(first, first + len(part)), "time": part})
        waiting.append(message)
        table = pd.concat([table, message]).sort_values("row")
        last = first + rows >= len(times)
        while waiting:
            table["bin"] = (table["time"] - start) // WIDTH
            span = (waiting[0]["time"].iloc[[0, -1]] - start) // WIDTH
            low, high = int(span.iloc[0]) - HALF, int(span.iloc[1]) + HALF
            if table["bin"].iloc[0] > low and not warm and not last:
                waiting.popleft()
                continue
            warm = True
            if table["bin"].iloc[-1] < high and not last:
                break
            table = table[table["bin"] >= low]
            found = unusual(table.loc[table["bin"] <= high, "bin"].to_numpy(), low, high)
            bins = (waiting.popleft()["time"] - start) // WIDTH
            flagged += int(bins.isin(found).sum())
    return flagged


def unusual(bins: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Return the bins of a window that its strongest frequencies do not explain."""
    signal, _ = np.histogram(bins, np.arange(low - 1, high + 1))
    size = len(signal)
    power = np.abs(np.fft.fft((signal - signal.mean()) / (signal.std() or 1))) ** 2 / size
    power = power[: size // 2 + 1]
    strong = np.where(power < np.percentile(power, PERCENT), 0, np.fft.rfft(signal))
    error = np.abs(np.fft.irfft(strong, size) - signal)
    z = np.abs(error - error.mean()) / (error.std() or 1)
    return np.flatnonzero(z >= LIMIT) + low - 1
