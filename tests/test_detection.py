"""`morpheus.detect` finds in a frame what `morpheus detect` finds in a file of the same events."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import morpheus
from cli.test_detect import RECORDS, repeat_record
from morpheus import Detection, Fingerprints
from morpheus.columns import SCORE
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.detection import UnknownEventError, choose_budget
from morpheus.errors import UsageError
from morpheus.sources.dataframe import as_polars, recognise_frame
from morpheus.sources.results import LogKind, list_kinds

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "data"
ROLE_USER = "userIdentitysessionContextsessionIssueruserName"
ROW = re.compile(r"^(\d+) (\w+) +(\S+) +(\d{4}-\d\d-\d\d) +([\d,]+) +(.*?) *$", re.MULTILINE)
SHOWN = ["severity", "severity_name", "user", "day", "count", "reason"]


def execute(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "morpheus", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def read_fleet(folder: Path) -> list[dict[str, Any]]:
    """Records of a generated company of twelve, in the order of the files."""
    script = ROOT / "examples" / "make_fleet.py"
    words = [sys.executable, str(script), "--into", str(folder), "--form=json"]
    words += ["--users", "12", "--days", "28", "--training", "14"]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    records = []
    for path in sorted(folder.rglob("*.json.gz")):
        with gzip.open(path) as file:
            records += json.load(file)["Records"]
    return records


class Fleet:
    """A company, what the command finds in it, and what Python finds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = read_fleet(folder / "bucket")
        (folder / "logs").mkdir()
        (folder / "logs" / "log.json").write_text(json.dumps({"Records": self.records}))
        self.done = execute(folder, "detect", "logs")
        assert self.done.returncode == 0, self.done.stderr
        self.alerts = pl.read_ndjson(
            folder / "morpheus-results" / "alerts.jsonl", infer_schema_length=None
        )
        self.frame = pd.json_normalize(self.records)
        self.detection = morpheus.detect(self.frame)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"))


def read_examples() -> pd.DataFrame:
    frames = [pd.read_csv(path, index_col=0) for path in sorted(EXAMPLES.glob("*/*.csv"))]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def lesson() -> Detection:
    return morpheus.detect(read_examples())


# The same as on the command line.


