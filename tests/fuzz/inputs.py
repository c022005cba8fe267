"""Hostile inputs, made of known parts: logs, schemas, feature lists, suppressions, model folders.

Each input is made from a seed. `make_case` writes one into a folder, and returns the command line
that reads it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import string
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zstandard
from safetensors.numpy import load, save

Rng = random.Random
GOOD_USER = "planted"
USER = "userIdentityarn"


@dataclass
class Case:
    """A command line, and what is known of its input.

    Attributes:
        kind: What was made.
        source: The source and its options.
        options: Options of the pipeline.
        stages: Stages between the source and the output.
        planted: Number of records of `GOOD_USER` that must be written; None if some may be lost.
    """

    kind: str
    source: list[str]
    options: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    planted: int | None = None


# Values and records.

TEXTS = (
    *("", " ", "null", "None", "-", "NaN", "True", "0", "1e999", "\0", "\ufeff", "\u202e", "a\nb"),
    *('"', "'", ",", ";", "\\", "{", "}", "[", "]", "=1+1", "<script>", "../../x", "%s", "${x}"),
    *("é" * 50, "x" * 3000, "😀", "\x1b[31m", "a@b.example", "10.0.0.1", "ANN", "{a=b, c={d=e}}"),
    *('{"a": 1}', "[1, 2", "@{a=b; c=d}", "/Date(1700000000000)/", "2024-05-01T00:00:00Z"),
)
TIMES = (
    *(
        "2024-05-01T00:00:00Z",
        "2024-05-01 00:00:00",
        "20240501T000000Z",
        "2024-05-01",
        "1714521600",
    ),
    *("0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "99999-01-01T00:00:00Z", "2024-13-45T99:99"),
    *("1969-12-31T23:59:59Z", "24:00", "now", "-1", "1e400", "05/01/2024, 10:00:00 PM", ""),
    *("2024-05-01T00:00:00+99:99", "2024-02-30T00:00:00Z", "Wed, 01 May 2024 00:00:00 GMT"),
)
NUMBERS = (0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324, 1714521600000.0)


MAX_DEPTH = 4


def make_value(rng: Rng, depth: int = 0) -> Any:
    """Make a JSON value of any type."""
    kind = rng.randrange(8 if depth < MAX_DEPTH else 5)
    if kind < len(SIMPLE_VALUES):
        return rng.choice(SIMPLE_VALUES[kind])
    if kind == len(SIMPLE_VALUES):
        return "".join(rng.choices(string.printable, k=rng.randrange(12)))
    if kind == len(SIMPLE_VALUES) + 1:
        return [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {make_name(rng): make_value(rng, depth + 1) for _ in range(rng.randrange(4))}


SIMPLE_VALUES: tuple[tuple[Any, ...], ...] = (TEXTS, NUMBERS, (None, True, False), TIMES)


def make_name(rng: Rng) -> str:
    known = (
        "eventTime",
        "eventName",
        "userIdentity",
        "arn",
        "Records",
        "message",
        "detail",
        "value",
    )
    return rng.choice((*known, rng.choice(TEXTS)[:20], "a.b", "_index_", "", "user"))


def make_good_record(number: int) -> dict[str, Any]:
    return {
        "eventTime": f"2024-05-01T{number % 24:02}:00:00Z",
        "eventID": f"{number:08}-0000-4000-8000-000000000000",
        "eventName": "GetObject",
        "eventSource": "s3.amazonaws.com",
        "sourceIPAddress": "10.0.0.1",
        "userIdentity": {"type": "IAMUser", "arn": GOOD_USER, "accountId": "111122223333"},
    }


def make_bad_record(rng: Rng, number: int) -> Any:
    record: dict[str, Any] = make_good_record(number)
    record["userIdentity"]["arn"] = rng.choice(("eve", "", None, 5, rng.choice(TEXTS)))
    for _ in range(rng.randrange(1, 4)):
        change = rng.randrange(5)
        if change == 0:
            record[make_name(rng)] = make_value(rng)
        elif change == 1:
            record.pop(rng.choice(list(record)), None)
        elif change == 2:
            record["eventTime"] = rng.choice((*TIMES, *NUMBERS, None, []))
        elif change == 3:
            record["userIdentity"] = make_value(rng)
        else:
            return make_value(rng)
        if not record:
            break
    return record


def make_records(rng: Rng) -> tuple[list[Any], int]:
    """Make good and bad records, and return the number of good ones."""
    good = rng.randrange(1, 12)
    records: list[Any] = [make_good_record(number) for number in range(good)]
    for number in range(rng.randrange(8)):
        records.insert(rng.randrange(len(records) + 1), make_bad_record(rng, 100 + number))
    return records, good


# Files.


def mutate(rng: Rng, data: bytes) -> bytes:
    """Damage bytes: flip, cut, repeat, insert, remove."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del content[at:]
        elif how == 2:
            content[at:at] = content[at : at + rng.randrange(200)]
        elif how == 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 4:
            del content[at : at + rng.randrange(1, 50)]
        elif content:
            content[at:at] = rng.choice((b"\0", b"\n", b'"', b"{", b"]", b"\xff", b"\xef\xbb\xbf"))
    return bytes(content)


