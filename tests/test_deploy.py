"""The files in deploy/: each is checked by the program that reads it, if that is installed.

Command lines in them are parsed as the command does it. Metrics in the dashboard and in the alert
rules are those that `/metrics` and `--metrics_file` have.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import RawConfigParser
from fnmatch import fnmatch
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from command_lines import check_command
from morpheus.cli.main import iter_variables, morpheus
from morpheus.core.batch import RunMetrics, SinkStats, StreamStats
from morpheus.errors import EXIT_INTERRUPTED, UsageError
from morpheus.serve.metrics import MetricsRenderer, serve_metrics, write_metrics_file
from morpheus.status import RunWatch, read_status
from services.noida import noida
from test_metrics import MAIN, until

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("morpheus*"))
SERVICES = sorted((DEPLOY / "systemd").glob("*.service"))
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
INSTALLED = "/opt/morpheus/bin/morpheus"
OF_PROMETHEUS = {"up"}
_METRIC = re.compile(r"\b(?:morpheus|process)_[a-z_]+\b|\bup\b")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip a test without a program."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program}: apt-get install {package}"
    )


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def read_unit(path: Path) -> dict[str, list[str]]:
    """Return the values of each setting of a unit."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def exported_metrics(folder: Path) -> set[str]:
    """Return the names of all metrics, of a service and of a scheduled run."""
    watch, metrics = RunWatch(), RunMetrics()
    watch.start(metrics)
    stream = StreamStats(sinks={"to-file#1 a": SinkStats()}, watermarks={"a": time.time()})
    metrics.stream = stream
    write_metrics_file(folder / "daily.prom", watch, 0)
    text = MetricsRenderer(watch).render() + (folder / "daily.prom").read_text()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


# systemd.


@needs("systemd-analyze", "systemd")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = path.read_text().replace(INSTALLED, sys.executable)
        (tmp_path / path.name).write_text(text)
    names = [f"./{path.name}" for path in UNITS]
    done = run("systemd-analyze", "verify", *names, cwd=tmp_path)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "morpheus" in line]
    assert ours == []


@needs("systemd-analyze", "systemd")
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_has_few_rights(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path)
    words = ("systemd-analyze", "security", "--offline=true", "--threshold=20", f"./{path.name}")
    run(*words, cwd=tmp_path)  # of 100


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_the_command_of_a_service_is_right(path: Path) -> None:
    [command] = read_unit(path)["ExecStart"]
    words = shlex.split(command.replace("${STATE_DIRECTORY}", "/var/lib/morpheus"))
    assert words[0] == INSTALLED
    check_command(["morpheus", *words[1:]])


def test_systemd_knows_the_exit_codes() -> None:
    unit = read_unit(DEPLOY / "systemd" / "morpheus.service")
    assert unit["Type"] == ["notify"]
    assert unit["SuccessExitStatus"] == [str(EXIT_INTERRUPTED)]
    assert unit["RestartPreventExitStatus"] == [str(UsageError.exit_code)]


# Prometheus and Grafana.


def queries_of(panels: list[dict]) -> Iterator[str]:
    for panel in panels:
        yield from (target["expr"] for target in panel["targets"])


def test_the_dashboard_queries_metrics_that_exist(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "morpheus.json").read_text())
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"][1:]]
    used = set(_METRIC.findall(" ".join([*queries_of(dashboard["panels"]), *variables])))
    assert len(used) > 20
    assert used <= exported_metrics(tmp_path)


def test_the_alert_rules_query_metrics_that_exist(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    used = set(_METRIC.findall(" ".join(re.findall(r"expr: (.*)", text))))
    assert len(used) > 10
    assert used <= exported_metrics(tmp_path) | OF_PROMETHEUS


@needs("promtool", "prometheus")
def test_prometheus_accepts_the_alert_rules_and_they_raise_alerts() -> None:
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "config", "prometheus.yml", cwd=folder)
    run("promtool", "test", "rules", "alerts_test.yml", cwd=folder)


def test_the_page_says_what_each_metric_is(tmp_path: Path) -> None:
    named = set(re.findall(r"`([a-z_]+)(?:\{.*?\})?`", PAGE))
    names = {re.sub(r"_(sum|count)$", "", name) for name in exported_metrics(tmp_path)}
    # Those of a scheduled run have the names of the others, with `run_` in front.
    of_runs = {name for name in names if name.startswith("morpheus_run_events_")}
    assert names - of_runs - named == set()
    others = {name.replace("_run_", "_", 1) + "_total" for name in of_runs}
    assert others <= names


# Containers.


def read_containerfile() -> list[tuple[str, str]]:
    """Return the instructions and their values."""
    text = (DEPLOY / "container" / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in "\n".join(lines).replace("\\\n", " ").splitlines()
    ]


def values_of(instruction: str) -> list[str]:
    return [value for name, value in read_containerfile() if name == instruction]


def test_a_container_runs_without_root_and_stops_on_sigterm() -> None:
    assert values_of("USER") == ["10001:10001"]
    assert values_of("STOPSIGNAL") == ["SIGTERM"]
    assert values_of("ENTRYPOINT") == ['["morpheus"]']
    assert not [value for value in values_of("FROM") if "/" not in value or ":" not in value]


