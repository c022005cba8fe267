"""An explanation as one sentence, for whoever has to look into the event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from morpheus.models.explanation import (
    MIN_REPORTED,
    Baseline,
    Explanation,
    ColumnReason,
    ExpectedValue,
    ContextContribution,
)
from morpheus.models.fingerprint import SCOPE_OWN
from morpheus.quoting import escape_control, quote_backtick

MIN_CONTEXT_SHARE = 0.25
"""Share of the risk from which what came before is part of the reason."""
MAIN_CONTEXT_SHARE = 0.5
"""Share of the risk from which it is the main reason."""
MAX_TIMES = 1000
"""How many times as likely is no longer counted."""


def render_reason(explanation: Explanation, max_columns: int) -> str:
    """Say why an event is strange, by so many columns at most.

    >>> about = {"probability": 0.002, "bits": 8.97, "usual_bits": 0.2, "habit_bits": 3.0}
    >>> parts = {"strangeness": 9, "risk": 9, "loudest": 9, "strange_before": 0, "twins": ()}
    >>> rest = {"new": True, "habit": False, "distance": None, "expected": ()}
    >>> agent = ColumnReason("userAgent", "Boto3 on Kali", **about, **parts, **rest)
    >>> alone, own = ContextContribution(9, 9, 0, 0, 0, 0), Baseline(SCOPE_OWN, 400, 400, 58)
    >>> render_reason(Explanation.from_columns(9.0, (agent,), alone, own), 3)
    'userAgent: saw `Boto3 on Kali`, p=.002, 9.0 bits, new in 58 days'
    """
    past = explanation.preceding
    worth = [
        fact for fact in explanation.top_columns(max_columns) if fact.strangeness >= MIN_REPORTED or fact.strange_before
    ]
    columns = [_describe_column(fact, explanation) for fact in worth]
    before, share = _describe_context(past), (past.risk - past.own) / (past.risk or 1)
    if share >= MAIN_CONTEXT_SHARE:
        columns = [f"mostly what came before: {before}", *columns]
    elif share >= MIN_CONTEXT_SHARE:
        columns = [*columns, f"and {before}"]
    return "; ".join([*(columns or ["nothing unusual"]), *_describe_baseline(explanation.background)])


def format_probability(value: float) -> str:
    """Write a probability.

    >>> [format_probability(p) for p in (0.934, 0.0021, 0.00001, 0.999)]
    ['p=.93', 'p=.002', 'p<.0001', 'p>.99']
    """
    if value > 0.99:  # noqa: PLR2004 - it would be rounded to one
        return "p>.99"
    for digits, least in ((2, 0.095), (2, 0.0095), (3, 0.00095), (4, 0.0001)):
        if value >= least:
            return f"p={value:.{digits}f}".replace("0.", ".", 1)
    return "p<.0001"


def _describe_column(reason: ColumnReason, explanation: Explanation) -> str:
    named, seen = escape_control(reason.column), "no value" if reason.value is None else quote_backtick(reason.value)
    if reason.twins:
        named += f" (with it {', '.join(map(escape_control, reason.twins))})"
    said = [seen, *_column_details(reason, explanation.background)]
    if reason.strange_before:
        _, span, _ = _context_spans(explanation.preceding)[explanation.preceding.dominant_index - 1]
        said.append(f"strange in {_format_count(reason.strange_before, 'event')} of the {span} before")
    return f"{named}: saw {', '.join(said)}"


def _column_details(reason: ColumnReason, baseline: Baseline) -> Iterator[str]:
    if reason.distance is not None:
        yield f"expected about {reason.expected[0].value:,}"
        yield f"{abs(reason.distance):.1f} standard deviations off"
        return
    if reason.probability is not None:
        yield format_probability(reason.probability)
        yield f"{reason.bits:.1f} bits"
    if reason.habit and not reason.new and reason.habit_bits >= 1:
        yield f"{_format_times(reason.habit_bits)} as likely with others"
    if reason.expected:
        yield f"expected {_describe_expected(reason.expected[0])}"
    if reason.new:
        own = baseline.rung == SCOPE_OWN and baseline.days
        yield f"new in {_format_count(baseline.days, 'day')}" if own else "new"


def _describe_expected(expected: ExpectedValue) -> str:
    value = expected.value
    if value is None:
        value = "a new value" if expected.new else "no value"
    elif isinstance(value, str):
        value = quote_backtick(value)
    return f"{value} {format_probability(expected.probability)}"


def _format_times(bits: float) -> str:
    times = 2 ** min(bits, 64)
    return f"over {MAX_TIMES:,} times" if times > MAX_TIMES else f"{float(f'{times:.2g}'):g} times"


def _describe_context(context: ContextContribution) -> str:
    _, span, strange = max(_context_spans(context))
    if not strange:
        return f"events a little unusual all through the {span} before"
    return f"{_format_count(strange, 'strange event')} in the {span} before"


def _context_spans(context: ContextContribution) -> Sequence[tuple[float, str, int]]:
    return (
        (context.hour, "hour", context.strange_in_hour),
        (context.month, "month", context.strange_in_month),
    )


def _describe_baseline(baseline: Baseline) -> Iterator[str]:
    if baseline.rung != SCOPE_OWN:
        own, events = baseline.own_events, _format_count(baseline.events, "event")
        yield f"compared with {baseline.rung}: {own:,} of {events} are their own"


def _format_count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