def dump_json(rng: Rng, records: list[Any]) -> bytes:
    texts = [json.dumps(record, ensure_ascii=rng.random() < 0.5) for record in records]
    layout = rng.randrange(7)
    if layout == 0:
        text = "[" + ",".join(texts) + "]"
    elif layout == 1:
        text = '{"Records": [' + ",\n".join(texts) + "]}"
    elif layout == 2:
        text = "\n".join(json.dumps({"message": text, "host": "a"}) for text in texts)
    elif layout == 3:
        text = "\n".join(f'{{"detail-type": "x", "detail": {text}}}' for text in texts)
    elif layout == 4:
        text = "\r\n".join(texts) + "\r\n"
    else:
        text = "\n".join(texts) + "\n" * rng.randrange(3)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        data = b"\xef\xbb\xbf" + data
    elif rng.random() < 0.05:
        data = data.decode("utf-8", "replace").encode("utf-16")
    return data


def dump_csv(rng: Rng, records: list[Any]) -> bytes:
    names = ["eventTime", "eventID", "eventName", "eventSource", USER]
    names += [make_name(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.2:
        names.remove(rng.choice(names))
    separator = rng.choice((",", ",", ",", ";", "\t"))

    def dump_cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        if rng.random() < 0.02:
            return '"' + text
        quoted = any(character in text for character in '",;\t\r\n')
        return '"' + text.replace('"', '""') + '"' if quoted else text

    lines = [separator.join(map(dump_cell, names))]
    for record in records:
        fields = record if isinstance(record, dict) else {}
        identity = fields.get("userIdentity")
        cells = {**fields, USER: identity.get("arn") if isinstance(identity, dict) else identity}
        row = [dump_cell(cells.get(name, "")) for name in names]
        if rng.random() < 0.05:
            row = row[: rng.randrange(len(row) + 1)]
        lines.append(separator.join(row))
    return rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode("utf-8", "replace")


def dump_parquet(rng: Rng, records: list[Any]) -> bytes:
    fields = [record if isinstance(record, dict) else {} for record in records]
    columns: dict[str, Any] = {
        "eventTime": [str(each.get("eventTime", "")) for each in fields],
        USER: [str(each.get("userIdentity")) for each in fields],
        "eventName": [str(each.get("eventName", "")) for each in fields],
    }
    frame = pl.DataFrame(columns)
    height = frame.height
    extra: list[pl.Series] = [
        pl.Series("bytes", [rng.randbytes(4) for _ in range(height)]),
        pl.Series("list", [[1, None]] * height),
        pl.Series("struct", [{"a": {"b": None, "c": "x"}}] * height),
        pl.Series("date", [None] * height, dtype=pl.Date),
        pl.Series("null", [None] * height),
        pl.Series("float", [float("nan")] * height),
        pl.Series("category", ["a"] * height, dtype=pl.Categorical),
        pl.Series("decimal", [1] * height).cast(pl.Decimal(38, 3)),
        pl.Series("span", [1] * height).cast(pl.Duration("us")),
        pl.Series("time", [1] * height).cast(pl.Time),
        pl.Series("eventTime", [rng.choice(NUMBERS[:5])] * height, strict=False),
        pl.Series(rng.choice(TEXTS) or "x", ["x"] * height),
    ]
    for series in rng.sample(extra, rng.randrange(4)):
        frame = frame.with_columns(series)
    if rng.random() < 0.1:
        frame = frame.drop(rng.choice(frame.columns))
    file = io.BytesIO()
    codec = rng.choice(("zstd", "snappy", "gzip", "uncompressed", "lz4"))
    frame.write_parquet(file, compression=codec, row_group_size=rng.choice((None, 2)))  # type: ignore[arg-type] # a literal
    return file.getvalue()


def pack(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """Compress a file, sometimes badly; return its suffix, too."""
    how = rng.randrange(12)
    if how > 7:
        return data, ""
    packers: list[Callable[[bytes], bytes]] = [
        gzip.compress,
        zstandard.compress,
        lambda data: gzip.compress(gzip.compress(data)),
        lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
        lambda data: mutate(rng, gzip.compress(data)),
        lambda data: mutate(rng, zstandard.compress(data)),
        lambda data: gzip.compress(data + rng.choice((b" ", b"x", b"\n")) * 40_000_000, 1),
        lambda data: zstandard.compress(data + b"\n" * 500_000_000),
    ]
    return packers[how](data), rng.choice((".gz", ".zst") if how in {6, 7} else (".gz", ".zst", ""))


DUMPERS = {"json": dump_json, "jsonl": dump_json, "csv": dump_csv, "parquet": dump_parquet}


def write_log(rng: Rng, folder: Path, name: str = "a") -> int | None:
    """Write a log file; return the number of good records, or None if some may be lost."""
    records, good = make_records(rng)
    suffix = rng.choice(("json", "jsonl", "jsonl", "csv", "parquet"))
    clean = rng.random() < 0.4 and suffix in {"json", "jsonl"}
    if clean:
        records = [record for record in records if isinstance(record, dict) and record]
    data = DUMPERS[suffix](rng, records)
    if clean and rng.random() < 0.7:
        (folder / f"{name}.{suffix}").write_bytes(data)
        return good
    if rng.random() < 0.5:
        data = mutate(rng, data)
    data, packing = pack(rng, data)
    (folder / f"{name}.{suffix}{packing}").write_bytes(data)
    return None


def write_good_log(folder: Path, number: int = 12) -> None:
    (folder / "good.jsonl").write_text(
        "\n".join(json.dumps(make_good_record(1000 + n)) for n in range(number))
    )


# Kinds of cases.


def make_log_case(rng: Rng, folder: Path) -> Case:
    planted: int | None = 0
    for number in range(rng.randrange(1, 3)):
        found = write_log(rng, folder, f"log{number}")
        planted = None if found is None else found if number == 0 else None
    options = ["--bad_record=skip"] if rng.random() < 0.8 else []
    options += ["--all_columns"] if rng.random() < 0.3 else []
    options += ["--implausible_time=keep"] if rng.random() < 0.2 else []
    source = rng.choice(("from-cloudtrail",) * 5 + ("from-azure", "from-duo", "from-ocsf"))
    if source != "from-cloudtrail" or "--bad_record=skip" not in options:
        planted = None
    source_options = [f"--userid_column_name={USER}"] if source == "from-cloudtrail" else []
    case = Case("log", [source, "--input_glob=.", *options], source_options, planted=planted)
    if rng.random() < 0.15:
        train = ["train-ae", "--train_epochs=1", "--train_min_history=4"]
        case.stages = [*train, "preprocess", "inf-pytorch", "add-scores", "--label=risk"]
        case.planted = None
    return case


def mutate_text(rng: Rng, text: str) -> str:
    """Change tokens of a text file: remove, repeat, swap or replace lines and words."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        words = lines[at].split(" ")
        how = rng.randrange(7)
        if how == 0:
            lines.pop(at)
        elif how == 1:
            lines.insert(at, rng.choice(lines))
        elif how == 2:
            words[rng.randrange(len(words))] = rng.choice(TEXTS)
            lines[at] = " ".join(words)
        elif how == 3:
            words[rng.randrange(len(words))] = rng.choice(text.split() or [""])
            lines[at] = " ".join(words)
        elif how == 4:
            lines[at] = lines[at].replace("=", rng.choice(("", "==", "= [", "= {")), 1)
        elif how == 5:
            lines.insert(at, rng.choice(HOSTILE_TOML))
        else:
            lines[at] = lines[at].replace('"', rng.choice(("", "'", '"""', "5")), 1)
        lines = lines or [""]
    return "\n".join(lines)


HOSTILE_TOML = (
    "[columns.a]\npath = 'a'",
    "[columns]\na = { derive = 'agent', of = 'b' }\nb = { derive = 'agent', of = 'a' }",
    "[columns]\na = { join = ['a', 'b'] }",
    "[columns]\na = { of = 'what', families = [['(a+)+$', 'x']] }",
    "[columns]\na = { of = 'what', families = [['(?<=a)b', 'x']] }",
    "[columns]\na = { of = 'what', families = [['(a{1000}){1000}', 'x']] }",
    "[[actors]]\nname = '{a}'\nwhen = { a = '(' }",
    "[[actors]]\nname = '{a/(b/}'",
    "[rows.when]\na = '*'",
    "x = " + "[" * 2000 + "]" * 2000,
    "x = " + "{a=" * 500 + "1" + "}" * 500,
    "x = 9999-99-99",
    "x = " + "9" * 5000,
    "features = []",
    "features = ['new:new:a', 'a', 'a']",
    "user = ''",
    "time = ['', 5]",
    "\ufeff",
)
SCHEMAS = sorted(
    path.name
    for path in (resources.files("morpheus") / "data" / "schemas").iterdir()
    if path.name.endswith(".toml")
)


def dump_toml(value: Any) -> str:
    """Write a value as TOML, with tables inline."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {dump_toml(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump_toml, value)) + "]"
    if isinstance(value, str | int | float) or value is None:
        return json.dumps("" if value is None else value)
    return str(value)  # a date


def mutate_toml(rng: Rng, text: str) -> str:
    """Replace and rename values in TOML that stays TOML."""
    value = tomllib.loads(text)
    words = [each for each in find_texts(value) if each]
    for _ in range(rng.choice((1, 1, 2, 3))):
        objects = list(find_objects(value))
        place = rng.choice(objects)
        if not place:
            continue
        name = rng.choice(list(place))
        how = rng.randrange(5)
        if how == 0:
            place[rng.choice((*words, *TEXTS[:8]))] = place.pop(name)
        elif how == 1:
            place[name] = rng.choice(words)
        elif how == 2:
            place[name] = deepcopy(rng.choice(list(rng.choice(objects).values()) or [""]))
        elif how == 3:
            place[rng.choice(words)] = {"derive": "agent", "of": rng.choice(words)}
        else:
            replace_any(rng, place)
    return "\n".join(f"{json.dumps(key)} = {dump_toml(inner)}" for key, inner in value.items())


def find_texts(value: Any) -> Iterator[str]:
    """Yield all texts and names in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from find_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from find_texts(inner)


def write_text(rng: Rng, path: Path, text: str) -> None:
    if path.suffix == ".toml" and rng.random() < 0.7:
        path.write_text(mutate_toml(rng, text), "utf-8", "surrogatepass")
        return
    data = mutate_text(rng, text).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        data = mutate(rng, data)
    elif rng.random() < 0.05:
        data = data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "latin-1")), "replace")
    path.write_bytes(data)