def test_the_health_check_of_a_container_works() -> None:
    [check] = values_of("HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    now = [0.0]
    with serve_metrics(RunWatch(lambda: now[0]), "127.0.0.1", 0, 60.0) as server:
        command = [sys.executable, *(x.replace("9464", str(server.server_port)) for x in words[1:])]
        assert subprocess.run(command, check=False, timeout=60).returncode == 0
        now[0] = 100.0
        done = subprocess.run(command, check=False, timeout=60, capture_output=True)
        assert done.returncode != 0


def test_the_build_of_a_container_finds_its_files() -> None:
    copied = [value.split()[:-1] for value in values_of("COPY") if "--from" not in value]
    sources = [source.removeprefix("./") for group in copied for source in group]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    kept = {
        line[1:]
        for line in (ROOT / ".containerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert set(sources) <= kept
    # What pyproject.toml names must be there, too.
    text = (ROOT / "pyproject.toml").read_text()
    shipped = [*re.findall(r'^"(\S+)" = "morpheus/', text, re.MULTILINE), "README.md", "LICENSE"]
    assert [each for each in shipped if not any(fnmatch(each, f"{x}*") for x in kept)] == []
    [extras] = re.findall(r'"\.\[(.*?)\]"', " ".join(values_of("RUN")))
    assert [extra for extra in extras.split(",") if f"\n{extra} = [" not in text] == []


def test_variables_of_a_container_are_options() -> None:
    names = {pair.split("=")[0] for value in values_of("ENV") for pair in shlex.split(value)}
    ours = {name for name in names if name.startswith("MORPHEUS_")}
    assert len(ours) == 3
    assert ours <= set(iter_variables(morpheus))


# cron.


def test_the_commands_of_the_crontab_are_right() -> None:
    lines = (DEPLOY / "cron" / "morpheus").read_text().splitlines()
    jobs = [line.split(maxsplit=6) for line in lines if re.match(r"[\d*]", line)]
    assert len(jobs) == 3
    for job in jobs:
        user, command = job[5:]
        assert user == "morpheus"
        assert "%" not in command.replace(r"\%", "")
        assert command.startswith("cd /srv/morpheus && ")
        words = shlex.split(command.partition(" 2>>")[0])
        check_command(words[words.index("morpheus") :])


def test_files_of_the_page_exist() -> None:
    named = re.findall(r"`(deploy/[\w./-]+)`", PAGE)
    assert [path for path in named if not (ROOT / path).exists()] == []
    files = {path.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert files - set(named) == set()


def test_a_setting_is_given_once_unless_it_adds_up() -> None:
    adds_up = {"SystemCallFilter", "Environment", "LoadCredential", "ReadWritePaths"}
    for path in UNITS:
        unit = read_unit(path)
        assert {name for name, values in unit.items() if len(values) > 1} <= adds_up
        RawConfigParser(strict=False).read_string(path.read_text().replace("\\\n", " "))


# compose.


@pytest.fixture
def moto_server() -> Iterator[str]:
    """A server like S3, with the bucket of the example."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/logs", method="PUT")).close()
    yield f"http://{host}:{port}"
    server.stop()


COMPOSE = DEPLOY / "compose" / "compose.yaml"


def read_compose() -> dict:
    """Return the services of the example, with merged settings."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load(COMPOSE.read_text())["services"]


def words_of(service: dict) -> list[str]:
    """Return the command line of a service, with its program."""
    command = service.get("command", [])
    words = shlex.split(command) if isinstance(command, str) else command
    return [*service.get("entrypoint", ["morpheus"]), *words]


@needs("docker-compose", "docker-compose")
def test_compose_accepts_the_example() -> None:
    run("docker-compose", "-f", str(COMPOSE), "config", "--quiet", cwd=ROOT)


def test_the_commands_of_the_example_are_right_and_its_images_have_versions() -> None:
    services = read_compose()
    commands = [words for each in services.values() if (words := words_of(each))[0] == "morpheus"]
    ours = [words for words in commands if words[1:2] == ["run"]]
    assert len(ours) == 3
    for words in ours:
        check_command(words)
    images = {each["image"] for each in services.values()} - {"morpheus"}
    assert [image for image in images if not re.fullmatch(r"docker\.io/.+:.*\d.*", image)] == []


def test_the_example_scores_the_log_from_the_topic_and_from_the_bucket(
    tmp_path: Path, moto_server: str
) -> None:
    services = read_compose()
    with noida("kafka") as port:
        environment = {
            **os.environ,
            **services["feed"]["environment"],
            "AWS_ENDPOINT_URL": moto_server,
            "MORPHEUS_RUN_METRICS_PORT": "0",
        }

        def start(name: str) -> subprocess.Popen[str]:
            program, *words = words_of(services[name])
            places = {"/examples/": f"{ROOT}/examples/", "/feed.py": f"{COMPOSE.parent}/feed.py"}
            places |= {"kafka:9092": f"127.0.0.1:{port}", "--users 20": "--users 4"}
            text = "\n".join(words)
            for old, new in places.items():
                text = text.replace(old.replace(" ", "\n"), new.replace(" ", "\n"))
            command = MAIN if program == "morpheus" else [sys.executable]
            return subprocess.Popen(
                [*command, *text.split("\n")],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        for name in ("make-log", "train", "feed"):
            with start(name) as process:
                output, _ = process.communicate(timeout=100)
            assert process.returncode == 0, f"{name}: {output}"
        number = int(re.findall(r"Sent (\d+) records", output)[0])
        assert number > 500
        with start("from-kafka") as kafka, start("from-bucket") as bucket:
            try:
                for folder in ("kafka", "bucket"):
                    path = tmp_path / folder / "status.json"
                    until(lambda path=path: (s := read_status(path)) and s.account.scored == number)
                outputs = []
                for process in (kafka, bucket):
                    process.terminate()
                    outputs.append(process.communicate(timeout=60)[0])
            finally:
                kafka.kill()
                bucket.kill()
    assert [kafka.returncode, bucket.returncode] == [EXIT_INTERRUPTED] * 2, outputs
    alerts = [(tmp_path / folder / "alerts.jsonl") for folder in ("kafka", "bucket")]
    assert all(path.read_text() for path in alerts)
