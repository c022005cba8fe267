"""Text out of a log, made fit to be read: it is hostile until then."""

from __future__ import annotations

MOST = 64
"""Signs of a quoted value that are kept."""
ELLIPSIS = "…"


def printable(text: str, *, keep: str = "") -> str:
    r"""Show what cannot be seen as escapes: control characters, and marks that turn text around.

    Args:
        text: Anything.
        keep: Characters to leave as they are.

    >>> print(printable("ann\x1b[2J\n"))
    ann\x1b[2J\n
    >>> print(printable("txt.\u202eexe"))
    txt.\u202eexe
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def shortened(text: str, most: int = MOST) -> str:
    """Cut the middle out of a long text: beginnings and ends tell values apart.

    >>> shortened("arn:aws:sts::123456789012:assumed-role/ops/ann", 24)
    'arn:aws:sts:…ole/ops/ann'
    """
    if len(text) <= most:
        return text
    tail = (most - len(ELLIPSIS)) // 2
    return text[: most - len(ELLIPSIS) - tail] + ELLIPSIS + text[len(text) - tail :]


def legible(text: str, most: int = MOST) -> str:
    """Make a value safe to show: short, and nothing hidden in it."""
    return printable(shortened(text, most))


def quoted(text: str, most: int = MOST) -> str:
    r"""Put a value between backticks, which no value can close.

    >>> print(quoted("aws-cli` p=.99"))
    `aws-cli\x60 p=.99`
    """
    return "`" + legible(text, most).replace("`", r"\x60") + "`"
