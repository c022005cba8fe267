"""The chain: what is refused before anything is read, and what comes out when it runs."""

from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import pytest

from morpheus.columns import INDEX, ROW, SCORE, TIME
from morpheus.core.batch import Events
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.models.fit import UserHistory
from morpheus.pipeline import Pipeline, Plan
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_report import ToReport
from morpheus.sinks.validate import Validate
from morpheus.sources.base import Source
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.monitor import Monitor
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from morpheus.testing import make_events, make_scored, run_stage
from people import day, times


def events(count, seed=0):
    frame = day(count, seed).with_columns(
        pl.int_range(count).alias(ROW), pl.int_range(count).alias(INDEX), times(count).alias(TIME)
    )
    return frame.select(ROW, INDEX, pl.exclude(ROW, INDEX, TIME), TIME)


@dataclass(frozen=True)
class FromPeople(Source):
    """Events of people held in memory: a user's events, and the history of all."""

    name = "from-people"
    default_columns = "columns_ae.txt"

    people: dict[str | None, int] = field(default_factory=dict)
    history_events: int = 400

    def events(self, training_input, metrics):
        for number, (user, count) in enumerate(self.people.items()):
            metrics.input.read += count
            past = events(self.history_events, 100 + number) if training_input else None
            yield Events(user=user, frame=events(count, number), history=past)


@pytest.fixture
def columns(tmp_path):
    path = tmp_path / "columns.txt"
    path.write_text("action\naddress\nagent\nkind\n")
    return PipelineOptions(columns_file=str(path), num_threads=1, labels=(SCORE,))


def scoring(**options):
    return [TrainAe(**options), Preprocess(), InfPytorch(), AddScores(), Serialize()]


@dataclass(frozen=True)
class Collect(Serialize):
    """A sink into a list."""

    name = "collect"
    scope = "global"
    rows: list = field(default_factory=list)

    def process(self, batch, state):
        self.rows.append(batch)
        yield batch


def run(people, settings, *stages, **options):
    sink = []
    stages = stages or scoring(**options)
    summary = Pipeline([FromPeople(people=people), *stages, Collect(rows=sink)], settings).run()
    return summary, sink


def test_a_user_without_a_model_is_scored_nan_counted_and_named_never_dropped(columns):
    summary, rows = run({"ann": 50, None: 7}, columns, train_data_glob="x", train_min_history=401)
    assert sum(batch.frame.height for batch in rows) == 57
    assert all(batch.frame[SCORE].is_nan().all() for batch in rows)
    assert summary.unscored == {
        "ann": "400 events of history, 401 needed",
        None: "no value in `userIdentityaccountId`",
    }
    assert summary.users == {"ann": 50, None: 7}


def test_all_events_are_scored_once_and_in_order(columns):
    summary, rows = run({"ann": 50, "bob": 60}, columns, train_data_glob="x")
    assert summary.scored == 110
    assert [batch.user for batch in rows] == ["ann", "bob"]
    assert set(summary.cards) == {"ann", "bob"}
    assert np.isfinite(rows[0].frame[SCORE].to_numpy()).all()


def test_without_training_files_users_are_learnt_from_the_input(columns):
    summary, rows = run({"ann": 350, "bob": 20}, columns)
    assert summary.scored == 350
    assert summary.unscored == {"bob": "20 events of history, 300 needed"}
    assert rows[0].card.events == 350


def test_only_the_latest_events_are_learnt_when_asked(columns):
    _, rows = run({"ann": 10}, columns, train_data_glob="x", train_max_history=333)
    assert rows[0].card.events == 333


def test_saved_fingerprints_score_as_the_run_that_saved_them(columns, tmp_path):
    folder = str(tmp_path / "models")
    people = {"ann": 50, "bob": 60}
    first, rows = run(people, columns, train_data_glob="x", models_output_filename=folder)
    second, again = run(people, columns, pretrained_filename=folder)
    assert [b.frame.equals(a.frame) for b, a in zip(rows, again, strict=True)] == [True, True]
    assert first.cards == second.cards


def test_a_user_unknown_to_saved_fingerprints_is_named(columns, tmp_path):
    folder = str(tmp_path / "models")
    run({"ann": 5}, columns, train_data_glob="x", models_output_filename=folder)
    summary, _ = run({"eve": 5}, columns, pretrained_filename=folder)
    assert summary.unscored == {"eve": "no fingerprint"}


