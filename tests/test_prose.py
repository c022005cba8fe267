"""The prose is plain: no dialect, no long sentences, no invented names.

Checks what people read: docs, help, messages, docstrings, comments and the report page. Run with
`-s` to see the longest sentences. docs/decisions/012-plain-language.md says why.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from morpheus.cli.main import morpheus

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "morpheus").rglob("*.py"))
ASSETS = sorted((ROOT / "src" / "morpheus" / "report" / "assets").iterdir())
QUOTES_OLD_TEXT = ROOT / "docs" / "decisions" / "012-plain-language.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "pyproject.toml",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]

# The wording of the `reason` column is part of the output. Its module is exempt, apart from
# docstrings and comments, until the output changes.
WRITES_REASONS = {"explanation.py", "sentence.py"}

MAX_WORDS = 30
MAX_LONG_SHARE = 0.05

# One phrase a line: a regular expression, matched without case and as whole words. A space matches
# any white space. Add a phrase only if no correct plain sentence contains it.
PHRASES = r"""
# The "now" column of the style guide.
(?:stops?|stopped) being (?:themselves|itself|himself|herself)
who do alike
rather everybody's
how ill
spends? a budget
(?:may|can|must) lie in
wants? describing
comes in the build
all there is to log
least level
what is typed
counts? for more
look at what is installed
side by side, at most
no results? depends? on
from everyone's
everyone's alone
everything random
hand(?:s|ed|ing)? (?:it |them |rows |batches |events )?on
events without a score go
comes? into question
say of each
do nothing: it was
its viewer is gone
go(?:es)? on for ever
for ever
so many \w+ at most
so many (?:files|rows|bytes|cells|users|events|seconds|tries|columns|values|numbers)(?=[.,;:])
events of so long
so long (?:after|before)
(?:mend|mends|mended|mending)
they go first
whole or not at all
filled up with
around it
seen, and expected
mark on a bar of bits
pale: usual
first a verdict
without verdict
higher than it gets
as high as it gets
still say what they said
says? little
what came before
# Pronouns and quantities.
whoever
whomever
(?:what|where) somebody
somebody has to
say of
says of
said of
known of
usual of
what (?:came|comes|became|becomes) of
becomes? of
at most, or
at most(?=[.;]$)
at least(?=[.;]$)
names? nobody
nobody apart
teach(?:es)? nothing
(?:that|which) (?:is|are) none(?=[.,;:])
it is none
of no user
whose each
whose event it is
one (?:name|row|column|value|object) an? (?:line|row|column|event|user|name|file)(?=[.,;:])
# "to be" with an infinitive.
is to tell
there is to
(?:what|which|that|who|where|how|nothing|file|path|sink|page) (?:is|are|was|were) to (?!be sure)\w+
(?:are|were) to be
(?:can|to|could) be had
(?:may|can|must) be asked of
# Verbs of the old voice.
lies
lies? (?:in|beside|before|above|below|there|where)
lay(?:s|ing)? (?:\w+ )?aside
laid aside
(?:lets?|letting) (?:it |them |all )?go of
lets? pass
told of
told at once
goes by
gone by
goes ill
what tells
tells? (?:nobody|one kind|whose|of a|none)
(?:is|are|was|were) heard
held back
hold(?:s|ing)? (?:it |them |all )?back
stands? (?:in|among|beside|around|before|there|under|alone)(?! for)
(?:what|where it|where they|where one|where that) st(?:ands?|ood)
came? to nothing
(?:name|path) it bears
whose name it bears
take(?:s|n)? (?:\w+ )?away what
# Adverbs and connectives of the old voice.
anew
beforehand
of its own accord
as far as (?:whoever|they|the files|the run|folders|these|those|it is|that is)
in want of
for want of
by heart
one after the other's
where there is none of these
where none (?:is|are|stands|of)
cores at hand
device is at hand
# Metaphors.
rooms? \d
workshops?
was no room
is no room
make room or
one door
down a ladder
odd signs?
full-width signs
broken rhythm
(?:breaks?|broke|broken|breaking) (?:in )?the (?:\w+'s )?rhythm
weak spots?
"""


# Names of version 0.1 that were metaphors or dialect. Names of options, columns, JSON keys and
# model files are not here, and neither are words that are standard.
_INVENTED = """
Crew crew map_given Begun Turns AHEAD KeptLog kept_log UntilStopped Blob Scratch OnDisk InBucket
read_marked replace_marked Draft whole_file legible shortened plug OneUser check_laws

endless survey pictured curious meet together costly beforehand anywhere settled portion portions
writes_into needs_fingerprint become excerpt Picture picture Watched watched Spending spending
Fingerprinted Spelt spelt Reading userless exclusions Effort everybody Portion

HABITUAL folded folded_as_scoped fold Light Beforehand PARTY MOST GROWTH growing Elsewhere Packed
Passed first_of MANY Tidings tidings of_task of_workers Told told announce wait_begun Given
for_others is_address reaching

Intake intake Recipe Room room Ground ground Heap Gathering gathering Gathered gathered Where
lay_aside laid_aside Shelves shelves Spread Spreading SpreadPortion A_USER LIGHTEST HEAVIEST EACH
Census census parted GatheredPortion Remembered Cuts suspects end_round ByUser hand_out Survey Draw
jobs_of plain_size mended tabled Fetching fetching AT_ONCE PACKED Undecoded Unwrapping unwrapping
Leaf spellings tellable Deriving deriving About root_of MADE PLACES Walk Walked choosy live_files
tables_of Arrivals arrivals nobody learnt_from read_as with_values

Excerpt MOST_WORDS row_of YOUNG REMEMBERED

Usual priced plain_losses Chances HABIT_FLOOR COMPANY_FLOOR Company Guesses guesses Decayed Lasting
Strange Weighed Past Before Familiar Neighbours met Witness witness Ordinary Guess louder loudest
Remedy Preceding Instead Near Likelier WORTH strangest Twins told_apart Ladder ladder climbed FEWEST
ALIKE_FROM of_one ANYTHING Ownership ownership SEVERAL likeness PAUSE SURE lasting LONGEST Portrait
SHARES lively LIVELIEST Study LATER OFTEN Measured Pupil StackedAdam filled_up NEVER trainer_on
may_be_gpu Cards KEPT TRIES Words dealt STANDS_FOR

unusual_bins unusual_centres Lanes settle coarser RHYTHM Rhythm

Teacher teacher fingerprinted Spend Ledger leftovers EARLIER STRANGE NOTHING HARMLESS doubts mute
ENOUGH

Letter Answer Carrier Refuge refuge_at hopeless Patience Tally tally Parcel along tired give_up
Brokers SILENCE NAP Post Unanswered Courier receiver_of FORMS Traits traits spell pour Spelling Keep
drafted Guarded tell

Lack Admitted admitted Seen offbeat Look Lane Rehearsed rehearsed Yardstick yardstick FAR Following
Growing Whole news Gate welcome NO_HOST grown timeless Site Drill drill HoldOut Retelling retelling
persona tells clean_agent own_calls most_usual untried POINTS HELD derived_anew sent_home home_of
endings stoppable say made_of tell_unknown RUNGS NOBODY Around
"""
INVENTED = set(_INVENTED.split())

# Modules that had such a name, though the word is plain, or on the wire, elsewhere.
INVENTED_FILES = INVENTED | {"by_user", "company", "familiar", "letters", "rhythm", "twins"}

# Past participles that were functions. As variables and fields they are plain.
_NOT_FUNCTIONS = """
of passed kept spelt told named judged drafted gathered admitted counted given listed
declared turned timed tabled
"""
NOT_FUNCTIONS = set(_NOT_FUNCTIONS.split())

# Attributes of other libraries with such a name.
FOREIGN_ATTRIBUTES = {
    "tell": "the position in a file, of Python's io",
}


class Text(NamedTuple):
    """Text that people read, and where it begins."""

    file: Path
    line: int
    text: str


def compiled() -> list[re.Pattern[str]]:
    lines = [line for line in PHRASES.splitlines() if line and not line.startswith("# ")]
    return [as_words(line.replace(" ", r"[ \n]+")) for line in lines]


def as_words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE | re.MULTILINE)


FORBIDDEN = compiled()
ANY_FORBIDDEN = as_words("|".join(f"(?:{phrase.pattern})" for phrase in FORBIDDEN))
"""Nearly no text has a forbidden phrase, and one search for all is fast."""


def in_docs() -> Iterator[Text]:
    for page in PAGES:
        if page != QUOTES_OLD_TEXT:
            yield Text(page, 1, page.read_text(encoding="utf-8"))


def in_page() -> Iterator[Text]:
    """The report page's files."""
    for file in ASSETS:
        yield Text(file, 1, file.read_text(encoding="utf-8"))


def in_source() -> Iterator[Text]:
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        yield from comments(file, text)
        tree = ast.parse(text)
        docs = {id(node) for node in docstrings(tree)}
        for node in ast.walk(tree):
            if file.name not in WRITES_REASONS or id(node) in docs:
                yield from literals(file, node)


def docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            yield from (one.value for one in body if isinstance(one, ast.Expr))


def literals(file: Path, node: ast.AST) -> Iterator[Text]:
    """A string; the values in an f-string are left out. A part of an f-string is found twice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield Text(file, node.lineno, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
        yield Text(file, node.lineno, "".join(map(str, parts)))


def comments(file: Path, text: str) -> Iterator[Text]:
    """Comments; those on lines one after the other are one text."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield Text(file, start, "\n".join(block))
                block, start = [], token.start[0]
            block.append(token.string.lstrip("#: "))
            last = token.start[0]
    yield Text(file, start, "\n".join(block))


def commands(context: click.Context) -> Iterator[click.Context]:
    """A command and all below it, loaded but not run."""
    yield context
    if isinstance(context.command, click.Group):
        for word in context.command.list_commands(context):
            below = context.command.get_command(context, word)
            if below is not None:
                yield from commands(click.Context(below, info_name=word, parent=context))


def option_help() -> Iterator[tuple[str, str]]:
    for context in commands(morpheus.make_context("morpheus", [], resilient_parsing=True)):
        for option in context.command.params:
            if isinstance(option, click.Option):
                yield f"{context.command_path} {option.opts[0]}", option.help or ""


def all_help() -> Iterator[tuple[str, str]]:
    yield from option_help()
    for context in commands(morpheus.make_context("morpheus", [], resilient_parsing=True)):
        command = context.command
        for text in (command.help, command.short_help, command.epilog):
            yield context.command_path, text or ""


def found_in(texts: Iterator[Text]) -> list[str]:
    """Each forbidden phrase, with file and line."""
    found = {
        f"{text.file.relative_to(ROOT)}:{text.line + text.text.count(chr(10), 0, match.start())}"
        f" {' '.join(match[0].split())}"
        for text in texts
        if ANY_FORBIDDEN.search(text.text)
        for phrase in FORBIDDEN
        for match in phrase.finditer(text.text)
    }
    return sorted(found)


def report(rows: list[str]) -> str:
    return f"{len(rows)} found\n" + "\n".join(rows)


def test_a_forbidden_phrase_is_found_across_lines_but_not_inside_a_word() -> None:
    plain = "Amend the file. The rest is held by backups. At most 5 files. He tells the story.\n"
    assert found_in(iter([Text(ROOT / "a", 1, plain)])) == []
    assert found_in(iter([Text(ROOT / "a", 1, "x\nwas held\nback")])) == ["a:2 held back"]


def test_docs_have_no_dialect() -> None:
    found = found_in(in_docs())
    assert found == [], report(found)


def test_help_has_no_dialect() -> None:
    found = [
        f"{where}: {' '.join(match[0].split())}"
        for where, text in all_help()
        for phrase in FORBIDDEN
        for match in phrase.finditer(text)
    ]
    assert found == [], report(found)


def test_messages_docstrings_and_comments_have_no_dialect() -> None:
    found = found_in(in_source())
    assert found == [], report(found)


def test_the_report_page_has_no_dialect() -> None:
    found = found_in(in_page())
    assert found == [], report(found)


def prose_of(page: str) -> Iterator[str]:
    """Paragraphs, list items, headings and table cells of a Markdown page, without code blocks."""
    page = re.sub(r"^( *)(```|~~~).*?^\1\2[ ]*$", "\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"<!--.*?-->|<[^>]+>", " ", page, flags=re.DOTALL)
    page = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"`[^`]*`", "Code", page)
    page = re.sub(
        r"^\s*\|(.*)\|\s*$",
        lambda row: "\n\n" + row[1].replace("|", "\n\n"),
        page,
        flags=re.MULTILINE,
    )
    page = re.sub(r"^\s*(?:[-*+]|\d+\.|#+|>)\s+", "\n\n", page, flags=re.MULTILINE)
    yield from re.split(r"\n\s*\n", page)


def sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph. A full stop inside a word or a number ends none."""
    text = " ".join(paragraph.split())
    for one in re.split(r"(?<=[.!?])[)\"']*\s+(?=[\"'(*_]*[A-Z\d])|:\s*$", text):
        if re.search(r"[A-Za-z]", one):
            yield one


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'%€$/.,:-]*\w[\w'%/.,:-]*", sentence))


def test_sentences_are_cut_at_full_stops() -> None:
    text = "Use version 0.1 of `a.b`, e.g. this. Then stop. 3 words here."
    assert [words(one) for one in sentences(text)] == [7, 2, 3]


def test_at_most_5_percent_of_the_sentences_in_docs_have_over_30_words() -> None:
    counts = [
        (words(one), page.relative_to(ROOT).as_posix(), one)
        for page in PAGES
        if page.suffix == ".md" and page != QUOTES_OLD_TEXT
        for paragraph in prose_of(page.read_text(encoding="utf-8"))
        for one in sentences(paragraph)
    ]
    long = sorted((row for row in counts if row[0] > MAX_WORDS), reverse=True)
    share = len(long) / len(counts)
    shown = "\n".join(f"{count:4d} {page}: {one}" for count, page, one in long[:20])
    sys.stdout.write(f"\n{len(long)} of {len(counts)} sentences are long ({share:.1%})\n{shown}\n")
    assert share < MAX_LONG_SHARE, shown


def test_a_sentence_of_an_options_help_has_at_most_30_words() -> None:
    long = [
        f"{where} ({words(one)} words): {one}"
        for where, text in option_help()
        for one in sentences(text)
        if words(one) > MAX_WORDS
    ]
    assert long == [], report(long)


def identifiers(node: ast.AST) -> Iterator[str]:
    """The names that a node of a program defines or uses."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute) and node.attr not in FOREIGN_ATTRIBUTES:
        yield node.attr
    elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield from (*node.name.split("."), node.asname or "")
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        yield node.name or ""


PROGRAMS = [
    file
    for folder in ("src", "tests", "benchmarks", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if ".rivals" not in file.parts  # other packages, installed by the benchmarks
]


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_no_invented_name_is_left(folder: str) -> None:
    found = set()
    for file in PROGRAMS:
        place = file.relative_to(ROOT)
        if place.parts[0] != folder:
            continue
        found |= (
            {f"{place} {place.stem}"}
            if place.stem.removeprefix("test_") in INVENTED_FILES
            else set()
        )
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found |= {
                f"{place}:{node.lineno} {name}"
                for name in identifiers(node)
                if name.strip("_") in INVENTED
            }
    assert not found, report(sorted(found))


def test_a_functions_name_is_no_past_participle() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.strip("_") in NOT_FUNCTIONS
    ]
    assert found == [], report(found)
