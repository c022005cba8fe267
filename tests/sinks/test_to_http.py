"""Alerts over HTTP: to servers that answer, that are busy, that refuse, that say nothing."""

import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from urllib.request import Request, urlopen

import pytest

from morpheus.errors import TransientError, UsageError
from morpheus.sinks.delivery import Clock
from morpheus.sinks.to_http import ToHttp
from schema_check import ecs_faults, ocsf_faults
from services.listener import Fast, listening
from services.noida import free_port, noida
from strange import TRAIL, explained, many, plain, sent


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION"):
        monkeypatch.delenv(f"MORPHEUS_HTTP_{name}", raising=False)


@pytest.fixture
def fast():
    return Fast()


@pytest.fixture
def to(fast):
    def to(listener, **options):
        clock = Clock(fast.now, fast.sleep)
        return ToHttp(base_url=getattr(listener, "url", listener), clock=clock, **options)

    return to


def bulk_answer(statuses):
    """Answers like the bulk interface, each document with the next status, 201 at the end."""
    statuses = iter(statuses)

    def answer(request):
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

    return answer


def test_a_webhook_gets_cloudevents_with_findings_in_them(to):
    with listening() as server:
        sent(to(server, content="cloudevents"), [explained([TRAIL, TRAIL | {"eventID": "2"}])])
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
    with listening(usual=(200, {"text": "Success", "code": 0})) as server:
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
    with listening(usual=bulk_answer([])) as server:
        sent(to(server, receiver="opensearch"), [plain([TRAIL])])
    [request] = server.requests
    assert request.path == "/_bulk"
    assert request.headers["Content-Type"] == "application/x-ndjson"
    action, document = request.lines
    assert ecs_faults(document) == []
    assert action == {"create": {"_index": "morpheus-alerts", "_id": document["event"]["id"]}}


def test_rows_go_as_they_are(to):
    with listening() as server:
        sent(to(server, max_rows_per_payload=2), [many(3)])
    assert [len(json.loads(request.body)) for request in server.requests] == [2, 1]
    assert json.loads(server.requests[1].body)[0]["eventID"] == "ann-2"


def test_a_busy_server_is_tried_again_when_it_says(to, fast):
    answers = [(429, b"", {"Retry-After": "7"}), 503, 200]
    with listening(*answers) as server:
        sent(to(server), [plain([TRAIL])])
    assert fast.slept == [7.0, 1.0]
    assert len({request.body for request in server.requests}) == 1


