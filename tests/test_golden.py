"""Commands write the bytes that they wrote when `tests/golden/expected` was recorded.

They were recorded with version 0.1. Only what may change is left out: the product's name and
version in alerts, the sentences of the report's page, comments in suppressions, and the folder that
a command ran in. Scoring uses the matrix products of 0.1 here; see `golden/products_of_0_1`.
"""

import json
import platform
import sys

import pytest

from golden import results
from golden.commands import COMMANDS, PREPARATIONS
from warm_command import warm_command

RECORDED = json.loads(results.INDEX.read_text(encoding="utf-8"))
ALL = (*PREPARATIONS, *COMMANDS)
LARGEST_RECORDING = 1_500_000
other_processors = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="recorded on Linux and x86-64: other processors round the last digits differently",
)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    with warm_command(tmp_path_factory.mktemp("warm"), results.environment()) as script:
        yield [script]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("golden") / "inputs"
    results.prepare(folder, program)
    return folder


def explained(command, output, found):
    expected = results.stored(command, output)
    if expected is None:
        return f"{command}: {output} differs; it is too large for its content to be stored"
    text = f"{command}: {output} differs first in {results.first_difference(expected, found)}"
    if results.versions() != RECORDED["versions"]:
        text += f"\nrecorded with {RECORDED['versions']}, run with {results.versions()}"
    return text


@other_processors
def test_inputs_are_those_of_the_recording(prepared):
    assert results.input_digests(prepared) == RECORDED["inputs"]


@other_processors
@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_a_command_writes_the_recorded_bytes(command, program, prepared, tmp_path):
    folder = results.ran_at(command, prepared) if command.prepares else tmp_path / "run"
    if not command.prepares:
        results.run(command, prepared, folder, program)
    found = results.outputs_of(command, folder)
    differences = [
        explained(command.name, output, content)
        for output, content in found.items()
        if results.digest(content) != RECORDED["results"][command.name][output]["sha256"]
    ]
    assert not differences, "\n".join(differences)


def test_every_command_and_output_is_recorded_and_nothing_else():
    expected = {command.name: list(command.outputs) for command in ALL}
    assert {name: list(outputs) for name, outputs in RECORDED["results"].items()} == expected
    files = set(results.EXPECTED.rglob("*.gz"))
    assert files == {
        results.place_of(name, output)
        for name, outputs in RECORDED["results"].items()
        for output, about in outputs.items()
        if about["stored"]
    }


def test_stored_outputs_have_their_checksums():
    for name, outputs in RECORDED["results"].items():
        for output, about in outputs.items():
            if about["stored"]:
                assert results.digest(results.stored(name, output)) == about["sha256"]


def test_the_recording_stays_small():
    size = sum(path.stat().st_size for path in results.EXPECTED.rglob("*") if path.is_file())
    assert size < LARGEST_RECORDING


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (b"a\nbcd\n", b"a\nbxd\n", "line 2, character 2:\n- bcd\n+ bxd"),
        (b"a\nb", b"a", "line 2, which only one of them has:\n- b"),
        (b"a", b"a\nb", "line 2, which only one of them has:\n+ b"),
    ],
)
def test_a_difference_is_shown_by_its_first_line(expected, found, said):
    assert results.first_difference(expected, found) == said


def test_the_products_name_and_version_may_change_but_not_a_logs_text(tmp_path):
    line = (
        '{"product":{"name":"%s","vendor_name":"%s","version":"%s"},"analytic":{"name":"%s","type_id":4,'
        '"version":"%s"},"raw_data":"{\\"product\\":{\\"name\\":\\"log\\"}}"}'
    )
    path = tmp_path / "a.jsonl"
    path.write_text(line % ("old", "old", "0.1", "old autoencoder", "0.1"))
    old = results.normalised(path, tmp_path)
    path.write_text(line % ("new", "new", "2", "new autoencoder", "2"))
    assert results.normalised(path, tmp_path) == old
    assert b"log" in old
