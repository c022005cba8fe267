"""A report page, opened in a real browser."""

from __future__ import annotations

import msgspec
import pytest

from morpheus.report.page import render_page
from morpheus.report.view import ReportData, build_log_view
from report_pages import HOUR, alerts, build_data, normal_events, origin


@pytest.fixture(scope="session")
def company() -> ReportData:
    """Twenty users, three of them with alerts."""
    users = {f"user{n:02}": [normal_events(seed=n)] for n in range(20)}
    users["user03"].append(alerts([HOUR * 30, HOUR * 30 + 40, HOUR * 30 + 90], 40.0))
    users["user07"].append(alerts([HOUR * 5], 25.0, "CreateUser"))
    users["user11"].append(alerts([HOUR * 20, HOUR * 44], 12.0, "StopLogging"))
    return build_data(users)


@pytest.fixture
def opened(browser, tmp_path):
    """Open report data as a file, and record errors and requests."""
    contexts = []

    def open_page(data: ReportData, source="from-cloudtrail", user_column="user", **options):
        file = tmp_path / f"report{len(contexts)}.html"
        log = build_log_view(origin(source, user_column))
        file.write_bytes(render_page(msgspec.json.encode(data), msgspec.json.encode(log)))
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
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or view.trouble.append(request.url)
            ),
        )
        view.goto(file.as_uri())
        view.wait_for_selector("body[data-ready]")
        return view

    yield open_page
    for context in contexts:
        context.close()
