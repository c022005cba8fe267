"""The sample of everybody is the same however the events were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from morpheus.columns import OWNER, TIME
from morpheus.records import Summary
from morpheus.sources.census import Census
from morpheus.sources.cloudtrail import CLOUDTRAIL
from morpheus.sources.gathering import Gathered, Room
from morpheus.sources.intake import Intake
from morpheus.sources.log_files import LogFiles
from morpheus.sources.survey import Survey
from morpheus.stage import Settings
from morpheus.testing import events_at
from sources.test_gathering import TINY, record, write_files

COLUMNS = ("userIdentityarn", "userIdentityaccountId")
RECORDS = [record(n, f"{n % 7}", n % 60) for n in range(300)]


def sample(folder: Path, room: Room, threads: int, **options: Any) -> pl.DataFrame:
    settings = Settings(columns=COLUMNS, num_threads=threads, survey=True)
    intake = Intake(CLOUDTRAIL, LogFiles(str(folder)), settings, room=room, **options)
    summary = Summary()
    next(intake.events(None, summary))
    assert summary.everybody is not None
    return summary.everybody


@pytest.mark.parametrize(("room", "threads"), [(TINY, 1), (TINY, 2), (Room(), 2)])
def test_a_sample_does_not_depend_on_how_events_were_read(
    tmp_path: Path, room: Room, threads: int
) -> None:
    folder, few = write_files(tmp_path / "logs", RECORDS, 20), Survey(rows=70, least=5)
    whole = sample(folder, Room(), 1, survey=few)
    assert_frame_equal(sample(folder, room, threads, survey=few), whole)
    assert whole.height == 70
    assert whole.columns == [OWNER, TIME, *COLUMNS]


def gathered(users: dict[str, int]) -> Gathered:
    frames = [events_at(range(n), who=[user] * n).drop("") for user, n in users.items()]
    frame = pl.concat(frames)
    return Gathered("who", Census.of(frame, "who"), ["who"], [frame], [])


def test_few_events_of_each_user_are_in_a_sample_of_many() -> None:
    found = Survey(rows=100, least=5).of(gathered({"ann": 1000, "bob": 1000, "eve": 3}), ["who"])
    assert dict(found[OWNER].value_counts().iter_rows()) == {"ann": 33, "bob": 33, "eve": 3}


def test_a_sample_of_more_users_than_fit_is_of_the_same_ones_every_time() -> None:
    users = {f"user{n}": 30 for n in range(50)}
    found = Survey(users=10, rows=100, least=5).of(gathered(users), ["who"])
    backwards = dict(reversed(users.items()))
    again = Survey(users=10, rows=100, least=5).of(gathered(backwards), ["who"])
    assert found[OWNER].n_unique() == 10
    assert_frame_equal(found, again)


def test_a_log_of_which_every_record_is_refused_has_a_sample_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"eventName": "Ls"}\n{"eventName": "Get"}')
    settings = Settings(columns=("eventName", "logcount"), num_threads=1, survey=True)
    summary = Summary()
    files = LogFiles(str(tmp_path / "a.json"))
    assert list(Intake(CLOUDTRAIL, files, settings, skip=True).events(None, summary)) == []
    assert summary.everybody is not None
    assert summary.everybody.columns[:2] == [OWNER, TIME]
    assert summary.everybody.height == 0
    assert summary.input.refused == 2
