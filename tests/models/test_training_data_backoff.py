"""Laws of the ladder: the user's own history, then the peers', then everyone's."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from morpheus.models.fit import TrainingDataBackoff, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from people import COLUMNS, day, times

NEEDED = 100
BUILDERS = {"get": "put", "list": "put", "deploy": "build", "copy": "build"}


def everybody(each=60):
    """Three who do as Ann does, three who build, each at an address of their own."""
    names = [f"clerk{n}" for n in range(3)] + [f"builder{n}" for n in range(3)]
    frames = []
    for seed, name in enumerate(names):
        frame = day(each, seed=seed).with_columns(address=pl.lit(f"house of {name}"))
        if name.startswith("builder"):
            frame = frame.with_columns(pl.col("action").replace(BUILDERS), agent=pl.lit("ci"))
        frames.append(frame)
    owner = pl.Series([name for name in names for _ in range(each)])
    when = pl.concat([times(each)] * len(names))
    return Population(owner, when, pl.concat(frames))


def history(events, user="ann"):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    when = pl.Series(
        [start + timedelta(minutes=n) for n in range(events)], dtype=pl.Datetime("us", "UTC")
    )
    return UserHistory(user, day(max(events, 1), seed=9).head(events), when)


def climbed(events, **options):
    return TrainingDataBackoff(everybody(), NEEDED, **options).resolve(history(events))


def test_enough_history_is_the_users_own_alone():
    found = climbed(NEEDED)
    assert (found.training_data_scope, found.borrowed_events, found.events.height) == (
        "own",
        0,
        NEEDED,
    )


def test_a_short_history_is_filled_up_with_that_of_those_who_do_alike():
    found = climbed(40)
    assert (found.training_data_scope, found.borrowed_events, found.events.height) == (
        "peers",
        NEEDED - 40,
        NEEDED,
    )
    assert found.events["agent"].unique().sort().to_list() == ["cli", "web"]


@pytest.mark.parametrize("events", [0, 1, 19])
def test_who_has_next_to_no_history_is_learnt_from_everyone(events):
    found = climbed(events)
    assert found.training_data_scope == "everyone"
    assert set(found.events["agent"]) == {"cli", "web", "ci"}


def test_the_generic_model_is_everyones_also_for_those_who_have_peers():
    assert climbed(40, global_only=True).training_data_scope == "everyone"


def test_nobody_borrows_from_themselves():
    found = TrainingDataBackoff(everybody(), NEEDED).resolve(history(40, user="clerk1"))
    assert "house of clerk1" not in set(found.events["address"])


def test_one_other_user_is_nobodys_measure():
    alone = Population(pl.Series(["bob"] * 400), times(400), day(400))
    assert TrainingDataBackoff(alone, NEEDED).resolve(history(40)) is None


def test_everyone_of_too_little_history_stands_for_nobody():
    assert TrainingDataBackoff(everybody(each=10), NEEDED).resolve(history(5)) is None


def test_the_card_says_how_much_of_a_fingerprint_is_the_users_own():
    [known] = fit_fingerprints([climbed(40)], COLUMNS, epochs=1)
    assert (known.card.training_data_scope, known.card.own_share) == ("peers", 0.4)
    assert known.card.first.startswith("2026-03-01")


def test_what_tells_one_user_from_another_surprises_nobody_in_a_new_user():
    people = everybody()
    [known] = fit_fingerprints(
        [TrainingDataBackoff(people, NEEDED).resolve_global()], COLUMNS, population=people
    )
    new = day(20, seed=5).with_columns(address=pl.lit("house of somebody new"))
    rows = known.encoder.encode(new)
    place = COLUMNS.index("address")
    assert known.column_anomaly(rows)[0][:, place].max() < 1
    odd = known.encoder.encode(new.with_columns(kind=pl.lit("root")))
    assert known.column_anomaly(odd)[0][:, COLUMNS.index("kind")].min() > 3
