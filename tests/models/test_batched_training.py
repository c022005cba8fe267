import numpy as np
import pytest

from morpheus.features.encoder import Encoder
from morpheus.models.autoencoder import unflatten
from morpheus.models.batched_training import (
    BatchedAdam,
    BatchedAutoencoder,
    pad_config,
    train_batched,
)
from morpheus.models.profile import make_network_config
from morpheus.models.training import (
    TrainingSet,
    TrainJob,
    single_thread,
    train_network,
    validation_loss,
)
from people import COLUMNS, day

torch = pytest.importorskip(
    "torch", reason="the extra is not installed: pip install 'morpheus-dfp[torch]'"
)

CPU = torch.device("cpu")


def tasks(*, validated):
    """Users whose histories differ in length, words and epochs."""
    made = []
    for user, events in enumerate((60, 400, 1500)):
        frame = day(events, seed=user)
        encoder = Encoder.fit(frame, COLUMNS[: 4 - (user == 1)] + ["kind"] * (user == 1))
        rows, held_out = encoder.encode(frame[: events // 2]), encoder.encode(frame[events // 2 :])
        made.append(
            TrainJob(
                rows, make_network_config(encoder), 6 + user, user, held_out if validated else None
            )
        )
    return made


@pytest.mark.parametrize("validated", [True, False])
def test_users_trained_side_by_side_become_what_they_become_alone(validated):
    with single_thread():
        alone = [train_network(task) for task in tasks(validated=validated)]
        together = train_batched(tasks(validated=validated), CPU)
    for one, other, task in zip(alone, together, tasks(validated=validated), strict=True):
        assert one.epochs == other.epochs
        codes = task.rows.codes.astype(np.int64)
        numbers = task.rows.numbers
        losses = (trained.net.losses(codes, numbers) for trained in (one, other))
        np.testing.assert_allclose(*losses, rtol=0.02, atol=0.02)


def test_filling_up_keeps_the_columns_and_makes_sizes_equal():
    shape = tasks(validated=False)[0].config
    filled = pad_config(shape)
    assert sum(filled.code_counts) % 128 == 0
    assert filled.code_counts[:-1] == shape.code_counts[:-1]


def test_a_step_stays_on_the_device_of_the_weights():
    # torch refuses to mix this device with the CPU, as it would a GPU.
    device = torch.device("meta")
    shape = tasks(validated=False)[0].config
    weights = torch.empty(2, pad_config(shape).n_parameters, device=device)
    net, optimizer, slope = (
        BatchedAutoencoder([shape, shape], weights),
        BatchedAdam(weights),
        weights.clone(),
    )
    codes = torch.ones(2, 5, len(shape.code_counts), dtype=torch.int64, device=device)
    numbers = torch.ones(2, 5, len(shape.number_columns), device=device)
    share = torch.ones(2, 5, device=device)
    net.compute_gradient((codes, numbers), (codes, numbers), share, unflatten(net.config, slope))
    optimizer.step(slope, active=share.sum(1, keepdim=True) > 0, rate=weights.new_ones(2, 1))
    losses = validation_loss(net, TrainingSet(codes, numbers, share, inverse=torch.empty(0)))
    assert {losses.device, slope.device, net.weights.device} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_trains_what_a_cpu_trains():
    on_cpu = train_batched(tasks(validated=True), CPU)
    on_gpu = train_batched(tasks(validated=True), torch.device("cuda"))
    for one, other, task in zip(on_cpu, on_gpu, tasks(validated=True), strict=True):
        codes = task.rows.codes.astype(np.int64)
        numbers = task.rows.numbers
        losses = (trained.net.losses(codes, numbers) for trained in (one, other))
        np.testing.assert_allclose(*losses, rtol=0.05, atol=0.05)
