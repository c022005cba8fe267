"""The golden commands, as data: what you type, its inputs, and the files that it must write.

Version 0.1 wrote times in JSON as milliseconds since 1970. Commands ask for that with --json_times.
"""

from __future__ import annotations

from dataclasses import dataclass

USER = "userIdentitysessionContextsessionIssueruserName"
SCORED = "preprocess inf-pytorch add-scores"
ALL_LABELS = "--label=ae_anomaly_score --label=risk --label=pvalue --label=zscore"
RUN = f"run --num_threads=1 pipeline-ae --userid_column_name={USER}"
LESSONS = f'{RUN} from-cloudtrail --input_glob="data/input-data/*.csv"'
LESSONS_MODELS = "train-ae --pretrained_filename=lesson-models"
FLEET_TRAINING = "--train_min_history=60 --train_epochs=4 --seed=42"
OWN_TRAINING = "--train_min_history=30 --train_epochs=3 --seed=5"
FLEET_MODELS = "train-ae --pretrained_filename=fleet-models"
SIGN_INS = "--train_min_history=60 --seed=3"


@dataclass(frozen=True)
class Command:
    """Command lines to run one after the other in a folder of their own.

    Attributes:
        name: Name of the test, and of the folder of results.
        inputs: Folders whose content is copied into the folder.
        lines: What follows `morpheus`, as in a shell.
        outputs: Files, or folders of files, that are compared.
        exit_codes: Of each line. All 0 by default.
        prepares: Folder that it writes and that becomes an input of other commands.
    """

    name: str
    inputs: tuple[str, ...]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    exit_codes: tuple[int, ...] = ()
    prepares: str = ""


