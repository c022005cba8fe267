"""The alert budget, from training to the report in the metrics."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from polars.testing import assert_frame_equal

from morpheus.columns import INCIDENT_ID, INCIDENT_SEVERITY, INDEX, RISK, ROW, TIME
from morpheus.core.batch import AlertCandidates, Events, RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.models.calibration import UserDays, compute_severity
from morpheus.models.explanation import ReasonWriter
from morpheus.pipeline import Pipeline
from morpheus.report.incidents import incident_id
from morpheus.runtime.chain import Segment
from morpheus.sources.base import Source
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import (
    MAX_FACTOR,
    BudgetFilter,
    Filter,
    StreamBudgetFilter,
    StreamBudgetState,
    limit_by_bucket,
)
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.monitor import Monitor
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from morpheus.suppressions.rules import NO_MATCH, Suppression, Suppressions
from morpheus.testing import make_events, make_scored, run_stage
from people import day as make_day
from test_pipeline import Collect, columns  # noqa: F401 - a fixture

HISTORY_DAYS, DAYS, EVENTS = 16, 6, 12
INTRUSIONS = {("user2", 1): 1, ("user5", 3): 2, ("user7", 4): 3, ("user8", 4): 2, ("user9", 5): 2}
"""Number of columns with a value that the user never has, by user and day."""
INTRUDER_VALUES = {"address": "cafe", "kind": "root", "agent": "curl"}
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


@dataclass(frozen=True)
class FromFleet(Source):
    """Days of users who work from home, each from a home of their own, and of some intruders."""

    name = "from-fleet"
    default_columns = "columns_ae.txt"

    users: int = 12
    days: int = DAYS
    extra: tuple[tuple[str, int], ...] = ()
    misdated: tuple[tuple[str, int], ...] = ()
    unbounded: bool = False
    history: pl.DataFrame | None = None
    own_ids: bool = False

    def is_unbounded(self):
        return self.unbounded

    def events(self, training_input, metrics, state=None):
        people = [f"user{n}" for n in range(self.users)]
        for user in people if not self.unbounded else []:
            yield self.batch(user, range(self.days), training_input, metrics)
        if self.unbounded:
            for number in range(self.days):
                for user in people:
                    yield self.batch(user, [number], training_input, metrics)
        no_user = work("user0", range(1)).head(3)
        metrics.input.read += 3
        yield Events(user=None, table=Table(no_user))

    def batch(self, user, days, training_input, metrics):
        table = pl.concat([work(user, [number]) for number in days])
        dates = [number for who, number in self.misdated if who == user]
        table = pl.concat([table, *(frame_of_extra(user, number) for number in dates)]).sort(TIME)
        if self.own_ids:
            table.insert_column(2, pl.Series("incident_id", ["x"] * table.height))
        metrics.input.read += table.height
        history = work(user, range(-HISTORY_DAYS, 0))
        added = [frame_of_extra(user, number) for who, number in self.extra if who == user]
        history = pl.concat([history, *added]).sort(TIME)
        return Events(
            user=user, table=Table(table), history=Table(history) if training_input else None
        )


def work(user, days):
    """The user's events of some days, of which day 0 is the first to be scored."""
    frames = []
    for number in days:
        seed = int(user.removeprefix("user")) * 1000 + number + HISTORY_DAYS
        frame = make_day(EVENTS, seed).with_columns(
            pl.lit(f"home of {user}").alias("address"),
            (pl.lit(MONDAY + timedelta(days=number)) + pl.duration(hours=pl.int_range(EVENTS)))
            .dt.cast_time_unit("us")
            .alias(TIME),
        )
        strange = list(INTRUDER_VALUES)[: INTRUSIONS.get((user, number), 0)]
        for name in strange:
            is_strange = pl.int_range(EVENTS) >= EVENTS - 3
            frame = frame.with_columns(
                pl.when(is_strange).then(pl.lit(INTRUDER_VALUES[name])).otherwise(name).alias(name)
            )
        frames.append(frame)
    frame = pl.concat(frames)
    order = pl.int_range(frame.height)
    return frame.select(
        order.alias(ROW), order.alias(INDEX), *("action", "address", "agent", "kind"), TIME
    )