def test_users_with_history_and_no_events_are_learnt_only_to_be_saved(columns, tmp_path):
    folder = str(tmp_path / "models")
    quiet, _ = run({"ann": 0}, columns, train_data_glob="x")
    saved, _ = run({"ann": 0}, columns, train_data_glob="x", models_output_filename=folder)
    assert set(quiet.cards) == set()
    assert set(saved.cards) == {"ann"}
    assert saved.users == {}


def test_worker_processes_give_what_one_process_gives(columns):
    people = {f"user{n}": 30 + n for n in range(12)}
    one, rows = run(people, columns, train_data_glob="x", train_epochs=2)
    from dataclasses import replace  # noqa: PLC0415 - only here

    two, others = run(people, replace(columns, num_threads=2), train_data_glob="x", train_epochs=2)
    assert [batch.user for batch in others] == list(people)
    assert all(b.frame.equals(a.frame) for b, a in zip(rows, others, strict=True))
    assert one.cards == two.cards
    assert one.scored == two.scored


@dataclass(frozen=True)
class Last(Collect):
    """A sink that has something left to do, and cannot."""

    error: Exception = field(default_factory=lambda: TransientError("nobody there"))

    def commit(self, metrics):
        self.rows.append(metrics.users.total())
        raise self.error


def test_events_that_no_sink_takes_are_not_called_written(columns, tmp_path):
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize()]
    assert not Pipeline(chain, columns).run().has_sink
    sink = ToFile(filename=str(tmp_path / "rows.csv"))
    assert Pipeline([*chain, sink], columns).run().has_sink


def test_one_file_is_not_written_by_two_sinks(columns, tmp_path):
    sinks = [ToFile(filename=f"{tmp_path}/rows.csv"), ToReport(filename=f"{tmp_path}/./rows.csv")]
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize(), *sinks]
    with pytest.raises(UsageError, match=r"to-report: .*rows.csv` is written by `to-file` already"):
        Pipeline(chain, columns).validate()


def test_a_sink_that_fails_at_the_end_takes_neither_the_summary_nor_the_other_sinks_end(
    columns, caplog
):
    told, ended = [], []
    sinks = [Last(rows=ended), Last(rows=ended, error=OSError("disk full"))]
    chain = [FromPeople(people={"ann": 4}), TrainAe(), Serialize(), *sinks]
    with pytest.raises(TransientError, match="nobody there"):
        Pipeline(chain, columns).run(told.append)
    [summary] = told
    assert (summary.input.read, summary.users.total()) == (4, 4)
    assert summary.seconds > 0
    assert ended[-2:] == [4, 4]
    assert caplog.messages == ["disk full"]


