from dataclasses import replace

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events
from morpheus.replay.hold_out import HoldOut, cut_of
from morpheus.testing import events_at

DAY = 86400


def days(*numbers):
    return events_at([day * DAY + hour * 3600 for day in numbers for hour in (1, 9, 23)])


def batch(frame, user="ann", history=None):
    return Events(user=user, frame=frame, history=history)


def test_history_is_what_came_before_the_first_event_held_out():
    whole = days(*range(12))
    [out] = HoldOut()(iter([batch(whole, history=whole)]))
    assert out.history[TIME].max() < out.frame[TIME].min()
    assert out.history.height + out.frame.height == whole.height
    assert out.frame[TIME].dt.date().n_unique() == 3


def test_a_quarter_of_the_days_that_have_events_is_held_out_at_least_one():
    for active, held_out in (((0,), 1), ((0, 9), 1), ((0, 1, 2, 3, 50, 51, 52, 90), 2)):
        frame = days(*active)
        late = frame.filter(pl.col(TIME) >= cut_of(frame[TIME]))
        assert late[TIME].dt.date().n_unique() == held_out


def test_later_batches_of_a_user_are_cut_where_the_first_one_was():
    whole = days(*range(8))
    parts = [batch(whole[:12], history=whole), batch(whole[12:])]
    first, second = HoldOut()(iter(parts))
    assert (first.frame.height, second.frame.height) == (0, 6)
    assert second.history is None


def test_each_user_is_cut_at_a_day_of_its_own():
    early, late = days(*range(8)), days(*range(20, 28))
    users = [batch(late, "ann", late), batch(early, "bob", early)]
    alone = [out for one in users for out in HoldOut()(iter([one]))]
    together = list(HoldOut()(iter([replace(one) for one in users])))
    for one, other in zip(alone, together, strict=True):
        assert one.frame.equals(other.frame)
        assert one.history.equals(other.history)


def test_a_user_without_history_keeps_its_events():
    whole = days(*range(8))
    users = [batch(whole, "ann", whole), batch(whole, None, whole.clear())]
    _, nobody = HoldOut()(iter(users))
    assert nobody.frame.equals(whole)
