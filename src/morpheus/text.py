"""Text out of a log, made fit to be read: it is hostile until then."""

from __future__ import annotations

MAX_LENGTH = 64
"""Signs of a quoted value that are kept."""
ELLIPSIS = "…"


def escape_control(text: str, *, keep: str = "") -> str:
    r"""Show what cannot be seen as escapes: control characters, and marks that turn text around.

    Args:
        text: Anything.
        keep: Characters to leave as they are.

    >>> print(escape_control("ann\x1b[2J\n"))
    ann\x1b[2J\n
    >>> print(escape_control("txt.\u202eexe"))
    txt.\u202eexe
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def elide_middle(text: str, max_length: int = MAX_LENGTH) -> str:
    """Cut the middle out of a long text: beginnings and ends tell values apart.

    >>> elide_middle("arn:aws:sts::123456789012:assumed-role/ops/ann", 24)
    'arn:aws:sts:…ole/ops/ann'
    """
    if len(text) <= max_length:
        return text
    tail = (max_length - len(ELLIPSIS)) // 2
    return text[: max_length - len(ELLIPSIS) - tail] + ELLIPSIS + text[len(text) - tail :]


def display_value(text: str, max_length: int = MAX_LENGTH) -> str:
    """Make a value safe to show: short, and nothing hidden in it."""
    return escape_control(elide_middle(text, max_length))


def quote_backtick(text: str, max_length: int = MAX_LENGTH) -> str:
    r"""Put a value between backticks, which no value can close.

    >>> print(quote_backtick("aws-cli` p=.99"))
    `aws-cli\x60 p=.99`
    """
    return "`" + display_value(text, max_length).replace("`", r"\x60") + "`"
