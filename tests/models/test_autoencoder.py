import numpy as np

from morpheus.models.autoencoder import (
    MAX_LOGIT,
    Autoencoder,
    NetworkConfig,
    init_weights,
    unflatten,
)

CONFIG = NetworkConfig(code_counts=(3, 5, 3), number_columns=(2,), hidden=6, bottleneck=4)


def batch(rows=9):
    random = np.random.default_rng(1)
    codes = np.stack([random.integers(0, size, rows) for size in CONFIG.code_counts], 1)
    return codes, random.standard_normal((rows, 1))


def net():
    return Autoencoder(CONFIG, np.random.default_rng(0).standard_normal(CONFIG.n_parameters) * 0.5)


def test_gradient_equals_finite_differences_of_the_loss():
    codes, numbers = batch()
    weight = np.linspace(0.5, 2, 9)
    model, grad = net(), np.zeros(CONFIG.n_parameters)
    model.compute_gradient((codes, numbers), (codes, numbers), weight, unflatten(CONFIG, grad))
    step = 1e-6
    for n in range(0, CONFIG.n_parameters, 7):
        losses_moved = []
        for by in (step, -step):
            weights = model.weights.copy()
            weights[n] += by
            losses = Autoencoder(CONFIG, weights).losses(codes, numbers)
            losses_moved.append((losses.sum(1) * weight).sum())
        expected = (losses_moved[0] - losses_moved[1]) / (2 * step)
        assert abs(grad[n] - expected) < 1e-4, n


def test_losses_are_log_probabilities_that_add_up_to_one():
    codes, numbers = batch(1)
    model = net()
    for column, size in enumerate(CONFIG.code_counts[:2]):
        probabilities = []
        for code in range(size):
            target = codes.copy()
            target[0, column] = code
            positions = model._one_hot(model._flat_positions(codes))  # noqa: SLF001 - its parts
            *_, decoder = model._forward(positions, numbers)  # noqa: SLF001 - its parts
            logits = model._logits(decoder)[0]  # noqa: SLF001 - its parts
            probabilities.append(logits[model.offsets[column] + code])
        probabilities = np.exp(probabilities) / np.exp(probabilities).sum()
        loss = model.losses(codes, numbers)[0, column]
        assert abs(np.exp(-loss) - probabilities[codes[0, column]]) < 1e-6


def test_number_error_counts_only_if_there_is_a_number():
    codes, _ = batch(1)
    near, far = np.zeros((1, 1)), np.full((1, 1), 50.0)
    increase = {}
    for code in (0, 2):
        codes[0, 2] = code
        increase[code] = net().losses(codes, far)[0, 2] - net().losses(codes, near)[0, 2]
    assert abs(increase[0]) < 100 < increase[2]


def test_losses_stay_finite_for_extreme_weights():
    model = Autoencoder(CONFIG, np.full(CONFIG.n_parameters, 1e4, dtype=np.float32))
    losses = model.losses(*batch())
    assert np.isfinite(losses).all()
    assert losses[:, :2].max() < 3 * MAX_LOGIT


def test_initial_weights_predict_the_frequencies_of_each_column():
    seen = np.array([1.0, 0.0, 9.0, *np.ones(5), *np.ones(3)])
    weights = init_weights(CONFIG, seen, np.random.default_rng(0))
    losses = Autoencoder(CONFIG, weights).losses(np.array([[2, 0, 0], [0, 0, 0]]), np.zeros((2, 1)))
    assert abs(losses[0, 0] - 0.12) < 0.1  # -log .9
    assert abs(losses[1, 0] - 2.2) < 0.25  # -log .11


def test_parameters_fill_the_vector_and_do_not_overlap():
    vector = np.zeros(CONFIG.n_parameters)
    for part in unflatten(CONFIG, vector).values():
        part += 1  # noqa: PLW2901 - in place
    assert (vector == 1).all()
