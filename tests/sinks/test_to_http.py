"""Alerts over HTTP: to servers that accept, are busy, reject, or do not respond."""

import base64
import json
import os
import signal
import socket
import threading
import time
from contextlib import closing, suppress
from itertools import product
from urllib.request import Request, urlopen

import pytest

from morpheus.errors import TransientError, UsageError
from morpheus.sinks import to_http
from morpheus.sinks.delivery import Clock
from morpheus.sinks.to_http import HttpClient, ToHttp
from schema_check import ecs_faults, ocsf_faults
from services.listener import FakeClock, listening, make_certificate
from services.noida import free_port, noida
from strange import TRAIL, days, explained, many, plain, sent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION"):
        monkeypatch.delenv(f"MORPHEUS_HTTP_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def fake_clock():
    return FakeClock()


@pytest.fixture
def to(fake_clock):
    def to(listener, **options):
        clock = Clock(fake_clock.now, fake_clock.sleep)
        return ToHttp(base_url=getattr(listener, "url", listener), clock=clock, **options)

    return to


def bulk_response(statuses):
    """Responses like the bulk API: each document gets the next status, then 201."""
    statuses = iter(statuses)

    def respond(request):
        if not request.path.endswith("_bulk"):
            return 200
        items = []
        for action in request.lines[::2]:
            status = next(statuses, 201)
            item = {"_id": action["create"]["_id"], "status": status}
            if status >= 300:
                item["error"] = {"type": "some_exception", "reason": f"reason of {status}"}
            items.append({"create": item})
        return 200, {"errors": True, "items": items}

    return respond


def test_webhook_gets_cloudevents_with_findings(to):
    with listening() as server:
        two_days = explained([TRAIL, TRAIL | {"eventID": "2"}], seconds=[0, 86_400])
        sent(to(server, content="cloudevents"), [two_days])
    [request] = server.requests
    assert request.path == "/"
    assert request.headers["Content-Type"] == "application/cloudevents-batch+json"
    first, second = json.loads(request.body)
    assert ocsf_faults(first["data"]) == []
    assert first["specversion"] == "1.0"
    assert first["id"] == first["data"]["finding_info"]["uid"] != second["id"]
    assert first["source"] == "urn:morpheus:from-cloudtrail"
    assert first["subject"] == "ann"
    assert first["time"] == "2021-10-09T00:00:00Z"
    assert "Authorization" not in request.headers


def test_splunk_gets_events_in_its_envelope(to, monkeypatch):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "s3cret")
    with listening(default=(200, {"text": "Success", "code": 0})) as server:
        sent(to(server, receiver="splunk", index="alerts"), [plain([TRAIL], seconds=[1.5])])
    [request] = server.requests
    assert request.path == "/services/collector/event"
    assert request.headers["Authorization"] == "Splunk s3cret"
    [event] = request.lines
    assert event["time"] == 1633737601.5
    assert (event["index"], event["sourcetype"]) == ("alerts", "morpheus:alert")
    assert ocsf_faults(event["event"]) == []
    assert event["fields"] == {"alert_id": event["event"]["finding_info"]["uid"]}


def test_opensearch_gets_documents_under_their_own_ids(to):
    with listening(default=bulk_response([])) as server:
        sent(to(server, receiver="opensearch"), [plain([TRAIL])])
    [request] = server.requests
    assert request.path == "/_bulk"
    assert request.headers["Content-Type"] == "application/x-ndjson"
    action, document = request.lines
    assert ecs_faults(document) == []
    assert action == {"create": {"_index": "morpheus-alerts", "_id": document["event"]["id"]}}


def test_rows_are_sent_in_payloads(to):
    with listening() as server:
        sent(to(server, max_rows_per_payload=2), [many(3)])
    assert [len(json.loads(request.body)) for request in server.requests] == [2, 1]
    assert json.loads(server.requests[1].body)[0]["eventID"] == "ann-2"


def test_busy_server_is_retried_after_the_requested_time(to, fake_clock):
    responses = [(429, b"", {"Retry-After": "7"}), 503, 200]
    with listening(*responses) as server:
        sent(to(server), [plain([TRAIL])])
    assert fake_clock.slept == [7.0, 1.0]
    assert len({request.body for request in server.requests}) == 1


