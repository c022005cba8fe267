"""Pages of the documentation: their programs, and the outputs that they show.

bash runs the lines of ```console blocks that begin with `$ `, and Python runs ```python blocks. The
other lines of a console block are output, and so is a ```text block that follows directly.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

TIMEOUT = 300
"""Seconds for one program of a page."""
ELLIPSIS = re.compile(r"\.\.\.|…")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HERE_DOCUMENT = re.compile(r"<<'?(\w+)'?")
# What differs from run to run: seconds, rates, ports and tokens.
_VARIES = (
    (re.compile(r"(\bSeconds) +[\d.]+"), r"\1 N"),
    (re.compile(r"http://127\.0\.0\.1:\d+(/\?token=[\w-]+)?"), "http://127.0.0.1:PORT"),
)


@dataclass(frozen=True)
class Program:
    """A program of a page.

    Attributes:
        interpreter: Runs the program, which is its input.
        text: The program.
        output: Lines that the page shows as its output.
    """

    interpreter: tuple[str, ...]
    text: str
    output: tuple[str, ...] = ()


def name_of(page: Path) -> str:
    """Return the name of a page: its path in the project."""
    return page.relative_to(ROOT).as_posix()


def find_blocks(text: str) -> list[tuple[str, str, bool]]:
    """Return language and body of each code block, and whether it follows another directly."""
    blocks, end = [], -1
    for match in _BLOCK.finditer(text):
        follows = end >= 0 and not text[end : match.start()].strip()
        indent = len(match[1])
        body = "".join(line[indent:] for line in match[3].splitlines(keepends=True))
        blocks.append((match[2], body, follows))
        end = match.end()
    return blocks


def find_programs(text: str) -> list[Program]:
    r"""Return the programs of a page.

    >>> [program] = find_programs("```console\n$ ls \\\n    -l\n```\n\n```text\ntotal 0\n```\n")
    >>> program.text, program.output
    ('ls \\\n    -l', ('total 0',))
    """
    programs: list[Program] = []
    after_program = False
    for language, body, follows in find_blocks(text):
        if language == "python":
            programs.append(Program((sys.executable, "-"), body))
        elif language == "console":
            commands, shown = _split_console(body.splitlines())
            programs.append(Program(("bash", "-euo", "pipefail"), "\n".join(commands), shown))
        elif language == "text" and after_program and follows:
            shown = (*programs[-1].output, *body.splitlines())
            programs[-1] = replace(programs[-1], output=shown)
        after_program = language in ("python", "console")
    return programs


def _split_console(lines: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """Divide the lines of a console into commands and output."""
    commands, shown = [], []
    inside, end = False, None  # of a command; the last line of its here document
    for line in lines:
        if inside or line.startswith("$ "):
            text = line if inside else line.removeprefix("$ ")
            commands.append(text)
            found = _HERE_DOCUMENT.search(text) if end is None else None
            end = found[1] if found else (None if text == end else end)
            inside = end is not None or text.endswith("\\")
        else:
            shown.append(line)
    return commands, tuple(shown)


def run_page(
    page: Path, folder: Path, script: Path, replacements: Mapping[str, str] | None = None
) -> str:
    """Run the programs of a page, and compare their outputs with the page.

    Args:
        page: The page.
        folder: Current folder of the programs.
        script: The command `morpheus` is in the folder of this file.
        replacements: Text of the programs to replace: the address of a server by that of another.

    Returns:
        What the programs have written.
    """
    text = page.read_text(encoding="utf-8")
    for old, new in (replacements or {}).items():
        assert old in text, f"{name_of(page)} does not have {old}"
        text = text.replace(old, new)
    programs = find_programs(text)
    outputs = list(run_programs(programs, folder, script, os.environ))
    for program, output in zip(programs, outputs, strict=True):
        missing = "\n".join(find_missing(program.output, output))
        assert missing == "", (
            f"{program.text}\nwrites\n\n{output}\nbut {name_of(page)} shows these lines, which are "
            f"others or in another order:\n\n{missing}\n\nIf the page is wrong: cd tests && "
            f"PYTHONPATH=$PWD/../src:$PWD python -m record_pages ../{name_of(page)}"
        )
    return "".join(outputs)


def run_programs(
    programs: Iterable[Program], folder: Path, script: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Run programs, one after the other. Yield what each writes. `cd` holds for those after it."""
    path = os.pathsep.join([str(script.parent), environment["PATH"]])
    groups: list[int] = []
    current = folder.parent / "current-folder"
    current.write_text(str(folder), encoding="utf-8")
    try:
        for program in programs:
            keeps_folder = f"\npwd > '{current}'\n" if program.interpreter[0] == "bash" else ""
            process = subprocess.Popen(
                program.interpreter,
                cwd=current.read_text(encoding="utf-8").strip(),
                env={**environment, "PATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            groups.append(process.pid)
            output, _ = process.communicate(program.text + keeps_folder, timeout=TIMEOUT)
            assert process.returncode == 0, f"{program.text}\n{output}"
            yield output
    finally:
        # What a page has started in the background, and not ended, ends here.
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def find_missing(shown: Iterable[str], output: str) -> list[str]:
    """Return the lines of a page that the output of a program does not have, in this order.

    A page may leave out lines. `...` stands for any text. Spaces and line ends count as one space.

    >>> find_missing(["a  b", "d ... f"], "a b\\nc\\nd e f")
    []
    >>> find_missing(["d", "a"], "a b\\nc\\nd e f")
    ['a']
    """
    rest, missing = _normalise(output), []
    for line in shown:
        parts = [re.escape(part.strip()) for part in ELLIPSIS.split(_normalise(line))]
        found = re.search(".*?".join(parts), rest)
        if found is None:
            missing.append(line)
        else:
            rest = rest[found.end() :]
    return missing


def _normalise(text: str) -> str:
    for pattern, replacement in _VARIES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def copy_examples(folder: Path) -> Path:
    """Copy `examples/` into a folder, without outputs. Return the copy."""
    target = folder / "examples"
    shutil.copytree(ROOT / "examples", target, ignore=shutil.ignore_patterns("output"))
    return target
