import torch

from morpheus.models.autoencoder import LARGEST_LOGIT, Autoencoder, Shape, first_weights, views

SHAPE = Shape(codes=(3, 5, 3), numbers=(2,), hidden=6, middle=4)


def batch(rows=9):
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(0, size, (rows,), generator=generator) for size in SHAPE.codes]
    return torch.stack(codes, 1), torch.randn(rows, 1, generator=generator)


def net(dtype=torch.float64):
    weights = torch.randn(SHAPE.size, generator=torch.Generator().manual_seed(0)) * 0.5
    return Autoencoder(SHAPE, weights.to(dtype))


def test_the_gradient_is_the_slope_of_the_losses():
    codes, numbers = batch()
    numbers, share = numbers.double(), torch.linspace(0.5, 2, 9, dtype=torch.float64)
    model, slope = net(), torch.zeros(SHAPE.size, dtype=torch.float64)
    model.gradient((codes, numbers), (codes, numbers), share, views(SHAPE, slope))
    step = 1e-6
    for at in range(0, SHAPE.size, 7):
        moved = []
        for by in (step, -step):
            weights = model.weights.clone()
            weights[at] += by
            losses = Autoencoder(SHAPE, weights).losses(codes, numbers)
            moved.append(float((losses.sum(1) * share).sum()))
        expected = (moved[0] - moved[1]) / (2 * step)
        assert abs(float(slope[at]) - expected) < 1e-4, at


def test_the_probabilities_of_a_columns_codes_add_up_to_one():
    codes, numbers = batch(1)
    model = net()
    for column, size in enumerate(SHAPE.codes[:2]):
        total = 0.0
        shown = model._layers(model._one_hot(codes + model.offsets), numbers.double())[-1]  # noqa: SLF001 - the same guess for every target
        logits = model._logits(shown)[0]  # noqa: SLF001 - the same
        start = int(model.offsets[column])
        total = float(logits[start : start + size].softmax(0).sum())
        assert abs(total - 1) < 1e-9
        loss = model.losses(codes, numbers.double())[0, column]
        picked = logits[start : start + size].softmax(0)[codes[0, column]]
        assert abs(float(loss) + float(picked.log())) < 1e-9


def test_a_number_costs_its_squared_distance_only_where_there_is_one():
    codes, _ = batch(1)
    near, far = torch.zeros(1, 1).double(), torch.full((1, 1), 50.0).double()
    grown = {}
    for code in (0, 2):
        codes[0, 2] = code
        shown = net().losses(codes, near)[0, 2], net().losses(codes, far)[0, 2]
        grown[code] = float(shown[1] - shown[0])
    assert abs(grown[0]) < 100 < grown[2]


def test_losses_stay_finite_for_extreme_weights():
    model = Autoencoder(SHAPE, torch.full((SHAPE.size,), 1e4))
    assert model.losses(*batch()).isfinite().all()
    assert model.losses(*batch())[:, :2].max() < 3 * LARGEST_LOGIT


def test_before_training_each_column_is_guessed_by_its_frequencies():
    seen = [torch.tensor([1.0, 0.0, 9.0]), torch.ones(5), torch.ones(3)]
    weights = first_weights(SHAPE, seen, torch.Generator().manual_seed(0))
    model = Autoencoder(SHAPE, weights)
    losses = model.losses(torch.tensor([[2, 0, 0], [0, 0, 0]]), torch.zeros(2, 1))
    assert abs(float(losses[0, 0]) - 0.12) < 0.1  # -log .9
    assert abs(float(losses[1, 0]) - 2.2) < 0.25  # -log .11


def test_parts_fill_the_vector_and_do_not_overlap():
    vector = torch.zeros(SHAPE.size)
    for part in views(SHAPE, vector).values():
        part.add_(1)
    assert vector.eq(1).all()
