import numpy as np
import pytest

from morpheus.models.training import MAX_BATCH_SIZE, MIN_STEPS, iter_minibatches


@pytest.mark.parametrize("rows", [128, 129, 225, 503, 1024, 1025, 1030, 2049, 5000])
def test_epoch_uses_each_row_once_in_batches_of_nearly_one_size(rows: int) -> None:
    batches = list(iter_minibatches(rows, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    sizes = [len(batch) for batch in batches]
    assert len(sizes) >= MIN_STEPS
    assert max(sizes) <= MAX_BATCH_SIZE
    assert max(sizes) - min(sizes) < len(sizes)
