import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.batch import Events, Table
from morpheus.replay.evaluation import TimeSplit, find_split_time, select_before_split
from morpheus.testing import make_events, run_stage

DAY = 86400


def days(*numbers):
    return make_events([day * DAY + hour * 3600 for day in numbers for hour in (1, 9, 23)])


def batch(frame, user="ann", history=None):
    return Events(
        user=user, table=Table(frame), history=None if history is None else Table(history)
    )


def split(*batches):
    population = [
        batch.table.to_frame().select(TIME, pl.lit(batch.user).alias(POPULATION_USER))
        for batch in batches
    ]
    return run_stage(TimeSplit(), batches, population=pl.concat(population))


def test_history_is_what_came_before_the_first_event_split():
    whole = days(*range(12))
    [out] = split(batch(whole, history=whole))
    assert out.history[TIME].max() < out.table[TIME].min()
    assert out.history.height + out.table.height == whole.height
    assert out.table[TIME].dt.date().n_unique() == 3


def test_the_last_quarter_of_days_with_events_is_kept_at_least_one_day():
    for active, late in (((0,), 1), ((0, 9), 1), ((0, 1, 2, 3, 50, 51, 52, 90), 2)):
        frame = days(*active)
        after = frame.filter(pl.col(TIME) >= find_split_time(frame[TIME]))
        assert after[TIME].dt.date().n_unique() == late


def test_all_batches_of_all_users_are_split_at_the_same_time():
    early, whole = days(*range(4)), days(*range(8))
    ann, *bob = split(
        batch(early, "ann", early), batch(whole[:19], "bob", whole), batch(whole[19:], "bob")
    )
    assert ann.table.to_frame().is_empty()
    assert ann.history.height == early.height
    assert [part.table.height for part in bob] == [1, 5]
    assert bob[0].history.height == 18
    assert bob[1].history is None


def test_the_population_sample_ends_at_the_split_time():
    whole = days(*range(12))
    assert select_before_split(whole)[TIME].max() < find_split_time(whole[TIME])
    assert select_before_split(whole).height == 27


def test_an_empty_input_gives_no_batches():
    assert run_stage(TimeSplit(), []) == []