def test_retry_after_may_be_a_date(to, fake_clock):
    late = (503, b"", {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"})
    past = (503, b"", {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"})
    odd = (503, b"", {"Retry-After": "soon"})
    with listening(late, past, odd) as server:
        sent(to(server), [plain([TRAIL])])
    assert fake_clock.slept == [60.0, 1.0, 2.0]


def test_silent_server_times_out_and_is_retried(to):
    with listening() as server:
        server.responses.append(server.hang)
        sent(to(server, request_timeout_secs=0.2), [plain([TRAIL])])
    assert len(server.requests) == 2


def test_server_that_never_responds_is_an_error_with_counts(to, fake_clock):
    with listening() as server:
        server.default = server.hang
        stage = to(server, request_timeout_secs=0.1, max_retries=2)
        with pytest.raises(
            TransientError,
            match=r"accepted 0 of 1 events; 1 not delivered.*no answer within 0.1",
        ):
            sent(stage, [plain([TRAIL])])
    assert fake_clock.slept == [0.5, 1.0]


def test_ctrl_c_while_a_server_is_silent_ends_at_once(to, caplog):
    with listening() as server:
        server.default = server.hang
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sent(to(server), [plain([TRAIL])])
        assert time.monotonic() - begin < 5
    assert "accepted 0 events; 1 more may not have arrived" in caplog.text


def test_refused_connection_is_an_error_with_counts(to):
    stage = to(f"http://127.0.0.1:{free_port()}", max_retries=1)
    with pytest.raises(TransientError, match=r"not delivered.*no answer: Connection refused"):
        sent(stage, [plain([TRAIL])])


def test_wrong_token_fails_at_once_and_is_never_shown(to, fake_clock, monkeypatch, caplog):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "s3cret")
    with listening(default=(403, {"text": "Invalid token s3cret", "code": 4})) as server:
        stage = to(server, receiver="splunk")
        with pytest.raises(TransientError, match=r"403 Forbidden \(code 4, the token") as raised:
            sent(stage, [plain([TRAIL])])
    assert fake_clock.slept == []
    assert "s3cret" not in str(raised.value) + caplog.text + repr(stage)


def test_certificate_is_verified_against_trusted_ones(to, tmp_path, monkeypatch, fake_clock):
    context, certificate = make_certificate(tmp_path)
    with listening(tls=context) as server:
        stage = to(f"https://localhost:{server.port}")
        with pytest.raises(TransientError, match="certificate is not trusted: self"):
            sent(stage, [plain([TRAIL])])
        assert fake_clock.slept == []
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        sent(stage, [plain([TRAIL])])
    assert len(server.requests) == 1


def test_redirect_is_not_followed(to):
    with (
        listening(default=(302, b"", {"Location": "http://example.com"})) as server,
        pytest.raises(TransientError, match="302 Found"),
    ):
        sent(to(server), [plain([TRAIL])])
    assert len(server.requests) == 1


def test_connection_is_kept_open_between_requests(to):
    with listening(protocol="HTTP/1.1") as server:
        sent(to(server, max_rows_per_payload=1), [many(3)])
    assert len(server.requests) == 3
    assert server.connections == 1


def test_connection_that_the_server_closes_is_opened_again(to, fake_clock):
    with listening(protocol="HTTP/1.0") as server:
        sent(to(server, max_rows_per_payload=1), [many(3)])
    assert server.connections == 3
    assert fake_clock.slept == []


def test_response_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(to_http, "MAX_RESPONSE_BYTES", 10)
    with (
        listening(default=(403, b"x" * 1_000_000), protocol="HTTP/1.1") as server,
        closing(HttpClient(server.url, {}, 5.0)) as client,
    ):
        assert client(b"[]", "application/json").body == b"x" * 10


@pytest.mark.parametrize(
    "case", tuple(product(["webhook", "splunk", "opensearch"], [200, 400, 403, 503]))
)
def test_no_text_of_an_answer_is_shown_or_kept(to, tmp_path, caplog, case):
    receiver, status = case
    dead = tmp_path / "dead.jsonl"
    echo = {"text": "s3cret", "error": {"type": "s3cret", "reason": "s3cret"}, "code": "s3cret"}
    item = {"create": {"status": 400, "error": {"type": "s3cret", "reason": "Bearer s3cret"}}}
    with listening(default=(status, echo | {"items": [item], "errors": True})) as server:
        stage = to(server, receiver=receiver, dead_letters=str(dead), max_retries=1)
        if (receiver, status) in {("webhook", 200), ("splunk", 200)}:
            sent(stage, [plain([TRAIL])])
            return
        with pytest.raises(TransientError) as raised:
            sent(stage, [plain([TRAIL])])
    assert "s3cret" not in str(raised.value) + caplog.text + dead.read_text()


def test_a_server_that_sends_a_byte_now_and_then_ends_at_the_total_time(to):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(TransientError, match=r"no whole answer within 0\.\d+ seconds"):
            sent(to(url, total_timeout_secs=0.4), [plain([TRAIL])])
        stop.set()
    assert time.monotonic() - start < 5


def test_proxy_comes_from_the_environment(to, monkeypatch):
    with listening() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://ann:s3cret@"))
        sent(to("http://siem.example.invalid"), [plain([TRAIL])])
        [request] = proxy.requests
        assert request.path == "http://siem.example.invalid/"
        login = base64.b64encode(b"ann:s3cret").decode()
        assert request.headers["proxy-authorization"] == f"Basic {login}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with listening() as server:
            sent(to(server), [plain([TRAIL])])
        assert len(server.requests) == 1
        assert len(proxy.requests) == 1


def test_proxy_that_does_not_answer_is_named_without_its_password(to, monkeypatch, caplog):
    monkeypatch.setenv("http_proxy", f"http://ann:s3cret@127.0.0.1:{free_port()}")
    with pytest.raises(TransientError, match="no answer from the proxy: ") as raised:
        sent(to("http://siem.example.invalid", max_retries=0), [plain([TRAIL])])
    assert "s3cret" not in str(raised.value) + caplog.text


def test_documents_are_accepted_rejected_and_retried_one_by_one(to, tmp_path):
    dead = tmp_path / "dead.jsonl"
    statuses = [201, 429, 400, 409, 503]
    with listening(default=bulk_response(statuses)) as server:
        stage = to(server, receiver="elasticsearch", dead_letters=str(dead))
        with pytest.raises(
            TransientError,
            match=r"accepted 4 of 5 events; 1 rejected. The first reason: 400: some_exception",
        ):
            sent(stage, [days(5)])
    assert [len(request.lines) // 2 for request in server.requests] == [5, 2]
    [kept] = [json.loads(line) for line in dead.read_text().splitlines()]
    assert kept["reason"] == "400: some_exception"
    assert ecs_faults(kept["body"]) == []


def test_invalid_response_is_retried(to):
    with listening((200, b"<html>"), (200, {"items": [{}]}), default=bulk_response([])) as server:
        sent(to(server, receiver="opensearch"), [plain([TRAIL])])
    assert len(server.requests) == 3


def test_one_event_that_splunk_rejects_does_not_reject_the_others(to):
    def picky(request):
        bad = b'"7"' in request.body
        return (400, {"text": "Invalid data format", "code": 6}) if bad else 200

    with listening(default=picky) as server:
        stage = to(server, receiver="splunk", content="row")
        with pytest.raises(TransientError, match="accepted 8 of 9 events; 1 rejected"):
            sent(stage, [plain([{"eventID": str(n)} for n in range(9)])])
    assert len(server.requests) == 9  # one for all, then two for each of four splits


def test_wrong_splunk_index_is_not_blamed_on_the_events(to):
    batch = days(9)
    with (
        listening(default=(400, {"text": "Incorrect index", "code": 7})) as server,
        pytest.raises(TransientError, match=r"9 not delivered.*the index is not correct"),
    ):
        sent(to(server, receiver="splunk"), [batch])
    assert len(server.requests) == 1


def test_next_run_sends_dead_letters(to, tmp_path):
    dead = str(tmp_path / "dead.jsonl")
    with (
        listening(default=503) as server,
        pytest.raises(TransientError, match="The events are kept in"),
    ):
        sent(to(server, dead_letters=dead, max_retries=0), [plain([TRAIL])])
    with listening() as server:
        sent(to(server, dead_letters=dead), [plain([TRAIL | {"eventID": "new"}])])
    [old], [new] = [json.loads(request.body) for request in server.requests]
    assert (old["eventID"], new["eventID"]) == (TRAIL["eventID"], "new")
    assert not (tmp_path / "dead.jsonl").exists()


@pytest.mark.parametrize(
    ("variables", "receiver", "header"),
    [
        ({"TOKEN": "t"}, "webhook", "Bearer t"),
        ({"TOKEN": "t"}, "elasticsearch", "ApiKey t"),
        (
            {"USER": "ann", "PASSWORD": "p:w"},
            "opensearch",
            "Basic " + base64.b64encode(b"ann:p:w").decode(),
        ),
        ({"AUTHORIZATION": "Custom x", "TOKEN": "t"}, "webhook", "Custom x"),
    ],
)
def test_secrets_come_from_the_environment(to, monkeypatch, variables, receiver, header):
    for name, value in variables.items():
        monkeypatch.setenv(f"MORPHEUS_HTTP_{name}", value)
    with listening(default=bulk_response([])) as server:
        sent(to(server, receiver=receiver), [plain([TRAIL])])
    assert server.requests[0].headers["Authorization"] == header


@pytest.mark.parametrize(
    ("base", "options", "path"),
    [
        ("", {}, "/"),
        ("/hook/1", {}, "/hook/1"),
        ("/", {"endpoint": "a/b?c=d"}, "/a/b?c=d"),
        ("/es/", {"receiver": "opensearch", "endpoint": "/_bulk"}, "/es/_bulk"),
        ("/es/_bulk", {"receiver": "opensearch"}, "/es/_bulk"),
    ],
)
def test_path_is_that_of_the_address_or_the_default(to, base, options, path):
    with listening(default=bulk_response([])) as server:
        sent(to(server.url + base, **options), [plain([TRAIL])])
    assert server.requests[0].path == path


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "is not the address of a server"),
        ("siem.example.com", "is not the address of a server"),
        ("ftp://siem.example.com", "is not the address"),
        ("https://siem.example.com/a b", "is not the address.*%20"),
        ("http://siem.example.com:port", "is not the address"),
        ("https://ann:secret@siem.example.com", "MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD"),
        ("https://siem.example.com/a?token=x", "contains a `\\?`"),
    ],
)
def test_invalid_address_is_rejected_before_the_run(address, message):
    with pytest.raises(UsageError, match=message) as raised:
        ToHttp(base_url=address).validate()
    assert "secret" not in str(raised.value)


def test_dead_letters_must_be_on_disk():
    with pytest.raises(UsageError, match=r"--dead_letters: `s3://b/a.jsonl` is not a file on disk"):
        ToHttp(base_url="https://siem.example.com", dead_letters="s3://b/a.jsonl").validate()


def test_secret_with_a_line_break_is_rejected(monkeypatch):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "t\r\nX-Evil: 1")
    with pytest.raises(UsageError, match="MORPHEUS_HTTP_TOKEN: it contains a line break"):
        ToHttp(base_url="https://siem.example.com").validate()


