"""An explanation as one sentence, for whoever has to look into the event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from morpheus.models.explanation import (
    WORTH,
    Background,
    Explanation,
    Fact,
    Likelier,
    Preceding,
)
from morpheus.models.fingerprint import OWN
from morpheus.quoting import printable, quoted

PART = 0.25
"""Share of the risk from which what came before is part of the reason."""
MOSTLY = 0.5
"""Share of the risk from which it is the main reason."""
MANY = 1000
"""How many times as likely is no longer counted."""


def sentence(why: Explanation, most: int) -> str:
    """Say why an event is strange, by so many columns at most.

    >>> about = {"probability": 0.002, "bits": 8.97, "usual_bits": 0.2, "habit_bits": 3.0}
    >>> parts = {"strangeness": 9, "risk": 9, "loudest": 9, "strange_before": 0, "twins": ()}
    >>> rest = {"new": True, "habit": False, "distance": None, "expected": ()}
    >>> agent = Fact("userAgent", "Boto3 on Kali", **about, **parts, **rest)
    >>> alone, own = Preceding(9, 9, 0, 0, 0, 0), Background(OWN, 400, 400, 58)
    >>> sentence(Explanation.of(9.0, (agent,), alone, own), 3)
    'userAgent: saw `Boto3 on Kali`, p=.002, 9.0 bits, new in 58 days'
    """
    past = why.preceding
    worth = [
        fact for fact in why.strangest(most) if fact.strangeness >= WORTH or fact.strange_before
    ]
    columns = [_told(fact, why) for fact in worth]
    before, share = _before(past), (past.risk - past.own) / (past.risk or 1)
    if share >= MOSTLY:
        columns = [f"mostly what came before: {before}", *columns]
    elif share >= PART:
        columns = [*columns, f"and {before}"]
    return "; ".join([*(columns or ["nothing unusual"]), *_comparison(why.background)])


def chance(value: float) -> str:
    """Write a probability.

    >>> [chance(p) for p in (0.934, 0.0021, 0.00001, 0.999)]
    ['p=.93', 'p=.002', 'p<.0001', 'p>.99']
    """
    if value > 0.99:  # noqa: PLR2004 - it would be rounded to one
        return "p>.99"
    for digits, least in ((2, 0.095), (2, 0.0095), (3, 0.00095), (4, 0.0001)):
        if value >= least:
            return f"p={value:.{digits}f}".replace("0.", ".", 1)
    return "p<.0001"


def _told(fact: Fact, why: Explanation) -> str:
    named, seen = printable(fact.column), "no value" if fact.value is None else quoted(fact.value)
    if fact.twins:
        named += f" (with it {', '.join(map(printable, fact.twins))})"
    said = [seen, *_particulars(fact, why.background)]
    if fact.strange_before:
        _, span, _ = _spans(why.preceding)[why.preceding.loudest - 1]
        said.append(f"strange in {_count(fact.strange_before, 'event')} of the {span} before")
    return f"{named}: saw {', '.join(said)}"


def _particulars(fact: Fact, background: Background) -> Iterator[str]:
    if fact.distance is not None:
        yield f"expected about {fact.expected[0].value:,}"
        yield f"{abs(fact.distance):.1f} standard deviations off"
        return
    if fact.probability is not None:
        yield chance(fact.probability)
        yield f"{fact.bits:.1f} bits"
    if fact.habit and not fact.new and fact.habit_bits >= 1:
        yield f"{_times(fact.habit_bits)} as likely with others"
    if fact.expected:
        yield f"expected {_named(fact.expected[0])}"
    if fact.new:
        own = background.rung == OWN and background.days
        yield f"new in {_count(background.days, 'day')}" if own else "new"


def _named(likelier: Likelier) -> str:
    value = likelier.value
    if value is None:
        value = "a new value" if likelier.new else "no value"
    elif isinstance(value, str):
        value = quoted(value)
    return f"{value} {chance(likelier.probability)}"


def _times(bits: float) -> str:
    times = 2 ** min(bits, 64)
    return f"over {MANY:,} times" if times > MANY else f"{float(f'{times:.2g}'):g} times"


def _before(past: Preceding) -> str:
    _, span, strange = max(_spans(past))
    if not strange:
        return f"events a little unusual all through the {span} before"
    return f"{_count(strange, 'strange event')} in the {span} before"


def _spans(past: Preceding) -> Sequence[tuple[float, str, int]]:
    return (
        (past.hour, "hour", past.strange_in_hour),
        (past.month, "month", past.strange_in_month),
    )


def _comparison(background: Background) -> Iterator[str]:
    if background.rung != OWN:
        own, events = background.own_events, _count(background.events, "event")
        yield f"compared with {background.rung}: {own:,} of {events} are their own"


def _count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
