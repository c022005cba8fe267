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
    TrainedWeights,
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


def make_jobs(*, validated):
    """Jobs of users with different lengths of history, values and epochs."""
    jobs = []
    for user, events in enumerate((60, 400, 1500)):
        frame = day(events, seed=user)
        encoder = Encoder.fit(frame, COLUMNS[: 4 - (user == 1)] + ["kind"] * (user == 1))
        rows, validation = (
            encoder.encode(frame[: events // 2]),
            encoder.encode(frame[events // 2 :]),
        )
        jobs.append(
            TrainJob(
                rows,
                make_network_config(encoder),
                6 + user,
                user,
                validation if validated else None,
            )
        )
    return jobs


def make_later_jobs():
    """Jobs that start from the networks of the jobs above."""
    for job in make_jobs(validated=False):
        codes, numbers = sum(job.config.code_counts), len(job.config.number_columns)
        places = np.arange(codes), np.arange(numbers)
        start = TrainedWeights.from_training(
            train_network(job).net, TrainingSet.from_rows(job.rows), *places
        )
        yield TrainJob(
            job.rows, job.config, job.epochs, job.seed, start=start, first_epoch=job.epochs - 1
        )


@pytest.mark.parametrize("kind", ["validated", "final", "started"])
def test_batched_training_gives_the_result_of_sequential_training(kind):
    with single_thread():
        started = kind == "started"
        jobs = list(make_later_jobs()) if started else make_jobs(validated=kind == "validated")
        sequential = [train_network(job) for job in jobs]
        in_batch = train_batched(jobs, CPU)
    for single, batched, job in zip(sequential, in_batch, jobs, strict=True):
        assert single.epochs == batched.epochs
        codes = job.rows.codes.astype(np.int64)
        numbers = job.rows.numbers
        losses = (trained.net.losses(codes, numbers) for trained in (single, batched))
        np.testing.assert_allclose(*losses, rtol=0.02, atol=0.02)


def test_padding_keeps_the_columns_and_makes_sizes_equal():
    config = make_jobs(validated=False)[0].config
    padded = pad_config(config)
    assert sum(padded.code_counts) % 128 == 0
    assert padded.code_counts[:-1] == config.code_counts[:-1]


def test_training_step_stays_on_the_device_of_the_weights():
    # torch fails if this device is mixed with the CPU, as with a GPU.
    device = torch.device("meta")
    config = make_jobs(validated=False)[0].config
    weights = torch.empty(2, pad_config(config).n_parameters, device=device)
    net, optimizer, grad = (
        BatchedAutoencoder([config, config], weights),
        BatchedAdam(weights),
        weights.clone(),
    )
    codes = torch.ones(2, 5, len(config.code_counts), dtype=torch.int64, device=device)
    numbers = torch.ones(2, 5, len(config.number_columns), device=device)
    weight = torch.ones(2, 5, device=device)
    net.compute_gradient((codes, numbers), (codes, numbers), weight, unflatten(net.config, grad))
    optimizer.step(grad, active=weight.sum(1, keepdim=True) > 0, rate=weights.new_ones(2, 1))
    losses = validation_loss(net, TrainingSet(codes, numbers, weight, inverse=torch.empty(0)))
    assert {losses.device, grad.device, net.weights.device} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_gpu_gives_the_result_of_the_cpu():
    on_cpu = train_batched(make_jobs(validated=True), CPU)
    on_gpu = train_batched(make_jobs(validated=True), torch.device("cuda"))
    for single, batched, job in zip(on_cpu, on_gpu, make_jobs(validated=True), strict=True):
        codes = job.rows.codes.astype(np.int64)
        numbers = job.rows.numbers
        losses = (trained.net.losses(codes, numbers) for trained in (single, batched))
        np.testing.assert_allclose(*losses, rtol=0.05, atol=0.05)
