"""Laws of the backoff: the user's own history, then similar users, then all users."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from morpheus.models.fit import TrainingDataBackoff, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from people import COLUMNS, day, times

MIN_EVENTS = 100
BUILDERS = {"get": "put", "list": "put", "deploy": "build", "copy": "build"}


def make_population(events_each=60):
    """Three users similar to Ann and three builders, each at their own address."""
    names = [f"clerk{n}" for n in range(3)] + [f"builder{n}" for n in range(3)]
    frames = []
    for seed, name in enumerate(names):
        frame = day(events_each, seed=seed).with_columns(address=pl.lit(f"house of {name}"))
        if name.startswith("builder"):
            frame = frame.with_columns(pl.col("action").replace(BUILDERS), agent=pl.lit("ci"))
        frames.append(frame)
    users = pl.Series([name for name in names for _ in range(events_each)])
    event_times = pl.concat([times(events_each)] * len(names))
    return Population(users, event_times, pl.concat(frames))


def history(events, user="ann"):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    event_times = pl.Series(
        [start + timedelta(minutes=n) for n in range(events)], dtype=pl.Datetime("us", "UTC")
    )
    return UserHistory(user, day(max(events, 1), seed=9).head(events), event_times)


def resolve(events, **options):
    return TrainingDataBackoff(make_population(), MIN_EVENTS, **options).resolve(history(events))


def test_long_history_borrows_nothing():
    resolved = resolve(MIN_EVENTS)
    assert (resolved.training_data_scope, resolved.borrowed_events, resolved.events.height) == (
        "own",
        0,
        MIN_EVENTS,
    )


def test_short_history_borrows_from_similar_users():
    resolved = resolve(40)
    assert (resolved.training_data_scope, resolved.borrowed_events, resolved.events.height) == (
        "peers",
        MIN_EVENTS - 40,
        MIN_EVENTS,
    )
    assert resolved.events["agent"].unique().sort().to_list() == ["cli", "web"]


@pytest.mark.parametrize("events", [0, 1, 19])
def test_very_short_history_borrows_from_all_users(events):
    resolved = resolve(events)
    assert resolved.training_data_scope == "everyone"
    assert set(resolved.events["agent"]) == {"cli", "web", "ci"}


def test_global_only_skips_similar_users():
    assert resolve(40, global_only=True).training_data_scope == "everyone"


def test_user_never_borrows_own_events():
    resolved = TrainingDataBackoff(make_population(), MIN_EVENTS).resolve(
        history(40, user="clerk1")
    )
    assert "house of clerk1" not in set(resolved.events["address"])


def test_single_other_user_is_not_enough():
    alone = Population(pl.Series(["bob"] * 400), times(400), day(400))
    assert TrainingDataBackoff(alone, MIN_EVENTS).resolve(history(40)) is None


def test_short_histories_of_all_users_give_no_model():
    assert (
        TrainingDataBackoff(make_population(events_each=10), MIN_EVENTS).resolve(history(5)) is None
    )


def test_card_gives_the_share_of_own_events():
    [model] = fit_fingerprints([resolve(40)], COLUMNS, epochs=1)
    assert (model.card.training_data_scope, model.card.own_share) == ("peers", 0.4)
    assert model.card.first.startswith("2026-03-01")


def test_values_that_identify_users_are_normal_for_a_new_user():
    people = make_population()
    [model] = fit_fingerprints(
        [TrainingDataBackoff(people, MIN_EVENTS).resolve_global()], COLUMNS, population=people
    )
    new = day(20, seed=5).with_columns(address=pl.lit("house of somebody new"))
    rows = model.encoder.encode(new)
    place = COLUMNS.index("address")
    assert model.column_risks(rows)[:, place].max() < 15, "less than two nats"
    odd = model.encoder.encode(new.with_columns(kind=pl.lit("root")))
    assert model.column_risks(odd)[:, COLUMNS.index("kind")].min() > 60
