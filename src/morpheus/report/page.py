"""One HTML file that holds everything: its markup, its style, its programs, and its data."""

from __future__ import annotations

import gzip
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib import resources
from string import Template

SCRIPTS = (
    "uPlot.iife.min.js",
    "dom.js",
    "format.js",
    "data.js",
    "state.js",
    "charts.js",
    "header.js",
    "swimlane.js",
    "inbox.js",
    "verdicts.js",
    "queries.js",
    "card.js",
    "person.js",
    "keys.js",
    "main.js",
)
"""In the order in which they need each other; those from uPlot's on share one scope."""
STYLES = ("uPlot.min.css", "page.css")
LIVE_SCRIPTS, LIVE_STYLES = (*SCRIPTS, "live.js"), (*STYLES, "live.css")
"""The same, and what shows how a run is doing that has not ended."""


def render_page(data: bytes, *, title: str = "Morpheus report") -> bytes:
    """A page that opens anywhere and asks the network for nothing.

    The data is packed and lies in the page as base64, in which nothing can end the element that
    holds it. The page's own policy allows its scripts and styles, by their hashes, and no other.

    Args:
        data: `contents.Contents` as JSON.
        title: Of the page; text without markup.
    """
    packed = b64encode(gzip.compress(data, mtime=0)).decode("ascii")
    script, style = _concat_assets(SCRIPTS), _concat_assets(STYLES)
    return fill_template(
        title=title,
        data=packed,
        feed="",
        script=script,
        style=style,
        policy=_build_policy(script, style),
    )


def render_live_page(data_path: str, *, title: str = "Morpheus") -> bytes:
    """The same page without data: it fetches them from an address of whoever served it.

    Args:
        data_path: Path of the data, JSON as in `render_page`.
        title: Of the page.
    """
    script, style = _concat_assets(LIVE_SCRIPTS), _concat_assets(LIVE_STYLES)
    policy = _build_policy(script, style, connect="'self'")
    return fill_template(
        title=title, data="", feed=data_path, script=script, style=style, policy=policy
    )


def build_live_policy() -> str:
    """What the served page may do, for whoever serves it: as the page says, and in no frame."""
    policy = _build_policy(
        _concat_assets(LIVE_SCRIPTS), _concat_assets(LIVE_STYLES), connect="'self'"
    )
    return f"{policy}; frame-ancestors 'none'"


def fill_template(**parts: str) -> bytes:
    """Put the page together; all parts are ours, and hold no markup that is not meant."""
    return Template(_read_asset("page.html")).substitute(parts).encode()


def _build_policy(script: str, style: str, connect: str = "'none'") -> str:
    return (
        f"default-src 'none'; script-src '{_csp_hash(script)}'; style-src '{_csp_hash(style)}'; "
        f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _concat_assets(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(map(_read_asset, names)) + "\n"


@cache
def _read_asset(name: str) -> str:
    folder = resources.files("morpheus.report") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode("ascii")
