"""A technique's records as events of a victim, among the victim's own."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import ACTOR, INDEX, ROW, TIME
from morpheus.models.training import derive_user_seed
from morpheus.replay.drill import GRADES, HOURS, RECORDED
from morpheus.replay.retelling import Retelling
from morpheus.replay.techniques import Technique
from morpheus.replay.victims import ACTION, CLIENT, Values, Victim
from morpheus.sources import deriving
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.deriving import DerivedFeatures
from morpheus.sources.flatten import Flattener
from morpheus.sources.times import DEFAULT_TIME_FORMAT

INJECTED = "injected"
"""Column that says which events were injected."""
DAY = timedelta(days=1)


def inject(
    events: pl.DataFrame, technique: Technique, victim: Victim, grade: str, seed: int = 0
) -> pl.DataFrame:
    """Inject a technique into one of the days that a victim's events cover.

    The day, and the time of the first record on it, are drawn from the seed and the names of victim
    and technique; order and spacing of the records stay. At every grade the calls are made with the
    victim's identity, in the victim's account and region, under fresh ids and without tell-tales.

    Args:
        events: Events of the victim, flat, in time order, at least one; those of a single day to
            choose the day.
        technique: What to inject.
        victim: What is usual of the user, from all that is known.
        grade: One of `GRADES`.
        seed: Of what is drawn.

    Returns:
        All events in time order, with the columns of `events` and the boolean `INJECTED`.

    Raises:
        ValueError: There is no such grade; or the technique lasts longer than the victim is ever
            active, so that no time is right for grade `hours`.
    """
    if grade not in GRADES:
        raise ValueError(f"there is no grade {grade!r}; use one of {', '.join(GRADES)}")
    start = starting(events, technique, victim, grade, seed)
    if start is None:
        raise ValueError(f"{technique.name} lasts longer than {victim.user!r} is ever active")
    return put(events, called(events, technique, victim, grade, start=start, seed=seed))


def starting(
    events: pl.DataFrame, technique: Technique, victim: Victim, grade: str, seed: int = 0
) -> datetime | None:
    """Draw the time of the first injected event; None where no time is right. See `inject`."""
    rng = np.random.default_rng(derive_user_seed(seed, f"{victim.user}\n{technique.name}"))
    days = events[TIME].dt.truncate("1d").unique().sort().to_list()
    day = days[int(rng.integers(len(days)))]
    if grade == HOURS:
        return _at_its_hours(events, day, technique, victim, rng)
    room = max(1, int((DAY - technique.lasts).total_seconds()))
    start: datetime = day + timedelta(seconds=int(rng.integers(room)))
    return start


def called(  # noqa: PLR0913 - what injected events depend on, and nothing else
    events: pl.DataFrame,
    technique: Technique,
    victim: Victim,
    grade: str,
    *,
    start: datetime,
    seed: int = 0,
) -> pl.DataFrame:
    """Retell a technique as events of the victim, from `start` on. See `inject`."""
    day = day_of(events, start)
    persona = victim.persona(day if day.height else events)
    own = victim.identity(events.columns) + ([] if grade == RECORDED else list(CLIENT))
    retelling = Retelling(technique, victim, persona, derive_user_seed(seed, f"{technique.name}\n{start}"))
    frame = _flattened(retelling, events)
    times = pl.Series(TIME, [start + offset for offset in technique.offsets], events.schema[TIME])
    written = {
        **_as_written(frame, victim),
        **{name: pl.repeat(persona.get(name), frame.height, eager=True) for name in own},
        "eventTime": times.dt.strftime(DEFAULT_TIME_FORMAT),
        TIME: times,
        ROW: pl.repeat(0, frame.height, eager=True),
        INDEX: pl.repeat(-1, frame.height, eager=True),
    }
    types = events.schema.items()
    return pl.DataFrame({name: written[name].cast(kind) for name, kind in types})


def put(events: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """Put events among others, by time, behind those of the same time; `INJECTED` tells them."""
    parts = [
        each.with_columns(pl.lit(value=injected).alias(INJECTED))
        for each, injected in ((events, False), (more, True))
    ]
    both = pl.concat(parts).sort(TIME, maintain_order=True)
    if ROW not in both.columns:
        return both
    numbers = pl.int_range(both.height, eager=True) + events[ROW].min()
    return both.with_columns(numbers.cast(events.schema[ROW]).alias(ROW))


def day_of(events: pl.DataFrame, time: datetime) -> pl.DataFrame:
    """The events on the day of that time, in UTC."""
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return events.filter(pl.col(TIME).is_between(day, day + DAY, closed="left"))


def _at_its_hours(
    events: pl.DataFrame,
    day: datetime,
    technique: Technique,
    victim: Victim,
    rng: np.random.Generator,
) -> datetime | None:
    """The time of one of the user's own events, of that day if one is right."""
    for some in (day_of(events, day), events):
        times = some[TIME].to_list()
        for at in rng.permutation(len(times)):
            start: datetime = times[at].replace(microsecond=0)
            if {(start + offset).hour for offset in technique.offsets} <= victim.hours:
                return start
    return None


def _flattened(retelling: Retelling, events: pl.DataFrame) -> pl.DataFrame:
    """The records with the columns of events; those that no record has are empty."""
    added = {ROW, INDEX, TIME, ACTOR, *deriving.resolve_derived(events.columns, CLOUDTRAIL_FORMAT.derived_columns)}
    flattener = _flattener(tuple(name for name in events.columns if name not in added))
    frame, _ = flattener.flatten([msgspec.json.encode(one) for one in retelling.records()])
    return frame.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in events.schema.items() if name in added
    )


def derived_anew(window: pl.DataFrame, seen: pl.DataFrame, column: str) -> pl.DataFrame:
    """Derive the derived columns of some of a user's events, injected ones among them.

    Args:
        window: The events.
        seen: All that is known of the user; what lies before the window counts.
        column: Column of the user.
    """
    derived = deriving.resolve_derived(window.columns, CLOUDTRAIL_FORMAT.derived_columns)
    return DerivedFeatures(column, derived).add(window, seen).select(window.columns)


@lru_cache(maxsize=16)
def _flattener(wanted: tuple[str, ...]) -> Flattener:
    # Made once for the columns of a log: compiling its types takes longer than its work here.
    return Flattener(wanted, CLOUDTRAIL_FORMAT.paths, CLOUDTRAIL_FORMAT.json_converters)


def _as_written(frame: pl.DataFrame, victim: Victim) -> dict[str, pl.Series]:
    """Write events as the victim's log does.

    A column that this log never fills says nothing of a deed, unless deeds are what it is for.
    """
    there = {each.name: each for each in frame}
    nothing = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
    never = {n: nothing for n in there if n not in victim.filled and not n.startswith(ACTION)}
    forms = {name: _form(frame, name, usual) for name, usual in victim.forms.items()}
    return there | forms | never


def _form(frame: pl.DataFrame, name: str, usual: Values) -> pl.Series:
    """A column of `FORM`, as the log writes it for services that it knows."""
    cells = zip(frame["eventSource"], frame[name], strict=True)
    return pl.Series([usual.get(service, cell) for service, cell in cells], dtype=pl.String)
