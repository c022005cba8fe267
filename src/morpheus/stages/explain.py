"""`explain`: why an event is unusual for its user.

The numbers come from `morpheus.models.attribution`; `EventAttributions` turns those of a batch into
the reasons of its events. `morpheus.models.explanation` has the JSON format and the sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np
import polars as pl
from msgspec import structs
from numpy.typing import NDArray

from morpheus.columns import DAY_COUNTS, RISK, TIME, ExplanationColumns, LogDescription
from morpheus.core.batch import Scored, Table
from morpheus.core.stage import Requirements, SelectsByRisk, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.features.derived import NOVELTY_PREFIX
from morpheus.features.encoder import UNKNOWN, Category, EncodedRows
from morpheus.models.attribution import (
    ColumnAttribution,
    ColumnContribution,
    EarlierActions,
    HistoryState,
    NormalEventIndex,
    find_counterfactuals,
)
from morpheus.models.calibration import ModelSummary, hour_of_week
from morpheus.models.daily_usage import DailyScores, DayRecord, UsageState
from morpheus.models.explanation import (
    HOUR_COLUMNS,
    MIN_CONTEXT_SHARE,
    Baseline,
    ColumnReason,
    Counterfactual,
    EventFacts,
    Explanation,
    ReasonWriter,
    round_decimals,
)
from morpheus.models.profile import Fingerprint
from morpheus.models.scoring import RISK_DECIMALS, number_days
from morpheus.sources.results import complete_log
from morpheus.stages.add_scores import record_days
from morpheus.text import display_value, suggest

ANOMALY_QUANTILE = 0.99
"""An event is anomalous if its surprisal is above this quantile of the validation risks."""
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+(?:[eE][-+]?\d+)?\s*")
MIN_HOURS_WEEKS, MIN_HOURS_EVENTS = 2.0, 100
"""Weeks and own events of a history from which hours without any event are unusual."""
MAX_HOURS_OFF = 6
"""Hours before and after an event in which the user was not active in any week, if the weekday is
unusual."""
ExplanationTexts = tuple[str | None, str | None, str | None]
"""Values of the columns `reason`, `top_columns` and `explanation` for one event."""


class _ExplainedBatch(msgspec.Struct):
    """What was found for the events of a batch.

    Attributes:
        texts: Texts of each event.
        daily: Scores of the events, for later stages.
    """

    texts: list[ExplanationTexts]
    daily: DayRecord | None = None


class ExplainState(State):
    """What explanations remember about one user.

    Attributes:
        usage: What the user's days since the training had.
        history: Earlier anomalous events.
        normal_events: The latest normal events, to compare unusual ones with.
        earlier: Actions of the latest unusual events.
    """

    max_bytes = 1 << 25

    usage: UsageState = msgspec.field(default_factory=UsageState)
    history: HistoryState = msgspec.field(default_factory=HistoryState)
    normal_events: NormalEventIndex = msgspec.field(default_factory=NormalEventIndex)
    earlier: EarlierActions = msgspec.field(default_factory=EarlierActions)


@dataclass(frozen=True)
class Explain(Transform):
    """Explain why events are unusual: columns, more likely values, and earlier events.

    Takes events with scores and adds three columns. `reason` is one sentence for an analyst, of at
    most 160 characters: what was done, and what is unusual about it.
    `top_columns` are the columns that contribute most to the risk, now or in earlier events.
    `explanation` is JSON with details.

    For each of these columns it has the observed value, its probability given the other values of
    the event, more likely values with their probabilities, and the contribution to the surprisal
    and the `risk` of the event. It also has the parts of the `risk` that are due to the event
    itself, and to earlier events.

    The three columns are empty for events of a user without a fingerprint, and for events below
    `--threshold`. A `filter` by `risk` or with a budget right behind this stage makes it faster:
    events that will be dropped are not explained.

    Example: `add-scores --label=risk`, then `explain --threshold=30`
    """

    name = "explain"
    takes = (Scored,)
    gives = Scored

    top: int = option(3, "Maximum number of columns to name.", min=1)
    all_columns: bool = option(
        False, "Put all columns into `explanation`, not only the named ones.", flag=True
    )
    label: str = option(
        RISK, "Score to compare with --threshold: the name of a column that `add-scores` added."
    )
    threshold: float | None = option(
        None, "Explain only events with at least this score. Default: all events."
    )
    prefix: str = option(
        "",
        "Prefix of the names of the three columns. Needed if the log has a column of the same "
        "name, such as `reason` of Duo. Sinks and reports find the columns with any prefix.",
    )

    next_filter: SelectsByRisk | None = None

    def prepare_for(self, following: SelectsByRisk) -> Explain:
        """Return a stage that explains only what the next stage may keep."""
        return replace(self, next_filter=following)

    @property
    def needs(self) -> Requirements:
        """The fingerprint. The options choose the unusual events, which are remembered."""
        chosen = {"--label": self.label, "--threshold": self.threshold}
        return Requirements(model=True, state_options=chosen)

    @property
    def output_columns(self) -> ExplanationColumns:
        """Names of the added columns."""
        return ExplanationColumns().with_prefix(self.prefix)

    def validate(self) -> None:
        """Reject column names that feature columns have."""
        self._check_column_clash(self.options.columns)

    def open(self, context: StageContext) -> ExplainState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ExplainState()

    def process(self, batch: Scored, state: ExplainState) -> Iterator[Scored]:
        """Add the columns, and remember the events."""
        [columns] = self._find_texts([batch], [state])
        table = batch.table.with_columns(self._make_columns(columns.texts))
        yield batch.evolve(Scored, table=table, losses=batch.losses, daily=columns.daily)

    def process_users(
        self, batches: Sequence[Scored], states: Sequence[ExplainState]
    ) -> Iterator[list[Scored]]:
        """Add the columns to batches of several users."""
        tables = [batch.table for batch in batches]
        if not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        found = self._find_texts(batches, states)
        columns = self._make_columns([texts for each in found for texts in each.texts])
        added = Table.add_to_all(tables, columns)
        for batch, each, table in zip(batches, found, added, strict=True):
            yield [batch.change(table=table, daily=each.daily)]

    def _find_texts(
        self, batches: Sequence[Scored], states: Sequence[ExplainState]
    ) -> list[_ExplainedBatch]:
        """Explain the events of batches of the same columns."""
        self._check_column_clash(batches[0].log_columns)
        log = complete_log(self.options.log, self.options.source, batches[0].table.names)
        writer, found = ReasonWriter(log), []
        for batch, state in zip(batches, states, strict=True):
            explained = _ExplainedBatch([(None, None, None)] * batch.table.height)
            for event, explanation, facts in self._explain_events(batch, state, log, explained):
                explained.texts[event] = self._render_texts(writer, explanation, facts)
            found.append(explained)
        return found

    def _make_columns(self, texts: Sequence[ExplanationTexts]) -> list[pl.Series]:
        return [
            pl.Series(name, [row[position] for row in texts], pl.String)
            for position, name in enumerate(self.output_columns)
        ]

    def _check_column_clash(self, columns: Iterable[str]) -> None:
        clash = next((name for name in columns if name in self.output_columns), None)
        if clash is not None:
            raise UsageError(
                f"explain: the log has a column `{clash}`, which would be replaced. Use "
                f"`explain --prefix={self.prefix}why_`."
            )

    def _render_texts(
        self, writer: ReasonWriter, explanation: Explanation, facts: EventFacts
    ) -> ExplanationTexts:
        return (
            writer.write(explanation, self.top, facts),
            ", ".join(reason.column for reason in explanation.top_columns(self.top)),
            msgspec.json.encode(explanation).decode(),
        )

    def _explain_events(
        self,
        batch: Scored,
        state: ExplainState,
        log: LogDescription,
        explained: _ExplainedBatch,
    ) -> Iterator[tuple[int, Explanation, EventFacts]]:
        """Explain the selected events of a batch, by position. All its events are remembered."""
        fingerprint, rows = batch.fingerprint, batch.encoded
        if fingerprint is None or rows is None:
            return
        _reject_reference_network(fingerprint)
        record = explained.daily = record_days(batch, state.usage, self.options.timezone)
        if record is None or fingerprint.usage is None:
            return
        scores = record.scores.divide(state.usage, fingerprint.usage.leads)
        attribution = ColumnAttribution.from_fingerprint(fingerprint, rows, record.predictions)
        limit = fingerprint.quantile_of_risks(ANOMALY_QUANTILE)
        anomalous = scores.own > limit
        seconds = batch.table.times_us // 1000 / 1000
        preceding = state.history.update(scores, anomalous, seconds)
        near = state.normal_events.update(fingerprint, rows, anomalous, seconds)
        most = None if self.all_columns else self.top
        events = self._select_events(batch, record.scores.risk).tolist()
        leads = attribution.parts.usage.leads
        contributions = {event: preceding.rank_columns(event, leads, most) for event in events}
        facts = FactFinder(
            batch.table, log, attribution, scores, fingerprint.card.summary, self.options.timezone
        )
        earlier = facts.update_earlier(state.earlier, anomalous, events)
        if not events:
            return
        reasons = EventAttributions.from_attribution(attribution, contributions, batch.table)
        changes = _find_counterfactuals(fingerprint, rows, events, anomalous, limit)
        for event in events:
            row, total = int(rows.inverse[event]), round_decimals(scores.own[event])
            columns = reasons.for_event(event, contributions[event])
            summary = preceding.summarise_event(event)
            unchanged = Counterfactual((), total, total, round_decimals(limit))
            baseline = Baseline.from_card(fingerprint.card)
            explanation = structs.replace(
                Explanation.from_columns(total, columns, summary, baseline),
                # The same values can be unusual on one day, and learned on a later one.
                change=changes[row] if anomalous[event] else unchanged,
                nearest=near.query(event, attribution.column_anomaly[row]),
                normal_columns=attribution.normal_columns(row),
            )
            yield event, explanation, facts.find(event, contributions[event], earlier.get(event))

    def _select_events(self, batch: Scored, risk: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the positions of the events to explain."""
        following = self.next_filter
        kept = np.True_ if following is None else following.select(batch, risk)
        if self.threshold is None:
            return np.flatnonzero(np.broadcast_to(kept, len(risk)))
        if self.label not in batch.scores or not batch.table[self.label].dtype.is_numeric():
            raise UsageError(
                f"explain: --threshold needs numbers in `{self.label}`, but `add-scores` added "
                f"{', '.join(f'`{name}`' for name in batch.scores)}."
                f"{suggest(self.label, batch.scores)} Use one of these as --label, or add "
                f"`add-scores --label {self.label}`."
            )
        return np.flatnonzero(kept & (batch.table[self.label].to_numpy() >= self.threshold))


