"""Sanitize text from logs before it is shown. Such text is untrusted."""

from __future__ import annotations

MAX_LENGTH = 64
"""Maximum number of characters of a quoted value."""
ELLIPSIS = "…"


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