def frame_of_extra(user, number):
    """An event that has nothing in common with the user's others."""
    values = {"action": "zzz", "address": "nowhere", "agent": "none", "kind": "alien"}
    when = (pl.lit(MONDAY + timedelta(days=number))).dt.cast_time_unit("us").alias(TIME)
    return work(user, [0]).head(1).with_columns(when, **{k: pl.lit(v) for k, v in values.items()})


LEARN = TrainAe(train_data_glob="x", train_min_history=100)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Fingerprints of all users, for the tests that do not change what is trained on."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "columns.txt").write_text("action\naddress\nagent\nkind\n")
    options = PipelineOptions(columns_file=str(folder / "columns.txt"), num_threads=1)
    models = str(folder / "models")
    stages = [FromFleet(users=24, days=1), replace(LEARN, models_output_filename=models)]
    stages += [Preprocess(), InfPytorch(), AddScores(), Serialize(), Collect(rows=[])]
    Pipeline(stages, options).run()
    return TrainAe(pretrained_filename=models)


def run(base, learn, alerts=None, *, threads=1, source=None, serialize=None, **options):  # noqa: PLR0913 - the parts of a run
    sink = []
    stages = [
        source or FromFleet(),
        *(
            learn,
            Preprocess(),
            InfPytorch(),
            AddScores(label=(RISK,)),
        ),
        *(Filter(alerts_per_day=alerts, **options), serialize or Serialize(), Collect(rows=sink)),
    ]
    options = PipelineOptions(columns_file=base.columns_file, num_threads=threads, labels=(RISK,))
    metrics = Pipeline(stages, options).run()
    frames = [
        batch.table.to_frame().with_columns(pl.lit(batch.user).alias("user")) for batch in sink
    ]
    return metrics, pl.concat(frames, how="diagonal_relaxed")


def user_days(rows):
    """Users and days of some rows."""
    days = (
        rows[TIME].str.to_datetime(time_zone="UTC") if rows[TIME].dtype == pl.String else rows[TIME]
    )
    return set(zip(rows["user"], (days.dt.date() - MONDAY.date()).dt.total_days(), strict=True))


ALL_EVENTS = 12 * DAYS * EVENTS + 3


@pytest.mark.parametrize("unbounded", [False, True])
@pytest.mark.parametrize(
    "choice", [Filter(alerts_per_day=1.0), Filter(label=(RISK,), threshold=20.0)]
)
def test_a_filter_behind_explain_saves_work_and_changes_no_row(
    columns,  # noqa: F811 - the fixture
    store,
    monkeypatch,
    choice,
    unbounded,
):
    explained, write = [], ReasonWriter.write

    def count(self, *given):
        explained[-1] += 1
        return write(self, *given)

    monkeypatch.setattr(ReasonWriter, "write", count)
    outputs = []
    for between in ((), (Monitor(),)):  # with a stage between, all events are explained
        explained.append(0)
        sink = []
        stages = [FromFleet(unbounded=unbounded), store, Preprocess(), InfPytorch()]
        stages += [AddScores(label=(RISK,)), Explain(), *between, choice, Serialize()]
        options = PipelineOptions(columns_file=columns.columns_file, num_threads=1, labels=(RISK,))
        Pipeline([*stages, Collect(rows=sink)], options).run()
        frames = [batch.table.to_frame() for batch in sink]
        outputs.append(pl.concat([each for each in frames if each.height]))
    assert_frame_equal(*outputs)
    assert outputs[0]["reason"].null_count() == 0 < outputs[0].height
    few, every = explained
    assert outputs[0].height <= few < every / 3
    assert every == ALL_EVENTS - 3


def write_rule(folder, condition, user="user7"):
    """A file with one suppression."""
    path = folder / "suppressions.toml"
    path.write_text(
        'format = "morpheus-suppressions"\nversion = 2\n[[suppression]]\n'
        f'{condition}\nusers = ["{user}"]\nuntil = 2026-03-01\nreason = "asked"\n'
    )
    return str(path)


