"""Twenty cards of the report: ten attacks and ten benign novelties of a made-up company.

    PYTHONPATH=src:benchmarks:examples python -m quality.cards --into docs/decisions/cards

Makes the company, learns and scores it by the command, and takes pictures of the cards of the ten
highest incidents that are attacks and of the ten highest that are not, and of the whole page. What
they decide is written down, by people, in docs/decisions/010-report-cards.md.
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
from gzip import decompress
from pathlib import Path
from typing import Any

import msgspec
from generator.fleet import Fleet
from make_fleet import Writer
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from morpheus.report.incidents import Incident
from morpheus.report.view import ReportData

SEED, USERS, ATTACKED, EACH = 7, 50, 0.4, 10
COLOURS = 96
USER = "userIdentitysessionContextsessionIssueruserName"
CHAIN = f"""run pipeline-ae --userid_column_name={USER}
  from-cloudtrail --input_glob=json/scored
  train-ae --train_data_glob=json/training --seed=42
  preprocess inf-pytorch add-scores --label=risk --label=pvalue
  explain --threshold=20 --top=6 timeseries --resolution=10m
  filter --alerts_per_day=6 serialize to-report --filename=report.html""".split()


def main() -> None:
    """Make the company, its page, and the pictures."""
    parser = argparse.ArgumentParser(description="Take pictures of twenty cards.")
    parser.add_argument("--into", type=Path, required=True)
    into: Path = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Writer(Fleet(USERS, attacked=ATTACKED, seed=SEED), folder, ("json",)).write()
        command = [sys.executable, "-c", "from morpheus.cli.main import main; main()", *CHAIN]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - our own command
        found = told(folder / "report.html")
        kinds = dict(labelled(folder / "labels.csv"))
        pictures = dict(chosen(found, kinds))
        taken(folder / "report.html", pictures, into)
    for name, incident in pictures.items():
        print(name, incident.severity, incident.level, incident.user, incident.start)


def told(page: Path) -> ReportData:
    """What a page says."""
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None  # noqa: S101 - every page has it
    return msgspec.json.decode(decompress(b64decode(packed[1])), type=ReportData)


def labelled(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """The incident, with its kind, that each event belongs to."""
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield row["eventID"], (row["kind"], row["incident"])


def chosen(found: ReportData, kinds: dict[str, tuple[str, str]]) -> Iterator[tuple[str, Incident]]:
    """The highest incidents of both sorts, by the names of their pictures; each attack once."""
    seen: set[object] = set()
    numbers = {"attack": 0, "benign": 0}
    for incident in (one.incident for one in found.incidents):
        of = [kinds[id_] for event in incident.events if (id_ := event.raw["eventID"]) in kinds]
        # Of a user's many benign alerts, one.
        which: Any = of[0] if of else incident.user
        sort = "attack" if of else "benign"
        if which not in seen and numbers[sort] < EACH:
            seen.add(which)
            numbers[sort] += 1
            yield f"{sort}-{numbers[sort]:02}" + (f"-{of[0][0]}" if of else ""), incident


def taken(page: Path, pictures: dict[str, Incident], into: Path) -> None:
    """Take pictures of cards, and of the whole page."""
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"]  # benchmarks may run as root
        chromium = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        for name, incident in pictures.items():
            picture(chromium, page, into / f"{name}.png", incident.id, "#detail")
        for name, scheme in (("page", "light"), ("page-dark", "dark")):
            picture(chromium, page, into / f"{name}.png", scheme=scheme)
        picture(chromium, page, into / "page-user.png", keys=("u",))
        chromium.close()


def picture(  # noqa: PLR0913 - what is taken, and how
    chromium: Browser,
    page: Path,
    into: Path,
    incident: str = "",
    part: str = "body",
    *,
    scheme: str = "light",
    keys: Sequence[str] = (),
) -> None:
    """Take one picture, in few colours."""
    size = {"width": 1500, "height": 940} if part == "body" else {"width": 1300, "height": 1000}
    view = chromium.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]  # a size is a dict
    view.goto(f"{page.as_uri()}#{incident}")
    view.wait_for_selector("body[data-ready]")
    for key in keys:
        view.keyboard.press(key)
    view.wait_for_timeout(200)
    shot = view.screenshot() if part == "body" else view.locator(part).screenshot()
    view.close()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(COLOURS).save(into, optimize=True)


if __name__ == "__main__":
    main()
