"""A page, and a real browser to look at it."""

from __future__ import annotations

import msgspec
import pytest

from morpheus.report.page import render_page
from morpheus.report.view import ReportData
from report_pages import HOUR, alarming, gathered, quiet


@pytest.fixture(scope="session")
def company() -> ReportData:
    """Twenty users, of whom three raise alerts."""
    users = {f"user{n:02}": [quiet(seed=n)] for n in range(20)}
    users["user03"].append(alarming([HOUR * 30, HOUR * 30 + 40, HOUR * 30 + 90], 40.0))
    users["user07"].append(alarming([HOUR * 5], 25.0, "CreateUser"))
    users["user11"].append(alarming([HOUR * 40, HOUR * 44], 12.0, "StopLogging"))
    return gathered(users)


@pytest.fixture
def opened(browser, tmp_path):
    """Open contents as a file, and note what goes wrong."""
    contexts = []

    def opened(found: ReportData, **options):
        file = tmp_path / f"report{len(contexts)}.html"
        file.write_bytes(render_page(msgspec.json.encode(found)))
        options = {"viewport": {"width": 1440, "height": 900}} | options
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        view = context.new_page()
        view.trouble = []
        view.on("console", lambda message: view.trouble.append(message.text))
        view.on("pageerror", lambda error: view.trouble.append(str(error)))
        view.on("dialog", lambda dialog: view.trouble.append(dialog.message))
        view.on(
            "request",
            lambda asked: (
                asked.url.startswith(("file:", "data:", "blob:")) or view.trouble.append(asked.url)
            ),
        )
        view.goto(file.as_uri())
        view.wait_for_selector("body[data-ready]")
        return view

    yield opened
    for context in contexts:
        context.close()
