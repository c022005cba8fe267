"""A page with a section per part of a benchmark. Sections of parts that do not run are kept."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from figures import machine
from figures.table import Table


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        path: File of the page.
        head: Text at the start.
        parts: Title of each section, by the part's name, in order.
    """

    path: Path
    head: str
    parts: Mapping[str, str]

    def measure(self, part: str, tables: Callable[[], Iterable[Table]], kind: str) -> None:
        """Run a part, print its section and write it."""
        print(f"\n## {self.parts[part]}\n", flush=True)
        begin, texts, load = time.perf_counter(), list[str](), os.getloadavg()[0]
        for table in tables():
            texts.append(table.markdown())
            print(texts[-1], flush=True)
        seconds = time.perf_counter() - begin
        took = (
            f"{kind}, {seconds:.0f} s, on {machine.described()}; load before the run {load:.1f}.\n"
        )
        print(took, flush=True)
        self.write(self.read() | {part: "\n".join([took, *texts])})

    def measure_each(
        self, parts: Iterable[str], package: str, size: object, *, quick: bool
    ) -> None:
        """Run the parts, which are modules of a package with a function `tables`."""
        kind = "Quick run: small sizes" if quick else "Run"
        for part in parts:
            tables = importlib.import_module(f"{package}.{part}").tables
            self.measure(part, partial(tables, size), kind)

    def read(self) -> dict[str, str]:
        """Return the sections of the page."""
        if not self.path.exists():
            return {}
        text = self.path.read_text(encoding="utf-8")
        pieces = re.split(r"^## (.*)\n\n", text, flags=re.MULTILINE)
        names = {title: part for part, title in self.parts.items()}
        found = zip(pieces[1::2], pieces[2::2], strict=True)
        return {names[title]: body.rstrip("\n") + "\n" for title, body in found if title in names}

    def write(self, sections: Mapping[str, str]) -> None:
        """Write the page."""
        texts = [
            f"## {title}\n\n{sections[part]}"
            for part, title in self.parts.items()
            if part in sections
        ]
        self.path.write_text("\n".join([self.head, *texts]), encoding="utf-8")
