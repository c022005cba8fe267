"""A small soak, with a dozen kills; `make soak` makes as many as you like."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
KILLS = 12


def test_a_folder_stream_that_is_killed_a_dozen_times_loses_nothing(tmp_path: Path) -> None:
    words = ["--kills", str(KILLS), "--longest_life", "2", "--rate", "40", "--users", "8"]
    words += ["--faults", "kill,input,receiver", "--evidence", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak"), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"\| killed \| {KILLS} \|", done.stdout)
    assert re.search(r"\| file: each event has arrived \| [1-9][\d,]* \| 0 \|", done.stdout)


def test_the_page_names_the_options_and_faults_of_the_soak(
    part: Callable[[str], ModuleType],
) -> None:
    page = (ROOT / "docs" / "soak.md").read_text(encoding="utf-8")
    part("soak.trial")
    main = (ROOT / "benchmarks" / "soak" / "__main__.py").read_text(encoding="utf-8")
    block = page[page.index("python benchmarks/soak") :]
    options = set(re.findall(r"`(--[a-z]+)`", page)) | set(
        re.findall(r"(--\w+)", block.split("--command")[0])
    )
    options.remove("--state")  # of the product
    assert [option for option in options if f'"{option}"' not in main] == []
    faults = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert tuple(faults) == part("soak.trial").FAULTS


def test_an_oracle_notices_what_is_lost_repeated_changed_or_invented(
    part: Callable[[str], ModuleType],
) -> None:
    events, oracle_module = part("soak.events"), part("soak.oracle")
    made = events.Events(1, 3)
    oracle = oracle_module.Oracle(made, events.FIRST, events.FIRST)
    owed = oracle.claim(4)
    oracle.owe(owed)
    rows = [{"eventID": made.event_id(n), "eventName": made.record(n)["eventName"]} for n in owed]

    def broken(rows: list[dict[str, object]]) -> list[str]:
        laws = oracle.judge_rows("file", rows, repeats=False)
        return [law.name.removeprefix("file: ") for law in laws if law.broken]

    assert broken(rows) == []
    assert broken(rows[1:]) == ["each event has arrived"]
    assert broken([*rows, rows[0]]) == ["no row twice"]
    assert broken([*rows[1:], rows[0] | {"eventName": "Other"}]) == [
        "the content follows from the id"
    ]
    invented = [{"eventID": made.event_id(events.FIRST + 9)}, {"eventID": "other"}]
    assert broken([*rows, *invented]) == ["only ids that were issued"]


def test_an_event_may_come_again_only_after_a_restart_or_a_refusal(
    part: Callable[[str], ModuleType],
) -> None:
    receipt, judge = part("soak.receiver").Receipt, part("soak.oracle").judge_repeats
    row = {"eventID": "1"}
    assert (
        judge(
            [receipt(1, row, accepted=True, when=0.0), receipt(2, row, accepted=True, when=1.0)]
        ).broken
        == []
    )
    assert (
        judge(
            [receipt(1, row, accepted=False, when=0.0), receipt(1, row, accepted=True, when=1.0)]
        ).broken
        == []
    )
    assert (
        judge(
            [receipt(1, row, accepted=True, when=0.0), receipt(1, row, accepted=True, when=1.0)]
        ).broken
        != []
    )
