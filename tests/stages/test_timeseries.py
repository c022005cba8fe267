import logging
import re
import time
from dataclasses import replace

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import RATE_PVALUE, TS_ANOMALY
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.runtime.chain import Segment
from morpheus.stages.timeseries import Timeseries
from morpheus.testing import make_events, make_losses, make_scored, run_stage, split_frame
from people import fingerprint

MINUTES = Timeseries(resolution="1m", min_window="60m")  # windows of 121 bins


def flags(stage, *batches):
    return pl.concat([out.table.to_frame() for out in run_stage(stage, batches)])[
        TS_ANOMALY
    ].to_list()


def flagged_seconds(stage, seconds):
    frame = make_events(seconds)
    found = flags(stage, make_scored(frame))
    return [second for second, flag in zip(seconds, found, strict=True) if flag]


def every_minute(minutes):
    """Two events a minute, so that only a minute without events is unusual."""
    return [60 * minute + second for minute in minutes for second in (0, 30)]


def burst(minute, events=40):
    return [60 * minute + second for second in range(events)]


def with_burst(minutes, minute):
    return sorted(every_minute(minutes) + burst(minute))


def test_all_events_of_an_anomalous_bin_are_flagged_and_no_others():
    seconds = with_burst(range(300), 150)
    found = flagged_seconds(MINUTES, seconds)
    assert found == [second for second in seconds if second // 60 == 150]


def test_checks_start_one_window_after_the_first_event():
    for minute, expected in ((59, False), (60, True)):
        assert bool(flagged_seconds(MINUTES, with_burst(range(300), minute))) == expected


def test_hot_start_checks_from_the_first_event_on():
    hot = Timeseries(resolution="1m", min_window="60m", hot_start=True)
    assert flagged_seconds(hot, with_burst(range(300), 3))


def test_checks_continue_to_the_last_event():
    assert flagged_seconds(MINUTES, with_burst(range(300), 299))


def test_cold_end_stops_one_window_before_the_last_event():
    cold = Timeseries(resolution="1m", min_window="60m", cold_end=True)
    for minute, expected in ((239, True), (240, False)):
        assert bool(flagged_seconds(cold, with_burst(range(300), minute))) == expected


def test_a_single_event_is_never_flagged():
    hot = Timeseries(resolution="1m", min_window="60m", hot_start=True, zscore_threshold=1)
    assert flagged_seconds(hot, [0, 7200, 14400]) == []


def test_bins_count_from_midnight_of_the_first_day():
    # Bins of 7 minutes from midnight separate 00:13 and 00:14; bins from 00:13 would not.
    stage = Timeseries(resolution="7m", min_window="7 h", hot_start=True)
    assert flagged_seconds(stage, [13 * 60, 14 * 60]) == []
    assert flagged_seconds(stage, [14 * 60, 15 * 60]) == [840, 900]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12 * 3600), min_size=1, max_size=150),
    st.lists(st.integers(0, 40), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_flags_do_not_depend_on_the_division_into_batches(seconds, sizes, hot, cold):
    stage = Timeseries(
        resolution="5m",
        min_window="1 h",
        hot_start=hot,
        cold_end=cold,
        zscore_threshold=2.5,
    )
    frame = make_events(sorted(seconds))
    whole = flags(stage, make_scored(frame))
    parts = [
        out.table.to_frame()
        for out in run_stage(stage, (make_scored(part) for part in split_frame(frame, sizes)))
    ]
    joined = pl.concat(parts)
    assert joined[TS_ANOMALY].to_list() == whole
    assert joined.drop(TS_ANOMALY).equals(make_scored(frame).table.to_frame())
    assert [part.height for part in parts] == [part.height for part in split_frame(frame, sizes)]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_bin_is_evaluated_only_after_the_last_bin_of_its_window(size):
    times = np.sort(np.random.default_rng(size).integers(0, 4 * 3600, 1500)).tolist()
    stage = Timeseries(resolution="5m", min_window="30m", zscore_threshold=1.5)
    frame = make_events(times)
    whole = flags(stage, make_scored(frame))
    assert any(whole)
    assert (
        flags(stage, *(make_scored(part) for part in split_frame(frame, [size] * (1500 // size))))
        == whole
    )


def test_batches_are_emitted_as_soon_as_their_windows_are_complete():
    stage = Timeseries(resolution="1m", min_window="10m")
    read = []

    def source():
        for part in split_frame(make_events(every_minute(range(60))), [20] * 5):  # ten minutes each
            read.append(part)
            yield make_scored(part)

    first = next(Segment.from_stages([stage]).open().run(source()))
    # The window of minute 9 is minutes -1 to 19. It is complete at the first event of minute 20.
    assert (first.table.height, len(read)) == (20, 3)


def test_users_of_one_stream_do_not_affect_each_other():
    ann, bob = (
        make_events(with_burst(range(300), 150)),
        make_events(with_burst(range(300), 200)),
    )
    mixed = [
        make_scored(part, user=user)
        for pair in zip(split_frame(ann, [100] * 6), split_frame(bob, [100] * 6), strict=True)
        for user, part in zip(("ann", "bob"), pair, strict=True)
    ]
    out = run_stage(MINUTES, mixed, unbounded=True)
    for user, frame in (("ann", ann), ("bob", bob)):
        mine = pl.concat([batch.table.to_frame() for batch in out if batch.user == user])
        assert mine[TS_ANOMALY].to_list() == flags(MINUTES, make_scored(frame))


def test_late_events_are_counted_and_never_dropped():
    on_time, late = make_events(every_minute(range(300))), make_events(burst(260))
    out = flags(MINUTES, make_scored(on_time), make_scored(late), make_scored(make_events([3])))
    assert len(out) == 600 + 40 + 1
    assert out[600:640] == [True] * 40
    assert not any(out[:520])


def test_empty_batches_keep_their_place():
    empty = make_scored(make_events([]))
    batch = make_scored(make_events([0, 1]))
    out = list(run_stage(MINUTES, [empty, batch, empty]))
    assert [batch.table.height for batch in out] == [0, 2, 0]
    assert all(batch.table[TS_ANOMALY].dtype == pl.Boolean for batch in out)


def test_users_without_scores_are_flagged_too_and_the_input_does_not_change():
    frame = make_events(with_burst(range(300), 150)).with_columns(pl.lit("kept").alias(TS_ANOMALY))
    batch = make_losses(frame)
    before = frame.clone()
    [out] = run_stage(MINUTES, [batch])
    assert type(out) is type(batch)
    assert out.table.names == frame.columns
    assert out.table[TS_ANOMALY].sum() == 42
    assert batch.table.to_frame().equals(before)


def test_anomalous_bins_are_logged_with_their_start(caplog):
    with caplog.at_level(logging.DEBUG, "morpheus"):
        flagged_seconds(MINUTES, with_burst(range(300), 150))
    assert "Found anomalies: ['2021-10-09 02:30:00+00:00']" in caplog.text


def test_options_that_cannot_flag_any_event_give_a_warning(caplog):
    Timeseries().validate()
    assert "in a window of 25 bins" in caplog.text
    assert "no z-score exceeds 4.9, and --zscore_threshold is 8" in caplog.text
    assert "`--resolution 10m` or `--zscore_threshold 3`" in caplog.text
    caplog.clear()
    Timeseries(resolution="10m").validate()
    Timeseries(zscore_threshold=3).validate()
    assert not caplog.text


@pytest.mark.parametrize("min_window", ["1h", "12 h", "3d"])
@pytest.mark.parametrize("resolution", ["1h", "1d", "7d"])
@pytest.mark.parametrize("threshold", [3.0, 8.0, 20.0])
def test_the_options_of_the_warning_can_flag_events(caplog, min_window, resolution, threshold):
    stage = Timeseries(min_window=min_window, resolution=resolution, zscore_threshold=threshold)
    stage.validate()
    advice = re.findall(r"`--(resolution|zscore_threshold) (\S+)`", caplog.text)
    caplog.clear()
    for option, value in advice:
        changed = value if option == "resolution" else float(value)
        replace(stage, **{option: changed}).validate()
    assert not caplog.text


def test_invalid_duration_is_rejected_before_the_run():
    with pytest.raises(UsageError, match="--min_window: 'soon' is not a duration"):
        Timeseries(min_window="soon").validate()


def test_window_with_too_many_bins_is_rejected():
    with pytest.raises(UsageError, match=r"63,072,001 bins of 1s, .*--resolution 10m"):
        Timeseries(resolution="1s", min_window="365d").validate()


def test_state_is_bounded_by_the_window():
    stage = Timeseries(resolution="1m", min_window="30m")
    waiting = 0
    most = 0

    def source():
        nonlocal waiting, most
        for day in range(20):
            for part in split_frame(
                make_events([86400 * day + s for s in range(0, 86400, 60)]), [144] * 9
            ):
                waiting += 1
                most = max(most, waiting)
                yield make_scored(part)

    for _ in Segment.from_stages([stage]).open().run(source()):
        waiting -= 1
    assert most <= 3


def test_time_grows_about_linearly_with_the_number_of_events():
    def cost(events):
        times = np.sort(np.random.default_rng(0).integers(0, events * 30, events))
        batch = make_scored(make_events(times.tolist()))
        start = time.process_time()
        list(run_stage(Timeseries(resolution="10m"), [batch]))
        return time.process_time() - start

    assert cost(200_000) < 30 * max(cost(20_000), 0.01)


DAY, HOUR = 86_400, 3600
RATE = Timeseries(detector="rate", hot_start=True)


def usual_days(days, hours=range(8, 18)):
    """An event every 20 minutes of the working hours."""
    minutes = (0, 20, 40)
    return [
        day * DAY + hour * HOUR + 60 * m for day in range(days) for hour in hours for m in minutes
    ]


def test_the_rate_detector_flags_a_burst_and_gives_its_probability():
    seconds = usual_days(10)
    burst = seconds[-1] + np.arange(1, 13)
    frame = make_events([*seconds, *burst.tolist()])
    [out] = run_stage(Timeseries(detector="rate"), [make_scored(frame)])
    flagged, pvalues = out.table[TS_ANOMALY], out.table[RATE_PVALUE]
    assert not flagged[:300].any()
    assert flagged[-8:].all()
    assert pvalues[:210].null_count() == 210  # the first week
    assert pvalues[210:].null_count() == 0
    assert pvalues[-1] < 0.25 / 7 < pvalues[210:300].min()
    assert out.table.names[:-2] == make_scored(frame).table.names


def test_more_flags_per_week_flag_more():
    seconds = np.sort(np.random.default_rng(0).integers(0, 60 * DAY, 6000)).tolist()
    batch = make_scored(make_events(seconds))
    found = [
        sum(flags(Timeseries(detector="rate", flags_per_week=number), batch))
        for number in (0, 0.25, 2, 7)
    ]
    assert found == sorted(found)
    assert found[0] == 0 < found[2] < found[3]


def test_the_training_history_says_what_is_usual_from_the_first_day():
    # A fingerprint whose user has had 60 events in the hour from 09:00 UTC, every day for 8 weeks.
    hours = tuple(60 * 8 if hour % 24 == 9 else 0 for hour in range(168))
    known = fingerprint().card
    summary = msgspec.structs.replace(known.summary, hours=hours, weeks=8.0)
    card = msgspec.structs.replace(known, summary=summary)
    usual, odd = (
        replace(make_scored(make_events(start + 60 * np.arange(60))), card=card)
        for start in (9 * HOUR, 15 * HOUR)
    )
    stage = Timeseries(detector="rate")
    assert not any(flags(stage, usual))
    assert any(flags(stage, odd))
    east = replace(stage, options=PipelineOptions(timezone="Etc/GMT-6"))  # six hours ahead of UTC
    assert not any(flags(east, usual))
    assert any(flags(east, odd))
    other = replace(usual, card=msgspec.structs.replace(card, user="bob"))
    assert run_stage(stage, [other])[0].table[RATE_PVALUE].null_count() == 60


def test_a_clock_change_in_the_time_zone_is_no_burst():
    # Sixty events from 09:00 to 09:10 of each day in Berlin, whose clocks go back on 2021-10-31.
    zone = PipelineOptions(timezone="Europe/Berlin")
    wall = [day * DAY + 9 * HOUR + 10 * n for day in range(30) for n in range(60)]
    seconds = [at - (2 if at < 22 * DAY else 1) * HOUR for at in wall]
    batch = make_scored(make_events(seconds))
    pvalues = {}
    for name, stage in (("local", replace(RATE, options=zone)), ("utc", RATE)):
        [out] = run_stage(stage, [batch])
        pvalues[name] = out.table[RATE_PVALUE].to_numpy()[22 * 60 : 23 * 60].min()
    assert pvalues["utc"] < 0.5 < pvalues["local"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "rate", "zscore_threshold": 3.0}, "--zscore_threshold is .*=fourier"),
        ({"detector": "rate", "resolution": "10m"}, "--resolution is .*=fourier, and the detector"),
        ({"detector": "rate", "cold_end": True}, "--cold_end is an option of --detector=fourier"),
        ({"flags_per_week": 1.0}, "--flags_per_week is an option of --detector=rate, and"),
    ],
)
def test_options_of_the_other_detector_are_rejected(options, message):
    with pytest.raises(UsageError, match=message):
        Timeseries(**options).validate()


def test_the_rate_detector_gives_no_warning_about_bins(caplog):
    Timeseries(detector="rate").validate()
    Timeseries(detector="rate", causal=True, hot_start=True).validate()
    assert not caplog.text
