"""Laws of users with little history: they share the network of a peer group, with own counts."""

from functools import partial

import numpy as np
import polars as pl
import pytest

from morpheus.features.encoder import FIRST_CODE, UNKNOWN
from morpheus.models.fit import PeerNetworks, TrainingDataBackoff, UserHistory, fit_fingerprints
from morpheus.models.population import Population
from people import COLUMNS, day, times

MIN_EVENTS = 150
BUILDERS = {"get": "put", "list": "put", "deploy": "build", "copy": "build"}


def events(user: str, count: int, seed: int) -> pl.DataFrame:
    """Events of a clerk or of a builder, at an address of their own."""
    frame = day(count, seed=seed).with_columns(address=pl.lit(f"house of {user}"))
    if user.startswith("builder"):
        return frame.with_columns(pl.col("action").replace(BUILDERS), agent=pl.lit("ci"))
    return frame


@pytest.fixture(scope="module")
def population() -> Population:
    names = sorted(f"{trade}{n}" for trade in ("clerk", "builder") for n in range(9))
    parts = [events(name, 40, seed) for seed, name in enumerate(names)]
    users = pl.Series([name for name in names for _ in range(40)])
    return Population(users, pl.concat([times(40)] * len(names)), pl.concat(parts))


class CountingTrainer:
    """Trains fingerprints, and lists the trained ones."""

    def __init__(self, population: Population) -> None:
        self.trained: list[str] = []
        self._fit = partial(fit_fingerprints, columns=COLUMNS, population=population, epochs=6)

    def __call__(self, histories, shared):
        if shared is None:
            self.trained += [history.user for history in histories]
        return self._fit(histories, shared=shared)


def make_networks(population: Population) -> tuple[PeerNetworks, CountingTrainer]:
    trainer = CountingTrainer(population)
    return PeerNetworks(TrainingDataBackoff(population, MIN_EVENTS), trainer), trainer


def history(user: str, count: int = 30, seed: int = 77) -> UserHistory:
    return UserHistory(user, events(user, count, seed), times(count))


def test_groups_are_of_users_with_the_same_values(population):
    groups = population.peer_groups
    names = population.users.unique(maintain_order=True).to_list()
    trades = [name.rstrip("0123456789") for name in names]
    assert len(set(zip(trades, groups.owners.tolist(), strict=True))) == 2
    for user in ("clerk", "builder"):
        found = groups.find(events(user, 30, 5))
        assert {t for t, g in zip(trades, groups.owners, strict=True) if g == found} == {user}


def test_users_of_a_group_share_one_training(population):
    networks, trainer = make_networks(population)
    for user in ("clerk x", "clerk y", "builder x", "clerk z"):
        card = networks.adapt(history(user)).card
        assert (card.user, card.training_data_scope) == (user, "peers")
        assert (card.events, card.borrowed_events) == (30, MIN_EVENTS - 30)
    assert len(trainer.trained) == 2


def test_a_fingerprint_does_not_depend_on_the_users_before_it(population):
    both, _ = make_networks(population)
    both.adapt(history("clerk x"))
    later, (alone, _) = both.adapt(history("clerk y")), make_networks(population)
    first = alone.adapt(history("clerk y"))
    assert first.card == later.card
    np.testing.assert_array_equal(first.net.weights, later.net.weights)
    np.testing.assert_array_equal(first.usage.counts, later.usage.counts)


def test_values_that_only_the_user_has_are_known_and_counted(population):
    networks, _ = make_networks(population)
    fingerprint = networks.adapt(history("clerk x"))
    place = COLUMNS.index("address")
    vocabulary = fingerprint.encoder.columns[place].vocabulary
    code = FIRST_CODE + vocabulary.index("house of clerk x")
    assert fingerprint.usage.counts[fingerprint.usage.offsets[place] + code] == 30
    own, strange = events("clerk x", 20, 3), events("clerk q", 20, 3)
    rows = [fingerprint.encoder.encode(frame) for frame in (own, strange)]
    assert not (rows[0].codes[:, place] == UNKNOWN).any()
    assert (rows[1].codes[:, place] == UNKNOWN).all()


def test_an_action_of_another_trade_is_more_unusual_than_the_own_ones(population):
    networks, _ = make_networks(population)
    fingerprint = networks.adapt(history("clerk x"))
    odd = events("clerk x", 20, 3).with_columns(action=pl.lit("build"), agent=pl.lit("ci"))
    risks = [
        fingerprint.column_risks(fingerprint.encoder.encode(frame)).sum(axis=1)
        for frame in (events("clerk x", 20, 3), odd)
    ]
    assert risks[1].min() > risks[0].max()


def test_events_of_the_user_in_the_sample_are_not_counted_again(population):
    networks, _ = make_networks(population)
    name = "clerk0"
    fingerprint = networks.adapt(history(name))
    place = COLUMNS.index("address")
    vocabulary = fingerprint.encoder.columns[place].vocabulary
    code = FIRST_CODE + vocabulary.index(f"house of {name}")
    assert fingerprint.usage.counts[fingerprint.usage.offsets[place] + code] == 30


def test_users_with_more_history_are_trained_themselves(population):
    backoff = TrainingDataBackoff(population, MIN_EVENTS)
    assert [backoff.can_share(own) for own in (20, 49, 50, 149)] == [True, True, False, False]