@pytest.mark.parametrize("unbounded", [False, True])
def test_a_muted_user_has_no_alert_and_the_others_have_theirs(columns, store, tmp_path, unbounded):  # noqa: F811 - the fixture
    source = FromFleet(unbounded=unbounded)
    _, every = run(columns, store, 1.0, source=source)
    metrics, rows = run(
        columns, store, 1.0, source=source, suppressions=(write_rule(tmp_path, "mute = true"),)
    )
    assert_frame_equal(rows, every.filter(pl.col("user") != "user7"))
    dropped = every.filter(user="user7").height
    assert metrics.suppressed == {"everything, of user7, until 2026-03-01": dropped}
    assert dropped > 0
    assert metrics.input.read == rows.height + metrics.filtered


@pytest.mark.parametrize("unbounded", [False, True])
@pytest.mark.parametrize("most", [None, 0.5])
def test_every_event_is_part_of_an_alert_or_counted_as_dropped(columns, store, unbounded, most):  # noqa: F811 - the fixture
    source = FromFleet(unbounded=unbounded)
    metrics, rows = run(columns, store, 1.0, source=source, max_alerts_per_day=most)
    assert metrics.input.read == ALL_EVENTS
    assert rows.height + metrics.filtered == ALL_EVENTS
    report = metrics.budget_report
    assert len(user_days(rows)) == report.alerts > 0
    assert report.forecast.low <= report.forecast.alerts <= report.forecast.high
    assert report.forecast.alerts == pytest.approx(1.0 * DAYS)


@pytest.mark.parametrize("unbounded", [False, True])
def test_the_days_of_intruders_are_the_alerts_of_a_small_budget(columns, store, unbounded):  # noqa: F811 - the fixture
    _, rows = run(columns, store, 1.0, source=FromFleet(unbounded=unbounded))
    assert user_days(rows) == set(INTRUSIONS)


@pytest.mark.parametrize("unbounded", [False, True])
def test_rows_of_an_alert_have_the_id_and_the_severity_of_their_incident(columns, store, unbounded):  # noqa: F811 - the fixture
    _, rows = run(columns, store, 1.0, source=FromFleet(unbounded=unbounded))
    dates = rows[TIME].cast(pl.String).str.slice(0, 10).alias("date")
    assert rows["incident_id"].to_list() == [
        incident_id(user, day) for user, day in rows.with_columns(dates)["user", "date"].rows()
    ]
    assert rows["incident_id"].n_unique() == len(user_days(rows)) == len(INTRUSIONS)
    highest = rows.group_by("incident_id").agg(
        pl.col("incident_severity").n_unique().alias("different"),
        pl.col("incident_severity").max(),
    )
    assert highest["incident_severity"].is_between(50, 100).all()
    assert unbounded or highest["different"].to_list() == [1] * highest.height


def test_columns_of_incidents_can_be_left_out(columns, store):  # noqa: F811 - the fixture
    _, rows = run(columns, store, 1.0, serialize=Serialize(exclude=("incident_",)))
    assert not {"incident_id", "incident_severity"} & set(rows.columns)
    assert user_days(rows) == set(INTRUSIONS)


def test_a_log_with_a_column_of_such_a_name_is_rejected(columns, store):  # noqa: F811 - the fixture
    with pytest.raises(UsageError, match=r"filter: the log has a column `incident_id`.*Rename it"):
        run(columns, store, 1.0, source=FromFleet(own_ids=True))


def test_larger_budget_gives_the_same_alerts_and_more(columns, store):  # noqa: F811 - the fixture
    found = [run(columns, store, alerts) for alerts in (1.0, 4.0, 12.0)]
    for (few_metrics, few), (many_metrics, many) in pairwise(found):
        assert user_days(few) < user_days(many)
        assert set(few.rows()) < set(many.rows())
        assert few_metrics.budget_report.wanted < many_metrics.budget_report.wanted


def test_what_came_next_is_above_the_threshold_and_is_an_alert_of_a_larger_budget(columns, store):  # noqa: F811 - the fixture
    report, rows = run(columns, store, 1.0)
    next_pvalue = report.budget_report.next_pvalue
    assert next_pvalue > 1.0 / 12, "six alerts are wanted among 72 user-days"
    _, more = run(columns, store, 12 * next_pvalue * 1.001)
    assert len(user_days(more)) > len(user_days(rows))


