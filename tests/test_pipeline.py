"""Pipelines: what is rejected before anything is read, and the output of a run."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import pytest

from morpheus.columns import INDEX, ROW, SCORE, TIME
from morpheus.core.batch import Batch, Events, RunMetrics, Table
from morpheus.core.stage import PipelineOptions, Sink
from morpheus.errors import TransientError, UsageError
from morpheus.models.fit import UserHistory
from morpheus.pipeline import Pipeline, Plan
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_http import ToHttp
from morpheus.sinks.to_report import ToReport
from morpheus.sinks.validate import Validate
from morpheus.sources.base import Source
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.monitor import Monitor
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import ModelProvider, TrainAe
from morpheus.testing import make_events, make_scored, run_stage
from people import day, times


def events(count, seed=0):
    frame = day(count, seed).with_columns(
        pl.int_range(count).alias(ROW), pl.int_range(count).alias(INDEX), times(count).alias(TIME)
    )
    return frame.select(ROW, INDEX, pl.exclude(ROW, INDEX, TIME), TIME)


@dataclass(frozen=True)
class FromPeople(Source):
    """Events of people in memory, each with the same length of history.

    The last five events of an intruder have values that the user never has.
    """

    name = "from-people"
    default_columns = "columns_ae.txt"

    people: dict[str | None, int] = field(default_factory=dict)
    history_events: int = 400
    intruders: tuple[str, ...] = ()

    def events(self, training_input, metrics):
        for number, (user, count) in enumerate(self.people.items()):
            metrics.input.read += count
            past = Table(events(self.history_events, 100 + number))
            history = past if training_input else None
            table = events(count, number)
            if user in self.intruders:
                values = {"action": "delete", "address": "cafe", "agent": "curl"}
                strange = table.tail(5).with_columns(**{k: pl.lit(v) for k, v in values.items()})
                table = pl.concat([table.head(count - 5), strange])
            yield Events(user=user, table=Table(table), history=history)


@pytest.fixture
def columns(tmp_path):
    path = tmp_path / "columns.txt"
    path.write_text("action\naddress\nagent\nkind\n")
    return PipelineOptions(columns_file=str(path), num_threads=1, labels=(SCORE,))


def scoring(**options):
    return [TrainAe(**options), Preprocess(), InfPytorch(), AddScores(), Serialize()]


@dataclass(frozen=True)
class Collect(Sink):
    """A sink that appends batches to a list."""

    name = "collect"
    takes = (Batch,)
    rows: list = field(default_factory=list)

    def process(self, batch, state):
        self.rows.append(batch)
        yield batch


def run(people, pipeline_options, *stages, **options):
    sink = []
    stages = [FromPeople(people=people), *(stages or scoring(**options)), Collect(rows=sink)]
    return Pipeline(stages, pipeline_options).run(), sink


def test_events_of_a_user_without_a_model_get_nan_and_are_counted_with_a_reason(columns):
    metrics, rows = run({"ann": 50, None: 7}, columns, train_data_glob="x", train_min_history=401)
    assert sum(batch.table.height for batch in rows) == 57
    assert all(batch.table[SCORE].is_nan().all() for batch in rows)
    assert metrics.unscored_reasons == {
        "ann": "400 events of history, 401 needed",
        None: "no value in `userIdentityaccountId`",
    }
    assert metrics.users == {"ann": 50, None: 7}


def test_all_events_are_scored_once_and_in_order(columns):
    metrics, rows = run({"ann": 50, "bob": 60}, columns, train_data_glob="x")
    assert metrics.scored == 110
    assert [batch.user for batch in rows] == ["ann", "bob"]
    assert set(metrics.cards) == {"ann", "bob"}
    assert np.isfinite(rows[0].table[SCORE].to_numpy()).all()


def test_users_are_trained_on_the_input_without_training_files(columns):
    metrics, rows = run({"ann": 350, "bob": 20}, columns)
    assert metrics.scored == 350
    assert metrics.unscored_reasons == {"bob": "20 events of history, 300 needed"}
    assert rows[0].card.events == 350


def test_train_max_history_selects_the_latest_events(columns):
    _, rows = run({"ann": 10}, columns, train_data_glob="x", train_max_history=333)
    assert rows[0].card.events == 333


def test_saved_fingerprints_give_the_scores_of_the_run_that_saved_them(columns, tmp_path):
    folder = str(tmp_path / "models")
    people = {"ann": 50, "bob": 60}
    first, rows = run(people, columns, train_data_glob="x", models_output_filename=folder)
    second, loaded = run(people, columns, pretrained_filename=folder)
    assert all(a.table.equals(b.table) for a, b in zip(rows, loaded, strict=True))
    assert first.cards == second.cards


def test_user_without_a_saved_fingerprint_is_counted_with_a_reason(columns, tmp_path):
    folder = str(tmp_path / "models")
    run({"ann": 5}, columns, train_data_glob="x", models_output_filename=folder)
    metrics, _ = run({"eve": 5}, columns, pretrained_filename=folder)
    assert metrics.unscored_reasons == {"eve": "no fingerprint"}


def test_users_without_events_are_trained_only_if_fingerprints_are_saved(columns, tmp_path):
    folder = str(tmp_path / "models")
    discarded, _ = run({"ann": 0}, columns, train_data_glob="x")
    saved, _ = run({"ann": 0}, columns, train_data_glob="x", models_output_filename=folder)
    assert set(discarded.cards) == set()
    assert set(saved.cards) == {"ann"}
    assert saved.users == {}


def test_worker_processes_give_the_same_output_as_one_process(columns):
    people = {f"user{n}": 30 + n for n in range(12)}
    training = {"train_data_glob": "x", "train_epochs": 2}
    inline, rows = run(people, columns, **training)
    parallel, worker_rows = run(people, replace(columns, num_threads=2), **training)
    assert [batch.user for batch in worker_rows] == list(people)
    assert all(a.table.equals(b.table) for a, b in zip(rows, worker_rows, strict=True))
    assert inline.cards == parallel.cards
    assert inline.scored == parallel.scored


@dataclass(frozen=True)
class FailsToCommit(Collect):
    """A sink that cannot finish its output."""

    error: Exception = field(default_factory=lambda: TransientError("no answer"))

    def commit(self, metrics):
        self.rows.append(metrics.users.total())
        raise self.error


def test_metrics_say_whether_there_is_a_sink(columns, tmp_path):
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize()]
    assert not Pipeline(chain, columns).run().has_sink
    sink = ToFile(filename=str(tmp_path / "rows.csv"))
    assert Pipeline([*chain, sink], columns).run().has_sink


def test_two_sinks_with_the_same_file_are_rejected(columns, tmp_path):
    rows = ToFile(filename=f"{tmp_path}/rows.html", file_type="csv")
    sinks = [rows, ToReport(filename=f"{tmp_path}/./rows.html")]
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize(), *sinks]
    with pytest.raises(UsageError, match=r"to-report: .*rows.html` is also written by `to-file`"):
        Pipeline(chain, columns).validate()


@pytest.mark.parametrize(
    ("options", "sink"),
    [
        ({"status_file": "{}/log.json"}, {}),
        ({"state": "{}/log.json"}, {}),
        ({}, {"dead_letters": "{}/log.json"}),
        ({}, {"results_file_name": "{}/log.json", "overwrite": True}),
    ],
)
def test_no_file_that_a_run_writes_is_an_input_log(tmp_path, options, sink):
    log = tmp_path / "log.json"
    log.write_text(json.dumps({"eventTime": "2024-05-31T09:30:00Z", "eventName": "Get"}))
    before = log.read_bytes()
    given = {name: value.format(tmp_path) for name, value in options.items()}
    kind = Validate if "overwrite" in sink else ToHttp
    place = {"val_file_name": str(log)} if kind is Validate else {"base_url": "http://localhost:9"}
    place |= {n: v.format(tmp_path) if isinstance(v, str) else v for n, v in sink.items()}
    chain = [FromCloudtrail(input_glob=str(log)), Serialize(), kind(**place)]
    with pytest.raises(UsageError, match="is one of the input logs, and would be replaced"):
        Pipeline(chain, PipelineOptions(**given)).run()
    assert log.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


@pytest.mark.parametrize("pattern", ["", "/*", "/*.jsonl", "/**/*.jsonl"])
@pytest.mark.parametrize(
    ("options", "sink"),
    [
        ({"status_file": "{}/new.json"}, {}),
        ({"state": "{}/new.jsonl"}, {}),
        ({}, {"dead_letters": "{}/new.jsonl"}),
        ({}, {"filename": "{}/new.jsonl", "flush_rows": True}),
    ],
)
def test_no_new_file_that_a_run_writes_is_read_by_it_as_a_log(tmp_path, pattern, options, sink):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl").write_text('{"eventTime": "2024-05-31T09:30:00Z", "eventName": "Get"}')
    given = {name: value.format(logs) for name, value in options.items()}
    place = {n: v.format(logs) if isinstance(v, str) else v for n, v in sink.items()}
    last = ToFile(**place) if "filename" in sink else ToHttp(base_url="http://localhost:9", **place)
    chain = [FromCloudtrail(input_glob=f"{logs}{pattern}"), Serialize(), last]
    is_read = "status_file" not in options or pattern in {"", "/*"}
    if is_read:
        with pytest.raises(UsageError, match="is in the input, and would be read as a log"):
            Pipeline(chain, PipelineOptions(**given)).validate()
    else:
        Pipeline(chain, PipelineOptions(**given)).validate()
    assert [path.name for path in logs.iterdir()] == ["a.jsonl"]


def test_an_output_that_the_next_run_would_read_as_a_log_is_warned_about(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"eventTime": "2024-05-31T09:30:00Z", "eventName": "Get"}')
    for name, warns in (("b.jsonl", True), ("out/b.jsonl", True), ("../b.jsonl", False)):
        caplog.clear()
        chain = [
            FromCloudtrail(input_glob=str(tmp_path)),
            Serialize(),
            ToFile(str(tmp_path / name)),
        ]
        Pipeline(chain, PipelineOptions()).validate()
        assert ("the next run would read it as a log" in caplog.text) == warns


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"status_file": "{}/a.json"}, [ToFile]),
        ({"state": "{}/a.json"}, [ToFile]),
        ({"status_file": "{}/a.json", "state": "{}/a.json"}, []),
        ({}, [ToFile, ToHttp]),
        ({}, [ToHttp, ToHttp]),
        ({"state": "{}/a.json"}, [ToHttp]),
    ],
)
def test_no_two_parts_of_a_run_write_the_same_file(columns, tmp_path, options, stages):
    file = str(tmp_path / "a.json")
    sinks = {
        ToFile: ToFile(filename=file, overwrite=True),
        ToHttp: ToHttp(base_url="http://localhost:9", dead_letters=file),
    }
    given = {name: value.format(tmp_path) for name, value in options.items()}
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize(), *(sinks[x] for x in stages)]
    with pytest.raises(UsageError, match=r"a.json` is also written by `[a-z_-]+`\. Give another"):
        Pipeline(chain, replace(columns, **given)).validate()


def test_sink_that_fails_to_commit_stops_neither_the_summary_nor_other_sinks(columns, caplog):
    completed, committed = [], []
    sinks = [
        FailsToCommit(rows=committed),
        FailsToCommit(rows=committed, error=OSError("disk full")),
    ]
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize(), *sinks]
    with pytest.raises(TransientError, match="no answer"):
        Pipeline(chain, columns).run(completed.append)
    [metrics] = completed
    assert (metrics.input.read, metrics.users.total()) == (4, 4)
    assert metrics.seconds > 0
    assert committed[-2:] == [4, 4]
    assert caplog.messages == ["disk full"]


WRONG = [
    ([], r"The pipeline is empty. Start with a source"),
    ([TrainAe()], r"starts with `train-ae`, which does not read logs. Put a source such as"),
    ([TrainAe(), FromPeople()], r"Stage 1 `train-ae` is in front of the source `from-people`"),
    ([FromPeople(), FromPeople()], r"more than one source: `from-people` and `from-people`"),
    (
        [FromPeople(), Preprocess()],
        (
            r"Stage 2 `preprocess` takes WithModel, but stage 1 `from-people` gives Events. "
            r"Put `train-ae` between them."
        ),
    ),
    (
        [FromPeople(), TrainAe(), Preprocess(), AddScores()],
        (
            r"Stage 4 `add-scores` takes Losses or Scored, but stage 3 `preprocess` gives Encoded. "
            r"Put `inf-pytorch` between them."
        ),
    ),
    (
        [FromPeople(), Monitor(), *scoring()[:4], TrainAe()],
        (
            r"Stage 7 `train-ae` takes Events, but stage 6 `add-scores` gives Scored. "
            r"Put `train-ae` before `add-scores`, or leave it out."
        ),
    ),
]


@pytest.mark.parametrize(("stages", "message"), WRONG)
def test_wrong_order_is_rejected_with_the_stages_and_the_fix(stages, message):
    with pytest.raises(UsageError, match=message):
        Pipeline(stages).validate()


def test_global_stage_moves_behind_the_segment():
    chain = [FromPeople(), Monitor(), TrainAe(), Monitor(), Preprocess(), InfPytorch()]
    plan = Plan.from_stages([*chain, AddScores(), Timeseries(), Serialize(), Collect()])
    assert [s.name for s in plan.head] == ["monitor"]
    assert [s.name for s in plan.segment][::5] == ["train-ae", "serialize"]
    assert [s.name for s in plan.tail] == ["monitor", "collect"]


def test_barrier_stays_in_its_place():
    chain = [FromPeople(), TrainAe(), Preprocess(), InfPytorch(), AddScores()]
    plan = Plan.from_stages([*chain, Validate(), Monitor(), Serialize(), Collect()])
    assert [s.name for s in plan.segment][::3] == ["train-ae", "add-scores"]
    assert [s.name for s in plan.tail] == ["validate", "monitor", "serialize", "collect"]
    plan = Plan.from_stages([FromPeople(), Validate(), TrainAe(), Collect()])
    assert [s.name for s in plan.segment] == ["train-ae"]


def test_each_user_has_a_state_of_its_own():
    class Count(Serialize):
        def open(self, context):
            return [context.user]

        def process(self, batch, state):
            state.append(batch.user)
            yield from ()

        def flush(self, state):
            states.append(state)
            yield from ()

    states = []
    batches = [make_scored(make_events([0]), user=user) for user in ("ann", "ann", "bob")]
    assert not run_stage(Count(), batches)
    assert states == [["ann", "ann", "ann"], ["bob", "bob"]]
    mixed = [batches[0], batches[2], batches[1]]
    assert not run_stage(Count(), mixed, unbounded=True)
    assert states[2:] == states[:2]


def test_source_of_the_training_files_is_that_of_the_pipeline():
    class_name = "morpheus.stages.input.duo_source_stage.DuoSourceStage"
    TrainAe(source_stage_class=class_name, options=PipelineOptions(source="from-duo")).validate()
    TrainAe(source_stage_class="from-duo", options=PipelineOptions(source="from-duo")).validate()
    with pytest.raises(
        UsageError, match="is `from-duo`, but the pipeline starts with `from-azure`"
    ):
        TrainAe(
            source_stage_class=class_name, options=PipelineOptions(source="from-azure")
        ).validate()
    with pytest.raises(UsageError, match=r"there is no source `a\.Other`"):
        TrainAe(source_stage_class="a.Other").validate()


def test_manual_seed_is_the_default_of_seed():
    frame = make_events(range(40), action=["get", "put"] * 20)
    history = UserHistory("ann", frame, frame[TIME])

    def train(manual_seed=None, seed=None):
        options = PipelineOptions(columns=("action",), manual_seed=manual_seed)
        provider = ModelProvider.from_population(TrainAe(options=options, seed=seed), None)
        [fingerprint] = provider.train([history])
        return fingerprint.card.seed

    assert train() == 0
    assert train(manual_seed=7) == 7
    assert train(manual_seed=7, seed=3) == 3
    assert train(manual_seed=7, seed=0) == 0


def test_links_name_the_class_of_batches_after_each_stage():
    chain = [FromPeople(), TrainAe(), Preprocess()]
    links = [("from-people", "Events"), ("train-ae", "WithModel"), ("preprocess", "Encoded")]
    assert Pipeline(chain).links() == links


def test_pretrained_and_saved_models_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="Leave one of the two out"):
        TrainAe(pretrained_filename=str(tmp_path), models_output_filename="m").validate()


def test_model_file_of_another_program_is_never_read(tmp_path):
    path = tmp_path / "models.pkl"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="never read: they can run code"):
        TrainAe(pretrained_filename=str(path)).validate()


def test_logs_without_any_feature_column_are_rejected(tmp_path):
    path = tmp_path / "columns.txt"
    path.write_text("nothing\n")
    with pytest.raises(UsageError, match=r"None of the feature columns .* action, address"):
        run({"ann": 5}, PipelineOptions(columns_file=str(path)), train_data_glob="x")


@pytest.mark.parametrize(
    "stages",
    [
        (AddScores(label=("risk", "zscore"), prefix="again_"),),
        (Explain(),),
        (Filter(threshold=1.0, label=("zscore",)),),
    ],
    ids=["add-scores", "explain", "filter"],
)
def test_stages_after_a_barrier_have_the_models_of_the_users(columns, tmp_path, stages):
    expected = tmp_path / "any.csv"
    expected.write_text("a\n1\n")
    people, outputs = {f"user{n}": 5 for n in range(12)}, []
    barrier = Validate(val_file_name=str(expected))
    for threads, added in ((1, (barrier, *stages)), (2, (barrier, *stages)), (1, stages)):
        chain = [*scoring(train_data_glob="x", train_epochs=1)[:-1], *added]
        _, rows = run(people, replace(columns, num_threads=threads), *chain)
        outputs.append(pl.concat(batch.table.to_frame() for batch in rows))
    assert outputs[0].equals(outputs[1])
    assert outputs[0].equals(outputs[2])
    assert outputs[0].height
    assert not any(column.is_nan().any() for column in outputs[0] if column.dtype.is_float())


def test_models_are_released_after_the_last_stage_that_needs_them():
    chain = scoring(train_data_glob="x")[:-1]
    plan = Plan.from_stages([FromPeople(), *chain, Serialize(), Monitor(), ToFile()])
    assert plan.make_segment(RunMetrics(), saves=False).drops_model
    plan = Plan.from_stages([FromPeople(), *chain, Validate(), Explain(), ToFile()])
    assert not plan.make_segment(RunMetrics(), saves=False).drops_model


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Explain(top=0), r"explain: --top: 0 is not at least 1"),
        (Filter(threshold=1, label="risk", alerts_per_day=-1), r"filter: --alerts_per_day: -1"),
        (Timeseries(detector="rite"), r"timeseries: --detector: .* `rite`\. Did you mean `rate`"),
    ],
)
def test_values_that_the_command_line_rejects_are_rejected_in_python(stage, message):
    source = FromPeople(people={"ann": 3})
    stages = [source, TrainAe(), Preprocess(), InfPytorch(), AddScores(), stage]
    with pytest.raises(UsageError, match=message):
        Pipeline(stages).validate()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Filter(threshold="3"), r"filter: --threshold: `'3'` has the type `str`. Give a number"),
        (Filter(threshold=float("nan")), r"filter: --threshold: nan is not a finite number"),
        (Filter(alerts_per_day=float("inf")), r"--alerts_per_day: inf is not a finite number"),
        (Timeseries(resolution=10), r"--resolution: `10` has the type `int`. Give a text"),
        (Explain(top=True), r"--top: `True` has the type `bool`. Give a whole number"),
        (Explain(top=2.5), r"--top: `2.5` has the type `float`. Give a whole number"),
        (AddScores(label=3), r"--label: `3` has the type `int`. Give a text, or a list of texts"),
        (AddScores(label=[["risk"]]), r"--label: `\['risk'\]` has the type `list`. Give a text"),
        (ToFile("a.csv", overwrite="no"), r"--overwrite: `'no'` .* Give True or False"),
        (ToFile(None), r"--filename: `None` has the type `NoneType`. Give a text"),
    ],
)
def test_values_of_a_wrong_type_are_rejected_in_python(stage, message):
    source = FromPeople(people={"ann": 3})
    stages = [source, TrainAe(), Preprocess(), InfPytorch(), AddScores(), stage]
    with pytest.raises(UsageError, match=message):
        Pipeline(stages).validate()


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([FromPeople, Serialize()], None, r"Stage 1 is the class `FromPeople`. Give a stage: `Fr"),
        ([FromPeople(), None], None, r"Stage 2 has the type `NoneType`. Give a list of stages"),
        ("from-people", None, r"Stage 1 has the type `str`. Give a list of stages"),
        ([FromPeople()], {"num_threads": 1}, r"The options have the type `dict`. Give `PipelineOp"),
        ([FromPeople()], PipelineOptions(num_threads="2"), r"--num_threads: `'2'` has the type"),
        ([FromPeople()], PipelineOptions(timezone=None), r"--timezone: `None` has the type"),
    ],
)
def test_a_pipeline_takes_stages_and_options_only(stages, options, message):
    with pytest.raises(UsageError, match=message):
        Pipeline(stages, options).validate()


def test_an_option_takes_paths_and_the_numbers_of_numpy(tmp_path):
    source = FromCloudtrail(input_glob=[tmp_path])
    chain = [source, TrainAe(seed=np.int64(3)), Preprocess(), InfPytorch(), AddScores()]
    chain += [Filter(threshold=np.float32(2.5)), Serialize(), ToFile(tmp_path / "out.csv")]
    pipeline = Pipeline(chain, PipelineOptions(state=tmp_path / "state"))
    pipeline.validate()
    assert pipeline.stages[0].input_glob == (str(tmp_path),)
    assert pipeline.stages[1].seed == 3
    assert type(pipeline.stages[5].threshold) is float
    assert pipeline.stages[-1].filename == str(tmp_path / "out.csv")
    assert pipeline.options.state == str(tmp_path / "state")


def test_an_option_that_can_be_repeated_takes_one_text_or_a_list():
    written = []
    for label in (("risk",), "risk", ["risk"]):
        pipeline = Pipeline([FromPeople(people={"ann": 3}), TrainAe(), Preprocess(), InfPytorch()])
        pipeline.stages += (AddScores(label=label), Timeseries(detector="RATE"))
        pipeline.validate()
        written.append(pipeline.stages[-2:])
    assert written[0] == written[1] == written[2]
    assert written[0] == (AddScores(label=("risk",)), Timeseries(detector="rate"))
