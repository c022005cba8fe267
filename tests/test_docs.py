"""The docs are correct: commands run and show what the page shows, and each page has an owner test.

In README.md and in all pages under docs/, `pages` finds the programs. Those of a page run from top
to bottom, in one copy of examples/. Commands of README.md, of a cluster and in the background get
processes of their own; see `warm_command` for the others. Command lines in other blocks and in the
text are not run, but their words are checked.

A page without programs needs an owner in `OWNERS`: the test that fails when the page is wrong. So
does a page with programs that need a server, which the owner runs with a local one.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from command_lines import check_command, check_options, find_commands, iter_options
from morpheus.cli.main import morpheus
from morpheus.cli.reference import (
    read_upstream_options,
    render_compatibility,
    render_reference,
)
from morpheus.columns import (
    ACTOR,
    INCIDENT_ID,
    INCIDENT_SEVERITY,
    INDEX,
    LATE,
    RATE_PVALUE,
    ROW_ID,
    TIME,
    TS_ANOMALY,
    ExplanationColumns,
)
from morpheus.errors import MorpheusError
from morpheus.features.derived import PREFIX_FUNCTIONS
from morpheus.sources import cloudtrail, ocsf
from morpheus.stages.add_scores import SCORE_FUNCTIONS, Z_LOSS_SUFFIX
from pages import (
    PAGES,
    ROOT,
    copy_examples,
    find_blocks,
    find_missing,
    find_programs,
    name_of,
    run_page,
)

TEXTS = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]
TEXTS.append(ROOT / "examples" / "README.md")
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_PROJECT_PATH = re.compile(r"(?:src|tests|benchmarks|docs)/[\w./-]+\.(?:py|md)")

OWNERS = {
    "docs/benchmarks.md": "test_docs::test_a_page_of_figures_is_as_its_program_writes_it",
    "docs/quality.md": "test_docs::test_a_page_of_figures_is_as_its_program_writes_it",
    "docs/scaling.md": "test_docs::test_a_page_of_figures_is_as_its_program_writes_it",
    "docs/cli.md": "test_docs::test_the_reference_is_current",
    "docs/compatibility.md": "test_docs::test_the_table_of_compatibility_is_current",
    "docs/derived-columns.md": "test_docs::test_the_page_of_derived_columns_lists_all",
    "docs/differences.md": "test_docs::test_options_in_the_text_exist",
    "docs/evidence.md": "report/test_evidence::test_the_documentation_shows_what_the_page_writes",
    "docs/how-to/bucket-stream.md": "services/test_how_to::test_the_page_of_a_bucket_follows_it",
    "docs/how-to/index.md": "test_docs::test_a_page_of_links_has_all_pages_of_its_section",
    "docs/kafka.md": "test_from_kafka::test_the_page_reads_a_topic_and_a_second_run_goes_on",
    "docs/how-to/kafka.md": "services/test_how_to::test_the_page_of_kafka_sends_messages",
    "docs/how-to/opensearch.md": "services/test_how_to::test_the_page_of_opensearch_sends_alerts",
    "docs/how-to/s3.md": "services/test_how_to::test_the_page_of_s3_reads_a_bucket",
    "docs/how-to/splunk.md": "services/test_how_to::test_the_page_of_splunk_sends_findings",
    "docs/tutorials/index.md": "test_docs::test_a_page_of_links_has_all_pages_of_its_section",
    "docs/reference/api.md": "test_site::test_the_reference_of_python_has_every_public_name",
    "docs/reference/index.md": "test_docs::test_a_page_of_links_has_all_pages_of_its_section",
    "docs/reference/columns.md": "test_docs::test_the_page_of_columns_lists_those_that_stages_add",
    "docs/explanation/index.md": "test_docs::test_a_page_of_links_has_all_pages_of_its_section",
    "docs/faq.md": "test_docs::test_an_answer_leads_to_a_page_that_says_more",
    "docs/soak.md": "test_soak::test_the_page_names_the_options_and_faults_of_the_soak",
    "docs/glossary.md": "test_docs::test_the_terms_of_the_glossary_are_sorted",
}
OWNER_OF_DECISIONS = "test_docs::test_a_decision_has_a_number_of_its_own_and_begins_with_it"

OPTIONS_OF_OTHER_PROGRAMS = {
    *("--resources", "--directory"),  # of `dask worker` and `http.server`
    *("--only", "--full", "--quick", "--old", "--into"),  # of the benchmarks
    *("--faults", "--command", "--brokers", "--evidence", "--rate", "--users", "--minutes"),
    *("--events", "--known"),  # of the benchmark of streams
    # Of the production example of NVIDIA Morpheus.
    *("--cache_dir", "--filter_threshold", "--input_file", "--only_user", "--tracking_uri"),
    "--watch_inputs",
    *("--offline", "--profile"),  # of systemd-analyze and docker compose
}


def pages_with_programs() -> list[Path]:
    """Return the pages with programs that need no server."""
    return [
        page
        for page in PAGES
        if name_of(page) not in OWNERS and find_programs(page.read_text(encoding="utf-8"))
    ]


def prose_of(page: Path) -> str:
    """Return the text of a page without its blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def owner_of(page: Path) -> str | None:
    if name_of(page) in OWNERS:
        return OWNERS[name_of(page)]
    if page in pages_with_programs():
        return "test_docs::test_the_programs_of_a_page_run"
    return OWNER_OF_DECISIONS if page.parent.name == "decisions" else None