def test_users_without_a_candidate_do_not_wait_for_the_last_one():
    usual = [make_candidates([1], [0.9], f"user{number}") for number in range(300)]
    chain = Segment.from_stages([BudgetFilter(0.1)]).open()
    gone = [out for batch in usual for out in chain.push(batch)]
    rest = chain.flush()
    assert len(gone) > 150
    assert all(not out.table.height for out in gone)
    assert sum(out.filtered for out in [*gone, *rest]) == 300
    assert rest[-1].budget_report.days == 300


def test_no_budget_gives_no_alert(columns, store):  # noqa: F811 - the fixture
    metrics, rows = run(columns, store, 0.0)
    assert (rows.height, metrics.filtered, metrics.budget_report.alerts) == (0, ALL_EVENTS, 0)


def test_alerts_do_not_depend_on_the_number_of_threads(columns):  # noqa: F811 - the fixture
    (first_metrics, first), (second_metrics, second) = (
        run(columns, LEARN, 4.0, threads=threads) for threads in (1, 2)
    )
    assert_frame_equal(first, second)
    assert first_metrics.budget_report == second_metrics.budget_report
    assert np.isfinite(first[RISK].to_numpy()).all()


@pytest.mark.parametrize("unbounded", [False, True])
def test_suppressions_drop_alerts_and_do_not_change_the_others(columns, store, tmp_path, unbounded):  # noqa: F811 - the fixture
    source = FromFleet(unbounded=unbounded)
    expected, all_rows = run(columns, store, 1.0, source=source)
    path = tmp_path / "suppressions.toml"
    path.write_text(
        'format = "morpheus-suppressions"\nversion = 1\n[[suppression]]\n'
        'where.address = "cafe"\nusers = ["user7"]\nuntil = 9999-01-01\nreason = "test"\n'
    )
    metrics, rows = run(columns, store, 1.0, source=source, suppressions=(str(path),))
    suppressed = (pl.col("user") == "user7") & (pl.col("address") == "cafe")
    assert_frame_equal(rows, all_rows.filter(~suppressed))
    assert metrics.suppressed.total() == all_rows.filter(suppressed).height > 0
    report = metrics.budget_report
    assert report.forecast == expected.budget_report.forecast
    assert (report.alerts, report.suppressed) == (expected.budget_report.alerts - 1, 1)
    assert rows.height + metrics.filtered == ALL_EVENTS


@pytest.mark.parametrize("budget", [1.0, 4.0])
def test_one_outlying_event_in_a_history_hardly_changes_the_number_of_alerts(columns, budget):  # noqa: F811 - the fixture
    """In the sum of five seeds: in one run, user-days near the threshold are alerts or not."""
    seeds = [replace(LEARN, seed=seed) for seed in range(5)]
    expected = [run(columns, learn, budget)[0].budget_report for learn in seeds]
    for extra in (("user0", -5), ("user7", -5), ("user0", 4000)):
        source = FromFleet(extra=(extra,))
        found = [run(columns, learn, budget, source=source)[0].budget_report for learn in seeds]
        assert [each.wanted for each in found] == [each.wanted for each in expected]
        alerts, usual = (sum(each.alerts for each in reports) for reports in (found, expected))
        assert abs(alerts - usual) < 0.1 * usual


@pytest.mark.parametrize("when", [-3000, 4000])
def test_one_event_with_a_wrong_date_in_the_input_adds_no_alerts(columns, store, when):  # noqa: F811 - the fixture
    expected, _ = run(columns, store, 4.0, source=FromFleet(users=24))
    found, rows = run(columns, store, 4.0, source=FromFleet(users=24, misdated=(("user1", when),)))
    assert found.budget_report.wanted == expected.budget_report.wanted
    others = {(user, number) for user, number in user_days(rows) if user != "user1"}
    assert abs(len(others) - expected.budget_report.alerts) <= 1


@dataclass(frozen=True)
class UnscoredFirst(FromFleet):
    """The events without a user come first."""

    def events(self, training_input, metrics, state=None):
        yield from reversed(list(super().events(training_input, metrics, state)))


