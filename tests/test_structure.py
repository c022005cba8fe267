"""The structure of the package: its size, its imports, and the path of one run through it.

Run with `-s` to see the figures.
"""

from __future__ import annotations

import ast
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "morpheus"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [
    file
    for folder in ("src", "tests", "benchmarks", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if ".rivals" not in file.parts  # other packages, installed by the benchmarks
]

MAX_MODULES = 137
"""The design's 120, one that cuts records, and 16 for endless runs: the loop, the outbox, the
changelog; Kafka, SQS and buckets; versions, drift and retraining of models, and MLflow; metrics;
the commands of state, models and retraining; scoring many users at once; and earlier events."""
MAX_BODY_LINES = 40
MAX_PROTOCOL_MEMBERS = 10
MAX_MODULES_ENTERED = 45
MAX_MEAN_FRAMES = 15

MAY_IMPORT_TORCH = {"morpheus.models.batched_training", "morpheus.models.reference"}

# Packages and modules of version 0.1 that moved. A new module must not bring such a path back.
_OLD = """
bucket cluster engines review rhythm
atomic estimator fingerprints folder interrupt kept_log processes quoting records registry scratch
spill stage turns
cli.autocomplete cli.command cli.compatibility cli.environment cli.exits cli.log cli.log_config
cli.misplaced cli.options cli.preview cli.replay cli.report cli.screen cli.serve
cli.summary cli.table cli.tools
features.categories features.dictionary features.families features.numbers
models.blocks models.budget models.change models.company models.context models.device
models.evidence models.familiar models.fingerprint models.fingerprint_file models.index
models.ladder models.learning models.ownership models.past models.portrait
models.reference_training models.sentence models.stack models.trial models.twins models.witness
replay.drill replay.hold_out replay.outcome replay.retelling replay.tell_tales replay.trials
replay.victims
report.account report.admission report.candidates report.contents report.findings report.gaps
report.look report.person report.rehearsed report.yardstick
serve.following serve.gate serve.server
sinks.brokers sinks.comparison sinks.contents sinks.data_set sinks.dead_letters
sinks.detection_finding sinks.ecs sinks.head sinks.keep sinks.letters sinks.ocsf sinks.place
sinks.post sinks.receivers sinks.spelling sinks.traits
sources.actors sources.arrivals sources.by_user sources.census sources.cloudtrail_actors
sources.deriving sources.description sources.documents sources.fetching sources.file_source
sources.files sources.finished sources.flatten sources.frame sources.gathering sources.ground
sources.intake sources.lake_tables sources.log_files sources.partitions sources.period
sources.places sources.portion sources.schema sources.shelves sources.source sources.spread
sources.survey sources.tables sources.times sources.toml_file sources.union sources.unwrapping
sources.walk sources.work
stages.alerts stages.buffer stages.delay stages.gen_viz stages.inf_triton stages.leftovers
stages.outputs stages.pass_through stages.teacher stages.trigger
suppressions.preview suppressions.verdicts suppressions.writing
"""
OLD_PATHS = _OLD.split()

LESSON = shlex.split("""
run --num_threads=1
pipeline-ae --userid_column_name=userIdentitysessionContextsessionIssueruserName
from-cloudtrail --input_glob=data/input-data/*.csv
train-ae --train_data_glob=data/training-data/*.csv --seed 42
preprocess inf-pytorch add-scores
timeseries --resolution=10m --zscore_threshold=8.0
serialize to-file --filename=data/output/output.csv --overwrite
""")

# Counts calls of the package's functions, in all threads. Lambdas and comprehensions count for
# their module. Module and class bodies, and calls that an import makes, do not count: they only
# declare. A resumed generator counts as a call, because it appears in a traceback like one.
PROFILER = """
import inspect, json, sys, threading
from pathlib import Path
import morpheus
from morpheus.cli.main import morpheus as command

package = str(Path(morpheus.__file__).parent) + "/"
kinds, entered, counted = {}, set(), {"calls": 0, "frames": 0}

def kind_of(code):
    if code not in kinds:
        function = bool(code.co_flags & inspect.CO_OPTIMIZED)
        kinds[code] = function if code.co_filename.startswith(package) else None
    return kinds[code]

def profile(frame, event, _):
    if event != "call" or not kind_of(frame.f_code):
        return
    file, frames = frame.f_code.co_filename, 0
    while frame is not None:
        kind = kind_of(frame.f_code)
        if kind is False:
            return
        frames += kind is True
        frame = frame.f_back
    entered.add(file)
    counted["calls"] += 1
    counted["frames"] += frames

threading.setprofile(profile)
sys.setprofile(profile)
try:
    command(sys.argv[1:], prog_name="morpheus", standalone_mode=False)
finally:
    sys.setprofile(None)
    threading.setprofile(None)
modules = sorted(file.removeprefix(package) for file in entered)
result = {"modules": modules, "loaded": sorted(sys.modules), **counted}
Path("counted.json").write_text(json.dumps(result))
"""


def name_of(file: Path) -> str:
    """The dotted name of a module of the package."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file): file for file in MODULES}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(node: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Each module that code imports at run time, the name it takes from there, and the line."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        below: list[ast.AST] = list(node.orelse)
    else:
        below = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from ((one.name, "", node.lineno) for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        yield from ((module, one.name, node.lineno) for one in node.names)
    for child in below:
        if not isinstance(child, ast.expr):  # an expression imports nothing, and most nodes are one
            yield from imports_of(child)


def modules_imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions."""
    found = set()
    for module, name, _ in imports_of(tree_of(file)):
        full = f"{module}.{name}"
        found |= {full if full in NAMES else module} & NAMES.keys()
    return found


def show(figure: str) -> None:
    """Print a figure for `pytest -s`."""
    sys.stdout.write(f"\n{figure}\n")


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in MODULES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def public_members(kind: type) -> set[str]:
    """The names, own and inherited, that an author of a subclass meets."""
    names: set[str] = set()
    for one in kind.__mro__:
        if one.__module__.startswith("morpheus"):
            names |= {*vars(one), *vars(one).get("__annotations__", {})}
    return {name for name in names if not name.startswith("_")}


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code."""
    command = [sys.executable, "-c", code + "\nimport sys; print(*sorted(sys.modules))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the profiler counts while the first lesson runs."""
    folder = tmp_path_factory.mktemp("lesson")
    for part in ("input-data", "training-data"):
        shutil.copytree(ROOT / "examples" / "data" / part, folder / "data" / part)
    command = [sys.executable, "-c", PROFILER, *LESSON]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "counted.json").read_text())


