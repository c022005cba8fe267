"""Diagrams of a pipeline."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from morpheus.cli.output import RENDERERS, render_diagram
from morpheus.errors import UsageError

LINKS = [("from-duo", "Events"), ("train-ae", "WithModel"), ("<b>", "OutputRows")]
NAME = "{http://www.w3.org/2000/svg}"


def render(direction: str) -> ET.Element:
    return ET.fromstring(render_diagram(LINKS, Path("a.svg"), direction))  # noqa: S314 - our own


@pytest.mark.parametrize("extension", RENDERERS)
def test_every_language_names_stages_and_batches(extension: str) -> None:
    diagram = render_diagram(LINKS, Path(f"chain{extension}"), "tb")
    assert "from-duo" in diagram
    assert "WithModel" in diagram


@pytest.mark.parametrize("direction", ["LR", "RL", "TB", "BT"])
def test_the_image_has_the_direction_asked_for_and_contains_all_boxes(direction: str) -> None:
    diagram = render(direction)
    axis, side = ("x", "width") if direction in {"LR", "RL"} else ("y", "height")
    places = [int(box.attrib[axis]) for box in diagram.iter(f"{NAME}rect")]
    assert places == sorted(places, reverse=direction in {"RL", "BT"})
    assert max(places) < int(diagram.attrib[side])
    for line in diagram.iter(f"{NAME}line"):
        length = int(line.attrib[f"{axis}2"]) - int(line.attrib[f"{axis}1"])
        assert (length > 0) == (direction in {"LR", "TB"})


def test_names_in_an_image_are_escaped() -> None:
    assert "<b>" in [text.text for text in render("LR").iter(f"{NAME}text")]


def test_an_unknown_extension_is_rejected_with_the_fix() -> None:
    with pytest.raises(
        UsageError, match=r"`\.png` is not one of .*--viz_file=chain\.svg.*dot -Tpng"
    ):
        render_diagram(LINKS, Path("chain.png"))