@pytest.mark.parametrize("unbounded", [False, True])
def test_all_batches_have_the_columns_of_incidents_also_of_users_without_a_score(
    columns,  # noqa: F811 - the fixture
    store,
    unbounded,
):
    sink = []
    stages = [UnscoredFirst(unbounded=unbounded), store, Preprocess(), InfPytorch()]
    stages += [AddScores(label=(RISK,)), Filter(alerts_per_day=1.0), Serialize()]
    options = PipelineOptions(columns_file=columns.columns_file, num_threads=1)
    Pipeline([*stages, Collect(rows=sink)], options).run()
    assert sink[0].user is None
    assert any(batch.table.height for batch in sink)
    for batch in sink:
        assert {INCIDENT_ID, INCIDENT_SEVERITY} <= set(batch.table.names)


def test_budget_uses_risk_only():
    with pytest.raises(UsageError, match="--alerts_per_day uses `risk` only"):
        Filter(alerts_per_day=1.0, label=("zscore",)).validate()


@pytest.mark.parametrize("most", [0.0, 0.1, 0.14, 0.143, 1 / 7, 0.5])
def test_a_maximum_is_rejected_if_it_never_allows_an_alert(most):
    allowed = limit_by_bucket([("ann", day) for day in range(60)], most)
    if most and not allowed:
        with pytest.raises(UsageError, match=r"no alert is possible. Give at least 0\.143"):
            Filter(alerts_per_day=1.0, max_alerts_per_day=most).validate()
    else:
        Filter(alerts_per_day=1.0, max_alerts_per_day=most).validate()


@pytest.mark.parametrize("unbounded", [False, True])
def test_a_maximum_alone_is_the_budget_too(unbounded):
    stage = Filter(max_alerts_per_day=2.0, options=PipelineOptions(unbounded=unbounded))
    stage.validate()
    assert stage.expand()[1].alerts_per_day == 2.0


# The maximum number of alerts.


def check_maximum(user_days, most):
    """Seven consecutive days have at most seven times the maximum of a day."""
    per_day = Counter(day for _, day in user_days)
    for first in per_day:
        assert sum(per_day[first + n] for n in range(7)) <= 7 * most + 1e-6


days_of_users = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), unique=True)


@given(days_of_users, st.floats(0, 4))
def test_the_maximum_is_never_exceeded_over_seven_days(ranked, most):
    allowed = limit_by_bucket(ranked, most)
    check_maximum(allowed, most)
    assert allowed <= set(ranked)
    for day in {day for _, day in ranked}:
        of_day = [each for each in ranked if each[1] == day]
        count = len(allowed & set(of_day))
        assert allowed & set(of_day) == set(of_day[:count]), "the most unusual come first"


def test_what_quiet_days_leave_can_be_used_later_and_not_twice():
    busy = [(user, day) for day in (0, 30, 31, 36, 37) for user in range(20)]
    per_day = Counter(day for _, day in limit_by_bucket(busy, 2.0))
    assert per_day == {0: 2, 30: 14, 37: 14}
    assert Counter(day for _, day in limit_by_bucket(busy, 0.5)) == {30: 3, 37: 3}


def test_a_maximum_keeps_the_most_unusual_days_and_counts_the_others(columns, store):  # noqa: F811 - the fixture
    _, rows = run(columns, store, 4.0)
    metrics, kept = run(columns, store, 4.0, max_alerts_per_day=1.0)
    report = metrics.budget_report
    check_maximum(user_days(kept), 1.0)
    assert user_days(kept) < user_days(rows)
    assert report.capped == len(user_days(rows)) - len(user_days(kept)) > 0
    assert ("user7", 4) in user_days(kept), "the most unusual of its day"


def test_days_without_risk_take_nothing_from_the_maximum(columns, store):  # noqa: F811 - the fixture
    metrics, rows = run(columns, store, 100.0, max_alerts_per_day=9.0)
    assert metrics.budget_report.capped == 0
    assert len(user_days(rows)) < 9 * DAYS < metrics.budget_report.days


# Inputs without end.

ONE_RULE = Suppressions((Suppression({"eventName": ("Get",)}, ("ann",), MONDAY, "test"),))


