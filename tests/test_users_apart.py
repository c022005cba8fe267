"""Users do not affect each other: a watched directory gives the output of one run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
WATCH = ("--watch_directory=true", "--max_files=2", "--batch_timeout=0.2")


def scores_of(morpheus: Path, folder: Path, *source_options: str, filtered: bool) -> pl.DataFrame:
    """Run the lesson's command with risks and reasons; the rows come out in one order."""
    kept = ("filter", "--label=risk", "--threshold=30") if filtered else ()
    output = folder / f"out-{len(source_options)}-{filtered}.csv"
    command = (
        *(morpheus, "run", "pipeline-ae"),
        f"--userid_column_name={USER}",
        *("from-cloudtrail", "--input_glob=data/input-data/*.csv", *source_options),
        *("train-ae", "--train_data_glob=data/training-data/*.csv", "--seed=42"),
        *("preprocess", "inf-pytorch", "add-scores", "--label=ae_anomaly_score", "--label=risk"),
        *("explain", *kept, "serialize", "to-file", f"--filename={output}", "--overwrite"),
    )
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return pl.read_csv(output, infer_schema=False).sort(USER, "")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, folder / "data")
    return folder


def test_a_followed_folder_scores_each_user_as_one_run_does(
    examples: Path, warm_morpheus: Path
) -> None:
    once = scores_of(warm_morpheus, examples, filtered=False)
    followed = scores_of(warm_morpheus, examples, *WATCH, filtered=False)
    assert followed.height == once.height > 1000
    for column in ("ae_anomaly_score", "risk", "reason"):
        assert followed[column].to_list() == once[column].to_list(), column


def test_a_followed_folder_finds_the_intrusion_that_one_run_finds(
    examples: Path, warm_morpheus: Path
) -> None:
    once = scores_of(warm_morpheus, examples, filtered=True)
    assert once.height == 8
    assert scores_of(warm_morpheus, examples, *WATCH, filtered=True).equals(once)
