"""Each stage and option of NVIDIA Morpheus works as the table of compatibility says."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import click.testing
import pytest
from click.core import ParameterSource
from click.exceptions import Exit

from morpheus.cli.main import morpheus
from morpheus.cli.reference import (
    ABSENCE_REASONS,
    ABSENT,
    ACCEPTED,
    REJECTED,
    UpstreamOption,
    find_command,
    find_option,
    find_support,
    read_upstream_options,
)
from morpheus.core.registry import stage_names
from morpheus.errors import UsageError

ROWS = read_upstream_options()
NEEDED = {
    "from-cloudtrail": "--input_glob=x",
    "from-azure": "--input_glob=x",
    "from-duo": "--input_glob=x",
    "inf-triton": "--model_name=x --server_url=x",
    "to-file": "--filename=x.csv",
    "to-http": "--base_url=http://localhost:8080",
    "to-kafka": "--output_topic=x --bootstrap_servers=localhost:9092",
    "validate": "--val_file_name=x",
}
BELOW = {"morpheus": "tools", "tools": "show", "run": "pipeline-ae", "pipeline-ae": "from-duo"}


def build_arguments(row: UpstreamOption, tmp_path: Path) -> list[str]:
    """A command line with the row's example, and the options that the command requires."""
    (tmp_path / "file").write_text('{"version": 1}')
    example = row.example.format(file=tmp_path / "file", new=tmp_path / "new")
    given = example.partition("=")[0]
    needed = [
        word for word in shlex.split(NEEDED.get(row.command, "")) if word.partition("=")[0] != given
    ]
    words = [*needed, *([example] if example else [])]
    return [*words, *([BELOW[row.command]] if row.command in BELOW else [])]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.releases}")
def test_a_stage_or_option_works_as_the_table_says(
    row: UpstreamOption, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    support = find_support(row, morpheus)
    command = find_command(row, morpheus)
    if support.status == ABSENT:
        assert support.note, f"ABSENCE_REASONS has no `{row.name}`"
        assert command is None or find_option(row, command) is None
        return
    if command is None:
        line = click.testing.CliRunner().invoke(morpheus, ["run", "pipeline-ae", row.command])
        assert (support.status, line.exit_code) == (REJECTED, 2)
        message = " ".join(line.stderr.split())
        assert f"There is no stage `{row.command}`: {support.note}." in message
        return
    if row.option in {"--help", "--version"}:
        with pytest.raises(Exit, match="0"):
            command.make_context(row.command, build_arguments(row, tmp_path))
        return
    context = command.make_context(row.command, build_arguments(row, tmp_path))
    check_is_read(row, command, context)
    if row.command not in stage_names():
        return
    with context:
        stage = command.invoke(context)
    if support.status == REJECTED:
        with pytest.raises(UsageError, match=f"{row.command}: .*(Leave|Use)"):
            stage.validate()
    elif row.command in {"buffer", "delay", "trigger"}:
        stage.validate()
        assert support.status == ACCEPTED
        assert "pass through stage" in caplog.text


def check_is_read(row: UpstreamOption, command: click.Command, context: click.Context) -> None:
    """Check that the option was read from the command line."""
    option = find_option(row, command) if row.option.startswith("-") else None
    if option is not None:
        assert context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE


def test_every_absence_reason_is_needed() -> None:
    absent = {row for row in ROWS if find_command(row, morpheus) is None}
    absent |= {row for row in ROWS if find_support(row, morpheus).status == ABSENT}
    stale = set(ABSENCE_REASONS) - {row.name for row in absent} - {row.command for row in absent}
    assert not stale, "these exist now: remove them from ABSENCE_REASONS"