def make_schema_case(rng: Rng, folder: Path) -> Case:
    name = rng.choice(SCHEMAS)
    text = (resources.files("morpheus") / "data" / "schemas" / name).read_text("utf-8")
    (folder / "logs").mkdir()
    write_log(rng, folder / "logs")
    fill_log(rng, folder / "logs" / "filled.jsonl", tomllib.loads(text))
    write_text(rng, folder / "mine.toml", text)
    source = ["from-file", "--input_glob=logs", "--bad_record=skip"]
    return Case("schema", source, ["--columns_file=mine.toml"])


def fill_log(rng: Rng, path: Path, schema: dict[str, Any]) -> None:
    """Write records that have the fields of a schema."""
    names = [schema["time"], schema["user"], schema.get("id", "id"), *schema.get("context", [])]
    paths = [name if isinstance(name, str) else name[0] for name in names]
    paths += [each for each in schema.get("fields", []) if isinstance(each, str)]
    lines = []
    for number in range(20):
        record: dict[str, Any] = {}
        for at, dotted in enumerate(dict.fromkeys(paths)):
            good: tuple[Any, ...] = (f"2024-05-01T{number:02}:00:00Z", GOOD_USER, str(number))
            value = good[at] if at < len(good) else rng.choice((*TEXTS, 5, None, True, {"a": 1}))
            *folders, last = dotted.split(".")
            place = record
            for name in folders:
                inner = place.setdefault(name, {})
                place = inner if isinstance(inner, dict) else {}
            place[last] = value
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines))


