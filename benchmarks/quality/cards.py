"""Twenty incidents of the report: ten attacks and ten benign events of a made-up company.

    export PYTHONPATH=src:benchmarks:examples
    python -m quality.cards --into docs/decisions/cards
    python -m quality.cards --into docs/images --report out/report.html

Generates the company, trains and scores it with the command line, and takes screenshots: the
incident details of the ten most severe attacks and the ten most severe benign incidents.
Their review is in docs/decisions/010-report-cards.md. With `--report`, it takes only pictures of
the page of that report: on a wide screen, on a phone and on paper.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import decompress
from pathlib import Path
from typing import Any, Literal

import msgspec
from generator.fleet import Fleet
from make_fleet import Writer
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from morpheus.report.incidents import Incident
from morpheus.report.view import ReportData

SEED, USERS, ATTACKED, NUM_PER_KIND = 7, 50, 0.4, 10
COLOURS = 160
PHONE, PAPER = (390, 844), (794, 1123)
"""Sizes of windows, in CSS pixels: a phone, and a sheet of A4."""
USER = "userIdentitysessionContextsessionIssueruserName"
CHAIN = f"""run pipeline-ae --userid_column_name={USER}
  from-cloudtrail --input_glob=json/scored
  train-ae --train_data_glob=json/training --seed=42
  preprocess inf-pytorch add-scores --label=risk --label=pvalue
  explain --threshold=20 --top=6 timeseries --resolution=10m
  filter --alerts_per_day=6 serialize to-report --filename=report.html""".split()


def main() -> None:
    """Generate the company, its report and the screenshots."""
    parser = argparse.ArgumentParser(description="Take pictures of twenty cards.")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    into: Path = arguments.into
    into.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        take_screenshots(arguments.report.resolve(), {}, into)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Writer(Fleet(USERS, attacked=ATTACKED, seed=SEED), folder, ("json",)).write()
        command = [sys.executable, "-c", "from morpheus.cli.main import main; main()", *CHAIN]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - our own command
        found = read_report(folder / "report.html")
        kinds = dict(labelled(folder / "labels.csv"))
        shots = dict(chosen(found, kinds))
        take_screenshots(folder / "report.html", shots, into)
    for name, incident in shots.items():
        print(name, incident.severity, incident.severity_name, incident.user, incident.start)


def read_report(page: Path) -> ReportData:
    """Return the data of a page."""
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None  # noqa: S101 - every page has it
    return msgspec.json.decode(decompress(b64decode(packed[1])), type=ReportData)


def labelled(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Return the incident and kind of each labelled event."""
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield row["eventID"], (row["kind"], row["incident"])


def chosen(found: ReportData, kinds: dict[str, tuple[str, str]]) -> Iterator[tuple[str, Incident]]:
    """Return the most severe incidents of both kinds, by file name; each attack once."""
    seen: set[object] = set()
    numbers = {"attack": 0, "benign": 0}
    for incident in (one.incident for one in found.incidents):
        of = [kinds[id_] for event in incident.events if (id_ := event.raw["eventID"]) in kinds]
        # Only one of a user's benign alerts.
        which: Any = of[0] if of else incident.user
        sort = "attack" if of else "benign"
        if which not in seen and numbers[sort] < NUM_PER_KIND:
            seen.add(which)
            numbers[sort] += 1
            yield f"{sort}-{numbers[sort]:02}" + (f"-{of[0][0]}" if of else ""), incident


@dataclass(frozen=True)
class Shot:
    """What a screenshot shows.

    Attributes:
        incident: Id of the incident that is open; empty for the most severe one.
        part: Part of the page.
        size: Width and height of the window, in CSS pixels.
        scheme: Light or dark.
        media: Screen or print.
        keys: Keys to press first.
        scroll: Part of the page to scroll to.
    """

    incident: str = ""
    part: str = "body"
    size: tuple[int, int] = (1500, 940)
    scheme: Literal["light", "dark"] = "light"
    media: Literal["screen", "print"] = "screen"
    keys: Sequence[str] = ()
    scroll: str = ""


PAGES = {
    "report": Shot(),
    "report-dark": Shot(scheme="dark"),
    "report-user": Shot(keys=("u",)),
    "report-phone": Shot(size=PHONE),
    "report-phone-details": Shot(size=PHONE, scroll="#detail"),
    "report-print": Shot(size=PAPER, media="print", scroll="#print"),
}


def take_screenshots(page: Path, shots: dict[str, Incident], into: Path) -> None:
    """Take screenshots of incident details; without incidents, of the page."""
    cards = {name: Shot(incident.id, "#detail", (1300, 1000)) for name, incident in shots.items()}
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"]  # benchmarks may run as root
        chromium = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        for name, shot in (cards or PAGES).items():
            take_screenshot(chromium, page, into / f"{name}.png", shot)
        chromium.close()


def take_screenshot(chromium: Browser, page: Path, into: Path, shot: Shot) -> None:
    """Take one screenshot, with few colours."""
    width, height = shot.size
    view = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=shot.scheme)
    view.goto(f"{page.as_uri()}#{shot.incident}")
    view.wait_for_selector("body[data-ready]")
    for key in shot.keys:
        view.keyboard.press(key)
    view.emulate_media(media=shot.media)
    view.wait_for_timeout(300)
    if shot.scroll:
        view.locator(shot.scroll).evaluate("(part) => part.scrollIntoView()")
    image_bytes = view.screenshot() if shot.part == "body" else view.locator(shot.part).screenshot()
    view.close()
    with Image.open(io.BytesIO(image_bytes)) as image:
        image.convert("RGB").quantize(COLOURS).save(into, optimize=True)


if __name__ == "__main__":
    main()
