from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from morpheus.cli.chain import explicit_values, options_from_dataclass
from morpheus.cli.main import morpheus
from morpheus.core.stage import PipelineOptions, option
from morpheus.errors import UsageError


@dataclass(frozen=True)
class AllKinds:
    """One option of each kind."""

    count: int = option(3, "A number.", min=1, max=9)
    limit: int | None = option(None, "A number, or nothing.", min=1)
    share: float = option(0.5, "A share.", min=0, max=1)
    text: str | None = option(None, "Text.")
    kind: str = option(
        "auto", "A kind.", names=("--file-type", "--file_type"), choices=("auto", "csv")
    )
    names: tuple[str, ...] = option((), "Names.")
    watch: bool = option(True, "Takes a value.")
    overwrite: bool = option(False, "Takes none.", flag=True)
    machine: int = option(7, "Differs.", default_display="of the machine")
    other: int = option(1, "Of another command.", command="run")
    plain: int = 5


@pytest.mark.parametrize("kind", [dict, list[str], int | str, bytes | None, tuple[dict, ...]])
def test_a_type_that_no_option_can_have_is_named(kind: object) -> None:
    fields_of = {"__annotations__": {"things": kind}, "things": option(None, "Things.")}
    stage = dataclass(frozen=True)(type("Pause", (), fields_of))
    with pytest.raises(UsageError, match=r"Pause: the option `things` has the type .* one of bool"):
        options_from_dataclass(stage)


@dataclass(frozen=True)
class WithRequired:
    """A required option."""

    filename: str = option("", "A file.", required=True)


def invoke(options_class: type, *words: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Return the explicit values, and the output."""
    explicit: dict[str, Any] = {}

    @click.pass_context
    def callback(context: click.Context, /, **_: object) -> None:
        explicit.update(explicit_values(context))

    command = click.Command("x", params=options_from_dataclass(options_class), callback=callback)
    result = CliRunner().invoke(command, words, auto_envvar_prefix="X", env=environment)
    return explicit, result.output


def test_an_option_that_is_not_given_keeps_the_default_of_its_field() -> None:
    assert invoke(AllKinds) == ({}, "")


def test_an_empty_value_keeps_the_default_also_of_an_option_that_is_repeated() -> None:
    assert invoke(AllKinds, "--text=", "--names=") == ({}, "")
    assert invoke(AllKinds, "--names=", "--names=ann")[0] == {"names": ("ann",)}


@pytest.mark.parametrize(
    "words",
    [("detect", ""), ("detect", "logs", ""), ("report", ""), ("serve", ""), ("lessons", "")],
    ids=" ".join,
)
def test_an_empty_argument_is_rejected_because_a_variable_is_not_set(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(morpheus, words)
    assert result.exit_code == 2
    assert "is an empty text. If it comes from a variable" in result.output
    assert not list(tmp_path.iterdir())


def test_a_value_may_begin_with_a_dash() -> None:
    assert invoke(AllKinds, "--text=-a.csv")[0] == {"text": "-a.csv"}
    assert invoke(AllKinds, "--names", "-ann", "--watch", "false")[0] == {
        "names": ("-ann",),
        "watch": False,
    }


def test_a_value_follows_an_equals_sign_or_a_space() -> None:
    assert invoke(AllKinds, "--count=4")[0] == invoke(AllKinds, "--count", "4")[0] == {"count": 4}


@pytest.mark.parametrize("word", ["true", "T", "yes", "Y", "on", "1"])
def test_words_for_true(word: str) -> None:
    assert invoke(AllKinds, "--watch", word)[0] == {"watch": True}


@pytest.mark.parametrize("word", ["false", "F", "no", "N", "off", "0"])
def test_words_for_false(word: str) -> None:
    assert invoke(AllKinds, f"--watch={word}")[0] == {"watch": False}


def test_a_flag_takes_no_value() -> None:
    assert invoke(AllKinds, "--overwrite")[0] == {"overwrite": True}
    assert "does not take a value" in invoke(AllKinds, "--overwrite=true")[1]


def test_a_tuple_is_a_repeatable_option() -> None:
    assert invoke(AllKinds, "--names=a", "--names", "b")[0] == {"names": ("a", "b")}


@pytest.mark.parametrize("spelling", ["--file-type", "--file_type"])
def test_all_names_of_an_option_work_and_choices_ignore_case(spelling: str) -> None:
    assert invoke(AllKinds, f"{spelling}=CSV")[0] == {"kind": "csv"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--count=0", "0 is not in the range 1<=x<=9"),
        ("--count=1.5", "'1.5' is not a valid integer"),
        ("--limit=0", "0 is not in the range x>=1"),
        ("--share=1.1", "1.1 is not in the range 0<=x<=1"),
        ("--kind=auto", "No such option '--kind'"),
        ("--file-type=xml", "'xml' is not one of 'auto', 'csv'"),
        ("--watch=maybe", "'maybe' is not a valid boolean"),
        ("--coun=4", "No such option '--coun'"),
        ("--other=1", "No such option '--other'"),
        ("--plain=1", "No such option '--plain'"),
        ("--names", "requires an argument"),
    ],
)
def test_a_wrong_value_or_name_is_rejected(word: str, message: str) -> None:
    values, output = invoke(AllKinds, word)
    assert values == {}
    assert message in output.replace(":", "")


def test_a_required_option_needs_a_value_that_is_not_empty() -> None:
    assert "Missing option '--filename'" in invoke(WithRequired)[1]
    assert "Missing option '--filename'" in invoke(WithRequired, "--filename=")[1]
    assert invoke(WithRequired, "--filename=f")[0] == {"filename": "f"}


def test_an_empty_value_counts_as_not_given() -> None:
    assert invoke(AllKinds, "--text=")[0] == {}


def test_the_environment_gives_values_and_the_command_line_overrides_them() -> None:
    assert invoke(AllKinds, X_COUNT="4")[0] == {"count": 4}
    assert invoke(AllKinds, "--count=5", X_COUNT="4")[0] == {"count": 5}


def test_help_shows_defaults() -> None:
    output = invoke(AllKinds, "--help")[1]
    assert "[default: 3; 1<=x<=9]" in output
    assert "[default: (of the machine)]" in output
    assert "[default: True]" in output


def test_every_pipeline_option_belongs_to_a_command() -> None:
    declared = {field.name for field in fields(PipelineOptions) if "help" in field.metadata}
    options = [
        *options_from_dataclass(PipelineOptions, command="run"),
        *options_from_dataclass(PipelineOptions, command="pipeline-ae"),
    ]
    assert sorted(option.name or "" for option in options) == sorted(declared)


@given(st.integers(1, 9), st.floats(0, 1), st.text(min_size=1))
def test_a_typed_value_arrives_unchanged(count: int, share: float, text: str) -> None:
    values, _ = invoke(AllKinds, f"--count={count}", f"--share={share}", f"--text={text}")
    assert values == {"count": count, "share": share, "text": text}