def make_columns_case(rng: Rng, folder: Path) -> Case:
    (folder / "logs").mkdir()
    write_good_log(folder / "logs")
    names = ["eventName", "sourceIPAddress", "logcount", "new:eventName", "@actor", "locincrement"]
    names += [rng.choice(TEXTS) for _ in range(rng.randrange(3))]
    prefixes = ("new:", "previous:", "new:previous:")
    names += [rng.choice(prefixes) + rng.choice(names) for _ in range(rng.randrange(3))]
    write_text(rng, folder / "columns.txt", "\n".join(rng.sample(names, rng.randrange(len(names)))))
    source = ["from-cloudtrail", "--input_glob=logs"]
    train = ["train-ae", "--train_epochs=1", "--train_min_history=4", "preprocess", "inf-pytorch"]
    options = [f"--userid_column_name={USER}", "--columns_file=columns.txt"]
    return Case("columns", source, options, [*train, "add-scores"] if rng.random() < 0.5 else [])


SUPPRESSIONS = """format = "morpheus-suppressions"
version = 1

[[suppression]]
where = { eventName = "GetObject", errorCode = "" }
users = ["planted"]
until = 2024-06-01T00:00:00Z
reason = "nightly backup"

[[suppression]]
where = { eventName = ["PutObject", "DeleteObject"] }
users = ["eve", "ann"]
until = 2024-07-01
reason = "asked"
"""


