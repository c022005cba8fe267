"""Render a report page: one HTML file with its markup, styles, programs and data.

The page of `to-report` contains its data and makes no network request. The live page of
`morpheus serve` has the same programs and fetches its data.
"""

from __future__ import annotations

import gzip
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib import resources
from string import Template

SCRIPTS = (
    "dom.js",
    "format.js",
    "text.js",
    "data.js",
    "severity.js",
    "state.js",
    "charts.js",
    "empty.js",
    "header.js",
    "swimlane.js",
    "inbox.js",
    "verdicts.js",
    "queries.js",
    "card.js",
    "person.js",
    "print.js",
    "keys.js",
    "main.js",
)
"""Scripts in the order of their dependencies. They share one scope."""
STYLES = ("page.css",)
LIVE_SCRIPTS, LIVE_STYLES = (*SCRIPTS, "live.js"), (*STYLES, "live.css")
"""The same, and what the live page adds: the state of the run."""


def render_page(data: bytes, log: bytes, *, title: str = "Morpheus report") -> bytes:
    """Render a page that works offline, from any folder.

    The data is compressed and embedded as base64, whose alphabet cannot close an HTML element. The
    page's own policy allows only its scripts and styles, by their hashes.

    Args:
        data: `view.ReportData` as JSON.
        log: `view.LogView` as JSON.
        title: Title of the page, text without markup.
    """
    script, style = _concat_assets(SCRIPTS), _concat_assets(STYLES)
    return fill_template(
        title=title,
        data=_embed(data),
        log=_embed(log),
        feed="",
        script=script,
        style=style,
        policy=_build_policy(script, style),
    )


def render_live_page(data_path: str, *, title: str = "Morpheus") -> bytes:
    """Render the page of `morpheus serve`, which fetches its data from the server.

    Args:
        data_path: Path of the data on the server: JSON as in `render_page`, with the log as `log`.
        title: Title of the page, text without markup.
    """
    script, style = _concat_assets(LIVE_SCRIPTS), _concat_assets(LIVE_STYLES)
    policy = _build_policy(script, style, connect="'self'")
    return fill_template(
        title=title, data="", log="", feed=data_path, script=script, style=style, policy=policy
    )


def build_live_policy() -> str:
    """Return the Content-Security-Policy header of the live page.

    It is the policy in the page, and forbids frames, which a policy in a page cannot.
    """
    script, style = _concat_assets(LIVE_SCRIPTS), _concat_assets(LIVE_STYLES)
    policy = _build_policy(script, style, connect="'self'")
    return f"{policy}; frame-ancestors 'none'"


def fill_template(**parts: str) -> bytes:
    """Fill the page's template. Parts are inserted unescaped, so none may come from a log."""
    return Template(_read_asset("page.html")).substitute(parts).encode()


def _embed(data: bytes) -> str:
    return b64encode(gzip.compress(data, mtime=0)).decode("ascii")


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