def names_of_tests(module: str) -> Iterator[str]:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield f"{module}::{node.name}"


def test_every_page_has_an_owner_test() -> None:
    owners = {name_of(page): owner_of(page) for page in PAGES}
    assert [page for page, owner in owners.items() if owner is None] == [], "add it to OWNERS"
    modules = {owner.partition("::")[0] for owner in owners.values() if owner}
    known = {test for module in modules for test in names_of_tests(module)}
    assert {owner for owner in owners.values() if owner} <= known
    assert set(OWNERS) <= set(owners), "a page that is gone has an owner"


def test_programs_of_a_page_are_found() -> None:
    console = "```console\n$ a \\\n    b\nout\n$ c | d\n```\n"
    page = f"```sh\nmake\n```\n\n{console}\n```text\nmore\n```\n\n```python\nx = 1\n```\n"
    shell, python = find_programs(page)
    assert (shell.text, shell.output) == ("a \\\n    b\nc | d", ("out", "more"))
    assert (python.text, python.output) == ("x = 1\n", ())


def test_a_here_document_belongs_to_its_command() -> None:
    [program] = find_programs("```console\n$ cat > a <<'END'\nx\n  y\nEND\n$ ls\nout\n```\n")
    assert program.text == "cat > a <<'END'\nx\n  y\nEND\nls"
    assert program.output == ("out",)


@pytest.mark.parametrize("line", ["Found 2 incidents", "b\na", "a ... z"])
def test_a_stored_output_that_differs_is_found(line: str) -> None:
    assert find_missing(line.splitlines(), "a b\nFound 1 incident\nb")


@pytest.mark.parametrize("page", pages_with_programs(), ids=name_of)
def test_the_programs_of_a_page_run(page: Path, tmp_path: Path, warm_morpheus: Path) -> None:
    folder = copy_examples(tmp_path)
    text = page.read_text(encoding="utf-8")
    own_processes = page.name == "README.md" or "--engine=dask" in text or " & " in text
    script = Path(sys.executable) if own_processes else warm_morpheus
    run_page(page, folder, script)


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_command_lines_that_do_not_run_are_right(page: Path) -> None:
    blocks = find_blocks(page.read_text(encoding="utf-8"))
    bodies = [body for language, body, _ in blocks if language in ("sh", "text")]
    wrong = []
    for words in (words for body in bodies for words in find_commands(body)):
        try:
            check_command(words)
        except (click.ClickException, MorpheusError) as error:
            wrong.append(f"{' '.join(words)}: {error}")
    for words in (words for code in _CODE.findall(prose_of(page)) for words in find_commands(code)):
        try:
            check_options(words)
        except click.ClickException as error:
            wrong.append(f"{' '.join(words)}: {error}")
    assert wrong == []


def test_a_wrong_command_line_is_found() -> None:
    for line in (
        "morpheus detect --alert_per_day=1 logs",
        "morpheus run pipeline-ae from-cloudtrail --input_glob=a filter --threshold=x",
        "morpheus run pipeline-ae from-cloudtrail --input_glob=a filter --unknown=1",
        "morpheus run ... train-ae --model=none --resolution=1h ...",
    ):
        [words] = find_commands(line)
        with pytest.raises((click.ClickException, MorpheusError)):
            check_command(words)


def test_options_in_the_text_exist() -> None:
    known = {option for _, option in iter_options()} | OPTIONS_OF_OTHER_PROGRAMS | {"--help"}
    known |= {each.option for each in read_upstream_options()}
    unknown = {
        f"{name_of(page)}: {option}"
        for page in PAGES
        for code in _CODE.findall(prose_of(page))
        for option in _OPTION.findall(code)
        if option not in known
    }
    assert unknown == set()


