"""`morpheus tools suppress`: from verdicts to suppressions and their preview."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.report.incidents import incident_id

ROLE = Path(__file__).parents[2] / "examples" / "data" / "training-data" / "role-g.csv"
TECHNIQUES = Path(__file__).parents[2] / "src" / "morpheus" / "data" / "techniques"
USER = "userIdentitysessionContextsessionIssueruserName"


def verdict(number: int, judged: str = "expected", **values: str) -> dict[str, object]:
    """A verdict on an incident of role-g."""
    return {
        "incident": f"{number:016x}",
        "user": "role-g",
        "verdict": judged,
        "note": "",
        "start": "2024-04-02T09:00:00Z",
        "end": "2024-04-02T09:10:00Z",
        "events": 2,
        "columns": [{"column": name, "value": value} for name, value in values.items()],
    }


def write_verdicts(folder: Path, *verdicts: dict[str, object]) -> Path:
    """Write a file as the report exports it."""
    file = {"format": "morpheus-verdicts", "version": 2, "made": "2024-04-03T00:00:00Z"}
    path = folder / "verdicts.json"
    path.write_text(json.dumps({**file, "verdicts": verdicts}))
    return path


@pytest.fixture
def alerts(tmp_path: Path) -> Path:
    """Past alerts of two users, as `to-file` writes them."""
    rows = [
        ("role-g", "2024-04-02 09:05:00+00:00", "StopLogging"),
        ("role-g", "2024-04-05 09:05:00+00:00", "StopLogging"),
        ("role-g", "2024-04-02 09:06:00+00:00", "GetObject"),
        ("eve", "2024-04-02 09:05:00+00:00", "StopLogging"),
    ]
    path = tmp_path / "alerts.csv"
    pl.DataFrame(rows, schema=[USER, "event_dt", "eventName"], orient="row").write_csv(path)
    return path


def suppress(*words: object) -> Result:
    command = ["tools", "suppress", *map(str, words)]
    return CliRunner().invoke(morpheus, command, prog_name="morpheus")


def test_suppressions_are_written_and_previewed(tmp_path: Path, alerts: Path) -> None:
    verdicts, file = write_verdicts(tmp_path, verdict(1)), tmp_path / "s.toml"
    preview = (f"--preview={alerts}", f"--userid_column_name={USER}")
    done = suppress(verdicts, f"--filename={file}", *preview)
    assert done.exit_code == 0, done.output
    label = "eventName = `GetObject` or `StopLogging`, of role-g, until 2024-07-02"
    assert done.stdout.splitlines()[1] == f"{label}  2 hidden        -"
    judged, alike = (incident_id("role-g", day) for day in ("2024-04-02", "2024-04-05"))
    assert f"Hides {judged}, {alike}: {label}" in done.stderr
    warning = f"it would hide 1 past incident without a verdict: {alike}"
    assert f"Warning: {label}: {warning}." in done.stderr
    assert (
        f"1 suppression in {file}. Review them, then use: filter --suppressions={file}"
        in done.stderr
    )
    assert f"# Check: {warning}" in file.read_text()
    again = suppress(file, *preview)
    assert again.stdout == done.stdout


def test_the_folder_of_a_run_has_its_past_alerts(tmp_path: Path, alerts: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    alerts.rename(folder / "alerts.csv")
    user = f"--userid_column_name={USER}"
    verdicts = write_verdicts(tmp_path, verdict(1))
    done = suppress(verdicts, f"--preview={folder}", user, f"--filename={tmp_path / 's.toml'}")
    assert "2 hidden" in done.stdout


def test_the_same_verdicts_give_the_same_bytes(tmp_path: Path) -> None:
    verdicts = write_verdicts(tmp_path, verdict(1, b="1", a="2"), verdict(2, "benign-new", c="3"))
    for name in ("one", "two"):
        assert suppress(verdicts, f"--filename={tmp_path / name}").exit_code == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_rejected_suppression_is_exit_code_1(tmp_path: Path, alerts: Path) -> None:
    later = {"start": "2024-04-05T09:00:00Z", "end": "2024-04-05T09:10:00Z"}
    verdicts = write_verdicts(
        tmp_path, verdict(1, eventName="StopLogging"), verdict(2, "malicious", agent="x") | later
    )
    file = tmp_path / "s.toml"
    assert suppress(verdicts, f"--filename={file}").exit_code == 0, (
        "no conflict without past alerts"
    )
    preview = (f"--preview={alerts}", f"--userid_column_name={USER}", "--overwrite")
    done = suppress(verdicts, f"--filename={file}", *preview)
    assert done.exit_code == 1
    assert "it would hide incident 0000000000000002, judged malicious." in done.stderr
    assert "0 suppressions in" in done.stderr
    assert "\n[[suppression]]" not in file.read_text()


def test_suppressions_are_written_to_toml_only(tmp_path: Path) -> None:
    done = suppress(write_verdicts(tmp_path, verdict(1, a="1")), f"--filename={tmp_path}/s.csv")
    assert done.exit_code == 2
    assert "s.csv` has an unsupported extension. Use .toml." in done.stderr


def test_a_file_that_may_have_been_edited_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("mine")
    done = suppress(write_verdicts(tmp_path, verdict(1, a="1")), f"--filename={file}")
    assert done.exit_code == 2
    assert f"`{file}` already exists, and may have been edited" in done.stderr
    assert file.read_text() == "mine"


def test_verdicts_and_suppressions_cannot_be_mixed(tmp_path: Path) -> None:
    done = suppress(write_verdicts(tmp_path), tmp_path / "s.toml")
    assert done.exit_code == 2
    assert "give files of verdicts, or of suppressions, not both" in done.stderr


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"event_dt": ["2026-01-01T00:00:00Z"]}, "has no known user column"),
        ({"actor": ["ann"]}, "has no time column"),
    ],
)
def test_past_alerts_need_a_user_and_a_time(
    tmp_path: Path, columns: dict[str, list[str]], message: str
) -> None:
    path = tmp_path / "alerts.csv"
    pl.DataFrame(columns).write_csv(path)
    done = suppress(
        write_verdicts(tmp_path, verdict(1, a="1")),
        f"--preview={path}",
        f"--filename={tmp_path / 's'}",
    )
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_column_missing_from_past_alerts_is_a_warning(tmp_path: Path, alerts: Path) -> None:
    older = {"start": "2024-03-02T09:00:00Z", "end": "2024-03-02T09:10:00Z"}
    done = suppress(
        write_verdicts(tmp_path, verdict(1, agent="1") | older),
        f"--preview={alerts}",
        f"--userid_column_name={USER}",
        f"--filename={tmp_path / 's'}",
    )
    assert "Warning: the past alerts do not have `agent`, which suppressions use." in done.stderr
    assert "it would hide none of the past alerts" in done.stderr


def test_attacks_that_a_suppression_would_hide_are_named(tmp_path: Path) -> None:
    folder, file = tmp_path / "techniques", tmp_path / "s.toml"
    folder.mkdir()
    (folder / "stop-trail.json").write_text((TECHNIQUES / "stop-trail.json").read_text())
    options = (f"--userid_column_name={USER}", f"--techniques={folder}", "--num_threads=1")
    both = verdict(1)
    both["columns"] = [
        {"column": "eventName", "value": value} for value in ("StopLogging", "DescribeTrails")
    ]
    done = suppress(
        write_verdicts(tmp_path, both),
        f"--filename={file}",
        f"--replay_glob={ROLE}",
        "--days=366",
        *options,
    )
    assert done.exit_code == 1, done.output
    attacks = "stop-trail (recorded), stop-trail (agent), stop-trail (hours)"
    assert f"it would hide replayed attacks: {attacks}." in done.stderr
    assert "0 suppressions in" in done.stderr
    # A person can still decide to use it.
    edited = "\n".join(
        line.removeprefix("# ")
        if line.startswith(("# where.", "# users", "# until", "# reason"))
        or line == "# [[suppression]]"
        else line
        for line in file.read_text().splitlines()
    )
    file.write_text(edited)
    preview = suppress(file, f"--replay_glob={ROLE}", *options)
    assert preview.stdout.splitlines()[1].endswith(" 1 hidden")
    assert "it would hide replayed attacks: stop-trail (as role-g)." in preview.stderr
    replay = ["tools", "replay", f"--input_glob={ROLE}", *options, "--output_format=json"]
    after = CliRunner().invoke(morpheus, [*replay, f"--suppressions={file}"], prog_name="morpheus")
    trials = [json.loads(line) for line in after.stdout.splitlines()]
    assert {trial["caught"] for trial in trials} == {False}
    assert all(
        trial["hidden_by"].startswith("eventName = `DescribeTrails` or ") for trial in trials
    )
    assert "Hidden  " in after.stderr


def test_attacks_that_were_not_replayed_as_a_user_are_not_counted_as_none(tmp_path: Path) -> None:
    file, folder = tmp_path / "s.toml", tmp_path / "techniques"
    folder.mkdir()
    (folder / "stop-trail.json").write_text((TECHNIQUES / "stop-trail.json").read_text())
    rule = '[[suppression]]\nwhere.eventName = "{}"\nusers = ["{}"]\nuntil = 2030-01-01\n'
    rule += 'reason = "x"\n'
    text = "".join(rule.format(*each) for each in (("Get", "role-g"), ("Put", "nobody")))
    file.write_text(f'format = "morpheus-suppressions"\nversion = 2\n{text}')
    options = (f"--userid_column_name={USER}", f"--techniques={folder}", "--num_threads=1")
    done = suppress(file, f"--replay_glob={ROLE}", *options)
    tried, not_tried = done.stdout.splitlines()[1:]
    assert tried.endswith(" none")
    assert not_tried.endswith(" -")
    assert done.stderr.count("no attack was replayed as one of its users") == 1


def test_a_file_of_suppressions_that_cannot_be_read_is_named_with_its_argument(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.toml").write_text("[[suppression]]")
    done = suppress(tmp_path / "s.toml")
    assert done.exit_code == 2
    assert f"Error: VERDICTS: `{tmp_path}/s.toml` cannot be read" in done.stderr
