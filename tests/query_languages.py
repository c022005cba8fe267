"""Parses and runs the part of SPL, KQL, ES|QL and Cloud Logging's language that queries use.

No well-kept package parses SPL or ES|QL. This parser is strict: what it does not know, such as a
backslash in a Splunk string, is an error. `run` applies a query to records, so that a wrong field,
a wrong condition and a value that ends its literal are all seen. KQL is also parsed with
Microsoft's grammar.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from antlr4 import CommonTokenStream, InputStream
from antlr4.error.ErrorListener import ErrorListener
from kusto_query_language_parser.parse_tools.KqlLexer import KqlLexer
from kusto_query_language_parser.parse_tools.KqlParser import KqlParser

Record = Mapping[str, str | None]
Value = str | float | bool | dict[str, Any] | None
Expression = Callable[[Record], Value]

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>//[^\n]*|```[^`]*```)
    |(?P<string>"(?:[^"\\\n\r]|\\.)*")
    |(?P<quoted>'[^']*'|`(?:[^`]|``)*`|\["(?:[^"\\]|\\.)*"\])
    |(?P<time>datetime\([\w:.-]+\))
    |(?P<name>@?[A-Za-z_][\w@]*(?:\.[A-Za-z_][\w@]*)*(?:-?\*)?)
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<sign>\.\.|\.|==|>=|<=|=~|[=<>(),|:*-])""",
    re.VERBOSE,
)
ESCAPES = {
    "kusto": r'\\["\\]|\\u[0-9a-f]{4}',
    "logging": r'\\["\\]|\\u[0-9a-f]{4}',
    "esql": r'\\["\\]',
    "splunk": r"(?!)",
}
"""Escapes that are known to be read everywhere; the lexers of the tools know more."""
COMMANDS = {
    "kusto": {"where", "project", "order"},
    "esql": {"FROM", "WHERE", "SORT", "KEEP", "LIMIT"},
    "splunk": {"search", "where", "sort", "table"},
}


class QueryError(ValueError):
    """A text is not a query."""


@dataclass(frozen=True)
class Token:
    kind: str
    text: str


def tokenize(text: str) -> list[Token]:
    """Split a query into tokens, without space and comments."""
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise QueryError(f"no token at {text[at : at + 40]!r}")
        if match.lastgroup not in {"space", "comment"}:
            tokens.append(Token(match.lastgroup, match[0]))
        at = match.end()
    return tokens


def is_visible(text: str) -> bool:
    """Return whether a text has no control, format or private characters, and no line ends."""
    return {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}.isdisjoint(map(unicodedata.category, text))


def read_string(language: str, text: str) -> str:
    """Return the value of a string literal."""
    if not is_visible(text) or re.sub(ESCAPES[language], "", text).count("\\"):
        raise QueryError(f"{language} may not read {text!r} as it is meant")
    return str(json.loads(text))


def shape(text: str) -> list[str]:
    """Return a query without the contents of its strings, to compare two queries."""
    return [token.kind if token.kind == "string" else token.text for token in tokenize(text)]


