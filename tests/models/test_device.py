import subprocess
import sys

import pytest
import torch

from morpheus.errors import UsageError
from morpheus.models.batched_training import MIN_USERS_FOR_GPU, gpu_possible, select_trainer
from morpheus.models.training import train_sequentially

SEEMS_TO_HAVE_ONE = """
import sys
from pathlib import Path
from morpheus.models import device
device.GPU_DRIVERS = (Path(sys.executable),)
assert device.may_be_gpu("auto")
device.trainer_on("auto", {users})
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
    with pytest.raises(UsageError, match=r"--device: no CUDA device .*make setup TORCH_INDEX="):
        select_trainer("cuda", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_that_is_there_trains_many_users():
    assert select_trainer("auto", MIN_USERS_FOR_GPU) is not train_sequentially
