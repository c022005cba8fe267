from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from morpheus.core.registry import _entry_points_by_name, distribution_of, load_stage, stage_names
from morpheus.errors import UsageError

STAGE = """
from dataclasses import dataclass
from morpheus.core.stage import Stage

@dataclass(frozen=True)
class Own(Stage):
    "A stage."
    name = "own"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    _entry_points_by_name.cache_clear()
    yield tmp_path
    _entry_points_by_name.cache_clear()


def install(site: Path, package: str, source: str, *entry_points: str) -> None:
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (site / f"{package}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[morpheus.stages]", *entry_points]))


def test_stages_of_other_packages_are_registered_in_the_same_way(site: Path) -> None:
    install(site, "reg_good", STAGE, "own = reg_good:Own")
    assert "own" in stage_names()
    assert load_stage("own").name == "own"
    assert distribution_of("own") == "reg_good"
    assert distribution_of("train-ae") == "morpheus-dfp"


def test_the_error_for_an_unknown_word_names_similar_words() -> None:
    with pytest.raises(UsageError, match=r"no stage `trainae`. Did you mean `train-ae`\?"):
        load_stage("trainae")
    with pytest.raises(UsageError, match="`morpheus tools stages` lists them"):
        load_stage("xyzzy")


def test_the_error_for_a_word_of_two_packages_names_both(site: Path) -> None:
    install(site, "reg_a", STAGE, "own = reg_a:Own", "train-ae = reg_a:Own")
    install(site, "reg_b", STAGE, "own = reg_b:Own")
    with pytest.raises(UsageError, match=r"`reg_a` \(`reg_a:Own`\) and `reg_b` \(`reg_b:Own`\)"):
        load_stage("own")
    with pytest.raises(
        UsageError, match=r"`train-ae`: several packages have it: `morpheus-dfp`.* and `reg_a`"
    ):
        load_stage("train-ae")


def test_a_stage_loads_without_the_metadata_of_its_package_which_is_slow_to_read(
    site: Path,
) -> None:
    install(site, "reg_bare", STAGE, "own = reg_bare:Own")
    (site / "reg_bare-1.0.dist-info/METADATA").write_bytes(b"\xff cannot be decoded")
    assert load_stage("own").name == "own"


def test_the_same_class_registered_twice_counts_once(site: Path) -> None:
    install(site, "reg_c", STAGE, "own = reg_c:Own")
    install(site, "reg_d", "", "own = reg_c:Own")
    assert load_stage("own").name == "own"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("", "AttributeError: .*Own"),
        ("class Own: name = 'own'", "is not a `morpheus.core.stage.Stage` with the name `own`"),
        (
            STAGE.replace('"own"', '"other"'),
            "is not a `morpheus.core.stage.Stage` with the name `own`",
        ),
    ],
)
def test_a_package_with_a_broken_stage_is_named(
    site: Path, source: str, message: str, request: pytest.FixtureRequest
) -> None:
    package = f"reg_bad{request.node.callspec.indices['source']}"
    install(site, package, source, f"own = {package}:Own")
    with pytest.raises(UsageError, match=f"`{package}:Own` of package `{package}` .*{message}"):
        load_stage("own")