def test_a_secret_can_be_in_a_file_of_its_own(to, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN_FILE", str(tmp_path / "token"))
    with listening(default=bulk_response([])) as server:
        sent(to(server), [plain([TRAIL])])
    assert server.requests[0].headers["Authorization"] == "Bearer s3cret"
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "another")
    with pytest.raises(UsageError, match="MORPHEUS_HTTP_TOKEN_FILE are both set"):
        ToHttp(base_url="https://siem.example.com").validate()


def test_a_file_of_a_secret_that_is_not_there_is_a_wrong_option(monkeypatch, tmp_path):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN_FILE", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"MORPHEUS_HTTP_TOKEN_FILE: `.*gone` cannot be read: No"):
        ToHttp(base_url="https://siem.example.com").validate()


def test_unencrypted_secret_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "s3cret")
    ToHttp(base_url="http://127.0.0.1:1").validate()
    assert caplog.text == ""
    ToHttp(base_url="http://siem.example.com").validate()
    assert "the secret is sent to `siem.example.com` unencrypted" in caplog.text


def test_second_run_does_not_duplicate_documents_in_a_real_index(to):
    with noida("elasticsearch") as port:
        url = f"http://127.0.0.1:{port}"
        batch = days(20)
        for _ in range(2):
            sent(to(url, receiver="elasticsearch", max_rows_per_payload=7), [batch])
        refresh = Request(f"{url}/morpheus-alerts/_refresh", method="POST")  # noqa: S310 - our own server
        urlopen(refresh).close()  # noqa: S310 - our own server
        with urlopen(f"{url}/morpheus-alerts/_search?size=100") as response:  # noqa: S310 - our own server
            hits = json.load(response)["hits"]["hits"]
    assert len(hits) == 20
    assert all(hit["_id"] == hit["_source"]["event"]["id"] for hit in hits)
    assert all(ecs_faults(hit["_source"]) == [] for hit in hits)
