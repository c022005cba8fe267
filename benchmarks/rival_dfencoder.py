"""Train and score with dfencoder 0.0.42, the library behind NVIDIA Morpheus's `train-ae`.

It lives in an environment of its own, made once, in the repository's root:

    python -m venv benchmarks/.rivals/dfencoder
    benchmarks/.rivals/dfencoder/bin/pip install dfencoder==0.0.42 torch==2.13.0
    benchmarks/.rivals/dfencoder/bin/python benchmarks/rival_dfencoder.py \
        --history=training.csv --events=validation.csv --columns=columns.txt

Prints one line of JSON: events of each kind, CPU seconds of training and of scoring on one thread,
and the score of each event. Missing values are the word `nan` in training and scoring alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ACCOUNT = "userIdentityaccountId"
SETTINGS = {
    "encoder_layers": [512, 500],
    "decoder_layers": [512],
    "activation": "relu",
    "swap_p": 0.2,
    "optimizer": "sgd",
    "lr": 0.01,
    "lr_decay": 0.99,
    "batch_size": 512,
    "min_cats": 1,
    "device": "cpu",
    "verbose": False,
    "progress_bar": False,
}
"""What `train-ae` gives it."""


def read(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read the feature columns as text; account ids get the prefix that keeps them text."""
    import pandas as pd  # noqa: PLC0415 - of the rival's environment

    frame = pd.read_csv(path, dtype=str).reindex(columns=columns).astype(object)
    if ACCOUNT in frame:
        frame[ACCOUNT] = "Account-" + frame[ACCOUNT]
    return frame


def typed(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Make numbers of the columns that are numbers without a gap in `like`, and words of others."""
    import pandas as pd  # noqa: PLC0415 - of the rival's environment

    numbers = [c for c in like if pd.to_numeric(like[c], errors="coerce").notna().all()]
    words = frame.drop(columns=numbers).fillna("nan").astype(object)
    return words.join(frame[numbers].apply(pd.to_numeric, errors="coerce").astype(float))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Train on the history, score the events."""
    import numpy as np  # noqa: PLC0415 - of the rival's environment
    import torch  # noqa: PLC0415 - the same
    from dfencoder import AutoEncoder  # type: ignore[import-not-found]  # noqa: PLC0415 - the same

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - it draws from the global generator
    columns = options.columns.read_text(encoding="utf-8").split()
    raw = read(options.history, columns)
    history, events = typed(raw, raw), typed(read(options.events, columns), raw)
    begin = time.process_time()
    net = AutoEncoder(**SETTINGS, scaler=options.scaler)
    net.fit(history, epochs=options.epochs)
    trained = time.process_time()
    scores = net.get_anomaly_score(events)
    return {
        "history": len(history),
        "events": len(events),
        "training_cpu_seconds": trained - begin,
        "scoring_cpu_seconds": time.process_time() - trained,
        "scores": [float(score) for score in scores],
    }


def main() -> None:
    """Measure, or say what is needed for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--history", type=Path, help="CSV to train on")
    parser.add_argument("--events", type=Path, help="CSV to score")
    parser.add_argument("--columns", type=Path, help="feature columns, one a line")
    parser.add_argument("--scaler", default="standard", choices=("standard", "gauss_rank"))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    here = importlib.util.find_spec("dfencoder") is not None
    if not here or None in (options.history, options.events, options.columns):
        parser.print_help(sys.stderr)
        return
    warnings.simplefilter("ignore")  # it was written for older versions of its dependencies
    print(json.dumps(measured(options)))


if __name__ == "__main__":
    main()
