"""Metrics of a run: the server in the process, and the file that a scheduled run leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from morpheus.cli.output import format_progress
from morpheus.core.batch import ReadStats, RunMetrics, SinkStats, Step, StreamStats
from morpheus.errors import UsageError
from morpheus.runtime.outbox import Outbox
from morpheus.runtime.states import SqliteStateStore
from morpheus.runtime.stream import DurableStream
from morpheus.serve.metrics import (
    COUNTS,
    LEFT_OUT,
    MAX_CONNECTIONS,
    MAX_LABEL_VALUES,
    Family,
    MetricsRenderer,
    MetricsServer,
    serve_metrics,
    write_metrics_file,
)
from morpheus.status import RunWatch, read_status

MAIN = [sys.executable, "-c", "from morpheus.cli.main import main; main()"]
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$", re.MULTILINE)


def read_samples(text: str) -> dict[str, float]:
    """Return the value of each metric, by its name and labels."""
    return {name + labels: float(value) for name, labels, value in SAMPLE.findall(text)}


def get(url: str) -> tuple[int, str]:
    """Return the status and the text of a response."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310 - our own server
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def write_events(path: Path, start: int, count: int, day: int = 1) -> None:
    lines = [
        {
            "eventTime": f"2026-01-{day:02}T{start:02}:{n % 60:02}:00Z",
            "eventName": "Get" if n % 3 else "List",
            "userIdentityuserName": "ann",
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pipeline(folder: Path, *source: str) -> list[str]:
    """Return the words of a pipeline that reads and writes a folder."""
    return [
        *("pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *("from-cloudtrail", f"--input_glob={folder}/in/*.jsonl", *source),
        *("train-ae", "--train_min_history=10", "preprocess", "inf-pytorch", "add-scores"),
        *("serialize", "to-file", f"--filename={folder}/out.csv", "--overwrite"),
    ]


def run_command(folder: Path, *options: str, words: list[str] | None = None) -> tuple[int, str]:
    """Run the command over the events in a folder; return its exit code and what it says."""
    (folder / "in").mkdir(exist_ok=True)
    if not (folder / "in" / "a.jsonl").exists():
        write_events(folder / "in" / "a.jsonl", 1, 60)
    command = [*MAIN, "run", "--num_threads=1", *options, *(words or pipeline(folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def running(
    folder: Path, *options: str, more: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Watch a folder in a process of its own. Yields it, and the address of its metrics."""
    if not (folder / "in").exists():
        (folder / "in").mkdir()
        write_events(folder / "in" / "a.jsonl", 1, 60)
    word, *rest = pipeline(folder, "--watch_directory=true", "--batch_timeout=0.1")
    watching = [word, f"--state={folder}/state.db", *rest, *more]
    command = [*MAIN, "run", "--metrics_port=0", *options, *watching]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next((x for x in process.stderr if x.startswith("Metrics at ")), "no address")
            yield process, line.split()[-1].removesuffix("/metrics")
        finally:
            process.kill()


def test_a_running_stream_shows_its_counts_and_its_health_and_ends_with_the_process(tmp_path):
    with running(tmp_path) as (process, url):
        until(lambda: read_samples(get(f"{url}/metrics")[1])["morpheus_events_scored_total"] == 60)
        write_events(tmp_path / "in" / "b.jsonl", 2, 40)
        until(lambda: read_samples(get(f"{url}/metrics")[1])["morpheus_events_scored_total"] == 100)
        samples = read_samples(get(f"{url}/metrics")[1])
        assert samples["morpheus_events_read_total"] == 100
        assert samples["process_resident_memory_bytes"] > 1e6
        assert get(f"{url}/healthz") == (200, "alive\n")
        assert get(f"{url}/readyz")[0] == 200
        assert get(f"{url}/")[0] == 404
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 130
        with pytest.raises(urllib.error.URLError):
            get(f"{url}/metrics")


def test_a_sink_that_is_down_is_shown_and_does_not_stop_the_run(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    status_file = tmp_path / "status.json"
    more = ("to-http", f"--base_url=http://127.0.0.1:{port}/", "--max_retries=0")
    with running(tmp_path, f"--status_file={status_file}", more=more) as (process, url):
        failing = 'morpheus_sink_failing{sink="to-http#1",code="transient"}'
        until(lambda: read_samples(get(f"{url}/metrics")[1]).get(failing) == 1)
        write_events(tmp_path / "in" / "b.jsonl", 2, 40)
        until(lambda: read_samples(get(f"{url}/metrics")[1])["morpheus_events_read_total"] == 100)
        until(lambda: read_samples(get(f"{url}/metrics")[1])["morpheus_outbox_entries"] > 0)
        samples = read_samples(get(f"{url}/metrics")[1])
        assert samples['morpheus_sink_lag_seconds{sink="to-http#1"}'] > 0
        assert samples['morpheus_sink_lag_seconds{sink="to-file#1"}'] < 30
        assert samples["morpheus_checkpoints_total"] == samples["morpheus_checkpoint_seconds_count"]
        assert samples["morpheus_outbox_bytes"] > 0
        assert get(f"{url}/readyz")[0] == 200

        def is_in_the_status_file() -> bool:
            status = read_status(status_file)
            sinks = {} if status is None or status.stream is None else status.stream.sinks
            return any(sink.last_error == "transient" for sink in sinks.values())

        until(is_in_the_status_file)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=40)
    assert process.returncode == 130, message
    assert "Rows for `to-http#1" in message
    assert "The next run with this --state file delivers them." in message


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: apt-get install prometheus")
def test_promtool_accepts_all_metrics(tmp_path):
    metrics = RunMetrics(input=ReadStats(read=9, refused=2, outside_range=1), scored=3)
    watch = RunWatch()
    metrics.stream = make_stream()
    watch.start(metrics)
    write_metrics_file(tmp_path / "daily.prom", watch, 0)
    for text in (MetricsRenderer(watch).render(), (tmp_path / "daily.prom").read_text()):
        command = [str(shutil.which("promtool")), "check", "metrics"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def make_stream() -> StreamStats:
    """Return a stream with a partition, and with a sink that is down since 100 seconds."""
    sink = SinkStats(3, time.monotonic() - 100, 7, "transient")
    sinks = {"to-http#1 https://example.com/?key=secret": sink, "to-file#1 out.csv": SinkStats(4)}
    marks = {"topic 0": time.time() - 60}
    return StreamStats(9, 8, 1.5, 2, 3_000_000, paused=True, sinks=sinks, watermarks=marks)


def test_the_lag_of_sinks_and_partitions_has_a_line_each():
    watch, metrics = RunWatch(), RunMetrics(stream=make_stream())
    watch.start(metrics)
    text = MetricsRenderer(watch).render()
    samples = read_samples(text)
    assert 100 <= samples['morpheus_sink_lag_seconds{sink="to-http#1"}'] < 200
    assert samples['morpheus_sink_lag_seconds{sink="to-file#1"}'] == 0
    assert samples['morpheus_sink_errors_total{sink="to-http#1"}'] == 7
    assert samples['morpheus_sink_failing{sink="to-file#1",code=""}'] == 0
    assert 60 <= samples['morpheus_source_lag_seconds{partition="topic 0"}'] < 160
    assert samples["morpheus_checkpoint_seconds_sum"] == 1.5
    assert samples["morpheus_checkpoint_seconds_count"] == 8
    assert samples["morpheus_reading_paused"] == 1
    assert "secret" not in text, "the place of a sink may hold one"


def test_labels_have_a_bounded_number_of_values():
    marks = {f"topic {n:06}": 1e9 + n for n in range(10_000)}
    watch, metrics = RunWatch(), RunMetrics(stream=StreamStats(watermarks=marks))
    watch.start(metrics)
    text = MetricsRenderer(watch).render()
    assert text.count("\nmorpheus_source_lag_seconds{") == MAX_LABEL_VALUES + 1
    samples = read_samples(text)
    others = samples['morpheus_watermark_timestamp_seconds{partition="other"}']
    assert others == 1e9 + MAX_LABEL_VALUES, "the one that is furthest behind"


def test_the_progress_line_shows_how_far_a_stream_is_behind():
    stream = make_stream()
    step = Step("Watching", lambda: (1, 100), detail=stream.describe)
    line = format_progress(step, step.count(), 1.0, 2.0)
    expected = r"01:0\d behind, `to-http#1` 01:4\d behind, 3 MB wait for sinks, reading pauses"
    assert re.fullmatch(rf"Watching: 100 events, 100 events/s, 00:02, {expected}", line), line
    step = Step("Watching", lambda: (1, 100), detail=StreamStats().describe)
    assert format_progress(step, step.count(), 1.0, 2.0).endswith(" 00:02")


def test_what_is_read_is_scored_or_counted_by_reason():
    stats = ReadStats(read=20, refused=1, duplicates=2, outside_range=3, other_users=4)
    metrics = RunMetrics(input=stats, scored=5, filtered=4, users={"ann": 6})
    metrics.users = RunMetrics().users + type(metrics.unscored_filtered)(ann=6)
    metrics.unscored_filtered["ann"] = 1
    watch = RunWatch()
    watch.start(metrics)
    samples = read_samples(MetricsRenderer(watch).render())
    left_out = sum(
        samples[f'morpheus_events_left_out_total{{reason="{name}"}}'] for name in LEFT_OUT
    )
    counted = ("scored", "unscored", "refused", "duplicate")
    parts = {name: samples[f"morpheus_events_{name}_total"] for name in counted}
    assert parts == {"scored": 8, "unscored": 2, "refused": 1, "duplicate": 2}
    assert sum(parts.values()) + left_out == samples["morpheus_events_read_total"]


def test_a_late_event_of_a_stream_counts_once():
    watch = RunWatch()
    watch.start(RunMetrics(input=ReadStats(read=9, late=4), stream=StreamStats(late=4)))
    assert read_samples(MetricsRenderer(watch).render())["morpheus_events_late_total"] == 4


def test_a_counter_never_decreases():
    watch, metrics = RunWatch(), RunMetrics(filtered=10)
    watch.start(metrics)
    renderer = MetricsRenderer(watch)
    assert read_samples(renderer.render())["morpheus_events_scored_total"] == 10
    metrics.unscored_filtered["ann"] = 4  # as the run does, after it has counted the ten
    assert read_samples(renderer.render())["morpheus_events_scored_total"] == 10


def test_no_metric_names_a_user():
    metrics = RunMetrics(unscored_reasons={"ann@example.com": "no model"})
    metrics.users["ann@example.com"] = 3
    metrics.suppressed["rule of ann@example.com"] = 1
    watch = RunWatch()
    watch.start(metrics)
    assert "ann@" not in MetricsRenderer(watch).render()


@pytest.mark.parametrize(
    ("value", "shown"),
    [('a"b\\c', r"a\"b\\c"), ("x\n# y", r"x\\n# y"), ("\u202ex", r"\\u202ex")],
)
def test_a_label_cannot_break_its_line(value, shown):
    [_, _, line] = Family("m", "gauge", "Help.").render([({"file": value}, 1)])
    assert line == f'm{{file="{shown}"}} 1'


def test_a_run_without_progress_is_alive_but_not_ready():
    now = [0.0]
    watch, metrics = RunWatch(lambda: now[0]), RunMetrics()
    watch.start(metrics)
    with serve_metrics(watch, "127.0.0.1", 0, 60.0) as server:
        assert get(f"{server.url}/readyz")[0] == 200
        now[0] = 61.0
        assert get(f"{server.url}/readyz") == (
            503,
            "not ready: progress 61 s ago, 60 s allowed\n",
        )
        assert get(f"{server.url}/healthz")[0] == 200
        metrics.input.read += 1
        assert get(f"{server.url}/readyz")[0] == 200


def test_progress_is_the_step_its_counts_and_the_records_read():
    times = iter(range(1, 100))
    watch, metrics, done = RunWatch(lambda: float(next(times))), RunMetrics(), [0]
    watch.start(metrics)
    begin = watch.follow_steps(None)
    seen = [watch.poll(), watch.poll()]
    begin(Step("Reading", lambda: (done[0], 0)))
    seen += [watch.poll(), watch.poll()]
    done[0] = 1
    seen += [watch.poll(), watch.poll()]
    metrics.training.read = 1
    seen += [watch.poll(), watch.poll()]
    metrics.stream = StreamStats()
    seen += [watch.poll(), watch.poll()]
    metrics.tick()  # without an event
    seen += [watch.poll(), watch.poll()]
    assert len(set(seen)) == 6
    assert seen[::2] == seen[1::2]


def test_only_get_and_head_are_served():
    with serve_metrics(RunWatch(), "127.0.0.1", 0, 60.0) as server:
        for method, status in (("HEAD", 200), ("POST", 501), ("DELETE", 501)):
            with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as client:
                client.request(method, "/metrics")
                response = client.getresponse()
                assert (response.status, response.read() == b"") == (status, status == 200)


def test_idle_connections_do_not_pile_up():
    with serve_metrics(RunWatch(), "127.0.0.1", 0, 60.0) as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address) for _ in range(MAX_CONNECTIONS)]
        with closing(socket.create_connection(address, timeout=20)) as one_more:
            assert one_more.recv(1) == b""  # closed without a response
        for each in idle:
            each.close()

        def responds() -> bool:
            try:
                return get(f"{server.url}/healthz")[0] == 200
            except OSError:
                return False

        until(responds)


def test_a_port_in_use_is_a_wrong_option():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--metrics_port: cannot listen on 127.0.0.1:{port}"):
            MetricsServer(RunWatch(), "127.0.0.1", port, 60.0)
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:0: .* assign"):
        MetricsServer(RunWatch(), "192.0.2.1", 0, 60.0)  # an address for documentation


def test_a_process_that_starts_again_listens_on_the_port_that_was_read_from():
    with serve_metrics(RunWatch(), "127.0.0.1", 0, 60.0) as server:
        port = server.server_port
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        while client.recv(1000):  # the server has closed it first, so the port waits for a minute
            pass
        client.close()
    MetricsServer(RunWatch(), "127.0.0.1", port, 60.0).server_close()


def test_options_of_the_server_need_a_port(tmp_path):
    code, text = run_command(tmp_path, "--metrics_host=0.0.0.0")
    assert code == 2
    assert "--metrics_host: needs --metrics_port. Add it, or leave --metrics_host out." in text
    assert not (tmp_path / "out.csv").exists()


def test_the_file_tells_a_success_from_a_failure_and_keeps_the_last_success(tmp_path):
    file = tmp_path / "daily.prom"
    assert run_command(tmp_path, f"--metrics_file={file}")[0] == 0
    first = read_samples(file.read_text())
    assert first['morpheus_run_exit_code{run="daily"}'] == 0
    assert first['morpheus_run_events_scored{run="daily"}'] == 60
    assert first['morpheus_run_duration_seconds{run="daily"}'] > 0
    success = first['morpheus_run_last_success_timestamp_seconds{run="daily"}']
    assert success == first['morpheus_run_end_timestamp_seconds{run="daily"}']
    assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044, "node_exporter is another user"

    (tmp_path / "in" / "a.jsonl").write_text("not a record\n")
    code, _ = run_command(tmp_path, f"--metrics_file={file}")
    assert code == 1
    second = read_samples(file.read_text())
    assert second['morpheus_run_exit_code{run="daily"}'] == 1
    assert second['morpheus_run_last_success_timestamp_seconds{run="daily"}'] == success
    assert second['morpheus_run_end_timestamp_seconds{run="daily"}'] > success


def test_a_run_is_complete_also_if_its_file_cannot_be_written(tmp_path):
    file = tmp_path / "out.csv" / "daily.prom"  # the output takes the place of its folder
    code, text = run_command(tmp_path, f"--metrics_file={file}")
    assert code == 0
    assert f"--metrics_file: Cannot write `{file}`" in text
    assert (tmp_path / "out.csv").is_file()


def test_the_file_of_a_wrong_pipeline_has_its_exit_code(tmp_path):
    file = tmp_path / "daily.prom"
    words = ["pipeline-ae", "from-cloudtrail", f"--input_glob={tmp_path}/in/*.jsonl", "preprocess"]
    code, _ = run_command(tmp_path, f"--metrics_file={file}", words=words)
    assert code == 2
    assert read_samples(file.read_text())['morpheus_run_exit_code{run="daily"}'] == 2
    assert "last_success" not in file.read_text()


def test_a_file_that_node_exporter_ignores_is_rejected(tmp_path):
    code, text = run_command(tmp_path, f"--metrics_file={tmp_path}/daily.txt")
    assert code == 2
    assert "--metrics_file" in text
    assert "Use .prom" in text
    assert not (tmp_path / "out.csv").exists()


def test_the_module_is_loaded_only_for_its_options(tmp_path):
    (tmp_path / "in").mkdir()
    write_events(tmp_path / "in" / "a.jsonl", 1, 60)
    code = (
        "import sys; from morpheus.cli.main import morpheus\n"
        f"morpheus(['run', *{pipeline(tmp_path)!r}], standalone_mode=False)\n"
        "print({'morpheus.serve.metrics', 'http.server'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_every_count_says_what_it_counts():
    assert [text for text, _ in COUNTS.values() if not text.endswith(".")] == []


def test_a_run_that_waits_for_room_in_the_outbox_makes_progress(tmp_path):
    store = SqliteStateStore(tmp_path / "state.db", {})
    stats, ticks, looks = StreamStats(outbox_bytes=10**12), [], iter([False, False, True])
    metrics = RunMetrics(stream=stats, on_tick=lambda: ticks.append(stats.paused))
    stream = DurableStream(
        [], metrics, store=store, outbox=Outbox(store), is_stopped=lambda: next(looks)
    )
    stream._wait_for_room(stats)  # noqa: SLF001 - the loop around it needs a sink that is down
    store.close()
    assert ticks == [True, True], "so systemd does not take it for one that hangs"
