"""Ann, a user with simple habits: histories and a fingerprint for tests of models and stages."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from morpheus.models.fit import fit_fingerprint

COLUMNS = ["action", "address", "agent", "kind"]
PEOPLE = {"get": "web", "list": "web", "deploy": "cli", "copy": "cli"}


def day(events=400, seed=0):
    rng = np.random.default_rng(seed)
    actions = rng.choice(list(PEOPLE), events, p=[0.4, 0.3, 0.2, 0.1])
    return pl.DataFrame(
        {
            "action": actions,
            "address": rng.choice(["home", "office"], events, p=[0.2, 0.8]),
            "agent": [PEOPLE[action] for action in actions],
            "kind": ["user"] * events,
        }
    )


def times(events):
    return pl.Series(
        [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(events)]
    )


def fingerprint(frame=None, **options):
    frame = day() if frame is None else frame
    return fit_fingerprint("ann", frame, COLUMNS, times=times(frame.height), **options)
