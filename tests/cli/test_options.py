from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given as forall
from hypothesis import strategies as st

from morpheus.cli.chain import explicit_values, options_from_dataclass
from morpheus.core.stage import PipelineOptions, option


@dataclass(frozen=True)
class Everything:
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
    machine: int = option(7, "Differs.", default_display="what is there")
    other: int = option(1, "Of another command.", command="run")
    plain: int = 5


@dataclass(frozen=True)
class Needy:
    """A required option."""

    filename: str = option("", "A file.", required=True)


def invoke(owner: type, *words: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Values that were given, and the screen."""
    seen: dict[str, Any] = {}

    @click.pass_context
    def callback(context: click.Context, /, **_: object) -> None:
        seen.update(explicit_values(context))

    command = click.Command("x", params=options_from_dataclass(owner), callback=callback)
    result = CliRunner().invoke(command, words, auto_envvar_prefix="X", env=environment)
    return seen, result.output


def test_what_is_not_given_is_left_to_the_default_of_the_field() -> None:
    assert invoke(Everything) == ({}, "")


def test_a_value_is_given_with_or_without_an_equals_sign() -> None:
    assert (
        invoke(Everything, "--count=4")[0] == invoke(Everything, "--count", "4")[0] == {"count": 4}
    )


@pytest.mark.parametrize("word", ["true", "T", "yes", "Y", "on", "1"])
def test_every_word_for_yes(word: str) -> None:
    assert invoke(Everything, "--watch", word)[0] == {"watch": True}


@pytest.mark.parametrize("word", ["false", "F", "no", "N", "off", "0"])
def test_every_word_for_no(word: str) -> None:
    assert invoke(Everything, f"--watch={word}")[0] == {"watch": False}


def test_a_flag_takes_no_value() -> None:
    assert invoke(Everything, "--overwrite")[0] == {"overwrite": True}
    assert "does not take a value" in invoke(Everything, "--overwrite=true")[1]


def test_a_tuple_is_a_repeatable_option() -> None:
    assert invoke(Everything, "--names=a", "--names", "b")[0] == {"names": ("a", "b")}


@pytest.mark.parametrize("spelling", ["--file-type", "--file_type"])
def test_each_spelling_works_and_choices_ignore_case(spelling: str) -> None:
    assert invoke(Everything, f"{spelling}=CSV")[0] == {"kind": "csv"}


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
def test_a_wrong_value_or_name_is_refused(word: str, message: str) -> None:
    values, screen = invoke(Everything, word)
    assert values == {}
    assert message in screen.replace(":", "")


def test_a_required_option_must_be_given_and_not_as_nothing() -> None:
    assert "Missing option '--filename'" in invoke(Needy)[1]
    assert "Missing option '--filename'" in invoke(Needy, "--filename=")[1]
    assert invoke(Needy, "--filename=f")[0] == {"filename": "f"}


def test_nothing_means_not_given() -> None:
    assert invoke(Everything, "--text=")[0] == {}


def test_the_environment_gives_values_and_the_command_line_overrides_them() -> None:
    assert invoke(Everything, X_COUNT="4")[0] == {"count": 4}
    assert invoke(Everything, "--count=5", X_COUNT="4")[0] == {"count": 5}


def test_help_shows_defaults_and_names_those_of_the_machine() -> None:
    screen = invoke(Everything, "--help")[1]
    assert "[default: 3; 1<=x<=9]" in screen
    assert "[default: (what is there)]" in screen
    assert "[default: True]" in screen


def test_every_option_of_the_settings_belongs_to_a_command() -> None:
    declared = {one.name for one in fields(PipelineOptions) if "text" in one.metadata}
    made = [
        *options_from_dataclass(PipelineOptions, command="run"),
        *options_from_dataclass(PipelineOptions, command="pipeline-ae"),
    ]
    assert sorted(one.name or "" for one in made) == sorted(declared)


@forall(st.integers(1, 9), st.floats(0, 1), st.text(min_size=1))
def test_what_was_typed_is_what_arrives(count: int, share: float, text: str) -> None:
    values, _ = invoke(Everything, f"--count={count}", f"--share={share}", f"--text={text}")
    assert values == {"count": count, "share": share, "text": text}
