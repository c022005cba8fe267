"""What the user sees of a cluster: error messages, Ctrl+C, the summary."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import Large
from morpheus.cli.output import format_metrics
from morpheus.core.batch import ClusterStats, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.runtime import dask_cluster
from morpheus.runtime.dask_cluster import Cluster
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.cluster_partitioning import run_read_task
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe

COMMAND = [sys.executable, "-c", "from morpheus.cli.main import main; main()"]
SRC = Path(__file__).parents[2] / "src"


def chain(folder, into, **train):
    source = FromCloudtrail(input_glob=str(folder))
    score = [Preprocess(), InfPytorch(), AddScores()]
    return [source, TrainAe(**train), *score, Serialize(), ToFile(filename=str(into))]


def validate(tmp_path, **options):
    (tmp_path / "a.json").write_text('{"Records": []}')
    Pipeline([FromCloudtrail(input_glob=str(tmp_path))], PipelineOptions(**options)).validate()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kubernetes", r"`kubernetes` needs the package `dask-kubernetes`.*pip install"),
        ("nowhere.at_all:Cluster", r"needs the package `nowhere`.*pip install 'nowhere'"),
        ("distributed:NoCluster", r"`distributed` has no class `NoCluster`.*tcp://"),
        ("10.0.0.7", r"`10.0.0.7` is not a scheduler.*--scheduler=tcp://10.0.0.7:8786"),
    ],
)
def test_invalid_scheduler_is_rejected_before_the_run(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        validate(tmp_path, engine="dask", scheduler=name)


def test_scheduler_without_dask_engine_is_rejected(tmp_path):
    with pytest.raises(UsageError, match=r"needs --engine=dask.*--engine=dask --scheduler=tcp:"):
        validate(tmp_path, scheduler="tcp://10.0.0.7:8786")


def test_scheduler_that_does_not_answer_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_cluster, "CONNECT_TIMEOUT", 0.5)
    (tmp_path / "a.json").write_text('{"Records": []}')
    options = PipelineOptions(engine="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(
        TransientError, match=r"`tcp://127.0.0.1:9` does not answer.*dask scheduler"
    ):
        Pipeline([FromCloudtrail(input_glob=str(tmp_path))], options).run()


def test_unbounded_input_is_rejected(tmp_path):
    source = FromCloudtrail(input_glob=str(tmp_path), watch_directory=True)
    with pytest.raises(UsageError, match=r"the input has no end.*Leave out --engine"):
        Pipeline([source], PipelineOptions(engine="dask")).validate()


def test_missing_gpu_is_reported_with_what_to_type(nodes, fleet, tmp_path):
    options = PipelineOptions(engine="dask", scheduler=nodes)
    stages = chain(fleet / "scored", tmp_path / "out.csv", device="cuda", train_min_history=1)
    with pytest.raises(UsageError, match=r'no worker.*GPU.*dask worker --resources "GPU=1"'):
        Pipeline(stages, options).run()


def test_record_error_on_a_worker_is_reported_and_leaves_nothing(nodes, tmp_path):
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    (logs / "a.json").write_text('{"Records": [{"eventName": "x"}]}')
    with pytest.raises(RecordError, match=r"a\.json:1: the record has no `eventTime`"):
        Pipeline(chain(logs, out / "a.csv"), PipelineOptions(engine="dask", scheduler=nodes)).run()
    assert list(out.iterdir()) == []


def test_ctrl_c_ends_the_cluster_and_leaves_nothing(fleet, tmp_path):
    out = tmp_path / "out"
    command = ["run", "--engine=dask", "--num_threads=2", "pipeline-ae"]
    source = ["from-cloudtrail", f"--input_glob={fleet / 'scored'}"]
    learn = ["--userid_column_name=@actor", *source, "train-ae", "--train_min_history=10"]
    rest = ["preprocess", "inf-pytorch", "add-scores", "serialize", "to-file"]
    models = ["--models_output_filename", str(tmp_path / "models")]
    process = subprocess.Popen(
        [*COMMAND, *command, *learn, *models, *rest, f"--filename={out / 'out.csv'}"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        start_new_session=True,
    )
    wait_until(lambda: any((tmp_path / "models").rglob("*.safetensors")), process)
    os.killpg(process.pid, signal.SIGINT)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 130, stderr
    assert list(out.iterdir()) == []
    assert not (tmp_path / "models" / "store.json").exists()
    wait_until(lambda: not is_alive(process.pid))


def wait_until(condition, process=None):
    for _ in range(600):
        if condition():
            return
        assert process is None or process.poll() is None
        time.sleep(0.05)
    pytest.fail("the condition was never met")


def is_alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_summary_reports_the_work_of_a_cluster():
    metrics = RunMetrics(cluster_stats=ClusterStats(2, 1, 40, 3, ((None, 2.25), ("ann\x1b", 0.5))))
    lines = [" ".join(line.split()) for line in format_metrics(metrics)]
    assert "Cluster 40 tasks on 2 workers, 1 lost, 3 tasks restarted" in lines
    assert r"slowest (no user) 2.2 s, ann\x1b 0.5 s" in lines


def test_large_values_are_sent_once_to_each_worker(nodes):
    with Cluster(nodes, 1) as workers:
        results = list(workers.map_shared(Large(), range(10)))
        [size] = workers.results([workers.submit(len, workers.scatter("x" * 20_000_000))])
    assert [row for row, *_ in results] == list(range(10))
    assert {loads for _, loads, _ in results} == {1}
    assert size == 20_000_000


def test_files_missing_on_a_worker_are_reported(tmp_path):
    with pytest.raises(UsageError, match=r"`.*a\.json` does not exist on worker .*same path"):
        run_read_task(None, 1, [tmp_path / "a.json"])


def test_folder_missing_on_a_worker_is_reported_with_what_to_type(nodes, tmp_path):
    message = r"worker tcp://.* does not see the folder `.*`, into which workers write.*all.*share"
    with Cluster(nodes, 1) as workers, pytest.raises(UsageError, match=message):
        workers.check_shared_folder(tmp_path / "elsewhere")


MINE = '''
from dataclasses import dataclass

from morpheus.core.batch import Batch
from morpheus.core.stage import Transform


@dataclass(frozen=True)
class Mine(Transform):
    """Do nothing."""

    name = "mine"
    takes = (Batch,)

    def process(self, batch, state):
        yield batch
'''


def test_plugin_missing_on_workers_is_reported(nodes, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "a.csv").write_text("eventTime,userIdentityaccountId\n2024-05-31T09:30:01Z,ann\n")
    user = "--userid_column_name=userIdentityaccountId"
    words = ["--plugin", str(tmp_path / "mine.py"), "run", "--engine=dask", "--scheduler", nodes]
    words += ["pipeline-ae", user, "from-cloudtrail", f"--input_glob={tmp_path / 'a.csv'}", "mine"]
    words += ["serialize", "to-file", f"--filename={tmp_path / 'out.csv'}"]
    result = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "the file of a --plugin, is missing on it. Install" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.csv").exists()
