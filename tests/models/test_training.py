import numpy as np
import pytest

from morpheus.features.encoder import Category, Encoder, match_codes
from morpheus.models.autoencoder import Autoencoder
from morpheus.models.profile import make_network_config
from morpheus.models.training import (
    MAX_BATCH_SIZE,
    MIN_STEPS,
    TrainedWeights,
    TrainingSet,
    TrainJob,
    split_batches,
    train_network,
)
from people import COLUMNS, day


@pytest.mark.parametrize("rows", [128, 129, 225, 503, 1024, 1025, 1030, 2049, 5000])
def test_epoch_uses_each_row_once_in_batches_of_nearly_one_size(rows: int) -> None:
    batches = [list(range(rows))[each] for each in split_batches(rows)]
    assert [row for batch in batches for row in batch] == list(range(rows))
    sizes = [len(batch) for batch in batches]
    assert len(sizes) >= MIN_STEPS
    assert max(sizes) <= MAX_BATCH_SIZE
    assert max(sizes) - min(sizes) < len(sizes)


def test_training_that_starts_from_a_network_begins_with_its_predictions() -> None:
    """Also if values have other codes."""
    frame = day(400)
    encoder = Encoder.fit(frame, COLUMNS)
    other = Encoder(
        tuple(
            Category(each.name, each.vocabulary[::-1]) if isinstance(each, Category) else each
            for each in encoder.columns
        )
    )
    rows, same = encoder.encode(frame), other.encode(frame)
    trained = train_network(TrainJob(rows, make_network_config(encoder), 6, 0)).net
    start = TrainedWeights.from_training(
        trained, TrainingSet.from_rows(rows), *match_codes(other, encoder)
    )
    job = TrainJob(same, make_network_config(other), 6, 0, start=start, first_epoch=7)
    weights = job.make_weights(TrainingSet.from_rows(same), np.random.default_rng(0))
    net = Autoencoder(job.config, weights)
    losses = [
        net.losses(found.codes.astype(np.int64), found.numbers)[found.inverse]
        for net, found in ((trained, rows), (net, same))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-4)
    untrained = train_network(job).net
    np.testing.assert_allclose(untrained.weights, weights, rtol=1e-3, atol=1e-4)


def test_values_that_the_first_network_does_not_have_start_with_their_frequency() -> None:
    frame = day(400)
    encoder = Encoder.fit(frame, COLUMNS)
    few = Encoder((Category("action", ()), *encoder.columns[1:]))
    rows = few.encode(frame)
    trained = train_network(TrainJob(rows, make_network_config(few), 2, 0)).net
    start = TrainedWeights.from_training(
        trained, TrainingSet.from_rows(rows), *match_codes(encoder, few)
    )
    job = TrainJob(encoder.encode(frame), make_network_config(encoder), 2, 0, start=start)
    data = TrainingSet.from_rows(job.rows)
    weights = job.make_weights(data, np.random.default_rng(0))
    fresh = TrainJob(job.rows, job.config, 2, 0).make_weights(data, np.random.default_rng(0))
    own, initial = (Autoencoder(job.config, each).parameters for each in (weights, fresh))
    new = start.codes < 0
    assert new.any()
    np.testing.assert_array_equal(own["code_bias"][new], initial["code_bias"][new])
    assert (own["look_up"][new] == 0).all()
    assert (own["look_up"][~new] != 0).any()
