from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.core.batch import Events, Table
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.features.encoder import FIRST_CODE, MISSING, UNKNOWN
from morpheus.models.autoencoder import Autoencoder, unflatten
from morpheus.models.fit import UserHistory
from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model
from morpheus.stages.train_ae import TrainAe
from morpheus.testing import run_stage
from people import COLUMNS, day, times

torch = pytest.importorskip(
    "torch", reason="the extra is not installed: pip install 'morpheus-dfp[torch]'"
)

from morpheus.models.reference import (  # noqa: E402 - torch may be missing
    LAYER_NAMES,
    DfencoderConfig,
    DfencoderNetwork,
    fit_dfencoder_fingerprints,
    fit_encoder,
    init_dfencoder_weights,
    replicate_rows,
    swap_values,
    weighted_minibatches,
)

GOLDEN = Path(__file__).parents[2] / "../shared/data/golden"
SHAPE = DfencoderConfig(code_counts=(3, 5, 3, 4), number_columns=(2,), hidden=6, bottleneck=4)


def learn(user, events, columns, when, **options):
    [fingerprint] = fit_dfencoder_fingerprints(
        [UserHistory(user, events, when)], columns, **options
    )
    return fingerprint


def ann(events=600, **options):
    frame = day(events).with_columns(size=pl.Series([f"{n % 7}.5" for n in range(events)]))
    return learn("ann", frame, [*COLUMNS, "size"], times(events), epochs=3, **options)


def net():
    weights = init_dfencoder_weights(SHAPE, torch.Generator().manual_seed(0)).double()
    return DfencoderNetwork(SHAPE, weights * 2)


def events(rows=9):
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(0, size, (rows,), generator=generator) for size in SHAPE.code_counts]
    return torch.stack(codes, 1), torch.randn(rows, 1, generator=generator).double()


def test_category_of_w_values_has_w_plus_one_logits_and_a_number_none():
    assert SHAPE.category_sizes == (2, 4, 3)
    assert SHAPE.parameter_shapes["guess"] == (6, 1 + 2 + 4 + 3)
    assert SHAPE.parameter_shapes["squeeze_in"] == (1 + sum(SHAPE.embedding_widths), 6)


def test_gradient_equals_finite_differences_of_the_loss():
    codes, numbers = events()
    share = torch.linspace(0.5, 2, 9, dtype=torch.float64)
    model, slope = net(), torch.zeros(SHAPE.n_parameters, dtype=torch.float64)
    words = model.to_category_codes(codes)
    model.compute_gradient((words, numbers), (words, numbers), share, unflatten(SHAPE, slope))
    step = 1e-6
    for at in range(SHAPE.n_parameters):
        moved = []
        for by in (step, -step):
            weights = model.weights.clone()
            weights[at] += by
            losses = DfencoderNetwork(SHAPE, weights).losses(codes, numbers)
            moved.append(float((losses.sum(1) * share).sum()))
        assert abs(float(slope[at]) - (moved[0] - moved[1]) / (2 * step)) < 1e-4, at


def test_all_number_columns_together_weigh_as_much_as_one_category():
    shape = DfencoderConfig(code_counts=(3, 3), number_columns=(0, 1), hidden=6, bottleneck=4)
    model = DfencoderNetwork(shape, init_dfencoder_weights(shape, torch.Generator()).double())
    words, numbers = torch.zeros(1, 0, dtype=torch.long), torch.tensor([[3.0, -1.0]]).double()
    slope = torch.zeros(shape.n_parameters, dtype=torch.float64)
    seen, share = (words, numbers), torch.ones(1).double()
    model.compute_gradient(seen, seen, share, unflatten(shape, slope))
    # The slope of a mean of two squares at the guess is the distance itself.
    guess = model._forward(words, numbers)[-1]  # noqa: SLF001 - the guess has no other door
    assert torch.allclose(unflatten(shape, slope)["guess_bias"], (guess - numbers)[0])


def test_missing_and_unknown_values_are_equal_and_a_missing_number_is_the_mean():
    codes = torch.tensor([[MISSING, 2, 2, 2], [UNKNOWN, 2, MISSING, 2]])
    losses = net().losses(codes, torch.zeros(2, 1).double())
    assert torch.equal(losses[0], losses[1])


def test_initial_weights_have_the_distributions_of_torch_layers():
    shape = DfencoderConfig(code_counts=(800, 400), number_columns=(), hidden=512, bottleneck=500)
    part = unflatten(shape, init_dfencoder_weights(shape, torch.Generator().manual_seed(0)))
    for name in LAYER_NAMES:
        bound = part[name].shape[0] ** -0.5
        assert bound * 0.99 < float(part[name].abs().max()) <= bound, name
        assert float(part[f"{name}_bias"].abs().max()) <= bound, name
    assert abs(float(part["embedding"].std()) - 1) < 0.02


def test_swaps_change_the_expected_share_of_cells():
    cells = torch.arange(10_000).view(5_000, 2)
    generator = torch.Generator().manual_seed(0)
    swapped = swap_values(cells, torch.arange(5_000), generator)
    assert abs(float((swapped != cells).double().mean()) - (1 - np.exp(-0.2))) < 0.01
    assert torch.equal(swapped % 2, cells % 2), "values stay in their column"