WRONG = [
    ([], r"The chain is empty. Begin with a source"),
    ([TrainAe()], r"begins with `train-ae`, which reads no logs. Put a source such as"),
    ([TrainAe(), FromPeople()], r"Stage 1 `train-ae` stands before the source `from-people`"),
    ([FromPeople(), FromPeople()], r"more than one source: `from-people` and `from-people`"),
    (
        [FromPeople(), Preprocess()],
        (
            r"Stage 2 `preprocess` takes Fingerprinted, but stage 1 `from-people` gives Events. "
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


@pytest.mark.parametrize(("chain", "message"), WRONG)
def test_a_wrong_chain_is_refused_naming_the_stages_and_the_fix(chain, message):
    with pytest.raises(UsageError, match=message):
        Pipeline(chain).validate()


def test_a_stage_that_watches_moves_behind_the_users_segment_and_sinks_see_the_whole_stream():
    chain = [FromPeople(), Monitor(), TrainAe(), Monitor(), Preprocess(), InfPytorch()]
    plan = Plan.from_stages([*chain, AddScores(), Timeseries(), Serialize(), Collect()])
    assert [s.name for s in plan.head] == ["monitor"]
    assert [s.name for s in plan.segment][::5] == ["train-ae", "serialize"]
    assert [s.name for s in plan.tail] == ["monitor", "collect"]


def test_a_stage_that_looks_at_the_whole_stream_stays_where_it_is():
    chain = [FromPeople(), TrainAe(), Preprocess(), InfPytorch(), AddScores()]
    plan = Plan.from_stages([*chain, Validate(), Monitor(), Serialize(), Collect()])
    assert [s.name for s in plan.segment][::3] == ["train-ae", "add-scores"]
    assert [s.name for s in plan.tail] == ["validate", "monitor", "serialize", "collect"]
    plan = Plan.from_stages([FromPeople(), Validate(), TrainAe(), Collect()])
    assert [s.name for s in plan.segment] == ["train-ae"]


def test_a_users_stage_behind_it_is_still_called_anew_for_each_user():
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


def test_the_source_of_the_training_files_is_that_of_the_chain():
    upstream = "morpheus.stages.input.duo_source_stage.DuoSourceStage"
    TrainAe(source_stage_class=upstream, options=PipelineOptions(source="from-duo")).validate()
    TrainAe(source_stage_class="from-duo", options=PipelineOptions(source="from-duo")).validate()
    with pytest.raises(UsageError, match="is `from-duo`, but the chain begins with `from-azure`"):
        TrainAe(
            source_stage_class=upstream, options=PipelineOptions(source="from-azure")
        ).validate()
    with pytest.raises(UsageError, match=r"there is no source `a\.Other`"):
        TrainAe(source_stage_class="a.Other").validate()


def test_the_runs_seed_is_that_of_a_stage_that_has_none():
    frame = make_events(range(40), action=["get", "put"] * 20)
    history = UserHistory("ann", frame, frame[TIME])

    def trained(**seeds):
        settings = PipelineOptions(columns=("action",), manual_seed=seeds.pop("manual_seed", None))
        [fingerprint] = TrainAe(options=settings, **seeds).train([history])
        return fingerprint.card.seed

    assert trained() == 0
    assert trained(manual_seed=7) == 7
    assert trained(manual_seed=7, seed=3) == 3
    assert trained(manual_seed=7, seed=0) == 0


def test_the_chain_tells_what_flows_between_its_stages():
    chain = [FromPeople(), TrainAe(), Preprocess()]
    given = ["Events", "Fingerprinted", "Encoded"]
    assert Pipeline(chain).links() == list(zip((s.name for s in chain), given, strict=True))


def test_pretrained_and_saving_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="Leave one of the two out"):
        TrainAe(pretrained_filename=str(tmp_path), models_output_filename="m").validate()


def test_a_model_file_of_another_program_is_never_read(tmp_path):
    path = tmp_path / "models.pkl"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="never read: they can run code"):
        TrainAe(pretrained_filename=str(path)).validate()


def test_logs_with_none_of_the_feature_columns_are_refused(tmp_path):
    path = tmp_path / "columns.txt"
    path.write_text("nothing\n")
    with pytest.raises(UsageError, match=r"None of the feature columns .* action, address"):
        run({"ann": 5}, PipelineOptions(columns_file=str(path)), train_data_glob="x")


@pytest.mark.parametrize(
    "behind",
    [
        (AddScores(label=("risk", "zscore"), prefix="again_"),),
        (Explain(),),
        (Filter(threshold=1.0, label=("zscore",)),),
    ],
    ids=["add-scores", "explain", "filter"],
)
def test_what_comes_behind_a_look_at_the_whole_stream_knows_the_users_still(
    columns, tmp_path, behind
):
    expected = tmp_path / "any.csv"
    expected.write_text("a\n1\n")
    people, outcomes = {f"user{n}": 5 for n in range(12)}, []
    looked = Validate(val_file_name=str(expected))
    for threads, stages in ((1, (looked, *behind)), (2, (looked, *behind)), (1, behind)):
        chain = [*scoring(train_data_glob="x", train_epochs=1)[:-1], *stages]
        _, rows = run(people, replace(columns, num_threads=threads), *chain)
        outcomes.append(pl.concat(batch.frame for batch in rows))
    assert outcomes[0].equals(outcomes[1])
    assert outcomes[0].equals(outcomes[2])
    assert outcomes[0].height
    assert not any(column.is_nan().any() for column in outcomes[0] if column.dtype.is_float())


def test_fingerprints_are_let_go_of_once_nobody_needs_them():
    chain = scoring(train_data_glob="x")[:-1]
    batches = Plan.from_stages([FromPeople(), *chain, Serialize(), Monitor(), ToFile()])
    assert [stage.name for stage in batches.segment][-2:] == ["serialize", "light"]
    explained = Plan.from_stages([FromPeople(), *chain, Validate(), Explain(), ToFile()])
    assert explained.segment[-1].name == "add-scores"
