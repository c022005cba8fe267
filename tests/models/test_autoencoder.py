import numpy as np

from morpheus.models.autoencoder import (
    MAX_LOGIT,
    Autoencoder,
    NetworkConfig,
    init_weights,
    unflatten,
)

SHAPE = NetworkConfig(code_counts=(3, 5, 3), number_columns=(2,), hidden=6, bottleneck=4)


def batch(rows=9):
    random = np.random.default_rng(1)
    codes = np.stack([random.integers(0, size, rows) for size in SHAPE.code_counts], 1)
    return codes, random.standard_normal((rows, 1))


def net():
    return Autoencoder(SHAPE, np.random.default_rng(0).standard_normal(SHAPE.n_parameters) * 0.5)


def test_the_gradient_is_the_slope_of_the_losses():
    codes, numbers = batch()
    share = np.linspace(0.5, 2, 9)
    model, slope = net(), np.zeros(SHAPE.n_parameters)
    model.compute_gradient((codes, numbers), (codes, numbers), share, unflatten(SHAPE, slope))
    step = 1e-6
    for at in range(0, SHAPE.n_parameters, 7):
        moved = []
        for by in (step, -step):
            weights = model.weights.copy()
            weights[at] += by
            losses = Autoencoder(SHAPE, weights).losses(codes, numbers)
            moved.append((losses.sum(1) * share).sum())
        expected = (moved[0] - moved[1]) / (2 * step)
        assert abs(slope[at] - expected) < 1e-4, at


def test_the_probabilities_of_a_columns_codes_add_up_to_one():
    codes, numbers = batch(1)
    model = net()
    for column, size in enumerate(SHAPE.code_counts[:2]):
        chances = []
        for code in range(size):
            target = codes.copy()
            target[0, column] = code
            *_, wide = model._forward(model._one_hot(model._flat_positions(codes)), numbers)  # noqa: SLF001 - one guess
            logits = model._logits(wide)[0]  # noqa: SLF001 - the same
            chances.append(logits[model.offsets[column] + code])
        chances = np.exp(chances) / np.exp(chances).sum()
        loss = model.losses(codes, numbers)[0, column]
        assert abs(np.exp(-loss) - chances[codes[0, column]]) < 1e-6


def test_a_number_costs_its_squared_distance_only_where_there_is_one():
    codes, _ = batch(1)
    near, far = np.zeros((1, 1)), np.full((1, 1), 50.0)
    grown = {}
    for code in (0, 2):
        codes[0, 2] = code
        grown[code] = net().losses(codes, far)[0, 2] - net().losses(codes, near)[0, 2]
    assert abs(grown[0]) < 100 < grown[2]


def test_losses_stay_finite_for_extreme_weights():
    model = Autoencoder(SHAPE, np.full(SHAPE.n_parameters, 1e4, dtype=np.float32))
    losses = model.losses(*batch())
    assert np.isfinite(losses).all()
    assert losses[:, :2].max() < 3 * MAX_LOGIT


def test_before_training_each_column_is_guessed_by_its_frequencies():
    seen = [np.array([1.0, 0.0, 9.0]), np.ones(5), np.ones(3)]
    weights = init_weights(SHAPE, seen, np.random.default_rng(0))
    losses = Autoencoder(SHAPE, weights).losses(np.array([[2, 0, 0], [0, 0, 0]]), np.zeros((2, 1)))
    assert abs(losses[0, 0] - 0.12) < 0.1  # -log .9
    assert abs(losses[1, 0] - 2.2) < 0.25  # -log .11


def test_parts_fill_the_vector_and_do_not_overlap():
    vector = np.zeros(SHAPE.n_parameters)
    for part in unflatten(SHAPE, vector).values():
        part += 1  # noqa: PLW2901 - in place
    assert (vector == 1).all()