def make_candidates(days, pvalues, user="ann", suppressed_by=None):
    """A batch of events with these days and p-values."""
    days, pvalues = np.array(days), np.array(pvalues, dtype=np.float64)
    dates = np.unique(days)
    no_match = np.full(len(days), NO_MATCH)
    candidates = AlertCandidates(
        UserDays(np.zeros(1), np.ones(len(dates)), dates, np.full(len(dates), np.nan)),
        *(np.ones(len(days)), days, pvalues, np.full(len(days), np.nan), compute_severity(pvalues)),
        *(np.ones(len(days)), pvalues),
        *(no_match if suppressed_by is None else np.array(suppressed_by), no_match),
    )
    return replace(make_scored(make_events(range(len(days))), user=user), candidates=candidates)


def judge(batches, alerts=1.0, most=None):
    """Users and days of the alerts of a stream, and the last report."""
    out = run_stage(StreamBudgetFilter(alerts, most), batches, unbounded=True)
    kept = []
    for batch, found in zip(batches, out, strict=True):
        rows = found.table[ROW].to_numpy()
        kept += [(batch.user, day) for day in batch.candidates.days[rows].tolist()]
        assert len(rows) + found.filtered == batch.table.height
    return kept, out[-1].budget_report if out else None


@pytest.mark.parametrize("bias", [0.25, 3.0])
def test_the_threshold_of_a_stream_follows_the_number_of_alerts(bias):
    rng = np.random.default_rng(1)
    batches = [
        make_candidates([day], [min(rng.uniform() * bias, 1)], f"u{user}")
        for day in range(150)
        for user in range(20)
    ]
    kept, report = judge(batches, alerts=4.0)
    per_day = Counter(day for _, day in kept)
    first = sum(per_day[day] for day in range(1, 6)) / 5
    last = sum(per_day[day] for day in range(90, 150)) / 60
    assert abs(first - 4) > 1.5, "the p-values are wrong"
    assert last == pytest.approx(4, rel=0.2)
    assert report.alerts == len(kept)
    assert report.forecast.alerts == pytest.approx(600)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.floats(1e-6, 1)), max_size=60),
    st.sampled_from([0.3, 1.0, 2.5]),
)
def test_a_stream_never_exceeds_the_maximum_over_seven_days(events, most):
    ordered = sorted(events, key=lambda event: event[0])
    batches = [make_candidates([day], [pvalue], f"u{user}") for day, user, pvalue in ordered]
    kept, report = judge(batches, alerts=50.0, most=most)
    check_maximum(set(kept), most)
    assert report is None or report.alerts == len(set(kept))


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(1e-6, 1)), min_size=1, max_size=30))
def test_a_stream_gives_the_same_for_a_batch_of_several_days_and_for_one_batch_a_day(events):
    ordered = sorted(events, key=lambda event: event[0])
    whole = make_candidates([day for day, _ in ordered], [pvalue for _, pvalue in ordered])
    parts = [
        make_candidates([day] * len(values), values)
        for day in sorted({day for day, _ in events})
        if (values := [pvalue for number, pvalue in ordered if number == day])
    ]
    for most in (None, 0.5):
        assert judge([whole], 0.5, most) == judge(parts, 0.5, most)


USER_DAYS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 5), st.floats(1e-6, 1)), min_size=1, max_size=60
)


@given(USER_DAYS, st.sampled_from([None, 0.3, 1.0]))
def test_a_stream_counts_each_alert_once_in_whichever_order_days_come(events, most):
    batches = [make_candidates([day], [pvalue], f"u{user}") for day, user, pvalue in events]
    kept, report = judge(batches, alerts=3.0, most=most)
    latest = [max(day for day, *_ in events[: at + 1]) for at in range(len(events))]
    known = [event for event, now in zip(events, latest, strict=True) if event[0] > now - 7]
    if len(known) == len(events):  # an alert of more than a week ago can count twice
        assert report.alerts == len(set(kept))
    assert report.alerts >= len(set(kept))
    if most is not None:
        assert report.alerts <= most * (max(latest) - events[0][0] + 1) + 1e-9


