"""Report data of invented users."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import RISK, TS_ANOMALY, ExplanationColumns
from morpheus.core.batch import RunMetrics
from morpheus.models.calibration import ModelSummary
from morpheus.models.explanation import (
    Baseline,
    ColumnReason,
    ContextContribution,
    Counterfactual,
    ExpectedValue,
    Explanation,
    NearestNormalEvent,
    ReplacedValue,
)
from morpheus.models.profile import ModelCard
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.page import render_page
from morpheus.report.view import (
    Origin,
    ReportData,
    RunCounts,
    build_log_view,
    build_report_data,
)
from morpheus.sources.results import find_log
from morpheus.testing import DAY, make_events

HOUR = 3600
DAY_START = int(DAY.timestamp())


OWN_RISK = ContextContribution(9.0, 9.0, 0.0, 0, 0)
"""The context of an event without earlier ones."""


def explanation(column="eventName", value="DeleteTrail", preceding=OWN_RISK):
    """An explanation with one unusual column."""
    fact = ColumnReason(
        column=column,
        value=value,
        new=True,
        anomaly=9.0,
        risk=9.0,
        dominant_contribution=9.0,
        anomalous_before=0,
        redundant_columns=(),
        probability=0.0004,
        bits=11.3,
        typical_bits=1.2,
        likelihood_ratio_bits=4.0,
        marginal_dominates=True,
        distance=None,
        expected=(ExpectedValue("GetObject", 0.6), ExpectedValue(None, 0.1, new=True)),
    )
    why = Explanation.from_columns(9.0, (fact,), preceding, Baseline("own", 400, 400, 58))
    change = Counterfactual((ReplacedValue(column, "GetObject"),), 9.0, 2.0, 5.0)
    near = NearestNormalEvent(float(DAY_START), 25, 26, (ReplacedValue(column, "GetObject"),))
    return msgspec.json.encode(
        msgspec.structs.replace(why, change=change, nearest=(near,), normal_columns=("username",))
    ).decode()


def normal_events(hours=48, seed=0):
    """Two days of one user without alerts."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.uniform(0, hours * HOUR, 4 * hours))
    names = rng.choice(["GetObject", "ListBuckets"], len(seconds)).tolist()
    return make_events(seconds.tolist(), eventName=names).with_columns(
        pl.Series(RISK, rng.uniform(0, 3, len(seconds)).round(3)),
        pl.Series(TS_ANOMALY, [False] * len(seconds)),
        pl.lit(None, pl.String).alias("reason"),
        pl.lit(None, pl.String).alias("top_columns"),
        pl.lit(None, pl.String).alias("explanation"),
    )


def alerts(seconds, risk=20.0, value="DeleteTrail", **columns):
    """Alerts at the given seconds after `DAY`."""
    more = {name: [cell] * len(seconds) for name, cell in columns.items()}
    frame = make_events(seconds, eventName=[value] * len(seconds), **more)
    return frame.with_columns(
        pl.Series(RISK, [risk - n for n in range(len(seconds))], dtype=pl.Float64),
        pl.lit(value=False).alias(TS_ANOMALY),
        pl.lit(f"eventName: saw `{value[:40]}`, p=.0004, 11.3 bits, new in 58 days").alias(
            "reason"
        ),
        pl.lit("eventName").alias("top_columns"),
        pl.lit(explanation(value=value[:64])).alias("explanation"),
    )


def card(user, **more):
    """A model card: four weeks of an active user, with risks up to 4."""
    summary = ModelSummary(
        hours=tuple(range(168)),
        weeks=4.0,
        loss_curve=(9.0, 6.0, 5.0, 5.2),
        risks=tuple(np.linspace(0.5, 4, 10).tolist()),
        score_mean=1.0,
        score_std=0.5,
        held_out=400,
        days=7,
        high_novelty_columns=(("eventID", 0.9), ("eventName", 0.01)),
    )
    first, last = "2021-09-01T00:00:00+00:00", "2021-10-08T00:00:00+00:00"
    return ModelCard(user, 1600, 300, first, last, 3, 42, summary=summary, **more)


def origin(source="from-cloudtrail", user_column="user") -> Origin:
    """Where the invented users' events come from."""
    return Origin(source, user_column, find_log(source, ()))


def build_data(users, *, cards=True, timezone="UTC", events_of=None, filtered=False) -> ReportData:
    """Report data of the users' events: all are alerts if they are `filtered`."""
    aggregator = ReportAggregator(timezone=timezone, filtered=filtered)
    for user, frames in users.items():
        aggregator.register_user(user, card(user) if cards else None, None)
        for frame in frames:
            aggregator.add(user, frame)
    counts = RunCounts(read=1000, scored=990, refused=2, refusals=["a.json:3: no time"])
    return build_report_data(
        aggregator, counts, 5, models_hint="--models=FOLDER", origin=events_of or origin()
    )


def as_alerts(events):
    """Give events the columns that stages add."""
    return events.with_columns(
        pl.lit(20.0).alias(RISK),
        pl.lit(value=False).alias(TS_ANOMALY),
        *(pl.lit(None, pl.String).alias(name) for name in ExplanationColumns()),
    )


def read_alerts(source):
    """Read all events of a log as alerts, by user."""
    source.validate()
    found = defaultdict(list)
    for batch in source.events(None, RunMetrics()):
        found[batch.user].append(as_alerts(batch.table.to_frame()))
    return found


def open_report(browser, folder, users, origin):
    """Open the page of some alerts in a browser."""
    data = build_data(users, cards=False, events_of=origin, filtered=True)
    log = msgspec.json.encode(build_log_view(origin))
    file = folder / "report.html"
    file.write_bytes(render_page(msgspec.json.encode(data), log))
    view = browser.new_page()
    view.goto(file.as_uri())
    view.wait_for_selector("body[data-ready]")
    return view
