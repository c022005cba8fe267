"""The server as it is: a process of its own, asked over HTTP, and by a browser."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from live_rows import append, row, until
from morpheus.cli.main import morpheus

MEASURE = (Path(__file__).parents[1] / "report" / "layout.js").read_text(encoding="utf-8")
HOSTILE = '</script><img src=x onerror="alert(1)">\u202e'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("out")
    append(found / "alerts.jsonl", row("ann"), row("bob", 7200))
    return found


@pytest.fixture(scope="module")
def server(served, folder):
    return served(folder)


def health_value(server, wanted, seconds=20):
    """The first news for which something holds."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        lines = (
            "GET /updates HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            f"Authorization: Bearer {server.token}",
        )
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        text = b""
        while True:
            text += connection.recv(65536)
            for line in re.findall(rb"^data: (.*)\r?\n", text, re.MULTILINE):
                if wanted(health := json.loads(line)):
                    return health


def test_the_token_in_the_address_is_changed_for_a_cookie_that_lets_in(server):
    answer, body = server.ask(f"/?token={server.token}", bearer=False)
    assert (answer.status, answer.getheader("Location"), body) == (303, "/", b"")
    cookie = answer.getheader("Set-Cookie")
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    answer, body = server.ask("/", bearer=False, Cookie=cookie.partition(";")[0])
    assert answer.status == 200
    assert server.token.encode() not in body


