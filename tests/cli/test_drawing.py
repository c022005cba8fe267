"""The chain, drawn."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from morpheus.cli.drawing import RENDERERS, render_diagram
from morpheus.errors import UsageError

CHAIN = [("from-duo", "Events"), ("train-ae", "Fingerprinted"), ("<b>", "Rows")]
NAME = "{http://www.w3.org/2000/svg}"


def picture(direction: str) -> ET.Element:
    return ET.fromstring(render_diagram(CHAIN, Path("a.svg"), direction))  # noqa: S314 - our own


@pytest.mark.parametrize("extension", RENDERERS)
def test_every_language_names_the_stages_and_what_flows(extension: str) -> None:
    drawn = render_diagram(CHAIN, Path(f"chain{extension}"), "tb")
    assert "from-duo" in drawn
    assert "Fingerprinted" in drawn


@pytest.mark.parametrize("direction", ["LR", "RL", "TB", "BT"])
def test_the_picture_runs_where_it_is_told_to_and_holds_all_its_boxes(direction: str) -> None:
    drawn = picture(direction)
    axis, side = ("x", "width") if direction in {"LR", "RL"} else ("y", "height")
    places = [int(box.attrib[axis]) for box in drawn.iter(f"{NAME}rect")]
    assert places == sorted(places, reverse=direction in {"RL", "BT"})
    assert max(places) < int(drawn.attrib[side])
    for line in drawn.iter(f"{NAME}line"):
        forth = int(line.attrib[f"{axis}2"]) - int(line.attrib[f"{axis}1"])
        assert (forth > 0) == (direction in {"LR", "TB"})


def test_names_in_a_picture_are_text() -> None:
    assert "<b>" in [text.text for text in picture("LR").iter(f"{NAME}text")]


def test_a_picture_of_another_kind_is_refused_with_the_fix() -> None:
    with pytest.raises(UsageError, match=r"`\.png` is none of .*--viz_file=chain\.svg.*dot -Tpng"):
        render_diagram(CHAIN, Path("chain.png"))