class EventAttributions(msgspec.Struct, frozen=True):
    """Attributions of the columns of a batch.

    Attributes:
        names: Names of all columns.
        inverse: Distinct row of each event, shape (rows,).
        reasons: Attribution by distinct row and column.
        values: Text of each event, by column; only columns that are shown.
    """

    names: Sequence[str]
    inverse: NDArray[np.intp]
    reasons: Mapping[tuple[int, int], ColumnReason]
    values: Mapping[int, Sequence[str | None]]

    @classmethod
    def from_attribution(
        cls,
        attribution: ColumnAttribution,
        contributions: Mapping[int, Sequence[ColumnContribution]],
        table: Table,
    ) -> EventAttributions:
        """Compute the attributions that the contributions of some events refer to.

        Args:
            attribution: Attributions of all distinct rows.
            contributions: Contributing columns of each event, by position.
            table: The events.
        """
        names, inverse = attribution.encoder.names, attribution.rows.inverse
        shown = np.zeros(attribution.column_anomaly.shape, dtype=np.bool_)
        for event, columns in contributions.items():
            shown[inverse[event], [part.column for part in columns]] = True
        values = {
            column: table[names[column]].cast(pl.String).to_list()
            if names[column] in table
            else [None] * table.height
            for column in np.flatnonzero(shown.any(0)).tolist()
        }
        return cls(names, inverse, dict(attribution.iter_reasons(shown)), values)

    def for_event(
        self, event: int, contributions: Sequence[ColumnContribution]
    ) -> tuple[ColumnReason, ...]:
        """Return the reasons of an event, with its values and the risk that each column adds."""
        row = int(self.inverse[event])
        return tuple(
            structs.replace(
                self.reasons[row, part.column],
                new=part.new,
                anomaly=part.anomaly,
                value=_display_optional(self.values[part.column][event]),
                risk=part.risk,
                dominant_contribution=part.dominant_contribution,
                anomalous_before=part.anomalous_before,
                redundant_columns=tuple(self.names[c] for c in part.redundant_columns),
            )
            for part in contributions
        )


