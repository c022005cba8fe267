"""The docs site: it builds without a warning, and every link in it leads somewhere.

The tests open no connection. Links to other sites are only checked for their form.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import morpheus
from pages import DOCS, ROOT

PUBLIC_SITE = re.compile(r"https://(?:[\w-]+\.)+[a-z]{2,}(?:/[^\s<>]*)?")
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Attributes of elements that a browser loads by itself."""


@dataclass
class PageParser(HTMLParser):
    """Collects what a page links to, what it loads, and its anchors.

    Attributes:
        links: Targets of links.
        loads: Addresses of scripts, styles and pictures.
        anchors: Names of its parts.
        navigation: Targets of links in the navigation.
    """

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    navigation: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if "md-nav__link" in values.get("class", ""):
                self.navigation.add(values["href"])
        if tag in LOADS and LOADS[tag] in values:
            self.loads.append(values[LOADS[tag]])


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The built site, and what the build has printed."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        # The notice is about the end of support of the theme: docs/decisions/017-docs-site.md.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(build: tuple[Path, str]) -> dict[Path, PageParser]:
    """Each page of the site by its file."""
    pages = {}
    for file in sorted(build[0].rglob("*.html")):
        pages[file] = PageParser()
        pages[file].feed(file.read_text(encoding="utf-8"))
    return pages


def files_of_pages() -> set[str]:
    """The files in the site of all pages but the first."""
    pages = DOCS.rglob("*.md")
    return {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in pages} - {
        "index.html"
    }


def targets(site: dict[Path, PageParser]) -> Iterator[tuple[Path, str]]:
    for file, page in site.items():
        yield from ((file, link) for link in (*page.links, *page.loads))


def test_the_site_builds_without_a_warning(build: tuple[Path, str]) -> None:
    assert "WARNING" not in build[1], build[1]


def test_every_page_of_the_docs_is_in_the_navigation(
    site: dict[Path, PageParser], build: tuple[Path, str]
) -> None:
    linked = {urlsplit(link).path for link in site[build[0] / "index.html"].navigation}
    assert files_of_pages() - linked == set(), "add it to mkdocs.yml"


def test_every_internal_link_leads_to_a_file_and_an_anchor(site: dict[Path, PageParser]) -> None:
    broken = []
    for file, link in targets(site):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or file.name == "404.html":
            continue
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        anchors = site[target].anchors if target in site else {""}
        if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
            broken.append(f"{file.name}: {link}")
    assert broken == []


def test_links_to_other_sites_are_complete_addresses(site: dict[Path, PageParser]) -> None:
    others = {link for _, link in targets(site) if urlsplit(link).scheme not in ("", "data")}
    assert {link for link in others if not PUBLIC_SITE.fullmatch(link)} == set()


def test_the_site_loads_nothing_from_another_server(
    site: dict[Path, PageParser], build: tuple[Path, str]
) -> None:
    loads = {link for page in site.values() for link in page.loads}
    assert {link for link in loads if urlsplit(link).netloc} == set()
    styles = "".join(file.read_text(encoding="utf-8") for file in build[0].rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)", styles) == []


def test_the_search_finds_every_page(build: tuple[Path, str]) -> None:
    index = json.loads((build[0] / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert files_of_pages() - found == set()


def test_the_reference_of_python_has_every_public_name(site: dict[Path, PageParser]) -> None:
    [page] = [page for file, page in site.items() if file.match("reference/api.html")]
    public = {f"morpheus.{name}" for name in morpheus.__all__ if not name.startswith("__")}
    assert public <= page.anchors, "add it to docs/reference/api.md"