@given(USER_DAYS)
def test_a_stream_that_is_behind_judges_many_users_day_by_day(events):
    by_user, by_day = {}, {}
    for day, user, pvalue in sorted(events):
        by_user.setdefault(f"u{user}", []).append((day, pvalue))
        by_day.setdefault((day, f"u{user}"), []).append(pvalue)
    whole = [
        make_candidates([day for day, _ in found], [pvalue for _, pvalue in found], user)
        for user, found in sorted(by_user.items())
    ]
    parts = [make_candidates([d] * len(p), p, user) for (d, user), p in sorted(by_day.items())]
    for most in (None, 1.0):
        stage, state = StreamBudgetFilter(2.0, most), StreamBudgetState()
        out = [each for [each] in stage.process_users(whole, [state] * len(whole))]
        kept = [
            (batch.user, day)
            for batch, found in zip(whole, out, strict=True)
            for day in batch.candidates.days[found.table[ROW].to_numpy()].tolist()
        ]
        expected, report = judge(parts, 2.0, most)
        assert (sorted(kept), out[-1].budget_report) == (sorted(expected), report)


def test_the_first_user_of_a_stream_is_not_an_alert_for_being_the_first():
    kept, report = judge([make_candidates([0], [0.5])])
    assert kept == []
    assert report.reason.startswith("learning")
    kept, _ = judge([make_candidates([0], [1e-4])])
    assert kept == [("ann", 0)]


@pytest.mark.parametrize("kind", [BudgetFilter, StreamBudgetFilter])
def test_an_event_that_is_usual_without_suppressed_ones_is_dropped_and_counted(kind):
    batch = make_candidates([1, 1, 1], [0.01] * 3, suppressed_by=[0, NO_MATCH, NO_MATCH])
    candidates = replace(
        batch.candidates,
        user_days=structs.replace(batch.candidates.user_days, scored=np.array([50.0])),
        risks=np.full(3, 50.0),
        remaining=np.array([0.0, 0.0, 50.0]),
        remaining_pvalues=np.array([1.0, 1.0, 0.01]),
    )
    stage = kind(0.5, None, ONE_RULE)
    [out] = run_stage(
        stage, [replace(batch, candidates=candidates)], unbounded=kind is StreamBudgetFilter
    )
    assert out.table[ROW].to_list() == [2]
    [counts] = out.suppressed
    assert (counts.followers, dict(counts.suppressed)) == (1, {ONE_RULE.labels[0]: 1})
    metrics = RunMetrics()
    metrics.add(out)
    assert (metrics.followers, metrics.filtered) == (1, 2)


def test_a_stream_counts_days_of_which_all_events_are_suppressed():
    rule = 0
    batches = [
        make_candidates([0], [1e-4], "ann", [rule]),
        make_candidates([0], [1e-4], "bob", [rule]),
    ]
    stage = StreamBudgetFilter(1.0, rules=ONE_RULE)
    out = run_stage(stage, batches, unbounded=True)
    assert (out[-1].budget_report.alerts, out[-1].budget_report.suppressed) == (0, 2)
    out = run_stage(stage, [*batches, make_candidates([0], [1e-4], "bob")], unbounded=True)
    assert (out[-1].budget_report.alerts, out[-1].budget_report.suppressed) == (1, 1)


def test_a_day_of_a_stream_starts_once_and_is_closed_by_the_next():
    state = StreamBudgetState()
    state.start_day(10, 1.0, 2.0)
    state.users |= {"ann", "bob", "cy"}
    assert [state.allows(user, 10, 2.0) for user in ("ann", "bob", "cy", "ann")] == [
        *(True, True, False, True)
    ]
    for day in (10, 9):
        state.start_day(day, 1.0, 2.0)
        assert (state.day, state.capped, len(state.users)) == (10, 1, 3)
    state.start_day(11, 1.0, 2.0)
    assert (state.day, state.days, state.users_per_day, state.users) == (11, 1, 3.0, set())
    assert state.factor < 1, "three days would have been alerts, and one is wanted"
    assert [state.allows(user, 11, 2.0) for user in ("ann", "bob", "cy")] == [True, True, False]


def test_quiet_days_of_a_stream_raise_the_threshold_up_to_a_limit():
    state, factors = StreamBudgetState(), []
    for day in range(60):
        state.start_day(day, 2.0, None)
        state.users.add("ann")
        factors.append(state.factor)
    assert factors == sorted(factors)
    assert factors[1] > 1 == factors[0]
    assert factors[-1] == MAX_FACTOR
