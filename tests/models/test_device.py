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


def imports_torch(users):
    code = SEEMS_TO_HAVE_ONE.format(users=users)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_torch_is_not_imported_for_few_users():
    assert not imports_torch(MIN_USERS_FOR_GPU - 1)
    assert imports_torch(MIN_USERS_FOR_GPU)


def test_cpu_trains_users_one_after_the_other():
    assert select_trainer("cpu", 1000) is train_sequentially
    assert not gpu_possible("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_gpu_error_says_what_to_do():
    with pytest.raises(UsageError, match=r"--device: no CUDA device .*install torch for CUDA"):
        select_trainer("cuda", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_available_gpu_trains_many_users():
    assert select_trainer("auto", MIN_USERS_FOR_GPU) is not train_sequentially