class Parser:
    """Parses the expressions of one language into functions of a record."""

    def __init__(self, language: str, tokens: list[Token]) -> None:
        self.language, self.tokens, self.at = language, tokens, 0

    @property
    def here(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else Token("end", "")

    def take(self, *texts: str) -> Token:
        token = self.here
        if texts and token.text not in texts:
            raise QueryError(f"{token} where {texts} belongs")
        self.at += 1
        return token

    def parse_all(self, rule: Callable[[], Expression]) -> Expression:
        parsed = rule()
        if self.here.kind != "end":
            raise QueryError(f"{self.here} after the end")
        return parsed

    def parse_or(self) -> Expression:
        return self._parse_chain({"or", "OR"}, self.parse_and, any)

    def parse_and(self) -> Expression:
        return self._parse_chain({"and", "AND"}, self.parse_comparison, all)

    def _parse_chain(
        self,
        words: set[str],
        rule: Callable[[], Expression],
        combine: Callable[[Iterator[Value]], bool],
    ) -> Expression:
        parts = [rule()]
        while self.here.text in words:
            self.take()
            parts.append(rule())
        return parts[0] if len(parts) == 1 else lambda r: combine(part(r) for part in parts)

    def parse_comparison(self) -> Expression:
        left, word = self.parse_operand(), self.here.text
        if word in ("=" if self.language == "splunk" else "==", ">=", "<="):
            self.take()
            return compare(word, left, self.parse_operand())
        if word in {"in", "IN"}:
            self.take()
            values = self.parse_list(",")
            return lambda r: left(r) in [value(r) for value in values]
        if word == "startswith_cs":
            self.take()
            prefix = self.parse_operand()
            return lambda r: str(left(r) or "").startswith(str(prefix(r)))
        if word == "between":
            self.take()
            low, high = self.parse_list("..")
            return lambda r: str(low(r)) <= str(left(r)) <= str(high(r))
        return left

    def parse_list(self, separator: str) -> list[Expression]:
        self.take("(")
        items = [self.parse_operand()]
        while self.take(separator, ")").text == separator:
            items.append(self.parse_operand())
        return items

    def parse_operand(self) -> Expression:
        token = self.take()
        if token.text == "(":
            inner = self.parse_or()
            self.take(")")
            return inner
        if token.kind == "string":
            value = read_string(self.language, token.text)
            return lambda _: value
        if token.kind == "number":
            return lambda _: float(token.text)
        if token.kind == "time":
            return lambda _: token.text[len("datetime(") : -1]
        if token.kind == "name" and self.here.text == "(":
            return self._parse_members(FUNCTIONS[token.text](*self.parse_list(",")))
        if token.kind in {"name", "quoted"}:
            name = read_name(token.text)
            return lambda r: r[name]
        raise QueryError(f"{token} is no operand")

    def _parse_members(self, whole: Expression) -> Expression:
        while self.here.text == ".":
            self.take(".")
            whole = read_member(whole, self.take().text)
        return whole


def read_member(whole: Expression, name: str) -> Expression:
    def read(record: Record) -> Value:
        found = whole(record)
        return found.get(name) if isinstance(found, dict) else None

    return read


def compare(sign: str, left: Expression, right: Expression) -> Expression:
    if sign in {"=", "=="}:
        return lambda r: left(r) is not None and left(r) == right(r)
    if sign == ">=":
        return lambda r: str(left(r)) >= str(right(r))
    return lambda r: str(left(r)) <= str(right(r))


def read_name(text: str) -> str:
    """Return the name of a field, which a language may quote."""
    if text.startswith("`"):
        return text[1:-1].replace("``", "`")
    if text.startswith("["):
        return str(json.loads(text[1:-1]))
    return text.strip("'")


def decode(expression: Expression, how: Callable[[str], str]) -> Expression:
    return lambda r: how(str(expression(r)))


def lower(expression: Expression) -> Expression:
    def call(record: Record) -> Value:
        value = expression(record)
        return None if value is None else str(value).lower()

    return call


FUNCTIONS: dict[str, Callable[..., Expression]] = {
    "urldecode": lambda text: decode(text, lambda value: unquote(value, errors="strict")),
    "FROM_BASE64": lambda text: decode(text, lambda value: base64.b64decode(value).decode()),
    "lower": lower,
    "tolower": lower,
    "TO_LOWER": lower,
    "tostring": lambda value: value,
    "coalesce": lambda first, other: lambda r: first(r) if first(r) is not None else other(r),
    "column_ifexists": lambda name, other: lambda r: r.get(str(name(r)), str(other(r))),
    "parse_json": lambda text: lambda r: json.loads(str(text(r) or "null")),
    "len": lambda text: lambda r: float(len(str(text(r)))),
    "substr": lambda text, _, size: lambda r: str(text(r) or "")[: int(float(str(size(r))))],
    "STARTS_WITH": lambda text, prefix: lambda r: str(text(r) or "").startswith(str(prefix(r))),
}


def split_commands(tokens: list[Token]) -> Iterator[list[Token]]:
    """Split a query at its pipes."""
    command: list[Token] = []
    for token in tokens:
        if token == Token("sign", "|"):
            yield command
            command = []
        else:
            command.append(token)
    yield command


def parse_search(tokens: list[Token]) -> Expression:
    """Parse the arguments of Splunk's `search`: an index, times, and lists of values."""
    parser, conditions = Parser("splunk", tokens), []
    while parser.here.kind != "end":
        conditions.append(parse_search_term(parser))
    return lambda r: all(condition(r) for condition in conditions)


def parse_search_term(parser: Parser) -> Expression:
    if parser.here.text == "(":
        parser.take()
        parts = [parse_search_term(parser)]
        while parser.take("OR", ")").text == "OR":
            parts.append(parse_search_term(parser))
        return lambda r: any(part(r) for part in parts)
    token = parser.take()
    name = json.loads(token.text) if token.kind == "string" else token.text
    if parser.take("=", "IN").text == "IN":
        values = parser.parse_list(",")
        return lambda r: r.get(name) in [value(r) for value in values]
    value = parser.take().text
    if (name, value) == ("index", "*"):
        return lambda _: True
    seconds = float("inf") if value == "now" else float(value)
    return {
        "earliest": lambda r: float(str(r["_time"])) >= seconds,
        "latest": lambda r: float(str(r["_time"])) < seconds,
    }[name]


def parse_logging(parser: Parser) -> Expression:
    """Parse a filter of Cloud Logging: terms that all apply, and terms joined by OR."""
    terms = [parse_logging_term(parser)]
    is_choice = parser.here.text == "OR"
    while parser.here.kind != "end" and parser.here.text != ")":
        if is_choice:
            parser.take("OR")
        terms.append(parse_logging_term(parser))
    return lambda r: (any if is_choice else all)(term(r) for term in terms)


def parse_logging_term(parser: Parser) -> Expression:
    if parser.here.text == "(":
        parser.take()
        inner = parse_logging(parser)
        parser.take(")")
        return inner
    name, sign = read_name(parser.take().text), parser.take("=", "=~", ">=", "<=", ":").text
    if parser.here.text == "(":
        parser.take()
        values = [parser.parse_operand()]
        while parser.take("OR", ")").text == "OR":
            values.append(parser.parse_operand())
        return lambda r: any(matches(sign, str(r[name]), str(value(r))) for value in values)
    value = parser.parse_operand()
    return lambda r: r[name] is not None and matches(sign, str(r[name]), str(value(r)))


def matches(sign: str, found: str, wanted: str) -> bool:
    """Compare two texts as Cloud Logging does: without case, unless by a pattern."""
    return {
        "=": found.lower() == wanted.lower(),
        ":": wanted.lower() in found.lower(),
        "=~": sign == "=~" and re.search(wanted, found) is not None,
        ">=": found >= wanted,
        "<=": found <= wanted,
    }[sign]


def check_kusto(query: str) -> None:
    """Parse a query of Kusto with Microsoft's grammar."""
    lexer = KqlLexer(InputStream(query))
    parser = KqlParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(Complaints())
    parser.top()


class Complaints(ErrorListener):  # type: ignore[misc]  # the package has no types
    """Raises the first error of a parser."""

    def syntaxError(  # noqa: N802, PLR0913, PLR0917 - the package's name and arguments
        self, recognizer: Any, symbol: Any, line: int, column: int, message: str, error: Any
    ) -> None:
        """Raise an error of the syntax."""
        raise QueryError(f"{line}:{column}: {message}")


def run(language: str, query: str, records: list[Record]) -> list[Record]:
    """Return the records that a query selects."""
    if language == "logging":
        condition = parse_logging(Parser(language, tokenize(query)))
        return [record for record in records if condition(record)]
    if language == "kusto":
        check_kusto(query)
    for n, tokens in enumerate(split_commands(tokenize(query))):
        word, rest = tokens[0].text, tokens[1:]
        if n == 0 and language == "kusto":
            if {token.text for token in rest if token.kind != "name"} - {"=", ","}:
                raise QueryError(f"{tokens} is neither a table nor a union")
        elif word not in COMMANDS[language]:
            raise QueryError(f"there is no command {word}")
        if word.lower() == "where":
            parser = Parser(language, rest)
            condition = parser.parse_all(parser.parse_or)
            records = [record for record in records if condition(record)]
        elif word == "search":
            condition = parse_search(rest)
            records = [record for record in records if condition(record)]
    return records