@pytest.mark.parametrize("path", ["/", "/data", "/updates", "/nowhere", "/?token=wrong"])
def test_nothing_is_told_without_the_token(server, path):
    port = server.port
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {server.token}"},
        {"Cookie": f"morpheus-{port}=x; other={server.token}"},
        {"Cookie": "\xff\udcff=".encode("utf-8", "surrogateescape").decode("latin-1")},
    ):
        answer, body = server.ask(path, bearer=False, **headers)
        assert answer.status == 401, headers
        assert body.startswith(b"Open the address that `morpheus serve` printed")
        assert b"ann" not in body


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1.evil.example:{}", ""],
)
def test_a_request_to_another_name_is_refused_though_it_has_the_token(server, host):
    answer, body = server.ask("/data", Host=host.format(server.port))
    assert answer.status in {400, 421}
    assert b"ann" not in body


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LocalHost:{}"])
def test_this_machine_s_own_names_are_answered(server, host):
    assert server.ask("/data", Host=host.format(server.port))[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_nothing_can_be_changed(server, method):
    answer, _ = server.ask("/data", method)
    assert (answer.status, answer.getheader("Allow")) == (405, "GET")


@pytest.mark.parametrize("path", ["/", "/data", "/nowhere"])
@pytest.mark.parametrize("bearer", [True, False])
def test_every_answer_says_what_browsers_must_not_do(server, path, bearer):
    answer, _ = server.ask(path, bearer=bearer)
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    policy = answer.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert policy.endswith("frame-ancestors 'none'")
    assert answer.getheader("Server") is None
    assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_on_this_machine_s_own_address_alone(server):
    with Path(f"/proc/{server.process.pid}/net/tcp").open() as sockets:
        listening = [line.split()[1] for line in sockets if line.split()[3] == "0A"]
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening


def test_the_token_is_told_once_and_is_long(server):
    server.ask(f"/?token={server.token}", bearer=False)
    assert len(server.token) >= 43
    assert sum(server.token in line for line in server.said) == 1


def test_rows_that_come_are_told_to_whoever_listens(served, tmp_path):
    append(tmp_path / "a.jsonl", row())
    server = served(tmp_path, "--alerts_per_day=3")
    first = health_value(server, lambda health: health["rows"] == 1)
    append(tmp_path / "b.jsonl", row("eve", 7200), "no json\n")
    later = health_value(server, lambda health: health["rows"] == 2)
    assert later["version"] > first["version"]
    assert (later["allowed"], later["unread"]) == (3.0, 1)
    users = [one["incident"]["user"] for one in json.loads(server.ask("/data")[1])["incidents"]]
    assert sorted(users) == ["ann", "eve"]


def test_without_a_token_everybody_on_this_machine_can_read(served, folder):
    server = served(folder, "--token=false")
    assert "token" not in server.address
    assert server.ask("/data", bearer=False)[0].status == 200
    assert server.ask("/data", bearer=False, Host="evil.example")[0].status == 421


def test_ctrl_c_ends_it_while_somebody_listens(served, folder):
    server = served(folder)
    health_value(server, lambda health: health["rows"] == 2)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        lines = ("GET /updates HTTP/1.1", f"Host: 127.0.0.1:{server.port}")
        text = "\r\n".join([*lines, f"Authorization: Bearer {server.token}", "", ""])
        connection.sendall(text.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=20) == 130
    assert "Traceback" not in "".join(server.said)


def run(*words):
    command = [sys.executable, "-c", "from morpheus.cli.main import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_told(tmp_path):
    done = run("serve", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "FOLDER: there is no folder `" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", str(tmp_path), f"--port={port}")
    assert done.returncode == 2
    assert f"--port: cannot listen on 127.0.0.1:{port}: " in done.stderr


def test_without_its_extra_the_command_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None\nfrom morpheus.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "`uvicorn` is not installed. Type `pip install 'morpheus-dfp[serve]'`." in done.stderr
    assert morpheus.lazy["serve"].load().get_short_help_str()


@pytest.fixture
def view(browser, served, tmp_path):
    """A browser that has opened what is served of a folder, and what went wrong in it."""
    append(tmp_path / "alerts.jsonl", row("ann"), row("bob", 7200, risk=4.0))
    server = served(tmp_path)
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    view = context.new_page()
    view.folder, view.server, view.trouble, view.visits = tmp_path, server, [], []
    view.on("response", lambda answer: view.visits.append(answer.url))
    view.on("console", lambda message: view.trouble.append(message.text))
    view.on("pageerror", lambda error: view.trouble.append(str(error)))
    view.on("dialog", lambda dialog: view.trouble.append(dialog.message))
    view.goto(server.address)
    view.wait_for_selector("body[data-ready]")
    yield view
    context.close()


def users_of(view):
    return view.locator("#queue tbody button.user").all_inner_texts()


def test_an_alert_appears_without_a_reload_and_the_reader_stays_where_they_are(view):
    assert users_of(view) == ["ann", "bob"]
    assert view.url == f"http://127.0.0.1:{view.server.port}/", "no token in the address"
    view.locator("#queue tbody tr", has_text="bob").click()
    view.locator("#search").fill("bob")
    visits = len(view.visits)
    append(view.folder / "alerts.jsonl", row("bob", 100000, risk=30.0), row("eve", 100000))
    view.locator("#queue tbody tr").nth(1).wait_for()
    assert users_of(view) == ["bob", "bob"], "the search holds"
    assert view.locator("#search:focus").input_value() == "bob"
    assert "bob" in view.locator("#detail h2").first.inner_text()
    assert view.locator("#leaders button").first.inner_text().startswith("bob ")
    until(lambda: "4 rows" in view.locator("#live").inner_text())
    assert "2 of 5" in view.locator("#budget").inner_text(), "those of the latest day"
    assert {url.rpartition("/")[2] for url in view.visits[visits:]} == {"data"}, "no reload"
    assert view.trouble == []


def test_what_a_log_says_runs_nothing_on_the_live_page(view):
    append(view.folder / "new.jsonl", row(HOSTILE, 90000, risk=50.0, eventName=HOSTILE))
    view.locator("#queue tbody tr").nth(2).wait_for()
    shown = '</script><img src=x onerror="alert(1)">\\u{202e}'
    view.locator("#leaders button").nth(2).wait_for()
    assert shown in view.locator("#leaders").inner_text()
    assert view.trouble == []


def test_a_note_that_is_being_written_stays(view):
    view.locator("#queue tbody tr", has_text="ann").click()
    view.keyboard.press("1")
    note = view.locator("#detail input[type=text]")
    note.press_sequentially("asked her, ")
    append(view.folder / "alerts.jsonl", row("ann", 60, risk=6.0), row("eve", 20000))
    view.locator("#queue tbody tr").nth(2).wait_for()
    note.press_sequentially("fine")
    assert note.input_value() == "asked her, fine"
    assert view.trouble == []


def test_the_live_page_fits_on_every_screen(view):
    view.wait_for_selector("#live-facts div")
    append(view.folder / "alerts.jsonl", row("x" * 200, 20000, eventName="y" * 200, risk=9.0))
    view.locator("#queue tbody tr").nth(2).wait_for()
    for width in (390, 1440, 1920):
        view.set_viewport_size({"width": width, "height": 900})
        view.wait_for_timeout(50)
        assert view.evaluate(MEASURE) == [], width
    assert view.trouble == []


def test_a_folder_without_rows_says_that_they_are_awaited(browser, served, tmp_path):
    context = browser.new_context()
    view = context.new_page()
    view.goto(served(tmp_path).address)
    view.wait_for_selector("body[data-ready]")
    assert "Nothing yet: there is no row in this folder." in view.locator("#queue").inner_text()
    append(tmp_path / "alerts.jsonl", row("ann"))
    view.locator("#queue button.user", has_text="ann").wait_for()
    context.close()


def test_that_the_server_is_gone_is_said(view):
    view.wait_for_selector("#live-facts div")
    view.server.process.terminate()
    view.wait_for_selector("#live .late")
    assert "connection lost, retrying" in view.locator("#live").inner_text()
