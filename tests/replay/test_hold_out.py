import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.core.batch import Events
from morpheus.replay.evaluation import TimeSplit, select_before_split, find_split_time
from morpheus.testing import make_events

DAY = 86400


def days(*numbers):
    return make_events([day * DAY + hour * 3600 for day in numbers for hour in (1, 9, 23)])


def batch(frame, user="ann", history=None):
    return Events(user=user, frame=frame, history=history)


def held_out(*batches):
    known = [one.frame.select(TIME, pl.lit(one.user).alias(POPULATION_USER)) for one in batches]
    return list(TimeSplit().with_population(pl.concat(known))(iter(batches)))


def test_history_is_what_came_before_the_first_event_held_out():
    whole = days(*range(12))
    [out] = held_out(batch(whole, history=whole))
    assert out.history[TIME].max() < out.frame[TIME].min()
    assert out.history.height + out.frame.height == whole.height
    assert out.frame[TIME].dt.date().n_unique() == 3


def test_a_quarter_of_the_days_that_have_events_is_held_out_at_least_one():
    for active, late in (((0,), 1), ((0, 9), 1), ((0, 1, 2, 3, 50, 51, 52, 90), 2)):
        frame = days(*active)
        after = frame.filter(pl.col(TIME) >= find_split_time(frame[TIME]))
        assert after[TIME].dt.date().n_unique() == late


def test_all_users_and_all_their_batches_are_cut_at_one_time():
    early, whole = days(*range(4)), days(*range(8))
    ann, *bob = held_out(
        batch(early, "ann", early), batch(whole[:19], "bob", whole), batch(whole[19:], "bob")
    )
    assert ann.frame.is_empty()
    assert ann.history.height == early.height
    assert [one.frame.height for one in bob] == [1, 5]
    assert bob[0].history.height == 18
    assert bob[1].history is None


def test_what_is_known_of_everybody_ends_where_the_held_out_days_begin():
    whole = days(*range(12))
    assert select_before_split(whole)[TIME].max() < find_split_time(whole[TIME])
    assert select_before_split(whole).height == 27


def test_without_any_events_there_is_nothing_to_divide():
    assert list(TimeSplit().with_population(None)(iter([]))) == []
