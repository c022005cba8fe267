"""The chain, drawn: its stages, and what flows between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from morpheus.errors import UsageError

Links = Sequence[tuple[str, str]]
"""The word of each stage, and the name of what it gives; of the last, nothing takes it."""

_BOX_WIDTH, _BOX_HEIGHT = 150, 40
_BOX_GAP = {"LR": 110, "RL": 110, "TB": 60, "BT": 60}


def render_diagram(links: Links, file: Path, direction: str = "LR") -> str:
    """Draw a chain in the language of a file's extension.

    Args:
        links: The chain.
        file: Its name decides.
        direction: LR, RL, TB or BT: from left to right, and so on.

    Raises:
        UsageError: The extension is of a language that there is none of.
    """
    try:
        language = RENDERERS[file.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"--viz_file: `{file}` cannot be drawn: `{file.suffix}` is none of "
            f"{', '.join(filter(None, RENDERERS))}. Give `--viz_file={file.with_suffix('.svg')}`, "
            f"or write `.dot` and let Graphviz draw it: `dot -Tpng chain.dot`."
        ) from None
    return language(links, direction.upper())


def render_dot(links: Links, direction: str) -> str:
    """Draw a chain in Graphviz' language.

    >>> print(render_dot([("from-duo", "Events"), ("train-ae", "Fingerprinted")], "LR"), end="")
    digraph morpheus {
      rankdir=LR; node [shape=box];
      0 [label="from-duo"];
      1 [label="train-ae"];
      0 -> 1 [label="Events"];
    }
    """
    lines = [f"  rankdir={direction}; node [shape=box];"]
    lines += [f'  {at} [label="{word}"];' for at, (word, _) in enumerate(links)]
    lines += [f'  {at} -> {at + 1} [label="{kind}"];' for at, (_, kind) in enumerate(links[:-1])]
    return "\n".join(["digraph morpheus {", *lines, "}", ""])


def render_mermaid(links: Links, direction: str) -> str:
    """Draw a chain in Mermaid's language, which many wikis show.

    >>> print(render_mermaid([("from-duo", "Events"), ("train-ae", "Fingerprinted")], "LR"), end="")
    flowchart LR
      0["from-duo"]
      1["train-ae"]
      0 -->|Events| 1
    """
    lines = [f'  {at}["{word}"]' for at, (word, _) in enumerate(links)]
    lines += [f"  {at} -->|{kind}| {at + 1}" for at, (_, kind) in enumerate(links[:-1])]
    return "\n".join([f"flowchart {direction}", *lines, ""])


def render_svg(links: Links, direction: str) -> str:
    """Draw a chain as a picture."""
    across = direction in {"LR", "RL"}
    step = _BOX_GAP[direction] + (_BOX_WIDTH if across else _BOX_HEIGHT)
    places = [10 + step * at for at in range(len(links))]
    if direction in {"RL", "BT"}:
        places.reverse()
    corners = [(place, 20) if across else (10, place) for place in places]
    width, height = (
        (canvas_size(places, _BOX_WIDTH), 80) if across else (170, canvas_size(places, _BOX_HEIGHT))
    )
    shapes = [
        *(_svg_box(corner, word) for corner, (word, _) in zip(corners, links, strict=True)),
        *(
            _svg_arrow(corners[at], corners[at + 1], kind, across=across)
            for at, (_, kind) in enumerate(links[:-1])
        ),
    ]
    return "\n".join([_SVG_HEADER.format(width=width, height=height), *shapes, "</svg>", ""])


def canvas_size(places: Sequence[int], size: int) -> int:
    """Where the drawing ends, with a margin."""
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


def _svg_arrow(start: tuple[int, int], stop: tuple[int, int], kind: str, *, across: bool) -> str:
    forth = stop > start
    if across:
        y = start[1] + _BOX_HEIGHT // 2
        ends = (start[0] + _BOX_WIDTH, stop[0]) if forth else (start[0], stop[0] + _BOX_WIDTH)
        (x1, y1), (x2, y2) = (ends[0], y), (ends[1], y)
    else:
        x = start[0] + _BOX_WIDTH // 2
        ends = (start[1] + _BOX_HEIGHT, stop[1]) if forth else (start[1], stop[1] + _BOX_HEIGHT)
        (x1, y1), (x2, y2) = (x, ends[0]), (x, ends[1])
    at = ((x1 + x2) // 2 + (0 if across else 50), (y1 + y2) // 2 - (6 if across else -4))
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#345" marker-end="url(#tip)"/>'
        f'<text x="{at[0]}" y="{at[1]}" fill="#567">{escape(kind)}</text>'
    )


RENDERERS: dict[str, Callable[[Links, str], str]] = {
    ".svg": render_svg,
    ".dot": render_dot,
    ".gv": render_dot,
    ".mmd": render_mermaid,
    "": render_dot,
}
"""By extension."""
