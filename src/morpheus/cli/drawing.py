"""Diagrams of a pipeline: its stages, and the batches between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from morpheus.errors import UsageError

Links = Sequence[tuple[str, str]]
"""The word of each stage, and the class of the batches it outputs."""

_BOX_WIDTH, _BOX_HEIGHT = 150, 40
"""Size in pixels."""
_BOX_GAP = {"LR": 110, "RL": 110, "TB": 60, "BT": 60}


def render_diagram(links: Links, file: Path, direction: str = "LR") -> str:
    """Return a diagram in the language of a file's extension.

    Args:
        links: The pipeline.
        file: The file that the diagram is for. It is not written.
        direction: LR (left to right), RL, TB (top to bottom) or BT.

    Raises:
        UsageError: The extension is unknown.
    """
    try:
        render = RENDERERS[file.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"--viz_file: `{file}` cannot be drawn: `{file.suffix}` is not one of "
            f"{', '.join(filter(None, RENDERERS))}. Give `--viz_file={file.with_suffix('.svg')}`, "
            f"or write a `.dot` file and let Graphviz draw it: `dot -Tpng chain.dot`."
        ) from None
    return render(links, direction.upper())


def render_dot(links: Links, direction: str) -> str:
    """Return a diagram in the language of Graphviz.

    >>> print(render_dot([("from-duo", "Events"), ("train-ae", "WithModel")], "LR"), end="")
    digraph morpheus {
      rankdir=LR; node [shape=box];
      0 [label="from-duo"];
      1 [label="train-ae"];
      0 -> 1 [label="Events"];
    }
    """
    lines = [f"  rankdir={direction}; node [shape=box];"]
    lines += [f'  {i} [label="{word}"];' for i, (word, _) in enumerate(links)]
    lines += [f'  {i} -> {i + 1} [label="{kind}"];' for i, (_, kind) in enumerate(links[:-1])]
    return "\n".join(["digraph morpheus {", *lines, "}", ""])


def render_mermaid(links: Links, direction: str) -> str:
    """Return a diagram in the language of Mermaid, which many wikis render.

    >>> print(render_mermaid([("from-duo", "Events"), ("train-ae", "WithModel")], "LR"), end="")
    flowchart LR
      0["from-duo"]
      1["train-ae"]
      0 -->|Events| 1
    """
    lines = [f'  {i}["{word}"]' for i, (word, _) in enumerate(links)]
    lines += [f"  {i} -->|{kind}| {i + 1}" for i, (_, kind) in enumerate(links[:-1])]
    return "\n".join([f"flowchart {direction}", *lines, ""])


def render_svg(links: Links, direction: str) -> str:
    """Return a diagram as an SVG image."""
    horizontal = direction in {"LR", "RL"}
    step = _BOX_GAP[direction] + (_BOX_WIDTH if horizontal else _BOX_HEIGHT)
    places = [10 + step * i for i in range(len(links))]
    if direction in {"RL", "BT"}:
        places.reverse()
    corners = [(place, 20) if horizontal else (10, place) for place in places]
    width, height = (
        (canvas_size(places, _BOX_WIDTH), 80)
        if horizontal
        else (170, canvas_size(places, _BOX_HEIGHT))
    )
    shapes = [
        *(_svg_box(corner, word) for corner, (word, _) in zip(corners, links, strict=True)),
        *(
            _svg_arrow(corners[i], corners[i + 1], kind, horizontal=horizontal)
            for i, (_, kind) in enumerate(links[:-1])
        ),
    ]
    return "\n".join([_SVG_HEADER.format(width=width, height=height), *shapes, "</svg>", ""])


def canvas_size(places: Sequence[int], size: int) -> int:
    """Return the width or height of the image, with a margin, in pixels.

    Args:
        places: Start of each box.
        size: Size of a box.
    """
    return max(places, default=0) + size + 10


_SVG_HEADER = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"
 font-family="sans-serif" font-size="13" text-anchor="middle">
<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z"/></marker></defs>"""


def _svg_box(corner: tuple[int, int], word: str) -> str:
    x, y = corner
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" fill="#eef2f7" '
        f'stroke="#345"/><text x="{x + _BOX_WIDTH // 2}" y="{y + 25}">{escape(word)}</text>'
    )


def _svg_arrow(
    start: tuple[int, int], stop: tuple[int, int], kind: str, *, horizontal: bool
) -> str:
    forward = stop > start
    if horizontal:
        y = start[1] + _BOX_HEIGHT // 2
        ends = (start[0] + _BOX_WIDTH, stop[0]) if forward else (start[0], stop[0] + _BOX_WIDTH)
        (x1, y1), (x2, y2) = (ends[0], y), (ends[1], y)
    else:
        x = start[0] + _BOX_WIDTH // 2
        ends = (start[1] + _BOX_HEIGHT, stop[1]) if forward else (start[1], stop[1] + _BOX_HEIGHT)
        (x1, y1), (x2, y2) = (x, ends[0]), (x, ends[1])
    x, y = ((x1 + x2) // 2 + (0 if horizontal else 50), (y1 + y2) // 2 - (6 if horizontal else -4))
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#345" marker-end="url(#tip)"/>'
        f'<text x="{x}" y="{y}" fill="#567">{escape(kind)}</text>'
    )


RENDERERS: dict[str, Callable[[Links, str], str]] = {
    ".svg": render_svg,
    ".dot": render_dot,
    ".gv": render_dot,
    ".mmd": render_mermaid,
    "": render_dot,
}
"""Renderers by extension; without one, Graphviz."""