class FactFinder(msgspec.Struct, frozen=True, dict=True):
    """Finds what reasons say about the events of a batch besides their explanations.

    Attributes:
        table: The events.
        log: Which columns hold the action.
        attribution: Attributions of all distinct rows.
        scores: Scores of the events, divided among the columns.
        summary: Summary of the fingerprint; None without one.
        timezone: Time zone of days and times.
    """

    table: Table
    log: LogDescription
    attribution: ColumnAttribution
    scores: DailyScores
    summary: ModelSummary | None
    timezone: str

    def update_earlier(
        self, state: EarlierActions, anomalous: NDArray[np.bool_], events: Sequence[int]
    ) -> dict[int, tuple[tuple[str, ...], bool]]:
        """Remember the unusual actions of the batch.

        Args:
            state: The earlier ones; updated.
            anomalous: Which events are anomalous, (rows,).
            events: Positions of the events to explain, ascending.

        Returns:
            The unusual actions before those of the events to which they matter.
        """
        risk, own = self.scores.risk, self.scores.own
        context = risk - own >= MIN_CONTEXT_SHARE * np.maximum(risk, 10**-RISK_DECIMALS)
        wanted = [event for event in events if context[event]]
        days = number_days(self.table[TIME], self.timezone)
        return state.update(self._name_events, days, own, anomalous, wanted)

    def find(
        self,
        event: int,
        contributions: Sequence[ColumnContribution],
        earlier: tuple[tuple[str, ...], bool] | None,
    ) -> EventFacts:
        """Return the facts about an event.

        Args:
            event: Its position.
            contributions: Contributions of its columns.
            earlier: Unusual actions before, and whether they are of the same day; None if they do
                not matter.
        """
        row = int(self.attribution.rows.inverse[event])
        names, codes = self.attribution.encoder.names, self.attribution.rows.codes[row]
        columns = [part.column for part in contributions]
        others = ((c, self._share_of_others(c, int(codes[c]))) for c in columns)
        actions, same_day = earlier or ((), True)
        return EventFacts(
            action=self._actions[event][0],
            action_column=self._actions[event][1],
            frequency={names[c]: float(self.scores.frequency[event, c]) for c in columns},
            others={names[c]: share for c, share in others if share is not None},
            time=self._times[event],
            is_outside_hours=bool(self._is_outside_hours[event]),
            earlier=actions,
            is_same_day=same_day,
        )

    def _share_of_others(self, c: int, code: int) -> float | None:
        """Return the share of a value among other users; None if it is not known."""
        usage = self.attribution.parts.usage
        end = usage.offsets[c + 1] if c + 1 < len(usage.offsets) else len(usage.others)
        shares = usage.others[usage.offsets[c] : end]
        # Without other users all shares are equal.
        return None if code == UNKNOWN or shares.min() == shares.max() else float(shares[code])

    @cached_property
    def _actions(self) -> list[tuple[str | None, str]]:
        """What was done in each event, and the column that says so, (rows,)."""
        found: list[tuple[str | None, str]] = [(None, "")] * self.table.height
        for name in reversed(self.log.summary_columns):
            if name in self.table:
                texts = self.table[name].cast(pl.String).to_list()
                pairs = zip(texts, found, strict=True)
                found = [(text, name) if text else other for text, other in pairs]
        return found

    def _name_events(self, events: NDArray[np.intp]) -> list[str]:
        """Return the action of some events; else the value that is most unusual in each.

        A value that says nothing without the name of its column is left out, and its text is empty:
        an hour, a number, or whether a value is new.
        """
        if not len(events):
            return []
        columns = self.scores.shares[events].argmax(1)
        columns = np.where(self._is_informative[columns], columns, -1)
        texts = (
            self._actions[event][0] or self._read_value(event, column)
            for event, column in zip(events.tolist(), columns.tolist(), strict=True)
        )
        return [display_value(text) if text else "" for text in texts]

    def _read_value(self, event: int, column: int) -> str:
        name = self.attribution.encoder.names[column] if column >= 0 else ""
        text = self.table[name].cast(pl.String)[event] if name in self.table else None
        return "" if text is None or _NUMBER.fullmatch(text) else str(text)

    @cached_property
    def _is_informative(self) -> NDArray[np.bool_]:
        """Which columns have values that a reader understands without their names, (columns,)."""
        return np.array(
            [
                isinstance(column, Category)
                and column.name not in HOUR_COLUMNS | DAY_COUNTS
                and not column.name.startswith(NOVELTY_PREFIX)
                for column in self.attribution.encoder.columns
            ]
        )

    @cached_property
    def _times(self) -> list[str]:
        """Time of day and weekday of each event, (rows,)."""
        local = self.table[TIME].dt.convert_time_zone(self.timezone)
        return local.dt.strftime("%H:%M on a %A").to_list()

    @cached_property
    def _is_outside_hours(self) -> NDArray[np.bool_]:
        """Whether the user is never active at about the time of each event, (rows,)."""
        summary, nothing = self.summary, np.zeros(self.table.height, dtype=np.bool_)
        if summary is None or summary.weeks < MIN_HOURS_WEEKS:
            return nothing
        week = np.array(summary.hours)
        if week.sum() < MIN_HOURS_EVENTS:
            return nothing
        day = np.tile(week.reshape(7, 24).sum(0), 7)
        near = _sum_around(day, 1)
        around = _sum_around(week, MAX_HOURS_OFF)
        quiet = (near == 0) | (around == 0)
        seconds = self.table[TIME].dt.epoch("ms").to_numpy() / 1000
        return np.asarray(quiet[hour_of_week(seconds)])


