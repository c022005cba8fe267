"""Invented logs with labels, for tests of the detection benchmark."""

import polars as pl


def days(part, users=2, weeks=2, incidents=None, hours=(0,)):
    """A trial of users with an event at each hour of each day, `u0-0`, ..., from a Monday on."""
    first, number = pl.datetime(2025, 3, 3, time_zone="UTC"), pl.int_range(7 * weeks * len(hours))
    hour = pl.lit(pl.Series(list(hours) * (7 * weeks)))
    when = first + pl.duration(days=number // len(hours), hours=hour)
    frames = [
        pl.select(
            user=pl.lit(f"u{n}"),
            eventID=pl.format("u{}-{}", pl.lit(n), number),
            eventTime=when.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            action=pl.lit("read"),
        )
        for n in range(users)
    ]
    logs, incidents = pl.concat(frames), incidents or {"u0-3": 0}
    kinds = dict.fromkeys(incidents.values(), "swap")
    return part("quality.trial").Trial("t", "user", ("action",), logs, logs, incidents, kinds)