PREPARATIONS = (
    Command(
        "train-lessons-and-save",
        ("lessons",),
        (
            f"""
            {LESSONS} train-ae --train_data_glob='data/training-data/*.csv' --seed=42
            --models_output_filename=lesson-models {SCORED} {ALL_LABELS}
            serialize --include=eventID --include=ae_ --include=risk --include=pvalue
            to-file --filename=trained.csv
            """,
        ),
        ("trained.csv",),
        prepares="lesson-models",
    ),
    Command(
        "train-fleet-and-save",
        ("fleet",),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=csv/scored
            train-ae --train_data_glob=json/training {FLEET_TRAINING}
            --models_output_filename=fleet-models {SCORED} {ALL_LABELS} --label=rung
            serialize --include=eventName --include=ae_ --include=risk --include=pvalue
            --include=rung to-file --filename=trained.csv
            """,
        ),
        ("trained.csv",),
        prepares="fleet-models",
    ),
)
"""They run first: the fingerprints that they save become inputs of other commands."""

COMMANDS = (
    Command(
        "lesson-000-all-users",
        ("lessons",),
        (
            f"""
            --log_level=DEBUG run --num_threads=1 pipeline-ae --userid_column_name={USER}
            from-cloudtrail --input_glob="data/input-data/*.csv"
            train-ae --train_data_glob="data/training-data/*.csv" --seed 42
            preprocess inf-pytorch add-scores
            timeseries --resolution=10m --zscore_threshold=8.0
            serialize to-file --filename="data/output/output.csv" --overwrite
            """,
        ),
        ("data/output/output.csv",),
    ),
    Command(
        "lesson-001-one-user",
        ("lessons",),
        (
            f"""
            run --num_threads=1 pipeline-ae --userid_filter="user123"
            --userid_column_name="{USER}"
            from-cloudtrail --input_glob="data/input-data/*.csv"
            train-ae --train_data_glob="data/training-data/*.csv" --seed 42
            preprocess inf-pytorch add-scores
            serialize to-file --filename="data/output/output.csv" --overwrite
            """,
        ),
        ("data/output/output.csv",),
    ),
    Command(
        "compat-22.11",
        ("lessons", "lesson-models"),
        (
            f"""
            run --num_threads=1 pipeline-ae --userid_column_name={USER} --compat 22.11
            from-cloudtrail --input_glob='data/input-data/*.csv' {LESSONS_MODELS} {SCORED}
            timeseries --resolution=1h --min_window='2 d' --zscore_threshold=3
            serialize --include=eventID --include=.*loss --include=.*z --include=ts_
            to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "labels",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} {ALL_LABELS} --label=abs_zscore --label=max_abs_z
            --label=rung --label=own_share --label=eventName_z_loss --prefix=m_
            serialize --exclude=request --exclude=response to-file --filename=labels.json
            --json_times=epoch_ms
            """,
        ),
        ("labels.json",),
    ),
    Command(
        "classes-and-reasons",
        ("lessons", "lesson-models", "lists"),
        (
            f"""
            run --num_threads=1 pipeline-ae --userid_column_name={USER} --labels_file=labels.txt
            from-cloudtrail --input_glob='data/input-data/*.csv' {LESSONS_MODELS} {SCORED}
            add-class --label=zscore --threshold=2 explain
            serialize --exclude=request --exclude=response --exclude=user --exclude=explanation
            to-file --filename=reasons.csv --include-index-col=false
            """,
        ),
        ("reasons.csv",),
    ),
    Command(
        "explain-every-column",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} --label=risk --label=pvalue
            explain --all_columns --top=5 --threshold=25 --prefix=why_
            filter --label=risk --threshold=12 serialize to-file --filename=why.jsonl
            --json_times=epoch_ms
            """,
        ),
        ("why.jsonl",),
    ),
    Command(
        "timeseries-and-explain-fleet",
        ("fleet", "fleet-models"),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=parquet/scored {FLEET_MODELS} {SCORED} --label=risk
            timeseries --resolution=1h --min_window='18 h' --hot_start --zscore_threshold=5
            explain serialize --include=eventName --include=risk --include=ts_ --include=reason
            --include=top_columns to-file --filename=reasons.csv.gz
            """,
        ),
        ("reasons.csv.gz",),
    ),
    Command(
        "filter-by-threshold",
        ("lessons",),
        (
            f"""
            {LESSONS} train-ae --train_data_glob='data/training-data/*.csv' --seed 42 {SCORED}
            --label=risk filter --label=risk --threshold=30
            serialize to-file --filename=o.csv --overwrite
            """,
        ),
        ("o.csv",),
    ),
    Command(
        "filter-by-budget",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} --label=ae_anomaly_score --label=risk
            explain filter --alerts_per_day=1 serialize to-file --filename=alerts.csv
            """,
        ),
        ("alerts.csv",),
    ),
    Command(
        "fleet-budget-report",
        ("fleet", "fleet-models"),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=json/scored {FLEET_MODELS} {SCORED} {ALL_LABELS}
            timeseries --resolution=1h explain filter --alerts_per_day=1
            serialize to-file --filename=alerts.json --json_times=epoch_ms
            to-report --filename=report.html
            """,
        ),
        ("alerts.json", "report.html"),
    ),
    Command(
        "suppressions",
        ("lessons", "lesson-models", "verdicts"),
        (
            f"""
            tools suppress verdicts.json --userid_column_name={USER}
            """,
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} --label=risk
            filter --alerts_per_day=3 --suppressions=suppressions.toml
            --suppressions=by-hand.toml serialize to-file --filename=alerts.csv
            """,
        ),
        ("suppressions.toml", "alerts.csv"),
        (1, 0),
    ),
    Command(
        "timeseries-two-sided",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED}
            timeseries --resolution=10m --min_window='6 h' --hot_start --cold_end
            --filter_percent=80 --zscore_threshold=4
            serialize --include=eventTime --include=ae_ --include=ts_
            to-file --filename=flags.csv
            """,
        ),
        ("flags.csv",),
    ),
    Command(
        "to-parquet",
        ("fleet", "fleet-models"),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=parquet/scored {FLEET_MODELS} {SCORED} {ALL_LABELS}
            filter --label=risk --threshold=5
            serialize --exclude=eventID --exclude=userIdentity --exclude=response
            to-parquet --folder=by-day --partition_by=date --partition_by=user
            to-file --filename=rows.parquet
            """,
        ),
        ("by-day", "rows.parquet"),
    ),
    # With `monitor`, `explain` computes all rows, as 0.1 did: its products depend on their number.
    Command(
        "to-ocsf-and-to-ecs",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} {ALL_LABELS} timeseries --resolution=10m explain
            monitor filter --label=risk --threshold=12 to-ocsf --filename=findings.jsonl
            to-ocsf --filename=findings.parquet to-ecs --filename=alerts.jsonl.gz
            serialize to-file --filename=alerts.jsonl --json_times=epoch_ms
            """,
        ),
        ("findings.jsonl", "findings.parquet", "alerts.jsonl.gz", "alerts.jsonl"),
    ),
    Command(
        "to-report",
        ("lessons", "lesson-models"),
        (
            f"""
            {LESSONS} {LESSONS_MODELS} {SCORED} {ALL_LABELS} timeseries --resolution=10m explain
            serialize to-file --filename=all.csv to-report --filename=report.html
            --alerts_per_day=1
            """,
            """
            report all.csv --models=lesson-models --filename=from-file.html --alerts_per_day=1
            """,
        ),
        ("report.html", "from-file.html"),
    ),
    Command(
        "models-read",
        ("fleet", "fleet-models"),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=json/scored {FLEET_MODELS} {SCORED} {ALL_LABELS}
            --label=rung serialize --include=eventName --include=ae_ --include=risk
            --include=pvalue --include=rung to-file --filename=pretrained.csv
            """,
        ),
        ("pretrained.csv",),
    ),
    Command(
        "trained-from-the-input",
        ("lessons",),
        (
            f"""
            run --num_threads=2 pipeline-ae --userid_column_name={USER} --use_generic_model
            from-cloudtrail --input_glob=data/input-data
            train-ae --train_min_history=320
            --train_max_history=600 {SCORED}
            --label=ae_anomaly_score --label=risk --label=rung
            serialize --include=eventID --include=ae_ --include=risk --include=rung
            to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "derived-columns",
        ("fleet", "lists"),
        (
            f"""
            run --num_threads=1 pipeline-ae --columns_file=derived.txt
            --userid_column_name=@actor from-cloudtrail --input_glob=json/scored
            train-ae --train_data_glob=json/training {OWN_TRAINING} {SCORED}
            --label=ae_anomaly_score --label=risk serialize --exclude=eventID
            --exclude=userIdentity --exclude=response to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "bad-records-and-strangers",
        ("messy", "fleet-models"),
        (
            f"""
            {RUN} from-cloudtrail --input_glob=records.jsonl.gz --bad_record=skip
            --start_time=2025-03-17T06:00:00Z --end_time=2025-03-18T12:00:00Z
            {FLEET_MODELS} {SCORED} --label=ae_anomaly_score --label=risk --label=rung explain
            serialize --exclude=explanation to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "from-azure",
        ("azure",),
        (
            f"""
            run --num_threads=1 pipeline-ae from-azure --input_glob=signins.json
            train-ae --train_data_glob=training.jsonl.gz {SIGN_INS} {SCORED}
            --label=ae_anomaly_score --label=risk --label=pvalue explain
            filter --label=risk --threshold=3 to-ecs --filename=ecs.jsonl
            to-ocsf --filename=ocsf.jsonl serialize to-file --filename=output.csv
            """,
        ),
        ("ecs.jsonl", "ocsf.jsonl", "output.csv"),
    ),
    Command(
        "from-duo",
        ("duo",),
        (
            f"""
            run --num_threads=1 pipeline-ae --userid_column_name=@actor
            from-duo --input_glob=authentications.json --all_columns
            train-ae --train_data_glob=training.jsonl.gz {SIGN_INS} {SCORED}
            --label=ae_anomaly_score --label=risk explain --prefix=m_
            serialize --exclude=m_explanation to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "from-ocsf",
        ("ocsf",),
        (
            f"""
            run --num_threads=1 pipeline-ae --userid_column_name=@actor
            from-ocsf --input_glob=scored --start_time=2025-03-17 --duration=2d
            train-ae --train_data_glob=training {OWN_TRAINING} --models_output_filename=models
            {SCORED} --label=ae_anomaly_score --label=risk serialize to-file --filename=lake.csv
            """,
            f"""
            run --num_threads=1 pipeline-ae --userid_column_name=@actor
            from-ocsf --input_glob=scored.jsonl.gz train-ae --pretrained_filename=models
            {SCORED} --label=ae_anomaly_score --label=risk explain filter --alerts_per_day=2
            serialize --exclude=metadatauid --exclude=explanation to-file --filename=lines.csv
            """,
        ),
        ("lake.csv", "lines.csv"),
    ),
    Command(
        "from-file-with-a-schema",
        ("vpn",),
        (
            f"""
            run --num_threads=1 pipeline-ae --columns_file=vpn.toml --userid_column_name=@actor
            from-file --input_glob=sessions.csv train-ae --train_min_history=60 {SCORED}
            --label=ae_anomaly_score --label=risk explain
            serialize --exclude=explanation to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "from-file-with-a-shipped-schema",
        ("okta",),
        (
            f"""
            run --num_threads=1 pipeline-ae --columns_file=okta.toml --userid_column_name=@actor
            --feature_scaler=gauss_rank from-file --filename=log.json.gz
            train-ae --train_min_history=60 {SCORED}
            --label=ae_anomaly_score --label=risk serialize to-file --filename=output.csv
            """,
        ),
        ("output.csv",),
    ),
    Command(
        "from-file-with-a-list-of-columns",
        ("plain",),
        (
            f"""
            run --num_threads=1 pipeline-ae --columns_file=columns.txt --userid_column_name=who
            --timestamp_column_name=when from-file --input_glob=visits.parquet
            train-ae --train_min_history=60 {SCORED} --label=ae_anomaly_score --label=risk
            --label=size_z_loss timeseries --resolution=1h --hot_start --zscore_threshold=2
            explain filter --label=risk --threshold=2
            serialize to-file --filename=output.jsonl.gz --json_times=epoch_ms
            """,
        ),
        ("output.jsonl.gz",),
    ),
    Command(
        "attack-replay",
        ("lessons",),
        (
            f"""
            tools replay --num_threads=1 --input_glob=data/training-data/role-g.csv
            --userid_column_name={USER} --filename=trials.csv
            """,
        ),
        ("trials.csv",),
    ),
)
