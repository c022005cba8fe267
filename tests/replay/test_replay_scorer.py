import json
from datetime import timedelta

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.replay.evaluation import run_replay
from morpheus.replay.injection import EVASION_LEVELS, ReplayConfig, load_techniques
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.train_ae import TrainAe

USER, ARN = "userIdentityarn", "arn:aws:iam::999988887777:user/ann"
NAMES = ["stop-trail", "enumerate-everything", "create-access-key"]


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """A folder of three techniques."""
    folder = tmp_path_factory.mktemp("techniques")
    for technique in load_techniques():
        if technique.name in NAMES:
            text = json.dumps({"title": technique.title, "Records": technique.records})
            (folder / f"{technique.name}.json").write_text(text)
    return folder


def score(glob, few, **options):
    config = ReplayConfig(
        input_glob=str(glob),
        techniques=str(few),
        **{"num_threads": 1, "userid_column_name": USER, **options},
    )
    batches, _ = run_replay(config)
    return {batch.user: batch for batch in batches}


def injected(batch, name):
    return batch.table.to_frame().filter(technique=name)


def test_each_technique_is_injected_at_each_level_into_days_not_trained_on(ann_log, few):
    [batch] = score(ann_log, few).values()
    own = batch.table.to_frame().filter(pl.col("technique").is_null())
    assert own[TIME].dt.date().n_unique() == 7
    tried = batch.table.to_frame().drop_nulls("technique").select("technique", "grade").unique()
    assert set(tried.rows()) == {(name, grade) for name in NAMES for grade in EVASION_LEVELS}
    assert not batch.table["score"].has_nulls()
    assert batch.table["score"].is_finite().all()


def test_injected_events_score_above_the_users_own(ann_log, few):
    [batch] = score(ann_log, few, grade=("recorded",)).values()
    own = batch.table.to_frame().filter(pl.col("technique").is_null())["score"]
    for name in NAMES:
        assert injected(batch, name)["score"].max() > own.max()


def test_the_score_of_a_technique_does_not_depend_on_other_techniques(ann_log, few, tmp_path):
    [combined] = score(ann_log, few).values()
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.json").write_text((few / f"{name}.json").read_text())
        [alone] = score(ann_log, folder).values()
        assert injected(alone, name).equals(injected(combined, name))


def test_the_score_of_a_level_does_not_depend_on_other_levels(ann_log, few):
    [all_levels] = score(ann_log, few).values()
    [hours] = score(ann_log, few, grade=("hours",)).values()
    scored = hours.table.to_frame().drop_nulls("technique")
    assert scored.equals(all_levels.table.to_frame().filter(grade="hours"))


def test_training_files_are_trained_on_and_the_input_is_injected_into(ann_log, few, tmp_path):
    lines = ann_log.read_text().splitlines()
    for name, part in (("before", lines[:600]), ("after", lines[600:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    before, after = (str(tmp_path / f"{name}.jsonl") for name in ("before", "after"))
    [batch] = score(after, few, train_data_glob=before).values()
    assert batch.table["technique"].null_count() == len(lines) - 600


def test_a_user_without_enough_history_is_skipped_with_a_reason(ann_log, few):
    [batch] = score(ann_log, few, train_min_history=5000).values()
    assert batch.table.to_frame().is_empty()
    assert batch.unscored_reason == "630 events of history, 5000 needed"


def test_a_user_without_events_to_inject_into_is_skipped_with_a_reason(ann_log, few, tmp_path):
    other = tmp_path / "bob.jsonl"
    first = ann_log.read_text().splitlines()[0]
    other.write_text(first.replace("user/ann", "user/bob"))
    batches = score(other, few, train_data_glob=str(ann_log))
    reasons = {user.rpartition("/")[2]: batch.unscored_reason for user, batch in batches.items()}
    assert reasons == {
        "ann": "no event to inject among",
        "bob": "0 events of history, 300 needed",
    }


def test_a_user_without_history_uses_the_global_model(ann_log, few, tmp_path):
    text = ann_log.read_text().replace("user/ann", "user/bob")
    (tmp_path / "bob.jsonl").write_text("\n".join(text.splitlines()[-60:]))
    for user in ("ann", "cy"):
        (tmp_path / f"{user}.jsonl").write_text(text.replace("user/bob", f"user/{user}"))
    bob = score(tmp_path, few, grade=("recorded",))[ARN.replace("ann", "bob")]
    assert bob.card.training_data_scope != "user"
    assert injected(bob, "stop-trail").height == 2


def test_the_population_sample_has_no_event_of_the_injected_days(ann_log, few, tmp_path):
    lines = ann_log.read_text().splitlines()
    for name, part in (("all", lines), ("before", lines[:630]), ("after", lines[630:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    before, after = (str(tmp_path / f"{name}.jsonl") for name in ("before", "after"))
    [split] = score(tmp_path / "all.jsonl", few).values()
    [apart] = score(after, few, train_data_glob=before).values()
    own = pl.col("technique").is_null()
    assert split.table.to_frame().filter(own).equals(apart.table.to_frame().filter(own))


def test_equal_seeds_give_equal_scores_and_different_seeds_different_times(ann_log, few):
    first, again, other = (score(ann_log, few, seed=seed).popitem()[1] for seed in (1, 1, 2))
    assert first.table.to_frame().equals(again.table.to_frame())
    times, other_times = (injected(batch, "stop-trail")[TIME].to_list() for batch in (first, other))
    assert times != other_times
    assert times[1] - times[0] == other_times[1] - other_times[0] == timedelta(seconds=33)


def test_worker_processes_give_the_same_scores(ann_log, few, tmp_path):
    for n in range(10):
        text = ann_log.read_text().replace("user/ann", f"user/ann-{n}")
        (tmp_path / f"{n}.jsonl").write_text(text)
    options = {"grade": ("agent",), "train_min_history": 600}
    single, parallel = (score(tmp_path, few, num_threads=n, **options) for n in (1, 2))
    assert len(single) == 10
    assert single.keys() == parallel.keys()
    assert all(
        parallel[user].table.to_frame().equals(batch.table.to_frame())
        for user, batch in single.items()
    )


def test_saved_models_are_used_without_training(ann_log, few, tmp_path):
    lines = ann_log.read_text().splitlines()
    before, after, models = (tmp_path / name for name in ("before.json", "after.json", "models"))
    before.write_text("\n".join(lines[:600]))
    after.write_text("\n".join(lines[600:]))
    train = TrainAe(train_data_glob=str(before), models_output_filename=str(models))
    options = PipelineOptions(userid_column_name=USER, num_threads=1)
    Pipeline([FromCloudtrail(input_glob=str(after)), train], options).run()
    [trained] = score(after, few, train_data_glob=str(before)).values()
    [loaded] = score(after, few, pretrained_filename=str(models)).values()
    own = pl.col("technique").is_null()
    assert loaded.table.to_frame().filter(own).equals(trained.table.to_frame().filter(own))
    assert loaded.table.height == trained.table.height


def test_actors_and_derived_columns_can_be_used(ann_log, few, tmp_path):
    columns = tmp_path / "columns.txt"
    columns.write_text("eventName\nverbclass\nnew:eventName\nhourkind\n")
    options = {"userid_column_name": "@actor", "columns_file": str(columns)}
    [batch] = score(ann_log, few, grade=("hours",), **options).values()
    assert batch.user == "ann@999988887777"
    own = batch.table.to_frame().filter(pl.col("technique").is_null())["score"]
    assert injected(batch, "stop-trail")["score"].max() > own.max()