def test_every_row_is_in_one_batch_and_batches_weigh_the_same():
    copy_of, share = replicate_rows(np.random.default_rng(0).geometric(0.2, size=300))
    assert set(copy_of) == set(range(300))
    assert float(share.sum()) == pytest.approx(1)
    batches = weighted_minibatches(share, 3, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(share)))
    assert all(float(share[batch].sum()) == pytest.approx(1 / 3, abs=0.01) for batch in batches)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2.5"], "Number"),
        (["007", "1e3"], "Number"),
        (["1", None], "Category"),
        (["1", "x"], "Category"),
        (["1", "inf"], "Category"),
        (["1", ""], "Category"),
        (["1", "12345678901234567890123"], "Category"),
        ([1, None], "Category"),
        ([1, 2], "Number"),
        ([True, False], "Category"),
    ],
)
def test_column_is_a_number_column_if_pandas_reads_every_cell_as_a_number(values, kind):
    [column] = fit_encoder(pl.DataFrame({"c": values}), ["c", "no"], "standard").columns
    assert type(column).__name__ == kind


def test_every_value_has_a_code_and_a_missing_one_is_nan_if_the_history_had_any():
    frame = pl.DataFrame({"gaps": ["a", "b", None], "full": ["a", "b", "b"]})
    encoder = fit_encoder(frame, frame.columns, "standard")
    assert [column.n_codes for column in encoder.columns] == [FIRST_CODE + 3, FIRST_CODE + 2]
    rows = encoder.encode(pl.DataFrame({"gaps": [None, "nan", "c"], "full": [None, "nan", "c"]}))
    gaps, full = rows.codes[rows.inverse].T
    assert gaps[0] == gaps[1] > UNKNOWN
    assert gaps[2] == UNKNOWN
    assert full.tolist() == [UNKNOWN] * 3


def test_fingerprint_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    one = ann(seed=3)
    torch.set_num_threads(1)
    other = ann(seed=3)
    torch.set_num_threads(threads)
    assert np.array_equal(one.net.weights, other.net.weights)
    assert not torch.equal(one.net.weights, ann(seed=4).net.weights)


def test_loss_of_a_row_does_not_depend_on_other_rows():
    known, frame = ann(), day(700, seed=9).with_columns(size=pl.lit("2"))
    encoded = known.encoder.encode(frame)
    whole = known.losses(encoded)[encoded.inverse]
    for start in range(0, 700, 100):
        alone = known.encoder.encode(frame[start : start + 100])
        assert np.array_equal(known.losses(alone)[alone.inverse], whole[start : start + 100])


def test_saved_reference_fingerprint_loads_unchanged(tmp_path):
    known = ann()
    commit_index(tmp_path, ModelIndex.from_cards({"ann": put_model(tmp_path, known)}))
    back = ModelStore.open(tmp_path).load("ann")
    rows = known.encoder.encode(day())
    assert np.array_equal(back.losses(rows), known.losses(rows))
    assert back.encoder == known.encoder
    assert back.oov_rates is None


@pytest.mark.parametrize("events", [1, 2, 513])
def test_history_of_any_length_and_of_numbers_only_can_be_trained_on(events):
    frame = pl.DataFrame({"n": [str(n) for n in range(events)]})
    known = learn("ann", frame, ["n"], times(events), epochs=2)
    rows = known.encoder.encode(pl.DataFrame({"n": ["1e300", None, "0"]}))
    assert np.isfinite(known.losses(rows)).all()


@pytest.mark.parametrize(
    ("model", "network"), [("reference", DfencoderNetwork), ("compact", Autoencoder)]
)
def test_train_ae_trains_the_chosen_model(model, network):
    settings = PipelineOptions(columns=tuple(COLUMNS))
    stage = TrainAe(model=model, train_data_glob="*", train_epochs=1, options=settings)
    frame = day().with_columns(times(400).alias(TIME))
    [batch] = run_stage(stage, [Events(user="ann", table=Table(frame), history=Table(frame))])
    assert isinstance(batch.fingerprint.net, network)


def golden(part, user):
    path = GOLDEN / part / f"cloudtrail-{user}-{part}.csv"
    account = pl.format("Account-{}", "userIdentityaccountId")
    return pl.read_csv(path, infer_schema=False).with_columns(userIdentityaccountId=account)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's scores are not at hand")
@pytest.mark.parametrize("user", ["role-0000", "role-0001", "svc-0002"])
def test_mean_scores_of_five_seeds_equal_those_of_upstream(user):
    history, later = golden("training", user), golden("validation", user)
    scores = pl.read_csv(GOLDEN / "anomaly_scores_nv2209.csv").filter(pl.col("user") == user)
    expected = scores.sort("row")["score_mean"].to_numpy()
    when = pl.Series([datetime(2026, 1, 1, tzinfo=UTC)] * history.height)
    columns = read_lines("columns_ae.txt", option="")
    ours = np.zeros(later.height)
    for seed in range(5):
        known = learn(user, history, columns, when, seed=seed)
        rows = known.encoder.encode(later)
        ours += known.losses(rows).mean(1)[rows.inverse] / 5
    ranks = [pl.Series(s).rank().to_numpy() for s in (ours, expected)]
    top = [set(np.argsort(-s)[:20].tolist()) for s in (ours, expected)]
    assert np.corrcoef(*ranks)[0, 1] >= 0.98
    assert len(top[0] & top[1]) >= 15
    assert ours.mean() == pytest.approx(expected.mean(), rel=0.02)
