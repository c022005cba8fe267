"""Run golden commands, take out of their outputs what may change, and keep what is left."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from golden import inputs
from golden.commands import PREPARATIONS, Command

EXPECTED = Path(__file__).parent / "expected"
INDEX = EXPECTED / "index.json"
LARGEST = 100_000
"""Bytes that a stored output may have, compressed. Of larger ones only the checksum is kept."""
PROGRAM = (sys.executable, "-m", "morpheus")
AROUND = 120
"""Characters shown on either side of a difference."""
PINNED = {
    # Sums of floats depend on the vector instructions of the processor: use those that all have.
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}
PRODUCT = (
    # OCSF: the product, and the analytic that found it.
    (rb'("product":\{"name":)%s(,"vendor_name":)%s(,"version":)%s', rb'\1"*"\2"*"\3"*"'),
    (rb'("analytic":\{"name":)%s([^{}]*"version":)%s', rb'\1"*"\2"*"'),
    # ECS: the observer, and where the event comes from.
    (rb'("observer":\{"vendor":)%s(,"product":)%s(,"version":)%s', rb'\1"*"\2"*"\3"*"'),
    (rb'("module":)%s(,"dataset":)%s', rb'\1"*"\2"*"'),
)
"""The product's name and version in alerts. Text of a log cannot match: its quotes are escaped."""


def prepare(folder: Path, program: Sequence[str | Path] = PROGRAM) -> None:
    """Write all inputs below a folder, then run the commands that train fingerprints."""
    inputs.build(folder)
    for command in PREPARATIONS:
        run(command, folder, ran_at(command, folder), program)
        made = ran_at(command, folder) / command.prepares
        shutil.copytree(made, folder / command.prepares / command.prepares)


def ran_at(command: Command, prepared: Path) -> Path:
    """Folder in which a command ran that trains fingerprints."""
    return prepared.with_name(command.name)


def _with_old_products() -> str:
    """PYTHONPATH with the module that brings the matrix products of 0.1 back; see there."""
    folder = Path(__file__).with_name("products_of_0_1")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def environment() -> dict[str, str]:
    """Environment of the commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MORPHEUS_")}
    return {**kept, **PINNED, "PYTHONPATH": _with_old_products()}


def run(
    command: Command, prepared: Path, folder: Path, program: Sequence[str | Path] = PROGRAM
) -> None:
    """Run a command's lines in a new folder that has copies of its inputs."""
    folder.mkdir()
    for name in command.inputs:
        shutil.copytree(prepared / name, folder, dirs_exist_ok=True)
    codes = command.exit_codes or (0,) * len(command.lines)
    for line, code in zip(command.lines, codes, strict=True):
        words = [*program, *shlex.split(line)]
        done = subprocess.run(
            words, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (
            f"morpheus {' '.join(line.split())}\n{done.stdout}{done.stderr}"
        )


def outputs_of(command: Command, folder: Path) -> dict[str, bytes]:
    """Each output of a command that was run, without what may change."""
    return {name: normalised(folder / name, folder) for name in command.outputs}


def normalised(path: Path, folder: Path) -> bytes:
    """Content of a file or folder without what may change from one release to the next."""
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        parts = ((one.relative_to(path).as_posix(), normalised(one, folder)) for one in files)
        return b"".join(b"== %s\n%s" % (name.encode(), content) for name, content in parts)
    content = path.read_bytes()
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if suffixes[-1:] == [".parquet"]:
        content = _table(content)
    elif suffixes[-1:] == [".html"]:
        content = _report_data(content)
    elif suffixes[-1:] == [".toml"]:
        content = re.sub(rb"(?m)^#.*\n", b"", content)
    for pattern, instead in PRODUCT:
        content = re.sub(pattern.replace(b"%s", rb'"[^"]*"'), instead, content)
    return content.replace(str(folder).encode(), b"<folder>")


def _table(content: bytes) -> bytes:
    """A Parquet file as text: its columns with their types, then its rows as JSON."""
    frame = pl.read_parquet(BytesIO(content))
    types = (f"{name}: {kind}" for name, kind in frame.schema.items())
    rows = (
        json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)
        for row in frame.iter_rows(named=True)
    )
    return "".join(f"{line}\n" for line in (*types, *rows)).encode()


def _report_data(page: bytes) -> bytes:
    """The data of a report. The page's own sentences are taken out: they are wording."""
    found = re.search(rb'id="data">([^<]*)<', page)
    assert found, "the page holds no data"
    data: dict[str, Any] = json.loads(gzip.decompress(b64decode(found[1])))
    data["rule"] = "*"
    data["lacks"] = len(data["lacks"])
    for person in data["people"]:
        if person["profile"]:
            person["profile"]["weak"] = len(person["profile"]["weak"])
    return json.dumps(data, ensure_ascii=False, indent=1).encode()


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def input_digests(prepared: Path) -> dict[str, str]:
    """A checksum of the content of each input, but for trained fingerprints."""
    trained = {command.prepares for command in PREPARATIONS}
    folders = sorted(one for one in prepared.iterdir() if one.name not in trained)
    return {one.name: digest(normalised(one, prepared)) for one in folders}


def versions() -> dict[str, str]:
    """What the last digits of a float may depend on."""
    return {name: version(name) for name in ("numpy", "polars")}


def place_of(command: str, output: str) -> Path:
    """File of a stored output."""
    return EXPECTED / command / f"{output.replace('/', '__')}.gz"


def stored(command: str, output: str) -> bytes | None:
    """The recorded output; None if it is too large to be stored."""
    path = place_of(command, output)
    return gzip.decompress(path.read_bytes()) if path.exists() else None


def first_difference(expected: bytes, found: bytes) -> str:
    """The first line in which two outputs differ, cut to what lies around the difference."""
    old, new = (content.decode(errors="replace").split("\n") for content in (expected, found))
    for number, (was, now) in enumerate(zip(old, new, strict=False), start=1):
        if was != now:
            pairs = enumerate(zip(was, now, strict=False))
            at = next((n for n, (one, other) in pairs if one != other), min(len(was), len(now)))
            part = slice(max(at - AROUND, 0), at + AROUND)
            return f"line {number}, character {at + 1}:\n- {was[part]}\n+ {now[part]}"
    longer, sign = (old, "-") if len(old) > len(new) else (new, "+")
    number = min(len(old), len(new))
    return f"line {number + 1}, which only one of them has:\n{sign} {longer[number][:AROUND]}"
