import subprocess
import sys

import pytest

from morpheus.errors import UsageError
from morpheus.models.batched_training import select_trainer
from morpheus.models.training import MIN_USERS_FOR_GPU, gpu_possible, train_sequentially

torch = pytest.importorskip(
    "torch", reason="the extra is not installed: pip install 'morpheus-dfp[torch]'"
)

SEEMS_TO_HAVE_ONE = """
import sys
from pathlib import Path
from morpheus.models import batched_training, training
training.GPU_DRIVERS = (Path(sys.executable),)
assert training.gpu_possible("auto")
batched_training.select_trainer("auto", {users})
print("torch" in sys.modules)
"""


def asks_torch(users):
    code = SEEMS_TO_HAVE_ONE.format(users=users)
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return shown.stdout.strip() == "True"


def test_torch_is_not_imported_for_few_users_also_where_a_gpu_may_be():
    assert not asks_torch(MIN_USERS_FOR_GPU - 1)
    assert asks_torch(MIN_USERS_FOR_GPU)


def test_users_are_trained_one_by_one_on_a_processor():
    assert select_trainer("cpu", 1000) is train_sequentially
    assert not gpu_possible("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_asked_for_and_not_there_is_told_with_what_to_type():
    with pytest.raises(UsageError, match=r"--device: no CUDA device .*install torch for CUDA"):
        select_trainer("cuda", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_that_is_there_trains_many_users():
    assert select_trainer("auto", MIN_USERS_FOR_GPU) is not train_sequentially