def _sum_around(counts: NDArray[np.int64], distance: int) -> NDArray[np.int64]:
    """Return the sum of the counts up to a distance from each position; the ends are neighbours.

    >>> _sum_around(np.array([5, 0, 0, 0]), 1).tolist()
    [5, 5, 0, 5]
    """
    shifts = range(-distance, distance + 1)
    return np.asarray(np.sum([np.roll(counts, shift) for shift in shifts], axis=0))


def _reject_reference_network(fingerprint: Fingerprint) -> None:
    if fingerprint.usage is None:
        raise UsageError(
            "explain: fingerprints of `train-ae --model=reference` cannot explain single "
            "columns. Leave `explain` out, or train with `--model=compact`."
        )


def _find_counterfactuals(
    fingerprint: Fingerprint,
    rows: EncodedRows,
    events: Sequence[int],
    anomalous: NDArray[np.bool_],
    limit: float,
) -> dict[int, Counterfactual]:
    """Return the values that would have made anomalous events normal, by distinct row."""
    unusual_events = [event for event in events if anomalous[event]]
    if not unusual_events:
        return {}
    distinct = np.unique(rows.inverse[unusual_events])
    unusual = EncodedRows(rows.codes[distinct], rows.numbers[distinct], np.arange(len(distinct)))
    counterfactuals = find_counterfactuals(fingerprint, unusual, limit)
    return dict(zip(distinct.tolist(), counterfactuals, strict=True))


def _display_optional(value: str | None) -> str | None:
    return None if value is None else display_value(value)
