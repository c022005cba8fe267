"""Alerts as `to-file` writes them into a served folder."""

import json
import time
from pathlib import Path

DAY = 1633737600
"""2021-10-09, in seconds since 1970."""


def row(user="ann", second=0, risk=5.0, **more):
    """An alert as `to-file` writes it in JSON lines."""
    event = {"userIdentityaccountId": user, "eventName": "DeleteTrail", "risk": risk}
    event |= {"event_dt": (DAY + second) * 1000, "reason": f"eventName: {user} did it"}
    return json.dumps({**event, "top_columns": "eventName", **more}) + "\n"


def append(path: Path, *rows: str) -> None:
    with path.open("a") as file:
        file.writelines(rows)


def until(done, seconds=20):
    end = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return result
