"""Sanitize text from logs before it is shown, and match names. Such text is untrusted."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_LENGTH = 64
"""Maximum number of characters of a quoted value."""
ELLIPSIS = "…"
NOTICE_KEY = "is_notice"
NOTICE = {NOTICE_KEY: True}
"""Argument `extra` of a log message that asks for nothing, and so is shown without a colour."""


_MARGIN = 0.05


def escape_control(text: str, *, keep: str = "") -> str:
    r"""Replace characters that are not printable by escapes.

    Control characters could command a terminal. Marks of direction could reverse the text.

    Args:
        text: Any text.
        keep: Characters that stay as they are.

    >>> print(escape_control("ann\x1b[2J\n"))
    ann\x1b[2J\n
    >>> print(escape_control("txt.\u202eexe"))
    txt.\u202eexe
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


_UNDEFINED = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
"""Bytes without a character in Windows-1252."""


def _decode_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Return the characters of bytes that are not UTF-8, and where they end; see `decode_text`."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    # Windows-1252 has no character for five bytes; Latin-1 has one for each.
    found = (bytes([byte]) for byte in error.object[error.start : error.end])
    texts = (each.decode("latin-1" if each in _UNDEFINED else "cp1252") for each in found)
    return "".join(texts), error.end


codecs.register_error("windows-1252", _decode_windows_1252)


def decode_text(data: bytes) -> str:
    """Decode UTF-8. Bytes that are not UTF-8 are read as Windows-1252, which old tools write.

    Each of these bytes keeps a character of its own, so that names that differ in one stay
    different.

    >>> decode_text("Zoë".encode()), decode_text("Zoë".encode("cp1252"))
    ('Zoë', 'Zoë')
    """
    return data.decode("utf-8", "windows-1252")


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> format_count(1, "event"), format_count(1161, "event")
    ('1 event', '1,161 events')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, or as hours, minutes and seconds.

    >>> format_duration(61), format_duration(3661)
    ('01:01', '1:01:01')
    """
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes:02}:{seconds_left:02}"


def elide_middle(text: str, max_length: int = MAX_LENGTH) -> str:
    """Remove the middle of a long text. Long values differ at their start and end.

    >>> elide_middle("arn:aws:sts::123456789012:assumed-role/ops/ann", 24)
    'arn:aws:sts:…ole/ops/ann'
    """
    if len(text) <= max_length:
        return text
    tail = (max_length - len(ELLIPSIS)) // 2
    return text[: max_length - len(ELLIPSIS) - tail] + ELLIPSIS + text[len(text) - tail :]


def display_value(text: str, max_length: int = MAX_LENGTH) -> str:
    """Return a value for display: short, and without hidden characters."""
    return escape_control(elide_middle(text, max_length))


def quote_backtick(text: str, max_length: int = MAX_LENGTH) -> str:
    r"""Return a value between backticks. Backticks in the value become escapes.

    >>> print(quote_backtick("aws-cli` p=.99"))
    `aws-cli\x60 p=.99`
    """
    return "`" + display_value(text, max_length).replace("`", r"\x60") + "`"


def find_similar(
    name: str, known: Iterable[str], limit: int = 3, margin: float = _MARGIN
) -> list[str]:
    """Return the names that a misspelt name may mean, the likeliest first.

    Args:
        name: The name.
        known: All names.
        limit: Maximum number of names.
        margin: How much less a name may have in common with it than the most similar one. 1 is all.

    Names that differ only in case or punctuation come first, then names that contain the other
    one, then names with many characters in common, if no other name has far more.

    >>> find_similar("Event_Nam", ["eventSource", "eventName"])
    ['eventName']
    >>> find_similar("ann", ["bob@example.com", "ann@example.com"])
    ['ann@example.com']
    """
    by_key: dict[str, list[str]] = {}
    for each in sorted({each for each in known if each and each != name}):
        by_key.setdefault(_normalise(each), []).append(each)
    wanted = _normalise(name)
    parts = [
        key
        for key in by_key
        if len(min(key, wanted, key=len)) >= _MIN_PART and (wanted in key or key in wanted)
    ]
    keys = [wanted, *parts[:limit], *_find_close(wanted, by_key, limit, margin)]
    return [each for key in dict.fromkeys(keys) for each in by_key.get(key, ())][:limit]


def _find_close(wanted: str, known: Iterable[str], limit: int, margin: float) -> list[str]:
    from difflib import SequenceMatcher, get_close_matches  # noqa: PLC0415 - for messages only

    close = get_close_matches(wanted, known, n=limit)
    ratios = [SequenceMatcher(None, each, wanted).ratio() for each in close]
    return [each for each, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - margin]


def suggest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a question with the names that a misspelt name may mean; empty if there are none.

    Args:
        name: The name.
        known: All names.
        limit: Maximum number of names in the question.

    >>> suggest("risc", ["risk", "zscore"])
    ' Did you mean `risk`?'
    """
    return ask_for(find_similar(name, known, limit))


def ask_for(names: Sequence[str]) -> str:
    """Return a question with names that may be meant; empty without names."""
    return _ask(list(map(quote_backtick, names)))


def _ask(names: Sequence[str]) -> str:
    *first, last = names or [""]
    listed = f"{', '.join(first)} or {last}" if first else last
    return f" Did you mean {listed}?" if names else ""


def describe_no_folder(path: str | Path) -> str:
    """Say that there is no folder of a path, because there is a file or nothing.

    >>> describe_no_folder("no-such-folder-7f3a")
    'there is no folder `no-such-folder-7f3a`.'
    """
    shown = escape_control(os.fspath(path))
    if Path(path).exists():
        return f"`{shown}` is a file, not a folder."
    return f"there is no folder `{shown}`.{suggest_path(path)}"


def suggest_path(path: str | Path) -> str:
    """Return a question with the existing paths that a misspelt path of this machine may mean.

    One part of the path may be misspelt: the first that does not exist.

    >>> suggest_path("no-such-folder-7f3a/no-such-file"), suggest_path("s3://bucket/file")
    ('', '')
    """
    place = Path(path).expanduser()
    if "://" in os.fspath(path):
        return ""
    missing = next((each for each in (place, *place.parents) if each.parent.is_dir()), place)
    rest = place.relative_to(missing)
    by_stem: dict[str, list[Path]] = {}
    try:
        for each in sorted(missing.parent.iterdir()):
            by_stem.setdefault(each.stem, []).append(each / rest)
    except OSError:
        return ""
    # A common suffix alone is no likeness.
    stems = [missing.stem, *find_similar(missing.stem, by_stem)]
    found = [path for stem in stems for path in by_stem.get(stem, ())]
    paths = [path for path in found if path.exists() and path != place]
    return _ask([f"`{escape_control(str(path))}`" for path in paths[:_MAX_PATHS]])


_MAX_PATHS = 3


_MIN_PART = 3  # characters of a name that another name can contain by more than chance


def _normalise(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold() or name


MAX_MATCHED_NAME = 1_000
"""Maximum length of a name that is matched in more than linear time."""
_MAX_REPEATS, _MAX_OPTIONS = 2, 8
"""Numbers of repetitions and of optional parts with which matching still takes little time."""
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}")
_OPTION = re.compile(r"(?<![(*+?}])\?")
_OTHER_MEANING = re.compile(r"\[\[|&&|--|~~|\\[<>]|\(\?[a-z]*x")
"""What a pattern of Python and one of Polars mean differently."""


class ColumnPattern:
    """A regular expression, matched at the start of names. No pattern takes long.

    Names come from logs, and the patterns that Python tries can take time that is exponential in
    the length of a name. Polars matches in linear time. It knows neither look-around nor
    references to groups, so Python matches these, if they have few repetitions.

    Args:
        pattern: The expression, as Python writes it.

    Raises:
        ValueError: It is not a regular expression, or can take very long.

    >>> ColumnPattern("(a+)+$").match_all(["aa", "a" * 50 + "b", "ba"])
    {'aa'}
    >>> sorted(ColumnPattern("(?!ae_)").match_all(["ae_mean_abs_z", "eventID", "eventName"]))
    ['eventID', 'eventName']
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        try:
            self._compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"is not a regular expression: {error}. Put a backslash before a character that is "
                f"meant literally, as in 'a\\(b'"
            ) from error
        self._is_linear = not _OTHER_MEANING.search(pattern) and _is_known_to_polars(pattern)
        if not self._is_linear and _may_take_long(pattern):
            raise ValueError(
                "can take very long to match: it has repeated groups or many repetitions, beside "
                "look-around or other parts that only Python knows. Give several simpler patterns"
            )

    def match_all(self, names: Sequence[str]) -> set[str]:
        """Return the names that begin with a match.

        A name of more than `MAX_MATCHED_NAME` characters has none, if the pattern is one that only
        Python knows.
        """
        if self._is_linear:
            import polars as pl  # noqa: PLC0415 - the help of a stage needs no polars

            texts = pl.Series(names, dtype=pl.String)
            return set(texts.filter(texts.str.contains(f"^(?:{self.pattern})")))
        return {
            name
            for name in names
            if len(name) <= MAX_MATCHED_NAME and self._compiled.match(name) is not None
        }


def _is_known_to_polars(pattern: str) -> bool:
    import polars as pl  # noqa: PLC0415 - as above

    try:
        pl.Series([""]).str.contains(f"^(?:{pattern})")
    except pl.exceptions.PolarsError:
        return False
    return True


def _may_take_long(pattern: str) -> bool:
    """Return whether Python may take long to match a pattern, by what is repeated in it."""
    structure = _LITERAL.sub("x", pattern)
    groups = re.search(rf"\)(?:{_REPEAT.pattern})", structure)
    repeats, options = len(_REPEAT.findall(structure)), len(_OPTION.findall(structure))
    return groups is not None or repeats > _MAX_REPEATS or options > _MAX_OPTIONS