def test_a_server_may_give_a_date_to_come_again(to, fast):
    late = (503, b"", {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"})
    past = (503, b"", {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"})
    odd = (503, b"", {"Retry-After": "soon"})
    with listening(late, past, odd) as server:
        sent(to(server), [plain([TRAIL])])
    assert fast.slept == [60.0, 1.0, 2.0]


def test_a_server_that_says_nothing_is_not_waited_for(to):
    with listening() as server:
        server.answers.append(server.hang)
        sent(to(server, request_timeout_secs=0.2), [plain([TRAIL])])
    assert len(server.requests) == 2


def test_a_server_that_never_answers_is_an_error_with_counts(to, fast):
    with listening() as server:
        server.usual = server.hang
        stage = to(server, request_timeout_secs=0.1, max_retries=2)
        with pytest.raises(
            TransientError,
            match=r"took 0 of 1 events; 1 not handed over. The first reason: no answer within 0.1",
        ):
            sent(stage, [plain([TRAIL])])
    assert fast.slept == [0.5, 1.0]


def test_ctrl_c_while_a_server_says_nothing_ends_at_once(to, caplog):
    with listening() as server:
        server.usual = server.hang
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sent(to(server), [plain([TRAIL])])
        assert time.monotonic() - begin < 5
    assert "took 0 events; 1 more had come, and are not known to have arrived" in caplog.text


def test_nobody_at_home_is_an_error_with_counts(to):
    stage = to(f"http://127.0.0.1:{free_port()}", max_retries=1)
    with pytest.raises(TransientError, match=r"not handed over.*no answer: Connection refused"):
        sent(stage, [plain([TRAIL])])


def test_a_wrong_token_is_told_at_once_and_never_shown(to, fast, monkeypatch, caplog):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "s3cret")
    with listening(usual=(403, {"text": "Invalid token", "code": 4})) as server:
        stage = to(server, receiver="splunk")
        with pytest.raises(TransientError, match=r"403 Forbidden: .*Invalid token") as told:
            sent(stage, [plain([TRAIL])])
    assert fast.slept == []
    assert "s3cret" not in str(told.value) + caplog.text + repr(stage)


def test_a_certificate_is_checked_against_those_one_trusts(to, tmp_path, monkeypatch, fast):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl to make a certificate with")
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *about]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with listening(tls=context) as server:
        stage = to(f"https://localhost:{server.port}")
        with pytest.raises(TransientError, match="certificate is not trusted: self"):
            sent(stage, [plain([TRAIL])])
        assert fast.slept == []
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        sent(stage, [plain([TRAIL])])
    assert len(server.requests) == 1


def test_a_redirection_is_not_followed(to):
    with (
        listening(usual=(302, b"", {"Location": "http://example.com"})) as server,
        pytest.raises(TransientError, match="302 Found"),
    ):
        sent(to(server), [plain([TRAIL])])
    assert len(server.requests) == 1


def test_documents_are_taken_refused_and_tried_again_one_by_one(to, tmp_path):
    dead = tmp_path / "dead.jsonl"
    statuses = [201, 429, 400, 409, 503]
    with listening(usual=bulk_answer(statuses)) as server:
        stage = to(server, receiver="elasticsearch", dead_letters=str(dead))
        with pytest.raises(
            TransientError,
            match=r"took 4 of 5 events; 1 refused. The first reason: 400: reason of 400",
        ):
            sent(stage, [plain([TRAIL | {"eventID": str(n)} for n in range(5)])])
    assert [len(request.lines) // 2 for request in server.requests] == [5, 2]
    [kept] = [json.loads(line) for line in dead.read_text().splitlines()]
    assert kept["reason"] == "400: reason of 400"
    assert ecs_faults(kept["body"]) == []


def test_an_answer_that_is_none_counts_as_none(to):
    with listening((200, b"<html>"), (200, {"items": [{}]}), usual=bulk_answer([])) as server:
        sent(to(server, receiver="opensearch"), [plain([TRAIL])])
    assert len(server.requests) == 3


def test_one_event_that_splunk_refuses_does_not_condemn_the_others(to):
    def picky(request):
        bad = b'"7"' in request.body
        return (400, {"text": "Invalid data format", "code": 6}) if bad else 200

    with listening(usual=picky) as server:
        stage = to(server, receiver="splunk", content="row")
        with pytest.raises(TransientError, match="took 8 of 9 events; 1 refused"):
            sent(stage, [plain([{"eventID": str(n)} for n in range(9)])])
    assert len(server.requests) == 9  # one for all, and two for each of four halvings


def test_a_wrong_index_in_splunk_is_not_the_events_fault(to):
    batch = plain([{"eventID": str(n)} for n in range(9)])
    with (
        listening(usual=(400, {"text": "Incorrect index", "code": 7})) as server,
        pytest.raises(TransientError, match=r"9 not handed over.*Incorrect index"),
    ):
        sent(to(server, receiver="splunk"), [batch])
    assert len(server.requests) == 1


def test_what_was_kept_is_sent_by_the_next_run(to, tmp_path):
    dead = str(tmp_path / "dead.jsonl")
    with listening(usual=503) as server, pytest.raises(TransientError, match="They are kept in"):
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
    with listening(usual=bulk_answer([])) as server:
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
def test_the_path_is_that_of_the_address_or_the_usual_one(to, base, options, path):
    with listening(usual=bulk_answer([])) as server:
        sent(to(server.url + base, **options), [plain([TRAIL])])
    assert server.requests[0].path == path


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "is no address of a server"),
        ("siem.example.com", "is no address of a server"),
        ("ftp://siem.example.com", "is no address"),
        ("https://siem.example.com/a b", "is no address.*%20"),
        ("http://siem.example.com:port", "is no address"),
        ("https://ann:secret@siem.example.com", "MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD"),
        ("https://siem.example.com/a?token=x", "has a `\\?` in it"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_read(address, said):
    with pytest.raises(UsageError, match=said) as told:
        ToHttp(base_url=address).validate()
    assert "secret" not in str(told.value)


def test_dead_letters_lie_on_disk():
    with pytest.raises(UsageError, match=r"--dead_letters: `s3://b/a.jsonl` names no file on disk"):
        ToHttp(base_url="https://siem.example.com", dead_letters="s3://b/a.jsonl").validate()


def test_a_secret_with_a_line_break_is_refused(monkeypatch):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "t\r\nX-Evil: 1")
    with pytest.raises(
        UsageError, match="MORPHEUS_HTTP_TOKEN: there is a line break or an odd sign"
    ):
        ToHttp(base_url="https://siem.example.com").validate()


def test_a_secret_in_the_clear_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("MORPHEUS_HTTP_TOKEN", "s3cret")
    ToHttp(base_url="http://127.0.0.1:1").validate()
    assert caplog.text == ""
    ToHttp(base_url="http://siem.example.com").validate()
    assert "the secret travels to `siem.example.com` in the clear" in caplog.text


def test_a_second_run_leaves_what_a_real_index_has(to):
    with noida("elasticsearch") as port:
        url = f"http://127.0.0.1:{port}"
        batch = plain([TRAIL | {"eventID": str(n)} for n in range(20)])
        for _ in range(2):
            sent(to(url, receiver="elasticsearch", max_rows_per_payload=7), [batch])
        ask = Request(f"{url}/morpheus-alerts/_refresh", method="POST")  # noqa: S310 - our own server
        urlopen(ask).close()  # noqa: S310 - the same
        with urlopen(f"{url}/morpheus-alerts/_search?size=100") as answer:  # noqa: S310 - the same
            hits = json.load(answer)["hits"]["hits"]
    assert len(hits) == 20
    assert all(hit["_id"] == hit["_source"]["event"]["id"] for hit in hits)
    assert all(ecs_faults(hit["_source"]) == [] for hit in hits)