def test_files_of_the_project_in_the_text_exist() -> None:
    gone = {
        f"{name_of(page)}: {path}"
        for page in PAGES
        if page.name != "compatibility.md"  # names files of NVIDIA Morpheus
        for code in _CODE.findall(prose_of(page))
        for path in _PROJECT_PATH.findall(code)
        if not (ROOT / path).exists()
    }
    assert gone == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_exist(page: Path) -> None:
    broken = [
        link
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_reference_is_current() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render_reference(morpheus, "morpheus") + "\n", "run `make docs`"


def test_the_table_of_compatibility_is_current() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert page == render_compatibility(morpheus) + "\n", "run `make docs`"


@pytest.mark.parametrize(
    ("name", "package", "titles"),
    [
        ("benchmarks", "speed", "PARTS"),
        ("quality", "quality", "TITLES"),
        ("scaling", "scale", "PARTS"),
    ],
)
def test_a_page_of_figures_is_as_its_program_writes_it(
    name: str, package: str, titles: str, tmp_path: Path, part: Callable[[str], ModuleType]
) -> None:
    program = part(f"{package}.__main__")
    page, copy = ROOT / "docs" / f"{name}.md", tmp_path / "page.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    head = program.HEAD + (program.meanings() if package == "quality" else "")
    result = importlib.import_module("figures.page").Page(copy, head, getattr(program, titles))
    result.write(result.read())
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_the_page_of_derived_columns_lists_all() -> None:
    text = (ROOT / "docs" / "derived-columns.md").read_text(encoding="utf-8")
    table = text.partition("## Find the actor")[0]
    listed = set(re.findall(r"^\| `([\w:]+)`", table, re.MULTILINE))
    prefixed = {f"{prefix}COLUMN" for prefix in PREFIX_FUNCTIONS}
    assert listed == {*cloudtrail.DERIVED_COLUMNS, *ocsf.DERIVED_COLUMNS, *prefixed}


@pytest.mark.parametrize("section", ["explanation", "how-to", "reference", "tutorials"])
def test_a_page_of_links_has_all_pages_of_its_section(section: str) -> None:
    folder = ROOT / "docs" / section
    linked = set(_LINK.findall((folder / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in folder.glob("*.md")} - {"index.md"} <= linked, section


def test_the_page_of_columns_lists_those_that_stages_add() -> None:
    text = (ROOT / "docs" / "reference" / "columns.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    listed = {name for cell in cells for name in _CODE.findall(cell)}
    added = {INDEX, TIME, ACTOR, LATE, ROW_ID, TS_ANOMALY, RATE_PVALUE}
    added |= {INCIDENT_ID, INCIDENT_SEVERITY}
    assert listed == added | {*SCORE_FUNCTIONS, f"<column>{Z_LOSS_SUFFIX}", *ExplanationColumns()}


def test_an_answer_leads_to_a_page_that_says_more() -> None:
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    parts = re.split(r"^#{2,3} (.*)$", text, flags=re.MULTILINE)[1:]
    answers = {
        question: answer
        for question, answer in zip(parts[::2], parts[1::2], strict=True)
        if answer.strip()  # a section has none
    }
    assert [question for question in answers if not question.endswith("?")] == []
    assert [question for question, answer in answers.items() if not _LINK.search(answer)] == []


def messages_in_source() -> Iterator[str]:
    """The texts of the package, with `...` for what is inserted."""
    for file in (ROOT / "src" / "morpheus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%\w", "...", node.value)
            if isinstance(node, ast.JoinedStr):
                parts = (x.value if isinstance(x, ast.Constant) else "..." for x in node.values)
                yield "".join(map(str, parts))


def test_messages_on_the_page_of_troubleshooting_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    messages = [code for heading in headings for code in _CODE.findall(heading)]
    assert len(messages) >= len(headings) > 20
    # Those of click are in the outputs, which are compared with what the commands write.
    outputs = [line for program in find_programs(text) for line in program.output]
    known = "\n".join([*messages_in_source(), *outputs])
    patterns = (re.escape(each).replace(re.escape("..."), ".*") for each in messages)
    assert [each for each in patterns if not re.search(each, known)] == []


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_a_table_has_a_head_and_rows_of_equal_width(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.sub(r"`[^`]*`|\\\|", "", row) for row in table.splitlines()]
        assert re.fullmatch(r"[|\s:-]+", rows[1] if len(rows) > 1 else ""), table
        assert len({row.count("|") for row in rows}) == 1, table


def test_the_readme_lists_each_extra_of_users_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| Extra |")[2]
    listed = re.findall(r"^\| `(\w+)`", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(listed) == sorted(project["optional-dependencies"].keys() - {"dev", "docs"})


def test_the_terms_of_the_glossary_are_sorted() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert terms == sorted(terms, key=lambda term: term.replace("-", "").lower())
    assert len(terms) == len(set(terms))


def test_a_decision_has_a_number_of_its_own_and_begins_with_it() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:3] for page in pages]
    assert numbers == sorted(set(numbers))
    wrong = [
        page.name
        for page in pages
        if not page.read_text(encoding="utf-8").startswith(f"# {page.name[:3]}: ")
    ]
    assert wrong == []


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert "## Unreleased" in text or f"## {version[1]}" in text