def test_the_package_has_at_most_137_modules() -> None:
    show(f"modules: {len(MODULES)}")
    assert len(MODULES) <= MAX_MODULES


def test_no_modules_import_each_other_in_a_cycle() -> None:
    relative = [
        f"{name}:{line}"
        for name, file in NAMES.items()
        for module, _, line in imports_of(tree_of(file))
        if module.startswith(".")
    ]
    assert relative == [], "import by the full name"
    graph = {name: modules_imported(file) - {name} for name, file in NAMES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_function_body_has_at_most_40_lines() -> None:
    sizes = {where: body_lines(function) for where, function in functions()}
    show(f"longest function body: {max(sizes.values())} lines")
    assert {where: size for where, size in sizes.items() if size > MAX_BODY_LINES} == {}


def test_a_stage_author_meets_at_most_10_members() -> None:
    members = public_members(importlib.import_module("morpheus.core.stage").Transform)
    show(f"protocol: {len(members)} members: {', '.join(sorted(members))}")
    assert len(members) <= MAX_PROTOCOL_MEMBERS, sorted(members)


def test_the_first_lesson_enters_at_most_45_modules(lesson: dict) -> None:
    modules = lesson["modules"]
    below = [name for name in modules if not name.startswith("cli/")]
    show(f"modules entered: {len(modules)}, without cli/: {len(below)}")
    assert len(modules) <= MAX_MODULES_ENTERED, modules


def test_a_call_in_the_first_lesson_has_on_average_at_most_15_package_frames(lesson: dict) -> None:
    mean = lesson["frames"] / lesson["calls"]
    show(f"package frames on the stack: {mean:.1f} on average, over {lesson['calls']:,} calls")
    assert mean <= MAX_MEAN_FRAMES


@pytest.mark.parametrize("words", ["--help", "run --help", "tools --help"])
def test_help_loads_neither_torch_nor_polars_nor_numpy(words: str) -> None:
    code = (
        "from morpheus.cli.main import morpheus\n"
        f"morpheus({words.split()!r}, prog_name='morpheus', standalone_mode=False)"
    )
    assert not loaded_by(code) & {"torch", "polars", "numpy", "rich"}


def test_help_of_the_command_loads_no_stage_and_no_options() -> None:
    code = (
        "from morpheus.cli.main import morpheus\n"
        "morpheus(['--help'], prog_name='morpheus', standalone_mode=False)"
    )
    loaded = loaded_by(code)
    assert {name for name in loaded if name.startswith("morpheus.") and name.count(".") > 1} == {
        "morpheus.cli.main",
        "morpheus.cli.output",
    }
    assert not loaded & {"dataclasses", "json", "logging"}, "each takes milliseconds"


def test_the_first_lesson_loads_nothing_of_streams_clusters_reports_and_state_files(
    lesson: dict,
) -> None:
    others = {"runtime.stream", "runtime.outbox", "runtime.states", "runtime.dask", "report.view"}
    others |= {"sources.watcher", "status", "runtime.dask_cluster", "sources.cluster_partitioning"}
    unwanted = {f"morpheus.{name}" for name in others} | {"sqlite3", "logging.config"}
    assert not unwanted & set(lesson["loaded"])


@pytest.mark.parametrize("module", ["stages.train_ae", "stages.infer", "pipeline", "testing"])
def test_a_stage_can_be_imported_without_torch(module: str) -> None:
    assert "torch" not in loaded_by(f"import morpheus.{module}")


def test_only_two_modules_import_torch() -> None:
    users = {
        name
        for name, file in NAMES.items()
        for module, _, _ in imports_of(tree_of(file))
        if module.split(".")[0] == "torch"
    }
    assert users == MAY_IMPORT_TORCH


def test_no_old_module_is_left() -> None:
    assert [path for path in OLD_PATHS if f"morpheus.{path}" in NAMES] == []


def test_every_import_from_the_package_names_a_module_that_exists() -> None:
    gone = [
        f"{file.relative_to(ROOT)}:{line} {module}"
        for file in SCRIPTS
        for module, _, line in imports_of(tree_of(file))
        if module.split(".")[0] == "morpheus" and module not in NAMES
    ]
    assert gone == []


def test_no_text_names_an_old_module() -> None:
    places = [*SCRIPTS, ROOT / "pyproject.toml", *sorted((ROOT / "docs").rglob("*.md"))]
    places += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    old = {path: (f"morpheus.{path}", path.replace(".", "/")) for path in OLD_PATHS}
    found = []
    for file in places:
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if "morpheus" not in text:
                continue
            words = set(text.replace("`", " ").replace('"', " ").replace(":", " ").split())
            found += [
                f"{file.relative_to(ROOT)}:{line} {path}"
                for path, (dotted, slashed) in old.items()
                if dotted in words
                or any(word.endswith(f"morpheus/{slashed}.py") for word in words)
                or any(word.startswith(f"{dotted}.") for word in words)
            ]
    assert found == [], "\n".join(found)