def test_the_incidents_of_a_frame_are_those_of_the_command(fleet: Fleet) -> None:
    found = as_polars(fleet.detection.incidents())
    stated = fleet.alerts.group_by(id="incident_id").agg(
        pl.col("incident_severity").max().alias("severity"),
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("actor").first().alias("user"),
        pl.col("eventTime").min().alias("start"),
        pl.col("eventTime").max().alias("end"),
    )
    times = [pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%SZ") for name in ("start", "end")]
    ours = found.select("id", "severity", "count", "user", *times)
    assert len(fleet.detection) == stated.height > 5
    assert ours.sort("id").equals(stated.sort("id"))


def test_the_incidents_are_in_the_order_of_the_terminal_with_its_words(fleet: Fleet) -> None:
    printed = [
        (int(severity), name, user, day, int(count.replace(",", "")), reason)
        for severity, name, user, day, count, reason in ROW.findall(fleet.done.stdout)
    ]
    found = as_polars(fleet.detection.incidents()).with_columns(
        pl.col("day").dt.strftime("%Y-%m-%d")
    )
    assert len(printed) == min(15, len(fleet.detection))
    assert found.select(SHOWN).rows()[: len(printed)] == printed


def test_the_alerts_are_the_events_of_the_alerts_file(fleet: Fleet) -> None:
    ours = as_polars(fleet.detection.alerts()[["eventID", "actor", "incident_id", "reason"]])
    theirs = fleet.alerts.select("eventID", "actor", "incident_id", "reason")
    assert ours.sort("eventID").equals(theirs.sort("eventID"))


@pytest.mark.parametrize(
    "way",
    [
        pd.DataFrame,
        lambda records: pl.DataFrame(records, infer_schema_length=None),
        lambda records: pl.json_normalize(records, infer_schema_length=None),
    ],
    ids=["dictionaries", "structs", "polars.json_normalize"],
)
def test_every_form_of_the_records_has_the_same_incidents(
    fleet: Fleet, way: Callable[[list[dict[str, Any]]], Any]
) -> None:
    detection = morpheus.detect(way(fleet.records))
    expected = as_polars(fleet.detection.incidents())
    assert as_polars(detection.incidents()).equals(expected)
    assert detection.counts == fleet.detection.counts


def test_the_examples_have_the_incident_of_the_readme(lesson: Detection) -> None:
    [incident] = as_polars(lesson.incidents()).rows(named=True)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    printed = [row for row in ROW.findall(readme) if row[2] == incident["user"]]
    assert printed[0] == (
        *(str(incident["severity"]), incident["severity_name"], incident["user"]),
        *(str(incident["day"].date()), str(incident["count"]), incident["reason"]),
    )
    assert lesson.budget == choose_budget(users=2, days=25) == 0.4
    assert [str(day) for day in lesson.scored_days] == ["2024-05-10", "2024-06-03"]


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_of_log_is_recognised_in_every_form_of_frame(kind: str) -> None:
    records = [RECORDS[kind]] * 3
    for frame in (
        pd.DataFrame(records),
        pd.json_normalize(records),
        pl.DataFrame(records),
        pl.json_normalize(records),
    ):
        found = recognise_frame(as_polars(frame))
        assert found is not None
        assert found.name == kind


def read_events(kind: LogKind, path: Path) -> list[tuple[str | None, dict[str, list[object]]]]:
    """The users of a log, and the columns of their events that have a value."""
    source = kind.make_source([str(path)])
    options = source.with_defaults(PipelineOptions(**kind.pipeline_values))
    batches = replace(source, options=options).events(None, RunMetrics())
    return [
        (batch.user, {c.name: c.to_list() for c in frame if c.null_count() < c.len()})
        for batch in batches
        for frame in [batch.table.to_frame()]
    ]


@pytest.mark.parametrize("kind", list_kinds(), ids=lambda kind: kind.name)
def test_objects_in_cells_of_a_table_and_in_records_are_the_same_events(
    kind: LogKind, tmp_path: Path
) -> None:
    records = repeat_record(kind.name, 3)
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    compact = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
    cells = [
        {n: compact(v) if isinstance(v, (dict, list)) else v for n, v in each.items()}
        for each in records
    ]
    pl.DataFrame(cells).write_csv(table)
    for (user, events), (same_user, same) in zip(
        read_events(kind, lines), read_events(kind, table), strict=True
    ):
        assert user == same_user
        # Account ids are written differently in CSV files, as in NVIDIA Morpheus.
        assert {n: v for n, v in events.items() if "accountId" not in n}.items() <= same.items()


@pytest.mark.parametrize("kind", RECORDS)
def test_dictionaries_of_pandas_name_the_users_of_json_normalize(kind: str) -> None:
    records = repeat_record(kind, 8 * 60)
    nested = morpheus.detect(pd.DataFrame(records))
    flat = morpheus.detect(pd.json_normalize(records))
    assert nested.users == flat.users
    assert nested.incidents().equals(flat.incidents())


def make_duo(count: int = 1500) -> list[dict[str, Any]]:
    """Sign-ins of two people, whose log has columns named `reason` and `user`."""
    rng = np.random.default_rng(0)
    start = datetime(2020, 2, 1, tzinfo=UTC)
    records = []
    for n in range(count):
        time = start + timedelta(minutes=20 * n)
        record = json.loads(json.dumps(RECORDS["duo"]))
        record |= {"txid": str(n), "isotimestamp": time.isoformat()}
        record["timestamp"] = int(time.timestamp())
        record["user"]["name"] = ["ann", "bob"][n % 2]
        record["access_device"]["browser"] = str(rng.choice(["Chrome", "Firefox"]))
        record["application"]["name"] = str(rng.choice(["VPN", "Mail"]))
        if n > count - 4:
            record["access_device"] |= {"browser": "curl", "os": "BeOS"}
            record |= {"result": "denied", "reason": "invalid_passcode"}
        records.append(record)
    return records


def test_a_log_with_a_column_reason_gets_reasons_beside_it() -> None:
    frame = pd.json_normalize(make_duo())
    detection = morpheus.detect(frame)
    alerts = detection.alerts()
    assert set(alerts["reason"]) <= {"user_approved", "invalid_passcode"}
    assert alerts["morpheus_reason"].str.contains("BeOS|curl|invalid_passcode").any()
    assert set(detection.users) == {"ann", "bob"}


# Training and scoring.


def split_fleet(fleet: Fleet) -> tuple[pd.DataFrame, pd.DataFrame]:
    day = str(fleet.detection.scored_days[0])
    later = fleet.frame["eventTime"] >= day
    return fleet.frame[~later], fleet.frame[later]


def test_history_is_for_training_and_all_days_of_the_frame_are_scored(fleet: Fleet) -> None:
    history, events = split_fleet(fleet)
    detection = morpheus.detect(events, history=history)
    assert detection.counts.left_out == {}
    assert detection.counts.scored == len(events)
    same = as_polars(detection.incidents()).select("id", "severity", "count")
    assert same.equals(as_polars(fleet.detection.incidents()).select("id", "severity", "count"))


@pytest.mark.parametrize("kind", ["folder", "object"])
def test_fingerprints_score_the_days_after_their_training(
    fleet: Fleet, tmp_path: Path, kind: str
) -> None:
    fingerprints: Any = fleet.detection.fingerprints
    if kind == "folder":
        fingerprints.save(tmp_path / "models")
        fingerprints = tmp_path / "models"
    detection = morpheus.detect(fleet.frame, fingerprints=fingerprints)
    assert detection.scored_days == fleet.detection.scored_days
    assert as_polars(detection.incidents()).equals(as_polars(fleet.detection.incidents()))


def test_the_command_uses_the_fingerprints_of_a_frame(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.detection.fingerprints is not None
    fleet.detection.fingerprints.save(tmp_path / "morpheus-results" / "models")
    done = execute(tmp_path, "detect", str(fleet.folder / "logs"))
    assert done.returncode == 0, done.stderr
    assert "the fingerprints in morpheus-results/models are used" in done.stderr
    assert ROW.findall(done.stdout) == ROW.findall(fleet.done.stdout)


def test_the_fingerprints_give_the_scores_of_the_detection(lesson: Detection) -> None:
    frame = read_examples()
    assert lesson.fingerprints is not None
    first = str(lesson.scored_days[0])
    later = frame[frame["eventTime"] >= first]
    scores = lesson.fingerprints.score(later)
    assert scores[SCORE].tolist() == lesson.scores().loc[later.index, SCORE].tolist()


def test_threads_do_not_affect_results(lesson: Detection) -> None:
    again = morpheus.detect(read_examples(), threads=2)
    assert as_polars(again.scores()).equals(as_polars(lesson.scores()))


def test_a_larger_budget_has_more_incidents(lesson: Detection) -> None:
    more = morpheus.detect(read_examples(), alerts_per_day=2)
    assert more.budget == 2
    assert len(more) > len(lesson)
    assert set(lesson.incidents()["id"]) <= set(more.incidents()["id"])


def make_shifts(days: int = 20) -> pl.DataFrame:
    """A log of unknown kind: two users who work from 20 to 23 h UTC, and an odd last evening."""
    rng = np.random.default_rng(1)
    rows = []
    for day in range(days):
        for minute in range(0, 180, 4):
            time = datetime(2026, 3, 1, 20, tzinfo=UTC) + timedelta(days=day, minutes=minute)
            row = {"who": ["ann", "bob"][minute // 4 % 2], "when": time}
            row |= {"action": str(rng.choice(["get", "list"])), "place": "home"}
            if day == days - 1 and minute > 160 and row["who"] == "ann":
                row |= {"action": "delete", "place": "moon"}
            rows.append(row)
    return pl.DataFrame(rows)


def test_a_log_of_unknown_kind_needs_only_user_and_time() -> None:
    frame = make_shifts()
    detection = morpheus.detect(frame, user="who", time="when")
    first = detection.incidents().row(0, named=True)
    assert (first["user"], str(first["day"])) == ("ann", "2026-03-20")
    assert set(detection.alerts().filter(pl.col("place") == "moon")["incident_id"]) == {first["id"]}
    assert "actor" not in detection.alerts().columns
    with pytest.raises(UsageError, match=r"kind of log is not recognised.*`user=` and `time=`"):
        morpheus.detect(frame)


def test_days_of_incidents_are_in_the_time_zone() -> None:
    frame = make_shifts()
    tokyo = morpheus.detect(frame, user="who", time="when", timezone="Asia/Tokyo")
    assert str(tokyo.incidents()["day"][0]) == "2026-03-21"


# What comes out.


def test_pandas_gets_pandas_with_its_index_and_all_its_columns() -> None:
    frame = read_examples().set_index(pd.Index([f"e{n}" for n in range(5435)], name="event"))
    detection = morpheus.detect(frame)
    alerts, scores = detection.alerts(), detection.scores()
    assert isinstance(detection.incidents(), pd.DataFrame)
    assert list(alerts.columns[: frame.shape[1]]) == list(frame.columns)
    assert alerts[frame.columns].equals(frame.loc[alerts.index])
    assert scores.index.equals(frame.index[scores["row"]])
    assert scores["row"].is_monotonic_increasing
    assert scores.loc[alerts.index, "incident_id"].equals(alerts["incident_id"])
    assert scores["incident_id"].notna().sum() == len(alerts)


def test_polars_gets_polars_and_pyarrow_gets_pyarrow(lesson: Detection) -> None:
    frame = pl.from_dicts(read_examples().to_dict("records"), infer_schema_length=None)
    detection = morpheus.detect(frame.with_columns(pl.col(pl.Float64).fill_nan(None)))
    for method in ("incidents", "alerts", "scores"):
        assert isinstance(getattr(detection, method)(), pl.DataFrame)
    assert detection.incidents()["id"].to_list() == lesson.incidents()["id"].tolist()
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    arrow = morpheus.detect(frame.to_arrow())
    for method in ("incidents", "alerts", "scores"):
        assert isinstance(getattr(arrow, method)(), pa.Table)
    assert pl.DataFrame(arrow.alerts()).height == lesson.alerts().shape[0]
    assert isinstance(arrow.explain(arrow.incidents()["id"][0].as_py()), pa.Table)
    none = morpheus.detect(make_shifts().to_arrow(), user="who", time="when", alerts_per_day=0)
    assert (none.alerts().num_rows, none.alerts()["reason"].null_count) == (0, 0)


def test_a_frame_that_pandas_reads_from_csv_has_the_users_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    rows = read_examples().assign(userIdentityaccountId=123456789012)
    rows.loc[::9, "userIdentityaccountId"] = None
    rows["userIdentityaccountId"] = rows["userIdentityaccountId"].astype("Int64")
    rows.to_csv(file, index=False)
    [cloudtrail] = [kind for kind in list_kinds() if kind.name == "cloudtrail"]
    users = [user for user, _ in read_events(cloudtrail, file)]
    assert "user123@Account-123456789012" in users
    assert set(morpheus.detect(pd.read_csv(file)).users) <= set(users)


def test_alerts_begin_with_the_most_severe_incident(fleet: Fleet) -> None:
    alerts = fleet.detection.alerts()
    order = list(dict.fromkeys(alerts["incident_id"]))
    assert order == fleet.detection.incidents()["id"].tolist()
    for _, rows in alerts.groupby("incident_id"):
        assert rows["eventTime"].is_monotonic_increasing
    assert alerts["incident_severity"].is_monotonic_decreasing


def test_a_detection_of_its_own_alerts_columns_is_possible(lesson: Detection) -> None:
    frame = read_examples().join(lesson.scores().drop(columns=["row", "user", "time"]))
    again = morpheus.detect(frame)
    assert again.incidents()["id"].tolist() == lesson.incidents()["id"].tolist()
    assert {"morpheus_risk", "morpheus_reason", "morpheus_incident_id"} <= set(
        again.alerts().columns
    )


# Every row is accounted for.


def test_every_row_is_counted_with_its_reason() -> None:
    frame = read_examples()
    frame["eventID"] = [f"00000000-0000-4000-8000-{n:012}" for n in range(len(frame))]
    late = frame.index[frame["eventTime"] >= "2024-05-20"]
    frame.loc[late[0], "eventTime"] = "yesterday"
    frame.loc[late[1], "eventTime"] = None
    frame.loc[late[2], "eventTime"] = "1970-01-01T00:00:00Z"
    frame.loc[late[3], "eventID"] = frame.loc[late[4], "eventID"]
    frame.loc[late[3], "eventTime"] = frame.loc[late[4], "eventTime"]
    detection = morpheus.detect(frame)
    counts = detection.counts
    parts = counts.scored + sum(counts.unscored.values()) + sum(counts.left_out.values())
    assert counts.read == len(frame) == parts
    assert counts.scored == len(detection.scores())
    reasons = "\n".join(counts.left_out)
    for found in ("before 2024-05-10", "cannot be read, such as frame:", "same event", "2000"):
        assert found in reasons
    assert sorted(counts.left_out.values())[:3] == [1, 1, 2]


def test_events_without_a_user_are_counted_as_not_scored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = make_shifts(30).with_columns(
        who=pl.when(pl.int_range(pl.len()) % 10 > 0).then(pl.col("who"))
    )
    detection = morpheus.detect(frame, user="who", time="when")
    [(reason, number)] = detection.counts.unscored.items()
    assert "no value in `who`" in reason
    assert number == detection.counts.read - detection.counts.scored - sum(
        detection.counts.left_out.values()
    )
    assert "not scored: no user" in caplog.text


def test_too_little_history_gives_no_incident_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    detection = morpheus.detect(make_shifts(2), user="who", time="when")
    assert len(detection) == 0
    assert detection.counts.scored == 0
    assert sum(detection.counts.unscored.values()) > 0
    assert detection.fingerprints is None
    assert "45 events of 2 users not scored: 'ann' (23 events of history" in caplog.text
    assert repr(detection) == (
        "<Detection: 0 incidents with 0 events, of 0 scored events of 0 users>"
    )
    assert detection.alerts().height == 0
    assert detection.incidents().height == 0


def test_the_temporary_models_are_deleted_with_the_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    detection = morpheus.detect(make_shifts(), user="who", time="when")
    assert len(list(tmp_path.iterdir())) == 1
    del detection
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        morpheus.detect(make_shifts(1), user="who", time="when")
    assert list(tmp_path.iterdir()) == []


# Explanations.


def test_an_incident_is_explained_by_its_events(lesson: Detection) -> None:
    incident = lesson.incidents()["id"].iloc[0]
    why = lesson.explain(incident)
    alerts = lesson.alerts()
    assert set(why["row"]) == set(alerts["row"])
    assert (
        why.groupby("row")["reason"].first().equals(alerts.set_index("row")["reason"].sort_index())
    )
    last = why[why["row"] == alerts["row"].iloc[-1]]
    assert "errorMessage" in set(last["column"])
    assert last["new"].any()
    assert (why["bits"] >= 0).all()
    assert list(why.columns) == [
        *("row", "time", "reason", "column", "value", "expected"),
        *("probability", "bits", "usual_bits", "new", "risk"),
    ]


def test_an_event_is_explained_by_its_label() -> None:
    frame = read_examples().set_index(pd.Index([f"e{n}" for n in range(5435)]))
    detection = morpheus.detect(frame)
    label = detection.alerts().index[0]
    why = detection.explain(label)
    assert set(why.index) == {label}
    position = frame.index.get_loc(label)
    polars = morpheus.detect(as_polars(frame))
    assert set(polars.explain(position)["row"]) == {position}
    assert set(polars.explain(np.int64(position))["row"]) == {position}


def test_what_cannot_be_explained_is_answered(lesson: Detection) -> None:
    incident = lesson.incidents()["id"].iloc[0]
    typo = incident[:-1] + ("0" if incident[-1] != "0" else "1")
    with pytest.raises(UnknownEventError, match=rf"no incident and no row `{typo}`. Did you mean"):
        lesson.explain(typo)
    with pytest.raises(KeyError, match=r"Row `0` has no score. `scores\(\)` lists"):
        lesson.explain(0)
    for absent in (10**6, -1, None, 1.5):
        with pytest.raises(UsageError, match="no incident and no row"):
            lesson.explain(absent)


# Manners of a Python object.


def test_a_detection_says_what_it_found_in_one_line(lesson: Detection) -> None:
    assert len(lesson) == 1
    assert repr(lesson) == (
        "<Detection: 1 incident with 8 events, of 1,178 scored events of 2 users>"
    )
    assert lesson.users == ["role-g@Account-123456789012", "user123@Account-123456789012"]
    assert len(lesson.fingerprints or ()) == 2


HOSTILE = "<script>alert(1)</script>\x1b]0;x\x07\u202e$\\frac{a"


def test_hostile_values_are_inert_in_a_notebook_a_terminal_and_a_plot() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    frame = make_shifts().with_columns(
        who=pl.col("who").replace("ann", HOSTILE), place=pl.col("place").replace("moon", HOSTILE)
    )
    detection = morpheus.detect(frame, user="who", time="when")
    page = detection._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.isprintable()
    assert repr(detection).isprintable()
    for user in (None, HOSTILE):
        ax = detection.plot(user)
        ax.figure.canvas.draw()
        texts = [label.get_text() for label in ax.get_yticklabels()] + [ax.get_title()]
        assert all(text.isprintable() for text in texts)
        plt.close(ax.figure)


def test_a_table_in_a_notebook_has_ten_incidents_at_most(fleet: Fleet) -> None:
    page = fleet.detection._repr_html_()
    assert page.count("<tr>") == 1 + min(10, len(fleet.detection))
    first = fleet.detection.incidents().iloc[0]
    assert f"<td>{first['severity']} {first['severity_name']}</td>" in page


def test_a_plot_has_a_point_for_each_incident_or_event(fleet: Fleet) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    detection = fleet.detection
    ax = detection.plot()
    shown = set(list(dict.fromkeys(detection.incidents()["user"]))[:15])
    points = sum(len(each.get_offsets()) for each in ax.collections)
    assert points == detection.incidents()["user"].isin(shown).sum()
    plt.close(ax.figure)
    user = detection.incidents()["user"].iloc[0]
    figure, own = plt.subplots()
    assert detection.plot(user, ax=own) is own
    scores = detection.scores()
    mine = scores[scores["user"] == user]
    points = sum(len(each.get_offsets()) for each in own.collections)
    assert points == len(mine) + mine["incident_id"].notna().sum()
    with pytest.raises(UsageError, match=r"plot: no event of `.*x` has a score. Did you mean"):
        detection.plot(user + "x")
    plt.close(figure)


def test_a_plot_without_matplotlib_names_the_extra(
    lesson: Detection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"matplotlib.*pip install 'morpheus-dfp\[plot\]'"):
        lesson.plot()


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alerts_per_day": -1}, r"alerts_per_day: -1 is not a number of at least 0"),
        ({"alerts_per_day": float("nan")}, r"alerts_per_day: nan is not a number"),
        ({"timezone": "Europe/Berln"}, r"timezone: .*Europe/Berln"),
        ({"user": "whom"}, r"user: .* no column `whom`. Did you mean `who`"),
        ({"time": "wehn"}, r"time: .* no column `wehn`. Did you mean `when`"),
        ({"columns": ["actoin"]}, r"columns: .* no column `actoin`. Did you mean `action`"),
        ({"history": [1]}, r"history: a data frame .* is required, not list"),
        ({"history": pl.DataFrame({"a": [1]})}, r"no column"),
        ({"user": "@actor"}, r"user: `@actor` needs the flat columns of a known log"),
    ],
)
def test_a_wrong_argument_is_named_with_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        morpheus.detect(make_shifts(), **{"user": "who", "time": "when", **options})


def test_frames_without_events_or_earlier_days_are_refused() -> None:
    with pytest.raises(UsageError, match=r"frame: it has no rows\. Give the events"):
        morpheus.detect(pd.DataFrame())
    with pytest.raises(UsageError, match=r"all events are of one day.*Give earlier events as `his"):
        morpheus.detect(make_shifts(1), user="who", time="when")
    empty = make_shifts().with_columns(who=pl.lit(None, pl.String))
    with pytest.raises(UsageError, match="frame: no event has a user"):
        morpheus.detect(empty, user="who", time="when")


def test_arguments_that_the_fingerprints_exclude_are_refused(lesson: Detection) -> None:
    frame = read_examples()
    for options in ({"columns": ["eventName"]}, {"history": frame}, {"user": "userIdentityarn"}):
        with pytest.raises(UsageError, match=r"fingerprints are trained already.*Leave out"):
            morpheus.detect(frame, fingerprints=lesson.fingerprints, **options)
    with pytest.raises(UsageError, match=r"time: the frame has no column `eventTime`"):
        morpheus.detect(frame.drop(columns="eventTime"), fingerprints=lesson.fingerprints)


def test_fingerprints_with_hours_need_their_time_zone() -> None:
    frame = make_shifts()
    fingerprints = Fingerprints.train(
        frame, user="who", time="when", columns=["action", "hourofweek"], timezone="Asia/Tokyo"
    )
    with pytest.raises(UsageError, match=r'Give `timezone="Asia/Tokyo"`'):
        morpheus.detect(frame, fingerprints=fingerprints)
    detection = morpheus.detect(frame, fingerprints=fingerprints, timezone="Asia/Tokyo")
    assert detection.counts.scored == frame.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user": 0}, "user: a text is required, not int"),
        ({"time": 1}, "time: a text is required, not int"),
        ({"columns": ["eventName", 3]}, "columns: a text is required, not int"),
        ({"columns": []}, "columns: the list is empty"),
        ({"time": "evntTime"}, "time: .* no column `evntTime`. Did you mean `eventTime`"),
        ({"timezone": None}, "timezone: a text such as `Europe/Berlin` is required, not NoneType"),
        ({"alerts_per_day": "3"}, "alerts_per_day: '3' is not a number"),
        ({"fingerprints": 3}, "fingerprints: .* are required, not int"),
        ({"seed": "x"}, "--seed: `'x'` has the type `str`. Give a whole number"),
    ],
)
def test_an_argument_of_a_wrong_type_or_name_is_rejected(
    arguments: dict[str, Any], message: str
) -> None:
    frame = pd.json_normalize(repeat_record("cloudtrail", 20))
    with pytest.raises(UsageError, match=message):
        morpheus.detect(frame, **arguments)