def make_suppressions_case(rng: Rng, folder: Path) -> Case:
    (folder / "logs").mkdir()
    write_good_log(folder / "logs")
    write_text(rng, folder / "suppressions.toml", SUPPRESSIONS)
    stages = ["train-ae", "--train_epochs=1", "--train_min_history=4", "preprocess", "inf-pytorch"]
    stages += ["add-scores", "--label=risk", "filter", "--suppressions=suppressions.toml"]
    source = ["from-cloudtrail", "--input_glob=logs"]
    return Case("suppressions", source, [f"--userid_column_name={USER}"], stages)


def make_models_case(rng: Rng, folder: Path) -> Case:
    (folder / "logs").mkdir()
    write_good_log(folder / "logs")
    models = folder / "models"
    shutil.copytree(Path(os.environ["FUZZ_MODELS"]), models)
    files = sorted(path for path in models.rglob("*") if path.is_file())
    path = rng.choice(files)
    how = rng.randrange(2, 12)
    if how < 3:
        path.write_bytes(mutate(rng, path.read_bytes()))
    elif how == 3:
        write_text(rng, models / "store.json", (models / "store.json").read_text())
    elif how == 4:
        other = rng.choice(files)
        path.write_bytes(other.read_bytes())
    elif how == 5:
        path.unlink()
        rng.choice((os.mkfifo, os.mkdir, lambda at: at.symlink_to("/dev/zero")))(path)
    else:
        rng.choice((edit_index, edit_fingerprint))(rng, models)
    source = ["from-cloudtrail", "--input_glob=logs"]
    stages = ["train-ae", "--pretrained_filename=models", "preprocess", "inf-pytorch"]
    stages += ["add-scores", "--label=risk", "explain"]
    return Case("models", source, [f"--userid_column_name={USER}"], stages)


