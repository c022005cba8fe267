"""The page of `to-report`: cost of writing, size, and time until it is visible.

The sink gets 1,000 users with 1,000 events each over thirty days, with two alerts per user. The
alerts are explained events of the examples' users with new ids and addresses, because repetitions
would compress too well.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from figures.table import Table

from morpheus.columns import RISK, TIME, TS_ANOMALY
from morpheus.core.batch import OutputRows, RunMetrics
from morpheus.core.batch import Table as EventTable
from morpheus.core.stage import PipelineOptions
from morpheus.models.calibration import EXCEEDANCE_LEVELS, HOURS_PER_WEEK, ModelSummary
from morpheus.models.profile import ModelCard
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.runtime.chain import Segment
from morpheus.sinks.to_report import ToReport
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from speed.meter import cpu_seconds
from speed.scale import Scale

DATA = Path(__file__).parents[2] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
EXPLAINED = ("reason", "top_columns", "explanation")
CHROMIUM = "/usr/bin/chromium"
EVENTS, ALERTS, DAYS = 1000, 2, 30
START = 1_740_960_000
MAX_RISK = 4.0
"""The highest risk of any user's validation events."""


def tables(scale: Scale) -> Iterator[Table]:
    """Return seconds and bytes by number of users."""
    table = Table(
        "`to-report`, 1,000 events and 2 alerts per user",
        ["users", "events", "incidents", "CPU s", "page MB", "first paint s", "fully drawn s"],
        note="CPU: aggregating and writing, which is all that the sink adds to a run. First paint "
        "and fully drawn: headless Chromium, from disk, median of three.",
    )
    for users in (100,) if scale.quick else (100, 1000):
        path = scale.scratch / "report.html"
        found, spent = cost(users, path)
        table.add(users, users * EVENTS, found, spent, path.stat().st_size / 1e6, *seen(path))
    yield table


def cost(users: int, path: Path) -> tuple[int, float]:
    """Write the report of some users; return its incidents and CPU seconds."""
    batches = [company(number) for number in range(users)]
    found: list[int] = []
    spent = cpu_seconds(lambda: found.append(written(batches, path)))
    return found[0], spent


def written(batches: list[OutputRows], path: Path) -> int:
    """Run batches through the sink, and count the incidents."""
    sink = ToReport(str(path), overwrite=True, alerts_per_day=1000.0)
    summary = RunMetrics()
    for batch in Segment.from_stages([sink]).open().run(batches):
        summary.add(batch)
    sink.commit(summary)
    return len(sink.make_report_data(summary).incidents)


def company(number: int) -> OutputRows:
    """Return a user's events of a month."""
    dice = np.random.default_rng(number)
    seconds = np.sort(dice.uniform(0, DAYS * 86400, EVENTS)) + START
    frame = examples()[dice.integers(examples().height, size=EVENTS)]
    risks, alerts = (
        dice.exponential(0.6, EVENTS).clip(0, 0.99 * MAX_RISK),
        np.zeros(EVENTS, dtype=np.bool_),
    )
    alerts[dice.choice(EVENTS, ALERTS, replace=False)] = True
    risks[alerts] = dice.uniform(1.1, 6, ALERTS) * MAX_RISK
    name = f"user{number:04}"
    frame = frame.with_columns(
        pl.lit(name).alias(USER),
        pl.Series("eventID", [str(uuid.UUID(bytes=dice.bytes(16))) for _ in range(EVENTS)]),
        pl.Series("sourceIPAddress", [".".join(map(str, dice.bytes(4))) for _ in range(EVENTS)]),
        pl.Series(RISK, risks.round(6)),
        pl.Series((seconds * 1e6).astype(np.int64)).cast(pl.Datetime("us", "UTC")).alias(TIME),
        *(pl.when(pl.Series(alerts)).then(pl.col(column)).alias(column) for column in EXPLAINED),
    )
    return OutputRows(user=name, table=EventTable(frame), card=card(name, dice), scores=(RISK,))


def card(user: str, dice: np.random.Generator) -> ModelCard:
    """Return a model card."""
    hours = dice.poisson(dice.uniform(0, 30, HOURS_PER_WEEK)).tolist()
    curve = tuple((dice.random(12) * 9).round(3).tolist())
    risks = tuple(np.linspace(0.5, MAX_RISK, len(EXCEEDANCE_LEVELS)).tolist())
    high_novelty = tuple((name, 0.5) for name in ("eventID", "userAgent", "requestParametersname"))
    portrait = ModelSummary(tuple(hours), 6.0, curve, risks, 1.0, 0.4, 400, 10, high_novelty)
    days = "2025-01-15T00:00:00+00:00", "2025-03-01T00:00:00+00:00"
    return ModelCard(user, 1600, 400, *days, 9, 42, summary=portrait)


@cache
def examples() -> pl.DataFrame:
    """Return the examples' events with explanations."""
    keep = CollectSink()
    stages = [
        FromCloudtrail(input_glob=str(DATA / "input-data" / "*.csv")),
        TrainAe(train_data_glob=str(DATA / "training-data" / "*.csv"), seed=42),
        *(Preprocess(), InfPytorch(), AddScores(label=(RISK, "pvalue")), Explain()),
        *(Timeseries(resolution="10m"), Serialize(), keep),
    ]
    Pipeline(stages, PipelineOptions(userid_column_name=USER, num_threads=1)).run()
    frames = [batch.table.to_frame() for batch in keep.batches]
    return pl.concat(frames, how="diagonal_relaxed").with_columns(
        pl.lit(value=False).alias(TS_ANOMALY)
    )


def seen(path: Path) -> tuple[float | None, float | None]:
    """Return seconds until something is visible and until all is drawn; None without a browser."""
    if not Path(CHROMIUM).exists():
        return None, None
    with browser() as chromium:
        looks = sorted(look(chromium, path) for _ in range(3))
    return looks[1]


@contextmanager
def browser() -> Iterator[object]:
    """Start Chromium without a window."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where a browser is

    with sync_playwright() as driver:
        arguments = ["--no-sandbox"]  # benchmarks may run as root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


def look(chromium: object, path: Path) -> tuple[float, float]:
    """Open a page."""
    view = chromium.new_page(viewport={"width": 1920, "height": 1080})  # type: ignore[attr-defined]  # of playwright
    begin = time.perf_counter()
    view.goto(path.as_uri())
    view.wait_for_selector("body[data-ready]")
    drawn = time.perf_counter() - begin
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    view.wait_for_timeout(100)  # the paint event arrives a little later
    first = view.evaluate(paint) / 1000
    view.close()
    return first, drawn
