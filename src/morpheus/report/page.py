"""Render incidents: as a report page, as a table in a notebook, and as a plot.

A page is one HTML file with its markup, styles, programs and data. That of `to-report` contains its
data and makes no network request. The live page of `morpheus serve` has the same programs and
fetches its data.
"""

from __future__ import annotations

import gzip
import html
from base64 import b64encode
from collections.abc import Sequence
from datetime import date
from functools import cache
from hashlib import sha256
from importlib import resources
from string import Template
from types import ModuleType
from typing import Any, TypeAlias

import polars as pl

from morpheus.columns import INCIDENT_ID, RISK, TIME
from morpheus.errors import UsageError
from morpheus.report.incidents import Incident
from morpheus.text import display_value

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
    "tuning.js",
    "verdicts.js",
    "queries.js",
    "card.js",
    "person.js",
    "print.js",
    "keys.js",
    "main.js",
)
"""Scripts in the order of their dependencies. They share one scope."""
Axes: TypeAlias = Any
"""Axes of matplotlib, which need not be installed."""
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


def render_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML. All values are escaped, and characters that are not printable too."""
    lines = [f"<caption>{_escape(caption)}</caption>"]
    lines.append(f"<tr>{''.join(f'<th>{_escape(cell)}</th>' for cell in header)}</tr>")
    lines += [f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _escape(text: str) -> str:
    return html.escape(display_value(text, MAX_CELL))


SEVERITY_COLORS = {"critical": "#a4133c", "high": "#e85d04", "medium": "#b08900", "low": "#457b9d"}
"""Color of each severity in a plot."""
MAX_PLOTTED_USERS = 15
"""Maximum number of users in a plot of incidents."""
MAX_LABEL, MAX_CELL = 40, 200
"""Maximum number of characters of a user's name in a plot, and of a cell of a table."""


def import_pyplot() -> ModuleType:
    """Import `matplotlib.pyplot`.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "plot needs matplotlib, which is not installed. Type `pip install "
            "'morpheus-dfp[plot]'`."
        ) from error
    return plt


def plot_incidents(ax: Axes, incidents: Sequence[Incident]) -> None:
    """Plot a point for each incident. The area of a point grows with the number of events."""
    users = list(dict.fromkeys(incident.user or "" for incident in incidents))[:MAX_PLOTTED_USERS]
    for name, color in SEVERITY_COLORS.items():
        shown = [each for each in incidents if each.severity_name == name and each.user in users]
        days = [date.fromisoformat(each.day) for each in shown]
        sizes = [40 + 20 * each.count**0.5 for each in shown]
        lanes = [users.index(each.user or "") for each in shown]
        if shown:
            ax.scatter(days, lanes, s=sizes, color=color, label=name, zorder=2)
    labels = [display_value(name, MAX_LABEL) for name in users]
    ax.set_yticks(range(len(users)), labels, parse_math=False)
    ax.invert_yaxis()
    ax.grid(axis="y", alpha=0.3)
    ax.set_title("Incidents" if incidents else "No incidents")
    _finish(ax)


def plot_user(ax: Axes, user: str, events: pl.DataFrame, incidents: Sequence[Incident]) -> None:
    """Plot the risk of each event, and the time of each incident."""
    times, risks = events[TIME].dt.replace_time_zone(None).to_numpy(), events[RISK].to_numpy()
    ax.scatter(times, risks, s=9, color="#8d99ae", label="event", zorder=2)
    named = set[str]()
    for incident in incidents:
        color, name = SEVERITY_COLORS[incident.severity_name], incident.severity_name
        rows = events.filter(pl.col(INCIDENT_ID) == incident.id)
        moments = rows[TIME].dt.replace_time_zone(None).to_numpy()
        label = None if name in named else f"{name} incident"
        ax.scatter(moments, rows[RISK].to_numpy(), s=36, color=color, label=label, zorder=3)
        named.add(name)
    ax.set_ylabel("risk")
    ax.set_title(display_value(user), parse_math=False)
    _finish(ax)


def _finish(ax: Axes) -> None:
    """Write the days of the time axis so that they do not overlap, and show the legend."""
    ax.tick_params(axis="x", rotation=30)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", frameon=False)