def replace_any(rng: Rng, value: Any) -> None:
    """Replace a value anywhere in a JSON value."""
    place = value
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            place[key] = make_value(rng)
            return
        place = inner


def edit_index(rng: Rng, models: Path) -> None:
    """Replace values anywhere in an index, or in the manifest, that matches its checksum."""
    manifest, index = read_store(models)
    for _ in range(rng.randrange(1, 3)):
        replace_any(rng, rng.choice((index, manifest)))
    write_store(models, manifest, index)


def read_store(models: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest and the index of a store with one version."""
    manifest = json.loads((models / "store.json").read_text())["manifest"]
    [path] = (models / "indexes").iterdir()
    return manifest, json.loads(path.read_text())


def write_store(models: Path, manifest: dict[str, Any], index: dict[str, Any]) -> None:
    """Write an index and its manifest, with the checksums of both."""
    [old] = (models / "indexes").iterdir()
    content = json.dumps(index).encode()
    name = sha256(content).hexdigest()
    (models / "indexes" / f"{name}.json").write_bytes(content)
    text = json.dumps(manifest).replace(old.stem, name).encode()
    head = {"version": 1, "sha256": sha256(text).hexdigest()}
    whole = json.dumps(head).encode()[:-1] + b', "manifest": %s}' % text
    (models / "store.json").write_bytes(whole)


def edit_fingerprint(rng: Rng, models: Path) -> None:
    """Damage the content of a fingerprint that matches its checksum in the index."""
    manifest, index = read_store(models)
    [pack] = (models / "packs").iterdir()
    entry = rng.choice(list(index["users"].values()))
    start, size = entry.get("start", 0), entry["card"]["size"]
    tensors = dict(load(pack.read_bytes()[start : start + size]))
    name = rng.choice([each for each in tensors if each != "header"])
    how = rng.randrange(6)
    if how == 0:
        tensors[name].flat[:1] = rng.choice((np.nan, np.inf, -1, 1e30))
    elif how == 1:
        tensors[name] = tensors[name][: rng.randrange(2)]
    elif how == 2:
        del tensors[name]
    else:
        header = json.loads(tensors["header"].tobytes())
        replace_any(rng, header)
        tensors["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content = save(tensors)
    entry["card"].update(size=len(content), sha256=sha256(content).hexdigest())
    entry["start"] = pack.stat().st_size
    with pack.open("ab") as file:
        file.write(content)
    write_store(models, manifest, index)


def find_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from find_objects(inner)


def make_state_case(rng: Rng, folder: Path) -> Case:
    case = make_log_case(rng, folder)
    case.kind, case.planted = "state", None
    shutil.copy(os.environ["FUZZ_STATE"], folder / "state.db")
    path = folder / "state.db"
    if rng.random() < 0.8:
        path.write_bytes(mutate(rng, path.read_bytes()))
    case.options.append("--state=state.db")
    return case


KINDS: dict[str, tuple[int, Callable[[Rng, Path], Case]]] = {
    "log": (10, make_log_case),
    "schema": (4, make_schema_case),
    "columns": (2, make_columns_case),
    "suppressions": (2, make_suppressions_case),
    "models": (3, make_models_case),
    "state": (1, make_state_case),
}
"""Kinds of cases, with their weights."""


def make_case(seed: str, folder: Path) -> Case:
    """Write the input of a seed into an empty folder, and return its command line."""
    rng = random.Random(seed)  # noqa: S311 - a seed, no secret
    weights = [weight for weight, _ in KINDS.values()]
    [kind] = rng.choices(list(KINDS), weights)
    return KINDS[kind][1](rng, folder)
